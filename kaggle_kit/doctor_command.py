"""`kaggle-kit doctor`: red, yellow and green, each with its repair."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import CHECK_FAILED, DONE, Result

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder


def add_doctor_parsers(add: Adder) -> None:
    """Add `doctor`."""
    one = add(
        "doctor",
        doctor,
        "look at Python, packages, GPU, inputs, bundle, disk, memory and limits, at home or on Kaggle, in under 10 s",
        "kaggle-kit doctor --task bengali --kernel kernels/submit\n"
        "  kaggle-kit doctor --bundle ./bundle\n"
        "  in a notebook: from kaggle_kit.platform.doctor import examine; print(examine().text)",
    )
    one.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="check this bundle's hashes and golden images (default: on Kaggle the attached one, at home none)",
    )
    one.add_argument(
        "--task",
        metavar="TASK",
        help="a preset's name, or the path of a task.yaml: gives the limits (default: the bundle's task)",
    )
    one.add_argument(
        "--kernel", type=Path, metavar="DIR", help="a kernel's folder: would it need the internet (default: none)"
    )
    one.add_argument(
        "--profile",
        metavar="NAME_OR_FILE",
        help="the image of Kaggle's to compare with, such as python3.12, or a YAML file of your own (default: all)",
    )


def doctor(options: argparse.Namespace) -> tuple[Result, int]:
    """Look at everything that a submission, or work at home, depends on."""
    from kaggle_kit.platform.doctor import examine
    from kaggle_kit.platform.findings import format_checkup

    checkup = examine(bundle=options.bundle, task=options.task, kernel=options.kernel, profile=options.profile)
    print(format_checkup(checkup, coloured=_wants_colour()))
    return {
        "place": checkup.place,
        "seconds": round(checkup.seconds, 2),
        "red": checkup.count("red"),
        "yellow": checkup.count("yellow"),
        "green": checkup.count("green"),
        "findings": checkup.findings,
    }, CHECK_FAILED if checkup.has_red else DONE


def _wants_colour() -> bool:
    """Return whether this is a terminal that shows colours, and its user wants them; see no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
