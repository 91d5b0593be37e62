from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kaggle_kit.audit.after_model import AfterModel, look_after_model
from kaggle_kit.audit.label_issues import is_pruned
from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.labels import Labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.task import Task, task_from_plain

pytest.importorskip("cleanlab", reason="label issues need cleanlab, which the extra audit brings")
NUM = 300


def make_task(heads: dict[str, Any]) -> Task:
    return task_from_plain(
        {
            "name": "made",
            "heads": heads,
            "metric": "macro_recall" if "tags" not in heads else "macro_f1",
            "images": {"format": "files", "folder": "images", "test_list": "test.csv"},
            "submission": {"form": "row_per_image"},
        }
    )


TASK = make_task({"kind": {"classes": ["cat", "dog", "cow"], "values": [1, 2, 3]}, "size": {"classes": 2}})
TAGS = make_task({"tags": {"classes": ["red", "round", "big"], "kind": "multilabel"}})


def made(classes: dict[str, np.ndarray]) -> Labels:
    number = len(next(iter(classes.values())))
    return Labels(ids=np.array([f"i{row}" for row in range(number)], np.str_), classes=classes, groups=None)


def sure_of(classes: np.ndarray, num: int, *, sure: float, seed: int = 0) -> np.ndarray:
    """Return probabilities of a model that is this sure of these classes, give or take."""
    rng = np.random.default_rng(seed)
    own = np.clip(rng.normal(sure, 0.05, len(classes)), 0.5, 0.98)
    probs = np.repeat(((1 - own) / (num - 1))[:, None], num, axis=1)
    probs[np.arange(len(classes)), classes] = own
    return probs.astype(np.float32)


def run_of(
    labels: Labels, probs: dict[str, np.ndarray], name: str = "a", *, task: Task | None = None, **more: Any
) -> Any:
    predictions = Predictions(ids=labels.ids[: len(next(iter(probs.values())))], probs=probs, **more)
    return SimpleNamespace(name=name, folder=Path(name), task=task or TASK, oof=lambda: predictions)


def true_classes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"kind": rng.integers(0, 3, NUM), "size": rng.integers(0, 2, NUM)}


def look(wrong: list[int]) -> AfterModel:
    true = true_classes()
    given = {"kind": true["kind"].copy(), "size": true["size"]}
    given["kind"][wrong] = (given["kind"][wrong] + 1) % 3
    labels = made(given)
    probs = {"kind": sure_of(true["kind"], 3, sure=0.85), "size": sure_of(true["size"], 2, sure=0.9)}
    return look_after_model(TASK, labels, [run_of(labels, probs)])


def test_wrong_labels_come_first_with_what_is_thought_right() -> None:
    wrong = [3, 50, 51, 120, 200, 299]
    after = look(wrong)
    issues = [one for one in after.findings if one.kind == "label_issue"]
    assert {one.id for one in issues[: len(wrong)]} == {f"i{row}" for row in wrong}
    true = true_classes()["kind"]
    assert all(one.head == "kind" and one.suggested == str(1 + true[int(one.id[1:])]) for one in issues[: len(wrong)])
    assert [one.score for one in issues] == sorted([one.score for one in issues], reverse=True)
    assert {one.id for one in after.findings if one.kind == "top_loss"} == {f"i{row}" for row in wrong}
    kind, size = after.heads
    assert (kind.num_issues, size.num_issues, kind.note) == (len(wrong), 0, "")


def test_what_is_confused_is_counted_both_ways() -> None:
    after = look(list(range(10)))
    kind = after.heads[0]
    assert kind.matrix.sum() == NUM and np.trace(kind.matrix) == NUM - 10
    assert sum(pair.images for pair in kind.pairs) == 10
    assert kind.pairs[0].images >= kind.pairs[-1].images and kind.pairs[0].label in ("cat", "dog", "cow")


def test_sound_labels_give_no_findings() -> None:
    assert look([]).findings == ()


def test_images_without_predictions_are_left_out_and_counted() -> None:
    labels = made(true_classes())
    probs = {head: sure_of(labels.classes[head][:200], 3 if head == "kind" else 2, sure=0.9) for head in TASK.heads}
    after = look_after_model(TASK, labels, [run_of(labels, probs)])
    assert (len(after.ids), after.unpredicted) == (200, 100)


