"""A hidden test of any size, made of train images under new ids: for time, memory and disk, not for the score."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, RehearsalError
from kaggle_kit.files import replacing_folder
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.platform.hidden_images import Picks, check_can_copy, copied_bytes, put_images
from kaggle_kit.platform.listing import TEST_LIST, asked_images, images_of, test_list_name
from kaggle_kit.sources import Source, open_source
from kaggle_kit.submission import split_row_ids, write_submission, writes_probs
from kaggle_kit.tables import Text, read_columns, rows_of, write_rows
from kaggle_kit.task import Task, task_to_plain

CARD = ".hidden.json"
NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)  # an id: what is before its last number, that, what follows
RECIPE = 1  # raise it when the same call gives other files
SLACK = 1.05  # of the disk that is asked for: file systems have blocks
GB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class HiddenTest:
    """A hidden test that lies on the disk.

    Attributes:
        folder: Its files, and solution.csv.
        images: How many it has.
        reused: Whether it was there already.
    """

    folder: Path
    images: int
    reused: bool


def make_hidden(
    task: Task, data: Path, folder: Path, *, images: int, seed: int = 0, say: Callable[[str], object]
) -> HiddenTest:
    """Write a hidden test of train images, or return the one that is there already.

    Every train image is used as often as any other, give or take one. Files are hard links under new ids where the
    disk allows it; shards and arrays are written with the row groups and the compression of train's.

    Args:
        task: The competition.
        data: Its data folder.
        folder: Gets the test; an earlier one is replaced where train files, number or seed have changed.
        images: How many; more than there are train images: they repeat.
        seed: Which of them.
        say: Gets what it will take of the disk, before it is written.

    Raises:
        RehearsalError: When there is not that much disk, or `folder` holds something else.
        DataError: When train images or labels are incomplete, or of a kind that this cannot copy.
    """
    source = open_source(replace(task, stored=None), "train", data, on_broken="blank", lacking_ok=True)
    check_can_copy(task, data)
    version = _version(task, data, source)
    card: dict[str, Any] = {"recipe": RECIPE, "images": images, "seed": seed, "version": version}
    known = _read_card(folder)
    if {name: known.get(name) for name in card} == card:
        say(f"{folder}: the hidden test of {images:,} train images is there already")
        return HiddenTest(folder=folder, images=images, reused=True)
    _check_disk(folder, copied_bytes(task, data, source, images, folder), images=images, say=say)
    labels = read_labels(task, data)
    picks = _pick(task, data, source, labels, images=images, seed=seed)
    with replacing_folder(folder, known.get("names", []), what="hidden test", error=RehearsalError) as part:
        put_images(task, data, source, picks, part, say=say)
        _write_tables(task, data, part, picks, labels)
        card["names"] = sorted({CARD, *(path.name for path in part.iterdir())})
        (part / CARD).write_text(json.dumps(card) + "\n", encoding="utf-8")
    return HiddenTest(folder=folder, images=images, reused=False)


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _version(task: Task, data: Path, source: Source) -> str:
    """Return what tells this task's train files from others, by size and time of change."""
    digest = hashlib.sha256(json.dumps(task_to_plain(task), sort_keys=True).encode())
    tables = [data / task.labels.file, data / task.submission.file, data / test_list_name(task)]
    for path in (*tables, *source.files()):
        if path.is_file():
            found = path.stat()
            digest.update(f"{path.resolve()} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _pick(task: Task, data: Path, source: Source, labels: Labels, *, images: int, seed: int) -> Picks:
    """Return which train images become which test images, in train's order, so that shards are read once."""
    rows = rows_of(labels.ids, source.ids)
    rows = np.sort(rows[rows >= 0])
    if not len(rows):
        raise DataError(f"no labelled image is in {source.describe()}; check the task's `labels`")
    rng = np.random.default_rng(seed)
    whole, rest = divmod(images, len(rows))
    picked = np.concatenate([*[rows] * whole, np.sort(rng.choice(rows, rest, replace=False))]).astype(np.int64)
    return Picks(rows=picked, ids=_new_ids(task, data, source.ids, images), old_ids=source.ids[picked])


def _new_ids(task: Task, data: Path, train: Text, number: int) -> Text:
    """Return ids in the manner of the visible test's that no train image has: both may lie in one folder."""
    if task.images.format == "array" and not task.images.test_list:
        return np.arange(number).astype(np.str_)
    visible = asked_images(task, data)
    like = NUMBERED.fullmatch(str(visible[0])) if len(visible) else None
    start, digits, end = like.groups() if like else ("Hidden_", "0", "")
    taken = re.compile(rf"{re.escape(start)}(\d+)\D*", re.DOTALL)
    first = max((int(found[1]) + 1 for found in map(taken.fullmatch, train.tolist()) if found), default=0)
    width = len(digits) if digits.startswith("0") else 0
    return np.array([f"{start}{at:0{width}d}{end}" for at in range(first, first + number)], np.str_)


def _check_disk(folder: Path, num_bytes: int, *, images: int, say: Callable[[str], object]) -> None:
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free, needed = shutil.disk_usage(existing).free, int(num_bytes * SLACK)
    shown = f"a hidden test of {images:,} train images takes about {needed / GB:.2f} GB in {folder}"
    if needed > free:
        raise RehearsalError(
            f"{shown}, and {free / GB:.2f} GB are free there; ask for fewer images, or give a --work on a larger disk"
        )
    say(f"{shown}; {free / GB:,.1f} GB are free")


def _write_tables(task: Task, data: Path, part: Path, picks: Picks, labels: Labels) -> None:
    heads, default = _as_visible(task, data)
    form = task.submission
    rows = picks.ids
    if form.form == "row_per_head":
        names = [form.row_id.format(image_id=image, head=head) for image in picks.ids.tolist() for head in heads]
        rows = np.array(names, np.str_)
    write_rows(part / form.file, list(default), ([row, *list(default.values())[1:]] for row in rows.tolist()))
    name = test_list_name(task)
    if name != form.file and (task.images.test_list or (data / TEST_LIST).is_file()):
        _write_test_list(task, data / name, part / name, picks.ids, heads)
    truth = labels.align(picks.old_ids)
    probs = {head: _certain(values, task.heads[head].num_classes) for head, values in truth.classes.items()}
    write_submission(
        task,
        part / "solution.csv",
        rows=rows,
        ids=picks.ids,
        decided=truth.classes,
        probs=probs if writes_probs(task) else None,
    )


def _certain(classes: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float32]:
    if classes.ndim == 2:
        return np.asarray(classes, np.float32)
    return np.asarray(classes[:, None] == np.arange(num_classes), np.float32)


def _as_visible(task: Task, data: Path) -> tuple[list[str], dict[str, str]]:
    """Return the order of an image's heads, and {column: value} of a line, as the visible sample submission has them.

    Raises:
        DataError: When there is no sample submission, or it asks for nothing.
    """
    path = data / task.submission.file
    table, images = images_of(task, path)
    if images is None or not len(images) or next(iter(table)) != task.submission.id_column:
        raise DataError(
            f"{path} has no lines that start with {task.submission.id_column!r}, as a visible test's would; a hidden "
            "test is written in its form: download it again, or mend the task's `submission`"
        )
    heads = list(task.heads)
    if task.submission.form == "row_per_head":
        heads = split_row_ids(task, table[task.submission.id_column][images == images[0]])[1].tolist()
    return heads, {name: str(values[0]) for name, values in table.items()}


def _write_test_list(task: Task, visible: Path, path: Path, ids: Text, heads: list[str]) -> None:
    """Write a test list with the visible one's columns; what cannot be known is what its first lines say, in turn."""
    table = read_columns(visible)
    a_row = task.submission.id_column
    per_head = task.submission.form == "row_per_head" and a_row in table
    number = len(ids) * (len(heads) if per_head else 1)
    columns = [_listed(task, name, values, ids, heads if per_head else []) for name, values in table.items()]
    cycled = [values if len(values) == number else np.resize(values, number) for values in columns]
    write_rows(path, list(table), zip(*(values.tolist() for values in cycled), strict=True))


def _listed(task: Task, name: str, values: Text, ids: Text, heads: list[str]) -> Text:
    form = task.submission
    if name == form.id_column and heads:
        return np.array([form.row_id.format(image_id=image, head=head) for image in ids.tolist() for head in heads])
    if name in (task.images.id, task.labels.id, form.id_column):
        return np.repeat(ids, len(heads) or 1)
    if heads and set(values.tolist()) <= set(heads):
        return np.tile(np.array(heads, np.str_), len(ids))
    return values if len(values) else np.array([""])
