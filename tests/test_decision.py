from __future__ import annotations

import json

import numpy as np
import pytest

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.settings import build, plain

BIASED = HeadRule(rule="class_bias", log_bias=(0.0, 1.0, -0.5))


def some_probs(rows: int, classes: int, seed: int = 0) -> np.ndarray:
    probs = np.random.default_rng(seed).dirichlet(np.ones(classes), rows)
    return probs.astype(np.float32)


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
