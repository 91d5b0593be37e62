"""Processes of a kernel, by what Linux tells in /proc: what they hold, and how all of them end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from kaggle_kit.runtime.mounts import ROOT_VARIABLE

GB = 1 << 30


def memory_gb(session: int) -> float:
    """Return the resident memory of all processes of a session; 0 where the system does not tell.

    Where one process held more than that at once, since it was last asked, it is its most.
    """
    pages, most = 0, 0
    for pid, own in _processes_of(session):
        pages += own
        most = max(most, _most_resident(pid))
    return max(pages * os.sysconf("SC_PAGE_SIZE"), most) / GB if pages else 0.0


def kill_session(session: int) -> None:
    """Kill a session's processes, whatever groups they made of themselves."""
    for pid, _ in _processes_of(session):
        _kill(pid)


def kill_leftovers(work: Path) -> int:
    """Kill what earlier rehearsals in a work folder left running when they were killed, and return how many.

    They are known by the root in their environment, which no other process has.
    """
    start = f"{ROOT_VARIABLE}={work.resolve()}{os.sep}".encode()
    number = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(line.startswith(start) for line in path.read_bytes().split(b"\0")):
                _kill(int(path.parent.name))
                number += 1
    return number


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _processes_of(session: int) -> Iterator[tuple[int, int]]:
    """Yield (process id, resident pages) of a session's processes; none where there is no /proc."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            yield int(path.parent.name), int(fields[21])


def _most_resident(pid: int) -> int:
    """Return the most bytes that a process held at once."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
