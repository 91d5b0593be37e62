"""Scores of subsets of runs in which every run counts the same, and the order in which runs are worth their time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.pool import Pool
from kaggle_kit.errors import SettingError, some_of
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.progress import progress_bar
from kaggle_kit.task import Metric

if TYPE_CHECKING:
    from kaggle_kit.blending.contest import Contest

Floats = npt.NDArray[np.float64]
Subset = frozenset[int]  # of run numbers

Goodness = Callable[[Sequence[Subset]], list[float]]

SAME = 1e-9  # scores that are nearer to each other differ by rounding alone


class SubsetScores:
    """The goodness of the mean of some of R runs: the metric over all heads, negative where lower is better.

    Where contests look at a sample of the images, so do these scores. Every subset is scored once; what is kept of it
    are a few numbers.

    Attributes:
        metric: The task's.
        num_runs: R.
        num_parts: P: what a nested choice holds out, one after the other.
    """

    def __init__(self, contests: Mapping[str, Contest], weights: Mapping[str, float]) -> None:
        """Score nothing yet.

        Args:
            contests: {head: what scores weights of the same R runs}, of kind `arithmetic`.
            weights: {head: its share in the metric}; any scale.
        """
        first = next(iter(contests.values()))
        total = sum(weights[head] for head in contests)
        self._contests = [(contest, weights[head] / total) for head, contest in contests.items()]
        self._places = list(range(first.num_runs))  # of the runs in the contests' weights
        self._measured: dict[Subset, Floats] = {}
        self.metric: Metric = first.metric
        self.num_runs, self.num_parts = first.num_runs, first.num_parts

    @classmethod
    def of(cls, pool: Pool, contests: Mapping[str, Contest]) -> SubsetScores:
        """Return the scores of subsets of a pool's runs.

        Args:
            pool: The runs.
            contests: {head: what scores weights of the pool's runs}, of kind `arithmetic`.
        """
        return cls(contests, {name: head.weight for name, head in pool.task.heads.items()})

    def among(self, runs: Sequence[int]) -> SubsetScores:
        """Return the scores of subsets of some of the runs, numbered anew in this order."""
        some = copy.copy(self)
        some._places = [self._places[run] for run in runs]
        some._measured, some.num_runs = {}, len(some._places)
        return some

    def value(self, goodness: float) -> float:
        """Return the metric of a goodness."""
        return -goodness if self.metric in LOWER_IS_BETTER else goodness

    def measure(self, several: Sequence[Subset]) -> Floats:
        """Return (K, 1 + P) goodness of the means of K subsets: of all rows, and without each part.

        Of one part alone nothing is left without it, and (K, 1) is returned.
        """
        new = [subset for subset in dict.fromkeys(several) if subset not in self._measured]
        if new:
            total = sum(share * _goodness(contest, self._statistics(contest, new)) for contest, share in self._contests)
            self._measured.update(zip(new, np.asarray(total), strict=True))
        return np.stack([self._measured[subset] for subset in several])

    def goodness_by_part(self, chosen: Sequence[Subset]) -> float:
        """Return the goodness of all rows, those of each part answered by a subset of its own.

        Args:
            chosen: A subset for each of P parts.
        """
        parts = np.arange(self.num_parts)
        total = 0.0
        for contest, share in self._contests:
            statistics = self._statistics(contest, chosen)[parts, parts]  # (P, S)
            total += share * float(contest.goodness(statistics.sum(axis=0)))
        return total

    def _statistics(self, contest: Contest, several: Sequence[Subset]) -> Floats:
        """Return (K, P, S) statistics of the means of K subsets."""
        weights = np.zeros((len(several), contest.num_runs))
        for row, subset in zip(weights, several, strict=True):
            row[[self._places[run] for run in subset]] = 1 / len(subset)
        return contest.statistics_of(weights)


def _goodness(contest: Contest, statistics: Floats) -> Floats:
    """Return (K, 1 + P) goodness of (K, P, S) statistics: of all rows, and without each part."""
    whole = statistics.sum(axis=1, keepdims=True)
    without = whole - statistics if statistics.shape[1] > 1 else statistics[:, :0]
    return contest.goodness(np.concatenate([whole, without], axis=1))


def cost_list(names: Sequence[str], seconds: Mapping[str, float] | None) -> list[float]:
    """Return what each run costs: its seconds, or 1 where none are known.

    Raises:
        SettingError: When a run has no seconds, or they are no finite number above 0.
    """
    if seconds is None:
        return [1.0] * len(names)
    wrong = [name for name in names if not 0 < seconds.get(name, math.nan) < math.inf]
    if wrong:
        raise SettingError(
            f"{len(wrong)} of {len(names)} runs have no time: {some_of(wrong)} ({seconds.get(wrong[0], 'missing')}); "
            "give every run a finite number of seconds above 0"
        )
    return [float(seconds[name]) for name in names]


def running_order(names: Sequence[str], seconds: Mapping[str, float] | None, subsets: SubsetScores) -> tuple[str, ...]:
    """Return runs in the order that loses least where time runs out a little early: the least worth theirs come last.

    A run is worth what it gains per second at the margin of the whole: last comes the one whose absence from the mean
    of all costs least score per second that it takes, before it the same of those left, and so on. What harms a mean
    comes last whatever it takes, of several the one that harms most; of equal ones the dearer, then the later-named.

    Args:
        names: R names, in the order of the subsets' numbers.
        seconds: {run: seconds an image takes}; None: all runs take the same time.
        subsets: Scores of subsets.

    Raises:
        SettingError: When a run has no seconds.
    """
    costs = cost_list(names, seconds)
    with progress_bar(len(names) * (len(names) + 1) // 2, "ordering runs", unit="subset") as bar:

        def goodness(several: Sequence[Subset]) -> list[float]:
            bar.update(len(several))
            return [float(value) for value in subsets.measure(several)[:, 0]]

        return tuple(names[run] for run in shrink(goodness, costs, per_second=True))


def grow(goodness: Goodness, costs: Sequence[float], *, per_second: bool) -> None:
    """Score one run, the best, then ever more: each time with the one that gains most.

    Args:
        goodness: Of subsets.
        costs: (R,) above 0.
        per_second: Whether a gain counts by what it costs; the first run is the cheapest then.
    """
    order: list[int] = []
    now = 0.0
    if per_second:
        order.append(min(range(len(costs)), key=costs.__getitem__))
        now = goodness([frozenset(order)])[0]
    while len(order) < len(costs):
        rest = [run for run in range(len(costs)) if run not in order]
        scores = goodness([frozenset([*order, run]) for run in rest])
        worth = []
        for run, score in zip(rest, scores, strict=True):
            gained = _rounded(score - now)
            # harm is harm, however little time it takes
            worth.append((gained / costs[run] if per_second and gained > 0 else gained, -costs[run], -run, score))
        _, _, number, now = max(worth)
        order.append(-number)


def shrink(goodness: Goodness, costs: Sequence[float], *, per_second: bool) -> list[int]:
    """Score all runs, then ever fewer, each time without the one whose loss harms least; return the last lost first.

    Args:
        goodness: Of subsets.
        costs: (R,) above 0.
        per_second: Whether harm counts by the time that it saves.
    """
    rest, lost = list(range(len(costs))), list[int]()
    now = goodness([frozenset(rest)])[0]
    while len(rest) > 1:
        scores = goodness([frozenset(rest) - {run} for run in rest])
        worth = []
        for run, score in zip(rest, scores, strict=True):
            gained = _rounded(score - now)
            # what harms is better lost, however little time it takes
            worth.append((gained / costs[run] if per_second and gained < 0 else gained, costs[run], run, score))
        _, _, run, now = max(worth)
        rest.remove(run)
        lost.append(run)
    return [*rest, *reversed(lost)]


def _rounded(gained: float) -> float:
    return 0.0 if abs(gained) <= SAME else gained
