"""Pooling other than a backbone's own: its feature map becomes a single place, which its own pooling then keeps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from kaggle_kit.errors import SettingError

Kind = Literal["avg", "gem", "concat"]


class Gem(nn.Module):
    """Generalised mean: the average for exponent 1, towards the maximum as it grows; it is learned.

    Source: Radenovic 2018, Fine-tuning CNN Image Retrieval with No Human Annotation; values below `eps` count as `eps`.
    """

    def __init__(self, exponent: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([exponent]))
        self.eps = eps

    def forward(self, maps: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
        """Return the mean over the dimensions `places`, kept as dimensions of size 1."""
        powers = maps.float().clamp(min=self.eps).pow(self.exponent)  # 1e-6 cubed is 0 in half precision
        return powers.mean(places, keepdim=True).pow(1 / self.exponent).to(maps.dtype)


class Pool(nn.Module):
    """A feature map to one place, or two of them for `concat`.

    Args:
        kind: How.
        places: The dimensions that are places, not channels: (2, 3) of (B, C, h, w), (1, 2) of (B, h, w, C), (1,) of
            (B, tokens, C).
        prefix: How many tokens, of a class or registers, precede those of places; the result has as many again.
    """

    def __init__(self, kind: Kind, *, places: tuple[int, ...], prefix: int) -> None:
        super().__init__()
        self.kind = kind
        self.places = places
        self.prefix = prefix
        self.gem = Gem() if kind == "gem" else None

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps of one place each, such as (B, C, 1, 1), from one such as (B, C, h, w)."""
        maps = maps[:, self.prefix :] if self.prefix else maps
        if self.gem is not None:
            return [self._spread(self.gem(maps, self.places))]
        average = self._spread(maps.mean(self.places, keepdim=True))
        return [average, self._spread(maps.amax(self.places, keepdim=True))] if self.kind == "concat" else [average]

    def _spread(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled.repeat_interleave(self.prefix + 1, dim=1) if self.prefix else pooled


def make_pool(kind: Kind, backbone: nn.Module, pixels: torch.Tensor, *, name: str) -> Pool:
    """Make the pooling that fits a backbone.

    Args:
        kind: How to pool.
        backbone: A timm model in evaluation mode, without classifier.
        pixels: (B, channels, h, w) float32 to look at its feature map with.
        name: The backbone's name, for the error.

    Raises:
        SettingError: When the backbone's features are no map, or it pools by weights of its own.
    """
    parts: Any = backbone
    maps = parts.forward_features(pixels) if hasattr(backbone, "forward_features") else None
    where = f"`model.pool` is {kind!r}, but {name!r}"
    is_map = isinstance(maps, torch.Tensor) and maps.ndim in (3, 4)
    if maps is None or not is_map or getattr(backbone, "attn_pool", None) is not None:
        raise SettingError(f"{where} has no feature map that can be pooled otherwise; set model.pool=auto")
    if maps.ndim == 3 and kind == "gem":
        raise SettingError(
            f"{where} gives tokens, as often below 0 as above, which a generalised mean cannot take; set "
            "model.pool to avg, concat or auto"
        )
    prefix = int(getattr(backbone, "num_prefix_tokens", 0)) if maps.ndim == 3 else 0
    channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    places = (1,) if maps.ndim == 3 else (1, 2) if channels_last else (2, 3)
    pool = Pool(kind, places=places, prefix=prefix)
    if not _only_pools(parts, pool(maps)[0], maps, places):
        raise SettingError(f"{where} pools by weights of its own; set model.pool=auto")
    return pool


def _only_pools(backbone: Any, pooled: torch.Tensor, maps: torch.Tensor, places: tuple[int, ...]) -> bool:
    """Return whether a backbone averages places, or the like, and knows them by what they hold alone.

    One place then gives what a whole map of such places gives, and a map that is turned over what it gave before.
    """
    constant = (pooled[:, :1] if maps.ndim == 3 else pooled).expand_as(maps)
    pairs = [(pooled, constant), *([(maps, maps.flip(places))] if maps.ndim == 4 else [])]
    try:
        outputs = [(backbone.forward_head(one), backbone.forward_head(other)) for one, other in pairs]
    except (RuntimeError, AttributeError, AssertionError, IndexError):
        return False
    return all(_are_close(one, other) for one, other in outputs)


def _are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=1e-3, atol=1e-3 * float(other.detach().abs().max())
    )
