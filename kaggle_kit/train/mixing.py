"""MixUp, CutMix and FMix: images mixed with others of their batch, and the targets of every head with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from kaggle_kit.train.config import MixConfig
from kaggle_kit.train.losses import Targets

MixKind = Literal["mixup", "cutmix", "fmix"]
# Harris 2020: how fast amplitudes fall with frequency; 3 leaves a few large patches.
FMIX_DECAY = 3.0


class Mixer:
    """Mixes a batch: one share and one pairing for all of its images, drawn anew every step.

    Image i is mixed with image i + shift of its batch, around its end: in shuffled batches as random as any pairing,
    and none meets itself. Every head's targets become `share * own + (1 - share) * partner's`, where `share` is what is
    really left of the own image, counted in pixels for CutMix and FMix. Where one of the two labels is not known, the
    row's targets so sum to less than 1, and `kaggle_kit.train.losses` leaves the row out for that head.

    What is drawn depends on nothing but the seed and the step, and is drawn on the CPU: a training goes on as it would
    have, and a GPU mixes what the CPU would mix.
    """

    def __init__(self, config: MixConfig, *, seed: int, num_steps: int) -> None:
        """Describe a training's mixing.

        Args:
            config: What is mixed, how often and until when.
            seed: The training's.
            num_steps: How many steps the training takes; the last `free_share` of them are not mixed.
        """
        kinds: tuple[MixKind, ...] = ("mixup", "cutmix", "fmix")
        self._alphas: dict[MixKind, float] = {kind: getattr(config, kind) for kind in kinds if getattr(config, kind)}
        self._share = config.share
        self._seed = seed
        self._num_mixed_steps = round(num_steps * (1 - config.free_share)) if config.is_on else 0

    def kind(self, step: int) -> MixKind | None:
        """Return what the batch of this step is mixed by, None for not at all."""
        return self._drawn_kind(step, self._rng(step))

    def __call__(self, images: torch.Tensor, targets: Targets, *, step: int) -> tuple[torch.Tensor, Targets]:
        """Return a batch mixed, or itself where this step mixes none.

        Args:
            images: (B, H, W, C) uint8, or floats from 0 to 255, on any device; left as they are.
            targets: For each head (B, C) float32, on the same device; left as they are.
            step: Of the whole training, counted from 0.

        Returns:
            The images, (B, H, W, C): float32 from 0 to 255 by MixUp, else of the type that came in; and their targets.
            The very objects that came in where the step mixes none, and for a batch of one image.
        """
        rng = self._rng(step)
        kind = self._drawn_kind(step, rng)
        num_images = len(images)
        if kind is None or num_images < 2:
            return images, targets
        share = float(rng.beta(self._alphas[kind], self._alphas[kind]))
        shift = int(rng.integers(1, num_images))
        mixed, share = _MIXES[kind](images, share, shift, rng)
        return mixed, {head: _blend(rows, share, shift) for head, rows in targets.items()}

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, 3, step))

    def _drawn_kind(self, step: int, rng: np.random.Generator) -> MixKind | None:
        if step >= self._num_mixed_steps or rng.random() >= self._share:
            return None
        return list(self._alphas)[int(rng.integers(len(self._alphas)))]


def low_frequency_mask(size: tuple[int, int], share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return a mask of a few smooth patches.

    Args:
        size: (height, width).
        share: How much of the mask is True, 0 to 1.
        rng: Where the patches come from.

    Returns:
        (H, W) bool, of which round(share * H * W) are True.

    Source: FMix (Harris 2020), https://arxiv.org/abs/2002.12047: the greatest values of noise whose amplitudes fall
    with the `FMIX_DECAY`-th power of the frequency. What differs: the number of them is rounded, never drawn.
    """
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(size)) ** -FMIX_DECAY  # frequency 0 moves all alike
    noise = rng.standard_normal((2, *frequency.shape))
    field = np.fft.irfft2(amplitude * (noise[0] + 1j * noise[1]), s=size).ravel()
    first = height * width - round(share * height * width)
    mask = np.zeros(height * width, bool)
    mask[np.argpartition(field, min(first, len(mask) - 1))[first:]] = True
    return mask.reshape(size)


def random_box(size: tuple[int, int], share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return rows and columns of the box that CutMix takes from the partner.

    Args:
        size: (height, width).
        share: What the box leaves of the own image, where it does not hang over an edge.
        rng: Where the box lies.

    Source: CutMix (Yun 2019), https://arxiv.org/abs/1905.04899: the image's aspect, the centre anywhere, cut off at the
    edges. What differs: nothing.
    """
    edges = []
    for length in size:
        side = round(length * (1 - share) ** 0.5)
        start = int(rng.integers(length)) - side // 2
        edges.append(slice(max(0, start), min(length, start + side)))
    return edges[0], edges[1]


def _mixup(images: torch.Tensor, share: float, shift: int, _rng: np.random.Generator) -> tuple[torch.Tensor, float]:
    partners = images.roll(-shift, 0)
    return images.to(torch.float32, copy=True).mul_(share).add_(partners, alpha=1 - share), share


def _cutmix(images: torch.Tensor, share: float, shift: int, rng: np.random.Generator) -> tuple[torch.Tensor, float]:
    height, width = images.shape[1:3]
    rows, columns = random_box((height, width), share, rng)
    mixed = images.clone()
    mixed[:, rows, columns] = images[:, rows, columns].roll(-shift, 0)
    return mixed, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def _fmix(images: torch.Tensor, share: float, shift: int, rng: np.random.Generator) -> tuple[torch.Tensor, float]:
    height, width = images.shape[1:3]
    own = low_frequency_mask((height, width), share, rng)
    partners = images.roll(-shift, 0)
    mask = torch.from_numpy(own[:, :, None]).to(images.device, images.dtype).expand(images.shape[1:]).contiguous()
    # Exact for uint8 too, which wraps around twice; torch.where takes 20 times as long for it on a CPU.
    return (images - partners).mul_(mask).add_(partners), float(own.mean())


_MIXES: dict[MixKind, Callable[[torch.Tensor, float, int, np.random.Generator], tuple[torch.Tensor, float]]] = {
    "mixup": _mixup,
    "cutmix": _cutmix,
    "fmix": _fmix,
}


def _blend(rows: torch.Tensor, share: float, shift: int) -> torch.Tensor:
    return rows * share + rows.roll(-shift, 0) * (1 - share)