def test_several_runs_speak_by_their_mean() -> None:
    labels = made(true_classes())
    first = {head: sure_of(labels.classes[head], 3 if head == "kind" else 2, sure=0.9) for head in TASK.heads}
    second = {head: sure_of(labels.classes[head], 3 if head == "kind" else 2, sure=0.7) for head in TASK.heads}
    after = look_after_model(TASK, labels, [run_of(labels, first), run_of(labels, second, "b")])
    assert after.runs == ("a", "b")
    np.testing.assert_allclose(after.probs["kind"], (first["kind"] + second["kind"]) / 2, atol=1e-6)


def test_combinations_that_are_never_right_are_named() -> None:
    true = true_classes()
    labels = made(true)
    said = {"kind": true["kind"].copy(), "size": true["size"].copy()}
    rows = np.flatnonzero((true["kind"] == 2) & (true["size"] == 1))
    said["size"][rows] = 0
    probs = {"kind": sure_of(said["kind"], 3, sure=0.9), "size": sure_of(said["size"], 2, sure=0.9)}
    (one,) = look_after_model(TASK, labels, [run_of(labels, probs)]).combinations
    assert one.classes == {"kind": "cow", "size": "1"} and one.images == len(rows)
    assert one.most_said == {"kind": "cow", "size": "0"}


def test_sets_of_classes_are_looked_at_class_by_class() -> None:
    rng = np.random.default_rng(0)
    true = (rng.random((NUM, 3)) < 0.4).astype(np.uint8)
    given = true.copy()
    given[[5, 6], 1] ^= 1
    probs = np.where(true > 0, 0.9, 0.1).astype(np.float32) + rng.normal(0, 0.02, true.shape).astype(np.float32)
    labels = made({"tags": given})
    after = look_after_model(TAGS, labels, [run_of(labels, {"tags": probs}, task=TAGS, multilabel=("tags",))])
    issues = {one.id: one for one in after.findings if one.kind == "label_issue"}
    assert set(issues) == {"i5", "i6"}
    assert issues["i5"].suggested == " ".join(np.array(["red", "round", "big"])[true[5] > 0])
    assert after.heads[0].matrix.shape == (3, 2, 2)
    for row in (5, 6):
        with_or_without = "with" if given[row, 1] else "without"
        assert issues[f"i{row}"].detail == f"round {probs[row, 1]:.0%}, labelled {with_or_without}"


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ([0.5, 1.0, 0.3], "1 of 3 classes were not looked at: all images have them, or none has"),
        ([0.5, 0.0, 0.3], "1 of 3 classes were not looked at: all images have them, or none has"),
        ([0.5, 0.0, 1.0], "2 of 3 classes were not looked at: all images have them, or none has"),
        ([0.0, 0.0, 0.0], "3 of 3 classes were not looked at: all images have them, or none has"),
        ([1.0, 1.0, 1.0], "3 of 3 classes were not looked at: all images have them, or none has"),
    ],
)
def test_a_class_that_all_images_have_or_none_is_not_looked_at(columns: list[float], note: str) -> None:
    rng = np.random.default_rng(0)
    true = (rng.random((60, 3)) < columns).astype(np.uint8)
    given = true.copy()
    told = [column for column, share in enumerate(columns) if 0 < share < 1]
    given[7, told[:1]] ^= 1
    labels = made({"tags": given})
    probs = np.where(true > 0, 0.9, 0.1).astype(np.float32)
    after = look_after_model(TAGS, labels, [run_of(labels, {"tags": probs}, task=TAGS, multilabel=("tags",))])
    assert after.heads[0].note == note
    assert [one.id for one in after.findings if one.kind == "label_issue"] == ["i7"] * bool(told)
    assert after.heads[0].num_issues == bool(told)


def test_what_a_weak_model_merely_says_otherwise_is_marked_and_not_counted() -> None:
    rng = np.random.default_rng(0)
    task = make_task({"kind": {"classes": 6}})
    classes = rng.integers(0, 6, 600)
    said = np.where(rng.random(600) < 0.5, classes, rng.integers(0, 5, 600))
    said[said == 5] = 0  # which it never says
    probs = np.asarray(0.7 * sure_of(said, 6, sure=0.6) + 0.3 * rng.dirichlet(np.ones(6), 600), np.float32)
    probs[:, 5] = 0
    probs /= probs.sum(axis=1, keepdims=True)
    labels = made({"kind": classes})
    after = look_after_model(task, labels, [run_of(labels, {"kind": probs}, task=task)])
    (head,) = after.heads
    errors = int((probs.argmax(axis=1) != classes).sum())
    issues = [one for one in after.findings if one.kind == "label_issue"]
    pruned = [is_pruned(one) for one in issues]
    assert pruned == sorted(pruned, reverse=True)
    assert head.num_issues == sum(pruned) == after.num_issues < errors
    assert 0 < head.num_doubts == len(issues) - head.num_issues <= head.num_issues
    assert all(one.detail.startswith("not sure: the model says otherwise; ") != is_pruned(one) for one in issues)
    assert head.is_weak and head.never_said == ("5",)
    assert head.weakness == f"errs on {errors / 600:.0%} of kind itself and never predicts '5'"


