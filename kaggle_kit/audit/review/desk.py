"""A reviewer's desk: an audit's queues, what was decided of them, and the file that decisions go to."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.pictures import Images
from kaggle_kit.audit.review.decisions import Decided, decided_images, edits_that_hold
from kaggle_kit.audit.review.pictures import Pictures
from kaggle_kit.audit.review.queues import QUEUES, SUBJECTS, Entry, Queue, is_open, make_entries, suggestions
from kaggle_kit.edits import Edit, append_edit, make_edit, read_edits
from kaggle_kit.errors import DataError, did_you_mean
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.task import Task

Decision = Literal["relabel", "drop", "keep", "only"]
MAX_PAGE = 100  # entries a page
MAX_SHOWN = 60  # images of a group
KEY_SHARED = 24  # digits of the keys that lines of one decision have in common


class _Line(NamedTuple):
    """What one line of the edits file will say."""

    action: Literal["relabel", "drop", "keep"]
    row: int
    head: str = ""
    value: str = ""
    why: str = ""


class Desk:
    """What the page asks and says; several threads may call it at once."""

    def __init__(
        self,
        task: Task,
        labels: Labels,
        images: Images,
        findings: Sequence[Finding],
        pictures: Pictures,
        *,
        path: Path,
        by: str,
    ) -> None:
        """Take an audit; see `opening.open_desk`.

        Args:
            task: The competition, classes of auxiliary heads known.
            labels: As the label file has them.
            images: What the audit knows of them.
            findings: The audit's, worst first within a kind.
            pictures: The images themselves.
            path: Where decisions go.
            by: Who decides.
        """
        self.task, self.path, self.by, self.pictures = task, path, by, pictures
        self._images = images
        self._ids, self._splits = images.id.tolist(), images.split.tolist()
        self._classes = {**labels.classes, **labels.auxiliary}
        label_rows = {name: row for row, name in enumerate(labels.ids.tolist())}
        self._label_rows = [
            label_rows.get(name, -1) if split == "train" else -1
            for name, split in zip(self._ids, self._splits, strict=True)
        ]
        self._decidable = [row >= 0 for row in self._label_rows]
        self._row_of = {self._ids[row]: row for row, place in enumerate(self._label_rows) if place >= 0}
        rows = {place: row for row, place in enumerate(zip(self._splits, self._ids, strict=True))}
        self._entries = {queue.name: make_entries(queue, findings, rows, self._decidable) for queue in QUEUES}
        self._places: dict[int, list[tuple[Queue, int]]] = {}
        for queue in QUEUES:
            for place, entry in enumerate(self._entries[queue.name]):
                for row in entry.rows:
                    self._places.setdefault(row, []).append((queue, place))
        self._lock = threading.RLock()
        self._known: tuple[int, int] = (-1, -1)
        self._edits: list[Edit] = []
        self._decided: dict[int, Decided] = {}
        self._open = {
            queue.name: np.array([self._is_open(queue, entry) for entry in self._entries[queue.name]], bool)
            for queue in QUEUES
        }
        self._refresh()

    def __len__(self) -> int:
        return len(self._ids)

    def shown_rows(self) -> list[int]:
        """Return the rows of all images that are in a queue."""
        return sorted(self._places)

    def state(self) -> dict[str, Any]:
        """Return the task, the queues, and how far they are, for the page."""
        with self._lock:
            self._refresh()
            return {
                "task": self.task.name,
                "by": self.by,
                "file": str(self.path),
                "images": len(self),
                "decisions": len(self._decided),
                "heads": [_plain_head(head) for head in self.task.trained_heads.values()],
                "queues": self._queues(),
            }

    def page(self, name: str, *, start: int, size: int, decided: bool = False, back: bool = False) -> dict[str, Any]:
        """Return some entries of a queue.

        Args:
            name: The queue.
            start: The first entry, by its place in the whole queue, which decisions do not change.
            size: How many to return at most.
            decided: Whether decided ones are shown too.
            back: Return the page before `start` instead, which near the beginning goes beyond it.

        Raises:
            DataError: When there is no such queue.
        """
        queue = self._queue(name)
        with self._lock:
            self._refresh()
            entries = self._entries[queue.name]
            shown = np.arange(len(entries)) if decided else np.flatnonzero(self._open[queue.name])
            size = max(1, min(size, MAX_PAGE))
            first = max(0, int(np.searchsorted(shown, start)) - (size if back else 0))
            return {
                "before": first,
                "count": len(shown),
                "entries": [self._plain_entry(queue, place) for place in shown[first : first + size].tolist()],
            }

    def decide(self, action: str, *, queue: str, entry: int, row: int, values: Mapping[str, str]) -> dict[str, Any]:
        """Append a decision, and return what is known of the entry now.

        Args:
            action: `relabel`: the image shows these classes; `drop`: it takes no part; `keep`: it is right, and all of
                its group; `only`: of its group it alone takes part.
            queue: The queue in which it was taken.
            entry: The place there.
            row: The image.
            values: relabel: {head: class as files write it}.

        Raises:
            DataError: For an unknown action, queue, entry, image, head or class, nothing being written then; or when
                the file cannot be written.
        """
        if action not in get_args(Decision):
            raise DataError(f"action is {action!r}; expected relabel, drop, keep or only")
        asked, found = self._find(queue, entry, row)
        rows = [one for one in found.rows if self._decidable[one]]
        with self._lock:
            self._refresh()
            if action == "relabel":
                lines = self._relabel(asked, found, row, values)
            elif action == "keep":
                lines = [_Line("keep", one, why=asked.subject) for one in (rows if asked.grouped else [row])]
            elif action == "drop":
                lines = [_Line("drop", row, why=asked.name)]
            else:
                others = [one for one in rows if one != row]
                lines = [_Line("drop", one, why=f"duplicate of {self._ids[row]}") for one in others]
                lines.append(_Line("keep", row, why=asked.subject))
            self._append(lines)
            said = _told(action, self._ids[row], lines)
            return {"said": said, "entry": self._plain_entry(asked, entry), **self._progress()}

    def undo(self, queue: str = "") -> dict[str, Any]:
        """Make this reviewer's last decision that holds void, all lines of it.

        Args:
            queue: The queue that is shown; where the image is told of in several, its place in this one is returned.

        Raises:
            DataError: When there is none, or the file cannot be written.
        """
        with self._lock:
            self._refresh()
            mine = [edit for edit in edits_that_hold(self._edits) if edit.by == self.by]
            if not mine:
                raise DataError(f"there is nothing to undo by {self.by!r}")
            last = [edit for edit in mine if edit.key[:KEY_SHARED] == mine[-1].key[:KEY_SHARED]]
            self._write([make_edit("undo", of=edit.key, by=self.by) for edit in reversed(last)])
            about = " and ".join(sorted({edit.action for edit in last}))
            about_row = self._row_of.get(last[-1].id, -1)
            places = sorted(self._places.get(about_row, ()), key=lambda place: place[0].name != queue)
            where = {"queue": places[0][0].name, "place": places[0][1]} if places else None
            return {"said": f"undone: {about} of {last[-1].id}", "where": where, **self._progress()}

    def _find(self, name: str, entry: int, row: int) -> tuple[Queue, Entry]:
        """Return the queue and its entry that a decision about a row is taken in."""
        queue = self._queue(name)
        entries = self._entries[queue.name]
        if not 0 <= entry < len(entries):
            raise DataError(f"queue {queue.name!r} has no entry {entry}; it has {len(entries):,}")
        if row not in entries[entry].rows:
            raise DataError(f"image {row} is not in entry {entry} of queue {queue.name!r}; load the page again")
        if not self._decidable[row]:
            raise DataError(f"{self._ids[row]!r} is no labelled train image; decisions are about those")
        return queue, entries[entry]

    def _relabel(self, queue: Queue, entry: Entry, row: int, values: Mapping[str, str]) -> list[_Line]:
        """Return the lines of new classes; of those that the label file gives already the image is kept, too."""
        if not values:
            raise DataError("no head is relabelled; expected a class for one at least")
        checked = {head: self._checked(head, value) for head, value in values.items()}
        lines = [
            _Line("relabel", row, head, value, queue.name)
            for head, value in checked.items()
            if value != self._now(row, head)
        ]
        asked = {one.head: one.label for one in entry.findings[entry.rows.index(row)] if one.head and one.label}
        unanswered = [h for h, label in asked.items() if h not in checked and self._now(row, h) == label]
        if not lines and unanswered:
            raise DataError(f"{self._ids[row]!r} is that already; head {unanswered[0]!r} is still in question")
        if not lines or any(value == asked.get(head) for head, value in checked.items()):
            lines.append(_Line("keep", row, why=queue.subject))
        return lines

    def _append(self, lines: Sequence[_Line]) -> None:
        """Write the lines of one decision, whose keys begin alike, so that they can be undone together."""
        edits: list[Edit] = []
        for number, (action, row, head, value, why) in enumerate(lines):
            edit = make_edit(action, id=self._ids[row], head=head, value=value, why=why, by=self.by)
            key = f"{(edits or [edit])[0].key[:KEY_SHARED]}{number:08x}"
            edits.append(dataclasses.replace(edit, key=key))
        self._write(edits)

    def _write(self, edits: Sequence[Edit]) -> None:
        written = 0
        try:
            for edit in edits:
                append_edit(self.path, edit)
                written += 1
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error.strerror or error}): {'a part of this' if written else 'this'} "
                "was not decided; make room there, or start again with --edits FILE on another disk"
            ) from None
        finally:
            self._refresh()

    def _refresh(self) -> None:
        """Read the decisions again where the file has changed: another reviewer may write it too."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            known, edits = (-1, -1), []
        else:
            known = (status.st_mtime_ns, status.st_size)
            edits = self._edits if known == self._known else read_edits(self.path, say=print_line)
        if known == self._known:
            return
        self._known, self._edits = known, edits
        named = decided_images(edits)
        decided = {self._row_of[name]: one for name, one in named.items() if name in self._row_of}
        before, self._decided = self._decided, decided
        for row in before.keys() | decided.keys():
            if before.get(row) != decided.get(row):
                for queue, place in self._places.get(row, ()):
                    self._open[queue.name][place] = self._is_open(queue, self._entries[queue.name][place])

    def _is_open(self, queue: Queue, entry: Entry) -> bool:
        return is_open(queue, entry, self._decided, self._decidable, self._now)

    def _queue(self, name: str) -> Queue:
        for queue in QUEUES:
            if queue.name == name:
                return queue
        raise DataError(f"there is no queue {name!r}{did_you_mean(name, [queue.name for queue in QUEUES])}")

    def _queues(self) -> list[dict[str, Any]]:
        return [
            {
                "name": queue.name,
                "title": queue.title,
                "question": queue.question,
                "grouped": queue.grouped,
                "count": len(self._entries[queue.name]),
                "open": int(self._open[queue.name].sum()),
            }
            for queue in QUEUES
            if self._entries[queue.name]
        ]

    def _progress(self) -> dict[str, Any]:
        return {"decisions": len(self._decided), "queues": self._queues()}

    def _plain_entry(self, queue: Queue, place: int) -> dict[str, Any]:
        """Return an entry as the page shows it; of a large group the first images."""
        entry = self._entries[queue.name][place]
        shown = list(zip(entry.rows, entry.findings, strict=True))[:MAX_SHOWN]
        return {
            "place": place,
            "open": bool(self._open[queue.name][place]),
            "count": len(entry.rows),
            "images": [self._plain_image(queue, row, findings) for row, findings in shown],
        }

    def _plain_image(self, queue: Queue, row: int, findings: Sequence[Finding]) -> dict[str, Any]:
        decided, images = (self._decided.get(row) or Decided()), self._images
        size = [int(images.height[row]), int(images.width[row])]
        return {
            "row": row,
            "id": self._ids[row],
            "split": self._splits[row],
            "decidable": self._decidable[row],
            "broken": str(images.broken[row]),
            "size": size if all(size) else None,
            "mode": str(images.mode[row]),
            "labels": dict(self._file_labels(row)),
            "edited": decided.relabelled,
            "dropped": decided.dropped,
            "kept": decided.is_kept(queue.subject, SUBJECTS),
            "suggested": dict(suggestions(findings)),
            "found": [
                {
                    "kind": one.kind.replace("_", " "),
                    "head": one.head,
                    "open": not one.label or not one.head or self._now(row, one.head) == one.label,
                    "detail": one.detail,
                }
                for one in findings
            ],
        }

    def _file_labels(self, row: int) -> Iterator[tuple[str, str]]:
        if self._decidable[row]:
            for head in self.task.trained_heads:
                yield head, self._file_label(row, head)

    def _file_label(self, row: int, head: str) -> str:
        """Return the class that the label file gives, as it writes it; empty where an auxiliary one is not known."""
        known = self.task.trained_heads[head]
        value = self._classes[head][self._label_rows[row]]
        if np.ndim(value):
            return known.separator.join(known.class_values[one] for one in np.flatnonzero(value))
        return known.class_values[int(value)] if value >= 0 else ""

    def _now(self, row: int, head: str) -> str:
        """Return the class after all decisions."""
        relabelled = (self._decided.get(row) or Decided()).relabelled
        return relabelled[head] if head in relabelled else self._file_label(row, head)

    def _checked(self, head: str, value: str) -> str:
        """Return a value as files write it, several classes in their order, refusing what is no class of the head."""
        known = self.task.trained_heads.get(head)
        if known is None:
            raise DataError(f"there is no head {head!r}{did_you_mean(head, self.task.trained_heads)}")
        is_set = known.kind == "multilabel"
        parts = [part.strip() for part in value.split(known.separator) if part.strip()] if is_set else [value]
        for part in parts:
            if part not in known.class_values:
                raise DataError(f"{part!r} is no class of head {head!r}{did_you_mean(part, known.class_values)}")
        return known.separator.join(one for one in known.class_values if one in parts)


def _told(action: str, name: str, lines: Sequence[_Line]) -> str:
    """Return what is said of a decision."""
    if action == "relabel":
        changed = ", ".join(f"{line.head} {line.value or 'none'}" for line in lines if line.action == "relabel")
        return f"{name} is {changed} now" if changed else f"kept {name}: it is that already"
    if action == "only":
        return f"kept {name}, dropped {len(lines) - 1:,} like it"
    if action == "keep" and len(lines) > 1:
        return f"kept all {len(lines):,} of the group"
    return f"kept {name}" if action == "keep" else f"dropped {name}"


def _plain_head(head: Head) -> dict[str, Any]:
    named = zip(head.class_values, head.class_names, strict=True)
    return {
        "name": head.name,
        "kind": head.kind,
        "separator": head.separator,
        "classes": [{"value": value, "name": str(name)} for value, name in named],
    }
