"""What tells an image's class without a look at what it shows: its size, its file's, colour or none, its row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.pictures import Images
from kaggle_kit.labels import Labels
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
CLEAR = 0.1  # of a property's ranks, the share that classes explain
FEWEST = 100
PROPERTIES = {"num_bytes": "file size", "height": "height", "width": "width"}
COLOUR, ROW_ORDER = "colour", "row order"


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Something that tells an image's class without a look at what it shows.

    Attributes:
        head: The head it tells.
        name: "file size", "height", "width", "row order", or "colour": whether there is any, which a network sees.
        strength: 0 to 1: the share of its ranks that classes explain beyond chance; of the row order, how much more
            often than by chance a row's neighbour has its class.
        text: One sentence.
    """

    head: str
    name: str
    strength: float
    text: str


def find_leaks(images: Images, labels: Labels, task: Task) -> tuple[Leak, ...]:
    """Return what tells classes so, the strongest first; of heads that say one class an image.

    Args:
        images: All images.
        labels: Of the train images that have some, in their file's order.
        task: The competition.
    """
    train = images.rows("train")
    rows = rows_of(labels.ids, images.id[train])
    known = rows >= 0
    sound = np.flatnonzero(known)[images.readable[train[rows[known]]]]
    if len(sound) < FEWEST:
        return ()
    at = train[rows[sound]]
    found = []
    for head, classes in labels.classes.items():
        if classes.ndim == 2:
            continue
        for name, shown in PROPERTIES.items():
            strength = _explained(getattr(images, name)[at].astype(np.float64), classes[sound])
            text = f"The {shown} of an image tells its {head}: classes explain {strength:.0%} of it"
            found.append(Leak(head=head, name=shown, strength=strength, text=text))
        strength = _explained(images.gray[at].astype(np.float64), classes[sound])
        text = f"Whether an image has colour tells its {head}: classes explain {strength:.0%} of it"
        found.append(Leak(head=head, name=COLOUR, strength=strength, text=text))
        if task.labels.file:  # folders are read class by class
            strength = _neighbours(classes)
            text = f"The rows are sorted by {head}: neighbours share it {strength:.0%} more often than by chance"
            found.append(Leak(head=head, name=ROW_ORDER, strength=strength, text=text))
    return tuple(sorted((leak for leak in found if leak.strength > CLEAR), key=lambda leak: -leak.strength))


def _explained(values: Values, classes: Ints) -> float:
    """Return the share of the variance of ranks that lies between classes, less what chance gives; 0 for none."""
    unique, inverse = np.unique(values, return_inverse=True)
    present, classes = np.unique(classes, return_inverse=True)
    if len(unique) < 2 or len(present) < 2 or len(values) <= len(present):
        return 0.0
    counts = np.bincount(inverse.ravel())
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]  # ties share their mean rank
    sizes = np.bincount(classes.ravel())
    means = np.bincount(classes.ravel(), ranks) / sizes
    between = float((sizes * (means - ranks.mean()) ** 2).sum() / ((ranks - ranks.mean()) ** 2).sum())
    return max(0.0, 1 - (1 - between) * (len(values) - 1) / (len(values) - len(present)))


def _neighbours(classes: Ints) -> float:
    shares = np.bincount(classes) / len(classes)
    expected = float((shares**2).sum())
    if expected >= 1:
        return 0.0
    return max(0.0, (float((classes[1:] == classes[:-1]).mean()) - expected) / (1 - expected))
