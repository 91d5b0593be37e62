"""The sample competitions: their files, their skew, what they hide, and that the planted defects are as written."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from kaggle_kit import sample_ships
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.sample import Sample, make_sample, read_glyphs
from kaggle_kit.sample_digits import (
    GRID,
    HEADS,
    HEIGHT,
    NUM_SHARDS,
    NUM_VISIBLE,
    ROW_ORDER,
    WIDTH,
    _marks,
    _write_wide,
    draw_digits,
    plan_digits,
)
from kaggle_kit.task import read_task

SEED, NUM_TRAIN, NUM_TEST = 3, 101, 102


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("digits") / "sample"
    return make_sample("digits", folder, seed=SEED, num_train=NUM_TRAIN, num_test=NUM_TEST)


@pytest.fixture(scope="module")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("ships") / "sample"
    return make_sample("ships", folder, seed=SEED, num_train=150, num_test=60)


@pytest.fixture(scope="module")
def defects(ships: Sample) -> list[dict[str, str]]:
    return rows_of(ships.hidden / "defects.csv")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_under(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_shard(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the ids and the (N, 137, 236) images of one shard."""
    table = pq.read_table(path, use_threads=False)  # 1.4 s and 0.4 GB; with threads a first read takes 15 s and 4.4 GB
    batch = table.combine_chunks().to_batches()[0]
    pixels = np.stack([batch.column(at).to_numpy() for at in range(1, 1 + HEIGHT * WIDTH)], axis=1)
    return batch.column(0).to_pylist(), pixels.reshape(-1, HEIGHT, WIDTH)


def read_jpeg(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR)


# digits: the files


def test_digits_files_are_those_of_bengali(digits: Sample) -> None:
    shards = [f"{stem}_image_data_{shard}.parquet" for stem in ("test", "train") for shard in range(NUM_SHARDS)]
    tables = ["class_map.csv", "sample_submission.csv", "test.csv", "train.csv"]
    assert sorted(path.name for path in digits.data.iterdir()) == sorted(tables + shards)
    hidden = ["sample_submission.csv", "solution.csv", "test.csv"]
    assert sorted(path.name for path in digits.hidden.iterdir()) == sorted(hidden + shards[:NUM_SHARDS])
    task = read_task(digits.task)
    assert task == read_task("digits")
    assert tuple(head.num_classes for head in task.heads.values()) == GRID


@pytest.mark.parametrize("name", ["data/train_image_data_1", "data/test_image_data_0", "hidden/test_image_data_3"])
def test_shard_has_the_real_columns_types_and_one_snappy_row_group(digits: Sample, name: str) -> None:
    file = pq.ParquetFile(digits.data.parent / f"{name}.parquet")
    schema = file.schema_arrow
    names = ["image_id", *map(str, range(HEIGHT * WIDTH)), "__index_level_0__"]
    assert schema.names == names
    assert {str(kind) for kind in schema.types[1:-1]} == {"uint8"}
    assert (str(schema.types[0]), str(schema.types[-1])) == ("string", "int64")
    assert file.metadata.num_row_groups == 1
    assert file.metadata.row_group(0).column(1).compression == "SNAPPY"


def test_digits_tables_have_the_real_columns_and_order(digits: Sample) -> None:
    train = rows_of(digits.data / "train.csv")
    assert list(train[0]) == ["image_id", *HEADS, "grapheme"]
    assert [row["image_id"] for row in train] == [f"Train_{at}" for at in range(NUM_TRAIN)]
    assert all(row["grapheme"] == "r{}v{}c{}".format(*(row[head] for head in HEADS)) for row in train)
    assert Counter(row["component_type"] for row in rows_of(digits.data / "class_map.csv")) == dict(
        zip(HEADS, GRID, strict=True)
    )
    for folder, num in ((digits.data, NUM_VISIBLE), (digits.hidden, NUM_TEST)):
        row_ids = [f"Test_{at}_{head}" for at in range(num) for head in ROW_ORDER]
        test = rows_of(folder / "test.csv")
        assert list(test[0]) == ["row_id", "image_id", "component"]
        assert [row["row_id"] for row in test] == row_ids
        assert all(row["row_id"] == f"{row['image_id']}_{row['component']}" for row in test)
        submission = rows_of(folder / "sample_submission.csv")
        assert [(row["row_id"], row["target"]) for row in submission] == [(row_id, "0") for row_id in row_ids]
    assert [row["row_id"] for row in rows_of(digits.hidden / "solution.csv")] == row_ids


