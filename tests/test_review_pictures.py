from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import make_wide
from reviewed import NAMES

from kaggle_kit.audit.examine import Options, examine
from kaggle_kit.audit.opening import open_splits
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.audit.review.pictures import Pictures
from kaggle_kit.errors import DataError


def decoded(data: bytes | None) -> np.ndarray:
    assert data is not None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_pictures_are_the_images_themselves_and_small_ones_have_their_shape(audited: Path, desk: Desk) -> None:
    stored = cv2.imread(str(audited.parent / "data" / "images" / NAMES[4]))
    assert (decoded(desk.pictures.picture(4)) == stored).all()
    assert decoded(desk.pictures.thumbnail(4)).shape == (72, 96)  # of 60 x 80
    with pytest.raises(DataError, match=f"'{NAMES[7]}' cannot be read"):
        desk.pictures.picture(7)


def test_large_pictures_are_sent_smaller() -> None:
    from kaggle_kit.audit.review.pictures import _bounded

    assert _bounded(np.zeros((3000, 1200, 3), np.uint8)).shape == (800, 320, 3)


def wait_for_picture(pictures: Pictures, row: int) -> np.ndarray:
    end = time.monotonic() + 20
    while (data := pictures.picture(row)) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return decoded(data)


def test_wide_parquet_is_read_behind_the_scenes_and_kept_on_the_disk(tmp_path: Path) -> None:
    toy = make_wide(tmp_path)
    audit = examine(toy.task, toy.data, tmp_path / "audit", Options(fast=True))
    cache = tmp_path / "audit" / "pictures"
    opened = open_splits(toy.task, toy.data, audit.labels.ids)
    expected = {row: image[..., 0] for row, image in opened.read("train", [3, 30])}  # a source serves one thread
    pictures = Pictures(opened, audit.images, cache=cache)
    pictures.want(range(20))
    assert pictures.picture(3) is None and pictures.picture(30) is None
    for row in (3, 30):
        assert (wait_for_picture(pictures, row) == expected[row]).all()
    pictures.close()
    kept = {path.stem for path in cache.iterdir()}
    assert kept == {audit.images.pixel_hash[row] for row in [*range(20), 30]}
    again = Pictures(opened, audit.images, cache=cache)
    assert again.picture(3) is not None
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    assert wait_for_picture(Pictures(opened, audit.images, cache=cache), 3).shape == (24, 32)


def test_wide_parquet_that_is_damaged_since_is_said(tmp_path: Path) -> None:
    toy = make_wide(tmp_path)
    audit = examine(toy.task, toy.data, tmp_path / "audit", Options(fast=True))
    opened = open_splits(toy.task, toy.data, audit.labels.ids)
    pictures = Pictures(opened, audit.images)
    (toy.data / "train_0.parquet").write_bytes(b"damaged since")
    with pytest.raises(DataError, match="'Train_3' cannot be read: .*train_0.parquet is"):
        wait_for_picture(pictures, 3)


def test_a_reader_that_dies_says_so_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_wide(tmp_path)
    audit = examine(toy.task, toy.data, tmp_path / "audit", Options(fast=True))
    opened = open_splits(toy.task, toy.data, audit.labels.ids)
    pictures = Pictures(opened, audit.images)
    died: list[object] = []

    def die(**_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(threading, "excepthook", lambda told: died.append(told.exc_type))
    with monkeypatch.context() as broken:
        broken.setattr(opened.sources["train"], "chunks", die, raising=False)
        with pytest.raises(DataError, match="'Train_3' cannot be read: reading its file failed; the terminal says why"):
            wait_for_picture(pictures, 3)
    assert died == [MemoryError]
    assert wait_for_picture(pictures, 30).shape == (24, 32)
