"""Attached wheels in a kernel: found, checked and installed, without internet."""

from __future__ import annotations

import email
import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kaggle_kit.errors import KitError, brief, some_of
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.runtime.mounts import FOLDERS, kaggle_root
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.runtime.wheelhouse import (
    AGAIN,
    RECORD,
    TENSORRT,
    WheelName,
    normal_name,
    parse_name,
    read_wheelhouse,
)

GPU, CPU = "onnxruntime-gpu", "onnxruntime"
# {module: distributions that hold it}, where they are not called alike.
DISTRIBUTIONS = {
    "antlr4": ("antlr4-python3-runtime",),
    "hydra": ("hydra-core",),
    "onnxruntime": (GPU, CPU),
    "tensorrt_libs": ("tensorrt-cu12-libs",),
}
LINES = {"tensorrt-cu12-libs": "10."}  # what ONNX Runtime's provider links; see runtime.tensorrt
CUDA_12 = {"onnxruntime-gpu": ("1.24.", "1.25.", "1.26.")}  # later ones are for CUDA 13, and run on the CPU in silence
PIP = ("install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps")
UV = ("pip", "install", "-q", "--offline", "--no-config", "--no-index", "--no-deps", "--python")


@dataclass(frozen=True, kw_only=True)
class AttachedWheel:
    """A wheel in a mount.

    Attributes:
        path: Where it lies.
        name: What its file name says.
        sha256: What its wheelhouse recorded; empty for a loose wheel.
        pythons: The Pythons its wheelhouse has it for; none for a loose wheel.
    """

    path: Path
    name: WheelName
    sha256: str = ""
    pythons: tuple[str, ...] = ()


def install_attached(names: Sequence[str], *, say: Callable[[str], object] = print_line) -> tuple[Path, ...]:
    """Install modules that are not importable from attached wheels, offline.

    What such a wheel requires and the environment lacks is installed with it where it is attached, and nothing else: no
    package that is there is ever replaced. Where the environment cannot be written to, wheels go into a temporary
    folder that this process and its children find.

    Args:
        names: Modules, such as `onnxruntime` and `hydra`.
        say: Where lines go.

    Returns:
        The wheels that were installed.

    Raises:
        KitError: When a wheel is not attached, is not the one that was recorded, or cannot be installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return ()
    attached = find_attached()
    chosen = {wheel.path: wheel for name in missing for wheel in _with_required(_choose(name, attached, say), attached)}
    for wheel in chosen.values():
        _check(wheel)
    _install(list(chosen.values()), say)
    for name in missing:
        if importlib.util.find_spec(name) is None:
            raise KitError(
                f"`import {name}` finds nothing, though {some_of(path.name for path in chosen)} was installed"
            )
    return tuple(chosen)


def find_attached() -> list[AttachedWheel]:
    """Return the wheels of all attached folders, in today's mount layout and the older flat one.

    Raises:
        KitError: When a wheelhouse's record does not read.
    """
    root = kaggle_root() / "input"
    folders = [path for kind in FOLDERS if not kind.startswith("competitions") for path in sorted(root.glob(kind))]
    return [wheel for folder in folders if folder.is_dir() for wheel in _wheels_of(folder)]


def _wheels_of(folder: Path) -> Iterator[AttachedWheel]:
    wheelhouse = read_wheelhouse(folder)
    recorded = {wheel.file: wheel for wheel in wheelhouse.wheels} if wheelhouse else {}
    for path in [*sorted(folder.glob("*.whl")), *sorted((folder / TENSORRT).glob("*.whl"))]:
        name = parse_name(path.name)
        known = recorded.get(path.relative_to(folder).as_posix())
        if name and wheelhouse and known:
            yield AttachedWheel(path=path, name=name, sha256=known.sha256, pythons=wheelhouse.pythons_of(known))
        elif name:
            yield AttachedWheel(path=path, name=name)


def _choose(module: str, attached: Sequence[AttachedWheel], say: Callable[[str], object]) -> AttachedWheel:
    """Return the wheel to install a module from."""
    wanted = DISTRIBUTIONS.get(module, (normal_name(module),))
    if module == "onnxruntime" and not _has_nvidia():
        wanted = (CPU, GPU)
    for distribution in wanted:
        found = _newest(distribution, attached)
        if found is not None:
            if found.name.distribution == CPU and wanted[0] == GPU:
                say(f"WARNING there is a GPU, but only the CPU's {found.path.name} is attached; add onnxruntime-gpu's")
            return found
    of_others = [wheel.path.name for wheel in attached if wheel.name.distribution in wanted]
    there = of_others or sorted({wheel.path.name for wheel in attached})
    version = LINES.get(wanted[0], "")
    raise KitError(
        f"no wheel of {' or '.join(wanted)}{f' {version}x' if version else ''} for Python "
        f"{sys.version_info.major}.{sys.version_info.minor} on {sysconfig.get_platform()} is attached; "
        f"{some_of(there, 9) or 'no wheel at all'} {'are' if len(there) > 1 else 'is'} there; "
        f"attach the dataset that `kaggle-kit wheelhouse{' --tensorrt' if version else ''}` builds"
    )


def _newest(distribution: str, attached: Sequence[AttachedWheel]) -> AttachedWheel | None:
    """Return the newest wheel of a distribution for this Python: before others one recorded for it, or for CUDA 12."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    fitting = [
        wheel
        for wheel in attached
        if wheel.name.distribution == distribution
        and wheel.name.version.startswith(LINES.get(distribution, ""))
        and wheel.name.fits_here()
    ]
    lines = CUDA_12.get(distribution, "")
    return max(
        fitting,
        key=lambda wheel: (own in wheel.pythons, wheel.name.version.startswith(lines), wheel.name.order),
        default=None,
    )


