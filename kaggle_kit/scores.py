"""Scores: the competition's metric per head and in all, on seen and unseen combinations apart, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import HALF
from kaggle_kit.errors import DataError, some_of
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import (
    CLASS_METRICS,
    LOWER_IS_BETTER,
    PROBABILITY_METRICS,
    confusion_matrix,
    have_curves,
    row_losses,
)
from kaggle_kit.multilabel import MULTILABEL_METRICS, mark_rows
from kaggle_kit.task import Head, Metric, Task

Answers = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]

DRAWS = 1000
_CONFIDENCE = 0.95
_FEW_GROUPS = 20
_MOST_VALUES = 2e8  # probabilities looked at in one bootstrap of a metric that sorts them; fewer draws above that


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value.

    Attributes:
        total: Mean over heads, weighted as the task says.
        heads: The value of each head.
        rows: How many images it was computed from.
        interval: Of the total: 95 % of resamples of the images score between these two; None when not asked for.
        head_intervals: The same for each head; empty when not asked for.
    """

    total: float
    heads: dict[str, float]
    rows: int
    interval: tuple[float, float] | None = None
    head_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.total:.4f}"
        if self.interval:
            text += " [{:.4f}, {:.4f}]".format(*self.interval)
        parts = ", ".join(f"{head} {value:.4f}" for head, value in self.heads.items())
        return f"{text} ({parts})" if len(self.heads) > 1 else text


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """A score, and apart from each other what the train images show and do not show.

    Attributes:
        all: Over all images.
        seen: Over images whose combination of heads occurs in train; None where there are none, it is not known, or
            the metric has no value for them.
        unseen: Over the other images; None likewise.
    """

    all: Score
    seen: Score | None = None
    unseen: Score | None = None


def score_answers(
    task: Task,
    truth: Classes,
    answers: Answers,
    *,
    draws: int = 0,
    seed: int = 0,
    groups: npt.NDArray[np.int64] | None = None,
) -> Score:
    """Score answers against the truth.

    Args:
        task: Gives the metric and the heads' weights.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}.
        answers: {head: (N,) decided class indices, of multi-label heads (N, C) integers 0 and 1, or (N, C)
            probabilities}, rows in the same order. Where the metric is of decided classes, the highest probability
            decides, or 0.5.
        draws: Resamples of the images for the 95 % intervals; 0 for no intervals.
        seed: Of the resamples.
        groups: (N,) numbers, equal for images of one group, which are resampled together; None: one by one.

    Raises:
        DataError: When there are no rows, a head is missing or does not fit, the metric has no value, or it is of
            probabilities and only classes are given.
    """
    rows = len(next(iter(truth.values())))
    if rows == 0:
        raise DataError("there are no rows to score; give at least one image")
    answers = _fitting(task, answers, rows)
    weights = head_weights(task)
    heads = {
        name: metric_value(task.metric, truth[name], answers[name], head.num_classes)
        for name, head in task.heads.items()
    }
    for head, value in heads.items():
        if np.isnan(value):
            alike = "say the same of every class" if head in task.multilabel_heads else "are of one class"
            raise DataError(
                f"head {head!r}: {task.metric} has no value, for all {rows:,} images {alike}; give images of "
                "two or more, or another metric"
            )
    score = Score(total=float(weights @ list(heads.values())), heads=heads, rows=rows)
    if not draws:
        return score
    resampled = bootstrap_heads(task, truth, [answers], draws=draws, seed=seed, groups=groups)[:, 0]  # (draws, heads)
    return with_intervals(score, resampled, task)


def with_intervals(score: Score, drawn: Floats, task: Task) -> Score:
    """Return a score with the 95 % intervals of (draws, heads) resampled values, moved to lie around it.

    A resample lacks rare classes, which moves all macro scores one way; an interval is of how far they spread.
    """
    values = np.column_stack([drawn, drawn @ head_weights(task)])
    moved = values + ([*score.heads.values(), score.total] - np.nanmean(values, axis=0))
    *heads, total = middle_part(np.clip(moved, *_range_of(task.metric)))
    return replace(score, interval=total, head_intervals=dict(zip(score.heads, heads, strict=True)))


