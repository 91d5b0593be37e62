from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit import cli
from kaggle_kit.errors import DataError, KitError, SettingError
from kaggle_kit.folds import Folds, Rare, Scheme, labels_hash, make_folds, unseen_rows
from kaggle_kit.folds.check import FoldFile, check_folds, check_made, label_deviation, read_fold_file
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.tables import write_rows


def skewed(rows: int = 600) -> Labels:
    rng = np.random.default_rng(0)
    classes = {"root": np.minimum(rng.geometric(0.3, rows) - 1, 9), "vowel": rng.integers(0, 3, rows)}
    return Labels(
        ids=np.array([f"i{i}" for i in range(rows)]),
        classes={head: values.astype(np.int64) for head, values in classes.items()},
        groups=np.array([f"g{i % 7}" for i in range(rows)]),
    )


@pytest.mark.parametrize("scheme", ["stratified", "grouped"])
def test_folds_partition_and_repeat_with_the_seed(scheme: Scheme) -> None:
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
    classes = {"x": np.array([0, 0, 1, 1]), "y": np.array([0, 0, 1, 2])}
    labels = Labels(ids=np.array(list("abcd")), classes=classes)
    assert unseen_rows(labels, np.array([0, 1, 0, 1])).tolist() == [False, False, True, True]
    assert unseen_rows(labels, np.array([0, -1, 0, -1])).tolist() == [False, False, True, False]


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


SCHEMES = get_args(Scheme)


