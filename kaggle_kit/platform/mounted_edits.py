"""Edits of a mounted test: its images and the files that list them. Each writes new files; links keep their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.files import replacing
from kaggle_kit.platform.hidden_images import open_writer, write_array, zip_of
from kaggle_kit.platform.listing import images_of, listings
from kaggle_kit.sources import image_folder, listed_ids
from kaggle_kit.sources.arrays import read_array
from kaggle_kit.sources.wide_parquet import find_shards
from kaggle_kit.tables import Text, read_columns, write_rows
from kaggle_kit.task import Task

PARQUET = ("wide_parquet", "encoded_parquet")
Rows = npt.NDArray[np.int64]


# Listings


def take_lines(path: Path, rows: Rows) -> None:
    """Leave these lines of a CSV file, in this order."""
    table = read_columns(path)
    write_rows(path, list(table), zip(*(values[rows].tolist() for values in table.values()), strict=True))


def keep_listed(task: Task, folder: Path, images: Sequence[str]) -> None:
    """Leave the lines about these images in the sample submission and the test list."""
    for path in listings(task, folder):
        _, about = images_of(task, path)
        if about is not None:
            take_lines(path, np.flatnonzero(np.isin(about, list(images))))


def add_column(path: Path, name: str, value: str) -> None:
    """Add a column to a CSV file, after the others."""
    table = read_columns(path)
    number = len(next(iter(table.values())))
    columns = [*(values.tolist() for values in table.values()), [value] * number]
    write_rows(path, [*table, name], zip(*columns, strict=True))


# Image files


def image_files(task: Task, folder: Path) -> dict[str, Path]:
    """Return {id: path} of the test's image files; none where they lie in a zip."""
    place = image_folder(task, "test", folder)
    if task.images.format != "files" or zip_of(place):
        return {}
    return {name: place / f"{name}{task.images.suffix}" for name in listed_ids(task, "test", folder).tolist()}


def edit_blobs(task: Task, folder: Path, edits: Sequence[Callable[[bytes], bytes]]) -> list[str]:
    """Edit the encoded bytes of the first images, one edit each, and return their ids."""
    if task.images.format == "files":
        chosen = list(image_files(task, folder).items())[: len(edits)]
        for edit, (_, path) in zip(edits, chosen, strict=False):
            changed = edit(path.read_bytes())
            with replacing(path) as temporary:
                temporary.write_bytes(changed)
        return [name for name, _ in chosen]
    shard = shards(task, folder)[0]
    names: list[str] = shard_ids(task, shard)[: len(edits)].tolist()
    edit_shard(shard, lambda table, group: table if group else _with_blobs(task, table, edits))
    return names


def _with_blobs(task: Task, table: Any, edits: Sequence[Callable[[bytes], bytes]]) -> Any:
    import pyarrow as pa

    place = table.schema.get_field_index(task.images.image)
    field, values = table.schema.field(place), table.column(place).to_pylist()
    for row, edit in enumerate(edits[: len(values)]):
        inside = isinstance(values[row], dict)
        values[row] = {**values[row], "bytes": edit(values[row]["bytes"])} if inside else edit(values[row])
    return table.set_column(place, field, pa.array(values, field.type))


# Arrays


def edit_array(task: Task, folder: Path, edit: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
    """Put the edited array of test images in place of the array."""
    path = folder / task.images.test
    images = edit(np.array(read_array(path)))
    with replacing(path) as temporary:
        write_array(temporary, iter(images), images.shape)


# Shards


def shards(task: Task, folder: Path) -> list[Path]:
    """Return the test's shards in order."""
    return find_shards(folder, task.images.test)


def shard_ids(task: Task, shard: Path) -> Text:
    """Return the ids of a shard's rows."""
    from pyarrow import parquet

    outer, _, inner = task.images.id.partition(".")
    column = parquet.ParquetFile(shard).read(columns=[task.images.id]).column(outer)
    values = [value[inner] for value in column.to_pylist()] if inner else column.to_pylist()
    return np.array([str(value) for value in values], np.str_)


def edit_shard(shard: Path, edit: Callable[[Any, int], Any]) -> None:
    """Rewrite a shard row group by row group.

    Args:
        shard: The file.
        edit: Gets a row group as a table, and its number; returns what to write.
    """
    from pyarrow import parquet

    file = parquet.ParquetFile(shard)
    groups = range(file.metadata.num_row_groups)
    tables = (edit(file.read_row_group(group), group) for group in groups)
    first = next(tables, None)
    if first is None:
        first = edit(file.schema_arrow.empty_table(), 0)
    with replacing(shard) as temporary, open_writer(temporary, like=file, schema=first.schema) as writer:
        for table in (first, *tables):
            writer.write_table(table)


def break_page(shard: Path, column: int) -> None:
    """Overwrite the head of a column's first page of data, as a bad disk or an interrupted download would."""
    from pyarrow import parquet

    metadata = parquet.ParquetFile(shard).metadata
    offset = metadata.row_group(0).column(column).data_page_offset
    with replacing(shard) as temporary:
        shutil.copyfile(shard, temporary)
        with temporary.open("r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * 16)
