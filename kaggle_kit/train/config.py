"""Every training setting: its name, type, range and default. YAML in `kaggle_kit/conf` holds values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kaggle_kit.errors import SettingError, did_you_mean

Size = tuple[int, int]
Weights = Literal["raw", "ema", "swa", "soup"]  # the optimizer's own, and averages of them
AUGMENT_PRESETS = ("auto", "letters", "photos", "strong", "none")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Attributes:
        name: A timm model name.
        pretrained: Start from pretrained weights: `weights` where it is given, else timm's local cache, or the hub
            when at home. Weights that cannot be had are an error, never a random start.
        weights: A safetensors file, or a folder of them as `kaggle-kit weights` packs it; needs `pretrained`.
        input_size: (height, width) the network sees; None for the stored size.
        pool: How the feature map becomes features: `auto`: as the backbone does; `avg`; `gem`: generalised mean with
            a learned exponent; `concat`: average and maximum side by side.
        dropout: Share of features dropped before the heads, 0 to below 1.
        drop_path: Share of residual branches dropped, for backbones that have them.
        derive_from: An auxiliary head whose classes each belong to one class of every head (a grapheme to its root):
            the heads' probabilities are then sums of its probabilities. Empty: a linear layer a head.
    """

    name: str = "resnet18"
    pretrained: bool = False
    weights: str | None = None
    input_size: Size | None = None
    pool: Literal["auto", "avg", "gem", "concat"] = "auto"
    dropout: float = 0.0
    drop_path: float = 0.0
    derive_from: str = ""

    def __post_init__(self) -> None:
        _check_range("dropout", self.dropout, 0, 0.95)
        _check_range("drop_path", self.drop_path, 0, 0.95)
        if self.input_size is not None:
            _check_size("input_size", self.input_size)
        if self.weights is not None and not self.pretrained:
            raise SettingError("`weights` is given but `pretrained` is false; set model.pretrained=true to use them")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer.

    Attributes:
        name: A timm optimizer name.
        lr: The highest learning rate.
        weight_decay: Decoupled weight decay; biases and norms are left out.
        clip_norm: Largest gradient norm.
        layer_decay: Discriminative learning rates: each layer group's rate is this times that of the group above it,
            the heads' being `lr`; 1 for one rate everywhere.
        freeze_epochs: So many epochs train the heads and BatchNorm alone, with a schedule of their own; then all is
            trained.
        frozen_lr: The highest learning rate of the frozen epochs; None: `lr`.
    """

    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    freeze_epochs: int = 0
    frozen_lr: float | None = None

    def __post_init__(self) -> None:
        _check_range("lr", self.lr, 1e-9, 100)
        _check_range("weight_decay", self.weight_decay, 0, 10)
        _check_range("clip_norm", self.clip_norm, 1e-6, 1e6)
        _check_range("layer_decay", self.layer_decay, 0.01, 1)
        _check_range("freeze_epochs", self.freeze_epochs, 0, 10_000)
        if self.frozen_lr is not None:
            _check_range("frozen_lr", self.frozen_lr, 1e-9, 100)
            if not self.freeze_epochs:
                raise SettingError("`frozen_lr` is given but `freeze_epochs` is 0; say how many epochs are frozen")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes, and which size the network sees when.

    Attributes:
        name: `one-cycle`: up, then down by cosine; `cosine`: linear warm-up, then down by cosine; `flat-cosine`:
            warm-up, flat, then down by cosine; `plateau`: warm-up, then down by `plateau_factor` when the score has
            not improved for `plateau_patience` epochs.
        warmup: Share of the steps in which the rate rises; of the frozen epochs' steps, and of the others'.
        flat: flat-cosine: share of the steps, warm-up included, before the rate goes down.
        plateau_factor: plateau: what the rate is multiplied by.
        plateau_patience: plateau: epochs without a better score that are forgiven; the next one lowers the rate.
        small_size: (height, width) the network sees in the first `small_epochs` epochs: fast ones on small images,
            before those at full size.
        small_epochs: How many of `epochs` those are.
    """

    name: Literal["one-cycle", "cosine", "flat-cosine", "plateau"] = "one-cycle"
    warmup: float = 0.2
    flat: float = 0.7
    plateau_factor: float = 0.3
    plateau_patience: int = 2
    small_size: Size | None = None
    small_epochs: int = 0

    def __post_init__(self) -> None:
        _check_range("warmup", self.warmup, 0, 0.9)
        _check_range("flat", self.flat, 0, 1)
        _check_range("plateau_factor", self.plateau_factor, 0.001, 0.999)
        _check_range("plateau_patience", self.plateau_patience, 0, 1000)
        _check_range("small_epochs", self.small_epochs, 0, 10_000)
        if (self.small_size is None) != (self.small_epochs == 0):
            raise SettingError("`small_size` and `small_epochs` go together: which size first, and for how many epochs")
        if self.small_size is not None:
            _check_size("small_size", self.small_size)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of every head, summed with the heads' weights.

    Attributes:
        name: `cross_entropy`; `focal`: less of what is learned already; `bce`: each class against the rest. Multi-label
            heads use `focal` or else `bce` whatever is asked.
        label_smoothing: Share of the target spread over all classes; of a multi-label head over yes and no.
        class_weights: `inverse`: by inverse class frequency; `sqrt`: its square root; `effective`: by the effective
            number of images (Cui 2019); always with mean 1 over the train images.
        effective_beta: effective: how much a further image of a class still adds, 0 to below 1.
        focal_gamma: focal: 0 is cross entropy; higher looks away from easy images.
        head_weights: Share of each head's loss, auxiliary ones too; left out: the task's weights.
    """

    name: Literal["cross_entropy", "focal", "bce"] = "cross_entropy"
    label_smoothing: float = 0.05
    class_weights: Literal["none", "inverse", "sqrt", "effective"] = "none"
    effective_beta: float = 0.999
    focal_gamma: float = 2.0
    head_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_range("label_smoothing", self.label_smoothing, 0, 0.5)
        _check_range("effective_beta", self.effective_beta, 0, 0.999999)
        _check_range("focal_gamma", self.focal_gamma, 0, 10)
        for head, weight in self.head_weights.items():
            _check_range(f"head_weights.{head}", weight, 0, 1e6)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which train images an epoch shows.

    Attributes:
        name: `shuffle`: each once; `balanced`: every class of `head` equally often; `sqrt`: classes by the square root
            of their counts; `per-head`: all heads at once, by the mean of what balances each. All but `shuffle` draw
            with replacement.
        head: balanced and sqrt: the head whose classes count; empty: the combination of all heads.
    """

    name: Literal["shuffle", "balanced", "sqrt", "per-head"] = "shuffle"
    head: str = ""

    def __post_init__(self) -> None:
        if self.head and self.name not in ("balanced", "sqrt"):
            raise SettingError(f"`head` is {self.head!r}, which {self.name!r} does not use; leave it empty")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Images mixed with others of their batch, with their targets. Those that are on share the mixed batches equally.

    Attributes:
        mixup: MixUp's alpha (Zhang 2018); 0: off. 0.2 to 1 are usual.
        cutmix: CutMix's alpha (Yun 2019); 0: off. 1 is usual.
        fmix: FMix's alpha (Harris 2020); 0: off. 1 is usual.
        share: Share of the batches that are mixed.
        free_share: Share of the training at its end in which none is.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    fmix: float = 0.0
    share: float = 1.0
    free_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "fmix"):
            _check_range(name, getattr(self, name), 0, 100)
        _check_range("share", self.share, 0, 1)
        _check_range("free_share", self.free_share, 0, 1)

    @property
    def is_on(self) -> bool:
        """Whether any batch is mixed."""
        return self.share > 0 and max(self.mixup, self.cutmix, self.fmix) > 0


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Averages of the weights; each is scored, and the best of them and the raw weights is kept.

    Attributes:
        ema: Decay a step of the exponential moving average, such as 0.999; 0: off.
        swa_start: Stochastic weight averaging (Izmailov 2018) of the epochs after this share of the training; 1: off.
            In the first of them the rate goes to `swa_lr_share` of its highest, where it stays.
        swa_lr_share: See `swa_start`.
        soup: Greedy soup (Wortsman 2022) of this many best weights, raw and EMA, at the ends of epochs; 0: off.
    """

    ema: float = 0.0
    swa_start: float = 1.0
    swa_lr_share: float = 0.3
    soup: int = 0

    def __post_init__(self) -> None:
        _check_range("ema", self.ema, 0, 0.999999)
        _check_range("swa_start", self.swa_start, 0, 1)
        _check_range("swa_lr_share", self.swa_lr_share, 0.001, 1)
        _check_range("soup", self.soup, 0, 100)
        if self.soup == 1:
            raise SettingError("`soup` is 1; a soup takes at least 2 epochs, or 0 for none")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images reach the network.

    Attributes:
        batch_size: Images a step, on each device.
        micro_batch: Images at once: gradients of several micro-batches make up a step; None: all. Where memory runs
            out it is halved by itself.
        num_workers: Processes that augment; None: up to 8 with a GPU, none without.
        window_gb: Gigabytes of images that are shuffled together; None: all, or where the packed store is above half
            of the memory a quarter of the memory, so that the disk is read in runs.
    """

    batch_size: int = 64
    micro_batch: int | None = None
    num_workers: int | None = None
    window_gb: float | None = None

    def __post_init__(self) -> None:
        _check_range("batch_size", self.batch_size, 1, 65536)
        if self.micro_batch is not None:
            _check_range("micro_batch", self.micro_batch, 1, self.batch_size)
        if self.num_workers is not None:
            _check_range("num_workers", self.num_workers, 0, 256)
        if self.window_gb is not None:
            _check_range("window_gb", self.window_gb, 0.001, 10_000)


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """What computes. For several devices or machines start with `torchrun`, which says how many there are.

    Attributes:
        precision: `auto`: bf16 on GPUs that have it, fp16 on other GPUs, fp32 on the CPU.
        channels_last: Memory format that convolutions are fastest with.
        compile: Compile the network by torch.compile: slow to start, then faster on a GPU.
    """

    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Who is told how the training goes, beside `history.csv`.

    Attributes:
        to: `tensorboard`, `wandb` (offline unless WANDB_MODE says otherwise), both or none.
        gradients: Histograms of weights and gradients too, once an epoch.
        project: wandb: the project; empty: the task's name.
    """

    to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    gradients: bool = False
    project: str = ""

    def __post_init__(self) -> None:
        if self.gradients and not self.to:
            raise SettingError("`gradients` needs somebody to tell; set log.to=[tensorboard] or log.to=[wandb]")


@dataclass(frozen=True, kw_only=True)
class PseudoConfig:
    """Images of the test, labelled by earlier predictions: they train every fold and validate none.

    Attributes:
        predictions: An `.npz` of probabilities of test images (`kaggle-kit predict --probs`); None: none.
        floor: The least probability, over all heads, of an image that is taken.
    """

    predictions: str | None = None
    floor: float = 0.9

    def __post_init__(self) -> None:
        _check_range("floor", self.floor, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training.

    Attributes:
        model: The network.
        optim: The optimizer.
        schedule: Learning rate and size over time.
        loss: The loss.
        sampling: Which images an epoch shows.
        augment: A preset, or one's own albumentations as the text of a YAML list (the command line reads it from a
            file). `letters`: shift, scale, rotation, shear, elastic and grid warps, erasing, no flips; `photos`: zoom,
            warp, flip, small rotation, colour; `strong`: more of what suits the images; `none`; `auto`: letters where
            images are gray, photos where they have colour.
        mix: MixUp, CutMix, FMix.
        average: EMA, SWA, soup.
        loader: Batches.
        device: Devices and precision.
        log: Loggers.
        pseudo: Pseudo-labels.
        edits: A file of relabelled and dropped images, `edits.jsonl` of `kaggle-kit review`; the folds must have been
            made with the same. A finished run keeps a copy of what is in force, and names that. None: none.
        epochs: Passes over the fold's train images.
        max_hours: Stop in time for all folds to end within so many hours, each with a usable checkpoint; None: no
            limit.
        seed: Same seed on the same machine: the same weights.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: str = "auto"
    mix: MixConfig = field(default_factory=MixConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    log: LogConfig = field(default_factory=LogConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    edits: str | None = None
    epochs: int = 20
    max_hours: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_range("epochs", self.epochs, 1, 10_000)
        _check_range("seed", self.seed, 0, 2**31 - 1)
        if self.max_hours is not None:
            _check_range("max_hours", self.max_hours, 1e-4, 10_000)
        if "\n" not in self.augment and ":" not in self.augment and self.augment not in AUGMENT_PRESETS:
            raise SettingError(
                f"`augment` is {self.augment!r}; expected one of {', '.join(AUGMENT_PRESETS)}, or a .yaml file with a "
                f"list of albumentations{did_you_mean(self.augment, AUGMENT_PRESETS)}"
            )
        for name, value in (
            ("optim.freeze_epochs", self.optim.freeze_epochs),
            ("schedule.small_epochs", self.schedule.small_epochs),
        ):
            if value >= self.epochs and value:
                raise SettingError(f"`{name}` is {value} of {self.epochs} epochs; leave at least one for the rest")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingError(f"`{name}` is {value}; expected {low:g} to {high:g}")


def _check_size(name: str, size: Size) -> None:
    if min(size) < 16:
        raise SettingError(f"`{name}` is {list(size)}; each side must be at least 16 pixels")
