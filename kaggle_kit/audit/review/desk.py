"""A reviewer's desk: an audit's queues, what was decided of them, and the file that decisions go to."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.pictures import Images
from kaggle_kit.audit.review.decisions import Decided, decided_images
from kaggle_kit.audit.review.file_labels import FileLabels
from kaggle_kit.audit.review.lines import (
    BROUGHT_BACK,
    Line,
    edits_of,
    last_decision,
    told_only,
    told_relabel,
    told_undo,
)
from kaggle_kit.audit.review.pictures import Pictures
from kaggle_kit.audit.review.queues import (
    DUPLICATE_OF,
    QUEUES,
    Entry,
    Queue,
    is_open,
    kept_with,
    make_entries,
    note_of,
    question_of,
    rows_to_keep,
    suggestions,
)
from kaggle_kit.edits import Edit, FollowedFile, append_edits, edits_that_hold, make_edit
from kaggle_kit.errors import DataError, did_you_mean
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.task import Task

Decision = Literal["relabel", "drop", "keep", "only"]
MAX_PAGE = 100  # entries a page
MAX_SHOWN = 60  # images of a group


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
        weakness: str = "",
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
            weakness: What speaks against the model that the label issues are of.
        """
        self._weakness = weakness
        self.task, self.path, self.by, self.pictures = task, path, by, pictures
        self._images = images
        self._ids, self._splits = images.id.tolist(), images.split.tolist()
        label_rows = {name: row for row, name in enumerate(labels.ids.tolist())}
        in_labels = [
            label_rows.get(name, -1) if split == "train" else -1
            for name, split in zip(self._ids, self._splits, strict=True)
        ]
        self._labels = FileLabels(task, labels, in_labels)
        self._decidable = [row >= 0 for row in in_labels]
        self._row_of = {self._ids[row]: row for row, place in enumerate(in_labels) if place >= 0}
        rows = {place: row for row, place in enumerate(zip(self._splits, self._ids, strict=True))}
        self._entries = {queue.name: make_entries(queue, findings, rows, self._decidable) for queue in QUEUES}
        self._places: dict[int, list[tuple[Queue, int]]] = {}
        for queue in QUEUES:
            for place, entry in enumerate(self._entries[queue.name]):
                for row in entry.rows:
                    self._places.setdefault(row, []).append((queue, place))
        self._lock = threading.RLock()
        self._file = FollowedFile(path, say=print_line)
        self._edits: tuple[Edit, ...] = ()
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
        with self._lock:
            self._refresh()
            lines, said = self._answer(action, asked, found, row, values)
            self._write(edits_of(lines, self._ids, self.by))
            return {"said": said, "entry": self._plain_entry(asked, entry), **self._progress()}

    def keep_rest(self, queue: str, *, count: int) -> dict[str, Any]:
        """Keep all that is still open in a queue, in one decision.

        Args:
            queue: The queue.
            count: How many entries are open, as the person sees it: so many are meant.

        Raises:
            DataError: When others are open meanwhile, nothing being written then; or when the file cannot be written.
        """
        asked = self._queue(queue)
        with self._lock:
            self._refresh()
            places = np.flatnonzero(self._open[queue]).tolist()
            if len(places) != count or not places:
                raise DataError(
                    f"{len(places):,} are open in {asked.title!r} now, not {count:,} as you were shown; look again"
                )
            entries = [self._entries[queue][place] for place in places]
            rows = rows_to_keep(asked, entries, self._decided, self._decidable)
            self._write(edits_of([Line("keep", row, why=asked.subject) for row in rows], self._ids, self.by))
            return {"said": f"kept {len(rows):,} image(s), all that were left here", **self._progress()}

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
            last = last_decision(mine)
            self._write([make_edit("undo", of=edit.key, by=self.by) for edit in reversed(last)])
            about_row = self._row_of.get(last[0].id, -1)
            places = sorted(self._places.get(about_row, ()), key=lambda place: place[0].name != queue)
            where = {"queue": places[0][0].name, "place": places[0][1]} if places else None
            return {"said": told_undo(last), "where": where, **self._progress()}

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

    def _answer(
        self, action: str, queue: Queue, entry: Entry, row: int, values: Mapping[str, str]
    ) -> tuple[list[Line], str]:
        """Return the lines of a decision, and what is said of it."""
        name, was_dropped = self._ids[row], self._of(row).dropped
        if action == "relabel":
            lines = self._relabel(queue, entry, row, values)
            return lines, told_relabel(name, lines, was_dropped=was_dropped)
        if action == "keep":
            return self._keep(queue, entry, row)
        if action == "drop":
            return [Line("drop", row, why=queue.name)], f"dropped {name}"
        others = [one for one in entry.rows if one != row and self._decidable[one] and not self._of(one).dropped]
        lines = [Line("drop", one, why=f"{DUPLICATE_OF}{name}") for one in others]
        note = note_of(queue, entry, self._decidable, self._splits)
        return [*lines, Line("keep", row, why=queue.subject)], told_only(name, len(others), note)

    def _keep(self, queue: Queue, entry: Entry, row: int) -> tuple[list[Line], str]:
        rows = kept_with(queue, entry, row, self._decided, self._decidable)
        if not rows:
            raise DataError("all of the group were dropped in other queues; undo that there, or relabel one")
        lines = [Line("keep", one, why=queue.subject) for one in rows]
        away = sum(self._decidable[one] for one in entry.rows) - len(rows) if queue.grouped else 0
        if away:
            return lines, f"kept {len(rows):,} of the group; {away:,} stay dropped, as another queue had it"
        if len(rows) > 1:
            return lines, f"kept all {len(rows):,} of the group"
        return lines, f"kept {self._ids[rows[0]]}{': all its labels are right' if self._asks_all_heads(queue) else ''}"

    def _asks_all_heads(self, queue: Queue) -> bool:
        return queue.subject == "label" and len(self.task.trained_heads) > 1

    def _relabel(self, queue: Queue, entry: Entry, row: int, values: Mapping[str, str]) -> list[Line]:
        """Return the lines of new classes.

        Of those that the label file gives already the image is kept, too: then all its labels are right. One that was
        dropped takes part again.
        """
        if not values:
            raise DataError("no head is relabelled; expected a class for one at least")
        checked = {head: self._labels.checked(head, value) for head, value in values.items()}
        lines = [
            Line("relabel", row, head, value, queue.name)
            for head, value in checked.items()
            if value != self._now(row, head)
        ]
        asked = {one.head: one.label for one in entry.findings[entry.rows.index(row)] if one.head}
        unanswered = [h for h, label in asked.items() if h not in checked and self._now(row, h) == label]
        was_dropped = self._of(row).dropped
        if not lines and unanswered and not was_dropped:
            raise DataError(f"{self._ids[row]!r} is that already; head {unanswered[0]!r} is still in question")
        as_it_is = any(value == asked.get(head) for head, value in checked.items()) if lines else not unanswered
        if as_it_is or was_dropped:
            lines.append(Line("keep", row, why=queue.subject if as_it_is else BROUGHT_BACK))
        return lines

    def _write(self, edits: Sequence[Edit]) -> None:
        try:
            append_edits(self.path, edits)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error.strerror or error}): this was not decided; make room there, or "
                "start again with --edits FILE on another disk"
            ) from None
        finally:
            self._refresh()

    def _refresh(self) -> None:
        """Read the decisions again where the file has changed: another reviewer may write it too."""
        edits = self._file.edits()
        if edits is self._edits:
            return
        self._edits = edits
        named = decided_images(edits)
        decided = {self._row_of[name]: one for name, one in named.items() if name in self._row_of}
        before, self._decided = self._decided, decided
        for row in before.keys() | decided.keys():
            if before.get(row) != decided.get(row):
                for queue, place in self._places.get(row, ()):
                    self._open[queue.name][place] = self._is_open(queue, self._entries[queue.name][place])

    def _of(self, row: int) -> Decided:
        return self._decided.get(row) or Decided()

    def _now(self, row: int, head: str) -> str:
        """Return the class after all decisions."""
        relabelled = self._of(row).relabelled
        return relabelled[head] if head in relabelled else self._labels.at(row, head)

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
                "question": question_of(queue, all_heads=self._asks_all_heads(queue), weakness=self._weakness),
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
            "note": note_of(queue, entry, self._decidable, self._splits),
            "images": [self._plain_image(queue, row, findings) for row, findings in shown],
        }

    def _plain_image(self, queue: Queue, row: int, findings: Sequence[Finding]) -> dict[str, Any]:
        decided, images = self._of(row), self._images
        size = [int(images.height[row]), int(images.width[row])]
        return {
            "row": row,
            "id": self._ids[row],
            "split": self._splits[row],
            "decidable": self._decidable[row],
            "broken": str(images.broken[row]),
            "size": size if all(size) else None,
            "mode": str(images.mode[row]),
            "labels": self._labels.of(row),
            "edited": decided.relabelled,
            "dropped": decided.dropped,
            "kept": decided.is_kept(queue.subject),
            "suggested": dict(suggestions(findings)),
            "found": [
                {
                    "kind": one.kind.replace("_", " "),
                    "head": one.head,
                    "open": not one.head or self._now(row, one.head) == one.label,
                    "detail": one.detail,
                }
                for one in findings
            ],
        }


def _plain_head(head: Head) -> dict[str, Any]:
    named = zip(head.class_values, head.class_names, strict=True)
    return {
        "name": head.name,
        "kind": head.kind,
        "separator": head.separator,
        "classes": [{"value": value, "name": str(name)} for value, name in named],
    }
