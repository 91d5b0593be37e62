"""Stacks: linear models on the logarithms of all runs' probabilities, which can mend what no weighted mean can.

They are fitted in two steps. The pool: one factor a run and one bias a class, some 10 to 200 numbers. The model: what
is to be added to the pool's scores, a coefficient a feature and class, drawn towards 0 as hard as held-out rows ask
for. So where there is too little to learn from, a stack is a weighted geometric mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.calibration import best_factor, check_rows, draw_rows, loss_and_error
from kaggle_kit.decision import row_chunks
from kaggle_kit.decision_fitting import nested_parts
from kaggle_kit.errors import DataError, PredictionError, SettingError, some_of
from kaggle_kit.heads import Head
from kaggle_kit.mixes import Mix, Stack, Table, stack_features
from kaggle_kit.predictions import Probs
from kaggle_kit.progress import progress_bar

StackModel = Literal["logistic", "ridge"]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Values = npt.NDArray[Any]

# Strongest first; each is tried as long as held-out rows gain. Of features that are standardised.
_STRENGTHS: dict[StackModel, tuple[float, ...]] = {
    "logistic": (3e3, 300.0, 30.0, 3.0),
    "ridge": (1e6, 1e5, 1e4, 1e3, 100.0, 10.0),
}
_MOST_PRODUCTS = 2e9  # a logistic regression's rows x features x classes
_MOST_VALUES = 1e8  # of features, of which some 6 copies are held at 0.4 GB; of more, as many rows are drawn as fit
_POOL_ROWS = 20_000
_HELD_PARTS = 2  # to choose the strength by, where fits are slow
_QUICK_PRODUCTS = 1e8  # fits of fewer are quick: then all parts are held out
_MOST_FACTOR = 8.0  # of a run in the pool
_MOST_SCALE = 1e4  # of a ridge regression's scores
_GAIN = 1e-4  # share of the loss that a weaker penalty must gain, or lose to be the last one tried
_CONSTANT = 1e-6  # standard deviation of logarithms below which they say nothing
_NEVER = 30.0  # by which the score of a class that is never true is below the others' mean: exp(-30) is 1e-13


@dataclass(frozen=True)
class _Rows:
    """What is fitted to: `own` is (R, N, C) logarithms of the head itself, `features` (N, F + 1), the last one 1."""

    own: Floats32
    features: Floats32
    truth: Values

    def take(self, rows: Values) -> _Rows:
        return _Rows(np.ascontiguousarray(self.own[:, rows]), self.features[rows], self.truth[rows])


@dataclass(frozen=True)
class _Pool:
    """(R,) factors of runs and (C,) biases of classes."""

    factors: Floats
    bias: Floats

    def scores(self, own: Floats32) -> Floats32:
        """Return (N, C) of (R, N, C) logarithms."""
        mixed = np.tensordot(self.factors.astype(np.float32), own, axes=1)
        return np.asarray(mixed + self.bias.astype(np.float32), np.float32)


def can_stack(num_rows: int, num_features: int, num_classes: int) -> bool:
    """Return whether a logistic regression takes a minute at most, or about that; else take ridge."""
    return num_rows * num_features * num_classes <= _MOST_PRODUCTS


def fit_stack(
    head: Head,
    truth: npt.NDArray[Any],
    runs: Sequence[Probs],
    *,
    sources: tuple[str, ...] = (),
    multilabel: Collection[str] = (),
    model: StackModel = "logistic",
    parts: Ints | None = None,
    groups: Ints | None = None,
    seed: int = 0,
) -> Mix:
    """Return the mix by a linear model on runs' logarithms (logits of multi-label heads), fitted to all rows given.

    Args:
        head: What is predicted.
        truth: (N,) class indices, or of a multi-label head (N, C) of 0 and 1.
        runs: R runs' {head: (N, C) probabilities}, of all sources; out of fold, as else it learns whom to believe
            from rows that a run has seen.
        sources: The heads whose probabilities are read, the head's own among them; none: that alone.
        multilabel: The multi-label heads among the sources.
        model: `logistic`: multinomial logistic regression, or one a class of a multi-label head; `ridge`: the ridge
            regression on what the pool gets wrong (1 of the true class, minus its probabilities), times one factor
            fitted to held-out rows: a step of Newton's kind in place of many, for what `can_stack` refuses.
        parts: (N,) numbers; the strength is chosen by the log loss of parts held out one after the other, of two where
            there is much to compute. None or all the same: of random fifths.
        groups: (N,) numbers; random fifths keep the rows of one together.
        seed: Of random fifths, and of the rows drawn where features have more than 100 million values.

    Returns:
        A mix of kind `stack`; of the same rows always the same. A class that is true of no row is never said.

    Raises:
        DataError: When the truth does not fit, or there are no rows.
        PredictionError: When a run lacks a source, or its probabilities are of another shape, NaN or outside [0, 1].
        SettingError: When the head is not among the sources, or there are no runs.

    Source: Wolpert 1992, Stacked generalization; Ting and Witten 1999, https://arxiv.org/abs/1105.5466, on stacking
    with class probabilities. Drawing towards the pool in place of 0 is ours.
    """
    sources = sources or (head.name,)
    _check(head, truth, runs, sources, multilabel)
    parts = np.zeros(len(truth), np.int64) if parts is None else parts
    counts = truth.sum(axis=0) if truth.ndim == 2 else np.bincount(truth, minlength=head.num_classes)
    present = np.asarray(counts > 0)
    drawn = draw_rows(len(truth), max(2, int(_MOST_VALUES / _num_features(runs, sources))), seed=seed)
    if len(drawn) < len(truth):
        truth, parts, groups = truth[drawn], parts[drawn], None if groups is None else groups[drawn]
        runs = [{name: run[name][drawn] for name in sources} for run in runs]
    features, center, scale = _standardised(runs, sources, multilabel)
    own = [stack_features([run], (head.name,), multilabel=multilabel)[:, present].astype(np.float32) for run in runs]
    known = truth[:, present] if truth.ndim == 2 else (np.cumsum(present) - 1)[truth]
    rows = _Rows(np.stack(own), features, known.astype(np.int64))
    spread = truth.sum(axis=1) if truth.ndim == 2 else truth
    pool, added = _fit(rows, model, nested_parts(parts, spread, groups=groups, seed=seed))
    coefficients = added[:-1] / scale[:, None]
    intercept = pool.bias + added[-1] - center @ coefficients
    for number, columns in enumerate(_own_columns(runs, sources, head.name)):
        coefficients[columns[present], np.arange(len(pool.bias))] += pool.factors[number]
    return Mix(kind="stack", stack=_with_absent(sources, coefficients, intercept, present, many=truth.ndim == 2))


def fit_logistic(
    features: Values,
    truth: npt.NDArray[Any],
    num_classes: int,
    *,
    strength: float,
    offset: Values | None = None,
    start: Values | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> Floats:
    """Return (F, C) coefficients of the least sum of log losses, plus strength / 2 x the sum of their squares.

    That is `LogisticRegression(C=1 / strength, fit_intercept=False)` where there is no offset.

    Args:
        features: (N, F), float32 for speed.
        truth: (N,) class indices: softmax; (N, C) of 0 and 1: one regression a class.
        num_classes: C.
        strength: Above 0.
        offset: (N, C) added to the scores.
        start: (F, C) to go from; None: zeros.
        max_steps: Of L-BFGS.
        tolerance: It ends when a step gains less than this share of the mean loss.
    """
    from scipy.optimize import minimize

    shape = (features.shape[1], num_classes)

    def loss_at(flat: Floats) -> tuple[float, Floats]:
        coefficients = flat.reshape(shape)
        scores = features @ coefficients.astype(features.dtype)
        loss, error = loss_and_error(scores if offset is None else scores + offset, truth)
        slope = (features.T @ error).astype(np.float64) + strength * coefficients
        return (loss + strength / 2 * float(np.vdot(flat, flat))) / len(truth), slope.ravel() / len(truth)

    first = np.zeros(shape) if start is None else np.asarray(start, np.float64)
    options = {"maxiter": max_steps, "ftol": tolerance, "gtol": tolerance}
    found = minimize(loss_at, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, np.float64).reshape(shape)


def fit_ridge(features: Values, targets: Values, *, strength: float) -> Floats:
    """Return (F, C) coefficients of the least squares, plus strength x the sum of their squares; as `Ridge`'s.

    Args:
        features: (N, F).
        targets: (N, C).
        strength: Above 0.
    """
    return _solve(_gram(features), features.T @ targets, strength)


@dataclass(frozen=True)
class _Fold:
    """The rows a strength is tried on, and those it is judged by; offsets are (N, C) scores of the pool of `train`."""

    train: _Rows
    held: _Rows
    train_offset: Floats32
    held_offset: Floats32

    @classmethod
    def of(cls, rows: _Rows, held: npt.NDArray[np.bool_]) -> _Fold:
        train, rest = rows.take(~held), rows.take(held)
        pool = _fit_pool(train)
        return cls(train, rest, pool.scores(train.own), pool.scores(rest.own))


def _fit(rows: _Rows, model: StackModel, parts: Ints) -> tuple[_Pool, Floats]:
    """Return the pool, and the (F + 1, C) coefficients of the features that are added to it."""
    numbers = np.unique(parts)
    if rows.features.size * rows.own.shape[2] > _QUICK_PRODUCTS:
        numbers = numbers[:_HELD_PARTS]
    held = [parts == number for number in numbers if not (parts == number).all()]
    with progress_bar(len(_STRENGTHS[model]) + 1, f"fitting a stack ({model})", unit="fit") as bar:
        strength, factor, start = _choose(model, [_Fold.of(rows, one) for one in held], bar)
        pool = _fit_pool(rows)
        if not strength:
            return pool, np.zeros((rows.features.shape[1], rows.own.shape[2]))
        offset = pool.scores(rows.own)
        if model == "ridge":
            return pool, factor * fit_ridge(rows.features, _errors(offset, rows.truth), strength=strength)
        size = rows.own.shape[2]
        fitted = fit_logistic(rows.features, rows.truth, size, strength=strength, offset=offset, start=start)
        return pool, fitted


def _choose(model: StackModel, folds: list[_Fold], bar: Any) -> tuple[float, float, Floats | None]:
    """Return the strength that suits held rows best, a ridge regression's factor, and where to go on from.

    The strength is 0 where none is better than the pool alone.
    """
    best: tuple[float, float, Floats | None] = (0.0, 1.0, None)
    if not folds:
        return best
    truth = np.concatenate([fold.held.truth for fold in folds])
    offset = np.concatenate([fold.held_offset for fold in folds])
    least, _ = loss_and_error(offset, truth)
    paths = [_path(model, fold) for fold in folds]
    for strength in _STRENGTHS[model]:
        fits = [next(path) for path in paths]
        pairs = zip(folds, fits, strict=True)
        scores = np.concatenate([fold.held.features @ fit.astype(np.float32) for fold, fit in pairs])
        factor = 1.0
        if model == "ridge":
            factor = best_factor(scores, truth, low=0.0, high=_MOST_SCALE, offset=offset)
        loss, _ = loss_and_error(offset + np.float32(factor) * scores, truth)
        bar.update()
        if loss > (1 + _GAIN) * least:
            break
        if loss < (1 - _GAIN) * least:
            least, best = loss, (strength, factor, np.mean(fits, axis=0))
    return best


def _path(model: StackModel, fold: _Fold) -> Iterator[Floats]:
    """Yield the coefficients of each strength in turn."""
    features, truth = fold.train.features, fold.train.truth
    if model == "ridge":
        gram, products = _gram(features), features.T @ _errors(fold.train_offset, truth)
        yield from (_solve(gram, products, strength) for strength in _STRENGTHS[model])
        return
    fit, size = None, fold.train_offset.shape[1]
    for strength in _STRENGTHS[model]:
        fit = fit_logistic(features, truth, size, strength=strength, offset=fold.train_offset, start=fit)
        yield fit


def _fit_pool(rows: _Rows) -> _Pool:
    """Return the pool of the least log loss; biases are drawn towards 0 as by a normal prior of variance 1."""
    from scipy.optimize import minimize

    drawn = draw_rows(len(rows.truth), _POOL_ROWS)
    own, truth = np.ascontiguousarray(rows.own[:, drawn]), rows.truth[drawn]
    num_runs, _, num_classes = own.shape

    def loss_at(flat: Floats) -> tuple[float, Floats]:
        pool = _Pool(flat[:num_runs], flat[num_runs:])
        loss, error = loss_and_error(pool.scores(own), truth)
        slopes = [own.reshape(num_runs, -1) @ error.ravel(), error.sum(axis=0) + pool.bias]
        slope = np.concatenate(slopes).astype(np.float64)
        return (loss + float(pool.bias @ pool.bias) / 2) / len(truth), slope / len(truth)

    first = np.append(np.full(num_runs, 1 / num_runs), np.zeros(num_classes))
    bounds = [(0, _MOST_FACTOR)] * num_runs + [(None, None)] * num_classes
    found = minimize(loss_at, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-8})
    return _Pool(found.x[:num_runs], found.x[num_runs:])


def _errors(offset: Floats32, truth: Values) -> Values:
    """Return (N, C) what the pool's probabilities lack: 1 of true classes, minus them."""
    return -loss_and_error(offset, truth)[1]


