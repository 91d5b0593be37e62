"""Which images of a store train, and which validate, in a fold."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.edits import edits_key, read_edited_labels
from kaggle_kit.errors import DataError, some_of
from kaggle_kit.folds import Folds, Ints, labels_hash, unseen_rows
from kaggle_kit.labels import Labels, resolve_classes
from kaggle_kit.packing.competition import pack_train, tagged_of
from kaggle_kit.progress import say
from kaggle_kit.sources import PackedSource, check_root, resolve_stored
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task, read_task
from kaggle_kit.train.data import Store


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Images, their labels and their folds, fitted together.

    Attributes:
        source: The images.
        labels: The competition's own, without broken images.
        folds: In the order of the labels.
        by_row: Labels of all images that train, aligned with the source.
        rows: (N,) rows of the source of the competition's own images, in the order of the labels.
        added_rows: Rows of images that train every fold and validate none.
    """

    source: Store
    labels: Labels
    folds: Folds
    by_row: Labels
    rows: Ints
    added_rows: Ints

    def train_rows(self, fold: int) -> Ints:
        """Return the rows that train in a fold; of all images where it is -1."""
        own = self.rows if fold < 0 else self.rows[self.folds.fold != fold]
        return np.concatenate([own, self.added_rows[~self.leaking(fold)]])

    def leaking(self, fold: int) -> npt.NDArray[np.bool_]:
        """Return which added rows equal a validation image of a fold: that one would be learned by heart."""
        if not len(self.added_rows):
            return np.zeros(0, bool)
        return np.isin(self._groups[self.added_rows], self._groups[self.valid_rows(fold)])

    @functools.cached_property
    def _groups(self) -> Ints:
        return self.source.duplicate_groups()

    def valid_rows(self, fold: int) -> Ints:
        """Return the rows that validate in a fold; none where it is -1."""
        return self.rows[self.folds.fold == fold] if fold >= 0 else np.zeros(0, np.int64)


def labelled_images(
    name_or_path: str, data: Path, *, packed: Path | None, beside: Path, edits: Path | None = None
) -> tuple[Task, PackedSource, Labels]:
    """Return a task with all that is worked out from its data, its packed train images, and their labels by row.

    Args:
        name_or_path: The task.
        data: Its data folder.
        packed: The packed store; None: in or below `beside`.
        beside: Where a store is looked for, or made.
        edits: The file of edits to the labels.

    Raises:
        KitError: When data and task do not fit together.
    """
    task = read_task(name_or_path)
    check_root(data)
    task = resolve_classes(resolve_stored(task, data), data)
    labels = read_edited_labels(task, data, edits, say=say)
    source = pack_train(task, data, packed, beside=beside)
    return task, source, _labels_by_row(labels, _added_labels(task, source), source)


def fit_together(task: Task, labels: Labels, folds: Folds, source: Store, *, pseudo: Labels | None = None) -> TrainData:
    """Join images, labels and folds by id, leaving out broken images, aloud.

    Args:
        task: The competition.
        labels: Of its train images.
        folds: Who validates what.
        source: Its images, and others that were added.
        pseudo: Labels of images in `source` that train every fold; their combinations make none seen.

    Raises:
        DataError: When the folds were made from other labels, or added images have other classes.
    """
    _check_same_labels(folds, labels)
    labels, folds = _usable(labels, folds, source)
    added = _added_labels(task, source)
    folds = _with_unseen(folds, labels, added)
    if pseudo is not None:
        added = _joined(added, pseudo)
    return TrainData(
        source=source,
        labels=labels,
        folds=folds,
        by_row=_labels_by_row(labels, added, source),
        rows=rows_of(labels.ids, source.ids),
        added_rows=rows_of(added.ids, source.ids),
    )


