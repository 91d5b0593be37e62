"""What there is to look at, in queues, worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kaggle_kit.audit.findings import Finding, Kind
from kaggle_kit.audit.review.decisions import Decided
from kaggle_kit.edits import Subject

ALL_HEADS = "To keep an image is to say that its labels are right in all heads."  # where there are several
DUPLICATE_OF = "duplicate of "  # why others of a group are dropped, and the id of the one that is kept
Current = Callable[[int, str], str]  # (row, head) -> the class of now, as files write it


@dataclass(frozen=True, kw_only=True)
class Queue:
    """One list of things to look at.

    Attributes:
        name: In addresses.
        title: For people.
        kinds: The findings it is made of.
        question: What a person is asked.
        subject: What is kept when something is kept; queues with one subject ask about the same thing.
        grouped: Whether images that belong together are shown together.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    question: str
    subject: Subject
    grouped: bool = False


QUEUES = (
    Queue(
        name="labels",
        title="Label issues",
        kinds=("label_issue",),
        question="Is the label right? Accept what is suggested, give another class, keep it, or drop the image.",
        subject="label",
    ),
    Queue(
        name="losses",
        title="Top losses",
        kinds=("top_loss",),
        question="The model is sure, and the label says otherwise. Who is right?",
        subject="label",
    ),
    Queue(
        name="duplicates",
        title="Duplicates",
        kinds=("exact_duplicate", "near_duplicate"),
        question="Keep one of each group, or all. Groups whose labels contradict each other come first, then those "
        "that lie across train and test; last those with one train image alone, of which nothing need be dropped.",
        subject="duplicates",
        grouped=True,
    ),
    Queue(
        name="gray",
        title="Gray among colour",
        kinds=("gray",),
        question="Will the test hold such images? Keep them if so.",
        subject="gray",
    ),
    Queue(
        name="empty",
        title="Empty, dark, bright, blurred",
        kinds=("empty", "dark", "bright", "blurred"),
        question="Is there anything to learn from? Drop it if not.",
        subject="empty",
    ),
    Queue(
        name="odd",
        title="Odd sizes and modes",
        kinds=("size", "mode"),
        question="Is the image what it should be?",
        subject="odd",
    ),
    Queue(
        name="broken",
        title="Broken files",
        kinds=("broken",),
        question="These cannot be read. Replace the file and audit again, or drop the image; training leaves it out "
        "anyway.",
        subject="broken",
    ),
)


def question_of(queue: Queue, *, all_heads: bool, weakness: str) -> str:
    """Return what a person is asked in a queue, with what speaks against the model that filled it."""
    parts = [weakness if queue.name == "labels" else "", queue.question, ALL_HEADS if all_heads else ""]
    return " ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to decide: an image, or images that belong together.

    Attributes:
        rows: Their rows in the audit's images.
        findings: What was found of each of them, in the order of `rows`.
    """

    rows: tuple[int, ...]
    findings: tuple[tuple[Finding, ...], ...]


def make_entries(
    queue: Queue, findings: Iterable[Finding], rows: Mapping[tuple[str, str], int], decidable: Sequence[bool]
) -> tuple[Entry, ...]:
    """Return what a queue holds, in the order of the findings: the worst first, groups with nothing to choose last.

    Args:
        queue: Which findings.
        findings: The audit's, worst first within a kind.
        rows: {(split, id): row} of the audit's images; findings of anything else are left out.
        decidable: By row, whether anything can be decided of an image: it is of the train images and has a label. What
            holds none of those is left out.
    """
    own = [one for one in findings if one.kind in queue.kinds and (one.split, one.id) in rows]
    own.sort(key=lambda one: -one.score if queue.grouped else queue.kinds.index(one.kind))
    together: dict[object, dict[int, list[Finding]]] = {}
    for one in own:
        row = rows[one.split, one.id]
        place: object = ("group", one.group) if queue.grouped else row
        together.setdefault(place, {}).setdefault(row, []).append(one)
    made = (
        Entry(rows=tuple(sorted(members)), findings=tuple(tuple(members[row]) for row in sorted(members)))
        for members in together.values()
        if any(decidable[row] for row in members) and len(members) > queue.grouped
    )
    return tuple(sorted(made, key=lambda entry: queue.grouped and not has_choice(entry, decidable)))


def has_choice(entry: Entry, decidable: Sequence[bool]) -> bool:
    """Return whether one image of a group can be kept and another dropped."""
    return sum(decidable[row] for row in entry.rows) > 1


def note_of(queue: Queue, entry: Entry, decidable: Sequence[bool], splits: Sequence[str]) -> str:
    """Return why there is nothing to drop in a group; empty where there is."""
    if not queue.grouped or has_choice(entry, decidable):
        return ""
    others = {splits[row] for row in entry.rows if not decidable[row]}
    return f"nothing to drop: the others are in the test{'' if others == {'test'} else ', or have no label'}"


def kept_with(
    queue: Queue, entry: Entry, row: int, decided: Mapping[int, Decided], decidable: Sequence[bool]
) -> list[int]:
    """Return the rows that keeping one keeps: it alone, or all of its group but what other queues dropped."""
    if not queue.grouped:
        return [row]
    known = ((one, decided.get(one) or Decided()) for one in entry.rows if decidable[one])
    return [
        one
        for one, done in known
        if not done.dropped or done.dropped_for == queue.name or done.dropped_for.startswith(DUPLICATE_OF)
    ]


def rows_to_keep(
    queue: Queue, entries: Iterable[Entry], decided: Mapping[int, Decided], decidable: Sequence[bool]
) -> list[int]:
    """Return the rows of entries that are neither dropped nor kept yet, each once."""
    found = dict.fromkeys(row for entry in entries for row in entry.rows if decidable[row])
    known = ((row, decided.get(row) or Decided()) for row in found)
    return [row for row, one in known if not one.dropped and not one.is_kept(queue.subject)]


def is_open(
    queue: Queue, entry: Entry, decided: Mapping[int, Decided], decidable: Sequence[bool], now: Current
) -> bool:
    """Return whether anything of an entry is still to decide.

    Of duplicates until all but one are dropped, or the rest is kept. A questioned label until another one is there or
    it is kept; any other image until it is dropped or kept.

    Args:
        queue: The entry's.
        entry: What to decide.
        decided: By row, what was decided; rows may lack.
        decidable: As for `make_entries`.
        now: What the labels are after all decisions.
    """
    rows = [row for row in entry.rows if decidable[row]]
    left = [row for row in rows if not (decided.get(row) or Decided()).dropped]
    asked = [row for row in left if not (decided.get(row) or Decided()).is_kept(queue.subject)]
    if not asked or (queue.grouped and len(left) == 1 < len(rows)):
        return False
    about_labels = [one for one in entry.findings[0] if one.head]
    if queue.subject != "label" or not about_labels:
        return True
    return any(now(entry.rows[0], one.head) == one.label for one in about_labels)


def suggestions(findings: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    """Yield (head, value) of what is thought right."""
    for one in findings:
        if one.head and one.suggested and one.suggested != one.label:
            yield one.head, one.suggested
