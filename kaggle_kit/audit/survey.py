"""Go once through all images, train and test, and measure each; what is known from an earlier audit is kept."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.measure import Measures, measure
from kaggle_kit.audit.modes import read_mode
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.pictures import FILE, THUMBNAILS, Images, load_images, map_thumbnails, new_thumbnails, save_images
from kaggle_kit.errors import ImageError
from kaggle_kit.files import replacing
from kaggle_kit.headers import read_header
from kaggle_kit.machine import decoding_pool, num_cores
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.pixels import decode_image
from kaggle_kit.progress import progress_bar
from kaggle_kit.settings import fingerprint
from kaggle_kit.sources import Chunk, PackedSource, Source
from kaggle_kit.sources.protocol import split_rows

VERSION = 1  # changes with what is measured, and how
ROWS_A_JOB = 16
JOBS_A_CORE = 4
NONE = np.zeros((0, 0), np.uint8)

Thumbnails = npt.NDArray[np.uint8]


class _Row(NamedTuple):
    """What is known of one image."""

    broken: str = ""
    height: int = 0
    width: int = 0
    mode: str = ""
    file_format: str = ""
    frames: int = 0
    num_bytes: int = 0
    measures: Measures | None = None


def survey_images(opened: Opened, folder: Path, *, channels: int) -> Images:
    """Return the properties of all images; where `folder` has those of the same images already, read no image.

    One image a core is in memory at a time, and the properties, of 2 kB an image, lie in files.

    Args:
        opened: The images.
        folder: Where images.parquet and thumbnails.npy lie, or go to.
        channels: 1 or 3, as the task has it.
    """
    key = _key(opened, channels)
    known = load_images(folder, key=key)
    if known is not None:
        return known
    absent = {split: opened.absent[split] for split in opened.sources}
    num_images = sum(map(len, opened.sources.values())) + sum(map(len, absent.values()))
    rows: list[_Row] = []
    with replacing(folder / THUMBNAILS) as temporary:
        thumbnails = new_thumbnails(temporary, num_images)
        with progress_bar(num_images, "looking at images", unit="image") as bar:
            for split, source in opened.sources.items():
                _measure_all(source, channels, rows, thumbnails, bar.update)
                rows += [_Row(broken="there is no such image")] * len(absent[split])
                bar.update(len(absent[split]))
        thumbnails.flush()
        del thumbnails
    images = _as_images(opened, rows, map_thumbnails(folder / THUMBNAILS))
    save_images(images, folder / FILE, key=key)
    return images


def _key(opened: Opened, channels: int) -> str:
    """Return digits that change with the images, what is named beside them, and what is measured."""
    parts: list[object] = [VERSION, channels]
    for split, source in opened.sources.items():
        key = SourceKey(source, [split, *opened.absent[split].tolist()])
        parts += [key.settings, key.stats]
    return fingerprint(parts)


def _measure_all(
    source: Source,
    channels: int,
    rows: list[_Row],
    thumbnails: Thumbnails,
    advance: Callable[[int], object],
) -> None:
    """Append what is known of each image of a source, and put its thumbnail into its place."""
    found = _bare_rows(source) if source.encoded_bytes() is None else _encoded_rows(source, channels)
    for some in found:
        for row in some:
            if row.measures is not None:
                thumbnails[len(rows)] = row.measures.thumbnail
                row = row._replace(measures=row.measures._replace(thumbnail=NONE))
            rows.append(row)
        advance(len(some))


def _encoded_rows(source: Source, channels: int) -> Iterator[list[_Row]]:
    """Yield what is known of the images of a source of files, in order, some at a time."""

    def look_at(part: range) -> list[_Row]:
        return [_look_at(source, row, channels) for row in part]

    waiting: deque[Future[list[_Row]]] = deque()
    with decoding_pool() as pool:
        for part in split_rows(0, len(source), ROWS_A_JOB):
            waiting.append(pool.submit(look_at, part))
            if len(waiting) > JOBS_A_CORE * num_cores():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _look_at(source: Source, row: int, channels: int) -> _Row:
    """Return what the file of an image says, and what its pixels do; of a broken one as much as can be told."""
    known = _Row()
    try:
        data = source.encoded(row)
        if data is None:
            return _Row(broken="was broken when the store was packed")
        known = known._replace(num_bytes=len(data))
        header = read_header(data)
        height, width = header.shown_size
        known = known._replace(height=height, width=width, file_format=header.format)
        mode = read_mode(data, header.format)
        known = known._replace(mode=mode.name, frames=mode.frames)
        return known._replace(measures=measure(decode_image(data, channels=channels)))
    except ImageError as error:
        return known._replace(broken=str(error))


def _bare_rows(source: Source) -> Iterator[list[_Row]]:
    """Yield what is known of the images of a source of bare pixels, in order, some at a time."""
    is_stored = isinstance(source, PackedSource)
    with decoding_pool() as pool:
        for chunk in source.chunks():
            look_at = functools.partial(_look_at_pixels, chunk, is_stored=is_stored)
            yield from pool.map(look_at, split_rows(0, len(chunk.ids), ROWS_A_JOB))


def _look_at_pixels(chunk: Chunk, places: range, *, is_stored: bool) -> list[_Row]:
    rows = []
    for place in places:
        broken = chunk.broken.get(str(chunk.ids[place]))
        if broken is not None:
            rows.append(_Row(broken=broken))
            continue
        image, (height, width) = chunk.images[place], chunk.sizes[place].tolist()
        measures = measure(image, (height, width) if is_stored else None)
        mode = "L" if image.shape[2] == 1 else "RGB"
        rows.append(_Row("", height, width, mode, "pixels", 1, 0, measures))
    return rows


def _as_images(opened: Opened, rows: list[_Row], thumbnails: Thumbnails) -> Images:
    ids, splits, absent = [], [], []
    for split, source in opened.sources.items():
        ids += [source.ids.astype(np.str_), opened.absent[split].astype(np.str_)]
        splits += [split] * (len(source) + len(opened.absent[split]))
        absent += [False] * len(source) + [True] * len(opened.absent[split])

    def floats(name: str) -> npt.NDArray[np.float32]:
        return np.array([getattr(row.measures, name, 0.0) for row in rows], np.float32)

    def ints(name: str) -> npt.NDArray[np.int64]:
        return np.array([getattr(row, name) for row in rows], np.int64)

    def texts(name: str) -> npt.NDArray[np.str_]:
        return np.array([getattr(row, name) for row in rows], np.str_)

    return Images(
        id=np.concatenate(ids),
        split=np.array(splits, np.str_),
        broken=texts("broken"),
        absent=np.array(absent, bool),
        height=ints("height"),
        width=ints("width"),
        mode=texts("mode"),
        file_format=texts("file_format"),
        frames=ints("frames"),
        num_bytes=ints("num_bytes"),
        gray=np.array([bool(row.measures and row.measures.gray) for row in rows], bool),
        brightness=floats("brightness"),
        contrast=floats("contrast"),
        sharpness=floats("sharpness"),
        content=floats("content"),
        colourfulness=floats("colourfulness"),
        pixel_hash=np.array([row.measures.pixel_hash.hex() if row.measures else "" for row in rows], np.str_),
        thumbnails=thumbnails,
    )
