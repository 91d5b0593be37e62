"""Damaged files of every format are refused in one line, or read as what they were; never anything else."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pillow
from pyarrow import parquet

from kaggle_kit.errors import KitError
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.sources import PackedSource, Source, open_source
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, task_from_plain, task_to_plain

NUM, HEIGHT, WIDTH = 7, 12, 9
MUTATIONS = 130  # of each of 11 formats
KINDS = ("flip", "flip", "flip", "truncate", "append", "zero", "swap", "delete")
IMAGES = np.random.default_rng(3).integers(0, 256, (NUM, HEIGHT, WIDTH), np.uint8)
IMAGES[:, 2:6] = 40  # something to compress
NAMES = [f"image_{i}" for i in range(NUM)]


@dataclass(frozen=True, kw_only=True)
class Victim:
    """Files of one format.

    Attributes:
        open: Opens them; the argument is what a broken image becomes.
        files: Those to damage.
        same_ids: Whether damage to an id is noticed.
        same_pixels: Whether damage to a pixel is noticed.
    """

    open: Callable[[Any], Source]
    files: list[Path]
    same_ids: bool = True
    same_pixels: bool = False
    tally: dict[str, int] = field(default_factory=lambda: {"refused": 0, "read": 0})


def task_of(**images: object) -> Task:
    return task_from_plain(
        {
            "name": "toy",
            "heads": {"kind": {"classes": 2}},
            "metric": "accuracy",
            "images": {"channels": 1, **images},
            "stored": {"height": HEIGHT, "width": WIDTH},
            "submission": {"form": "row_per_image"},
        }
    )


def encode(image: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def victim(task: Task, data: Path, *paths: Path, **promises: bool) -> Victim:
    return Victim(open=lambda broken: open_source(task, "train", data, on_broken=broken), files=[*paths], **promises)


def make_wide_parquet(data: Path) -> Victim:
    flat = IMAGES.reshape(NUM, -1)
    columns = {"image_id": pa.array(NAMES)} | {str(i): pa.array(flat[:, i]) for i in range(flat.shape[1])}
    parquet.write_table(pa.table(columns), data / "train_0.parquet", row_group_size=4)
    task = task_of(format="wide_parquet", train="train_*.parquet", test="x", height=HEIGHT, width=WIDTH)
    return victim(task, data, data / "train_0.parquet", same_ids=False)


def make_encoded_parquet(data: Path) -> Victim:
    rows = [{"bytes": encode(image, "png"), "path": name} for name, image in zip(NAMES, IMAGES, strict=True)]
    parquet.write_table(pa.table({"image": pa.array(rows)}), data / "train_0.parquet", row_group_size=4)
    task = task_of(format="encoded_parquet", train="train_*.parquet", test="x", id="image.path")
    return victim(task, data, data / "train_0.parquet", same_ids=False)


def make_folder(data: Path, form: str) -> Victim:
    (data / "images").mkdir()
    for name, image in zip(NAMES, IMAGES, strict=True):
        (data / "images" / f"{name}.{form}").write_bytes(encode(image, form))
    task = task_of(format="files", folder="images", test_list="x", suffix=f".{form}")
    return victim(task, data, *sorted((data / "images").iterdir()))


def make_zip(data: Path) -> Victim:
    with zipfile.ZipFile(data / "images.zip", "w") as archive:
        for number, (name, image) in enumerate(zip(NAMES, IMAGES, strict=True)):
            packing = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.writestr(f"train/{name}.bmp", encode(image, "bmp"), packing)
    task = task_of(format="files", folder="images.zip/train", test_list="x", suffix=".bmp")
    return victim(task, data, data / "images.zip", same_pixels=True)


def make_npy(data: Path) -> Victim:
    np.save(data / "images.npy", IMAGES)
    return victim(task_of(format="array", train="images.npy", test="x"), data, data / "images.npy")


def make_npy_by_number(data: Path) -> Victim:
    np.save(data / "images.npy", IMAGES)
    plain = task_to_plain(task_of(format="array", train="images.npy", test="x"))
    task = task_from_plain({**plain, "labels": {"file": "labels.npy"}})
    return victim(task, data, data / "images.npy")


def make_idx(data: Path, *, gzipped: bool) -> Victim:
    content = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in IMAGES.shape) + IMAGES.tobytes()
    path = data / ("images-ubyte.gz" if gzipped else "images-ubyte")
    path.write_bytes(gzip.compress(content, mtime=0) if gzipped else content)
    return victim(task_of(format="array", train=path.name, test="x"), data, path, same_pixels=gzipped)


def make_packed(data: Path, kind: Any) -> Victim:
    make_folder(data, "jpeg")
    (data / "images" / f"{NAMES[5]}.jpeg").write_bytes(b"broken")
    task = task_of(format="files", folder="images", test_list="x", suffix=".jpeg")
    store = pack_train(task, data, data / "packed", kind=kind)

    def open_verified(_: object) -> Source:
        source = PackedSource(store.folder)
        source.verify()
        return source

    return Victim(open=open_verified, files=sorted(store.folder.iterdir()), same_pixels=True)


MAKERS: dict[str, Callable[[Path], Victim]] = {
    "wide parquet": make_wide_parquet,
    "encoded parquet": make_encoded_parquet,
    "folder of jpeg": lambda data: make_folder(data, "jpeg"),
    "folder of png": lambda data: make_folder(data, "png"),
    "zip": make_zip,
    "npy": make_npy,
    "npy, ids by number": make_npy_by_number,
    "idx": lambda data: make_idx(data, gzipped=False),
    "idx.gz": lambda data: make_idx(data, gzipped=True),
    "packed raw": lambda data: make_packed(data, "raw"),
    "packed encoded": lambda data: make_packed(data, "encoded"),
}


def damage(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Change a file; every other change lies at its start or end, where headers and indices are."""
    size = len(data)

    def place(room: int) -> int:
        spread = max(1, min(size - room + 1, int(rng.choice([64, size]))))
        at = int(rng.integers(spread))
        return at if rng.random() < 0.5 else max(0, size - room - at)

    out = bytearray(data)
    length = int(rng.integers(1, max(2, min(64, size // 3))))
    if kind == "truncate":
        return data[: place(1)]
    if kind == "append":
        return data + rng.bytes(length)
    if kind == "flip":
        for _ in range(int(rng.integers(1, 4))):
            out[place(1)] ^= int(rng.integers(1, 256))
    elif kind == "zero":
        at = place(length)
        out[at : at + length] = bytes(length)
    else:
        one, other = sorted((place(length), place(length)))
        if other - one >= length:
            out[one : one + length], out[other : other + length] = (
                data[other : other + length],
                data[one : one + length],
            )
    return bytes(out)


def check_read(victim: Victim, source: Source, ids: list[str], images: np.ndarray) -> None:
    """Read everything in both ways and compare it with what was written."""
    found = source.ids.tolist()
    assert len(source) == len(found) == len(set(found)) == len(ids)
    assert all(type(name) is str for name in found)
    assert not victim.same_ids or found == ids
    chunks = list(source.chunks())
    broken = {name for chunk in chunks for name in chunk.broken}
    rows = []
    for chunk in chunks:
        assert chunk.start == len(rows)
        assert chunk.ids.tolist() == found[chunk.start : chunk.stop]
        rows += list(chunk.images)
    assert len(rows) == len(ids)
    for row, image in enumerate(rows):
        assert image.shape == (HEIGHT, WIDTH, 1) and image.dtype == np.uint8
        assert not victim.same_pixels or found[row] in broken or (image == images[row]).all()
        if found[row] not in broken:
            assert (source.read(row) == image).all()


def problem_after(victim: Victim, ids: list[str], images: np.ndarray, on_broken: str) -> str | None:
    """Return what is wrong with how the damaged files are read or refused, or None; count which."""
    try:
        check_read(victim, victim.open(on_broken), ids, images)
    except KitError as error:
        victim.tally["refused"] += 1
        return f"several lines: {str(error)!r}" if "\n" in str(error) or not str(error) else None
    except AssertionError as error:
        return f"read something else: {str(error)[:300]}"
    except Exception as error:  # noqa: BLE001 - what this test is for
        return f"{type(error).__name__}: {str(error)[:300]}"
    victim.tally["read"] += 1
    return None


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # "created on Python 2", numpy takes some damage for
@pytest.mark.parametrize("name", MAKERS)
def test_damage_is_refused_in_one_line_or_harmless(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", ["image_id", "kind"], [[image_id, 0] for image_id in NAMES])
    victim = MAKERS[name](tmp_path)
    source = victim.open("blank")
    ids, images = source.ids.tolist(), np.concatenate([chunk.images for chunk in source.chunks()])
    problems = []
    for number in range(MUTATIONS):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        path, kind = victim.files[number % len(victim.files)], KINDS[int(rng.integers(len(KINDS)))]
        whole = path.read_bytes()
        path.unlink()  # what is still mapped stays as it was
        if kind != "delete":
            path.write_bytes(damage(whole, kind, rng))
        problem = problem_after(victim, ids, images, "blank" if number % 2 else "error")
        if problem is not None:
            problems.append(f"{name}, number {number} ({kind} of {path.name}): {problem}")
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert not problems, "\n".join(problems)
    assert min(victim.tally.values()) > 0
