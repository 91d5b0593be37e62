"""Wide parquet: one row an image, one column a pixel, as bengaliai-cv19 ships its images.

A shard of 50,210 x 32,332 uint8 is 1.6 GB; pandas peaks at nearly five times that on the
way to images. Here a few threads read up to 500 columns each, column-major, and OpenCV transposes them into
place, so that a quarter more than the shard's pixels is held; `benchmarks/data.py` measures it.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.sources.fitting import fit_images
from kaggle_kit.sources.protocol import Chunk, Shape, split_rows
from kaggle_kit.tables import Text, check_unique, rename_repeats
from kaggle_kit.task import Images, Stored

MAX_COLUMNS_AT_ONCE = 500
VALUES_AT_ONCE = 12_600_000  # 250 columns of the largest shards: less held at once than with 500
# Pieces of a shard are allocated apart, so that one is freed as soon as its consumer lets go of it.
ROWS_A_PIECE = 4096
ROWS_FOR_THREADS = 10_000  # below it, Arrow's own threads cost more than they bring
MAX_READERS = 4  # each holds a few hundred megabytes of a large shard's columns


def find_shards(root: Path, pattern: str) -> list[Path]:
    """Return the shards that match, in the order of their numbers.

    Raises:
        DataError: When none matches, or a number is left out between two that are there.
    """
    try:
        shards = sorted(root.glob(pattern), key=lambda path: (_shard_number(path.name, pattern), path.name))
    except (ValueError, NotImplementedError) as error:
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
    """Wide parquet shards as a `Source`; `chunks()` holds one row group of one shard and a piece of the one before."""

    def __init__(
        self, shards: Sequence[Path], *, images: Images, stored: Stored | None, repeats_ok: bool = False
    ) -> None:
        self._shards = [_Shard(path, images) for path in shards]
        self._images = images
        self.stored = stored
        parts = []
        for number, shard in enumerate(self._shards, start=1):
            parts.append(shard.read_ids())
            if number < len(self._shards):
                shard.close()
        ids = np.concatenate(parts) if parts else np.zeros(0, np.str_)
        self.ids: Text = rename_repeats(ids) if repeats_ok else ids
        self._repeats_ok = repeats_ok
        own = (images.height, images.width, images.channels)
        self.shape: Shape = own if stored is None else (stored.height, stored.width, images.channels)
        check_unique(self.ids, self.describe())
        self._cached: tuple[range, list[Image]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Callable[[], WideParquetSource], tuple[()]]:
        """Pickle as paths: another process opens the shards itself."""
        paths = [shard.path for shard in self._shards]
        return functools.partial(
            WideParquetSource, paths, images=self._images, stored=self.stored, repeats_ok=self._repeats_ok
        ), ()

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return f"{self._shards[0].path.parent} ({some_of([shard.path.name for shard in self._shards], 4)})"

    def files(self) -> list[Path]:
        """Return the shards."""
        return [shard.path for shard in self._shards]

    def encoded_bytes(self) -> None:
        """Return None: the shards hold bare pixels."""
        return

    def encoded(self, row: int) -> None:
        """Return None: a shard holds bare pixels."""
        return

    def parts(self) -> list[range]:
        """Return the rows of each row group: a row group cannot be read in part."""
        return [rows for _, _, rows in self._groups() if len(rows)]

    def read(self, row: int) -> Image:
        """Return image `row`; the row group it lies in stays in memory, so pack first to read at random."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        if self._cached is None or row not in self._cached[0]:
            self._cached = None
            shard, group, rows = next(found for found in self._groups() if row in found[2])
            self._cached = (rows, [self._fitted(piece) for piece in shard.read_group(group)])
        rows, pieces = self._cached
        piece, place = divmod(row - rows.start, ROWS_A_PIECE)
        image: Image = pieces[piece][place]
        return image

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        """Yield images in row order, a few thousand at a time; a row group is read whole, then passed on in pieces."""
        wanted = range(start, len(self) if stop is None else stop)
        direct = into is not None and self.shape == (self._images.height, self._images.width, self._images.channels)
        for shard, group, rows in self._groups():
            if rows.stop <= wanted.start or rows.start >= wanted.stop:
                continue
            whole = direct and rows.start >= wanted.start and rows.stop <= wanted.stop
            target = into[rows.start : rows.stop] if whole and into is not None else None
            pieces = deque(shard.read_group(group, into=target))
            at = rows.start
            while pieces:
                piece = pieces.popleft()
                first, last = max(wanted.start - at, 0), min(wanted.stop - at, len(piece))
                if first < last:
                    yield self._chunk(at + first, piece[first:last], None if whole else into)
                at += len(piece)
            if group == len(shard.group_rows) - 1 and shard is not self._shards[-1]:
                shard.close()

    def _groups(self) -> Iterator[tuple[_Shard, int, range]]:
        start = 0
        for shard in self._shards:
            for group, num_rows in enumerate(shard.group_rows):
                yield shard, group, range(start, start + num_rows)
                start += num_rows

    def _chunk(self, start: int, pixels: Image, into: Image | None) -> Chunk:
        images = self._fitted(pixels)
        stop = start + len(images)
        if into is not None:
            into[start:stop] = images
            images = into[start:stop]
        sizes = np.tile(np.array([self._images.height, self._images.width], np.int32), (len(images), 1))
        return Chunk(start=start, ids=self.ids[start:stop], images=images, sizes=sizes)

    def _fitted(self, pixels: Image) -> Image:
        images = pixels.reshape(len(pixels), self._images.height, self._images.width, self._images.channels)
        return fit_images(images, self.stored)


