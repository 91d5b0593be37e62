"""The claims of the two write-ups: which trainings each compares, and how. For `claims.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from audit_cleaning import Accept
from claim_runs import Outcome

from kaggle_kit.blending import blend_pool
from kaggle_kit.blending.pool import make_pool
from kaggle_kit.decision_fitting import fit_decision
from kaggle_kit.ensemble import blend_predictions, mean_probs
from kaggle_kit.labels import Classes, class_counts
from kaggle_kit.scores import Answers
from kaggle_kit.task import Task

POOLED = ("written", "written_mixed", "written_swa", "written_class_weights")
Part = Literal["all", "seen", "unseen"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sets of answers to one seed's hidden test: with what a claim is about, and without."""

    task: Task
    truth: Classes
    unseen: np.ndarray
    new: Answers
    old: Answers
    cost: tuple[float, float] | None  # minutes of processor time of the trainings, without and with
    worst_fold: float = 1.0  # of both, out of fold


def one_change(outcomes: Sequence[Outcome]) -> Pair:
    """Compare an arm with its base."""
    base, changed = outcomes
    return _pair(base, changed.said.probs, base.said.probs, cost=(base.cpu_minutes, changed.cpu_minutes))


def two_models(outcomes: Sequence[Outcome]) -> Pair:
    """Compare the mean of two runs with the one that is better out of fold."""
    better = max(outcomes, key=lambda one: one.run.score.total)
    mean = mean_probs([one.said.probs for one in outcomes])
    return _pair(outcomes[0], mean, better.said.probs, cost=(better.cpu_minutes, _minutes(outcomes)))


def stacked(outcomes: Sequence[Outcome]) -> Pair:
    """Compare a stack, fitted out of fold, with the mean of the same runs."""
    blend = blend_pool(make_pool([one.run for one in outcomes]), fit_rules=False, strategies=("stack",)).blend
    said = {one.run.name: one.said for one in outcomes}
    probs = blend_predictions(blend, said).align(outcomes[0].said.ids).probs
    mean = mean_probs([one.said.probs for one in outcomes])
    return _pair(outcomes[0], probs, mean, cost=(_minutes(outcomes), _minutes(outcomes)))


def decided_by_priors(outcomes: Sequence[Outcome]) -> Pair:
    """Compare decisions by probability over a power of the prior, fitted out of fold, with the highest probability."""
    (one,) = outcomes
    oof, labels = one.run.oof(), one.run.labels()
    held = labels.align(oof.ids)
    counts = {name: class_counts(labels.classes[name], head) for name, head in one.task.heads.items()}
    probs = {head: oof.probs[head] for head in one.task.heads}
    fitted = fit_decision(
        one.task, held.classes, probs, np.zeros(len(held), np.int64), counts=counts, rules=("prior_power",)
    )
    decided = fitted.decision.decide(one.said.probs)
    return _pair(one, decided, one.said.probs, cost=(one.cpu_minutes, one.cpu_minutes))


def _pair(one: Outcome, new: Answers, old: Answers, *, cost: tuple[float, float] | None) -> Pair:
    return Pair(task=one.task, truth=one.truth, unseen=one.unseen, new=new, old=old, cost=cost)


