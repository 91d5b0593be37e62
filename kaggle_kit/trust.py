"""Trust: whether the order of runs by cross-validation (CV) is the leaderboard's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.entries import Board, Entry, by_task, run_labels
from kaggle_kit.errors import SettingError, some_of
from kaggle_kit.metrics import LOWER_IS_BETTER

Floats = npt.NDArray[np.float64]

FEWEST = 3  # scored runs of which an order can be said to agree
_FEW = 6  # below that, one run in the wrong place spoils the order
_MOST_FOLDS = 4  # named where runs have different ones
_SURE = 0.05  # how often unrelated scores may agree as well where CV is called trusted
_AGREES, _AGREES_IN_PART = 0.8, 0.5  # Spearman


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whether CV orders runs as a board does.

    Attributes:
        which: The board.
        num_runs: Runs that it scored.
        text: The answer, in sentences; it begins with the board.
        spearman: Rank correlation of CV and board; None for fewer than 3 runs, or where all score the same.
        kendall: Kendall's tau-b of both; None likewise.
        chance: How often unrelated scores reach that tau; None likewise.
        gap: Mean of board minus CV; None where no run is scored.
        spread: Standard deviation of board minus CV; None for fewer than 2 runs.
        out_of_order: Runs without which both orders agree.
        noise: Half the width of the CV's 95 % interval, the runs' median; None where no interval is known.
        safe_difference: CV difference above which no two runs are swapped; None where no two differ by more.
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
    noise: float | None = None
    safe_difference: float | None = None


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
            f"{which} board: {len(scored)} run(s) have a {which} score; note {FEWEST - len(scored)} more to see "
            f"whether CV can be trusted: kaggle-kit runs note RUN --{which} SCORE"
        )
        return Trust(which=which, num_runs=len(scored), text=text, gap=gap, spread=spread)
    if np.ptp(cv) == 0 or np.ptp(board) == 0:
        same = "CV" if np.ptp(cv) == 0 else f"{which} score"
        text = f"{which} board: all {len(scored)} runs have the same {same}: there is no order to compare."
        return Trust(which=which, num_runs=len(scored), text=text, gap=gap, spread=spread)
    return _compare(scored, cv, board, which)


def _compare(scored: Sequence[Entry], cv: Floats, board: Floats, which: Board) -> Trust:
    """Compare the (N,) scores of N runs by CV and on a board."""
    from scipy import stats

    kendall = stats.kendalltau(cv, board, alternative="greater")
    swapped = np.sign(np.subtract.outer(cv, cv)) * np.sign(np.subtract.outer(board, board)) < 0
    sign = -1 if scored[0].metric in LOWER_IS_BETTER else 1
    places = [1 + (sign * values > sign * values[:, None]).sum(axis=1) for values in (cv, board)]
    rows = _out_of_order(swapped, np.abs(places[0] - places[1]))
    labels = run_labels(scored)
    answer = Trust(
        which=which,
        num_runs=len(scored),
        text="",
        spearman=float(stats.spearmanr(cv, board).statistic),
        kendall=float(kendall.statistic),
        chance=float(kendall.pvalue),
        gap=float((board - cv).mean()),
        spread=float((board - cv).std(ddof=1)),
        out_of_order=tuple(labels[scored[row].run_id] for row in rows),
        noise=_noise(scored),
        safe_difference=_safe_difference(cv, swapped),
    )
    moved = [
        f"{name} (place {places[0][row]} by CV, {places[1][row]} on the board)"
        for name, row in zip(answer.out_of_order[:3], rows, strict=False)
    ]
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    order = f"Out of order: {', '.join(moved)}{more}." if rows else "No run is out of order."
    sentences = [*_agreement(answer, float(np.ptp(cv))), order, *_folds_not_known(scored)]
    return dataclasses.replace(answer, text=f"{which} board: {' '.join(sentences)}")


def _agreement(answer: Trust, widest: float) -> list[str]:
    """Return the verdict on a comparison of runs whose CV differs by at most `widest`, its numbers, and the gap."""
    spearman, kendall, chance, gap, spread = (
        value or 0.0 for value in (answer.spearman, answer.kendall, answer.chance, answer.gap, answer.spread)
    )
    return [
        f"{_verdict(answer, widest)}: Spearman {spearman:.2f}, Kendall {kendall:.2f} over {answer.num_runs} runs; "
        f"unrelated scores agree as well in {_percent(chance)} of cases.",
        f"On average the {answer.which} score is {abs(gap):.4f} {'below' if gap < 0 else 'above'} CV, give or take "
        f"{spread:.4f}.",
    ]


def _verdict(answer: Trust, widest: float) -> str:
    spearman, chance = answer.spearman or 0.0, answer.chance or 0.0
    if answer.noise is not None and widest < answer.noise:
        differ, noise = (np.format_float_positional(v, 2, fractional=False, trim="-") for v in (widest, answer.noise))
        return (
            f"CV of these runs differs by at most {differ}, less than its noise ({noise} either way), "
            "so they cannot show whether CV is to be trusted"
        )
    if spearman <= _AGREES_IN_PART:
        few = "CV does not order these runs as the board does, but they are too few to say that it never does"
        return few if answer.num_runs < _FEW else "CV cannot be trusted to order runs"
    if chance > _SURE:
        return "CV seems to order runs as the board does, but too few runs are scored to trust it"
    if spearman >= _AGREES:
        return "CV can be trusted"
    if answer.safe_difference is None:
        return "CV orders these runs in part only, and those that differ most in CV are swapped too"
    return f"CV can be trusted for large differences only, here those above {answer.safe_difference:.4f}"


def _noise(scored: Sequence[Entry]) -> float | None:
    """Return half the width of the CV's 95 % interval, the median of the runs whose interval is known."""
    halves = [(entry.interval[1] - entry.interval[0]) / 2 for entry in scored if entry.interval]
    return float(np.median(halves)) if halves else None


