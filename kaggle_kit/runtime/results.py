"""Probabilities as they are finished, batch by batch: in memory, or in a folder that outlives a killed process.

    about.json    what they belong to; anything else there is begun anew
    ids.npy       (N,) ids
    probs.f32     (N, all heads' classes) float32, in the heads' order
    done.jsonl    one line for each finished batch: its rows, how many runs spoke, a checksum, its broken images

A batch counts once its line is whole, and its line is written after its probabilities. A process that is killed loses
the batches it was at, and no more; only a machine that loses power can lose others, which their checksums then say.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import KitError
from kaggle_kit.files import lock, replacing
from kaggle_kit.predictions import Probs
from kaggle_kit.tables import Text

ABOUT, IDS, PROBS, DONE, LOCK = "about.json", "ids.npy", "probs.f32", "done.jsonl", "lock"
FORMAT = 1
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A finished batch.

    Attributes:
        rows: Of the source.
        num_runs: How many runs of the running order spoke for its images; 0: none did, they have the class priors.
        cut: Whether not all members of these runs spoke, or none with its views.
        piece: How many images were computed at once.
        broken: {id: reason} of its images that have the class priors.
    """

    rows: range
    num_runs: int
    cut: bool = False
    piece: int = 0
    broken: dict[str, str] = field(default_factory=dict)


