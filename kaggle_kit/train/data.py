"""Batches for training: the same stream for the same seed, whatever the number of workers."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from kaggle_kit.labels import Labels
from kaggle_kit.sources import Source
from kaggle_kit.train.augment import Augment

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
        self, source: Source, labels: Labels, rows: Ints, *, batch_size: int, epochs: int, seed: int, augment: Augment
    ) -> None:
        self._source = source
        self._labels = labels.combinations()
        self._rows = rows
        self._batch_size = min(batch_size, len(rows))
        self._epochs = epochs
        self._seed = seed
        self._augment = augment
        self.steps_per_epoch = len(rows) // self._batch_size  # the odd rest comes up in other epochs

    def __len__(self) -> int:
        return self.steps_per_epoch * self._epochs

    def __getitem__(self, step: int) -> Batch:
        """Return batch `step` of the training."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self._seed, 1, epoch)).permutation(len(self._rows))
        rows = self._rows[order[place * self._batch_size : (place + 1) * self._batch_size]]
        images = np.stack([self._source.read(int(row)) for row in rows])
        seed = int(np.random.default_rng((self._seed, 2, step)).integers(2**31))
        return Batch(torch.from_numpy(self._augment(images, seed=seed)), torch.from_numpy(self._labels[rows]))


def make_loader(stream: TrainStream, *, num_workers: int | None, device: torch.device) -> DataLoader[Batch]:
    """Return a loader of a stream's batches, in order.

    Args:
        stream: The batches.
        num_workers: None: up to 8 with a GPU; none on the CPU, which the network needs itself.
        device: Where batches go; pinned memory for a GPU.
    """
    cuda = device.type == "cuda"
    workers = num_workers if num_workers is not None else min(MAX_WORKERS, os.cpu_count() or 1) if cuda else 0
    return DataLoader(
        stream, batch_size=None, num_workers=workers, pin_memory=cuda, worker_init_fn=_quiet_opencv if workers else None
    )


def _quiet_opencv(_worker: int) -> None:
    """Give each worker one OpenCV thread: workers times threads would fight for the cores."""
    import cv2

    cv2.setNumThreads(0)
