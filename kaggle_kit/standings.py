"""Standings: runs of the ledger side by side, as a table and as a picture of leaderboard over cross-validation (CV)."""

from __future__ import annotations

import json
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kaggle_kit.entries import Board, Entry, by_task, run_labels, settings_of
from kaggle_kit.errors import DataError
from kaggle_kit.files import replacing
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.trust import Trust, different_folds, trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED = 15  # runs named in a plot
_MOST_DRAWN = 40  # runs a task in a plot of CV alone
NO_SCORE = "no leaderboard score noted yet: kaggle-kit runs note RUN --public SCORE"
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


def format_ledger(entries: Sequence[Entry], *, gone: Collection[str] = ()) -> list[str]:
    """Return a table for each task: one row a run, best CV first, with the settings in which the runs differ.

    Args:
        entries: Of any tasks.
        gone: Ids of the runs whose folder is gone, which are marked.
    """
    if not entries:
        return [
            "there is no run yet; train one: "
            "kaggle-kit train task=TASK data=DATA folds=folds.parquet out=runs/a, then list it: kaggle-kit runs runs"
        ]
    lines: list[str] = []
    for group in by_task(entries):
        lines += ["", *_format_group(group, gone)]
    return [*lines[1:], *_score_hint(entries)]


def _score_hint(entries: Sequence[Entry]) -> list[str]:
    """Return how a CV and a board's score compare, where a score is noted."""
    metrics = [entry.metric for entry in scored_of(entries)]
    if not metrics:
        return []
    decides = ", by its highest probability" if any(metric in CLASS_METRICS for metric in metrics) else ""
    return [f"CV is of each run alone{decides}; note the score a run got alone"]


def scored_of(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that have a leaderboard score."""
    return [entry for entry in entries if entry.public is not None or entry.private is not None]


def _format_group(group: Sequence[Entry], gone: Collection[str]) -> list[str]:
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
        return lines + _aligned([*_columns(group, gone), ("<settings", details)])
    if shared := common + [f"folds {group[0].folds}"] * (same_folds and bool(group[0].folds)):
        lines += [f"all runs: {'; '.join(shared)}"]
    own = [[f"{key}={values[key]}" for key in changed if key in values] for values in settings]
    details = [_details(entry, pairs, folds=not same_folds) for entry, pairs in zip(group, own, strict=True)]
    return lines + _aligned([*_columns(group, gone), ("<changed settings", details)])


def _details(entry: Entry, settings: Sequence[str], *, folds: bool) -> str:
    """Return a run's settings, its folds where asked for, and its note."""
    parts = [*settings, *[f"folds {entry.folds or 'not known'}"] * folds]
    return "; ".join([*parts, *[f'"{" ".join(entry.note.split())}"'] * bool(entry.note)])


def _columns(group: Sequence[Entry], gone: Collection[str]) -> list[tuple[str, list[str]]]:
    """Return (title, cells) of a table; titles that start with < are of text, set at the left."""
    labels = run_labels(group)
    columns = [("<run", [labels[e.run_id] + " (folder gone)" * (e.run_id in gone) for e in group])]
    if len({entry.author for entry in group if entry.author}) > 1:
        columns.append(("<author", [entry.author or "-" for entry in group]))
    columns.append(("CV", [_number(entry.total) for entry in group]))
    intervals = ["{:.4f} to {:.4f}".format(*entry.interval) if entry.interval else "" for entry in group]
    columns.append(("95 % interval", intervals))
    parts = ("seen", "unseen") if any(entry.unseen is not None for entry in group) else ()
    columns += [(part, [_number(getattr(entry, part)) for entry in group]) for part in parts]
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
        DataError: When there is no run with a CV.
    """
    figure = make_figure(entries)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # names the font has no letters for
        figure.savefig(temporary, format="png", dpi=110)


def make_figure(entries: Sequence[Entry]) -> Figure:
    """Draw the boards' scores over CV, a panel for each task; CV alone where no run has a score yet.

    Raises:
        DataError: When there is no run with a CV.
    """
    from matplotlib.figure import Figure

    finite = [entry for entry in entries if math.isfinite(entry.total)]
    if not finite:
        raise DataError(f"none of {len(entries)} run(s) has a CV to draw; train one: kaggle-kit train --help")
    scored = scored_of(finite)
    groups = by_task(scored or finite)
    if not scored:
        return _make_cv_figure(groups)
    figure = Figure(figsize=(11, 7.5 * len(groups)), layout="constrained")
    for axes, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        _draw_group(axes, group)
    return figure


def _make_cv_figure(groups: Sequence[Sequence[Entry]]) -> Figure:
    """Draw CV with its interval, a marker a run, best on top, a panel for each task."""
    from matplotlib.figure import Figure

    rows = [min(len(group), _MOST_DRAWN) for group in groups]
    heights = [1 + 0.3 * num for num in rows]
    figure = Figure(figsize=(11, 1 + sum(heights)), layout="constrained")
    figure.suptitle(NO_SCORE, fontsize=11, parse_math=False)
    panels = figure.subplots(len(groups), squeeze=False, height_ratios=heights)[:, 0]
    for axes, group, num in zip(panels, groups, rows, strict=True):
        shown, labels = group[:num], run_labels(group)
        cv = [entry.total for entry in shown]
        ends = np.abs(np.array([entry.interval or (entry.total, entry.total) for entry in shown]).T - cv)
        axes.errorbar(cv, range(num), xerr=ends, fmt="o", color="black", markersize=6, elinewidth=1)
        axes.set_yticks(range(num), [labels[entry.run_id] for entry in shown], fontsize=9, parse_math=False)
        axes.set_ylim(num - 0.5, -0.5)
        hidden = f"; the {num} best of {len(group)}" if num < len(group) else ""
        axes.set_title(f"{group[0].task}{hidden}", fontsize=10, parse_math=False)
        axes.set_xlabel(_cv_label(group[0]))
        axes.grid(axis="x", alpha=0.25)
    return figure


def _cv_label(entry: Entry) -> str:
    unit = ", lower is better" if entry.metric in LOWER_IS_BETTER else ""
    return f"CV: {entry.metric} out of fold, with 95 % interval{unit}"


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
    axes.set_xlabel(_cv_label(group[0]))
    axes.set_ylabel("leaderboard score")
    folds = ["Their folds differ, so their CV compares only roughly."] * bool(different_folds(group))
    title = [*textwrap.wrap(f"{group[0].task}, {best.text}", 120), *folds]
    axes.set_title("\n".join(title), fontsize=10, parse_math=False)
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
        label = f"{answer.which} board = CV {answer.gap:+.4f}, the mean gap"
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
