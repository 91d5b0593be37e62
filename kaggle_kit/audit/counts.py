"""How many images each class has: in all, in each fold, and with each class of another head."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.findings import Finding
from kaggle_kit.folds import Folds
from kaggle_kit.heads import Head
from kaggle_kit.labels import Classes, Labels, class_counts
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task

Ints = npt.NDArray[np.int64]
FOLDS_LIKELY, IMAGES_A_FOLD = 5, 2  # a class should have so many images in each fold
USUAL_SHARE = 0.05  # of the median class's images: a class with fewer is rare too


@dataclass(frozen=True, kw_only=True)
class HeadCounts:
    """A head's classes among the labelled images.

    Attributes:
        head: Its name.
        values: C classes as files write them.
        names: C names of the classes.
        count: (C,) labelled images of each class.
        by_fold: (num_folds, C) validating images of each class in each fold; (0, C) without folds.
        rare: Class indices with too few images to learn or to validate, rarest first; classes without any included.
        unlabelled: Images with no class at all, of a multi-label head, or no known one, of an auxiliary head; else 0.
    """

    head: str
    values: tuple[str, ...]
    names: tuple[str, ...]
    count: Ints
    by_fold: Ints
    rare: tuple[int, ...]
    unlabelled: int = 0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts per class, head, fold and split.

    Attributes:
        heads: {head: its counts}, auxiliary heads last.
        together: {(one head, another): (C one, C another) labelled images that show both}; of a multi-label head also
            {(head, head): (C, C)}. Of the task's heads, not of auxiliary ones.
        num_images: {"train": images, "test": images}, broken ones included, absent ones not.
        num_labelled: Train images with labels.
        num_combinations: Different combinations of all heads among labelled images.
        rarest_wanted: A class with fewer images is rare whatever the others have.
        fold_sizes: (num_folds,) validating images; empty without folds.
    """

    heads: dict[str, HeadCounts]
    together: dict[tuple[str, str], Ints]
    num_images: dict[str, int]
    num_labelled: int
    num_combinations: int
    rarest_wanted: int
    fold_sizes: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def count_classes(task: Task, labels: Labels, *, num_images: dict[str, int], folds: Folds | None = None) -> Counts:
    """Count the images of each class.

    Args:
        task: Classes of auxiliary heads known.
        labels: Of the train images that have some.
        num_images: {split: how many images there are}.
        folds: To count each fold's validating images too; labelled images without a fold count in none.
    """
    num_folds = folds.num_folds if folds is not None else 0
    fold = _fold_of(labels, folds)
    wanted = IMAGES_A_FOLD * (num_folds or FOLDS_LIKELY)
    heads = {
        name: _count_head(task.trained_heads[name], classes, fold, num_folds, wanted)
        for name, classes in {**labels.classes, **labels.auxiliary}.items()
    }
    return Counts(
        heads=heads,
        together=dict(_together(task, labels.classes)),
        num_images=num_images,
        num_labelled=len(labels),
        num_combinations=len(np.unique(labels.combinations(), axis=0)),
        rarest_wanted=wanted,
        fold_sizes=np.bincount(fold[fold >= 0], minlength=num_folds).astype(np.int64),
    )


def rare_findings(counts: Counts, task: Task) -> Iterator[Finding]:
    """Yield a finding for each rare class of the task's heads; its id is the class as files write it."""
    for name in task.heads:
        head = counts.heads[name]
        for place in head.rare:
            number = int(head.count[place])
            called = f" ({head.names[place]})" * (head.names[place] != head.values[place])
            many = "no image" if not number else "1 image" if number == 1 else f"{number:,} images"
            yield Finding(
                kind="rare_class",
                id=head.values[place],
                split="train",
                head=name,
                label=head.values[place],
                score=1 / (1 + number),
                detail=f"class {head.values[place]}{called} of {name} has {many}; the median class has "
                f"{int(np.median(head.count)):,}",
            )


def _fold_of(labels: Labels, folds: Folds | None) -> Ints:
    if folds is None:
        return np.full(len(labels), -1, np.int64)
    rows = rows_of(labels.ids, folds.ids)
    return np.where(rows >= 0, folds.fold[rows], -1)


def _count_head(head: Head, classes: npt.NDArray[np.integer], fold: Ints, num_folds: int, wanted: int) -> HeadCounts:
    known = classes if classes.ndim == 2 else classes[classes >= 0]
    known_fold = fold if classes.ndim == 2 else fold[classes >= 0]
    count = class_counts(known, head)
    by_fold = [class_counts(known[known_fold == number], head) for number in range(num_folds)]
    least = max(wanted, USUAL_SHARE * float(np.median(count)))
    return HeadCounts(
        head=head.name,
        values=head.class_values,
        names=head.class_names,
        count=count,
        by_fold=np.array(by_fold, np.int64).reshape(num_folds, head.num_classes),
        rare=tuple(place for place in np.argsort(count, kind="stable").tolist() if count[place] < least),
        unlabelled=int((~classes.any(axis=1)).sum()) if classes.ndim == 2 else len(classes) - len(known),
    )


def _together(task: Task, classes: Classes) -> Iterator[tuple[tuple[str, str], Ints]]:
    """Yield the matrix of each pair of heads, and of each multi-label head with itself."""
    pairs = [*itertools.combinations(task.heads, 2), *((name, name) for name in task.multilabel_heads)]
    for one, other in pairs:
        first, second = task.heads[one], task.heads[other]
        if classes[one].ndim == classes[other].ndim == 1:
            flat = classes[one] * second.num_classes + classes[other]
            matrix = np.bincount(flat, minlength=first.num_classes * second.num_classes)
            yield (one, other), matrix.reshape(first.num_classes, second.num_classes)
            continue
        shown = [_flags(classes[name], task.heads[name]) for name in (one, other)]
        yield (one, other), np.asarray(shown[0].T @ shown[1]).astype(np.int64)


def _flags(classes: npt.NDArray[np.integer], head: Head) -> npt.NDArray[np.float64]:
    """Return (N, C) of 0 and 1, as float64 for a fast product."""
    return (classes if classes.ndim == 2 else np.eye(head.num_classes)[classes]).astype(np.float64)