def _gram(features: Values) -> Floats:
    return np.asarray(features.T @ features, np.float64)


def _solve(gram: Floats, products: Values, strength: float) -> Floats:
    from scipy.linalg import solve

    penalised = gram + strength * np.eye(len(gram))
    return np.asarray(solve(penalised, products.astype(np.float64), assume_a="pos"), np.float64)


def _standardised(
    runs: Sequence[Probs], sources: Sequence[str], multilabel: Collection[str]
) -> tuple[Floats32, Floats, Floats]:
    """Return (N, F + 1) features of mean 0 and variance 1, the last 1; and the (F,) means and deviations they had."""
    num_rows = len(runs[0][sources[0]])
    features = np.ones((num_rows, _num_features(runs, sources) + 1), np.float32)
    for rows in row_chunks(num_rows):
        part = [{name: run[name][rows] for name in sources} for run in runs]
        features[rows, :-1] = stack_features(part, sources, multilabel=multilabel)
    center = features[:, :-1].mean(axis=0, dtype=np.float64)
    features[:, :-1] -= center.astype(np.float32)
    scale = np.sqrt(np.square(features[:, :-1]).mean(axis=0, dtype=np.float64))
    scale[scale < _CONSTANT] = 1
    features[:, :-1] /= scale.astype(np.float32)
    return features, center, scale


