"""The ledger: what each run scored in cross-validation (CV) and on the leaderboard; `standings` compares.

DIR/ledger.jsonl lies beside the run folders. A line is a whole `Entry`: the run, and what was noted of it at that
moment. Lines are only ever added, and for a run each noted value is taken from the newest line that has it. So the
content is the set of lines: the ledgers of teammates merge, in any order and again and again, to the same entries.
"""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.runs import Run, read_run
from kaggle_kit.settings import build, fingerprint, plain
from kaggle_kit.task import Metric
from kaggle_kit.train.config import TrainConfig

Board = Literal["private", "public"]

FORMAT = 1
FILE = "ledger.jsonl"
NOTED = ("public", "private", "note", "author")
_LOCK_S = 60


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run in the ledger.

    Attributes:
        run_id: 12 hexadecimal digits of when it was trained, its settings, task and name: teammates' runs differ.
        name: The run folder's name.
        task: The task's name.
        metric: Of all scores here.
        created: When training ended: ISO 8601.
        settings: {dotted key: plain value} of the settings that differ from the defaults; `build` takes a bool only
            where it is named.
        folds: Such as "stratified 5, seed 0"; "" when not known.
        total: CV: the out-of-fold score.
        heads: CV of each head.
        interval: 95 % interval of `total`.
        seen: CV on images whose combination of heads is seen in train.
        unseen: CV on the other images.
        public: Score on the public leaderboard.
        private: Score on the private leaderboard.
        note: What somebody wrote.
        noted: When that was noted: ISO 8601 with a time zone; "" when nothing was.
        author: Who noted it.
    """

    run_id: str
    name: str
    task: str
    metric: Metric
    created: str
    total: float
    heads: dict[str, float]
    settings: dict[str, bool | object] = dataclasses.field(default_factory=dict)
    folds: str = ""
    interval: tuple[float, float] | None = None
    seen: float | None = None
    unseen: float | None = None
    public: float | None = None
    private: float | None = None
    note: str = ""
    noted: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        for board in get_args(Board):
            value = getattr(self, board)
            if value is not None and not math.isfinite(value):
                raise SettingError(f"`{board}` is {value}; give the number the leaderboard shows, such as 0.9812")
        _seconds(self.noted)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Entries, one a run, and sentences on what could not be read."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """How many of the others' runs were new, had news, or had none; and sentences on what could not be read."""

    added: int
    updated: int
    unchanged: int
    problems: tuple[str, ...] = ()