def _range_of(metric: Metric) -> tuple[float, float]:
    return 0.0 if metric != "quadratic_kappa" else -1.0, math.inf if metric in LOWER_IS_BETTER else 1.0


def score_split(
    task: Task,
    truth: Classes,
    answers: Answers,
    unseen: npt.NDArray[np.bool_] | None,
    *,
    draws: int = 0,
    groups: npt.NDArray[np.int64] | None = None,
) -> SplitScore:
    """Score all rows, and seen and unseen combinations of heads apart.

    Args:
        task: Gives the metric and the heads' weights.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}.
        answers: {head: classes or probabilities}, as `score_answers` takes them, rows in the same order.
        unseen: (N,) True where train does not show the row's combination; None where that is not known.
        draws: Resamples of the images for the 95 % intervals; 0 for no intervals.
        groups: (N,) numbers, equal for images of one group, which are resampled together; None: one by one.
    """

    def part(rows: npt.NDArray[np.bool_]) -> Score | None:
        of_curves = task.metric in ("roc_auc", "average_precision")
        if not rows.any():
            return None
        if of_curves and not all(have_curves(truth[h][rows], head.num_classes).any() for h, head in task.heads.items()):
            return None
        own = None if groups is None else groups[rows]
        return score_answers(task, _rows(truth, rows), _rows(answers, rows), draws=draws, groups=own)

    whole = score_answers(task, truth, answers, draws=draws, groups=groups)
    if unseen is None:
        return SplitScore(all=whole)
    return SplitScore(all=whole, seen=part(~unseen), unseen=part(unseen))


def metric_value(metric: Metric, truth: npt.NDArray[np.int64], answer: npt.NDArray[Any], num_classes: int) -> float:
    """Return one head's value of a metric, from (N,) decided classes or (N, C) probabilities.

    Of a multi-label head, whose truth is (N, C) of 0 and 1: from (N, C) decisions of 0 and 1, or probabilities.
    """
    if metric in PROBABILITY_METRICS:
        return PROBABILITY_METRICS[metric](truth, answer)
    if truth.ndim == 2:
        return float(MULTILABEL_METRICS[metric](mark_rows(truth, _said(answer)).sum(axis=0)))
    decided = answer.argmax(axis=1) if answer.ndim == 2 else answer
    return float(CLASS_METRICS[metric](confusion_matrix(truth, decided, num_classes)))


def bootstrap_heads(
    task: Task,
    truth: Classes,
    several: Sequence[Answers],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    groups: npt.NDArray[np.int64] | None = None,
) -> Floats:
    """Score several sets of answers to the same images on images drawn with replacement, the same ones for each.

    Args:
        task: Gives the metric.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}.
        several: A sets of answers, each {head: classes or probabilities} as `score_answers` takes them.
        draws: How many; fewer (at least 100) where a metric that sorts probabilities has very many rows.
        seed: Same seed, same images.
        groups: (N,) numbers, equal for images of one group (a writer, a patient), which are drawn together: where such
            images are alike, drawing them one by one makes intervals too narrow. None: one by one.

    Returns:
        (draws, A, heads) values of the metric.
    """
    num_rows = len(next(iter(truth.values())))
    drawer = _Drawer.of(np.random.default_rng(seed), num_rows, groups)
    fitted = [_fitting(task, answers, num_rows) for answers in several]
    if task.metric in CLASS_METRICS and task.multilabel_heads:
        return _bootstrap_rows(task, truth, fitted, drawer, draws)
    if task.metric in CLASS_METRICS:
        return _bootstrap_classes(task, truth, fitted, drawer, draws)
    if task.metric == "log_loss":
        losses = np.stack([[row_losses(truth[h], answers[h]) for h in task.heads] for answers in fitted], axis=1)
        return np.array([(losses @ times).T / times.sum() for times in (drawer.times() for _ in range(draws))])
    measure = PROBABILITY_METRICS[task.metric]
    values = num_rows * len(several) * sum(head.num_classes for head in task.heads.values())
    scores = []
    for _ in range(min(draws, max(100, int(_MOST_VALUES / values)))):
        rows = np.repeat(np.arange(num_rows), drawer.times())
        scores.append([[measure(truth[h][rows], answers[h][rows]) for h in task.heads] for answers in fitted])
    return np.array(scores)


