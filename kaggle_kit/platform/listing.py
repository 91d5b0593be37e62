"""The CSV files that list a test's images: the sample submission, and a test list where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kaggle_kit.errors import KitError
from kaggle_kit.submission import split_row_ids
from kaggle_kit.tables import Text, read_columns
from kaggle_kit.task import Task

TEST_LIST = "test.csv"  # what competitions name it, though a task needs none where shards hold the ids


def test_list_name(task: Task) -> str:
    """Return what a task's test list is called, where it has one."""
    return task.images.test_list or TEST_LIST


def listings(task: Task, folder: Path) -> list[Path]:
    """Return the files in a competition's folder that list its test's images."""
    paths = [folder / task.submission.file, folder / test_list_name(task)]
    return [path for path in paths if path.is_file() and path.suffix == ".csv"]


def images_of(task: Task, path: Path) -> tuple[dict[str, Text], Text | None]:
    """Return a listing's columns, and (N,) which image each line is about; None where no column tells."""
    table = read_columns(path)
    for name in (task.images.id, task.labels.id):
        if name in table and not (name == task.submission.id_column and task.submission.form == "row_per_head"):
            return table, table[name]
    rows = table.get(task.submission.id_column)
    if rows is None or task.submission.form != "row_per_head":
        return table, rows
    try:
        return table, split_row_ids(task, rows)[0]
    except KitError:  # not the form's ids
        return table, None


def asked_images(task: Task, folder: Path) -> Text:
    """Return the ids of the images that the sample submission asks about, in order of first mention."""
    _, images = images_of(task, folder / task.submission.file)
    if images is None:
        return np.zeros(0, np.str_)
    unique, first = np.unique(images, return_index=True)
    return np.asarray(unique[np.argsort(first)], np.str_)
