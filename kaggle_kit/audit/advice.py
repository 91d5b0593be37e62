"""What to do first about what an audit found: a few sentences in order, each with the command that does it."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kaggle_kit.audit.after_model import AfterModel, HeadLook, weakness_text
from kaggle_kit.audit.counts import Counts
from kaggle_kit.audit.drift import NOTHING, Drift
from kaggle_kit.audit.duplicates import Group, torn_groups
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.leaks import COLOUR, ROW_ORDER, Leak
from kaggle_kit.audit.traits import Trait, is_trait
from kaggle_kit.edits import edits_key
from kaggle_kit.errors import some_of
from kaggle_kit.task import Fit

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

Severity = Literal["now", "soon", "fine"]
MOST = 3  # traits and heads that are told of
ODD = {"gray": "gray", "empty": "nearly empty", "dark": "dark", "bright": "too bright", "blurred": "blurred"}
# What a network sees of an image's size, by how images are brought to the stored one.
SEEN: dict[Fit, str] = {
    "none": "A network does not see it",
    "stretch": "A network sees images stretched to one size, and of this only what stretching does to shapes",
    "letterbox": "With fit: letterbox the bars show a network the aspect ratio, and no more of it",
    "content": "With fit: content the padding shows a network the aspect ratio of what is cropped, and no more of it",
}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to do.

    Attributes:
        text: What was found and why it matters: one or two sentences.
        command: The command that does it; empty where there is none.
        severity: `now`: before any training; `soon`: worth a look; `fine`: nothing to do.
    """

    text: str
    command: str = ""
    severity: Severity = "soon"


@dataclass(frozen=True, kw_only=True)
class Commands:
    """How the commands that follow are written here: what the user called things."""

    task: str
    data: Path
    folder: Path
    folds_file: Path | None = None
    edits: Path | None = None

    def review(self) -> str:
        """Return the command that opens the page to mend labels on."""
        return f"kaggle-kit review {shlex.quote(str(self.folder))}"

    def folds(self, *options: str) -> str:
        """Return the command that makes folds which know of duplicates, and of the edits."""
        words = ["kaggle-kit", "folds", self.task, str(self.data), "--out", "folds.parquet"]
        edits = [] if self.edits is None else ["--edits", str(self.edits)]
        return shlex.join([*words, *edits, "--audit", str(self.folder), *options])

    def train(self) -> str:
        """Return the command that trains with the edits."""
        words = ["kaggle-kit", "train", f"task={self.task}", f"data={self.data}"]
        words += [f"folds={self.folds_file or 'folds.parquet'}", f"edits={self.edits}"]
        return f"{shlex.join(words)} out=RUN"

    def again(self) -> str:
        """Return the command that audits again, with a run's predictions."""
        words = ["kaggle-kit", "audit", self.task, str(self.data), "--out", str(self.folder)]
        words += [] if self.folds_file is None else ["--folds", str(self.folds_file)]
        words += [] if self.edits is None else ["--edits", str(self.edits)]
        return f"{shlex.join(words)} --oof RUN"


def advise(audit: Audit, commands: Commands) -> tuple[Advice, ...]:
    """Return what to do about what an audit found, the most pressing first; `audit.advice` is not looked at."""
    number = Counter(str(finding.kind) for finding in audit.findings if not is_trait(finding))
    fit = audit.task.stored.fit if audit.task.stored is not None else "letterbox"
    steps = [
        *_files(audit.findings, number, commands),
        *_duplicates(audit, commands),
        *_edits(audit, commands),
        *_leaks(audit.leaks, audit.traits, fit),
        *_drift(audit.drift),
        *_rare(audit.counts, commands),
        *_model(audit.after, commands),
        *(Advice(text=trait.text) for trait in audit.traits[:MOST]),
        *_odd(number, commands),
    ]
    if not steps:
        steps = [Advice(text="Nothing was found that needs mending.", severity="fine")]
    order: tuple[Severity, ...] = ("now", "soon", "fine")
    return tuple(sorted(steps, key=lambda step: order.index(step.severity)))


