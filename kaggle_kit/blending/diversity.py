"""How runs differ: in the errors they make, in what each knows alone, and in what leaving one out costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.pool import Pool
from kaggle_kit.decision import HALF, row_chunks
from kaggle_kit.metrics import CLASS_METRICS, LOWER_IS_BETTER, gain
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import Answers, bootstrap_heads, middle_part, score_answers
from kaggle_kit.task import Head, Task

Floats = npt.NDArray[np.float64]
Sides = npt.NDArray[np.int64] | npt.NDArray[np.bool_]
Decided = dict[str, Sides]  # {head: decisions of all runs}

DROP_DRAWS = 400  # a bootstrap a run: at 50,000 images of 186 classes each takes 3 s
MOST_IN_MATRIX = 8  # runs of which the terminal shows every pair
_NUM_PAIRS = 5
_LONGEST_NAME = 32
_NONE = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What a blend loses without one of its runs.

    Attributes:
        run: The run left out; the others were fitted anew.
        change: By how much the whole is better than the others; above 0 the run helps, whatever the metric's direction.
        interval: The middle 95 % of it over resamples of the images, the same ones for both.
        seconds: That an image takes less without the run; None where that is not known.
    """

    run: str
    change: float
    interval: tuple[float, float]
    seconds: float | None = None

    @property
    def verdict(self) -> str:
        """What the interval says, in a few words."""
        if self.interval[0] > 0:
            return "helps"
        return "hurts" if self.interval[1] < 0 else "may be luck"


