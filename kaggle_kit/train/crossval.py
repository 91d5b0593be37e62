"""Train the folds of a run and join their out-of-fold predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.metrics import score_classes
from kaggle_kit.predictions import concatenate
from kaggle_kit.progress import say
from kaggle_kit.runs import FoldSummary, Run, pack_train, write_run
from kaggle_kit.sources import PackedSource, resolve_stored
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.loop import train_fold


def train_run(
    task: Task,
    config: TrainConfig,
    *,
    data: Path,
    folds: Folds,
    out: Path,
    packed: Path | None = None,
    only: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Train one network a fold.

    Args:
        task: The competition.
        config: The settings.
        data: Its data folder.
        folds: Who validates what.
        out: The run's folder; must not hold a run yet.
        packed: The packed store to read from or to make; None: beside `out`.
        only: Train this fold alone.
        overwrite: Replace a run that is there.

    Raises:
        DataError: When data, labels and folds do not fit together, or `out` is taken.
        SettingError: When `only` is no fold.
    """
    if only is not None and not 0 <= only < folds.num_folds:
        raise SettingError(f"`fold` is {only}; the fold file has folds 0 to {folds.num_folds - 1}")
    _claim_folder(out, overwrite=overwrite)
    task = resolve_stored(task, data)
    store = packed or out.parent / "packed" / f"{task.name}-{'x'.join(map(str, task.stored_size))}"
    source = pack_train(task, data, store)
    labels, folds = _usable_rows(read_labels(task, data), folds, source)
    folds.save(out / "folds.parquet")
    wanted = range(folds.num_folds) if only is None else [only]
    aligned = _labels_by_row(labels, source)
    rows = rows_of(labels.ids, source.ids)
    results = {}
    for fold in wanted:
        results[fold] = train_fold(
            task,
            config,
            source=source,
            labels=aligned,
            train_rows=rows[folds.fold != fold],
            valid_rows=rows[folds.fold == fold],
            fold=fold,
            folder=out / f"fold{fold}",
        )
    oof = concatenate([result.oof for result in results.values()])
    oof.save(out / "oof.npz")
    run = Run(
        folder=out,
        task=task,
        config=config,
        data=data,
        packed=store,
        score=score_classes(task, labels.align(oof.ids).classes, oof.decide()),
        folds={f: FoldSummary(epoch=r.epoch, score=r.score, seconds=r.seconds) for f, r in results.items()},
    )
    write_run(run)
    return run


def _claim_folder(out: Path, *, overwrite: bool) -> None:
    if out.exists() and any(out.iterdir()):
        is_run = any((out / name).exists() for name in ("run.json", "folds.parquet"))
        if not (overwrite and is_run):
            what = "holds a run already; choose another `out`, or set overwrite=true" if is_run else "is not empty"
            raise DataError(f"{out} {what}")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _usable_rows(labels: Labels, folds: Folds, source: PackedSource) -> tuple[Labels, Folds]:
    """Leave out images that could not be read, aloud; align folds with labels."""
    folds = folds.align(labels.ids)
    broken = np.isin(labels.ids, list(source.broken))
    if broken.any():
        names = labels.ids[broken]
        say(f"{len(names):,} broken image(s) left out of training: {some_of(names)}")
    kept = labels.take(np.flatnonzero(~broken))
    return kept, folds.align(kept.ids)


def _labels_by_row(labels: Labels, source: PackedSource) -> Labels:
    """Return labels in the source's row order; rows without a label get class 0 and are never trained on."""
    rows = rows_of(source.ids, labels.ids)
    return Labels(
        ids=source.ids,
        classes={head: np.where(rows < 0, 0, classes[np.maximum(rows, 0)]) for head, classes in labels.classes.items()},
    )
