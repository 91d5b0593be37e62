"""What one fold's training is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.labels import Labels
from kaggle_kit.task import Task
from kaggle_kit.train.config import TrainConfig, Weights
from kaggle_kit.train.data import Store

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """What is trained on what, and where it goes.

    Attributes:
        task: The competition, its stored size and auxiliary classes known.
        config: The settings.
        source: Images, (H, W, C) uint8 of the stored size.
        labels: Aligned with the source: row i labels image i.
        train_rows: Rows to train on.
        valid_rows: Rows to validate on, in the order of the out-of-fold predictions; none: the last weights are kept.
        fold: The fold's number; -1 for a training on everything.
        folder: Where files go.
        derivation: For `model.derive_from`: {head: (A,) the class that each auxiliary class belongs to}.
        keep: Which weights to keep where nothing validates.
    """

    task: Task
    config: TrainConfig
    source: Store
    labels: Labels
    train_rows: Ints
    valid_rows: Ints
    fold: int
    folder: Path
    derivation: Mapping[str, Ints] | None = None
    keep: Weights = "raw"

    @property
    def seed(self) -> int:
        """What everything random in this fold follows."""
        return self.config.seed * 1000 + self.fold % 1000

    @property
    def title(self) -> str:
        """What progress bars and messages call it."""
        return f"fold {self.fold}" if self.fold >= 0 else "everything"
