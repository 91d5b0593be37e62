from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy, wide_task

from kaggle_kit.decision_fitting import fit_decision
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import labels_hash, make_folds
from kaggle_kit.heads import Head
from kaggle_kit.labels import class_counts, read_labels, resolve_classes
from kaggle_kit.scores import score_answers
from kaggle_kit.submission import expected_rows, read_submission, write_submission
from kaggle_kit.tables import read_columns, write_rows
from kaggle_kit.task import Task, read_task, task_from_plain, task_to_plain


def task_with(**changes: object) -> Task:
    return task_from_plain({**task_to_plain(wide_task()), **changes})


def with_grapheme(toy: Toy, *, empty: int | None = None) -> Toy:
    """Add a column `grapheme`, the combination of both heads, to the toy's labels."""
    table = read_columns(toy.data / "train.csv")
    names = [f"g{root}{vowel}" for root, vowel in zip(table["root"], table["vowel"], strict=True)]
    if empty is not None:
        names[empty] = ""
    rows = zip(*[column.tolist() for column in table.values()], names, strict=True)
    write_rows(toy.data / "train.csv", [*table, "grapheme"], rows)
    task = task_with(auxiliary={"grapheme": {"classes": "from_labels", "weight": 0.5}})
    return dataclasses.replace(toy, task=task)


def test_auxiliary_classes_come_from_the_labels_in_order(wide: Toy) -> None:
    toy = with_grapheme(wide)
    task = resolve_classes(toy.task, toy.data)
    assert task.auxiliary["grapheme"].class_names == ("g00", "g01", "g10", "g11", "g20", "g21")
    assert list(task.trained_heads) == ["root", "vowel", "grapheme"]
    assert resolve_classes(task, toy.data) is task
    assert task_from_plain(task_to_plain(task)) == task
    assert task.without_auxiliary() == wide.task
    labels = read_labels(task, toy.data)
    assert (labels.auxiliary["grapheme"] == 2 * labels.classes["root"] + labels.classes["vowel"]).all()
    unresolved = read_labels(toy.task, toy.data)
    assert (unresolved.auxiliary["grapheme"] == labels.auxiliary["grapheme"]).all()


def test_auxiliary_labels_that_are_empty_or_of_no_class_are_minus_one(wide: Toy) -> None:
    toy = with_grapheme(wide, empty=5)
    labels = read_labels(toy.task, toy.data)
    assert labels.auxiliary["grapheme"].dtype == np.int64
    assert np.flatnonzero(labels.auxiliary["grapheme"] < 0).tolist() == [5]
    known = task_with(auxiliary={"grapheme": {"classes": ["g00", "g01"]}})
    found = read_labels(known, toy.data).auxiliary["grapheme"]
    assert (found == np.where(labels.auxiliary["grapheme"] < 2, labels.auxiliary["grapheme"], -1)).all()


def test_auxiliary_labels_follow_their_rows(wide: Toy) -> None:
    toy = with_grapheme(wide)
    labels = read_labels(toy.task, toy.data)
    rows = np.array([7, 3, 11])
    assert (labels.take(rows).auxiliary["grapheme"] == labels.auxiliary["grapheme"][rows]).all()
    assert (labels.align(labels.ids[rows]).auxiliary["grapheme"] == labels.auxiliary["grapheme"][rows]).all()


def test_auxiliary_heads_change_neither_folds_nor_combinations(wide: Toy) -> None:
    plain = read_labels(wide.task, wide.data)
    toy = with_grapheme(wide)
    labels = read_labels(toy.task, toy.data)
    assert labels_hash(labels) == labels_hash(plain)
    assert (labels.combinations() == plain.combinations()).all()
    assert (make_folds(labels, "unseen", num_folds=2).fold == make_folds(plain, "unseen", num_folds=2).fold).all()


def test_a_missing_auxiliary_column_is_an_error(wide: Toy) -> None:
    task = task_with(auxiliary={"grapheme": {"classes": "from_labels"}})
    for read in (read_labels, resolve_classes):
        with pytest.raises(DataError, match=r"train\.csv has no column 'grapheme'"):
            read(task, wide.data)


def test_an_auxiliary_column_without_a_known_class_is_an_error(wide: Toy) -> None:
    toy = with_grapheme(wide)
    task = task_with(auxiliary={"grapheme": {"classes": ["a", "b"]}})
    with pytest.raises(DataError, match=r"column 'grapheme' holds no class of the auxiliary head, but 'g00', 'g01'"):
        read_labels(task, toy.data)
    path = toy.data / "train.csv"
    path.write_text("\n".join(line.rpartition(",")[0] + ",g" for line in path.read_text().split()))
    path.write_text(path.read_text().replace("writer,g", "writer,grapheme"))
    with pytest.raises(SettingError, match=r"auxiliary head 'grapheme', .*: `classes` gives 1 class\(es\)"):
        resolve_classes(toy.task, toy.data)


