"""Pictures of a finished training: its curves, and what it takes for what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.files import replacing
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.task import Metric
from kaggle_kit.train.config import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Histories = Mapping[str, Mapping[str, Sequence[float]]]  # {a fold's title: {column: a number an epoch}}

MOST_NAMED = 25  # classes of a confusion matrix with numbers in it and names beside it
AVERAGED: tuple[Weights, ...] = ("ema", "swa")
_COLORS = ("#3b82f6", "#f08a24", "#10a37f", "#e5484d", "#9b5de5", "#0ea5b7", "#d6409f", "#7a9a01")
_INK = "#0a0b0c"  # in an SVG the text color of the page takes its place
_DPI = 130
_LONGEST_NAME = 18


def draw_curves(histories: Histories, *, metric: Metric, kept: Mapping[str, tuple[int, Weights]]) -> Figure | None:
    """Draw loss, learning rate and score over the epochs, a line a fold in each panel.

    Dashed and dotted lines are the scores of `ema` and `swa` weights.

    Args:
        histories: {a fold's title: columns of its history}; panels without any number are left out.
        metric: Of the scores.
        kept: {a fold's title: the epoch whose weights were kept, and which}, marked by a ring where a line shows it.

    Returns:
        None where there is nothing to draw.
    """
    from matplotlib.figure import Figure

    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    titles = {"loss": "Loss", "rate": "Learning rate", "score": f"Score: {metric} ({direction} is better)"}
    shown = [name for name in titles if any(np.isfinite(columns.get(name, [])).any() for columns in histories.values())]
    if not shown:
        return None
    figure = Figure(figsize=(3.9 * len(shown), 3.1), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for color, (title, columns) in zip(_colors(len(histories)), histories.items(), strict=True):
            _draw_lines(axes, name, columns, color=color, title=title, kept=kept.get(title, (0, "raw")))
        axes.set_title(titles[name], fontsize=10, loc="left", color=_INK)
        _plain_axes(axes)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower left", ncols=10, fontsize=9, frameon=False, labelcolor=_INK
    )
    return figure


def _draw_lines(
    axes: Axes,
    name: str,
    columns: Mapping[str, Sequence[float]],
    *,
    color: str,
    title: str,
    kept: tuple[int, Weights],
) -> None:
    values = np.array(columns.get(name, []), float)
    if not np.isfinite(values).any():
        return
    epochs = np.array(columns.get("epoch", []), float)
    if len(epochs) != len(values):
        epochs = np.arange(1.0, 1 + len(values))
    marker = "o" if len(values) <= 30 else ""
    axes.plot(epochs, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=title)
    if name != "score":
        return
    for average, style in zip(AVERAGED, ("--", ":"), strict=True):
        if np.isfinite(columns.get(average, [])).any():
            axes.plot(
                epochs, columns[average], color=color, linewidth=1.3, linestyle=style, label=f"{title}, {average}"
            )
    epoch, weights = kept
    ringed = np.array(columns.get("score" if weights == "raw" else weights, []), float)
    place = np.flatnonzero(epochs == epoch)
    if len(ringed) and len(place):
        axes.plot(epochs[place], ringed[place], "o", markersize=9, markerfacecolor="none", markeredgecolor=color)


def _plain_axes(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel("epoch", fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    axes.grid(color=_INK, alpha=0.12, linewidth=0.7)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=_INK, alpha=0.35)


def _colors(count: int) -> Iterator[str]:
    return (_COLORS[number % len(_COLORS)] for number in range(count))


def draw_confusion(matrix: Ints, class_names: Sequence[str], *, title: str) -> Figure:
    """Draw a confusion matrix, each row as shares of its true class; numbers in it up to 25 classes.

    Args:
        matrix: (C, C) counts: rows are true classes, columns predicted ones.
        class_names: C names; where one is not ASCII, which the font may not have, class numbers stand for all.
        title: Such as the head's name and score.
    """
    from matplotlib.figure import Figure

    num_classes = len(matrix)
    shares = row_shares(matrix)
    side = min(11.0, max(4.0, 1.6 + 0.42 * min(num_classes, MOST_NAMED)))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the true class")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if num_classes <= MOST_NAMED:
        names = [shorten(name) for name in class_names]
        if not all(map(str.isascii, names)):
            names = [str(number) for number in range(num_classes)]
        rotation = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(num_classes), names, rotation=rotation, fontsize=8, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=8, parse_math=False)
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.6 else "black"
            text = f"{count:,}" if count else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    return figure


def shorten(name: str) -> str:
    """Return a class name of at most 18 characters."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 2] + ".."


def row_shares(matrix: Ints) -> Floats:
    """Return (C, C) shares of each row's sum; 0 in rows without any."""
    sums = matrix.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, sums, out=np.zeros(matrix.shape), where=sums > 0))


def confusion_file(head: str) -> str:
    """Return the file name of a head's confusion matrix."""
    return f"confusion_{re.sub(r'[^A-Za-z0-9._-]', '_', head)}.png"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG, atomically, and return its path."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")
    return path


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element without background, whose text and axes have the page's text color."""
    import io

    import matplotlib as mpl

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "kaggle_kit"}
    text = io.StringIO()
    with mpl.rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
