"""Train the folds of a run and join their out-of-fold predictions."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kaggle_kit.edits import Edit, apply_edits, edits_key, read_edited_labels, write_edits
from kaggle_kit.errors import Interrupted, KitError, SettingError
from kaggle_kit.folds import Folds
from kaggle_kit.labels import read_labels, resolve_classes
from kaggle_kit.machine import num_cores
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions, concatenate
from kaggle_kit.progress import say
from kaggle_kit.runs import FoldSummary, Run, fold_folder, read_run, write_run
from kaggle_kit.scores import DRAWS, score_split
from kaggle_kit.settings import plain
from kaggle_kit.sources import check_root, resolve_stored
from kaggle_kit.task import Task, task_to_plain
from kaggle_kit.train.augment import make_augment
from kaggle_kit.train.config import TrainConfig, Weights
from kaggle_kit.train.devices import make_fabric
from kaggle_kit.train.heads import derivation_of
from kaggle_kit.train.job import FoldJob
from kaggle_kit.train.logs import check_loggers
from kaggle_kit.train.loop import FoldResult, train_fold
from kaggle_kit.train.losses import make_loss
from kaggle_kit.train.model import check_model
from kaggle_kit.train.optim import check_optimizer
from kaggle_kit.train.pseudo import add_pseudo_labels, pseudo_key
from kaggle_kit.train.record import OOF
from kaggle_kit.train.report import write_report
from kaggle_kit.train.rows import TrainData, fit_together
from kaggle_kit.train.run_folder import (
    EDITS,
    check_folder,
    claimed,
    discard_leftovers,
    finish_fold,
    finished_folds,
    is_complete,
    known_id,
    unfinish_fold,
)
from kaggle_kit.train.sampling import row_weights
from kaggle_kit.train.state import STATE

OnEpoch = Callable[[int, int, float], None]


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
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train one network a fold, going on where an earlier call with the same arguments was cut off.

    Args:
        task: The competition.
        config: The settings.
        data: Its data folder.
        folds: Who validates what.
        out: The run's folder: new, or this run's own.
        packed: The packed store to read from or to make; None: in or below `beside`.
        beside: None: beside `out`.
        only: Train this fold alone; those trained before stay in the run.
        overwrite: Replace a run that is there.
        on_epoch: Told (fold, epoch, score) after every epoch; what it raises ends the training.

    Raises:
        DataError: When data, labels and folds do not fit together, or `out` is taken.
        SettingError: When `only` is no fold, or settings do not fit the task.
        KitError: When training cannot go on; what is finished is kept.
    """
    started = time.monotonic()
    if not folds.num_folds:
        raise SettingError(
            f"the folds validate no image (scheme {folds.scheme!r}), so training could not choose its best epoch; make "
            "folds that validate, train on them, and then on everything with `like=` that run"
        )
    if only is not None and not 0 <= only < folds.num_folds:
        raise SettingError(f"`fold` is {only}; the fold file has folds 0 to {folds.num_folds - 1}")
    check_folder(out)
    fabric = make_fabric(config)
    task, ready = prepare(task, config, data, folds, packed=packed, beside=beside or out.parent, fabric=fabric)
    plan = {
        "task": task_to_plain(task),
        "config": plain(config),
        "edits": edits_key(ready.labels.edits) or None,
        "folds": _folds_key(folds),
        "images": ready.source.key,
        "pseudo": pseudo_key(config.pseudo),
        "num_ranks": fabric.world_size,
    }
    config = naming_own_edits(config, ready)
    wanted = list(range(folds.num_folds)) if only is None else [only]
    check_batch_size(config, ready, wanted, num_ranks=fabric.world_size)
    with claimed_by_first(fabric, out, plan, overwrite=overwrite):
        before = fabric.broadcast(finished_folds(out))
        missing = [fold for fold in wanted if fold not in before or before[fold].stopped]
        if not missing and fabric.broadcast(is_complete(out, before)):
            say(f"{out}: this run is finished; nothing is left to train")
            return read_run(out)
        if before or any(out.glob(f"*/{STATE}")):
            say(f"{out}: going on with a run that was begun earlier")
        if fabric.is_global_zero:
            ready.folds.save(out / "folds.parquet")
            save_edits(ready, out)
        for place, fold in enumerate(missing):
            deadline = _deadline(config, started, len(missing) - place)
            result = train_one(task, config, ready, fold, out, fabric=fabric, deadline=deadline, on_epoch=on_epoch)
            if result.interrupted and place + 1 < len(missing):
                raise Interrupted(
                    f"interrupted after fold {fold} was finished; the same command goes on with the others"
                )
        if fabric.is_global_zero:
            _finish_run(task, config, ready, data, out)
        fabric.barrier()
        return read_run(out)


