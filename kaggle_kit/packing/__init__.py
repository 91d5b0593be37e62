"""Convert a source's images once, to a packed store that is read fast for ever; see `kaggle_kit.sources.packed`.

Every part of the source is written and recorded by itself, so a killed packing goes on where it was; the store
takes its place when it is whole. Its pixels are not forced to the disk: after a power failure `PackedSource.verify`,
which every training calls, finds what was lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kaggle_kit.errors import DataError, ImageError
from kaggle_kit.files import check_replaceable, put_folder
from kaggle_kit.machine import num_cores, share_cores
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.packing.parts import StoreSpec, assemble_store, part_is_done, write_part
from kaggle_kit.progress import say
from kaggle_kit.sources import PackedSource, Source, fixed_shape
from kaggle_kit.sources.packed import FORMAT, INDEX_FILES, META, Kind, read_meta

RAW_LIMIT_BYTES = 16_000_000_000
CORES_A_PROCESS = 4
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
STEP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What packing will write.

    Attributes:
        kind: Pixels, or the images' own files.
        raw_bytes: What the pixels of all images take at the stored size.
        encoded_bytes: What the images' own files take, or None where there are none.
        arithmetic: The sum and the choice, for people.
    """

    kind: Kind
    raw_bytes: int
    encoded_bytes: int | None
    arithmetic: str

    @property
    def needed_bytes(self) -> int:
        """What the store will take on the disk."""
        return self.raw_bytes if self.kind == "raw" or self.encoded_bytes is None else self.encoded_bytes


def plan_packing(source: Source, kind: Kind | Literal["auto"] = "auto") -> PackPlan:
    """Choose how to store the images of a source: raw up to 16 GB or where that is smaller, else encoded."""
    height, width, channels = fixed_shape(source)
    raw = len(source) * height * width * channels
    encoded = source.encoded_bytes()
    if kind == "auto":
        kind = "raw" if encoded is None or raw <= max(RAW_LIMIT_BYTES, encoded) else "encoded"
    arithmetic = (
        f"{len(source):,} images x {height} x {width} x {channels} = {_size(raw)} raw, "
        f"{'no files of their own' if encoded is None else f'{_size(encoded)} as their own files'}; packing "
        f"{kind} (raw is read fastest; from {RAW_LIMIT_BYTES / 1e9:.0f} GB on, whichever is smaller)"
    )
    return PackPlan(kind=kind, raw_bytes=raw, encoded_bytes=encoded, arithmetic=arithmetic)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def find_packed(folder: Path, key: SourceKey, kind: Kind | Literal["auto"] = "auto") -> PackedSource | None:
    """Return the store in `folder` if it holds just what the key stands for, in this way, else None."""
    try:
        meta = read_meta(folder)
        return PackedSource(folder) if key.matches(meta["key"]) and kind in ("auto", meta["kind"]) else None
    except DataError:  # absent, damaged or of another format: it is packed again
        return None


def pack(
    source: Source,
    folder: Path,
    *,
    key: SourceKey,
    kind: Kind | Literal["auto"] = "auto",
    num_workers: int | None = None,
    notes: Mapping[str, object] | None = None,
    advance: Callable[[int], object] | None = None,
) -> PackedSource:
    """Write a source's images to a packed store, unless the store there holds just them already.

    Args:
        source: The images.
        folder: Where the store goes; a store of other images is replaced.
        key: What the images and their storing are known by.
        kind: `raw`, `encoded`, or `auto`: see `plan_packing`.
        num_workers: Processes; 0 for this one; None: chosen by the source and the cores.
        notes: JSON-ready values that the store keeps.
        advance: Called with a number of images when so many more are packed.

    Raises:
        DataError: When the folder holds something else, the disk is too small, or an image is broken and the
            source was opened to say so.
    """
    folder = folder.resolve()
    with _lock(folder):
        there = find_packed(folder, key, kind)
        if there is not None:
            return there
        own = own_files(folder)
        check_replaceable(folder, own, what="packed store", error=DataError)
        plan = plan_packing(source, kind)
        work = _start_work(folder, plan, key)
        try:
            _write_parts(source, work, plan, num_workers, advance or (lambda _: None))
            assemble_store(source, work, StoreSpec(kind=plan.kind, key=key, notes=notes or {}))
            put_folder(work, folder)
        except ImageError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            raise _failed(folder, work, error) from None
    return PackedSource(folder)


