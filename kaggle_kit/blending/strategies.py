"""Strategies: the ways in which runs' probabilities of one head are mixed, each fitted to some rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.calibration import draw_rows, fit_temperature
from kaggle_kit.blending.contest import Contest
from kaggle_kit.blending.pool import Pool
from kaggle_kit.blending.stacking import can_stack, fit_stack
from kaggle_kit.blending.weights import convex_weights, greedy_weights, search_weights, truth_probs
from kaggle_kit.errors import SettingError
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.mixes import Mix, MixKind, mix_head, quantiles

Strategy = Literal[
    "best",
    "mean",
    "vote",
    "geometric",
    "power",
    "rank",
    "subset",
    "convex",
    "greedy",
    "search",
    "greedy-geometric",
    "calibrated",
    "calibrated-greedy",
    "ridge",
    "stack",
    "stack-heads",
]
MEANINGS: dict[Strategy, str] = {
    "best": "the best run alone",
    "mean": "the mean of all runs' probabilities (soft voting)",
    "vote": "hard voting, equal votes by the mean",
    "geometric": "the geometric mean",
    "power": "the power mean, of power 0.5 or 2",
    "rank": "the mean of ranks",
    "subset": "the mean of the runs that are best together",
    "convex": "the weighted mean, weights of the least log loss",
    "greedy": "the weighted mean, weights by greedy forward selection",
    "search": "the same, weights moved from run to run while the metric gains",
    "greedy-geometric": "the weighted geometric mean, weights by greedy forward selection",
    "calibrated": "the mean after a temperature a run",
    "calibrated-greedy": "greedy forward selection after a temperature a run",
    "ridge": "ridge regression on the logarithms of probabilities",
    "stack": "logistic regression on the logarithms of probabilities",
    "stack-heads": "the same, reading all heads",
}
STRATEGIES: tuple[Strategy, ...] = (*MEANINGS,)  # the simplest first: nothing fitted, weights, models
UNFITTED: tuple[Strategy, ...] = ("mean", "vote", "geometric")
_POWERS = (0.5, 2.0)
_MOST_CELLS = 20_000_000  # probabilities of the truth that weights of least log loss are fitted to
_MOST_RUNS = 8  # of which all subsets are tried
_MOST_VALUES = 5e7  # probabilities; above that only what looks at each of them a few times is tried
_LIGHT: tuple[Strategy, ...] = ("best", "mean", "vote", "geometric", "subset", "convex", "greedy")


class HeadFitter:
    """Fits strategies to one head of a pool, again and again without one of its parts."""

    def __init__(self, pool: Pool, head: str) -> None:
        """Fit nothing yet.

        Args:
            pool: The runs, and what they are fitted to.
            head: Which head.
        """
        self._pool, self._head = pool, head
        self._values = [run[head] for run in pool.runs]
        self._multilabel = head in pool.task.multilabel_heads
        self._contests: dict[tuple[MixKind, float], Contest] = {}
        self._ranks: dict[int | None, list[npt.NDArray[np.float32]]] = {}
        self._truth_probs: npt.NDArray[np.float64] | None = None
        self._fitted: dict[tuple[Strategy, int | None], Mix] = {}
        self._fits: dict[Strategy, Callable[[int | None], Mix]] = {
            "best": self._best,
            "mean": lambda _: self._equal("arithmetic"),
            "vote": lambda _: self._equal("vote"),
            "geometric": lambda _: self._equal("geometric"),
            "power": self._power,
            "rank": lambda _: self._equal("rank"),
            "subset": self._subset,
            "convex": self._convex,
            "greedy": self._greedy,
            "search": self._search,
            "greedy-geometric": self._greedy_geometric,
            "calibrated": self._calibrated,
            "calibrated-greedy": self._calibrated_greedy,
            "ridge": lambda without: self._stack(without, model="ridge"),
            "stack": self._stack,
            "stack-heads": lambda without: self._stack(without, all_heads=True),
        }
        self.parts = np.unique(pool.parts)

    def fit(self, strategy: Strategy, *, without: int | None = None) -> Mix:
        """Return the mix that suits the rows of all parts but one.

        Args:
            strategy: Which one.
            without: The part left out, as an index of `parts`; None: all rows count.
        """
        key = (strategy, None if strategy in UNFITTED else without)
        if key not in self._fitted:
            self._fitted[key] = self._fits[strategy](key[1])
        return self._fitted[key]

    def nested(self, strategy: Strategy) -> npt.NDArray[np.float32]:
        """Return (N, C) probabilities, those of each part mixed by what was fitted without it."""
        if strategy in UNFITTED:
            return self.mixed(self.fit(strategy), slice(None))
        result = np.empty(self._values[0].shape, np.float32)
        for index, part in enumerate(self.parts):
            rows = self._pool.parts == part
            result[rows] = self.mixed(self.fit(strategy, without=index), rows, without=index)
        return result

    def mixed(
        self, mix: Mix, rows: npt.NDArray[np.bool_] | slice, *, without: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the mix of these rows.

        Args:
            mix: From `fit`.
            rows: Which rows.
            without: The part that it was fitted without.
        """
        heads = mix.stack.sources if mix.stack else (self._head,)
        runs = [{head: run[head][rows] for head in {*heads, self._head}} for run in self._pool.runs]
        ranks = self.ranks(without) if mix.kind == "rank" else ()
        return mix_head(mix, self._head, runs, multilabel=self._pool.task.multilabel_heads, ranks=ranks)

    def ranks(self, without: int | None = None) -> list[npt.NDArray[np.float32]]:
        """Return each run's (C, Q) quantiles over the rows of all parts but one.

        No label is looked at; but a part that helped to make them is spread as they are, which a test is not.
        """
        if without not in self._ranks:
            rows = self._rows(without)
            self._ranks[without] = [quantiles(values[rows]) for values in self._values]
        return self._ranks[without]

    def contest(self, kind: MixKind = "arithmetic", power: float = 1.0) -> Contest:
        """Return what scores weights fast, made once."""
        if (kind, power) not in self._contests:
            self._contests[kind, power] = self._make_contest(kind, power=power)
        return self._contests[kind, power]

    def _make_contest(self, kind: MixKind, *, power: float = 1.0, temperatures: tuple[float, ...] = ()) -> Contest:
        pool, head = self._pool, self._head
        return Contest.of(
            pool.task.metric,
            pool.task.heads[head],
            pool.truth[head],
            self._values,
            pool.parts,
            kind=kind,
            power=power,
            temperatures=temperatures,
            ranks=self.ranks() if kind == "rank" else (),
        )

    def _rows(self, without: int | None) -> npt.NDArray[np.bool_]:
        if without is None:
            return np.ones(len(self._pool), bool)
        return np.asarray(self._pool.parts != self.parts[without])

    def _equal(self, kind: MixKind, *, power: float = 1.0, temperatures: tuple[float, ...] = ()) -> Mix:
        share = (1 / len(self._values),) * len(self._values)
        return Mix(kind=kind, weights=share, power=power, temperatures=temperatures)

    def _best(self, without: int | None) -> Mix:
        ones = np.eye(len(self._values))
        scores = [self.contest().score(weights, without=without) for weights in ones]
        return _weighted("arithmetic", ones[int(np.argmax(scores))])

    def _subset(self, without: int | None) -> Mix:
        if len(self._values) > _MOST_RUNS:
            return _weighted("arithmetic", self._grown(without))
        members = np.array(list(itertools.product((0, 1), repeat=len(self._values)))[1:])
        members = members[np.argsort(members.sum(axis=1), kind="stable")]  # of equal ones the smallest
        weights = members / members.sum(axis=1, keepdims=True)
        return _weighted("arithmetic", weights[int(np.argmax(self.contest().scores(weights, without=without)))])

    def _grown(self, without: int | None) -> npt.NDArray[np.float64]:
        """Return equal weights of runs found by adding the one that helps most until none does."""
        members, best = np.zeros(len(self._values)), -np.inf
        while not members.all():
            tried = np.minimum(members + np.eye(len(members))[members == 0], 1)
            scores = self.contest().scores(tried / tried.sum(axis=1, keepdims=True), without=without)
            if scores.max() <= best:
                break
            members, best = tried[int(np.argmax(scores))], float(scores.max())
        return members

    def _power(self, without: int | None) -> Mix:
        share = np.full(len(self._values), 1 / len(self._values))
        scores = [self.contest("power", power).score(share, without=without) for power in _POWERS]
        return self._equal("power", power=_POWERS[int(np.argmax(scores))])

    def _convex(self, without: int | None) -> Mix:
        head, truth = self._pool.task.heads[self._head], self._pool.truth[self._head]
        most = _MOST_CELLS // (len(self._values) * (head.num_classes if self._multilabel else 1))
        drawn = draw_rows(len(truth), most)
        if self._truth_probs is None:
            self._truth_probs = truth_probs(head, truth[drawn], [values[drawn] for values in self._values])
        return _weighted("arithmetic", convex_weights(self._truth_probs, rows=self._rows(without)[drawn]))

    def _greedy(self, without: int | None) -> Mix:
        return _weighted("arithmetic", greedy_weights(self.contest(), without=without))

    def _search(self, without: int | None) -> Mix:
        start = np.array(self.fit("greedy", without=without).weights)
        return _weighted("arithmetic", search_weights(self.contest(), start, without=without))

    def _greedy_geometric(self, without: int | None) -> Mix:
        return _weighted("geometric", greedy_weights(self.contest("geometric"), without=without))

    def _temperatures(self, without: int | None) -> tuple[float, ...]:
        rows, truth = self._rows(without), self._pool.truth[self._head]
        return tuple(fit_temperature(values[rows], truth[rows], multilabel=self._multilabel) for values in self._values)

    def _calibrated(self, without: int | None) -> Mix:
        return self._equal("arithmetic", temperatures=self._temperatures(without))

    def _calibrated_greedy(self, without: int | None) -> Mix:
        temperatures = self.fit("calibrated", without=without).temperatures
        contest = self._make_contest("arithmetic", temperatures=temperatures)
        return _weighted("arithmetic", greedy_weights(contest, without=without), temperatures)

    def _stack(
        self, without: int | None, *, model: Literal["logistic", "ridge"] = "logistic", all_heads: bool = False
    ) -> Mix:
        pool, rows, head = self._pool, self._rows(without), self._pool.task.heads[self._head]
        sources = tuple(pool.task.heads) if all_heads else (self._head,)
        num_features = len(pool.runs) * sum(pool.task.heads[name].num_classes for name in sources)
        if model == "logistic" and not can_stack(int(rows.sum()), num_features, head.num_classes):
            raise SettingError(
                f"head {head.name!r}: logistic regression on {int(rows.sum()):,} images, {num_features:,} features and "
                f"{head.num_classes} classes takes too long; try ridge"
            )
        return fit_stack(
            head,
            pool.truth[self._head][rows],
            [{name: run[name][rows] for name in sources} for run in pool.runs],
            sources=sources,
            multilabel=pool.task.multilabel_heads,
            model=model,
            parts=pool.parts[rows],
            groups=None if pool.groups is None else pool.groups[rows],
        )


