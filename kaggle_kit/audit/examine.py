"""The whole audit of a competition's data: every check, its findings, and what to do first.

    DIR/audit.json          what was audited: task, data, runs, version of the kit
    DIR/images.parquet      a row an image: its properties; thumbnails.npy beside it
    DIR/findings.parquet    a row an image and finding; findings.json holds the same
    DIR/map.parquet         id, split, x, y
    DIR/drift.json          train against test
    DIR/summary.json        counts, drift, what to do first
    DIR/report.html         what a person looks at
    DIR/edits.jsonl         what a person decided on the review page; the audit never writes it

What is known of the images is kept, and so are map and drift: a second audit of the same files reads none of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.advice import Advice as Advice
from kaggle_kit.audit.advice import Commands, advise
from kaggle_kit.audit.counts import Counts, count_classes, rare_findings
from kaggle_kit.audit.drift import Drift, drift_findings
from kaggle_kit.audit.duplicates import Duplicates, duplicate_findings, find_duplicates
from kaggle_kit.audit.findings import KINDS, Finding
from kaggle_kit.audit.folder import EDITS, save_audit, start_folder
from kaggle_kit.audit.kept import known_drift, known_map
from kaggle_kit.audit.leaks import Leak, find_leaks
from kaggle_kit.audit.map2d import Map, Method, check_method, method_for
from kaggle_kit.audit.opening import Opened, id_findings, open_splits, writable
from kaggle_kit.audit.pictures import SPLITS, Images
from kaggle_kit.audit.quality import quality_findings
from kaggle_kit.audit.survey import survey_images
from kaggle_kit.audit.traits import Trait, find_traits, mark_traits
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels, read_labels, resolve_classes
from kaggle_kit.runs import Run, read_run
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task

if TYPE_CHECKING:
    from kaggle_kit.audit.after_model import AfterModel
    from kaggle_kit.audit.run_predictions import RunPredictions

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an audit looks at, beside the data.

    Attributes:
        folds: To count each fold's classes.
        runs: Run folders whose out-of-fold predictions are looked at.
        edits: An edits.jsonl to apply to the labels first.
        packed: A packed store of the train images, read in place of the competition's files.
        embeddings: A run whose network compares images too, for near duplicates and the map.
        fast: Leave out near duplicates and UMAP.
        map_method: How the map is made.
        seed: Of all that is drawn.
        called: What the user called the task, for the commands shown; empty: its name.
        folds_file: Where the folds lie, for the commands shown.
    """

    folds: Folds | None = None
    runs: tuple[Path, ...] = ()
    edits: Path | None = None
    packed: Path | None = None
    embeddings: Path | None = None
    fast: bool = False
    map_method: Method = "auto"
    seed: int = 0
    called: str = ""
    folds_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All that was found; what the report shows.

    Attributes:
        task: The competition, classes of auxiliary heads known.
        data: Its data folder.
        folder: Where the audit lies.
        opened: The images themselves: `opened.read(split, rows)`.
        images: What is known of all images of train and test.
        labels: Of the train images that have any, edits applied; its ids may be fewer or more than the train images.
        folds: As given, aligned to nothing; or None.
        counts: Per class, head, fold.
        duplicates: Groups.
        drift: Train against test; None where there is no test.
        leaks: What tells classes without a look at what images show.
        map: Places; None where there are too few images.
        findings: All of them, the model's included, in the order of `KINDS`, worst first within a kind.
        advice: What to do first, in order.
        seconds: {part of the audit: seconds}.
        traits: What is odd about images and belongs to their class.
        after: What a model's out-of-fold predictions say; None without runs.
        notes: Remarks on what could not be looked at, each one sentence.
    """

    task: Task
    data: Path
    folder: Path
    opened: Opened
    images: Images
    labels: Labels
    folds: Folds | None
    counts: Counts
    duplicates: Duplicates
    drift: Drift | None
    leaks: tuple[Leak, ...]
    map: Map | None
    findings: tuple[Finding, ...]
    advice: tuple[Advice, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    traits: tuple[Trait, ...] = ()
    after: AfterModel | None = None
    notes: tuple[str, ...] = ()

    def fold_of(self) -> npt.NDArray[np.int64]:
        """Return (N,) the fold that validates each row of `images`; -1 for the test, and where there is none."""
        fold = np.full(len(self.images), -1, np.int64)
        if self.folds is not None:
            train = self.images.rows("train")
            rows = rows_of(self.images.id[train], self.folds.ids)
            fold[train] = np.where(rows >= 0, self.folds.fold[rows], -1)
        return fold

    def label_rows(self) -> npt.NDArray[np.int64]:
        """Return (N,) the row of `labels` of each row of `images`; -1 for the test, and where there is none."""
        rows = np.full(len(self.images), -1, np.int64)
        train = self.images.rows("train")
        rows[train] = rows_of(self.images.id[train], self.labels.ids)
        return rows

    def numbers(self) -> dict[str, int]:
        """Return {kind: findings of that kind}, of all kinds."""
        counted = Counter(finding.kind for finding in self.findings)
        return {kind: counted[kind] for kind in KINDS}


class _Clock:
    """Seconds of each part of an audit."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say

    @contextmanager
    def part(self, name: str, note: str = "") -> Iterator[None]:
        self._say(f"{name}{f' ({note})' if note else ''} ...")
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)
        self._say(f"{name}: {self.seconds[name]:.1f} s")


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """What the checks start from."""

    task: Task
    data: Path
    folder: Path
    asked: Options
    said: RunPredictions | None
    opened: Opened
    images: Images
    labels: Labels
    dropped: frozenset[str]
    embeddings: Floats | None


