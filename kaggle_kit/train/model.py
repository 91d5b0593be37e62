"""The network: stored uint8 images in, one row of logits per head out. What is trained is what is exported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from kaggle_kit.errors import KitError, SettingError
from kaggle_kit.task import Task
from kaggle_kit.train.backbone import is_fixed, make_backbone
from kaggle_kit.train.config import ModelConfig, Size
from kaggle_kit.train.heads import Derivation, DerivedHead, check_derivation, make_head
from kaggle_kit.train.pooling import Pool, make_pool
from kaggle_kit.train.weights import check_name, find_weights

Logits = dict[str, torch.Tensor]


class Preprocess(nn.Module):
    """Stored images to what the backbone expects: float, resized to its input size, normalised.

    The antialiased resize to a fixed size is two matrix products, which every inference backend runs; their
    weights come from OpenCV's own resize of identity matrices.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, stored_size: Size, input_size: Size, *, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.stored_size = stored_size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.resize_to(input_size)

    def resize_to(self, input_size: Size) -> None:
        """Change the (height, width) that comes out."""
        (height, width), device = self.stored_size, self.mean.device
        self.input_size = input_size
        self.register_buffer("rows", resize_weights(height, input_size[0]).to(device), persistent=False)
        columns = resize_weights(width, input_size[1]).T.contiguous()
        self.register_buffer("columns", columns.to(device), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, C, h, w) float32 from (B, H, W, C) uint8, or float from 0 to 255."""
        pixels = images.float().permute(0, 3, 1, 2)  # TensorRT takes uint8 into a Cast alone
        if self.stored_size != self.input_size:
            pixels = self._resized(pixels)
        return (pixels - self.mean) / self.std

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        device = pixels.device.type
        if torch.is_autocast_enabled(device):  # pixels from 0 to 255 have more digits than bf16
            with torch.autocast(device, enabled=False):
                return torch.matmul(torch.matmul(self.rows, pixels), self.columns)
        return torch.matmul(torch.matmul(self.rows, pixels), self.columns)  # (h, H) (B, C, H, W) (W, w)


class Network(nn.Module):
    """A timm backbone with one head per target, preprocessing included.

    Attributes:
        preprocess: Images to pixels.
        backbone: The timm model, without classifier.
        pool: Pooling other than the backbone's own, or None.
        heads: The modules with weights, in the order of `head_kinds` but for derived heads, which have none.
        derived: For each of the task's heads the sums of an auxiliary head's probabilities; empty: none is derived.
        head_names: The task's heads.
        auxiliary_names: Heads that are trained beside them.
        head_kinds: How the classes of each trained head exclude each other.
        head_classes: How many each has.
        fixed_size: The backbone takes images of one size alone.
    """

    def __init__(
        self, task: Task, preprocess: Preprocess, backbone: nn.Module, config: ModelConfig, *, fixed_size: bool
    ) -> None:
        """Put heads on a backbone; `build_network` does it by settings alone.

        Args:
            task: Gives the heads.
            preprocess: Images to pixels.
            backbone: The timm model, without classifier.
            config: The model's settings.
            fixed_size: The backbone takes images of one size alone.
        """
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.name = config.name
        self.fixed_size = fixed_size
        self.head_names = tuple(task.heads)
        self.auxiliary_names = tuple(task.auxiliary)
        self.head_kinds = {name: str(head.kind) for name, head in task.trained_heads.items()}
        self.head_classes = {name: head.num_classes for name, head in task.trained_heads.items()}
        self.derive_from = config.derive_from
        self.dropout = nn.Dropout(config.dropout)
        self.pool: Pool | None = None
        with _evaluating(backbone), torch.no_grad():
            pixels = preprocess(_sample_images(preprocess))
            if config.pool != "auto":
                self.pool = make_pool(config.pool, backbone, pixels, name=config.name)
            features = self._pooled(pixels).shape[1]  # asked for: timm's `num_features` is wrong for some models
        made = task.auxiliary if self.derive_from else task.trained_heads
        self._made_names = tuple(made)
        self.heads = nn.ModuleList([make_head(head, features) for head in made.values()])
        self.derived = nn.ModuleList()
        self._fixed_names = frozenset(n for n, p in self.named_parameters() if not p.requires_grad)

    @property
    def input_size(self) -> Size:
        """The (height, width) the backbone sees."""
        return self.preprocess.input_size

    def forward(self, images: torch.Tensor, *, auxiliary: bool = False) -> Logits:
        """Return {head: (B, C) logits} from (B, H, W, channels) uint8, or float from 0 to 255.

        Args:
            images: At the stored size.
            auxiliary: Those of the auxiliary heads too, after those of the task's.
        """
        return self.logits(self.preprocess(images), auxiliary=auxiliary)

    def logits(self, pixels: torch.Tensor, *, auxiliary: bool = False) -> Logits:
        """Return what `forward` does from (B, C, h, w) float, as `preprocess` gives them."""
        features = self.dropout(self._pooled(pixels))
        names = self.head_names + self.auxiliary_names if auxiliary else self.head_names
        wanted = {*names, self.derive_from}
        made = zip(self._made_names, self.heads, strict=True)
        logits = {name: head(features) for name, head in made if name in wanted}
        if self.derive_from:
            log_probs = logits[self.derive_from].float().log_softmax(dim=1)
            logits |= {n: head(log_probs) for n, head in zip(self.head_names, self.derived, strict=True)}
        return {name: logits[name] for name in names}

    def set_input_size(self, size: Size) -> None:
        """Change the (height, width) the backbone sees; the stored size stays.

        Raises:
            SettingError: When the backbone takes images of one size alone, or none of this size.
        """
        before = self.input_size
        if size == before:
            return
        if self.fixed_size:
            raise SettingError(
                f"{self.name!r} takes images of one size alone, {list(before)}, not {list(size)}; leave "
                "schedule.small_size out, or choose a convolutional model"
            )
        self.preprocess.resize_to(size)
        try:
            with _evaluating(self.backbone), torch.no_grad():
                self._pooled(self.preprocess(_sample_images(self.preprocess)))
        except (RuntimeError, ValueError, AssertionError) as error:
            self.preprocess.resize_to(before)
            raise _unusable(self.name, size, error) from None

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        backbone: Any = self.backbone
        if self.pool is None:
            features: torch.Tensor = backbone(pixels)
            return features
        return torch.cat([backbone.forward_head(part) for part in self.pool(backbone.forward_features(pixels))], dim=1)


class Trained(NamedTuple):
    """How many numbers of a network are trained, and how many are not."""

    trained: int
    frozen: int


def build_network(
    task: Task, config: ModelConfig, *, load_pretrained: bool = True, derivation: Derivation | None = None
) -> Network:
    """Make the network for a task.

    Args:
        task: Gives heads, channels and the stored size; the classes of its auxiliary heads are resolved.
        config: The model's settings.
        load_pretrained: False where a checkpoint's weights come next.
        derivation: With `derive_from`: what `derivation_of` gives; None where a checkpoint's comes next.

    Raises:
        SettingError: For a name timm does not know, or a setting the backbone cannot follow.
        CheckpointError: When pretrained weights are asked for and cannot be had, or do not fit.
    """
    check_name(config.name)
    check_derivation(task, config.derive_from)
    input_size = config.input_size or task.stored_size
    channels = task.images.channels
    try:
        backbone = make_backbone(config, channels, input_size, load_pretrained=load_pretrained)
        preprocess = Preprocess(task.stored_size, input_size, **_normalisation(backbone, channels))
        network = Network(task, preprocess, backbone, config, fixed_size=is_fixed(config.name))
    except KitError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise _unusable(config.name, input_size, error) from None
    if config.derive_from:
        num_classes = task.auxiliary[config.derive_from].num_classes
        for name, head in task.heads.items():
            classes = np.zeros(num_classes, np.int64) if derivation is None else derivation[name]
            network.derived.append(DerivedHead(head.num_classes, torch.from_numpy(np.array(classes, np.int64))))
    return network


def check_model(config: ModelConfig, *, sizes: Mapping[str, Size | None] | None = None) -> None:
    """Refuse, before any long work, a model that cannot be made; pretrained weights are fetched when they must be.

    Args:
        config: The model's settings.
        sizes: Sizes the network is to see while it is trained, by the name of their setting.

    Raises:
        SettingError: With the closest name there is, or the setting the backbone cannot follow.
        CheckpointError: When pretrained weights cannot be had.
    """
    check_name(config.name)
    for setting, size in (sizes or {}).items():
        if size is not None and is_fixed(config.name):
            raise SettingError(
                f"`{setting}` is {list(size)}, but {config.name!r} takes images of one size alone; leave it out, or "
                "choose a convolutional model"
            )
    if config.pretrained:
        find_weights(config.name, config.weights)
    if config.pool != "auto" or config.drop_path:
        _check_layers(config)


def freeze_backbone(network: Network) -> Trained:
    """Let only heads, BatchNorm layers and the exponent of a pooling be trained.

    Returns:
        How many numbers are trained now, and how many are not.
    """
    network.requires_grad_(False)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in (network.heads, *([network.pool] if network.pool else []), *norms):
        module.requires_grad_(True)
    return _count(network)


def unfreeze(network: Network) -> Trained:
    """Let all be trained that was when the network was made.

    Returns:
        How many numbers are trained now, and how many are not.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name not in network._fixed_names
    return _count(network)


