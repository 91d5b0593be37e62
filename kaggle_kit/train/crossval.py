"""Train the folds of a run and join their out-of-fold predictions."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kaggle_kit.errors import DataError, KitError, SettingError, some_of
from kaggle_kit.files import check_replaceable
from kaggle_kit.folds import Folds, labels_hash
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.metrics import score_classes
from kaggle_kit.predictions import concatenate
from kaggle_kit.progress import say
from kaggle_kit.runs import FoldSummary, Run, default_store, pack_train, source_key, write_run
from kaggle_kit.sources import PackedSource, find_packed, resolve_stored
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.loop import train_fold
from kaggle_kit.train.model import check_model

MARKER = ".kaggle-kit-run"


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
    _check_folder(out, overwrite=overwrite)
    check_model(config.model)
    task = resolve_stored(task, data)
    labels = read_labels(task, data)
    _check_same_labels(folds, labels)
    store = packed or default_store(task, data, out.parent)
    if packed is not None:
        _check_same_images(task, data, packed)
    source = pack_train(task, data, store)
    labels, folds = _usable_rows(labels, folds, source)
    _start_run(out)
    folds.save(out / "folds.parquet")
    wanted = range(folds.num_folds) if only is None else [only]
    aligned = _labels_by_row(labels, source)
    rows = rows_of(labels.ids, source.ids)
    results = {}
    for fold in wanted:
        with _explained_out_of_memory(fold, config):
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
        packed_key=source.key,
        score=score_classes(task, labels.align(oof.ids).classes, oof.decide()),
        folds={f: FoldSummary(epoch=r.epoch, score=r.score, seconds=r.seconds) for f, r in results.items()},
    )
    write_run(run)
    return run


@contextmanager
def _explained_out_of_memory(fold: int, config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise KitError(
            f"fold {fold} does not fit the device's memory; lower `loader.batch_size`, now {config.loader.batch_size}"
        ) from None


def _check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it may be replaced, or anything that no run wrote."""
    own = [path.name for path in out.iterdir() if _is_own(path.name)] if (out / MARKER).is_file() else []
    check_replaceable(out, own, what="run", error=DataError)
    if own and not overwrite:
        what = "a run already" if "run.json" in own else "an unfinished run, which cannot be resumed yet"
        raise DataError(f"{out} holds {what}; choose another `out`, or set overwrite=true")


def _is_own(name: str) -> bool:
    return name in (MARKER, "run.json", "folds.parquet", "oof.npz") or re.fullmatch(r"fold\d+", name) is not None


def _start_run(out: Path) -> None:
    """Empty the folder, now that data, labels and folds are known to fit together."""
    if out.exists() and any(out.iterdir()):
        for path in [path for path in out.iterdir() if _is_own(path.name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _check_same_labels(folds: Folds, labels: Labels) -> None:
    found = labels_hash(labels)
    if folds.data_hash != found:
        raise DataError(
            f"the folds were made from other labels (hash {folds.data_hash}, now {found}); "
            "make them again with `kaggle-kit folds`"
        )


def _check_same_images(task: Task, data: Path, packed: Path) -> None:
    """Refuse a store somebody named that holds other images, instead of replacing it: other runs may need it."""
    if (packed / "pack.json").is_file() and find_packed(packed, source_key(task, data)) is None:
        raise DataError(
            f"{packed} holds images of {PackedSource(packed).shape} packed from other files or at another size than "
            f"{task.stored_size}; leave `packed` out, name another folder, or pack again with `kaggle-kit pack`"
        )


def _usable_rows(labels: Labels, folds: Folds, source: PackedSource) -> tuple[Labels, Folds]:
    """Leave out images that could not be read, aloud; align folds with labels."""
    folds = folds.align(labels.ids)
    broken = np.isin(labels.ids, list(source.broken))
    if broken.any():
        names = labels.ids[broken]
        reason = source.broken[str(names[0])]
        say(f"{len(names):,} broken image(s) left out of training: {some_of(names)}; the first: {reason}")
    kept = labels.take(np.flatnonzero(~broken))
    return kept, folds.align(kept.ids)


def _labels_by_row(labels: Labels, source: PackedSource) -> Labels:
    """Return labels in the source's row order; rows without a label get class 0 and are never trained on."""
    rows = rows_of(source.ids, labels.ids)
    return Labels(
        ids=source.ids,
        classes={head: np.where(rows < 0, 0, classes[np.maximum(rows, 0)]) for head, classes in labels.classes.items()},
    )
