"""From a rehearsal of some images to a test of many: run time and memory here, and run time on the accelerator.

What is known are the stages in the kernel's own report. They are taken to grow like this:

- Starting, importing, loading and checking take as long as they took.
- Writing grows with the images, and so does the part of opening that goes through ids.
- An image keeps the device busy for as long as it did. Of the time that the device waited, only what a source takes to
  its first images is taken to stay as it is; for wide parquet, whose row groups are read whole, reading and computing
  are followed group by group.
- A row group of wide parquet costs as much for its columns as `COLUMN_ROWS` rows would, and the rest for its rows.
- The test has as many shards as the rehearsed one, and their row groups grow with it, up to those of train's shards.
  This is what memory grows with: a row group is held, and the next one is read meanwhile. Beside these, ids grow, and
  at the end probabilities, when images are no longer held. Images that are files are held a few at a time.
- On the accelerator, reading is taken to be as fast as here, and not to overlap with computing, which
  `kernels/bench` measured there on one device; `SAFETY_THERE` is for what all of this does not know.

Not known to it are other loads of this machine, caches that were warm, and images that differ from those rehearsed.
`benchmarks/rehearsal.py` measures how far off it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kaggle_kit.blending.costs import read_costs
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.platform.rehearse import Rehearsal
from kaggle_kit.runtime.backends import CPUS
from kaggle_kit.runtime.report import read_report
from kaggle_kit.sources.wide_parquet import find_shards
from kaggle_kit.task import Task

SAFETY_THERE = 2.0  # run time of the same code was reported to vary about twofold on Kaggle (autumn 2026)
COLUMN_ROWS = 5_000  # rows whose values take as long to read as a column does of itself; benchmarks/data.py
READING_SLOWS = 0.2  # of the time that reading goes on beside computing on the CPU: it gives way, but not for nothing
ONE_GROUP, SEVERAL_GROUPS = 1.15, 2.3  # row groups' pixels in memory at once; benchmarks/rehearsal.py
IDS_BYTES = 1_000  # an image, of ids and rows
PROBS_HELD = 3  # copies of all probabilities at the end
ENOUGH = 0.9  # of the images, that the last process must have computed for its stages to tell something
GB = 1 << 30

Verdict = Literal["fits", "fits without the safety factor", "does not fit", "unknown there"]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a test of so many images would take.

    Attributes:
        rehearsed: Images that were rehearsed; 0 where that is not known.
        images: Images it is projected to.
        groups: (rehearsed, projected) images of the largest row group that is read whole; None where there is none.
        seconds_here: Run time of the kernel on this machine; None where it cannot be told.
        memory_gb: Memory of all the kernel's processes on this machine; None where it cannot be told.
        seconds_there: Run time on the accelerator, without a safety factor; None where its costs are not known.
        device: What costs were measured on.
        limit_s: The task's.
        limit_gb: The task's.
        unknown: Why nothing can be told; empty where it can.
    """

    rehearsed: int
    images: int
    groups: tuple[int, int] | None = None
    seconds_here: float | None = None
    memory_gb: float | None = None
    seconds_there: float | None = None
    device: str = ""
    limit_s: float
    limit_gb: float
    unknown: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the run on the accelerator fits into the limit."""
        if self.seconds_there is None:
            return "unknown there"
        if SAFETY_THERE * self.seconds_there <= self.limit_s:
            return "fits"
        return "fits without the safety factor" if self.seconds_there <= self.limit_s else "does not fit"

    @property
    def memory_fits(self) -> bool:
        """Whether memory stays within the limit, as far as that can be told."""
        return self.memory_gb is None or self.memory_gb <= self.limit_gb


def project(
    rehearsal: Rehearsal,
    task: Task,
    *,
    test: Path,
    data: Path | None = None,
    images: int | None = None,
    costs: Path | None = None,
) -> Projection:
    """Project a rehearsal to a test of another size; the module's text says by which assumptions.

    Args:
        rehearsal: Of a kernel that calls the kit's `submit`, whose report tells its stages.
        task: The competition.
        test: The folder with the test that was rehearsed.
        data: The competition's data folder, whose train shards tell how large row groups get; None: they grow with the
            test.
        images: Of the test to project to; None: as many as were rehearsed.
        costs: What `kernels/bench` wrote on the accelerator; None: run time there is unknown.

    Raises:
        SettingError: When there are no images to project to, or costs do not read or lack a run of the bundle.
        DataError: When the rehearsed test or the train shards cannot be read.
    """
    if images is not None and images < 1:
        raise SettingError(f"a projection to {images:,} images; give at least 1")
    report = read_report(rehearsal.submission)
    rehearsed = int(report.get("images", 0))
    empty = Projection(
        rehearsed=rehearsed,
        images=images or rehearsed,
        limit_s=3600 * task.limits.hours,
        limit_gb=task.limits.memory_gb,
    )
    if unknown := _why_unknown(rehearsal, report):
        return replace(empty, unknown=unknown)
    groups = _row_groups(task, test, data, images or rehearsed)
    measured = _Measured.of(report, seconds=rehearsal.seconds, groups=groups.rehearsed)
    beside_s = measured.beside_s(empty.images)
    found = replace(
        empty,
        groups=(max(groups.rehearsed), max(groups.projected)) if groups.rehearsed else None,
        seconds_here=beside_s + measured.predict_s(empty.images, groups.projected),
        memory_gb=_memory_gb(rehearsal.peak_memory_gb, task, rehearsed, empty.images, groups),
    )
    if costs is None:
        return found
    there = read_costs(costs, report["runs"])
    reading_s = measured.reading_s(empty.images, groups.projected)
    computing_s = empty.images * sum(there.seconds.values())
    return replace(found, seconds_there=beside_s + reading_s + computing_s, device=there.device)


def format_projection(projection: Projection) -> list[str]:
    """Return lines for people to read."""
    head = f"projected from {projection.rehearsed:,} to {projection.images:,} images"
    if projection.unknown:
        return [f"{head}: unknown, here and there; {projection.unknown}"]
    if projection.groups and projection.groups[0] != projection.groups[1]:
        head += f", in row groups of {projection.groups[1]:,} in place of {projection.groups[0]:,}"
    memory = "memory unknown"
    if projection.memory_gb is not None:
        over = "" if projection.memory_fits else ", TOO MUCH"
        memory = f"at most {projection.memory_gb:.1f} GB of {projection.limit_gb:g} GB{over}"
    return [f"{head}:", f"  here: {_duration(projection.seconds_here)}, {memory}", f"  {_said_there(projection)}"]


def _said_there(projection: Projection) -> str:
    if projection.seconds_there is None:
        return "on the accelerator: unknown there; measure the bundle there (kernels/bench) and give --costs"
    safe = _duration(SAFETY_THERE * projection.seconds_there)
    return (
        f"on {projection.device}: {_duration(projection.seconds_there)}, times {SAFETY_THERE:g} for safety {safe}, "
        f"of {_duration(projection.limit_s)}: {projection.verdict}"
    )


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """Images of each row group that is read whole, rehearsed and projected; both empty where none is."""

    rehearsed: tuple[int, ...] = ()
    projected: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A rehearsal's seconds, and how they grow.

    Attributes:
        images: How many were rehearsed.
        groups: Images of each row group that is read whole; empty where none is.
        whole: Of the kernel, from its process's start to its end.
        predict: From the first image to the last probability.
        with_rows: Of opening the test and of writing, as far as they grow with the images.
        reading: Of the thread that reads.
        waiting: Of the device without images.
        first: Until the first batch was finished.
        slows: The share of reading beside computing that computing loses by it.
    """

    images: int
    groups: tuple[int, ...]
    whole: float
    predict: float
    with_rows: float
    reading: float
    waiting: float
    first: float
    slows: float

    @classmethod
    def of(cls, report: dict[str, Any], *, seconds: float, groups: tuple[int, ...]) -> _Measured:
        stages = {name: float(value) for name, value in report["seconds"].items()}
        priors = stages.get("write priors", 0.0)
        return cls(
            images=int(report["images"]),
            groups=groups,
            whole=seconds,
            predict=stages["predict"],
            with_rows=2 * priors + stages["write"],  # once for opening, whose part that grows takes about as long
            reading=float(report["reading_s"]),
            waiting=float(report["waiting_for_images_s"]),
            first=float(report["first_batch_s"]),
            slows=READING_SLOWS if set(report["providers"]) <= CPUS else 0.0,
        )

    def beside_s(self, images: int) -> float:
        """Return seconds of everything but predicting, for so many images."""
        return self.whole - self.predict + (images / self.images - 1) * self.with_rows

    def reading_s(self, images: int, groups: tuple[int, ...]) -> float:
        """Return seconds of reading so many images, or these row groups where there are any."""
        return sum(map(self._group_s, groups)) if self.groups else self.reading * images / self.images

    def _group_s(self, rows: int) -> float:
        return self.reading * (rows + COLUMN_ROWS) / sum(own + COLUMN_ROWS for own in self.groups)

    def predict_s(self, images: int, groups: tuple[int, ...]) -> float:
        """Return seconds of predicting so many images, in these row groups where there are any."""
        if not self.groups:
            first = min(self.waiting, self.first)
            return first + (self.predict - first) * images / self.images
        beside = max(0.0, self.reading - self.waiting)
        busy = max(0.0, self.predict - self.waiting - self.slows * beside) / self.images
        read_at = finished_at = 0.0
        for rows in groups:
            read_at += self._group_s(rows)
            finished_at = max(finished_at, read_at) + busy * rows
        waits = finished_at - busy * sum(groups)
        return finished_at + self.slows * max(0.0, read_at - waits)


