"""Shake-up: how far a ranking of runs would move between the public and the private part of a hidden test.

Out-of-fold rows are a sample themselves. So each draw first weighs them by chance (a Bayesian bootstrap: weights from a
Dirichlet distribution), which stands for the hidden test that might be, and then draws a public and a private part of
the wanted sizes and shares of unseen combinations from it, the same images for all runs. A test that differs from train
in more than the share of unseen combinations moves further than this says.

Source: Rubin, The Bayesian bootstrap (1981).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER, PROBABILITY_METRICS, Ints, row_losses
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import Answers, Floats, middle_part
from kaggle_kit.task import Head, Metric, Task, refuse_multilabel

Bools = npt.NDArray[np.bool_]
_Measure = Callable[[Ints], Floats]  # (K,) how often each row is drawn -> (R, heads) values of the metric
_FEW_ROWS = 30
_MOST_VALUES = 5e8  # probabilities sorted in one estimate by a metric that sorts them; fewer draws above that
_FEWEST_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a hidden test: its images, and which share of them (0 to 1) shows combinations train does not."""

    num_images: int
    unseen_share: float

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise SettingError(f"`num_images` of a part is {self.num_images}; give 1 or more")
        if not 0 <= self.unseen_share <= 1:
            raise SettingError(
                f"`unseen_share` of a part is {self.unseen_share}; give a share from 0 to 1, not percent"
            )

    def __str__(self) -> str:
        return f"{self.num_images:,} images, {percent(self.unseen_share)} unseen"

    @property
    def num_unseen(self) -> int:
        """How many images show an unseen combination."""
        return round(self.num_images * self.unseen_share)


