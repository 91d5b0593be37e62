"""Prefixes of a running order: what the first runs become, wherever a kernel is cut short, and what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kaggle_kit.blending.choice import SURE
from kaggle_kit.blending.pool import Pool
from kaggle_kit.blending.strategies import HeadFitter, Strategy
from kaggle_kit.decision import Decision
from kaggle_kit.decision_fitting import FittedDecision, FittedRule, fit_decision
from kaggle_kit.ensemble import Prefix
from kaggle_kit.metrics import LOWER_IS_BETTER, PROBABILITY_METRICS
from kaggle_kit.mixes import Mix, Table
from kaggle_kit.predictions import Probs
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import Answers, Score, bootstrap_ways, score_answers, widest_part

_DRAWS = 200  # for the intervals of a prefix


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """By how much less scores what has fewer runs than the blend: a prefix of it, or the blend without one of them.

    Attributes:
        value: Of the metric, over all heads; below 0 where fewer runs score better.
        interval: The middle 95 % of resamples of the groups, and where these are few of the images too.
        share: In which share of the resamples fewer runs score less; the lowest of both ways.
    """

    value: float
    interval: tuple[float, float]
    share: float

    @property
    def is_tie(self) -> bool:
        """Whether fewer runs score as well, or better, by the measure that strategies are chosen by."""
        return self.share < SURE

    @property
    def is_gain(self) -> bool:
        """Whether fewer runs score better beyond luck."""
        return self.interval[1] < 0


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A pool's nested probabilities, and what decides them.

    Attributes:
        mixes: {head: mix} fitted to all rows.
        nested: {head: (N, C) probabilities}, each part mixed by what was fitted without it.
        decision: The rules that decide.
        score: Of `answers`.
        fitted: What rules were tried; None when none were.
        answers: What is scored: decisions, or the probabilities of a metric that wants them.
    """

    mixes: dict[str, Mix]
    nested: Probs
    decision: Decision
    score: Score
    fitted: FittedDecision | None
    answers: Answers

    def prefix(self) -> Prefix:
        """Return what becomes of just these runs."""
        return Prefix(heads=self.mixes, decision=self.decision, score=self.score)


def decide_pool(
    pool: Pool,
    fitters: Mapping[str, HeadFitter],
    strategies: Mapping[str, Strategy],
    *,
    rules: Sequence[FittedRule],
    draws: int = _DRAWS,
    seed: int = 0,
) -> Decided:
    """Mix a pool's runs, and fit the rules that decide to the nested probabilities.

    Args:
        pool: The runs.
        fitters: One a head.
        strategies: {head: how it is mixed}.
        rules: What rules are tried; without any, the highest probability decides.
        draws: Resamples of the images for the intervals.
        seed: Of the resamples.
    """
    task = pool.task
    nested = {head: fitter.nested(strategies[head]) for head, fitter in fitters.items()}
    mixes = {head: fitter.fit(strategies[head]) for head, fitter in fitters.items()}
    if not rules:
        plain = Decision.plain(task)
        score = score_answers(task, pool.truth, nested, draws=draws, groups=pool.groups)
        answers = (
            nested if task.metric in PROBABILITY_METRICS else plain.decide(nested, multilabel=task.multilabel_heads)
        )
        return Decided(mixes=mixes, nested=nested, decision=plain, score=score, fitted=None, answers=answers)
    found = fit_decision(
        task,
        pool.truth,
        nested,
        pool.parts,
        counts=pool.counts,
        groups=pool.groups,
        rules=rules,
        draws=draws,
        seed=seed,
    )
    return Decided(
        mixes=mixes,
        nested=nested,
        decision=found.decision,
        score=found.nested,
        fitted=found,
        answers=nested if task.metric in PROBABILITY_METRICS else found.decided,
    )


