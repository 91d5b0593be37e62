"""Temperatures: how sure a run is, corrected by one number, so that runs are mixed on one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.metrics import log_loss
from kaggle_kit.mixes import stack_features

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[Any]  # (N, C) of float32 or float64

MOST_TEMPERATURE = 8.0  # and 1 / 8 is the least
MOST_ROWS = 50_000
_CHUNK = 1024  # rows at once: they stay in the cache
_LEAST_GAIN = 1e-6  # of log loss; below, runs are left alone


def fit_temperature(probs: npt.NDArray[Any], truth: npt.NDArray[Any], *, multilabel: bool) -> float:
    """Return the temperature by which `mixes.calibrate` gives probabilities the lowest log loss.

    Args:
        probs: (N, C) probabilities; of more than 50,000 rows as many are drawn, always the same.
        truth: (N,) class indices, or of a multi-label head (N, C) of 0 and 1.
        multilabel: Whether each class has a probability of its own.

    Returns:
        1/8 to 8; above 1 where they are too sure. 1 where no other gains log loss.

    Raises:
        DataError: When the truth does not fit, or there are no rows.
        PredictionError: When probabilities are NaN or outside [0, 1].

    Source: Guo 2017, https://arxiv.org/abs/1706.04599. In 1 / temperature the loss is convex, so it is a root of the
    derivative that is searched for.
    """
    check_rows(probs, truth, multilabel=multilabel)
    rows = draw_rows(len(probs), MOST_ROWS)
    drawn, true = np.asarray(probs[rows], np.float32), truth[rows]
    logs = stack_features([{"": drawn}], ("",), multilabel=("",) * multilabel).astype(np.float32)
    factor = best_factor(logs, true, low=1 / MOST_TEMPERATURE, high=MOST_TEMPERATURE)
    loss, _ = loss_and_error(np.float32(factor) * logs, true)
    return 1 / factor if log_loss(true, drawn) - loss / true.size > _LEAST_GAIN else 1.0


def best_factor(
    scores: Scores, truth: npt.NDArray[Any], *, low: float, high: float, offset: Scores | None = None
) -> float:
    """Return the factor of scores that gives their softmax, or sigmoid, the lowest log loss.

    Args:
        scores: (N, C).
        truth: (N,) class indices: softmax; (N, C) of 0 and 1: sigmoid.
        low: Lowest factor.
        high: Highest factor.
        offset: (N, C) added to the scores, not multiplied; None: nothing.
    """
    from scipy.optimize import brentq

    def slope(factor: float) -> float:
        total = 0.0
        for start in range(0, len(scores), _CHUNK):
            rows = slice(start, start + _CHUNK)
            moved = scores.dtype.type(factor) * scores[rows]
            _, error = loss_and_error(moved if offset is None else moved + offset[rows], truth[rows])
            total += float(np.vdot(error, scores[rows]))
        return total

    if slope(low) >= 0:
        return low
    return high if slope(high) <= 0 else float(brentq(slope, low, high, xtol=1e-5))


def loss_and_error(scores: Scores, truth: npt.NDArray[Any]) -> tuple[float, Scores]:
    """Return the sum of log losses over rows (and classes of a multi-label head), and its (N, C) derivative by scores.

    Args:
        scores: (N, C).
        truth: (N,) class indices: softmax; (N, C) of 0 and 1: sigmoid.
    """
    if truth.ndim == 2:
        # log(1 + exp(s)) without overflow; NumPy's logaddexp takes ten times as long
        tail = np.exp(-np.abs(scores))
        loss = np.log1p(tail) + np.maximum(scores, 0) - truth * scores
        error = np.where(scores >= 0, 1, tail) / (1 + tail) - truth
        return float(loss.sum(dtype=np.float64)), error.astype(scores.dtype, copy=False)
    each, top = np.arange(len(truth)), scores.max(axis=1, keepdims=True)
    error = np.exp(scores - top)
    total = error.sum(axis=1, keepdims=True)
    loss = np.log(total[:, 0]) + top[:, 0] - scores[each, truth]
    error /= total
    error[each, truth] -= 1
    return float(loss.sum(dtype=np.float64)), error


def draw_rows(num_rows: int, most: int, *, seed: int = 0) -> Ints:
    """Return the numbers of all rows, or of `most` drawn ones, in order."""
    if num_rows <= most:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, most, replace=False))


def check_rows(probs: npt.NDArray[Any], truth: npt.NDArray[Any], *, multilabel: bool) -> None:
    """Refuse probabilities and truth that cannot be fitted to.

    Raises:
        DataError: When the truth does not fit, or there are no rows.
        PredictionError: When probabilities are NaN or outside [0, 1].
    """
    if probs.ndim != 2 or not len(probs):
        raise PredictionError(f"probs have shape {probs.shape}; expected (rows, classes) and at least one row")
    expected = probs.shape if multilabel else probs.shape[:1]
    if truth.shape != expected:
        raise DataError(f"truth has shape {truth.shape} and probs {probs.shape}; expected truth of shape {expected}")
    highest = 1 if multilabel else probs.shape[1] - 1
    if not 0 <= truth.min() <= truth.max() <= highest:
        what = "0 and 1" if multilabel else f"class indices 0 to {highest}"
        raise DataError(f"truth is {truth.min()} to {truth.max()}; expected {what}")
    wrong = ~((probs >= 0) & (probs <= 1)).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionError(
            f"probs of {int(wrong.sum()):,} of {len(probs):,} rows are NaN or outside [0, 1] (first: row {row}, from "
            f"{probs[row].min():.4g} to {probs[row].max():.4g}); pass probabilities, not logits"
        )
