"""A reviewer's desk: an audit's queues, what was decided of them, and the file that decisions go to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.audit.findings import Finding, load_findings
from kaggle_kit.audit.folder import EDITS, FINDINGS, read_meta
from kaggle_kit.audit.opening import open_splits
from kaggle_kit.audit.pictures import read_images
from kaggle_kit.audit.review.pictures import Pictures
from kaggle_kit.audit.review.queues import QUEUES, Entry, Queue, is_decided, make_entries, suggestions
from kaggle_kit.edits import Edit, Effective, append_edit, apply_edits, effective, make_edit, read_edits
from kaggle_kit.errors import DataError, did_you_mean
from kaggle_kit.heads import Head
from kaggle_kit.labels import read_labels, resolve_classes
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.task import task_from_plain

MAX_PAGE = 200  # entries a page


class Desk:
    """What the page asks and says; several threads may call it at once."""

    def __init__(self, folder: Path, *, edits: Path | None = None, by: str = "", packed: Path | None = None) -> None:
        """Open an audit.

        Args:
            folder: The audit's.
            edits: Where decisions go; None: edits.jsonl in `folder`.
            by: Who decides.
            packed: A packed store of the train images, read in place of the competition's files.

        Raises:
            DataError: When there is no audit, its data are gone, or the edits do not fit them.
        """
        meta = read_meta(folder)
        if meta is None:
            raise DataError(f"{folder} holds no audit; make one with `kaggle-kit audit TASK DATA --out {folder}`")
        data = Path(meta["data"])
        if not data.is_dir():
            raise DataError(f"{data}, which {folder} is an audit of, is gone; bring it back, or audit the data again")
        self.task = resolve_classes(task_from_plain(meta["task"]), data)
        self.path, self.by = edits or folder / EDITS, by
        self._labels = read_labels(self.task, data)
        self._label_rows = {name: row for row, name in enumerate(self._labels.ids.tolist())}
        images = read_images(folder)
        self._ids, self._splits = images.id.tolist(), images.split.tolist()
        self.pictures = Pictures(open_splits(self.task, data, self._labels.ids, packed=packed), images)
        self._rows = {(split, name): row for row, (split, name) in enumerate(zip(self._splits, self._ids, strict=True))}
        findings = load_findings(folder / FINDINGS)
        self._entries = {queue.name: make_entries(queue, findings, self._rows) for queue in QUEUES}
        self._lock = threading.Lock()
        self._known: tuple[int, int] = (-1, -1)
        self._edits: list[Edit] = []
        self._effective = effective(())
        apply_edits(self._labels, self.edits(), self.task, path=self.path)  # refuses those of other data

    def __len__(self) -> int:
        return len(self._ids)

    def edits(self) -> list[Edit]:
        """Return all decisions, those of other reviewers included: the file is read again where it has changed."""
        with self._lock:
            self._refresh()
            return list(self._edits)

    def state(self) -> dict[str, Any]:
        """Return the task, the queues, and how far they are, for the page."""
        found = self._now()
        return {
            "task": self.task.name,
            "by": self.by,
            "file": str(self.path),
            "images": len(self),
            "decisions": len(found.relabelled.keys() | found.dropped.keys() | found.kept),
            "heads": [_plain_head(head) for head in self.task.heads.values()],
            "queues": [
                {
                    "name": queue.name,
                    "title": queue.title,
                    "question": queue.question,
                    "count": len(entries),
                    "open": sum(self._is_open(entry, found) for entry in entries),
                }
                for queue in QUEUES
                if (entries := self._entries[queue.name])
            ],
        }

    def page(self, name: str, *, start: int, size: int, everything: bool) -> dict[str, Any]:
        """Return some entries of a queue.

        Args:
            name: The queue.
            start: How many entries to pass over.
            size: How many to return at most.
            everything: Whether decided ones are shown too.

        Raises:
            DataError: When there is no such queue.
        """
        queue = self._queue(name)
        found = self._now()
        entries = self._entries[queue.name]
        shown = [(place, one) for place, one in enumerate(entries) if everything or self._is_open(one, found)]
        start = max(0, min(start, max(0, len(shown) - 1)))
        part = shown[start : start + max(1, min(size, MAX_PAGE))]
        return {
            "start": start,
            "count": len(shown),
            "entries": [{"entry": place, "images": list(self._images_of(one, found))} for place, one in part],
        }

    def decide(self, action: str, *, row: int, head: str = "", value: str = "", why: str = "") -> dict[str, Any]:
        """Append a decision about a train image, and return what is known of the image now.

        Raises:
            DataError: For an unknown action, image, head or class; nothing is written then.
        """
        if action not in ("relabel", "drop", "keep"):
            raise DataError(f"action is {action!r}; expected relabel, drop or keep")
        image = self._train_id(row)
        if action == "relabel":
            value = self._checked(head, value)
        edit = make_edit(action, id=image, head=head, value=value, why=why, by=self.by)  # type: ignore[arg-type]
        with self._lock:
            append_edit(self.path, edit)
            self._refresh()
        return {"key": edit.key, "image": self._image(row, (), self._effective)}

    def undo(self, key: str = "") -> dict[str, Any]:
        """Make a decision void: that of the key, or this reviewer's last one that holds.

        Raises:
            DataError: When there is none.
        """
        with self._lock:
            self._refresh()
            void = {one.of for one in self._edits if one.action == "undo"}
            mine = [one for one in self._edits if one.action != "undo" and one.key not in void]
            mine = [one for one in mine if (one.key == key if key else one.by == self.by)]
            if not mine:
                raise DataError(f"there is no decision {key!r} to undo" if key else "there is nothing of yours to undo")
            append_edit(self.path, make_edit("undo", of=mine[-1].key, by=self.by))
            self._refresh()
        row = self._rows.get(("train", mine[-1].id))
        return {"undone": mine[-1].action, "image": None if row is None else self._image(row, (), self._effective)}

    def neighbours(self, row: int, name: str) -> Sequence[int]:
        """Return rows that a page of this queue shows beside a row, for reading them together."""
        entries = self._entries.get(name, ())
        place = next((at for at, one in enumerate(entries) if row in one.rows), 0)
        return [near for one in entries[place : place + 24] for near in one.rows]

    def _refresh(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._known, self._edits = (-1, -1), []
        else:
            known = (status.st_mtime_ns, status.st_size)
            if known == self._known:
                return
            self._edits, self._known = read_edits(self.path, say=print_line), known
        self._effective = effective(self._edits)

    def _now(self) -> Effective:
        with self._lock:
            self._refresh()
            return self._effective

    def _queue(self, name: str) -> Queue:
        for queue in QUEUES:
            if queue.name == name:
                return queue
        raise DataError(f"there is no queue {name!r}{did_you_mean(name, [queue.name for queue in QUEUES])}")

    def _is_open(self, entry: Entry, found: Effective) -> bool:
        return not is_decided((self._ids[row] for row in entry.rows if self._splits[row] == "train"), found)

    def _images_of(self, entry: Entry, found: Effective) -> Iterator[dict[str, Any]]:
        for row, findings in zip(entry.rows, entry.findings, strict=True):
            yield self._image(row, findings, found)

    def _image(self, row: int, findings: Sequence[Finding], found: Effective) -> dict[str, Any]:
        """Return one image as the page shows it."""
        name, split = self._ids[row], self._splits[row]
        place = self._label_rows.get(name, -1) if split == "train" else -1
        dropped = split == "train" and name in found.dropped
        return {
            "row": row,
            "id": name,
            "split": split,
            "labels": {} if place < 0 else {head: self._label(head, place) for head in self.task.heads},
            "edited": found.relabelled.get(name, {}) if split == "train" else {},
            "dropped": dropped,
            "kept": split == "train" and name in found.kept and not dropped,
            "suggested": dict(suggestions(findings)),
            "found": [one.detail or one.kind.replace("_", " ") for one in findings],
        }

    def _label(self, head: str, place: int) -> str:
        known, value = self.task.heads[head], self._labels.classes[head][place]
        if np.ndim(value):
            return known.separator.join(known.class_values[one] for one in np.flatnonzero(value))
        return known.class_values[int(value)]

    def _train_id(self, row: int) -> str:
        if not 0 <= row < len(self._ids):
            raise DataError(f"there is no image {row}; the audit knows {len(self._ids):,}")
        name = str(self._ids[row])
        if self._splits[row] != "train" or name not in self._label_rows:
            raise DataError(f"{name!r} is no labelled train image; decisions are about those")
        return name

    def _checked(self, head: str, value: str) -> str:
        """Return a value as files write it, refusing what is no class of the head."""
        known = self.task.heads.get(head)
        if known is None:
            raise DataError(f"there is no head {head!r}{did_you_mean(head, self.task.heads)}")
        parts = [part for part in value.split(known.separator) if part] if known.kind == "multilabel" else [value]
        for part in parts:
            if part not in known.class_values:
                raise DataError(f"{part!r} is no class of head {head!r}{did_you_mean(part, known.class_values)}")
        return known.separator.join(parts) if known.kind == "multilabel" else value


def _plain_head(head: Head) -> dict[str, Any]:
    named = zip(head.class_values, head.class_names, strict=True)
    return {
        "name": head.name,
        "kind": head.kind,
        "separator": head.separator,
        "classes": [{"value": value, "name": str(name)} for value, name in named],
    }
