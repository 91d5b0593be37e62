"""Which strategy each head is mixed by: a simpler one unless another is likely to be better on images it has not seen.

The best run alone and the mean of all runs are where it starts, whichever scores higher: neither has a weight that was
fitted, so the higher score is the better bet, and of equal ones the best run alone is simpler. Every further strategy
is tried the way it would be used, fitted without a part and applied to it. It takes over where it scores higher than
the start, and than what took over before, in three of four resamples of the groups, and where these are few of the
images too; with less it is a tie, which the simpler one wins. That is a bet and no proof, which is what the 95 %
intervals beside it are for: among so many strategies one passes by luck, and what is chosen scores a little too high.
What is compared is the score after the rules that decide, where these can be fitted in reasonable time, and that of
the highest probability where not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.pool import Pool
from kaggle_kit.blending.strategies import STRATEGIES, HeadFitter, Strategy, strategies_for
from kaggle_kit.decision import Decision
from kaggle_kit.decision_fitting import fit_decision
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER, gain
from kaggle_kit.predictions import Probs
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import DRAWS, Answers, bootstrap_ways, metric_value, widest_part

Floats = npt.NDArray[np.float64]

_MOST_RULED = 3e6  # probabilities; with more, strategies are compared by the highest one
_RULE_DRAWS = 200
SURE = 0.75  # share of resamples in which what is less simple has to score higher


@dataclass(frozen=True, kw_only=True)
class Step:
    """A strategy that was tried for one head.

    Attributes:
        head: The head's name.
        name: The strategy.
        value: The metric, each row mixed by what was fitted without its part.
        gain: Over what it had to beat; below 0 when it is worse.
        interval: Of the gain: the middle 95 % of resamples of the images.
        over: What it had to beat; empty for what the others start from.
        kept: Whether the blend uses it.
        why: The reason, in a few words.
        runs: How many runs it uses.
    """

    head: str
    name: Strategy
    value: float
    gain: float
    interval: tuple[float, float]
    over: str
    kept: bool
    why: str
    runs: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen.

    Attributes:
        strategies: {head: strategy}.
        steps: What was tried, head by head.
        by_rules: Whether strategies were compared by the rules that decide, rather than by the highest probability.
        untried: Strategies left out, for they would take too long on so many probabilities.
    """

    strategies: dict[str, Strategy]
    steps: tuple[Step, ...]
    by_rules: bool
    untried: tuple[Strategy, ...] = ()


