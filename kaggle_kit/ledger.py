"""The ledger: what each run scored in cross-validation (CV) and on the leaderboard; `standings` compares.

DIR/ledger.jsonl lies beside the run folders. A line is a whole `Entry`: the run, and what was noted of it at that
moment. Lines are only ever added, and for a run each noted value is taken from the newest line that gives it or takes
it back. So the content is the set of lines: the ledgers of teammates merge, in any order and again and again, to the
same entries.
"""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kaggle_kit.entries import Board, Clearable, Entry, OtherVersionError, entry_of, line_of, parse_line, seconds_of
from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.files import replacing
from kaggle_kit.runs import HISTORY, read_run
from kaggle_kit.task import Metric

FILE = "ledger.jsonl"
TRIAL = re.compile(r"trial_\d{4,}")  # a trial's folder in that of its sweep
NOTED = ("public", "private", "note", "author")
_RANGES: dict[Metric, tuple[float, float]] = {"log_loss": (0, math.inf), "quadratic_kappa": (-1, 1)}  # others: 0 to 1
_LOCK_S = 60
_UPDATE = "update kaggle_kit"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Entries, one a run, and sentences on what could not be read.

    Attributes:
        entries: One a run.
        problems: Sentences on what could not be read.
        gone: Ids of the runs that were noted here, by whoever asks, and have no folder any more; a run that a
            teammate noted never had one.
    """

    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """How many of the others' runs were new, had news, or had none; and sentences on what could not be read."""

    added: int
    updated: int
    unchanged: int
    problems: tuple[str, ...] = ()


def ledger_of(run_folder: Path) -> Path:
    """Return the ledger a run is noted in: beside its folder, or beside the link by which the folder is given."""
    return Path(os.path.abspath(run_folder)).parent / FILE  # noqa: PTH100 - Path.resolve follows the link