def test_labels_and_pixels_are_those_of_the_plan(digits: Sample) -> None:
    plan = plan_digits(seed=SEED, num_train=NUM_TRAIN, num_test=NUM_TEST)
    train = rows_of(digits.data / "train.csv")
    assert [tuple(int(row[head]) for head in HEADS) for row in train] == [drawing.labels for drawing in plan.train]
    targets = [int(row["target"]) for row in rows_of(digits.hidden / "solution.csv")]
    expected = [drawing.labels[HEADS.index(head)] for drawing in plan.hidden for head in ROW_ORDER]
    assert targets == expected
    ids, images = read_shard(digits.hidden / "test_image_data_0.parquet")
    assert ids == [f"Test_{at}" for at in range(26)]
    assert np.array_equal(images, [draw_digits(plan, "hidden", at) for at in range(26)])
    visible_ids, visible = read_shard(digits.data / "test_image_data_1.parquet")
    assert visible_ids == ids[3:6]
    assert np.array_equal(visible, images[3:6])


def test_digits_are_dark_strokes_on_white_paper() -> None:
    plan = plan_digits(seed=SEED, num_train=NUM_TRAIN, num_test=NUM_TEST)
    images = np.stack([draw_digits(plan, "train", row) for row in range(NUM_TRAIN)])
    assert np.median(images) > 235
    assert (images.min(axis=(1, 2)) < 110).all()
    inked = (images < 160).mean(axis=(1, 2))
    assert inked.min() > 0.005
    assert inked.max() < 0.2


def test_same_seed_gives_the_same_shard_bytes(digits: Sample, tmp_path: Path) -> None:
    plan = plan_digits(seed=SEED, num_train=NUM_TRAIN, num_test=NUM_TEST)
    rows = np.array_split(np.arange(NUM_TRAIN), NUM_SHARDS)[2]
    images = np.stack([draw_digits(plan, "train", int(row)).ravel() for row in rows])
    _write_wide(tmp_path / "again.parquet", [f"Train_{row}" for row in rows], images, rows)
    assert (tmp_path / "again.parquet").read_bytes() == (digits.data / "train_image_data_2.parquet").read_bytes()


# digits: what is shown and what is hidden


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_size_plan_is_skewed_and_covers_every_class(seed: int) -> None:
    plan = plan_digits(seed=seed, num_train=4200, num_test=2100)
    train, hidden = (np.array([drawing.labels for drawing in part]) for part in (plan.train, plan.hidden))
    shown = {tuple(labels) for labels in train}
    seen = np.array([tuple(labels) in shown for labels in hidden])
    assert 0.15 <= 1 - len(shown) / np.prod(GRID) <= 0.20
    assert 0.25 <= 1 - seen.mean() <= 0.30
    for head, num_classes in enumerate(GRID):
        counts = np.bincount(train[:, head], minlength=num_classes)
        assert counts.min() >= 60
        assert counts.max() > 2 * counts.min()
        for part in (train, hidden[seen], hidden[~seen]):
            assert set(part[:, head]) == set(range(num_classes))
        assert min(len({labels for labels in shown if labels[head] == one}) for one in range(num_classes)) >= 10


@pytest.mark.parametrize(("num_train", "num_test"), [(100, 100), (300, 120)])
def test_small_plan_covers_every_class_and_hides_combinations(num_train: int, num_test: int) -> None:
    plan = plan_digits(seed=1, num_train=num_train, num_test=num_test)
    shown = {drawing.labels for drawing in plan.train}
    parts = [
        [drawing.labels for drawing in plan.train],
        [drawing.labels for drawing in plan.hidden if drawing.labels in shown],
        [drawing.labels for drawing in plan.hidden if drawing.labels not in shown],
    ]
    for part in parts:
        assert [len(set(labels)) for labels in zip(*part, strict=True)] == list(GRID)
    assert [len(plan.train), len(plan.hidden)] == [num_train, num_test]
    assert len(parts[2]) == round(0.275 * num_test)


def test_no_handwriting_is_in_both_train_and_hidden_test() -> None:
    plan = plan_digits(seed=0, num_train=4200, num_test=2100)
    train, hidden = ({one for drawing in part for one in drawing.instances} for part in (plan.train, plan.hidden))
    assert not train & hidden
    _, values = read_glyphs()
    assert {int(values[one]) for one in hidden} == set(range(10))