def strategies_for(pool: Pool) -> tuple[Strategy, ...]:
    """Return the strategies worth trying on a pool, the simplest first."""
    if len(pool.names) == 1:  # a temperature moves no run's highest probability
        return ("mean", "calibrated") if pool.task.metric in PROBABILITY_METRICS else ("mean",)
    if is_large(pool):
        return tuple(name for name in STRATEGIES if name in _LIGHT)
    sizes = [head.num_classes for head in pool.task.heads.values()]
    left_out = set()
    if not can_stack(len(pool), len(pool.names) * max(sizes), max(sizes)):
        left_out.add("stack")
    if len(sizes) == 1 or not can_stack(len(pool), len(pool.names) * sum(sizes), max(sizes)):
        left_out.add("stack-heads")
    return tuple(name for name in STRATEGIES if name not in left_out)


def is_large(pool: Pool) -> bool:
    """Return whether a pool holds so many probabilities that models on them take minutes to fit."""
    return len(pool) * len(pool.names) * sum(head.num_classes for head in pool.task.heads.values()) > _MOST_VALUES


def _weighted(kind: MixKind, weights: npt.NDArray[np.float64], temperatures: tuple[float, ...] = ()) -> Mix:
    return Mix(kind=kind, weights=tuple((weights / weights.sum()).tolist()), temperatures=temperatures)
