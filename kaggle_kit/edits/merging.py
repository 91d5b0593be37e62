"""Make one file of two people's edits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from kaggle_kit.edits.edit import Edit, Effective, edits_that_hold, effective, is_about, winners
from kaggle_kit.edits.log import Say, locked, read_edits, write_edits
from kaggle_kit.edits.ordering import in_order
from kaggle_kit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Two people's decisions on one image that cannot both hold.

    Attributes:
        id: The image.
        head: The head that both relabelled, or that one relabelled where the other kept the labels; empty where one
            dropped what the other kept or relabelled.
        first: The one that comes first in the merged file.
        second: The other one.
        outcome: What the merged file makes of the image: `dropped`, `kind 1`, `kept` or `as the label file has it`.
    """

    id: str
    head: str
    first: Edit
    second: Edit
    outcome: str


def merge_edits(paths: Sequence[Path], out: Path, *, say: Say | None = None) -> list[Contradiction]:
    """Write the decisions of several files as one, in the order in which they were taken; see `in_order`.

    Args:
        paths: Two people's files, or more; a line that is in several of them is taken once.
        out: The file to write; may be one of `paths`, and nothing that is appended to it meanwhile is lost. A link
            stays one.
        say: Told of lines that a crash cut off.

    Returns:
        What contradicts: decisions on one image that differ, neither of which was taken in view of the other.

    Raises:
        DataError: As `read_edits`; when no files are given, files have one key for two decisions, or `out` is a folder
            or a file that is none of `paths`.
    """
    if not paths:
        raise DataError("there is nothing to merge; name two or more edits files")
    target = Path(os.path.realpath(out))
    if target.is_dir():
        raise DataError(f"{out} is a folder; give the path of a file, such as {out / 'edits.jsonl'}")
    _check_replaceable(out, paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        _check_replaceable(out, paths)  # again: it may have been made meanwhile
        files = [read_edits(path, say=say) for path in paths]
        _check_one_key_each(files, paths)
        merged = in_order(files)
        write_edits(merged, target)
    places, outcome = {edit.key: place for place, edit in enumerate(merged)}, effective(merged)
    found = [
        _contradiction(pair, head, places, outcome)
        for first, second in combinations(files, 2)
        for *pair, head in _contradicting(first, second)
    ]
    return list({(one.first.key, one.second.key): one for one in found}.values())


def _check_replaceable(out: Path, paths: Sequence[Path]) -> None:
    """Refuse to write over a file whose decisions are not merged."""
    if not out.exists() or any(path.exists() and out.samefile(path) for path in paths):
        return
    if out.is_file() and not out.stat().st_size:
        return
    try:
        number = len(read_edits(out))
    except DataError:
        number = 0
    held = f"{number:,} decision(s)" if number else "something else than edits"
    raise DataError(
        f"{out} exists and holds {held}, which would be lost; name it among the files to merge, or write to another one"
    )


def _check_one_key_each(files: Sequence[Sequence[Edit]], paths: Sequence[Path]) -> None:
    """Refuse two decisions with one key."""
    known: dict[str, tuple[Edit, Path]] = {}
    for file, path in zip(files, paths, strict=True):
        for edit in file:
            one, place = known.setdefault(edit.key, (edit, path))
            if one != edit:
                other = f"{place} line {one.line}"
                raise DataError(f"{path} line {edit.line} has the key of {other}, and says something else; delete one")


def _contradiction(pair: Sequence[Edit], head: str, places: Mapping[str, int], found: Effective) -> Contradiction:
    first, second = sorted(pair, key=lambda edit: places[edit.key])
    heads = found.relabelled.get(first.id, {})
    classes = ", ".join(f"{one} {value or 'none'}" for one, value in heads.items() if head in ("", one))
    kept = "kept" if first.id in found.kept else "as the label file has it"
    outcome = "dropped" if first.id in found.dropped else classes or kept
    return Contradiction(id=first.id, head=head, first=first, second=second, outcome=outcome)


def _contradicting(first: Sequence[Edit], second: Sequence[Edit]) -> Iterator[tuple[Edit, Edit, str]]:
    """Yield (a decision in force, one that differs, the head they are about), where neither file knows the other's."""
    known = {edit.key for edit in first} & {edit.key for edit in second}
    pairs = [*_differing(first, second), *((mine, theirs, head) for theirs, mine, head in _one_sided(second, first))]
    for mine, theirs, head in [*pairs, *_one_sided(first, second)]:
        if known.isdisjoint((mine.key, theirs.key)):
            yield mine, theirs, head


def _differing(first: Sequence[Edit], second: Sequence[Edit]) -> Iterator[tuple[Edit, Edit, str]]:
    """Yield relabels of one head to different classes, and drops of what the other keeps."""
    (heads, images), (their_heads, their_images) = (winners(file) for file in (first, second))
    for place, edit in heads.items():
        if place in their_heads and edit.value != their_heads[place].value:
            yield edit, their_heads[place], edit.head
    for id_, edit in images.items():
        if id_ in their_images and edit.action != their_images[id_].action:
            yield edit, their_images[id_], ""


def _one_sided(first: Sequence[Edit], second: Sequence[Edit]) -> Iterator[tuple[Edit, Edit, str]]:
    """Yield relabels of the first file of images that the second drops, or whose labels it keeps as they are."""
    (heads, _), (their_heads, their_images) = (winners(file) for file in (first, second))
    their_keeps = _label_keeps(second)
    for place, edit in heads.items():
        theirs = their_images.get(edit.id)
        if theirs is not None and theirs.action == "drop":
            yield edit, theirs, ""
        elif edit.id in their_keeps and place not in their_heads:
            yield edit, their_keeps[edit.id], edit.head


def _label_keeps(edits: Sequence[Edit]) -> dict[str, Edit]:
    """Return {id: the last keep that says that its labels are right}, of images that were not dropped since."""
    found: dict[str, Edit] = {}
    for edit in edits_that_hold(edits):
        if edit.action == "drop":
            found.pop(edit.id, None)
        elif edit.action == "keep" and is_about(edit.why, "label"):
            found[edit.id] = edit
    return found
