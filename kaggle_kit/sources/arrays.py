"""Images in one array: `.npy`, or the idx files of MNIST and Fashion-MNIST, gzipped or not."""

from __future__ import annotations

import functools
import gzip
import math
import tokenize
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError
from kaggle_kit.files import no_file
from kaggle_kit.pixels import Image
from kaggle_kit.sources.fitting import fit_images, match_channels
from kaggle_kit.sources.protocol import Chunk, Shape, read_parts, split_rows
from kaggle_kit.sources.wide_parquet import first_line
from kaggle_kit.tables import Text, check_unique
from kaggle_kit.task import Stored

CHUNK_BYTES = 32 << 20
MAX_DEFLATED = 1032  # bytes from one, at most; https://zlib.net/zlib_tech.html
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read a `.npy` file without copying it to memory, or an idx file, which may be gzipped.

    Raises:
        DataError: When it is missing, damaged, or neither of them.
    """
    if not path.is_file():
        raise DataError(no_file(path))
    try:
        return map_npy(path) if path.suffix == ".npy" else _read_idx(path)
    except (OSError, ValueError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} is no whole .npy or idx file ({first_line(error)}); download it again") from None


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file, memory-mapped.

    Raises:
        ValueError: When its header is damaged, or speaks of other than what follows it.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (SyntaxError, tokenize.TokenError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged header: {first_line(error)}") from None
    wanted = int(array.offset) + array.nbytes
    if wanted != path.stat().st_size:
        raise ValueError(f"{array.shape} of {array.dtype} need {wanted:,} bytes; it is {path.stat().st_size:,} long")
    return np.asarray(array)


def _read_idx(path: Path) -> npt.NDArray[Any]:
    """Read the format of http://yann.lecun.com/exdb/mnist: two zeros, type, dimensions, sizes, values."""
    with path.open("rb") as probe:
        zipped = probe.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if zipped else path.open("rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not 1 <= magic[3] <= 4:
            raise ValueError(f"it starts with {magic.hex(' ') or 'nothing'}")
        sizes = tuple(int.from_bytes(file.read(4), "big") for _ in range(magic[3]))
        kind = np.dtype(IDX_TYPES[magic[2]])
        wanted = math.prod(sizes) * kind.itemsize
        if wanted > path.stat().st_size * (MAX_DEFLATED if zipped else 1):
            raise ValueError(f"its header speaks of {wanted:,} bytes; it is {path.stat().st_size:,} long")
        data = file.read(wanted)
        if len(data) != wanted or file.read(1):
            raise ValueError(f"{' x '.join(map(str, sizes))} need {wanted:,} bytes; it holds {len(data):,} or more")
    return np.frombuffer(data, kind).reshape(sizes).astype(kind.newbyteorder("="), copy=False)


class ArraySource:
    """An array of images as a `Source`."""

    def __init__(self, path: Path, *, ids: Text | None, channels: int, stored: Stored | None) -> None:
        """Open the array.

        Args:
            path: (N, H, W) or (N, H, W, C) uint8.
            ids: (N,) ids of its rows; None: the row numbers.
            channels: Gray images are repeated for 3, colour turned to gray for 1.
            stored: The size images are brought to; None: they stay as they are.

        Raises:
            DataError: When the array is something else, or there are more or fewer ids than images.
        """
        images = read_array(path)
        _check_images(images, path, stored)
        if ids is not None and len(ids) != len(images):
            raise DataError(
                f"{path} holds {len(images):,} images for {len(ids):,} listed ids; one list belongs to another"
            )
        self._path = path
        self._images: Image = images if images.ndim == 4 else images[..., None]
        self._listed = ids
        self._channels = channels
        self.stored = stored
        self.ids: Text = np.arange(len(images)).astype(np.str_) if ids is None else ids
        height, width = images.shape[1:3] if stored is None else (stored.height, stored.width)
        self.shape: Shape | Literal["varies"] = (height, width, channels)
        check_unique(self.ids, path)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Callable[[], ArraySource], tuple[()]]:
        """Pickle as the path: another process maps the file itself."""
        make = functools.partial(ArraySource, self._path, ids=self._listed, channels=self._channels, stored=self.stored)
        return make, ()

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return str(self._path)

    def files(self) -> list[Path]:
        """Return the file."""
        return [self._path]

    def encoded_bytes(self) -> None:
        """Return None: the file holds bare pixels."""
        return

    def encoded(self, row: int) -> None:
        """Return None: an array holds bare pixels."""
        return

    def parts(self) -> list[range]:
        """Return ranges of rows of 32 MB."""
        return split_rows(0, len(self), max(1, CHUNK_BYTES // int(np.prod(self._images.shape[1:]))))

    def read(self, row: int) -> Image:
        """Return image `row`."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        image: Image = self._fitted(range(row, row + 1))[0]
        return image

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        """Yield images in row order, 32 MB at a time: see `Source.chunks`."""
        last = len(self) if stop is None else stop
        for rows, images in read_parts(self.parts(), self._fitted, start=start, stop=last, into=into):
            sizes = np.tile(np.array(self._images.shape[1:3], np.int32), (len(rows), 1))
            yield Chunk(start=rows.start, ids=self.ids[rows.start : rows.stop], images=images, sizes=sizes)

    def _fitted(self, rows: range) -> Image:
        images = np.asarray(self._images[rows.start : rows.stop])
        return fit_images(match_channels(images, self._channels), self.stored)


def _check_images(images: npt.NDArray[Any], path: Path, stored: Stored | None) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise DataError(f"{path} is {images.dtype} {images.shape}; expected uint8 (N, height, width), or x 1 or x 3")
    height, width = images.shape[1:3]
    if not (height and width):
        raise DataError(f"{path} holds images of {height} x {width} pixels; expected at least 1 x 1")
    if stored is not None and stored.fit == "none" and (height, width) != (stored.height, stored.width):
        raise DataError(
            f"{path} holds images of {height} x {width}, the task stores {stored.height} x {stored.width} with fit "
            "none; set fit: stretch, letterbox or content"
        )