def test_a_strong_model_is_not_called_weak() -> None:
    assert [head.weakness for head in look([3, 50]).heads] == ["", ""]


def test_classes_are_matched_by_name_whatever_their_order() -> None:
    wrong = [3, 50, 51, 120, 200, 299]
    straight = look(wrong)
    heads = {"kind": {"classes": ["cow", "cat", "dog"]}, "size": {"classes": ["1", "0"]}}
    true, labels = true_classes(), made(true_classes())
    labels.classes["kind"][wrong] = (labels.classes["kind"][wrong] + 1) % 3
    straight_probs = {"kind": sure_of(true["kind"], 3, sure=0.85), "size": sure_of(true["size"], 2, sure=0.9)}
    turned = {"kind": straight_probs["kind"][:, [2, 0, 1]], "size": straight_probs["size"][:, ::-1]}
    other = run_of(labels, turned, "b", task=make_task(heads))
    for runs in ([other], [run_of(labels, straight_probs), other]):
        after = look_after_model(TASK, labels, runs)
        assert [one.id for one in after.findings] == [one.id for one in straight.findings]
        np.testing.assert_allclose(after.probs["kind"], straight.probs["kind"], atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        (
            {"kind": {"classes": ["cat", "dog", "ox", "hen"]}, "size": {"classes": 2}},
            "head 'kind' has 4 classes in b and 3 in task 'made': the run lacks 'cow' and has 'ox', 'hen' besides",
        ),
        ({"kind": {"classes": ["cat", "dog"]}, "size": {"classes": 2}}, "head 'kind' has 2 classes in b and 3"),
        ({"kind": {"classes": ["cat", "dog", "cow"]}}, "b does not predict head.s. 'size'"),
        (
            {"kind": {"classes": ["cat", "dog", "cow"]}, "size": {"classes": 2, "kind": "multilabel"}},
            "head 'size' is multilabel in b and multiclass in task 'made'",
        ),
    ],
)
def test_runs_of_other_heads_or_classes_are_refused(heads: dict[str, Any], match: str) -> None:
    labels = made(true_classes())
    probs = {"kind": sure_of(labels.classes["kind"], 3, sure=0.9), "size": sure_of(labels.classes["size"], 2, sure=0.9)}
    with pytest.raises(DataError, match=match):
        look_after_model(TASK, labels, [run_of(labels, probs), run_of(labels, probs, "b", task=make_task(heads))])


def test_predictions_that_are_not_of_the_run_s_own_heads_are_refused() -> None:
    labels = made(true_classes())
    probs = {"kind": sure_of(labels.classes["kind"], 4, sure=0.9), "size": sure_of(labels.classes["size"], 2, sure=0.9)}
    with pytest.raises(PredictionError, match="run 'a': head 'kind' has probs of 4 classes; expected 3"):
        look_after_model(TASK, labels, [run_of(labels, probs)])


def test_one_class_few_images_and_a_missing_class_are_no_trouble() -> None:
    task = make_task({"kind": {"classes": 4}})
    for classes in (np.zeros(40, np.int64), np.arange(6) % 4, np.array([0, 3] * 30)):
        labels = made({"kind": classes})
        after = look_after_model(task, labels, [run_of(labels, {"kind": sure_of(classes, 4, sure=0.9)}, task=task)])
        assert after.findings == ()
        assert after.heads[0].note == ("6 images are too few to tell wrong labels by" if len(classes) == 6 else "")


def test_runs_of_other_data_are_refused() -> None:
    labels = made(true_classes())
    probs = {"kind": sure_of(labels.classes["kind"], 3, sure=0.9)}
    other = Labels(ids=np.array(["x"]), classes={"kind": np.zeros(1, int), "size": np.zeros(1, int)}, groups=None)
    both = probs | {"size": sure_of(labels.classes["size"], 2, sure=0.9)}
    with pytest.raises(DataError, match="no labelled image has a prediction"):
        look_after_model(TASK, other, [run_of(labels, both)])


def test_without_cleanlab_everything_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    after = look([1, 2])
    assert after.heads[0].num_issues is None and "cleanlab is not installed" in after.heads[0].note
    assert {one.kind for one in after.findings} == {"top_loss"}
