"""Mixes: how several runs' probabilities of one head become one. Numpy alone, row by row, at home as in the kernel."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.decision import HALF, row_chunks
from kaggle_kit.errors import PredictionError, SettingError, some_of
from kaggle_kit.predictions import Probs

MixKind = Literal["arithmetic", "geometric", "power", "rank", "vote", "stack"]
Floats = npt.NDArray[np.float64]

LEAST_POWER, MOST_POWER = 0.01, 50.0  # beyond, the terms of a power mean round to 1, or underflow to 0
FLOOR = 1e-6  # probabilities below are taken for it where logarithms are: half precision rounds smaller ones to 0
NUM_QUANTILES = 101
VOTE_TIE = 1e-3  # how much of the mean of probabilities is put to votes, so that it decides between equal ones


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers as they are stored in JSON.

    Attributes:
        shape: Of the array.
        data: Its float32 values in C order, little-endian, base64.
    """

    shape: tuple[int, ...]
    data: str

    def __post_init__(self) -> None:
        try:
            size = len(base64.b64decode(self.data, validate=True))
        except ValueError as error:
            raise SettingError(f"`data` is not base64 ({error}); make the blend again") from None
        if size != 4 * int(np.prod(self.shape)) or min(self.shape, default=0) < 0:
            raise SettingError(f"`data` holds {size} bytes; shape {self.shape} needs {4 * int(np.prod(self.shape))}")
        if not np.isfinite(self.values).all():
            raise SettingError("`data` holds NaN or infinite numbers; make the blend again")

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Table:
        """Store an array, rounded to float32."""
        data = np.ascontiguousarray(values, "<f4").tobytes()
        return cls(shape=tuple(values.shape), data=base64.b64encode(data).decode("ascii"))

    @cached_property
    def values(self) -> Floats:
        """The array, decoded once; not to be written to."""
        return np.frombuffer(base64.b64decode(self.data), "<f4").reshape(self.shape).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A linear model on the logarithms of runs' probabilities.

    Attributes:
        sources: The heads whose probabilities it reads: the head's own, or several.
        coefficients: (F, C): for each run in order, for each source head, one row a class of that head; of a
            multi-label source the logit takes the logarithm's place.
        intercept: (C,).
    """

    sources: tuple[str, ...]
    coefficients: Table
    intercept: Table

    def __post_init__(self) -> None:
        if len(self.coefficients.shape) != 2 or self.intercept.shape != self.coefficients.shape[1:]:
            raise SettingError(
                f"`coefficients` have shape {self.coefficients.shape} and `intercept` {self.intercept.shape}; "
                "expected (features, classes) and (classes,)"
            )


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How R runs' probabilities of one head become one.

    Attributes:
        kind: `arithmetic`: the weighted mean; `geometric`: the exponential of the mean logarithm, or the sigmoid of the
            mean logit of a multi-label head; `power`: the power mean; `rank`: the mean of each class's quantile among
            the out-of-fold images; `vote`: shares of the runs that decide for a class, equal ones by the arithmetic
            mean; `stack`: a linear model. Classes of a multiclass head are made to sum to 1 again.
        weights: (R,) in the order of the runs, at least 0, summing to 1; none for a stack.
        temperatures: (R,) above 0: logarithms of a run's probabilities are divided by its own before all else; empty
            where none were fitted.
        power: Of a power mean, 0.01 to 50; below 1 it is nearer to the geometric mean, above 1 to the maximum.
        stack: The linear model of a stack.
    """

    kind: MixKind = "arithmetic"
    weights: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    power: float = 1.0
    stack: Stack | None = None

    def __post_init__(self) -> None:
        if (self.kind == "stack") != (self.stack is not None) or (self.kind == "stack") == bool(self.weights):
            raise SettingError(f"mix {self.kind!r} has {len(self.weights)} weights; a stack has a model, others weigh")
        if self.weights and (not min(self.weights) >= 0 or not abs(sum(self.weights) - 1) <= 1e-6):
            raise SettingError(
                f"`weights` sum to {sum(self.weights):.6f}, lowest {min(self.weights)}; expected all at least 0 and a "
                "sum of 1"
            )
        if not all(0 < temperature < np.inf for temperature in self.temperatures):
            raise SettingError(f"`temperatures` are {self.temperatures}; expected finite numbers above 0")
        if self.temperatures and self.weights and len(self.temperatures) != len(self.weights):
            raise SettingError(f"{len(self.temperatures)} temperatures and {len(self.weights)} weights; give one a run")
        if not LEAST_POWER <= self.power <= MOST_POWER:
            raise SettingError(f"`power` is {self.power}; expected {LEAST_POWER} to {MOST_POWER:g}")

    @classmethod
    def equal(cls, num_runs: int) -> Mix:
        """Return the mean in which every run counts the same."""
        return cls(weights=(1 / num_runs,) * num_runs)


