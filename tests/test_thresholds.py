from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score

from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.threshold_search import ManyMetric, best_thresholds, decide_many
from kaggle_kit.thresholds import _f1, fit_thresholds

MANY: list[ManyMetric] = ["macro_f1", "micro_f1", "samples_f1"]


def tied(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Multi-label truth, and probabilities that are too low, many of them equal."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, classes)) < np.linspace(0.5, 0.1, classes)
    return truth, np.round(np.clip(0.25 * truth + rng.normal(0.25, 0.15, truth.shape), 0, 1), 2).astype(np.float32)


def many(rows: int, *, low: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Multi-label truth and probabilities; `low` makes them too low by that much."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.1]
    logits = rng.normal(0, 1, truth.shape) + 4 * truth - 2 - low
    return truth, (1 / (1 + np.exp(-logits))).astype(np.float32)


def f1_of(metric: ManyMetric, truth: np.ndarray, said: np.ndarray) -> float:
    return float(f1_score(truth, said, average=metric.removesuffix("_f1"), zero_division=0))


@pytest.mark.parametrize("metric", MANY)
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_that_brute_force_finds(metric: ManyMetric, seed: int) -> None:
    truth, probs = tied(8, 2, seed)
    cuts = [np.append(np.unique(column) - 1e-4, 1.1) for column in probs.T]
    tried = list(itertools.product(*cuts)) if metric != "samples_f1" else [(c, c) for c in np.concatenate(cuts)]
    several = {decide_many(probs, np.array(one)).tobytes() for one in tried}
    best = max(f1_of(metric, truth, np.frombuffer(said, bool).reshape(truth.shape)) for said in several)
    found = best_thresholds(metric, truth, probs)
    assert f1_of(metric, truth, decide_many(probs, found)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", MANY)
def test_thresholds_of_labels_that_are_never_or_always_true(metric: ManyMetric) -> None:
    truth, probs = tied(50, 3)
    truth[:, 0], truth[:, 1] = False, True
    found = best_thresholds(metric, truth, probs)
    if metric != "samples_f1":
        assert found[1] <= probs[:, 1].min()
        assert found[0] == 0.5 if metric == "macro_f1" else found[0] > probs[:, 0].max()
    assert (best_thresholds(metric, np.zeros_like(truth), probs) == 0.5).all()


@pytest.mark.parametrize("metric", MANY)
@pytest.mark.parametrize("rows", [300, 2500])
def test_thresholds_are_kept_where_they_help_beyond_luck(metric: ManyMetric, rows: int) -> None:
    truth, probs = many(rows, low=2)
    folds = np.arange(rows) % 3
    fitted = fit_thresholds(truth, probs, metric=metric, folds=folds, draws=200)
    assert fitted.kept and fitted.thresholds == fitted.fitted
    assert fitted.fitted == tuple(best_thresholds(metric, truth, probs).tolist())
    said = np.empty_like(truth)
    for fold in range(3):
        others = folds != fold
        said[~others] = decide_many(probs[~others], best_thresholds(metric, truth[others], probs[others]))
    assert fitted.nested_gain == pytest.approx(f1_of(metric, truth, said) - f1_of(metric, truth, probs >= 0.5))
    assert fitted.interval[0] < fitted.nested_gain < fitted.interval[1]
    fresh, fresh_probs = many(2500, low=2, seed=1)
    new = f1_of(metric, fresh, decide_many(fresh_probs, np.array(fitted.thresholds)))
    assert new > f1_of(metric, fresh, fresh_probs >= 0.5) + 0.05


@pytest.mark.parametrize("metric", MANY)
def test_thresholds_of_good_probabilities_stay_at_a_half(metric: ManyMetric) -> None:
    truth, probs = many(150, low=0)
    fitted = fit_thresholds(truth, probs, metric=metric, folds=np.zeros(150, int), draws=200)
    assert not fitted.kept and fitted.thresholds == (0.5,) * 4
    assert fitted == fit_thresholds(truth, probs, metric=metric, folds=np.zeros(150, int), draws=200)


def test_f1_of_sums_counts_labels_without_anything_as_0() -> None:
    sums = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])  # hits, said, true
    assert _f1("macro_f1", sums) == 0.5 and _f1("micro_f1", sums) == 1


@pytest.mark.parametrize(
    ("truth", "probs", "error", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 2)), DataError, r"truth is float64 \(4, 2\); expected bool \(4, C\)"),
        (np.ones((3, 2), bool), np.ones((3, 2)), DataError, r"truth is bool \(3, 2\); expected bool \(4, C\)"),
        (np.ones((4, 2), bool), np.ones((4, 3)), PredictionError, r"probs have shape \(4, 3\); expected \(4, 2\)"),
        (np.ones((4, 2), bool), np.full((4, 2), np.nan), PredictionError, "probs of 4 of 4 rows are NaN or outside"),
        (
            np.ones((4, 2), bool),
            np.full((4, 2), -2.5),
            PredictionError,
            "from -2.5 to -2.5.; pass sigmoid outputs, not",
        ),
    ],
)
def test_thresholds_refuse_what_does_not_fit(
    truth: np.ndarray, probs: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_thresholds(truth, probs, metric="macro_f1", folds=np.arange(4))


def test_decisions_refuse_logits_and_thresholds_of_other_classes() -> None:
    logits = np.array([[0.5, 0.5], [3.25, -1.0]])
    with pytest.raises(PredictionError, match=r"probs of 1 of 2 rows .*row 1, from -1 to 3.25\); pass sigmoid outputs"):
        decide_many(logits, np.array([0.5, 0.5]))
    with pytest.raises(PredictionError, match="pass sigmoid outputs, not logits"):
        best_thresholds("macro_f1", np.ones((2, 2), bool), logits)
    with pytest.raises(PredictionError, match=r"thresholds \(2,\); expected \(N, C\) and \(C,\)"):
        decide_many(np.ones((4, 3)), np.array([0.5, 0.5]))
    assert decide_many(np.array([[0.0, 1.0]]), np.array([0.0, 1.1])).tolist() == [[True, False]]
