"""The frontier: which runs, each counting the same, score best for the time they take.

Of up to 12 runs all subsets are scored. Of more, runs are added one by one to the best or the cheapest and taken one by
one from all, by what they gain and by what they gain a second, and single runs of what is best so far are added,
dropped and swapped: that may miss a subset that is better still.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.costs import Costs
from kaggle_kit.blending.subsets import SAME, Subset, cost_list, grow, shrink
from kaggle_kit.blending.subsets import SubsetScores as SubsetScores
from kaggle_kit.blending.subsets import running_order as running_order
from kaggle_kit.errors import SettingError
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.progress import progress_bar
from kaggle_kit.task import Metric

Floats = npt.NDArray[np.float64]

EXHAUSTIVE_RUNS = 12
MOST_SUBSETS = 1024  # of 20 runs; 4,000 scored 1e-6 more on the average over budgets, at most 5e-5
_AT_ONCE = 32  # subsets scored together
_NAMED = 3  # runs of a subset in a line of the table
_SHOWN = 12  # points of which all are in the table
_NONE = "-"
_UNSTEADY = (
    "the timings were unsteady, so that the running order may change from one time to the next: measure on a quiet "
    "machine, or give a file of costs"
)


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """Runs whose mean no other subset found beats in less time, or in the same.

    Attributes:
        runs: Their names, in the order of all runs.
        seconds: An image takes with all of them; None where it is not known what runs take.
        score: The metric of their mean; the choice of the subset was made on the same rows, which flatters.
        nested_score: The metric where each part is answered by the subset that is best, within the same time, on the
            other parts; None where there is one part alone.
    """

    runs: tuple[str, ...]
    seconds: float | None
    score: float
    nested_score: float | None = None


def find_frontier(
    names: Sequence[str],
    seconds: Mapping[str, float] | None,
    subsets: SubsetScores,
    *,
    exhaustive_runs: int = EXHAUSTIVE_RUNS,
    most_subsets: int = MOST_SUBSETS,
) -> list[FrontierPoint]:
    """Return the best subsets of runs for the time they take, the quickest first, each better than those before it.

    Args:
        names: R names, in the order of the subsets' numbers.
        seconds: {run: seconds an image takes}; None: all runs take the same time.
        subsets: Scores of subsets.
        exhaustive_runs: Of so many runs all subsets are scored.
        most_subsets: How many are scored of more runs; adding to one and taking from all are finished in any case.

    Raises:
        SettingError: When a run has no seconds.
    """
    search = _Search(subsets, cost_list(names, seconds), most_subsets)
    candidates = search.candidates(exhaustive=len(names) <= exhaustive_runs)
    nested = _Nested(subsets, candidates)
    return [
        FrontierPoint(
            runs=tuple(names[run] for run in sorted(one.subset)),
            seconds=None if seconds is None else one.cost,
            score=subsets.value(float(one.measured[0])),
            nested_score=nested.score(one.cost),
        )
        for one in _pareto(candidates)
    ]


def point_within(points: Sequence[FrontierPoint], limit_s: float, *, num_images: int | None = None) -> FrontierPoint:
    """Return the best point of a frontier that takes no more than so many seconds an image.

    Args:
        points: From `find_frontier`, with seconds.
        limit_s: Seconds for an image.
        num_images: How many images there are, so that an error can speak of hours.

    Raises:
        SettingError: When nothing fits, naming the cheapest run and what it takes.
    """
    fitting = [point for point in points if point.seconds is not None and point.seconds <= limit_s]
    if fitting:
        return fitting[-1]
    cheapest = points[0]
    if cheapest.seconds is None:
        raise SettingError(
            "it is not known what runs take, so no limit can be kept; measure them, or give a file of costs"
        )
    raise SettingError(
        f"no run fits {_time(limit_s, num_images)}: the cheapest, {cheapest.runs[0]!r}, takes "
        f"{_time(cheapest.seconds, num_images)}; allow more time, train a smaller model, or give a file of costs if "
        "these were measured on a slower machine"
    )


def _time(seconds: float, num_images: int | None) -> str:
    if num_images is None:
        return f"{1000 * seconds:.4g} s for 1,000 images"
    return f"{seconds * num_images / 3600:.3g} h for {num_images:,} images"


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A subset, what it costs, and its (1 + P,) goodness: of all rows, and without each part."""

    subset: Subset
    cost: float
    measured: Floats


