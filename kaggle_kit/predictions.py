"""Probabilities by id: what members give, blends combine and submissions are made from."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import PredictionError, some_of
from kaggle_kit.files import replacing
from kaggle_kit.labels import Classes
from kaggle_kit.tables import Text, rows_of

Probs = dict[str, npt.NDArray[np.float32]]
SUM_TOLERANCE = 2e-3  # softmax over 168 classes, rounded to float16, was seen to miss 1 by 4e-4


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Probabilities of every head for a set of images.

    Attributes:
        ids: (N,) image ids, no two alike.
        probs: {head: (N, C) float32 in [0, 1]}, whose rows sum to 1 but for multi-label heads.
        multilabel: The multi-label heads, each of whose classes has a probability of its own.
    """

    ids: Text
    probs: Probs
    multilabel: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_ids(self.ids)
        unknown = [head for head in self.multilabel if head not in self.probs]
        if unknown:
            raise PredictionError(f"multi-label head {unknown[0]!r} has no probs, only {some_of(self.probs)}; add them")
        for head, probs in self.probs.items():
            _check_probs(head, probs, self.ids, sums_to_1=head not in self.multilabel)

    def __len__(self) -> int:
        return len(self.ids)

    def align(self, ids: Text) -> Predictions:
        """Return the predictions of these ids, in this order: itself where they are in this order already.

        Raises:
            PredictionError: When an id has no prediction.
        """
        if np.array_equal(ids, self.ids):
            return self
        rows = rows_of(ids, self.ids)
        if (rows < 0).any():
            missing = ids[rows < 0]
            raise PredictionError(
                f"{len(missing):,} of {len(ids):,} ids have no prediction: {some_of(missing)}; predict them too"
            )
        taken = {head: probs[rows] for head, probs in self.probs.items()}
        return Predictions(ids=ids, probs=taken, multilabel=self.multilabel)

    def decide(self) -> Classes:
        """Return {head: (N,) class index of the highest probability; multi-label: (N, C) uint8, 1 from 0.5 on}."""
        return {
            head: (probs >= 0.5).astype(np.uint8) if head in self.multilabel else probs.argmax(axis=1).astype(np.int64)
            for head, probs in self.probs.items()
        }

    def save(self, path: Path) -> None:
        """Write an .npz file atomically: `ids`, `probs/<head>` for each head, and `multilabel` where heads are."""
        arrays: dict[str, npt.NDArray[Any]] = {f"probs/{head}": probs for head, probs in self.probs.items()}
        if self.multilabel:
            arrays["multilabel"] = np.array(self.multilabel, np.str_)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=self.ids, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            PredictionError: When there is no such file, it is damaged, or it holds no probabilities.
        """
        if not path.is_file():
            raise PredictionError(
                f"{path} is missing; expected predictions: a run's oof.npz, or what `kaggle-kit predict --probs` wrote"
            )
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PredictionError(f"{path} is damaged ({error}); make it again") from None
        probs = {name.removeprefix("probs/"): a for name, a in arrays.items() if name.startswith("probs/")}
        if "ids" not in arrays or not probs:
            raise PredictionError(f"{path} holds {some_of(arrays)}; expected `ids` and `probs/<head>`")
        try:
            return cls(ids=arrays["ids"], probs=probs, multilabel=tuple(arrays.get("multilabel", np.zeros(0)).tolist()))
        except PredictionError as error:
            raise PredictionError(f"{path}: {error}") from None


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Return the rows of all parts, in order; ids must not repeat across parts.

    Raises:
        PredictionError: When there are no parts, their heads differ, or an id repeats.
    """
    if not parts:
        raise PredictionError("there are no predictions to join; give at least one part")
    heads, multilabel = list(parts[0].probs), parts[0].multilabel
    for part in parts[1:]:
        if list(part.probs) != heads:
            raise PredictionError(f"parts have different heads: {heads} and {list(part.probs)}; predict the same heads")
        if set(part.multilabel) != set(multilabel):
            raise PredictionError(
                f"parts have different multi-label heads: {list(multilabel)} and {list(part.multilabel)}; predict the "
                "same heads"
            )
    for head in heads:
        sizes = {part.probs[head].shape[1] for part in parts}
        if len(sizes) > 1:
            raise PredictionError(f"head {head!r}: parts have {sorted(sizes)} classes; predict the same classes")
    probs = {head: np.concatenate([part.probs[head] for part in parts]) for head in heads}
    return Predictions(ids=np.concatenate([part.ids for part in parts]), probs=probs, multilabel=multilabel)


