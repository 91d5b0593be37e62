"""The packed store: images converted once, then memory-mapped by every worker and run.

A folder that `kaggle_kit.packing` writes, whole or not at all:

    pack.json      format, kind, shape, key of what was packed, mean and std, tags, broken images, digests
    ids.npy        (N,) ids
    sizes.npy      (N, 2) int32, height and width before the stored size; 0 for broken images
    hashes.npy     (N, 16) uint8, the pixels' SHA-256 cut to 128 bits: equal images have equal hashes
    images.npy     raw: (N, H, W, C) uint8, which `np.load(..., mmap_mode="r")` opens as well
    images-*.bin   encoded: the images' files one after the other, and
    places.npy     (N, 3) int64: offset in the part's .bin file, bytes, CRC-32

Opening checks the digests of everything but the pixels; `PackedSource.verify` checks the pixels too.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, ImageError, KitError, some_of
from kaggle_kit.machine import decoding_pool, num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.settings import build
from kaggle_kit.sources.arrays import map_npy
from kaggle_kit.sources.encoded import EncodedSource
from kaggle_kit.sources.protocol import Chunk, Shape, Sizes, read_parts, split_rows
from kaggle_kit.tables import Text
from kaggle_kit.task import Stored

FORMAT = 2
META = "pack.json"
INDEX_FILES = ("ids.npy", "sizes.npy", "hashes.npy")
CHUNK_BYTES = 32 << 20
HASH_BYTES = 16
Hashes = npt.NDArray[np.uint8]
Kind = Literal["raw", "encoded"]


class PackedSource:
    """A packed store as a `Source`.

    Attributes:
        folder: Where it lies.
        ids: (N,) image ids.
        shape: (H, W, C) of every image.
        stored: How an encoded store's images are brought to the shape; None where they have it.
        kind: `raw`: pixels, memory-mapped; `encoded`: the images' own files, decoded at every reading.
        key: Changes with the images' files and how they are stored.
        sizes: (N, 2) int32, height and width before the stored size; 0 for broken images.
        hashes: (N, 16) uint8; equal images have equal hashes.
        broken: {id: reason} of images that could not be read when packing; theirs are zeros.
        tags: {tag: rows}; "" for the competition's own images.
        mean: (C,) of all pixels of unbroken images, 0 to 1.
        std: (C,) likewise.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`.

        Raises:
            DataError: When there is none, or anything but its pixels has changed since it was packed.
        """
        meta = read_meta(folder)
        self.folder = folder
        try:
            self._take(meta)
        except (KeyError, TypeError, ValueError, AttributeError, OSError, KitError) as error:
            raise DataError(f"packed store {folder} is damaged ({error}); delete it and pack again") from None

    def _take(self, meta: dict[str, Any]) -> None:
        folder = self.folder
        self.kind: Kind = meta["kind"]
        self.key: str = f"{meta['key']['settings']}-{meta['key']['content']}"
        self.shape: Shape = tuple(meta["shape"])
        self.stored = None if meta["stored"] is None else build(Stored, meta["stored"])
        self._digest: str = meta["digest"]
        self.broken: dict[str, str] = meta["broken"]
        self.tags = {tag: range(*rows) for tag, rows in meta["tags"].items()}
        self.mean, self.std = np.array(meta["mean"]), np.array(meta["std"])
        load = {name: _load_checked(folder / name, digest) for name, digest in meta["digests"].items()}
        self.ids: Text = load["ids.npy"]
        self.sizes: Sizes = load["sizes.npy"]
        self.hashes: Hashes = load["hashes.npy"]
        if self.kind == "raw":
            images = map_npy(folder / "images.npy")
            found = (images.dtype, images.shape, images.flags.c_contiguous)
            if found != (np.dtype(np.uint8), (len(self.ids), *self.shape), True):
                raise ValueError(f"images.npy holds {found[0]} {found[1]}")
            self._images: Image = images
            return
        blobs = _PackedBlobs(folder, load["places.npy"], [range(*rows) for rows in meta["parts"]])
        self._encoded = EncodedSource(blobs, ids=self.ids, channels=self.shape[2], stored=self.stored)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Callable[[Path, str], PackedSource], tuple[Path, str]]:
        """Pickle as the folder's path: a worker process maps the same pages instead of getting a copy."""
        return _reopen, (self.folder, self._digest)

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return str(self.folder)

    def files(self) -> list[Path]:
        """Return the file that changes whenever anything in the store does."""
        return [self.folder / META]

    @property
    def num_bytes(self) -> int:
        """What the images take on the disk."""
        return self._images.nbytes if self.kind == "raw" else self._encoded.encoded_bytes()

    def encoded_bytes(self) -> int | None:
        """Return how many bytes the encoded images take, or None where the store is raw."""
        return None if self.kind == "raw" else self.num_bytes

    def encoded(self, row: int) -> bytes | memoryview | None:
        """Return the encoded bytes of image `row`, or None where the store is raw or the image broken."""
        if self.kind == "raw" or str(self.ids[row]) in self.broken:
            return None
        return self._encoded.encoded(row)

    def parts(self) -> list[range]:
        """Return ranges of rows of 32 MB."""
        return split_rows(0, len(self), max(1, CHUNK_BYTES // int(np.prod(self.shape))))

    def read(self, row: int) -> Image:
        """Return image `row`; of a raw store without copying it: a read-only view of the page cache.

        Raises:
            ImageError: When an encoded image has changed since it was packed.
        """
        if not 0 <= row < len(self):
            raise IndexError(row)
        if self.kind == "raw":
            image: Image = self._images[row]
            return image
        if str(self.ids[row]) in self.broken:
            return np.zeros(self.shape, np.uint8)
        return self._encoded.read(row)

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        """Yield images in row order, 32 MB at a time: see `Source.chunks`."""
        last = len(self) if stop is None else stop
        for rows, images in read_parts(self.parts(), self._read_range, start=start, stop=last, into=into):
            ids = self.ids[rows.start : rows.stop]
            broken = {name: self.broken[name] for name in ids.tolist() if name in self.broken} if self.broken else {}
            sizes = self.sizes[rows.start : rows.stop]
            yield Chunk(start=rows.start, ids=ids, images=images, sizes=sizes, broken=broken)

    def _read_range(self, rows: range) -> Image:
        """Return images of a range; those of a raw store are a view of the page cache."""
        if self.kind == "encoded":
            return self.take(np.arange(rows.start, rows.stop))
        return np.asarray(self._images[rows.start : rows.stop])

    def take(self, rows: npt.NDArray[np.int64]) -> Image:
        """Return (n, H, W, C) images of these rows, copied; encoded ones are decoded by all cores."""
        if self.kind == "raw":
            return np.asarray(self._images[rows])
        out = np.empty((len(rows), *self.shape), np.uint8)

        def decode(places: range) -> None:
            for place in places:
                out[place] = self.read(int(rows[place]))

        with decoding_pool() as pool:
            list(pool.map(decode, split_rows(0, len(rows), 8)))
        return out

    def duplicate_groups(self) -> npt.NDArray[np.int64]:
        """Return (N,) group numbers: images with the same pixels are in one group; a broken image is in its own."""
        groups = np.unique(self.hashes.view(f"V{HASH_BYTES}").ravel(), return_inverse=True)[1].astype(np.int64)
        if self.broken:
            broken = np.isin(self.ids, list(self.broken))
            groups[broken] = groups.max(initial=0) + 1 + np.arange(broken.sum())
        return groups

    def verify(self, *, advance: Callable[[int], object] | None = None) -> None:
        """Read every image: raw ones are compared with their hashes, encoded ones' files with their checksums.

        Args:
            advance: Called with a number of images when so many more are checked.

        Raises:
            DataError: Naming images that have changed since they were packed.
        """
        changed: list[str] = []
        with ThreadPoolExecutor(num_cores()) as pool:
            for rows, wrong in zip(self.parts(), pool.map(self._changed_rows, self.parts()), strict=True):
                changed += self.ids[wrong].tolist()
                if advance is not None:
                    advance(len(rows))
        if changed:
            raise DataError(
                f"packed store {self.folder} holds {len(changed):,} image(s) that changed since packing: "
                f"{some_of(changed)}; delete it and pack again, and check the disk"
            )

    def _changed_rows(self, rows: range) -> list[int]:
        if self.kind == "raw":
            found = hash_images(self._read_range(rows))
            return (rows.start + np.flatnonzero((found != self.hashes[rows.start : rows.stop]).any(axis=1))).tolist()
        return [row for row in rows if str(self.ids[row]) not in self.broken and not self._is_whole(row)]

    def _is_whole(self, row: int) -> bool:
        try:
            self._encoded.encoded(row)
        except ImageError:
            return False
        return True


def _reopen(folder: Path, digest: str) -> PackedSource:
    """Open a store in another process, unless it was packed anew since: rows would be others."""
    store = PackedSource(folder)
    if read_meta(folder)["digest"] != digest:
        raise DataError(f"packed store {folder} was replaced while in use; start again, and pack elsewhere")
    return store


class _PackedBlobs:
    """The encoded images of a store; see `kaggle_kit.sources.encoded.Blobs`."""

    def __init__(self, folder: Path, places: npt.NDArray[np.int64], parts: list[range]) -> None:
        self._folder = folder
        self._places = places
        self._parts = parts
        self._starts = np.array([part.start for part in parts], np.int64)
        self._files = [_map_bytes(part_file(folder, part)) for part in parts]

    def read(self, row: int) -> memoryview:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        offset, length, crc = self._places[row].tolist()
        data = self._files[part][offset : offset + length].data
        if len(data) != length or zlib.crc32(data) != crc:
            raise ImageError("has changed since it was packed; delete the store and pack again, and check the disk")
        return data

    def name(self, row: int) -> str:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return str(part_file(self._folder, self._parts[part]))

    def files(self) -> list[Path]:
        return [part_file(self._folder, part) for part in self._parts]

    def num_bytes(self) -> int:
        return int(self._places[:, 1].sum())

    def describe(self) -> str:
        return str(self._folder)


def _map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    if not path.stat().st_size:  # all images of a part are broken; no system maps an empty file
        return np.zeros(0, np.uint8)
    return np.asarray(np.memmap(path, np.uint8, "r"))


def part_file(folder: Path, rows: range) -> Path:
    """Return where an encoded store keeps the images of a part."""
    return folder / f"images-{rows.start:09d}.bin"


def hash_images(images: Image) -> Hashes:
    """Return (N, 16) uint8: the SHA-256 of each image's bytes, cut to 128 bits."""
    data = b"".join(hashlib.sha256(image).digest()[:HASH_BYTES] for image in images)
    return np.frombuffer(data, np.uint8).reshape(len(images), HASH_BYTES)


def digest_of(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of a description without its own digest."""
    rest = {name: value for name, value in meta.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what `pack.json` says.

    Raises:
        DataError: When there is none, it has changed, or it is of another format.
    """
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        digest = digest_of(meta) if isinstance(meta, dict) else ""
    except OSError:
        raise DataError(f"{folder} is no packed store (no pack.json); make one with `kaggle-kit pack`") from None
    except ValueError:
        raise DataError(f"{path} is damaged; delete the store and pack again") from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise DataError(f"{path} has format {found}; this version reads {FORMAT}; pack again")
    if meta.get("digest") != digest:
        raise DataError(f"{path} has changed since it was written; delete the store and pack again")
    return dict(meta)


def _load_checked(path: Path, digest: str) -> npt.NDArray[Any]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} has changed")
    import io

    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