def bootstrap_ways(
    task: Task,
    truth: Classes,
    several: Sequence[Answers],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    groups: npt.NDArray[np.int64] | None = None,
) -> list[Floats]:
    """Return what `bootstrap_heads` does, of whole groups, and where groups are few of single images too.

    What is to be better beyond luck must be so both ways: three writers agree by chance once in eight times, whatever
    an interval of 95 % says of them.
    """
    few = groups is not None and len(np.unique(groups)) < _FEW_GROUPS
    ways = [groups, None] if few else [groups]
    return [bootstrap_heads(task, truth, several, draws=draws, seed=seed, groups=way) for way in ways]


def widest_part(ways: Sequence[Floats]) -> list[tuple[float, float]]:
    """Return `middle_part` of each column of (draws, columns), the widest that any way to resample gives."""
    parts = [middle_part(values) for values in ways]
    return [(min(low for low, _ in column), max(high for _, high in column)) for column in zip(*parts, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Drawer:
    """Draws which rows a resample holds: one by one, or whole groups."""

    rng: np.random.Generator
    num_rows: int
    groups: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, rng: np.random.Generator, num_rows: int, groups: npt.NDArray[np.int64] | None) -> _Drawer:
        numbers = None if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
        return cls(rng=rng, num_rows=num_rows, groups=numbers if numbers is not None and numbers.max() > 0 else None)

    def times(self) -> npt.NDArray[np.int64]:
        """Return (N,) how often each row is drawn."""
        if self.groups is None:
            return np.bincount(self.rng.integers(self.num_rows, size=self.num_rows), minlength=self.num_rows)
        num_groups = int(self.groups.max()) + 1
        return np.bincount(self.rng.integers(num_groups, size=num_groups), minlength=num_groups)[self.groups]

    def outcome_times(self, outcome: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return (K,) how often each different outcome is drawn, from each row's outcome and how many rows each has."""
        if self.groups is None:  # as many draws of outcomes are far fewer numbers than draws of rows
            return self.rng.multinomial(self.num_rows, counts / self.num_rows)
        return np.bincount(outcome, self.times(), minlength=len(counts))


def _bootstrap_classes(task: Task, truth: Classes, several: Sequence[Answers], drawer: _Drawer, draws: int) -> Floats:
    """Draw how often each different outcome (truth and decisions of all heads) occurs, rather than every image."""
    heads = list(task.heads.values())
    cells = [truth[head.name] * head.num_classes + answers[head.name] for answers in several for head in heads]
    outcomes, outcome, counts = np.unique(np.stack(cells, axis=1), axis=0, return_inverse=True, return_counts=True)
    metric = CLASS_METRICS[task.metric]
    values = np.empty((draws, len(cells)))
    for draw in range(draws):
        drawn = drawer.outcome_times(outcome.ravel(), counts)
        for column in range(len(cells)):
            size = heads[column % len(heads)].num_classes
            flat = np.bincount(outcomes[:, column], weights=drawn, minlength=size**2)
            values[draw, column] = metric(flat.reshape(size, size))
    return values.reshape(draws, len(several), len(heads))


def _bootstrap_rows(task: Task, truth: Classes, several: Sequence[Answers], drawer: _Drawer, draws: int) -> Floats:
    """Draw how often each row occurs: many labels together make too many different outcomes to draw those."""
    heads = task.heads.items()
    measures = [_measure_rows(task, head, truth[name], answers[name]) for answers in several for name, head in heads]
    values = np.empty((draws, len(measures)))
    for draw in range(draws):
        times = drawer.times().astype(np.float64)
        values[draw] = [measure(times) for measure in measures]
    return values.reshape(draws, len(several), len(task.heads))


def _measure_rows(
    task: Task, head: Head, truth: npt.NDArray[Any], decided: npt.NDArray[Any]
) -> Callable[[Floats], Floats]:
    """Return what gives one head's value of the metric from (N,) how often each row is drawn."""
    if head.kind == "multilabel":
        marks, of_marks = mark_rows(truth, decided), MULTILABEL_METRICS[task.metric]
        return lambda times: of_marks(times @ marks)
    of_matrix, size = CLASS_METRICS[task.metric], head.num_classes
    return lambda times: of_matrix(confusion_matrix(truth, decided, size, times))


def format_scores(scores: dict[str, SplitScore]) -> list[str]:
    """Return a table: one row a score and part, one column a head.

    Parts are all, seen and unseen; where no combination is unseen, all images are seen and stand in one row.
    """
    heads = list(next(iter(scores.values())).all.heads)
    intervals = any(split.all.interval for split in scores.values())
    head_widths = [max(len(head), 8) for head in heads]
    titles = "  ".join(f"{head:>{width}}" for head, width in zip(heads, head_widths, strict=True))
    name_width = max(12, *map(len, scores)) + 2
    interval_title = f"{'95 % interval':>18}  " if intervals else ""
    lines = [f"{'score':<{name_width}}{'combinations':<14}{'images':>8}  {'total':>8}  {interval_title}{titles}"]
    for name, split in scores.items():
        for part in ("all", "seen", "unseen"):
            score: Score | None = getattr(split, part)
            if score is None or (part == "seen" and split.unseen is None):
                continue
            values = "  ".join(f"{score.heads[h]:>{w}.4f}" for h, w in zip(heads, head_widths, strict=True))
            low_high = "{:.4f} to {:.4f}".format(*score.interval) if score.interval else ""
            interval = f"{low_high:>18}  " if intervals else ""
            lines.append(f"{name:<{name_width}}{part:<14}{score.rows:>8,}  {score.total:>8.4f}  {interval}{values}")
    return lines


def _fitting(task: Task, answers: Answers, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Return answers in the form the metric wants, decided classes or probabilities, after checking that they fit."""
    fitting = {}
    for name, head in task.heads.items():
        if name not in answers:
            raise DataError(f"head {name!r} has no answers (found: {some_of(answers)}); give every head of the task")
        answer, size, many = answers[name], head.num_classes, head.kind == "multilabel"
        fits = answer.shape == (rows, size) or (answer.shape == (rows,) and not many)
        if not fits:
            decided = f"({rows}, {size}) of 0 and 1" if many else f"({rows},) classes"
            expected = f"{decided} or ({rows}, {size}) probabilities"
            raise DataError(f"head {name!r}: answers have shape {answer.shape}; expected {expected}")
        if (answer.dtype.kind in "iub") if many else (answer.ndim == 1):
            _check_decided(task, head, answer)
        elif task.metric in CLASS_METRICS:
            answer = _said(answer) if many else answer.argmax(axis=1)
        fitting[name] = answer
    return fitting


def _check_decided(task: Task, head: Head, answer: npt.NDArray[Any]) -> None:
    if task.metric in PROBABILITY_METRICS:
        raise DataError(
            f"head {head.name!r}: metric {task.metric} scores probabilities, and only classes are given; "
            "score predictions, not decided classes"
        )
    highest = 1 if head.kind == "multilabel" else head.num_classes - 1
    if answer.size and not 0 <= answer.min() <= answer.max() <= highest:
        what = "0 and 1" if head.kind == "multilabel" else f"class indices 0 to {highest}"
        raise DataError(f"head {head.name!r}: answers are {answer.min()} to {answer.max()}; expected {what}")


def _said(answer: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return (N, C) what a multi-label head says: decisions as they are, probabilities from 0.5 on."""
    return answer if answer.dtype.kind in "iub" else answer >= HALF


def _rows(values: Answers, rows: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
    return {head: value[rows] for head, value in values.items()}


def head_weights(task: Task) -> Floats:
    """Return (heads,) what each head counts in the total, summing to 1."""
    weights = np.array([head.weight for head in task.heads.values()])
    return np.asarray(weights / weights.sum())


def middle_part(values: Floats) -> list[tuple[float, float]]:
    """Return between which two values the middle 95 % of each column of (draws, columns) lie."""
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
