"""What stands below a picture: its id, where it is, and its labels by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.montage import Wanted
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.train.outcome import Fields

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

LONGEST = 90  # characters of an id or a class that are shown; a pointer shows more
LONGEST_TEXT = 240
NO_CLASS = "no class"


class Captions:
    """Captions of images, and the list of the pictures that go with them.

    Attributes:
        wanted: What was asked for so far; captions asked for first are the more important ones.
    """

    def __init__(self, audit: Audit) -> None:
        images = audit.images
        self.wanted = Wanted()
        self._audit = audit
        self._label_rows, self._folds = audit.label_rows(), audit.fold_of()
        names = zip(images.split.tolist(), images.id.tolist(), strict=True)
        self._rows = {name: row for row, name in enumerate(names)}

    def row(self, split: str, name: str) -> int | None:
        """Return the row of an image; None where there is none of this id."""
        return self._rows.get((split, name))

    def of(self, row: int, text: str = "", *, pictured: bool = True) -> Fields:
        """Return what stands below the picture of a row of `Images`, and ask for the picture."""
        images = self._audit.images
        if pictured:
            self.wanted.alone.append(row)
        return {
            "row": row,
            "id": cut(str(images.id[row])),
            "whole_id": str(images.id[row])[:500],
            "where": self.where(row),
            "labels": self.labels(row),
            "text": cut(text, LONGEST_TEXT),
        }

    def of_finding(self, finding: Finding) -> Fields | None:
        """Return the caption of a finding's image; None where there is no such image."""
        row = self.row(finding.split, finding.id)
        return None if row is None else self.of(row, finding.detail)

    def where(self, row: int) -> str:
        """Return the split, and the fold where there is one."""
        fold = int(self._folds[row])
        return str(self._audit.images.split[row]) + (f", fold {fold}" if fold >= 0 else "")

    def labels(self, row: int) -> list[Fields]:
        """Return `head` (empty where there is but one) and `name` of each label; nothing where there are none."""
        known = int(self._label_rows[row])
        heads = self._audit.task.heads
        if known < 0:
            return []
        return [
            {"head": name if len(heads) > 1 else "", "name": cut(label_name(head, self._audit.labels, known))}
            for name, head in heads.items()
        ]


def label_name(head: Head, labels: Labels, row: int) -> str:
    """Return a label as people read it: the class's name, or of a multi-label head the names."""
    value = labels.classes[head.name][row]
    if np.ndim(value):
        return ", ".join(head.class_names[place] for place in np.flatnonzero(value)) or NO_CLASS
    return head.class_names[int(value)]


def written_name(head: Head, text: str) -> str:
    """Return the name of what files write as `text`; of a multi-label head the names."""
    names = dict(zip(head.class_values, head.class_names, strict=True))
    if head.kind == "multilabel":
        return ", ".join(names.get(part, part) for part in text.split(head.separator) if part) or NO_CLASS
    return names.get(text, text)


def cut(text: str, longest: int = LONGEST) -> str:
    """Return a text of at most so many characters, its middle left out where it is longer."""
    return text if len(text) <= longest else f"{text[: longest - 20]} ... {text[-14:]}"
