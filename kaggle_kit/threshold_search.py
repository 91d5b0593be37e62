"""The thresholds that suit some rows of a multi-label head best; whether they suit others too is asked elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import HeadRule
from kaggle_kit.decision_search import EPSILON, Floats, Mask
from kaggle_kit.errors import PredictionError
from kaggle_kit.task import Metric

FITTABLE: tuple[Metric, ...] = ("macro_f1", "micro_f1", "weighted_f1", "accuracy")  # recall is best where all is said
_EDGE = 2e-3  # thresholds reach this far beyond 0 and 1: a class may be said always, or never


def threshold_fitter(metric: Metric, truth: npt.NDArray[Any], probs: npt.NDArray[Any]) -> Callable[[Mask], HeadRule]:
    """Return what finds, for some rows, the thresholds that serve a metric best.

    Args:
        metric: One of `FITTABLE`.
        truth: (N, C) of 0 and 1.
        probs: (N, C) in [0, 1].

    Returns:
        A function of an (N,) mask of rows.
    """
    true = truth > 0

    def fit(rows: Mask) -> HeadRule:
        found = best_thresholds(metric, true[rows], probs[rows])
        return HeadRule(rule="thresholds", thresholds=tuple(found.tolist()))

    return fit


def best_thresholds(metric: Metric, truth: Mask, probs: npt.NDArray[Any]) -> Floats:
    """Return the (C,) thresholds that serve a metric of multi-label decisions best on these rows.

    One threshold a class, exact for macro_f1, weighted_f1 and micro_f1. For accuracy each class by itself is right as
    often as can be, which need not make whole rows right. A class that is never true goes by 0.5 under macro_f1 and
    weighted_f1, and is never said under micro_f1.

    Args:
        metric: One of `FITTABLE`, as scikit-learn's `f1_score` with this average and `zero_division=0`, or
            `accuracy_score`.
        truth: (N, C).
        probs: (N, C) in [0, 1].

    Raises:
        PredictionError: When probabilities are not within [0, 1] or of another shape.

    Source: for micro_f1, Dinkelbach 1967, "On nonlinear fractional programming".
    """
    _check(truth, probs)
    if not truth.any():
        return np.full(probs.shape[1], 0.5)
    orders = [np.argsort(-column, kind="stable") for column in probs.T]
    ranked = [column[order] for column, order in zip(probs.T, orders, strict=True)]
    hits = [np.cumsum(np.append(0, column[order])) for column, order in zip(truth.T, orders, strict=True)]  # of k said
    said = np.arange(len(probs) + 1)
    if metric == "accuracy":
        return np.array([_cut(r, 2.0 * h - said)[0] for r, h in zip(ranked, hits, strict=True)])
    if metric in ("macro_f1", "weighted_f1"):  # the weights are the truth's own: each class at its best is best
        f1 = [2 * h / np.maximum(said + h[-1], 1) for h in hits]
        return np.array([_cut(r, f)[0] if h[-1] else 0.5 for r, f, h in zip(ranked, f1, hits, strict=True)])
    ratio, better = 0.0, True
    while better:  # a class may say k images as long as hits are worth it
        cuts = [_cut(r, 2 * h - ratio * said) for r, h in zip(ranked, hits, strict=True)]
        right = sum(int(h[k]) for h, (_, k) in zip(hits, cuts, strict=True))
        new = 2 * right / (sum(k for _, k in cuts) + int(truth.sum()))
        ratio, better = new, new > ratio + EPSILON
    return np.array([threshold for threshold, _ in cuts])


def _cut(ranked: npt.NDArray[Any], values: Floats) -> tuple[float, int]:
    """Return the threshold that says the first k of (N,) falling probabilities, and k, for the best values[k]."""
    edges = np.concatenate([[1 + _EDGE], ranked.astype(np.float64), [-_EDGE]])
    gaps = edges[:-1] - edges[1:]  # [k]: room for the threshold; 0 between equal probabilities
    best = (gaps > 0) & (values >= values[gaps > 0].max() - EPSILON)
    k = int(np.argmax(np.where(best, gaps, 0)))
    return float(edges[k] + edges[k + 1]) / 2, k


def _check(truth: Mask, probs: npt.NDArray[Any]) -> None:
    """Refuse probabilities that are not as many as the truth's labels, or not within [0, 1]."""
    if probs.shape != truth.shape:
        raise PredictionError(
            f"probs have shape {probs.shape}; expected {truth.shape} as the truth: pass one probability for each label"
        )
    wrong = ~((probs >= 0) & (probs <= 1)).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionError(
            f"probs of {int(wrong.sum()):,} of {len(probs):,} rows are NaN or outside [0, 1] (first: row {row}, from "
            f"{probs[row].min():.4g} to {probs[row].max():.4g}); pass sigmoid outputs, not logits"
        )
