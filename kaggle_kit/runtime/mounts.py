"""Where Kaggle mounts what a kernel attaches. Facts of autumn 2026.

`/kaggle/input/competitions/<slug>/`, `/kaggle/input/datasets/<owner>/<slug>/`,
`/kaggle/input/models/<owner>/<model>/<framework>/<variation>/<version>/`, `/kaggle/input/notebooks/<owner>/<slug>/`,
and still the older flat `/kaggle/input/<slug>/`. Only these depths are probed: walking a mount was reported to take
minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.runtime.bundle import GOLDEN, MANIFEST, bundle_files
from kaggle_kit.runtime.engines import ENGINES
from kaggle_kit.task import Task

ROOT_VARIABLE = "KAGGLE_KIT_ROOT"  # a rehearsal's stand-in for /kaggle
RERUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"  # set in the hidden rerun alone
TIME_LIMIT_VARIABLE = "KAGGLE_KIT_TIME_LIMIT_S"  # a rehearsal's, in place of the task's own
RUN_TYPE_VARIABLE = "KAGGLE_KERNEL_RUN_TYPE"  # Interactive or Batch
FOLDERS = ("competitions/*", "datasets/*/*", "notebooks/*/*", "models/*/*/*/*/*", "*")


def kaggle_root() -> Path:
    """Return `/kaggle`, or a rehearsal's stand-in for it."""
    return Path(os.environ.get(ROOT_VARIABLE, "/kaggle"))


def in_rerun() -> bool:
    """Return whether this is the hidden rerun, whose only result is the submission."""
    return bool(os.environ.get(RERUN_VARIABLE))


def in_kernel() -> bool:
    """Return whether this is a Kaggle kernel that runs as a whole, hidden rerun or not: a batch session."""
    return in_rerun() or os.environ.get(RUN_TYPE_VARIABLE) == "Batch"


def kernel_limit_s(task: Task) -> float:
    """Return the seconds that Kaggle gives the kernel: the task's, or a rehearsal's."""
    return float(os.environ.get(TIME_LIMIT_VARIABLE, 3600 * task.limits.hours))


def find_competition(file_name: str) -> Path:
    """Return the competition's data folder, known by a file it holds, such as its sample submission.

    Raises:
        DataError: When no attached folder holds the file, or several of a kind do.
    """
    return _find(file_name, lambda _folder: True)


def find_bundle() -> Path:
    """Return the attached folder that holds a bundle; where none is whole, the one that looks like a bundle.

    Raises:
        DataError: When none does, or several do.
    """
    found = _search(MANIFEST, lambda folder: bool(bundle_files(folder)))
    if found is None:  # opening it says what is wrong with it
        found = _search(MANIFEST, lambda folder: (folder / GOLDEN).is_file())
    return found or _find(MANIFEST, lambda _folder: False)


def find_engines() -> Path | None:
    """Return the attached folder that holds TensorRT engines, or its folder `engines`; None where none does.

    Raises:
        DataError: When several do.
    """
    return _search(ENGINES, lambda _folder: True, inside=("", "engines"))


def _find(file_name: str, accepts: Callable[[Path], bool]) -> Path:
    found = _search(file_name, accepts)
    if found is not None:
        return found
    root = kaggle_root() / "input"
    attached = some_of(sorted({str(path.relative_to(root)) for kind in FOLDERS for path in root.glob(kind)}), 9)
    raise DataError(f"no folder attached under {root} holds {file_name}; attached: {attached or 'nothing'}")


def _search(file_name: str, accepts: Callable[[Path], bool], *, inside: Sequence[str] = ("",)) -> Path | None:
    """Return the attached folder, or one of these folders inside it, that holds a file; refuse several of a kind."""
    root = kaggle_root() / "input"
    for folders in FOLDERS:
        candidates = [folder / name for folder in sorted(root.glob(folders)) for name in inside]
        found = [folder for folder in candidates if (folder / file_name).is_file() and accepts(folder)]
        if len(found) > 1:
            raise DataError(f"{file_name} is in several attached folders: {some_of(found)}; attach one of them")
        if found:
            return found[0]
    return None
