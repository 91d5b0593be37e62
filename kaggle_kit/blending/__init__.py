"""What runs become together, chosen on out-of-fold predictions: who takes part, in which order, how, and who decides.

`fit_blend` joins runs (`pool`), leaves out what does not fit a budget (`costs`, `frontier`), tries the ways to mix them
(`strategies`, on `weights`, `stacking`, `calibration`, all scored by `contest`), keeps what gains beyond luck
(`choice`), and fits mixes and rules for every prefix of the running order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.choice import Choice, Step, choose_strategies
from kaggle_kit.blending.costs import Costs
from kaggle_kit.blending.diversity import Diversity, measure_diversity
from kaggle_kit.blending.frontier import FrontierPoint, SubsetScores, find_frontier, point_within, running_order
from kaggle_kit.blending.pool import Pool, make_pool
from kaggle_kit.blending.prefixes import (
    Decided,
    Shortfall,
    decide_pool,
    fit_prefixes,
    helpful_runs,
    make_fitters,
    measure_shortfall,
    reorder_mix,
)
from kaggle_kit.blending.strategies import HeadFitter, Strategy, is_large
from kaggle_kit.decision_fitting import RULES, FittedDecision, FittedRule
from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import SettingError, some_of
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import gain
from kaggle_kit.mixes import Mix, Table
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.scores import DRAWS, Score, SplitScore, score_answers, score_split
from kaggle_kit.shift_effect import ShiftEffect, prior_shift_effect
from kaggle_kit.task import refuse_multilabel

_FOR_BUDGET = (
    "they do not fit the budget with the others, which were picked on the images that score them here, and that "
    "flatters a little"
)
_HARMFUL = "the others score better without, beyond luck"
_NEEDLESS = "the others score as well without (a tie, which fewer runs win)"
_FEW_RUNS, _FEW_SUBSETS = 8, 256  # looked at for the frontier of a large pool


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long the blend may take in the kernel: so many hours for so many images."""

    hours: float
    images: int

    def __post_init__(self) -> None:
        if not 0 < self.hours < np.inf or self.images < 1:
            raise SettingError(
                f"a budget of {self.hours} hours for {self.images:,} images; give hours above 0 and at least 1 image"
            )

    @property
    def seconds(self) -> float:
        """For an image."""
        return self.hours * 3600 / self.images


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The best run alone, decided as it would be, which a blend has to beat.

    Attributes:
        run: Its name.
        score: Of rules that were fitted to it, each image decided by rules fitted without its fold.
        shortfall: By how much that is below the blend.
    """

    run: str
    score: Score
    shortfall: Shortfall


@dataclass(frozen=True, kw_only=True)
class FittedBlend:
    """A blend, and how it was found.

    Attributes:
        blend: What goes into the bundle.
        oof: Out-of-fold predictions, each image mixed by what was fitted without its fold.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1} of the same images.
        priors: {head: (C,) shares of the classes among the labelled images}.
        scores: Of the highest probability (multi-label: of 0.5), on seen and unseen combinations apart.
        fitted: What rules were tried; None when none were.
        pool: The runs that were blended: those given, but for what was left out.
        alone: {run: score by the highest probability, on the pool's images} of all runs that were given.
        rival: The best of these alone.
        choice: What was tried for each head, with all runs that fit the budget, and what is used.
        shortfalls: How far each prefix of the blend but the whole falls short of it.
        frontier: The best equal means for the time they take, of all runs given.
        costs: What a run takes; None where that is not known.
        diversity: How the blend's runs differ; None until `with_diversity`.
        notes: Sentences on what a person should know.
    """

    blend: Blend
    oof: Predictions
    truth: Classes
    priors: dict[str, npt.NDArray[np.float64]]
    scores: SplitScore
    fitted: FittedDecision | None
    pool: Pool
    alone: dict[str, float]
    rival: Rival
    choice: Choice
    shortfalls: tuple[Shortfall, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    costs: Costs | None = None
    diversity: Diversity | None = None
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was tried, head by head."""
        return self.choice.steps


def fit_blend(
    runs: Sequence[Run],
    *,
    fit_rules: bool = True,
    prior_shift: bool = False,
    strategies: Sequence[Strategy] | None = None,
    budget: Budget | None = None,
    costs: Costs | None = None,
    common_only: bool = False,
    pool: Pool | None = None,
) -> FittedBlend:
    """Choose how to blend runs, and fit the rules that decide to the task's metric.

    Args:
        runs: Finished runs of one task, on the same labels.
        fit_rules: Whether rules are tried; without, the highest probability decides.
        prior_shift: Whether the kernel shall correct for the test's class shares.
        strategies: What to try, the simplest first; None: all that the size allows, and then runs are left out
            without which the others score as well.
        budget: Leaves out runs that do not fit it together; needs costs.
        costs: What each run takes.
        common_only: Whether images that some run lacks are left out, rather than refused.
        pool: What `make_pool` makes of the runs, where that is done already.

    Raises:
        SettingError: When no runs are given, two have the same name or different tasks, a budget is given without
            costs or fits no run, or class shares are to be corrected for and a head is multi-label.
        DataError: When runs were trained on folds that do not go together, or the labels have changed since.
        PredictionError: When runs predict different images or classes.
    """
    pool = pool or make_pool(runs, common_only=common_only)
    if prior_shift:
        refuse_multilabel(pool.task, "correcting for class shares", "leave --prior-shift out")
    found = blend_pool(pool, fit_rules=fit_rules, strategies=strategies, budget=budget, costs=costs)
    hashes = {run.name: file_sha256(run.oof_file) for run in runs if run.name in found.blend.runs}
    blend = dataclasses.replace(found.blend, prior_shift=prior_shift, oof_hashes=hashes)
    return dataclasses.replace(found, blend=blend)


def blend_pool(
    pool: Pool,
    *,
    fit_rules: bool = True,
    strategies: Sequence[Strategy] | None = None,
    budget: Budget | None = None,
    costs: Costs | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> FittedBlend:
    """Choose how to blend a pool's runs; as `fit_blend`, for predictions that come from anywhere.

    Args:
        pool: From `join_predictions` or `make_pool`.
        fit_rules: Whether rules that decide are tried.
        strategies: What to try, the simplest first; None: all that the size allows, and then runs are left out
            without which the others score as well.
        budget: Leaves out runs that do not fit it together; needs costs.
        costs: What each run takes.
        draws: Resamples of the images for the intervals.
        seed: Of the resamples.

    Raises:
        SettingError: When a budget is given without costs, or fits no run.
    """
    wanted = _Wanted(fit_rules=fit_rules, costs=costs, draws=draws, seed=seed)
    runs = given = _Contenders.of(pool)
    most = {"exhaustive_runs": _FEW_RUNS, "most_subsets": _FEW_SUBSETS} if is_large(pool) else {}
    frontier = tuple(find_frontier(pool.names, wanted.seconds(pool.names), runs.subsets, **most))
    notes: list[str] = []
    if budget is not None:
        runs = runs.only(_fitting(pool.names, frontier, wanted, budget), notes, _FOR_BUDGET)
    choice = choose_strategies(
        runs.pool, runs.fitters, fit_rules=fit_rules, strategies=strategies, draws=draws, seed=seed
    )
    if strategies is None and not is_large(pool):
        rules = wanted.rules if choice.by_rules else ()
        runs = runs.only(helpful_runs(runs.pool, choice.strategies, rules=rules), notes, _HARMFUL)
    found = _fit(runs, given, choice, wanted)
    enough = next((count for count, one in enumerate(found.shortfalls, start=1) if one.is_tie), 0)
    if strategies is None and enough:
        runs = runs.only(found.blend.runs[:enough], notes, _NEEDLESS)
        found = _fit(runs, given, choice, wanted)
    return dataclasses.replace(found, frontier=frontier, notes=(*pool.notes, *notes))


@dataclass(frozen=True, kw_only=True)
class _Contenders:
    """The runs that may take part, and what mixes and scores them."""

    pool: Pool
    fitters: dict[str, HeadFitter]
    subsets: SubsetScores

    @classmethod
    def of(cls, pool: Pool) -> _Contenders:
        fitters = make_fitters(pool)
        subsets = SubsetScores.of(pool, {head: fitter.contest() for head, fitter in fitters.items()})
        return cls(pool=pool, fitters=fitters, subsets=subsets)

    def only(self, names: Sequence[str], notes: list[str], why: str) -> _Contenders:
        """Return just these, and note who is left out and why."""
        left = [name for name in self.pool.names if name not in names]
        if not left:
            return self
        notes.append(f"left out: {', '.join(left)}; {why}")
        some = self.pool.of(names)
        subsets = self.subsets.among([self.pool.names.index(name) for name in names])
        return _Contenders(pool=some, fitters=make_fitters(some), subsets=subsets)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """How a pool is to be blended, whichever of its runs take part; as `blend_pool` takes it."""

    fit_rules: bool
    costs: Costs | None
    draws: int
    seed: int

    @property
    def rules(self) -> tuple[FittedRule, ...]:
        """What rules that decide are tried."""
        return RULES if self.fit_rules else ()

    def seconds(self, names: Sequence[str]) -> dict[str, float] | None:
        """Return {run: seconds an image takes} of these runs, where that is known.

        Raises:
            SettingError: When it is known of some and not of all.
        """
        if self.costs is None:
            return None
        absent = [name for name in names if name not in self.costs.seconds]
        if absent:
            raise SettingError(
                f"the costs are of {some_of(self.costs.seconds)}, and not of run {absent[0]!r}; measure it too"
            )
        return {name: self.costs.seconds[name] for name in names}


def _fit(runs: _Contenders, given: _Contenders, choice: Choice, wanted: _Wanted) -> FittedBlend:
    """Fit what was chosen to all these runs, put those that count in running order, and fit every prefix of it."""
    pool = runs.pool
    whole = decide_pool(pool, runs.fitters, choice.strategies, rules=wanted.rules, draws=wanted.draws, seed=wanted.seed)
    order = _order(runs, whole.mixes, wanted)
    light = wanted.rules[:1] if is_large(pool) else wanted.rules
    prefixes, shortfalls = fit_prefixes(pool.of(order), choice.strategies, whole, rules=light)
    mixes = {head: reorder_mix(mix, pool.names, order) for head, mix in whole.mixes.items()}
    blend = Blend(
        runs=order,
        prefixes=(*prefixes, dataclasses.replace(whole.prefix(), heads=mixes)),
        seconds=wanted.seconds(order) or {},
        seconds_on=wanted.costs.device if wanted.costs else "",
        ranks=_rank_tables(runs, mixes, order),
        num_images=len(pool),
        classes={name: head.class_names for name, head in pool.task.heads.items()},
    )
    alone = {name: score_answers(pool.task, pool.truth, given.pool.run(name)).total for name in given.pool.names}
    return FittedBlend(
        blend=blend,
        oof=Predictions(ids=pool.ids, probs=whole.nested, multilabel=pool.task.multilabel_heads),
        truth=pool.truth,
        priors=pool.priors,
        scores=score_split(pool.task, pool.truth, whole.nested, pool.unseen, draws=wanted.draws, groups=pool.groups),
        fitted=whole.fitted,
        pool=pool,
        alone=alone,
        rival=_rival(given.pool, alone, whole, wanted),
        choice=choice,
        shortfalls=shortfalls,
        costs=wanted.costs,
    )


def _rival(given: Pool, alone: Mapping[str, float], whole: Decided, wanted: _Wanted) -> Rival:
    best = max(alone, key=lambda name: gain(given.task.metric, alone[name], 0.0))
    pool = given.of([best])
    means: dict[str, Strategy] = dict.fromkeys(pool.task.heads, "mean")
    decided = decide_pool(pool, make_fitters(pool), means, rules=wanted.rules)
    shortfall = measure_shortfall(pool, whole.answers, decided.answers)
    return Rival(run=best, score=decided.score, shortfall=shortfall)


def with_diversity(found: FittedBlend) -> FittedBlend:
    """Return a fitted blend that knows how its runs differ and what dropping each one costs."""
    pool = found.pool.of(found.blend.runs)

    def without(names: tuple[str, ...]) -> Probs:
        fitters = make_fitters(pool.of(names))
        return {head: fitter.nested(found.choice.strategies[head]) for head, fitter in fitters.items()}

    diversity = measure_diversity(pool, answers=found.oof.probs, without=without, seconds=found.blend.seconds or None)
    return dataclasses.replace(found, diversity=diversity)


def foresee_prior_shift(found: FittedBlend) -> list[ShiftEffect]:
    """Return what correcting for class shares does to the blend's out-of-fold predictions, drawn in several ways."""
    return prior_shift_effect(found.pool.task, found.truth, found.oof.probs, found.priors, found.blend.decision)


def _fitting(
    names: tuple[str, ...], frontier: Sequence[FrontierPoint], wanted: _Wanted, budget: Budget
) -> tuple[str, ...]:
    """Return the runs that may take part: all where they fit together, else those whose mean scores best."""
    seconds = wanted.seconds(names)
    if seconds is None:
        raise SettingError("a budget needs to know what runs cost; measure them, or give a file with --costs")
    if sum(seconds.values()) <= budget.seconds:
        return names
    return point_within(frontier, budget.seconds, num_images=budget.images).runs


def _order(runs: _Contenders, mixes: Mapping[str, Mix], wanted: _Wanted) -> tuple[str, ...]:
    """Return the runs that count in some head, in running order."""
    names = runs.pool.names
    counts = np.any([mix.weights or (1.0,) * len(names) for mix in mixes.values()], axis=0)
    used = np.flatnonzero(counts).tolist()
    some = [names[run] for run in used]
    return running_order(some, wanted.seconds(some), runs.subsets.among(used))


def _rank_tables(runs: _Contenders, mixes: Mapping[str, Mix], order: tuple[str, ...]) -> dict[str, dict[str, Table]]:
    by_rank = {head: runs.fitters[head].ranks() for head, mix in mixes.items() if mix.kind == "rank"}
    names = runs.pool.names
    return {head: {name: Table.of(tables[names.index(name)]) for name in order} for head, tables in by_rank.items()}