def mix_head(
    mix: Mix,
    head: str,
    runs: Sequence[Mapping[str, npt.NDArray[Any]]],
    *,
    multilabel: Collection[str] = (),
    ranks: Sequence[npt.NDArray[Any]] = (),
) -> npt.NDArray[np.float32]:
    """Return (N, C) float32 probabilities of one head, mixed from R runs'.

    Args:
        mix: How.
        head: Which head.
        runs: R runs' {head: (N, C) probabilities}, rows in the same order.
        multilabel: The heads that are multi-label.
        ranks: For kind `rank`, each run's (C, Q) quantiles, from `quantiles` (of what `calibrate` returns, where the
            mix has temperatures).

    Raises:
        PredictionError: When there are not as many runs, ranks or classes as the mix was made for, or runs differ in
            rows or classes.
    """
    _check_fit(mix, head, runs)
    if mix.kind == "rank":
        _check_ranks(head, runs, ranks)
    mixed = np.empty(runs[0][head].shape, np.float32)
    for rows in row_chunks(len(mixed)):
        if mix.stack is not None:
            mixed[rows] = _stacked(mix, head, [{name: run[name][rows] for name in run} for run in runs], multilabel)
            continue
        many, mean = head in multilabel, np.zeros(mixed[rows].shape)
        for number, (run, weight) in enumerate(zip(runs, mix.weights, strict=True)):
            if weight > 0:
                probs = calibrate(run[head][rows], _temperature(mix, number), multilabel=many)
                table = ranks[number] if mix.kind == "rank" else None
                mean += weight * to_terms(mix.kind, probs, power=mix.power, multilabel=many, ranks=table)
        mixed[rows] = from_terms(mix.kind, mean, power=mix.power, multilabel=many)
    return mixed


def calibrate(probs: npt.NDArray[Any], temperature: float, *, multilabel: bool) -> Floats:
    """Return (N, C) float64 probabilities whose logarithms, or logits of a multi-label head, were divided.

    Args:
        probs: (N, C) probabilities.
        temperature: Above 0; above 1 makes them less sure.
        multilabel: Whether each class has a probability of its own.

    Source: Guo 2017, https://arxiv.org/abs/1706.04599.
    """
    values = np.asarray(probs, np.float64)
    if temperature == 1:
        return values
    if multilabel:
        return _sigmoid(_logit(values) / temperature)
    return softmax(np.log(np.maximum(values, FLOOR)) / temperature)


def to_terms(
    kind: MixKind,
    probs: Floats,
    *,
    power: float = 1.0,
    multilabel: bool = False,
    ranks: npt.NDArray[Any] | None = None,
) -> Floats:
    """Return (N, C) what is averaged over runs in place of (N, C) probabilities; a stack averages nothing.

    The highest mean decides as the mixed probability does; of a multi-label head, a mean of `half_term` or more says
    the class.
    """
    if kind == "geometric":
        return _logit(probs) if multilabel else np.log(np.maximum(probs, FLOOR))
    if kind == "power":
        return np.asarray(np.maximum(probs, FLOOR) ** power)
    if kind == "rank":
        assert ranks is not None
        return _to_ranks(probs, ranks)
    if kind == "vote":
        said = probs >= HALF if multilabel else probs.argmax(axis=1)[:, None] == np.arange(probs.shape[1])
        return np.asarray((said + VOTE_TIE * probs) / (1 + VOTE_TIE))
    assert kind == "arithmetic"
    return probs


def half_term(kind: MixKind, *, power: float = 1.0) -> float:
    """Return the mean of terms of a multi-label class that `from_terms` makes a probability of 0.5."""
    if kind == "geometric":
        return 0.0
    return HALF**power if kind == "power" else HALF


def from_terms(kind: MixKind, mean: Floats, *, power: float = 1.0, multilabel: bool = False) -> Floats:
    """Return (N, C) probabilities of (N, C) averaged terms."""
    if kind == "geometric":
        return _sigmoid(mean) if multilabel else softmax(mean)
    if kind == "power":
        mean = mean ** (1 / power)
    if multilabel:
        return np.asarray(np.clip(mean, 0, 1))
    total = mean.sum(axis=1, keepdims=True)  # by rank 0 where every class is below all that was seen out of fold
    return np.asarray(np.where(total > FLOOR, mean / np.maximum(total, FLOOR), 1 / mean.shape[1]))