def take_columns(probs: Probs, columns: Mapping[str, npt.NDArray[np.int64]]) -> Probs:
    """Return probabilities with classes in another order.

    Args:
        probs: {head: (N, C)}.
        columns: {head: (C,) the column of each class}; heads that are not named stay as they are.
    """
    return {head: np.take(own, columns[head], axis=1) if head in columns else own for head, own in probs.items()}


def _check_ids(ids: Text) -> None:
    if ids.ndim != 1 or ids.dtype.kind != "U":
        raise PredictionError(f"ids are {ids.dtype} {ids.shape}; expected (N,) text, such as from astype(np.str_)")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        repeated = unique[counts > 1]
        raise PredictionError(
            f"{len(repeated):,} id(s) occur more than once: {some_of(repeated)} ({counts[counts > 1][0]} times); keep "
            "one row of each"
        )


def _check_probs(head: str, probs: npt.NDArray[np.float32], ids: Text, *, sums_to_1: bool) -> None:
    if probs.ndim != 2 or len(probs) != len(ids) or not probs.shape[1]:
        raise PredictionError(f"head {head!r}: probs have shape {probs.shape}; expected ({len(ids)}, classes)")
    if probs.dtype != np.float32:
        raise PredictionError(f"head {head!r}: probs are {probs.dtype}; expected float32, as of astype(np.float32)")
    if not sums_to_1:
        _check_each(head, probs, ids)
        return
    sums = probs.sum(axis=1, dtype=np.float64)
    wrong = ~(np.abs(sums - 1) <= SUM_TOLERANCE) | ~(probs.min(axis=1) >= 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionError(
            f"head {head!r}: probs of {str(ids[row])!r} {_what_is_wrong(probs[row])} ({int(wrong.sum()):,} of "
            f"{len(ids):,} row(s))"
        )


def _what_is_wrong(row: npt.NDArray[np.float32]) -> str:
    """Return what is wrong with (C,) values that are no probabilities, and what to do."""
    low, high, total = row.min(), row.max(), row.sum(dtype=np.float64)
    if not np.isfinite(row).all():
        place = int(np.argmin(np.isfinite(row)))
        value = "NaN" if np.isnan(row[place]) else str(row[place])
        return f"hold {value} (class {place}), not a probability; leave these predictions out, or make them again"
    if low < 0 or high > 1 + SUM_TOLERANCE:
        return (
            f"are outside [0, 1] (lowest {low:.4f}, highest {high:.4f}, sum {total:.4f}) and look like logits; pass "
            "softmax outputs, not logits"
        )
    return f"sum to {total:.4f}, not 1 (lowest {low:.4f}, highest {high:.4f}); pass softmax outputs of all classes"


def _check_each(head: str, probs: npt.NDArray[np.float32], ids: Text) -> None:
    wrong = ~((probs >= 0) & (probs <= 1)).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        lacking = np.flatnonzero(np.isnan(probs[row]))
        span = (
            f"class {lacking[0]} is NaN" if len(lacking) else f"from {probs[row].min():.4f} to {probs[row].max():.4f}"
        )
        raise PredictionError(
            f"multi-label head {head!r}: probs of {str(ids[row])!r} are NaN or outside [0, 1] ({span}); pass sigmoid "
            f"outputs, not logits ({int(wrong.sum()):,} of {len(ids):,} row(s))"
        )
