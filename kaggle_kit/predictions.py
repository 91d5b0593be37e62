"""Probabilities by id: what members give, blends combine and submissions are made from."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        probs: {head: (N, C) float32, rows sum to 1}.
    """

    ids: Text
    probs: Probs

    def __post_init__(self) -> None:
        if len(np.unique(self.ids)) != len(self.ids):
            raise PredictionError(
                f"{len(self.ids) - len(np.unique(self.ids)):,} id(s) occur more than once; join by id"
            )
        for head, probs in self.probs.items():
            _check_probs(head, probs, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def align(self, ids: Text) -> Predictions:
        """Return the predictions of these ids, in this order.

        Raises:
            PredictionError: When an id has no prediction.
        """
        rows = rows_of(ids, self.ids)
        if (rows < 0).any():
            missing = ids[rows < 0]
            raise PredictionError(
                f"{len(missing):,} of {len(ids):,} ids have no prediction: {some_of(missing)}; predict them too"
            )
        return Predictions(ids=ids, probs={head: probs[rows] for head, probs in self.probs.items()})

    def decide(self) -> Classes:
        """Return {head: (N,) class index of the highest probability}."""
        return {head: probs.argmax(axis=1).astype(np.int64) for head, probs in self.probs.items()}

    def save(self, path: Path) -> None:
        """Write an .npz file atomically: `ids`, and `probs/<head>` for each head."""
        arrays = {f"probs/{head}": probs for head, probs in self.probs.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=self.ids, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            PredictionError: When there is no such file, it is damaged, or it holds no probabilities.
        """
        if not path.is_file():
            raise PredictionError(f"{path} is missing; expected predictions written by `kaggle-kit train`")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PredictionError(f"{path} is damaged ({error}); make it again") from None
        probs = {name.removeprefix("probs/"): a for name, a in arrays.items() if name.startswith("probs/")}
        if "ids" not in arrays or not probs:
            raise PredictionError(f"{path} holds {some_of(arrays)}; expected `ids` and `probs/<head>`")
        try:
            return cls(ids=arrays["ids"], probs=probs)
        except PredictionError as error:
            raise PredictionError(f"{path}: {error}") from None


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Return the rows of all parts, in order; ids must not repeat across parts.

    Raises:
        PredictionError: When there are no parts, their heads differ, or an id repeats.
    """
    if not parts:
        raise PredictionError("there are no predictions to join; give at least one part")
    heads = list(parts[0].probs)
    for part in parts[1:]:
        if list(part.probs) != heads:
            raise PredictionError(f"parts have different heads: {heads} and {list(part.probs)}; predict the same heads")
    probs = {head: np.concatenate([part.probs[head] for part in parts]) for head in heads}
    return Predictions(ids=np.concatenate([part.ids for part in parts]), probs=probs)


def _check_probs(head: str, probs: npt.NDArray[np.float32], ids: Text) -> None:
    if probs.ndim != 2 or len(probs) != len(ids):
        raise PredictionError(f"head {head!r}: probs have shape {probs.shape}; expected ({len(ids)}, classes)")
    if probs.dtype != np.float32:
        raise PredictionError(f"head {head!r}: probs are {probs.dtype}; expected float32")
    sums = probs.sum(axis=1, dtype=np.float64)
    wrong = ~(np.abs(sums - 1) <= SUM_TOLERANCE) | (probs.min(axis=1, initial=0) < 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PredictionError(
            f"head {head!r}: probs of {str(ids[row])!r} sum to {sums[row]:.4f} (lowest {probs[row].min():.4f}), "
            f"not 1; pass softmax outputs, not logits ({int(wrong.sum()):,} row(s) in all)"
        )
