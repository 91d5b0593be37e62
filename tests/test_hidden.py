from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Toy
from pyarrow import parquet
from test_source_formats import Made, make_class_folders, make_files, make_idx, make_npy, make_parquet, write_zip

from kaggle_kit.errors import DataError, RehearsalError
from kaggle_kit.labels import read_labels
from kaggle_kit.platform import hidden as module
from kaggle_kit.platform.hidden import HiddenTest, make_hidden
from kaggle_kit.sources import open_source, read_images
from kaggle_kit.submission import expected_images, expected_rows, read_submission, validate_submission
from kaggle_kit.tables import read_columns, rows_of, write_rows
from kaggle_kit.task import Task

NUM = 11


def hide(task: Task, data: Path, folder: Path, images: int, **options: Any) -> HiddenTest:
    return make_hidden(task, data, folder, images=images, **{"say": lambda _: None, **options})


def with_test(made: Made, ids: list[str], **images: str) -> Task:
    """Give a competition of train images a visible test's lists, and return its task."""
    task = dataclasses.replace(made.task, images=dataclasses.replace(made.task.images, **images))
    write_rows(made.data / "sample_submission.csv", ["image_id", "target"], [[name, task_value(task)] for name in ids])
    if task.images.test_list:
        write_rows(made.data / "test.csv", ["image_id", "width"], [[name, 640] for name in ids])
    return task


def task_value(task: Task) -> str:
    return task.heads["kind"].class_values[0]


def as_binaries(data: Path) -> Task:
    made = make_parquet(data, NUM)
    shutil.copy(data / "train-00000-of-00003.parquet", data / "test-0.parquet")
    write_rows(data / "train.csv", ["image_id", "kind"], [[n, ["cat", "dog"][i % 2]] for i, n in enumerate(made.ids)])
    return with_test(made, made.ids[:4], test="test-*.parquet")


def as_structs(data: Path) -> Task:
    made = make_parquet(data, NUM, as_struct=True)
    shutil.copy(data / "train-00000-of-00003.parquet", data / "test-0.parquet")
    write_rows(data / "train.csv", ["image_id", "kind"], [[n, ["cat", "dog"][i % 2]] for i, n in enumerate(made.ids)])
    return with_test(made, made.ids[:4], test="test-*.parquet")


def as_files(data: Path) -> Task:
    return with_test(make_files(data, NUM), ["img_3"], test_list="test.csv")


def as_zip(data: Path) -> Task:
    made = make_files(data, NUM, archive="images.zip/train")
    write_zip(data / "test.zip", {"test/img_3.png": b"?"})
    return with_test(made, ["img_3"], test_list="test.csv", test_folder="test.zip/test")


def as_class_folders(data: Path) -> Task:
    made = make_class_folders(data, NUM, listed=False)
    return with_test(made, ["new_001.png"], test_list="test.csv", test_folder="test")


def as_npy(data: Path) -> Task:
    made = make_npy(data, NUM, channels=1)
    np.save(data / "test.npy", np.load(data / "images.npy")[:2])
    return with_test(made, ["img_3", "img_4"], test="test.npy", test_list="test.csv")


def as_idx(data: Path) -> Task:
    made = make_idx(data, NUM, suffix=".gz")
    shutil.copy(data / "images-idx3-ubyte.gz", data / "t10k-images-idx3-ubyte.gz")
    return with_test(made, ["0", "1"], test="t10k-images-idx3-ubyte.gz")


KINDS = {
    "wide parquet": None,
    "parquet of binaries": as_binaries,
    "parquet of structs": as_structs,
    "files": as_files,
    "zip": as_zip,
    "class folders": as_class_folders,
    "npy": as_npy,
    "gzipped idx": as_idx,
}


@pytest.fixture(params=KINDS, ids=list(KINDS))
def competition(request: pytest.FixtureRequest, wide: Toy, tmp_path: Path) -> tuple[Task, Path]:
    make = KINDS[request.param]
    if make is None:
        return wide.task, wide.data
    (tmp_path / "data").mkdir()
    return make(tmp_path / "data"), tmp_path / "data"


@pytest.mark.parametrize("images", [1, 7, 120])
def test_a_hidden_test_is_train_images_under_new_ids(
    competition: tuple[Task, Path], tmp_path: Path, images: int
) -> None:
    task, data = competition
    folder = hide(task, data, tmp_path / "hidden", images, seed=3).folder
    rows = expected_rows(task, folder)
    ids = expected_images(task, rows)
    test, train, labels = open_source(task, "test", folder), open_source(task, "train", data), read_labels(task, data)
    assert len(ids) == images and set(ids) <= set(test.ids)
    assert task.images.format == "array" or not set(ids) & set(train.ids)
    validate_submission(task, folder / "solution.csv", rows=rows)
    answered, truth = read_submission(task, folder / "solution.csv")
    pixels = read_images(test)[rows_of(answered, test.ids)]
    known = {image.tobytes(): row for row, image in enumerate(read_images(train))}
    places = np.array([known[image.tobytes()] for image in pixels])
    counts = np.bincount(places, minlength=len(train))
    if len(known) == len(train):  # without duplicates
        assert counts.max() - counts.min() <= 1
        align = labels.align(train.ids[places])
        for head in task.heads:
            np.testing.assert_array_equal(truth[head], align.classes[head])


