"""A submission whatever happens: prediction in a process of its own, started again where it dies.

A crash inside a library, a process that the system kills for its memory and a device that hangs take down the process
they happen in, and no code of it can help. So the kernel only watches; what was finished is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaggle_kit.errors import KitError
from kaggle_kit.runtime.budget import MARGIN
from kaggle_kit.runtime.bundle import file_sha256, open_bundle
from kaggle_kit.runtime.mounts import in_rerun, kernel_limit_s
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.runtime.report import read_report
from kaggle_kit.runtime.results import DONE
from kaggle_kit.runtime.submitting import finish_submission, parts_folder, predict_submission

MOST_ATTEMPTS = 3  # without a batch more than before; then what there is becomes the submission
# Of the time limit: what a process is told to be finished in, and when one that is not is killed. After that there is
# time to write what it finished.
TOLD_SHARE, KILLED_SHARE = 0.95, 0.975
KILLING_S = 10.0  # a process that waits for a driver may not even die
POLL_S = 0.5
STALL_SHARE, LEAST_STALL_S = 0.1, 60.0  # of the time limit without a finished batch: then a process hangs
PAUSE_SHARE, PAUSE_S = 0.005, 30.0  # of the time limit, before a last attempt: what broke may have passed
CRASHED, USER_CAN_MEND = 1, 2
_CHILD = f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import _predict_here; _predict_here(sys.argv[1])"


def submit(
    folder: Path,
    data: Path,
    out: Path,
    *,
    engines: Path | None = None,
    time_limit_s: float | None = None,
    started: float | None = None,
    say: Callable[[str], object] = print_line,
) -> int:
    """Write a submission in a process of its own, which goes on where it died.

    The first attempt runs on whatever is fastest, those after a crash without engines, the last one on the CPU.

    Args:
        folder: The bundle.
        data: The competition's data folder.
        out: The CSV file to write.
        engines: A folder of TensorRT engines.
        time_limit_s: Seconds after `started` when all is written; None: the task's, or a rehearsal's, less 5 %.
        started: When the time began, by `time.monotonic`; None: now.
        say: Where lines go.

    Returns:
        The exit code for the kernel: 0 where there is a submission. In the hidden rerun that is so even where only part
        of the images, or none, could be predicted: whatever failed is said, and class priors stand for them.

    Raises:
        KitError: When the bundle or the sample submission cannot be read.
    """
    started = time.monotonic() if started is None else started
    if time_limit_s is None:
        time_limit_s = kernel_limit_s(open_bundle(folder).task) * (1 - MARGIN)
    kill_at = started + time_limit_s * KILLED_SHARE
    attempt, finished = 1, 0
    while True:
        options = {
            "folder": str(folder),
            "data": str(data),
            "out": str(out),
            "engines": str(engines) if engines and attempt == 1 else None,
            "device": "cpu" if attempt == MOST_ATTEMPTS else "auto",
            "time_limit_s": time_limit_s * TOLD_SHARE,
            "started": started,
        }
        code = _run_child(options, kill_at=kill_at, stall_s=max(STALL_SHARE * time_limit_s, LEAST_STALL_S))
        if code == 0 or _is_whole(out, started):
            return 0
        late = time.monotonic() >= kill_at
        before, finished = finished, _num_finished(out)
        attempt = 2 if finished > before else attempt + 1
        if code == USER_CAN_MEND or late or attempt > MOST_ATTEMPTS:
            break
        say(f"WARNING prediction died ({_describe(code)}); it goes on from {finished:,} finished batches")
        if attempt > 2:
            time.sleep(min(PAUSE_S, PAUSE_SHARE * time_limit_s))
    if not in_rerun() and not late:
        return code
    say(f"WARNING prediction {'was stopped at the limit' if late else 'cannot go on'}; writing what there is")
    why = (
        "stopped at the time limit"
        if late
        else f"ended with {_describe(code)}, {attempt - 1} attempt(s) without a batch"
    )
    _write_what_there_is(folder, data, out, why=why, say=say)
    return 0


def _write_what_there_is(folder: Path, data: Path, out: Path, *, why: str, say: Callable[[str], object]) -> None:
    """Write the submission of what is finished; where even that fails, what is there, or the sample submission."""
    try:
        finish_submission(folder, data, out, why=why, say=say)
    except (KitError, OSError) as error:
        if not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data / open_bundle(folder).task.submission.file, out)
        say(f"WARNING {error}; {out} stays without any prediction")


def _run_child(options: dict[str, Any], *, kill_at: float, stall_s: float) -> int:
    """Return the exit code of a process that predicts; below 0 the signal that ended it.

    Args:
        options: What `_predict_here` takes.
        kill_at: When it is killed, by `time.monotonic`.
        stall_s: It is killed too where no batch is finished for so long, or for twice the longest wait before.
    """
    command = [sys.executable, "-u", "-c", _CHILD, json.dumps(options), *sys.path]
    # A group of its own: what builds an engine goes with it when it is killed.
    group = 0 if hasattr(os, "killpg") else None
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=group)
    finished, since, longest = -1, time.monotonic(), 0.0
    try:
        while (now := time.monotonic()) < kill_at:
            if (found := _num_finished(Path(options["out"]))) != finished:
                longest, finished, since = max(longest, now - since), found, now
            if now - since > max(stall_s, 2 * longest):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(max(min(POLL_S, kill_at - now), 0.01))
        return -signal.SIGKILL
    finally:
        _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, as far as they can be ended."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILLING_S)


def _predict_here(told: str) -> None:
    """Predict in this process, which `submit` started, and end it at once: no library may spoil what is written."""
    options = json.loads(told)
    engines, code = options["engines"], 0
    try:
        predict_submission(
            Path(options["folder"]),
            Path(options["data"]),
            Path(options["out"]),
            engines=Path(engines) if engines else None,
            device=options["device"],
            time_limit_s=options["time_limit_s"],
            started=options["started"],
            watched=options["device"] != "cpu",
        )
    except KitError as error:
        print_line(f"ERROR {error}")
        code = USER_CAN_MEND
    except Exception:  # noqa: BLE001  told, and answered by `submit`; Python's own end would wait for a thread that hangs
        traceback.print_exc()
        code = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_whole(out: Path, started: float) -> bool:
    """Return whether the submission is one that was finished since."""
    report = read_report(out)
    return report.get("started") == started and out.is_file() and report.get("submission_sha256") == file_sha256(out)


def _num_finished(out: Path) -> int:
    """Return how many batches are finished."""
    try:
        return (parts_folder(out) / DONE).read_bytes().count(b"\n")
    except OSError:
        return 0


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
