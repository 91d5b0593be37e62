"""The gate: what changes a member's results is shipped only when decisions and the metric hardly notice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kaggle_kit.decision import Decision
from kaggle_kit.errors import DataError, RefusedError
from kaggle_kit.labels import Labels
from kaggle_kit.metrics import PROBABILITY_METRICS, gain
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.bundle import Change
from kaggle_kit.scores import Answers, bootstrap_ways, head_weights, score_answers, widest_part
from kaggle_kit.task import Task

Kind = Literal["stored", "views", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a change may cost.

    Attributes:
        changed_share: Of the decisions, how many may differ, 0 to 1.
        drop: By how much the metric may be worse, at the worse end of its 95 % interval.
        only_losses: Whether that is asked only where the metric is worse at all: a change that is meant to help may be
            uncertain.
    """

    changed_share: float
    drop: float
    only_losses: bool = False


LIMITS: dict[Kind, Limits] = {
    "stored": Limits(changed_share=0.02, drop=0.005),  # training validates in half precision where the GPU has it
    "fp16": Limits(changed_share=0.01, drop=0.005),
    "int8": Limits(changed_share=0.03, drop=0.01),
    "views": Limits(changed_share=1.0, drop=0.005, only_losses=True),  # they are meant to change decisions
}


def measure_change(
    task: Task, labels: Labels, before: Probs, after: Probs, *, decision: Decision | None = None
) -> Change:
    """Measure what it costs to answer with other probabilities.

    Args:
        task: Gives the metric.
        labels: Of N images; those of a group are resampled together.
        before: {head: (N, C)} probabilities.
        after: The same rows, otherwise computed.
        decision: The rules that make classes of them; None: the highest probability decides.

    Returns:
        The change; its scores and interval are NaN where the metric has no value on these images.
    """
    rules, many = decision or Decision(), task.multilabel_heads
    said = [rules.decide(probs, multilabel=many) for probs in (before, after)]
    rows = len(labels.ids)
    changed = sum(int((said[0][h] != said[1][h]).reshape(rows, -1).any(axis=1).sum()) for h in task.heads)
    answers: list[Answers] = [before, after] if task.metric in PROBABILITY_METRICS else list(said)
    try:
        scores = [score_answers(task, labels.classes, one).total for one in answers]
        interval = _gain_interval(task, labels, answers)
    except DataError:  # such as areas under curves of images that are all of one class
        scores, interval = [math.nan] * 2, (math.nan, math.nan)
    return Change(
        rows=rows,
        decisions=rows * len(task.heads),
        decisions_changed=changed,
        max_abs_diff=float(np.max([np.abs(after[head] - before[head]).max() for head in task.heads])),  # NaN stays
        score_before=scores[0],
        score_after=scores[1],
        gain=gain(task.metric, scores[1], scores[0]),
        interval=interval,
    )


def refusal(change: Change, limits: Limits) -> str:
    """Return why a change is not let through, with its numbers; empty: it is."""
    if not np.isfinite(change.max_abs_diff):
        return "probabilities are NaN or infinite"
    if change.changed_share > limits.changed_share:
        return f"{describe_change(change)}; allowed are {limits.changed_share:.1%} of the decisions"
    if math.isnan(change.interval[0]) and change.decisions_changed:
        return f"{describe_change(change)}; the metric has no value on these images, so nothing may change"
    if change.interval[0] < -limits.drop and not (limits.only_losses and change.gain >= 0):
        return f"{describe_change(change)}; the metric may lose {limits.drop:.4f} at the interval's worse end"
    return ""


def check_change(change: Change, limits: Limits, *, what: str, repair: str) -> None:
    """Refuse a change that costs too much.

    Args:
        change: As measured.
        limits: What it may cost.
        what: What is refused, such as a file and its precision.
        repair: What to do instead.

    Raises:
        RefusedError: With the numbers.
    """
    why = refusal(change, limits)
    if why:
        raise RefusedError(f"{what} is not shipped: {why}; {repair}")


def describe_change(change: Change) -> str:
    """Return one line with all numbers of a change."""
    low, high = change.interval
    if not change.decisions_changed and (math.isnan(change.interval[0]) or change.interval == (0, 0)):
        return f"no decision changes, probabilities by up to {change.max_abs_diff:.1e}, on {change.rows:,} images"
    return (
        f"{change.decisions_changed:,.0f} of {change.decisions:,} decisions change ({change.changed_share:.2%}), "
        f"the metric goes from {change.score_before:.4f} to {change.score_after:.4f} (gain between {low:+.4f} and "
        f"{high:+.4f}), probabilities by up to {change.max_abs_diff:.1e}, on {change.rows:,} images"
    )


def _gain_interval(task: Task, labels: Labels, answers: list[Answers]) -> tuple[float, float]:
    """Return what 95 % of resamples of the images gain by the second answers over the first."""
    if all(np.array_equal(answers[0][head], answers[1][head]) for head in task.heads):
        return 0.0, 0.0
    ways = bootstrap_ways(task, labels.classes, answers, groups=labels.group_numbers())
    totals = [values @ head_weights(task) for values in ways]  # (draws, 2) each
    sign = gain(task.metric, 1, 0)
    return widest_part([sign * (one[:, 1:] - one[:, :1]) for one in totals])[0]
