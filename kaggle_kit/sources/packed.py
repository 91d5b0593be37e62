"""The packed store: images converted once, then memory-mapped by every worker and run.

A folder with `images.npy` (N, H, W, C) uint8, `ids.npy` and `pack.json`. It is either whole or absent: it is
written beside its place and renamed at the end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.errors import DataError
from kaggle_kit.files import check_replaceable, replacing_folder
from kaggle_kit.pixels import Image
from kaggle_kit.sources.protocol import Chunk, Source
from kaggle_kit.tables import Text

FORMAT = 1
META = "pack.json"
OWN_FILES = (META, "images.npy", "ids.npy")
CHUNK_BYTES = 32 << 20


class PackedSource:
    """A packed store as a `Source`.

    Attributes:
        broken: {id: reason} of images that could not be read when packing; theirs are zeros.
    """

    def __init__(self, folder: Path) -> None:
        meta = _read_meta(folder)
        self._folder = folder
        self.broken: dict[str, str] = meta["broken"]
        self.key: str = meta["key"]
        try:
            self._images: Image = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            self.ids: Text = np.load(folder / "ids.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"packed store {folder} is damaged ({error}); delete it and pack again") from None
        if len(self.ids) != len(self._images):
            raise DataError(f"packed store {folder} has {len(self.ids)} ids for {len(self._images)} images; pack again")
        height, width, channels = self._images.shape[1:]
        self.shape = (height, width, channels)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[type[PackedSource], tuple[Path]]:
        """Pickle as the folder's path: a worker process maps the same pages instead of getting a copy."""
        return PackedSource, (self._folder,)

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return str(self._folder)

    def read(self, row: int) -> Image:
        """Return image `row` without copying it: a read-only view of the page cache."""
        image: Image = self._images[row]
        return image

    def chunks(self) -> Iterator[Chunk]:
        """Yield all images in row order, 32 MB at a time."""
        step = max(1, CHUNK_BYTES // int(np.prod(self.shape)))
        for start in range(0, len(self), step):
            ids = self.ids[start : start + step]
            broken = {name: self.broken[name] for name in ids.tolist() if name in self.broken}
            yield Chunk(ids=ids, images=np.asarray(self._images[start : start + step]), broken=broken)


def find_packed(folder: Path, key: str) -> PackedSource | None:
    """Return the packed store in `folder` if it has this key, else None."""
    try:
        return PackedSource(folder) if _read_meta(folder)["key"] == key else None
    except DataError:  # absent, damaged or of another format: it is packed again
        return None


def pack(source: Source, folder: Path, *, key: str, advance: Callable[[int], object] | None = None) -> PackedSource:
    """Write a source's images to a packed store, unless the store there has the same key already.

    Args:
        source: The images.
        folder: Where the store goes; a store with another key is replaced.
        key: Changes whenever the images would; see `kaggle_kit.runs.source_key`.
        advance: Called with the number of images after each chunk.

    Raises:
        DataError: When the folder holds something else, or the disk is too small.
    """
    there = find_packed(folder, key)
    if there is not None:
        return there
    own = OWN_FILES if (folder / META).is_file() else ()
    check_replaceable(folder, own, what="packed store", error=DataError)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = len(source) * int(np.prod(source.shape))
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise DataError(f"packing into {folder} needs {needed / 1e9:.2f} GB; the disk has {free / 1e9:.2f} GB free")
    with replacing_folder(folder, own, what="packed store", error=DataError) as temporary:
        _write_store(source, temporary, key, advance or (lambda _: None))
    return PackedSource(folder)


def _write_store(source: Source, folder: Path, key: str, advance: Callable[[int], object]) -> None:
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(source), *source.shape)
    )
    broken: dict[str, str] = {}
    start = 0
    for chunk in source.chunks():
        images[start : start + len(chunk.ids)] = chunk.images
        broken |= chunk.broken
        start += len(chunk.ids)
        advance(len(chunk.ids))
    images.flush()
    del images
    np.save(folder / "ids.npy", source.ids)
    meta = {"format": FORMAT, "key": key, "broken": broken}
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is no packed store (no pack.json); make one with `kaggle-kit pack`") from None
    except ValueError:
        raise DataError(f"{path} is damaged; delete the store and pack again") from None
    if meta.get("format") != FORMAT:
        raise DataError(f"{path} has format {meta.get('format')}; this version reads {FORMAT}; pack again")
    return dict(meta)
