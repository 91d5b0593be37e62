"""Standings: runs of the ledger side by side, as a table and as a picture of leaderboard over cross-validation (CV)."""

from __future__ import annotations

import json
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kaggle_kit.entries import Board, Entry, by_task, run_labels, settings_of
from kaggle_kit.errors import DataError
from kaggle_kit.files import replacing
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.trust import Trust, trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED = 15  # runs named in a plot
_LINES = 28  # of text that fit into the height of a panel
_WIDEST = 2  # how far heights are extended, so that the line of equal scores is in the picture
_COLORS: dict[Board, str] = {"public": "#d9822b", "private": "#2b6cb0"}
_MARKERS: dict[Board, str] = {"public": "o", "private": "D"}


def changed_settings(entries: Sequence[Entry]) -> list[str]:
    """Return the dotted keys of the settings in which these runs differ."""
    settings = [_defaults() | _written(entry.settings) for entry in entries]
    keys = sorted({key for values in settings for key in values})
    return [key for key in keys if len({values.get(key) for values in settings}) > 1]


@cache
def _defaults() -> dict[str, str]:
    return _written(settings_of(TrainConfig()))


def _written(settings: Mapping[str, object]) -> dict[str, str]:
    """Return {key: value} as it would be written in an override."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in settings.items()
    }


def format_ledger(entries: Sequence[Entry]) -> list[str]:
    """Return a table for each task: one row a run, best CV first, with the settings in which the runs differ."""
    if not entries:
        return [
            "there is no run yet; train one: "
            "kaggle-kit train task=TASK data=DATA folds=folds.parquet out=runs/a, then list it: kaggle-kit runs runs"
        ]
    lines: list[str] = []
    for group in by_task(entries):
        lines += ["", *_format_group(group)]
    return lines[1:]


def _format_group(group: Sequence[Entry]) -> list[str]:
    """Return the table of one task's runs, best first."""
    task, metric = group[0].task, group[0].metric
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    changed = changed_settings(group)
    settings = [_written(entry.settings) for entry in group]
    common = [
        f"{key}={value}"
        for key, value in sorted(settings[0].items())
        if key not in changed and value != _defaults().get(key) and all(key in values for values in settings)
    ]
    same_folds = len({entry.folds for entry in group}) == 1
    lines = [f"{task}: {len(group)} run(s) by {metric}, {better} is better, best CV first"]
    if len(group) == 1:
        details = [_details(group[0], common, folds=True)]
        return lines + _aligned([*_columns(group), ("<settings", details)])
    if shared := common + [f"folds {group[0].folds}"] * (same_folds and bool(group[0].folds)):
        lines += [f"all runs: {'; '.join(shared)}"]
    own = [[f"{key}={values[key]}" for key in changed if key in values] for values in settings]
    details = [_details(entry, pairs, folds=not same_folds) for entry, pairs in zip(group, own, strict=True)]
    return lines + _aligned([*_columns(group), ("<changed settings", details)])


def _details(entry: Entry, settings: Sequence[str], *, folds: bool) -> str:
    """Return a run's settings, its folds where asked for, and its note."""
    parts = [*settings, *[f"folds {entry.folds or 'not known'}"] * folds]
    return "; ".join([*parts, *[f'"{" ".join(entry.note.split())}"'] * bool(entry.note)])


