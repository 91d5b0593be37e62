"""Pseudo-labels: test images that earlier predictions are sure of, as further train images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.labels import Classes, Labels
from kaggle_kit.packing.competition import pack_test
from kaggle_kit.predictions import Predictions
from kaggle_kit.progress import say
from kaggle_kit.sources import PackedSource
from kaggle_kit.sources.stacked import StackedStores
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Head, Task
from kaggle_kit.train.config import PseudoConfig

TAG = "pseudo"


def add_pseudo_labels(
    task: Task, config: PseudoConfig, source: PackedSource, *, data: Path, beside: Path
) -> tuple[PackedSource | StackedStores, Labels | None]:
    """Return the images of train and test as one source, and the labels that predictions give the latter.

    Args:
        task: The competition, stored size known.
        config: The predictions' file, and how sure they must be.
        source: The train images.
        data: The competition's data folder.
        beside: Where the test images are packed.

    Raises:
        PredictionError: When the file holds no predictions.
        DataError: When it predicts other heads, classes or images, or is sure of none.
    """
    if config.predictions is None:
        return source, None
    path = Path(config.predictions)
    predictions = Predictions.load(path)
    _check_heads(task, predictions, path)
    if any(tag == TAG for tag in getattr(source, "tags", ())):
        raise DataError(
            f"{source.folder} holds images tagged {TAG!r}, as pseudo-labels are; pack them under another tag"
        )
    store = pack_test(task, data, beside=beside)
    unknown = predictions.ids[rows_of(predictions.ids, store.ids) < 0]
    if len(unknown):
        raise DataError(
            f"{path} predicts {len(unknown):,} images that are none of the test's: {some_of(unknown)}; predict those "
            f"in {data}"
        )
    sure = _least_sure(task, predictions) >= config.floor
    sure &= ~np.isin(predictions.ids, list(store.broken))
    if not sure.any():
        raise DataError(f"{path}: no image reaches `pseudo.floor` {config.floor:g}; lower it, or leave pseudo out")
    say(f"{int(sure.sum()):,} of {len(sure):,} test images are predicted with at least {config.floor:g} and train too")
    labels = Labels(
        ids=np.char.add(f"{TAG}/", predictions.ids[sure]),
        classes=_decided(task, {head: probs[sure] for head, probs in predictions.probs.items()}),
        auxiliary={name: np.full(int(sure.sum()), -1, np.int64) for name in task.auxiliary},
    )
    return StackedStores(source, store, tag=TAG), labels


def pseudo_key(config: PseudoConfig) -> str:
    """Return 12 hexadecimal digits of the predictions' contents; nothing where there are none."""
    if config.predictions is None or not Path(config.predictions).is_file():
        return ""
    return hashlib.sha256(Path(config.predictions).read_bytes()).hexdigest()[:12]


def _check_heads(task: Task, predictions: Predictions, path: Path) -> None:
    found = {head: probs.shape[1] for head, probs in predictions.probs.items()}
    expected = {name: head.num_classes for name, head in task.heads.items()}
    if found != expected:
        raise DataError(f"{path} predicts heads with so many classes {found}; {task.name!r} has {expected}")
    if set(predictions.multilabel) != set(task.multilabel_heads):
        raise DataError(
            f"{path} predicts multi-label heads {list(predictions.multilabel)}; {task.name!r} has "
            f"{list(task.multilabel_heads)}"
        )


def _least_sure(task: Task, predictions: Predictions) -> npt.NDArray[np.float32]:
    """Return (N,) the probability of what is decided, of the head that is least sure."""
    sureness = [_sureness(head, predictions.probs[name]) for name, head in task.heads.items()]
    return np.asarray(np.min(sureness, axis=0))


def _sureness(head: Head, probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if head.kind == "multilabel":
        return np.asarray(np.maximum(probs, 1 - probs).min(axis=1))
    return np.asarray(probs.max(axis=1))


def _decided(task: Task, probs: dict[str, npt.NDArray[np.float32]]) -> Classes:
    return {
        name: (probs[name] >= 0.5).astype(np.uint8) if head.kind == "multilabel" else probs[name].argmax(axis=1)
        for name, head in task.heads.items()
    }
