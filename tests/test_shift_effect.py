from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import wide_task
from test_prior_shift import TRAIN, calibrated

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.settings import plain
from kaggle_kit.shift_effect import correction_helps, format_prior_shift, prior_shift_effect
from kaggle_kit.task import Metric, Task


def task_of(metric: Metric) -> Task:
    return dataclasses.replace(wide_task(), metric=metric)


def two_heads(rows: int) -> tuple[dict, dict, dict]:
    train = {"root": TRAIN, "vowel": np.array([0.8, 0.2])}
    made = {h: calibrated(rows, s, train=s, seed=i) for i, (h, s) in enumerate(train.items())}
    return {h: m[0] for h, m in made.items()}, {h: m[1] for h, m in made.items()}, train


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_effect_is_a_gain_where_shares_differ_and_none_where_they_do_not(metric: Metric) -> None:
    truth, probs, train = two_heads(3000)
    effects = prior_shift_effect(task_of(metric), truth, probs, train, Decision(), draws=4, seed=1)
    assert [(one.head, one.rows, one.rows_needed) for one in effects] == [
        ("root", 3000, 30),
        ("vowel", 3000, 20),
        ("total", 3000, 30),
    ]
    ways = ["as in train", "balanced", "random"]
    assert all([change.shares for change in one.changes] == ways for one in effects)
    in_train, balanced, _ = effects[-1].changes
    assert abs(in_train.gain) < 0.005 < 0.02 < balanced.gain
    assert balanced.interval[0] <= balanced.gain <= balanced.interval[1]
    lines = format_prior_shift(metric, effects)
    assert len(lines) == 1 + 9 + 1
    assert all(way in line for way, line in zip(ways * 3, lines[1:-1], strict=True))
    assert lines[-1].startswith(f"correcting for class shares makes {metric} better (below 0: worse) by ")
    assert "keep the correction only if you know that the test has every class equally often" in lines[-1]
    assert lines[-1].endswith("if it is like train, or you do not know, run blend again without --prior-shift")
    again = prior_shift_effect(task_of(metric), truth, probs, train, Decision(), draws=4, seed=1)
    assert again == effects


def test_a_rule_that_evens_classes_out_leaves_nothing_to_gain() -> None:
    truth, probs, train = two_heads(3000)
    rules = {
        head: HeadRule(rule="prior_power", log_bias=tuple(-np.log(shares)), power=1.0) for head, shares in train.items()
    }
    effects = prior_shift_effect(task_of("macro_recall"), truth, probs, train, Decision(heads=rules), draws=4)
    last = format_prior_shift("macro_recall", effects)[-1]
    assert last.startswith("correcting for class shares makes macro_recall better (below 0: worse) by ")
    assert last.endswith("it helps nowhere")
    assert not correction_helps(effects)


def test_a_head_with_too_few_rows_is_not_tried_and_nothing_is_concluded() -> None:
    truth, probs, train = two_heads(25)
    effects = prior_shift_effect(task_of("accuracy"), truth, probs, train, Decision(), draws=2)
    assert [(one.head, len(one.changes)) for one in effects] == [("root", 0), ("vowel", 3)]
    lines = format_prior_shift("accuracy", effects)
    assert len(lines) == 1 + 3 + 1 + 1 and not any("total" in line for line in lines)
    assert lines[-2] == "head 'root': not tried, 25 rows of at least 30"
    assert "cannot be judged: there are too few rows for head(s) 'root'" in lines[-1]
    assert json.loads(json.dumps(plain(effects)))[0] == {"head": "root", "rows": 25, "rows_needed": 30, "changes": []}


def test_where_no_head_has_enough_rows_it_is_said() -> None:
    truth, probs, train = two_heads(12)
    lines = format_prior_shift("accuracy", prior_shift_effect(task_of("accuracy"), truth, probs, train, Decision()))
    assert [line.partition(":")[0] for line in lines[:2]] == ["head 'root'", "head 'vowel'"]
    assert "too few rows for head(s) 'root', 'vowel'" in lines[2] and len(lines) == 3


def test_many_rows_are_drawn_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaggle_kit.shift_effect._MOST_ROWS", 25)
    truth, probs, train = two_heads(100)
    effects = prior_shift_effect(task_of("accuracy"), truth, probs, train, Decision(), draws=2)
    assert [(one.rows, len(one.changes)) for one in effects] == [(25, 0), (25, 3)]