# ships


def test_ships_files_are_those_of_the_competition(ships: Sample) -> None:
    train, test = rows_of(ships.data / "train.csv"), rows_of(ships.data / "test.csv")
    assert (list(train[0]), list(test[0])) == (["image", "category"], ["image"])
    names = [row["image"] for row in train + test]
    assert len(set(names)) == 210
    assert all(name.removesuffix(".jpg").isdigit() for name in names)
    assert {path.name for path in (ships.data / "images").iterdir()} == set(names)
    assert {path.name for path in (ships.hidden / "images").iterdir()} == {row["image"] for row in test}
    submission = rows_of(ships.data / "sample_submission.csv")
    assert [row["image"] for row in submission] == [row["image"] for row in test]
    assert {row["category"] for row in submission} == {"1"}
    assert [row["image"] for row in rows_of(ships.hidden / "solution.csv")] == [row["image"] for row in test]
    assert read_task(ships.task) == read_task("ships")


def test_ships_vary_in_size_and_are_skewed(ships: Sample) -> None:
    shapes = {read_jpeg(path).shape[:2] for path in (ships.hidden / "images").iterdir()}
    assert len(shapes) > 20
    assert min(map(min, shapes)) >= 110
    assert max(map(max, shapes)) <= 260
    counts = Counter(row["category"] for row in rows_of(ships.data / "train.csv"))
    assert sorted(counts) == ["1", "2", "3", "4", "5"]
    assert counts.most_common(1)[0][0] == "1"


def test_ships_handwriting_is_split_but_for_planted_duplicates() -> None:
    plan = sample_ships.plan_ships(seed=0, num_train=1200, num_test=500)
    train = {photo.instance for photo in plan.photos if photo.split == "train"}
    test = {photo.instance for photo in plan.photos if photo.split == "test" and photo.original is None}
    assert not train & test
    _, values = read_glyphs()
    assert all(values[photo.instance] == sample_ships.DIGITS[photo.label] for photo in plan.photos)


def test_every_kind_of_defect_is_planted_once_an_image(defects: list[dict[str, str]]) -> None:
    kinds = Counter((row["kind"], row["split"]) for row in defects)
    both = {"gray", "empty", "exact_duplicate", "near_duplicate"}
    assert set(kinds) == {(kind, split) for kind in both for split in ("train", "test")} | {
        ("wrong_label", "train"),
        ("truncated", "train"),
    }
    assert kinds["truncated", "train"] == 1
    images = [row["image"] for row in defects]
    assert len(set(images)) == len(images)
    assert not set(images) & {row["other"] for row in defects}


def test_duplicates_are_as_recorded(ships: Sample, defects: list[dict[str, str]]) -> None:
    folder = ships.data / "images"
    categories = {row["image"]: row["category"] for row in rows_of(ships.data / "train.csv")}
    train = dict(categories)
    categories |= {row["image"]: row["category"] for row in rows_of(ships.hidden / "solution.csv")}
    for row in (row for row in defects if row["other"]):
        first, second = folder / row["image"], folder / row["other"]
        same_bytes = first.read_bytes() == second.read_bytes()
        pixels, others = read_jpeg(first), read_jpeg(second)
        assert same_bytes == (row["detail"] == "same bytes")
        assert np.array_equal(pixels, others) == (row["kind"] == "exact_duplicate")
        small = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in (pixels, others)]
        assert np.corrcoef(*small)[0, 1] > 0.85
        assert row["other"] in train
        assert categories[row["image"]] == categories[row["other"]]


def test_gray_empty_and_truncated_are_as_recorded(ships: Sample, defects: list[dict[str, str]]) -> None:
    kinds = {row["image"]: row["kind"] for row in defects}
    for path in sorted((ships.data / "images").iterdir()):
        kind, content = kinds.get(path.name), path.read_bytes()
        assert (kind == "truncated") == (not content.endswith(b"\xff\xd9")), path.name
        if kind == "truncated":
            assert b"\xff\xd9" not in content
            continue
        image = read_jpeg(path).astype(int)
        assert (kind == "gray") == (np.ptp(image, axis=2).max() == 0), path.name
        assert (kind == "empty") == (image.std(axis=(0, 1)).max() < 4), path.name


