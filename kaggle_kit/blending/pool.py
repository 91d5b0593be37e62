"""Pools: out-of-fold predictions of several runs, joined by id and class name, with all that blends are fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.joining import (
    check_heads,
    check_same_labels,
    check_unchanged,
    compare_folds,
    describe_differences,
    describe_doubles,
    describe_soups,
    match_classes,
    shared_ids,
)
from kaggle_kit.decision_fitting import nested_parts
from kaggle_kit.errors import DataError, PredictionError, SettingError, some_of
from kaggle_kit.labels import Classes, Labels, class_counts, class_shares
from kaggle_kit.predictions import Predictions, Probs, take_columns
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import Run
from kaggle_kit.tables import Text, check_unique, rows_of
from kaggle_kit.task import Head, Task

Ints = npt.NDArray[np.int64]
Counts = Mapping[str, npt.NDArray[Any]]

_SEED = 0  # of random fifths where all images are of one fold


@dataclass(frozen=True, kw_only=True)
class Pool:
    """R runs' predictions of the same N images.

    Attributes:
        task: Of all runs, without auxiliary heads.
        names: R run names, none alike.
        ids: (N,) image ids.
        runs: R runs' {head: (N, C) float32 out-of-fold probabilities}, rows and classes in the same order.
        truth: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}.
        parts: (N,) what a nested fit holds out, one after the other: the folds.
        unseen: (N,) True where train does not show the row's combination of heads.
        groups: (N,) numbers, equal for images of one group; None: every image by itself.
        counts: {head: (C,) images of each class in train}.
        priors: {head: (C,) shares of the classes among the labelled images}.
        notes: Sentences on what a person should know of the join.
    """

    task: Task
    names: tuple[str, ...]
    ids: Text
    runs: tuple[Probs, ...]
    truth: Classes
    parts: Ints
    unseen: npt.NDArray[np.bool_]
    groups: Ints | None
    counts: dict[str, npt.NDArray[Any]]
    priors: dict[str, npt.NDArray[np.float64]]
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    def run(self, name: str) -> Probs:
        """Return one run's probabilities."""
        return self.runs[self.names.index(name)]

    def of(self, names: Sequence[str]) -> Pool:
        """Return the pool of these runs alone, in this order; arrays are shared.

        Raises:
            SettingError: When none are named, or one is not in the pool.
        """
        if not names or not set(names) <= set(self.names):
            raise SettingError(f"runs {list(names)} were asked for; the pool has {list(self.names)}: name some of them")
        rows = [self.names.index(name) for name in names]
        return dataclasses.replace(self, names=tuple(names), runs=tuple(self.runs[row] for row in rows))


def make_pool(runs: Sequence[Run], *, common_only: bool = False) -> Pool:
    """Join the out-of-fold predictions of finished runs.

    Args:
        runs: Of one task: the same heads, classes (joined by name) and metric. The first gives the order of ids and
            classes, and the folds.
        common_only: Whether images are left out which not all runs predict; else they are refused.

    Raises:
        SettingError: When no runs are given, two have the same name, or different tasks.
        DataError: When labels have changed since, or differ between runs, or folds were made in different ways.
        PredictionError: When a run predicts not all images, or its predictions are no probabilities of its classes.
    """
    if not runs:
        raise SettingError("no runs were given; name at least one run folder")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise SettingError(f"runs are named {sorted(names)}; a blend tells them apart by name, so rename one folder")
    first, task = runs[0], runs[0].task.without_auxiliary()
    columns = [match_classes((task, run.task), (first.name, run.name)) for run in runs]
    labels, folds = first.labels(), first.fold_table()
    check_unchanged(first, labels, folds)
    notes = [*describe_doubles(runs), *describe_soups(runs)]
    for run, own in zip(runs[1:], columns[1:], strict=True):
        theirs = run.fold_table()
        check_same_labels((first, run), labels, (folds, theirs), own)
        notes += filter(None, [compare_folds(folds, theirs, names=(first.name, run.name))])
        notes += [f"run {run.name!r} has the classes of head {head!r} in another order; joined by name" for head in own]
        notes += filter(None, [_describe_misfit(first, run)])
    members = _read_members(task, runs, columns)
    ids, said = shared_ids(members, common_only=common_only)
    with progress_bar(len(members), "join by id", unit="run") as bar:
        for name in members:  # one by one, so that no more than one run is held twice
            members[name] = members[name].align(ids)
            bar.update()
    known = np.isin(labels.ids, folds.ids)  # broken images take no part in a training, nor in its folds
    labels, left_out = labels.align(labels.ids[known]), int((~known).sum())
    if left_out:
        notes.append(f"{left_out:,} labelled image(s) are in no fold of run {first.name!r}, broken ones as a rule")
    rows = folds.rows(labels.ids)
    pool = join_predictions(
        task,
        members,
        ids=labels.ids,
        truth=labels.classes,
        folds=folds.fold[rows],
        unseen=folds.unseen[rows],
        groups=labels.group_numbers(),
    )
    return dataclasses.replace(pool, notes=(*notes, *said, *pool.notes))


