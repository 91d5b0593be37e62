from __future__ import annotations

import warnings

import numpy as np
import pytest
from conftest import wide_task
from sklearn import metrics as sk

from kaggle_kit.errors import DataError
from kaggle_kit.metrics import METRICS, confusion_matrix, format_scores, score_classes, score_split

REFERENCES = {
    "macro_recall": lambda t, p: sk.recall_score(t, p, average="macro", zero_division=0),
    "accuracy": sk.accuracy_score,
    "macro_f1": lambda t, p: sk.f1_score(t, p, average="macro", zero_division=0),
    "weighted_f1": lambda t, p: sk.f1_score(t, p, average="weighted", zero_division=0),
}
RNG = np.random.default_rng(0)
CASES = {
    "random": (RNG.integers(0, 7, 500), RNG.integers(0, 7, 500)),
    "absent class": (RNG.integers(0, 3, 50), RNG.integers(2, 5, 50)),
    "one class": (np.ones(9, int), np.ones(9, int)),
    "all wrong": (np.zeros(9, int), np.ones(9, int)),
    "one row": (np.array([2]), np.array([3])),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METRICS)
def test_metrics_equal_scikit_learn(name: str, case: str) -> None:
    truth, decided = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = REFERENCES[name](truth, decided)
    assert METRICS[name](truth, decided, 7) == pytest.approx(expected, abs=1e-12)


def test_confusion_matrix_equals_scikit_learn() -> None:
    truth, decided = CASES["random"]
    assert (confusion_matrix(truth, decided, 7) == sk.confusion_matrix(truth, decided, labels=range(7))).all()


def test_score_is_weighted_over_heads_as_the_task_says() -> None:
    truth = {"root": np.array([0, 1, 2, 0]), "vowel": np.array([0, 1, 1, 0])}
    decided = {"root": np.array([0, 1, 2, 0]), "vowel": np.array([0, 0, 0, 0])}
    score = score_classes(wide_task(), truth, decided)
    assert score.heads == {"root": 1.0, "vowel": 0.5}
    assert score.total == pytest.approx((2 * 1.0 + 0.5) / 3)


def test_score_split_scores_the_parts_apart() -> None:
    truth = {"root": np.array([0, 1, 2, 0]), "vowel": np.array([0, 1, 1, 0])}
    decided = {"root": np.array([0, 1, 0, 1]), "vowel": np.array([0, 1, 0, 1])}
    split = score_split(wide_task(), truth, decided, np.array([False, False, True, True]))
    assert split.seen is not None and split.seen.total == 1.0
    assert split.unseen is not None and split.unseen.total == 0.0
    assert split.all.rows == 4
    assert any("unseen" in line for line in format_scores({"x": split}))


def test_score_refuses_no_rows() -> None:
    empty = {"root": np.zeros(0, int), "vowel": np.zeros(0, int)}
    with pytest.raises(DataError, match="no rows to score"):
        score_classes(wide_task(), empty, empty)
