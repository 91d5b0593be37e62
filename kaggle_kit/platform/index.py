"""The package index, through pip: wheels for Kaggle's Pythons, whatever Python and system run here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaggle_kit.errors import KitError
from kaggle_kit.runtime.wheelhouse import WheelName, normal_name, parse_name

# The image's C library is newer than all of these.
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (31, 28, 27, 24, 17)), "manylinux2014_x86_64")
SIZE_TIMEOUT_S = 10.0
QUIET = ("-q", "--disable-pip-version-check", "--no-input")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A wheel in the index, or one that was made from a source distribution.

    Attributes:
        file: Its name.
        distribution: Normalised.
        version: Its version.
        requires: What it says it requires, extras included.
        sha256: As the index gives it; empty where it does not.
        size_bytes: None where the index does not say.
        made: Where it lies already, because it was made here.
    """

    file: str
    distribution: str
    version: str
    requires: tuple[str, ...]
    sha256: str = ""
    size_bytes: int | None = None
    made: Path | None = None

    @property
    def name(self) -> WheelName:
        """What the file's name says."""
        name = parse_name(self.file)
        assert name is not None, self.file
        return name


def find_wheel(requirement: str, *, python: str) -> Found | None:
    """Return the newest wheel of a requirement for a Python on Kaggle's Linux; None where the index has none.

    Nothing is downloaded where the index serves metadata apart from wheels.

    Args:
        requirement: Such as `onnxruntime-gpu==1.24.*`.
        python: Such as `3.12`.

    Raises:
        KitError: When pip fails otherwise, or finds what Kaggle would rename or unpack.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        target = ["--target", folder, "--report", str(report), "--dry-run", "--ignore-installed"]
        done = run_pip(["install", *QUIET, *target, "--no-deps", *_platform(python), requirement])
        if done.returncode != 0:
            if "No matching distribution found" in done.stderr:
                return None
            raise KitError(f"pip cannot look for {requirement} for Python {python}: {last_line(done)}")
        (item,) = json.loads(report.read_text(encoding="utf-8"))["install"]
    return _read_item(item)


def fetch_wheel(found: Found, folder: Path, *, python: str) -> Path:
    """Download a wheel into a folder and return its path.

    Raises:
        KitError: When pip cannot, or brings another file than it found before.
    """
    requirement = f"{found.distribution}=={found.version}"
    done = run_pip(["download", *QUIET, "--no-deps", "-d", str(folder), *_platform(python), requirement])
    if done.returncode != 0:
        raise KitError(f"pip cannot download {found.file}: {last_line(done)}")
    path = folder / found.file
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in folder.iterdir()))
        raise KitError(f"pip was to download {found.file} and brought {others}; run it again")
    return path


def make_wheel(requirement: str, folder: Path) -> Found:
    """Make a pure wheel of a requirement that the index has only the source of.

    Args:
        requirement: Such as `antlr4-python3-runtime==4.9.*`.
        folder: Gets the wheel.

    Raises:
        KitError: When pip cannot, or the wheel fits this machine alone.
    """
    name = requirement_name(requirement)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = run_pip(["wheel", *QUIET, "--no-deps", "--no-binary", name, "-w", scratch, requirement])
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise KitError(
                f"there is no wheel of {requirement} for Kaggle's Python, and pip cannot make one: {last_line(done)}"
            )
        path = wheels[0].replace(folder / wheels[0].name)
    parsed = parse_name(path.name)
    if parsed is None or not parsed.is_pure:
        raise KitError(f"{requirement} makes {path.name}, which fits this machine and not Kaggle's; ask for another")
    return Found(
        file=path.name,
        distribution=parsed.distribution,
        version=parsed.version,
        requires=read_requires(path),
        size_bytes=path.stat().st_size,
        made=path,
    )


def read_requires(path: Path) -> tuple[str, ...]:
    """Return the lines of `Requires-Dist` in a wheel."""
    from importlib.metadata import PathDistribution
    from zipfile import Path as ZipPath

    (info,) = [entry for entry in ZipPath(path).iterdir() if entry.name.endswith(".dist-info")]
    return tuple(PathDistribution(info).requires or ())


def run_pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run pip and return what it said.

    Raises:
        KitError: When this Python has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise KitError(f"{sys.executable} has no pip, which finds and downloads wheels; install pip there")
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def requirement_name(requirement: str) -> str:
    """Return the normalised name in a requirement."""
    from packaging.requirements import Requirement

    return normal_name(Requirement(requirement).name)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of what pip said."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _platform(python: str) -> list[str]:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    return ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python, *platforms]


def _read_item(item: dict[str, dict[str, object]]) -> Found:
    """Return a wheel from its entry in pip's report."""
    source: dict[str, object] = item["download_info"]
    address = str(source["url"])
    file = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
    if parse_name(file) is None or "+" in file:
        raise KitError(
            f"pip finds {file}, which Kaggle would rename or unpack (no `+`, no archives but .whl); ask for another "
            "version"
        )
    archive = source.get("archive_info")
    hashes = archive.get("hashes", {}) if isinstance(archive, dict) else {}
    requires = item["metadata"].get("requires_dist", [])
    return Found(
        file=file,
        distribution=normal_name(str(item["metadata"]["name"])),
        version=str(item["metadata"]["version"]),
        requires=tuple(map(str, requires)) if isinstance(requires, list) else (),
        sha256=str(hashes.get("sha256", "")),
        size_bytes=_size_bytes(address),
    )


def _size_bytes(address: str) -> int | None:
    """Return a file's size as its server tells it, or None."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path)).stat().st_size
    if parts.scheme not in ("http", "https"):
        return None
    try:
        asked = urllib.request.Request(address, method="HEAD")  # noqa: S310  the scheme was looked at
        with urllib.request.urlopen(asked, timeout=SIZE_TIMEOUT_S) as answer:  # noqa: S310
            return int(answer.headers.get("Content-Length", "")) if answer.headers.get("Content-Length") else None
    except (urllib.error.URLError, ValueError, TimeoutError):  # behind a password, or a server that does not tell
        return None
