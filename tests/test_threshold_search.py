from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from sklearn.metrics import f1_score

from kaggle_kit.errors import PredictionError
from kaggle_kit.task import Metric
from kaggle_kit.threshold_search import best_thresholds

F1: list[Metric] = ["macro_f1", "micro_f1", "weighted_f1"]


def tied(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Multi-label truth, and probabilities that are too low, many of them equal."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, classes)) < np.linspace(0.5, 0.1, classes)
    return truth, np.round(np.clip(0.25 * truth + rng.normal(0.25, 0.15, truth.shape), 0, 1), 2).astype(np.float32)


def cuts_of(probs: np.ndarray) -> list[np.ndarray]:
    """For each class a threshold between any two of its probabilities, and below and above them all."""
    return [np.append(np.unique(column) - 1e-4, 1.1) for column in probs.T]


def f1_of(metric: Metric, truth: np.ndarray, said: np.ndarray) -> float:
    return float(f1_score(truth, said, average=metric.removesuffix("_f1"), zero_division=0))


@pytest.mark.parametrize("metric", F1)
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_that_brute_force_finds(metric: Metric, seed: int) -> None:
    truth, probs = tied(8, 2, seed)
    several = {(probs >= np.array(one)).tobytes() for one in itertools.product(*cuts_of(probs))}
    best = max(f1_of(metric, truth, np.frombuffer(said, bool).reshape(truth.shape)) for said in several)
    found = best_thresholds(metric, truth, probs)
    assert f1_of(metric, truth, probs >= found) == pytest.approx(best, abs=1e-12)


def test_thresholds_for_accuracy_make_each_class_right_as_often_as_can_be() -> None:
    truth, probs = tied(50, 3)
    found = best_thresholds("accuracy", truth, probs)
    for number, cuts in enumerate(cuts_of(probs)):
        own, true = probs[:, number], truth[:, number]
        assert ((own >= found[number]) == true).sum() == max(((own >= cut) == true).sum() for cut in cuts)


@pytest.mark.parametrize("metric", F1)
def test_thresholds_of_labels_that_are_never_or_always_true(metric: Metric) -> None:
    truth, probs = tied(50, 3)
    truth[:, 0], truth[:, 1] = False, True
    found = best_thresholds(metric, truth, probs)
    assert found[1] <= probs[:, 1].min()
    assert found[0] > probs[:, 0].max() if metric == "micro_f1" else found[0] == 0.5
    assert (best_thresholds(metric, np.zeros_like(truth), probs) == 0.5).all()


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.ones((4, 3)), "probs have shape (4, 3); expected (4, 2)"),
        (np.full((4, 2), np.nan), "probs of 4 of 4 rows are NaN or outside"),
        (np.array([[0.5, 0.5], [3.25, -1.0], [0, 1], [0, 1]]), "1 of 4 rows are NaN or outside [0, 1] (first: row 1, "),
        (np.full((4, 2), -2.5), "from -2.5 to -2.5); pass sigmoid outputs, not logits"),
    ],
)
def test_probabilities_that_are_none_or_of_other_labels_are_refused(probs: np.ndarray, message: str) -> None:
    with pytest.raises(PredictionError, match=re.escape(message)):
        best_thresholds("macro_f1", np.ones((4, 2), bool), probs)