class _Shard:
    """One parquet file; its footer of 32,332 columns takes 0.2 s to parse, and 0.1 GB while it is open."""

    def __init__(self, path: Path, images: Images) -> None:
        self.path = path
        self._id_column = images.id
        self._num_pixels = images.height * images.width * images.channels
        self._file: Any = _open(path)
        names = self._file.metadata.schema.names
        self._columns = _pixel_columns(names, path, images)
        self._id_place = names.index(images.id)
        metadata = self._file.metadata
        self.group_rows = [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]

    def close(self) -> None:
        """Let go of the footer; reading opens the file again."""
        self._file = None

    def read_ids(self) -> Text:
        import pyarrow as pa

        try:
            values = self._file.reader.read_all(column_indices=[self._id_place]).column(0).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(self.path, error) from None
        if len(values) != sum(self.group_rows):
            raise DataError(f"{self.path} is damaged ({len(values):,} values in a column); download it again")
        gaps = sum(value is None for value in values)
        if gaps:
            raise DataError(f"{self.path} column {self._id_column!r} lacks {gaps:,} ids; download it again")
        return np.array([str(value) for value in values], dtype=np.str_)

    def read_group(self, group: int, *, into: Image | None = None) -> list[Image]:
        """Return a row group's pixels as arrays of (n, pixels), or as views of `into` where it is given."""
        num_rows = self.group_rows[group]
        if into is None:
            pieces = [np.empty((len(r), self._num_pixels), np.uint8) for r in split_rows(0, num_rows, ROWS_A_PIECE)]
        else:
            flat = into.reshape(num_rows, self._num_pixels)
            pieces = [flat[r.start : r.stop] for r in split_rows(0, num_rows, ROWS_A_PIECE)]
        step = max(1, min(MAX_COLUMNS_AT_ONCE, VALUES_AT_ONCE // max(1, num_rows)))
        blocks = split_rows(0, self._num_pixels if num_rows else 0, step)
        num_readers = max(1, min(MAX_READERS, num_cores(), len(blocks)))
        self._file = self._file or _open(self.path)
        with ThreadPoolExecutor(num_readers) as pool:
            lanes = [blocks[lane::num_readers] for lane in range(num_readers)]
            jobs = [pool.submit(self._read_lane, group, lane, pieces, own=not n) for n, lane in enumerate(lanes)]
            for job in jobs:
                job.result()
        return pieces

    def _read_lane(self, group: int, blocks: list[range], pieces: list[Image], *, own: bool) -> None:
        """Fill these blocks of columns, through the shard's own reader or a new one: one reader serves one thread."""
        import cv2

        reader = self._file.reader if own else _open(self.path, self._file.metadata).reader
        for columns in blocks:
            block = _as_block(self._read_table(reader, group, columns), self.path)  # (columns, rows)
            at = 0
            for piece in pieces:
                target = piece[:, columns.start : columns.stop]
                written = cv2.transpose(block[:, at : at + len(piece)], dst=target)
                if written is not target:
                    target[:] = written
                at += len(piece)

    def _read_table(self, reader: Any, group: int, columns: range) -> Any:
        import pyarrow as pa

        wanted = self._columns[columns.start : columns.stop]
        threads = self.group_rows[group] >= ROWS_FOR_THREADS
        try:
            table = reader.read_row_group(group, column_indices=wanted, use_threads=threads)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from None
        if len(table) != self.group_rows[group]:
            raise DataError(f"{self.path} is damaged ({len(table):,} values in a column); download it again")
        return table


def _open(path: Path, metadata: Any = None) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, metadata=metadata)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a whole parquet file ({first_line(error)}); download it again") from None


def _pixel_columns(names: list[str], path: Path, images: Images) -> list[int]:
    """Return where columns "0", "1", ... are, after checking that there are just as many as pixels."""
    places = {name: place for place, name in enumerate(names)}
    wanted = images.height * images.width * images.channels
    found = [places.get(name, -1) for name in map(str, range(wanted))]
    if images.id not in places:
        raise DataError(f"{path} has no column {images.id!r}; set the task's `images.id` to one of its columns")
    missing = [str(i) for i, place in enumerate(found) if place < 0]
    if missing:
        raise DataError(
            f"{path} lacks pixel column(s) {some_of(missing)}; {images.height} x {images.width} x {images.channels} "
            f"needs '0' to '{wanted - 1}'; download it again or mend the task's `images`"
        )
    if str(wanted) in places:
        pixels = sum(name.isdigit() for name in names)
        raise DataError(
            f"{path} has {pixels:,} pixel columns; {images.height} x {images.width} x {images.channels} are "
            f"{wanted:,}; mend the task's `images.height` and `images.width`"
        )
    return found


def _as_block(table: Any, path: Path) -> npt.NDArray[np.uint8]:
    """Return (columns, rows) uint8."""
    import pyarrow as pa

    (batch,) = table.combine_chunks().to_batches()
    try:
        block = batch.to_tensor(row_major=False).to_numpy().T
    except (pa.ArrowException, TypeError):  # no numbers, or nulls: columns one by one, to name the first
        block = None
    if block is not None and block.dtype == np.uint8:
        return np.asarray(block)
    return np.stack([_pixel_column(path, name, table.column(name)) for name in table.column_names])


def _pixel_column(path: Path, name: str, column: Any) -> npt.NDArray[np.uint8]:
    values = np.asarray(column.to_numpy())
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path} column {name!r} is {column.type}; expected integers 0 to 255")
    whole = np.zeros(len(values), np.uint8)
    sound = np.isfinite(values) & (values >= 0) & (values <= 255)
    whole[sound] = values[sound].astype(np.uint8)
    if not sound.all() or (whole != values).any():
        raise DataError(f"{path} column {name!r} holds {values[whole != values][0]}; expected integers 0 to 255")
    return whole


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged ({first_line(error)}); download it again")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, cut to 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
