"""The metrics of multi-label decisions; the same numbers as scikit-learn's with `zero_division=0`.

They are functions of sums over rows of marks, so that many resamples are scored at once: a resample's sums are the
marks times how often each row is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.task import Metric

Floats = npt.NDArray[np.float64]


def mark_rows(truth: npt.NDArray[Any], said: npt.NDArray[Any]) -> Floats:
    """Return (N, 3C + 2) of 0 and 1: classes that are said and true, said, true; whether all are right; and 1.

    Args:
        truth: (N, C) of 0 and 1.
        said: (N, C) of 0 and 1.
    """
    true, answered = np.asarray(truth, bool), np.asarray(said, bool)
    right = (true == answered).all(axis=1)
    return np.column_stack([true & answered, answered, true, right, np.ones(len(true))]).astype(np.float64)


def macro_recall(sums: Floats) -> Floats:
    """Mean recall over all classes, as `recall_score(average="macro")`; 0 of a class that is never true."""
    hits, _, true = _parts(sums)
    return np.asarray(_ratio(hits, true).mean(axis=-1))


def accuracy(sums: Floats) -> Floats:
    """Share of rows whose classes are all right, as `accuracy_score`."""
    return _ratio(sums[..., -2], sums[..., -1])


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 over all classes, as `f1_score(average="macro")`; 0 of a class that is neither true nor said."""
    return np.asarray(_f1(*_parts(sums)).mean(axis=-1))


def weighted_f1(sums: Floats) -> Floats:
    """Mean F1 weighted by how often each class is true, as `f1_score(average="weighted")`."""
    hits, said, true = _parts(sums)
    return _ratio((_f1(hits, said, true) * true).sum(axis=-1), true.sum(axis=-1))


def micro_f1(sums: Floats) -> Floats:
    """F1 of all classes' decisions together, as `f1_score(average="micro")`."""
    hits, said, true = (part.sum(axis=-1) for part in _parts(sums))
    return _f1(hits, said, true)


def _parts(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Return (..., C) classes said and true, said, and true, of (..., 3C + 2) sums of marks."""
    num_classes = (sums.shape[-1] - 2) // 3
    hits, said, true = (sums[..., start * num_classes : (start + 1) * num_classes] for start in range(3))
    return hits, said, true


def _f1(hits: Floats, said: Floats, true: Floats) -> Floats:
    return _ratio(2 * hits, said + true)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


MULTILABEL_METRICS: dict[Metric, Callable[[Floats], Floats]] = {
    "macro_recall": macro_recall,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "micro_f1": micro_f1,
}
