"""Inputs laid out as Kaggle mounts them. The layouts are those of autumn 2026, as in `runtime.mounts`."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kaggle_kit.errors import DataError, KitError, RehearsalError, some_of
from kaggle_kit.platform.wheel import build_wheel
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.sources import image_folder, listed_ids
from kaggle_kit.submission import check_columns
from kaggle_kit.task import Task

Layout = Literal["new", "old"]
NOT_MOUNTED = ("solution.csv", "defects.csv")
OWNER = "owner"
BUNDLE, WHEEL = "kaggle-kit-bundle", "kaggle-kit-wheel"
WHEELS = "kaggle_kit-*.whl"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a kernel finds below /kaggle/input.

    Attributes:
        task: The competition.
        data: Its data folder.
        bundle: Attached as a dataset; None: no bundle.
        attached: Further folders, each a dataset of its name; where one holds the kit's wheel, no other is attached.
        layout: `new`: `competitions/SLUG` and `datasets/OWNER/SLUG`; `old`: all of them side by side.
        copies: Files that the kernel could write to are copied, never linked: they are the user's own.
    """

    task: Task
    data: Path
    bundle: Path | None
    attached: tuple[Path, ...] = ()
    layout: Layout = "new"
    copies: bool = False

    def lay_out(self, folder: Path, hidden: Path | None) -> Path:
        """Lay out all inputs, and return the competition's folder.

        Args:
            folder: Gets them.
            hidden: What takes the place of the visible test; None: the visible test stays.
        """
        place = _copy if self.copies else _link
        competition = folder / self.task.name if self.layout == "old" else folder / "competitions" / self.task.name
        replaced = {path.relative_to(self.data) for path in _visible_test(self.task, self.data)} if hidden else set()
        for path in files_below(self.data):
            if path.relative_to(self.data) not in replaced:
                place(path, competition / path.relative_to(self.data))
        for path in files_below(hidden) if hidden else ():
            if path.name not in NOT_MOUNTED:
                place(path, competition / path.relative_to(hidden))  # type: ignore[arg-type]
        for dataset in self.attached:
            for path in files_below(dataset):
                place(path, self._dataset(folder, dataset.resolve().name) / path.relative_to(dataset))
        for path in files_below(self.bundle) if self.bundle else ():
            place(path, self._dataset(folder, BUNDLE) / path.name)
        if not attached_wheels(self.attached):
            wheels = self._dataset(folder, WHEEL)
            wheels.mkdir(parents=True)
            build_wheel(wheels)
        return competition

    def _dataset(self, folder: Path, name: str) -> Path:
        return folder / name if self.layout == "old" else folder / "datasets" / OWNER / name


def check_inputs(inputs: Inputs, *, hidden: Path | None, visible: bool) -> None:
    """Refuse what is the user's slip and not the kernel's, before the kernel is blamed for it.

    Args:
        inputs: What is to be laid out.
        hidden: The hidden test's files; None: it is not run.
        visible: Whether the visible test is run.

    Raises:
        RehearsalError: For a bundle of another task, or a dataset that is no folder, or is attached twice.
        DataError: When the data folder or the hidden test lacks files of a test, or the task's submission has other
            columns than the sample submission.
    """
    task = inputs.task
    bundled = open_bundle(inputs.bundle).task.name if inputs.bundle else task.name
    if bundled != task.name:
        raise RehearsalError(
            f"{inputs.bundle} is a bundle for task {bundled!r}, not {task.name!r}; give the task's own bundle"
        )
    _check_attached(inputs.attached)
    if not inputs.data.is_dir():
        raise DataError(f"there is no data folder {str(inputs.data)!r}; give the folder with the competition's files")
    parts = [task.submission.file, *task.images.test_files]
    if visible and (missing := _lacking(inputs.data, parts)):
        raise DataError(
            f"{inputs.data} lacks {some_of(missing)}, the visible test; download it, or rehearse with --only hidden"
        )
    told = f"{', '.join(parts)} and, to be scored, solution.csv"
    if hidden is not None and not hidden.is_dir():
        raise DataError(f"there is no hidden test {str(hidden)!r}; give a folder with {told}")
    if hidden is not None and (missing := _lacking(hidden, parts)):
        raise DataError(f"{hidden} lacks {some_of(missing)}; a hidden test is made of {told}")
    for folder in (inputs.data, hidden):
        if folder is not None:
            check_columns(task, folder)


def wheel_warnings(attached: tuple[Path, ...]) -> Iterator[str]:
    """Yield which attached wheels of the kit hold other code than the kit that runs."""
    wheels = attached_wheels(attached)
    if not wheels:
        return
    with tempfile.TemporaryDirectory() as folder:
        now = _contents(build_wheel(Path(folder)))
    for wheel in wheels:
        try:
            found = _contents(wheel)
        except (zipfile.BadZipFile, OSError) as error:
            raise KitError(f"{wheel} is no whole wheel ({error}); copy it again") from None
        other = sorted(name for name in {*now, *found} if now.get(name) != found.get(name))
        if other:
            yield f"{wheel} is stale: {some_of(other)} differ(s) from the kit that runs here; build the wheel again"


def attached_wheels(attached: tuple[Path, ...]) -> list[Path]:
    """Return the kit's wheels in attached folders, where the kit's kernels look for them: in no folder below."""
    return [path for folder in attached for path in sorted(folder.glob(WHEELS))]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, but for hidden ones; links to folders are followed."""
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _check_attached(attached: tuple[Path, ...]) -> None:
    for folder in attached:
        if not folder.is_dir():
            raise RehearsalError(f"there is no folder {str(folder)!r} to attach; give a dataset's folder")
    names = [folder.resolve().name for folder in attached]
    twice = {name for name in names if [*names, BUNDLE].count(name) > 1}
    if twice:
        raise RehearsalError(f"two datasets are named {some_of(sorted(twice))}; rename one of their folders")


def _lacking(folder: Path, parts: list[str]) -> list[str]:
    return [pattern for pattern in parts if not any(folder.glob(pattern))]


def _visible_test(task: Task, data: Path) -> Iterator[Path]:
    images = task.images
    if images.format != "files":
        for found in data.glob(images.test):
            yield from [found] if found.is_file() else files_below(found)
    else:
        folder = image_folder(task, "test", data)
        yield from (folder / f"{name}{images.suffix}" for name in listed_ids(task, "test", data).tolist())


def _contents(wheel: Path) -> dict[str, int]:
    """Return {name: checksum} of the package's files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist() if info.filename.startswith("kaggle_kit/")}


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or a system without hard links
        shutil.copy2(path, target)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy2(path, target)
