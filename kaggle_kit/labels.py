"""What the label file, or the folder of a class, says: a class index for each head of each train image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.sources.arrays import read_array
from kaggle_kit.sources.files import list_class_folders
from kaggle_kit.tables import Text, check_unique, read_columns, rows_of
from kaggle_kit.task import Head, Task

Classes = dict[str, npt.NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels by id.

    Attributes:
        ids: (N,) image ids, no two alike.
        classes: {head: (N,) int64 class indices}.
        groups: (N,) group names from the task's `groups` column, or None.
    """

    ids: Text
    classes: Classes
    groups: Text | None = None

    def __post_init__(self) -> None:
        for head, classes in self.classes.items():
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
        groups = None if self.groups is None else self.groups[rows]
        return Labels(ids=self.ids[rows], classes={h: v[rows] for h, v in self.classes.items()}, groups=groups)

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
        """Return (N, heads) class indices, one column a head."""
        return np.stack(list(self.classes.values()), axis=1)


def _nan_text(classes: npt.NDArray[np.int64]) -> str:
    lacking = int(np.isnan(classes).sum()) if classes.dtype.kind == "f" else 0
    return f"; {lacking:,} are NaN: leave those images out" if lacking else ""


def read_labels(task: Task, root: Path) -> Labels:
    """Read the task's label file.

    Raises:
        DataError: For a missing file or column, a repeated id, no rows, or a value that is none of a head's classes.
    """
    path = root / task.labels.file
    ids, table = _label_table(task, root)
    if not len(ids):
        raise DataError(f"{path} has no rows; expected one row a train image")
    check_unique(ids, path)
    classes = {name: class_indices(head, table[name], ids, path) for name, head in task.heads.items()}
    return Labels(ids=ids, classes=classes, groups=table[task.groups] if task.groups else None)


def _label_table(task: Task, root: Path) -> tuple[Text, dict[str, Text]]:
    """Return the ids and the columns of heads and groups, as text."""
    if not task.labels.file:
        found = list_class_folders(root / task.images.folder, suffix=task.images.suffix)
        (head,) = task.heads
        return np.array(list(found), np.str_), {head: np.array(list(found.values()), np.str_)}
    if not task.labels.is_csv:
        return _array_table(task, root / task.labels.file)
    columns = [task.labels.id, *task.heads, *([task.groups] if task.groups else [])]
    table = read_columns(root / task.labels.file, list(dict.fromkeys(columns)))
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


def class_indices(head: Head, values: Text, ids: Text, where: object) -> npt.NDArray[np.int64]:
    """Return the class index of each value as files write it.

    Raises:
        DataError: Naming the first id whose value is none of the head's classes.
    """
    known = {value: index for index, value in enumerate(head.class_values)}
    unique, inverse = np.unique(values, return_inverse=True)
    indices = np.array(
        [known.get(str(value), known.get(_without_point(str(value)), -1)) for value in unique], np.int64
    )[inverse]
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


def _without_point(value: str) -> str:
    """Return `3` for `3.0`: pandas writes integer columns so when one row was empty."""
    return value[:-2] if value.endswith(".0") and value[:-2].isdigit() else value


def unseen_combinations(labels: Labels, train: Labels) -> npt.NDArray[np.bool_]:
    """Return (N,) True where a row's combination of heads does not occur in `train`."""
    seen = {tuple(row) for row in train.combinations().tolist()}
    return np.array([tuple(row) not in seen for row in labels.combinations().tolist()], bool)
