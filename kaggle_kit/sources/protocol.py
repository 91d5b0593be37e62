"""What every image source offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from kaggle_kit.pixels import Image
from kaggle_kit.tables import Text

OnBroken = Literal["error", "blank"]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive images of a source.

    Attributes:
        ids: (n,) image ids.
        images: (n, H, W, C) uint8.
        broken: {id: reason} of images that could not be read; theirs are zeros.
    """

    ids: Text
    images: Image
    broken: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Images by row, each of the stored size.

    Attributes:
        ids: (N,) image ids, no two alike.
        shape: (H, W, C) of every image.
    """

    ids: Text
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        """Return the number of images N."""
        ...

    def read(self, row: int) -> Image:
        """Return image `row` as (H, W, C) uint8."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Yield all images in row order, each chunk small enough for memory."""
        ...

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        ...
