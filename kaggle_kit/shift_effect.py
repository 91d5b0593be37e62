"""What correcting for class shares does at home, before the kernel is trusted with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import CLASS_METRICS, gain
from kaggle_kit.prior_shift import Floats, Ints, shift_predictions
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import metric_value
from kaggle_kit.task import Metric, Task

Shares = Literal["as they are", "equal", "around train's"]

_EFFECT_ROWS = 20_000  # at most, in one resample with other class shares
_SPREAD = 10  # Dirichlet concentration for each class: the share of an average one then varies by about a third


@dataclass(frozen=True, kw_only=True)
class ShiftEffect:
    """What correcting for class shares does to the score of labelled images, for one way to draw them.

    Attributes:
        shares: The class shares drawn.
        head: The head, or "total" for the mean over heads, weighted as the task says.
        plain: Mean score without the correction.
        corrected: Mean score with it.
        gain: Mean gain of the correction; below 0 where it harms.
        interval: Lowest and highest gain of a draw.
    """

    shares: Shares
    head: str
    plain: float
    corrected: float
    gain: float
    interval: tuple[float, float]


def prior_shift_effect(
    task: Task,
    truth: Classes,
    probs: Mapping[str, npt.NDArray[Any]],
    train_priors: Mapping[str, npt.NDArray[Any]],
    decision: Decision,
    *,
    draws: int = 20,
    seed: int = 0,
) -> list[ShiftEffect]:
    """Measure the correction on out-of-fold predictions, with their class shares and with others.

    Rows are drawn with replacement, for each head by itself, so that its classes have the shares of these rows, equal
    ones, or shares from a Dirichlet distribution around train's. Classes without rows cannot be drawn.

    Args:
        task: Gives the metric and the heads' weights.
        truth: {head: (N,) class indices}.
        probs: {head: (N, C) out-of-fold probabilities}, rows in the same order.
        train_priors: {head: (C,) shares of the classes in train}.
        decision: How classes are decided, with and without the correction.
        draws: Resamples for each way.
        seed: Of the resamples.

    Returns:
        The effect on each head and on the total, for each way; on as many rows as there are, at most 20,000.

    Raises:
        PredictionError: When a head's probabilities or train shares cannot be used.
    """
    rng = np.random.default_rng(seed)
    ways: tuple[Shares, ...] = get_args(Shares)
    scores = np.empty((len(ways), len(task.heads), draws, 2))  # without and with the correction
    with progress_bar(len(task.heads) * len(ways) * draws, "prior shift", unit="draw") as bar:
        for column, head in enumerate(task.heads):
            rule = decision.heads.get(head, HeadRule(rule="argmax"))
            train = np.asarray(train_priors[head], np.float64)
            for way, shares in enumerate(ways):
                for draw in range(draws):
                    rows = _draw_rows(rng, truth[head], _shares(rng, shares, truth[head], train))
                    own, drawn = truth[head][rows], np.asarray(probs[head][rows], np.float32)
                    shifted = shift_predictions({head: drawn}, {head: train})[0][head]
                    for place, values in enumerate((drawn, shifted)):
                        answer = rule.decide(values) if task.metric in CLASS_METRICS else values
                        scores[way, column, draw, place] = metric_value(task.metric, own, answer, len(train))
                    bar.update()
    return [effect for way, shares in enumerate(ways) for effect in _effects(task, shares, scores[way])]


def format_prior_shift(metric: Metric, effects: list[ShiftEffect]) -> list[str]:
    """Return a table, one row a way to draw the images and head, and a closing sentence that says what to do."""
    width = max(8, *(len(effect.head) for effect in effects))
    lines = [f"{'class shares':<16}{'head':<{width}}  {'as is':>8}  {'corrected':>9}  {'gain':>8}  lowest to highest"]
    for one in effects:
        values = f"{one.plain:>8.4f}  {one.corrected:>9.4f}  {one.gain:>+8.4f}"
        lines.append(f"{one.shares:<16}{one.head:<{width}}  {values}  " + "{:+.4f} to {:+.4f}".format(*one.interval))
    totals = {effect.shares: effect for effect in effects if effect.head == "total"}
    said = ", ".join(f"{one.gain:+.4f} where they are {way}" for way, one in totals.items() if way != "as they are")
    said = f"{metric} gains {said}, {totals['as they are'].gain:+.4f} where they are as here"
    helped = [way for way, one in totals.items() if way != "as they are" and one.interval[0] > 0]
    if not helped:
        return [*lines, f"do not correct for class shares: {said}"]
    return [*lines, f"correct for class shares only if you expect the test's to be {' or '.join(helped)}: {said}"]


def _shares(rng: np.random.Generator, way: Shares, truth: Ints, train: Floats) -> Floats:
    """Return (C,) class shares to draw, 0 for classes that truth does not have."""
    own = np.bincount(truth, minlength=len(train)).astype(np.float64)
    if way == "around train's":
        drawn = rng.gamma(np.maximum(train * _SPREAD * len(train), 1e-3)) * (own > 0)  # a Dirichlet, once divided
    else:
        drawn = own if way == "as they are" else (own > 0).astype(np.float64)
    return np.asarray(drawn / drawn.sum())


def _draw_rows(rng: np.random.Generator, truth: Ints, shares: Floats) -> Ints:
    """Return row numbers, drawn with replacement so that classes have these shares."""
    drawn = np.sort(rng.choice(len(shares), size=min(len(truth), _EFFECT_ROWS), p=shares))
    order = np.argsort(truth, kind="stable")
    counts = np.bincount(truth, minlength=len(shares))
    first = np.cumsum(counts) - counts
    return np.asarray(order[first[drawn] + (rng.random(len(drawn)) * counts[drawn]).astype(np.int64)])


def _effects(task: Task, shares: Shares, scores: Floats) -> list[ShiftEffect]:
    """Return the effect on each head and on the total, from (heads, draws, 2) scores."""
    weights = np.array([head.weight for head in task.heads.values()])
    total = np.tensordot(weights / weights.sum(), scores, axes=1)  # (draws, 2)
    effects = []
    for head, values in zip([*task.heads, "total"], [*scores, total], strict=True):
        gains = [gain(task.metric, new, old) for old, new in values.tolist()]
        plain, corrected = values.mean(axis=0).tolist()
        effects.append(
            ShiftEffect(
                shares=shares,
                head=head,
                plain=plain,
                corrected=corrected,
                gain=float(np.mean(gains)),
                interval=(min(gains), max(gains)),
            )
        )
    return effects
