"""What the label file, or the folder of a class, says: a class index for each head of each train image."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.sources.arrays import read_array
from kaggle_kit.sources.files import list_class_folders
from kaggle_kit.tables import Text, check_unique, read_columns, read_header, rows_of
from kaggle_kit.task import Head, Task

if TYPE_CHECKING:
    from kaggle_kit.edits import Edit

Classes = dict[str, npt.NDArray[Any]]  # (N,) int64 class indices, or of multi-label heads (N, C) uint8 of 0 and 1


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels by id.

    Attributes:
        ids: (N,) image ids, no two alike.
        classes: {head: (N,) int64 class indices, or of multi-label heads (N, C) uint8 of 0 and 1}.
        groups: (N,) group names from the task's `groups` column, or None.
        auxiliary: {auxiliary head: (N,) int64 class indices, -1 where the class is not known}.
        edits: What was changed, and which images left out, against the label file.
    """

    ids: Text
    classes: Classes
    groups: Text | None = None
    auxiliary: Classes = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        for head, classes in self.classes.items():
            if classes.ndim == 2:
                _check_many(head, classes, len(self.ids))
                continue
            if classes.shape != self.ids.shape or classes.dtype.kind not in "iu":
                raise DataError(
                    f"head {head!r}: labels are {classes.dtype} {classes.shape}; expected {len(self.ids)} class "
                    f"indices as integers{_nan_text(classes)}"
                )
            below = int((classes < 0).sum())
            if below:
                raise DataError(f"head {head!r}: {below:,} label(s) are below 0; leave those images out")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: npt.NDArray[np.int64]) -> Labels:
        """Return the labels of these rows, in this order."""
        return Labels(
            ids=self.ids[rows],
            classes={head: values[rows] for head, values in self.classes.items()},
            groups=None if self.groups is None else self.groups[rows],
            auxiliary={head: values[rows] for head, values in self.auxiliary.items()},
            edits=self.edits,
        )

    def align(self, ids: Text) -> Labels:
        """Return the labels of these ids, in this order.

        Raises:
            DataError: When an id has no label.
        """
        rows = rows_of(ids, self.ids)
        if (rows < 0).any():
            missing = ids[rows < 0]
            raise DataError(
                f"{len(missing):,} of {len(ids):,} images have no label: {some_of(missing)}; "
                "check that images and label file belong together"
            )
        return self.take(rows)

    def group_numbers(self) -> npt.NDArray[np.int64] | None:
        """Return (N,) numbers, equal for images of one group; None where the task names no groups."""
        return None if self.groups is None else np.unique(self.groups, return_inverse=True)[1].ravel().astype(np.int64)

    def combinations(self) -> npt.NDArray[np.int64]:
        """Return (N, columns) integers, equal rows for images of one combination of classes.

        A head gives a column of its class indices; a multi-label head one column of 0 and 1 for each class.
        """
        return np.column_stack(list(self.classes.values())).astype(np.int64)


def _check_many(head: str, classes: npt.NDArray[Any], num_rows: int) -> None:
    if classes.dtype != np.uint8 or len(classes) != num_rows or classes.max(initial=0) > 1:
        raise DataError(
            f"head {head!r}: labels are {classes.dtype} {classes.shape}, up to {classes.max(initial=0)}; expected "
            f"({num_rows}, classes) uint8 of 0 and 1"
        )


def class_counts(classes: npt.NDArray[Any], head: Head) -> npt.NDArray[np.int64]:
    """Return (C,) how many images show each class, of a head's (N,) class indices or (N, C) of 0 and 1."""
    if classes.ndim == 2:
        return np.asarray(classes.sum(axis=0, dtype=np.int64))
    return np.bincount(classes, minlength=head.num_classes)


def class_shares(classes: npt.NDArray[Any], head: Head) -> npt.NDArray[np.float64]:
    """Return (C,) which share of the images shows each class; they sum to 1 but for multi-label heads."""
    return np.asarray(class_counts(classes, head) / max(len(classes), 1))


def _nan_text(classes: npt.NDArray[np.int64]) -> str:
    lacking = int(np.isnan(classes).sum()) if classes.dtype.kind == "f" else 0
    return f"; {lacking:,} are NaN: leave those images out" if lacking else ""


