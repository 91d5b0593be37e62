from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import cv2
import pytest
from audited import files_task, scene, write_files
from conftest import Toy

from kaggle_kit.audit.examine import Audit, Options, examine
from kaggle_kit.audit.report import write_report
from kaggle_kit.task import Task

CLASS_FOLDERS = files_task(
    heads={"kind": {"classes": ["cat", "dog"]}},
    images={"format": "files", "folder": "images", "class_folders": True, "test_list": "test.csv"},
    labels={"file": ""},
)


def png(seed: int) -> bytes:
    return cv2.imencode(".png", scene(seed))[1].tobytes()


def add_misnamed(folder: Path) -> None:
    """Write an image whose name is no UTF-8."""
    name = os.fsencode(folder) + b"/\xff\xfe.png"
    try:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT)
    except OSError:
        pytest.skip("this file system takes no such name")
    with os.fdopen(handle, "wb") as file:
        file.write(png(90))


def audited(task: Task, folder: Path) -> Audit:
    audit = examine(task, folder / "data", folder / "audit", Options(map_method="pca", fast=True))
    assert write_report(audit, folder / "report.html").stat().st_size
    return audit


def found(audit: Audit, kind: str) -> list[str]:
    return [one.id for one in audit.findings if one.kind == kind]


def test_a_stray_file_whose_name_is_no_utf8_is_listed(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": scene(row) for row in range(4)}, {"t.png": scene(9)})
    add_misnamed(tmp_path / "data" / "images")
    assert found(audited(files_task(), tmp_path), "missing_label") == ["\\xff\\xfe.png"]


def test_an_image_whose_name_is_no_utf8_is_left_out_and_listed(tmp_path: Path) -> None:
    for row in range(6):
        folder = tmp_path / "data" / "images" / ("cat", "dog")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}.png").write_bytes(png(row))
    add_misnamed(tmp_path / "data" / "images" / "cat")
    (tmp_path / "data" / "test.csv").write_text("image\n")
    audit = audited(CLASS_FOLDERS, tmp_path)
    assert found(audit, "broken") == ["cat/\\xff\\xfe.png"]
    assert audit.counts.num_images["train"] == audit.counts.num_labelled == 6


def test_links_that_lead_nowhere_are_images_that_lack(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": scene(row) for row in range(5)}, {"t.png": scene(9)})
    images = tmp_path / "data" / "images"
    (images / "2.png").unlink()
    (images / "2.png").symlink_to("2.png")
    (images / "3.png").unlink()
    (images / "3.png").symlink_to("gone.png")
    (images / "9.png").symlink_to("9.png")
    (images / "folder").symlink_to(".")
    audit = audited(files_task(), tmp_path)
    assert found(audit, "missing_image") == ["2.png", "3.png"]
    assert found(audit, "missing_label") == ["9.png"]


def test_a_submission_that_the_sample_contradicts_is_noted_without_a_test_too(files: Toy, tmp_path: Path) -> None:
    task = dataclasses.replace(files.task, submission=dataclasses.replace(files.task.submission, target="label"))
    (files.data / "test.csv").unlink()
    audit = examine(task, files.data, tmp_path / "audit", Options(map_method="pca", fast=True))
    (note,) = [note for note in audit.notes if note.startswith("No submission would be taken: ")]
    assert note.endswith("or its heads' names.")