@dataclass(frozen=True, kw_only=True)
class Shakeup:
    """Scores of R runs on drawn public and private parts. Rank 1 is best; equal scores share the better rank.

    Attributes:
        metric: Of the scores.
        names: R runs.
        cv: (R,) scores over all out-of-fold rows, whatever their share of unseen combinations.
        public: (draws, R) scores.
        private: (draws, R) scores, on images drawn apart from the public ones.
        public_part: What was drawn.
        private_part: What was drawn.
        notes: Sentences on what makes the estimate weaker.
    """

    metric: Metric
    names: tuple[str, ...]
    cv: Floats
    public: Floats
    private: Floats
    public_part: Part
    private_part: Part
    notes: tuple[str, ...] = ()

    @property
    def expected_private(self) -> Floats:
        """(R,) mean private scores: cross-validation, reweighted to the private part's share of unseen combinations."""
        return np.asarray(self.private.mean(axis=0))

    @property
    def order(self) -> Ints:
        """(R,) runs by their expected private score, best first."""
        return np.argsort(-self._sign * self.expected_private, kind="stable")

    @property
    def choice(self) -> str:
        """The run to choose: the one of the best expected private score."""
        return self.names[int(self.order[0])]

    @property
    def rival(self) -> str | None:
        """The second best run by expected private score, equals of the best left out; None where all are equal."""
        both = np.concatenate([self.public, self.private])
        differs = (both != both[:, self.order[:1]]).any(axis=0)
        return next((self.names[run] for run in self.order.tolist() if differs[run]), None)

    @property
    def rank_change(self) -> float:
        """By how many ranks a run moves between public and private, in the mean over runs and draws."""
        return float(np.abs(self._ranks(self.public) - self._ranks(self.private)).mean())

    @property
    def rank_moves(self) -> Floats:
        """(R, R) how often a run at a public rank (row) ends at a private one (column); NaN where nobody has a rank."""
        moves = np.zeros((len(self.names), len(self.names)))
        np.add.at(moves, (self._ranks(self.public) - 1, self._ranks(self.private) - 1), 1)
        held = moves.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(moves, held, out=np.full_like(moves, np.nan), where=held > 0))

    @property
    def spearman(self) -> float:
        """Rank correlation of public and private scores, mean over draws; NaN where no draw has runs that differ."""
        public, private = (np.sign(s[:, None] - s[:, :, None]).sum(axis=2) for s in (self.public, self.private))
        spread = np.sqrt((public**2).sum(axis=1) * (private**2).sum(axis=1))
        usable = spread > 0
        return float(((public * private).sum(axis=1)[usable] / spread[usable]).mean()) if usable.any() else float("nan")

    @property
    def leads_public(self) -> Floats:
        """(R,) how often each run leads public; runs that lead together share the draw."""
        return np.asarray(self._lead(self.public).mean(axis=0))

    @property
    def leads_private(self) -> Floats:
        """(R,) how often each run leads private; runs that lead together share the draw."""
        return np.asarray(self._lead(self.private).mean(axis=0))

    @property
    def choice_leads(self) -> float:
        """How often the run of the best expected private score leads private, alone or with others."""
        return float((self._ranks(self.private)[:, self.order[0]] == 1).mean())

    @property
    def choice_leads_public(self) -> float:
        """How often that run leads public, alone or with others."""
        return float((self._ranks(self.public)[:, self.order[0]] == 1).mean())

    @property
    def leader_holds(self) -> float:
        """How often the public leader leads private too, alone or with others."""
        return float((self._lead(self.public) * (self._ranks(self.private) == 1)).sum(axis=1).mean())

    @property
    def lost(self) -> tuple[float, float, float]:
        """Private score lost with the public leader instead of `choice`: mean, and between which two 95 % of draws lie.

        Above 0 is worse, whatever the metric's direction; below 0 the public leader was the better choice.
        """
        of_leader = (self._lead(self.public) * self.private).sum(axis=1)
        lost = self._sign * (self.private[:, self.order[0]] - of_leader)
        return float(lost.mean()), *middle_part(lost[:, None])[0]

    @property
    def noise(self) -> float:
        """What a public difference of `choice` and `rival` must exceed: in 95 % of draws private changes it by less."""
        if self.rival is None:
            return 0.0
        pair = [self.names.index(self.choice), self.names.index(self.rival)]
        change = np.diff(self.private[:, pair]) - np.diff(self.public[:, pair])
        return float(np.quantile(np.abs(change), 0.95))

    @property
    def _sign(self) -> float:
        return -1.0 if self.metric in LOWER_IS_BETTER else 1.0

    def _ranks(self, scores: Floats) -> Ints:
        gains = self._sign * scores
        return np.asarray(1 + (gains[:, None] > gains[:, :, None]).sum(axis=2), np.int64)

    def _lead(self, scores: Floats) -> Floats:
        leads = self._ranks(scores) == 1
        return np.asarray(leads / leads.sum(axis=1, keepdims=True))


def estimate_shakeup(
    task: Task,
    truth: Classes,
    runs: Mapping[str, Answers],
    unseen: Bools,
    *,
    public: Part,
    private: Part,
    draws: int = 300,
    seed: int = 0,
) -> Shakeup:
    """Score runs on public and private parts drawn from the same out-of-fold rows.

    Args:
        task: Gives heads, their weights and the metric.
        truth: {head: (N,) class indices}.
        runs: {name: {head: (N,) class indices or (N, C) probabilities}}, rows in the order of `truth`.
        unseen: (N,) True where the row's combination of heads was not in what its fold was trained on.
        public: What the public board scores.
        private: What the private board scores.
        draws: How many times both are drawn; fewer where a metric that sorts probabilities has very many of them.
        seed: Same seed, same images.

    Raises:
        SettingError: For fewer than 1 draw, or a multi-label head.
        DataError: When there are no runs, answers do not fit the task, or a part needs rows of which there are none.
    """
    if draws < 1:
        raise SettingError(f"`draws` is {draws}; give 1 or more")
    refuse_multilabel(task, "a shake-up", "compare the runs' cross-validation")
    _check_answers(task, truth, runs, unseen)
    notes = _check_parts(unseen, public, private)
    draws, wanted = _affordable(task, draws, (public.num_images + private.num_images) * len(runs)), draws
    if draws < wanted:
        notes.append(f"{task.metric} sorts probabilities: parts were drawn {draws:,} times, not {wanted:,}")
    if draws < _FEWEST_DRAWS:
        notes.append(
            f"only {draws} draw(s): percentages are coarse, in steps of {100 / draws:.0f} %; draw more, such as 300"
        )
    pool = _make_pool(task, truth, list(runs.values()), unseen)
    rng = np.random.default_rng(seed)
    scores = np.empty((draws, 2, len(runs)))
    with progress_bar(draws, "shake-up", unit="draw") as bar:
        for draw in range(draws):
            chances = pool.weigh(rng)
            scores[draw] = [pool.score(pool.draw(part, chances, rng)) for part in (public, private)]
            bar.update()
    empty = int(np.isnan(scores).any(axis=(1, 2)).sum())
    if empty:
        raise DataError(f"{task.metric} has no value in {empty:,} of {draws:,} draws; give parts of more images")
    return Shakeup(
        metric=task.metric,
        names=tuple(runs),
        cv=pool.score(pool.counts),
        public=scores[:, 0],
        private=scores[:, 1],
        public_part=public,
        private_part=private,
        notes=tuple(notes),
    )


