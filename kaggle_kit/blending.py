"""What runs become together, chosen on out-of-fold predictions: weights, and the rules that decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision_fitting import FittedDecision, fit_decision
from kaggle_kit.ensemble import Blend, blend_predictions, equal_blend
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import Folds, labels_hash
from kaggle_kit.labels import Classes, Labels, class_counts, class_shares
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.scores import DRAWS, SplitScore, score_split
from kaggle_kit.shift_effect import ShiftEffect, prior_shift_effect
from kaggle_kit.task import refuse_multilabel


@dataclass(frozen=True, kw_only=True)
class FittedBlend:
    """A blend, and how it was found.

    Attributes:
        blend: Weights and decision rules.
        oof: The blend's out-of-fold predictions.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1} of the same images.
        priors: {head: (C,) shares of the classes among the labelled images}.
        scores: Of the highest probability (multi-label: of 0.5), on seen and unseen combinations apart.
        fitted: What rules were tried; None when none were.
    """

    blend: Blend
    oof: Predictions
    truth: Classes
    priors: dict[str, npt.NDArray[np.float64]]
    scores: SplitScore
    fitted: FittedDecision | None


def fit_blend(runs: Sequence[Run], *, fit_rules: bool = True, prior_shift: bool = False) -> FittedBlend:
    """Blend runs by their mean, and fit the rules that decide to the task's metric.

    Args:
        runs: Finished runs of one task, on one fold file.
        fit_rules: Whether rules are tried; without, the highest probability decides.
        prior_shift: Whether the kernel shall correct for the test's class shares.

    Raises:
        SettingError: When no runs are given, two have the same name or different tasks, or class shares are to be
            corrected for and a head is multi-label.
        DataError: When runs were trained on different folds, or the labels have changed since.
        PredictionError: When runs predict different images.
    """
    if not runs:
        raise SettingError("no runs were given; name at least one run folder")
    task = runs[0].task
    for run in runs[1:]:
        if run.task.heads != task.heads or run.task.metric != task.metric:
            raise SettingError(
                f"runs {runs[0].name!r} and {run.name!r} have different heads or metrics; blend runs of one task"
            )
    if prior_shift:
        refuse_multilabel(task, "correcting for class shares", "leave --prior-shift out")
    blend = equal_blend([run.name for run in runs])
    oof = blend_predictions(blend, {run.name: run.oof() for run in runs})
    labels, folds = _common_folds(runs)
    truth, rows = labels.align(oof.ids).classes, folds.rows(oof.ids)
    counts = {name: class_counts(labels.classes[name], head) for name, head in task.heads.items()}
    groups = labels.align(oof.ids).group_numbers()
    scores = score_split(task, truth, oof.probs, folds.unseen[rows], draws=DRAWS, groups=groups)
    fitted = None
    if fit_rules:
        fitted = fit_decision(task, truth, oof.probs, folds.fold[rows], counts=counts, groups=groups)
    hashes = {run.name: file_sha256(run.oof_file) for run in runs}
    blend = dataclasses.replace(blend, prior_shift=prior_shift, score=scores.all, oof_hashes=hashes)
    if fitted:
        blend = dataclasses.replace(blend, decision=fitted.decision, score=fitted.nested)
    return FittedBlend(
        blend=blend,
        oof=oof,
        truth=truth,
        priors={head: class_shares(labels.classes[head], task.heads[head]) for head in task.heads},
        scores=scores,
        fitted=fitted,
    )


def _common_folds(runs: Sequence[Run]) -> tuple[Labels, Folds]:
    """Return the labels and folds of all runs, after checking that these are the same ones."""
    labels, folds = runs[0].labels(), runs[0].fold_table()
    if labels_hash(labels) != folds.data_hash:
        raise DataError(
            f"the labels in {runs[0].data} have changed since run {runs[0].name!r} was trained (hash "
            f"{folds.data_hash}, now {labels_hash(labels)}); put the old label file back, or train again"
        )
    for run in runs[1:]:
        other = run.fold_table()
        same = other.data_hash == folds.data_hash and len(other.ids) == len(folds.ids)
        if not same or (other.align(folds.ids).fold != folds.fold).any():
            raise DataError(
                f"runs {runs[0].name!r} and {run.name!r} were trained on different folds, so that one has trained what "
                "the other validates; train both on one fold file"
            )
    return labels, folds


def foresee_prior_shift(runs: Sequence[Run], fitted: FittedBlend) -> list[ShiftEffect]:
    """Return what correcting for class shares does to the blend's out-of-fold predictions, drawn in several ways."""
    task, priors, decision = runs[0].task, fitted.priors, fitted.blend.decision
    return prior_shift_effect(task, fitted.truth, fitted.oof.probs, priors, decision)
