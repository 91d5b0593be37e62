"""Write one part of a packed store, and join the parts' records to its index."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kaggle_kit.files import replacing
from kaggle_kit.machine import decoding_pool
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.pixels import Image, encode_png
from kaggle_kit.settings import plain
from kaggle_kit.sources import Chunk, JoinedSource, Source, fixed_shape
from kaggle_kit.sources.packed import FORMAT, HASH_BYTES, META, Hashes, Kind, digest_of, hash_images, part_file
from kaggle_kit.sources.protocol import Sizes, split_rows

Sums = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
ROWS_A_JOB = 256


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """What a store says of itself beside its images.

    Attributes:
        kind: Pixels, or the images' own files.
        key: What the images are known by.
        notes: JSON-ready values to keep.
    """

    kind: Kind
    key: SourceKey
    notes: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is known of a written part; see `kaggle_kit.sources.packed` for shapes.

    Attributes:
        sums: (C, 3) float64: how many values each channel of unbroken images has, their sum and their squares' sum.
    """

    hashes: Hashes
    sizes: Sizes
    places: Places
    sums: Sums
    broken: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        arrays = {name: getattr(self, name) for name in ("hashes", "sizes", "places", "sums")}
        with replacing(path) as temporary:
            np.savez(temporary, broken=np.array(json.dumps(self.broken)), **arrays)

    @classmethod
    def load(cls, path: Path) -> PartRecord:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            broken = json.loads(str(arrays["broken"]))
            return cls(broken=broken, **{n: arrays[n] for n in ("hashes", "sizes", "places", "sums")})


def write_part(
    source: Source, work: Path, rows: range, *, raw: bool, advance: Callable[[int], object] | None = None
) -> None:
    """Write the images of these rows, and then the record that they are written.

    Args:
        source: The images.
        work: The folder the store is made in; a raw store's `images.npy` is there already.
        rows: The part.
        raw: Pixels, not the images' own files.
        advance: Called with the number of images after each chunk.
    """
    into = np.lib.format.open_memmap(work / "images.npy", mode="r+") if raw else None
    records = []
    with part_file(work, rows).open("wb") as file:
        for chunk in source.chunks(start=rows.start, stop=rows.stop, into=into):
            records.append(_look_at(chunk, np.zeros((0, 3), np.int64) if raw else _append(source, chunk, file)))
            if advance is not None:
                advance(len(chunk.ids))
    if raw:
        part_file(work, rows).unlink()
    _joined(records, fixed_shape(source)[2]).save(_record_path(work, rows))


def part_is_done(work: Path, rows: range, *, raw: bool) -> bool:
    """Return whether a killed packing wrote this part, and all of it reached the file."""
    try:
        record = PartRecord.load(_record_path(work, rows))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):  # absent, or lost with the power
        return False
    if len(record.hashes) != len(rows):
        return False
    if raw:
        images = np.load(work / "images.npy", mmap_mode="r")
        found = [hash_images(images[part.start : part.stop]) for part in split_rows(rows.start, rows.stop, ROWS_A_JOB)]
        return bool((np.concatenate(found) == record.hashes).all())
    if not part_file(work, rows).is_file():
        return False
    with part_file(work, rows).open("rb") as file:
        return all(zlib.crc32(file.read(size)) == crc for _, size, crc in record.places.tolist())


