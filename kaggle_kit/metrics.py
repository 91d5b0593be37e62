"""The competition's metrics over a whole epoch; the same numbers as scikit-learn's where it gives one.

It gives none, or another, in three places: kappa of one and the same class is 0 here and NaN there; classes that never
occur are left out of the curves' means here, and count as 0 or NaN there; and logarithms are taken in float64 here.
Those of decided classes are functions of (..., C, C) confusion matrices, rows true classes, columns decided ones, so
that many resamples or candidate rules are scored at once; the others are functions of probabilities. Those of decided
multi-label heads are in `multilabel`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.task import Metric

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[Any]  # of counts: int64, or float64 where rows are weighted


def confusion_matrix(truth: Ints, decided: Ints, num_classes: int, weights: Matrix | None = None) -> Matrix:
    """Return (C, C) counts, or sums of weights: rows are true classes, columns decided ones.

    Args:
        truth: (N,) class indices.
        decided: (N,) class indices.
        num_classes: C.
        weights: (N,); None: each row counts once.
    """
    flat = np.bincount(truth * num_classes + decided, weights=weights, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def macro_recall(matrix: Matrix) -> Floats:
    """Mean recall over the classes that are true or decided somewhere.

    A class that is decided but never true counts as 0, as in scikit-learn's `recall_score(average="macro")`.
    """
    hits, true, said = _counts(matrix)
    return _mean_where(_ratio(hits, true), (true + said) > 0)


def accuracy(matrix: Matrix) -> Floats:
    """Share of rows decided right."""
    hits, true, _ = _counts(matrix)
    return np.asarray(hits.sum(axis=-1) / true.sum(axis=-1))


def macro_f1(matrix: Matrix) -> Floats:
    """Mean F1 over the classes that are true or decided somewhere, as `f1_score(average="macro")`."""
    hits, true, said = _counts(matrix)
    return _mean_where(_ratio(2 * hits, true + said), (true + said) > 0)


def weighted_f1(matrix: Matrix) -> Floats:
    """Mean F1 weighted by how often each class is true, as `f1_score(average="weighted")`."""
    hits, true, said = _counts(matrix)
    return np.asarray((_ratio(2 * hits, true + said) * true).sum(axis=-1) / true.sum(axis=-1))


def micro_f1(matrix: Matrix) -> Floats:
    """F1 of all decisions together; where classes exclude each other this is the accuracy."""
    return accuracy(matrix)


def quadratic_kappa(matrix: Matrix) -> Floats:
    """Cohen's kappa with squared distances between class indices, as `cohen_kappa_score(weights="quadratic")`.

    All C classes count as steps, also those that never occur. 0 where truth and decisions are one and the same class.
    """
    _, true, said = _counts(matrix)
    steps = np.arange(matrix.shape[-1])
    distance = (steps[:, None] - steps[None, :]) ** 2
    by_chance = (true[..., :, None] * said[..., None, :] * distance).sum(axis=(-2, -1)) / true.sum(axis=-1)
    observed = (matrix * distance).sum(axis=(-2, -1))
    return np.asarray(np.where(by_chance > 0, 1 - _ratio(observed, by_chance), 0.0))


def log_loss(truth: Ints, probs: npt.NDArray[Any]) -> float:
    """Mean negative logarithm of the true class's probability, as `log_loss` with all C labels; lower is better.

    Args:
        truth: (N,) class indices, or (N, C) of 0 and 1: then the mean of the classes' own log losses.
        probs: (N, C), clipped to their type's epsilon.
    """
    return float(np.mean(row_losses(truth, probs)))


def row_losses(truth: Ints, probs: npt.NDArray[Any]) -> Floats:
    """Return (N,) negative logarithms of the true class's probability; of (N, C) truth the mean over classes."""
    tiny = np.finfo(probs.dtype).eps
    if truth.ndim == 2:
        clipped = np.clip(probs, tiny, 1 - tiny).astype(np.float64)
        return np.asarray(-np.log(np.where(truth > 0, clipped, 1 - clipped)).mean(axis=1))
    picked = np.clip(probs[np.arange(len(truth)), truth], tiny, 1 - tiny)
    return np.asarray(-np.log(picked.astype(np.float64)))


def roc_auc(truth: Ints, probs: npt.NDArray[Any]) -> float:
    """Mean over classes of the area under the ROC curve of that class against the others.

    Classes that are true nowhere or everywhere are left out; NaN when none is left. Ties count half, as in
    `roc_auc_score(average="macro")` on one-hot labels.

    Args:
        truth: (N,) class indices, or (N, C) of 0 and 1.
        probs: (N, C).
    """
    return _mean_over_classes(_auc, truth, probs)


def average_precision(truth: Ints, probs: npt.NDArray[Any]) -> float:
    """Mean over classes of the average precision of that class against the others.

    Classes that are true nowhere or everywhere are left out; NaN when none is left. Equal scores are one threshold,
    as in `average_precision_score(average="macro")` on one-hot labels.

    Args:
        truth: (N,) class indices, or (N, C) of 0 and 1.
        probs: (N, C).
    """
    return _mean_over_classes(_precision, truth, probs)


def _mean_over_classes(
    measure: Callable[[npt.NDArray[np.bool_], npt.NDArray[Any]], float], truth: Ints, probs: npt.NDArray[Any]
) -> float:
    usable = np.flatnonzero(have_curves(truth, probs.shape[1]))
    positives = [truth[:, label] > 0 if truth.ndim == 2 else truth == label for label in usable]
    values = [measure(rows, probs[:, label]) for rows, label in zip(positives, usable, strict=True)]
    return float(np.mean(values)) if values else np.nan


def have_curves(truth: Ints, num_classes: int) -> npt.NDArray[np.bool_]:
    """Return (C,) True for classes that are true of some rows and not of others, of (N,) or (N, C) truth."""
    counts = truth.sum(axis=0, dtype=np.int64) if truth.ndim == 2 else np.bincount(truth, minlength=num_classes)
    return np.asarray((counts > 0) & (counts < len(truth)))


def _auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    every, own = np.sort(scores), np.sort(scores[positive])  # sorting values is many times faster than ranking rows
    num = len(own)
    ranks = (np.searchsorted(every, own, "left") + np.searchsorted(every, own, "right") + 1) / 2  # from 1, ties' mean
    return float((ranks.sum() - num * (num + 1) / 2) / (num * (len(scores) - num)))


def _precision(positive: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    every, own = np.sort(scores), np.sort(scores[positive])
    hits = len(own) - np.searchsorted(own, own, "left")  # how many positives have no less, of each positive
    said = len(every) - np.searchsorted(every, own, "left")
    return float((hits / said).mean())


def _counts(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    return np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)


def _ratio(part: Matrix, whole: Matrix) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _mean_where(values: Floats, counted: npt.NDArray[np.bool_]) -> Floats:
    return np.asarray((values * counted).sum(axis=-1) / counted.sum(axis=-1))


CLASS_METRICS: dict[Metric, Callable[[Matrix], Floats]] = {
    "macro_recall": macro_recall,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "micro_f1": micro_f1,
    "quadratic_kappa": quadratic_kappa,
}
PROBABILITY_METRICS: dict[Metric, Callable[[Ints, npt.NDArray[Any]], float]] = {
    "log_loss": log_loss,
    "roc_auc": roc_auc,
    "average_precision": average_precision,
}
LOWER_IS_BETTER: tuple[Metric, ...] = ("log_loss",)


def gain(metric: Metric, new: float, old: float) -> float:
    """Return by how much `new` is better than `old`; below 0 when it is worse."""
    return old - new if metric in LOWER_IS_BETTER else new - old
