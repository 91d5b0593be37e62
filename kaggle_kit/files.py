"""Files and folders that are either whole or absent, and never take the place of somebody else's."""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from kaggle_kit.errors import DataError, KitError, some_of

Lock = Literal["ours", "another's", "nobody's"]
_Use = Literal["unfinished", "replaced"]  # what a temporary folder beside NAME is for: .NAME.USE.RANDOM


def lock(handle: int, *, wait: bool) -> Lock:
    """Lock an open file or folder until it is closed or its process ends, however that comes.

    Args:
        handle: What `os.open` gave.
        wait: Whether to wait until no other process holds the lock.

    Returns:
        Who holds it now: this process, another, or nobody where there are no locks (Windows, some network disks).
    """
    try:
        import fcntl
    except ImportError:
        return "nobody's"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "another's"
    except OSError:
        return "nobody's"
    return "ours"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output_file(path: Path, suffix: str, *, outside: Path | None = None) -> None:
    """Refuse, before any work, a place where a result cannot or must not be written.

    Args:
        path: The file to write; an earlier one of the same kind is replaced.
        suffix: What its name must end with, such as ".csv".
        outside: A folder that is somebody else's: the competition's data.

    Raises:
        KitError: Saying where to write instead.
    """
    if path.is_dir():
        raise KitError(f"{path} is a folder; give a file in it, such as {path / ('result' + suffix)}")
    if path.suffix != suffix:
        raise KitError(f"{path} does not end in {suffix}; write to {path.with_suffix(suffix)}")
    if outside is not None and path.resolve().is_relative_to(outside.resolve()):
        raise KitError(f"{path} lies in the data folder {outside}; write outside of it")
    existing = next(parent for parent in path.resolve().parents if parent.exists())
    if not os.access(existing, os.W_OK):
        raise KitError(f"{path} cannot be written: {existing} is read-only; choose a folder you can write to")


def check_local(path: Path) -> None:
    """Refuse an address, such as `s3://bucket/data`, where a path is meant.

    Raises:
        DataError: Naming it.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        address = re.sub(":/+", "://", str(path), count=1)
        raise DataError(f"{address!r} is an address, not a folder; copy its files here, and give their folder")


def check_replaceable(folder: Path, own: Collection[str], *, what: str, error: type[KitError]) -> None:
    """Refuse a folder that holds anything but the files of an earlier `what`.

    Args:
        folder: May be absent or empty.
        own: The names an earlier `what` in this folder is made of; empty when there is none.
        what: Such as "bundle", for the message.
        error: What to raise.

    Raises:
        KitError: Of the kind `error`, naming files that would be lost.
    """
    try:  # once for each: another process may be about to replace it
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise error(f"{folder} is a file; give a folder for the {what}")
        others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    except FileNotFoundError:
        return
    if others and not own:
        raise error(f"{folder} is not empty and no {what}; choose another folder")
    if others:
        raise error(f"{folder} holds a {what} and other files: {some_of(others)}; move them, or choose another folder")


@contextmanager
def replacing_folder(folder: Path, own: Collection[str], *, what: str, error: type[KitError]) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `folder` when the block ends without an error.

    What killed processes left beside it goes, but for a `folder` that they had moved away: where it is missing at the
    end, it comes back.

    Args:
        folder: May be absent, empty, or hold an earlier `what` and nothing else.
        own: The names an earlier `what` in this folder is made of; empty when there is none.
        what: Such as "bundle", for the message.
        error: What to raise.

    Raises:
        KitError: Of the kind `error`, before anything is written, when files of another kind would be lost.
    """
    folder = folder.resolve()
    check_replaceable(folder, own, what=what, error=error)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder, "unfinished")
    try:
        with _temporary_beside(folder, "unfinished") as temporary:
            temporary.chmod(0o755)
            yield temporary
            put_folder(temporary, folder)
    finally:
        _sweep(folder, "replaced")  # not before: `own` is of the folder as it was found


def put_folder(finished: Path, folder: Path) -> None:
    """Rename a finished folder to its place, over whatever is there; both must be in one folder."""
    if folder.exists():
        with _temporary_beside(folder, "replaced") as old:
            folder.rename(old / folder.name)
            finished.rename(folder)
    else:
        finished.rename(folder)


@contextmanager
def _temporary_beside(folder: Path, use: _Use) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that no other process sweeps away while the block runs; then it goes."""
    temporary, handle = _make_locked(folder, use)
    try:
        yield temporary
    finally:
        try:
            _discard(temporary, folder, use)
        finally:
            if handle is not None:
                os.close(handle)


def _make_locked(folder: Path, use: _Use) -> tuple[Path, int | None]:
    while True:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{use}."))
        handle = _lock_folder(temporary, wait=True)
        if temporary.exists():
            return temporary, handle
        if handle is not None:  # another process swept it away before it was locked
            os.close(handle)


def _sweep(folder: Path, use: _Use) -> None:
    """Discard the temporary folders of killed processes; what cannot be locked or deleted stays."""
    prefix = f".{folder.name}.{use}."
    for path in folder.parent.glob(f"{glob.escape(prefix)}*"):
        of_another = "." in path.name[len(prefix) :]  # of a folder NAME.USE
        handle = None if of_another else _lock_folder(path, wait=False)
        if handle is None:
            continue
        try:
            with suppress(OSError):
                _discard(path, folder, use)
        finally:
            os.close(handle)


def _discard(temporary: Path, folder: Path, use: _Use) -> None:
    """Delete a temporary folder, after putting back what it keeps of a `folder` that is missing."""
    kept = temporary / folder.name
    if use == "replaced" and kept.exists() and not folder.exists():
        kept.rename(folder)
    shutil.rmtree(temporary, ignore_errors=True)


def _lock_folder(folder: Path, *, wait: bool) -> int | None:
    """Return a handle that locks a folder until it is closed or its process ends; None where that cannot be had."""
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # as on Windows, which opens no folders: nothing is locked there, so nothing is swept
        return None
    if lock(handle, wait=wait) == "ours":
        return handle
    os.close(handle)
    return None


def no_file(path: Path) -> str:
    """Return what to say of a competition's file that is missing, and of its folder where that is missing too."""
    if path.parent.is_dir():
        return f"{path} is missing; check the data folder and the task's file names"
    return f"{path} is missing, as there is no folder {path.parent}; check the data folder and the task's file names"
