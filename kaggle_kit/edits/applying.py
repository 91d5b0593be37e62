"""Labels as they are after edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.edits.edit import Edit, edits_in_force, edits_key, effective
from kaggle_kit.edits.log import Say, read_edits
from kaggle_kit.errors import DataError, did_you_mean
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels, class_indices, class_sets, read_labels, resolve_classes
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task


def read_edited_labels(task: Task, root: Path, edits: Path | None, *, say: Say | None = None) -> Labels:
    """Read a task's label file, and make the edits of a file to what it says.

    Args:
        task: The competition.
        root: Its data folder.
        edits: The edits file; None: none.
        say: Told what the edits come to, and of lines that a crash cut off.

    Raises:
        DataError: As `read_labels`, `read_edits` and `apply_edits`.
    """
    labels = read_labels(task, root)
    if edits is None:
        return labels
    edited = apply_edits(labels, read_edits(edits, say=say), resolve_classes(task, root), path=edits)
    if say is not None:
        say(f"{edits}: {describe_edits(edited.edits)}")
    return edited


def apply_edits(labels: Labels, edits: Sequence[Edit], task: Task, *, path: object) -> Labels:
    """Return labels with classes changed and dropped images left out; the same labels where edits do nothing.

    Args:
        labels: As the label file has them.
        edits: In the order they were taken.
        task: The competition, its auxiliary classes known.
        path: What the edits' file is called, for messages.

    Raises:
        DataError: Naming the line of an unknown id, head or class.
    """
    changes = edits_in_force(edits)
    if not changes:
        return labels
    rows = rows_of(np.array([edit.id for edit in changes], np.str_), labels.ids).tolist()
    relabels: dict[str, dict[int, Edit]] = {}
    dropped = []
    for edit, row in zip(changes, rows, strict=True):
        _check_known(edit, row, task, path)
        if edit.action == "drop":
            dropped.append(row)
        else:
            relabels.setdefault(edit.head, {})[row] = edit
    heads = {name: relabels.get(name, {}) for name in task.trained_heads}
    edited = dataclasses.replace(
        labels,
        classes={n: _relabelled(task.heads[n], own, heads[n], path) for n, own in labels.classes.items()},
        auxiliary={n: _relabelled(task.auxiliary[n], own, heads[n], path) for n, own in labels.auxiliary.items()},
        groups=_regrouped(labels.groups, relabels.get(task.groups or "", {})),
        edits=changes,
    )
    return edited.take(np.setdiff1d(np.arange(len(labels)), dropped)) if dropped else edited


def describe_edits(edits: Sequence[Edit]) -> str:
    """Return how many images edits relabel and how many they drop, each counted once, and the key of what they do."""
    found, key = effective(edits), edits_key(edits)
    changed = len(found.relabelled.keys() - found.dropped.keys())
    return f"{changed:,} image(s) relabelled, {len(found.dropped):,} dropped{f' (hash {key})' if key else ''}"


def _check_known(edit: Edit, row: int, task: Task, path: object) -> None:
    """Refuse an edit of an image or a head that there is not."""
    if row < 0:
        raise DataError(
            f"{path} line {edit.line}: {edit.id!r} is no labelled train image of {task.name!r}; mend the line's id, or "
            "undo it"
        )
    if edit.action == "relabel" and edit.head not in task.trained_heads:
        raise DataError(
            f"{path} line {edit.line}: {edit.head!r} is no head of {task.name!r}"
            f"{did_you_mean(edit.head, task.trained_heads)}; mend the line's head, or undo it"
        )


def _relabelled(head: Head, classes: npt.NDArray[Any], edits: Mapping[int, Edit], path: object) -> npt.NDArray[Any]:
    """Return a head's classes after the edits of it, by row."""
    changed = classes.copy()
    known: dict[str, Any] = {}
    for row, edit in edits.items():
        if edit.value not in known:
            known[edit.value] = _class_of(head, edit, f"{path} line {edit.line}")
        changed[row] = known[edit.value]
    return changed


def _class_of(head: Head, edit: Edit, where: str) -> Any:
    """Return the class index of an edit's value, or (C,) of 0 and 1."""
    values, ids = np.array([edit.value], np.str_), np.array([edit.id], np.str_)
    return (class_sets if head.kind == "multilabel" else class_indices)(head, values, ids, where)[0]


def _regrouped(groups: Text | None, relabels: Mapping[int, Edit]) -> Text | None:
    """Return groups after edits of the head whose column they are."""
    if groups is None or not relabels:
        return groups
    changed = groups.astype(object)  # a longer name would be cut to the longest there is
    for row, edit in relabels.items():
        changed[row] = edit.value
    return changed.astype(np.str_)