def read_labels(task: Task, root: Path) -> Labels:
    """Read the task's label file.

    A multi-label head's labels are one column of its name, which holds an image's classes with the head's separator
    between (an empty cell: none); or where the file has no such column, a column of 0 and 1 for each class, named as
    files write the class.

    Raises:
        DataError: For a missing file or column, a repeated id, no rows, or a value that is none of a head's classes.
    """
    path = root / task.labels.file
    ids, table = _label_table(task, root)
    if not len(ids):
        raise DataError(f"{path} has no rows; expected one row a train image")
    check_unique(ids, path)
    classes = {name: read_classes(head, table, ids, path) for name, head in task.heads.items()}
    auxiliary = {name: _auxiliary_indices(head, table[name], path) for name, head in task.auxiliary.items()}
    return Labels(ids=ids, classes=classes, groups=table[task.groups] if task.groups else None, auxiliary=auxiliary)


def resolve_classes(task: Task, root: Path) -> Task:
    """Return the task with the classes of auxiliary heads named that come from the labels: its columns' values, sorted.

    Raises:
        DataError: When the label file is missing or lacks a column.
        SettingError: When a column has fewer than two different values.
    """
    unresolved = [name for name, head in task.auxiliary.items() if not head.is_resolved]
    if not unresolved:
        return task
    table = read_columns(root / task.labels.file, unresolved)
    return dataclasses.replace(task, auxiliary={n: _resolved(h, table.get(n)) for n, h in task.auxiliary.items()})


def _resolved(head: Head, values: Text | None) -> Head:
    if values is None:
        return head
    names = tuple(np.unique(values[values != ""]).tolist())
    try:
        return head.with_classes(names)
    except SettingError as error:
        raise SettingError(f"auxiliary head {head.name!r}, with classes from its label column: {error}") from None


def _auxiliary_indices(head: Head, values: Text, where: object) -> npt.NDArray[np.int64]:
    """Return the class index of each value, -1 where it is empty or none of the classes."""
    if not head.is_resolved:
        head = _resolved(head, values)
    indices = _known_indices(head, values)
    if (indices < 0).all():
        raise DataError(
            f"{where}: column {head.name!r} holds no class of the auxiliary head, but {some_of(np.unique(values))}; "
            "mend the file, or the head's `classes` and `values` in the task"
        )
    return indices


def _label_table(task: Task, root: Path) -> tuple[Text, dict[str, Text]]:
    """Return the ids and the columns of heads and groups, as text."""
    if not task.labels.file:
        found = list_class_folders(root / task.images.folder, suffix=task.images.suffix)
        (head,) = task.heads
        return np.array(list(found), np.str_), {head: np.array(list(found.values()), np.str_)}
    if not task.labels.is_csv:
        return _array_table(task, root / task.labels.file)
    path = root / task.labels.file
    header = read_header(path) if task.multilabel_heads else []
    heads = [column for head in task.trained_heads.values() for column in label_columns(head, header)]
    columns = [task.labels.id, *heads, *([task.groups] if task.groups else [])]
    table = read_columns(path, list(dict.fromkeys(columns)))
    return table[task.labels.id], table


def _array_table(task: Task, path: Path) -> tuple[Text, dict[str, Text]]:
    values = read_array(path)
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or columns.shape[1] != len(task.heads) or columns.dtype.kind not in "iu":
        raise DataError(
            f"{path} is {values.dtype} {values.shape}; expected integers (N, {len(task.heads)}), one column a head"
        )
    if task.groups:
        raise DataError(f"{path} has no column {task.groups!r}, the task's `groups`; give labels as CSV")
    table = {head: column.astype(np.str_) for head, column in zip(task.heads, columns.T, strict=True)}
    return np.arange(len(columns)).astype(np.str_), table


def label_columns(head: Head, header: Collection[str]) -> list[str]:
    """Return the columns that hold a head's classes in a file of these columns."""
    is_spread = head.kind == "multilabel" and head.name not in header and set(head.class_values) & set(header)
    return list(head.class_values) if is_spread else [head.name]


