"""A shake-up as a table, a sentence and a picture."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kaggle_kit.errors import some_of
from kaggle_kit.files import replacing
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER
from kaggle_kit.scores import middle_part
from kaggle_kit.shakeup import Shakeup, percent, score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SURE = 0.95  # share of draws from which on a choice needs no ifs
_MOST_SHOWN = 20  # runs in a plot
_COLORS = {"public": "#d9822b", "private": "#2b6cb0"}


@dataclass(frozen=True, kw_only=True)
class RunOutlook:
    """What a run is expected to score.

    Attributes:
        name: The run.
        cv: Score over all out-of-fold rows.
        public: Mean score on public.
        public_interval: Between which two 95 % of draws lie.
        private: Mean score on private.
        private_interval: Between which two 95 % of draws lie.
        leads_public: Share of draws in which it leads public; runs that lead together share the draw.
        leads_private: Likewise on private.
    """

    name: str
    cv: float
    public: float
    public_interval: tuple[float, float]
    private: float
    private_interval: tuple[float, float]
    leads_public: float
    leads_private: float


def outlooks(shakeup: Shakeup) -> list[RunOutlook]:
    """Return what each run is expected to score, the best on private first."""
    public, private = middle_part(shakeup.public), middle_part(shakeup.private)
    return [
        RunOutlook(
            name=shakeup.names[run],
            cv=float(shakeup.cv[run]),
            public=float(shakeup.public[:, run].mean()),
            public_interval=public[run],
            private=float(shakeup.private[:, run].mean()),
            private_interval=private[run],
            leads_public=float(shakeup.leads_public[run]),
            leads_private=float(shakeup.leads_private[run]),
        )
        for run in shakeup.order.tolist()
    ]


def advise(shakeup: Shakeup) -> str:
    """Return what to do, in one sentence."""
    if len(shakeup.names) == 1:
        return _advise_on_one(shakeup)
    if shakeup.rival is None:
        return f"Choose any of {some_of(shakeup.names, 9)}: they score the same in every draw, so no rank can change."
    choice = shakeup.choice
    leads_both = shakeup.choice_leads_public >= _SURE
    if shakeup.choice_leads >= _SURE and shakeup.leader_holds >= _SURE:
        leads = f"it leads private in {percent(shakeup.choice_leads)} of draws"
        if leads_both:
            return f"Choose {choice!r}, which will lead the public board too: {leads}."
        return f"Choose {choice!r}: {leads}, whatever the public board says."
    advice = "which will lead the public board too" if leads_both else "even if another leads the public board"
    lost, low, high = map(score_text, shakeup.lost)
    return (
        f"Choose {choice!r}, {advice}: it is best on private in {percent(shakeup.choice_leads)} of draws, while "
        f"trusting the public leader is wrong in {percent(1 - shakeup.leader_holds)} and costs {lost} on average "
        f"({low} to {high} in 95 % of draws); a public lead below {score_text(shakeup.noise)} between {choice!r} and "
        f"{shakeup.rival!r} does not tell who wins private."
    )


def _advise_on_one(shakeup: Shakeup) -> str:
    low, high = map(score_text, middle_part(shakeup.private - shakeup.public)[0])
    public, private = score_text(shakeup.public.mean()), score_text(shakeup.private.mean())
    alone = f"With {shakeup.choice!r} alone no rank can change, but expect"
    if public == private:
        return f"{alone} about {public} on both; they will differ by {low} to {high} in 95 % of draws."
    return (
        f"{alone} its score to go from {public} on public to {private} on private: a change of "
        f"{low} to {high} (95 % of draws) is no reason to change anything."
    )


def format_shakeup(shakeup: Shakeup) -> list[str]:
    """Return a table, the best run on private first; then what it rests on, the sentence and the notes."""
    width = max(3, *map(len, shakeup.names)) + 2
    columns = f"{'CV':>8}  {'public (95 %)':>26}  {'private (95 %)':>26}  {'leads public':>12}  {'leads private':>13}"
    lines = [f"{'run':<{width}}{columns}"]
    for run in outlooks(shakeup):
        cells = [
            f"{score_text(mean)} ({score_text(low)} to {score_text(high)})"
            for mean, (low, high) in ((run.public, run.public_interval), (run.private, run.private_interval))
        ]
        shares = f"{percent(run.leads_public):>12}  {percent(run.leads_private):>13}"
        lines.append(f"{run.name:<{width}}{run.cv:>8.4f}  {cells[0]:>26}  {cells[1]:>26}  {shares}")
    lines += ["", *_footer(shakeup), advise(shakeup)]
    return [*lines, *(f"note: {note}" for note in shakeup.notes)]


def _footer(shakeup: Shakeup) -> list[str]:
    """Return what was drawn, how far ranks move, and how runs decide."""
    drawn = f"{len(shakeup.public):,} draws; public: {shakeup.public_part}; private: {shakeup.private_part}"
    if shakeup.rival is not None:
        drawn += f"; ranks move by {shakeup.rank_change:.2f} on average"
        if not np.isnan(shakeup.spearman):
            drawn += f", rank correlation {shakeup.spearman:.2f}"
    decides = "runs decide by their highest probability here; `blend` may add fitted rules"
    return [drawn, decides] if shakeup.metric in CLASS_METRICS else [drawn]


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
        textwrap.fill(advise(shakeup).replace(" %", "\N{NO-BREAK SPACE}%"), 125), fontsize=12, parse_math=False
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
