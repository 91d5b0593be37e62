"""The dataset that kernels install from: the kit's own wheel, and what Kaggle's images lack."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import kaggle_kit
from kaggle_kit.errors import KitError, SettingError, some_of
from kaggle_kit.files import check_replaceable, replacing
from kaggle_kit.platform.index import Found, fetch_wheel, find_wheel, make_wheel, read_requires, requirement_name
from kaggle_kit.platform.profiles import ImageProfile
from kaggle_kit.platform.requirements import KIT, resolve
from kaggle_kit.platform.wheel import build_wheel, wheel_name
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.runtime.wheelhouse import (
    RECORD,
    TENSORRT,
    Image,
    Wheel,
    Wheelhouse,
    normal_name,
    parse_name,
    read_wheelhouse,
    write_wheelhouse,
)

Say = Callable[[str], object]

DATASET_METADATA = "dataset-metadata.json"
DATASET: dict[str, Any] = {
    "title": "kaggle-kit wheelhouse",
    "id": "OWNER/kaggle-kit-wheelhouse",
    "subtitle": "The kit, and what Kaggle's image lacks, for kernels without internet",
    "licenses": [{"name": "other"}],
}
OWN = (RECORD, DATASET_METADATA, "README.md", TENSORRT)
SCRATCH = ".wheelhouse."
TENSORRT_LIBRARIES = "tensorrt_cu12_libs"  # 10.x: what ONNX Runtime links, see runtime.tensorrt
TENSORRT_LINE = "10."


@dataclass(kw_only=True)
class _Planned:
    """A wheel to be in the wheelhouse.

    Attributes:
        file: Its path there.
        found: What the index says of it.
        profiles: The images it is for.
        python: The first one's Python.
        kept: Whether it lies there already.
    """

    file: str
    found: Found
    python: str
    profiles: list[str] = field(default_factory=list)
    kept: bool = False


def build_wheelhouse(
    folder: Path,
    profiles: Sequence[ImageProfile],
    *,
    add: Sequence[str] = (),
    without: Collection[str] = (),
    tensorrt: str | None = None,
    say: Say,
) -> Wheelhouse:
    """Build one folder to attach to kernels, or bring the one that is there up to date.

    What lies there with the right hash is not downloaded again; a run that is killed leaves whole wheels only.

    Args:
        folder: New, empty, or an earlier wheelhouse.
        profiles: The images it is for.
        add: Requirements beside those that the profiles bring.
        without: Distributions that are not brought, and not looked for.
        tensorrt: Also TensorRT's libraries of this version, such as `10.*`.
        say: Where lines go.

    Returns:
        What is in it now.

    Raises:
        SettingError: When something is no requirement, or an image has what is asked for.
        KitError: When the folder holds other things, a wheel cannot be had, or requirements contradict an image.
    """
    _check_settings(profiles, tensorrt)
    before = read_wheelhouse(folder)
    recorded = {wheel.file: wheel for wheel in before.wheels} if before else {}
    _sweep(folder)
    _check_folder(folder, [path.name for path in folder.glob("*.whl")])
    with _scratch(folder) as scratch:
        planned = _plan(folder, scratch, recorded, profiles, add=add, without=without, say=say)
        if tensorrt is not None:
            planned.append(_plan_tensorrt(tensorrt, profiles))
        _check_folder(folder, {*recorded, *(one.file for one in planned), wheel_name(), scratch.name})
        _download(folder, scratch, planned, recorded, say)
    wheelhouse = _record(folder, planned, profiles)
    for file in recorded.keys() - {wheel.file for wheel in wheelhouse.wheels}:
        (folder / file).unlink(missing_ok=True)
        say(f"{file}: of an earlier wheelhouse, deleted")
    write_wheelhouse(wheelhouse, folder)
    _write_metadata(folder)
    return wheelhouse


def _check_settings(profiles: Sequence[ImageProfile], tensorrt: str | None) -> None:
    names = [profile.name for profile in profiles]
    if len({*names}) < len(names):
        raise SettingError(f"profiles {some_of(names, 9)} are not all different; give each once")
    if tensorrt is not None and not tensorrt.startswith(TENSORRT_LINE):
        raise SettingError(f"TensorRT {tensorrt!r} is no version {TENSORRT_LINE}x, which ONNX Runtime links; give 10.*")


def _check_folder(folder: Path, wheels: Iterable[str]) -> None:
    """Refuse a folder of other things, and a folder of TensorRT that ONNX Runtime would not load."""
    check_replaceable(folder, {*OWN, *wheels}, what="wheelhouse", error=KitError)
    if not (folder / TENSORRT).is_dir():
        return
    for path in sorted((folder / TENSORRT).iterdir()):
        name = parse_name(path.name)
        if name is None or not name.distribution.startswith("tensorrt") or not name.version.startswith(TENSORRT_LINE):
            raise KitError(
                f"{path} is no wheel of TensorRT {TENSORRT_LINE}x, which ONNX Runtime links; move it out of {TENSORRT}/"
            )


def _sweep(folder: Path) -> None:
    """Delete what killed runs left unfinished."""
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder on the wheelhouse's own disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        yield Path(scratch)


def _plan(
    folder: Path,
    scratch: Path,
    recorded: dict[str, Wheel],
    profiles: Sequence[ImageProfile],
    *,
    add: Sequence[str],
    without: Collection[str],
    say: Say,
) -> list[_Planned]:
    """Return what the images lack; what two of them share is there once."""
    planned: dict[str, _Planned] = {}
    made: dict[str, Found] = {}

    def find(requirement: str, python: str) -> Found:
        found = find_wheel(requirement, python=python) or made.get(requirement)
        if found is None:
            found = made[requirement] = _kept_made(requirement, folder, recorded) or _make(requirement, scratch, say)
        return found

    for profile in profiles:
        say(f"{profile.name}, as of {profile.date}: looking for what it lacks")
        wheels = resolve(
            profile,
            [*profile.brings, *add],
            kit_requires=metadata.requires(KIT) or (),
            find=lambda requirement, python=profile.python: find(requirement, python),  # type: ignore[misc]
            without={normal_name(name) for name in without},
            say=say,
        )
        for found in wheels:
            one = planned.setdefault(found.file, _Planned(file=found.file, found=found, python=profile.python))
            one.profiles.append(profile.name)
    return list(planned.values())


def _make(requirement: str, scratch: Path, say: Say) -> Found:
    say(f"{requirement} has no wheel for Kaggle's Python: making one from its source")
    return make_wheel(requirement, scratch)


def _kept_made(requirement: str, folder: Path, recorded: dict[str, Wheel]) -> Found | None:
    """Return the wheel that an earlier run made for a requirement, where it is still whole."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement).specifier
    for wheel in recorded.values():
        name, path = parse_name(wheel.file), folder / wheel.file
        if (
            name is not None
            and name.is_pure
            and name.distribution == requirement_name(requirement)
            and wanted.contains(wheel.version, prereleases=True)
            and path.is_file()
            and file_sha256(path) == wheel.sha256
        ):
            return Found(
                file=wheel.file,
                distribution=wheel.distribution,
                version=wheel.version,
                requires=read_requires(path),
                sha256=wheel.sha256,
                size_bytes=wheel.size_bytes,
            )
    return None