def check_holds_runs(folder: Path) -> None:
    """Refuse a folder that cannot hold run folders.

    Raises:
        DataError: When there is no such folder, or it is a run itself.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give the one that holds your run folders, or make it")
    if (folder / "run.json").is_file():
        raise DataError(f"{folder} is a run itself; give the folder that holds it: {ledger_of(folder).parent}")


def read_runs(folder: Path) -> Listing:
    """Return every run one or two levels below a folder, and those that only its ledgers know.

    Raises:
        DataError: When there is no such folder, or it is a run itself.
    """
    check_holds_runs(folder)
    lines, problems = _ledgers_of(folder)
    known = {entry.run_id: entry for entry in _resolve(lines)}
    here: dict[str, Entry] = {}
    copies: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("[!.]*/run.json"), *folder.glob("[!.]*/[!.]*/run.json")]):
        try:
            entry = entry_of(read_run(path.parent))
        except (ValueError, OSError) as error:  # every KitError is a ValueError, and so is text that is not UTF-8
            problems.append(f"{path.parent} is not listed: {error}")
            continue
        copies.setdefault(entry.run_id, []).append(path.parent)
        noted = known.pop(entry.run_id, here.get(entry.run_id, entry))
        here[entry.run_id] = dataclasses.replace(entry, **{key: getattr(noted, key) for key in (*NOTED, "noted")})
    problems += [_same_run(paths) for paths in copies.values() if len(paths) > 1]
    if begun := _unfinished(folder):
        many = f"{len(begun)} trainings have not ended and are not listed: {some_of(begun)}"
        one = f"the training {begun[0]} has not ended and is not listed"
        problems.append(f"{one if len(begun) == 1 else many}; the same command goes on with it")
    mine = ("", _login_name())
    gone = frozenset(entry.run_id for entry in known.values() if entry.noted and entry.author in mine)
    return Listing(entries=(*here.values(), *known.values()), problems=tuple(problems), gone=gone)


def _unfinished(folder: Path) -> list[Path]:
    """Return the folders one or two levels below a folder whose folds were begun and that hold no run.

    Trials of a sweep are left out: what it gave up on will not be gone on with.
    """
    histories = [*folder.glob(f"[!.]*/*/{HISTORY}"), *folder.glob(f"[!.]*/[!.]*/*/{HISTORY}")]
    begun = {path.parent.parent for path in histories}
    return sorted(path for path in begun if not (path / "run.json").is_file() and not TRIAL.fullmatch(path.name))


def _same_run(paths: Sequence[Path]) -> str:
    first = ", ".join(map(str, paths[:-1]))
    return f"{first} and {paths[-1]} are the same run (a copied folder); listed as {paths[-1].name}"


def note_run(
    run_folder: Path,
    *,
    public: float | None = None,
    private: float | None = None,
    note: str | None = None,
    clear: Sequence[Clearable] = (),
    author: str | None = None,
) -> Entry:
    """Note what a run scored on the leaderboard, in the ledger beside its folder.

    Args:
        run_folder: A finished run.
        public: The public leaderboard's score; None keeps what was noted earlier.
        private: The private leaderboard's score; None keeps what was noted earlier.
        note: Free text; None keeps what was noted earlier.
        clear: What of the earlier is taken back, also where teammates merge it; later notes count again.
        author: Who notes it; None: the login name.

    Returns:
        The entry with everything noted so far.

    Raises:
        SettingError: When there is nothing to note or to take back, a score is no finite number or outside the
            metric's range, a text cannot be written as UTF-8, or a value is given and cleared at once.
        DataError: When the folder holds no finished run.
    """
    if public is None and private is None and not note and not clear:
        raise SettingError(
            f"there is nothing to note of {run_folder}; give a score or a note, such as --public 0.9812, or take one "
            "back, such as --clear note"
        )
    line = dataclasses.replace(
        entry_of(read_run(run_folder)),
        public=public,
        private=private,
        note=note or "",
        cleared=tuple(dict.fromkeys(clear)),
        author=author or _login_name(),
    )
    _check_scores(line)
    path = ledger_of(run_folder)
    with _locked(path):
        history = [known for known in _read_lines(path)[0] if known.run_id == line.run_id]
        _check_cleared(line, _resolve(history))
        line = dataclasses.replace(line, noted=_moment_after(history))
        _append(path, [line_of(line)])
    return _resolve([*history, line])[0]


def _check_scores(line: Entry) -> None:
    """Refuse a score that the metric never has."""
    low, high = _RANGES.get(line.metric, (0, 1))
    span = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at {low:g} or above"
    for board in get_args(Board):
        value = getattr(line, board)
        if value is not None and not low <= value <= high:
            percent = f"percent? give --{board} {value / 100:.6g}"
            repair = percent if high < value <= 100 * high else "give the score as the leaderboard shows it"
            raise SettingError(f"--{board} is {value}; {line.metric} lies {span}; {repair}")


def _check_cleared(line: Entry, before: Sequence[Entry]) -> None:
    """Refuse to take back what was not noted."""
    noted = [key for entry in before for key in get_args(Clearable) if getattr(entry, key) not in (None, "")]
    for key in line.cleared:
        if key not in noted:
            there = f"noted: {', '.join(noted)}" if noted else "nothing is noted"
            raise SettingError(
                f"--clear {key}: {line.name!r} has no {key}{' score' * (key != 'note')} to take back ({there})"
            )


def _moment_after(history: Iterable[Entry]) -> str:
    """Return now, or a later moment where a clock was wrong, here or at a teammate's: what is noted last must win."""
    last = max((seconds_of(known.noted) for known in history), default=-math.inf)
    now = datetime.datetime.now(datetime.UTC)
    if now.timestamp() <= last:
        now = datetime.datetime.fromtimestamp(last, datetime.UTC) + datetime.timedelta(milliseconds=1)
    return now.isoformat(timespec="microseconds")


def merge_ledgers(into: Path, others: Sequence[Path]) -> MergeResult:
    """Add the lines of teammates' ledger files to a ledger; where both noted a value, the later one counts.

    Raises:
        DataError: When the ledger's folder is absent or a run itself, or a teammate's file is absent or holds no entry.
    """
    check_holds_runs(into.parent)
    theirs: list[Entry] = []
    problems: list[str] = []
    for other in others:
        if not other.is_file():
            raise DataError(f"there is no ledger file {str(other)!r}; a teammate makes one with kaggle-kit runs export")
        lines, found = _read_lines(other)
        if not lines:
            newer = [problem for problem in found if problem.endswith(_UPDATE)]
            none = f"{other} holds no entry of a ledger; a teammate makes one with kaggle-kit runs export"
            raise DataError(newer[0] if newer else none)
        theirs += lines
        problems += found
    with _locked(into):
        ours, found = _read_lines(into)
        before = {entry.run_id: line_of(entry) for entry in _resolve(ours)}
        known = set(map(line_of, ours))
        _append(into, [line for line in dict.fromkeys(map(line_of, theirs)) if line not in known])
    after = {entry.run_id: line_of(entry) for entry in _resolve([*ours, *theirs])}
    run_ids = {entry.run_id for entry in theirs}
    added = len(run_ids - set(before))
    updated = sum(run_id in before and before[run_id] != after[run_id] for run_id in run_ids)
    unchanged = len(run_ids) - added - updated
    return MergeResult(added=added, updated=updated, unchanged=unchanged, problems=(*problems, *found))


