"""Which images an export is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import BundleError
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.sources import PackedSource, Source
from kaggle_kit.tables import Text, rows_of

T = TypeVar("T", bound=np.generic)


def packed_source(run: Run) -> PackedSource:
    """Return the images a run was trained on.

    Raises:
        BundleError: When they were packed again since.
    """
    source = PackedSource(run.packed)
    if source.key != run.packed_key:
        raise BundleError(
            f"{run.packed} was packed again from other data or at another size since run {run.name!r} was trained; "
            "train it again, or pack what it was trained on"
        )
    return source


def sampled_ids(runs: Sequence[Run], oofs: Mapping[str, Predictions], limit: int | None) -> Text:
    """Return images that all runs predict, at most `limit` of each fold of the first run that holds images out."""
    run = next((run for run in runs if EVERYTHING not in run.folds), runs[0])
    folds, parts = run.fold_table(), [np.zeros(0, np.str_)]
    for fold in range(folds.num_folds):
        ids = folds.ids[folds.fold == fold]
        parts.append(spread(ids[np.isin(ids, oofs[run.name].ids)], limit))
    return np.concatenate(parts)


def parity_ids(run: Run, fold: int, sampled: Text, limit: int | None) -> Text:
    """Return images of a member's fold: all that are sampled for every run, and others up to `limit`.

    Of a training on everything, which holds none out, they are images that it was trained on.
    """
    folds = run.fold_table()
    own = folds.ids if fold == EVERYTHING else folds.ids[folds.fold == fold]
    shared = np.isin(own, sampled)
    more = None if limit is None else max(0, limit - int(shared.sum()))
    return np.concatenate([own[shared], spread(own[~shared], more)])


def rows_in(ids: Text, source: Source) -> npt.NDArray[np.int64]:
    """Return where these ids are in a source.

    Raises:
        BundleError: Naming one that is not there.
    """
    rows = rows_of(ids, source.ids)
    if (rows < 0).any():
        raise BundleError(f"{source.describe()} lacks image {str(ids[rows < 0][0])!r}; pack the data again")
    return rows


def spread(values: npt.NDArray[T], limit: int | None) -> npt.NDArray[T]:
    """Return at most `limit` values, evenly spread; None: all."""
    if limit is None or len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(np.int64)]
