"""Entries: a run as a line of a ledger, read from its folder or from that line."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.metrics import gain
from kaggle_kit.runs import Run
from kaggle_kit.settings import build, fingerprint, plain
from kaggle_kit.task import Metric
from kaggle_kit.train.config import TrainConfig

Board = Literal["private", "public"]
Clearable = Literal["public", "private", "note"]

FORMAT = 1


class OtherVersionError(DataError):
    """A line that another version of the kit wrote."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run in the ledger.

    Attributes:
        run_id: 12 hexadecimal digits drawn when it was trained: they stay when its folder is renamed or moved.
        name: The run folder's name.
        task: The task's name.
        metric: Of all scores here.
        created: When training ended: ISO 8601.
        settings: {dotted key: plain value} of all settings, so that a version with other defaults shows the same;
            `build` takes a bool only where it is named. Of an adopted run: its model's name, and that it was trained
            elsewhere.
        folds: Such as "stratified 5, seed 0, labels 3f2a1c"; "" when not known.
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
        cleared: What this line takes back of what was noted before it.
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
    cleared: tuple[Clearable, ...] = ()

    def __post_init__(self) -> None:
        for board in get_args(Board):
            value = getattr(self, board)
            if value is not None and not math.isfinite(value):
                raise SettingError(f"`{board}` is {value}; give the number the leaderboard shows, such as 0.9812")
        for key in ("name", "note", "author"):
            text = getattr(self, key)
            if text != text.encode(errors="ignore").decode():  # bytes of another encoding, on the command line
                raise SettingError(f"`{key}` is {text!r}, which cannot be written as UTF-8; give it in other letters")
        for key in self.cleared:
            if getattr(self, key) not in (None, ""):
                raise SettingError(f"`{key}` is {getattr(self, key)!r} and cleared at once; give one of the two")
        seconds_of(self.noted)


def entry_of(run: Run) -> Entry:
    """Return a run on disk as an entry of which nothing is noted."""
    return Entry(
        run_id=run.id or fingerprint([run.created, run.scores]),  # runs of before the first release have no id
        name=run.name,
        task=run.task.name,
        metric=run.task.metric,
        created=run.created,
        settings=_settings(run) | _circumstances(run),
        folds=_folds_of(run),
        total=run.score.total,
        heads=run.score.heads,
        interval=run.score.interval,
        seen=run.scores.seen.total if run.scores.seen else None,
        unseen=run.scores.unseen.total if run.scores.unseen else None,
    )


def parse_line(text: bytes) -> Entry:
    """Read a ledger's line.

    Raises:
        OtherVersionError: When another version of the kit wrote it.
        ValueError: When it is damaged: not UTF-8 (UnicodeDecodeError), not JSON (JSONDecodeError) or no entry.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or "format" not in values:
        raise DataError("not an entry of a ledger")
    if (found := values.pop("format")) != FORMAT:
        raise OtherVersionError(f"format {found!r}; this version reads {FORMAT}")
    if new := sorted(values.keys() - {field.name for field in dataclasses.fields(Entry)}):
        raise OtherVersionError(f"`{new[0]}` is not known here")
    return build(Entry, values)


def line_of(entry: Entry) -> str:
    """Return an entry as a ledger's line, without the line break."""
    return json.dumps({"format": FORMAT, **plain(entry)}, ensure_ascii=False)


def seconds_of(noted: str) -> float:
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


def settings_of(config: TrainConfig) -> dict[str, object]:
    """Return {dotted key: plain value} of all settings."""
    return dict(_flat(plain(config)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _settings(run: Run) -> dict[str, object]:
    """Return a run's settings; of one that was trained elsewhere nothing is known but what its model is called."""
    if run.is_adopted:
        return {"model.name": run.config.model.name, "trained": "elsewhere"}
    return settings_of(run.config)


def _circumstances(run: Run) -> dict[str, object]:
    """Return what a score must be read with: whose it is, and whether training came to its end."""
    borrowed = {"scores_of": Path(run.like).name} if run.like else {}
    early = {"ended": "early"} if any(summary.stopped for summary in run.folds.values()) else {}
    return {**borrowed, **early}


def _folds_of(run: Run) -> str:
    """Return what the run was validated on, reading only what is needed: the ids of a large task take long."""
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        table = parquet.read_table(run.folder / "folds.parquet", columns=["fold"])
        scheme, seed, labels = (table.schema.metadata[key].decode() for key in (b"scheme", b"seed", b"data_hash"))
        num_folds = compute.max(table["fold"]).as_py() + 1
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return ""
    only = f", only {' '.join(map(str, run.folds))}" if len(run.folds) < num_folds and not run.like else ""
    return f"{scheme} {num_folds}, seed {seed}, labels {labels[:6]}{only}"


def by_task(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the entries of each task and metric, best CV first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.task, entry.metric), []).append(entry)

    def place(entry: Entry) -> tuple[bool, float, str]:
        return math.isnan(entry.total), -gain(entry.metric, entry.total, 0), entry.name

    return [sorted(groups[key], key=place) for key in sorted(groups)]


def run_labels(entries: Sequence[Entry]) -> dict[str, str]:
    """Return {run_id: name}, with who noted it or the start of the id where runs are called the same."""
    names = Counter(entry.name for entry in entries)
    signed = Counter((entry.name, entry.author) for entry in entries)

    def label(entry: Entry) -> str:
        if names[entry.name] == 1:
            return entry.name
        alone = entry.author and signed[entry.name, entry.author] == 1
        own = f"by {entry.author}" if alone else f"run {entry.run_id[:4]}"
        return f"{entry.name} ({own})"

    return {entry.run_id: label(entry) for entry in entries}
