"""Two packed stores as one: the train images, and images of the test that earlier predictions labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.pixels import Image
from kaggle_kit.sources.packed import PackedSource
from kaggle_kit.tables import Text

Ints = npt.NDArray[np.int64]


class StackedStores:
    """The rows of one store, followed by those of another, whose ids are written `tag/id`.

    Attributes:
        ids: (N,) of both.
        shape: (H, W, C) of every image.
        broken: {id: reason} of both.
    """

    def __init__(self, first: PackedSource, second: PackedSource, *, tag: str) -> None:
        """Stack stores of images of one shape.

        Args:
            first: Keeps its ids and rows.
            second: Its rows come after.
            tag: Goes before its ids.
        """
        assert first.shape == second.shape, f"{first.shape} and {second.shape}"
        self._first = first
        self._second = second
        self.shape = first.shape
        self.ids: Text = np.concatenate([first.ids, np.char.add(f"{tag}/", second.ids)])
        self.broken = {**first.broken, **{f"{tag}/{name}": reason for name, reason in second.broken.items()}}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def folder(self) -> Path:
        """Where the first store lies."""
        return self._first.folder

    @property
    def key(self) -> str:
        """Changes with the images of the first store."""
        return self._first.key

    @property
    def num_bytes(self) -> int:
        """What the images take on the disk."""
        return self._first.num_bytes + self._second.num_bytes

    def take(self, rows: Ints) -> Image:
        """Return (rows, H, W, C) uint8 images, in this order."""
        later = rows >= len(self._first)
        if not later.any():
            return self._first.take(rows)
        images = np.empty((len(rows), *self.shape), np.uint8)
        images[~later] = self._first.take(rows[~later])
        images[later] = self._second.take(rows[later] - len(self._first))
        return images

    def duplicate_groups(self) -> Ints:
        """Return (N,) group numbers: images with the same pixels, in either store, are in one group."""
        hashes = np.concatenate([self._first.hashes, self._second.hashes])
        groups = np.unique(hashes, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
        broken = np.isin(self.ids, list(self.broken))
        groups[broken] = groups.max(initial=0) + 1 + np.arange(broken.sum())  # each in its own
        return groups
