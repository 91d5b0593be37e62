"""The training loop: one fold, top to bottom. Fabric supplies the device, precision and gradient scaling."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kaggle_kit.errors import KitError
from kaggle_kit.labels import Classes, Labels
from kaggle_kit.metrics import gain
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import Score, score_answers
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task
from kaggle_kit.train.augment import make_augment
from kaggle_kit.train.checkpoint import CheckpointInfo, save_checkpoint
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.data import Batch, TrainStream, make_loader
from kaggle_kit.train.model import Logits, Network, build_network
from kaggle_kit.train.order import shuffle_window

Ints = npt.NDArray[np.int64]
EVAL_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What training a fold gave.

    Attributes:
        score: The best epoch's, on the validation rows.
        epoch: The best epoch, counted from 1.
        seconds: Wall time.
        oof: The best epoch's predictions of the validation rows.
    """

    score: Score
    epoch: int
    seconds: float
    oof: Predictions


def train_fold(
    task: Task,
    config: TrainConfig,
    *,
    source: PackedSource,
    labels: Labels,
    train_rows: Ints,
    valid_rows: Ints,
    fold: int,
    folder: Path,
) -> FoldResult:
    """Train one network and validate it after every epoch.

    Writes `best.safetensors`, `last.safetensors`, `oof.npz` and `history.csv` into `folder`.

    Args:
        task: The competition, its stored size known.
        config: The settings.
        source: Images, (H, W, C) uint8 of the stored size.
        labels: Aligned with the source: row i labels image i.
        train_rows: Rows to train on.
        valid_rows: Rows to validate on, in the order of the out-of-fold predictions.
        fold: The fold's number, for the checkpoint and the progress bar.
        folder: Where files go.

    Raises:
        KitError: When the loss is no longer a number.
        torch.OutOfMemoryError: When the device's memory is too small.
    """
    started = time.perf_counter()
    seed = config.seed * 1000 + fold
    torch.manual_seed(seed)
    fabric = make_fabric(config)
    network = build_network(task, config.model)
    stream = TrainStream(
        source,
        labels,
        train_rows,
        batch_size=config.loader.batch_size,
        epochs=config.epochs,
        seed=seed,
        augment=make_augment(config, task),
        window=shuffle_window(source, config.loader.window_gb),
    )
    optimizer, schedule = make_optimizer(network, config, num_steps=len(stream))
    network.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(network, optimizer)
    loader = fabric.setup_dataloaders(
        make_loader(stream, num_workers=config.loader.num_workers, device=fabric.device), use_distributed_sampler=False
    )
    record = _FoldRecord(task, config, fold=fold, folder=folder, started=started)
    truth = {head: classes[valid_rows] for head, classes in labels.classes.items()}
    loss_sum = torch.zeros((), device=fabric.device)
    with progress_bar(len(stream), f"fold {fold}", unit="step") as bar:
        model.train()
        for step, batch in enumerate(loader, start=1):
            loss = training_loss(task, config, model(batch.images), batch)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=config.optim.clip_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            loss_sum += loss.detach()
            bar.update()
            if step % stream.steps_per_epoch == 0:
                mean_loss = _checked_loss(loss_sum, stream.steps_per_epoch, step // stream.steps_per_epoch)
                # The network itself, not Fabric's wrapper: validation in fp32, as the exported graph will compute.
                record.add_epoch(network, mean_loss, predict_rows(network, source, valid_rows), truth)
                bar.set_postfix_str(str(record), refresh=False)
                loss_sum.zero_()
                model.train()
    oof = Predictions(ids=labels.ids[valid_rows], probs=record.best_probs)
    oof.save(folder / "oof.npz")
    seconds = time.perf_counter() - started
    return FoldResult(score=record.best_score, epoch=record.best_epoch, seconds=seconds, oof=oof)


class _FoldRecord:
    """What a fold's epochs gave so far: its history, its best predictions, and both checkpoints on disk."""

    best_score: Score
    best_epoch: int
    best_probs: Probs

    def __init__(self, task: Task, config: TrainConfig, *, fold: int, folder: Path, started: float) -> None:
        self._task = task
        self._config = config
        self._fold = fold
        self._folder = folder
        self._started = started
        self._history: list[list[object]] = []
        self._last = ""

    def __str__(self) -> str:
        return f"{self._last} best {self.best_score.total:.4f}"

    def add_epoch(self, network: Network, loss: float, probs: Probs, truth: Classes) -> None:
        """Score an epoch, write its checkpoint, and keep it if it is the best."""
        epoch = len(self._history) + 1
        score = score_answers(self._task, truth, probs)
        info = CheckpointInfo(task=self._task, config=self._config, fold=self._fold, epoch=epoch, score=score)
        save_checkpoint(self._folder / "last.safetensors", network, info)
        if epoch == 1 or gain(self._task.metric, score.total, self.best_score.total) > 0:
            self.best_score, self.best_epoch, self.best_probs = score, epoch, probs
            save_checkpoint(self._folder / "best.safetensors", network, info)
        heads = [f"{value:.6f}" for value in score.heads.values()]
        seconds = f"{time.perf_counter() - self._started:.1f}"
        self._history.append([epoch, f"{loss:.5f}", f"{score.total:.6f}", *heads, seconds])
        columns = ["epoch", "loss", "score", *self._task.heads, "seconds"]
        write_rows(self._folder / "history.csv", columns, self._history)
        self._last = f"loss {loss:.3f} score {score.total:.4f}"


def make_fabric(config: TrainConfig) -> Any:
    """Return a launched Fabric on the best device there is, with the precision it can do."""
    from lightning_fabric import Fabric

    precision = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
    name = _best_precision() if config.precision == "auto" else config.precision
    fabric = Fabric(accelerator="auto", devices=1, precision=precision[name])
    fabric.launch()
    return fabric


def _best_precision() -> str:
    if not torch.cuda.is_available():
        return "fp32"
    # torch.cuda.is_bf16_supported() also says yes where bf16 is only emulated, as on T4.
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"


def make_optimizer(
    network: nn.Module, config: TrainConfig, *, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """Return timm's optimizer, without decay on biases and norms, and a one-cycle schedule of `num_steps`."""
    from timm.optim import create_optimizer_v2

    optim = config.optim
    optimizer = create_optimizer_v2(network, opt=optim.name, lr=optim.lr, weight_decay=optim.weight_decay)
    # OneCycleLR divides by warmup x steps - 1: a warm-up of exactly one step would end in an error
    warmup = optim.warmup + (1e-6 if optim.warmup * (num_steps + 1) == 1 else 0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optim.lr, total_steps=num_steps + 1, pct_start=warmup, cycle_momentum=False
    )
    return optimizer, schedule


def training_loss(task: Task, config: TrainConfig, logits: Logits, batch: Batch) -> torch.Tensor:
    """Return the mean over heads of the cross entropy, weighted as in the competition's metric."""
    total = sum(head.weight for head in task.heads.values())
    losses = [
        head.weight
        / total
        * nn.functional.cross_entropy(
            logits[name].float(), batch.labels[:, column], label_smoothing=config.loss.label_smoothing
        )
        for column, (name, head) in enumerate(task.heads.items())
    ]
    return torch.stack(losses).sum()


def predict_rows(network: Network, source: PackedSource, rows: Ints) -> Probs:
    """Return {head: (rows, C) float32 probabilities} of these rows, in this order.

    Args:
        network: Left in evaluation mode, where it lies.
        source: The images.
        rows: Which ones; at least one.
    """
    batches = (rows[start : start + EVAL_BATCH] for start in range(0, len(rows), EVAL_BATCH))
    return predict_batches(network, (source.take(batch) for batch in batches))


@torch.inference_mode()
def predict_batches(network: Network, batches: Iterable[Image]) -> Probs:
    """Return {head: (N, C) float32 probabilities} of batches of (B, H, W, channels) uint8 stored images, in order."""
    device = next(network.parameters()).device
    network.eval()
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for images in batches:
        for name, logits in network(torch.from_numpy(images).to(device)).items():
            parts.setdefault(name, []).append(logits.softmax(dim=1).cpu().numpy())
    return {name: np.concatenate(part) for name, part in parts.items()}


def _checked_loss(loss_sum: torch.Tensor, num_steps: int, epoch: int) -> float:
    loss = loss_sum.item() / num_steps
    if not math.isfinite(loss):
        raise KitError(f"the loss is {loss} in epoch {epoch}; lower `optim.lr`, or set `precision: fp32`")
    return loss
