"""The images of a made hidden test: files linked under new ids, shards and arrays written a row group at a time."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError
from kaggle_kit.sources import Source, image_folder
from kaggle_kit.sources.arrays import read_array
from kaggle_kit.sources.encoded import EncodedSource
from kaggle_kit.sources.wide_parquet import find_shards
from kaggle_kit.tables import Text
from kaggle_kit.task import Task

NUM_SHARDS = 4  # where the visible test has none to count
IDX_HEADER = 4  # bytes before an idx file's sizes


@dataclass(frozen=True, kw_only=True)
class Picks:
    """Which train images become which test images.

    Attributes:
        rows: (N,) rows of the train source.
        ids: (N,) the new ids.
        old_ids: (N,) the ids they had.
    """

    rows: npt.NDArray[np.int64]
    ids: Text
    old_ids: Text

    def __len__(self) -> int:
        return len(self.rows)


def check_can_copy(task: Task, data: Path) -> None:
    """Refuse images that no hidden test can be made of.

    Raises:
        DataError: Saying why, and what to give instead.
    """
    instead = "give a hidden test's folder with --hidden"
    if task.images.format == "packed":
        raise DataError(f"images of format 'packed' are the kit's own, no competition's; {instead}")
    if task.images.format != "files":
        return
    train, test = zip_of(image_folder(task, "train", data)), zip_of(image_folder(task, "test", data))
    if test is not None and test == train:
        raise DataError(f"{test} holds train and test images alike, and would have to be written anew; {instead}")


def copied_bytes(task: Task, data: Path, source: Source, images: int, folder: Path) -> int:
    """Return about how many bytes so many images will take of the disk."""
    if task.images.format == "files" and _can_link(task, data, source, folder):
        return 0
    num_bytes = sum(path.stat().st_size for path in source.files() if path.is_file())
    return int(num_bytes / max(1, len(source)) * images)


def put_images(
    task: Task, data: Path, source: Source, picks: Picks, folder: Path, *, say: Callable[[str], object]
) -> None:
    """Write the images into `folder`, named as the visible test's.

    Raises:
        DataError: For damaged train images.
    """
    if isinstance(source, EncodedSource) and task.images.format == "files":
        _put_files(task, data, source, picks, folder)
    elif task.images.format == "array":
        _put_array(task, data, picks, folder)
    else:
        _put_shards(task, data, source, picks, folder, say=say)


def zip_of(folder: Path) -> Path | None:
    """Return the zip file that a path leads into; None where it leads into none."""
    return next((path for path in (folder, *folder.parents) if path.suffix.lower() == ".zip" and path.is_file()), None)


# Files


def _can_link(task: Task, data: Path, source: Source, folder: Path) -> bool:
    if zip_of(image_folder(task, "train", data)) or zip_of(image_folder(task, "test", data)):
        return False
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    first = next((path for path in source.files() if path.is_file()), None)
    return first is None or first.stat().st_dev == existing.stat().st_dev


def _put_files(task: Task, data: Path, source: EncodedSource, picks: Picks, folder: Path) -> None:
    target = image_folder(task, "test", data)
    names = [f"{name}{task.images.suffix}" for name in picks.ids.tolist()]
    archive = zip_of(target)
    if archive is not None:
        _put_zip(source, picks, names, folder / archive.relative_to(data), target.relative_to(archive))
        return
    images = folder / target.relative_to(data)
    images.mkdir(parents=True)
    paths = None if zip_of(image_folder(task, "train", data)) else source.files()
    for row, name in zip(picks.rows.tolist(), names, strict=True):
        if paths is None:
            (images / name).write_bytes(source.encoded(row))
        elif paths[row].is_file():  # one that is missing in train is missing here too
            _link(paths[row], images / name)


def _put_zip(source: EncodedSource, picks: Picks, names: list[str], path: Path, inside: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for row, name in zip(picks.rows.tolist(), names, strict=True):
            archive.writestr((inside / name).as_posix(), bytes(source.encoded(row)))


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, too many links of one file, or a system without them
        shutil.copy2(path, target)


# Arrays


def _put_array(task: Task, data: Path, picks: Picks, folder: Path) -> None:
    images, target = read_array(data / task.images.train), folder / task.images.test
    target.parent.mkdir(parents=True, exist_ok=True)
    write_array(target, (images[row] for row in picks.rows.tolist()), (len(picks), *images.shape[1:]))


def write_array(path: Path, images: Iterator[npt.NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    """Write uint8 images as `.npy`, or as an idx file that is gzipped where its name says so, one at a time."""
    if path.suffix == ".npy":
        if not shape[0]:
            np.save(path, np.zeros(shape, np.uint8))
            return
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for row, image in enumerate(images):
            target[row] = image
        target.flush()
        return
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(IDX_HEADER, "big") for size in shape)
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(header)
        for image in images:
            file.write(image.tobytes())


# Shards


def shard_names(task: Task, data: Path) -> list[str]:
    """Return the names of the visible test's shards, or four that match the pattern."""
    visible = [path.relative_to(data).as_posix() for path in data.glob(task.images.test)]
    if visible:
        shards = find_shards(data, task.images.test)
        return [path.relative_to(data).as_posix() for path in shards]
    star = re.search(r"[*?]", task.images.test)
    numbers = range(NUM_SHARDS if star else 1)
    return [re.sub(r"[*?]", str(number), task.images.test) for number in numbers]


