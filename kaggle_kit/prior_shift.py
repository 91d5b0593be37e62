"""Class shares of the test images, estimated from their probabilities, and probabilities corrected for them.

A model's probabilities assume the class shares it was trained on. Where the test images have others, and nothing else
differs, the probabilities themselves tell which. A metric that counts every class the same, such as macro recall, asks
for the same decisions whatever the shares are: there a correction only undoes what a decision rule does, so measure it
(`shift_effect`) before using it.

Source: Saerens, Latinne, Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import PredictionError
from kaggle_kit.predictions import Probs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MIN_ROWS_PER_CLASS = 10  # on average; shares of fewer images are mostly chance
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class PriorShift:
    """Class shares estimated for unlabelled images.

    Attributes:
        priors: (C,) float64, summing to 1; 0 for classes that train does not have.
        steps: How many steps of expectation maximisation were made.
        converged: Whether the last step moved no share by more than the tolerance.
    """

    priors: Floats
    steps: int
    converged: bool


def estimate_priors(
    probs: npt.NDArray[Any], train_priors: npt.NDArray[Any], *, max_steps: int = 300, tolerance: float = 1e-6
) -> PriorShift:
    """Estimate the class shares among unlabelled images by expectation maximisation.

    Args:
        probs: (N, C) rows summing to 1, from a model trained where `train_priors` held.
        train_priors: (C,) shares of the classes in train, summing to 1. Classes of share 0 are left out, and a row
            counts for as much as the others hold of it: nothing is known about how the model would treat more of them.
        max_steps: Give up after so many steps.
        tolerance: A step that moves no share by more ends it.

    Raises:
        PredictionError: When shapes differ, probabilities are not finite, or none is above 0 for a class of train, or
            `train_priors` sum to something else.
    """
    train = _checked_shares("train_priors", train_priors, probs)
    seen = train > 0
    values = np.asarray(probs[:, seen], np.float64)
    if not np.isfinite(values.sum()):
        raise PredictionError(f"probs of {len(values):,} rows hold NaN or infinity; leave out the rows that failed")
    values = values[values.sum(axis=1) > 0]
    if not len(values):
        raise PredictionError(
            f"there are no probs to estimate class shares from ({len(probs):,} rows); give at least one row with a "
            "probability above 0 for a class that train has"
        )
    masses, priors = values.sum(axis=1), train.copy()
    for step in range(1, max_steps + 1):
        factors = priors[seen] / train[seen]
        new = np.zeros_like(train)
        new[seen] = factors * (values.T @ (masses / (values @ factors)))  # sums of the corrected probabilities
        new /= new.sum()
        moved = float(np.abs(new - priors).max())
        priors = new
        if moved <= tolerance:
            return PriorShift(priors=priors, steps=step, converged=True)
    return PriorShift(priors=priors, steps=max_steps, converged=False)


def shift_probs(
    probs: npt.NDArray[Any], train_priors: npt.NDArray[Any], priors: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Return the probabilities as they would be where the classes have other shares.

    Args:
        probs: (N, C) rows summing to 1, from a model trained where `train_priors` held.
        train_priors: (C,) shares of the classes in train. A class of share 0 keeps its probability as given; the
            others share what is left of the row.
        priors: (C,) shares of the classes among these rows.

    Returns:
        (N, C) float32, rows summing to what they summed to. A row that would vanish (all that it has for classes of
        train is on such of share 0 in `priors`) stays as it was.

    Raises:
        PredictionError: When shapes differ, or shares are not finite or sum to something else.
    """
    train, priors = _checked_shares("train_priors", train_priors, probs), _checked_shares("priors", priors, probs)
    seen = train > 0
    values = np.asarray(probs[:, seen], np.float64)
    weighted = values * (priors[seen] / train[seen])
    sums = weighted.sum(axis=1)
    usable = sums > 0
    shifted = np.array(probs, np.float32)
    scale = values[usable].sum(axis=1) / sums[usable]
    shifted[np.ix_(usable, seen)] = weighted[usable] * scale[:, None]
    return shifted


def rows_needed(num_classes: int) -> int:
    """Return from how many usable rows on `shift_predictions` corrects a head."""
    return MIN_ROWS_PER_CLASS * num_classes


def shift_predictions(
    probs: Mapping[str, npt.NDArray[np.float32]],
    train_priors: Mapping[str, npt.NDArray[Any]],
    *,
    skip: npt.NDArray[np.bool_] | None = None,
) -> tuple[Probs, list[str]]:
    """Correct every head's probabilities for the class shares estimated from them.

    Args:
        probs: {head: (N, C) float32, rows sum to 1}.
        train_priors: {head: (C,) shares of the classes in train}.
        skip: (N,) True for rows that say nothing, such as broken images: left out of the estimate, and unchanged.

    Returns:
        The probabilities, and one sentence a head about what was done. A head with fewer than `MIN_ROWS_PER_CLASS`
        rows a class, on average, stays as it is.

    Raises:
        PredictionError: When a head has no train shares, or its probabilities cannot be used.
    """
    shifted, said = {}, []
    for head, values in probs.items():
        if head not in train_priors:
            raise PredictionError(f"head {head!r} has no train_priors (found: {', '.join(train_priors)}); add them")
        try:
            shifted[head], sentence = _shift_head(values, np.asarray(train_priors[head]), skip)
        except PredictionError as error:
            raise PredictionError(f"head {head!r}: {error}") from None
        said.append(f"head {head!r}: {sentence}")
    return shifted, said


def _shift_head(
    probs: npt.NDArray[np.float32], train: npt.NDArray[Any], skip: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.float32], str]:
    if skip is not None and skip.shape != probs.shape[:1]:
        raise PredictionError(f"skip has shape {skip.shape}; expected ({len(probs)},), one value a row")
    used = slice(None) if skip is None else ~skip
    rows, (_, num_classes) = probs[used], probs.shape
    needed = rows_needed(num_classes)
    if len(rows) < needed:
        return probs, f"class shares left as in train: {len(rows):,} usable images are fewer than {needed:,}"
    found = estimate_priors(rows, train)
    if not found.converged:
        return probs, f"class shares left as in train: the estimate had not settled after {found.steps} steps"
    shifted = probs.copy()
    shifted[used] = shift_probs(rows, train, found.priors)
    moved = int(np.abs(found.priors - train).argmax())
    return shifted, (
        f"class shares estimated from {len(rows):,} images in {found.steps} steps; class {moved} moved most, "
        f"from {train[moved]:.4f} to {found.priors[moved]:.4f}"
    )


def _checked_shares(name: str, shares: npt.NDArray[Any], probs: npt.NDArray[Any]) -> Floats:
    shares = np.asarray(shares, np.float64)
    if probs.ndim != 2 or shares.shape != probs.shape[1:]:
        raise PredictionError(
            f"probs have shape {probs.shape} and {name} {shares.shape}; expected (N, C) and (C,): "
            "give one share for each class of the model"
        )
    if not (shares.min() >= 0 and abs(shares.sum() - 1) <= _SUM_TOLERANCE):
        raise PredictionError(
            f"{name} sum to {shares.sum():.4f} (lowest {shares.min():.4f}), not 1; "
            "pass shares of the train labels, not counts"
        )
    return np.asarray(shares / shares.sum())