def _describe_misfit(first: Run, other: Run) -> str:
    """Return a sentence where two runs can be blended and no bundle can hold both."""
    different = describe_differences(first.task, other.task)
    if not different:
        return ""
    return (
        f"runs {first.name!r} and {other.name!r} cannot be in one bundle, for their tasks differ in {different}: blend "
        "them to see what that gives, and train both on one task file to submit it"
    )


def _read_members(task: Task, runs: Sequence[Run], columns: Sequence[Mapping[str, Ints]]) -> dict[str, Predictions]:
    """Return {run: its out-of-fold predictions}, classes in the task's order."""
    members = {}
    with progress_bar(len(runs), "read out-of-fold predictions", unit="run") as bar:
        for run, own in zip(runs, columns, strict=True):
            try:
                members[run.name] = _reordered(task, run.name, run.oof(), own)
            except PredictionError as error:
                raise PredictionError(f"run {run.name!r}: {error}") from None
            bar.update()
    return members


def _reordered(task: Task, name: str, predictions: Predictions, columns: Mapping[str, Ints]) -> Predictions:
    if not columns:
        return predictions
    check_heads(task, name, predictions)
    return dataclasses.replace(predictions, probs=take_columns(predictions.probs, columns))


def join_predictions(
    task: Task,
    predictions: Mapping[str, Predictions],
    *,
    ids: Text,
    truth: Classes,
    folds: Ints,
    unseen: npt.NDArray[np.bool_] | None = None,
    groups: Ints | None = None,
    counts: Counts | None = None,
    common_only: bool = False,
) -> Pool:
    """Join out-of-fold predictions of anything, run folder or not, by id.

    Where ids are in the first run's order already, arrays are taken as they are.

    Args:
        task: What is asked; heads beside its own are not looked at.
        predictions: {run: out-of-fold predictions}, classes in the task's order. The first gives the order of ids.
        ids: (M,) the labelled images, in any order; of those that no run predicts only the classes are counted.
        truth: {head: (M,) class indices, or of multi-label heads (M, C) of 0 and 1}.
        folds: (M,) the fold that held each image out; -1 where none did.
        unseen: (M,) True where train does not show the image's combination of heads; None: nowhere.
        groups: (M,) numbers, equal for images of one group; None: every image by itself.
        counts: {head: (C,) images of each class in train}; None: the labelled images are train.
        common_only: Whether images are left out which not all runs predict; else they are refused.

    Raises:
        SettingError: When there are no runs.
        DataError: When labels, folds or groups do not fit the ids or the task, or predicted images have none.
        PredictionError: When a run predicts not all images, or other heads or classes.
    """
    if not predictions:
        raise SettingError("no runs were given; give the predictions of at least one")
    for name, one in predictions.items():
        check_heads(task, name, one)
    labels = _known_labels(task, ids, truth)
    for what, values in (("folds", folds), ("unseen", unseen), ("groups", groups)):
        if values is not None and (values.shape != ids.shape or values.dtype.kind not in "iub"):
            raise DataError(f"`{what}` are {values.dtype} {values.shape}; expected ({len(ids)},), one number an id")
    shared, notes = shared_ids(predictions, common_only=common_only)
    rows = _labelled_rows(shared, ids, folds)
    own = labels.take(rows)
    aligned = [one.align(shared) for one in predictions.values()]
    numbers = None if groups is None else np.unique(groups[rows], return_inverse=True)[1].ravel().astype(np.int64)
    if numbers is not None and not numbers.any():
        numbers = None
        notes.append(
            f"all {len(rows):,} images are of one group, so that each is taken by itself; intervals are narrow"
        )
    return Pool(
        task=task.without_auxiliary(),
        names=tuple(predictions),
        ids=shared,
        runs=tuple({head: one.probs[head] for head in task.heads} for one in aligned),
        truth=own.classes,
        parts=_held_parts(own, folds[rows], numbers),
        unseen=np.zeros(len(rows), bool) if unseen is None else np.asarray(unseen, bool)[rows],
        groups=numbers,
        counts={name: _count(head, labels, counts) for name, head in task.heads.items()},
        priors={name: _prior(head, labels, counts) for name, head in task.heads.items()},
        notes=tuple(notes),
    )


