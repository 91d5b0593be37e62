from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Toy
from reported import Drawn, made_audit

from kaggle_kit.audit import montage
from kaggle_kit.audit.examine import Options, examine
from kaggle_kit.audit.montage import Wanted, gather_pictures


def test_each_image_is_read_once_whatever_it_is_wanted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": 2}}, num_train=50, num_test=50)
    read: list[str] = []
    real = Drawn.read
    monkeypatch.setattr(Drawn, "read", lambda self, row: read.append(str(self.ids[row])) or real(self, row))
    wanted = Wanted(alone=[3, 3, 60, 99], tiles={3, 60}, dots={3, 4})
    pictures = gather_pictures(audit.opened, audit.images, wanted)
    assert sorted(read) == ["i3", "i4", "i60", "i99"]
    assert (set(pictures.alone), set(pictures.tiles), set(pictures.dots)) == ({3, 60, 99}, {3, 60}, {3, 4})
    assert pictures.dots[4].shape == (64, 64, 4) and pictures.tiles[60].shape == (*pictures.tile_size, 4)
    height, width = pictures.tile_size
    assert width / height == pytest.approx(80 / 60, rel=0.02)
    data = base64.b64decode(pictures.alone[60].split(",")[1])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (24, 32, 3) and abs(int(shown[12, 16, 0]) - 10) < 4  # row 60 is the test's 10


def test_files_that_can_only_be_read_whole_are_not_where_that_takes_long(
    wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = examine(wide.task, wide.data, tmp_path / "audit", Options(map_method="pca"))
    wanted = Wanted(alone=[0], dots=set(range(48)))
    sharp = gather_pictures(audit.opened, audit.images, wanted)
    assert sharp.notes == () and len(sharp.dots) == 48
    monkeypatch.setattr(montage, "MAX_WHOLE_ROWS", 20)  # one of three shards of 16 rows: that of image 0
    coarse = gather_pictures(audit.opened, audit.images, wanted)
    assert [note.split(":")[0] for note in coarse.notes] == ["32 pictures of train are coarse"]
    assert set(coarse.dots) == set(sharp.dots) and coarse.alone == sharp.alone
    same = [bool((coarse.dots[row] == sharp.dots[row]).all()) for row in range(48)]
    assert same == [row < 16 for row in range(48)]
    distances = [np.abs(coarse.dots[row].astype(int) - sharp.dots[row]).mean() for row in range(16, 48)]
    assert max(distances) < 12


def test_colours_and_shape_survive(tmp_path: Path) -> None:
    red = np.zeros((200, 50, 3), np.uint8)
    red[..., 0] = 220
    tile = montage._padded(montage.to_bgr(red), (62, 62))
    assert tile[31, 31].tolist() == [0, 0, 220, 255] and tile[31, 0, 3] == 0
    address = montage.montage_uri([tile] * 7)
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert sheet.shape == (2 * 62 + 2, 5 * 62 + 4 * 2, 4) and sheet[31, 31, 2] > 180 and sheet[100, 300, 3] == 0
