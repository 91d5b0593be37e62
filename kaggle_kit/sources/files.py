"""A CSV of ids and a folder of encoded images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kaggle_kit.errors import DataError, ImageError, some_of
from kaggle_kit.pixels import Image, decode_image, to_stored
from kaggle_kit.sources.protocol import Chunk, OnBroken
from kaggle_kit.tables import Text, check_unique
from kaggle_kit.task import Stored

IMAGES_AT_ONCE = 256
SAMPLE_TO_MEASURE = 300


class FilesSource:
    """Image files of one folder as a `Source`."""

    def __init__(
        self, folder: Path, *, ids: Text, suffix: str, channels: int, stored: Stored, on_broken: OnBroken = "error"
    ) -> None:
        check_unique(ids, folder)
        _check_present(folder, ids, suffix)
        self.ids = ids
        self.shape = (stored.height, stored.width, channels)
        self._folder = folder
        self._suffix = suffix
        self._stored = stored
        self._on_broken = on_broken

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return str(self._folder)

    def path(self, row: int) -> Path:
        """Return the file of image `row`."""
        return self._folder / f"{self.ids[row]}{self._suffix}"

    def read(self, row: int) -> Image:
        """Return image `row`.

        Raises:
            ImageError: Naming the file, when it cannot be decoded.
        """
        path = self.path(row)
        try:
            return to_stored(decode_image(path.read_bytes(), channels=self.shape[2]), self._stored)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror}); replace or drop the file") from None

    def chunks(self) -> Iterator[Chunk]:
        """Yield all images in row order, 256 at a time, decoded by as many threads as there are cores."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for start in range(0, len(self), IMAGES_AT_ONCE):
                rows = range(start, min(start + IMAGES_AT_ONCE, len(self)))
                images = np.zeros((len(rows), *self.shape), np.uint8)
                broken = {}
                for place, image in enumerate(pool.map(self._read_or_reason, rows)):
                    if isinstance(image, str):
                        broken[str(self.ids[rows[place]])] = image
                    else:
                        images[place] = image
                yield Chunk(ids=self.ids[rows.start : rows.stop], images=images, broken=broken)

    def _read_or_reason(self, row: int) -> Image | str:
        try:
            return self.read(row)
        except ImageError as error:
            if self._on_broken == "error":
                raise
            return str(error)


def measure_files(folder: Path, ids: Text, suffix: str) -> tuple[int, int]:
    """Return the median height and width of an even sample of images, rounded to 8 pixels.

    Raises:
        DataError: When none of the sample can be decoded.
    """
    _check_present(folder, ids, suffix)
    step = max(1, len(ids) // SAMPLE_TO_MEASURE)
    sizes = []
    for name in ids[::step]:
        try:
            sizes.append(decode_image((folder / f"{name}{suffix}").read_bytes(), channels=3).shape[:2])
        except ImageError:
            continue
    if not sizes:
        raise DataError(f"none of {len(ids[::step])} images tried in {folder} can be decoded; check `images.folder`")
    height, width = np.median(np.array(sizes), axis=0)
    return max(8, round(height / 8) * 8), max(8, round(width / 8) * 8)


def _check_present(folder: Path, ids: Text, suffix: str) -> None:
    if not folder.is_dir():
        raise DataError(f"there is no image folder {str(folder)!r}; check the task's `images.folder`")
    odd = [name for name in ids.tolist() if "/" in name or "\\" in name or name in ("", ".", "..")]
    if odd:
        raise DataError(f"id(s) {some_of(odd)} are no plain file names; expected names of files in {folder}")
    present = {entry.name for entry in os.scandir(folder)}
    missing = [f"{name}{suffix}" for name in ids.tolist() if f"{name}{suffix}" not in present]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing):,} of {len(ids):,} images: {some_of(missing)}; "
            "check the download and the task's `images.suffix`"
        )
