"""Where Kaggle mounts what a kernel attaches. Facts of autumn 2026.

`/kaggle/input/competitions/<slug>/`, `/kaggle/input/datasets/<owner>/<slug>/`, and still the older flat
`/kaggle/input/<slug>/`. They are probed with bounded depth: walking a whole mount was reported to take minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kaggle_kit.errors import DataError, some_of

ROOT_VARIABLE = "KAGGLE_KIT_ROOT"  # a rehearsal's stand-in for /kaggle
DEPTHS = ("*", "*/*", "*/*/*")


def kaggle_root() -> Path:
    """Return `/kaggle`, or a rehearsal's stand-in for it."""
    return Path(os.environ.get(ROOT_VARIABLE, "/kaggle"))


def find_mounted(file_name: str) -> Path:
    """Return the shallowest attached folder that holds `file_name`.

    Raises:
        DataError: When no attached folder does, or several equally deep ones do.
    """
    root = kaggle_root() / "input"
    for depth in DEPTHS:
        found = sorted(path.parent for path in root.glob(f"{depth}/{file_name}"))
        if len(found) > 1:
            raise DataError(f"{file_name} is in several attached folders: {some_of(found)}; attach one of them")
        if found:
            return found[0]
    attached = some_of(sorted(folder.relative_to(root) for folder in _attached(root)), 6)
    raise DataError(f"no folder attached under {root} holds {file_name}; attached: {attached or 'nothing'}")


def _attached(root: Path) -> Iterator[Path]:
    for depth in DEPTHS[:2]:
        yield from (path for path in root.glob(depth) if path.is_dir())