def uneven_combinations(rows: int = 2000, seed: int = 0) -> Labels:
    """Three heads whose 60 combinations are shown from once to hundreds of times; no class is alone."""
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.4, 1, 60)
    picks = np.concatenate([np.arange(60), rng.choice(60, rows - 60, p=weights / weights.sum())])
    columns = np.stack(np.unravel_index(picks, (5, 4, 3)))
    return Labels(
        ids=np.array([f"i{i}" for i in range(rows)]),
        classes=dict(zip("abc", columns.astype(np.int64), strict=True)),
        groups=np.array([f"g{i % 37}" for i in range(rows)]),
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_repeats_with_its_seed_and_passes_its_own_check(scheme: Scheme) -> None:
    labels = uneven_combinations()
    duplicates = np.where(np.arange(2000) % 999 < 2, 0, np.arange(2000))
    folds = make_folds(labels, scheme, seed=3, duplicates=duplicates)
    assert (folds.fold == make_folds(labels, scheme, seed=3, duplicates=duplicates).fold).all()
    findings = check_made(labels, folds, duplicates=duplicates)
    assert not [finding.text for finding in findings if finding.verdict in ("LEAK", "WRONG")]


@pytest.mark.parametrize("scheme", ["stratified", "unseen", "holdout", "stratified-grouped"])
def test_every_class_is_trained_where_it_validates(scheme: Scheme) -> None:
    for seed in range(5):
        labels = uneven_combinations(150, seed=seed)
        folds = make_folds(labels, scheme, num_folds=3, seed=seed)
        for number in range(folds.num_folds):
            for classes in labels.classes.values():
                assert set(classes[folds.fold == number]) <= set(classes[folds.fold != number])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("num_folds", [2, 5])
def test_unseen_folds_hold_out_the_share_asked_for_in_whole_combinations(share: float, num_folds: int) -> None:
    labels = uneven_combinations()
    folds = make_folds(labels, "unseen", num_folds=num_folds, unseen_share=share)
    assert folds.unseen.mean() == pytest.approx(share, abs=0.02)
    combinations = np.unique(labels.combinations(), axis=0, return_inverse=True)[1].ravel()
    for number in np.unique(combinations):
        inside = combinations == number
        assert len(set(folds.unseen[inside])) == 1
        assert len(np.unique(folds.fold[inside])) == 1 if folds.unseen[inside].all() else True
    by_fold = [folds.unseen[folds.fold == number].mean() for number in range(num_folds)]
    assert max(by_fold) - min(by_fold) < 0.05


def test_a_class_of_one_combination_is_never_held_out() -> None:
    labels = uneven_combinations()
    labels.classes["a"][labels.combinations() @ [20, 4, 1] == 33] = 5  # class 5 of head a: one combination alone
    folds = make_folds(labels, "unseen", num_folds=5, unseen_share=0.5)
    fifth = folds.fold[labels.classes["a"] == 5]
    assert len(np.unique(fifth)) > 1 and not folds.unseen[labels.classes["a"] == 5].any()


def test_combinations_need_two_heads() -> None:
    labels = skewed()
    with pytest.raises(SettingError, match="there is one head; use 'stratified'"):
        make_folds(Labels(ids=labels.ids, classes={"root": labels.classes["root"]}), "unseen")


def test_holdout_holds_out_its_share_of_every_class_and_trains_what_is_rare() -> None:
    labels = uneven_combinations(600)
    labels.classes["a"][7] = 9
    folds = make_folds(labels, "holdout", valid_share=0.15)
    assert (folds.fold >= 0).mean() == pytest.approx(0.15, abs=0.02)
    assert folds.num_folds == 1 and folds.fold[7] == -1
    for classes in labels.classes.values():
        for label in range(3):
            assert (folds.fold[classes == label] >= 0).mean() == pytest.approx(0.15, abs=0.05)


def test_everything_validates_nothing() -> None:
    folds = make_folds(skewed(), "everything")
    assert folds.num_folds == 0 and not folds.unseen.any()


def test_leave_one_group_out_makes_a_fold_a_group() -> None:
    labels = skewed()
    folds = make_folds(labels, "leave-one-group-out")
    assert folds.num_folds == 7
    same = np.arange(600)
    same[1] = same[0]  # groups g0 and g1 share an image
    assert make_folds(labels, "leave-one-group-out", duplicates=same).num_folds == 6


def test_stratified_groups_are_more_alike_than_groups_alone() -> None:
    plain = uneven_combinations()
    groups = np.array([f"g{c % 11}-{i % 13}" for i, c in enumerate(plain.combinations() @ [7, 3, 1])])
    labels = Labels(ids=plain.ids, classes=plain.classes, groups=groups)
    alike = {}
    for scheme in ("grouped", "stratified-grouped"):
        folds = make_folds(labels, scheme, num_folds=4)
        alike[scheme] = max(label_deviation(classes, folds.fold) for classes in labels.classes.values())
        for group in np.unique(groups):
            assert len(np.unique(folds.fold[groups == group])) == 1
    assert alike["stratified-grouped"] < alike["grouped"]


def test_folds_are_as_alike_as_the_best_of_many_random_ones() -> None:
    labels = uneven_combinations(500)
    found = make_folds(labels, num_folds=5)
    rng = np.random.default_rng(0)
    for classes in labels.classes.values():
        tries = [label_deviation(classes, rng.permutation(np.arange(500) % 5)) for _ in range(50)]
        assert label_deviation(classes, found.fold) < min(tries)


def lone_class() -> Labels:
    labels = skewed(60)
    labels.classes["root"][4] = 10
    labels.classes["vowel"][4] = 0
    return labels


@pytest.mark.parametrize("scheme", ["stratified", "unseen"])
def test_the_only_image_of_a_class_is_refused_or_trains_every_fold(scheme: Scheme) -> None:
    labels = lone_class()
    labels.classes["root"][labels.classes["root"] > 2] = 2
    labels.classes["root"][4] = 10
    with pytest.raises(DataError, match=r"1 class\(es\) have one image only \('root 10'; images 'i4'\).*--rare train"):
        make_folds(labels, scheme, num_folds=3)
    folds = make_folds(labels, scheme, num_folds=3, rare="train")
    assert folds.fold[4] == -1 and (np.delete(folds.fold, 4) >= 0).all()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (
            {"scheme": "holdout", "valid_share": 1.5},
            SettingError,
            r"--valid-share\) is 1.5; give a share above 0",
        ),
        ({"scheme": "unseen", "unseen_share": 0.0}, SettingError, r"`unseen_share` \(--unseen-share\) is 0.0"),
        (
            {"scheme": "holdout", "valid_share": 0.0001},
            DataError,
            "leaves none to validate or none to train; change --valid-share",
        ),
        ({"scheme": "leave-one-group-out", "duplicates": np.zeros(600, int)}, DataError, "2 folds of 1 groups"),
    ],
)
def test_what_cannot_be_divided_is_refused(asked: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_folds(skewed(), **asked)


def test_no_images_and_one_image_are_refused() -> None:
    for rows, message in ((0, "no labelled images"), (1, "5 folds of 1 images")):
        with pytest.raises(DataError, match=message):
            make_folds(skewed().take(np.arange(rows)))


def verdicts(labels: Labels, file: FoldFile, duplicates: np.ndarray | None = None) -> list[str]:
    return [f"{f.verdict} {f.text}" for f in check_folds(labels, file, duplicates=duplicates) if f.verdict != "note"]


def test_the_check_finds_every_leak_in_a_file_from_elsewhere(tmp_path: Path) -> None:
    labels = skewed()
    rows = [[name, i % 5] for i, name in enumerate(labels.ids.tolist())]
    path = tmp_path / "somebody.csv"
    write_rows(path, ["image_id", "fold"], [*rows[:-1], ["i0", 3]])
    same = np.arange(600)
    same[1] = same[0]
    found = verdicts(labels, read_fold_file(path, id_column="image_id"), same)
    assert any("LEAK 1 id(s) are in several folds: 'i0'" in text for text in found)
    assert any("WRONG 1 of 600 labelled images have no fold: 'i599'" in text for text in found)
    assert any("LEAK 1 set(s) of equal images lie in several folds, such as 'i0', 'i1'" in text for text in found)
    assert not any("groups" in text for text in found), "a note: nothing says that they must not"
    grouped = dataclasses.replace(read_fold_file(path, id_column="image_id"), scheme="grouped")
    assert any("LEAK 7 of 7 groups lie in several folds" in text for text in verdicts(labels, grouped, same))


def test_the_check_finds_classes_that_are_not_trained_and_other_labels(tmp_path: Path) -> None:
    labels = skewed()
    folds = make_folds(labels, num_folds=3)
    folds.save(tmp_path / "folds.parquet")
    file = read_fold_file(tmp_path / "folds.parquet")
    assert all(text.startswith("ok") for text in verdicts(labels, file, np.arange(600)))
    labels.classes["vowel"][folds.fold == 1] = 7
    found = verdicts(labels, file)
    assert any("WRONG made from other labels" in text for text in found)
    assert any("WRONG 1 class(es) are not trained in the fold that validates them: 'vowel 7'" in text for text in found)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["image_id", "kfold"], [["a", 1]], "has no column 'fold', but 'image_id', 'kfold'"),
        (["picture", "fold"], [["a", 1]], "has no column 'image_id', but 'picture', 'fold'"),
        (["id", "fold"], [["a", "x"], ["b", ""]], r"fold of 'a' is 'x', 2 row\(s\) in all; expected 0, 1, 2"),
    ],
)
def test_what_is_no_table_of_folds_is_refused(tmp_path: Path, header: list, rows: list, message: str) -> None:
    path = tmp_path / "folds.csv"
    write_rows(path, header, rows)
    with pytest.raises(DataError, match=message):
        read_fold_file(path, id_column="image_id")