@dataclass(frozen=True, kw_only=True, eq=False)
class Diversity:
    """How R runs differ on the images that all of them were scored on.

    Attributes:
        names: R run names, in the order of rows and columns.
        scores: {run: value of the task's metric of the run alone, in total over heads}.
        error_correlation: (R, R) Pearson correlation of being wrong, over images (of multi-label heads: over images and
            classes), the mean over heads by their weights. NaN where a run is never wrong, or always.
        disagreement: (R, R) share of images that two runs decide differently (of multi-label heads: in any class), the
            mean over heads by their weights.
        unique_right: {run: images of which it is the only one to get some head right}.
        dropped: What each run adds to the others; empty where that was not asked for, or there are no others.
    """

    names: tuple[str, ...]
    scores: dict[str, float]
    error_correlation: Floats
    disagreement: Floats
    unique_right: dict[str, int]
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What a run says of an image.

    Attributes:
        said: The class's name; of a multi-label head those of the classes it says, with commas between.
        chance: Its probability; of a multi-label head the lowest one by which a class was said or not.
        right: Whether it is the truth, in all classes.
    """

    said: str
    chance: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Dispute:
    """An image on which runs disagree.

    Attributes:
        id: The image's.
        entropy: Of the runs' votes, in bits: the mean over heads by their weights; of a multi-label head the sum over
            classes.
        truth: {head: what is true, as `Opinion.said` writes it}.
        opinions: {head: {run: what it says}}.
    """

    id: str
    entropy: float
    truth: dict[str, str]
    opinions: dict[str, dict[str, Opinion]]


def measure_diversity(
    pool: Pool,
    *,
    answers: Answers,
    without: Callable[[tuple[str, ...]], Answers] | None = None,
    seconds: Mapping[str, float] | None = None,
    draws: int = DROP_DRAWS,
) -> Diversity:
    """Measure how the runs of a pool differ, and what a blend of them loses without each.

    Args:
        pool: The runs, and the truth.
        answers: {head: probabilities or decided classes} of the blend of all runs, rows as in the pool; those of each
            part by what was fitted without it.
        without: Returns the same of the blend of the runs it is given, fitted anew; None: not asked for.
        seconds: {run: seconds an image takes}, where known.
        draws: Resamples of the images for the intervals.

    Raises:
        DataError: When answers do not fit the truth, or the metric has no value for these images.
    """
    decided, scores = _decide_all(pool)
    correlation, disagreement = _compare_pairs(pool, decided)
    return Diversity(
        names=pool.names,
        scores=scores,
        error_correlation=correlation,
        disagreement=disagreement,
        unique_right=_count_unique(pool, decided),
        dropped=() if without is None else _drop_each(pool, answers, without, seconds or {}, draws),
    )


def where_they_disagree(pool: Pool, limit: int = 20) -> tuple[Dispute, ...]:
    """Return the images on which runs disagree most, first those of the highest entropy of votes.

    Of equal ones those come first to whose truth the runs give the lowest probability. Images on which all runs agree
    are left out.

    Args:
        pool: The runs, and the truth.
        limit: The most images to return.

    Source: vote entropy, Dagan and Engelson 1995, Committee-Based Sampling for Training Probabilistic Classifiers.
    """
    entropy, faith = np.zeros(len(pool)), np.zeros(len(pool))
    for head, weight in _weights(pool.task).items():
        for rows in row_chunks(len(pool)):
            entropy[rows] += weight * _entropy(_decide(pool, head, rows))
            faith[rows] += weight * _faith(pool, head, rows)
    entropy = entropy.round(9)  # the order in which votes are summed shall not order images
    order = np.lexsort([faith, -entropy])[:limit]
    return tuple(_dispute(pool, int(row), float(entropy[row])) for row in order if entropy[row] > 0)


def format_diversity(diversity: Diversity) -> list[str]:
    """Return tables for the terminal: a line a run, with all pairs of up to 8 runs; else the most and least alike."""
    names, digits = diversity.names, len(str(len(diversity.names)))
    labels = [f"{number:>{digits}} {_short(name)}" for number, name in enumerate(names, start=1)]
    width = max(3, *map(len, labels))
    paired = 1 < len(names) <= MOST_IN_MATRIX
    numbers = "".join(f"{number:>7}" for number in range(1, 1 + len(names))) if paired else ""
    lines = [f"{'run':<{width}}  {'alone':>8}  {'only it right':>13}{'  ' * paired}{numbers}"]
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        cells = "".join(f"{_cell(diversity, row, column):>7}" for column in range(len(names))) if paired else ""
        right = diversity.unique_right[name]
        lines.append(f"{label:<{width}}  {diversity.scores[name]:>8.4f}  {right:>13,}{'  ' * paired}{cells}")
    if paired:
        lines.append("below the diagonal: correlation of errors; above it: images that two runs decide differently")
    elif len(names) > 1:
        lines += _format_pairs(diversity)
    return [*lines, *_format_dropped(diversity)]


def _cell(diversity: Diversity, row: int, column: int) -> str:
    if row == column:
        return "."
    if row < column:
        return f"{diversity.disagreement[row, column]:.1%}"
    return _number(diversity.error_correlation[row, column])


def _number(value: float) -> str:
    return _NONE if np.isnan(value) else f"{value:.2f}"


def _format_pairs(diversity: Diversity) -> list[str]:
    """Return the pairs of runs that are most alike in their errors, or in their answers where none are known."""
    first, second = np.triu_indices(len(diversity.names), 1)
    differ, alike = diversity.disagreement[first, second], diversity.error_correlation[first, second]
    order = np.lexsort([differ, -alike])  # NaN comes last
    shown = min(_NUM_PAIRS, len(order) // 2)
    known = order[~np.isnan(alike[order])]
    lines = []
    for title, pairs in (("most alike", known[:shown]), ("most different", known[::-1][:shown])):
        for pair in pairs:
            names = " and ".join(_short(diversity.names[row]) for row in (first[pair], second[pair]))
            numbers = f"errors correlate {alike[pair]:.2f}, {differ[pair]:.1%} decided differently"
            lines.append(f"{title}: {names}: {numbers}")
    return lines or ["no two runs make errors that could be compared"]


def _format_dropped(diversity: Diversity) -> list[str]:
    if not diversity.dropped:
        return []
    width = max(len(_short(one.run)) for one in diversity.dropped)
    timed = any(one.seconds is not None for one in diversity.dropped)
    title = f"  {'s for 1,000 images':>18}" if timed else ""
    lines = [f"{'adds to the others':<{max(width, 18)}}  {'score':>8}  {'95 % interval':>18}{title}"]
    for one in sorted(diversity.dropped, key=lambda one: -one.change):
        interval = "{:+.4f} to {:+.4f}".format(*one.interval)
        spent = "" if not timed else f"  {_NONE if one.seconds is None else f'{1000 * one.seconds:.1f}':>18}"
        lines.append(f"{_short(one.run):<{max(width, 18)}}  {one.change:>+8.4f}  {interval:>18}{spent}  {one.verdict}")
    return lines


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2 - 1]}..{name[1 - _LONGEST_NAME // 2 :]}"


def _weights(task: Task) -> dict[str, float]:
    """Return {head: its share in the total}."""
    total = sum(head.weight for head in task.heads.values())
    return {name: head.weight / total for name, head in task.heads.items()}


def _decide_all(pool: Pool) -> tuple[Decided, dict[str, float]]:
    """Return {head: (R, N) or (R, N, C) decisions}, and {run: its score}."""
    decided: Decided = {}
    by_classes = pool.task.metric in CLASS_METRICS
    scores, heads = {}, pool.task.heads
    with progress_bar(len(heads) + len(pool.names), "comparing runs", unit="step") as bar:
        for head in heads:
            decided[head] = _decide(pool, head, slice(None))
            bar.update()
        for row, (name, run) in enumerate(_by_name(pool)):
            answers = {head: decided[head][row] for head in heads} if by_classes else run
            scores[name] = score_answers(pool.task, pool.truth, answers).total
            bar.update()
    return decided, scores


def _decide(pool: Pool, head: str, rows: slice) -> Sides:
    """Return (R, n) classes, or (R, n, C) whether a multi-label head says the class."""
    if head in pool.task.multilabel_heads:
        return np.stack([run[head][rows] >= HALF for run in pool.runs])
    return np.stack([run[head][rows].argmax(axis=1) for run in pool.runs])


def _compare_pairs(pool: Pool, decided: Decided) -> tuple[Floats, Floats]:
    """Return (R, R) correlations of errors and (R, R) shares of images decided differently."""
    shape = (len(pool.names),) * 2
    correlations, disagreement, weights = [], np.zeros(shape), _weights(pool.task)
    for head, weight in weights.items():
        both, errors, cells = np.zeros(shape), np.zeros(shape[0]), 0
        for rows in row_chunks(len(pool)):
            said = decided[head][:, rows]
            wrong = (said != pool.truth[head][rows]).reshape(shape[0], -1).astype(np.float32)
            both += wrong @ wrong.T
            errors += wrong.sum(axis=1, dtype=np.float64)
            cells += wrong.shape[1]
            disagreement += weight / len(pool) * _count_differing(said)
        correlations.append(_correlate(both, errors, cells))
    counted = ~np.isnan(correlations) * np.array(list(weights.values()))[:, None, None]  # (heads, R, R)
    sums, total = (np.nan_to_num(correlations) * counted).sum(axis=0), counted.sum(axis=0)
    return np.divide(sums, total, out=np.full(shape, np.nan), where=total > 0), disagreement


def _correlate(both: Floats, errors: Floats, cells: int) -> Floats:
    """Return (R, R) Pearson correlations from counts of common errors, of each run's, and of all cells."""
    share = errors / cells
    spread = np.sqrt(share * (1 - share))
    scale = np.outer(spread, spread)
    blank = np.full(both.shape, np.nan)
    return np.asarray(np.divide(both / cells - np.outer(share, share), scale, out=blank, where=scale > 0).clip(-1, 1))


