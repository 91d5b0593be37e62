"""Metrics of weighted runs' probabilities, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.terms import RunTerms
from kaggle_kit.decision import row_chunks
from kaggle_kit.metrics import PROBABILITY_METRICS, have_curves, row_losses
from kaggle_kit.mixes import FLOOR, from_terms
from kaggle_kit.task import Metric

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_MOST_SORTED_ROWS = 20_000
_MOST_SORTED = 500_000  # probabilities that a metric sorts for one vector of weights: some 50 ms
_MOST_MIXED = 1_000_000  # probabilities whose logarithms are taken: some 30 ms
_SEED = 0


class TruthLosses:
    """Log losses of a multiclass head, where the true class's terms and the rows' sums of terms suffice."""

    def __init__(self, terms: RunTerms, truth: Ints, parts: Ints, num_parts: int) -> None:
        """Pick the true classes' terms.

        Args:
            terms: Of R runs, of a kind whose mean of terms needs only to be made to sum to 1.
            truth: (N,) class indices.
            parts: (N,) numbers 0 to `num_parts` - 1.
            num_parts: P.
        """
        self._parts, self._num_rows = parts, np.bincount(parts, minlength=num_parts)
        self._true = np.empty((len(terms.values), terms.num_rows))
        self._sums = np.empty_like(self._true)
        for start in range(0, terms.num_rows, terms.rows_a_block):
            rows = slice(start, start + terms.rows_a_block)
            block = terms.block(rows)
            self._true[:, rows] = block[:, np.arange(block.shape[1]), truth[rows]]
            self._sums[:, rows] = block.sum(axis=2, dtype=np.float64)

    def sums(self, weights: Array) -> Floats:
        """Return (K, P, 2) sums of rows' losses, and rows."""
        losses = np.zeros((len(weights), len(self._num_rows)))
        weights = weights / weights.sum(axis=1, keepdims=True)
        for rows in row_chunks(len(self._parts)):
            mixed = (weights @ self._true[:, rows]) / np.maximum(weights @ self._sums[:, rows], FLOOR)
            for number, own in enumerate(mixed.astype(np.float32)):
                loss = row_losses(np.zeros(len(own), np.int64), own[:, None])
                losses[number] += np.bincount(self._parts[rows], loss, minlength=losses.shape[1])
        return np.stack([losses, np.broadcast_to(self._num_rows, losses.shape)], axis=2)


class MixedRows:
    """A metric of probabilities that all classes are mixed for, on rows drawn once where there are many."""

    def __init__(self, metric: Metric, terms: RunTerms, truth: Array, parts: Ints, num_parts: int) -> None:
        """Draw rows, as many of each part as its share, and keep their terms.

        Args:
            metric: One of `metrics.PROBABILITY_METRICS`.
            terms: Of R runs.
            truth: (N,) class indices, or of a multi-label head (N, C) of 0 and 1.
            parts: (N,) numbers 0 to `num_parts` - 1.
            num_parts: P.
        """
        self._metric, self._of = metric, terms
        if metric == "log_loss":
            most = _MOST_MIXED // terms.head.num_classes
        else:
            most = min(_MOST_SORTED_ROWS, _MOST_SORTED // terms.head.num_classes)
        rows = _drawn(parts, most)
        self._truth, own = truth[rows], parts[rows]
        self._parts = [np.flatnonzero(own == part) for part in range(num_parts)]
        self._terms = terms.block(rows).astype(np.float64)

    def sums(self, weights: Array) -> Floats:
        """Return (K, P, 2) metrics of the parts times their rows, and rows; 0 for a part without a value."""
        result = np.zeros((len(weights), len(self._parts), 2))
        num, num_rows, size = self._terms.shape
        for number, own in enumerate(weights / weights.sum(axis=1, keepdims=True)):
            mean = (own @ self._terms.reshape(num, -1)).reshape(num_rows, size)
            mixed = from_terms(self._of.kind, mean, power=self._of.power, multilabel=self._of.multilabel)
            probs = mixed.astype(np.float32)
            for part, rows in enumerate(self._parts):
                truth = self._truth[rows]
                if len(rows) and (self._metric == "log_loss" or have_curves(truth, size).any()):
                    value = PROBABILITY_METRICS[self._metric](truth, probs[rows])
                    result[number, part] = value * len(rows), len(rows)
        return result


def _drawn(parts: Ints, most: int) -> Ints:
    """Return at most about `most` rows, rising; of each part as many as its share, and at least one."""
    if len(parts) <= most:
        return np.arange(len(parts))
    shuffled = np.random.default_rng(_SEED).permutation(len(parts))
    order = shuffled[np.argsort(parts[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(parts[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    taken = np.maximum(1, counts * most // len(parts))
    place = np.arange(len(order)) - np.repeat(starts, counts)
    return np.asarray(np.sort(order[place < np.repeat(taken, counts)]))
