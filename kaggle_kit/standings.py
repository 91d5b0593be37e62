"""Standings: runs of the ledger side by side, and whether their order by cross-validation (CV) is the leaderboard's."""

from __future__ import annotations

import json
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.ledger import Board, Entry, settings_of
from kaggle_kit.metrics import LOWER_IS_BETTER, gain
from kaggle_kit.train.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

FEWEST = 3  # scored runs of which an order can be said to agree
_FEW = 6  # below that, one run in the wrong place spoils the order
_SURE = 0.05  # how often unrelated scores may agree as well where CV is called trusted
_AGREES, _AGREES_IN_PART = 0.8, 0.5  # Spearman
_MOST_NAMED = 15  # runs named in a plot
_LINES = 28  # of text that fit into the height of a panel
_WIDEST = 2  # how far heights are extended, so that the line of equal scores is in the picture
_COLORS: dict[Board, str] = {"public": "#d9822b", "private": "#2b6cb0"}
_MARKERS: dict[Board, str] = {"public": "o", "private": "D"}


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whether CV orders runs as a board does.

    Attributes:
        which: The board.
        num_runs: Runs that it scored.
        text: The answer, in sentences.
        spearman: Rank correlation of CV and board; None for fewer than 3 runs, or where all score the same.
        kendall: Kendall's tau-b of both; None likewise.
        chance: How often unrelated scores reach that tau; None likewise.
        gap: Mean of board minus CV; None where no run is scored.
        spread: Standard deviation of board minus CV; None for fewer than 2 runs.
        out_of_order: Runs without which both orders agree.
    """

    which: Board
    num_runs: int
    text: str
    spearman: float | None = None
    kendall: float | None = None
    chance: float | None = None
    gap: float | None = None
    spread: float | None = None
    out_of_order: tuple[str, ...] = ()


def by_task(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the entries of each task and metric, best CV first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.task, entry.metric), []).append(entry)

    def place(entry: Entry) -> tuple[bool, float, str]:
        return math.isnan(entry.total), -gain(entry.metric, entry.total, 0), entry.name

    return [sorted(groups[key], key=place) for key in sorted(groups)]


def changed_settings(entries: Sequence[Entry]) -> list[str]:
    """Return the dotted keys of the settings in which these runs differ."""
    keys = sorted({key for entry in entries for key in entry.settings})
    return [key for key in keys if len({_setting(entry, key) for entry in entries}) > 1]


def run_labels(entries: Sequence[Entry]) -> dict[str, str]:
    """Return {run_id: name}, with the author or the start of the id where runs are called the same."""
    names = Counter(entry.name for entry in entries)
    signed = Counter((entry.name, entry.author) for entry in entries)

    def label(entry: Entry) -> str:
        if names[entry.name] == 1:
            return entry.name
        own = entry.author if signed[entry.name, entry.author] == 1 and entry.author else entry.run_id[:4]
        return f"{entry.name} ({own})"

    return {entry.run_id: label(entry) for entry in entries}


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
    common = [_pair(group[0], key) for key in sorted(group[0].settings) if key not in changed]
    same_folds = len({entry.folds for entry in group}) == 1
    common += [f"folds {group[0].folds}"] * (same_folds and bool(group[0].folds))
    lines = [f"{task}: {len(group)} run(s) by {metric}, {better} is better, best CV first"]
    if common and len(group) > 1:
        lines += [f"all runs: {'; '.join(common)}"]
    alone = len(group) == 1
    details = [
        "; ".join(
            [
                *([_pair(entry, key) for key in (entry.settings if alone else changed)]),
                *([f"folds {entry.folds or 'not known'}"] if alone or not same_folds else []),
                *([f'"{" ".join(entry.note.split())}"'] if entry.note else []),
            ]
        )
        for entry in group
    ]
    return lines + _aligned([*_columns(group), ("<settings" if alone else "<changed settings", details)])


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


def _setting(entry: Entry, key: str) -> str:
    """Return a setting's value, the default's where it was not changed, as it would be written in an override."""
    value = entry.settings[key] if key in entry.settings else settings_of(TrainConfig()).get(key)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _pair(entry: Entry, key: str) -> str:
    return f"{key}={_setting(entry, key)}"


def trust(entries: Sequence[Entry], which: Board = "private") -> Trust:
    """Say whether a higher CV goes with a better score on a board.

    Args:
        entries: Runs of one task; those that the board did not score are left out.
        which: The board.

    Raises:
        SettingError: When the entries are of several tasks.
    """
    groups = by_task(entries)
    if len(groups) > 1:
        raise SettingError(f"the runs are of {len(groups)} tasks; give those of one, as `by_task` divides them")
    scored = [e for group in groups for e in group if getattr(e, which) is not None and math.isfinite(e.total)]
    cv, board = np.array([e.total for e in scored]), np.array([getattr(e, which) for e in scored], np.float64)
    gap = float((board - cv).mean()) if len(scored) else None
    spread = float((board - cv).std(ddof=1)) if len(scored) > 1 else None
    if len(scored) < FEWEST:
        text = (
            f"{len(scored)} run(s) have a {which} score; note {FEWEST - len(scored)} more to see whether CV can be "
            f"trusted: kaggle-kit runs note RUN --{which} SCORE"
        )
        return Trust(which=which, num_runs=len(scored), text=text, gap=gap, spread=spread)
    if np.ptp(cv) == 0 or np.ptp(board) == 0:
        same = "CV" if np.ptp(cv) == 0 else f"{which} score"
        text = f"All {len(scored)} runs have the same {same}: there is no order to compare."
        return Trust(which=which, num_runs=len(scored), text=text, gap=gap, spread=spread)
    return _compare(scored, cv, board, which)


def _compare(scored: Sequence[Entry], cv: Floats, board: Floats, which: Board) -> Trust:
    """Compare the (N,) scores of N runs by CV and on a board."""
    from scipy import stats

    spearman = float(stats.spearmanr(cv, board).statistic)
    kendall = stats.kendalltau(cv, board, alternative="greater")
    chance, gap, spread = float(kendall.pvalue), float((board - cv).mean()), float((board - cv).std(ddof=1))
    labels = run_labels(scored)
    sign = -1 if scored[0].metric in LOWER_IS_BETTER else 1
    places = [1 + (sign * values > sign * values[:, None]).sum(axis=1) for values in (cv, board)]
    rows = _out_of_order(cv, board, np.abs(places[0] - places[1]))
    moved = [f"{labels[scored[r].run_id]} (place {places[0][r]} by CV, {places[1][r]} on the board)" for r in rows[:3]]
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    side, tau = "below" if gap < 0 else "above", float(kendall.statistic)
    sentences = [
        f"{_verdict(spearman, chance, len(scored))}: Spearman {spearman:.2f}, Kendall {tau:.2f} over "
        f"{len(scored)} runs; unrelated scores agree as well in {_percent(chance)} of cases.",
        f"On average the {which} score is {abs(gap):.4f} {side} CV, give or take {spread:.4f}.",
        f"Out of order: {', '.join(moved)}{more}." if rows else "No run is out of order.",
    ]
    if len({entry.folds for entry in scored}) > 1:
        sentences.append("Their folds differ, so their CV compares only roughly.")
    return Trust(
        which=which,
        num_runs=len(scored),
        text=" ".join(sentences),
        spearman=spearman,
        kendall=tau,
        chance=chance,
        gap=gap,
        spread=spread,
        out_of_order=tuple(labels[scored[row].run_id] for row in rows),
    )


def _verdict(spearman: float, chance: float, num_runs: int) -> str:
    if spearman <= _AGREES_IN_PART:
        few = "CV does not order these runs as the board does, but they are too few to say that it never does"
        return few if num_runs < _FEW else "CV cannot be trusted to order runs"
    if chance > _SURE:
        return "CV seems to order runs as the board does, but too few runs are scored to trust it"
    return "CV can be trusted" if spearman >= _AGREES else "CV can be trusted for large differences only"


def _percent(share: float) -> str:
    return "less than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _out_of_order(cv: Floats, board: Floats, moved: npt.NDArray[np.int64]) -> list[int]:
    """Return the runs without which both orders agree: again and again the one in most swapped pairs.

    Args:
        cv: (N,) scores.
        board: (N,) scores.
        moved: (N,) by how many places a run moves, which decides between equals.
    """
    swapped = np.sign(np.subtract.outer(cv, cv)) * np.sign(np.subtract.outer(board, board)) < 0
    rows = []
    while swapped.any():
        rows.append(int(np.lexsort([moved, swapped.sum(axis=0)])[-1]))
        swapped[rows[-1]] = swapped[:, rows[-1]] = False
    return rows


def plot_ledger(entries: Sequence[Entry], path: Path) -> None:
    """Draw the boards' scores over CV, a panel for each task, as a PNG file.

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
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # names the font has no letters for
        figure.savefig(temporary, format="png", dpi=110)


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
