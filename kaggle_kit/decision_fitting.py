"""Decision rules fitted to the task's metric on out-of-fold predictions, and kept only where they help beyond luck.

Every rule is tried the way it would be used: fitted without a fold's images, then applied to them. Over resamples of
the images, the middle 95 % of the gain of these nested decisions must lie above 0; else the highest probability
decides. The choice among the rules that pass is not nested itself: there are two, and the bar is high.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import Decision, HeadRule, decide_many
from kaggle_kit.decision_search import Floats, Ints, ManyMetric, Mask, best_thresholds, bias_fitter, power_fitter
from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import DRAWS, Answers, Score, bootstrap_heads, metric_value, middle_part, score_answers
from kaggle_kit.task import Metric, Task

RULES: tuple[Literal["prior_power", "class_bias"], ...] = ("prior_power", "class_bias")  # the simpler one first
_NUM_PARTS = 5  # where all images come from one fold
_NUM_BLOCKS = 1000  # of random rows, resampled instead of rows where there are more

Counts = Mapping[str, npt.NDArray[Any]]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A rule that was tried for one head.

    Attributes:
        head: The head's name.
        rule: As fitted on all rows.
        in_sample_gain: Of that rule, on the rows it was fitted on, over the highest probability; it flatters.
        nested_gain: Of rules fitted without the rows they decide.
        interval: Of the nested gain: the middle 95 % of resamples of the images.
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
        decided: {head: (N,) class indices}: the decisions that `nested` scores, in the order of the rows given.
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
    """A rule fitted on all rows, and (N,) decisions.

    They are the rule's own, those of rules fitted without the row's fold, and those by the highest probability.
    """

    rule: HeadRule
    own: Ints
    nested: Ints
    plain: Ints


def fit_decision(
    task: Task, truth: Classes, probs: Answers, folds: Ints, *, counts: Counts, draws: int = DRAWS, seed: int = 0
) -> FittedDecision:
    """Fit rules to each head and keep those that help beyond luck.

    Args:
        task: Gives the metric, and the heads' weights for the total; as that is a mean, each head is fitted alone.
        truth: {head: (N,) class indices}.
        probs: {head: (N, C) out-of-fold probabilities}, rows in the same order.
        folds: (N,) the fold each row was held out in. Where it is the same for all, random fifths take its place.
        counts: {head: (C,) images of each class in train}.
        draws: Resamples of the images for the intervals.
        seed: Of the resamples and of the random fifths.

    Raises:
        DataError: When labels or counts are missing, or do not fit the rows and classes.
        PredictionError: When probabilities are missing, not finite or of another shape.
    """
    _check(task, truth, probs, folds, counts)
    plain = Decision.argmax(task.heads)
    answers: list[Classes] = [plain.decide({name: probs[name] for name in task.heads})]
    if task.metric in PROBABILITY_METRICS:
        return _nothing_to_fit(task, score_answers(task, truth, probs), answers[0])
    trials = _try_rules(task, truth, probs, folds, counts, seed)
    for rule in RULES:
        answers.append({h: trials[h][rule].nested if h in trials else answers[0][h] for h in task.heads})
    drawn = bootstrap_heads(task, truth, answers, draws=draws, seed=seed)  # (draws, 1 + rules, heads)
    candidates, picks = [], []
    for column, name in enumerate(task.heads):
        picks.append(_pick(drawn[:, :, column]) if name in trials else 0)
        if name in trials:
            candidates += _candidates(task, name, truth[name], trials[name], drawn[:, :, column], picks[-1])
    chosen = {name: answers[pick][name] for name, pick in zip(task.heads, picks, strict=True)}
    return FittedDecision(
        decision=Decision(heads=plain.heads | {one.head: one.rule for one in candidates if one.kept}),
        metric=task.metric,
        candidates=tuple(candidates),
        nested=_score(task, truth, chosen, drawn[:, picks, np.arange(len(picks))]),
        argmax=_score(task, truth, answers[0], drawn[:, 0]),
        note="" if trials else "each head has a single class among these images: there is no decision to fit",
        decided=chosen,
    )


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
            f"no rule helps beyond luck: let the highest probability decide; {fitted.metric} {fitted.argmax}",
        ]
    return [
        *lines,
        f"use the fitted decision (a rule for {', '.join(kept)}): {fitted.metric} {fitted.nested}, where the highest "
        f"probability alone gets {fitted.argmax}",
    ]


def _nothing_to_fit(task: Task, score: Score, decided: Classes) -> FittedDecision:
    return FittedDecision(
        decision=Decision.argmax(task.heads),
        metric=task.metric,
        candidates=(),
        nested=score,
        argmax=score,
        note=f"metric {task.metric} scores the probabilities themselves: there is no decision to fit",
        decided=decided,
    )


def _try_rules(
    task: Task, truth: Classes, probs: Answers, folds: Ints, counts: Counts, seed: int
) -> dict[str, dict[str, _Trial]]:
    """Return {head: {rule: trial}} for the heads whose truth has several classes."""
    heads = [name for name in task.heads if len(np.unique(truth[name])) > 1]
    parts = {name: _parts(folds, truth[name], seed) for name in heads}
    fits = sum(len(RULES) * (1 + len(np.unique(part))) for part in parts.values())
    trials: dict[str, dict[str, _Trial]] = {}
    with progress_bar(fits, "fitting the decision", unit="fit") as bar:
        for head in heads:
            given = task.metric, truth[head], probs[head]
            trials[head] = {
                "prior_power": _try_rule(power_fitter(*given, counts[head]), probs[head], parts[head], bar),
                "class_bias": _try_rule(bias_fitter(*given), probs[head], parts[head], bar),
            }
    return trials


def _try_rule(fit: Callable[[Mask], HeadRule], probs: npt.NDArray[Any], parts: Ints, bar: Any) -> _Trial:
    nested = np.empty(len(probs), np.int64)
    for part in np.unique(parts):
        held = parts == part
        nested[held] = fit(~held).decide(probs[held])
        bar.update()
    rule = fit(np.ones(len(probs), bool))
    bar.update()
    return _Trial(rule=rule, own=rule.decide(probs), nested=nested, plain=probs.argmax(axis=1))


def _parts(folds: Ints, truth: Ints, seed: int) -> Ints:
    """Return the folds, or where there is one only (N,) random parts; the rows of a class are dealt out evenly."""
    if len(np.unique(folds)) > 1:
        return folds
    shuffled = np.random.default_rng(seed).permutation(len(truth))
    parts = np.empty(len(truth), np.int64)
    parts[shuffled[np.argsort(truth[shuffled], kind="stable")]] = np.arange(len(truth)) % _NUM_PARTS
    return parts


def _pick(drawn: Floats) -> int:
    """Return the column of (draws, 1 + rules) to use: the last one better beyond luck than 0 and the one before."""
    picked = 0
    for column in range(1, drawn.shape[1]):
        better = drawn[:, [column]] - drawn[:, [0, picked]]
        if all(low > 0 for low, _ in middle_part(better)):
            picked = column
    return picked


def _candidates(
    task: Task, head: str, truth: Ints, trials: dict[str, _Trial], drawn: Floats, picked: int
) -> list[Candidate]:
    """Return what became of each trial of a head."""

    def measure(decided: Ints) -> float:
        return metric_value(task.metric, truth, decided, task.heads[head].num_classes)

    found = []
    for column, trial in enumerate(trials.values(), start=1):
        (interval,) = middle_part(drawn[:, [column]] - drawn[:, [0]])
        if column == picked:
            why = "better beyond luck"
        elif interval[0] > 0:
            why = f"{RULES[picked - 1]} {'does as well' if picked < column else 'is better beyond luck'}"
        else:
            why = "worse" if interval[1] < 0 else "may be luck"
        found.append(
            Candidate(
                head=head,
                rule=trial.rule,
                in_sample_gain=measure(trial.own) - measure(trial.plain),
                nested_gain=measure(trial.nested) - measure(trial.plain),
                interval=interval,
                kept=column == picked,
                why=why,
            )
        )
    return found


def _score(task: Task, truth: Classes, answers: Classes, drawn: Floats) -> Score:
    """Score answers, with intervals from (draws, heads) values that were drawn already."""
    weights = np.array([head.weight for head in task.heads.values()])
    drawn = np.ascontiguousarray(drawn)  # sums are rounded by the order in memory
    *heads, total = middle_part(np.column_stack([drawn, drawn @ (weights / weights.sum())]))
    score = score_answers(task, truth, answers)
    return dataclasses.replace(score, interval=total, head_intervals=dict(zip(task.heads, heads, strict=True)))


def _check(task: Task, truth: Classes, probs: Answers, folds: Ints, counts: Counts) -> None:
    for name, head in task.heads.items():
        for what, values in (("truth", truth), ("probs", probs), ("counts", counts)):
            if name not in values:
                error = PredictionError if what == "probs" else DataError
                raise error(f"head {name!r} has no {what} (found: {', '.join(values)}); give them for every head")
        size, rows = head.num_classes, len(folds)
        _check_probs(f"head {name!r}", probs[name], (rows, size))
        labels, sizes = truth[name], counts[name]
        if labels.shape != (rows,) or not rows or not (labels.min() >= 0 and labels.max() < size):
            span = f", from {labels.min()} to {labels.max()}" if labels.size else ""
            raise DataError(
                f"head {name!r}: truth has shape {labels.shape}{span}; expected ({rows},) class indices from 0 to "
                f"{size - 1}, one for each row of `folds`"
            )
        if sizes.shape != (size,) or sizes.min() < 0 or not sizes.sum() > 0:
            raise DataError(
                f"head {name!r}: counts have shape {sizes.shape} and sum {sizes.sum()}; expected ({size},) numbers of "
                "train images, not all 0"
            )


def _check_probs(what: str, probs: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if probs.shape != shape:
        raise PredictionError(f"{what}: probs have shape {probs.shape}; expected {shape}, rows as in the labels")
    wrong = ~np.isfinite(probs.min(axis=1)) | ~np.isfinite(probs.max(axis=1)) | (probs.min(axis=1) < 0)
    if wrong.any():
        raise PredictionError(
            f"{what}: probs of {int(wrong.sum()):,} of {len(probs):,} rows are NaN, infinite or below 0 (first: row "
            f"{int(np.argmax(wrong))}); pass the probabilities of the images that were predicted"
        )


@dataclass(frozen=True, kw_only=True)
class FittedThresholds:
    """Thresholds of a multi-label head, and what they are worth.

    Attributes:
        thresholds: (C,) to use: the fitted ones where they help beyond luck, else 0.5.
        fitted: (C,) the best on all rows.
        nested_gain: Over 0.5, of thresholds fitted without the rows they decide.
        interval: Of the nested gain: the middle 95 % of resamples of the images.
        kept: Whether the fitted ones are to be used.
    """

    thresholds: tuple[float, ...]
    fitted: tuple[float, ...]
    nested_gain: float
    interval: Interval
    kept: bool


def fit_thresholds(
    truth: Mask, probs: npt.NDArray[Any], *, metric: ManyMetric, folds: Ints, draws: int = DRAWS, seed: int = 0
) -> FittedThresholds:
    """Fit thresholds to a multi-label head and keep them if they help beyond luck.

    Args:
        truth: (N, C).
        probs: (N, C) out-of-fold probabilities in [0, 1].
        metric: As scikit-learn's `f1_score` with this average and `zero_division=0`.
        folds: (N,) the fold each row was held out in. Where it is the same for all, random fifths take its place.
        draws: Resamples of the images for the interval.
        seed: Of the resamples and of the random fifths.

    Raises:
        DataError: When there are no rows, or truth is not (N, C) of bool.
        PredictionError: When probabilities are not finite or of another shape.
    """
    if truth.ndim != 2 or truth.dtype != np.bool_ or len(truth) != len(folds) or not len(folds):
        raise DataError(
            f"truth is {truth.dtype} {truth.shape}; expected bool ({len(folds)}, C), one row for each of `folds`"
        )
    _check_probs("multi-label head", probs, truth.shape)
    said = np.empty_like(truth)
    parts = _parts(folds, np.zeros(len(truth), np.int64), seed)
    for part in np.unique(parts):
        held = parts == part
        said[held] = decide_many(probs[held], best_thresholds(metric, truth[~held], probs[~held]))
    fitted = best_thresholds(metric, truth, probs)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truth))
    sums = np.stack([_block_sums(metric, truth, one, order) for one in (said, probs >= 0.5)])  # (2, G, 3, C)
    blocks = sums.shape[1]
    picks = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=draws)  # (draws, G)
    new, old = (_f1(metric, np.tensordot(picks, one, axes=1)) for one in sums)
    (interval,) = middle_part((new - old)[:, None])
    kept = interval[0] > 0
    new, old = (_f1(metric, one.sum(axis=0)) for one in sums)
    return FittedThresholds(
        thresholds=tuple((fitted if kept else np.full(len(fitted), 0.5)).tolist()),
        fitted=tuple(fitted.tolist()),
        nested_gain=float(new - old),
        interval=interval,
        kept=kept,
    )


def _block_sums(metric: ManyMetric, truth: Mask, said: Mask, order: Ints) -> Floats:
    """Return (G, 3, C) hits, decisions and true labels of random blocks of rows; samples_f1: (G, 3, 1)."""
    parts = [truth & said, said, truth]
    if metric == "samples_f1":  # written so that the F1 of the sums is the mean F1 of the rows
        hits, many, true = (part.sum(axis=1, keepdims=True) for part in parts)
        parts = [hits / np.maximum(many + true, 1), np.zeros(many.shape), np.ones(many.shape)]
    starts = np.linspace(0, len(order), min(_NUM_BLOCKS, len(order)), endpoint=False).astype(np.int64)
    return np.stack([np.add.reduceat(part[order].astype(np.float64), starts, axis=0) for part in parts], axis=1)


def _f1(metric: ManyMetric, sums: Floats) -> Floats:
    """Return F1 from (..., 3, C) hits, decisions and true labels."""
    if metric != "macro_f1":
        sums = sums.sum(axis=-1, keepdims=True)
    hits, whole = sums[..., 0, :], sums[..., 1, :] + sums[..., 2, :]
    return np.asarray(np.divide(2 * hits, whole, out=np.zeros(hits.shape), where=whole > 0).mean(axis=-1))