def fit_prefixes(
    pool: Pool, strategies: Mapping[str, Strategy], whole: Decided, *, rules: Sequence[FittedRule]
) -> tuple[list[Prefix], tuple[Shortfall, ...]]:
    """Fit strategies to every prefix of the pool's runs but all of them.

    Args:
        pool: Runs in running order.
        strategies: {head: strategy}.
        whole: What all runs become, rows in the same order.
        rules: What rules are tried.

    Returns:
        The prefixes, shortest first, and how far each falls short of the whole.
    """
    prefixes, shortfalls = [], []
    with progress_bar(len(pool.names) - 1, "fitting every prefix of the running order", unit="prefix") as bar:
        for count in range(1, len(pool.names)):
            first = pool.of(pool.names[:count])
            decided = decide_pool(first, make_fitters(first), strategies, rules=rules)
            prefixes.append(decided.prefix())
            shortfalls.append(measure_shortfall(pool, whole.answers, decided.answers))
            bar.update()
    return prefixes, tuple(shortfalls)


def helpful_runs(pool: Pool, strategies: Mapping[str, Strategy], *, rules: Sequence[FittedRule]) -> tuple[str, ...]:
    """Return the runs that stay when, one by one, the run is left out without which the others gain most beyond luck.

    Args:
        pool: The runs.
        strategies: {head: strategy}, fitted anew to the others each time.
        rules: What rules that decide are tried.
    """
    while len(pool.names) > 1:
        whole = decide_pool(pool, make_fitters(pool), strategies, rules=rules)
        harmful: list[tuple[float, str]] = []
        with progress_bar(len(pool.names), "blending without each run", unit="run") as bar:
            for name in pool.names:
                others = pool.of([one for one in pool.names if one != name])
                decided = decide_pool(others, make_fitters(others), strategies, rules=rules)
                shortfall = measure_shortfall(pool, whole.answers, decided.answers)
                harmful += [(shortfall.value, name)] * shortfall.is_gain
                bar.update()
        if not harmful:
            break
        pool = pool.of([name for name in pool.names if name != min(harmful)[1]])
    return pool.names


def measure_shortfall(pool: Pool, whole: Answers, fewer: Answers) -> Shortfall:
    """Return how far answers of fewer runs fall short of all runs'."""
    task, sign = pool.task, -1 if pool.task.metric in LOWER_IS_BETTER else 1
    weights = np.array([head.weight for head in task.heads.values()])
    ways = bootstrap_ways(task, pool.truth, [whole, fewer], draws=_DRAWS, groups=pool.groups)  # (draws, 2, heads)
    totals = [sign * drawn @ (weights / weights.sum()) for drawn in ways]
    (interval,) = widest_part([drawn[:, [0]] - drawn[:, [1]] for drawn in totals])
    scores = [score_answers(task, pool.truth, one).total for one in (whole, fewer)]
    share = min(float((drawn[:, 0] > drawn[:, 1]).mean()) for drawn in totals)
    return Shortfall(value=sign * (scores[0] - scores[1]), interval=interval, share=share)


def make_fitters(pool: Pool) -> dict[str, HeadFitter]:
    """Return what fits strategies to each head of a pool."""
    return {head: HeadFitter(pool, head) for head in pool.task.heads}


def reorder_mix(mix: Mix, names: Sequence[str], order: Sequence[str]) -> Mix:
    """Return the mix for runs in another order, those that do not count left out.

    Args:
        mix: Of the runs named, in this order.
        names: R names.
        order: Those that stay, in their new order; all with a weight above 0.
    """
    rows = [names.index(name) for name in order]
    temperatures = tuple(mix.temperatures[row] for row in rows) if mix.temperatures else ()
    if mix.stack is None:
        weights = np.array([mix.weights[row] for row in rows])
        return dataclasses.replace(mix, weights=tuple((weights / weights.sum()).tolist()), temperatures=temperatures)
    coefficients = mix.stack.coefficients.values
    blocks = coefficients.reshape(len(names), -1, coefficients.shape[1])[rows]
    stack = dataclasses.replace(mix.stack, coefficients=Table.of(blocks.reshape(-1, coefficients.shape[1])))
    return dataclasses.replace(mix, stack=stack, temperatures=temperatures)
