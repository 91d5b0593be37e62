"""Images in, whatever the competition's format: one `Source` protocol and `open_source`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.sources.files import FilesSource, measure_files
from kaggle_kit.sources.packed import PackedSource, find_packed, pack
from kaggle_kit.sources.protocol import Chunk, OnBroken, Source
from kaggle_kit.sources.wide_parquet import WideParquetSource, find_shards
from kaggle_kit.tables import Text, read_columns
from kaggle_kit.task import Stored, Task

__all__ = [
    "Chunk",
    "OnBroken",
    "PackedSource",
    "Source",
    "check_ids",
    "find_packed",
    "open_source",
    "pack",
    "resolve_stored",
]

Split = Literal["train", "test"]


def open_source(task: Task, split: Split, root: Path, *, on_broken: OnBroken = "error") -> Source:
    """Open the competition's images as the task describes them.

    Args:
        task: With `stored` known; see `resolve_stored`.
        split: Train or test images.
        root: The data folder.
        on_broken: What a broken image becomes: `error`, or `blank`: an image of zeros, named in `Chunk.broken`.

    Raises:
        DataError: For missing files, missing columns or repeated ids.
    """
    assert task.stored is not None
    images = task.images
    _check_root(root)
    if images.format == "wide_parquet":
        shards = find_shards(root, images.train if split == "train" else images.test)
        return WideParquetSource(shards, images=images, stored=task.stored)
    return FilesSource(
        root / images.folder,
        ids=_listed_ids(task, split, root),
        suffix=images.suffix,
        channels=images.channels,
        stored=task.stored,
        on_broken=on_broken,
    )


def resolve_stored(task: Task, root: Path) -> Task:
    """Return the task with its stored size known: the one it has, or one worked out from the train images.

    Wide parquet is stored as it is. Files get the median height and width of an even sample, rounded to 8, with
    letterbox.
    """
    if task.stored is not None:
        return task
    images = task.images
    if images.format == "wide_parquet":
        return task.with_stored(Stored(height=images.height, width=images.width))
    _check_root(root)
    ids = _listed_ids(task, "train", root)
    height, width = measure_files(root / images.folder, ids, images.suffix)
    return task.with_stored(Stored(height=height, width=width, fit="letterbox"))


def check_ids(source: Source, expected: Text, *, where: str) -> None:
    """Refuse a source that lacks images which a file asks for.

    Args:
        source: The images there are.
        expected: The ids asked for.
        where: The file that asks, for the message.

    Raises:
        DataError: With counts and examples.
    """
    missing = expected[~np.isin(expected, source.ids)]
    if len(missing):
        raise DataError(
            f"{where} names {len(missing):,} of {len(expected):,} images that {source.describe()} does not hold: "
            f"{some_of(missing)}; is a shard or file missing?"
        )


def _listed_ids(task: Task, split: Split, root: Path) -> Text:
    if split == "train":
        return read_columns(root / task.labels.file, [task.labels.id])[task.labels.id]
    return read_columns(root / task.images.test_list, [task.images.id])[task.images.id]


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"there is no data folder {str(root)!r}; give the folder with the competition's files")
