"""What runs said out of fold of the labelled images, with heads and classes as the task of now has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.joining import check_heads
from kaggle_kit.ensemble import mean_probs
from kaggle_kit.errors import DataError, some_of
from kaggle_kit.labels import Labels
from kaggle_kit.predictions import Predictions, Probs, take_columns
from kaggle_kit.runs import Run
from kaggle_kit.tables import Text
from kaggle_kit.task import Task


@dataclass(frozen=True, kw_only=True)
class RunPredictions:
    """Out-of-fold predictions of one or several runs.

    Attributes:
        runs: Names of the runs; of several the mean of their probabilities.
        ids: (n,) labelled images that all of them predicted.
        unpredicted: Labelled images that some run does not predict.
        probs: {head: (n, C)}, heads and classes in the task's order.
    """

    runs: tuple[str, ...]
    ids: Text
    unpredicted: int
    probs: Probs


def gather_predictions(task: Task, labels: Labels, runs: Sequence[Run]) -> RunPredictions:
    """Return what runs say of the labelled images, classes matched by name.

    Args:
        task: The competition.
        labels: As they are now, edits applied.
        runs: Finished runs on these data; each image counts that all of them predicted.

    Raises:
        DataError: When a run lacks a head, names other classes, or no labelled image is predicted by every run.
        PredictionError: When a run's predictions are damaged, or not of its own heads.
    """
    given = [_in_order_of(task, run) for run in runs]
    there = np.ones(len(labels), bool)
    for one in given:
        there &= np.isin(labels.ids, one.ids)
    ids = labels.ids[there]
    if not len(ids):
        raise DataError(
            f"no labelled image has a prediction of {some_of([str(run.folder) for run in runs])}; are these runs of "
            "other data?"
        )
    return RunPredictions(
        runs=tuple(run.name for run in runs),
        ids=ids,
        unpredicted=len(labels) - len(ids),
        probs=mean_probs([one.align(ids).probs for one in given]),
    )


def _in_order_of(task: Task, run: Run) -> Predictions:
    """Return a run's predictions of the task's heads, each class in the column where the task has it."""
    columns = class_columns(task, run)
    found = run.oof()
    check_heads(run.task, run.name, found)
    probs = take_columns({head: found.probs[head] for head in task.heads}, columns)
    return Predictions(ids=found.ids, probs=probs, multilabel=task.multilabel_heads)


def class_columns(task: Task, run: Run) -> dict[str, npt.NDArray[np.int64]]:
    """Return {head: (C,) the run's column of each of the task's classes} of heads whose classes differ in order.

    Raises:
        DataError: When the run lacks a head, or its classes have other names.
    """
    lacking = [head for head in task.heads if head not in run.task.heads]
    if lacking:
        raise DataError(f"{run.folder} does not predict head(s) {some_of(lacking)}; give runs of this task")
    columns = {}
    for name, head in task.heads.items():
        theirs = run.task.heads[name]
        if (theirs.kind == "multilabel") != (head.kind == "multilabel"):
            raise DataError(
                f"head {name!r} is {theirs.kind} in {run.folder} and {head.kind} in task {task.name!r}; give runs of "
                "this task"
            )
        lacks, adds = (
            [value for value in one.class_names if value not in set(other.class_names)]
            for one, other in ((head, theirs), (theirs, head))
        )
        if lacks or adds:
            found = [f"lacks {some_of(lacks)}"] * bool(lacks) + [f"has {some_of(adds)} besides"] * bool(adds)
            raise DataError(
                f"head {name!r} has {theirs.num_classes} classes in {run.folder} and {head.num_classes} in task "
                f"{task.name!r}: the run {' and '.join(found)}; give runs that were trained on the task's classes"
            )
        if head.class_names != theirs.class_names:
            place = {value: column for column, value in enumerate(theirs.class_names)}
            columns[name] = np.array([place[value] for value in head.class_names], np.int64)
    return columns