def read_classes(head: Head, table: Mapping[str, Text], ids: Text, where: object) -> npt.NDArray[Any]:
    """Return a head's (N,) class indices, or (N, C) uint8 of a multi-label one, from columns of a file.

    Args:
        head: The head.
        table: {column: (N,) values}: the head's own column, or a multi-label head's classes.
        ids: (N,) what rows are called.
        where: What the file is called.

    Raises:
        DataError: Naming the first id whose value is none of the head's classes.
    """
    if head.kind != "multilabel":
        return class_indices(head, table[head.name], ids, where)
    if head.name in table:
        return class_sets(head, table[head.name], ids, where)
    return class_flags(head, table, ids, where)


def class_sets(head: Head, values: Text, ids: Text, where: object) -> npt.NDArray[np.uint8]:
    """Return (N, C) of 0 and 1 from cells that name classes with a separator between.

    Raises:
        DataError: Naming the first id whose cell names something else.
    """
    known = {value: index for index, value in enumerate(head.class_values)}
    unique, inverse = np.unique(values, return_inverse=True)
    sets = np.zeros((len(unique), head.num_classes), np.uint8)
    for row, cell in enumerate(unique.tolist()):
        for name in filter(None, map(str.strip, cell.split(head.separator))):
            if name not in known:
                place = int(np.argmax(values == cell))
                shown = ", ".join(head.class_values[:3]) + (" ..." if head.num_classes > 3 else "")
                raise DataError(
                    f"{where}: head {head.name!r} of {str(ids[place])!r} is {cell!r}, and {name!r} is none of its "
                    f"{head.num_classes} classes ({shown}); mend the file, or the head's `classes`, `values` and "
                    f"`separator` ({head.separator!r}) in the task"
                )
            sets[row, known[name]] = 1
    return sets[inverse.ravel()]


def class_flags(head: Head, table: Mapping[str, Text], ids: Text, where: object) -> npt.NDArray[np.uint8]:
    """Return (N, C) of 0 and 1 from a column for each class.

    Raises:
        DataError: Naming the first id where a column holds something else.
    """
    return np.column_stack([_flags(value, table[value], ids, where) for value in head.class_values])


def _flags(column: str, values: Text, ids: Text, where: object) -> npt.NDArray[np.uint8]:
    """Return (N,) 0 or 1 from a class's column."""
    ones, zeros = np.isin(values, ["1", "1.0"]), np.isin(values, ["0", "0.0"])
    wrong = ~(ones | zeros)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{where}: column {column!r} of {str(ids[row])!r} is {str(values[row])!r}; expected 0 or 1 in the column "
            f"of a class; {int(wrong.sum()):,} row(s) in all; mend the file"
        )
    return ones.astype(np.uint8)


def class_indices(head: Head, values: Text, ids: Text, where: object) -> npt.NDArray[np.int64]:
    """Return the class index of each value as files write it.

    Raises:
        DataError: Naming the first id whose value is none of the head's classes.
    """
    indices = _known_indices(head, values)
    if (indices < 0).any():
        row = int(np.argmax(indices < 0))
        lacking = int(np.isin(np.char.lower(values), ["", "nan", "null", "none"]).sum())
        empty = f", {lacking:,} of them without a label" if lacking else ""
        shown = ", ".join(head.class_values[:3]) + (" ..." if head.num_classes > 3 else "")
        raise DataError(
            f"{where}: head {head.name!r} of {str(ids[row])!r} is {str(values[row])!r}; expected one of its "
            f"{head.num_classes} classes ({shown}); {int((indices < 0).sum()):,} row(s) in all{empty}, "
            "mend the file, or the head's `classes` and `values` in the task"
        )
    return indices


def _known_indices(head: Head, values: Text) -> npt.NDArray[np.int64]:
    """Return the class index of each value, -1 where it is none of the classes."""
    known = {value: index for index, value in enumerate(head.class_values)}
    unique, inverse = np.unique(values, return_inverse=True)
    indices = [known.get(str(value), known.get(_without_point(str(value)), -1)) for value in unique]
    return np.array(indices, np.int64)[inverse]


def _without_point(value: str) -> str:
    """Return `3` for `3.0`: pandas writes integer columns so when one row was empty."""
    return value[:-2] if value.endswith(".0") and value[:-2].isdigit() else value


def unseen_combinations(labels: Labels, train: Labels) -> npt.NDArray[np.bool_]:
    """Return (N,) True where a row's combination of heads does not occur in `train`."""
    seen = {tuple(row) for row in train.combinations().tolist()}
    return np.array([tuple(row) not in seen for row in labels.combinations().tolist()], bool)
