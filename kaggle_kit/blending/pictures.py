"""Pictures of a page on a blend: the matrix of pairs of runs, and figures as they stand in HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kaggle_kit.train.outcome import Fields
from kaggle_kit.train.plots import shorten, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

MOST_NUMBERED = 12  # runs of a matrix with numbers in it
_INK = "#0a0b0c"  # as `train.plots.to_svg` expects it
_OPACITY = (0.06, 0.70)  # of the lowest and the highest value; text stays readable on it, on a light page or a dark one


def matrix_picture(names: Sequence[str], title: str, values: Floats, color: str, form: str, *, prefix: str) -> Fields:
    """Return a picture of (R, R) values, in words too; nothing where no value is known.

    Args:
        names: R run names.
        title: What the values are.
        values: (R, R); those not known are NaN.
        color: Of the highest value.
        form: How a number is written.
        prefix: Of the picture's ids.
    """
    first, second = np.triu_indices(len(names), 1)
    known = ~np.isnan(values[first, second])
    if not known.any():
        return {}
    first, second = first[known], second[known]
    pairs = values[first, second]
    low, high = int(pairs.argmin()), int(pairs.argmax())
    text = (
        f"From {form.format(pairs[low])} ({names[first[low]]} and {names[second[low]]}) to "
        f"{form.format(pairs[high])} ({names[first[high]]} and {names[second[high]]}); stronger colors are higher."
    )
    figure = draw_matrix(values, names, color=color, form=form)
    return {"title": title, "text": text, **as_picture(figure, f"{title}. {text}", prefix=prefix)}


def draw_matrix(values: Floats, names: Sequence[str], *, color: str, form: str) -> Figure:
    """Draw (R, R) symmetric values of pairs of runs; numbers in it up to 12 runs.

    Args:
        values: (R, R); the diagonal is left out, as is NaN.
        names: R run names; numbers stand for those that are not ASCII, which the font may not have.
        color: Of the highest value; lower ones are paler.
        form: How a number is written.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba_array
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = len(names)
    shown = np.where(np.eye(size, dtype=bool), np.nan, values)
    low, high = np.nanmin(shown), np.nanmax(shown)
    side = 0.9 + (0.46 if size <= MOST_NUMBERED else 0.18) * size
    layout = ConstrainedLayoutEngine(w_pad=0.1)  # browsers' letters are wider than those measured here
    figure = Figure(figsize=(side + 1.1, side), layout=layout)
    axes = figure.subplots()
    rows, columns = np.nonzero(~np.isnan(shown))
    drawn = shown[rows, columns]
    shares = (drawn - low) / (high - low) if high > low else np.full(len(drawn), 0.5)
    corners = 0.48 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    squares = np.stack([columns, rows], axis=1)[:, None] + corners  # (cells, 4, 2)
    opacity = _OPACITY[0] + shares * (_OPACITY[1] - _OPACITY[0])
    axes.add_collection(PolyCollection(list(squares), facecolors=to_rgba_array([color] * len(squares), opacity)))
    if size <= MOST_NUMBERED:
        for row, column, value in zip(rows.tolist(), columns.tolist(), drawn, strict=True):
            axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=_INK)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set_xticks(range(size), map(str, range(1, 1 + size)), fontsize=8)
    axes.set_yticks(range(size), [_label(*one) for one in enumerate(names, start=1)], fontsize=8, parse_math=False)
    axes.tick_params(length=0, colors=_INK, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def _label(number: int, name: str) -> str:
    return f"{shorten(name)} {number}" if name.isascii() and name.isprintable() else str(number)


def as_picture(figure: Figure, text: str, *, prefix: str) -> Fields:
    """Return a figure as an SVG element, its width in pixels, and what it shows in words.

    Args:
        figure: What to show.
        text: For those who cannot see it.
        prefix: Of the SVG's ids, no other picture's on the page.
    """
    from markupsafe import Markup

    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", to_svg(figure))
    # matplotlib escapes all text in it
    return {"svg": Markup(svg), "width": int(figure.get_figwidth() * 96), "alt": text}  # noqa: S704
