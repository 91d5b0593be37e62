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
from kaggle_kit.prior_shift import Floats, Ints, rows_needed, shift_predictions
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import metric_value
from kaggle_kit.task import Metric, Task, refuse_multilabel

Shares = Literal["as in train", "balanced", "random"]

_MOST_ROWS = 20_000  # in one draw
_SPREAD = 10  # Dirichlet concentration for each class: the share of an average one then varies by about a third
_OTHER_SHARES: dict[Shares, str] = {
    "balanced": "has every class equally often",
    "random": "has other class shares than train",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the correction does to the score of labelled images, for one way to draw them.

    Attributes:
        shares: The class shares drawn: the rows' own, every class equally often, or random ones around train's, with
            which an average class is off by about a third.
        plain: Mean score without the correction.
        corrected: Mean score with it.
        gain: Mean gain of the correction; below 0 where it harms.
        interval: Lowest and highest gain of a draw.
    """

    shares: Shares
    plain: float
    corrected: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ShiftEffect:
    """What correcting for class shares does to a head.

    Attributes:
        head: The head, or "total" for the mean over heads, weighted as the task says.
        rows: How many images a draw has.
        rows_needed: From how many on the kernel corrects the head.
        changes: One for each way to draw; empty where there are too few rows, as the kernel would correct nothing.
    """

    head: str
    rows: int
    rows_needed: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A head's (N,) truth, (N, C) probabilities and (C,) shares in train, how it decides, and rows in a draw."""

    name: str
    rows: int
    truth: Ints
    probs: npt.NDArray[Any]
    train: Floats
    rule: HeadRule


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

    Rows are drawn with replacement, for each head by itself. Classes without rows cannot be drawn. The kernel differs
    in three ways: it averages the models of all folds, so that its probabilities are softer than out-of-fold ones;
    `decision` was fitted on these very rows, without the correction, so that `plain` flatters; and a draw has as many
    rows as there are, but at most 20,000, however many images the test has.

    Args:
        task: Gives the metric and the heads' weights.
        truth: {head: (N,) class indices}.
        probs: {head: (N, C) out-of-fold probabilities}, rows in the same order.
        train_priors: {head: (C,) shares of the classes in train}.
        decision: How classes are decided, with and without the correction.
        draws: Resamples for each way.
        seed: Of the resamples.

    Returns:
        The effect on each head, and last on the total, when every head could be tried.

    Raises:
        PredictionError: When a head's probabilities or train shares cannot be used.
        SettingError: When a head is multi-label.
    """
    refuse_multilabel(task, "correcting for class shares", "leave it out")
    rng = np.random.default_rng(seed)
    rows = min(len(next(iter(truth.values()))), _MOST_ROWS)
    needed = {name: rows_needed(head.num_classes) for name, head in task.heads.items()}
    scores: dict[str, Floats] = {}
    with progress_bar(len(task.heads) * len(get_args(Shares)) * draws, "prior shift", unit="draw") as bar:
        for name in task.heads:
            if rows >= needed[name]:
                rule = decision.heads.get(name, HeadRule(rule="argmax"))
                train = np.asarray(train_priors[name], np.float64)
                head = _Head(name=name, rows=rows, truth=truth[name], probs=probs[name], train=train, rule=rule)
                scores[name] = _score_draws(task.metric, head, rng, draws, bar)
    changes = {name: _changes(task.metric, scores[name]) if name in scores else () for name in task.heads}
    effects = [ShiftEffect(head=h, rows=rows, rows_needed=needed[h], changes=changes[h]) for h in task.heads]
    if len(scores) == len(task.heads):
        weights = np.array([head.weight for head in task.heads.values()])
        total = np.tensordot(weights / weights.sum(), np.stack(list(scores.values())), axes=1)
        least, of_total = max(needed.values()), _changes(task.metric, total)
        effects.append(ShiftEffect(head="total", rows=rows, rows_needed=least, changes=of_total))
    return effects


def format_prior_shift(metric: Metric, effects: list[ShiftEffect]) -> list[str]:
    """Return a table, one row a head and way to draw the images, and a closing sentence that says what to do."""
    width = max(8, *(len(effect.head) for effect in effects))
    lines = [f"{'head':<{width}}  {'class shares':<12}  {'as is':>8}  {'corrected':>9}  {'gain':>8}  lowest to highest"]
    for effect in effects:
        for one in effect.changes:
            values = f"{one.plain:>8.4f}  {one.corrected:>9.4f}  {one.gain:>+8.4f}"
            interval = "{:+.4f} to {:+.4f}".format(*one.interval)
            lines.append(f"{effect.head:<{width}}  {one.shares:<12}  {values}  {interval}")
    few = [effect for effect in effects if not effect.changes]
    lines += [f"head {one.head!r}: not tried, {one.rows:,} rows of at least {one.rows_needed:,}" for one in few]
    if len(few) == len(effects):
        lines = lines[1:]
    return [*lines, _advice(metric, effects)]


def correction_helps(effects: list[ShiftEffect]) -> bool:
    """Return whether the correction gains in every draw of some class shares other than train's; False if not tried."""
    if any(not effect.changes for effect in effects):
        return False
    return any(one.interval[0] > 0 for one in effects[-1].changes if one.shares in _OTHER_SHARES)


def _advice(metric: Metric, effects: list[ShiftEffect]) -> str:
    few = ", ".join(repr(effect.head) for effect in effects if not effect.changes)
    if few:
        return f"what correcting for class shares does cannot be judged: there are too few rows for head(s) {few}"
    changes = effects[-1].changes  # of the total
    gains = ", ".join(f"{one.gain:+.4f} where they are {one.shares}" for one in changes)
    gains = f"correcting for class shares makes {metric} better (below 0: worse) by {gains}"
    if not correction_helps(effects):
        return f"{gains}: it helps nowhere"
    helped = [_OTHER_SHARES[one.shares] for one in changes if one.shares in _OTHER_SHARES and one.interval[0] > 0]
    return (
        f"{gains}; keep the correction only if you know that the test {' or '.join(helped)}; if it is like train, or "
        "you do not know, run blend again without --prior-shift"
    )


def _score_draws(metric: Metric, head: _Head, rng: np.random.Generator, draws: int, bar: Any) -> Floats:
    """Return (ways, draws, 2) scores without and with the correction."""
    scores = np.empty((len(get_args(Shares)), draws, 2))
    for way, shares in enumerate(get_args(Shares)):
        for draw in range(draws):
            rows = _draw_rows(rng, head, _shares(rng, shares, head.truth, head.train))
            probs = np.asarray(head.probs[rows], np.float32)
            shifted, _ = shift_predictions({head.name: probs}, {head.name: head.train})
            for place, values in enumerate((probs, shifted[head.name])):
                answer = head.rule.decide(values) if metric in CLASS_METRICS else values
                scores[way, draw, place] = metric_value(metric, head.truth[rows], answer, len(head.train))
            bar.update()
    return scores


def _shares(rng: np.random.Generator, way: Shares, truth: Ints, train: Floats) -> Floats:
    """Return (C,) class shares to draw, 0 for classes that truth does not have."""
    own = np.bincount(truth, minlength=len(train)).astype(np.float64)
    if way == "random":
        drawn = rng.gamma(np.maximum(train * _SPREAD * len(train), 1e-3)) * (own > 0)  # a Dirichlet, once divided
    else:
        drawn = own if way == "as in train" else (own > 0).astype(np.float64)
    return np.asarray(drawn / drawn.sum())


def _draw_rows(rng: np.random.Generator, head: _Head, shares: Floats) -> Ints:
    """Return row numbers, drawn with replacement so that classes have these shares."""
    drawn = np.sort(rng.choice(len(shares), size=head.rows, p=shares))
    order = np.argsort(head.truth, kind="stable")
    counts = np.bincount(head.truth, minlength=len(shares))
    first = np.cumsum(counts) - counts
    return np.asarray(order[first[drawn] + (rng.random(len(drawn)) * counts[drawn]).astype(np.int64)])


def _changes(metric: Metric, scores: Floats) -> tuple[Change, ...]:
    """Return what (ways, draws, 2) scores say about each way."""
    found = []
    for shares, values in zip(get_args(Shares), scores, strict=True):
        gains = [gain(metric, corrected, plain) for plain, corrected in values.tolist()]
        plain, corrected = values.mean(axis=0).tolist()
        span = min(gains), max(gains)
        found.append(Change(shares=shares, plain=plain, corrected=corrected, gain=float(np.mean(gains)), interval=span))
    return tuple(found)
