"""The machine that a benchmark ran on, for its first line."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def describe_machine(packages: Sequence[str]) -> str:
    """Return one line: cores, machine, and the versions of Python and these packages."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {', '.join(found)}"
