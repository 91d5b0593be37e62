"""Plots of the report as plain numbers, which its template draws as SVG: histograms, columns, matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.train.outcome import Fields, data_uri
from kaggle_kit.train.plots import row_shares

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[Any]

WIDTH, HEIGHT = 240, 72  # of a histogram's drawing
MOST_COLUMNS = 400  # of a picture of columns; of more classes so many are drawn
_BINS = 32
_TAIL = 0.5  # per cent at each end that are counted into the outermost bins


def histogram(title: str, groups: Mapping[str, Values], form: Callable[[float], str], *, whole: bool = False) -> Fields:
    """Return the distributions of a property, one a group, drawn over each other.

    Args:
        title: What is counted.
        groups: {name: (n,) finite values}; empty ones are left out.
        form: How a value is written.
        whole: Whether values are whole numbers, each of which gets a bin where there are few.

    Returns:
        `title`, `low` and `high` as written, `lines` of `name`, `points` and `median`; `same` instead of lines where
        all values are equal.
    """
    known = {name: np.asarray(values, np.float64) for name, values in groups.items() if len(values)}
    if not known:
        return {"title": title, "same": "", "lines": []}
    pooled = np.concatenate(list(known.values()))
    low, high = np.percentile(pooled, [_TAIL, 100 - _TAIL])
    if pooled.min() == pooled.max():
        return {"title": title, "same": form(float(low)), "lines": []}
    if low == high:
        low, high = float(pooled.min()), float(pooled.max())
    bins = int(min(_BINS, high - low + 1)) if whole else _BINS
    edges = np.linspace(low, high, bins + 1)
    shares = {name: np.histogram(np.clip(v, low, high), edges)[0] / len(v) for name, v in known.items()}
    top = max(float(one.max()) for one in shares.values())
    lines = [
        {"name": name, "points": _steps(one / top), "median": form(float(np.median(known[name])))}
        for name, one in shares.items()
    ]
    return {"title": title, "same": "", "low": form(float(low)), "high": form(float(high)), "lines": lines}


def _steps(shares: Values) -> str:
    """Return the corners of a histogram's outline, from the bottom left to the bottom right."""
    step = WIDTH / len(shares)
    corners = [(0.0, float(HEIGHT))]
    for number, share in enumerate(shares.tolist()):
        y = HEIGHT * (1 - share)
        corners += [(number * step, y), ((number + 1) * step, y)]
    corners.append((float(WIDTH), float(HEIGHT)))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def columns(count: Ints, names: Sequence[str]) -> list[Fields]:
    """Return a column a class, most images first: `x`, `width`, `height` in per cent, and its `title`."""
    order = np.argsort(-count, kind="stable")
    if len(order) > MOST_COLUMNS:
        order = order[np.linspace(0, len(order) - 1, MOST_COLUMNS).round().astype(int)]
    top, step = max(int(count.max(initial=0)), 1), 100 / max(len(order), 1)
    return [
        {
            "x": f"{number * step:.3f}",
            "width": f"{step * 0.86:.3f}",
            "height": f"{100 * int(count[place]) / top:.2f}",
            "title": f"{names[place]}: {int(count[place]):,}",
        }
        for number, place in enumerate(order.tolist())
    ]


def matrix_rows(
    matrix: Ints, row_names: Sequence[str], column_names: Sequence[str], *, confusion: bool
) -> list[Fields]:
    """Return the lines of a table of counts, whose colours are shares of each line's sum.

    Args:
        matrix: (R, C).
        row_names: R.
        column_names: C.
        confusion: Whether lines are labels and columns predictions, so that the diagonal is right.
    """
    shares, joint = row_shares(matrix), "as" if confusion else "with"

    def cell(row: int, column: int) -> Fields:
        count, share = int(matrix[row, column]), float(shares[row, column])
        return {
            "kind": "miss" if confusion and row != column else "hit",
            "share": f"{share:.3f}",
            "count": f"{count:,}" if count else "",
            "title": f"{row_names[row]} {joint} {column_names[column]}: {count:,} images, {share:.1%}",
        }

    return [
        {"name": name, "cells": [cell(row, column) for column in range(len(column_names))]}
        for row, name in enumerate(row_names)
    ]


def heat_picture(matrix: Ints, *, confusion: bool) -> str:
    """Return counts as a picture, a pixel a cell, see-through where nothing is: the root of each line's shares."""
    shares = np.sqrt(row_shares(matrix))
    right = np.eye(*matrix.shape) > 0 if confusion else np.ones(matrix.shape, bool)
    blue_green_red = np.where(right[..., None], (235, 99, 37), (46, 82, 229))
    return data_uri(np.dstack([blue_green_red, 255 * shares]).round().astype(np.uint8), ".png")
