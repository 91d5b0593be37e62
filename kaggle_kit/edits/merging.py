"""Make one file of two people's edits."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from kaggle_kit.edits.edit import Edit, moment_of, winners
from kaggle_kit.edits.log import Say, locked, read_edits, write_edits
from kaggle_kit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Two people's decisions on one image that cannot both hold; of the two the later one is in force.

    Attributes:
        id: The image.
        head: The head that both relabelled; empty where one dropped what the other kept or relabelled.
        first: The earlier decision.
        second: The later one.
    """

    id: str
    head: str
    first: Edit
    second: Edit


def merge_edits(paths: Sequence[Path], out: Path, *, say: Say | None = None) -> list[Contradiction]:
    """Write the decisions of several files as one, in the order in which they were taken.

    Args:
        paths: Two people's files, or more; a line that is in several of them is taken once.
        out: The file to write; may be one of `paths`, and nothing that is appended to it meanwhile is lost.
        say: Told of lines that a crash cut off.

    Returns:
        What contradicts: decisions on one image that differ, neither of which was taken in view of the other.

    Raises:
        DataError: As `read_edits`, or when no files are given.
    """
    if not paths:
        raise DataError("there is nothing to merge; name two or more edits files")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        files = [read_edits(path, say=say) for path in paths]
        merged = _by_time(files)
        write_edits(merged, out)
    places = {edit.key: place for place, edit in enumerate(merged)}
    found = [one for first, second in combinations(files, 2) for one in _contradictions(first, second, places)]
    return list({(one.first.key, one.second.key): one for one in found}.values())


def _by_time(files: Sequence[Sequence[Edit]]) -> list[Edit]:
    """Return the edits of files by time, each once; the order within a file holds, whatever its clock did."""
    when: dict[str, datetime.datetime] = {}
    edits: dict[str, Edit] = {}
    for file in files:
        latest = datetime.datetime.min.replace(tzinfo=datetime.UTC)
        for edit in file:
            latest = max(latest, moment_of(edit.at), when.get(edit.key, latest))
            when.setdefault(edit.key, latest)
            edits.setdefault(edit.key, edit)
    return sorted(edits.values(), key=lambda edit: when[edit.key])


def _contradictions(
    first: Sequence[Edit], second: Sequence[Edit], places: Mapping[str, int]
) -> Iterator[Contradiction]:
    """Yield pairs of decisions in force that differ, where neither file knows the other's."""
    known = {edit.key for edit in first} & {edit.key for edit in second}
    (heads, images), (their_heads, their_images) = (winners(file) for file in (first, second))
    pairs = [(edit, their_heads[place], edit.head) for place, edit in heads.items() if place in their_heads]
    pairs = [pair for pair in pairs if pair[0].value != pair[1].value]
    pairs += [(edit, their_images[id_], "") for id_, edit in images.items() if id_ in their_images]
    pairs += [(edit, their_images[edit.id], "") for edit in heads.values() if edit.id in their_images]
    pairs += [(images[edit.id], edit, "") for edit in their_heads.values() if edit.id in images]
    for mine, theirs, head in pairs:
        actions = {mine.action, theirs.action}
        if known.isdisjoint((mine.key, theirs.key)) and (head or ("drop" in actions and len(actions) == 2)):
            early, late = sorted((mine, theirs), key=lambda edit: places[edit.key])
            yield Contradiction(id=mine.id, head=head, first=early, second=late)
