from __future__ import annotations

from pathlib import Path

import pytest

from kaggle_kit.errors import RehearsalError
from kaggle_kit.platform.work_folder import claimed


def test_folders_of_other_things_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(RehearsalError, match="is not empty and no rehearsal"), claimed(tmp_path):
        pass
    with pytest.raises(RehearsalError, match="is a file"), claimed(tmp_path / "mine.txt"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_an_earlier_rehearsal_is_emptied_but_not_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep me")
    with claimed(tmp_path / "work") as (root, left):
        assert (root, left) == ((tmp_path / "work").resolve(), 0)
        (root / "hidden").mkdir()
        (root / "link").symlink_to(tmp_path / "data")
    with claimed(tmp_path / "work") as (root, _):
        assert [path.name for path in root.iterdir()] == [".kaggle-kit-rehearsal"]
    assert (tmp_path / "data" / "mine.txt").read_text() == "keep me"


def test_one_rehearsal_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        claimed(tmp_path / "work") as (root, _),
        pytest.raises(RehearsalError, match="another rehearsal runs in"),
    ):
        (root / "here").mkdir()
        with claimed(tmp_path / "work"):
            pass
    assert (tmp_path / "work" / "here").is_dir()
    with claimed(tmp_path / "work"):
        pass
