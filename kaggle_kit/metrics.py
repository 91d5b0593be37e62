"""The competition's metric over a whole epoch, from class indices; the same numbers as scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError
from kaggle_kit.labels import Classes
from kaggle_kit.task import Metric, Task

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value.

    Attributes:
        total: Mean over heads, weighted as the task says; 0 to 1, higher is better.
        heads: The value of each head.
        rows: How many images it was computed from.
    """

    total: float
    heads: dict[str, float]
    rows: int

    def __str__(self) -> str:
        parts = ", ".join(f"{head} {value:.4f}" for head, value in self.heads.items())
        return f"{self.total:.4f} ({parts})" if len(self.heads) > 1 else f"{self.total:.4f}"


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """A score, and apart from each other what the train images show and do not show.

    Attributes:
        all: Over all images.
        seen: Over images whose combination of heads occurs in train; None where there are none, or it is not known.
        unseen: Over the other images; None where there are none.
    """

    all: Score
    seen: Score | None
    unseen: Score | None


def score_split(task: Task, truth: Classes, decided: Classes, unseen: npt.NDArray[np.bool_] | None) -> SplitScore:
    """Score all rows, and seen and unseen combinations of heads apart.

    Args:
        task: Gives the metric and the heads' weights.
        truth: {head: (N,) class indices}.
        decided: {head: (N,) class indices}, rows in the same order.
        unseen: (N,) True where train does not show the row's combination; None where that is not known.
    """

    def part(rows: npt.NDArray[np.bool_]) -> Score | None:
        if not rows.any():
            return None
        return score_classes(task, {h: c[rows] for h, c in truth.items()}, {h: c[rows] for h, c in decided.items()})

    whole = score_classes(task, truth, decided)
    if unseen is None:
        return SplitScore(all=whole, seen=None, unseen=None)
    return SplitScore(all=whole, seen=part(~unseen), unseen=part(unseen))


def score_classes(task: Task, truth: Classes, decided: Classes) -> Score:
    """Score decided classes against the truth.

    Args:
        task: Gives the metric and the heads' weights.
        truth: {head: (N,) class indices}.
        decided: {head: (N,) class indices}, rows in the same order.

    Raises:
        DataError: When there are no rows.
    """
    rows = len(next(iter(truth.values())))
    if rows == 0:
        raise DataError("there are no rows to score; give at least one image")
    metric = METRICS[task.metric]
    heads = {name: metric(truth[name], decided[name], head.num_classes) for name, head in task.heads.items()}
    weights = [head.weight for head in task.heads.values()]
    return Score(total=float(np.average(list(heads.values()), weights=weights)), heads=heads, rows=rows)


def format_scores(scores: dict[str, SplitScore]) -> list[str]:
    """Return a table: one row a score and part (all, seen, unseen), one column a head."""
    heads = list(next(iter(scores.values())).all.heads)
    head_widths = [max(len(head), 8) for head in heads]
    titles = "  ".join(f"{head:>{width}}" for head, width in zip(heads, head_widths, strict=True))
    lines = [f"{'score':<14}{'combinations':<14}{'images':>8}  {'total':>8}  {titles}"]
    for name, split in scores.items():
        for part in ("all", "seen", "unseen"):
            score: Score | None = getattr(split, part)
            if score is None:
                continue
            values = "  ".join(f"{score.heads[h]:>{w}.4f}" for h, w in zip(heads, head_widths, strict=True))
            lines.append(f"{name:<14}{part:<14}{score.rows:>8,}  {score.total:>8.4f}  {values}")
    return lines


def confusion_matrix(truth: Ints, decided: Ints, num_classes: int) -> Ints:
    """Return (C, C) counts: rows are true classes, columns decided ones."""
    flat = np.bincount(truth * num_classes + decided, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def macro_recall(truth: Ints, decided: Ints, num_classes: int) -> float:
    """Mean recall over the classes that occur in `truth` or `decided`.

    A class that is decided but never true counts as 0, as in scikit-learn's `recall_score(average="macro")`.
    """
    hits, true, said = _counts(truth, decided, num_classes)
    occurs = (true + said) > 0
    return float(np.mean(_ratio(hits, true)[occurs]))


def accuracy(truth: Ints, decided: Ints, num_classes: int) -> float:
    """Share of rows decided right."""
    return float(np.mean(truth == decided))


def macro_f1(truth: Ints, decided: Ints, num_classes: int) -> float:
    """Mean F1 over the classes that occur in `truth` or `decided`, as `f1_score(average="macro")`."""
    hits, true, said = _counts(truth, decided, num_classes)
    occurs = (true + said) > 0
    return float(np.mean(_ratio(2 * hits, true + said)[occurs]))


def weighted_f1(truth: Ints, decided: Ints, num_classes: int) -> float:
    """Mean F1 weighted by how often each class is true, as `f1_score(average="weighted")`."""
    hits, true, said = _counts(truth, decided, num_classes)
    return float(np.average(_ratio(2 * hits, true + said), weights=true))


def _counts(truth: Ints, decided: Ints, num_classes: int) -> tuple[Ints, Ints, Ints]:
    matrix = confusion_matrix(truth, decided, num_classes)
    return np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)


def _ratio(part: Ints, whole: Ints) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


METRICS: dict[Metric, Callable[[Ints, Ints, int], float]] = {
    "macro_recall": macro_recall,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
}
