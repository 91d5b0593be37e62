"""A training in a kernel: what is attached decides, a time limit ends it, the next session goes on with its output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.runtime.mounts import FOLDERS, find_competition, kaggle_root
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.task import read_task

SETTINGS, TASK, FOLDS, PACKED = "overrides.txt", "task.yaml", "folds.parquet", "packed"
RUN, MARKER = "run", ".kaggle-kit-run"  # the marker is train.run_folder's
BEGUN = "begun.json"  # the marker's copy beside the run: an output may lose hidden files


def train_attached(working: Path, *, wheel: Path, max_hours: float, say: Callable[[str], object] = print_line) -> int:
    """Train what the attached `overrides.txt` says, on all GPUs, into the folder `run`.

    Where an earlier output of this function is attached, its run goes on.

    Args:
        working: The kernel's working folder.
        wheel: The kit's own, which the training's processes import.
        max_hours: When the training ends, each fold with a usable checkpoint; the settings may give another.
        say: Where lines go.

    Returns:
        The training's exit code.

    Raises:
        DataError: When settings or the competition are not attached.
        SettingError: When a line of the settings is none, or no task is named.
    """
    overrides = read_overrides()
    folder = _find(SETTINGS)[0].parent
    task = folder / TASK if (folder / TASK).is_file() else overrides.get("task")
    if task is None:
        raise SettingError(
            f"{folder} has no {TASK}, and its {SETTINGS} names no task; write a line such as task=bengali"
        )
    packed = folder / PACKED if (folder / PACKED).is_dir() else Path(tempfile.gettempdir()) / PACKED  # no output
    given: dict[str, object] = {
        "task": task,
        "data": find_competition(read_task(task).submission.file),
        "folds": folder / FOLDS,
        "packed": packed,
        "out": working / RUN,
        "max_hours": max_hours,
    }
    for index in [path for path in _find("index.json") if any(path.parent.glob("*.safetensors"))][:1]:
        given["model.weights"] = index.parent
    go_on(working, say=say)
    ended = _train({**given, **overrides, "task": task}, wheel)
    if (working / RUN / MARKER).is_file():
        shutil.copyfile(working / RUN / MARKER, working / BEGUN)
    return ended


def read_overrides() -> dict[str, str]:
    """Return the attached settings, as for `kaggle-kit train`, one a line; `#` begins a comment.

    Raises:
        DataError: When none are attached.
        SettingError: When a line is no setting.
    """
    found = _find(SETTINGS)
    if not found:
        raise DataError(f"no {SETTINGS} is attached: add the dataset that holds it, see datasets/kaggle-kit-training")
    lines = found[0].read_text(encoding="utf-8").splitlines()
    overrides = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.strip().partition("=")
        if not equals and name and not name.startswith("#"):
            raise SettingError(f"{found[0]} line {number} is {line.strip()!r}; expected a setting such as epochs=20")
        if equals and not name.startswith("#"):
            overrides[name] = value
    return overrides


def go_on(working: Path, *, say: Callable[[str], object]) -> None:
    """Copy the run of an attached earlier output to where it goes on; a mount cannot be written to."""
    for found in [*_find(BEGUN), *_find(f"{RUN}/{MARKER}")][:1]:
        earlier = found.parent / RUN if found.name == BEGUN else found.parent
        shutil.copytree(earlier, working / RUN, copy_function=shutil.copyfile, dirs_exist_ok=True)
        shutil.copyfile(found, working / RUN / MARKER)
        say(f"going on with {earlier}")


def _find(file: str) -> list[Path]:
    """Return the attached files of that name, in today's mount layout or the older flat one."""
    root = kaggle_root() / "input"
    kinds = [kind for kind in FOLDERS if not kind.startswith("competitions")]
    return [path for kind in kinds for path in sorted(root.glob(f"{kind}/{file}"))]


def _train(settings: dict[str, object], wheel: Path) -> int:
    import torch

    gpus = torch.cuda.device_count()
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"] if gpus > 1 else []
    paths = [str(wheel), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.call(
        [
            sys.executable,
            "-m",
            *launcher,
            "kaggle_kit",
            "train",
            *(f"{key}={value}" for key, value in settings.items()),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