def _check_same_labels(folds: Folds, labels: Labels) -> None:
    theirs, own = edits_key(folds.edits), edits_key(labels.edits)
    if theirs != own:
        made = f"with edits (hash {theirs})" if theirs else "without edits"
        now = f"edits of hash {own} are given" if own else "none are given"
        repair = (
            "make the folds again with these: `kaggle-kit folds TASK DATA --out FOLDS --edits FILE`"
            if own
            else "give `edits` the file that the folds had, or make them again without"
        )
        raise DataError(f"the folds were made {made}, and now {now}; {repair}")
    found = labels_hash(labels)
    if folds.data_hash != found:
        raise DataError(
            f"the folds were made from other labels (hash {folds.data_hash}, now {found}); "
            "make them again with `kaggle-kit folds`"
        )


def _usable(labels: Labels, folds: Folds, source: Store) -> tuple[Labels, Folds]:
    folds = folds.align(labels.ids)
    broken = np.isin(labels.ids, list(source.broken))
    if broken.any():
        names = labels.ids[broken]
        reason = source.broken[str(names[0])]
        say(f"{len(names):,} broken image(s) left out of training: {some_of(names)}; the first: {reason}")
    kept = labels.take(np.flatnonzero(~broken))
    return kept, folds.align(kept.ids)


def _with_unseen(folds: Folds, labels: Labels, added: Labels) -> Folds:
    """Return folds that mark as unseen what no image that really trains shows: no broken one, but added ones too."""
    always = np.full(len(added), -1, np.int64)
    unseen = unseen_rows(_joined(labels, added), np.concatenate([folds.fold, always]))
    return dataclasses.replace(folds, unseen=unseen[: len(labels)])


def _added_labels(task: Task, source: Store) -> Labels:
    """Return the labels of images that were packed under a tag: they train every fold and validate none."""
    added = Labels(
        ids=np.zeros(0, np.str_),
        classes={name: _unknown(head.num_classes, 0, kind=head.kind) for name, head in task.heads.items()},
        auxiliary={name: np.zeros(0, np.int64) for name in task.auxiliary},
    )
    for tagged in tagged_of(source.folder):
        if tagged.task.heads != task.heads:
            raise DataError(
                f"images tagged {tagged.tag!r} have heads {list(tagged.task.heads)} or other classes, expected those "
                f"of {task.name!r}: {list(task.heads)}; give both tasks the same `heads`, and pack again"
            )
        labels = tagged.labels()
        labels = labels.take(np.flatnonzero(~np.isin(labels.ids, list(source.broken))))
        say(f"{len(labels):,} images tagged {tagged.tag!r} train every fold; none is validated on them")
        unknown = {name: np.full(len(labels), -1, np.int64) for name in task.auxiliary}
        added = _joined(added, dataclasses.replace(labels, auxiliary=unknown))
    return added


def _joined(first: Labels, second: Labels) -> Labels:
    """Return the labels of both, without groups."""
    return Labels(
        ids=np.concatenate([first.ids, second.ids]),
        classes={head: np.concatenate([values, second.classes[head]]) for head, values in first.classes.items()},
        auxiliary={head: np.concatenate([values, second.auxiliary[head]]) for head, values in first.auxiliary.items()},
    )


def _labels_by_row(labels: Labels, added: Labels, source: Store) -> Labels:
    """Return labels in the source's row order; rows without a label get class 0 and are never trained on."""
    both = _joined(labels, added)
    rows = rows_of(source.ids, both.ids)

    def placed(values: npt.NDArray[Any], empty: int) -> npt.NDArray[Any]:
        found = values[np.maximum(rows, 0)]
        found[rows < 0] = empty
        return found

    return Labels(
        ids=source.ids,
        classes={head: placed(values, 0) for head, values in both.classes.items()},
        auxiliary={head: placed(values, -1) for head, values in both.auxiliary.items()},
    )


def _unknown(num_classes: int, num_rows: int, *, kind: str) -> npt.NDArray[Any]:
    if kind == "multilabel":
        return np.zeros((num_rows, num_classes), np.uint8)
    return np.zeros(num_rows, np.int64)
