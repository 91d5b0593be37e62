"""Prefixes of a running order: what the first runs become, wherever a kernel is cut short, and what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kaggle_kit.blending.pool import Pool
from kaggle_kit.blending.strategies import HeadFitter, Strategy
from kaggle_kit.decision import Decision
from kaggle_kit.decision_fitting import FittedDecision, fit_decision
from kaggle_kit.ensemble import Prefix
from kaggle_kit.metrics import LOWER_IS_BETTER, PROBABILITY_METRICS
from kaggle_kit.mixes import Mix, Table
from kaggle_kit.predictions import Probs
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import Answers, bootstrap_heads, middle_part, score_answers

_DRAWS = 200  # for the intervals of a prefix


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """By how much a prefix scores below the whole blend.

    Attributes:
        value: Of the metric, over all heads; below 0 where the prefix scores better.
        interval: The middle 95 % of resamples of the images, the same ones for both.
    """

    value: float
    interval: tuple[float, float]

    @property
    def may_be_luck(self) -> bool:
        """Whether the prefix scores as well as the whole within luck."""
        return self.interval[0] <= 0


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A pool's nested probabilities, and what decides them.

    Attributes:
        prefix: The rules and their score, and no mixes yet.
        fitted: What rules were tried; None when none were.
        answers: What is scored: decisions, or the probabilities of a metric that wants them.
    """

    prefix: Prefix
    fitted: FittedDecision | None
    answers: Answers


def decide_nested(pool: Pool, nested: Probs, *, fit_rules: bool, draws: int, seed: int) -> Decided:
    """Fit the rules that decide to probabilities, each of which was mixed by what was fitted without its part.

    Args:
        pool: Whose rows these are.
        nested: {head: (N, C) probabilities}.
        fit_rules: Whether rules are tried; without, the highest probability decides.
        draws: Resamples of the images for the intervals.
        seed: Of the resamples.
    """
    task = pool.task
    if not fit_rules:
        score = score_answers(task, pool.truth, nested, draws=draws, groups=pool.groups)
        return Decided(prefix=Prefix(decision=Decision.plain(task), score=score), fitted=None, answers=nested)
    found = fit_decision(
        task, pool.truth, nested, pool.parts, counts=pool.counts, groups=pool.groups, draws=draws, seed=seed
    )
    answers = nested if task.metric in PROBABILITY_METRICS else found.decided
    return Decided(prefix=Prefix(decision=found.decision, score=found.nested), fitted=found, answers=answers)


def fit_prefixes(
    pool: Pool, strategies: Mapping[str, Strategy], whole: Answers, *, fit_rules: bool
) -> tuple[list[Prefix], tuple[Shortfall, ...]]:
    """Fit strategies to every prefix of the pool's runs but all of them.

    Args:
        pool: Runs in running order.
        strategies: {head: strategy}.
        whole: What the whole blend answers, rows in the same order.
        fit_rules: Whether rules that decide are tried.

    Returns:
        The prefixes, shortest first, and how far each falls short of the whole.
    """
    prefixes, answers = [], [whole]
    with progress_bar(len(pool.names) - 1, "fitting every prefix of the running order", unit="prefix") as bar:
        for count in range(1, len(pool.names)):
            first = pool.of(pool.names[:count])
            fitters = {head: HeadFitter(first, head) for head in pool.task.heads}
            nested = {head: fitter.nested(strategies[head]) for head, fitter in fitters.items()}
            decided = decide_nested(first, nested, fit_rules=fit_rules, draws=_DRAWS, seed=0)
            mixes = {head: fitter.fit(strategies[head]) for head, fitter in fitters.items()}
            prefixes.append(dataclasses.replace(decided.prefix, heads=mixes))
            answers.append(decided.answers)
            bar.update()
    return prefixes, _shortfalls(pool, answers)


def _shortfalls(pool: Pool, answers: Sequence[Answers]) -> tuple[Shortfall, ...]:
    """Return how far answers fall short of the first ones."""
    if len(answers) == 1:
        return ()
    task, sign = pool.task, -1 if pool.task.metric in LOWER_IS_BETTER else 1
    weights = np.array([head.weight for head in task.heads.values()])
    drawn = bootstrap_heads(task, pool.truth, answers, draws=_DRAWS, groups=pool.groups)  # (draws, answers, heads)
    totals = sign * drawn @ (weights / weights.sum())
    values = [sign * score_answers(task, pool.truth, one).total for one in answers]
    intervals = middle_part(totals[:, [0]] - totals[:, 1:])
    return tuple(
        Shortfall(value=values[0] - value, interval=interval)
        for value, interval in zip(values[1:], intervals, strict=True)
    )


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
    coefficients = mix.stack.coefficients.values()
    blocks = coefficients.reshape(len(names), -1, coefficients.shape[1])[rows]
    stack = dataclasses.replace(mix.stack, coefficients=Table.of(blocks.reshape(-1, coefficients.shape[1])))
    return dataclasses.replace(mix, stack=stack, temperatures=temperatures)
