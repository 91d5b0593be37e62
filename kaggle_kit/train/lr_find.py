"""The learning rate range test: which rate to train with, from how the loss goes while the rate grows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.train.config import OptimConfig
from kaggle_kit.train.optim import make_optimizer, set_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
BatchT = TypeVar("BatchT")

_SMOOTH_SHARE = 0.03  # of the steps: the Gaussian's width
_DIVERGED = 4.0  # times the best smoothed loss
_LEAST_DESCENT = 0.02  # of the loss at the start
_LEAST_NOISES = 5.0  # standard deviations of the smoothed loss
_LEFT = 0.05  # of its fall: so far below its start, the loss has left it
_LEAST_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class LrFind:
    """What a range test found.

    Attributes:
        rates: (n,) the rates that were tried, rising; cut where the loss was no longer a number.
        losses: (n,) the loss of each step.
        smoothed: (n,) the same, smoothed; what the suggestions are read from.
        suggestion: The rate to train with; None where the loss found no slope.
        how: One line that says where the suggestion comes from, or why there is none.
        candidates: {way: rate} of each way to read the curve: `valley`, `steepest` and `lowest / 10`; empty without a
            suggestion.
    """

    rates: Floats
    losses: Floats
    smoothed: Floats
    suggestion: float | None
    how: str
    candidates: dict[str, float]


def find_lr(
    network: nn.Module,
    batches: Iterable[BatchT],
    step_loss: Callable[[nn.Module, BatchT], torch.Tensor],
    config: OptimConfig,
    *,
    low: float = 1e-7,
    high: float = 10.0,
    num_steps: int = 100,
) -> LrFind:
    """Train a copy of a network with rates that grow from `low` to `high`, and say which one suits.

    Each step is the training's own: its optimizer, its layer groups (`lr_scale`), its clipping. The test ends early
    when the smoothed loss exceeds 4 times its lowest, or is not a number.

    Source: Smith 2017, https://arxiv.org/abs/1506.01186, and fastai's `lr_find`, whose `valley` is the suggestion: the
    middle of the longest descent. It differs in three ways: fastai's smoothing is a trailing average, which shifts the
    curve towards higher rates, this one is centred; its descent may begin in the noise of the lowest rates, here it
    begins where the loss leaves its start; and where the loss falls by no more than its noise, it still names a rate.

    Args:
        network: Left as it is; the copy is in training mode, on the same device.
        batches: At least `num_steps` of them, unless the test ends early.
        step_loss: (copy, batch) -> the scalar loss of a training step.
        config: The optimizer; its `lr` plays no part.
        low: The first rate.
        high: The last rate.
        num_steps: Steps from the one to the other.

    Raises:
        SettingError: When the range is empty or the steps are below 20.
        DataError: When the batches end before the test does.
    """
    _check_range(low, high, num_steps)
    tried = copy.deepcopy(network).train()
    optimizer = make_optimizer(tried, config)
    rates = np.geomspace(low, high, num_steps)
    losses: list[float] = []
    for rate, batch in zip(rates, batches, strict=False):
        set_rate(optimizer, float(rate))
        loss = step_loss(tried, batch)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or _has_diverged(losses, num_steps):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tried.parameters(), config.clip_norm)
        optimizer.step()
    else:
        if len(losses) < num_steps:
            raise DataError(
                f"the range test takes {num_steps} batches and there were {len(losses)}; "
                "take fewer steps, or smaller batches"
            )
    finite = len(losses) - (not math.isfinite(losses[-1]))
    return read_lr_curve(rates[:finite], np.array(losses[:finite]), num_steps=num_steps)


def read_lr_curve(rates: Floats, losses: Floats, *, num_steps: int) -> LrFind:
    """Suggest a rate from the losses of a range test.

    Args:
        rates: (n,) rising geometrically.
        losses: (n,) finite.
        num_steps: How many the whole test would have had; says how much is smoothed.
    """
    smoothed = smooth(losses, _SMOOTH_SHARE * num_steps)
    problem = _no_slope(rates, losses, smoothed, num_steps)
    if problem:
        how = f"no slope found: {problem}"
        return LrFind(rates=rates, losses=losses, smoothed=smoothed, suggestion=None, how=how, candidates={})
    lowest = int(smoothed.argmin())
    left = (1 - _LEFT) * losses[: _start(num_steps)].mean() + _LEFT * smoothed[lowest]
    first = int(np.flatnonzero(smoothed[:lowest] > left).max(initial=0))
    descent = smoothed[first : lowest + 1]
    candidates = {
        "valley": float(rates[first + _valley(descent)]),
        "steepest": float(rates[first + int(np.diff(descent).argmin())]),
        "lowest / 10": float(rates[lowest] / 10),
    }
    found = candidates["valley"]
    others = ", ".join(f"{way}: {rate:.1e}" for way, rate in candidates.items() if way != "valley")
    how = f"{found:.1e}, the middle of the loss's longest descent ({others})"
    return LrFind(rates=rates, losses=losses, smoothed=smoothed, suggestion=found, how=how, candidates=candidates)


def smooth(losses: Floats, width: float) -> Floats:
    """Return the Gaussian-weighted means around each loss, over those there are at the ends.

    Args:
        losses: (n,).
        width: The Gaussian's standard deviation, in steps.
    """
    steps = np.arange(len(losses))
    weights = np.exp(-(((steps[:, None] - steps) / width) ** 2) / 2)
    means: Floats = weights @ losses / weights.sum(axis=1)
    return means


def save_lr_plot(path: Path, found: LrFind) -> None:
    """Write a PNG of the losses over the rates, with the suggestion marked.

    Args:
        path: Written atomically.
        found: With or without a suggestion.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    _draw(figure.subplots(), found)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw(axes: Axes, found: LrFind) -> None:
    axes.plot(found.rates, found.losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss of each step")
    axes.plot(found.rates, found.smoothed, color="tab:blue", linewidth=2, label="smoothed")
    if found.suggestion is None:
        axes.set_title(found.how, fontsize=10, parse_math=False, wrap=True)
    else:
        axes.set_title("How the loss goes while the learning rate grows", fontsize=11)
        axes.axvline(found.suggestion, color="tab:red", linewidth=1.2)
        height = float(np.interp(found.suggestion, found.rates, found.smoothed))
        label = f"train with about {found.suggestion:.1e}: the middle of the loss's longest descent"
        axes.plot(found.suggestion, height, "o", color="tab:red", markersize=8, label=label)
        for (way, rate), marker in zip(list(found.candidates.items())[1:], "^s", strict=True):
            text = {"steepest": "where it falls fastest", "lowest / 10": "a tenth of where it is lowest"}[way]
            height = float(np.interp(rate, found.rates, found.smoothed))
            axes.plot(rate, height, marker, color="tab:gray", markersize=6, label=f"{rate:.1e}: {text}")
    if len(found.losses):
        # A loss that explodes would flatten all that matters.
        low, start = float(found.losses.min()), float(found.smoothed[0])
        top = max(start + 0.6 * (start - low), float(found.losses[: _start(len(found.losses)) + 1].max()))
        axes.set_ylim(low - 0.05 * (top - low) - 1e-6, top + 0.05 * (top - low) + 1e-6)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (the heads', where layers have rates of their own)")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=9)


def _check_range(low: float, high: float, num_steps: int) -> None:
    if not 0 < low < high:
        raise SettingError(f"the range test goes from {low:g} to {high:g}; expected 0 < low < high")
    if num_steps < _LEAST_STEPS:
        raise SettingError(f"the range test has {num_steps} steps; give it at least {_LEAST_STEPS}")


def _has_diverged(losses: list[float], num_steps: int) -> bool:
    smoothed = smooth(np.array(losses), _SMOOTH_SHARE * num_steps)
    return bool(smoothed[-1] > _DIVERGED * smoothed.min())


def _start(num_steps: int) -> int:
    """Return how many steps count as the start: their rates change nothing, so what the loss does there is noise."""
    return num_steps // 5


def _no_slope(rates: Floats, losses: Floats, smoothed: Floats, num_steps: int) -> str:
    """Return why no rate can be suggested, or nothing."""
    if len(rates) < _LEAST_STEPS:
        end = f", at {rates[-1]:.1e}" if len(rates) else ""
        return f"the loss was no number, or exploded, after {len(rates)} step(s){end}; look at the images and labels"
    lowest, begin = int(smoothed.argmin()), _start(num_steps)
    start = float(losses[:begin].mean())
    fall = start - float(smoothed[lowest])
    least = max(_LEAST_DESCENT * abs(start), _LEAST_NOISES * _noise(losses[: max(lowest, begin)], num_steps))
    if fall < least:
        return (
            f"from {start:.3f} the smoothed loss falls by {max(fall, 0):.3f}, and less than {least:.3f} may be chance; "
            "take more steps or larger batches, or look at the labels"
        )
    if lowest < begin:
        return f"the loss is lowest at {rates[lowest]:.1e}, near the lowest rate; start lower than {rates[0]:.1e}"
    return ""


def _noise(losses: Floats, num_steps: int) -> float:
    """Return the standard deviation of the smoothed loss, from how much each loss differs from the one before."""
    alone = float(np.diff(losses).std()) / math.sqrt(2)
    return alone / math.sqrt(2 * math.sqrt(math.pi) * _SMOOTH_SHARE * num_steps)


def _valley(descent: Floats) -> int:
    """Return the middle of the longest strictly falling subsequence, which may skip losses that stand out."""
    length = np.ones(len(descent), dtype=int)
    before = np.arange(len(descent))
    for end in range(1, len(descent)):
        higher = np.flatnonzero(descent[:end] > descent[end])
        if len(higher):
            before[end] = higher[length[higher].argmax()]
            length[end] = length[before[end]] + 1
    last = first = int(length.argmax())
    while before[first] != first:
        first = int(before[first])
    return (first + last) // 2
