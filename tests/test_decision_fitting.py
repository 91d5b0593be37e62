from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import wide_task
from sklearn.metrics import f1_score

from kaggle_kit.decision import Decision, decide_many
from kaggle_kit.decision_fitting import FittedDecision, _f1, fit_decision, fit_thresholds, format_decision
from kaggle_kit.decision_search import ManyMetric, best_thresholds
from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.scores import score_answers
from kaggle_kit.settings import build, plain
from kaggle_kit.task import Metric, Task

SHARES = {"root": np.array([0.85, 0.1, 0.05]), "vowel": np.array([0.9, 0.1])}
MANY: list[ManyMetric] = ["macro_f1", "micro_f1", "samples_f1"]


def task_of(metric: Metric = "macro_recall") -> Task:
    return dataclasses.replace(wide_task(), metric=metric)


def skewed(rows: int, *, strength: float = 1.5, seed: int = 0) -> tuple[dict, dict]:
    """Truth of unequal shares, and calibrated probabilities of it."""
    rng = np.random.default_rng(seed)
    truth, probs = {}, {}
    for head, shares in SHARES.items():
        truth[head] = rng.choice(len(shares), rows, p=shares)
        seen = rng.normal(0, 1, (rows, len(shares))) + strength * np.eye(len(shares))[truth[head]]
        odds = shares * np.exp(strength * seen)
        probs[head] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    return truth, probs


def counts_of(truth: dict) -> dict:
    return {head: np.bincount(values, minlength=len(SHARES[head])) for head, values in truth.items()}


def fitted_to(
    truth: dict, probs: dict, metric: Metric = "macro_recall", folds: int = 4, **others: int
) -> FittedDecision:
    numbers = np.arange(len(truth["root"])) % folds
    return fit_decision(task_of(metric), truth, probs, numbers, counts=counts_of(truth), **{"draws": 200, **others})


def test_a_rule_for_a_skewed_problem_is_kept_and_helps_on_fresh_images() -> None:
    truth, probs = skewed(3000)
    fitted = fitted_to(truth, probs)
    assert [(one.head, one.rule.rule) for one in fitted.candidates if one.kept] == [
        ("root", "prior_power"),
        ("vowel", "prior_power"),
    ]
    assert all(one.nested_gain > 0.05 and one.interval[0] > 0 for one in fitted.candidates)
    fresh, fresh_probs = skewed(3000, seed=1)
    before = score_answers(task_of(), fresh, fresh_probs).total
    after = score_answers(task_of(), fresh, fitted.decision.decide(fresh_probs)).total
    assert after - before == pytest.approx(fitted.nested.total - fitted.argmax.total, abs=0.04)
    assert fitted.argmax == dataclasses.replace(
        score_answers(task_of(), truth, probs),
        interval=fitted.argmax.interval,
        head_intervals=fitted.argmax.head_intervals,
    )
    assert fitted.nested.interval is not None and fitted.nested.interval[0] < fitted.nested.total


@pytest.mark.parametrize("metric", ["macro_recall", "macro_f1", "weighted_f1", "quadratic_kappa"])
def test_a_rule_fitted_to_noise_is_not_kept(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    truth = {"root": rng.integers(0, 3, 400), "vowel": rng.integers(0, 2, 400)}
    probs = {h: rng.dirichlet(np.ones(c), 400).astype(np.float32) for h, c in (("root", 3), ("vowel", 2))}
    fitted = fitted_to(truth, probs, metric)
    assert fitted.decision.is_plain and not any(one.kept for one in fitted.candidates)
    assert max(one.in_sample_gain for one in fitted.candidates) > 0  # what would have been believed
    assert fitted.nested == fitted.argmax
    assert format_decision(fitted)[-1].startswith("no rule helps beyond luck: let the highest probability decide")


def test_the_rule_with_more_parameters_must_be_better_than_the_simpler_one() -> None:
    truth, probs = skewed(4000)
    for head, values in probs.items():  # a model that is wrong about one class in a way no power of counts mends
        values[:, 0] *= 0.02 if head == "root" else 1
        values[:, 1] *= 20 if head == "root" else 1
        values /= values.sum(axis=1, keepdims=True)
    kept = {one.head: one for one in fitted_to(truth, probs).candidates if one.kept}
    assert kept["root"].rule.rule == "class_bias"
    assert kept["vowel"].rule.rule == "prior_power"


def test_each_head_is_fitted_alone_and_judged_by_nested_decisions() -> None:
    truth, probs = skewed(600)
    fitted = fitted_to(truth, probs)
    changed = {head: values.copy() for head, values in truth.items()}
    changed["vowel"][0] = 1 - changed["vowel"][0]
    again = fitted_to(changed, probs).candidates
    assert [one.rule for one in again[:2]] == [one.rule for one in fitted.candidates[:2]]  # each head alone
    assert [one.nested_gain for one in again[:2]] == [one.nested_gain for one in fitted.candidates[:2]]
    flattered = [one for one in fitted.candidates if one.in_sample_gain > one.nested_gain]
    assert len(flattered) >= 3


def test_images_of_one_fold_are_parted_at_random() -> None:
    truth, probs = skewed(1000)
    one = fitted_to(truth, probs, folds=1)
    assert one.decision.heads["root"].rule != "argmax"
    assert one == fitted_to(truth, probs, folds=1)
    assert one != fitted_to(truth, probs, folds=1, seed=1)


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "average_precision"])
def test_for_metrics_of_probabilities_nothing_is_fitted(metric: Metric) -> None:
    truth, probs = skewed(200)
    fitted = fitted_to(truth, probs, metric)
    assert fitted.decision.is_plain and fitted.candidates == () and fitted.nested == fitted.argmax
    (line,) = format_decision(fitted)
    assert f"metric {metric} scores the probabilities themselves" in line