def choose_strategies(
    pool: Pool,
    fitters: Mapping[str, HeadFitter],
    *,
    fit_rules: bool,
    strategies: Sequence[Strategy] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Choice:
    """Try strategies on every head, and choose one for each.

    Args:
        pool: The runs.
        fitters: One a head of the pool's task.
        fit_rules: Whether rules that decide will be fitted to what is chosen.
        strategies: What to try, the simplest first; None: all that the pool's size allows.
        draws: Resamples of the images for the intervals.
        seed: Of the resamples.
    """
    names = tuple(strategies or strategies_for(pool))
    values = len(pool) * sum(head.num_classes for head in pool.task.heads.values())
    by_rules = fit_rules and pool.task.metric in CLASS_METRICS and values <= _MOST_RULED
    answers = []
    with progress_bar(len(names) * len(fitters), "trying blends", unit="fit") as bar:
        for name in names:
            probs = {}
            for head, fitter in fitters.items():
                probs[head] = fitter.nested(name)
                bar.update()
            answers.append(_answer(pool, probs, by_rules=by_rules, seed=seed))
    sign = -1 if pool.task.metric in LOWER_IS_BETTER else 1
    ways = bootstrap_ways(pool.task, pool.truth, answers, draws=draws, seed=seed, groups=pool.groups)
    chosen: dict[str, Strategy] = {}
    steps: list[Step] = []
    for column, (head, fitter) in enumerate(fitters.items()):
        own = [sign * drawn[:, :, column] for drawn in ways]
        of_head = _Trials(pool=pool, head=head, names=names, answers=answers, ways=own)
        pick = of_head.pick()
        chosen[head] = names[pick]
        steps += of_head.steps(pick, [_num_runs(pool, fitter, name) for name in names])
    untried = () if strategies or len(pool.names) == 1 else tuple(name for name in STRATEGIES if name not in names)
    if len(pool.task.heads) == 1:
        untried = tuple(name for name in untried if name != "stack-heads")  # there is nothing else to read
    return Choice(strategies=chosen, steps=tuple(steps), by_rules=by_rules, untried=untried)


def _answer(pool: Pool, probs: Probs, *, by_rules: bool, seed: int) -> Answers:
    """Return what is compared: decisions, or the probabilities of a metric that wants them."""
    task = pool.task
    if task.metric not in CLASS_METRICS:
        return probs
    if not by_rules:
        return Decision.plain(task).decide(probs, multilabel=task.multilabel_heads)
    found = fit_decision(
        task, pool.truth, probs, pool.parts, counts=pool.counts, groups=pool.groups, draws=_RULE_DRAWS, seed=seed
    )
    return found.decided


def _num_runs(pool: Pool, fitter: HeadFitter, name: Strategy) -> int:
    weights = fitter.fit(name).weights
    return int(np.count_nonzero(weights)) if weights else len(pool.names)


@dataclass(frozen=True, kw_only=True)
class _Trials:
    """The strategies tried for one head: their answers, and (draws, strategies) scores, for each way to resample."""

    pool: Pool
    head: str
    names: tuple[Strategy, ...]
    answers: list[Answers]
    ways: list[Floats]

    def pick(self) -> int:
        """Return the index of the strategy to use."""
        start = picked = self._start()
        for index in range(len(self.names)):
            if index != start and all(self._surely(index, rival) >= SURE for rival in (start, picked)):
                picked = index
        return picked

    def steps(self, picked: int, num_runs: Sequence[int]) -> list[Step]:
        """Return what became of each strategy, compared with what the others start from."""
        start = self._start()
        return [self._step(index, start, picked, num) for index, num in enumerate(num_runs)]

    def _start(self) -> int:
        """Return the better of the best run and the mean; of equal ones the first."""
        starts = [index for index, name in enumerate(self.names) if name in ("best", "mean")] or [0]
        values = [gain(self.pool.task.metric, self._value(index), 0.0) for index in starts]
        return starts[int(np.argmax(values))]

    def _step(self, index: int, start: int, picked: int, num_runs: int) -> Step:
        (interval,) = widest_part([drawn[:, [index]] - drawn[:, [start]] for drawn in self.ways])
        return Step(
            head=self.head,
            name=self.names[index],
            value=self._value(index),
            gain=gain(self.pool.task.metric, self._value(index), self._value(start)),
            interval=interval,
            over="" if index == start else self.names[start],
            kept=index == picked,
            why=self._why(index, start, picked, interval),
            runs=num_runs,
        )

    def _surely(self, index: int, rival: int) -> float:
        """Return in which share of resamples a strategy gains over a rival; the lowest of all ways to resample."""
        return min(float((drawn[:, index] > drawn[:, rival]).mean()) for drawn in self.ways)

    def _why(self, index: int, start: int, picked: int, interval: tuple[float, float]) -> str:
        if len(self.names) == 1:
            return "nothing else was tried"
        other, share = self.names[picked], self._surely(index, start)
        if index == start:
            return "no other is better surely enough" if picked == start else f"{other} is better"
        if index == picked:
            return f"better in {share:.0%} of resamples"
        if share >= SURE:
            return f"{other} is simpler, and a tie" if picked < index else f"{other} is better"
        if not any(interval):
            return "the same"
        return "worse" if interval[1] < 0 else f"a tie: better in {share:.0%} of resamples"

    def _value(self, index: int) -> float:
        head = self.pool.task.heads[self.head]
        return metric_value(
            self.pool.task.metric, self.pool.truth[self.head], self.answers[index][self.head], head.num_classes
        )
