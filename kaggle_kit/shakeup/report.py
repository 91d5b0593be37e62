"""A shake-up as a table, a sentence and a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kaggle_kit.files import replacing
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.scores import middle_part
from kaggle_kit.shakeup import Shakeup, percent, score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_SHOWN = 20  # runs in a plot
_COLORS = {"public": "#d9822b", "private": "#2b6cb0"}


def format_shakeup(shakeup: Shakeup) -> list[str]:
    """Return a table, the best run on private first; then what it rests on, the sentence and the notes."""
    width = max(3, *map(len, shakeup.names)) + 2
    columns = f"{'CV':>8}  {'public (95 %)':>26}  {'private (95 %)':>26}  {'leads public':>12}  {'leads private':>13}"
    lines = [f"{'run':<{width}}{columns}"]
    for run in shakeup.order.tolist():
        cells = []
        for scores in (shakeup.public[:, [run]], shakeup.private[:, [run]]):
            low, high = map(score_text, middle_part(scores)[0])
            cells.append(f"{f'{score_text(scores.mean())} ({low} to {high})':>26}")
        shares = f"{percent(shakeup.leads_public[run]):>12}  {percent(shakeup.leads_private[run]):>13}"
        lines.append(f"{shakeup.names[run]:<{width}}{shakeup.cv[run]:>8.4f}  {'  '.join(cells)}  {shares}")
    moved = f"ranks move by {shakeup.rank_change:.2f} on average, rank correlation {shakeup.spearman:.2f}"
    drawn = f"{len(shakeup.public):,} draws; public: {shakeup.public_part}; private: {shakeup.private_part}"
    lines += ["", drawn if shakeup.rival is None else f"{drawn}; {moved}", shakeup.sentence]
    return [*lines, *(f"note: {note}" for note in shakeup.notes)]


def plot_shakeup(shakeup: Shakeup, path: Path) -> None:
    """Write a PNG: left what each run scores on both parts, right where a public rank ends; the sentence above.

    Args:
        shakeup: Of any number of runs; of more than 20 the best are shown.
        path: Written atomically.
    """
    from matplotlib.figure import Figure

    num_runs = len(shakeup.names)
    figure = Figure(figsize=(13, 3.2 + 0.34 * min(num_runs, _MOST_SHOWN)), layout="constrained")
    figure.suptitle(
        textwrap.fill(shakeup.sentence.replace(" %", "\N{NO-BREAK SPACE}%"), 125), fontsize=12, parse_math=False
    )
    if num_runs == 1:
        _draw_scores(figure.subplots(), shakeup)
    else:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_scores(left, shakeup)
        _draw_moves(right, shakeup)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_scores(axes: Axes, shakeup: Shakeup) -> None:
    runs = shakeup.order[:_MOST_SHOWN]
    rows = np.arange(len(runs))
    for part, scores, lift in (("public", shakeup.public, -0.15), ("private", shakeup.private, 0.15)):
        low, high = np.transpose(middle_part(scores[:, runs]))
        label = f"{part}: {getattr(shakeup, f'{part}_part')}"
        axes.hlines(rows + lift, low, high, color=_COLORS[part], linewidth=3, alpha=0.55)
        axes.plot(np.median(scores[:, runs], axis=0), rows + lift, "o", color=_COLORS[part], markersize=6, label=label)
    axes.set_yticks(rows, [_short(shakeup.names[run]) for run in runs], parse_math=False)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    better = "lower" if shakeup.metric in LOWER_IS_BETTER else "higher"
    axes.set_xlabel(f"{shakeup.metric} ({better} is better): median and middle 95 % of {len(shakeup.public):,} draws")
    hidden = len(shakeup.names) - len(runs)
    if len(runs) > 1:
        axes.set_ylabel("run, best on private first" + (f" ({hidden} more not shown)" if hidden else ""))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _draw_moves(axes: Axes, shakeup: Shakeup) -> None:
    moves = shakeup.rank_moves[:_MOST_SHOWN, :_MOST_SHOWN]
    ranks = [str(rank + 1) for rank in range(len(moves))]
    axes.imshow(moves, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(moves):
        if share >= 0.005:
            color = "white" if share > 0.6 else "black"
            text = f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=10 if len(moves) <= 8 else 7, color=color)
    axes.set_xticks(range(len(ranks)), ranks, fontsize=10 if len(ranks) <= 12 else 7)
    axes.set_yticks(range(len(ranks)), ranks, fontsize=10 if len(ranks) <= 12 else 7)
    axes.set_xlabel("rank on private")
    axes.set_ylabel("rank on public")
    axes.set_title("where a public rank ends, % of draws", fontsize=10)


def _short(name: str, limit: int = 28) -> str:
    """Return a name for a plot: its ends, which tell runs apart, rather than its middle."""
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}"
