"""Run folders: what a training left behind, and where.

RUN/run.json                    task, settings, data, folds and scores
RUN/folds.parquet               the folds it was trained on
RUN/oof.npz                     out-of-fold predictions of all trained folds
RUN/fold0/best.safetensors      and last.safetensors, oof.npz, history.csv
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaggle_kit
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.metrics import Score
from kaggle_kit.predictions import Predictions
from kaggle_kit.progress import progress_bar, say
from kaggle_kit.settings import build, fingerprint, plain
from kaggle_kit.sources import PackedSource, check_ids, find_packed, open_source, pack
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train.config import TrainConfig

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FoldSummary:
    """A trained fold: its best epoch, that epoch's score, and the seconds training took."""

    epoch: int
    score: Score
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training.

    Attributes:
        folder: Where it lies.
        task: The competition, stored size known.
        config: The settings.
        data: The competition's data folder.
        packed: The packed store it was trained from.
        packed_key: That store's key then.
        score: Out-of-fold, over all trained folds at once.
        folds: {fold: summary}.
    """

    folder: Path
    task: Task
    config: TrainConfig
    data: Path
    packed: Path
    packed_key: str
    score: Score
    folds: dict[int, FoldSummary]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def checkpoint(self, fold: int) -> Path:
        """Return the best checkpoint of a fold."""
        return self.folder / f"fold{fold}" / "best.safetensors"

    def oof(self) -> Predictions:
        """Return the out-of-fold predictions."""
        return Predictions.load(self.folder / "oof.npz")

    def labels(self) -> Labels:
        """Return the labels of the data it was trained on."""
        return read_labels(self.task, self.data)

    def fold_table(self) -> Folds:
        """Return the folds it was trained on."""
        return Folds.load(self.folder / "folds.parquet")


def write_run(run: Run) -> None:
    """Write `run.json`, atomically."""
    values = {
        "format": FORMAT,
        "kit_version": kaggle_kit.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "task": task_to_plain(run.task),
        "config": plain(run.config),
        "config_hash": fingerprint(run.config),
        "data": str(run.data.resolve()),
        "packed": str(run.packed.resolve()),
        "packed_key": run.packed_key,
        "score": plain(run.score),
        "folds": plain(run.folds),
    }
    with replacing(run.folder / "run.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        DataError: When the folder holds none, or one of another format.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no finished run (no run.json); train it first, or check the path")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f"{path} is no run of format {FORMAT}, which this version reads; train the run again")
        return Run(
            folder=folder,
            task=task_from_plain(values["task"]),
            config=build(TrainConfig, values["config"]),
            data=Path(values["data"]),
            packed=Path(values["packed"]),
            packed_key=values["packed_key"],
            score=build(Score, values["score"]),
            folds={int(k): build(FoldSummary, v, where=f"folds.{k}") for k, v in values["folds"].items()},
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, SettingError) as error:
        raise DataError(f"{path} does not read ({error}); train the run again") from None


def source_key(task: Task, data: Path) -> str:
    """Return 16 hexadecimal digits that change with the train images' files or how they are stored.

    Files count by name, size and modification time: hashing gigabytes would take longer than packing them.
    """
    images = task.images
    if images.format == "wide_parquet":
        files = sorted(data.glob(images.train))
    else:
        files = [*sorted((data / images.folder).glob("*")), data / task.labels.file]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    text = json.dumps([plain(task.images), plain(task.stored), stats])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_store(task: Task, data: Path, parent: Path) -> Path:
    """Return where a packed store goes that nobody named: its key is in its name, so none ever replaces another."""
    size = "x".join(map(str, task.stored_size))
    return parent / "packed" / f"{task.name}-{size}-{source_key(task, data)[:8]}"


def pack_train(task: Task, data: Path, folder: Path) -> PackedSource:
    """Pack a competition's train images into `folder`, unless they are there already.

    Broken images become zeros, named in the store's `broken`, and rows never shift.

    Raises:
        DataError: When the label file names images that are not there.
    """
    key = source_key(task, data)
    ids, where = read_labels(task, data).ids, str(data / task.labels.file)
    there = find_packed(folder, key)
    if there is not None:
        say(f"packed images: {folder}, unchanged")
        check_ids(there, ids, where=where)
        return there
    source = open_source(task, "train", data, on_broken="blank")
    check_ids(source, ids, where=where)
    with progress_bar(len(source), "packing", unit="image") as bar:
        return pack(source, folder, key=key, advance=bar.update)
