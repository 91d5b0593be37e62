"""What to do first about what an audit found: a few sentences in order, each with the command that does it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kaggle_kit.audit.counts import Counts
from kaggle_kit.audit.drift import NOTHING, Drift
from kaggle_kit.audit.duplicates import Duplicates, Group
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.leaks import Leak
from kaggle_kit.errors import some_of

Severity = Literal["now", "soon", "fine"]
ODD = {"gray": "gray", "empty": "nearly empty", "dark": "dark", "bright": "too bright", "blurred": "blurred"}


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

    def review(self) -> str:
        """Return the command that opens the page to mend labels on."""
        return f"kaggle-kit review {shlex.quote(str(self.folder))}"

    def folds(self, *options: str) -> str:
        """Return the command that makes folds which know of duplicates."""
        words = ["kaggle-kit", "folds", self.task, str(self.data), "--out", "folds.parquet"]
        return shlex.join([*words, "--audit", str(self.folder), *options])

    def again(self) -> str:
        """Return the command that audits again, with a run's predictions."""
        words = ["kaggle-kit", "audit", self.task, str(self.data), "--out", str(self.folder), "--oof"]
        return f"{shlex.join(words)} RUN"


def advise(
    findings: tuple[Finding, ...],
    counts: Counts,
    duplicates: Duplicates,
    drift: Drift | None,
    leaks: tuple[Leak, ...],
    commands: Commands,
    *,
    with_model: bool,
) -> tuple[Advice, ...]:
    """Return what to do, the most pressing first.

    Args:
        findings: All of them.
        counts: Of classes.
        duplicates: Groups.
        drift: Train against test, if there is a test.
        leaks: What tells classes beside the pixels.
        commands: How commands are written.
        with_model: Whether a model's predictions were looked at.
    """
    number = Counter(str(finding.kind) for finding in findings)
    steps = [
        *_files(findings, number, commands),
        *_duplicates(duplicates, commands),
        *_leaks(leaks),
        *_drift(drift),
        *_rare(counts, commands),
        *_model(number, commands, with_model=with_model),
        *_odd(number, commands),
    ]
    if not steps:
        steps = [Advice(text="Nothing was found that needs mending.", severity="fine")]
    order: tuple[Severity, ...] = ("now", "soon", "fine")
    return tuple(sorted(steps, key=lambda step: order.index(step.severity)))


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _files(findings: tuple[Finding, ...], number: Counter[str], commands: Commands) -> Iterator[Advice]:
    if number["missing_image"]:
        ids = [finding.id for finding in findings if finding.kind == "missing_image"]
        text = f"{_many(len(ids), 'image')} named in the files cannot be found ({some_of(ids)}): check the download."
        yield Advice(text=text, severity="now")
    if number["broken"]:
        which = some_of([finding.id for finding in findings if finding.kind == "broken"])
        text = f"{_many(number['broken'], 'image')} cannot be read ({which}): replace the files, or drop the images."
        yield Advice(text=text, command=commands.review(), severity="now")
    if number["missing_label"]:
        ids = [finding.id for finding in findings if finding.kind == "missing_label"]
        text = f"{_many(len(ids), 'image')} are there that no list names ({some_of(ids)}); nothing is done with them."
        yield Advice(text=text)


def _duplicates(duplicates: Duplicates, commands: Commands) -> Iterator[Advice]:
    groups = duplicates.groups
    if contradicting := [group for group in groups if group.contradicts]:
        text = f"{_many(len(contradicting), 'group')} of equal or nearly equal images are labelled in several ways: "
        yield Advice(text=f"{text}decide on one label.", command=commands.review(), severity="now")
    if groups:
        exact, near = (_sizes(duplicates.of_kind(kind)) for kind in ("exact", "near"))
        text = f"Equal images: {exact}; nearly equal: {near}. Keep each group in one fold, or validation flatters."
        yield Advice(text=text, command=commands.folds(), severity="now")
    if crossing := [group for group in groups if group.crosses]:
        text = f"{_many(len(crossing), 'group')} of duplicates lie in train and test: the test's labels are known for "
        yield Advice(text=f"{text}these, which some rules forbid to use and no score should rest on.")


def _sizes(groups: list[Group]) -> str:
    if not groups:
        return "none"
    return f"{sum(len(group.rows) for group in groups):,} images in {_many(len(groups), 'group')}"


def _leaks(leaks: tuple[Leak, ...]) -> Iterator[Advice]:
    for leak in leaks[:3]:
        yield Advice(text=f"{leak.text}. A network does not see it; look whether the test has it too.")


def _drift(drift: Drift | None) -> Iterator[Advice]:
    if drift is not None and drift.low > NOTHING:
        yield Advice(text=f"{drift.text} Augment towards the test, and trust a validation that looks like it.")


def _rare(counts: Counts, commands: Commands) -> Iterator[Advice]:
    for head in counts.heads.values():
        empty = sum(not head.count[place] for place in head.rare)
        alone = sum(head.count[place] == 1 for place in head.rare)
        if head.rare:
            notes = f", {empty:,} of them without any" * bool(empty) + f", {alone:,} with a single one" * bool(alone)
            text = f"{_many(len(head.rare), 'class')} of {head.head} are rare{notes}: stratify, and weigh the loss."
            text = text.replace("classs", "classes")
            options = ("--rare", "train") if alone else ()
            yield Advice(text=text, command=commands.folds("--scheme", "stratified", *options))


def _model(number: Counter[str], commands: Commands, *, with_model: bool) -> Iterator[Advice]:
    if number["label_issue"]:
        text = f"{_many(number['label_issue'], 'label')} look wrong to the model: go through them from the worst on."
        yield Advice(text=text, command=commands.review(), severity="now")
    elif not with_model:
        text = "Wrong labels show once a model was trained: audit again with its out-of-fold predictions."
        yield Advice(text=text, command=commands.again(), severity="fine")


def _odd(number: Counter[str], commands: Commands) -> Iterator[Advice]:
    odd = [f"{number[kind]:,} {word}" for kind, word in ODD.items() if number[kind]]
    if odd:
        yield Advice(
            text=f"Unlike the rest: {', '.join(odd)} image(s). Look at them, and drop what misleads.",
            command=commands.review(),
        )
    if number["mode"] or number["size"]:
        text = f"{_many(number['mode'], 'image')} of an unusual mode, {number['size']:,} of an unusual size or shape."
        yield Advice(text=text, severity="fine")
