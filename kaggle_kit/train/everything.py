"""Train on all images, with the settings and for as long as a cross-validated run says."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path

from kaggle_kit.edits import edits_key
from kaggle_kit.errors import SettingError
from kaggle_kit.files import replacing
from kaggle_kit.progress import say
from kaggle_kit.runs import EVERYTHING, Run, read_run, write_run
from kaggle_kit.settings import plain
from kaggle_kit.task import task_to_plain
from kaggle_kit.train.config import LogConfig, TrainConfig, Weights
from kaggle_kit.train.crossval import (
    check_batch_size,
    claimed_by_first,
    describe_environment,
    naming_own_edits,
    prepare,
    report_on,
    save_edits,
    train_one,
)
from kaggle_kit.train.devices import make_fabric
from kaggle_kit.train.pseudo import pseudo_key
from kaggle_kit.train.run_folder import check_folder, finished_folds, is_complete, known_id


def train_everything(
    like: Run,
    *,
    out: Path,
    packed: Path | None = None,
    max_hours: float | None = None,
    log: LogConfig | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Train one network on all images of a run, train and validation joined.

    Nothing can score it. It takes the run's settings, ends after the epoch that the run's folds chose, and keeps the
    weights they chose (see `chosen_end`); the run's scores and out-of-fold predictions stand for it, so that it can be
    blended and bundled in that run's place.

    Args:
        like: The cross-validated run.
        out: The new run's folder.
        packed: As for `train_run`; None: the store that `like` was trained from.
        max_hours: End within so many hours.
        log: Loggers.
        num_workers: Processes that augment.
        overwrite: Replace a run that is there.

    Raises:
        SettingError: When `like` was itself trained on everything or elsewhere, or its schedule follows scores.
        DataError: When its data has changed, or `out` is taken.
    """
    started = time.monotonic()
    if like.is_adopted:
        raise SettingError(
            f"{like.folder} holds models from elsewhere, whose settings are not known here; train on everything where "
            "they were trained, and adopt that model with `kaggle-kit runs adopt --everything`"
        )
    if like.like:
        raise SettingError(f"{like.folder} was trained on everything itself; give the run it followed, {like.like}")
    if out.resolve() == like.folder.resolve():
        raise SettingError(f"`out` is {out}, the run that is followed; choose another folder")
    if like.config.schedule.name == "plateau":
        raise SettingError(
            f"{like.folder} has schedule.name=plateau, which follows validation scores; training on everything has "
            "none, follow a run of another schedule"
        )
    check_folder(out)
    config = _config(like, max_hours=max_hours, log=log or LogConfig(), num_workers=num_workers)
    fabric = make_fabric(config)
    weights, last_epoch = chosen_end(like)
    folds = like.fold_table()
    task, ready = prepare(
        like.task,
        config,
        like.data,
        folds,
        packed=packed or like.packed,
        beside=out.parent,
        fabric=fabric,
        edits=folds.edits,
    )
    config = naming_own_edits(config, ready)
    check_batch_size(config, ready, [EVERYTHING], num_ranks=fabric.world_size)
    plan = {
        "task": task_to_plain(task),
        "config": plain(config),
        "like": like.id,
        "epoch": last_epoch,
        "images": ready.source.key,
        "edits": edits_key(ready.labels.edits) or None,
        "pseudo": pseudo_key(config.pseudo),
        "num_ranks": fabric.world_size,
    }
    say(
        f"training on all {len(ready.rows):,} images for {last_epoch} of {config.epochs} epochs, as the folds of "
        f"{like.name} chose; keeping {weights} weights"
    )
    with claimed_by_first(fabric, out, plan, overwrite=overwrite):
        before = fabric.broadcast(finished_folds(out))
        missing = EVERYTHING not in before or bool(before[EVERYTHING].stopped)
        if not missing and fabric.broadcast(is_complete(out, before)):
            say(f"{out}: this run is finished; nothing is left to train")
            return read_run(out)
        if missing:
            deadline = None if max_hours is None else started + 3600 * max_hours
            train_one(
                task,
                config,
                ready,
                EVERYTHING,
                out,
                fabric=fabric,
                deadline=deadline,
                last_epoch=last_epoch,
                keep=weights,
            )
        if fabric.is_global_zero:
            for name in ("oof.npz", "folds.parquet"):
                with replacing(out / name) as temporary:
                    shutil.copyfile(like.folder / name, temporary)
            save_edits(ready, out)
            write_run(
                Run(
                    folder=out,
                    task=task,
                    config=config,
                    data=like.data,
                    packed=ready.source.folder,
                    packed_key=ready.source.key,
                    scores=like.scores,
                    folds=finished_folds(out),
                    like=str(like.folder.resolve()),
                    environment=describe_environment(),
                    id=known_id(out),
                )
            )
            report_on(out)
        fabric.barrier()
        return read_run(out)


def chosen_end(like: Run) -> tuple[Weights, int]:
    """Return which weights a run's folds kept, and after which epoch to end.

    The weights are those that most folds kept; in place of a soup, which takes scores, the average that was asked for.
    The epoch is the folds' median, and the last one for SWA, which only then is what it was.
    """
    kept = Counter(summary.weights for summary in like.folds.values()).most_common(1)[0][0]
    average = like.config.average
    if kept == "soup":
        kept = "swa" if average.swa_start < 1 else "ema" if average.ema else "raw"
    if kept == "swa":
        return kept, like.config.epochs
    return kept, round(statistics.median(summary.epoch for summary in like.folds.values()))


def _config(like: Run, *, max_hours: float | None, log: LogConfig, num_workers: int | None) -> TrainConfig:
    loader = dataclasses.replace(like.config.loader, num_workers=num_workers)
    return dataclasses.replace(like.config, max_hours=max_hours, log=log, loader=loader)