def assemble_store(source: Source, work: Path, spec: StoreSpec) -> None:
    """Join the records of all parts to the index and the description of a store, and delete them.

    Args:
        source: The images.
        work: The folder with all parts.
        spec: What else the store says of itself.
    """
    parts = source.parts()
    record = _joined([PartRecord.load(_record_path(work, rows)) for rows in parts], fixed_shape(source)[2])
    index = {"ids.npy": source.ids, "sizes.npy": record.sizes, "hashes.npy": record.hashes}
    if spec.kind == "encoded":
        index["places.npy"] = record.places
    for name, array in index.items():
        np.save(work / name, array)
    mean, std = _mean_and_std(record.sums)
    tags = source.tags if isinstance(source, JoinedSource) else {"": range(len(source))}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "kind": spec.kind,
        "shape": list(fixed_shape(source)),
        "stored": None if source.encoded_bytes() is None or source.stored is None else plain(source.stored),
        "key": spec.key.as_plain(),
        "mean": mean,
        "std": std,
        "tags": {tag: [rows.start, rows.stop] for tag, rows in tags.items()},
        "parts": [[rows.start, rows.stop] for rows in parts] if spec.kind == "encoded" else [],
        "broken": record.broken,
        "notes": dict(spec.notes),
        "digests": {name: hashlib.sha256((work / name).read_bytes()).hexdigest() for name in index},
    }
    meta["digest"] = digest_of(meta)
    (work / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in [*(_record_path(work, rows) for rows in parts), work / "plan.json"]:
        path.unlink()


def _record_path(work: Path, rows: range) -> Path:
    return work / f"part-{rows.start:09d}.npz"


def _look_at(chunk: Chunk, places: Places) -> PartRecord:
    """Hash a chunk's images and add up their values, on all cores."""
    sound = np.array([name not in chunk.broken for name in chunk.ids.tolist()], bool)

    def look(rows: range) -> tuple[Hashes, Sums]:
        images = chunk.images[rows.start : rows.stop]
        return hash_images(images), _add_up(images[sound[rows.start : rows.stop]] if chunk.broken else images)

    with decoding_pool() as pool:
        looks = list(pool.map(look, split_rows(0, len(chunk.ids), ROWS_A_JOB)))
    return PartRecord(
        hashes=np.concatenate([hashes for hashes, _ in looks]),
        sizes=chunk.sizes,
        places=places,
        sums=np.sum([sums for _, sums in looks], axis=0),
        broken=chunk.broken,
    )


def _add_up(images: Image) -> Sums:
    """Return (C, 3): each channel's number of values, their sum and their squares' sum."""
    import cv2

    width, channels = images.shape[2:]
    count = images.size / channels
    if not count:
        return np.zeros((channels, 3))
    mean, std = (found.ravel() for found in cv2.meanStdDev(images.reshape(-1, width, channels)))
    return np.stack([np.full(channels, count), mean * count, (std**2 + mean**2) * count], axis=1)


def _mean_and_std(sums: Sums) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation, 0 to 1; zeros where there are no pixels."""
    count = np.maximum(sums[:, 0], 1)
    mean = sums[:, 1] / count
    variance = np.maximum(sums[:, 2] / count - mean**2, 0)
    return (mean / 255).round(6).tolist(), (np.sqrt(variance) / 255).round(6).tolist()


def _append(source: Source, chunk: Chunk, file: BinaryIO) -> Places:
    """Append the images' own files, or PNGs of bare pixels; return (n, 3) offsets, sizes and CRCs."""
    return np.array([_append_one(data, file) for data in _encoded(source, chunk)], np.int64)


def _append_one(data: bytes | memoryview, file: BinaryIO) -> tuple[int, int, int]:
    offset = file.tell()
    file.write(data)
    return offset, len(data), zlib.crc32(data)


def _encoded(source: Source, chunk: Chunk) -> Iterator[bytes | memoryview]:
    bare = source.encoded_bytes() is None  # of joined sources, one is: then all are stored as they are read
    for place, name in enumerate(chunk.ids.tolist()):
        data = b"" if name in chunk.broken else None if bare else source.encoded(chunk.start + place)
        yield encode_png(chunk.images[place]) if data is None else data


def _joined(records: list[PartRecord], channels: int) -> PartRecord:
    broken = {name: reason for record in records for name, reason in record.broken.items()}
    return PartRecord(
        hashes=np.concatenate([np.zeros((0, HASH_BYTES), np.uint8), *(record.hashes for record in records)]),
        sizes=np.concatenate([np.zeros((0, 2), np.int32), *(record.sizes for record in records)]),
        places=np.concatenate([np.zeros((0, 3), np.int64), *(record.places for record in records)]),
        sums=np.sum([np.zeros((channels, 3)), *(record.sums for record in records)], axis=0),
        broken=broken,
    )
