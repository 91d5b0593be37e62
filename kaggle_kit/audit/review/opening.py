"""Open the desk of an audit's folder."""

from __future__ import annotations

import os
from pathlib import Path

from kaggle_kit.audit.findings import load_findings
from kaggle_kit.audit.folder import EDITS, FINDINGS, read_meta, read_weakness
from kaggle_kit.audit.opening import open_splits
from kaggle_kit.audit.pictures import read_images
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.audit.review.pictures import Pictures
from kaggle_kit.edits import apply_edits, read_edits
from kaggle_kit.edits.log import lock_path
from kaggle_kit.errors import DataError
from kaggle_kit.labels import read_labels, resolve_classes
from kaggle_kit.task import task_from_plain

PICTURES = "pictures"  # of the audit's folder: images of wide parquet, once read


def open_desk(folder: Path, *, edits: Path | None = None, by: str = "", packed: Path | None = None) -> Desk:
    """Open an audit for review.

    Args:
        folder: The audit's.
        edits: Where decisions go; None: edits.jsonl in `folder`.
        by: Who decides.
        packed: A packed store of the train images, read in place of the competition's files.

    Raises:
        DataError: When there is no audit, its data are gone, or the edits do not fit them or cannot be written.
    """
    meta = read_meta(folder)
    if meta is None:
        raise DataError(
            f"{folder} holds no audit; make one with `kaggle-kit audit TASK DATA --out ./audit`, and give that"
        )
    data = Path(meta["data"])
    if not data.is_dir():
        raise DataError(f"{folder} is an audit of {data}, which is gone; put the data back there, or audit them again")
    path = edits or folder / EDITS
    check_writable(path)
    task = resolve_classes(task_from_plain(meta["task"]), data)
    labels = read_labels(task, data)
    if path.exists():  # refuses those of other data
        apply_edits(labels, read_edits(path), task, path=path)
    images = read_images(folder)
    opened = open_splits(task, data, labels.ids, packed=packed)
    pictures = Pictures(opened, images, cache=folder / PICTURES)
    findings, weakness = load_findings(folder / FINDINGS), read_weakness(folder)
    desk = Desk(task, labels, images, findings, pictures, path=path, by=by, weakness=weakness)
    pictures.want(desk.shown_rows())
    return desk


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be appended to, or not locked, before anybody has decided anything.

    Raises:
        DataError: Saying what is in the way.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; give --edits the path of a file")
    for place in (path, lock_path(path)):
        there = place if place.exists() else next(one for one in place.absolute().parents if one.exists())
        if not os.access(there, os.W_OK):
            raise DataError(f"{path} cannot be written: {there} is read-only; give --edits FILE elsewhere")