def _count_differing(decided: Sides) -> Floats:
    """Return (R, R) how many of (R, n) or (R, n, C) decisions differ between two runs."""
    counts = np.zeros((len(decided),) * 2)
    for row in range(len(decided) - 1):
        differ = decided[row + 1 :] != decided[row]
        counts[row, row + 1 :] = (differ.any(axis=2) if differ.ndim == 3 else differ).sum(axis=1)
    return counts + counts.T


def _count_unique(pool: Pool, decided: Decided) -> dict[str, int]:
    """Return {run: images of which only this run gets some head right}."""
    counts = np.zeros(len(pool.names), np.int64)
    for rows in row_chunks(len(pool)):
        alone = np.zeros((len(pool.names), len(pool.ids[rows])), bool)
        for head in pool.task.heads:
            wrong = decided[head][:, rows] != pool.truth[head][rows]
            right = ~(wrong.any(axis=2) if wrong.ndim == 3 else wrong)
            alone |= right & (right.sum(axis=0) == 1)
        counts += alone.sum(axis=1)
    return dict(zip(pool.names, counts.tolist(), strict=True))


def _drop_each(
    pool: Pool,
    answers: Answers,
    without: Callable[[tuple[str, ...]], Answers],
    seconds: Mapping[str, float],
    draws: int,
) -> tuple[Dropped, ...]:
    """Return what each run adds to the others; nothing where there are no others."""
    if len(pool.names) == 1:
        return ()
    task, metric = pool.task, pool.task.metric
    sign = -1 if metric in LOWER_IS_BETTER else 1
    weights = sign * np.array(list(_weights(task).values()))
    whole, found = score_answers(task, pool.truth, answers).total, []
    with progress_bar(len(pool.names), "leaving each run out", unit="run") as bar:
        for name in pool.names:
            others = without(tuple(other for other in pool.names if other != name))
            change = gain(metric, whole, score_answers(task, pool.truth, others).total)
            drawn = bootstrap_heads(task, pool.truth, [answers, others], draws=draws, groups=pool.groups)
            (interval,) = middle_part(((drawn[:, 0] - drawn[:, 1]) @ weights)[:, None])
            found.append(Dropped(run=name, change=change, interval=interval, seconds=seconds.get(name)))
            bar.update()
    return tuple(found)


