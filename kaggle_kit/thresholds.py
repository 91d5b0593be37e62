"""Thresholds of a multi-label head, fitted to the metric and kept only where they help beyond luck.

For multi-label probabilities from Python; the kit's own heads are multiclass so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision_fitting import Interval, nested_parts
from kaggle_kit.decision_search import EPSILON, Floats, Ints, Mask
from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.scores import DRAWS, middle_part

ManyMetric = Literal["macro_f1", "micro_f1", "samples_f1"]

_EDGE = 2e-3  # thresholds reach this far beyond 0 and 1: a class may be said always, or never
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


def decide_many(probs: npt.NDArray[Any], thresholds: npt.NDArray[Any]) -> Mask:
    """Return (N, C) True where a multi-label head says a class: its probability reaches the class's threshold.

    For multi-label probabilities from Python; the kit's own heads are multiclass so far.

    Args:
        probs: (N, C) in [0, 1].
        thresholds: (C,); above 1 for a class that is never said.

    Raises:
        PredictionError: When there are not as many thresholds as classes, or probabilities are outside [0, 1].
    """
    if probs.ndim != 2 or thresholds.shape != probs.shape[1:]:
        raise PredictionError(
            f"probs have shape {probs.shape} and thresholds {thresholds.shape}; expected (N, C) and (C,): "
            "decide with the thresholds that were fitted for these classes"
        )
    _refuse_logits(probs)
    return np.asarray(probs >= thresholds)


def fit_thresholds(
    truth: Mask, probs: npt.NDArray[Any], *, metric: ManyMetric, folds: Ints, draws: int = DRAWS, seed: int = 0
) -> FittedThresholds:
    """Fit thresholds to a multi-label head and keep them if they help beyond luck.

    For multi-label probabilities from Python; the kit's own heads are multiclass so far. Images are taken to be
    independent: where several show the same thing, or come from one writer, the interval is too narrow.

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
    _check(truth, probs)
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


def best_thresholds(metric: ManyMetric, truth: Mask, probs: npt.NDArray[Any]) -> Floats:
    """Return the (C,) thresholds that serve a metric of multi-label decisions best on these rows.

    For multi-label probabilities from Python; the kit's own heads are multiclass so far. Exact for macro_f1 and
    micro_f1, one threshold a class; samples_f1 gets the best threshold common to all classes. A class that is never
    true goes by 0.5 under macro_f1, and is never said under micro_f1.

    Args:
        metric: As scikit-learn's `f1_score` with this average and `zero_division=0`.
        truth: (N, C).
        probs: (N, C) in [0, 1].

    Raises:
        PredictionError: When probabilities are not within [0, 1] or of another shape.

    Source: for micro_f1, Dinkelbach 1967, "On nonlinear fractional programming".
    """
    _check(truth, probs)
    if not truth.any():
        return np.full(probs.shape[1], 0.5)
    if metric == "samples_f1":
        return np.full(probs.shape[1], _common_threshold(truth, probs))
    orders = [np.argsort(-column, kind="stable") for column in probs.T]
    ranked = [column[order] for column, order in zip(probs.T, orders, strict=True)]
    hits = [np.cumsum(np.append(0, column[order])) for column, order in zip(truth.T, orders, strict=True)]  # of k said
    said = np.arange(len(probs) + 1)
    if metric == "macro_f1":
        f1 = [2 * h / np.maximum(said + h[-1], 1) for h in hits]
        return np.array([_cut(r, f)[0] if h[-1] else 0.5 for r, f, h in zip(ranked, f1, hits, strict=True)])
    ratio, better = 0.0, True
    while better:  # a class may say k images as long as hits are worth it
        cuts = [_cut(r, 2 * h - ratio * said) for r, h in zip(ranked, hits, strict=True)]
        right = sum(int(h[k]) for h, (_, k) in zip(hits, cuts, strict=True))
        new = 2 * right / (sum(k for _, k in cuts) + int(truth.sum()))
        ratio, better = new, new > ratio + EPSILON
    return np.array([threshold for threshold, _ in cuts])


def _common_threshold(truth: Mask, probs: npt.NDArray[Any]) -> float:
    """Return the one threshold with the best mean F1 of a row."""
    order = np.argsort(-probs, axis=1, kind="stable")
    hits = np.cumsum(np.take_along_axis(truth, order, axis=1), axis=1)  # (N, C): right among the k + 1 most probable
    f1 = 2 * hits / (np.arange(1, probs.shape[1] + 1) + truth.sum(axis=1, keepdims=True))
    gained = np.diff(f1, axis=1, prepend=0.0).ravel()
    ranked = np.take_along_axis(probs, order, axis=1).ravel()
    by_prob = np.argsort(-ranked, kind="stable")
    return _cut(ranked[by_prob], np.cumsum(np.append(0.0, gained[by_prob])) / len(probs))[0]


def _cut(ranked: npt.NDArray[Any], values: Floats) -> tuple[float, int]:
    """Return the threshold that says the first k of (N,) falling probabilities, and k, for the best values[k]."""
    edges = np.concatenate([[1 + _EDGE], ranked.astype(np.float64), [-_EDGE]])
    gaps = edges[:-1] - edges[1:]  # [k]: room for the threshold; 0 between equal probabilities
    best = (gaps > 0) & (values >= values[gaps > 0].max() - EPSILON)
    k = int(np.argmax(np.where(best, gaps, 0)))
    return float(edges[k] + edges[k + 1]) / 2, k


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


def _check(truth: Mask, probs: npt.NDArray[Any]) -> None:
    if probs.shape != truth.shape:
        raise PredictionError(
            f"probs have shape {probs.shape}; expected {truth.shape} as the truth: pass one probability for each label"
        )
    _refuse_logits(probs)


def _refuse_logits(probs: npt.NDArray[Any]) -> None:
    wrong = ~((probs >= 0) & (probs <= 1)).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionError(
            f"probs of {int(wrong.sum()):,} of {len(probs):,} rows are NaN or outside [0, 1] (first: row {row}, from "
            f"{probs[row].min():.4g} to {probs[row].max():.4g}); pass sigmoid outputs, not logits"
        )