def many(number: int, what: str, plural: str = "") -> str:
    """Return a number and what is counted, in the singular or plural."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def _files(findings: tuple[Finding, ...], number: Counter[str], commands: Commands) -> Iterator[Advice]:
    if number["missing_image"]:
        ids = [finding.id for finding in findings if finding.kind == "missing_image"]
        text = f"{many(len(ids), 'image')} named in the files cannot be found ({some_of(ids)}): check the download."
        yield Advice(text=text, severity="now")
    if number["broken"]:
        which = some_of([finding.id for finding in findings if finding.kind == "broken"])
        mend = (
            "replace the file, or drop the image" if number["broken"] == 1 else "replace the files, or drop the images"
        )
        text = f"{many(number['broken'], 'image')} cannot be read ({which}): {mend}."
        yield Advice(text=text, command=commands.review(), severity="now")
    if number["missing_label"]:
        ids = [finding.id for finding in findings if finding.kind == "missing_label"]
        there = f"{many(len(ids), 'image is', 'images are')} there that no list names ({some_of(ids)})"
        yield Advice(text=f"{there}; nothing is done with {'it' if len(ids) == 1 else 'them'}.")


def _duplicates(audit: Audit, commands: Commands) -> Iterator[Advice]:
    groups = audit.duplicates.groups
    if contradicting := [group for group in groups if group.contradicts]:
        which = many(len(contradicting), "group", "groups") + " of equal or nearly equal images"
        text = f"{which} {'is' if len(contradicting) == 1 else 'are'} labelled in several ways: decide on one label."
        yield Advice(text=text, command=commands.review(), severity="now")
    if groups:
        exact, near = (_sizes(audit.duplicates.of_kind(kind)) for kind in ("exact", "near"))
        text = f"Equal images: {exact}; nearly equal: {near}."
        torn = None if audit.folds is None else torn_groups(groups, audit.images, audit.folds)
        file = commands.folds_file or "the folds"
        if torn == 0:
            yield Advice(text=f"{text} Kept by {file}: each group lies in one fold.", severity="fine")
        else:
            text += f" {many(torn, 'group lies', 'groups lie')} in several folds of {file}." if torn else ""
            text += " Keep each group in one fold, or validation flatters."
            yield Advice(text=text, command=commands.folds(), severity="now")
    if crossing := [group for group in groups if group.crosses]:
        text = f"{many(len(crossing), 'group')} of duplicates {'lies' if len(crossing) == 1 else 'lie'} in train and "
        text += (
            "test: the test's labels are known for these, which some rules forbid to use and no score should rest on."
        )
        yield Advice(text=text)


def _sizes(groups: list[Group]) -> str:
    if not groups:
        return "none"
    return f"{sum(len(group.rows) for group in groups):,} images in {many(len(groups), 'group')}"


def _edits(audit: Audit, commands: Commands) -> Iterator[Advice]:
    """Say how edits that were applied here get into folds and training."""
    if commands.edits is None:
        return
    groups, folds = audit.duplicates.groups, audit.folds
    if folds is None or edits_key(folds.edits) != edits_key(audit.labels.edits):
        if not groups or (folds is not None and not torn_groups(groups, audit.images, folds)):
            text = f"{commands.edits} changes labels: make folds that know of it; training refuses others."
            yield Advice(text=text, command=commands.folds())
        commands = Commands(task=commands.task, data=commands.data, folder=commands.folder, edits=commands.edits)
    text = f"The decisions in {commands.edits} are applied here; training applies them where it is told to."
    yield Advice(text=text, command=commands.train())


def _leaks(leaks: Sequence[Leak], traits: Sequence[Trait], fit: Fit) -> Iterator[Advice]:
    """Say what tells a head's classes, all that is of an image's or file's size at once."""
    explained = {trait.head for trait in traits if trait.kind == "gray"}
    sizes: dict[str, list[Leak]] = defaultdict(list)
    for leak in leaks:
        if leak.name not in (COLOUR, ROW_ORDER):
            sizes[leak.head].append(leak)
        elif leak.name == ROW_ORDER:
            yield Advice(text=f"{leak.text}. A network does not see it; look whether the test has it too.")
        elif leak.head not in explained:
            yield Advice(text=f"{leak.text}. A network sees it; look whether the test has it too.")
    for head, own in list(sizes.items())[:MOST]:
        text = own[0].text
        if len(own) > 1:
            text = f"The {_listed([leak.name for leak in own])} of an image tell its {head}: classes explain "
            text += f"{_listed([f'{leak.strength:.0%}' for leak in own])} of them"
        seen = SEEN[fit if any(leak.name != "file size" for leak in own) else "none"]
        yield Advice(text=f"{text}. {seen}. Look whether the test has it too.")


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _drift(drift: Drift | None) -> Iterator[Advice]:
    if drift is not None and drift.low > NOTHING:
        yield Advice(text=f"{drift.text} Augment towards the test, and trust a validation that looks like it.")


def _rare(counts: Counts, commands: Commands) -> Iterator[Advice]:
    for head in counts.heads.values():
        empty = sum(not head.count[place] for place in head.rare)
        alone = sum(head.count[place] == 1 for place in head.rare)
        if head.rare:
            notes = f", {empty:,} of them without any" * bool(empty) + f", {alone:,} with a single one" * bool(alone)
            which = f"{many(len(head.rare), 'class', 'classes')} of {head.head}"
            text = f"{which} {'is' if len(head.rare) == 1 else 'are'} rare{notes}: stratify, and weigh the loss."
            options = ("--rare", "train") if alone else ()
            yield Advice(text=text, command=commands.folds("--scheme", "stratified", *options))


def _model(after: AfterModel | None, commands: Commands) -> Iterator[Advice]:
    if after is None:
        text = "Wrong labels show once a model was trained: audit again with its out-of-fold predictions."
        yield Advice(text=text, command=commands.again(), severity="fine")
        return
    asked = [head for head in after.heads if head.num_issues]
    if sound := [head for head in asked if not head.is_weak]:
        text = f"{_issues(sound)} wrong to the model: go through them from the worst on."
        yield Advice(text=text, command=commands.review(), severity="now")
    if weak := [head for head in asked if head.is_weak]:
        yield Advice(text=f"{weakness_text(weak)} {_issues(weak)} wrong to it.", command=commands.review())


def _issues(heads: list[HeadLook]) -> str:
    number = sum(head.num_issues or 0 for head in heads)
    which = f"{many(number, 'label')} of {', '.join(head.head for head in heads)}"
    return f"{which} {'looks' if number == 1 else 'look'}"


def _odd(number: Counter[str], commands: Commands) -> Iterator[Advice]:
    odd = [f"{number[kind]:,} {word}" for kind, word in ODD.items() if number[kind]]
    if odd:
        alone = sum(number[kind] for kind in ODD) == 1
        text = f"Unlike the rest: {_listed(odd)} image{'' if alone else 's'}. "
        text += "Look at it, and drop it if it misleads." if alone else "Look at them, and drop what misleads."
        yield Advice(text=text, command=commands.review())
    shapes = {"mode": "of an unusual mode", "size": "of an unusual size or shape"}
    if parts := [(number[kind], word) for kind, word in shapes.items() if number[kind]]:
        (first, word), *rest = parts
        text = ", ".join([f"{many(first, 'image')} {word}", *(f"{more:,} {what}" for more, what in rest)])
        yield Advice(text=f"{text}.", severity="fine")