def _plan_tensorrt(version: str, profiles: Sequence[ImageProfile]) -> _Planned:
    """Return TensorRT's libraries. They run on CUDA's runtime, which torch has brought."""
    requirement, python = f"{TENSORRT_LIBRARIES}=={version}", profiles[0].python
    found = find_wheel(requirement, python=python)
    if found is None:
        raise KitError(
            f"pip's index has no wheel of {requirement}; NVIDIA's has: run it again with "
            f"PIP_EXTRA_INDEX_URL=https://pypi.nvidia.com in the environment, or put the wheel into {TENSORRT}/"
        )
    every = [profile.name for profile in profiles]
    return _Planned(file=f"{TENSORRT}/{found.file}", found=found, python=python, profiles=every)


def _download(folder: Path, scratch: Path, planned: Sequence[_Planned], recorded: dict[str, Wheel], say: Say) -> None:
    """Bring every wheel to its place, saying how much there is to do before it begins."""
    for one in planned:
        one.kept = _is_kept(folder / one.file, one, recorded.get(one.file))
    wanted = [one for one in planned if not one.kept and one.found.made is None]
    total = sum(one.found.size_bytes or 0 for one in wanted)
    unknown = sum(one.found.size_bytes is None for one in wanted)
    if wanted:
        more = f", and {unknown} of unknown size" if unknown else ""
        say(f"{len(wanted)} of {len(planned)} wheels to download, {readable_size(total)}{more}")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise KitError(
            f"{folder}: {readable_size(total)} are to be downloaded and {readable_size(free)} are free; make room"
        )
    for number, one in enumerate(wanted, 1):
        size = "unknown size" if one.found.size_bytes is None else readable_size(one.found.size_bytes)
        say(f"downloading {one.found.file} ({number} of {len(wanted)}), {size}")
        started = time.monotonic()
        path = fetch_wheel(one.found, scratch, python=one.python)
        _check_hash(path, one.found)
        _put(path, folder / one.file)
        say(f"{one.found.file}: here after {time.monotonic() - started:.0f} s")
    for one in planned:
        if not one.kept and one.found.made is not None:
            _put(one.found.made, folder / one.file)


