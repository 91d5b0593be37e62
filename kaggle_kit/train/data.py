"""Batches for training: the same stream for the same seed, whatever the number of workers, from any step on."""

from __future__ import annotations

import functools
import signal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from kaggle_kit.labels import Labels
from kaggle_kit.machine import num_cores, share_cores
from kaggle_kit.sources import PackedSource
from kaggle_kit.sources.stacked import StackedStores
from kaggle_kit.train.augment import Augment
from kaggle_kit.train.order import shuffled
from kaggle_kit.train.sampling import drawn

Ints = npt.NDArray[np.int64]
MAX_WORKERS = 8
Store = PackedSource | StackedStores


class Batch(NamedTuple):
    """Images and their labels.

    Attributes:
        images: (B, H, W, C) uint8.
        labels: For each trained head (B,) int64 class indices, -1 where unknown; (B, C) float32 for a multi-label head.
    """

    images: torch.Tensor
    labels: dict[str, torch.Tensor]


class TrainStream(Dataset[Batch]):
    """All batches of all epochs, in order: item k is a pure function of the seed and k.

    One pass over it is the whole training, so workers start once and a training can begin at any step.

    Attributes:
        batch_size: Images a step, of each rank.
        steps_per_epoch: Steps that show as many images as there are rows; the odd rest comes up in other epochs.
        window: How many images are shuffled together; None: all.
    """

    def __init__(
        self,
        source: Store,
        labels: Labels,
        rows: Ints,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        augment: Augment,
        row_weights: npt.NDArray[np.float64] | None = None,
        window: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """Describe a training's batches; nothing is read yet.

        Args:
            source: The images.
            labels: Aligned with the source: row i labels image i.
            rows: (n,) rows of the source to train on.
            batch_size: Images a step, of each rank.
            epochs: How often as many images as there are rows are shown.
            seed: Same seed, same batches.
            augment: What is done to the images.
            row_weights: (n,) how often a row is drawn, as a share; None: an epoch shows each row once.
            window: How many images are shuffled together; None: all. See `kaggle_kit.train.order`.
            rank: Which of several processes that train together this is; they share every epoch's rows.
            num_ranks: How many there are.
        """
        self._source = source
        self._labels = _label_arrays(labels)
        self._given = (rows, row_weights)
        assert len(rows) >= batch_size * num_ranks, "checked before the training"
        self.batch_size = batch_size
        self._epochs = epochs
        self._seed = seed
        self._augment = augment
        self._rank = rank
        self._num_ranks = num_ranks
        self.set_window(window)
        self.steps_per_epoch = len(rows) // (self.batch_size * num_ranks)

    def set_window(self, window: int | None) -> None:
        """Change how many images are shuffled together, and so the order of all."""
        rows, weights = self._given
        by_place = np.argsort(rows, kind="stable") if window is not None else np.arange(len(rows))
        self._rows = rows[by_place]  # neighbours on the disk are neighbours here
        self._row_weights = None if weights is None else weights[by_place]
        self.window = window
        self._order: tuple[int, Ints] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return self.steps_per_epoch * self._epochs

    def __getitem__(self, step: int) -> Batch:
        """Return batch `step` of the training."""
        rows = self.rows_of(step)
        images = self._source.take(rows)
        seed = int(np.random.default_rng((self._seed, 2, step * self._num_ranks + self._rank)).integers(2**31))
        labels = {head: torch.from_numpy(values[rows]) for head, values in self._labels.items()}
        return Batch(torch.from_numpy(self._augment(images, seed=seed)), labels)

    def rows_of(self, step: int) -> Ints:
        """Return the (B,) rows of the source that batch `step` shows."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(epoch))
        start = (place * self._num_ranks + self._rank) * self.batch_size
        return self._rows[self._order[1][start : start + self.batch_size]]

    def ids_of(self, step: int) -> list[str]:
        """Return the ids of the images that batch `step` shows."""
        return [str(name) for name in self._source.ids[self.rows_of(step)]]

    def _epoch_order(self, epoch: int) -> Ints:
        if self._row_weights is None:
            return shuffled(len(self._rows), seed=self._seed, epoch=epoch, window=self.window)
        return drawn(len(self._rows), self._row_weights, seed=self._seed, epoch=epoch, window=self.window)


def _label_arrays(labels: Labels) -> dict[str, npt.NDArray[Any]]:
    """Return labels as batches hold them: class indices as int64, several labels as float32 of 0 and 1."""
    return {
        head: values.astype(np.float32) if values.ndim == 2 else values.astype(np.int64)
        for head, values in {**labels.classes, **labels.auxiliary}.items()
    }


def make_loader(
    stream: TrainStream, steps: range | None = None, *, num_workers: int | None, device: torch.device
) -> DataLoader[Batch]:
    """Return a loader of a stream's batches, in order.

    Args:
        stream: The batches.
        steps: Which of them; also beyond the last epoch. None: all.
        num_workers: None: up to 8 with a GPU; none on the CPU, which the network needs itself.
        device: Where batches go; pinned memory for a GPU.
    """
    cuda = device.type == "cuda"
    workers = num_workers if num_workers is not None else min(MAX_WORKERS, num_cores()) if cuda else 0
    return DataLoader(
        stream,
        sampler=range(len(stream)) if steps is None else steps,
        batch_size=None,
        num_workers=workers,
        pin_memory=cuda,
        worker_init_fn=functools.partial(_share_cores, num_workers=workers) if workers else None,
        # Not by fork: OpenCV's and Arrow's threads are not in the copy, and what waits for them waits for ever.
        multiprocessing_context="spawn" if workers else None,
    )


def _share_cores(_worker: int, *, num_workers: int) -> None:
    """Keep each worker to its share of the cores: workers times threads would fight for them.

    Ctrl-C, which a terminal tells all of them, is the training's own affair.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share_cores(num_workers)
