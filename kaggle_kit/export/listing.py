"""What a folder of exports holds, so that the next export knows its own files from anybody else's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kaggle_kit
from kaggle_kit.errors import ExportError, some_of
from kaggle_kit.files import replacing
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import Member, file_sha256
from kaggle_kit.settings import plain

FORMAT = 1
MEMBERS = "members.json"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What an earlier export into a folder wrote.

    Attributes:
        files: Names of all its files, the list itself included.
        runs: {.onnx file: name and id of its run}.
    """

    files: tuple[str, ...] = ()
    runs: dict[str, tuple[str, str]] = field(default_factory=dict)


def write_members(folder: Path, members: Sequence[Member]) -> None:
    """Write `members.json`, atomically: each member with its run, fold, parity and changes, and all files' SHA-256."""
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    listed = [{"sha256": files[member.file], **plain(member)} for member in members]
    values = {"format": FORMAT, "kit_version": kaggle_kit.__version__, "members": listed, "files": files}
    with replacing(folder / MEMBERS) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def read_members(folder: Path) -> Listed:
    """Return what an earlier export wrote into a folder; nothing where there was none."""
    try:
        values: dict[str, Any] = json.loads((folder / MEMBERS).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            return Listed()
        runs = {one["file"]: (str(one["run"]), str(one["run_id"])) for one in values["members"]}
        return Listed(files=(MEMBERS, *values["files"]), runs=runs)
    except (OSError, ValueError, KeyError, TypeError):
        return Listed()


def check_same_runs(listed: Listed, runs: Sequence[Run], out: Path) -> None:
    """Refuse to export into a folder whose exports of other runs would be lost.

    Args:
        listed: What is there.
        runs: What is exported now.
        out: The folder.

    Raises:
        ExportError: Naming runs and files that would be lost.
    """
    known = {(run.name, run.id) for run in runs}
    lost = {file: run for file, run in listed.runs.items() if run not in known and (out / file).exists()}
    if lost:
        names = some_of(dict.fromkeys(f"{name} ({number})" for name, number in lost.values()))
        raise ExportError(
            f"{out} holds exports of other runs than {some_of(run.name for run in runs)}, which would be lost: "
            f"{some_of(lost)} of {names}; export these runs too, delete the files, or choose another folder"
        )


@contextlib.contextmanager
def naming_output(out: Path) -> Iterator[None]:
    """Say of a disk that fills, or of a file that cannot be read or written, that it kept `out` from being written.

    Raises:
        ExportError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        absent = isinstance(error, FileNotFoundError)
        repair = "put that file back" if absent else "free some space there, or give another folder"
        raise ExportError(
            f"{out} was not written ({error.strerror or type(error).__name__}{where}); {repair}"
        ) from None
