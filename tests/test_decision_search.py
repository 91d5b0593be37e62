from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_prior_shift import calibrated

from kaggle_kit.decision import HeadRule, log_probs
from kaggle_kit.decision_search import MOST_POWER, _BiasSearch, bias_fitter, metric_of_counts, power_fitter
from kaggle_kit.metrics import CLASS_METRICS, confusion_matrix
from kaggle_kit.scores import metric_value
from kaggle_kit.task import Metric

METRICS = list(CLASS_METRICS)


def skewed(rows: int, classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    shares = np.exp(-np.arange(classes)) / np.exp(-np.arange(classes)).sum()
    return calibrated(rows, shares, train=shares, seed=seed)


def everything(truth: np.ndarray) -> np.ndarray:
    return np.ones(len(truth), bool)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_from_counts_are_those_from_confusion_matrices(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    for truth_classes, said_classes in itertools.product((2, 4, 6), repeat=2):  # some never true, some never said
        truth, said = rng.integers(0, truth_classes, 40), rng.integers(0, said_classes, (3, 40))
        hits = np.stack([np.bincount(one[one == truth], minlength=6) for one in said]).astype(float)
        counts = np.stack([np.bincount(one, minlength=6) for one in said]).astype(float)
        squares = ((said - truth) ** 2).sum(axis=1).astype(float)
        found = metric_of_counts(metric, hits, np.bincount(truth, minlength=6), counts, squares)
        expected = [CLASS_METRICS[metric](confusion_matrix(truth, one, 6)) for one in said]
        assert found == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_the_ascent_never_lowers_the_metric(metric: Metric, seed: int) -> None:
    truth, probs = skewed(600, 5, seed=seed)
    rule = bias_fitter(metric, truth, probs)(everything(truth))
    before = metric_value(metric, truth, probs, 5)
    assert metric_value(metric, truth, rule.decide(probs), 5) >= before - 1e-12
    assert max(map(abs, rule.log_bias)) < 3


def rounded(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Few different probabilities, whose ratios are often equal, as fractions are, but not as floats."""
    rng = np.random.default_rng(seed)
    parts = rng.multinomial(10, rng.dirichlet(np.ones(3), rows))
    return rng.integers(0, 3, rows), parts / 10 if seed % 2 else (parts / 10).astype(np.float32)


def check_every_step(metric: Metric, truth: np.ndarray, probs: np.ndarray) -> None:
    classes = probs.shape[1]
    search = _BiasSearch(metric, truth, np.ascontiguousarray(log_probs(probs).T))
    assert search.value == metric_value(metric, truth, probs, classes)
    for label in list(range(classes)) * 2:
        before = search.value
        assert search.improve(label) == (search.value > before)
        decided = HeadRule(rule="class_bias", log_bias=tuple(search.bias.tolist())).decide(probs)
        assert search.value == pytest.approx(metric_value(metric, truth, decided, classes), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_the_ascent_is_told_the_metric_it_reaches(metric: Metric) -> None:
    check_every_step(metric, *skewed(3000, 6))


@pytest.mark.parametrize("metric", METRICS)
def test_rounded_probabilities_are_no_trouble_to_the_ascent(metric: Metric) -> None:
    for seed in range(60):
        truth, probs = rounded(8 + seed % 30, seed)
        check_every_step(metric, truth, probs)
        rule = bias_fitter(metric, truth, probs)(everything(truth))
        before, after = (metric_value(metric, truth, answer, 3) for answer in (probs, rule.decide(probs)))
        assert after >= before - 1e-12, seed


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("decimals", [2, 3])
def test_where_not_all_biases_are_tried_none_falls_on_a_threshold(metric: Metric, decimals: int) -> None:
    for seed in range(3):
        truth, probs = skewed(2000, 3, seed=seed)
        check_every_step(metric, truth, probs.astype(np.float64).round(decimals))


def test_thresholds_that_differ_in_the_last_bit_are_one() -> None:
    probs = np.array(
        [
            [0.8, 0.1, 0.1],
            [0.6, 0.3, 0.1],
            [0.8, 0.1, 0.1],
            [0.1, 0.2, 0.7],
            [0.4, 0.2, 0.4],
            [0.8, 0.1, 0.1],
            [0.3, 0.6, 0.1],
            [0.1, 0.3, 0.6],
        ]
    )
    truth = np.array([0, 0, 0, 1, 0, 2, 2, 2])
    rule = bias_fitter("macro_f1", truth, probs)(everything(truth))
    assert metric_value("macro_f1", truth, rule.decide(probs), 3) >= metric_value("macro_f1", truth, probs, 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(4))
def test_with_two_classes_the_ascent_finds_what_brute_force_finds(metric: Metric, seed: int) -> None:
    truth, probs = skewed(30, 2, seed=seed)
    rule = bias_fitter(metric, truth, probs)(everything(truth))
    tried = [HeadRule(rule="class_bias", log_bias=(0.0, bias)) for bias in np.linspace(-2.99, 2.99, 3000).tolist()]
    best = max(metric_value(metric, truth, one.decide(probs), 2) for one in tried)
    assert metric_value(metric, truth, rule.decide(probs), 2) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_the_ascent_ends_where_no_single_bias_is_better(metric: Metric) -> None:
    truth, probs = skewed(40, 3, seed=2)
    rule = bias_fitter(metric, truth, probs)(everything(truth))
    found = metric_value(metric, truth, rule.decide(probs), 3)
    for label, bias in itertools.product(range(3), np.linspace(-2.99, 2.99, 300).tolist()):
        other = HeadRule(rule="class_bias", log_bias=(*rule.log_bias[:label], bias, *rule.log_bias[label + 1 :]))
        assert metric_value(metric, truth, other.decide(probs), 3) <= found + 1e-12


def test_a_bias_lies_in_the_middle_of_its_best_stretch() -> None:
    truth = np.array([0, 0, 1, 1])
    first = np.array([0.9, 0.8, 0.7, 0.6])  # class 1 should win from 0.7 / 0.3 on, and not before 0.8 / 0.2
    rule = bias_fitter("accuracy", truth, np.column_stack([first, 1 - first]))(everything(truth))
    shift = rule.log_bias[1] - rule.log_bias[0]
    assert shift == pytest.approx((np.log(7 / 3) + np.log(4)) / 2)


def test_the_power_is_the_best_of_all_and_the_lowest_of_equals() -> None:
    truth, probs = skewed(2000, 5)
    counts = np.bincount(truth, minlength=5)
    rule = power_fitter("macro_recall", truth, probs, counts)(everything(truth))
    scores = {}
    powers = np.linspace(0, MOST_POWER, 31).round(2).tolist()
    for power in powers:
        decided = (log_probs(probs) - power * np.log(counts)).argmax(axis=1)
        scores[power] = metric_value("macro_recall", truth, decided, 5)
    assert rule.power == next(power for power in powers if scores[power] == max(scores.values())) > 0
    assert metric_value("macro_recall", truth, rule.decide(probs), 5) == max(scores.values())
    sure = np.eye(5, dtype=np.float32)[truth]
    assert power_fitter("macro_recall", truth, sure, counts)(everything(truth)).power == 0


def test_a_class_that_train_lacks_gets_no_bias() -> None:
    truth, probs = skewed(500, 4)
    rule = power_fitter("macro_recall", truth, probs, np.array([1000, 100, 10, 0]))(everything(truth))
    assert rule.power > 0 and rule.log_bias[3] == 0
    assert rule.log_bias[0] < rule.log_bias[1] < rule.log_bias[2]
