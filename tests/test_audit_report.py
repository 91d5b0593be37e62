from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from audited import files_task, scene, write_files
from conftest import Toy

from kaggle_kit.audit.examine import Options, examine
from kaggle_kit.audit.report import write_report
from kaggle_kit.task import Task

HOSTILE = "<script>alert(1)</script>"


def page_of(task: Task, data: Path, out: Path) -> str:
    audit = examine(task, data, out, Options(map_method="pca"))
    write_report(audit, out / "report.html")
    return (out / "report.html").read_text(encoding="utf-8")


def check_alone(page: str) -> None:
    """Check that a page loads nothing: every picture is inside, and no address is another file's."""
    loads = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]+)""", page)
    assert all(one.startswith("data:") for one in loads), [one[:60] for one in loads if not one.startswith("data:")]
    assert "@import" not in page and "<iframe" not in page


def test_the_page_of_photos_holds_all_its_pictures(tmp_path: Path) -> None:
    pictures = [scene(row) for row in range(12)]
    train = {f"{row}.png": picture for row, picture in enumerate([*pictures, pictures[0]])}
    write_files(tmp_path / "data", dict(train) | {"cut.png": b"no image"}, {"t.png": scene(50)})
    page = page_of(files_task(), tmp_path / "data", tmp_path / "audit")
    check_alone(page)
    assert "data:image/" in page and "cut.png" in page
    assert len(page) < 3_000_000


def test_the_page_of_wide_parquet_with_two_heads_is_whole(wide: Toy, tmp_path: Path) -> None:
    page = page_of(wide.task, wide.data, tmp_path / "audit")
    check_alone(page)
    assert "root" in page and "vowel" in page


def test_names_that_look_like_code_are_text(tmp_path: Path) -> None:
    task = files_task(heads={"kind": {"classes": [HOSTILE, "কক্ষ"], "values": [0, 1]}})
    write_files(tmp_path / "data", {f"{row}.png": scene(row) for row in range(8)}, {"t.png": scene(50)})
    page = page_of(task, tmp_path / "data", tmp_path / "audit")
    assert HOSTILE not in page and "কক্ষ" in page


@pytest.mark.parametrize("number", [1, 3])
def test_hardly_any_images_still_give_a_page(number: int, tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": scene(row) for row in range(number)}, {})
    check_alone(page_of(files_task(), tmp_path / "data", tmp_path / "audit"))


def test_all_images_broken_still_give_a_page(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": b"" for row in range(4)}, {"t.png": np.zeros((9, 9, 3), np.uint8)})
    page = page_of(files_task(), tmp_path / "data", tmp_path / "audit")
    check_alone(page)
    assert "0.png" in page
