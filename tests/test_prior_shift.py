from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import wide_task

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.errors import PredictionError
from kaggle_kit.prior_shift import (
    MIN_ROWS_PER_CLASS,
    estimate_priors,
    shift_predictions,
    shift_probs,
)
from kaggle_kit.shift_effect import format_prior_shift, prior_shift_effect
from kaggle_kit.task import Metric, Task

TRAIN = np.array([0.6, 0.3, 0.1])


def calibrated(rows: int, shares: np.ndarray, *, train: np.ndarray = TRAIN, seed: int = 0) -> tuple:
    """Truth of some shares, and probabilities that are right where the classes have train's."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(shares), rows, p=shares)
    seen = rng.normal(0, 1, (rows, len(shares))) + 1.5 * np.eye(len(shares))[truth]
    odds = train * np.exp(1.5 * seen)
    return truth, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def task_of(metric: Metric) -> Task:
    return dataclasses.replace(wide_task(), metric=metric)


def test_shares_that_did_not_shift_are_found_again() -> None:
    _, probs = calibrated(20_000, TRAIN)
    found = estimate_priors(probs, TRAIN)
    assert found.converged and found.priors.sum() == pytest.approx(1)
    assert found.priors == pytest.approx(TRAIN, abs=0.01)
    assert shift_probs(probs, TRAIN, TRAIN) == pytest.approx(probs, abs=1e-6)


def test_a_known_shift_is_found_and_the_corrected_probabilities_decide_better() -> None:
    shares = np.array([0.1, 0.2, 0.7])
    truth, probs = calibrated(20_000, shares)
    found = estimate_priors(probs, TRAIN)
    assert found.converged and found.priors == pytest.approx(shares, abs=0.015)
    shifted = shift_probs(probs, TRAIN, found.priors)
    assert shifted.dtype == np.float32 and shifted.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert (shifted.argmax(axis=1) == truth).mean() > (probs.argmax(axis=1) == truth).mean() + 0.05
    assert shifted.mean(axis=0) == pytest.approx(found.priors, abs=1e-4)


def test_the_estimate_gives_up_after_the_steps_it_was_given() -> None:
    _, probs = calibrated(500, np.array([0.1, 0.2, 0.7]))
    found = estimate_priors(probs, TRAIN, max_steps=2)
    assert found.steps == 2 and not found.converged


def test_a_class_that_train_lacks_keeps_its_probability() -> None:
    probs = np.array([[0.8, 0.2, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]], np.float32)
    train = np.array([0.5, 0.5, 0.0])
    assert np.isfinite(estimate_priors(probs, train).priors).all()
    shifted = shift_probs(probs, train, np.array([0.25, 0.75, 0.0]))
    assert shifted[0] == pytest.approx([0.4 / 0.7, 0.3 / 0.7, 0])
    assert shifted[2].tolist() == [0, 0, 1]
    gone = shift_probs(np.array([[1.0, 0.0]], np.float32), np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    assert gone.tolist() == [[1.0, 0.0]]  # a row that would vanish


def test_heads_with_too_few_rows_stay_as_they_are_and_it_is_said() -> None:
    _, many = calibrated(400, np.array([0.1, 0.2, 0.7]))
    few = many[: 3 * MIN_ROWS_PER_CLASS - 1]
    shifted, said = shift_predictions({"root": few}, {"root": TRAIN})
    assert shifted["root"] is few
    assert said == ["head 'root': class shares left as in train: 29 usable images are fewer than 30"]
    shifted, said = shift_predictions({"root": many}, {"root": TRAIN})
    assert (shifted["root"] != many).any()
    assert "from 400 images in" in said[0] and "class 2 moved most, from 0.1000 to 0." in said[0]


def test_skipped_rows_are_neither_counted_nor_changed() -> None:
    _, probs = calibrated(400, np.array([0.1, 0.2, 0.7]))
    skip = np.arange(400) % 4 == 0
    broken = probs.copy()
    broken[skip] = TRAIN
    shifted, said = shift_predictions({"root": broken}, {"root": TRAIN}, skip=skip)
    alone, _ = shift_predictions({"root": probs[~skip]}, {"root": TRAIN})
    assert (shifted["root"][skip] == broken[skip]).all()
    assert (shifted["root"][~skip] == alone["root"]).all()
    assert "from 300 images" in said[0]


@pytest.mark.parametrize(
    ("probs", "train", "message"),
    [
        (np.ones((9, 2)), [0.5, 0.3, 0.2], r"probs have shape \(9, 2\) and train_priors \(3,\); expected"),
        (np.ones((9, 2)), [60, 40], "train_priors sum to 100.0000 .*, not 1; pass shares of the train labels"),
        (np.ones((9, 2)), [1.5, -0.5], r"\(lowest -0.5000\), not 1"),
        (np.ones((9, 2)), [np.nan, 0.5], "sum to nan"),
        (np.full((9, 2), np.nan), [0.5, 0.5], "probs of 9 rows hold NaN"),
        (np.ones((0, 2)), [0.5, 0.5], "there are no probs"),
    ],
)
def test_what_cannot_be_estimated_is_refused(probs: np.ndarray, train: list, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        estimate_priors(probs, np.array(train))


def test_errors_name_the_head() -> None:
    _, probs = calibrated(100, TRAIN)
    with pytest.raises(PredictionError, match=r"head 'root' has no train_priors \(found: vowel\)"):
        shift_predictions({"root": probs}, {"vowel": TRAIN})
    with pytest.raises(PredictionError, match="head 'root': train_priors sum to 10"):
        shift_predictions({"root": probs}, {"root": TRAIN * 10})
    with pytest.raises(PredictionError, match=r"head 'root': skip has shape \(3,\); expected \(100,\)"):
        shift_predictions({"root": probs}, {"root": TRAIN}, skip=np.zeros(3, bool))


def two_heads(rows: int) -> tuple[dict, dict, dict]:
    train = {"root": TRAIN, "vowel": np.array([0.8, 0.2])}
    made = {h: calibrated(rows, s, train=s, seed=i) for i, (h, s) in enumerate(train.items())}
    return {h: m[0] for h, m in made.items()}, {h: m[1] for h, m in made.items()}, train


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_effect_is_a_gain_where_shares_differ_and_none_where_they_do_not(metric: Metric) -> None:
    truth, probs, train = two_heads(3000)
    effects = prior_shift_effect(task_of(metric), truth, probs, train, Decision(), draws=4, seed=1)
    assert [(one.shares, one.head) for one in effects[:4]] == [
        ("as they are", "root"),
        ("as they are", "vowel"),
        ("as they are", "total"),
        ("equal", "root"),
    ]
    gains = {(one.shares, one.head): one.gain for one in effects}
    assert abs(gains["as they are", "total"]) < 0.005 < 0.02 < gains["equal", "total"]
    lines = format_prior_shift(metric, effects)
    assert len(lines) == 1 + 9 + 1 and "only if you expect the test's to be equal" in lines[-1]
    again = prior_shift_effect(task_of(metric), truth, probs, train, Decision(), draws=4, seed=1)
    assert again == effects


def test_a_rule_that_evens_classes_out_leaves_nothing_to_gain() -> None:
    truth, probs, train = two_heads(3000)
    rules = {
        head: HeadRule(rule="prior_power", log_bias=tuple(-np.log(shares)), power=1.0) for head, shares in train.items()
    }
    effects = prior_shift_effect(task_of("macro_recall"), truth, probs, train, Decision(heads=rules), draws=4)
    assert format_prior_shift("macro_recall", effects)[-1].startswith("do not correct for class shares: macro_recall")