def test_wrong_labels_are_as_recorded(ships: Sample, defects: list[dict[str, str]]) -> None:
    plan = sample_ships.plan_ships(seed=SEED, num_train=150, num_test=60)
    true = {photo.name: str(photo.label + 1) for photo in plan.photos}
    written = {row["image"]: row["category"] for row in rows_of(ships.data / "train.csv")}
    wrong = {row["image"]: row["detail"] for row in defects if row["kind"] == "wrong_label"}
    assert wrong == {name: true[name] for name, category in written.items() if category != true[name]}
    assert len(wrong) == round(0.03 * 150)
    assert {*wrong.values(), *(written[name] for name in wrong)} <= {"1", "4", "5"}
    for row in rows_of(ships.hidden / "solution.csv"):
        assert row["category"] == true[row["image"]]


def test_same_seed_gives_the_same_bytes_and_another_seed_others(ships: Sample, tmp_path: Path) -> None:
    again = make_sample("ships", tmp_path / "again", seed=SEED, num_train=150, num_test=60)
    assert files_under(again.data.parent) == files_under(ships.data.parent)
    other = make_sample("ships", tmp_path / "other", seed=SEED + 1, num_train=60, num_test=40)
    assert not set(files_under(other.data / "images")) & set(files_under(ships.data / "images"))


# make_sample


def test_second_call_returns_what_is_there_untouched(ships: Sample) -> None:
    mark = ships.data / "test.csv"
    before = mark.stat().st_mtime_ns
    assert make_sample("ships", ships.data.parent, seed=SEED, num_train=150, num_test=60) == ships
    assert mark.stat().st_mtime_ns == before


def test_other_sample_in_the_folder_is_refused(ships: Sample) -> None:
    with pytest.raises(DataError, match=r"holds another sample \(seed 3, not 4\); give a new folder, or delete it"):
        make_sample("ships", ships.data.parent, seed=SEED + 1, num_train=150, num_test=60)


def test_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds no sample; give a new folder, or delete it"):
        make_sample("ships", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match=r"notes\.txt is a file; give a folder"):
        make_sample("ships", tmp_path / "notes.txt")


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    sample = make_sample("ships", tmp_path / "mine", num_train=60, num_test=40)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "data",
        "hidden",
        "sample.json",
        "task.yaml",
    ]
    assert sample.data == tmp_path / "mine" / "data"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(sample_ships, "encode_photo", fail)
    with pytest.raises(OSError, match="disk full"):
        make_sample("ships", tmp_path / "sample", num_train=60, num_test=40)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("digits", {"num_train": 20}, "`num_train` is 20; a digits sample needs at least 100"),
        ("ships", {"num_test": 3}, "`num_test` is 3; a ships sample needs at least 40"),
        ("ships", {"seed": -1}, "`seed` is -1; give 0 or above"),
        ("ship", {}, "there is no sample 'ship'; did you mean 'ships'"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, kind: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_sample(kind, tmp_path / "sample", **settings)


def test_a_sample_whose_files_changed_is_refused(ships: Sample, tmp_path: Path) -> None:
    folder = shutil.copytree(ships.task.parent, tmp_path / "ships")
    (folder / "data" / "train.csv").write_text("mine")
    with pytest.raises(DataError, match="holds this sample, but its files have changed since; delete it"):
        make_sample("ships", folder, seed=ships.seed, num_train=ships.num_train, num_test=ships.num_test)


# digits: second forms


@pytest.mark.parametrize("seed", range(20))
def test_no_two_combinations_look_alike(seed: int) -> None:
    looks = Counter((labels[0], *marks) for labels, marks in _marks(np.random.default_rng(seed)).items())
    assert len(looks) == np.prod(GRID) and max(looks.values()) == 1


def test_second_forms_are_those_of_two_classes_each() -> None:
    by_form: dict[tuple, set[tuple[int, int]]] = {}
    for labels, marks in _marks(np.random.default_rng(0)).items():
        for head, mark in enumerate(marks, start=1):
            by_form.setdefault(mark, set()).add((head, labels[head]))
    shared = {mark: classes for mark, classes in by_form.items() if len(classes) > 1 and mark[0]}
    assert shared == {
        ("7", 46, 42): {(1, 1), (1, 3)},
        ("8", -56, -40): {(1, 2), (1, 5)},
        ("9", 0, 49): {(2, 1), (2, 3)},
    }
