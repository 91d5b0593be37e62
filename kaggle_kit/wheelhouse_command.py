"""`kaggle-kit wheelhouse`: the dataset that kernels without internet install from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import DONE, Result

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder


def add_wheelhouse_parsers(add: Adder) -> None:
    """Add `wheelhouse`."""
    one = add(
        "wheelhouse",
        wheelhouse,
        "build the dataset that kernels without internet install from: the kit, and what Kaggle's images lack",
        "kaggle-kit wheelhouse --out ./wheelhouse\n"
        "  kaggle-kit wheelhouse --out ./wheelhouse --profile python3.12 --add 'einops>=0.8' --tensorrt",
    )
    one.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="new, or an earlier wheelhouse, which is brought up to date: what is there is not downloaded again",
    )
    one.add_argument(
        "--profile",
        nargs="+",
        metavar="IMAGE",
        help="images of Kaggle's that it is for, or YAML files of your own (default: all that the kit knows)",
    )
    one.add_argument(
        "--add",
        nargs="+",
        action="extend",
        default=[],
        metavar="REQUIREMENT",
        help="bring this too, such as 'einops>=0.8', and what it requires that the images lack",
    )
    one.add_argument(
        "--without",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="bring neither this distribution nor what only it requires",
    )
    one.add_argument(
        "--tensorrt",
        nargs="?",
        const="10.*",
        metavar="VERSION",
        help="also TensorRT 10's libraries, into DIR/tensorrt: gigabytes, and NVIDIA's, so keep the dataset private; "
        "ONNX Runtime works with the 10.x it was built for (default: no TensorRT; without VERSION: 10.*)",
    )


def wheelhouse(options: argparse.Namespace) -> tuple[Result, int]:
    """Build a wheelhouse."""
    from kaggle_kit.platform.profiles import read_profile, read_profiles
    from kaggle_kit.platform.wheelhouse import build_wheelhouse, readable_size

    known = list(read_profiles().values())
    built = build_wheelhouse(
        options.out,
        [read_profile(name) for name in options.profile] if options.profile else known,
        add=options.add,
        without=options.without,
        tensorrt=options.tensorrt,
        say=lambda line: print(line, flush=True),
    )
    for wheel in built.wheels:
        print(f"  {wheel.file}: {readable_size(wheel.size_bytes)}, for {', '.join(wheel.profiles)}")
    size = sum(wheel.size_bytes for wheel in built.wheels)
    print(f"{options.out}: {len(built.wheels)} wheel(s), {readable_size(size)}")
    return {"out": options.out, "size_bytes": size, "wheels": built.wheels}, DONE
