"""The range test of `lr_find` on a competition: the batches, the loss and the frozen layers of the first epoch."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from kaggle_kit.errors import SettingError
from kaggle_kit.folds import Folds
from kaggle_kit.progress import progress_bar
from kaggle_kit.task import Task
from kaggle_kit.train.config import LogConfig, TrainConfig
from kaggle_kit.train.crossval import check_batch_size, job_of, prepare
from kaggle_kit.train.data import Batch, make_loader
from kaggle_kit.train.devices import make_fabric
from kaggle_kit.train.losses import soft_targets
from kaggle_kit.train.lr_find import LrFind, find_lr
from kaggle_kit.train.training import Training, assemble


def find_training_lr(
    task: Task,
    config: TrainConfig,
    *,
    data: Path,
    folds: Folds,
    packed: Path | None,
    beside: Path,
    fold: int = 0,
    low: float = 1e-7,
    high: float = 10.0,
    num_steps: int = 100,
) -> LrFind:
    """Run the range test that a training with these settings would begin with; nothing of it is kept.

    Args:
        task: The competition.
        config: The settings.
        data: Its data folder.
        folds: Who trains.
        packed: The packed store; None: in or below `beside`.
        beside: Where a store is looked for, or made.
        fold: Whose train images are shown.
        low: The first rate.
        high: The last rate.
        num_steps: Steps from the one to the other.

    Raises:
        KitError: When settings, data and folds do not fit together.
    """
    config = dataclasses.replace(config, log=LogConfig())
    fabric = make_fabric(config)
    task, ready = prepare(task, config, data, folds, packed=packed, beside=beside, fabric=fabric)
    if not 0 <= fold < max(1, ready.folds.num_folds):
        raise SettingError(f"`fold` is {fold}; the fold file has folds 0 to {ready.folds.num_folds - 1}")
    check_batch_size(config, ready, [fold], num_ranks=fabric.world_size)
    with tempfile.TemporaryDirectory() as folder:
        training = assemble(job_of(task, config, ready, fold, Path(folder)), fabric)
        training.enter_epoch(0)
        steps = itertools.count()

        def step_loss(network: nn.Module, batch: Batch) -> torch.Tensor:
            step = next(steps)
            torch.manual_seed(training.seed_of(step))
            images, targets = training.mixer(batch.images, soft_targets(task, batch.labels), step=step)
            with fabric.autocast():
                logits = network(images, auxiliary=True)
            loss: torch.Tensor = training.loss_of(logits, targets)
            return loss

        with progress_bar(num_steps, "range test", unit="step") as bar:
            return find_lr(
                training.network,
                _batches(training, num_steps, bar.update),
                step_loss,
                config.optim,
                low=low,
                high=high,
                num_steps=num_steps,
            )


def _batches(training: Training, num_steps: int, advance: Callable[[], object]) -> Iterator[Batch]:
    """Yield a training's first batches, beyond its last epoch where it is shorter."""
    device, workers = training.fabric.device, training.job.config.loader.num_workers
    for batch in make_loader(training.stream, range(num_steps), num_workers=workers, device=device):
        labels = {head: values.to(device) for head, values in batch.labels.items()}
        yield Batch(batch.images.to(device), labels)
        advance()