def score_text(value: float) -> str:
    """Return a score with four decimals."""
    return f"{round(float(value), 4) + 0.0:.4f}"  # + 0.0: no minus before zero


def percent(share: float) -> str:
    """Return a share as people read it."""
    return f"{100 * share:.0f} %"


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """What parts are drawn from: K different rows, how often each is there, and how R runs score on them."""

    counts: Ints
    unseen: Bools
    measure: _Measure
    weights: Floats

    def weigh(self, rng: np.random.Generator) -> Floats:
        """Return (K,) positive weights of the rows in a test that might be."""
        return rng.standard_gamma(self.counts)

    def draw(self, part: Part, chances: Floats, rng: np.random.Generator) -> Ints:
        """Return (K,) how often each row is in a part with exactly its number of unseen ones."""
        times = np.zeros(len(self.counts), np.int64)
        for rows, num in ((self.unseen, part.num_unseen), (~self.unseen, part.num_images - part.num_unseen)):
            if num:
                times[rows] = rng.multinomial(num, chances[rows] / chances[rows].sum())
        return times

    def score(self, times: Ints) -> Floats:
        """Return (R,) scores on rows taken so often; rounded, so that equal runs tie."""
        return np.asarray((self.measure(times) @ self.weights).round(12))


def _make_pool(task: Task, truth: Classes, runs: Sequence[Answers], unseen: Bools) -> _Pool:
    weights = np.array([head.weight for head in task.heads.values()])
    weights = weights / weights.sum()
    if task.metric not in CLASS_METRICS:
        measure = _measure_probs(task, truth, runs)
        return _Pool(counts=np.ones(len(unseen), np.int64), unseen=unseen, measure=measure, weights=weights)
    decided = [{h: a.argmax(axis=1) if a.ndim == 2 else a for h, a in run.items()} for run in runs]
    cells = [truth[name] * head.num_classes + run[name] for run in decided for name, head in task.heads.items()]
    # rows of the same truth and decisions everywhere are one: far fewer are different than there are
    different, counts = np.unique(np.stack([*cells, unseen], axis=1), axis=0, return_counts=True)
    measure = _measure_outcomes(task, different[:, :-1])
    return _Pool(counts=counts, unseen=different[:, -1] == 1, measure=measure, weights=weights)


def _measure_outcomes(task: Task, cells: Ints) -> _Measure:
    """Measure decided classes, from (K, R * heads) cells of each head's confusion matrix."""
    metric = CLASS_METRICS[task.metric]
    sizes = [head.num_classes for head in task.heads.values()]
    columns = np.ascontiguousarray(cells.T)

    def measure(times: Ints) -> Floats:
        drawn = times.astype(np.float64)
        values = np.empty(len(columns))
        for number, column in enumerate(columns):
            size = sizes[number % len(sizes)]
            values[number] = metric(np.bincount(column, drawn, minlength=size**2).reshape(size, size))
        return values.reshape(-1, len(sizes))

    return measure


