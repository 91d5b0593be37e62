"""Batches for training: the same stream for the same seed, whatever the number of workers."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from kaggle_kit.labels import Labels
from kaggle_kit.machine import num_cores, share_cores
from kaggle_kit.sources import PackedSource
from kaggle_kit.train.augment import Augment
from kaggle_kit.train.order import shuffled

Ints = npt.NDArray[np.int64]
MAX_WORKERS = 8


class Batch(NamedTuple):
    """Images and their labels.

    Attributes:
        images: (B, H, W, C) uint8.
        labels: (B, heads) int64, in the task's order of heads.
    """

    images: torch.Tensor
    labels: torch.Tensor


class TrainStream(Dataset[Batch]):
    """All batches of all epochs, in order: item k is a pure function of the seed and k.

    One pass over it is the whole training, so workers start once and a training can begin at any step.
    """

    def __init__(
        self,
        source: PackedSource,
        labels: Labels,
        rows: Ints,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        augment: Augment,
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
            epochs: How often the rows are gone through.
            seed: Same seed, same batches.
            augment: What is done to the images.
            window: How many images are shuffled together; None: all. See `kaggle_kit.train.order`.
            rank: Which of several processes that train together this is; they share every epoch's rows.
            num_ranks: How many there are.
        """
        self._source = source
        self._labels = labels.combinations()
        self._rows = np.sort(rows) if window is not None else rows  # neighbours on the disk are neighbours here
        self._batch_size = min(batch_size, max(1, len(rows) // num_ranks))
        self._epochs = epochs
        self._seed = seed
        self._augment = augment
        self._window = window
        self._rank = rank
        self._num_ranks = num_ranks
        self._order: tuple[int, Ints] = (-1, np.zeros(0, np.int64))
        # The odd rest comes up in other epochs.
        self.steps_per_epoch = len(rows) // (self._batch_size * num_ranks)

    def __len__(self) -> int:
        return self.steps_per_epoch * self._epochs

    def __getitem__(self, step: int) -> Batch:
        """Return batch `step` of the training."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = shuffled(len(self._rows), seed=self._seed, epoch=epoch, window=self._window)
            self._order = (epoch, order)
        start = (place * self._num_ranks + self._rank) * self._batch_size
        rows = self._rows[self._order[1][start : start + self._batch_size]]
        images = self._source.take(rows)
        seed = int(np.random.default_rng((self._seed, 2, step * self._num_ranks + self._rank)).integers(2**31))
        return Batch(torch.from_numpy(self._augment(images, seed=seed)), torch.from_numpy(self._labels[rows]))


def make_loader(stream: TrainStream, *, num_workers: int | None, device: torch.device) -> DataLoader[Batch]:
    """Return a loader of a stream's batches, in order.

    Args:
        stream: The batches.
        num_workers: None: up to 8 with a GPU; none on the CPU, which the network needs itself.
        device: Where batches go; pinned memory for a GPU.
    """
    cuda = device.type == "cuda"
    workers = num_workers if num_workers is not None else min(MAX_WORKERS, num_cores()) if cuda else 0
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=cuda,
        worker_init_fn=functools.partial(_share_cores, num_workers=workers) if workers else None,
        # Not by fork: OpenCV's and Arrow's threads are not in the copy, and what waits for them waits for ever.
        multiprocessing_context="spawn" if workers else None,
    )


def _share_cores(_worker: int, *, num_workers: int) -> None:
    """Keep each worker to its share of the cores: workers times threads would fight for them."""
    share_cores(num_workers)
