"""The lines of the edits file that one decision is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from kaggle_kit.edits import Edit, Subject, make_edit

KEY_SHARED = 24  # digits of the keys that lines of one decision have in common
BROUGHT_BACK: Subject = "brought back"  # why a dropped image is kept that is relabelled: nothing else is said of it


class Line(NamedTuple):
    """What one line will say."""

    action: Literal["relabel", "drop", "keep"]
    row: int
    head: str = ""
    value: str = ""
    why: str = ""


def edits_of(lines: Sequence[Line], ids: Sequence[str], by: str) -> list[Edit]:
    """Return the edits of one decision, whose keys begin alike, so that they can be undone together."""
    edits: list[Edit] = []
    for number, (action, row, head, value, why) in enumerate(lines):
        edit = make_edit(action, id=ids[row], head=head, value=value, why=why, by=by)
        key = f"{(edits or [edit])[0].key[:KEY_SHARED]}{number:08x}"
        edits.append(dataclasses.replace(edit, key=key))
    return edits


def last_decision(edits: Sequence[Edit]) -> list[Edit]:
    """Return all lines of the last decision among edits, of which there must be one."""
    return [edit for edit in edits if edit.key[:KEY_SHARED] == edits[-1].key[:KEY_SHARED]]


def told_relabel(name: str, lines: Sequence[Line], *, was_dropped: bool) -> str:
    """Return what is said of a relabelled image."""
    changed = ", ".join(f"{line.head} {line.value or 'none'}" for line in lines if line.action == "relabel")
    text = f"{name} is {changed} now" if changed else f"kept {name}: it is that already"
    return f"{text}; it was dropped, and takes part again" if was_dropped else text


def told_only(name: str, num_dropped: int, note: str) -> str:
    """Return what is said when one of a group is kept.

    Args:
        name: The image's id.
        num_dropped: How many others were dropped.
        note: Why none could be, where none could.
    """
    if num_dropped:
        return f"kept {name}, dropped {num_dropped:,} like it"
    return f"kept {name}; {note or 'nothing to drop: the others are dropped already'}"


def told_undo(edits: Sequence[Edit]) -> str:
    """Return what is said of the lines of a decision that is undone."""
    about = " and ".join(sorted({edit.action for edit in edits}))
    num_images = len({edit.id for edit in edits})
    return f"undone: {about} of {edits[-1].id if num_images == 1 else f'{num_images:,} images'}"
