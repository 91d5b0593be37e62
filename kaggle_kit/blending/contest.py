"""Contests: exact and fast scores of one head's weight vectors, in all or without one part of the rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.mixed_rows import MixedRows, TruthLosses
from kaggle_kit.blending.open_rows import Marks, OpenCells, OpenRows
from kaggle_kit.blending.terms import RunTerms, run_terms
from kaggle_kit.decision_search import metric_of_counts
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.heads import Head
from kaggle_kit.metrics import CLASS_METRICS
from kaggle_kit.mixes import MixKind
from kaggle_kit.multilabel import MULTILABEL_METRICS
from kaggle_kit.task import Metric

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MOST_BYTES = 128_000_000  # of statistics that are kept
_MOST_AT_ONCE = 32  # weight vectors looked at together
_TINY = 1e-6  # a lower share is not scaled to 1: the others would leave float32


class Contest:
    """Scores weights of R runs for one head.

    Attributes:
        metric: The task's.
        head: The head that is scored.
        num_runs: R.
        num_parts: P.
        part_names: (P,) different values of the parts, rising; the order of statistics' rows.
    """

    def __init__(self, metric: Metric, head: Head, marks: Marks, *, num_runs: int, part_names: Ints) -> None:
        """Take what sums rows; `Contest.of` finds that."""
        self.metric, self.head, self.num_runs, self.part_names = metric, head, num_runs, part_names
        self.num_parts = len(part_names)
        self._marks = marks
        self._known: OrderedDict[bytes, Floats] = OrderedDict()

    @classmethod
    def of(
        cls,
        metric: Metric,
        head: Head,
        truth: npt.NDArray[Any],
        values: Sequence[npt.NDArray[Any]],
        parts: Ints,
        *,
        kind: MixKind = "arithmetic",
        power: float = 1.0,
        temperatures: Sequence[float] = (),
        ranks: Sequence[npt.NDArray[Any]] = (),
    ) -> Contest:
        """Prepare what weights are scored by.

        Decisions are counted exactly, on all rows, and so are log losses of a multiclass head, unless the kind is
        `geometric` or `power`. Those, log losses of multi-label heads and metrics that sort probabilities are taken of
        rows drawn by a fixed seed where there are many: at most 20,000 rows or 500,000 probabilities where they are
        sorted, 1,000,000 probabilities of log losses; each part keeps its share. Metrics that sort are the mean over
        parts, each by its rows.

        Args:
            metric: What is scored.
            head: The head.
            truth: (N,) class indices, or of a multi-label head (N, C) of 0 and 1.
            values: R runs' (N, C) probabilities, which are not kept unless their sample is.
            parts: (N,) what can be left out, such as folds.
            kind: How probabilities are averaged, as in a `Mix`; not a stack.
            power: As in a `Mix`.
            temperatures: As in a `Mix`.
            ranks: For kind `rank`, each run's (C, Q) quantiles.

        Raises:
            DataError: When truth and parts are not as long as the runs.
            PredictionError: When runs differ in shape, or hold what is not finite.
            SettingError: When the kind weighs no runs, or there are not as many temperatures as runs.
        """
        terms = run_terms(head, values, kind=kind, power=power, temperatures=temperatures, ranks=ranks)
        shape = (terms.num_rows, head.num_classes) if terms.multilabel else (terms.num_rows,)
        if truth.shape != shape or parts.shape != shape[:1]:
            raise DataError(
                f"head {head.name!r}: truth has shape {truth.shape} and parts {parts.shape}; expected {shape} and "
                f"{shape[:1]}, a row each as the runs have"
            )
        names, numbers = np.unique(parts, return_inverse=True)
        marks = _marks_of(metric, terms, truth, numbers.ravel().astype(np.int64), len(names))
        return cls(metric, head, marks, num_runs=len(values), part_names=names)

    def statistics(self, weights: npt.NDArray[Any]) -> Floats:
        """Return (P, S) what the metric is made of; sums over parts give that of the whole.

        Of decisions: counts by class of rows right, decided and true, and for quadratic kappa the sum of squared
        differences; of multi-label decisions the sums of `multilabel.mark_rows`. Else the metric times the rows, and
        the rows.

        Args:
            weights: (R,) at least 0, of any sum above 0.

        Raises:
            SettingError: When there are not R weights, or they are below 0, all 0 or not finite.
        """
        return np.asarray(self.statistics_of(np.asarray(weights)[None])[0])

    def statistics_of(self, weights: npt.NDArray[Any]) -> Floats:
        """Return (K, P, S) statistics of (K, R) weights, which is faster than one by one; some are remembered.

        Raises:
            SettingError: When there are not R weights, or they are below 0, all 0 or not finite.
        """
        scaled = self._scaled(np.asarray(weights, np.float64))
        keys = [row.tobytes() for row in scaled]
        new = {key: row for key, row in zip(keys, scaled, strict=True) if key not in self._known}
        found = {key: self._known[key] for key in keys if key not in new}
        for start in range(0, len(new), _MOST_AT_ONCE):
            some = list(new)[start : start + _MOST_AT_ONCE]
            found.update(zip(some, self._marks.sums(np.array([new[key] for key in some])), strict=True))
        for key in new:
            self._known[key] = found[key].copy()
        while len(self._known) > max(_MOST_AT_ONCE, _MOST_BYTES // found[keys[0]].nbytes):
            self._known.popitem(last=False)
        return np.stack([found[key] for key in keys])

    def goodness(self, statistics: Floats) -> Floats:
        """Return (...) the metric, with the sign that makes higher better, of (..., S) statistics of any rows.

        0 where a metric that sorts has no value in any part.
        """
        if self.metric in CLASS_METRICS and self.head.kind == "multilabel":
            return MULTILABEL_METRICS[self.metric](statistics)
        if self.metric in CLASS_METRICS:
            size = self.head.num_classes
            hits, said, true = (statistics[..., start * size : (start + 1) * size] for start in range(3))
            return metric_of_counts(self.metric, hits, true, said, statistics[..., -1])
        total, rows = statistics[..., 0], statistics[..., 1]
        value = np.divide(total, rows, out=np.zeros(np.shape(rows)), where=rows > 0)
        return -value if self.metric == "log_loss" else value

    def score(self, weights: npt.NDArray[Any], *, without: int | None = None) -> float:
        """Return the goodness over all parts, or all but the one with that number.

        Raises:
            SettingError: When the weights are no weights, or leaving the part out leaves nothing.
        """
        return float(self.scores(np.asarray(weights)[None], without=without)[0])

    def scores(self, weights: npt.NDArray[Any], *, without: int | None = None) -> Floats:
        """Return (K,) goodness of (K, R) weights, over all parts or all but the one with that number.

        Raises:
            SettingError: When the weights are no weights, or leaving the part out leaves nothing.
        """
        kept = np.ones(self.num_parts, bool)
        if without is not None:
            if not 0 <= without < self.num_parts or self.num_parts == 1:
                raise SettingError(
                    f"head {self.head.name!r}: part {without} of {self.num_parts} cannot be left out; give the number "
                    "of one of several, from 0"
                )
            kept[without] = False
        return np.asarray(self.goodness(self.statistics_of(weights)[:, kept].sum(axis=1)))

    def _scaled(self, weights: Floats) -> Floats:
        """Return (K, R) weights, the lowest made 1: equal ones then sum probabilities exactly, and ties stay ties."""
        fits = weights.ndim == 2 and weights.shape[1] == self.num_runs
        if not fits or not (np.isfinite(weights).all() and (weights >= 0).all() and (weights.sum(axis=1) > 0).all()):
            raise SettingError(
                f"head {self.head.name!r}: weights {np.array2string(weights, threshold=8, precision=4)} do not fit; "
                f"expected {self.num_runs} numbers of at least 0, not all 0"
            )
        lowest = np.where(weights > 0, weights, np.inf).min(axis=1, keepdims=True)
        return np.asarray((weights / np.maximum(lowest, _TINY * weights.sum(axis=1, keepdims=True))).round(9))


def _marks_of(metric: Metric, terms: RunTerms, truth: npt.NDArray[Any], parts: Ints, num_parts: int) -> Marks:
    if metric in CLASS_METRICS:
        if terms.multilabel:
            return OpenCells(terms, truth, parts, num_parts)
        return OpenRows(terms, truth, parts, num_parts, squares=metric == "quadratic_kappa")
    if metric == "log_loss" and not terms.multilabel and terms.kind in ("arithmetic", "rank", "vote"):
        return TruthLosses(terms, truth, parts, num_parts)
    return MixedRows(metric, terms, truth, parts, num_parts)
