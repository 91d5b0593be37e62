"""Made-up images and competitions for the tests of the audit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kaggle_kit.audit.measure import measure
from kaggle_kit.audit.pictures import Images
from kaggle_kit.labels import Labels
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, task_from_plain


def scene(seed: int, *, height: int = 60, width: int = 80, channels: int = 3) -> np.ndarray:
    """Return a picture of its own for every seed: coloured clouds with fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 210, (7, 9, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    return image if channels == 3 else image[..., :1]


def images_of(pictures: list[np.ndarray], *, num_test: int = 0, **columns: Any) -> Images:
    """Return what an audit knows of pictures, the last of them in the test; columns replace what was measured."""
    measures = [measure(picture) for picture in pictures]
    number, text = len(pictures), np.array([""] * len(pictures), np.str_)
    shown = np.stack([one.thumbnail for one in measures])
    images = Images(
        id=np.array([f"i{row}" for row in range(number)], np.str_),
        split=np.array(["train"] * (number - num_test) + ["test"] * num_test, np.str_),
        broken=text,
        absent=np.zeros(number, bool),
        height=np.array([picture.shape[0] for picture in pictures], np.int64),
        width=np.array([picture.shape[1] for picture in pictures], np.int64),
        mode=np.array(["RGB"] * number, np.str_),
        file_format=np.array(["png"] * number, np.str_),
        frames=np.ones(number, np.int64),
        num_bytes=np.full(number, 1000, np.int64),
        gray=np.array([one.gray for one in measures], bool),
        brightness=np.array([one.brightness for one in measures], np.float32),
        contrast=np.array([one.contrast for one in measures], np.float32),
        sharpness=np.array([one.sharpness for one in measures], np.float32),
        content=np.array([one.content for one in measures], np.float32),
        colourfulness=np.array([one.colourfulness for one in measures], np.float32),
        pixel_hash=np.array([one.pixel_hash.hex() for one in measures], np.str_),
        thumbnails=shown,
    )
    return dataclasses.replace(images, **columns)


def labels_of(images: Images, **classes: Any) -> Labels:
    """Return labels of the train images."""
    ids = images.id[images.rows("train")]
    given = {head: np.asarray(values)[: len(ids)] for head, values in classes.items()}
    return Labels(ids=ids, classes=given)


def files_task(**changes: Any) -> Task:
    """Return a task of image files with one head of two classes."""
    values: dict[str, Any] = {
        "name": "odd",
        "heads": {"kind": {"classes": 2}},
        "metric": "accuracy",
        "images": {"format": "files", "folder": "images", "test_list": "test.csv", "id": "image"},
        "labels": {"id": "image"},
        "submission": {"form": "row_per_image", "id": "image", "target": "kind"},
    }
    return task_from_plain({**values, **changes})


def write_files(
    data: Path, train: dict[str, bytes | np.ndarray | None], test: dict[str, bytes | np.ndarray | None]
) -> None:
    """Write a competition of `files_task`: an array becomes what its name's suffix says; None is a file that lacks."""
    (data / "images").mkdir(parents=True)
    for name, content in {**train, **test}.items():
        if isinstance(content, np.ndarray):
            content = cv2.imencode(Path(name).suffix, content)[1].tobytes()
        if content is not None:
            (data / "images" / name).write_bytes(content)
    write_rows(data / "train.csv", ["image", "kind"], [[name, row % 2] for row, name in enumerate(train)])
    write_rows(data / "test.csv", ["image"], [[name] for name in test])
    write_rows(data / "sample_submission.csv", ["image", "kind"], [[name, 0] for name in test])
