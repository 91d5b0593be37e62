"""Train the folds of a run and join their out-of-fold predictions."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kaggle_kit.errors import DataError, KitError, SettingError, some_of
from kaggle_kit.files import check_replaceable
from kaggle_kit.folds import Folds, Ints, labels_hash, unseen_rows
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.packing.competition import pack_train, tagged_of
from kaggle_kit.predictions import concatenate
from kaggle_kit.progress import say
from kaggle_kit.runs import FoldSummary, Run, read_run, write_run
from kaggle_kit.scores import DRAWS, score_split
from kaggle_kit.sources import PackedSource, resolve_stored
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
    beside: Path | None = None,
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
        packed: The packed store to read from or to make; None: in or below `beside`.
        beside: None: beside `out`.
        only: Train this fold alone.
        overwrite: Replace a run that is there.

    Raises:
        DataError: When data, labels and folds do not fit together, or `out` is taken.
        SettingError: When `only` is no fold.
    """
    if not folds.num_folds:
        raise SettingError(
            f"the folds validate no image (scheme {folds.scheme!r}), so training could not choose its best epoch; "
            "make folds that validate, such as --scheme holdout"
        )
    if only is not None and not 0 <= only < folds.num_folds:
        raise SettingError(f"`fold` is {only}; the fold file has folds 0 to {folds.num_folds - 1}")
    _check_folder(out, overwrite=overwrite)
    check_model(config.model)
    task = resolve_stored(task, data)
    labels = read_labels(task, data)
    _check_same_labels(folds, labels)
    source = pack_train(task, data, packed, beside=beside or out.parent)
    labels, folds = _usable_rows(labels, folds, source)
    added = _added_labels(task, source)
    folds = _with_unseen(folds, labels, added)
    _start_run(out)
    folds.save(out / "folds.parquet")
    wanted = range(folds.num_folds) if only is None else [only]
    aligned = _labels_by_row(labels, added, source)
    rows, added_rows = rows_of(labels.ids, source.ids), rows_of(added.ids, source.ids)
    results = {}
    for fold in wanted:
        valid_rows = rows[folds.fold == fold]
        with _explained_out_of_memory(fold, config):
            results[fold] = train_fold(
                task,
                config,
                source=source,
                labels=aligned,
                train_rows=np.concatenate([rows[folds.fold != fold], _unlike(added_rows, valid_rows, source)]),
                valid_rows=valid_rows,
                fold=fold,
                folder=out / f"fold{fold}",
            )
    oof = concatenate([result.oof for result in results.values()])
    oof.save(out / "oof.npz")
    own, unseen = labels.align(oof.ids), folds.unseen[folds.rows(oof.ids)]
    run = Run(
        folder=out,
        task=task,
        config=config,
        data=data,
        packed=source.folder,
        packed_key=source.key,
        scores=score_split(task, own.classes, oof.probs, unseen, draws=DRAWS, groups=own.group_numbers()),
        folds={f: FoldSummary(epoch=r.epoch, score=r.score, seconds=r.seconds) for f, r in results.items()},
    )
    write_run(run)
    return read_run(out)


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


def _with_unseen(folds: Folds, labels: Labels, added: Labels) -> Folds:
    """Return folds that mark as unseen what no image that really trains shows: no broken one, but added ones too."""
    both = Labels(
        ids=np.concatenate([labels.ids, added.ids]),
        classes={head: np.concatenate([classes, added.classes[head]]) for head, classes in labels.classes.items()},
    )
    always = np.full(len(added), -1, np.int64)
    unseen = unseen_rows(both, np.concatenate([folds.fold, always]))
    return dataclasses.replace(folds, unseen=unseen[: len(labels)])


def _added_labels(task: Task, source: PackedSource) -> Labels:
    """Return the labels of images that were packed under a tag: they train every fold and validate none."""
    parts = []
    for tagged in tagged_of(source.folder):
        if tagged.task.heads != task.heads:
            raise DataError(
                f"images tagged {tagged.tag!r} have heads {list(tagged.task.heads)} or other classes, expected those "
                f"of {task.name!r}: {list(task.heads)}; give both tasks the same `heads`, and pack again"
            )
        labels = tagged.labels()
        parts.append(labels.take(np.flatnonzero(~np.isin(labels.ids, list(source.broken)))))
        say(f"{len(parts[-1]):,} images tagged {tagged.tag!r} train every fold; none is validated on them")
    return Labels(
        ids=np.concatenate([np.zeros(0, np.str_), *(part.ids for part in parts)]),
        classes={h: np.concatenate([np.zeros(0, np.int64), *(p.classes[h] for p in parts)]) for h in task.heads},
    )


def _unlike(added_rows: Ints, valid_rows: Ints, source: PackedSource) -> Ints:
    """Return the added rows that equal no validation image: those would be learned by heart."""
    groups = source.duplicate_groups()
    equal = np.isin(groups[added_rows], groups[valid_rows])
    if equal.any():
        say(f"{int(equal.sum()):,} added images equal validation images and are left out of this fold")
    return added_rows[~equal]


def _labels_by_row(labels: Labels, added: Labels, source: PackedSource) -> Labels:
    """Return labels in the source's row order; rows without a label get class 0 and are never trained on."""
    rows = rows_of(source.ids, np.concatenate([labels.ids, added.ids]))
    both = {head: np.concatenate([classes, added.classes[head]]) for head, classes in labels.classes.items()}
    return Labels(
        ids=source.ids,
        classes={head: np.where(rows < 0, 0, classes[np.maximum(rows, 0)]) for head, classes in both.items()},
    )
