"""Images in, whatever the competition's format: one `Source` protocol and `open_source`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from kaggle_kit.errors import DataError, ImageError, some_of
from kaggle_kit.files import check_local
from kaggle_kit.pixels import Image
from kaggle_kit.sources.arrays import ArraySource
from kaggle_kit.sources.encoded import EncodedSource
from kaggle_kit.sources.encoded_parquet import ParquetBlobs
from kaggle_kit.sources.files import list_class_folders, open_files
from kaggle_kit.sources.joined import JoinedSource
from kaggle_kit.sources.packed import PackedSource
from kaggle_kit.sources.protocol import Chunk, OnBroken, Source, fixed_shape
from kaggle_kit.sources.wide_parquet import WideParquetSource, find_shards
from kaggle_kit.tables import Text, read_columns, rename_repeats
from kaggle_kit.task import Stored, Task

__all__ = [
    "Chunk",
    "JoinedSource",
    "OnBroken",
    "PackedSource",
    "Source",
    "check_ids",
    "check_root",
    "fixed_shape",
    "image_folder",
    "listed_ids",
    "open_source",
    "read_images",
    "resolve_stored",
]

Split = Literal["train", "test"]
SAMPLE_TO_MEASURE = 300


def open_source(
    task: Task,
    split: Split,
    root: Path,
    *,
    on_broken: OnBroken = "error",
    lacking_ok: bool = False,
    repeats_ok: bool = False,
) -> Source:
    """Open the competition's images as the task describes them.

    Args:
        task: With `stored` None, images are read as they are; see `resolve_stored`.
        split: Train or test images.
        root: The data folder.
        on_broken: What a broken image becomes in `chunks()`: `error`, or `blank`: an image of zeros, named in
            `Chunk.broken`.
        lacking_ok: Whether image files that are missing are broken images, rather than an error.
        repeats_ok: Whether of an id that repeats the first row alone counts, rather than an error.

    Raises:
        DataError: For missing files, missing columns or repeated ids.
    """
    images, stored = task.images, task.stored
    check_root(root)
    pattern = images.train if split == "train" else images.test
    if images.format == "wide_parquet":
        return WideParquetSource(find_shards(root, pattern), images=images, stored=stored, repeats_ok=repeats_ok)
    if images.format == "array":
        named = _array_ids(task, split, root)
        named = rename_repeats(named) if repeats_ok and named is not None else named
        return ArraySource(root / pattern, ids=named, channels=images.channels, stored=stored)
    if images.format == "packed":
        return _open_packed(root / pattern, task)
    if images.format == "encoded_parquet":
        blobs = ParquetBlobs(find_shards(root, pattern), image=images.image, id_column=images.id)
        own = rename_repeats(blobs.ids()) if repeats_ok else blobs.ids()
        return EncodedSource(blobs, ids=own, channels=images.channels, stored=stored, on_broken=on_broken)
    ids, nested = listed_ids(task, split, root), images.class_folders and split == "train"
    if repeats_ok:
        ids = ids[np.sort(np.unique(ids, return_index=True)[1])]
    folder = image_folder(task, split, root)
    files = open_files(folder, ids, suffix=images.suffix, class_folders=nested, lacking_ok=lacking_ok)
    return EncodedSource(files, ids=ids, channels=images.channels, stored=stored, on_broken=on_broken)


def resolve_stored(task: Task, root: Path) -> Task:
    """Return the task with its stored size known: the one it has, or one worked out from the train images.

    Bare pixels are stored as they are. Files get the size of an even sample where that is one, else its median height
    and width, rounded to 8, with letterbox.

    Raises:
        DataError: When none of the sample can be decoded.
    """
    if task.stored is not None:
        return task
    if task.images.format == "wide_parquet":
        return task.with_stored(Stored(height=task.images.height, width=task.images.width))
    source = open_source(task, "train", root)
    if source.shape != "varies":
        return task.with_stored(Stored(height=source.shape[0], width=source.shape[1]))
    height, width = _median_size(source)
    return task.with_stored(Stored(height=height, width=width, fit="letterbox"))


def read_images(source: Source) -> Image:
    """Return all images of a source as one (N, H, W, C) uint8 array, filled in place."""
    images = np.empty((len(source), *fixed_shape(source)), np.uint8)
    for _ in source.chunks(into=images):
        pass
    return images


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


def image_folder(task: Task, split: Split, root: Path) -> Path:
    """Return the folder, or the place inside a zip, of a split's image files."""
    images = task.images
    return root / (images.test_folder if split == "test" and images.test_folder else images.folder)


def listed_ids(task: Task, split: Split, root: Path) -> Text:
    """Return the ids that the label file or the test list names, or those of the files in class folders."""
    if split == "test":
        return read_columns(root / task.images.test_list, [task.images.id])[task.images.id]
    if not task.labels.file:
        return np.array(list(list_class_folders(root / task.images.folder, suffix=task.images.suffix)), np.str_)
    return read_columns(root / task.labels.file, [task.labels.id])[task.labels.id]


def _array_ids(task: Task, split: Split, root: Path) -> Text | None:
    listed = task.labels.is_csv if split == "train" else bool(task.images.test_list)
    return listed_ids(task, split, root) if listed else None


def _open_packed(folder: Path, task: Task) -> PackedSource:
    source = PackedSource(folder)
    wanted = source.shape if task.stored is None else (*task.stored_size, task.images.channels)
    if source.shape != wanted:
        raise DataError(
            f"{folder} holds images of {source.shape}, the task stores {wanted}; mend `stored`, or pack again"
        )
    return source


def _median_size(source: Source) -> tuple[int, int]:
    sizes = []
    step = max(1, len(source) // SAMPLE_TO_MEASURE)
    for row in range(0, len(source), step):
        try:
            sizes.append(source.read(row).shape[:2])
        except ImageError:
            continue
    if not sizes:
        tried = len(range(0, len(source), step))
        raise DataError(
            f"none of {tried} images tried in {source.describe()} can be decoded; check the task's `images`"
        )
    if len(set(sizes)) == 1:
        return int(sizes[0][0]), int(sizes[0][1])
    height, width = np.median(np.array(sizes), axis=0)
    return max(8, round(height / 8) * 8), max(8, round(width / 8) * 8)


def check_root(root: Path) -> None:
    """Refuse a data folder that is none.

    Raises:
        DataError: Naming it.
    """
    check_local(root)
    if not root.is_dir():
        raise DataError(f"there is no data folder {str(root)!r}; give the folder with the competition's files")
