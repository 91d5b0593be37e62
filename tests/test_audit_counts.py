from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kaggle_kit.audit.counts import count_classes, rare_findings
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels
from kaggle_kit.task import Task, task_from_plain

IDS = np.array([f"i{row}" for row in range(60)])
ROOT = np.repeat([0, 1, 2], [30, 29, 1])
VOWEL = np.arange(60) % 2


def task(**heads: Any) -> Task:
    values = {
        "name": "counted",
        "heads": {
            name: {"classes": classes} if isinstance(classes, int) else classes for name, classes in heads.items()
        },
        "metric": "macro_recall",
        "images": {"format": "wide_parquet", "train": "a", "test": "b", "height": 4, "width": 4, "channels": 1},
        "submission": {"form": "row_per_head"},
    }
    return task_from_plain(values)


def test_classes_are_counted_in_all_in_folds_and_together() -> None:
    labels = Labels(ids=IDS, classes={"root": ROOT, "vowel": VOWEL})
    fold = np.where(np.arange(50) < 6, -1, np.arange(50) % 2)
    folds = Folds(ids=IDS[:50], fold=fold, unseen=np.zeros(50, bool), scheme="stratified", seed=0, data_hash="")
    counts = count_classes(task(root=4, vowel=2), labels, num_images={"train": 61}, folds=folds)
    root = counts.heads["root"]
    assert root.count.tolist() == [30, 29, 1, 0]
    assert root.by_fold.tolist() == [[12, 10, 0, 0], [12, 10, 0, 0]]
    assert counts.fold_sizes.tolist() == [22, 22]
    assert counts.together["root", "vowel"].tolist() == [[15, 15], [15, 14], [0, 1], [0, 0]]
    assert (counts.num_labelled, counts.num_combinations, counts.rarest_wanted) == (60, 5, 4)
    assert root.rare == (3, 2)


def test_three_heads_give_three_matrices() -> None:
    labels = Labels(ids=IDS, classes={"a": ROOT, "b": VOWEL, "c": VOWEL})
    counts = count_classes(task(a=3, b=2, c=2), labels, num_images={"train": 60})
    assert list(counts.together) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert counts.heads["a"].by_fold.shape == (0, 3)


def test_a_multilabel_head_is_counted_with_itself_and_with_others() -> None:
    tags = np.zeros((60, 3), np.uint8)
    tags[:10, 0] = tags[:4, 1] = 1
    heads = {"tags": {"classes": ["x", "y", "z"], "kind": "multilabel"}, "root": 3}
    labels = Labels(ids=IDS, classes={"tags": tags, "root": ROOT})
    counts = count_classes(task(**heads), labels, num_images={"train": 60})
    assert counts.heads["tags"].count.tolist() == [10, 4, 0]
    assert counts.heads["tags"].unlabelled == 50
    assert counts.together["tags", "tags"].tolist() == [[10, 4, 0], [4, 4, 0], [0, 0, 0]]
    assert counts.together["tags", "root"].tolist() == [[10, 0, 0], [4, 0, 0], [0, 0, 0]]


def test_rare_classes_are_findings_named_as_files_write_them() -> None:
    head = {"classes": ["cat", "dog", "emu"], "values": [1, 2, 3]}
    labels = Labels(ids=IDS, classes={"kind": ROOT})
    asked = task(kind=head)
    (finding,) = rare_findings(count_classes(asked, labels, num_images={"train": 60}), asked)
    assert (finding.kind, finding.id, finding.head, finding.label) == ("rare_class", "3", "kind", "3")
    assert finding.detail == "class 3 (emu) of kind has 1 image; the median class has 29"


@pytest.mark.parametrize("number", [1, 2])
def test_one_class_alone_is_counted(number: int) -> None:
    labels = Labels(ids=IDS[:number], classes={"root": np.zeros(number, np.int64)})
    counts = count_classes(task(root=2), labels, num_images={"train": number})
    assert counts.heads["root"].count.tolist() == [number, 0]