def test_a_head_whose_truth_is_one_class_keeps_the_highest_probability() -> None:
    truth, probs = skewed(500)
    truth["vowel"][:] = 0
    fitted = fitted_to(truth, probs)
    assert {one.head for one in fitted.candidates} == {"root"}
    assert fitted.decision.heads["vowel"].rule == "argmax"
    truth["root"][:] = 2
    assert "single class" in format_decision(fitted_to(truth, probs))[0]


def test_a_class_that_one_fold_alone_holds_is_no_trouble() -> None:
    truth, probs = skewed(300)
    truth["root"][:] = np.where(np.arange(300) % 4 == 0, 2, 0)
    assert len(fitted_to(truth, probs).candidates) == 4


def test_the_nested_decisions_are_those_that_were_scored() -> None:
    truth, probs = skewed(500)
    fitted = fitted_to(truth, probs)
    assert score_answers(task_of(), truth, fitted.decided).heads == fitted.nested.heads
    assert score_answers(task_of(), truth, fitted_to(truth, probs, "log_loss").decided).heads == fitted.argmax.heads


def test_the_decision_survives_json_and_the_table_lines_up() -> None:
    fitted = fitted_to(*skewed(500))
    assert build(Decision, json.loads(json.dumps(plain(fitted.decision)))) == fitted.decision
    lines = format_decision(fitted)
    assert len(lines) == 1 + 4 + 1
    assert len({line.find("  yes:") if "yes:" in line else line.find("  no:") for line in lines[1:-1]}) == 1
    assert "use the fitted decision (a rule for root" in lines[-1] and "macro_recall" in lines[-1]


def without(values: dict, head: str) -> dict:
    return {name: value for name, value in values.items() if name != head}


TRUTH, PROBS = skewed(20)
NAN = PROBS | {"root": np.where(np.arange(20)[:, None] == 7, np.nan, PROBS["root"])}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"truth": without(TRUTH, "root")}, DataError, r"head 'root' has no truth \(found: vowel\)"),
        ({"probs": without(PROBS, "vowel")}, PredictionError, r"head 'vowel' has no probs \(found: root\)"),
        ({"counts": {}}, DataError, "head 'root' has no counts"),
        ({"probs": NAN}, PredictionError, "head 'root': probs of 1 of 20 rows are NaN, .* row 7"),
        ({"probs": PROBS | {"root": -PROBS["root"]}}, PredictionError, "20 of 20 rows are NaN, infinite or below 0"),
        ({"probs": PROBS | {"root": PROBS["vowel"]}}, PredictionError, r"have shape \(20, 2\); expected \(20, 3\)"),
        (
            {"truth": TRUTH | {"vowel": TRUTH["root"] + 1}},
            DataError,
            "head 'vowel': truth .* class indices from 0 to 1",
        ),
        ({"truth": TRUTH | {"vowel": TRUTH["vowel"][:5]}}, DataError, r"truth has shape \(5,\).*expected \(20,\)"),
        ({"counts": {"root": np.zeros(3), "vowel": np.ones(2)}}, DataError, "head 'root': counts have .* sum 0"),
        ({"counts": {"root": np.ones(2), "vowel": np.ones(2)}}, DataError, r"shape \(2,\) .* expected \(3,\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    given = {"truth": TRUTH, "probs": PROBS, "folds": np.arange(20) % 2, "counts": counts_of(TRUTH)} | changes
    with pytest.raises(error, match=message):
        fit_decision(task_of(), **given)


def test_no_rows_are_refused() -> None:
    nothing = {head: values[:0] for head, values in TRUTH.items()}
    with pytest.raises(DataError, match=r"head 'root': truth has shape \(0,\)"):
        fit_decision(
            task_of(),
            nothing,
            {head: values[:0] for head, values in PROBS.items()},
            np.arange(0),
            counts=counts_of(TRUTH),
        )


def many(rows: int, *, low: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Multi-label truth and probabilities; `low` makes them too low by that much."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.1]
    logits = rng.normal(0, 1, truth.shape) + 4 * truth - 2 - low
    return truth, (1 / (1 + np.exp(-logits))).astype(np.float32)


def f1_of(metric: ManyMetric, truth: np.ndarray, said: np.ndarray) -> float:
    return float(f1_score(truth, said, average=metric.removesuffix("_f1"), zero_division=0))


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
        (np.ones((4, 2), bool), np.full((4, 2), np.nan), PredictionError, "multi-label head: probs of 4 of 4 rows"),
    ],
)
def test_thresholds_refuse_what_does_not_fit(
    truth: np.ndarray, probs: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_thresholds(truth, probs, metric="macro_f1", folds=np.arange(4))
