from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from kaggle_kit.decision import Decision, HeadRule, decide_many, log_probs
from kaggle_kit.decision_search import (
    MOST_POWER,
    ManyMetric,
    _BiasSearch,
    _metric_of_counts,
    best_thresholds,
    bias_fitter,
    power_fitter,
)
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.metrics import CLASS_METRICS, confusion_matrix
from kaggle_kit.scores import metric_value
from kaggle_kit.settings import build, plain
from kaggle_kit.task import Metric

METRICS = list(CLASS_METRICS)
MANY: list[ManyMetric] = ["macro_f1", "micro_f1", "samples_f1"]
BIASED = HeadRule(rule="class_bias", log_bias=(0.0, 1.0, -0.5))


def some_probs(rows: int, classes: int, seed: int = 0) -> np.ndarray:
    probs = np.random.default_rng(seed).dirichlet(np.ones(classes), rows)
    return probs.astype(np.float32)


def skewed(rows: int, classes: int, *, strength: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth of unequal shares, and calibrated probabilities of it."""
    rng = np.random.default_rng(seed)
    shares = np.exp(-np.arange(classes)) / np.exp(-np.arange(classes)).sum()
    truth = rng.choice(classes, rows, p=shares)
    seen = rng.normal(0, 1, (rows, classes)) + strength * np.eye(classes)[truth]
    odds = shares * np.exp(strength * seen)
    return truth, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def everything(truth: np.ndarray) -> np.ndarray:
    return np.ones(len(truth), bool)


@pytest.mark.parametrize("rule", ["prior_power", "class_bias"])
def test_without_bias_the_highest_probability_decides(rule: str) -> None:
    probs = some_probs(500, 7)
    probs[:50] = np.round(probs[:50], 1)  # ties
    zeros = HeadRule(rule=rule, log_bias=(0.0,) * 7)
    assert (zeros.decide(probs) == probs.argmax(axis=1)).all()
    assert (Decision.argmax(["a"]).decide({"a": probs})["a"] == probs.argmax(axis=1)).all()


def test_a_bias_shifts_decisions_and_ties_go_to_the_lower_class() -> None:
    probs = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0], [0.4, 0.2, 0.4]], np.float32)
    assert BIASED.decide(probs).tolist() == [1, 0, 2, 1]
    assert HeadRule(rule="argmax").decide(probs).tolist() == [0, 0, 2, 0]
    even = HeadRule(rule="class_bias", log_bias=(0.0, 0.0, 0.0))
    assert even.decide(np.full((2, 3), 1 / 3, np.float32)).tolist() == [0, 0]


def test_many_rows_are_decided_as_few_are() -> None:
    probs = some_probs(40_000, 3)
    expected = (np.log(np.maximum(probs.astype(np.float64), 1e-38)) + BIASED.log_bias).argmax(axis=1)
    assert (BIASED.decide(probs) == expected).all()
    assert BIASED.decide(probs).dtype == np.int64 and BIASED.decide(probs[:0]).shape == (0,)


def test_heads_without_a_rule_go_by_the_highest_probability() -> None:
    probs = {"a": some_probs(20, 3), "b": some_probs(20, 2)}
    decided = Decision(heads={"a": BIASED}).decide(probs)
    assert (decided["a"] == BIASED.decide(probs["a"])).all()
    assert (decided["b"] == probs["b"].argmax(axis=1)).all()


def test_a_decision_survives_json_and_describes_itself() -> None:
    power = HeadRule(rule="prior_power", log_bias=(0.2, -0.2), power=0.35)
    decision = Decision(heads={"a": BIASED, "b": power, "c": HeadRule(rule="argmax")})
    assert build(Decision, json.loads(json.dumps(plain(decision)))) == decision
    a, b, c = decision.describe().splitlines()
    assert a.startswith("a: ") and "-0.50 (class 2) to +1.00 (class 1)" in a
    assert "^0.35" in b and "highest probability decides" in c
    assert not decision.is_plain and Decision().is_plain and Decision.argmax(["a"]).is_plain
    assert Decision.argmax(["a"]).describe() == "the highest probability decides"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "argmax", "log_bias": [1.0]}, r"`log_bias` has 1 value\(s\); rule 'argmax' needs no values"),
        ({"rule": "class_bias"}, "rule 'class_bias' needs one value a class"),
        ({"rule": "class_bias", "log_bias": [0.0, float("nan")]}, r"`log_bias\[1\]` is nan; expected a finite"),
        ({"rule": "prior_power", "log_bias": [0.0], "power": float("inf")}, "`power` is inf"),
        ({"rule": "median"}, "one of 'argmax', 'prior_power', 'class_bias'"),
    ],
)
def test_rules_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build(Decision, {"heads": {"a": settings}})


def test_probs_that_do_not_fit_a_rule_are_refused() -> None:
    decision = Decision(heads={"root": BIASED})
    with pytest.raises(
        PredictionError, match=r"head 'root': probs have shape \(4, 2\), and the rule .* holds 3 biases"
    ):
        decision.decide({"root": some_probs(4, 2)})
    with pytest.raises(PredictionError, match=r"head 'root' has a rule and no probs \(found: vowel\)"):
        decision.decide({"vowel": some_probs(4, 2)})
    with pytest.raises(PredictionError, match=r"thresholds \(2,\); expected \(N, C\) and \(C,\)"):
        decide_many(some_probs(4, 3), np.array([0.5, 0.5]))


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_from_counts_are_those_from_confusion_matrices(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    for truth_classes, said_classes in itertools.product((2, 4, 6), repeat=2):  # some never true, some never said
        truth, said = rng.integers(0, truth_classes, 40), rng.integers(0, said_classes, (3, 40))
        hits = np.stack([np.bincount(one[one == truth], minlength=6) for one in said]).astype(float)
        counts = np.stack([np.bincount(one, minlength=6) for one in said]).astype(float)
        squares = ((said - truth) ** 2).sum(axis=1).astype(float)
        found = _metric_of_counts(metric, hits, np.bincount(truth, minlength=6), counts, squares)
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


@pytest.mark.parametrize("metric", METRICS)
def test_the_ascent_is_told_the_metric_it_reaches(metric: Metric) -> None:
    truth, probs = skewed(3000, 6)
    search = _BiasSearch(metric, truth, np.ascontiguousarray(log_probs(probs).T))
    for label in [0, 1, 2, 3, 4, 5] * 2:
        before = search.value
        assert search.improve(label) == (search.value > before)
        decided = HeadRule(rule="class_bias", log_bias=tuple(search.bias.tolist())).decide(probs)
        assert search.value == pytest.approx(metric_value(metric, truth, decided, 6), abs=1e-12)


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


def many(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Multi-label truth, and probabilities with ties that are too low."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, classes)) < np.linspace(0.5, 0.1, classes)
    return truth, np.round(np.clip(0.25 * truth + rng.normal(0.25, 0.15, truth.shape), 0, 1), 2).astype(np.float32)


def f1_of(metric: ManyMetric, truth: np.ndarray, said: np.ndarray) -> float:
    average = metric.removesuffix("_f1")
    return float(f1_score(truth, said, average=average, zero_division=0))


@pytest.mark.parametrize("metric", MANY)
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_that_brute_force_finds(metric: ManyMetric, seed: int) -> None:
    truth, probs = many(8, 2, seed)
    cuts = [np.append(np.unique(column) - 1e-4, 1.1) for column in probs.T]
    tried = list(itertools.product(*cuts)) if metric != "samples_f1" else [(c, c) for c in np.concatenate(cuts)]
    several = {decide_many(probs, np.array(one)).tobytes() for one in tried}
    best = max(f1_of(metric, truth, np.frombuffer(said, bool).reshape(truth.shape)) for said in several)
    found = best_thresholds(metric, truth, probs)
    assert f1_of(metric, truth, decide_many(probs, found)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", MANY)
def test_thresholds_of_labels_that_are_never_or_always_true(metric: ManyMetric) -> None:
    truth, probs = many(50, 3)
    truth[:, 0], truth[:, 1] = False, True
    found = best_thresholds(metric, truth, probs)
    if metric != "samples_f1":
        assert found[1] <= probs[:, 1].min()
        assert found[0] == 0.5 if metric == "macro_f1" else found[0] > probs[:, 0].max()
    assert (best_thresholds(metric, np.zeros_like(truth), probs) == 0.5).all()
