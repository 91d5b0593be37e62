from __future__ import annotations

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit.errors import DataError
from kaggle_kit.labels import Labels, read_labels, unseen_combinations


def edit(toy: Toy, old: str, new: str) -> None:
    path = toy.data / "train.csv"
    path.write_text(path.read_text().replace(old, new, 1))


def test_labels_hold_classes_and_groups(wide: Toy) -> None:
    labels = read_labels(wide.task, wide.data)
    assert len(labels) == 48
    assert set(labels.classes) == {"root", "vowel"}
    assert labels.groups is not None and set(labels.groups.tolist()) == {"w0", "w1", "w2", "w3"}


def test_file_values_become_class_indices(files: Toy) -> None:
    labels = read_labels(files.task, files.data)
    assert labels.classes["kind"][:4].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Train_1,", "Train_0,", r"train.csv holds 1 id\(s\) more than once: 'Train_0' \(2 times\)"),
        ("root", "rooot", r"train.csv has no column 'root'; did you mean 'rooot'\?"),
        ("Train_0,0", "Train_0,7", r"head 'root' of 'Train_0' is '7'; expected one of its 3 classes \(0, 1, 2\)"),
        ("Train_0,0", "Train_0,", r"head 'root' of 'Train_0' is ''.* 1 row\(s\) in all, 1 of them without a label"),
        ("Train_0,0", "Train_0,nan", r"head 'root' of 'Train_0' is 'nan'"),
        ("Train_2,", "Train_2,,", r"train.csv line 4 has 5 fields; its header has 4"),
    ],
)
def test_labels_that_are_wrong_are_named(wide: Toy, old: str, new: str, message: str) -> None:
    edit(wide, old, new)
    with pytest.raises(DataError, match=message):
        read_labels(wide.task, wide.data)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("image_id,root,vowel,writer\n", "has no rows")])
def test_empty_label_files_are_refused(wide: Toy, text: str, message: str) -> None:
    (wide.data / "train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(wide.task, wide.data)


def test_missing_label_file_is_named(wide: Toy) -> None:
    (wide.data / "train.csv").unlink()
    with pytest.raises(DataError, match=r"train\.csv is missing"):
        read_labels(wide.task, wide.data)


def test_unseen_combinations_compare_all_heads_at_once() -> None:
    train = Labels(ids=np.array(["a", "b"]), classes={"x": np.array([0, 1]), "y": np.array([0, 1])})
    test = Labels(ids=np.array(["c", "d"]), classes={"x": np.array([0, 0]), "y": np.array([0, 1])})
    assert unseen_combinations(test, train).tolist() == [False, True]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.array([0.0, np.nan, 1.0]), "labels are float64 .*; expected 3 class indices as integers; 1 are NaN"),
        (np.array([0, -1, 1]), r"head 'x': 1 label\(s\) are below 0; leave those images out"),
        (np.array([0, 1]), r"labels are int64 \(2,\); expected 3 class indices"),
    ],
)
def test_labels_that_are_no_class_indices_are_refused(classes: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Labels(ids=np.array(list("abc")), classes={"x": classes})
