from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kaggle_kit.audit.after_model import AfterModel, look_after_model
from kaggle_kit.errors import DataError
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


def run_of(labels: Labels, probs: dict[str, np.ndarray], name: str = "a", **more: Any) -> Any:
    predictions = Predictions(ids=labels.ids[: len(next(iter(probs.values())))], probs=probs, **more)
    return SimpleNamespace(name=name, folder=Path(name), oof=lambda: predictions)


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
    said: list[str] = []
    after = look_after_model(TASK, labels, [run_of(labels, probs)], say=said.append)
    assert (len(after.ids), after.unpredicted) == (200, 100)
    assert said == ["100 of 300 labelled images have no out-of-fold prediction of every run"]


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
    task = make_task({"tags": {"classes": ["red", "round", "big"], "kind": "multilabel"}})
    rng = np.random.default_rng(0)
    true = (rng.random((NUM, 3)) < 0.4).astype(np.uint8)
    given = true.copy()
    given[[5, 6], 1] ^= 1
    probs = np.where(true > 0, 0.9, 0.1).astype(np.float32) + rng.normal(0, 0.02, true.shape).astype(np.float32)
    labels = made({"tags": given})
    after = look_after_model(task, labels, [run_of(labels, {"tags": probs}, multilabel=("tags",))])
    issues = {one.id: one for one in after.findings if one.kind == "label_issue"}
    assert set(issues) == {"i5", "i6"}
    assert issues["i5"].suggested == " ".join(np.array(["red", "round", "big"])[true[5] > 0])
    assert after.heads[0].matrix.shape == (3, 2, 2)


def test_one_class_few_images_and_a_missing_class_are_no_trouble() -> None:
    task = make_task({"kind": {"classes": 4}})
    for classes in (np.zeros(40, np.int64), np.arange(6) % 4, np.array([0, 3] * 30)):
        labels = made({"kind": classes})
        after = look_after_model(task, labels, [run_of(labels, {"kind": sure_of(classes, 4, sure=0.9)})])
        assert after.findings == ()
        assert after.heads[0].note == ("6 images are too few to tell wrong labels by" if len(classes) == 6 else "")


def test_runs_of_other_data_or_without_a_head_are_refused() -> None:
    labels = made(true_classes())
    probs = {"kind": sure_of(labels.classes["kind"], 3, sure=0.9)}
    with pytest.raises(DataError, match="a does not predict head"):
        look_after_model(TASK, labels, [run_of(labels, probs)])
    other = Labels(ids=np.array(["x"]), classes={"kind": np.zeros(1, int), "size": np.zeros(1, int)}, groups=None)
    both = probs | {"size": sure_of(labels.classes["size"], 2, sure=0.9)}
    with pytest.raises(DataError, match="no labelled image has a prediction"):
        look_after_model(TASK, other, [run_of(labels, both)])


def test_without_cleanlab_everything_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    after = look([1, 2])
    assert after.heads[0].num_issues is None and "cleanlab is not installed" in after.heads[0].note
    assert {one.kind for one in after.findings} == {"top_loss"}
