"""The classes that the label file gives to an audit's images, as it writes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kaggle_kit.errors import DataError, did_you_mean
from kaggle_kit.labels import Labels
from kaggle_kit.task import Task


class FileLabels:
    """Classes by row of the audit, those of auxiliary heads too."""

    def __init__(self, task: Task, labels: Labels, rows: Sequence[int]) -> None:
        """Take over labels.

        Args:
            task: The competition, classes of auxiliary heads known.
            labels: As the label file has them.
            rows: Where each of the audit's images is in `labels`; -1 for those that are not there.
        """
        self._heads, self._rows = task.trained_heads, rows
        self._classes = {**labels.classes, **labels.auxiliary}

    def of(self, row: int) -> dict[str, str]:
        """Return {head: class} of an image; nothing of one without labels."""
        return {head: self.at(row, head) for head in self._heads} if self._rows[row] >= 0 else {}

    def at(self, row: int, head: str) -> str:
        """Return the class of an image; empty for no class of several, and where an auxiliary one is not known."""
        known = self._heads[head]
        value = self._classes[head][self._rows[row]]
        if np.ndim(value):
            return known.separator.join(known.class_values[one] for one in np.flatnonzero(value))
        return known.class_values[int(value)] if value >= 0 else ""

    def checked(self, head: str, value: str) -> str:
        """Return a value as files write it, several classes in their order.

        Raises:
            DataError: When there is no such head or class.
        """
        known = self._heads.get(head)
        if known is None:
            raise DataError(f"there is no head {head!r}{did_you_mean(head, self._heads)}")
        is_set = known.kind == "multilabel"
        parts = [part.strip() for part in value.split(known.separator) if part.strip()] if is_set else [value]
        for part in parts:
            if part not in known.class_values:
                raise DataError(f"{part!r} is no class of head {head!r}{did_you_mean(part, known.class_values)}")
        return known.separator.join(one for one in known.class_values if one in parts)
