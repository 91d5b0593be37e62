"""Made-up decisions for the tests of edits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kaggle_kit.edits import Edit, append_edit, make_edit


def relabel(name: str, value: int | str, head: str = "root") -> Edit:
    return make_edit("relabel", id=name, head=head, value=str(value), by="ann")


def at(edit: Edit, minute: int) -> Edit:
    return dataclasses.replace(edit, at=f"2026-11-30T12:{minute:02}:00Z")


def written(path: Path, *edits: Edit) -> Path:
    for edit in edits:
        append_edit(path, edit)
    return path
