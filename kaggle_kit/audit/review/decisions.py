"""What edits say of each image, and of which question it is an answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from kaggle_kit.edits import Edit


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What was decided of one image.

    `effective` of `kaggle_kit.edits` tells what edits do to labels; this tells also which question was answered: that a
    gray image is welcome says nothing of its label.

    Attributes:
        dropped: Whether it takes no part.
        kept: The `why` of each time it was kept since it was last dropped.
        relabelled: {head: class as files write it}.
    """

    dropped: bool = False
    kept: frozenset[str] = frozenset()
    relabelled: dict[str, str] = field(default_factory=dict)

    def is_kept(self, subject: str, subjects: Collection[str]) -> bool:
        """Return whether it was kept for this subject, or for one that is none of the page's: then for all."""
        return any(why == subject or why not in subjects for why in self.kept)


def edits_that_hold(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits but for undone ones and what undoes them; an undo may itself be undone."""
    undone: set[str] = set()
    for edit in reversed(edits):
        if edit.action == "undo" and edit.key not in undone:
            undone.add(edit.of)
    return [edit for edit in edits if edit.action != "undo" and edit.key not in undone]


def decided_images(edits: Sequence[Edit]) -> dict[str, Decided]:
    """Return {id: what was decided of it}, of all images that edits are about."""
    dropped: dict[str, bool] = {}
    kept: dict[str, set[str]] = {}
    relabelled: dict[str, dict[str, str]] = {}
    for edit in edits_that_hold(edits):
        if edit.action == "relabel":
            relabelled.setdefault(edit.id, {})[edit.head] = edit.value
            continue
        dropped[edit.id] = edit.action == "drop"
        if edit.action == "drop":
            kept.pop(edit.id, None)
        else:
            kept.setdefault(edit.id, set()).add(edit.why)
    return {
        name: Decided(
            dropped=dropped.get(name, False),
            kept=frozenset(kept.get(name, ())),
            relabelled=relabelled.get(name, {}),
        )
        for name in dropped | relabelled
    }
