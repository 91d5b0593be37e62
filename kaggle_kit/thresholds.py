"""Thresholds of any multi-label probabilities, fitted to a metric and kept only where they help beyond luck.

For probabilities from elsewhere, and for samples_f1; those of a task's heads are fitted by `decision_fitting`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision_fitting import Interval, nested_parts
from kaggle_kit.decision_search import Floats, Ints, Mask
from kaggle_kit.errors import DataError
from kaggle_kit.scores import DRAWS, middle_part
from kaggle_kit.threshold_search import ManyMetric, best_thresholds, check_many, decide_many

_NUM_BLOCKS = 1000  # of random rows, resampled instead of rows where there are more


@dataclass(frozen=True, kw_only=True)
class FittedThresholds:
    """Thresholds of a multi-label head, and what they are worth.

    Attributes:
        thresholds: (C,) to use: the fitted ones where they help beyond luck, else 0.5.
        fitted: (C,) the best on all rows.
        nested_gain: Over 0.5, of thresholds fitted without the rows they decide.
        interval: Of the nested gain: the middle 95 % of resamples of the images.
        kept: Whether the fitted ones are to be used.
    """

    thresholds: tuple[float, ...]
    fitted: tuple[float, ...]
    nested_gain: float
    interval: Interval
    kept: bool


def fit_thresholds(
    truth: Mask, probs: npt.NDArray[Any], *, metric: ManyMetric, folds: Ints, draws: int = DRAWS, seed: int = 0
) -> FittedThresholds:
    """Fit thresholds to multi-label probabilities and keep them if they help beyond luck.

    Images are taken to be independent: where several show the same thing, or come from one writer, the interval is too
    narrow.

    Args:
        truth: (N, C).
        probs: (N, C) out-of-fold probabilities in [0, 1].
        metric: As scikit-learn's `f1_score` with this average and `zero_division=0`.
        folds: (N,) the fold each row was held out in. Where it is the same for all, random fifths take its place.
        draws: Resamples of the images for the interval.
        seed: Of the resamples and of the random fifths.

    Raises:
        DataError: When there are no rows, or truth is not (N, C) of bool.
        PredictionError: When probabilities are not within [0, 1] or of another shape.
    """
    if truth.ndim != 2 or truth.dtype != np.bool_ or len(truth) != len(folds) or not len(folds):
        raise DataError(
            f"truth is {truth.dtype} {truth.shape}; expected bool ({len(folds)}, C), one row for each of `folds`"
        )
    check_many(truth, probs)
    fitted = best_thresholds(metric, truth, probs)
    nested = _nested_answers(metric, truth, probs, nested_parts(folds, np.zeros(len(truth), np.int64), seed=seed))
    gain, interval = _gain_over(metric, truth, nested, probs >= 0.5, np.random.default_rng(seed), draws)
    kept = interval[0] > 0
    return FittedThresholds(
        thresholds=tuple((fitted if kept else np.full(len(fitted), 0.5)).tolist()),
        fitted=tuple(fitted.tolist()),
        nested_gain=gain,
        interval=interval,
        kept=kept,
    )


def _nested_answers(metric: ManyMetric, truth: Mask, probs: npt.NDArray[Any], parts: Ints) -> Mask:
    """Return (N, C) what is said by thresholds fitted without the row's part."""
    said = np.empty_like(truth)
    for part in np.unique(parts):
        held = parts == part
        said[held] = decide_many(probs[held], best_thresholds(metric, truth[~held], probs[~held]))
    return said


def _gain_over(
    metric: ManyMetric, truth: Mask, said: Mask, before: Mask, rng: np.random.Generator, draws: int
) -> tuple[float, Interval]:
    """Return by how much `said` scores better than `before`, and the middle 95 % of that over resamples."""
    order = rng.permutation(len(truth))
    sums = np.stack([_block_sums(metric, truth, one, order) for one in (said, before)])  # (2, G, 3, C)
    blocks = sums.shape[1]
    picks = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=draws)  # (draws, G)
    new, old = (_f1(metric, np.tensordot(picks, one, axes=1)) for one in sums)
    (interval,) = middle_part((new - old)[:, None])
    new, old = (_f1(metric, one.sum(axis=0)) for one in sums)
    return float(new - old), interval


def _block_sums(metric: ManyMetric, truth: Mask, said: Mask, order: Ints) -> Floats:
    """Return (G, 3, C) hits, decisions and true labels of random blocks of rows; samples_f1: (G, 3, 1)."""
    parts = [truth & said, said, truth]
    if metric == "samples_f1":  # written so that the F1 of the sums is the mean F1 of the rows
        hits, many, true = (part.sum(axis=1, keepdims=True) for part in parts)
        parts = [hits / np.maximum(many + true, 1), np.zeros(many.shape), np.ones(many.shape)]
    starts = np.linspace(0, len(order), min(_NUM_BLOCKS, len(order)), endpoint=False).astype(np.int64)
    return np.stack([np.add.reduceat(part[order].astype(np.float64), starts, axis=0) for part in parts], axis=1)


def _f1(metric: ManyMetric, sums: Floats) -> Floats:
    """Return F1 from (..., 3, C) hits, decisions and true labels."""
    if metric != "macro_f1":
        sums = sums.sum(axis=-1, keepdims=True)
    hits, whole = sums[..., 0, :], sums[..., 1, :] + sums[..., 2, :]
    return np.asarray(np.divide(2 * hits, whole, out=np.zeros(hits.shape), where=whole > 0).mean(axis=-1))