def test_files_that_training_cannot_use_are_never_sound() -> None:
    labels = skewed(20)
    cases = {
        "all images validate in one fold": np.zeros(20),
        "fold 0 validates no image; number the folds from 0 without gaps": np.arange(20) % 2 * 2 + 1,
        "folds are numbered -7 to 1": np.where(np.arange(20) == 3, -7, np.arange(20) % 2),
        "folds are numbered 0 to 300000": np.where(np.arange(20) == 3, 300_000, np.arange(20) % 2),
    }
    for message, fold in cases.items():
        found = verdicts(labels, FoldFile(ids=labels.ids, fold=fold.astype(np.int64)))
        assert any(f"WRONG {message}" in text for text in found), (message, found)


def test_a_file_that_marks_unseen_images_as_seen_is_wrong() -> None:
    labels = uneven_combinations()
    folds = make_folds(labels, "unseen")
    file = FoldFile(ids=folds.ids, fold=folds.fold, scheme="unseen", unseen=~folds.unseen)
    assert any("of unseen combinations are marked as seen" in text for text in verdicts(labels, file))


@pytest.mark.parametrize("number", ["--1", "\u00b2", "9" * 20, "1.5"])
def test_folds_that_are_no_whole_numbers_are_refused(tmp_path: Path, number: str) -> None:
    write_rows(tmp_path / "folds.csv", ["id", "fold"], [["a", number], ["b", "0.0"]])
    with pytest.raises(DataError, match="fold of 'a' is"):
        read_fold_file(tmp_path / "folds.csv")


def test_broken_images_take_no_part_and_are_not_counted_as_trained() -> None:
    labels = uneven_combinations(300)
    labels.classes["a"][:2] = 5  # two images of a class, one of them broken
    broken = np.arange(300) == 0
    with pytest.raises(DataError, match=r"1 class\(es\) have one image only \('a 5'"):
        make_folds(labels, num_folds=3, leave_out=broken)
    folds = make_folds(labels, num_folds=3, leave_out=broken, rare="train")
    assert folds.fold[:2].tolist() == [-1, -1] and not folds.unseen[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_small_and_odd_labels_give_what_was_asked_for_or_an_error(scheme: Scheme) -> None:
    rng = np.random.default_rng(len(scheme))
    made = 0
    for _ in range(150):
        rows, num_folds = int(rng.integers(1, 15)), int(rng.integers(2, 5))
        classes = {f"h{head}": rng.integers(0, rng.integers(1, 6), rows) for head in range(rng.integers(1, 4))}
        groups = np.array([f"g{group}" for group in rng.integers(0, 6, rows)])
        labels = Labels(ids=np.array([f"i{i}" for i in range(rows)]), classes=classes, groups=groups)
        same = rng.integers(0, rows, rows) if rng.random() < 0.5 else None
        rare: Rare = "train" if rng.random() < 0.7 else "error"
        seed, share = int(rng.integers(1000)), float(rng.uniform(0.05, 0.95))
        try:
            folds = make_folds(
                labels, scheme, num_folds=num_folds, seed=seed, duplicates=same, rare=rare, valid_share=share
            )
        except KitError:
            continue
        made += 1
        findings = check_made(labels, folds, duplicates=same)
        assert not [finding.text for finding in findings if finding.verdict in ("LEAK", "WRONG")]
        if scheme != "leave-one-group-out":
            assert folds.num_folds == {"holdout": 1, "everything": 0}.get(scheme, num_folds)
    assert made > 10


def test_the_command_line_knows_every_scheme() -> None:
    assert get_args(Scheme) == cli.SCHEMES


def test_training_is_told_that_a_csv_is_only_for_checking(tmp_path: Path) -> None:
    write_rows(tmp_path / "folds.csv", ["id", "fold"], [["a", 0], ["b", 1]])
    with pytest.raises(DataError, match=r"folds\.csv is a CSV, which .* reads and training does not"):
        Folds.load(tmp_path / "folds.csv")