def resize_weights(before: int, after: int) -> torch.Tensor:
    """Return the (after, before) matrix of a one-dimensional resize: by area when shrinking, else linear."""
    import cv2

    how = cv2.INTER_AREA if after < before else cv2.INTER_LINEAR
    return torch.from_numpy(
        np.ascontiguousarray(cv2.resize(np.eye(before, dtype=np.float32), (before, after), None, 0, 0, how))
    )


def _check_layers(config: ModelConfig) -> None:
    """Refuse a pool or paths that the backbone does not have, by making it once at its own size."""
    import timm

    own = timm.get_pretrained_cfg(config.name)
    size = own.input_size[1:] if own else (224, 224)
    try:
        backbone = make_backbone(config, 3, size, load_pretrained=False)
        if config.pool != "auto":
            with _evaluating(backbone), torch.no_grad():
                make_pool(config.pool, backbone, _gradient((1, 3, *size)), name=config.name)
    except KitError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise _unusable(config.name, size, error) from None


def _unusable(name: str, size: Size, error: Exception) -> SettingError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SettingError(
        f"timm cannot make {name!r} for input {list(size)}: {reason}; set model.input_size to one it takes"
    )


def _normalisation(backbone: nn.Module, channels: int) -> dict[str, list[float]]:
    """Return the mean and standard deviation the backbone was pretrained with, averaged where images are gray."""
    cfg = getattr(backbone, "pretrained_cfg", {})
    mean, std = list(cfg.get("mean", (0.5,) * 3)), list(cfg.get("std", (0.25,) * 3))
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    return {"mean": mean, "std": std}


def _sample_images(preprocess: Preprocess) -> torch.Tensor:
    """Return (1, H, W, channels) uint8 to look at features with; constant images would hide what a pooling does."""
    images = _gradient((1, *preprocess.stored_size, preprocess.mean.shape[1]))
    return (255 * images).to(preprocess.mean.device, torch.uint8)


def _gradient(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.linspace(0, 1, math.prod(shape)).reshape(shape)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module, and all within, into evaluation mode for the block."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _count(network: Network) -> Trained:
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in network.parameters()]
    return Trained(trained=sum(n for on, n in sizes if on), frozen=sum(n for on, n in sizes if not on))
