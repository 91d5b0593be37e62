from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import wide_task

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.errors import ExportError, SettingError
from kaggle_kit.export.gate import LIMITS, Limits, check_change, describe_change, measure_change, refusal
from kaggle_kit.export.variant import Variant
from kaggle_kit.labels import Classes, Labels
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.bundle import Change
from kaggle_kit.task import Head, Task

TASK = wide_task()
ROWS = 400


IDS = np.array([f"i{row}" for row in range(ROWS)])


def truth_of(task: Task, seed: int = 0) -> Classes:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, head.num_classes, ROWS) for name, head in task.heads.items()}


def measured(task: Task, truth: Classes, before: Probs, after: Probs, **more: Any) -> Change:
    """Return the change on images that are in no group, or in those given."""
    return measure_change(task, Labels(ids=IDS, classes=truth, groups=more.pop("groups", None)), before, after, **more)


def sure_of(task: Task, classes: Classes, sureness: float = 0.8) -> Probs:
    """Return probabilities by which these classes are decided."""
    probs = {}
    for name, head in task.heads.items():
        values = np.full((ROWS, head.num_classes), (1 - sureness) / (head.num_classes - 1), np.float32)
        values[np.arange(ROWS), classes[name]] = sureness
        probs[name] = values
    return probs


def test_equal_probabilities_change_nothing() -> None:
    truth = truth_of(TASK)
    change = measured(TASK, truth, sure_of(TASK, truth), sure_of(TASK, truth))
    assert (change.decisions_changed, change.max_abs_diff, change.interval) == (0, 0, (0, 0))
    assert change.decisions == 2 * ROWS and change.score_before == change.score_after == 1
    assert all(not refusal(change, limits) for limits in LIMITS.values())


def test_wrong_decisions_are_counted_and_cost_what_the_metric_says() -> None:
    truth = truth_of(TASK)
    wrong = dict(truth, root=np.where(np.arange(ROWS) < 40, (truth["root"] + 1) % 3, truth["root"]))
    change = measured(TASK, truth, sure_of(TASK, truth), sure_of(TASK, wrong))
    assert change.decisions_changed == 40 and change.changed_share == pytest.approx(40 / 800)
    assert change.score_after < change.score_before == 1
    assert change.interval[0] < change.score_after - change.score_before < change.interval[1] < 0
    assert change.max_abs_diff == pytest.approx(0.7, abs=1e-6)


def test_changes_for_the_better_have_an_interval_above_zero() -> None:
    truth = truth_of(TASK)
    wrong = dict(truth, vowel=np.where(np.arange(ROWS) < 40, 1 - truth["vowel"], truth["vowel"]))
    change = measured(TASK, truth, sure_of(TASK, wrong), sure_of(TASK, truth))
    assert 0 < change.interval[0] < change.interval[1]
    assert not refusal(change, Limits(changed_share=1, drop=0))


def test_a_loss_is_a_loss_where_lower_is_better() -> None:
    task = dataclasses.replace(TASK, metric="log_loss")
    truth = truth_of(task)
    change = measured(task, truth, sure_of(task, truth, 0.9), sure_of(task, truth, 0.6))
    assert change.score_after > change.score_before and change.interval[1] < 0
    assert change.decisions_changed == 0
    assert "the metric may lose" in refusal(change, Limits(changed_share=1, drop=0.01))


def test_decision_rules_decide_before_and_after() -> None:
    truth = truth_of(TASK)
    flat = {name: np.full((ROWS, h.num_classes), 1 / h.num_classes, np.float32) for name, h in TASK.heads.items()}
    tilted = {
        name: values + np.float32(0.01) * np.eye(values.shape[1], dtype=np.float32)[-1] for name, values in flat.items()
    }
    rule = Decision(heads={"root": HeadRule(rule="class_bias", log_bias=(5.0, 0.0, 0.0))})
    assert measured(TASK, truth, flat, tilted).decisions_changed == 2 * ROWS
    assert measured(TASK, truth, flat, tilted, decision=rule).decisions_changed == ROWS  # the root stays


def test_a_multilabel_head_decides_otherwise_where_any_of_its_classes_does() -> None:
    head = Head(name="tags", classes=4, kind="multilabel")
    task = dataclasses.replace(TASK, heads={"tags": head}, metric="macro_f1")
    truth = {"tags": np.random.default_rng(0).integers(0, 2, (ROWS, 4), dtype=np.uint8)}
    before = {"tags": np.where(truth["tags"] > 0, 0.9, 0.1).astype(np.float32)}
    after = {"tags": before["tags"].copy()}
    after["tags"][:10, 0] = 1 - after["tags"][:10, 0]
    assert measured(task, truth, before, after).decisions_changed == 10


