"""What a sweep found: a table, the best trial's settings, and a picture of scores and of what mattered."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kaggle_kit.files import replacing
from kaggle_kit.sweep.space import Space
from kaggle_kit.tables import write_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

State = Literal["complete", "pruned", "failed", "cut short", "running", "waiting"]
STATES: tuple[State, ...] = ("complete", "pruned", "failed", "cut short", "running", "waiting")
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial.

    Attributes:
        number: Unique in its study.
        state: `cut short`: its worker died or was stopped; another trial continues it.
        score: Out-of-fold where it is complete, of its last epoch where it was pruned.
        settings: {dotted setting: value}, as overrides write them.
        folder: The run's folder, in the sweep's folder of the machine that ran it.
        seconds: Wall time of this trial alone.
        worker: Who ran it, `host:process`.
        error: Why it failed.
        retry_of: The trial it continues.
    """

    number: int
    state: State
    score: float | None
    settings: dict[str, str]
    folder: str
    seconds: float | None
    worker: str = ""
    error: str = ""
    retry_of: int | None = None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found so far.

    Attributes:
        out: Its folder.
        study: The study's name.
        trials: In the order of their numbers.
        wanted: How many were asked for.
        minimize: Whether a lower score is better.
        ended: Why this worker ended: `done`: every trial has ended or runs in a living worker; `hours`: its time was
            over; `interrupted`: by Ctrl-C.
        importances: {dotted setting: its share of what made the scores differ}; empty where that cannot be told.
        command: What trains the best trial again, by its settings; empty while no trial is complete.
    """

    out: Path
    study: str
    trials: tuple[TrialRow, ...]
    wanted: int
    minimize: bool
    ended: Literal["done", "hours", "interrupted"]
    importances: dict[str, float]
    command: str

    @property
    def ranked(self) -> list[TrialRow]:
        """Complete trials, the best first."""
        return rank_trials(self.trials, minimize=self.minimize)

    @property
    def best(self) -> TrialRow | None:
        """The best complete trial."""
        return self.ranked[0] if self.ranked else None

    @property
    def counts(self) -> dict[str, int]:
        """{state: how many trials}, of the states that occur."""
        found = {state: sum(trial.state == state for trial in self.trials) for state in STATES}
        return {state: count for state, count in found.items() if count}


def rank_trials(trials: Sequence[TrialRow], *, minimize: bool) -> list[TrialRow]:
    """Return complete trials, the best first; of equal ones the earlier."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
    return sorted(complete, key=lambda trial: (_key(trial, minimize=minimize), trial.number))


def retrain_command(space: Space, best: TrialRow, out: Path) -> str:
    """Return the command that trains a trial's settings again, into a folder of its own."""
    settings = [f"{key}={value}" for key, value in best.settings.items()]
    fixed = [override for override in space.fixed if not override.startswith("out=")]
    return shlex.join(["kaggle-kit", "train", *fixed, *settings, f"out={out / 'best'}"])


def format_trial(trial: TrialRow, best: TrialRow | None, *, place: str) -> str:
    """Return a finished trial's one line.

    Args:
        trial: The trial.
        best: The best one so far.
        place: Such as `12 of 30`.
    """
    score = "" if trial.score is None else f" {trial.score:.4f}"
    minutes = "" if trial.seconds is None else f" in {trial.seconds / 60:.1f} min"
    why = f" ({trial.error})" if trial.error else ""
    led = f"; best {best.score:.4f} (trial {best.number})" if best is not None and best.score is not None else ""
    return f"trial {trial.number} ({place}): {trial.state}{score}{minutes}{why}{led}: {_settings(trial)}"


def format_sweep(result: SweepResult) -> list[str]:
    """Return what a sweep found, as lines of text: its best trials, what mattered, and what to run next."""
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items())
    lines = [f"study {result.study}: {counts or 'no trial'}; asked for {result.wanted}"]
    ranked = result.ranked
    lines += [f"  {trial.score:.4f}  {trial.folder}  {_settings(trial)}" for trial in ranked[:SHOWN]]
    if len(ranked) > SHOWN:
        lines.append(f"  and {len(ranked) - SHOWN} more in {result.out / 'trials.csv'}")
    failed = [trial for trial in result.trials if trial.state == "failed"]
    if failed:
        lines.append(f"  {len(failed)} failed; the last, trial {failed[-1].number}: {failed[-1].error}")
    if result.importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in result.importances.items())
        lines.append(f"what made scores differ: {shares}")
    if result.command:
        lines.append(f"the best again: {result.command}")
    if result.ended != "done":
        why = "its hours are over" if result.ended == "hours" else "interrupted"
        lines.append(f"{why}; the same command goes on where it was")
    return lines


def write_report(result: SweepResult, space: Space) -> None:
    """Write `trials.csv`, and once a trial is complete `best.yaml` and `sweep.png`, into the sweep's folder."""
    keys = list(space.ranges)
    header = ["trial", "state", "score", *keys, "folder", "seconds", "worker", "retry_of", "error"]
    write_rows(result.out / "trials.csv", header, [_csv_row(trial, keys) for trial in result.trials])
    best = result.best
    if best is None:
        return
    text = [f"# Trial {best.number} of study {result.study}: {best.score:.6f}. Trained again by:"]
    text += [f"# {result.command}", *(f"{key}: {value}" for key, value in best.settings.items()), ""]
    with replacing(result.out / "best.yaml") as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")
    with replacing(result.out / "sweep.png") as temporary:
        make_figure(result).savefig(temporary, format="png")


def make_figure(result: SweepResult) -> Figure:
    """Draw every trial's score with the best so far, and which settings made scores differ."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_history(left, result)
    names = list(result.importances)[::-1]
    right.barh(names, [result.importances[name] for name in names], color="tab:blue")
    right.set_title("what made scores differ" if names else "too few trials to tell what made scores differ")
    right.set_xlabel("share")
    if not names:
        right.set_axis_off()
    return figure


def _draw_history(axes: Axes, result: SweepResult) -> None:
    from matplotlib.ticker import MaxNLocator

    scores: list[float] = []
    numbers: list[int] = []
    better = min if result.minimize else max
    for trial in sorted(result.ranked, key=lambda one: one.number):
        assert trial.score is not None
        numbers.append(trial.number)
        scores.append(better([*scores[-1:], trial.score]))
    axes.step(numbers, scores, where="post", color="tab:orange", label="best so far")
    for state, marker in (("complete", "o"), ("pruned", "x")):
        points = [(t.number, t.score) for t in result.trials if t.state == state and t.score is not None]
        if points:
            axes.scatter([n for n, _ in points], [s for _, s in points], marker=marker, s=24, label=state)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("score, lower is better" if result.minimize else "score")
    axes.set_title(f"{result.study}: {len(numbers)} complete trials")
    axes.legend()


def _csv_row(trial: TrialRow, keys: Sequence[str]) -> list[object]:
    score, seconds, retry_of = (
        "" if value is None else value for value in (trial.score, trial.seconds, trial.retry_of)
    )
    settings = [trial.settings.get(key, "") for key in keys]
    return [trial.number, trial.state, score, *settings, trial.folder, seconds, trial.worker, retry_of, trial.error]


def _key(trial: TrialRow, *, minimize: bool) -> float:
    if trial.score is None or math.isnan(trial.score):
        return math.inf
    return trial.score if minimize else -trial.score


def _settings(trial: TrialRow) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in trial.settings.items())


def _short(value: str) -> str:
    """Return a value with four digits, where it is a number with more."""
    try:
        return f"{float(value):.4g}" if "." in value or "e" in value else value
    except ValueError:
        return value