def _entropy(decided: Sides) -> Floats:
    """Return (n,) entropy in bits of the votes of (R, n) or (R, n, C) decisions."""
    if decided.ndim == 3:
        said = decided.mean(axis=0)  # (n, C)
        return np.asarray((_surprise(said) + _surprise(1 - said)).sum(axis=1))
    same = [(decided == of_run).mean(axis=0) for of_run in decided]  # each run's share of runs that agree with it
    return np.asarray(-np.mean(np.log2(same), axis=0))


def _surprise(share: Floats) -> Floats:
    return -share * np.log2(share, out=np.zeros(share.shape), where=share > 0)


def _faith(pool: Pool, head: str, rows: slice) -> Floats:
    """Return (n,) the probability that runs give to the truth, their mean; of a multi-label head over classes too."""
    truth, values = pool.truth[head][rows], [run[head][rows] for run in pool.runs]
    if truth.ndim == 2:
        given = [np.where(truth > 0, probs, 1 - probs).mean(axis=1) for probs in values]
    else:
        given = [probs[np.arange(len(truth)), truth] for probs in values]
    return np.asarray(np.mean(given, axis=0, dtype=np.float64))


def _dispute(pool: Pool, row: int, entropy: float) -> Dispute:
    truth, opinions = {}, {}
    for name, head in pool.task.heads.items():
        true = pool.truth[name][row]
        truth[name] = _named(head, true)
        opinions[name] = {run: _opinion(head, probs[name][row], true) for run, probs in _by_name(pool)}
    return Dispute(id=str(pool.ids[row]), entropy=entropy, truth=truth, opinions=opinions)


def _by_name(pool: Pool) -> Iterator[tuple[str, Mapping[str, npt.NDArray[np.float32]]]]:
    return zip(pool.names, pool.runs, strict=True)


def _opinion(head: Head, probs: npt.NDArray[np.float32], true: npt.NDArray[np.int64]) -> Opinion:
    """Return what (C,) probabilities say, beside the true class or (C,) of 0 and 1."""
    if head.kind == "multilabel":
        said = probs >= HALF
        chance = np.where(said, probs, 1 - probs).min()
        return Opinion(said=_named(head, said), chance=float(chance), right=bool((said == (true > 0)).all()))
    label = probs.argmax()
    return Opinion(said=_named(head, label), chance=float(probs[label]), right=bool(label == true))


def _named(head: Head, answer: npt.NDArray[Any] | np.integer[Any]) -> str:
    """Return the name of a class, or those of the classes that (C,) of 0 and 1 say."""
    if np.ndim(answer) == 0:
        return head.class_names[int(answer)]
    return ", ".join(head.class_names[label] for label in np.flatnonzero(answer)) or "none"