class _Search:
    """Scores subsets that may lie on the frontier; which ones depends on nothing but scores and costs."""

    def __init__(self, subsets: SubsetScores, costs: list[float], most: int) -> None:
        self._subsets, self._costs, self._most = subsets, costs, most
        self._seen: dict[Subset, _Candidate] = {}
        self._advance: Callable[[int], object] = lambda count: None

    def candidates(self, *, exhaustive: bool) -> list[_Candidate]:
        """Return scored subsets, the cheapest first; of equal cost the best, then the smallest."""
        runs = range(len(self._costs))
        total = 2 ** len(runs) - 1
        total = total if exhaustive else min(total, self._most)
        with progress_bar(total, "scoring subsets of runs", unit="subset") as bar:
            self._advance = bar.update
            if exhaustive:
                sizes = range(1, 1 + len(runs))
                every = itertools.chain.from_iterable(itertools.combinations(runs, size) for size in sizes)
                self._score(map(frozenset, every))
            else:
                self._walk()
                self._improve()
            bar.total = bar.n
        return sorted(self._seen.values(), key=_by_cost)

    def _goodness(self, several: Sequence[Subset]) -> list[float]:
        self._score(several)
        return [float(self._seen[subset].measured[0]) for subset in several]

    def _score(self, several: Iterable[Subset], *, most: int | None = None) -> None:
        """Score those that were not, until so many were in all."""
        new = [subset for subset in dict.fromkeys(several) if subset not in self._seen]
        if most is not None:
            new = new[: most - len(self._seen)]
        for start in range(0, len(new), _AT_ONCE):
            some = new[start : start + _AT_ONCE]
            for subset, measured in zip(some, self._subsets.measure(some), strict=True):
                cost = math.fsum(self._costs[run] for run in subset)  # exact, in whatever order
                self._seen[subset] = _Candidate(subset=subset, cost=cost, measured=measured)
            self._advance(len(some))

    def _walk(self) -> None:
        for per_second in (False, True):
            grow(self._goodness, self._costs, per_second=per_second)
            shrink(self._goodness, self._costs, per_second=per_second)

    def _improve(self) -> None:
        """Change single runs of the best subsets until none gets better, or enough were scored."""
        changed: set[Subset] = set()
        while len(self._seen) < self._most:
            now = [one.subset for one in _pareto(sorted(self._seen.values(), key=_by_cost))]
            fresh = [subset for subset in now if subset not in changed]
            if not fresh:
                return
            changed.update(fresh)
            # additions and drops come first: they are few, and find most of what is to be found
            near = itertools.chain(*map(self._resized, fresh), *map(self._swapped, fresh))
            self._score(near, most=self._most)

    def _resized(self, subset: Subset) -> Iterator[Subset]:
        for run in range(len(self._costs)):
            if subset != {run}:
                yield subset ^ {run}

    def _swapped(self, subset: Subset) -> Iterator[Subset]:
        for dropped in sorted(subset):
            for added in range(len(self._costs)):
                if added not in subset:
                    yield (subset - {dropped}) | {added}


def _by_cost(one: _Candidate) -> tuple[float, float, int, tuple[int, ...]]:
    return one.cost, -float(one.measured[0]), len(one.subset), tuple(sorted(one.subset))


