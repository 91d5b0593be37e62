"""Parquet with one encoded image a row: a binary column, or Hugging Face's struct of `bytes` and `path`."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.errors import DataError, ImageError, did_you_mean, some_of
from kaggle_kit.sources.wide_parquet import first_line
from kaggle_kit.tables import Text

GROUPS_HELD = 4  # neighbouring rows of several small row groups are decoded at once


class ParquetBlobs:
    """Encoded images of parquet shards, a row group in memory at a time; see `kaggle_kit.sources.encoded.Blobs`."""

    def __init__(self, shards: Sequence[Path], *, image: str, id_column: str) -> None:
        """Open the shards.

        Args:
            shards: Files, in order.
            image: The column with the encoded bytes, or with a struct that has a field `bytes`.
            id_column: The column with the ids; a dotted name reaches into a struct, such as `image.path`.

        Raises:
            DataError: For a damaged file or a missing column.
        """
        self._shards = list(shards)
        self._image = image
        self._id_column = id_column
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._files: list[Any] = []
        self._process = -1
        groups = []
        for shard, file in enumerate(self._opened()):
            self._image_column(file, self._shards[shard])
            groups += [(shard, group, count) for group, count in enumerate(_group_rows(file, self._shards[shard]))]
        self._groups = groups
        self._stops = np.cumsum([count for _, _, count in groups], dtype=np.int64)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _reopen, (self._shards, self._image, self._id_column)

    def ids(self) -> Text:
        """Return the ids of all rows.

        Raises:
            DataError: When the id column is missing, of another type, damaged, or has gaps.
        """
        found: list[str] = []
        for path, file in zip(self._shards, self._opened(), strict=True):
            _check_id_column(file.schema_arrow, self._id_column, path)
            values = _read(path, lambda file=file: file.read(columns=[self._id_column]).column(0).to_pylist())
            if len(values) != file.metadata.num_rows:
                raise DataError(f"{path} is damaged ({len(values):,} values in a column); download it again")
            inner = self._id_column.partition(".")[2]
            values = [(value or {}).get(inner) for value in values] if inner else values
            gaps = sum(value is None for value in values)
            if gaps:
                raise DataError(f"{path} column {self._id_column!r} lacks {gaps:,} of {len(values):,} ids")
            found += [str(value) for value in values]
        return np.array(found, np.str_)

    def read(self, row: int) -> memoryview:
        """Return the encoded bytes of image `row`."""
        place = int(np.searchsorted(self._stops, row, side="right"))
        shard, group, count = self._groups[place]
        value = self._column(shard, group, count)[row - (int(self._stops[place]) - count)]
        if value.is_valid and isinstance(value, Mapping):  # a struct
            value = value["bytes"]
        buffer = value.as_buffer() if value.is_valid else None
        if buffer is None:
            raise ImageError("is null; replace or drop the row")
        return memoryview(buffer)

    def name(self, row: int) -> str:
        """Return where image `row` lies, for messages."""
        shard = self._groups[int(np.searchsorted(self._stops, row, side="right"))][0]
        return f"{self._shards[shard]} column {self._image!r}"

    def files(self) -> list[Path]:
        """Return the shards."""
        return list(self._shards)

    def num_bytes(self) -> int:
        """Return how many bytes the shards take."""
        return sum(path.stat().st_size for path in self._shards)

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return f"{self._shards[0].parent} ({some_of([path.name for path in self._shards], 4)})"

    def _column(self, shard: int, group: int, num_rows: int) -> Any:
        """Return the image column of a row group, from memory where one of the last two is asked for."""
        with self._lock:
            key = (shard, group)
            if key not in self._held:
                file, path = self._opened()[shard], self._shards[shard]
                column = self._image_column(file, path)
                values = _read(path, lambda: file.read_row_group(group, columns=[column]).column(0))
                if len(values) != num_rows:
                    raise DataError(f"{path} is damaged ({len(values):,} values in a column); download it again")
                self._held[key] = values
            self._held.move_to_end(key)
            while len(self._held) > GROUPS_HELD:
                self._held.popitem(last=False)
            return self._held[key]

    def _opened(self) -> list[Any]:
        """Return this process's own handles: those open before a fork share their place in the file."""
        if self._process != os.getpid():
            self._files = [_open(path) for path in self._shards]
            self._process = os.getpid()
        return self._files

    def _image_column(self, file: Any, path: Path) -> str:
        import pyarrow as pa

        schema = file.schema_arrow
        if self._image not in schema.names:
            raise DataError(
                f"{path} has no column {self._image!r}{did_you_mean(self._image, schema.names)}; set `images.image`"
            )
        kind = schema.field(self._image).type
        inner = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        leaf = kind.field(kind.get_field_index("bytes")).type if inner else kind
        if not (pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf)):
            raise DataError(
                f"{path} column {self._image!r} is {kind}; expected encoded images (binary), or a struct of them"
            )
        return f"{self._image}.bytes" if inner else self._image


def _reopen(shards: list[Path], image: str, id_column: str) -> ParquetBlobs:
    return ParquetBlobs(shards, image=image, id_column=id_column)


def _open(path: Path) -> Any:
    from pyarrow import parquet

    return _read(path, lambda: parquet.ParquetFile(path))


def _group_rows(file: Any, path: Path) -> list[int]:
    """Return the number of rows of each row group.

    Raises:
        DataError: When they do not add up to those of the file.
    """
    metadata = file.metadata
    rows = [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise DataError(
            f"{path} is damaged ({sum(rows):,} rows in groups, {metadata.num_rows:,} in all); download it again"
        )
    return rows


def _check_id_column(schema: Any, column: str, path: Path) -> None:
    import pyarrow as pa

    name, _, inner = column.partition(".")
    if name not in schema.names:
        raise DataError(
            f"{path} has no column {name!r}{did_you_mean(name, schema.names)}; set `images.id` to a column, "
            "or to one in a struct, such as image.path"
        )
    kind = schema.field(name).type
    if inner:
        found = pa.types.is_struct(kind) and kind.get_field_index(inner) >= 0
        kind = kind.field(kind.get_field_index(inner)).type if found else kind
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(f"{path} column {column!r} is {kind}; expected text or integers; set `images.id`")


def _read(path: Path, read: Any) -> Any:
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a whole parquet file ({first_line(error)}); download it again") from None
