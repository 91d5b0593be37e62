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
from kaggle_kit.blending.prefixes import Shortfall, decide_nested, fit_prefixes, reorder_mix
from kaggle_kit.blending.strategies import HeadFitter, Strategy, is_large
from kaggle_kit.decision_fitting import FittedDecision
from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import SettingError
from kaggle_kit.labels import Classes
from kaggle_kit.mixes import Mix, Table
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.scores import DRAWS, SplitScore, score_split
from kaggle_kit.shift_effect import ShiftEffect, prior_shift_effect
from kaggle_kit.task import refuse_multilabel

_PREFIX_DRAWS = 200
_TIE = 5e-4  # scores closer than this, and within luck, are equal
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
        choice: What was tried for each head, and what is used.
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
) -> FittedBlend:
    """Choose how to blend runs, and fit the rules that decide to the task's metric.

    Args:
        runs: Finished runs of one task, on the same labels.
        fit_rules: Whether rules are tried; without, the highest probability decides.
        prior_shift: Whether the kernel shall correct for the test's class shares.
        strategies: What to try, the simplest first; None: all that the size allows, and then runs are left out
            without which the blend scores no less.
        budget: Leaves out runs that do not fit it together; needs costs.
        costs: What each run takes.
        common_only: Whether images that some run lacks are left out, rather than refused.

    Raises:
        SettingError: When no runs are given, two have the same name or different tasks, a budget is given without
            costs or fits no run, or class shares are to be corrected for and a head is multi-label.
        DataError: When runs were trained on folds that do not go together, or the labels have changed since.
        PredictionError: When runs predict different images or classes.
    """
    pool = make_pool(runs, common_only=common_only)
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
            without which the blend scores no less.
        budget: Leaves out runs that do not fit it together; needs costs.
        costs: What each run takes.
        draws: Resamples of the images for the intervals.
        seed: Of the resamples.

    Raises:
        SettingError: When a budget is given without costs, or fits no run.
    """
    wanted = _Wanted(fit_rules=fit_rules, strategies=strategies, costs=costs, draws=draws, seed=seed)
    fitters = _fitters(pool)
    subsets = _subset_scores(pool, fitters)
    most = {"exhaustive_runs": _FEW_RUNS, "most_subsets": _FEW_SUBSETS} if is_large(pool) else {}
    frontier = tuple(find_frontier(pool.names, wanted.seconds(pool.names), subsets, **most))
    notes, fitting = pool.notes, pool.names if budget is None else _fitting(pool.names, frontier, wanted, budget)
    if len(fitting) < len(pool.names):
        notes += (_left_out(pool.names, fitting),)
        pool, fitters, subsets = _narrowed(pool, subsets, fitting)
    found = _fit(pool, fitters, subsets, wanted)
    while strategies is None and (enough := _enough(found.shortfalls)):
        some = found.blend.runs[:enough]
        more = ", ".join(name for name in found.blend.runs if name not in some)
        notes += (f"left out: {more}; the others score no less without",)
        pool, fitters, subsets = _narrowed(pool, subsets, some)
        found = _fit(pool, fitters, subsets, wanted)
    return dataclasses.replace(found, frontier=frontier, notes=notes)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """How a pool is to be blended, whichever of its runs take part; as `blend_pool` takes it."""

    fit_rules: bool
    strategies: Sequence[Strategy] | None
    costs: Costs | None
    draws: int
    seed: int

    def seconds(self, names: Sequence[str]) -> dict[str, float] | None:
        """Return {run: seconds an image takes} of these runs, in this order, where that is known."""
        return None if self.costs is None else {name: self.costs.seconds[name] for name in names}


def _fit(pool: Pool, fitters: Mapping[str, HeadFitter], subsets: SubsetScores, wanted: _Wanted) -> FittedBlend:
    """Choose a strategy a head and the running order, and fit mixes and rules to every prefix of it."""
    choice = choose_strategies(
        pool,
        fitters,
        fit_rules=wanted.fit_rules,
        strategies=wanted.strategies,
        draws=wanted.draws,
        seed=wanted.seed,
    )
    mixes = {head: fitter.fit(choice.strategies[head]) for head, fitter in fitters.items()}
    order = _order(pool, subsets, mixes, wanted)
    nested = {head: fitter.nested(choice.strategies[head]) for head, fitter in fitters.items()}
    whole = decide_nested(pool, nested, fit_rules=wanted.fit_rules, draws=wanted.draws, seed=wanted.seed)
    prefixes, shortfalls = fit_prefixes(pool.of(order), choice.strategies, whole.answers, fit_rules=wanted.fit_rules)
    mixes = {head: reorder_mix(mix, pool.names, order) for head, mix in mixes.items()}
    blend = Blend(
        runs=order,
        prefixes=(*prefixes, dataclasses.replace(whole.prefix, heads=mixes)),
        seconds=wanted.seconds(order) or {},
        seconds_on=wanted.costs.device if wanted.costs else "",
        ranks=_rank_tables(pool, fitters, mixes, order),
    )
    return FittedBlend(
        blend=blend,
        oof=Predictions(ids=pool.ids, probs=nested, multilabel=pool.task.multilabel_heads),
        truth=pool.truth,
        priors=pool.priors,
        scores=score_split(pool.task, pool.truth, nested, pool.unseen, draws=wanted.draws, groups=pool.groups),
        fitted=whole.fitted,
        pool=pool,
        choice=choice,
        shortfalls=shortfalls,
        costs=wanted.costs,
    )


def _enough(shortfalls: Sequence[Shortfall]) -> int:
    """Return after how many runs nothing more is gained; 0: all of them are needed."""
    idle = [one.value <= 0 or (one.value < _TIE and one.may_be_luck) for one in shortfalls]
    return idle.index(True) + 1 if True in idle else 0


def _narrowed(
    pool: Pool, subsets: SubsetScores, names: Sequence[str]
) -> tuple[Pool, dict[str, HeadFitter], SubsetScores]:
    """Return what is needed to blend some of a pool's runs, in this order."""
    some = pool.of(names)
    return some, _fitters(some), subsets.among([pool.names.index(name) for name in names])


