"""CSV in and out, every value as text: ids like `007` and labels like `None` stay what the file says."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, did_you_mean, some_of
from kaggle_kit.files import no_file, replacing

REPEATED = " (again in row "  # in the name of a row whose id an earlier row has
Text = npt.NDArray[np.str_]


def read_columns(path: Path, columns: Sequence[str] | None = None) -> dict[str, Text]:
    """Read columns of a CSV file as text.

    Args:
        path: A CSV file with a header.
        columns: The columns wanted; None for all.

    Returns:
        The columns in the order asked, each of shape (N,).

    Raises:
        DataError: When the file is absent, unreadable, or misses a column.
    """
    if not path.is_file():
        raise DataError(no_file(path))
    rows, header = _read_rows(path)
    wanted = list(columns) if columns is not None else header
    for name in wanted:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}{did_you_mean(name, header)}")
    places = [header.index(name) for name in wanted]
    return {name: np.array([row[i] for row in rows], dtype=np.str_) for name, i in zip(wanted, places, strict=True)}


def read_header(path: Path) -> list[str]:
    """Return the names of a CSV file's columns; none where it is absent or unreadable, as `read_columns` then says."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _read_rows(path: Path) -> tuple[list[list[str]], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            rows = [row for row in lines if row]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}") from None
    if not header:
        raise DataError(f"{path} is empty; expected a header line and rows; download it again")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path} line {number} has {len(row)} fields; its header has {len(header)}")
    return rows, header


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically: it is either whole or absent."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def check_unique(ids: Text, where: object) -> None:
    """Refuse repeated ids.

    Raises:
        DataError: Naming the repeated ids and how often the first occurs.
    """
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if len(repeated):
        raise DataError(
            f"{where} holds {len(repeated):,} id(s) more than once: {some_of(repeated)} "
            f"({counts[counts > 1][0]} times); keep one row of each"
        )


def rename_repeats(ids: Text) -> Text:
    """Return ids of which none repeats: all but the first row of an id get a name that nothing asks for."""
    _, first = np.unique(ids, return_index=True)
    again = np.setdiff1d(np.arange(len(ids)), first)
    if not len(again):
        return ids
    renamed = ids.astype(object)  # a longer name would be cut to the longest there is
    renamed[again] = [f"{ids[row]}{REPEATED}{row})" for row in again.tolist()]
    return renamed.astype(np.str_)


def rows_of(wanted: Text, ids: Text) -> npt.NDArray[np.int64]:
    """Return the row of each wanted id in `ids`, -1 where it is absent; `ids` must not repeat."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    rows = order[places]
    return np.where(ids[rows] == wanted, rows, -1).astype(np.int64)
