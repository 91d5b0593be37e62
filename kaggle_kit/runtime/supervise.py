"""A submission whatever happens: prediction in a process of its own, started again where it dies.

A crash inside a library, a process that the system kills for its memory and a device that hangs take down the process
they happen in, and no code of it can help. So the kernel only watches; what was finished is on the disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaggle_kit.errors import KitError
from kaggle_kit.runtime.budget import MARGIN
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.runtime.mounts import in_rerun
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.runtime.results import DONE
from kaggle_kit.runtime.submitting import finish_submission, parts_folder, predict_submission

MOST_ATTEMPTS = 3  # without a batch more than before; then what there is becomes the submission
KILLED_BEFORE_S = 0.04  # of the time limit: when a process that should have ended by itself is killed
USER_CAN_MEND = 2
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
        time_limit_s: Seconds after `started` when all is written; None: the task's own limit less 5 %.
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
        time_limit_s = 3600 * open_bundle(folder).task.limits.hours * (1 - MARGIN)
    kill_at = started + time_limit_s * (1 - KILLED_BEFORE_S)
    attempt, finished = 1, 0
    while True:
        options = {
            "folder": str(folder),
            "data": str(data),
            "out": str(out),
            "engines": str(engines) if engines and attempt == 1 else None,
            "device": "cpu" if attempt == MOST_ATTEMPTS else "auto",
            "time_limit_s": time_limit_s,
            "started": started,
        }
        code = _run_child(options, kill_at=kill_at)
        if code == 0:
            return 0
        late = time.monotonic() >= kill_at
        before, finished = finished, _num_finished(out)
        attempt = 2 if finished > before else attempt + 1
        if code == USER_CAN_MEND or late or attempt > MOST_ATTEMPTS:
            break
        say(f"WARNING prediction died ({_describe(code)}); it goes on from {finished:,} finished batches")
    if not in_rerun() and not late:
        return code
    say(f"WARNING prediction {'was stopped at the limit' if late else 'cannot go on'}; writing what there is")
    finish_submission(folder, data, out, say=say)
    return 0


def _run_child(options: dict[str, Any], *, kill_at: float) -> int:
    """Return the exit code of a process that predicts; below 0 the signal that ended it."""
    command = [sys.executable, "-u", "-c", _CHILD, json.dumps(options), *sys.path]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        return child.wait(max(kill_at - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        return -9
    finally:
        child.kill()
        child.wait()


def _predict_here(told: str) -> None:
    """Predict in this process, which `submit` started."""
    options = json.loads(told)
    engines = options["engines"]
    try:
        predict_submission(
            Path(options["folder"]),
            Path(options["data"]),
            Path(options["out"]),
            engines=Path(engines) if engines else None,
            device=options["device"],
            time_limit_s=options["time_limit_s"],
            started=options["started"],
        )
    except KitError as error:
        print_line(f"ERROR {error}")
        sys.exit(USER_CAN_MEND)


def _num_finished(out: Path) -> int:
    """Return how many batches are finished."""
    try:
        return (parts_folder(out) / DONE).read_bytes().count(b"\n")
    except OSError:
        return 0


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
