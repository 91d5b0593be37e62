from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import Folds, labels_hash, make_folds
from kaggle_kit.labels import Labels, read_labels


def skewed(rows: int = 600) -> Labels:
    rng = np.random.default_rng(0)
    classes = {"root": np.minimum(rng.geometric(0.3, rows) - 1, 9), "vowel": rng.integers(0, 3, rows)}
    return Labels(
        ids=np.array([f"i{i}" for i in range(rows)]),
        classes={head: values.astype(np.int64) for head, values in classes.items()},
        groups=np.array([f"g{i % 7}" for i in range(rows)]),
    )


@pytest.mark.parametrize("scheme", ["stratified", "grouped"])
def test_folds_partition_and_repeat_with_the_seed(scheme: str) -> None:
    labels = skewed()
    folds = make_folds(labels, scheme, num_folds=5, seed=3)
    assert sorted(np.unique(folds.fold)) == [0, 1, 2, 3, 4]
    assert (folds.fold == make_folds(labels, scheme, num_folds=5, seed=3).fold).all()
    assert (folds.fold != make_folds(labels, scheme, num_folds=5, seed=4).fold).any()


def test_stratified_folds_share_every_class_of_every_head() -> None:
    labels = skewed()
    folds = make_folds(labels, "stratified", num_folds=5)
    assert np.ptp(np.bincount(folds.fold)) <= 2
    for classes in labels.classes.values():
        for label in np.unique(classes):
            counts = np.bincount(folds.fold[classes == label], minlength=5)
            assert np.ptp(counts) <= 2, (label, counts)


def test_no_group_crosses_folds() -> None:
    labels = skewed()
    folds = make_folds(labels, "grouped", num_folds=3)
    assert labels.groups is not None
    for group in np.unique(labels.groups):
        assert len(np.unique(folds.fold[labels.groups == group])) == 1


def test_unseen_marks_combinations_that_no_other_fold_shows() -> None:
    labels = Labels(ids=np.array(list("abcd")), classes={"x": np.array([0, 0, 1, 2]), "y": np.array([0, 0, 1, 2])})
    folds = make_folds(labels, "stratified", num_folds=2)
    assert folds.unseen.tolist() == [False, False, True, True]


def test_save_and_load_give_the_same(tmp_path: Path) -> None:
    folds = make_folds(skewed(), "stratified", num_folds=3, seed=1)
    folds.save(tmp_path / "folds.parquet")
    loaded = Folds.load(tmp_path / "folds.parquet")
    assert (loaded.fold == folds.fold).all() and (loaded.unseen == folds.unseen).all()
    assert (loaded.scheme, loaded.seed, loaded.data_hash) == ("stratified", 1, folds.data_hash)


def test_data_hash_ignores_row_order_and_sees_every_label(wide: Toy) -> None:
    labels = read_labels(wide.task, wide.data)
    assert labels_hash(labels.take(np.arange(len(labels))[::-1])) == labels_hash(labels)
    labels.classes["vowel"][5] ^= 1
    assert labels_hash(labels) != make_folds(read_labels(wide.task, wide.data), num_folds=2).data_hash


@pytest.mark.parametrize(
    ("scheme", "num_folds", "error", "message"),
    [
        ("stratified", 1, SettingError, "number of folds is 1; expected 2 or more"),
        ("stratified", 700, DataError, "700 folds of 600 images leave some empty"),
        ("grouped", 8, DataError, "8 folds of 7 groups leave some empty; ask for 7 or fewer"),
    ],
)
def test_impossible_folds_are_refused(scheme: str, num_folds: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_folds(skewed(), scheme, num_folds=num_folds)


def test_grouped_needs_groups() -> None:
    labels = skewed()
    with pytest.raises(SettingError, match="set the task's `groups`"):
        make_folds(Labels(ids=labels.ids, classes=labels.classes), "grouped")


def test_align_names_images_without_fold() -> None:
    folds = make_folds(skewed(), num_folds=2)
    with pytest.raises(DataError, match=r"1 of 2 labelled images are in no fold: 'new'"):
        folds.align(np.array(["i0", "new"]))


def test_what_is_no_fold_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="x.parquet is not a whole parquet file"):
        Folds.load(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="there is no fold file"):
        Folds.load(tmp_path / "y.parquet")
