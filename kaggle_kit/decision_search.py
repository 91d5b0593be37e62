"""The rule that suits some rows best; whether it suits others too is asked by `decision_fitting`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import HeadRule, log_probs, row_chunks
from kaggle_kit.scores import metric_value
from kaggle_kit.task import Metric

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MOST_BIAS = 3.0
MOST_POWER = 1.5
_POWERS = 31  # tried from 0 to the most: one each 0.05
_MOST_PASSES = 5
_TRIES = 64  # biases tried for a class; all that differ where there are fewer
EPSILON = 1e-12  # scores closer than this are equal
_SAME = 1e-9  # biases closer than this are one: equal ones come out of logarithms a few ulp apart


def power_fitter(
    metric: Metric, truth: Ints, probs: npt.NDArray[Any], counts: npt.NDArray[Any]
) -> Callable[[Mask], HeadRule]:
    """Return what finds, for some rows, the power of the class counts that serves a metric of classes best.

    Args:
        metric: Any of `metrics.CLASS_METRICS`.
        truth: (N,) class indices.
        probs: (N, C) probabilities.
        counts: (C,) images of each class in train; a class without any is treated as one of the usual size. They are
            not counted again for the rows that a fit is given.

    Returns:
        A function of an (N,) mask of rows; of equally good powers, 0 to `MOST_POWER`, it takes the lowest.
    """
    present = counts > 0
    sizes = np.log(np.where(present, counts, 1).astype(np.float64))
    powers = np.linspace(0, MOST_POWER, _POWERS).round(2)
    biases = np.outer(powers, np.where(present, sizes[present].mean() - sizes, 0.0))  # (powers, C)
    decided = np.empty((_POWERS, len(probs)), np.int32)
    for rows in row_chunks(len(probs)):
        logs = log_probs(probs[rows])
        for row, bias in enumerate(biases):
            decided[row, rows] = (logs + bias).argmax(axis=1)

    def fit(rows: Mask) -> HeadRule:
        own = truth[rows]
        values = np.array([metric_value(metric, own, one[rows], len(counts)) for one in decided])
        best = int(np.argmax(values >= values.max() - EPSILON))
        return HeadRule(rule="prior_power", log_bias=tuple(biases[best].tolist()), power=float(powers[best]))

    return fit


def bias_fitter(metric: Metric, truth: Ints, probs: npt.NDArray[Any]) -> Callable[[Mask], HeadRule]:
    """Return what finds, for some rows, one bias a class (within `MOST_BIAS`) by coordinate ascent from 0.

    Args:
        metric: Any of `metrics.CLASS_METRICS`.
        truth: (N,) class indices.
        probs: (N, C) probabilities.

    Returns:
        A function of an (N,) mask of rows. On these rows the rule scores no less than the highest probability.
    """
    logs = np.ascontiguousarray(log_probs(probs).T)  # (C, N)

    def fit(rows: Mask) -> HeadRule:
        search = _BiasSearch(metric, truth[rows], logs[:, rows])
        for _ in range(_MOST_PASSES):
            if not sum(search.improve(label) for label in range(len(logs))):
                break
        return HeadRule(rule="class_bias", log_bias=tuple(search.bias.tolist()))

    return fit


class _BiasSearch:
    """Coordinate ascent of a metric over (C,) biases; knows each row's best two classes."""

    def __init__(self, metric: Metric, truth: Ints, logs: Floats) -> None:
        self.metric, self.truth, self.logs = metric, truth, logs  # logs: (C, N)
        self.bias = np.zeros(len(logs))
        self.top = np.empty((2, len(truth)), np.int64)
        self.score = np.empty((2, len(truth)))
        self._rank(np.arange(len(truth)))
        self.true = np.bincount(truth, minlength=len(logs))
        self.value = metric_value(metric, truth, self.top[0], len(logs))

    def improve(self, label: int) -> bool:
        """Move one class's bias to the middle of the best stretch; return False when none is better than now."""
        mine = self.top[0] == label
        rival = np.where(mine, self.top[1], self.top[0])
        wins_from = np.where(mine, self.score[1], self.score[0]) - self.logs[label]  # the bias from which it wins
        rows = np.flatnonzero(np.abs(wins_from) < MOST_BIAS)
        edges, tries = _tries(np.sort(wins_from[rows]))
        base = self.top[0].copy()
        base[rows] = rival[rows]
        values = self._values(label, base, rows, rival[rows], np.searchsorted(tries, wins_from[rows]), len(tries))
        if values.max() <= self.value + EPSILON:
            return False
        best = _middle_of_best(values, edges, tries)
        self.bias[label], self.value = tries[best], float(values[best])
        among = (self.top == label).any(axis=0)
        self._rank(np.flatnonzero(among | (self.logs[label] + tries[best] >= self.score[1])))
        return True

    def _values(self, label: int, base: Ints, rows: Ints, rival: Ints, first: Ints, num: int) -> Floats:
        """Return the metric at each of `num` tries, while rows turn from their rival to `label`.

        Args:
            label: The class whose bias is tried.
            base: (N,) decisions when none of the rows says label.
            rows: (R,) the rows that turn.
            rival: (R,) what they say before.
            first: (R,) number of the first try at which they say label.
            num: How many tries.
        """
        size, truth = len(self.logs), self.truth[rows]

        def turned(classes: Ints | int, width: int, weights: npt.NDArray[Any] | None = None) -> Floats:
            sums = np.bincount(first * width + classes, weights, minlength=(num + 1) * width)
            return np.cumsum(sums.reshape(num + 1, width), axis=0)[:num].astype(np.float64)  # (num, width)

        left = turned(rival, size)
        said = np.bincount(base, minlength=size) - left
        said[:, label] += left.sum(axis=1)
        hits = np.bincount(base[base == self.truth], minlength=size) - turned(rival, size, truth == rival)
        hits[:, label] += turned(0, 1, truth == label)[:, 0]
        squares = turned(0, 1, (label - truth) ** 2 - (rival - truth) ** 2)[:, 0] + ((base - self.truth) ** 2).sum()
        return metric_of_counts(self.metric, hits, self.true, said, squares)

    def _rank(self, rows: Ints) -> None:
        """Find the best two classes of these rows again; of equal scores the lower class comes first."""
        for chunk in row_chunks(len(rows)):
            part = rows[chunk]
            scores = self.logs[:, part] + self.bias[:, None]
            for place in range(2):
                best = scores.argmax(axis=0)
                self.top[place, part] = best
                self.score[place, part] = scores[best, np.arange(len(part))]
                scores[best, np.arange(len(part))] = -np.inf


