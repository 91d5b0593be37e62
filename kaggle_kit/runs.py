"""Run folders: what a training left behind, and where.

    RUN/run.json                    task, settings, data, folds and scores
    RUN/folds.parquet               the folds it was trained on
    RUN/edits.jsonl                 the edits of labels it was trained with, where there are any
    RUN/oof.npz                     out-of-fold predictions of all trained folds
    RUN/fold0/best.safetensors      and oof.npz, history.csv; everything/best.safetensors of a training on everything
    RUN/run.html                    what a person looks at

A run that was adopted, with models from elsewhere, holds run.json, folds.parquet and oof.npz likewise, and

    RUN/fold0/member.onnx           stored images in, probabilities out; everything/member.onnx of a model of all images
    RUN/adopted.json                how the models read images, and how well they repeat their predictions
"""

from __future__ import annotations

import datetime
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import kaggle_kit
from kaggle_kit.edits import apply_edits
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.scores import Score, SplitScore
from kaggle_kit.settings import build, fingerprint, plain
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train.config import TrainConfig, Weights

FORMAT = 3
EVERYTHING = -1
HISTORY = "history.csv"  # in a fold's folder, from its first epoch on


@dataclass(frozen=True, kw_only=True)
class FoldSummary:
    """A trained fold.

    Attributes:
        epoch: How many epochs the kept weights had seen.
        score: Of the kept weights on the validation rows; None for a training on everything.
        seconds: That training took.
        weights: Which weights were kept: the optimizer's own, or an average.
        stopped: Why training ended before its last epoch; empty: it did not.
        scores: {weights: the best score that weights of this kind had}, of all kinds that were scored.
    """

    epoch: int
    score: Score | None
    seconds: float
    weights: Weights = "raw"
    stopped: str = ""
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training, or models from elsewhere that were adopted.

    Attributes:
        folder: Where it lies.
        task: The competition, stored size known.
        config: The settings; of an adopted run the model's name alone says something.
        data: The competition's data folder.
        packed: The packed store it was trained from.
        packed_key: That store's key then.
        scores: Out-of-fold, over all trained folds at once, with 95 % intervals. Of a training on everything: those of
            the run whose settings it took, as are its folds and out-of-fold predictions.
        folds: {fold: summary}; the only key is -1 for a training on everything.
        like: The folder of the run that a training on everything took its settings and epochs from; empty: none.
        environment: Versions and devices it was trained with.
        created: When training ended: ISO 8601, UTC.
        id: What the ledger knows it by, drawn when it is first written: 12 hexadecimal digits.
        adopted: {fold: its .onnx file, relative to the folder} of models from elsewhere; empty: it was trained here.
    """

    folder: Path
    task: Task
    config: TrainConfig
    data: Path
    packed: Path
    packed_key: str
    scores: SplitScore
    folds: dict[int, FoldSummary]
    like: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    created: str = ""
    id: str = ""
    adopted: dict[int, str] = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """Out-of-fold, over all images."""
        return self.scores.all

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def is_adopted(self) -> bool:
        """Whether its models come from elsewhere, as .onnx files."""
        return bool(self.adopted)

    def checkpoint(self, fold: int) -> Path:
        """Return the best checkpoint of a fold.

        Raises:
            DataError: When the run was adopted.
        """
        if self.is_adopted:
            raise DataError(
                f"run {self.name!r} comes from elsewhere and has no checkpoint of fold {fold}, only an .onnx file; it "
                "can be blended and bundled, and not be averaged or trained on"
            )
        return fold_folder(self.folder, fold) / "best.safetensors"

    def onnx(self, fold: int) -> Path:
        """Return the .onnx file of a fold of an adopted run: stored images in, probabilities of every head out.

        Raises:
            DataError: When the run was trained here, or has no such fold.
        """
        if fold not in self.adopted:
            found = f"folds {sorted(self.adopted)}" if self.adopted else "none, for it was trained here"
            raise DataError(f"run {self.name!r} has no .onnx file of fold {fold} (found: {found}); export it")
        return self.folder / self.adopted[fold]

    @property
    def oof_file(self) -> Path:
        """The file of the out-of-fold predictions."""
        return self.folder / "oof.npz"

    @property
    def report(self) -> Path:
        """The page that shows it to a person."""
        return self.folder / "run.html"

    def oof(self) -> Predictions:
        """Return the out-of-fold predictions."""
        return Predictions.load(self.oof_file)

    def labels(self) -> Labels:
        """Return the labels of the data it was trained on, with the edits that it was trained with."""
        edits = self.fold_table().edits
        return apply_edits(read_labels(self.task, self.data), edits, self.task, path=f"the edits of {self.folder}")

    def fold_table(self) -> Folds:
        """Return the folds it was trained on."""
        return Folds.load(self.folder / "folds.parquet")


def fold_folder(folder: Path, fold: int) -> Path:
    """Return where a fold's files lie in a run's folder."""
    return folder / ("everything" if fold == EVERYTHING else f"fold{fold}")


def write_run(run: Run) -> None:
    """Write `run.json`, atomically."""
    values = {
        "format": FORMAT,
        "id": run.id or secrets.token_hex(6),
        "kit_version": kaggle_kit.__version__,
        "created": run.created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "task": task_to_plain(run.task),
        "config": plain(run.config),
        "config_hash": fingerprint(run.config),
        "data": str(run.data.resolve()),
        "packed": str(run.packed.resolve()),
        "packed_key": run.packed_key,
        "scores": plain(run.scores),
        "folds": plain(run.folds),
        "like": run.like,
        "environment": run.environment,
        "adopted": plain(run.adopted),
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
            scores=build(SplitScore, values["scores"]),
            folds={int(k): build(FoldSummary, v, where=f"folds.{k}") for k, v in values["folds"].items()},
            like=values["like"],
            environment=values["environment"],
            created=values["created"],
            id=values.get("id", ""),
            adopted=_adopted(values.get("adopted", {}), values["folds"]),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, SettingError) as error:
        raise DataError(f"{path} does not read ({error}); train the run again") from None


def _adopted(files: dict[str, str], folds: dict[str, Any]) -> dict[int, str]:
    """Return {fold: file} of an adopted run, one for each fold and all in the run's folder; nothing: it was trained."""
    for name in files.values():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise SettingError(f"`adopted` names {name!r}, which is outside of the run's folder")
    if files and files.keys() != folds.keys():
        raise SettingError(f"`adopted` has folds {sorted(files)}, and the run {sorted(folds)}")
    return {int(fold): name for fold, name in files.items()}
