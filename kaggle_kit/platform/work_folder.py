"""The folder that a rehearsal works in: one at a time, and never somebody else's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kaggle_kit.errors import RehearsalError
from kaggle_kit.files import lock
from kaggle_kit.platform.processes import kill_leftovers

MARKER = ".kaggle-kit-rehearsal"


@contextmanager
def claimed(work: Path) -> Iterator[tuple[Path, int]]:
    """Yield a work folder, emptied of an earlier rehearsal, that no other rehearsal gets while the block runs.

    Args:
        work: May be absent, empty, or hold an earlier rehearsal.

    Yields:
        Its absolute path, and how many processes of a killed rehearsal were still at work in it and are ended now.

    Raises:
        RehearsalError: When it holds something else, or another rehearsal runs in it.
    """
    marker = work / MARKER
    if work.exists() and not work.is_dir():
        raise RehearsalError(f"{work} is a file; give a folder for the rehearsal")
    if work.exists() and any(work.iterdir()) and not marker.is_file():
        raise RehearsalError(f"{work} is not empty and no rehearsal; choose another folder")
    work.mkdir(parents=True, exist_ok=True)
    with marker.open("a", encoding="utf-8") as held:
        if lock(held.fileno(), wait=False) == "another's":
            raise RehearsalError(f"another rehearsal runs in {work}; wait for it, or give another folder with --work")
        left = kill_leftovers(work)
        for path in work.iterdir():
            if path.name != MARKER:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield work.resolve(), left
