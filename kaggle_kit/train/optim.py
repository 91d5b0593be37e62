"""The optimizer and its learning rate: timm's optimizers on groups of layers, and the rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.train.config import OptimConfig, ScheduleConfig, TrainConfig

_BACKBONE = "backbone."
_FUSED = ("adam", "adamw")
_NEEDS_SECOND_ORDER = ("adahessian",)  # their step reads the graph of the gradients, which the loop does not keep


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return timm's optimizer over all parameters of a network.

    Biases, norms and what the backbone itself excludes have no weight decay. Each group's `lr_scale` is what its rate
    is multiplied by: 1 for the heads, `layer_decay` for the backbone's last layer group, its square for the one
    below, and so on. Frozen parameters are in it from the start: without a gradient, no optimizer touches them.

    Args:
        network: Its `backbone` is a timm model; everything else counts as heads. Already on its device.
        config: The optimizer's settings.

    Raises:
        SettingError: For a name that timm does not know, that needs another library, or second derivatives.
    """
    from timm.optim import create_optimizer_v2

    check_optimizer(config.name)
    with _all_trainable(network):
        groups = _layer_groups(network, config) if config.layer_decay < 1 else _decay_groups(network, config)
    try:
        optimizer = create_optimizer_v2(
            groups, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, **_fused(network, config.name)
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise SettingError(
            f"timm cannot make the optimizer {config.name!r}: {str(error)[:160] or type(error).__name__}; "
            "install what it needs, or choose another `optim.name`, such as 'adamw'"
        ) from None
    assert isinstance(optimizer, torch.optim.Optimizer)
    set_rate(optimizer, config.lr)
    return optimizer


def _fused(network: nn.Module, name: str) -> dict[str, bool]:
    """Return the option by which Adam steps all weights in one call, on the CPU.

    On a GPU torch's default does as much, and a fused optimizer would forbid clipping under fp16.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return {"fused": True} if on_cpu and name in _FUSED else {}


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that timm does not know or that this training cannot drive.

    Raises:
        SettingError: With the closest name there is.
    """
    from timm.optim import list_optimizers

    known = list_optimizers()
    if name.removeprefix("lookahead_") not in known:
        raise SettingError(f"`optim.name` is {name!r}, which timm does not know{did_you_mean(name, known)}")
    if name.removeprefix("lookahead_") in _NEEDS_SECOND_ORDER:
        raise SettingError(f"`optim.name` is {name!r}, which needs second derivatives; choose another, such as 'adamw'")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate to `rate` times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A run of steps with a rise and a fall of their own.

    Attributes:
        first: Its first step.
        num_steps: How many it has.
        highest: Its highest learning rate.
    """

    first: int
    num_steps: int
    highest: float


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The constant rate under which weights are averaged (SWA).

    Attributes:
        first: Its first step.
        num_anneal: In how many steps the rate gets there, by cosine.
        rate: The constant rate.
    """

    first: int
    num_anneal: int
    rate: float


class Schedule:
    """The learning rate of every step.

    A pure function of the step, so a resumed training needs no state for it and cannot drift from it; torch's
    LRScheduler counts its own calls and writes into the optimizer, both of which would have to be restored. `plateau`
    alone has state, since it follows the scores.

    `one-cycle` is torch's OneCycleLR (cosine, from a 25th of the highest rate, to a 250,000th), `cosine` after its
    warm-up torch's CosineAnnealingLR to 0, `plateau` after its warm-up torch's ReduceLROnPlateau without threshold.
    All reach their lowest rate one step after the last, so that no step is wasted on a rate of 0.

    Attributes:
        cycles: In order and without gaps: the frozen epochs' where there are such, then that of the rest.
        tail: The constant end, if the weights are averaged.
        num_steps: How many steps there are.
    """

    def __init__(
        self, config: ScheduleConfig, cycles: tuple[Cycle, ...], *, tail: Tail | None, steps_per_epoch: int
    ) -> None:
        """Start at the first step; `make_schedule` works out cycles and tail by the settings.

        Args:
            config: The schedule's settings.
            cycles: In order and without gaps.
            tail: The constant end, if the weights are averaged.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        self.cycles = cycles
        self.tail = tail
        self.num_steps = cycles[-1].first + cycles[-1].num_steps
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._epochs = 0
        self._bad_epochs = 0
        self._drops = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of an optimizer step.

        Args:
            step: Counted from 0 over the whole training.
        """
        assert 0 <= step < self.num_steps, f"step {step} of {self.num_steps}"
        tail = self.tail
        if tail is None or step < tail.first:
            return self._cycle_rate(step)
        done = min(1.0, (step - tail.first) / tail.num_anneal)
        return _fall(self._cycle_rate(tail.first), tail.rate, done)

    def rates(self, num_steps: int | None = None) -> list[float]:
        """Return the rates of the first `num_steps` steps (None: all), as far as they are known by now."""
        return [self.rate(step) for step in range(self.num_steps if num_steps is None else num_steps)]

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rates for this step, before it is taken."""
        set_rate(optimizer, self.rate(step))

    def end_epoch(self, *, better: bool) -> None:
        """Tell that an epoch has ended, so that `plateau` can lower the rate; the others take no notice.

        Epochs in which the rate still rises, and those under SWA's constant rate, do not count. A new cycle starts
        at its own highest rate.

        Args:
            better: Whether its score is the best so far.
        """
        self._epochs += 1
        step = self._epochs * self._steps_per_epoch  # the first of the next epoch
        if any(step == cycle.first for cycle in self.cycles):
            self._bad_epochs = self._drops = 0
            return
        cycle = self._cycle(step - 1)
        rises = step - self._steps_per_epoch - cycle.first < self._config.warmup * cycle.num_steps
        if rises or (self.tail is not None and step > self.tail.first):
            return
        self._bad_epochs = 0 if better else self._bad_epochs + 1
        if self._bad_epochs > self._config.plateau_patience:
            self._drops += 1
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, int]:
        """Return what `plateau` has seen."""
        return {"epochs": self._epochs, "bad_epochs": self._bad_epochs, "drops": self._drops}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state_dict`."""
        self._epochs, self._bad_epochs, self._drops = state["epochs"], state["bad_epochs"], state["drops"]

    def _cycle(self, step: int) -> Cycle:
        return next(cycle for cycle in reversed(self.cycles) if step >= cycle.first)

    def _cycle_rate(self, step: int) -> float:
        config, cycle = self._config, self._cycle(step)
        position = step - cycle.first
        if config.name == "one-cycle":
            return cycle.highest * _one_cycle(position, cycle.num_steps, config.warmup)
        warmup = config.warmup * cycle.num_steps
        if position < warmup:
            return cycle.highest * (position + 1) / (warmup + 1)
        if config.name == "plateau":
            return cycle.highest * config.plateau_factor**self._drops
        flat = max(warmup, config.flat * cycle.num_steps) if config.name == "flat-cosine" else warmup
        if position <= flat:
            return cycle.highest
        return _fall(cycle.highest, 0.0, (position - flat) / (cycle.num_steps - flat))


def make_schedule(config: TrainConfig, *, steps_per_epoch: int, epochs: int) -> Schedule:
    """Make the schedule of a training.

    The frozen epochs have a cycle of their own, up to `optim.frozen_lr`; the rest has another, up to `optim.lr`. The
    shares in `schedule` are of each cycle's steps.

    Under SWA the rate follows that schedule, as it would be without, until the first averaged epoch; in that epoch it
    goes by cosine to `swa_lr_share` of `optim.lr`, where it stays (the way of torch's SWALR).

    Args:
        config: The settings.
        steps_per_epoch: Optimizer steps in an epoch, at least 1.
        epochs: How many epochs there will be; more than `optim.freeze_epochs`.
    """
    optim = config.optim
    frozen = optim.freeze_epochs
    assert steps_per_epoch > 0 and epochs > frozen
    cycles = [Cycle(first=frozen * steps_per_epoch, num_steps=(epochs - frozen) * steps_per_epoch, highest=optim.lr)]
    if frozen:
        highest = optim.lr if optim.frozen_lr is None else optim.frozen_lr
        cycles.insert(0, Cycle(first=0, num_steps=frozen * steps_per_epoch, highest=highest))
    first = first_swa_epoch(config, epochs=epochs)
    tail = None
    if first is not None:
        rate = config.average.swa_lr_share * optim.lr
        tail = Tail(first=first * steps_per_epoch, num_anneal=steps_per_epoch, rate=rate)
    return Schedule(config.schedule, tuple(cycles), tail=tail, steps_per_epoch=steps_per_epoch)


def first_swa_epoch(config: TrainConfig, *, epochs: int) -> int | None:
    """Return the first epoch (from 0) whose weights SWA averages, or None where it is off.

    It is the first that lies wholly after `swa_start`, though never a frozen one, and at the latest the last.
    """
    share = config.average.swa_start
    if share >= 1:
        return None
    # 0.7 * 10 is 7.000000000000001: what the user wrote as a whole epoch is one.
    first = math.ceil(share * epochs - 1e-9)
    return min(max(first, config.optim.freeze_epochs), epochs - 1)


def _one_cycle(position: int, num_steps: int, warmup: float) -> float:
    """Return OneCycleLR's share of the highest rate, for `total_steps=num_steps + 1`.

    Where torch would divide by zero or never reach the highest rate (fewer than 10 steps), the first step has it after
    a warm-up of less than a step, and the last at the latest.
    """
    top = min(max(0.0, warmup * (num_steps + 1) - 1), num_steps - 1)
    if position < top:
        return _fall(1 / 25, 1.0, position / top)
    return _fall(1.0, 1 / 25 / 1e4, (position - top) / (num_steps - top))


def _fall(start: float, end: float, done: float) -> float:
    """Return the value between `start` and `end`, by cosine, when this share is done."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _decay_groups(network: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    from timm.optim import param_groups_weight_decay

    excluded = [_BACKBONE + name for name in _no_weight_decay(network)]
    groups = param_groups_weight_decay(network, config.weight_decay, no_weight_decay_list=excluded)
    return [{**group, "lr_scale": 1.0} for group in groups]


def _layer_groups(network: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the backbone's groups, lowest layer first, then those of everything else."""
    from timm.optim import param_groups_layer_decay

    assert isinstance(network.backbone, nn.Module)
    below = param_groups_layer_decay(
        network.backbone,
        weight_decay=config.weight_decay,
        no_weight_decay_list=_no_weight_decay(network),
        layer_decay=config.layer_decay,
    )
    # timm gives the topmost layer of what it is shown a scale of 1; here the heads are above it.
    below = [{**group, "lr_scale": group["lr_scale"] * config.layer_decay} for group in below]
    inside = {id(parameter) for parameter in network.backbone.parameters()}
    above = _decay_groups(network, config)
    for group in above:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in inside]
    return below + [group for group in above if group["params"]]


def _no_weight_decay(network: nn.Module) -> list[str]:
    names = getattr(network.backbone, "no_weight_decay", None)
    return sorted(names()) if names else []


@contextmanager
def _all_trainable(network: nn.Module) -> Iterator[None]:
    """Show all parameters as trainable, since timm leaves out those that are not."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
