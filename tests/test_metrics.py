from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from kaggle_kit.metrics import (
    CLASS_METRICS,
    PROBABILITY_METRICS,
    average_precision,
    confusion_matrix,
    gain,
    log_loss,
    quadratic_kappa,
    roc_auc,
)

CLASSES = 7
CLASS_REFERENCES = {
    "macro_recall": lambda t, p: sk.recall_score(t, p, average="macro", zero_division=0),
    "accuracy": sk.accuracy_score,
    "macro_f1": lambda t, p: sk.f1_score(t, p, average="macro", zero_division=0),
    "weighted_f1": lambda t, p: sk.f1_score(t, p, average="weighted", zero_division=0),
    "micro_f1": lambda t, p: sk.f1_score(t, p, average="micro", zero_division=0),
    "quadratic_kappa": lambda t, p: sk.cohen_kappa_score(t, p, labels=range(CLASSES), weights="quadratic"),
}
RNG = np.random.default_rng(0)
CASES = {
    "random": (RNG.integers(0, 7, 500), RNG.integers(0, 7, 500)),
    "mostly right": (RNG.integers(0, 7, 500), np.zeros(500, int)),
    "absent class": (RNG.integers(0, 3, 50), RNG.integers(2, 5, 50)),
    "one class": (np.ones(9, int), np.ones(9, int)),
    "all wrong": (np.zeros(9, int), np.ones(9, int)),
    "one row": (np.array([2]), np.array([3])),
}
CASES["mostly right"][1][:] = np.where(RNG.random(500) < 0.8, CASES["mostly right"][0], 3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CLASS_METRICS)
def test_metrics_of_decided_classes_equal_scikit_learn(name: str, case: str) -> None:
    truth, decided = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = CLASS_REFERENCES[name](truth, decided)
    found = CLASS_METRICS[name](confusion_matrix(truth, decided, CLASSES))
    assert found == pytest.approx(0.0 if np.isnan(expected) else expected, abs=1e-12)


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_stacked_matrices_give_stacked_values(name: str) -> None:
    matrices = np.stack([confusion_matrix(*case, CLASSES) for case in CASES.values()])
    expected = [float(CLASS_METRICS[name](matrix)) for matrix in matrices]
    assert CLASS_METRICS[name](matrices).tolist() == expected


def test_kappa_counts_the_steps_over_classes_that_never_occur() -> None:
    truth, decided = np.array([0, 4, 0, 4, 1]), np.array([0, 4, 4, 4, 0])
    found = quadratic_kappa(confusion_matrix(truth, decided, 5))
    expected = sk.cohen_kappa_score(truth, decided, labels=range(5), weights="quadratic")
    assert found == pytest.approx(expected, abs=1e-12)
    assert quadratic_kappa(confusion_matrix(np.ones(4, int), np.ones(4, int), 5)) == 0.0


def softmaxed(rows: int, *, decimals: int | None = None) -> np.ndarray:
    logits = np.random.default_rng(rows).normal(0, 2, (rows, CLASSES))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probs if decimals is None else probs.round(decimals)


PROBABILITY_CASES = {
    "random": (RNG.integers(0, 7, 300), softmaxed(300)),
    "ties": (RNG.integers(0, 7, 300), softmaxed(300, decimals=1)),
    "absent class": (RNG.integers(0, 3, 60), softmaxed(60)),
    "certain and wrong": (np.array([0, 1, 2, 3]), np.eye(CLASSES)[[1, 1, 2, 0]]),
    "all tied": (np.array([0, 1, 2]), np.full((3, CLASSES), 1 / CLASSES)),
}


@pytest.mark.parametrize("case", PROBABILITY_CASES)
def test_log_loss_equals_scikit_learn(case: str) -> None:
    truth, probs = PROBABILITY_CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows of rounded probabilities do not sum to 1
        expected = sk.log_loss(truth, probs, labels=range(CLASSES))
    assert log_loss(truth, probs) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", PROBABILITY_CASES)
@pytest.mark.parametrize(
    ("ours", "reference"), [(roc_auc, sk.roc_auc_score), (average_precision, sk.average_precision_score)]
)
def test_metrics_of_columns_equal_scikit_learn_over_the_classes_that_occur(ours, reference, case: str) -> None:
    truth, probs = PROBABILITY_CASES[case]
    present = np.unique(truth)
    expected = reference(np.eye(CLASSES)[truth][:, present], probs[:, present], average="macro")
    assert ours(truth, probs) == pytest.approx(expected, abs=1e-12)


def test_one_class_alone_has_no_curve() -> None:
    assert np.isnan(roc_auc(np.ones(5, int), softmaxed(5)))
    assert np.isnan(average_precision(np.ones(5, int), softmaxed(5)))


def test_every_metric_is_of_one_kind_and_knows_its_direction() -> None:
    assert not set(CLASS_METRICS) & set(PROBABILITY_METRICS)
    assert gain("log_loss", 0.2, 0.3) == pytest.approx(0.1)
    assert gain("accuracy", 0.2, 0.3) == pytest.approx(-0.1)


def test_log_loss_of_float32_is_clipped_at_its_own_epsilon_and_summed_in_float64() -> None:
    truth, probs = PROBABILITY_CASES["certain and wrong"]
    tiny = np.finfo(np.float32).eps
    clipped = np.clip(probs.astype(np.float32), tiny, 1 - tiny).astype(np.float64)
    expected = -np.log(clipped[np.arange(len(truth)), truth]).mean()
    assert log_loss(truth, probs.astype(np.float32)) == pytest.approx(expected, rel=1e-6)


def test_where_scikit_learn_gives_no_number_ours_are_as_documented() -> None:
    one = np.ones(6, int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(sk.cohen_kappa_score(one, one, labels=range(CLASSES), weights="quadratic"))
    assert quadratic_kappa(confusion_matrix(one, one, CLASSES)) == 0.0
    truth, probs = PROBABILITY_CASES["absent class"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        absent_as_0 = sk.average_precision_score(np.eye(CLASSES)[truth], probs, average="macro")
    assert average_precision(truth, probs) == pytest.approx(absent_as_0 * CLASSES / len(np.unique(truth)))