def _why_unknown(rehearsal: Rehearsal, report: dict[str, Any]) -> str:
    """Return why stages do not tell what more images take; nothing where they do."""
    if rehearsal.answer != "Complete":
        return f"the rehearsal ended with {rehearsal.answer!r}"
    if "unfinished" in report:
        return f"the submission is unfinished ({report['unfinished']})"
    if "seconds" not in report:
        return "the kernel wrote no report of its stages; those that call kaggle_kit's `submit` do"
    if not report["images"]:
        return "no image was rehearsed"
    if report["computed"] < ENOUGH * report["images"]:
        return (
            f"only {report['computed']:,} of {report['images']:,} images were computed in one go; mend what the log "
            "warns of and rehearse again"
        )
    if report["images_cut"] or set(report["images_by_runs"]) - {str(len(report["runs"]))}:
        return "time was short, so that not all runs spoke for all images; rehearse with a longer --time-limit"
    return ""


def _row_groups(task: Task, test: Path, data: Path | None, images: int) -> _Groups:
    """Return the rehearsed test's row groups, and those of one of so many images in as many shards."""
    if task.images.format != "wide_parquet":
        return _Groups()
    shards = _group_rows(find_shards(test, task.images.test))
    found = tuple(rows for groups in shards for rows in groups if rows)
    train = sorted(data.glob(task.images.train))[:1] if data is not None else []
    most = max([*found, *_group_rows(train)[0]]) if train else 0
    times = images / max(1, sum(map(sum, shards)))
    projected: list[int] = []
    for groups in shards:
        rows = round(times * sum(groups))
        largest = max(1, most, math.ceil(times * max(groups, default=0)) if not most else 0)
        projected += [min(largest, rows - start) for start in range(0, rows, largest)]
    return _Groups(rehearsed=found, projected=tuple(projected))


def _group_rows(shards: list[Path]) -> list[list[int]]:
    """Return the images of each row group of each shard."""
    import pyarrow as pa
    from pyarrow import parquet

    found = []
    for path in shards:
        try:
            metadata = parquet.ParquetFile(path).metadata
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a whole parquet file ({error}); download it again") from None
        found.append([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
    return found


def _memory_gb(peak_gb: float, task: Task, rehearsed: int, images: int, groups: _Groups) -> float | None:
    """Return the projected peak; None where none was measured."""
    if not peak_gb:
        return None
    pixels = task.images.height * task.images.width * task.images.channels
    held = [
        (ONE_GROUP if len(rows) == 1 else SEVERAL_GROUPS) * max(rows, default=0)
        for rows in (groups.rehearsed, groups.projected)
    ]
    classes = sum(head.num_classes for head in task.heads.values())
    while_reading = IDS_BYTES * (images - rehearsed) + pixels * (held[1] - held[0])
    at_the_end = (IDS_BYTES + 4 * PROBS_HELD * classes) * (images - rehearsed)
    return peak_gb + max(while_reading, at_the_end) / GB


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} minutes"
