"""One run of a kernel in a process of its own, as a session of Kaggle's: limited, watched, measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kaggle_kit.machine import memory_bytes
from kaggle_kit.platform import sandbox
from kaggle_kit.platform.processes import GB, kill_session, memory_gb
from kaggle_kit.runtime.mounts import RERUN_VARIABLE, ROOT_VARIABLE, RUN_TYPE_VARIABLE, TIME_LIMIT_VARIABLE

RunKind = Literal["interactive", "visible", "hidden"]
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")  # never credentials
# What the image sets, as of autumn 2026: an editor's session, Save & Run All, and the hidden rerun.
VARIABLES: dict[RunKind, dict[str, str]] = {
    "interactive": {RUN_TYPE_VARIABLE: "Interactive"},
    "visible": {RUN_TYPE_VARIABLE: "Batch"},
    "hidden": {RUN_TYPE_VARIABLE: "Batch", RERUN_VARIABLE: "1"},
}
POLL_S = 0.05
DISK_POLL_S = 0.25
DISK_POLL_SHARE = 0.05  # of the time: a folder of many files takes long to walk
KILLED = -9  # by a signal that only the system, or a person, sends


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """What a kernel may use: seconds, gigabytes of memory and of the working folder, cores."""

    time_s: float
    memory_gb: float
    disk_gb: float
    cores: int


@dataclass(frozen=True, kw_only=True)
class Session:
    """How a run of the kernel ended.

    Attributes:
        returncode: The process's; below 0 the signal that ended it.
        stopped_for: The limit that it went over, or nothing.
        seconds: Run time here.
        peak_memory_gb: Highest resident memory of all the kernel's processes here; 0 where the system does not tell.
        peak_disk_gb: The most that the working folder was seen to take of the disk.
    """

    returncode: int
    stopped_for: Literal["", "time", "memory", "disk"]
    seconds: float
    peak_memory_gb: float
    peak_disk_gb: float


@dataclass
class _Peaks:
    """The most that was seen so far."""

    memory_gb: float = 0.0
    disk_gb: float = 0.0
    disk_at: float = field(default=0.0)

    def look(self, session: int, working: Path) -> None:
        """Measure memory, and the disk where it is time for it."""
        self.memory_gb = max(self.memory_gb, memory_gb(session))
        if (before := time.monotonic()) >= self.disk_at:
            self.disk_gb = max(self.disk_gb, folder_gb(working))
            now = time.monotonic()
            self.disk_at = now + max(DISK_POLL_S, (now - before) / DISK_POLL_SHARE)


def run_session(
    root: Path,
    script: Path,
    *,
    kind: RunKind,
    limits: SessionLimits,
    isolated: bool,
    python: Path,
    variables: Mapping[str, str],
    echo: Callable[[str], object],
) -> Session:
    """Run a kernel's script and return how it ended.

    Args:
        root: The stand-in for /kaggle, with `input` and `working`; gets `home` and `kernel.log`.
        script: What to run.
        kind: Which of Kaggle's sessions it is.
        limits: It is killed when it goes over one.
        isolated: Whether it gets namespaces of its own; see `can_isolate`.
        python: The interpreter.
        variables: Further environment variables.
        echo: Where the kernel's output goes, line by line.
    """
    (root / "home").mkdir(exist_ok=True)
    log, working = root / "kernel.log", root / "working"
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {ROOT_VARIABLE: str(root), TIME_LIMIT_VARIABLE: str(limits.time_s), "HOME": str(root / "home")}
    with log.open("wb") as output:
        child = subprocess.Popen(
            _command(root, script, limits=limits, isolated=isolated, python=python),
            cwd=working,
            env={**environment, **VARIABLES[kind], **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return _watch(child, log, working, limits=limits, echo=echo)
        finally:  # also what it left in the background, and all of it at Ctrl-C: it would run for hours
            kill_session(child.pid)
            if child.poll() is None:
                child.kill()
                child.wait()


def can_isolate(folder: Path) -> bool:
    """Return whether this system allows namespaces, by trying: many containers have `unshare` and forbid it.

    Args:
        folder: Any folder, which the trial mounts read-only in its own namespace.
    """
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write("")
        script.flush()
        command = [*_in_namespaces(), sys.executable, sandbox.__file__, script.name, "--read-only", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def folder_gb(folder: Path) -> float:
    """Return what a folder's files take of the disk, in GB: blocks, so that a sparse file counts for what it is."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(parent) / name).lstat()
            except OSError:  # it has gone since
                continue
            total += getattr(found, "st_blocks", -(-found.st_size // 512)) * 512
    return total / GB


def _in_namespaces() -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--net", "--mount"]


def _command(root: Path, script: Path, *, limits: SessionLimits, isolated: bool, python: Path) -> list[str]:
    cores = ["--cores", ",".join(map(str, usable_cores()[: limits.cores]))] if usable_cores() else []
    if not isolated:
        return [str(python), "-u", sandbox.__file__, str(script), *cores, "--block-sockets"]
    inside = ["--read-only", str(root / "input"), "--python", str(python)]
    return [*_in_namespaces(), sys.executable, "-u", sandbox.__file__, str(script), *cores, *inside]


def _watch(
    child: subprocess.Popen[bytes],
    log: Path,
    working: Path,
    *,
    limits: SessionLimits,
    echo: Callable[[str], object],
) -> Session:
    stopped_for: Literal["", "time", "memory", "disk"] = ""
    peaks, started = _Peaks(), time.monotonic()
    with log.open("r", encoding="utf-8", errors="replace") as lines:
        while child.poll() is None:
            time.sleep(POLL_S)
            peaks.look(child.pid, working)
            stopped_for = stopped_for or _exceeded(peaks, time.monotonic() - started, limits)
            if stopped_for:
                kill_session(child.pid)
                child.kill()
            for line in lines:
                echo(f"    {line.rstrip()}")
        seconds = time.monotonic() - started
        for line in lines:
            echo(f"    {line.rstrip()}")
    peaks.disk_gb = max(peaks.disk_gb, folder_gb(working))
    if not stopped_for and peaks.disk_gb > limits.disk_gb:
        stopped_for = "disk"
    if not stopped_for and child.returncode == KILLED and _is_most_of_it(peaks.memory_gb):
        stopped_for = "memory"
    return Session(
        returncode=child.returncode,
        stopped_for=stopped_for,
        seconds=seconds,
        peak_memory_gb=peaks.memory_gb,
        peak_disk_gb=peaks.disk_gb,
    )


def _exceeded(peaks: _Peaks, seconds: float, limits: SessionLimits) -> Literal["", "time", "memory", "disk"]:
    if seconds > limits.time_s:
        return "time"
    if peaks.memory_gb > limits.memory_gb:
        return "memory"
    return "disk" if peaks.disk_gb > limits.disk_gb else ""


def _is_most_of_it(memory: float) -> bool:
    """Return whether a killed process held so much of this machine's memory that the system must have killed it."""
    whole = memory_bytes()
    return whole is not None and memory * GB > 0.7 * whole