class Results:
    """Probabilities of N images, written by several threads and read at the end.

    Attributes:
        ids: (N,) image ids.
        batch: Images a batch: rows are divided at its multiples, by whoever goes on with them too, so that the same
            images are computed together.
        batches: What is finished, in the order in which it was.
    """

    def __init__(
        self,
        classes: Mapping[str, int],
        ids: Text,
        *,
        batch: int,
        folder: Path | None = None,
        key: str = "",
        accept: Callable[[Batch], bool] | None = None,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        """Begin, or go on with what a killed process left in the folder.

        Args:
            classes: {head: number of classes}.
            ids: (N,) of all images.
            batch: Images a batch, where nothing is left to go on with.
            folder: Where results are kept; None: in memory.
            key: Says what they belong to beside the ids; results of another key are thrown away.
            accept: Says which finished batches are good enough to stay; None: all.
            say: Where a line goes when the disk fills up.

        Raises:
            KitError: When another process is writing there.
            OSError: When the folder cannot be written, or its disk is too small for all of it.
        """
        self.ids, self.batch = ids, batch
        self.batches: list[Batch] = []
        self._classes = dict(classes)
        self._width = sum(classes.values())
        self._accept, self._say = accept or (lambda _batch: True), say
        self._mutex = threading.Lock()
        self._folder = folder
        self._files: dict[str, int] = {}
        self._memory: npt.NDArray[np.float32] | None = None
        if folder is None:
            self._memory = np.zeros((len(ids), self._width), np.float32)
            return
        try:
            self._open(folder, key)
        except BaseException:
            self.close()
            raise

    @classmethod
    def left_in(cls, folder: Path, *, key_start: str = "") -> Results | None:
        """Return what a process left in a folder, or None where there is nothing whole.

        Args:
            folder: Where.
            key_start: What their key must begin with.

        Raises:
            KitError: When that process is still writing.
        """
        about = _read_json(folder / ABOUT)
        try:
            if not about["key"].startswith(key_start):
                return None
            ids = np.load(folder / IDS, allow_pickle=False)
            return cls(about["classes"], ids, batch=about["batch"], folder=folder, key=about["key"])
        except KitError:
            raise
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.ids)

    def _open(self, folder: Path, key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files[LOCK] = _lock(folder / LOCK)
        known = hashlib.sha256("\n".join([key, *self.ids.tolist()]).encode()).hexdigest()
        about = {"format": FORMAT, "key": key, "of": known, "batch": self.batch, "classes": self._classes}
        found = _read_json(folder / ABOUT)
        if isinstance(found, dict) and {**found, "batch": 0} == {**about, "batch": 0}:
            self.batch = about["batch"] = int(found["batch"])
        else:
            for name in (ABOUT, DONE, PROBS, IDS):
                (folder / name).unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._files[PROBS] = os.open(folder / PROBS, flags, 0o644)
        _reserve(self._files[PROBS], self.num_rows * self._width * 4)
        with replacing(folder / IDS) as temporary, temporary.open("wb") as file:
            np.save(file, self.ids)
        with replacing(folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about), encoding="utf-8")
        self._read_done(folder / DONE)
        self._files[DONE] = os.open(folder / DONE, flags | os.O_APPEND, 0o644)

    def _read_done(self, path: Path) -> None:
        """Take over the batches that are whole, and forget the others."""
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        kept = []
        for line in lines[:-1]:  # the last one lacks its end
            batch = self._parse(line)
            if batch is not None and self._accept(batch):
                self.batches.append(batch)
                kept.append(line)
        if lines != [*kept, b""] and lines:
            with replacing(path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in kept))

    def _parse(self, line: bytes) -> Batch | None:
        """Return the batch that a line tells of, or None where its probabilities are not those that were written."""
        try:
            told = json.loads(line)
            rows = range(*told["rows"])
            if zlib.crc32(self._read(rows)) != told["crc"]:
                return None
            return Batch(
                rows=rows, num_runs=told["runs"], cut=told["cut"], piece=told["piece"], broken=dict(told["broken"])
            )
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, batch: Batch, probs: Probs) -> None:
        """Keep a finished batch.

        Args:
            batch: Which one.
            probs: {head: (n, C)} of its rows.
        """
        values = np.concatenate([np.asarray(probs[head], np.float32) for head in self._classes], axis=1)
        assert values.shape == (len(batch.rows), self._width), values.shape
        with self._mutex:
            if self._memory is None:
                try:
                    self._write(batch, values.tobytes())
                except OSError as error:
                    self._hold(error)
            if self._memory is not None:
                self._memory[batch.rows.start : batch.rows.stop] = values
            self.batches.append(batch)

    def _hold(self, error: OSError) -> None:
        """Go on in memory, where the disk takes no more."""
        self._say(
            f"WARNING the disk takes no more ({error.strerror or error}); what is finished from here on is lost "
            "should this process be killed"
        )
        self._memory = self._read_all()

    def _write(self, batch: Batch, data: bytes) -> None:
        line = {
            "rows": [batch.rows.start, batch.rows.stop],
            "runs": batch.num_runs,
            "cut": batch.cut,
            "piece": batch.piece,
            "crc": zlib.crc32(data),
            "broken": batch.broken,
        }
        _write_at(self._files[PROBS], data, batch.rows.start * self._width * 4)
        _write_all(self._files[DONE], json.dumps(line).encode() + b"\n")

    def missing(self) -> list[range]:
        """Return the rows that are not finished, as ranges in order."""
        found, at = [], 0
        finished = sorted((batch.rows for batch in self.batches), key=lambda rows: rows.start)
        for rows in [*finished, range(self.num_rows, self.num_rows)]:
            if rows.start > at:
                found.append(range(at, rows.start))
            at = max(at, rows.stop)
        return found

    def broken(self) -> dict[str, str]:
        """Return {id: reason} of images that have the class priors, in the rows' order."""
        ordered = sorted(self.batches, key=lambda batch: batch.rows.start)
        return {name: reason for batch in ordered for name, reason in batch.broken.items()}

    def num_runs(self) -> npt.NDArray[np.int16]:
        """Return (N,) how many runs spoke for each image; 0: none."""
        runs = np.zeros(self.num_rows, np.int16)
        for batch in self.batches:
            runs[batch.rows.start : batch.rows.stop] = batch.num_runs
        return runs

    def probs(self) -> Probs:
        """Return {head: (N, C)}; rows that are not finished are zeros."""
        whole = self._read_all() if self._memory is None else self._memory
        ends = np.cumsum(list(self._classes.values()))
        return {head: whole[:, end - size : end] for (head, size), end in zip(self._classes.items(), ends, strict=True)}

    def close(self) -> None:
        """Let go of the files; what is in them stays."""
        for handle in self._files.values():
            with contextlib.suppress(OSError):
                os.close(handle)
        self._files.clear()

    def remove(self) -> None:
        """Throw the folder away: its results are where they belong."""
        self.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Results:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Let go of the files."""
        self.close()

    def _read_all(self) -> npt.NDArray[np.float32]:
        whole = np.empty((self.num_rows, self._width), np.float32)
        for start in range(0, self.num_rows, ROWS_AT_ONCE):
            rows = range(start, min(start + ROWS_AT_ONCE, self.num_rows))
            whole[start : rows.stop] = np.frombuffer(self._read(rows), np.float32).reshape(len(rows), self._width)
        return whole

    def _read(self, rows: range) -> bytes:
        size = len(rows) * self._width * 4
        return _read_at(self._files[PROBS], size, rows.start * self._width * 4)


def _reserve(handle: int, size: int) -> None:
    """Make a file as large as it will be, so that a full disk is known before any time is spent."""
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    elif os.fstat(handle).st_size < size:
        os.ftruncate(handle, size)


def _lock(path: Path) -> int:
    """Return a handle that keeps other processes out for as long as this one lives."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if lock(handle, wait=False) == "another's":
        os.close(handle)
        raise KitError(f"another process is predicting into {path.parent}; wait for it, or give another --out")
    return handle


def _write_at(handle: int, data: bytes, place: int) -> None:
    os.lseek(handle, place, os.SEEK_SET)
    _write_all(handle, data)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _read_at(handle: int, size: int, place: int) -> bytes:
    os.lseek(handle, place, os.SEEK_SET)
    parts = []
    while size and (part := os.read(handle, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
