"""Which strategy each head is mixed by: a simpler one unless another gains beyond luck on rows it was not fitted on.

The best run alone and the mean of all runs are where it starts, whichever scores higher: neither has a weight that was
fitted, so the higher score is the better bet, and of equal ones the best run alone is simpler. Every further strategy
is tried the way it would be used, fitted without a part and applied to it, and takes over where the middle 95 % of its
gain over the start, and over what took over before, lie above 0: of resampled groups, and where these are few of
resampled images too. Each strategy is judged by itself, so of many that
cannot help one may pass by luck; and what is compared is the score after the rules that decide, where these can be
fitted in reasonable time, and that of the highest probability where not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.pool import Pool
from kaggle_kit.blending.strategies import STRATEGIES, HeadFitter, Strategy, is_large, strategies_for
from kaggle_kit.decision import Decision
from kaggle_kit.decision_fitting import fit_decision
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER, gain
from kaggle_kit.predictions import Probs
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import DRAWS, Answers, bootstrap_heads, metric_value, middle_part

Floats = npt.NDArray[np.float64]

_MOST_RULED = 3e6  # probabilities; with more, strategies are compared by the highest one
_RULE_DRAWS = 200
_FEW_GROUPS = 20


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
    drawn = _resample(pool, answers, draws=draws, seed=seed)
    chosen: dict[str, Strategy] = {}
    steps: list[Step] = []
    for column, (head, fitter) in enumerate(fitters.items()):
        of_head = _Trials(
            pool=pool, head=head, names=names, answers=answers, drawn=[some[:, :, column] for some in drawn]
        )
        pick = of_head.pick()
        chosen[head] = names[pick]
        steps += of_head.steps(pick, [_num_runs(pool, fitter, name) for name in names])
    untried = tuple(name for name in STRATEGIES if name not in names) if strategies is None and is_large(pool) else ()
    return Choice(strategies=chosen, steps=tuple(steps), by_rules=by_rules, untried=untried)


def _resample(pool: Pool, answers: Sequence[Answers], *, draws: int, seed: int) -> list[Floats]:
    """Return (draws, answers, heads) scores, higher is better: of whole groups, and where these are few of images too.

    Of three writers all agree by chance once in eight times, which is no interval of 95 %.
    """
    sign = -1 if pool.task.metric in LOWER_IS_BETTER else 1
    several = [pool.groups]
    if pool.groups is not None and len(np.unique(pool.groups)) < _FEW_GROUPS:
        several.append(None)
    return [
        sign * bootstrap_heads(pool.task, pool.truth, answers, draws=draws, seed=seed, groups=groups)
        for groups in several
    ]


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
    drawn: list[Floats]

    def pick(self) -> int:
        """Return the index of the strategy to use."""
        start = picked = self._start()
        for index in range(len(self.names)):
            rivals = {start, picked}
            if index != start and all(self._interval(index, rival)[0] > 0 for rival in rivals):
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
        interval = self._interval(index, start)
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

    def _interval(self, index: int, rival: int) -> tuple[float, float]:
        """Return between which gains over a rival the middle 95 % lie, whichever way is resampled."""
        lows, highs = zip(*(middle_part(some[:, [index]] - some[:, [rival]])[0] for some in self.drawn), strict=True)
        return min(lows), max(highs)

    def _why(self, index: int, start: int, picked: int, interval: tuple[float, float]) -> str:
        if len(self.names) == 1:
            return "nothing else was tried"
        if index == start:
            return "nothing gains beyond luck" if picked == start else f"{self.names[picked]} is better beyond luck"
        if index == picked:
            return "better beyond luck"
        if interval[0] > 0:
            simpler = picked < index
            other = self.names[picked]
            return f"{other} is simpler, and as good within luck" if simpler else f"{other} is better beyond luck"
        return "worse" if interval[1] < 0 else "may be luck"

    def _value(self, index: int) -> float:
        head = self.pool.task.heads[self.head]
        return metric_value(
            self.pool.task.metric, self.pool.truth[self.head], self.answers[index][self.head], head.num_classes
        )
