"""What every image source offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from kaggle_kit.pixels import Image
from kaggle_kit.tables import Text
from kaggle_kit.task import Stored

OnBroken = Literal["error", "blank"]
Shape = tuple[int, int, int]
Sizes = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive images of a source.

    Attributes:
        start: The row of the first image.
        ids: (n,) image ids.
        images: (n, H, W, C) uint8.
        sizes: (n, 2) int32, height and width before they were brought to the stored size; 0 for broken images.
        broken: {id: reason} of images that could not be read; theirs are zeros.
    """

    start: int
    ids: Text
    images: Image
    sizes: Sizes
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """The row after the last image."""
        return self.start + len(self.ids)


class Source(Protocol):
    """Images by row.

    Attributes:
        ids: (N,) image ids, no two alike.
        stored: How encoded images are brought to the shape; None where they are read as they are.
        shape: (H, W, C) of every image, or "varies" where there is no stored size.
    """

    ids: Text
    stored: Stored | None

    @property
    def shape(self) -> Shape | Literal["varies"]:
        """(H, W, C) of every image, or "varies"."""
        ...

    def __len__(self) -> int:
        """Return the number of images N."""
        ...

    def read(self, row: int) -> Image:
        """Return image `row` as (H, W, C) uint8.

        Raises:
            ImageError: Naming the image, when it is broken.
        """
        ...

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        """Yield images in row order, each chunk small enough for memory.

        Where the shape varies, a chunk holds neighbours of one size.

        Args:
            start: The first row.
            stop: The row after the last; None: all.
            into: (N, H, W, C) uint8 to put image `row` into at `row`; the chunks are then views of it.
        """
        ...

    def parts(self) -> list[range]:
        """Return ranges of rows, in order and without gaps, that are each best read in one go."""
        ...

    def files(self) -> list[Path]:
        """Return the files that the images are read from."""
        ...

    def encoded_bytes(self) -> int | None:
        """Return how many bytes the encoded images take, or None where the source holds bare pixels."""
        ...

    def encoded(self, row: int) -> bytes | memoryview | None:
        """Return the encoded bytes of image `row`, or None where the source holds bare pixels."""
        ...

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        ...


def fixed_shape(source: Source) -> Shape:
    """Return the one shape of a source's images.

    Raises:
        ValueError: When the source was opened without a stored size.
    """
    if source.shape == "varies":
        raise ValueError(f"images of {source.describe()} have no stored size; open them with a task that has one")
    return source.shape


def read_parts(
    parts: Iterable[range], read: Callable[[range], Image], *, start: int, stop: int, into: Image | None
) -> Iterator[tuple[range, Image]]:
    """Yield ranges of rows and their images, of what lies from `start` to before `stop`.

    Args:
        parts: Ranges of rows, each read in one go.
        read: Returns the images of a range.
        start: The first row.
        stop: The row after the last.
        into: As for `Source.chunks`.
    """
    for part in parts:
        rows = range(max(part.start, start), min(part.stop, stop))
        if not rows:
            continue
        images = read(rows)
        if into is not None:
            into[rows.start : rows.stop] = images
            images = into[rows.start : rows.stop]
        yield rows, images


def split_rows(start: int, stop: int, size: int) -> list[range]:
    """Return ranges of at most `size` rows from `start` to `stop`."""
    return [range(at, min(at + size, stop)) for at in range(start, stop, size)]