def _is_kept(path: Path, one: _Planned, recorded: Wheel | None) -> bool:
    """Return whether a wheel lies at its place, whole, by the hash that the index or an earlier run gave it."""
    expected = one.found.sha256 or (recorded.sha256 if recorded else "")
    return bool(expected) and one.found.made is None and path.is_file() and file_sha256(path) == expected


def _check_hash(path: Path, found: Found) -> None:
    if found.sha256 and file_sha256(path) != found.sha256:
        raise KitError(f"{path.name} arrived with another SHA-256 than the index gives it; run it again")


def _put(path: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    path.replace(place)


def _record(folder: Path, planned: Sequence[_Planned], profiles: Sequence[ImageProfile]) -> Wheelhouse:
    """Write the kit's wheel and return what is in the folder now."""
    every = tuple(profile.name for profile in profiles)
    files = {build_wheel(folder).name: every}
    files |= {one.file: tuple(one.profiles) for one in planned}
    files |= {path.relative_to(folder).as_posix(): every for path in sorted((folder / TENSORRT).glob("*.whl"))}
    return Wheelhouse(
        kit=kaggle_kit.__version__,
        profiles={profile.name: Image(python=profile.python, date=profile.date) for profile in profiles},
        wheels=tuple(_recorded_wheel(folder, file, names) for file, names in files.items()),
    )


def _recorded_wheel(folder: Path, file: str, profiles: tuple[str, ...]) -> Wheel:
    path, name = folder / file, parse_name(file)
    assert name is not None, file
    return Wheel(
        file=file,
        distribution=name.distribution,
        version=name.version,
        sha256=file_sha256(path),
        size_bytes=path.stat().st_size,
        profiles=profiles,
    )


def _write_metadata(folder: Path) -> None:
    """Write what `kaggle datasets create` reads, unless there is one with the user's own name in it."""
    if not (folder / DATASET_METADATA).exists():
        with replacing(folder / DATASET_METADATA) as temporary:
            temporary.write_text(json.dumps(DATASET, indent=2) + "\n", encoding="utf-8")


def readable_size(size_bytes: int) -> str:
    """Return a size for people: kB below one MB, MB above."""
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:,.0f} kB"