def _minutes(outcomes: Iterable[Outcome]) -> float:
    return sum(one.cpu_minutes for one in outcomes)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row.

    Attributes:
        title: What is claimed to help.
        reported: The write-ups' number.
        ground: Where it is tested.
        arms: What must be trained for it.
        cleaning: Instead of arms: how the audit's queue is gone through, of `audit_cleaning.py`.
        pair: Makes the answers of a seed from what was trained.
        parts: Parts of the hidden test that are told apart.
    """

    title: str
    reported: str
    ground: str
    arms: tuple[str, ...] = ()
    cleaning: Accept | None = None
    pair: Callable[[Sequence[Outcome]], Pair] = one_change
    parts: tuple[Part, ...] = ("all",)


WITH_UNSEEN: tuple[Part, ...] = ("all", "seen", "unseen")
HANDWRITING, STAND_IN, SHIPS = "handwriting", "stand-in", "ships"
CLAIMS = (
    Claim(
        title="augmentation (rotation, scale, shear, warps, erasing)",
        reported="first step; no number",
        ground=HANDWRITING,
        arms=("written_no_augmentation", "written"),
    ),
    Claim(
        title="MixUp and CutMix",
        reported="0.960 to 0.964",
        ground=HANDWRITING,
        arms=("written", "written_mixed"),
    ),
    Claim(title="SWA", reported="+0.3 to 0.4 points", ground=HANDWRITING, arms=("written", "written_swa")),
    Claim(
        title="class weights (square root)",
        reported="closes accuracy to recall; no number",
        ground=HANDWRITING,
        arms=("written", "written_class_weights"),
    ),
    Claim(
        title="auxiliary grapheme label",
        reported="others above 0.98; not reproduced; over-fits on unseen",
        ground=STAND_IN,
        arms=("base", "auxiliary"),
        parts=WITH_UNSEEN,
    ),
    Claim(
        title="larger model (test_resnet 0.5 M to resnet10t 5.4 M weights)",
        reported="+0.3 to 0.5 points, 3 x the time",
        ground=HANDWRITING,
        arms=("written", "written_larger_model"),
    ),
    Claim(
        title="larger image (48 x 72 to 72 x 108)",
        reported="larger is better",
        ground=HANDWRITING,
        arms=("written", "written_larger_image"),
    ),
    Claim(
        title="pretrained (on the stand-in) against scratch",
        reported="a bit better and shorter",
        ground=HANDWRITING,
        arms=("written", "pretrained"),
    ),
    Claim(
        title="freeze, then unfreeze, against all at once",
        reported="about equal",
        ground=HANDWRITING,
        arms=("pretrained", "frozen_first"),
    ),
    Claim(
        title="discriminative rates (halved from each layer group to the next below) against one rate",
        reported="about equal",
        ground=HANDWRITING,
        arms=("pretrained", "discriminative"),
    ),
    Claim(
        title="discriminative rates (0.8 times from group to group) against one rate",
        reported="about equal",
        ground=HANDWRITING,
        arms=("pretrained", "gently_discriminative"),
    ),
    Claim(
        title="cleaning labels (the audit's queue, by somebody who is always right: an upper bound)",
        reported="0.90 to 0.925",
        ground=SHIPS,
        cleaning="reviewed",
    ),
    Claim(
        title="cleaning labels (the audit's queue accepted unseen)",
        reported="not done",
        ground=SHIPS,
        cleaning="listed",
    ),
    Claim(
        title="retraining on everything, handwriting",
        reported="no significant gain (ships)",
        ground=HANDWRITING,
        arms=("written", "written_everything"),
    ),
    Claim(
        title="retraining on everything, stand-in",
        reported="no significant gain (ships)",
        ground=STAND_IN,
        arms=("base", "everything"),
        parts=WITH_UNSEEN,
    ),
    Claim(
        title="two models' mean against the better of them",
        reported="helped (vote of three, ships)",
        ground=HANDWRITING,
        arms=("written", "written_mixed"),
        pair=two_models,
    ),
    Claim(
        title="stacking four runs against their mean",
        reported="planned, not done",
        ground=HANDWRITING,
        arms=POOLED,
        pair=stacked,
    ),
    Claim(
        title="prior-power decision, handwriting",
        reported="gold solutions: helps macro recall",
        ground=HANDWRITING,
        arms=("written",),
        pair=decided_by_priors,
    ),
    Claim(
        title="prior-power decision, stand-in",
        reported="gold solutions: helps macro recall",
        ground=STAND_IN,
        arms=("base",),
        pair=decided_by_priors,
        parts=WITH_UNSEEN,
    ),
    *(
        Claim(title=title, reported="as above", ground=STAND_IN, arms=arms, parts=WITH_UNSEEN)
        for title, arms in {
            "augmentation, stand-in": ("no_augmentation", "base"),
            "MixUp and CutMix, stand-in": ("base", "mixed"),
            "SWA, stand-in": ("base", "swa"),
            "class weights, stand-in": ("base", "class_weights"),
        }.items()
    ),
)