def quantiles(probs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return (C, Q) quantiles of each class's probability among (N, C) rows, for mixes of kind `rank`."""
    shares = np.linspace(0, 1, NUM_QUANTILES)
    return np.ascontiguousarray(np.quantile(probs, shares, axis=0).T, np.float32)


def stack_features(
    runs: Sequence[Mapping[str, npt.NDArray[Any]]],
    sources: Sequence[str],
    *,
    multilabel: Collection[str] = (),
    temperatures: Sequence[float] = (),
) -> Floats:
    """Return (N, F) what a stack reads: for each run, for each source head, a column a class.

    Args:
        runs: R runs' {head: (N, C) probabilities}, rows in the same order.
        sources: The heads to read.
        multilabel: The heads whose logits take the logarithms' place.
        temperatures: (R,) by which these are divided; none: 1.
    """
    columns = []
    for number, run in enumerate(runs):
        for head in sources:
            values = np.asarray(run[head], np.float64)
            logs = _logit(values) if head in multilabel else np.log(np.maximum(values, FLOOR))
            columns.append(logs / temperatures[number] if temperatures else logs)
    return np.concatenate(columns, axis=1)


def softmax(scores: Floats) -> Floats:
    """Return (N, C) probabilities of (N, C) scores."""
    values = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def _stacked(mix: Mix, head: str, runs: Sequence[Probs], multilabel: Collection[str]) -> Floats:
    assert mix.stack is not None
    features = stack_features(runs, mix.stack.sources, multilabel=multilabel, temperatures=mix.temperatures)
    coefficients = mix.stack.coefficients.values
    if features.shape[1] != len(coefficients):
        raise PredictionError(
            f"head {head!r}: a stack of {len(coefficients)} features got {features.shape[1]}; give it the runs and "
            "classes that it was fitted on"
        )
    scores = features @ coefficients + mix.stack.intercept.values
    return _sigmoid(scores) if head in multilabel else softmax(scores)


def _temperature(mix: Mix, number: int) -> float:
    return mix.temperatures[number] if mix.temperatures else 1.0


def _to_ranks(probs: Floats, ranks: npt.NDArray[Any]) -> Floats:
    """Return (N, C) shares of the images that a table of (C, Q) quantiles was made of which have less; equals half."""
    result = np.empty_like(probs)
    for column, table in enumerate(ranks):
        below = np.searchsorted(table, probs[:, column].astype(np.float32), side="left")
        upto = np.searchsorted(table, probs[:, column].astype(np.float32), side="right")
        inside = np.interp(probs[:, column], table, np.linspace(0, 1, len(table)))
        result[:, column] = np.where(upto - below > 1, (below + upto - 1) / (2 * (len(table) - 1)), inside)
    return result


def _logit(probs: npt.NDArray[Any]) -> Floats:
    clipped = np.clip(np.asarray(probs, np.float64), FLOOR, 1 - FLOOR)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _sigmoid(scores: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -scores)))


def _check_fit(mix: Mix, head: str, runs: Sequence[Mapping[str, npt.NDArray[Any]]]) -> None:
    if not runs:
        raise PredictionError(f"head {head!r}: there are no runs to mix; give the blend's runs")
    if mix.weights and len(mix.weights) != len(runs):
        raise PredictionError(f"head {head!r}: {len(runs)} runs for {len(mix.weights)} weights; give the blend's runs")
    if mix.temperatures and len(mix.temperatures) != len(runs):
        raise PredictionError(
            f"head {head!r}: {len(runs)} runs for {len(mix.temperatures)} temperatures; give the blend's runs"
        )
    sources = mix.stack.sources if mix.stack else ()
    for number, run in enumerate(runs, start=1):
        for name in (head, *sources):
            if name not in run:
                raise PredictionError(f"run {number} has no probs of head {name!r} (found: {some_of(run)}); add them")
            if run[name].ndim != 2 or run[name].shape != (len(runs[0][head]), runs[0][name].shape[1]):
                raise PredictionError(
                    f"head {name!r}: run {number} has probs of shape {run[name].shape} and run 1 of "
                    f"{runs[0][name].shape}; mix runs of one task that cover the same images"
                )
    classes = runs[0][head].shape[1]
    if mix.stack is not None and mix.stack.intercept.shape != (classes,):
        raise PredictionError(
            f"head {head!r}: a stack of {mix.stack.intercept.shape[0]} classes got {classes}; give it the runs and "
            "classes that it was fitted on"
        )


def _check_ranks(head: str, runs: Sequence[Mapping[str, npt.NDArray[Any]]], ranks: Sequence[npt.NDArray[Any]]) -> None:
    if len(ranks) != len(runs):
        raise PredictionError(f"head {head!r}: {len(runs)} runs and quantiles of {len(ranks)}; give those of each run")
    classes = runs[0][head].shape[1]
    for number, table in enumerate(ranks, start=1):
        if table.ndim != 2 or len(table) != classes or table.shape[1] < 2:
            raise PredictionError(
                f"head {head!r}: quantiles of run {number} have shape {table.shape}; expected ({classes}, 2 or more), "
                "from `quantiles` of its out-of-fold probabilities"
            )