def own_files(folder: Path) -> tuple[str, ...]:
    """Return the names a packed store in this folder is made of; none where there is no store."""
    if not (folder / META).is_file():
        return ()
    return (META, *INDEX_FILES, "places.npy", "images.npy", *(path.name for path in folder.glob("images-*.bin")))


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time pack into a folder; its lock lies beside it, so that all machines that see it agree."""
    from filelock import FileLock, Timeout

    try:  # a lock that cannot be made looks like one that another process holds
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise DataError(f"{folder.parent} cannot be written to ({error.strerror}); choose another folder") from None
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is packing into {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _failed(folder: Path, work: Path, error: OSError) -> DataError:
    """Return what to raise; only a full disk makes what was packed so far useless."""
    if error.errno in FULL:
        shutil.rmtree(work, ignore_errors=True)
        return DataError(f"packing into {folder} failed: {error.strerror}; free some of the disk; nothing was kept")
    return DataError(f"packing into {folder} failed: {error.strerror or error}; pack again, and it goes on there")


def _start_work(folder: Path, plan: PackPlan, key: SourceKey) -> Path:
    """Return the folder beside `folder` to pack in: the one of a killed packing of the same images, or a new one.

    Raises:
        DataError: When the disk is too small.
    """
    work = folder.parent / f".{folder.name}.packing"
    wanted = json.dumps({"format": FORMAT, "kind": plan.kind, "key": key.as_plain()})
    with contextlib.suppress(OSError):
        if (work / "plan.json").read_text(encoding="utf-8") == wanted:
            say(f"going on with a packing that was interrupted: {work}")
            return work
    shutil.rmtree(work, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if plan.needed_bytes > free:
        raise DataError(
            f"packing into {folder} needs {plan.needed_bytes / 1e9:.2f} GB; the disk has {free / 1e9:.2f} GB free; "
            "free some, choose another disk, or a smaller stored size"
        )
    work.mkdir()
    (work / "plan.json").write_text(wanted, encoding="utf-8")
    return work


def _write_parts(
    source: Source, work: Path, plan: PackPlan, num_workers: int | None, advance: Callable[[int], object]
) -> None:
    if plan.kind == "raw":
        _reserve(work / "images.npy", (len(source), *fixed_shape(source)))
    done = [part for part in source.parts() if part_is_done(work, part, raw=plan.kind == "raw")]
    advance(sum(len(part) for part in done))
    left = [part for part in source.parts() if part not in done]
    workers = _default_workers(source, left) if num_workers is None else min(num_workers, len(left))
    if workers < 2:
        for part in left:
            write_part(source, work, part, raw=plan.kind == "raw", advance=advance)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _Worker.start, (source, work, plan.kind == "raw", workers)) as pool:
        jobs = {pool.submit(_Worker.write, part): part for part in left}
        try:
            for job in as_completed(jobs):
                job.result()
                advance(len(jobs[job]))
        except BrokenProcessPool:
            raise DataError(
                f"a process died while packing into {work.parent}, perhaps for want of memory; pack again with fewer "
                "`--workers`: it goes on where it was"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


class _Worker:
    """What a packing process was given once, not with every part."""

    given: tuple[Source, Path, bool]

    @classmethod
    def start(cls, source: Source, work: Path, raw: bool, num_workers: int) -> None:
        cls.given = source, work, raw
        share_cores(num_workers)

    @classmethod
    def write(cls, part: range) -> None:
        source, work, raw = cls.given
        write_part(source, work, part, raw=raw)


def _default_workers(source: Source, left: list[range]) -> int:
    """One process reads bare pixels, and decodes as fast as several can where there are few cores."""
    if source.encoded_bytes() is None:
        return 0
    return min(num_cores() // CORES_A_PROCESS, len(left))


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Make room for an array, so that a full disk is an error now and not a bus error while it is mapped.

    Raises:
        OSError: When the disk is too small.
    """
    if path.exists():
        return
    beside = path.with_suffix(".reserving")
    if 0 in shape:
        np.save(beside.with_suffix(".npy"), np.zeros(shape, np.uint8))
        return
    np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
    size = beside.stat().st_size
    with beside.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            header = size - int(np.prod(shape))
            file.seek(header)
            for start in range(header, size, STEP_BYTES):
                file.write(bytes(min(STEP_BYTES, size - start)))
    beside.rename(path)