def test_classes_that_were_not_read_yet_are_asked_for() -> None:
    head = Head(name="grapheme", classes="from_labels")
    with pytest.raises(SettingError, match=r"classes of head 'grapheme' come from the labels, .* `resolve_classes"):
        _ = head.num_classes
    with pytest.raises(SettingError, match="come from the labels"):
        _ = head.class_values
    assert not head.is_resolved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"root": {"classes": "from_labels"}}}, r"`heads.root.classes` is 'from_labels', which only auxil"),
        ({"auxiliary": {"root": {"classes": 3}}}, r"`root` is a head and an auxiliary head"),
        ({"auxiliary": {"image": {"classes": 3}}}, r"a head is named 'image'"),
        ({"auxiliary": {"g": {"classes": 3, "weight": 0}}}, r"`auxiliary.g`: `weight` is 0"),
        ({"auxiliary": {"g": {"classes": "labels"}}}, r"`auxiliary.g.classes` is 'labels' .* or one of 'from_labels'"),
        ({"auxiliary": {"g": {"classes": 3, "kind": "multilabel"}}}, r"`auxiliary.g.kind` is 'multilabel'"),
        ({"auxiliary": {"g": {"classes": "from_labels", "kind": "ordinal"}}}, r"kind 'ordinal' cannot come from"),
        ({"auxiliary": {"g": {"classes": "from_labels", "values": [1]}}}, r"leave `values` out"),
        (
            {"heads": {"root": {"classes": 3, "kind": "multilable"}}},
            r"`heads.root.kind` is 'multilable' .*did you",
        ),
        ({"heads": {"root": {"classes": 3, "separator": "|"}}}, r"`separator` is given, which kind 'multiclass'"),
        ({"heads": {"root": {"classes": 3, "kind": "multilabel", "separator": ""}}}, r"`separator` is empty"),
        (
            {"heads": {"root": {"classes": ["a b", "c"], "kind": "multilabel"}}},
            r"class 'a b' cannot be told from others in a list of classes with ' ' between",
        ),
        (
            {"heads": {"root": {"classes": 3, "kind": "multilabel"}}, "metric": "quadratic_kappa"},
            r"head `root` is multilabel, and `metric` quadratic_kappa counts steps between single classes",
        ),
        (
            {
                "heads": {"root": {"classes": 3}},
                "auxiliary": {"g": {"classes": 3}},
                "labels": {"file": "y.npy"},
                "images": {"format": "array", "train": "a.npy", "test": "b.npy"},
            },
            r"`auxiliary` names label column\(s\) 'g', and `labels.file` is 'y.npy'; give labels as CSV",
        ),
        (
            {
                "heads": {"root": {"classes": 3, "kind": "multilabel"}},
                "labels": {"file": "y.npy"},
                "images": {"format": "array", "train": "a.npy", "test": "b.npy"},
            },
            r"head `root` is multilabel, and `labels.file` is 'y.npy'",
        ),
        (
            {"submission": {"form": "column_per_class"}},
            r"`submission.form` is column_per_class, and two heads have classes of one name",
        ),
    ],
)
def test_heads_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        task_with(**changes)


def test_every_preset_has_only_heads_that_a_network_can_be_made_for() -> None:
    task = read_task("bengali")
    assert list(task.trained_heads) == ["grapheme_root", "vowel_diacritic", "consonant_diacritic"]


def ordinal(toy: Toy) -> Toy:
    heads = {"root": {"classes": 3, "weight": 2, "kind": "ordinal"}, "vowel": {"classes": 2}}
    return dataclasses.replace(toy, task=task_with(heads=heads, metric="quadratic_kappa"))


def test_ordinal_heads_are_read_scored_decided_and_submitted_as_multiclass(wide: Toy, tmp_path: Path) -> None:
    toy, plain = ordinal(wide), task_with(metric="quadratic_kappa")
    labels = read_labels(toy.task, toy.data)
    expected = read_labels(plain, toy.data)
    assert labels_hash(labels) == labels_hash(expected)
    rng = np.random.default_rng(0)
    probs = {}
    for name, head in toy.task.heads.items():
        noise = rng.dirichlet(np.ones(head.num_classes), len(labels))
        probs[name] = (0.4 * np.eye(head.num_classes)[labels.classes[name]] + 0.6 * noise).astype(np.float32)
    assert score_answers(toy.task, labels.classes, probs, draws=20) == score_answers(
        plain, labels.classes, probs, draws=20
    )
    folds = make_folds(labels, num_folds=2).fold
    counts = {name: class_counts(labels.classes[name], head) for name, head in toy.task.heads.items()}
    found, same = (
        fit_decision(task, labels.classes, probs, folds, counts=counts, draws=50) for task in (toy.task, plain)
    )
    assert found == same and {one.rule.rule for one in found.candidates} == {"prior_power", "class_bias"}
    rows = expected_rows(toy.task, toy.data)
    decided = {"root": np.array([2, 0]), "vowel": np.array([1, 0])}
    write_submission(toy.task, tmp_path / "s.csv", rows=rows, ids=np.array(["Test_0", "Test_1"]), decided=decided)
    assert read_submission(toy.task, tmp_path / "s.csv")[1]["root"].tolist() == [2, 0]