def write_ledger(folder: Path, path: Path, *, author: str | None = None) -> Listing:
    """Write all runs of a folder, noted or not, to a ledger file for teammates to merge.

    Args:
        folder: Holds run folders.
        path: The file, not the folder's own ledger.
        author: Whose runs those are of which nothing was noted; None: the login name.

    Raises:
        DataError: When there is no such folder, or no run in it.
        SettingError: When `path` is the folder's own ledger.
    """
    if path.resolve() == (folder / FILE).resolve():
        raise SettingError(f"{path} is the folder's own ledger; write to another file, such as mine.jsonl")
    listing = read_runs(folder)
    if not listing.entries:
        raise DataError(f"{folder} holds no run to write; train one, or give the folder that holds your run folders")
    lines = _ledgers_of(folder)[0]
    known = {line.run_id for line in lines}
    author = author or _login_name()
    lines += [dataclasses.replace(entry, author=author) for entry in listing.entries if entry.run_id not in known]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in dict.fromkeys(map(line_of, lines))), encoding="utf-8")
    return listing


def read_ledger(path: Path) -> Listing:
    """Read a ledger file: one entry a run, everything noted of it together; an absent file is an empty ledger."""
    lines, problems = _read_lines(path)
    return Listing(entries=tuple(_resolve(lines)), problems=tuple(problems))


def _ledgers_of(folder: Path) -> tuple[list[Entry], list[str]]:
    """Return the lines of the ledgers beside the runs one and two levels below a folder."""
    lines: list[Entry] = []
    problems: list[str] = []
    for path in [folder / FILE, *sorted(folder.glob(f"[!.]*/{FILE}"))]:
        entries, found = _read_lines(path)
        lines += entries
        problems += found
    return lines, problems


def _read_lines(path: Path) -> tuple[list[Entry], list[str]]:
    """Return the lines of a ledger file that can be read, and sentences on the others."""
    entries: list[Entry] = []
    newer: dict[int, str] = {}
    damaged: dict[int, str] = {}
    problems = []
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, text in enumerate(texts, start=1):
        try:
            if text.strip():
                entries.append(parse_line(text))
        except OtherVersionError as error:
            newer[number] = str(error)
        except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 or JSON, and every KitError
            if number == len(texts) and not isinstance(error, DataError | SettingError):
                problems.append(f"{path}: line {number}, the last, was cut off and is skipped; note that run again")
            else:
                damaged[number] = str(error)
    if damaged:
        problems.append(f"{path}: {_some_lines(damaged)} cannot be read and are skipped; note those runs again")
    if newer:
        problems.append(f"{path}: {_some_lines(newer)} of another kit version are skipped; {_UPDATE}")
    return entries, problems


def _some_lines(reasons: Mapping[int, str]) -> str:
    """Return how many lines there are, their first numbers, and the first one's reason."""
    numbers = ", ".join(map(str, list(reasons)[:5])) + (" and more" if len(reasons) > 5 else "")
    return f"{len(reasons)} line(s), {numbers} ({next(iter(reasons.values()))})"


def _resolve(lines: Iterable[Entry]) -> list[Entry]:
    """Return one entry a run: its newest line, and each noted value from the newest line that gives or clears it."""
    histories: dict[str, list[Entry]] = {}
    for line in sorted(lines, key=lambda line: (seconds_of(line.noted), line_of(line)), reverse=True):
        histories.setdefault(line.run_id, []).append(line)
    resolved = []
    for newest_first in histories.values():
        noted: dict[str, Any] = {}
        for line in newest_first:
            for key in NOTED:
                value = getattr(line, key)
                if key not in noted and (value not in (None, "") or key in line.cleared):
                    noted[key] = value
        resolved.append(dataclasses.replace(newest_first[0], cleared=(), **noted))
    return resolved


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from the ledger file for the length of the block."""
    from filelock import FileLock, Timeout

    lock = path.with_name(f".{path.name}").with_suffix(".lock")
    try:
        with FileLock(lock, timeout=_LOCK_S):
            yield
    except Timeout:
        raise DataError(f"{lock} was held by another process for {_LOCK_S} s; end that process") from None


def _append(path: Path, lines: Sequence[str]) -> None:
    """Add lines in one write, the first on a line of its own even where the file ends in a cut one."""
    if not lines:
        return
    cut = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    content = ("\n" * cut + "".join(f"{line}\n" for line in lines)).encode()
    with path.open("ab", buffering=0) as file:
        written = file.write(content)
        os.fsync(file.fileno())
    if written != len(content):
        raise DataError(f"{path}: only {written} of {len(content)} bytes were written; make room on the disk")


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name, as in many containers
        return ""
