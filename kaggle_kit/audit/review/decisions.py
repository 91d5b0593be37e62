"""What edits say of each image, and of which question it is an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kaggle_kit.edits import Edit, Subject, edits_that_hold, is_about


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What was decided of one image.

    `effective` of `kaggle_kit.edits` tells what edits do to labels; this tells also which question was answered: that a
    gray image is welcome says nothing of its label.

    Attributes:
        dropped: Whether it takes no part.
        dropped_for: The `why` of the drop.
        kept: The `why` of each time it was kept since it was last dropped.
        relabelled: {head: class as files write it}.
    """

    dropped: bool = False
    dropped_for: str = ""
    kept: frozenset[str] = frozenset()
    relabelled: dict[str, str] = field(default_factory=dict)

    def is_kept(self, subject: Subject) -> bool:
        """Return whether it was kept for this subject, or for one that is none of the page's: then for all."""
        return any(is_about(why, subject) for why in self.kept)


def decided_images(edits: Sequence[Edit]) -> dict[str, Decided]:
    """Return {id: what was decided of it}, of all images that edits are about."""
    dropped: dict[str, str | None] = {}
    kept: dict[str, set[str]] = {}
    relabelled: dict[str, dict[str, str]] = {}
    for edit in edits_that_hold(edits):
        if edit.action == "relabel":
            relabelled.setdefault(edit.id, {})[edit.head] = edit.value
            continue
        dropped[edit.id] = edit.why if edit.action == "drop" else None
        if edit.action == "drop":
            kept.pop(edit.id, None)
        else:
            kept.setdefault(edit.id, set()).add(edit.why)
    return {
        name: Decided(
            dropped=dropped.get(name) is not None,
            dropped_for=dropped.get(name) or "",
            kept=frozenset(kept.get(name, ())),
            relabelled=relabelled.get(name, {}),
        )
        for name in dropped | relabelled
    }