def examine(
    task: Task,
    data: Path,
    out: Path,
    options: Options | None = None,
    *,
    say: Callable[[str], object] = lambda _: None,
) -> Audit:
    """Audit a competition's data, and write all that was found to a folder, but for the report.

    Args:
        task: The competition.
        data: Its data folder, which is only read.
        out: A new or empty folder, or one of an earlier audit of this data, whose edits stay.
        options: What else to look at.
        say: Told a line when a part begins, and when it is done.

    Raises:
        DataError: When the label file or the train images cannot be opened, a run is of another task or has no
            network, or the folder holds something else.
        SettingError: When UMAP is asked for by name and is not installed, or together with `fast`.
    """
    asked, clock = options or Options(), _Clock(say)
    check_method(asked.map_method)
    if asked.fast and asked.map_method == "umap":
        raise SettingError("--fast leaves out UMAP, and --map umap asks for it; leave out one of the two")
    audit = _check(_look(task, data, out, asked, clock), clock)
    save_audit(audit)
    return audit


def _look(task: Task, data: Path, out: Path, asked: Options, clock: _Clock) -> _Looked:
    """Read the labels and go once through the images."""
    task = resolve_classes(task, data)
    given = read_labels(task, data)
    if not (sound := writable(given.ids)).all():
        given = given.take(np.flatnonzero(sound))
    runs = tuple(read_run(folder) for folder in asked.runs)
    seeing = _seeing_run(asked.embeddings)
    labels, dropped = _edited(task, given, asked.edits)
    said = _gathered(task, labels, runs)
    start_folder(task, data, out, runs)
    with clock.part("opening the files"):
        opened = open_splits(task, data, given.ids, packed=asked.packed)
    with clock.part("looking at every image"):
        images = survey_images(opened, out, channels=task.images.channels)
    embeddings = None
    if seeing is not None:
        from kaggle_kit.audit.embeddings import embed_images

        with clock.part("asking the network"):
            embeddings = embed_images(images, seeing, data, seed=asked.seed)
    return _Looked(
        task=task,
        data=data,
        folder=out,
        asked=asked,
        said=said,
        opened=opened,
        images=images,
        labels=labels,
        dropped=dropped,
        embeddings=embeddings,
    )


