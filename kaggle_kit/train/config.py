"""Every training setting: its name, type, range and default. YAML in `kaggle_kit/conf` holds values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kaggle_kit.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Attributes:
        name: A timm model name.
        pretrained: Start from timm's pretrained weights: its local cache, or the hub when at home.
        input_size: (height, width) the network sees; None for the stored size.
        dropout: Share of features dropped before the heads, 0 to below 1.
    """

    name: str = "resnet18"
    pretrained: bool = False
    input_size: tuple[int, int] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_range("dropout", self.dropout, 0, 0.95)
        if self.input_size is not None and min(self.input_size) < 16:
            raise SettingError(f"`input_size` is {list(self.input_size)}; each side must be at least 16 pixels")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its one-cycle schedule.

    Attributes:
        name: A timm optimizer name.
        lr: The highest learning rate of the cycle.
        weight_decay: Decoupled weight decay; biases and norms are left out.
        warmup: Share of all steps in which the rate rises.
        clip_norm: Largest gradient norm.
    """

    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.2
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check_range("lr", self.lr, 1e-9, 100)
        _check_range("weight_decay", self.weight_decay, 0, 10)
        _check_range("warmup", self.warmup, 0, 0.9)
        _check_range("clip_norm", self.clip_norm, 1e-6, 1e6)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross entropy, summed over heads with the task's weights.

    Attributes:
        label_smoothing: Share of the target spread over all classes.
    """

    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        _check_range("label_smoothing", self.label_smoothing, 0, 0.5)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images reach the network.

    Attributes:
        batch_size: Images a step.
        num_workers: Processes that augment; None: up to 8 with a GPU, none without.
        window_gb: Gigabytes of images that are shuffled together; None: all, or where the packed store is above half
            of the memory a quarter of the memory, so that the disk is read in runs.
    """

    batch_size: int = 64
    num_workers: int | None = None
    window_gb: float | None = None

    def __post_init__(self) -> None:
        _check_range("batch_size", self.batch_size, 1, 65536)
        if self.num_workers is not None:
            _check_range("num_workers", self.num_workers, 0, 256)
        if self.window_gb is not None:
            _check_range("window_gb", self.window_gb, 0.001, 10_000)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training.

    Attributes:
        model: The network.
        optim: The optimizer.
        loss: The loss.
        loader: Batches.
        augment: `letters`: shift, scale, rotation, shear, no flips; `photos`: crop, flip, light; `none`; `auto`:
            letters where images are gray, photos where they have colour.
        epochs: Passes over the fold's train images.
        seed: Same seed on the same machine: the same weights.
        precision: `auto`: bf16 on GPUs that have it, fp16 on other GPUs, fp32 on the CPU.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: Literal["auto", "letters", "photos", "none"] = "auto"
    epochs: int = 20
    seed: int = 0
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"

    def __post_init__(self) -> None:
        _check_range("epochs", self.epochs, 1, 10_000)
        _check_range("seed", self.seed, 0, 2**31 - 1)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingError(f"`{name}` is {value}; expected {low:g} to {high:g}")
