"""Terms: what a mix averages over runs in place of one head's probabilities, a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import row_chunks
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.heads import Head
from kaggle_kit.mixes import MixKind, calibrate, half_term, to_terms

_BLOCK = 8_000_000  # terms of all runs in a block of rows: 32 MB of float32


@dataclass(frozen=True, kw_only=True)
class RunTerms:
    """R runs' probabilities of one head, and how they are averaged.

    Attributes:
        head: Which head.
        values: R (N, C) arrays of probabilities, rows in the same order.
        kind: How they are averaged; anything but a stack.
        power: Of a power mean.
        temperatures: (R,) as a `Mix` has them; none: 1.
        ranks: For kind `rank`, R (C, Q) tables of quantiles.
    """

    head: Head
    values: tuple[npt.NDArray[Any], ...]
    kind: MixKind = "arithmetic"
    power: float = 1.0
    temperatures: tuple[float, ...] = ()
    ranks: tuple[npt.NDArray[Any], ...] = ()

    def __post_init__(self) -> None:
        name, runs = self.head.name, len(self.values)
        if self.kind == "stack":
            raise SettingError(f"head {name!r}: a stack weighs no runs; give a kind of mix that does")
        if not runs or not len(self.values[0]):
            raise PredictionError(f"head {name!r}: {runs} runs and no rows; give at least one of each")
        if len(self.ranks) != (runs if self.kind == "rank" else 0):
            raise PredictionError(
                f"head {name!r}: {len(self.ranks)} tables of quantiles for {runs} runs mixed by {self.kind}; give one "
                "a run for kind 'rank', else none"
            )
        if self.temperatures and len(self.temperatures) != runs:
            raise SettingError(f"head {name!r}: {len(self.temperatures)} temperatures for {runs} runs; give one a run")
        for number, probs in enumerate(self.values):
            self._check_run(number, probs)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.values[0])

    @property
    def multilabel(self) -> bool:
        """Whether each class has a probability of its own."""
        return self.head.kind == "multilabel"

    @property
    def half(self) -> float:
        """The mean from which on a multi-label class is said."""
        return half_term(self.kind, power=self.power)

    @property
    def rows_a_block(self) -> int:
        """How many rows to look at at once, so that blocks stay small."""
        return max(1, _BLOCK // (len(self.values) * self.head.num_classes))

    def block(self, rows: npt.NDArray[np.int64] | slice) -> npt.NDArray[Any]:
        """Return (R, n, C) terms of n rows as `mix_head` sums them: float64, or probabilities as they are."""
        return np.stack([self._of_run(number, rows) for number in range(len(self.values))])

    def tops(self, rows: slice) -> npt.NDArray[np.int64]:
        """Return (R, n) classes with the highest term in each run; of equal ones the lower."""
        if self.kind == "rank":  # every class has a table of its own
            return np.asarray(self.block(rows).argmax(axis=2))
        return np.stack([probs[rows].argmax(axis=1) for probs in self.values])

    def _of_run(self, number: int, rows: npt.NDArray[np.int64] | slice) -> npt.NDArray[Any]:
        probs = self.values[number][rows]
        temperature = self.temperatures[number] if self.temperatures else 1.0
        if self.kind == "arithmetic" and temperature == 1:
            return probs
        table = self.ranks[number] if self.kind == "rank" else None
        own = calibrate(probs, temperature, multilabel=self.multilabel)
        return to_terms(self.kind, own, power=self.power, multilabel=self.multilabel, ranks=table)

    def _check_run(self, number: int, probs: npt.NDArray[Any]) -> None:
        shape = (self.num_rows, self.head.num_classes)
        if probs.shape != shape:
            raise PredictionError(
                f"head {self.head.name!r}: run {number} has probabilities of shape {probs.shape}; expected {shape}, "
                "rows and classes as in the first run"
            )
        for rows in row_chunks(len(probs)):
            if not np.isfinite(probs[rows].sum()):
                row = rows.start + int(np.argmin(np.isfinite(probs[rows]).all(axis=1)))
                raise PredictionError(
                    f"head {self.head.name!r}: run {number} has {probs[row].min()} in row {row}; expected finite "
                    "probabilities: predict again"
                )


def run_terms(
    head: Head,
    values: Sequence[npt.NDArray[Any]],
    *,
    kind: MixKind = "arithmetic",
    power: float = 1.0,
    temperatures: Sequence[float] = (),
    ranks: Sequence[npt.NDArray[Any]] = (),
) -> RunTerms:
    """Return the terms of several runs' probabilities, after checking that they fit together.

    Raises:
        PredictionError: When runs differ in shape, or hold what is not finite.
        SettingError: When the kind weighs no runs, or there are not as many temperatures as runs.
    """
    return RunTerms(
        head=head,
        values=tuple(values),
        kind=kind,
        power=power,
        temperatures=tuple(temperatures),
        ranks=tuple(ranks),
    )
