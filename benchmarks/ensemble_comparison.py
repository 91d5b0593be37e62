"""Ways to blend finished runs, fitted out of fold, scored on a hidden test, and printed as tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kaggle_kit.blending import FittedBlend, blend_pool
from kaggle_kit.blending.pool import make_pool
from kaggle_kit.blending.strategies import Strategy
from kaggle_kit.ensemble import blend_predictions
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER, gain
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.scores import Answers, bootstrap_heads, middle_part, score_answers
from kaggle_kit.task import Task

SINGLE, CHOSEN = "best single run", "chosen"
WAYS: dict[str, tuple[Strategy, ...] | None] = {
    "best run a head": ("best",),
    "mean": ("mean",),
    "calibrated": ("calibrated",),
    "greedy": ("greedy",),
    "stack": ("stack",),
    CHOSEN: None,
}
OPPONENTS = (SINGLE, "mean", "stack")  # what the choice is held against
DECIDERS = {True: "fitted rules decide", False: "the highest probability decides"}


@dataclass(frozen=True, kw_only=True)
class Members:
    """Finished runs, and what they say of a hidden test.

    Attributes:
        name: Of the data set.
        seed: Which of its competitions.
        runs: Of one task, all on the same folds.
        hidden: {run name: predictions of the hidden test}.
        ids: (N,) of the hidden images.
        truth: {head: (N,) classes of the hidden images}.
    """

    name: str
    seed: int
    runs: Sequence[Run]
    hidden: Mapping[str, Predictions]
    ids: np.ndarray
    truth: Classes

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return f"{self.name} seed {self.seed}"

    @property
    def task(self) -> Task:
        """Of all runs, without auxiliary heads."""
        return self.runs[0].task.without_auxiliary()


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A way to blend, fitted out of fold and applied to the hidden test.

    Attributes:
        found: The blend.
        seconds: That fitting it took.
        answers: Of the hidden test.
        hidden: Their score.
    """

    found: FittedBlend
    seconds: float
    answers: Answers
    hidden: float

    @property
    def oof(self) -> float:
        """Out of fold, each image mixed and decided by what was fitted without its fold."""
        score = self.found.blend.score
        assert score is not None
        return score.total


@dataclass(frozen=True, kw_only=True)
class Gain:
    """By how much the choice scores above another way on the hidden test, and 95 % of resamples of its images."""

    value: float
    interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Whether it is more than noise."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "within noise"

    def __str__(self) -> str:
        return "{:+.4f} ({:+.4f} to {:+.4f})".format(self.value, *self.interval)


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """All ways, tried on one competition.

    Attributes:
        members: The runs.
        fit_rules: Whether rules were fitted; else the highest probability decided.
        tried: {way: what it gave}.
    """

    members: Members
    fit_rules: bool
    tried: dict[str, Tried]

    def gain_over(self, way: str) -> Gain:
        """Return what the choice gains on the hidden test over another way; both are scored on the same resamples."""
        task, chosen, other = self.members.task, self.tried[CHOSEN], self.tried[way]
        weights = np.array([head.weight for head in task.heads.values()])
        drawn = bootstrap_heads(task, self.members.truth, [chosen.answers, other.answers], draws=1000)
        sign = -1 if task.metric in LOWER_IS_BETTER else 1
        totals = sign * drawn @ (weights / weights.sum())  # (draws, 2)
        (interval,) = middle_part(totals[:, [0]] - totals[:, [1]])
        return Gain(value=gain(task.metric, chosen.hidden, other.hidden), interval=interval)


def compare_ways(members: Members, *, fit_rules: bool) -> Compared:
    """Fit every way to the members' out-of-fold predictions, and score it on the hidden test."""
    pool = make_pool(members.runs)
    best = max(members.runs, key=lambda run: gain(run.task.metric, run.score.total, 0.0)).name

    def attempt(names: Sequence[str], strategies: Sequence[Strategy] | None) -> Tried:
        started = time.perf_counter()
        found = blend_pool(pool.of(names), fit_rules=fit_rules, strategies=strategies)
        seconds = time.perf_counter() - started
        return _apply(found, members, seconds=seconds)

    tried = {SINGLE: attempt([best], ("mean",))}
    tried |= {way: attempt(pool.names, strategies) for way, strategies in WAYS.items()}
    return Compared(members=members, fit_rules=fit_rules, tried=tried)


