"""A decision about an image, and what decisions come to."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from kaggle_kit.errors import DataError, did_you_mean

Action = Literal["relabel", "drop", "keep", "undo"]
Subject = Literal["label", "duplicates", "gray", "empty", "odd", "broken", "brought back"]
SUBJECTS = frozenset(get_args(Subject))
_NEEDS = {"relabel": ("id", "head"), "drop": ("id",), "keep": ("id",), "undo": ("of",)}
_NAMES = ("key", "at", "by", "action", "id", "head", "value", "why", "of")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One decision.

    Attributes:
        action: `relabel`: the image shows another class; `drop`: it takes no part; `keep`: it was looked at and is
            right; `undo`: an earlier decision is void.
        id: The image's id.
        head: relabel: which head, or auxiliary head.
        value: relabel: the class as label files write it; several of a multi-label head with its separator between.
        why: A word on it. Of a `keep`, what was looked at, a `Subject`; for any other reason it is about everything.
            `brought back` says of a dropped image that it takes part again, and nothing else.
        by: Who decided.
        at: When: `2026-11-30T12:00:00Z`.
        key: What it is known by: 32 hexadecimal digits.
        of: undo: the key of what is void.
        line: Where it is in its file, from 1; 0 where it is in none.
    """

    action: Action
    id: str = ""
    head: str = ""
    value: str = ""
    why: str = ""
    by: str = ""
    at: str = ""
    key: str = ""
    of: str = ""
    line: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            known = get_args(Action)
            raise DataError(f"`action` is {self.action!r}; expected one of {', '.join(known)}")
        for name in _NAMES:
            if not isinstance(getattr(self, name), str):
                raise DataError(f"`{name}` is {getattr(self, name)!r}; expected text in quotes")
        for name in _NEEDS[self.action]:
            if not getattr(self, name):
                raise DataError(f"`{name}` is missing; a {self.action!r} needs it")
        if not re.fullmatch("[0-9a-f]{32}", self.key):
            raise DataError(f"`key` is {self.key!r}; expected 32 hexadecimal digits, another for every line")
        moment_of(self.at)

    def to_line(self) -> str:
        """Return the line of a file, with its end."""
        named = {name: getattr(self, name) for name in _NAMES}
        kept = {name: text for name, text in named.items() if text or (name == "value" and self.action == "relabel")}
        return json.dumps(kept, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Effective:
    """What edits come to, undone and overruled ones left out.

    Attributes:
        relabelled: {id: {head: class as files write it}}.
        dropped: {id: why}.
        kept: Ids that were looked at and are right.
    """

    relabelled: dict[str, dict[str, str]]
    dropped: dict[str, str]
    kept: frozenset[str]


def make_edit(
    action: Action,
    *,
    id: str = "",  # noqa: A002  as in the file
    head: str = "",
    value: str = "",
    why: str = "",
    by: str = "",
    of: str = "",
) -> Edit:
    """Return a decision that was taken now, with a new key; for the arguments see `Edit`.

    Raises:
        DataError: When something that the action needs is missing.
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Edit(action=action, id=id, head=head, value=value, why=why, by=by, of=of, at=now, key=secrets.token_hex(16))


def parse_edit(text: str, *, where: str, line: int = 0) -> Edit:
    """Return the decision that a line holds.

    Args:
        text: The line.
        where: What the line is called in messages.
        line: Its number.

    Raises:
        DataError: Saying what is wrong with it.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error}); mend the line, or delete it") from None
    if not isinstance(values, dict):
        raise DataError(f"{where} is {text[:40]!r}; expected an object such as {{'action': 'drop', 'id': 'Train_1'}}")
    for name in values:
        if name not in _NAMES:
            raise DataError(f"{where}: `{name}` is unknown{did_you_mean(name, _NAMES)}")
    try:
        return Edit(**{"action": "", **values, "line": line})
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def effective(edits: Sequence[Edit]) -> Effective:
    """Return what edits come to."""
    about_heads, about_images = winners(edits)
    relabelled: dict[str, dict[str, str]] = {}
    for edit in about_heads.values():
        relabelled.setdefault(edit.id, {})[edit.head] = edit.value
    return Effective(
        relabelled=relabelled,
        dropped={edit.id: edit.why for edit in about_images.values() if edit.action == "drop"},
        kept=frozenset(edit.id for edit in about_images.values() if edit.action == "keep"),
    )


def edits_in_force(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return those of the edits that change labels: what relabels or drops, undone and overruled ones left out."""
    about_heads, about_images = winners(edits)
    kept = {edit.key for edit in [*about_heads.values(), *about_images.values()] if edit.action != "keep"}
    return tuple(edit for edit in edits if edit.key in kept)


def edits_key(edits: Sequence[Edit]) -> str:
    """Return the hash of which images are dropped, and which classes the others are given; nothing where there is none.

    It tells nothing of how that came about: kept, undone and overruled edits, and relabels of dropped images, leave it
    as it is. A relabel to the class that the label file has anyway is a part of it, for the file is not known here.

    Returns:
        12 hexadecimal digits, which runs and folds remember.
    """
    found = effective(edits)
    relabelled = {name: heads for name, heads in found.relabelled.items() if name not in found.dropped}
    if not relabelled and not found.dropped:
        return ""
    text = json.dumps([relabelled, sorted(found.dropped)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def edits_that_hold(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits but for undone ones and what undoes them; an undo may itself be undone."""
    undone: set[str] = set()
    for edit in reversed(edits):  # an undo is behind what it undoes
        if edit.action == "undo" and edit.key not in undone:
            undone.add(edit.of)
    return [edit for edit in edits if edit.action != "undo" and edit.key not in undone]


def is_about(why: str, subject: Subject) -> bool:
    """Return whether a `keep` with this `why` says that an image is right as to a subject."""
    return why == subject or why not in SUBJECTS


def winners(edits: Sequence[Edit]) -> tuple[dict[tuple[str, str], Edit], dict[str, Edit]]:
    """Return the last relabel of each (id, head), and the last drop or keep of each id, of those not undone."""
    valid = edits_that_hold(edits)
    about_heads = {(edit.id, edit.head): edit for edit in valid if edit.action == "relabel"}
    return about_heads, {edit.id: edit for edit in valid if edit.action in ("drop", "keep")}


def moment_of(text: str) -> datetime.datetime:
    """Return the moment that `at` names.

    Raises:
        DataError: When it names none, or leaves the zone open.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.datetime.min
    if moment.tzinfo is None:
        raise DataError(f"`at` is {text!r}; expected a time with its zone, such as 2026-11-30T12:00:00Z")
    return moment