def read_runs(folder: Path) -> Listing:
    """Return every run one or two levels below a folder, and those that only its ledgers know.

    Raises:
        DataError: When there is no such folder, or it is a run itself.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give the one that holds your run folders")
    if (folder / "run.json").is_file():
        parent = folder.resolve().parent
        raise DataError(f"{folder} is a run itself; list the folder that holds it: kaggle-kit runs {parent}")
    lines, problems = _ledgers_of(folder)
    known = {entry.run_id: entry for entry in _resolve(lines)}
    here: dict[str, Entry] = {}
    for path in sorted([*folder.glob("[!.]*/run.json"), *folder.glob("[!.]*/[!.]*/run.json")]):
        try:
            entry = entry_of(read_run(path.parent))
        except (ValueError, OSError) as error:  # every KitError is a ValueError, and so is text that is not UTF-8
            problems.append(f"{path.parent} is not listed: {error}")
            continue
        if entry.run_id in here:
            problems.append(f"{path.parent} is a copy of another run here and listed once")
        noted = known.pop(entry.run_id, here.get(entry.run_id, entry))
        here[entry.run_id] = dataclasses.replace(entry, **{key: getattr(noted, key) for key in (*NOTED, "noted")})
    return Listing(entries=(*here.values(), *known.values()), problems=tuple(problems))


def entry_of(run: Run) -> Entry:
    """Return a run on disk as an entry of which nothing is noted."""
    config_hash = json.loads((run.folder / "run.json").read_text(encoding="utf-8")).get("config_hash")
    defaults = settings_of(TrainConfig())
    settings = {k: v for k, v in settings_of(run.config).items() if k not in defaults or v != defaults[k]}
    return Entry(
        # config_hash as it was written: settings that later versions add do not change who the run is
        run_id=fingerprint([run.created, config_hash, run.task.name, run.name]),
        name=run.name,
        task=run.task.name,
        metric=run.task.metric,
        created=run.created,
        settings=settings,
        folds=_folds_of(run),
        total=run.score.total,
        heads=run.score.heads,
        interval=run.score.interval,
        seen=run.scores.seen.total if run.scores.seen else None,
        unseen=run.scores.unseen.total if run.scores.unseen else None,
    )


def note_run(
    run_folder: Path,
    *,
    public: float | None = None,
    private: float | None = None,
    note: str | None = None,
    author: str | None = None,
) -> Entry:
    """Note what a run scored on the leaderboard, in the ledger beside its folder.

    Args:
        run_folder: A finished run.
        public: The public leaderboard's score; None keeps what was noted earlier.
        private: The private leaderboard's score; None keeps what was noted earlier.
        note: Free text; None keeps what was noted earlier.
        author: Who notes it; None: as before, or the login name.

    Returns:
        The entry with everything noted so far.

    Raises:
        SettingError: When there is nothing to note, or a score is no finite number.
        DataError: When the folder holds no finished run.
    """
    if public is None and private is None and not note:
        raise SettingError(f"there is nothing to note of {run_folder}; give a score or a note, such as --public 0.9812")
    line = dataclasses.replace(entry_of(read_run(run_folder)), public=public, private=private, note=note or "")
    path = run_folder.resolve().parent / FILE
    with _locked(path):
        history = [known for known in _read_lines(path)[0] if known.run_id == line.run_id]
        last = max((_seconds(known.noted) for known in history), default=-math.inf)
        now = datetime.datetime.now(datetime.UTC)
        if now.timestamp() <= last:  # a clock was wrong, here or at a teammate's: what is noted last must still win
            now = datetime.datetime.fromtimestamp(last, datetime.UTC) + datetime.timedelta(milliseconds=1)
        author = author or next((known.author for known in _resolve(history) if known.author), _login_name())
        line = dataclasses.replace(line, author=author, noted=now.isoformat(timespec="microseconds"))
        _append(path, [_line(line)])
    return _resolve([*history, line])[0]


def merge_ledgers(into: Path, others: Sequence[Path]) -> MergeResult:
    """Add the lines of teammates' ledger files to a ledger; where both noted a value, the later one counts.

    Raises:
        DataError: When a file is absent or holds no entry.
    """
    theirs: list[Entry] = []
    problems: list[str] = []
    for other in others:
        if not other.is_file():
            raise DataError(f"there is no ledger file {str(other)!r}; a teammate makes one with kaggle-kit runs export")
        lines, found = _read_lines(other)
        if not lines:
            raise DataError(f"{other} holds no entry of a ledger; a teammate makes one with kaggle-kit runs export")
        theirs += lines
        problems += found
    with _locked(into):
        ours, found = _read_lines(into)
        before = {entry.run_id: _line(entry) for entry in _resolve(ours)}
        known = set(map(_line, ours))
        _append(into, [line for line in dict.fromkeys(map(_line, theirs)) if line not in known])
    after = {entry.run_id: _line(entry) for entry in _resolve([*ours, *theirs])}
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
        temporary.write_text("".join(f"{line}\n" for line in dict.fromkeys(map(_line, lines))), encoding="utf-8")
    return listing


def read_ledger(path: Path) -> Listing:
    """Read a ledger file: one entry a run, everything noted of it together; an absent file is an empty ledger."""
    lines, problems = _read_lines(path)
    return Listing(entries=tuple(_resolve(lines)), problems=tuple(problems))


def settings_of(config: TrainConfig) -> dict[str, object]:
    """Return {dotted key: plain value} of all settings."""
    return dict(_flat(plain(config)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _folds_of(run: Run) -> str:
    """Return what the run was validated on, reading only what is needed: the ids of a large task take long."""
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        table = parquet.read_table(run.folder / "folds.parquet", columns=["fold"])
        scheme, seed = (table.schema.metadata[key].decode() for key in (b"scheme", b"seed"))
        num_folds = compute.max(table["fold"]).as_py() + 1
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return ""
    only = f", only {' '.join(map(str, run.folds))}" if len(run.folds) < num_folds else ""
    return f"{scheme} {num_folds}, seed {seed}{only}"


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
    damaged: dict[int, str] = {}
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, text in enumerate(texts, start=1):
        try:
            if text.strip():
                entries.append(_parse(text))
        except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 or JSON, and every KitError
            damaged[number] = str(error)
    problems = []
    if damaged.pop(len(texts), None):
        problems.append(f"{path}: line {len(texts)}, the last, was cut off and is skipped; note that run again")
    if damaged:
        numbers = ", ".join(map(str, list(damaged)[:5])) + (" and more" if len(damaged) > 5 else "")
        first = next(iter(damaged.values()))
        problems.append(f"{path}: {len(damaged)} damaged line(s) skipped: {numbers} ({first}); note those runs again")
    return entries, problems


def _parse(text: bytes) -> Entry:
    values = json.loads(text)
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found != FORMAT:
        raise DataError(f"format {found!r}; this version reads {FORMAT}")
    return build(Entry, values)


def _line(entry: Entry) -> str:
    return json.dumps({"format": FORMAT, **plain(entry)}, ensure_ascii=False)


def _resolve(lines: Iterable[Entry]) -> list[Entry]:
    """Return one entry a run: its newest line, and each noted value from the newest line that has it."""
    histories: dict[str, list[Entry]] = {}
    for line in sorted(lines, key=lambda line: (_seconds(line.noted), _line(line)), reverse=True):
        histories.setdefault(line.run_id, []).append(line)
    resolved = []
    for newest_first in histories.values():
        noted: dict[str, Any] = {}
        for line in newest_first:
            noted |= {
                key: value for key in NOTED if key not in noted and (value := getattr(line, key)) not in (None, "")
            }
        resolved.append(dataclasses.replace(newest_first[0], **noted))
    return resolved


def _seconds(noted: str) -> float:
    """Return a moment as seconds since 1970; minus infinity for none."""
    if not noted:
        return -math.inf
    try:
        moment = datetime.datetime.fromisoformat(noted)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise SettingError(f"`noted` is {noted!r}; expected a date and time with its zone, 2020-03-16T23:59:00+00:00")
    return moment.timestamp()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from the ledger file for the length of the block."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
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