def with_diversity(found: FittedBlend) -> FittedBlend:
    """Return a fitted blend that knows how its runs differ and what dropping each one costs."""
    pool = found.pool.of(found.blend.runs)

    def without(names: tuple[str, ...]) -> Probs:
        return _nested(pool.of(names), found.choice.strategies)

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


def _left_out(names: tuple[str, ...], fitting: tuple[str, ...]) -> str:
    left = [name for name in names if name not in fitting]
    return (
        f"left out for the budget: {', '.join(left)}; the others were picked on the images that score them here, which "
        "flatters a little (`nested` in the table of subsets does not)"
    )


def _fitters(pool: Pool) -> dict[str, HeadFitter]:
    return {head: HeadFitter(pool, head) for head in pool.task.heads}


def _subset_scores(pool: Pool, fitters: Mapping[str, HeadFitter]) -> SubsetScores:
    return SubsetScores.of(pool, {head: fitter.contest() for head, fitter in fitters.items()})


def _order(pool: Pool, subsets: SubsetScores, mixes: Mapping[str, Mix], wanted: _Wanted) -> tuple[str, ...]:
    """Return the runs that count in some head, in running order."""
    counts = np.any([mix.weights or (1.0,) * len(pool.names) for mix in mixes.values()], axis=0)
    used = np.flatnonzero(counts).tolist()
    names = [pool.names[run] for run in used]
    return running_order(names, wanted.seconds(names), subsets.among(used))


def _nested(pool: Pool, strategies: Mapping[str, Strategy]) -> Probs:
    return {head: fitter.nested(strategies[head]) for head, fitter in _fitters(pool).items()}


def _rank_tables(
    pool: Pool, fitters: Mapping[str, HeadFitter], mixes: Mapping[str, Mix], order: tuple[str, ...]
) -> dict[str, dict[str, Table]]:
    by_rank = {head: fitters[head].ranks() for head, mix in mixes.items() if mix.kind == "rank"}
    return {
        head: {name: Table.of(tables[pool.names.index(name)]) for name in order} for head, tables in by_rank.items()
    }
