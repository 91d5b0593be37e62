"""Decision rules fitted to the task's metric on out-of-fold predictions, and kept only where they help beyond luck.

Every rule is tried the way it would be used: fitted without a fold's images, then applied to them. Over resamples of
the images, the middle 95 % of the gain of these nested decisions must lie above 0; else the highest probability
decides. That bounds luck and does not exclude it. Each rule of each head is judged by itself: of 400 heads with 200
images each on which no rule could help, one was kept for 3 % where the probabilities were right, and for 4 to 8 % where
they were noise. Nor is everything nested: the choice between two rules that pass is made on the rows that score it
(`class_bias` must be better than `prior_power` beyond luck), and the class counts that `prior_power` uses hold the
labels of the held fold too, so that of its power alone it is asked whether it suits unseen images. Multi-label heads
have thresholds for a rule; none is fitted to macro recall, which is highest where every class is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import HALF, Decision, HeadRule
from kaggle_kit.decision_search import Floats, Ints, Mask, bias_fitter, power_fitter
from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import (
    DRAWS,
    Answers,
    Score,
    bootstrap_ways,
    metric_value,
    score_answers,
    widest_part,
    with_intervals,
)
from kaggle_kit.task import Metric, Task
from kaggle_kit.threshold_search import FITTABLE, threshold_fitter

FittedRule = Literal["prior_power", "class_bias", "thresholds"]
Counts = Mapping[str, npt.NDArray[Any]]
Interval = tuple[float, float]

RULES: tuple[FittedRule, ...] = ("prior_power", "class_bias")  # in the order of choice: the simpler one first
_NUM_PARTS = 5  # where all images come from one fold


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A rule that was tried for one head.

    Attributes:
        head: The head's name.
        rule: As fitted on all rows.
        in_sample_gain: Of that rule, on the rows it was fitted on, over the highest probability; it flatters.
        nested_gain: Of rules fitted without the rows they decide.
        interval: Of the nested gain: the middle 95 % of resamples of the images; of few groups the widest of
            resampled groups and images.
        kept: Whether the decision uses it.
        why: The reason, in a few words.
    """

    head: str
    rule: HeadRule
    in_sample_gain: float
    nested_gain: float
    interval: Interval
    kept: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class FittedDecision:
    """The decision to use, and what it is worth.

    Attributes:
        decision: Fitted on all rows; names every head.
        metric: What it was fitted for.
        candidates: What was tried; empty where nothing could be.
        nested: Score of the chosen rules, each row decided by rules fitted without its fold.
        argmax: Score when the highest probability decides. For a metric of probabilities both are the score of the
            probabilities, without intervals.
        note: Why nothing was tried; empty when something was.
        decided: {head: (N,) class indices, or (N, C) of 0 and 1}: the decisions that `nested` scores, in the order of
            the rows given.
    """

    decision: Decision
    metric: Metric
    candidates: tuple[Candidate, ...]
    nested: Score
    argmax: Score
    note: str = ""
    decided: Classes = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A rule fitted on all rows, and (N,) decisions, or (N, C) of a multi-label head.

    They are the rule's own, those of rules fitted without the row's fold, and those where nothing was fitted.
    """

    rule: HeadRule
    own: npt.NDArray[Any]
    nested: npt.NDArray[Any]
    plain: npt.NDArray[Any]


Trials = dict[str, dict[FittedRule, _Trial]]  # {head: {rule: trial}}


def fit_decision(
    task: Task,
    truth: Classes,
    probs: Answers,
    folds: Ints,
    *,
    counts: Counts,
    groups: Ints | None = None,
    rules: Sequence[FittedRule] = RULES,
    draws: int = DRAWS,
    seed: int = 0,
) -> FittedDecision:
    """Fit rules to each head and keep those that help beyond luck.

    Args:
        task: Gives the metric, and the heads' weights for the total; as that is a mean, each head is fitted alone.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}.
        probs: {head: (N, C) out-of-fold probabilities}, rows in the same order.
        folds: (N,) the fold each row was held out in. Where it is the same for all, random fifths take its place.
        counts: {head: (C,) images of each class in train}. They are used as given for every fold, so they hold the
            labels of the held rows too.
        groups: (N,) numbers; images of one group, such as a writer's or equal ones, are drawn and parted together.
            None: every image by itself, which makes intervals too narrow where images belong together. So do groups
            that are few: below 20, a rule must gain beyond luck over resampled images as well.
        rules: What to try on heads that are not multi-label, the simpler one first.
        draws: Resamples of the images, or of the groups, for the intervals.
        seed: Of the resamples and of the random fifths.

    Raises:
        DataError: When labels, counts or groups are missing, or do not fit the rows and classes.
        PredictionError: When probabilities are missing, not finite or of another shape.
    """
    _check(task, truth, probs, folds, counts)
    _check_groups(groups, len(folds))
    plain = Decision.plain(task).decide({name: probs[name] for name in task.heads})
    if task.metric in PROBABILITY_METRICS:
        return _nothing_to_fit(task, score_answers(task, truth, probs), plain)
    spread = {name: classes if classes.ndim == 1 else classes.sum(axis=1) for name, classes in truth.items()}
    parts = {name: nested_parts(folds, spread[name], groups=groups, seed=seed) for name in task.heads}
    trials = _try_rules(task, truth, probs, parts, counts, rules)
    # a head of fewer rules has its last one tried again, which is then no better than itself
    tried = {head: [trial.nested for trial in of_head.values()] for head, of_head in trials.items()}
    answers = [plain, *(plain | {h: own[min(n, len(own) - 1)] for h, own in tried.items()} for n in range(len(rules)))]
    ways = bootstrap_ways(task, truth, answers, draws=draws, seed=seed, groups=groups)  # (draws, 1 + rules, heads) each
    return _choose(task, truth, trials, answers, ways)


def format_decision(fitted: FittedDecision) -> list[str]:
    """Return a table, one row a head and rule, and a closing sentence that says what to do."""
    width = max([8, *(len(candidate.head) for candidate in fitted.candidates)])
    lines = [f"{'head':<{width}}  {'rule':<11}  {'in sample':>9}  {'nested':>9}  {'95 % interval':>18}  use it?"]
    for one in fitted.candidates:
        interval = "{:+.4f} to {:+.4f}".format(*one.interval)
        gains = f"{one.in_sample_gain:>+9.4f}  {one.nested_gain:>+9.4f}  {interval:>18}"
        lines.append(f"{one.head:<{width}}  {one.rule.rule:<11}  {gains}  {'yes' if one.kept else 'no'}: {one.why}")
    kept = [one.head for one in fitted.candidates if one.kept]
    if fitted.note:
        return [f"{fitted.note}; submit the probabilities' highest class, or the probabilities, as the form asks"]
    if not kept:
        return [
            *lines,
            f"no rule helps beyond luck: let {_unfitted(fitted)} decide; {fitted.metric} {fitted.argmax}",
        ]
    return [
        *lines,
        f"use the fitted decision (a rule for {', '.join(kept)}): {fitted.metric} {fitted.nested}, where "
        f"{_unfitted(fitted)} alone gets {fitted.argmax}",
    ]


def _unfitted(fitted: FittedDecision) -> str:
    """Return what decides where nothing was fitted."""
    many = {rule.rule == "thresholds" for rule in fitted.decision.heads.values()}
    return " or ".join(["the highest probability"] * (False in many) + [f"a threshold of {HALF}"] * (True in many))


def _nothing_to_fit(task: Task, score: Score, decided: Classes) -> FittedDecision:
    return FittedDecision(
        decision=Decision.plain(task),
        metric=task.metric,
        candidates=(),
        nested=score,
        argmax=score,
        note=f"metric {task.metric} scores the probabilities themselves: there is no decision to fit",
        decided=decided,
    )


def _try_rules(
    task: Task,
    truth: Classes,
    probs: Answers,
    parts: Mapping[str, Ints],
    counts: Counts,
    wanted: Sequence[FittedRule],
) -> Trials:
    """Return the trials of the heads whose truth has several classes; `parts` are what a fit is nested in."""
    fitted = {name: _rules_of(task, name, wanted) for name in task.heads if len(np.unique(truth[name])) > 1}
    fits = sum(len(rules) * (1 + len(np.unique(parts[head]))) for head, rules in fitted.items())
    trials: Trials = {}
    with progress_bar(fits, "fitting the decision", unit="fit") as bar:
        for head, rules in fitted.items():
            own = {rule: _fitter(rule, task.metric, truth[head], probs[head], counts[head]) for rule in rules}
            plain = Decision.plain(task).heads[head].decide(probs[head])
            if rules:
                trials[head] = {rule: _try_rule(fit, probs[head], plain, parts[head], bar) for rule, fit in own.items()}
    return trials


def _rules_of(task: Task, head: str, wanted: Sequence[FittedRule]) -> tuple[FittedRule, ...]:
    """Return the rules that can be tried for a head, in the order of choice."""
    if task.heads[head].kind != "multilabel":
        return tuple(wanted)
    return ("thresholds",) if task.metric in FITTABLE else ()


def _fitter(
    rule: FittedRule, metric: Metric, truth: npt.NDArray[Any], probs: npt.NDArray[Any], counts: npt.NDArray[Any]
) -> Callable[[Mask], HeadRule]:
    if rule == "thresholds":
        return threshold_fitter(metric, truth, probs)
    return power_fitter(metric, truth, probs, counts) if rule == "prior_power" else bias_fitter(metric, truth, probs)


def _try_rule(
    fit: Callable[[Mask], HeadRule], probs: npt.NDArray[Any], plain: npt.NDArray[Any], parts: Ints, bar: Any
) -> _Trial:
    nested = np.empty_like(plain)
    for part in np.unique(parts):
        held = parts == part
        nested[held] = fit(~held).decide(probs[held])
        bar.update()
    rule = fit(np.ones(len(probs), bool))
    bar.update()
    return _Trial(rule=rule, own=rule.decide(probs), nested=nested, plain=plain)


def nested_parts(folds: Ints, truth: Ints, *, groups: Ints | None = None, seed: int) -> Ints:
    """Return (N,) parts to hold out one after the other: the folds, or where there is one only, random fifths.

    Args:
        folds: (N,) the fold each row was held out in.
        truth: (N,) class indices; random fifths get about equally many rows of each.
        groups: (N,) numbers; random fifths keep the rows of one together. None: every row by itself.
        seed: Of the random fifths.
    """
    if len(np.unique(folds)) > 1:
        return folds
    shuffled = np.random.default_rng(seed).permutation(len(truth))
    _, group = np.unique(np.arange(len(truth)) if groups is None else groups, return_inverse=True)
    firsts = shuffled[np.sort(np.unique(group[shuffled], return_index=True)[1])]  # a random row of each group
    parts = np.empty(len(firsts), np.int64)
    parts[group[firsts[np.argsort(truth[firsts], kind="stable")]]] = np.arange(len(firsts)) % _NUM_PARTS
    return parts[group]


def _choose(task: Task, truth: Classes, trials: Trials, answers: list[Classes], ways: list[Floats]) -> FittedDecision:
    """Return the decision that (draws, 1 + rules, heads) scores speak for, whichever way images were resampled."""
    candidates, picks = [], []
    for column, head in enumerate(task.heads):
        own = [drawn[:, :, column] for drawn in ways]
        picks.append(_pick(own) if head in trials else 0)
        if head in trials:
            candidates += _candidates(task, head, truth[head], trials[head], own, picks[-1])
    chosen = {head: answers[pick][head] for head, pick in zip(task.heads, picks, strict=True)}
    rules = Decision.plain(task).heads | {one.head: one.rule for one in candidates if one.kept}
    return FittedDecision(
        decision=Decision(heads=rules),
        metric=task.metric,
        candidates=tuple(candidates),
        nested=_score(task, truth, chosen, ways[0][:, picks, np.arange(len(picks))]),
        argmax=_score(task, truth, answers[0], ways[0][:, 0]),
        note="" if trials else _why_nothing(task),
        decided=chosen,
    )


def _why_nothing(task: Task) -> str:
    if task.multilabel_heads and task.metric not in FITTABLE:
        return f"{task.metric} of a multi-label head is highest where every class is said: there is no threshold to fit"
    return "each head has a single class among these images: there is no decision to fit"


def _pick(ways: list[Floats]) -> int:
    """Return the column of (draws, 1 + rules) to use: the last one better beyond luck than 0 and the one before."""
    picked = 0
    for column in range(1, ways[0].shape[1]):
        better = widest_part([drawn[:, [column]] - drawn[:, [0, picked]] for drawn in ways])
        if all(low > 0 for low, _ in better):
            picked = column
    return picked


def _candidates(
    task: Task, head: str, truth: npt.NDArray[Any], trials: dict[FittedRule, _Trial], ways: list[Floats], picked: int
) -> list[Candidate]:
    """Return what became of each trial of a head."""

    def measure(decided: npt.NDArray[Any]) -> float:
        return metric_value(task.metric, truth, decided, task.heads[head].num_classes)

    found = []
    for column, trial in enumerate(trials.values(), start=1):
        (interval,) = widest_part([drawn[:, [column]] - drawn[:, [0]] for drawn in ways])
        found.append(
            Candidate(
                head=head,
                rule=trial.rule,
                in_sample_gain=measure(trial.own) - measure(trial.plain),
                nested_gain=measure(trial.nested) - measure(trial.plain),
                interval=interval,
                kept=column == picked,
                why=_why(trial, column, picked, interval),
            )
        )
    return found


def _why(trial: _Trial, column: int, picked: int, interval: Interval) -> str:
    if column == picked:
        return "better beyond luck"
    if interval[0] > 0:
        other = RULES[picked - 1]  # of several rules, which are all of them
        return f"{other} is simpler, and as good within luck" if picked < column else f"{other} is better beyond luck"
    if (trial.own == trial.plain).all() and (trial.nested == trial.plain).all():
        return "changes nothing"
    return "worse" if interval[1] < 0 else "may be luck"


def _score(task: Task, truth: Classes, answers: Classes, drawn: Floats) -> Score:
    """Score answers, with intervals from (draws, heads) values that were drawn already."""
    drawn = np.ascontiguousarray(drawn)  # sums are rounded by the order in memory
    return with_intervals(score_answers(task, truth, answers), drawn, task)


def _check(task: Task, truth: Classes, probs: Answers, folds: Ints, counts: Counts) -> None:
    for name, head in task.heads.items():
        for what, values in (("truth", truth), ("probs", probs), ("counts", counts)):
            if name not in values:
                error = PredictionError if what == "probs" else DataError
                raise error(f"head {name!r} has no {what} (found: {', '.join(values)}); give them for every head")
        size, rows = head.num_classes, len(folds)
        _check_values(name, probs[name], (rows, size))
        labels, sizes = truth[name], counts[name]
        shape, highest = ((rows, size), 1) if head.kind == "multilabel" else ((rows,), size - 1)
        if labels.shape != shape or not rows or not (labels.min() >= 0 and labels.max() <= highest):
            span = f", from {labels.min()} to {labels.max()}" if labels.size else ""
            what = "of 0 and 1" if head.kind == "multilabel" else f"class indices from 0 to {highest}"
            raise DataError(
                f"head {name!r}: truth has shape {labels.shape}{span}; expected {shape} {what}, one for each row of "
                "`folds`"
            )
        if sizes.shape != (size,) or sizes.min() < 0 or not sizes.sum() > 0:
            raise DataError(
                f"head {name!r}: counts have shape {sizes.shape} and sum {sizes.sum()}; expected ({size},) numbers of "
                "train images, not all 0"
            )


def _check_values(head: str, probs: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if probs.shape != shape:
        raise PredictionError(
            f"head {head!r}: probs have shape {probs.shape}; expected {shape}: pass one row for each row of `folds`, "
            "one column for each class of the head"
        )
    wrong = ~np.isfinite(probs.min(axis=1)) | ~np.isfinite(probs.max(axis=1)) | (probs.min(axis=1) < 0)
    if wrong.any():
        raise PredictionError(
            f"head {head!r}: probs of {int(wrong.sum()):,} of {len(probs):,} rows are NaN, infinite or below 0 (first: "
            f"row {int(np.argmax(wrong))}); pass the probabilities of the images that were predicted"
        )


def _check_groups(groups: Ints | None, rows: int) -> None:
    if groups is None:
        return
    found = len(np.unique(groups))
    if groups.shape != (rows,) or found < 2:
        raise DataError(
            f"groups have shape {groups.shape} and {found} different number(s); expected ({rows},), at least 2 of them "
            "different: leave `groups` out where images are independent"
        )