def _safe_difference(cv: Floats, swapped: npt.NDArray[np.bool_]) -> float | None:
    """Return the CV difference, rounded up to four digits, above which no two runs are swapped.

    Args:
        cv: (N,) scores.
        swapped: (N, N) True where CV and board order two runs differently.

    Returns:
        None where no two runs differ by more.
    """
    apart = np.abs(np.subtract.outer(cv, cv))
    largest = math.ceil(1e4 * apart[swapped].max(initial=0) - 1e-6) / 1e4
    return largest if largest < apart.max() else None


def _folds_not_known(scored: Sequence[Entry]) -> list[str]:
    unknown = [entry.folds for entry in scored].count("")
    if not unknown:
        return []
    return [f"The folds of {unknown} run(s) are not known, so whether their CV compares is not either."]


def different_folds(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence on the folds in which runs of one task differ; none where all known folds are the same."""
    labels = run_labels(entries)
    runs: dict[str, list[str]] = {}
    for entry in entries:
        if entry.folds:
            runs.setdefault(entry.folds, []).append(labels[entry.run_id])
    if len(runs) < 2:
        return []
    shown = [f"{folds} ({some_of(names)})" for folds, names in list(runs.items())[:_MOST_FOLDS]]
    more = f" and {len(runs) - _MOST_FOLDS} more" if len(runs) > _MOST_FOLDS else ""
    return [f"these runs have different folds: {'; '.join(shown)}{more}; their CV compares only roughly"]


def _percent(share: float) -> str:
    return "less than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _out_of_order(swapped: npt.NDArray[np.bool_], moved: npt.NDArray[np.int64]) -> list[int]:
    """Return the runs without which both orders agree: again and again the one in most swapped pairs.

    Args:
        swapped: (N, N) True where CV and board order two runs differently.
        moved: (N,) by how many places a run moves, which decides between equals.
    """
    swapped = swapped.copy()
    rows = []
    while swapped.any():
        rows.append(int(np.lexsort([moved, swapped.sum(axis=0)])[-1]))
        swapped[rows[-1]] = swapped[:, rows[-1]] = False
    return rows