def _measure_probs(task: Task, truth: Classes, runs: Sequence[Answers]) -> _Measure:
    if task.metric == "log_loss":
        losses = np.array([[row_losses(truth[head], run[head]) for head in task.heads] for run in runs])
        return lambda times: np.asarray(losses @ times / times.sum())
    metric = PROBABILITY_METRICS[task.metric]

    def measure(times: Ints) -> Floats:
        rows = np.repeat(np.arange(len(times)), times)
        return np.array([[metric(truth[head][rows], run[head][rows]) for head in task.heads] for run in runs])

    return measure


def _affordable(task: Task, draws: int, rows_a_draw: int) -> int:
    if task.metric in CLASS_METRICS or task.metric == "log_loss":
        return draws
    values = rows_a_draw * sum(head.num_classes for head in task.heads.values())
    return min(draws, max(_FEWEST_DRAWS, int(_MOST_VALUES / values)))


def _check_answers(task: Task, truth: Classes, runs: Mapping[str, Answers], unseen: Bools) -> None:
    if not runs:
        raise DataError("there are no runs to compare; name at least one")
    if unseen.ndim != 1 or unseen.dtype != np.bool_ or not len(unseen):
        raise DataError(f"`unseen` is {unseen.dtype} {unseen.shape}; give one bool for each of at least one row")
    for head in task.heads.values():
        classes, probs = (len(unseen),), (len(unseen), head.num_classes)
        _check_answer("truth", head, truth, [classes])
        for name, answers in runs.items():
            _check_answer(f"run {name!r}", head, answers, [classes, probs] if task.metric in CLASS_METRICS else [probs])


def _check_answer(where: str, head: Head, answers: Answers, shapes: Sequence[tuple[int, ...]]) -> None:
    if head.name not in answers:
        raise DataError(f"{where} has no head {head.name!r}, only {some_of(answers)}; give every head of the task")
    answer, where = answers[head.name], f"{where}, head {head.name!r}"
    if answer.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise DataError(f"{where} has shape {answer.shape}; expected {expected}, from the task's metric and `unseen`")
    if answer.ndim == 2:
        broken = np.isnan(answer).any(axis=1)
        if broken.any():
            raise DataError(
                f"{where}: probs of row {int(np.argmax(broken))} hold NaN ({int(broken.sum()):,} row(s) in all), "
                "expected numbers from 0 to 1; leave the run out, or train it again"
            )
    elif answer.dtype.kind not in "iu" or answer.min() < 0 or answer.max() >= head.num_classes:
        found = f"{answer.dtype} from {answer.min()} to {answer.max()}"
        raise DataError(f"{where} is {found}; expected class indices, integers from 0 to {head.num_classes - 1}")


def _check_parts(unseen: Bools, public: Part, private: Part) -> list[str]:
    """Refuse parts that cannot be drawn; return notes on what rests on few rows."""
    num_unseen = int(unseen.sum())
    notes = []
    for kind, there in (("unseen", num_unseen), ("seen", len(unseen) - num_unseen)):
        scheme, share = ("unseen", 0) if kind == "unseen" else ("stratified", 1)
        for name, part in (("public", public), ("private", private)):
            wanted = part.num_unseen if kind == "unseen" else part.num_images - part.num_unseen
            if wanted and not there:
                raise DataError(
                    f"the {name} part needs {wanted:,} {kind} image(s), and 0 of {len(unseen):,} out-of-fold rows are "
                    f"{kind}; make folds with `kaggle-kit folds --scheme {scheme}` "
                    f"and train again, or give an unseen share of {share}"
                )
            note = f"only {there} out-of-fold row(s) are {kind}: how runs do on {kind} combinations rests on few images"
            if wanted and there < _FEW_ROWS and note not in notes:
                notes.append(note)
    return notes
