"""What the doctor found, line by line: red, yellow or green, with the repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["green", "yellow", "red"]

WORDS: dict[Level, str] = {"green": "ok", "yellow": "warn", "red": "FAIL"}
_COLOURS: dict[Level, str] = {"green": "\033[32m", "yellow": "\033[33m", "red": "\033[1;31m"}
_PLAIN = "\033[0m"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: Red: a submission or a command will fail, or quietly be worth nothing. Yellow: it may, or nobody knows.
        what: What was looked at, in a word or two.
        found: How it is.
        expected: How it should be; empty where `found` is fine, or says it.
        repair: A command or an edit; empty where nothing is to be done.
    """

    level: Level
    what: str
    found: str
    expected: str = ""
    repair: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """All findings of one look.

    Attributes:
        place: Where it was, in words.
        findings: In the order they were looked at.
        seconds: How long it took.
    """

    place: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def has_red(self) -> bool:
        """Whether anything is red."""
        return self.count("red") > 0

    @property
    def text(self) -> str:
        """All of it in plain lines."""
        return format_checkup(self)

    def count(self, level: Level) -> int:
        """Return how many findings are of a level."""
        return sum(finding.level == level for finding in self.findings)


def format_checkup(checkup: Checkup, *, coloured: bool = False) -> str:
    """Return lines for people to read: one for each finding, its repair below it, and the count last."""
    width = max((len(finding.what) for finding in checkup.findings), default=0)
    lines = [f"kaggle_kit doctor, {checkup.place}"]
    for finding in checkup.findings:
        lines.append(f"  {_mark(finding.level, coloured=coloured)}  {finding.what:<{width}}  {_describe(finding)}")
        if finding.repair:
            lines.append(f"        {'':<{width}}  -> {finding.repair}")
    levels: tuple[Level, ...] = ("red", "yellow", "green")
    counts = ", ".join(f"{checkup.count(level)} {WORDS[level]}" for level in levels)
    return "\n".join([*lines, f"{counts}, in {checkup.seconds:.1f} s"])


def _mark(level: Level, *, coloured: bool) -> str:
    word = f"{WORDS[level]:<4}"
    return f"{_COLOURS[level]}{word}{_PLAIN}" if coloured else word


def _describe(finding: Finding) -> str:
    return f"{finding.found}; expected {finding.expected}" if finding.expected else finding.found
