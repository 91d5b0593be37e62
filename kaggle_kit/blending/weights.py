"""Weights of runs: chosen greedily, by likelihood, or by search, each on all rows but those of one part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.contest import Contest
from kaggle_kit.decision_search import EPSILON
from kaggle_kit.errors import DataError, PredictionError, SettingError
from kaggle_kit.heads import Head
from kaggle_kit.mixes import softmax

Floats = npt.NDArray[np.float64]

LEAST = 0.01  # a weight below is set to 0 where that scores no worse
_STEPS = (0.16, 0.08, 0.04, 0.02, 0.01)  # how much weight a search moves from run to run
_MOST_SWEEPS = 8  # of each step
_GROWTH = 1.5  # by which the steps of expectation-maximisation grow while they help
_MOST_POWER = 1000.0
_TINY = 1e-300  # its logarithm is finite


def greedy_weights(
    contest: Contest, *, without: int | None = None, max_steps: int = 50, patience: int = 8, tolerance: float = EPSILON
) -> Floats:
    """Return (R,) weights found by adding runs one by one, a run as often as it helps.

    The best single run begins; each step adds the run whose sum with those before scores best, a run that is in
    already before a new one of equal score. The best prefix of that path is returned, of equal ones the shortest.

    Args:
        contest: Scores weights.
        without: The number of the part whose rows are not looked at.
        max_steps: The most runs in the sum, with repeats.
        patience: How many steps in a row may gain nothing.
        tolerance: Scores that differ by no more are equal.

    Raises:
        SettingError: When there is not one step, or the part cannot be left out.

    Source: Caruana 2004, "Ensemble selection from libraries of models"; here no runs are bagged.
    """
    if max_steps < 1:
        raise SettingError(f"`max_steps` is {max_steps}; give at least 1, which takes the best single run")
    counts = best_counts = np.zeros(contest.num_runs)
    best, idle = -np.inf, 0
    for _ in range(max_steps):
        tried = counts + np.eye(contest.num_runs)
        scores = contest.scores(tried, without=without)
        close = scores >= scores.max() - tolerance
        picked = int(np.argmax(close * np.where(counts > 0, 2, 1)))
        counts, idle = tried[picked], idle + 1
        if scores[picked] > best + tolerance:
            best_counts, best, idle = counts, float(scores[picked]), 0
        if idle == patience:
            break
    return _without_small(best_counts / best_counts.sum(), lambda tried: contest.scores(tried, without=without))


def search_weights(contest: Contest, start: npt.NDArray[Any], *, without: int | None = None) -> Floats:
    """Return (R,) weights that score no worse than `start` on the rows looked at.

    Weight moves from one run to another wherever that scores better, in steps that shrink from 0.16 to 0.01.

    Args:
        contest: Scores weights.
        start: (R,) where to begin, of any sum above 0.
        without: The number of the part whose rows are not looked at.

    Raises:
        SettingError: When `start` is no weights, or the part cannot be left out.

    Source: the pattern search of Hooke and Jeeves 1961, "'Direct search' solution of numerical and statistical
    problems", with moves that keep the sum.
    """
    best = contest.score(start, without=without)
    weights = np.asarray(start, np.float64) / np.sum(start)
    for step in _STEPS:
        for _ in range(_MOST_SWEEPS):
            before = best
            for giver in range(contest.num_runs):
                tried = _moves(weights, giver, step)
                if not len(tried):
                    continue
                scores = contest.scores(tried, without=without)
                if scores.max() > best + EPSILON:
                    weights, best = tried[int(np.argmax(scores))], float(scores.max())
            if best == before:
                break
    return _without_small(weights, lambda tried: contest.scores(tried, without=without))


def convex_weights(
    probs: npt.NDArray[Any],
    rows: npt.NDArray[np.bool_] | None = None,
    *,
    max_steps: int = 500,
    tolerance: float = 1e-6,
) -> Floats:
    """Return (R,) weights of the arithmetic mean that has the highest mean log likelihood.

    These are the proportions of a mixture, found by expectation-maximisation whose steps are lengthened while that
    helps. The problem is convex: no other weights are better by more than `tolerance`, if `max_steps` suffice.

    Args:
        probs: (M, R) the probability that each run gives the truth, from `truth_probs`.
        rows: Which rows are looked at: (M,), or (N,) images where M is a multiple of N, as multi-label heads have it.
        max_steps: The most passes over the rows.
        tolerance: By how much the mean log likelihood may be below the highest.

    Raises:
        DataError: When there are no rows.
        PredictionError: When a probability is not finite.

    Source: Dempster 1977, "Maximum likelihood from incomplete data via the EM algorithm"; longer steps: Salakhutdinov
    and Roweis 2003, "Adaptive overrelaxed bound optimization methods".
    """
    if rows is not None:
        probs = probs[np.repeat(rows, len(probs) // len(rows))]
    _check_probs(probs)
    likely = np.maximum(probs, np.finfo(np.float32).eps, dtype=np.float64).T  # (R, M), clipped as the metric does
    weights = np.full(len(likely), 1 / len(likely))
    mixed = weights @ likely
    value, power = _mean_log(mixed), 1.0
    for _ in range(max_steps):
        gains = likely @ (1 / mixed) / len(mixed)  # of each run; the logarithm of the highest bounds what is to be won
        if gains.max() <= 1 + tolerance:
            break
        tried = softmax((np.log(np.maximum(weights, _TINY)) + power * np.log(gains))[None])[0]
        tried_mixed = tried @ likely
        tried_value = _mean_log(tried_mixed)
        if tried_value < value and power > 1:
            power = 1.0
            continue
        weights, mixed, value, power = tried, tried_mixed, tried_value, min(_GROWTH * power, _MOST_POWER)
    return _without_small(weights, lambda some: _scores_of_mixtures(some, likely), tolerance=tolerance)


def truth_probs(head: Head, truth: npt.NDArray[Any], values: Sequence[npt.NDArray[Any]]) -> Floats:
    """Return (N, R) probabilities that R runs give the true class; of a multi-label head (N * C, R), class by class.

    Args:
        head: The head.
        truth: (N,) class indices, or of a multi-label head (N, C) of 0 and 1.
        values: R runs' (N, C) probabilities.
    """
    if head.kind == "multilabel":
        columns = [np.where(truth > 0, probs, 1 - probs).ravel() for probs in values]
    else:
        columns = [probs[np.arange(len(truth)), truth] for probs in values]
    return np.stack(columns, axis=1).astype(np.float64)


def _check_probs(probs: npt.NDArray[Any]) -> None:
    if not len(probs):
        raise DataError("there are no rows to fit weights to; leave out one of several parts")
    if not np.isfinite(probs).all():
        row, run = np.argwhere(~np.isfinite(probs))[0]
        raise PredictionError(
            f"run {run} gives the truth of row {row} a probability of {probs[row, run]}; expected finite ones: predict "
            "again"
        )


def _moves(weights: Floats, giver: int, step: float) -> Floats:
    """Return (K, R) weights after one run gave up to `step` to each other one; none where it has nothing."""
    given = min(step, weights[giver])
    if given <= 0:
        return np.empty((0, len(weights)))
    takers = np.delete(np.arange(len(weights)), giver)
    moved = np.repeat(weights[None], len(takers), axis=0)
    moved[:, giver] -= given
    moved[np.arange(len(takers)), takers] += given
    return moved


def _without_small(weights: Floats, score: Callable[[Floats], Floats], *, tolerance: float = EPSILON) -> Floats:
    """Return (R,) weights with those below `LEAST` at 0, where (K,) scores of (K, R) weights get no worse by that."""
    kept = np.where(weights < LEAST, 0.0, weights)
    if (kept == weights).all() or not kept.any():
        return weights
    kept /= kept.sum()
    before, after = score(np.stack([weights, kept]))
    return kept if after >= before - tolerance else weights


def _scores_of_mixtures(weights: Floats, likely: Floats) -> Floats:
    return np.array([_mean_log(one @ likely) for one in weights])


def _mean_log(mixed: Floats) -> float:
    return float(np.log(mixed).mean())