def _check(looked: _Looked, clock: _Clock) -> Audit:
    """Make all the checks."""
    images, labels, asked, task = looked.images, looked.labels, looked.asked, looked.task
    with clock.part("duplicates"):
        duplicates = find_duplicates(
            images,
            labels,
            embeddings=looked.embeddings,
            leave_out=np.isin(images.id, list(looked.dropped)) & (images.split == "train"),
            near=not asked.fast,
            seed=asked.seed,
        )
    with clock.part("train against test"):
        drift = known_drift(images, looked.folder, seed=asked.seed) if "test" in looked.opened.sources else None
    method: Method = "pca" if asked.fast else asked.map_method
    chosen = method_for(images, embeddings=looked.embeddings, method=method)
    with clock.part("map", "by UMAP; --map pca is quick" if chosen == "umap" else ""):
        placed = known_map(images, looked.folder, embeddings=looked.embeddings, method=method, seed=asked.seed)
    with clock.part("predictions"):
        after = _after(looked)
    counts = count_classes(task, labels, num_images=_num_images(images), folds=asked.folds)
    quality = quality_findings(images)
    traits = find_traits(quality, images, labels, task)
    audit = Audit(
        task=task,
        data=looked.data,
        folder=looked.folder,
        opened=looked.opened,
        images=images,
        labels=labels,
        folds=asked.folds,
        counts=counts,
        duplicates=duplicates,
        drift=drift,
        leaks=find_leaks(images, labels, task),
        map=placed,
        findings=_findings(looked, mark_traits(quality, traits, labels, task), duplicates, drift, counts, after),
        advice=(),
        seconds=dict(clock.seconds),
        traits=traits,
        after=after,
        notes=tuple(_notes(looked, duplicates)),
    )
    commands = Commands(
        task=asked.called or task.name,
        data=looked.data,
        folder=looked.folder,
        folds_file=asked.folds_file,
        edits=asked.edits,
    )
    return dataclasses.replace(audit, advice=advise(audit, commands))


def _edited(task: Task, labels: Labels, path: Path | None) -> tuple[Labels, frozenset[str]]:
    """Return the labels with a person's edits applied, and the ids of the images that were dropped."""
    if path is None:
        return labels, frozenset()
    from kaggle_kit.edits import apply_edits, effective, read_edits

    edits = read_edits(path)
    return apply_edits(labels, edits, task, path=path), frozenset(effective(edits).dropped)


def _seeing_run(folder: Path | None) -> Run | None:
    """Return the run whose network looks at the images, or refuse one that has none: before all images are read."""
    if folder is None:
        return None
    run = read_run(folder)
    checkpoint = run.checkpoint(min(run.folds))
    if not checkpoint.is_file():
        raise DataError(f"{checkpoint} is missing: run {run.name!r} has no network to ask; give --embed another run")
    return run


def _gathered(task: Task, labels: Labels, runs: tuple[Run, ...]) -> RunPredictions | None:
    if not runs:
        return None
    from kaggle_kit.audit.run_predictions import gather_predictions

    return gather_predictions(task, labels, runs)


def _after(looked: _Looked) -> AfterModel | None:
    if looked.said is None:
        return None
    from kaggle_kit.audit.after_model import look_at_predictions

    return look_at_predictions(looked.task, looked.labels, looked.said)


def _num_images(images: Images) -> dict[str, int]:
    return {split: int((~images.absent[images.rows(split)]).sum()) for split in SPLITS if len(images.rows(split))}


def _findings(
    looked: _Looked,
    quality: Iterator[Finding],
    duplicates: Duplicates,
    drift: Drift | None,
    counts: Counts,
    after: AfterModel | None,
) -> tuple[Finding, ...]:
    """Return all findings in the order of their kinds, each kind's worst first, without images that were dropped."""
    images, task = looked.images, looked.task
    found = [
        *id_findings(looked.opened, task),
        *quality,
        *duplicate_findings(duplicates, images, looked.labels, task),
        *rare_findings(counts, task),
        *(drift_findings(drift, images) if drift is not None else ()),
        *(after.findings if after is not None else ()),
    ]
    left = [one for one in found if one.kind == "rare_class" or one.split == "test" or one.id not in looked.dropped]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return tuple(sorted(left, key=lambda one: (order[one.kind], -one.score)))


def _notes(looked: _Looked, duplicates: Duplicates) -> Iterator[str]:
    yield from looked.opened.notes
    if looked.asked.fast:
        yield "Near duplicates were not looked for (--fast)."
    if duplicates.not_aligned:
        yield f"{duplicates.not_aligned:,} pairs of images that are alike were too many to compare shifted or cropped."
    edits = looked.folder / EDITS
    if edits.is_file() and looked.asked.edits is None:
        yield f"{edits} holds decisions that this audit does not apply; add --edits {edits}."