def _tries(wins_from: Floats) -> tuple[Floats, Floats]:
    """Return T + 1 rising edges and T biases to try, one between two edges; no row turns at a bias that is tried.

    Args:
        wins_from: The biases from which rows turn, rising.
    """
    every = np.concatenate([[-MOST_BIAS], wins_from, [MOST_BIAS]])
    gaps = np.flatnonzero(np.diff(every) > _SAME)
    middles = (every[gaps] + every[gaps + 1]) / 2
    if len(gaps) <= _TRIES:
        return np.append(every[gaps], MOST_BIAS), middles
    picked = np.linspace(1, len(gaps) - 1, _TRIES - 1).astype(np.int64)
    edges = np.concatenate([[-MOST_BIAS], every[gaps[picked]], [MOST_BIAS]])
    within = np.searchsorted(every[gaps], (edges[1:] + edges[:-1]) / 2, side="right") - 1
    return edges, middles[within]


def _middle_of_best(values: Floats, edges: Floats, tries: Floats) -> int:
    """Return the try nearest to the middle of the widest stretch of best values; try i lies in edges i to i + 1."""
    best = np.concatenate([[0], values >= values.max() - EPSILON, [0]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(best) > 0), np.flatnonzero(np.diff(best) < 0)
    widest = int(np.argmax(edges[stops] - edges[starts]))
    start, stop = starts[widest], stops[widest]
    middle = (edges[start] + edges[stop]) / 2
    return int(start + np.argmin(np.abs(tries[start:stop] - middle)))


def metric_of_counts(
    metric: Metric, hits: npt.NDArray[Any], true: npt.NDArray[Any], said: npt.NDArray[Any], squares: npt.NDArray[Any]
) -> Floats:
    """Return (...) values of a metric of `metrics.CLASS_METRICS` without whole confusion matrices.

    Args:
        metric: Its name.
        hits: (..., C) rows decided right, for each of several decisions.
        true: (..., C) rows of each class, or (C,) where they are the same for all.
        said: (..., C) rows decided for each class.
        squares: (...) sums of squared differences of class indices; only quadratic_kappa looks at them.
    """
    rows = true.sum(axis=-1)
    if metric in ("accuracy", "micro_f1"):
        return np.asarray(hits.sum(axis=-1) / rows)
    if metric == "quadratic_kappa":
        steps = np.arange(true.shape[-1])
        by_chance = (said * (true @ (steps[:, None] - steps) ** 2)).sum(axis=-1) / rows
        return np.where(by_chance > 0, 1 - squares / np.where(by_chance > 0, by_chance, 1), 0.0)
    f1 = 2 * hits / np.maximum(true + said, 1)
    if metric == "weighted_f1":
        return np.asarray((f1 * true).sum(axis=-1) / rows)
    values = hits / np.maximum(true, 1) if metric == "macro_recall" else f1
    return np.asarray(values.sum(axis=-1) / (true + said > 0).sum(axis=-1))