def change_of(**values: object) -> Change:
    usual = Change(
        rows=100,
        decisions=200,
        decisions_changed=1,
        max_abs_diff=1e-3,
        score_before=0.9,
        score_after=0.9,
        gain=0.0,
        interval=(-0.001, 0.001),
    )
    return dataclasses.replace(usual, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, ""),
        ({"decisions_changed": 3}, "3 of 200 decisions change (1.50%)"),
        ({"interval": (-0.02, 0.01)}, "the metric may lose 0.0050 at the interval's worse end"),
        ({"max_abs_diff": float("nan")}, "NaN or infinite"),
        ({"max_abs_diff": float("inf")}, "NaN or infinite"),
        ({"interval": (float("nan"),) * 2}, "the metric has no value on these images, so nothing may change"),
        ({"interval": (float("nan"),) * 2, "decisions_changed": 0}, ""),
    ],
)
def test_the_gate_says_what_is_too_much(values: dict[str, object], message: str) -> None:
    why = refusal(change_of(**values), LIMITS["fp16"])
    assert message in why and bool(why) == bool(message)
    if not message:
        check_change(change_of(**values), LIMITS["fp16"], what="x", repair="y")
        return
    with pytest.raises(ExportError, match="a.onnx in fp16 is not shipped: .*; ship fp32"):
        check_change(change_of(**values), LIMITS["fp16"], what="a.onnx in fp16", repair="ship fp32")


def test_all_numbers_of_a_change_are_in_its_line() -> None:
    assert describe_change(change_of(score_after=0.8995)) == (
        "1 of 200 decisions change (0.50%), the metric goes from 0.9000 to 0.8995 (gain between -0.0010 and +0.0010), "
        "probabilities by up to 1.0e-03, on 100 images"
    )


def test_what_a_variant_allows_adds_up() -> None:
    assert Variant().against_stored(otherwise=False) == LIMITS["stored"]
    lowered = Variant(precision="fp16").against_stored(otherwise=False)
    assert lowered.changed_share == pytest.approx(0.03) and lowered.drop == pytest.approx(0.01)
    assert Variant(tta=("hflip",)).against_stored(otherwise=True) == LIMITS["views"]
    asked = Variant(precision="int8", max_changed=0.1, max_drop=0.02)
    assert asked.limits("int8") == Limits(changed_share=0.1, drop=0.02)
    assert asked.limits("stored") == Limits(changed_share=0.1, drop=0.02)
    strict = Variant(precision="int8", max_changed=0, max_drop=0)
    assert strict.limits("stored") == LIMITS["stored"], "asking for less of a precision says nothing of checkpoints"


@pytest.mark.parametrize("values", [{"max_changed": 1.5}, {"max_drop": -0.1}])
def test_limits_outside_0_to_1_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="expected 0 to 1"):
        Variant(**values)  # type: ignore[arg-type]


def test_a_change_that_changes_nothing_is_said_in_short() -> None:
    said = describe_change(change_of(decisions_changed=0, interval=(0.0, 0.0)))
    assert said == "no decision changes, probabilities by up to 1.0e-03, on 100 images"


def test_nan_in_any_head_is_seen() -> None:
    truth = truth_of(TASK)
    spoilt = sure_of(TASK, truth)
    spoilt["vowel"][3] = np.nan
    change = measured(dataclasses.replace(TASK, metric="accuracy"), truth, sure_of(TASK, truth), spoilt)
    assert np.isnan(change.max_abs_diff) and "NaN" in refusal(change, LIMITS["int8"])


def test_images_of_a_group_are_resampled_together() -> None:
    truth = truth_of(TASK)
    groups = np.array([f"g{row // 16}" for row in range(ROWS)])
    wrong = dict(truth, root=np.where(groups == "g3", (truth["root"] + 1) % 3, truth["root"]))
    alone, together = (
        measured(TASK, truth, sure_of(TASK, truth), sure_of(TASK, wrong), groups=one).interval for one in (None, groups)
    )
    assert together[0] < 1.5 * alone[0] < 0 and together[1] == 0


def test_a_metric_without_a_value_on_these_images_lets_nothing_change() -> None:
    head = Head(name="tags", classes=2, kind="multilabel")
    task = dataclasses.replace(TASK, heads={"tags": head}, metric="roc_auc")
    truth = {"tags": np.zeros((ROWS, 2), np.uint8)}
    before = {"tags": np.full((ROWS, 2), 0.3, np.float32)}
    same = measured(task, truth, before, before)
    assert np.isnan(same.score_before) and not refusal(same, LIMITS["fp16"])
    after = {"tags": before["tags"].copy()}
    after["tags"][0, 0] = 0.7
    assert "has no value" in refusal(measured(task, truth, before, after), LIMITS["fp16"])


def test_what_is_meant_to_help_is_refused_only_where_it_harms() -> None:
    unsure = {"interval": (-0.02, 0.04)}
    assert not refusal(change_of(**unsure, gain=0.01), LIMITS["views"])
    assert "may lose" in refusal(change_of(**unsure, gain=-0.001), LIMITS["views"])
    assert "may lose" in refusal(change_of(**unsure, gain=0.01), LIMITS["fp16"])
