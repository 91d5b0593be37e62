"""What a session has attached: which folders, and which wheels for this Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kaggle_kit.runtime.mounts import FOLDERS

INSIDE = ("*.whl", "tensorrt/*.whl")  # of a wheelhouse


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """An attached wheel.

    Attributes:
        path: Where it is.
        name: Its distribution, lower case and with dashes.
        version: Its version.
        fits: Whether it is for this Python.
    """

    path: Path
    name: str
    version: str
    fits: bool

    @property
    def order(self) -> tuple[int, ...]:
        """The version's numbers: of two wheels, the newer one has the larger order."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version))


def attached_folders(root: Path) -> list[Path]:
    """Return the folders attached under `root/input`, in the new layout and in the older flat one."""
    kinds = [pattern.split("/")[0] for pattern in FOLDERS if "/" in pattern]
    found = [path for pattern in FOLDERS for path in sorted((root / "input").glob(pattern)) if path.is_dir()]
    return [path for path in found if path.parent != root / "input" or path.name not in kinds]


def find_wheels(root: Path, python: str) -> list[Wheel]:
    """Return the wheels attached under `root/input`.

    Args:
        root: `/kaggle`.
        python: This Python's major and minor version, such as `3.12`.
    """
    folders = [folder for folder in attached_folders(root) if folder.parent.name != "competitions"]
    return [read_wheel(path, python) for folder in folders for place in INSIDE for path in sorted(folder.glob(place))]


def read_wheel(path: Path, python: str) -> Wheel:
    """Return what a wheel's name says.

    Args:
        path: NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl.
        python: Major and minor version, such as `3.12`.
    """
    parts = path.stem.split("-")
    name, version = parts[0], parts[1] if len(parts) > 1 else ""
    tags, abis = (parts[-3].split("."), parts[-2].split(".")) if len(parts) >= 5 else ([], [])
    own, minor = f"cp{python.replace('.', '')}", int(python.split(".")[1])
    older = any(int(tag[3:]) <= minor for tag in tags if re.fullmatch(r"cp3\d+", tag))
    fits = own in tags or "py3" in tags or ("abi3" in abis and older)
    return Wheel(path=path, name=re.sub(r"[._]", "-", name).lower(), version=version, fits=fits)