def _with_absent(
    sources: tuple[str, ...], coefficients: Floats, intercept: Floats, present: npt.NDArray[np.bool_], *, many: bool
) -> Stack:
    """Return the model of all C classes; those that were never true score far below the mean of the others."""
    wide, low = np.zeros((len(coefficients), len(present))), np.zeros(len(present))
    wide[:, present], low[present] = coefficients, intercept
    if not many:
        wide[:, ~present], low[~present] = coefficients.mean(axis=1, keepdims=True), intercept.mean()
    low[~present] -= _NEVER
    return Stack(sources=sources, coefficients=Table.of(wide), intercept=Table.of(low))


def _own_columns(runs: Sequence[Probs], sources: Sequence[str], head: str) -> list[Ints]:
    """Return for each run the (C,) columns of the features that hold the head itself."""
    sizes = [runs[0][name].shape[1] for name in sources]
    first, own = sum(sizes[: sources.index(head)]), sizes[sources.index(head)]
    return [number * sum(sizes) + first + np.arange(own) for number in range(len(runs))]


def _num_features(runs: Sequence[Probs], sources: Sequence[str]) -> int:
    return len(runs) * sum(int(runs[0][name].shape[1]) for name in sources)


def _check(
    head: Head, truth: npt.NDArray[Any], runs: Sequence[Probs], sources: tuple[str, ...], multilabel: Collection[str]
) -> None:
    if not runs:
        raise SettingError(f"head {head.name!r}: there are no runs to stack; give at least one")
    if head.name not in sources or len(set(sources)) != len(sources):
        raise SettingError(f"head {head.name!r}: `sources` are {some_of(sources)}; expected the head itself, each once")
    if (head.kind == "multilabel") != (head.name in multilabel):
        raise SettingError(f"head {head.name!r} is {head.kind}; `multilabel` says {some_of(multilabel) or 'none is'}")
    for number, run in enumerate(runs, start=1):
        for name in sources:
            if name not in run:
                raise PredictionError(f"run {number} has no probs of head {name!r}, only {some_of(run)}; add them")
            classes = head.num_classes if name == head.name else runs[0][name].shape[1]
            if run[name].shape != (len(truth), classes):
                shape = run[name].shape
                raise PredictionError(
                    f"run {number}, head {name!r}: probs have shape {shape}; expected ({len(truth)}, {classes})"
                )
            own = truth if name == head.name else np.zeros(len(truth), np.int64)
            try:
                check_rows(run[name], own, multilabel=own.ndim == 2)
            except (DataError, PredictionError) as error:
                raise type(error)(f"run {number}, head {name!r}: {error}") from None
