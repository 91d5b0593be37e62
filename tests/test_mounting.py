from __future__ import annotations

from pathlib import Path

from conftest import Toy

from kaggle_kit.platform.mounting import Inputs, files_below


def test_a_symlinked_folder_of_images_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.jpg").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    assert [path.name for path in files_below(tmp_path / "data")] == ["1.jpg"]


def test_hidden_files_take_the_place_of_the_visible_test_alone(files: Toy, tmp_path: Path) -> None:
    inputs = Inputs(task=files.task, data=files.data, bundle=None)
    visible = inputs.lay_out(tmp_path / "visible", None)
    assert {p.relative_to(visible) for p in files_below(visible)} == {
        p.relative_to(files.data) for p in files_below(files.data)
    }
    (files.hidden / "images" / "20.jpg").rename(files.hidden / "images" / "other.jpg")
    hidden = inputs.lay_out(tmp_path / "hidden", files.hidden)
    names = {path.name for path in (hidden / "images").iterdir()}
    assert "other.jpg" in names and "20.jpg" not in names and "0.jpg" in names
    assert not (hidden / "solution.csv").exists()


def test_files_are_linked_or_copied(files: Toy, tmp_path: Path) -> None:
    for copies in (False, True):
        inputs = Inputs(task=files.task, data=files.data, bundle=None, copies=copies)
        place = inputs.lay_out(tmp_path / str(copies), None) / "train.csv"
        assert place.samefile(files.data / "train.csv") is not copies
        assert place.read_bytes() == (files.data / "train.csv").read_bytes()