def _apply(found: FittedBlend, members: Members, *, seconds: float) -> Tried:
    task = members.task
    blended = blend_predictions(found.blend, members.hidden).align(members.ids)
    answers: Answers = blended.probs
    if task.metric in CLASS_METRICS:
        answers = found.blend.decision.decide(blended.probs, multilabel=blended.multilabel)
    hidden = score_answers(task, members.truth, answers).total
    return Tried(found=found, seconds=seconds, answers=answers, hidden=hidden)


def print_scores(compared: Sequence[Compared]) -> None:
    """Print a table a data set and decider: a row a way, out of fold and hidden for each seed, and their means."""
    for (name, fit_rules), group in _grouped(compared).items():
        print(f"\n{name}, {DECIDERS[fit_rules]}: {group[0].members.task.metric}\n")
        seeds = [f"seed {one.members.seed}" for one in group]
        titles = [f"{part}, {seed}" for part in ("out of fold", "hidden") for seed in [*seeds, "mean"]]
        print_row(["way", *titles])
        print_row(["---"] * (len(titles) + 1))
        for way in group[0].tried:
            oof, hidden = ([getattr(one.tried[way], part) for one in group] for part in ("oof", "hidden"))
            print_row([way, *(f"{value:.4f}" for values in (oof, hidden) for value in [*values, np.mean(values)])])


def print_gains(compared: Sequence[Compared]) -> None:
    """Print what the choice gains over others on the hidden tests, and last whether it was ever worse."""
    print(f"\nWhat `{CHOSEN}` gains on the hidden images, with the middle 95 % of resamples of them\n")
    print_row(["hidden test", "decides", *(text for way in OPPONENTS for text in (f"over {way}", ""))])
    print_row(["---"] * (2 + 2 * len(OPPONENTS)))
    gains = [{way: one.gain_over(way) for way in OPPONENTS} for one in compared]
    for one, over in zip(compared, gains, strict=True):
        cells = [text for way in OPPONENTS for text in (str(over[way]), over[way].verdict)]
        print_row([one.members.title, _decides(one), *cells])
    for (name, _), group in _grouped(compared).items():
        of_group = [over for one, over in zip(compared, gains, strict=True) if one in group]
        cells = [text for way in OPPONENTS for text in (f"{np.mean([over[way].value for over in of_group]):+.4f}", "")]
        print_row([f"{name}, mean of {len(group)}", _decides(group[0]), *cells])
    print()
    for way in OPPONENTS:
        verdicts = [over[way].verdict for over in gains]
        counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("better", "within noise", "worse"))
        print(f"`{CHOSEN}` against `{way}` in {len(gains)} comparisons: {counts}")
    print(_worst(compared, gains))


def _worst(compared: Sequence[Compared], gains: Sequence[Mapping[str, Gain]]) -> str:
    """Return the sentence on where the choice is worse than the best single run beyond noise."""
    pairs = zip(compared, gains, strict=True)
    worse = [f"{one.members.title} ({_decides(one)})" for one, over in pairs if over[SINGLE].verdict == "worse"]
    if worse:
        return f"\n`{CHOSEN}` is worse than `{SINGLE}` beyond noise on {', '.join(worse)}"
    return f"\n`{CHOSEN}` is nowhere worse than `{SINGLE}` beyond noise, in {len(gains)} comparisons"


def print_choices(compared: Sequence[Compared]) -> None:
    """Print which strategy was chosen for each head, the runs that were left out, and the seconds it took."""
    print("\nWhat was chosen\n")
    print_row(["competition", "decides", "strategies", "runs in running order", "left out", "seconds"])
    print_row(["---"] * 6)
    for one in compared:
        chosen = one.tried[CHOSEN]
        runs = chosen.found.blend.runs
        strategies = ", ".join(f"{head} {name}" for head, name in chosen.found.choice.strategies.items())
        left = ", ".join(run.name for run in one.members.runs if run.name not in runs) or "none"
        print_row([one.members.title, _decides(one), strategies, ", ".join(runs), left, f"{chosen.seconds:.1f}"])


def print_row(cells: Iterable[str]) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(cells)} |")


def _decides(one: Compared) -> str:
    return "fitted rules" if one.fit_rules else "highest probability"


def _grouped(compared: Sequence[Compared]) -> dict[tuple[str, bool], list[Compared]]:
    groups: dict[tuple[str, bool], list[Compared]] = {}
    for one in compared:
        groups.setdefault((one.members.name, one.fit_rules), []).append(one)
    return groups
