"""Wide parquet: one row an image, one column a pixel, as bengaliai-cv19 ships its images.

A shard of 50,210 x 32,332 uint8 is 1.6 GB; pandas needs 8 GB to read one. Here 500 columns at a time are
read column-major and transposed into place by OpenCV, so that little more than the shard's pixels is held.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.pixels import Image, to_stored
from kaggle_kit.sources.protocol import Chunk
from kaggle_kit.tables import Text, check_unique
from kaggle_kit.task import Images, Stored

COLUMNS_AT_ONCE = 500


def find_shards(root: Path, pattern: str) -> list[Path]:
    """Return the shards that match, in the order of their numbers.

    Raises:
        DataError: When none matches, or a number is left out between two that are there.
    """
    try:
        shards = sorted(root.glob(pattern), key=lambda path: (_shard_number(path.name, pattern), path.name))
    except ValueError as error:
        raise DataError(
            f"{pattern!r} is no file pattern ({error}); write it like 'train_image_data_*.parquet'"
        ) from None
    if not shards:
        present = some_of(sorted(path.name for path in root.glob("*.parquet")))
        raise DataError(f"no file in {root} matches {pattern!r}; found {present or 'no parquet files'}")
    numbers = [_shard_number(path.name, pattern) for path in shards]
    absent = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if min(numbers) >= 0 else []
    if absent:
        raise DataError(f"shard {pattern.replace('*', str(absent[0]))} is missing from {root}; download it again")
    return shards


def _shard_number(name: str, pattern: str) -> int:
    """Return what stands for the pattern's one `*` where that is a small number, else -1: a date is none."""
    start, star, end = Path(pattern).name.partition("*")
    middle = name[len(start) : len(name) - len(end)]
    return int(middle) if star and "*" not in end and re.fullmatch(r"\d{1,3}", middle) else -1


class WideParquetSource:
    """Wide parquet shards as a `Source`; `chunks()` holds one row group of one shard at a time."""

    def __init__(self, shards: Sequence[Path], *, images: Images, stored: Stored) -> None:
        self._shards = list(shards)
        self._images = images
        self._stored = stored
        # Opened once: a footer of 32,332 columns takes 0.2 s to parse.
        self._files = [_open(path) for path in self._shards]
        self._lengths = [_check_shard(file, path, images) for file, path in zip(self._files, shards, strict=True)]
        parts = [_read_ids(file, images.id) for file in self._files]
        self.ids: Text = np.concatenate(parts) if parts else np.zeros(0, np.str_)
        self.shape: tuple[int, int, int] = (stored.height, stored.width, images.channels)
        check_unique(self.ids, self.describe())
        self._cached: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        names = [path.name for path in self._shards]
        return f"{self._shards[0].parent} ({some_of(names, 4)})"

    def read(self, row: int) -> Image:
        """Return image `row`; the shard it lies in stays in memory, so pack first to read at random."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        ends = np.cumsum(self._lengths)
        shard = int(np.searchsorted(ends, row, side="right"))
        if self._cached is None or self._cached[0] != shard:
            self._cached = None
            pixels = _read_pixels(self._files[shard], self._shards[shard], self._images)
            parts = [self._fitted(part) for part in pixels]
            self._cached = (shard, np.concatenate(parts))
        image: Image = self._cached[1][row - (int(ends[shard]) - self._lengths[shard])]
        return image

    def chunks(self) -> Iterator[Chunk]:
        """Yield all images in row order, a row group of a shard at a time."""
        start = 0
        for file, path in zip(self._files, self._shards, strict=True):
            for pixels in _read_pixels(file, path, self._images):
                yield Chunk(ids=self.ids[start : start + len(pixels)], images=self._fitted(pixels))
                start += len(pixels)

    def _fitted(self, pixels: Image) -> Image:
        images = pixels.reshape(len(pixels), self._images.height, self._images.width, self._images.channels)
        if images.shape[1:] == self.shape:
            return images
        out = np.empty((len(images), *self.shape), np.uint8)
        for row, image in enumerate(images):
            out[row] = to_stored(image, self._stored)
        return out


def _open(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({_first_line(error)}); download it again") from None


def _check_shard(file: Any, path: Path, images: Images) -> int:
    """Return the number of rows, after checking that every pixel column is there."""
    names = set(file.schema_arrow.names)
    if images.id not in names:
        raise DataError(f"{path} has no column {images.id!r}; set the task's `images.id` to one of its columns")
    wanted = images.height * images.width * images.channels
    missing = [str(i) for i in range(wanted) if str(i) not in names]
    if missing:
        raise DataError(
            f"{path} lacks pixel column(s) {some_of(missing)}; {images.height} x {images.width} x {images.channels} "
            f"needs '0' to '{wanted - 1}'; download it again or mend the task's `images`"
        )
    if str(wanted) in names:
        pixels = sum(name.isdigit() for name in names)
        raise DataError(
            f"{path} has {pixels:,} pixel columns; {images.height} x {images.width} x {images.channels} are "
            f"{wanted:,}; mend the task's `images.height` and `images.width`"
        )
    return int(file.metadata.num_rows)


def _read_ids(file: Any, column: str) -> Text:
    table = file.read(columns=[column])
    return np.array([str(value) for value in table.column(0).to_pylist()], dtype=np.str_)


def _read_pixels(file: Any, path: Path, images: Images) -> Iterator[Image]:
    """Yield (n, pixels) uint8 for each row group that has rows."""
    import cv2
    import pyarrow as pa

    num_pixels = images.height * images.width * images.channels
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        if num_rows == 0:
            continue
        out = np.empty((num_rows, num_pixels), np.uint8)
        for start in range(0, num_pixels, COLUMNS_AT_ONCE):
            names = [str(i) for i in range(start, min(start + COLUMNS_AT_ONCE, num_pixels))]
            try:
                table = file.read_row_group(group, columns=names)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} is damaged ({_first_line(error)}); download it again") from None
            block = np.stack([_pixel_column(path, name, table.column(name)) for name in names])
            out[:, start : start + len(names)] = cv2.transpose(block)
        yield out


def _pixel_column(path: Path, name: str, column: Any) -> npt.NDArray[np.uint8]:
    values = np.asarray(column.to_numpy())
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path} column {name!r} is {column.type}; expected integers 0 to 255")
    whole = values.astype(np.uint8, casting="unsafe") if np.isfinite(values).all() else np.zeros(0, np.uint8)
    if len(whole) != len(values) or (whole != values).any():
        shown = values[0] if len(whole) != len(values) else values[whole != values][0]
        raise DataError(f"{path} column {name!r} holds {shown}; expected integers 0 to 255")
    return whole


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
