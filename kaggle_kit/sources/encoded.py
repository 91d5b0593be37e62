"""Encoded images (JPEG, PNG, ...) by row, wherever their bytes lie: decoded by all cores, some images ahead."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from kaggle_kit.errors import ImageError
from kaggle_kit.machine import decoding_pool
from kaggle_kit.pixels import Image, read_stored
from kaggle_kit.sources.protocol import Chunk, OnBroken, Shape, split_rows
from kaggle_kit.tables import Text, check_unique
from kaggle_kit.task import Stored

MAX_IMAGES_AT_ONCE = 128
BYTES_AT_ONCE = 32 << 20
VARYING_AT_ONCE = 16
IMAGES_A_JOB = 8
ROWS_A_PART = 8192
MAX_FILE_BYTES = 1 << 30


class Blobs(Protocol):
    """The encoded bytes of images by row; pickles as paths, so that another process opens them itself."""

    def read(self, row: int) -> bytes | memoryview:
        """Return the encoded bytes of image `row`; called by several threads.

        Raises:
            ImageError: When these bytes cannot be had.
        """
        ...

    def name(self, row: int) -> str:
        """Return where image `row` lies, for messages."""
        ...

    def files(self) -> list[Path]:
        """Return the files read from."""
        ...

    def num_bytes(self) -> int:
        """Return how many bytes the encoded images take."""
        ...

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        ...


class _Known(NamedTuple):
    sizes: list[tuple[int, int]]
    broken: dict[str, str]


# One array, or one array an image where shapes vary.
Images = Any


class EncodedSource:
    """Encoded images as a `Source`."""

    def __init__(
        self, blobs: Blobs, *, ids: Text, channels: int, stored: Stored | None, on_broken: OnBroken = "error"
    ) -> None:
        check_unique(ids, blobs.describe())
        self.ids = ids
        self.blobs = blobs
        self.shape: Shape | Literal["varies"] = (stored.height, stored.width, channels) if stored else "varies"
        self._channels = channels
        self.stored = stored
        self._on_broken = on_broken

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Callable[[], EncodedSource], tuple[()]]:
        """Pickle by what it was made of: another process opens the files itself."""
        return functools.partial(
            EncodedSource,
            self.blobs,
            ids=self.ids,
            channels=self._channels,
            stored=self.stored,
            on_broken=self._on_broken,
        ), ()

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return self.blobs.describe()

    def files(self) -> list[Path]:
        """Return the files that the images are read from."""
        return self.blobs.files()

    def encoded_bytes(self) -> int:
        """Return how many bytes the encoded images take."""
        return self.blobs.num_bytes()

    def encoded(self, row: int) -> bytes | memoryview:
        """Return the encoded bytes of image `row`.

        Raises:
            ImageError: Naming the image and where it lies, when they cannot be had.
        """
        try:
            return self.blobs.read(row)
        except ImageError as error:
            raise self._named(row, error) from None

    def parts(self) -> list[range]:
        """Return ranges of 8,192 rows."""
        return split_rows(0, len(self), ROWS_A_PART)

    def read(self, row: int) -> Image:
        """Return image `row`.

        Raises:
            ImageError: Naming the image and where it lies, when it cannot be decoded.
        """
        return self.read_with_size(row)[0]

    def read_with_size(self, row: int) -> tuple[Image, tuple[int, int]]:
        """Return image `row`, and its height and width before it was brought to the stored size."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        try:
            return read_stored(self.blobs.read(row), channels=self._channels, stored=self.stored)
        except ImageError as error:
            raise self._named(row, error) from None

    def _named(self, row: int, error: ImageError) -> ImageError:
        return ImageError(f"image {str(self.ids[row])!r}, {self.blobs.name(row)}: {error}")

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        """Yield images in row order, at most 128 or 32 MB at a time, while as many are decoded ahead by all cores."""
        at_once = VARYING_AT_ONCE
        if self.shape != "varies":
            at_once = max(1, min(MAX_IMAGES_AT_ONCE, BYTES_AT_ONCE // math.prod(self.shape)))
        groups = split_rows(start, len(self) if stop is None else min(stop, len(self)), at_once)
        with decoding_pool() as pool:
            ahead = self._submit(pool, groups[0], into) if groups else None
            for rows, following in itertools.pairwise([*groups, range(0)]):
                assert ahead is not None
                block, jobs = ahead
                ahead = self._submit(pool, following, into)
                yield from self._as_chunks(rows, block, [job.result() for job in jobs])

    def _submit(self, pool: ThreadPoolExecutor, rows: range, into: Image | None) -> tuple[Images, list[Future[_Known]]]:
        """Start decoding rows into an array, or into a list where shapes vary."""
        block: Images = [None] * len(rows)
        if into is not None:
            block = into[rows.start : rows.stop]
        elif self.shape != "varies":
            block = np.empty((len(rows), *self.shape), np.uint8)
        return block, [
            pool.submit(self._decode, part, block, part.start - rows.start)
            for part in split_rows(rows.start, rows.stop, IMAGES_A_JOB)
        ]

    def _decode(self, rows: range, block: Images, place: int) -> _Known:
        known = _Known([], {})
        for at, row in enumerate(rows, start=place):
            try:
                block[at], size = self.read_with_size(row)
            except ImageError as error:
                if self._on_broken == "error":
                    raise
                known.broken[str(self.ids[row])] = str(error)
                block[at] = np.zeros((1, 1, self._channels) if self.shape == "varies" else self.shape, np.uint8)
                size = (0, 0)
            known.sizes.append(size)
        return known

    def _as_chunks(self, rows: range, block: Images, known: list[_Known]) -> Iterator[Chunk]:
        sizes = np.array([size for part in known for size in part.sizes], np.int32).reshape(-1, 2)
        broken = {name: reason for part in known for name, reason in part.broken.items()}
        one_shape = [(0, len(block))] if isinstance(block, np.ndarray) else _runs_of_one_shape(block)
        for first, last in one_shape:
            start, stop = rows.start + first, rows.start + last
            images = block[first:last] if isinstance(block, np.ndarray) else np.stack(block[first:last])
            ids = self.ids[start:stop]
            named = {name: broken[name] for name in ids.tolist() if name in broken} if broken else {}
            yield Chunk(start=start, ids=ids, images=images, sizes=sizes[first:last], broken=named)


def _runs_of_one_shape(images: list[Image]) -> Iterator[tuple[int, int]]:
    start = 0
    for at in range(1, len(images) + 1):
        if at == len(images) or images[at].shape != images[start].shape:
            yield start, at
            start = at