def _known_labels(task: Task, ids: Text, truth: Classes) -> Labels:
    """Return what is known of the ids, after checking that it fits the task."""
    check_unique(ids, "`ids`")
    absent = [head for head in task.heads if head not in truth]
    if absent:
        raise DataError(f"head {absent[0]!r} has no truth, only {some_of(truth, 9)}; give that of every head")
    labels = Labels(ids=ids, classes={head: truth[head] for head in task.heads})
    for name, head in task.heads.items():
        classes, many = labels.classes[name], head.kind == "multilabel"
        fits = classes.shape[1:] == (head.num_classes,) if many else classes.ndim == 1
        if not fits or (not many and classes.max(initial=0) >= head.num_classes):
            expected = f"(N, {head.num_classes}) of 0 and 1" if many else f"(N,) from 0 to {head.num_classes - 1}"
            raise DataError(
                f"head {name!r}: truth has shape {classes.shape}, up to {classes.max(initial=0)}; expected {expected}, "
                f"as task {task.name!r} says"
            )
    return labels


def _labelled_rows(wanted: Text, ids: Text, folds: Ints) -> Ints:
    """Return the row of each predicted image among the labelled ones, all of which must have been held out."""
    rows = rows_of(wanted, ids)
    if (rows < 0).any():
        missing = wanted[rows < 0]
        raise DataError(
            f"{len(missing):,} of {len(wanted):,} predicted images have no label: {some_of(missing)}; give the labels "
            "that belong to these predictions"
        )
    trained = wanted[folds[rows] < 0]
    if len(trained):
        raise DataError(
            f"{len(trained):,} of {len(wanted):,} predicted images were held out by no fold (-1): {some_of(trained)}; "
            "leave them out of the predictions, whose models have trained on them"
        )
    return rows


def _held_parts(labels: Labels, folds: Ints, groups: Ints | None) -> Ints:
    """Return (N,) parts, one partition for all heads: where there is one fold, fifths with like combinations."""
    columns = [classes if classes.ndim == 1 else classes.sum(axis=1) for classes in labels.classes.values()]
    combination = np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1].ravel()
    return nested_parts(folds.astype(np.int64), combination, groups=groups, seed=_SEED)


def _count(head: Head, labels: Labels, counts: Counts | None) -> npt.NDArray[Any]:
    """Return (C,) images of each class in train."""
    if counts is None:
        return class_counts(labels.classes[head.name], head)
    found = counts.get(head.name, np.zeros(0))
    if found.shape != (head.num_classes,) or not found.min() >= 0 or not found.sum() > 0:
        raise DataError(
            f"head {head.name!r}: counts have shape {found.shape} and sum {found.sum()}; expected "
            f"({head.num_classes},) numbers of train images, not all 0"
        )
    return found


def _prior(head: Head, labels: Labels, counts: Counts | None) -> npt.NDArray[np.float64]:
    """Return (C,) shares of the classes in train; a multi-label head's, which do not sum to 1, by the labels."""
    if counts is None or head.kind == "multilabel":
        return class_shares(labels.classes[head.name], head)
    return np.asarray(counts[head.name] / counts[head.name].sum(), np.float64)