def _put_shards(
    task: Task, data: Path, source: Source, picks: Picks, folder: Path, *, say: Callable[[str], object]
) -> None:
    """Write shards whose row groups are as large as train's: a kernel holds one of them at once, and must here too."""
    from pyarrow import parquet

    file = parquet.ParquetFile(source.files()[0])
    group_rows = max(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
    names = shard_names(task, data)
    tables = _wide_tables if task.images.format == "wide_parquet" else _encoded_tables
    for name, part in zip(names, np.array_split(np.arange(len(picks)), len(names)), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_writer(path, like=file, schema=_schema(task, file)) as writer:
            for start in range(0, len(part), group_rows):
                taken = part[start : start + group_rows]
                writer.write_table(tables(task, source, picks, taken, writer.schema))
        if len(names) > 1:
            say(f"    {name}: {len(part):,} images")


def open_writer(path: Path, *, like: Any, schema: Any) -> Any:
    """Return a parquet writer with the compression and encoding of another file."""
    from pyarrow import parquet

    metadata = like.metadata
    if not metadata.num_row_groups:
        return parquet.ParquetWriter(path, schema)
    column = metadata.row_group(0).column(metadata.num_columns // 2)
    codec = {"UNCOMPRESSED": "none"}.get(column.compression, column.compression)
    return parquet.ParquetWriter(path, schema, compression=codec, use_dictionary=column.has_dictionary_page)


def _schema(task: Task, file: Any) -> Any:
    """Return train's columns of ids and images; an index that pandas left, or a label, is no part of a test."""
    import pyarrow as pa

    images, schema = task.images, file.schema_arrow
    if images.format == "wide_parquet":
        pixels = [str(pixel) for pixel in range(images.height * images.width * images.channels)]
        return pa.schema([schema.field(images.id), *(pa.field(name, pa.uint8()) for name in pixels)])
    return pa.schema([schema.field(name) for name in dict.fromkeys([images.id.partition(".")[0], images.image])])


def _wide_tables(task: Task, source: Source, picks: Picks, taken: npt.NDArray[np.int64], schema: Any) -> Any:
    import cv2
    import pyarrow as pa

    rows = picks.rows[taken]
    pixels = task.images.height * task.images.width * task.images.channels
    columns = np.empty((pixels, len(taken)), np.uint8)
    for at, chunk, wanted in _chunks_with(source, rows):
        block = np.ascontiguousarray(chunk[wanted].reshape(len(wanted), pixels))
        columns[:, at : at + len(wanted)] = cv2.transpose(block) if len(block) else block.T
    ids = pa.array(picks.ids[taken].tolist()).cast(schema.field(0).type)
    return pa.Table.from_arrays([ids, *(pa.array(column) for column in columns)], schema=schema)


def _chunks_with(
    source: Source, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Yield (place among `rows`, images, which of them), where `rows` rise but for starting anew now and then."""
    starts = [0, *(np.flatnonzero(np.diff(rows) <= 0) + 1).tolist(), len(rows)]
    for first, last in itertools.pairwise(starts):
        part = rows[first:last]
        for chunk in source.chunks(start=int(part[0]), stop=int(part[-1]) + 1) if len(part) else ():
            low, high = np.searchsorted(part, [chunk.start, chunk.stop]).tolist()
            if low < high:
                yield first + low, chunk.images, part[low:high] - chunk.start


def _encoded_tables(task: Task, source: Source, picks: Picks, taken: npt.NDArray[np.int64], schema: Any) -> Any:
    import pyarrow as pa

    images, ids = task.images, picks.ids[taken].tolist()
    blobs = [bytes(source.encoded(row) or b"") for row in picks.rows[taken].tolist()]
    outer, _, inner = images.id.partition(".")
    values: dict[str, list[Any]] = {outer: ids, images.image: blobs}
    if pa.types.is_struct(schema.field(images.image).type):
        fields = {field.name for field in schema.field(images.image).type}
        key = inner if outer == images.image else "path"
        values[images.image] = [
            {"bytes": blob, **({key: name} if key in fields else {})} for blob, name in zip(blobs, ids, strict=True)
        ]
    arrays = []
    for field in schema:
        column = values[field.name]
        if pa.types.is_integer(field.type):
            column = [int(value) for value in column]
        arrays.append(pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