def _columns(group: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """Return (title, cells) of a table; titles that start with < are of text, set at the left."""
    labels = run_labels(group)
    columns = [("<run", [labels[entry.run_id] for entry in group])]
    if len({entry.author for entry in group if entry.author}) > 1:
        columns.append(("<author", [entry.author or "-" for entry in group]))
    columns.append(("CV", [_number(entry.total) for entry in group]))
    intervals = ["{:.4f} to {:.4f}".format(*entry.interval) if entry.interval else "" for entry in group]
    columns.append(("95 % interval", intervals))
    columns += [(part, [_number(getattr(entry, part)) for entry in group]) for part in ("seen", "unseen")]
    heads = list(dict.fromkeys(head for entry in group for head in entry.heads))
    if len(heads) > 1:
        shown = _short(heads)
        columns += [(shown[head], [_number(entry.heads.get(head)) for entry in group]) for head in heads]
    return columns + [(board, [_number(getattr(entry, board)) for entry in group]) for board in ("public", "private")]


def _aligned(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return the rows of a table, columns without a value left out."""
    padded = []
    for title, cells in columns:
        if any(cells):
            texts = [title.removeprefix("<"), *cells]
            width = max(map(len, texts))
            padded.append([text.ljust(width) if title.startswith("<") else text.rjust(width) for text in texts])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _short(heads: Sequence[str]) -> dict[str, str]:
    """Return {head: its first word}, or the whole name where two start alike."""
    words = Counter(head.split("_")[0] for head in heads)
    return {head: head.split("_")[0] if words[head.split("_")[0]] == 1 else head for head in heads}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def plot_ledger(entries: Sequence[Entry], path: Path) -> None:
    """Write `make_figure`'s picture as a PNG file.

    Raises:
        DataError: When no run has a leaderboard score.
    """
    figure = make_figure(entries)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # names the font has no letters for
        figure.savefig(temporary, format="png", dpi=110)


def make_figure(entries: Sequence[Entry]) -> Figure:
    """Draw the boards' scores over CV, a panel for each task.

    Raises:
        DataError: When no run has a leaderboard score.
    """
    from matplotlib.figure import Figure

    scored = [e for e in entries if (e.public is not None or e.private is not None) and math.isfinite(e.total)]
    if not scored:
        raise DataError("no run has a leaderboard score to draw; note some: kaggle-kit runs note RUN --public 0.9812")
    groups = by_task(scored)
    figure = Figure(figsize=(11, 7.5 * len(groups)), layout="constrained")
    for axes, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        _draw_group(axes, group)
    return figure


def _draw_group(axes: Axes, group: Sequence[Entry]) -> None:
    """Draw one task's scored runs, best CV first."""
    for board in _COLORS:
        runs = [entry for entry in group if getattr(entry, board) is not None]
        if not runs:
            continue
        cv, scores = [run.total for run in runs], [getattr(run, board) for run in runs]
        ends = np.abs(np.array([run.interval or (run.total, run.total) for run in runs]).T - cv)
        axes.errorbar(
            cv, scores, xerr=ends, fmt=_MARKERS[board], color=_COLORS[board], label=f"{board} score",
            markersize=7, markeredgecolor="white", elinewidth=0.8, alpha=0.85,
        )  # fmt: skip
    boards: tuple[Board, ...] = ("private", "public")
    answers = [trust(group, board) for board in boards]
    best = max(answers, key=lambda answer: answer.num_runs)
    _draw_lines(axes, group, best)
    _name_runs(axes, group[:_MOST_NAMED])
    unit = ", lower is better" if group[0].metric in LOWER_IS_BETTER else ""
    axes.set_xlabel(f"CV: {group[0].metric} out of fold, with 95 % interval{unit}")
    axes.set_ylabel("leaderboard score")
    axes.set_title("\n".join(textwrap.wrap(f"{group[0].task}: {best.text}", 120)), fontsize=10, parse_math=False)
    axes.grid(alpha=0.25)
    rest = f"named: the {_MOST_NAMED} best by CV of {len(group)}" if len(group) > _MOST_NAMED else None
    axes.legend(loc="best", fontsize=9, title=rest, title_fontsize=9)


def _draw_lines(axes: Axes, group: Sequence[Entry], answer: Trust) -> None:
    """Draw where a board equals CV, and where it would be with the mean gap for all runs."""
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    whole = min(low, bottom), max(high, top)
    if whole[1] - whole[0] <= _WIDEST * (top - bottom):
        bottom, top = whole
    outside = "" if max(low, bottom) < min(high, top) else " (outside this picture)"
    axes.axline((low, low), slope=1, color="gray", linewidth=1, label=f"score = CV{outside}")
    if answer.gap is not None and answer.num_runs > 1:
        label = f"{answer.which} = CV {answer.gap:+.4f}, the mean gap"
        axes.axline((low, low + answer.gap), slope=1, color=_COLORS[answer.which], linestyle=":", label=label)
    axes.set(xlim=(low, high), ylim=(bottom, top))


def _name_runs(axes: Axes, group: Sequence[Entry]) -> None:
    """Write the runs' names at the right, in the order of their scores, each tied to its marker."""
    labels = run_labels(group)
    scores = {e.run_id: (e.private if e.private is not None else e.public) or 0.0 for e in group}
    points = sorted(group, key=lambda entry: (scores[entry.run_id], -entry.total))
    bottom, top = axes.get_ylim()
    heights = _apart([scores[entry.run_id] for entry in points], (top - bottom) / _LINES, bottom, top)
    for entry, height in zip(points, heights, strict=True):
        axes.annotate(
            labels[entry.run_id],
            xy=(entry.total, scores[entry.run_id]),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            verticalalignment="center",
            fontsize=9,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.5, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def _apart(wanted: Sequence[float], distance: float, bottom: float, top: float) -> list[float]:
    """Move ascending heights as little as needed to lie `distance` apart and inside: isotonic regression."""
    pools: list[tuple[float, int]] = []  # mean and number of neighbours that share a shift
    for place, height in enumerate(wanted):
        mean, count = height - place * distance, 1
        while pools and pools[-1][0] > mean:
            earlier, several = pools.pop()
            mean, count = (mean * count + earlier * several) / (count + several), count + several
        pools.append((mean, count))
    shifts = [mean for mean, count in pools for _ in range(count)]
    highest = top - (len(wanted) - 1) * distance
    return [min(max(shift, bottom), highest) + place * distance for place, shift in enumerate(shifts)]
