"""Which train images an epoch shows: rare classes more often, by drawing rows with replacement."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.labels import Labels
from kaggle_kit.task import Task
from kaggle_kit.train.config import SamplingConfig
from kaggle_kit.train.order import shuffled

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def row_weights(task: Task, config: SamplingConfig, labels: Labels, rows: Ints) -> Floats | None:
    """Return how often each train row is drawn.

    Only the classes that the rows have are balanced. Rows of a multi-label head weigh the mean of what their labels
    weigh; those without a label are one more class. Rows whose class of an auxiliary head is not known are drawn as
    often as without balancing, and the others share the rest.

    Args:
        task: Its heads are what `per-head` balances, and their combination what an empty `head` means; `head` may also
            name an auxiliary one.
        config: What is balanced.
        labels: Aligned with the source: row i labels image i.
        rows: (n,) rows of the source to train on.

    Returns:
        (n,) shares above 0 that sum to 1, aligned with `rows`; None where every row comes once (`shuffle`).

    Raises:
        SettingError: When `sampling.head` is no head of the task.
    """
    if config.name == "shuffle":
        return None
    if config.name == "per-head":
        shares = [_shares(labels.classes[head][rows], power=1.0) for head in task.heads]
        return np.asarray(np.mean(shares, axis=0))
    power = 1.0 if config.name == "balanced" else 0.5
    if not config.head:
        columns = [values[rows].reshape(len(rows), -1) for values in (labels.classes[head] for head in task.heads)]
        combinations = np.unique(np.concatenate(columns, axis=1), axis=0, return_inverse=True)[1]
        return _shares(combinations.ravel(), power=power)
    known = {**labels.classes, **labels.auxiliary}
    if config.head not in task.trained_heads:
        close = did_you_mean(config.head, task.trained_heads)
        raise SettingError(f"`sampling.head` is {config.head!r}, no head of task {task.name!r}{close}")
    return _shares(known[config.head][rows], power=power)


def drawn(num_rows: int, weights: Floats, *, seed: int, epoch: int, window: int | None = None) -> Ints:
    """Return `num_rows` rows drawn with replacement, in an order that depends on nothing but the arguments.

    Args:
        num_rows: How many there are, and how many are drawn.
        weights: (num_rows,) how often each row is drawn; any scale.
        seed: The training's.
        epoch: Counted from 0.
        window: As in `kaggle_kit.train.order.shuffled`: rows that are neighbours are drawn around the same time.

    Returns:
        Row i comes either floor or ceil of num_rows times its share often; so do the rows of one weight, such as those
        of one class, together.

    Source: systematic resampling (Kitagawa 1996), which varies less than independent draws. What is added: rows lie in
    order of their weight, those of one weight shuffled, so that whole classes too come as often as they should.
    """
    assert weights.shape == (num_rows,), f"{weights.shape} weights for {num_rows} rows"
    rng = np.random.default_rng((seed, 4, epoch))
    order = rng.permutation(num_rows)
    order = order[np.argsort(weights[order], kind="stable")]
    ends = np.cumsum(weights[order])
    ends *= num_rows / ends[-1]
    ends[-1] = num_rows  # rounding never costs a row
    counts = np.empty(num_rows, np.int64)
    counts[order] = np.diff(np.floor(ends + rng.random()).astype(np.int64), prepend=0)
    return np.repeat(np.arange(num_rows), counts)[shuffled(num_rows, seed=seed, epoch=epoch, window=window)]


def _shares(classes: npt.NDArray[Any], *, power: float) -> Floats:
    """Return (n,) shares of rows, by the counts of their classes to the power of -`power`."""
    if classes.ndim == 2:
        weights = _multilabel_weights(classes, power=power)
        return np.asarray(weights / weights.sum())
    known = classes >= 0
    weights = np.full(len(classes), 1 / len(classes))
    if known.any():
        inverse = _inverse(np.bincount(classes[known]), power=power)[classes[known]]
        weights[known] = inverse * (known.mean() / inverse.sum())
    return weights


def _multilabel_weights(labels: npt.NDArray[Any], *, power: float) -> Floats:
    present = np.column_stack([labels > 0, ~(labels > 0).any(axis=1)]).astype(np.float64)
    weights: Floats = present @ _inverse(present.sum(axis=0), power=power) / present.sum(axis=1)
    return weights


def _inverse(counts: npt.NDArray[Any], *, power: float) -> Floats:
    """Return counts to the power of -`power`, 0 for none."""
    weights: Floats = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** -power, 0.0)
    return weights