def _pareto(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Return the candidates that score more than all before them."""
    kept: list[_Candidate] = []
    for one in candidates:
        if not kept or one.measured[0] > kept[-1].measured[0] + SAME:
            kept.append(one)
    return kept


class _Nested:
    """What choosing the best subset within a cost is worth on rows it was not chosen by."""

    def __init__(self, subsets: SubsetScores, candidates: Sequence[_Candidate]) -> None:
        self._subsets, self._candidates = subsets, candidates
        self._costs = np.array([one.cost for one in candidates])
        self._without = np.stack([one.measured[1:] for one in candidates])  # (M, P)
        self._known: dict[tuple[int, ...], float] = {}

    def score(self, cost: float) -> float | None:
        """Return the metric where each part is answered by what is best on the other parts within a cost."""
        if not self._without.shape[1]:
            return None
        reachable = self._without[: np.searchsorted(self._costs, cost, side="right")]
        # the cheapest of equals, as on the frontier itself
        best = tuple((reachable > reachable.max(axis=0) - SAME).argmax(axis=0).tolist())
        if best not in self._known:
            chosen = [self._candidates[place].subset for place in best]
            self._known[best] = self._subsets.value(self._subsets.goodness_by_part(chosen))
        return self._known[best]


def format_frontier(
    points: Sequence[FrontierPoint],
    *,
    metric: Metric,
    chosen: Collection[str] = (),
    costs: Costs | None = None,
    num_images: int | None = None,
    accelerator: str = "",
) -> list[str]:
    """Return what the scores are, a table, a line a point, and what its seconds are worth.

    Of more than 12 points those that gain little are left out.

    Args:
        points: From `find_frontier`.
        metric: The task's.
        chosen: The runs of the blend; the point that has just these is marked, in a column that else is left out.
        costs: What the seconds come from.
        num_images: Adds a column of hours for so many images.
        accelerator: The kernel's.
    """
    shown = _shown(points, chosen)
    timed = any(point.seconds is not None for point in points)
    marked = any(set(point.runs) == set(chosen) for point in points)
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    hours = f"h for {num_images:,}" if num_images is not None else ""
    spent = f"{'s for 1,000':>11}  {hours + '  ' if hours else ''}" if timed else ""
    lines = [
        f"scores are of the plain mean of the runs, each counting the same, by the highest probability ({metric}: "
        f"{direction} is better)",
        f"{'runs':>4}  {spent}{'score':>8}  {'nested':>8}  {'chosen  ' if marked else ''}which",
    ]
    for point in shown:
        mark = f"{'yes' if set(point.runs) == set(chosen) else '':<6}  " if marked else ""
        lines.append(_format_point(point, num_images, mark=mark, width=len(hours)))
    if len(shown) < len(points):
        lines.append(f"left out: {len(points) - len(shown)} in between that gain little over the one above")
    if costs is not None:
        lines.append(_origin(costs, accelerator))
    elif not timed:
        lines.append("what runs take is not known; each counts as much as another")
    return lines


def _format_point(point: FrontierPoint, num_images: int | None, *, mark: str, width: int) -> str:
    """Return a line of the table; `width` is that of the hours."""
    spent = ""
    if point.seconds is not None:
        spent = f"{1000 * point.seconds:>11.4g}  "
        spent += "" if num_images is None else f"{point.seconds * num_images / 3600:>{width}.3g}  "
    nested = _NONE if point.nested_score is None else f"{point.nested_score:.4f}"
    more = f" and {len(point.runs) - _NAMED} more" if len(point.runs) > _NAMED else ""
    names = ", ".join(point.runs[:_NAMED]) + more
    return f"{len(point.runs):>4}  {spent}{point.score:>8.4f}  {nested:>8}  {mark}{names}"


def _shown(points: Sequence[FrontierPoint], chosen: Collection[str]) -> list[FrontierPoint]:
    """Return all points where they are few, else both ends, the chosen one and those that gain over the one before."""
    if len(points) <= _SHOWN:
        return list(points)
    step = abs(points[-1].score - points[0].score) / _SHOWN / 4
    shown = [points[0]]
    for point in points[1:-1]:
        if abs(point.score - shown[-1].score) > step or set(point.runs) == set(chosen):
            shown.append(point)
    return [*shown, points[-1]]


def _origin(costs: Costs, accelerator: str) -> str:
    there = accelerator or "the kernel's accelerator"
    if costs.measured_here:
        where = (
            f"seconds were measured here, on {costs.device}; what they are on {there} is unknown: measure there, "
            "and give that file of costs"
        )
    else:
        where = f"seconds come from a file, measured on {costs.device}"
    return where if costs.steady else f"{where}; {_UNSTEADY}"