def test_seeds_choose_images_and_the_same_one_the_same(wide: Toy, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        hide(wide.task, wide.data, tmp_path / name, 20, seed=seed)
    a, b, c = ((tmp_path / name / "test_0.parquet").read_bytes() for name in "abc")
    assert a == b != c


def test_shards_and_row_groups_are_like_the_competition_s(wide: Toy, tmp_path: Path) -> None:
    folder = hide(wide.task, wide.data, tmp_path / "hidden", 100).folder
    assert sorted(path.name for path in folder.glob("*.parquet")) == ["test_0.parquet", "test_1.parquet"]
    train, test = (parquet.ParquetFile(p) for p in (wide.data / "train_0.parquet", folder / "test_0.parquet"))
    groups = [test.metadata.row_group(group).num_rows for group in range(test.metadata.num_row_groups)]
    assert groups == [16, 16, 16, 2] and train.metadata.row_group(0).num_rows == 16
    assert test.schema_arrow.field("image_id").type == train.schema_arrow.field("image_id").type
    assert test.metadata.row_group(0).column(5).compression == train.metadata.row_group(0).column(5).compression


def test_a_test_list_that_no_task_names_is_written_too(wide: Toy, tmp_path: Path) -> None:
    lines = [[f"Test_0_{head}", "Test_0", head, "left"] for head in ("vowel", "root")]
    write_rows(wide.data / "test.csv", ["row_id", "image_id", "component", "hand"], lines)
    folder = hide(wide.task, wide.data, tmp_path / "hidden", 3).folder
    table = read_columns(folder / "test.csv")
    assert {name: values.tolist()[-2:] for name, values in table.items()} == {
        "row_id": ["Test_2_vowel", "Test_2_root"],
        "image_id": ["Test_2", "Test_2"],
        "component": ["vowel", "root"],
        "hand": ["left", "left"],
    }
    assert table["row_id"].tolist() == read_columns(folder / "sample_submission.csv")["row_id"].tolist()


def test_files_are_links_and_train_s_stay(files: Toy, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in files.data.rglob("*") if path.is_file()}
    folder = hide(files.task, files.data, tmp_path / "hidden", 30).folder
    made = next((folder / "images").iterdir())
    assert made.stat().st_nlink > 1 and int(made.stem) >= 20
    again = hide(files.task, files.data, tmp_path / "hidden", 31)
    assert not again.reused and len(list((again.folder / "images").iterdir())) == 31
    assert {path: path.read_bytes() for path in files.data.rglob("*") if path.is_file()} == before


def test_one_that_is_there_is_used_again_until_something_changes(wide: Toy, tmp_path: Path) -> None:
    made = [hide(wide.task, wide.data, tmp_path / "hidden", images, seed=s).reused for images, s in ((5, 0), (5, 0))]
    assert made == [False, True]
    assert not hide(wide.task, wide.data, tmp_path / "hidden", 6).reused
    assert not hide(wide.task, wide.data, tmp_path / "hidden", 6, seed=1).reused
    text = (wide.data / "train.csv").read_text()
    (wide.data / "train.csv").write_text(text + "\n")
    assert not hide(wide.task, wide.data, tmp_path / "hidden", 6, seed=1).reused


def test_the_disk_it_takes_is_said_first_and_refused_where_there_is_not_that_much(
    wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    hide(wide.task, wide.data, tmp_path / "hidden", 5, say=said.append)
    assert "a hidden test of 5 train images takes about 0.00 GB in" in said[0]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    with pytest.raises(RehearsalError, match=r"takes about .* GB .*, and 0.00 GB are free there; ask for fewer images"):
        hide(wide.task, wide.data, tmp_path / "other", 2_000)
    assert not (tmp_path / "other").exists()


def test_folders_of_other_things_are_never_replaced(wide: Toy, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "mine.txt").write_text("keep me")
    with pytest.raises(RehearsalError, match="is not empty and no hidden test; choose another folder"):
        hide(wide.task, wide.data, tmp_path / "hidden", 5)
    assert (tmp_path / "hidden" / "mine.txt").read_text() == "keep me"


def test_what_it_cannot_copy_is_refused_with_what_to_give_instead(files: Toy, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    made = make_files(tmp_path / "data", NUM, archive="images.zip/train")
    task = with_test(made, ["img_3"], test_list="test.csv", test_folder="images.zip/test")
    with pytest.raises(DataError, match=r"images.zip holds train and test images alike, .*--hidden"):
        hide(task, made.data, tmp_path / "hidden", 3)
    write_rows(files.data / "sample_submission.csv", ["image", "kind"], [])
    with pytest.raises(DataError, match="has no lines that start with 'image', as a visible test's would"):
        hide(files.task, files.data, tmp_path / "hidden", 3)
    assert not (tmp_path / "hidden").exists()