def prepare(
    task: Task,
    config: TrainConfig,
    data: Path,
    folds: Folds,
    *,
    packed: Path | None,
    beside: Path,
    fabric: Any,
    edits: Sequence[Edit] | None = None,
) -> tuple[Task, TrainData]:
    """Check what can be checked before long work, then pack the images and join everything by id.

    Args:
        task: The competition.
        config: The settings.
        data: Its data folder.
        folds: Who validates what.
        packed: The packed store; None: in or below `beside`.
        beside: Where a store is looked for, or made.
        fabric: Launched.
        edits: In place of those in the file that `config` names.

    Returns:
        The task with all that is worked out from its data; images, labels and folds.

    Raises:
        KitError: When settings, task, images, labels and folds do not fit together.
    """
    check_model(config.model, sizes={"schedule.small_size": config.schedule.small_size})
    check_optimizer(config.optim.name)
    check_loggers(config.log)
    check_root(data)
    task = resolve_classes(resolve_stored(task, data), data)
    if edits is None:
        labels = read_edited_labels(task, data, None if config.edits is None else Path(config.edits), say=say)
    else:
        labels = apply_edits(read_labels(task, data), edits, task, path="the followed run's edits")
    make_augment(config, task)
    rows = np.arange(len(labels))
    make_loss(task, config.loss, labels, rows)
    row_weights(task, config.sampling, labels, rows)
    if config.model.derive_from:
        derivation_of(task, labels, config.model.derive_from)
    if config.pseudo.predictions is not None:
        Predictions.load(Path(config.pseudo.predictions))
    with fabric.rank_zero_first():
        source = pack_train(task, data, packed, beside=beside)
        stacked, pseudo = add_pseudo_labels(task, config.pseudo, source, data=data, beside=beside)
    return task, fit_together(task, labels, folds, stacked, pseudo=pseudo)


def naming_own_edits(config: TrainConfig, ready: TrainData) -> TrainConfig:
    """Return settings that name the copy of the edits in the run's own folder, wherever the file came from."""
    return dataclasses.replace(config, edits=EDITS if ready.labels.edits else None)


def save_edits(ready: TrainData, out: Path) -> None:
    """Write the edits in force into a run's folder, where there are any."""
    if ready.labels.edits:
        write_edits(ready.labels.edits, out / EDITS)


def check_batch_size(config: TrainConfig, ready: TrainData, folds: Sequence[int], *, num_ranks: int) -> None:
    """Refuse batches that no fold can fill.

    Raises:
        SettingError: Naming the first fold whose train images are fewer.
    """
    for fold in folds:
        found = len(ready.train_rows(fold)) // num_ranks
        if found < config.loader.batch_size:
            each = " for each device" if num_ranks > 1 else ""
            raise SettingError(
                f"`loader.batch_size` is {config.loader.batch_size}, and fold {fold} trains on {found:,} images{each}; "
                "lower it to at most that"
            )