def _with_required(wheel: AttachedWheel, attached: Sequence[AttachedWheel]) -> list[AttachedWheel]:
    """Return a wheel, and attached ones of what it requires and the environment lacks."""
    found, queue = {wheel.path: wheel}, [wheel]
    while queue:
        for distribution in _required(queue.pop().path):
            other = None if _is_installed(distribution) else _newest(distribution, attached)
            if other is not None and other.path not in found:
                found[other.path] = other
                queue.append(other)
    return list(found.values())


def _required(path: Path) -> list[str]:
    """Return the distributions that a wheel says it requires, extras left out."""
    try:
        with zipfile.ZipFile(path) as archive:
            (file,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            message = email.message_from_bytes(archive.read(file))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise KitError(f"{path} is no whole wheel ({brief(error)}); upload it again") from None
    lines = [str(line) for line in message.get_all("Requires-Dist", []) if "extra ==" not in line]
    return [normal_name(match[0]) for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line))]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _has_nvidia() -> bool:
    """Return whether there is NVIDIA's driver."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def _check(wheel: AttachedWheel) -> None:
    found = file_sha256(wheel.path) if wheel.sha256 else ""
    if found != wheel.sha256:
        raise KitError(
            f"{wheel.path} is not the wheel that {RECORD} tells of: its SHA-256 begins with {found[:12]}, not "
            f"{wheel.sha256[:12]}; {AGAIN}"
        )


def _install(wheels: Sequence[AttachedWheel], say: Callable[[str], object]) -> None:
    """Install wheels into the environment, or where that cannot be written to, into a temporary folder."""
    names = ", ".join(f"{wheel.name.distribution} {wheel.name.version}" for wheel in wheels)
    problems: list[str] = []
    for target in [None, _temporary_folder()] if _is_writable() else [_temporary_folder()]:
        into = ["--target", str(target)] if target else []
        for tool, command in _installers():
            started = time.monotonic()
            paths = [str(wheel.path) for wheel in wheels]
            done = subprocess.run([*command, *into, *paths], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                _make_importable(target)
                seconds = f"{time.monotonic() - started:.1f} s"
                before = f"; before, {'; '.join(problems)}" if problems else ""
                say(f"installed {names} by {tool}{f' into {target}' if target else ''} in {seconds}{before}")
                return
            problems.append(f"{tool}{' --target' if target else ''} said: {_last_line(done)}")
    reason = "; ".join(problems) or "neither uv nor pip is there"
    raise KitError(f"{names} cannot be installed: {reason}; check that the upload is whole and for this Python")


def _installers() -> Iterator[tuple[str, list[str]]]:
    uv = shutil.which("uv")
    if uv is not None:
        yield "uv", [uv, *UV, sys.executable]
    if importlib.util.find_spec("pip") is not None:
        yield "pip", [sys.executable, "-m", "pip", *PIP]


def _is_writable() -> bool:
    return os.access(sysconfig.get_path("purelib"), os.W_OK)


@functools.cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kaggle_kit_wheels."))


def _make_importable(target: Path | None) -> None:
    """Let this process, and those it starts, find what was just installed."""
    if target is not None and str(target) not in sys.path:
        sys.path.insert(0, str(target))
        known = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(target), *known.split(os.pathsep)] if known else [str(target)])
    importlib.invalidate_caches()


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