@contextmanager
def claimed_by_first(fabric: Any, out: Path, plan: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold the folder by the first rank; the others wait until it is theirs."""
    if fabric.world_size == 1:
        with claimed(out, plan, overwrite=overwrite):
            yield
    elif fabric.is_global_zero:
        with claimed(out, plan, overwrite=overwrite):
            fabric.barrier()
            yield
    else:
        fabric.barrier()
        yield


def job_of(
    task: Task, config: TrainConfig, ready: TrainData, fold: int, folder: Path, *, keep: Weights = "raw"
) -> FoldJob:
    """Return what training a fold, -1 for everything, is asked to do.

    Args:
        task: As `prepare` gave it.
        config: The settings.
        ready: As `prepare` gave it.
        fold: Its number.
        folder: Where its files go.
        keep: Which weights to keep where nothing validates.

    Raises:
        KitError: When heads cannot be derived as the settings ask.
    """
    derive_from = config.model.derive_from
    return FoldJob(
        task=task,
        config=config,
        source=ready.source,
        labels=ready.by_row,
        train_rows=ready.train_rows(fold),
        valid_rows=ready.valid_rows(fold),
        fold=fold,
        folder=folder,
        derivation=derivation_of(task, ready.labels, derive_from) if derive_from else None,
        keep=keep,
    )


def train_one(
    task: Task,
    config: TrainConfig,
    ready: TrainData,
    fold: int,
    out: Path,
    *,
    fabric: Any,
    deadline: float | None,
    on_epoch: OnEpoch | None = None,
    last_epoch: int | None = None,
    keep: Weights = "raw",
) -> FoldResult:
    """Train a fold, -1 for everything, and note its result; the first rank writes.

    Args:
        task: As `prepare` gave it.
        config: The settings.
        ready: As `prepare` gave it.
        fold: Its number.
        out: The run's folder.
        fabric: Launched.
        deadline: When to end, as `time.monotonic()` counts.
        on_epoch: Told (fold, epoch, score) after every epoch.
        last_epoch: End after this epoch; None: after all.
        keep: Which weights to keep where nothing validates.

    Raises:
        KitError: When training cannot go on.
    """
    job = job_of(task, config, ready, fold, fold_folder(out, fold), keep=keep)
    leaking = int(ready.leaking(fold).sum())
    if leaking:
        say(f"{job.title}: {leaking:,} added images equal validation images and are left out")
    if fabric.is_global_zero:
        unfinish_fold(out, fold)
    with _explained_out_of_memory(job):
        result = train_fold(job, fabric=fabric, deadline=deadline, on_epoch=on_epoch, last_epoch=last_epoch)
    if fabric.is_global_zero:
        summary = FoldSummary(
            epoch=result.epoch,
            score=result.score,
            seconds=round(result.seconds, 1),
            weights=result.weights,
            stopped=result.stopped,
            scores={str(kind): score for kind, score in result.scores.items()},
        )
        finish_fold(out, fold, summary)
        if not result.stopped:
            discard_leftovers(job.folder)
    return result


def _finish_run(task: Task, config: TrainConfig, ready: TrainData, data: Path, out: Path) -> None:
    """Join what the folds gave, and write the run."""
    summaries = finished_folds(out)
    oof = concatenate([Predictions.load(fold_folder(out, fold) / OOF) for fold in summaries])
    oof.save(out / "oof.npz")
    own, unseen = ready.labels.align(oof.ids), ready.folds.unseen[ready.folds.rows(oof.ids)]
    write_run(
        Run(
            folder=out,
            task=task,
            config=config,
            data=data,
            packed=ready.source.folder,
            packed_key=ready.source.key,
            scores=score_split(task, own.classes, oof.probs, unseen, draws=DRAWS, groups=own.group_numbers()),
            folds=summaries,
            environment=describe_environment(),
            id=known_id(out),
        )
    )
    report_on(out)


def report_on(out: Path) -> None:
    """Write the page of a finished run; what goes wrong with it does not undo the run."""
    try:
        write_report(out)
    except (OSError, KitError) as error:
        say(f"{out}: the run is whole, but run.html could not be written ({getattr(error, 'strerror', '') or error})")


def describe_environment() -> dict[str, str]:
    """Return the versions and devices that a training depends on."""
    import platform

    import albumentations
    import timm

    import kaggle_kit

    cores = f"{platform.machine()}, {num_cores()} cores"
    return {
        "kaggle_kit": kaggle_kit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "albumentations": albumentations.__version__,
        "system": platform.platform(terse=True),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cores,
    }


def _deadline(config: TrainConfig, started: float, num_folds: int) -> float | None:
    """Return when this fold must end for the folds after it to have as much time each."""
    if config.max_hours is None:
        return None
    left = started + 3600 * config.max_hours - time.monotonic()
    return time.monotonic() + max(left, 0.0) / num_folds


def _folds_key(folds: Folds) -> dict[str, Any]:
    places = hashlib.sha256(
        "\n".join(f"{name} {fold}" for name, fold in zip(folds.ids, folds.fold, strict=True)).encode()
    )
    return {"scheme": folds.scheme, "seed": folds.seed, "data": folds.data_hash, "places": places.hexdigest()[:12]}


@contextmanager
def _explained_out_of_memory(job: FoldJob) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        size = job.config.model.input_size or job.task.stored_size
        raise KitError(
            f"{job.title} does not fit the device's memory; lower `loader.micro_batch`, now "
            f"{job.config.loader.micro_batch or job.config.loader.batch_size}, or `model.input_size`, now {list(size)}"
        ) from None
