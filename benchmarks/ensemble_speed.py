"""How long does greedy selection of 20 members take on 200,000 images, and how much memory?

    OMP_NUM_THREADS=1 python benchmarks/ensemble_speed.py

Draws out-of-fold probabilities of 20 members for three heads (168, 11 and 7 classes) whose errors go together, and
selects members for macro recall on all images and five times without a fold. Memory counts the probabilities, too.
Then the same selections are made by plain numpy, which averages whole arrays for every candidate, on fewer images and
steps; both must choose the same. With --whole, all of `blend_pool` runs instead: the strategies that are tried at such
a size, the running order, and mixes and rules for every prefix of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kaggle_kit.blending import blend_pool
from kaggle_kit.blending.contest import Contest
from kaggle_kit.blending.pool import join_predictions
from kaggle_kit.blending.weights import greedy_weights
from kaggle_kit.decision_search import EPSILON
from kaggle_kit.metrics import confusion_matrix, macro_recall
from kaggle_kit.predictions import Predictions
from kaggle_kit.task import Head, read_task

CLASSES = (168, 11, 7)
NUM_FOLDS = 5
PARTS = (None, *range(NUM_FOLDS))  # what is left out
CHUNK = 2_000


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What members say of one head.

    Attributes:
        head: The head.
        truth: (N,) class indices.
        values: Members' (N, C) float32 probabilities.
        folds: (N,) the fold of each image.
    """

    head: Head
    truth: np.ndarray
    values: list[np.ndarray]
    folds: np.ndarray

    def at(self, rows: np.ndarray | slice) -> Entries:
        """Return what they say of some images."""
        values = [one[rows] for one in self.values]
        return Entries(head=self.head, truth=self.truth[rows], values=values, folds=self.folds[rows])


def make_entries(num_classes: int, *, num_members: int, num_rows: int, seed: int) -> Entries:
    """Draw members of unequal strength: noise that all share, with few classes far out, and noise of their own."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(num_classes, 3.0))
    truth = rng.choice(num_classes, num_rows, p=shares)
    own = rng.uniform(0.3, 1.0, num_members).astype(np.float32)
    sure = rng.uniform(1.2, 2.5, num_members).astype(np.float32)
    values = [np.empty((num_rows, num_classes), np.float32) for _ in range(num_members)]
    for start in range(0, num_rows, CHUNK):
        rows = slice(start, min(start + CHUNK, num_rows))
        shape = (rows.stop - start, num_classes)
        base = rng.standard_gamma(0.35, shape, np.float32)
        base[np.arange(len(base)), truth[rows]] += rng.normal(3.7 + 0.7 * np.log(num_classes), 1.9, len(base)).astype(
            np.float32
        )
        for number, probs in enumerate(values):
            scores = sure[number] * (base + own[number] * rng.standard_normal(shape, np.float32))
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            probs[rows] = scores / scores.sum(axis=1, keepdims=True)
    folds = rng.integers(0, NUM_FOLDS, num_rows)
    return Entries(head=Head(name=f"of_{num_classes}", classes=num_classes), truth=truth, values=values, folds=folds)


def describe(entries: Entries) -> str:
    """Return how often members are right, and how alike their errors are."""
    wrong = np.stack([one.argmax(axis=1) != entries.truth for one in entries.values])
    alike = np.corrcoef(wrong)[np.triu_indices(len(wrong), 1)]
    right = 1 - wrong.mean(axis=1)
    disagree = wrong.any(axis=0) & ~wrong.all(axis=0)
    return (
        f"accuracy {right.min():.3f} to {right.max():.3f}, correlation of errors {alike.min():.2f} to "
        f"{alike.max():.2f}, some right and some wrong in {disagree.mean():.0%} of the images"
    )


def naive_greedy(entries: Entries, *, max_steps: int) -> np.ndarray:
    """Return what `greedy_weights` is to return, by means of whole arrays."""
    num, total = len(entries.values), np.zeros_like(entries.values[0])
    counts, best, best_counts = np.zeros(num), -np.inf, np.zeros(num)
    for step in range(1, max_steps + 1):
        scores = np.array([naive_score(entries, (total + one) / np.float32(step)) for one in entries.values])
        picked = int(np.argmax((scores >= scores.max() - EPSILON) * np.where(counts > 0, 2, 1)))
        counts[picked] += 1
        total += entries.values[picked]
        if scores[picked] > best + EPSILON:
            best, best_counts = scores[picked], counts.copy()
    return best_counts / best_counts.sum()


def naive_score(entries: Entries, mean: np.ndarray) -> float:
    """Return the macro recall of mean probabilities."""
    matrix = confusion_matrix(entries.truth, mean.argmax(axis=1), entries.head.num_classes)
    return float(macro_recall(matrix))


def contest_of(entries: Entries) -> Contest:
    """Return the contest of all members for macro recall."""
    return Contest.of("macro_recall", entries.head, entries.truth, entries.values, entries.folds)


def bench_full(heads: Sequence[Entries]) -> float:
    """Select for every head, on all images and without each fold; return the seconds."""
    whole = time.perf_counter()
    for entries in heads:
        started = time.perf_counter()
        contest = contest_of(entries)
        built = time.perf_counter() - started
        weights = greedy_weights(contest)
        once = time.perf_counter() - started - built
        nested = sum(
            contest.goodness(contest.statistics(greedy_weights(contest, without=fold))[fold])
            * (entries.folds == fold).mean()
            for fold in range(contest.num_parts)
        )
        seconds = time.perf_counter() - started
        singles = contest.scores(np.eye(contest.num_runs))
        chosen = {number: round(float(weight), 3) for number, weight in enumerate(weights) if weight}
        print(
            f"\n{entries.head.num_classes} classes: {seconds:.1f} s ({built:.1f} s preparing, {once:.1f} s choosing on "
            f"all images, {seconds - built - once:.1f} s on {contest.num_parts} times fewer)\n"
            f"  macro recall {contest.score(weights):.5f} (nested {nested:.5f}), mean of all "
            f"{contest.score(np.ones(contest.num_runs)):.5f}, best single {singles.max():.5f}\n"
            f"  best after {count_steps(weights)} steps: {chosen}"
        )
    return time.perf_counter() - whole


def count_steps(weights: np.ndarray) -> int:
    """Return the least number of steps that make these weights."""
    return next(steps for steps in range(1, 51) if np.allclose(weights * steps, (weights * steps).round()))


def bench_naive(heads: Sequence[Entries], *, rows: int, steps: int) -> None:
    """Select a few steps on some images both ways, on all of them and without each fold."""
    print(f"\nbeside plain numpy, {rows:,} images and {steps} steps, also on all images and {NUM_FOLDS} times fewer")
    for entries in heads:
        some = entries.at(slice(rows))
        started = time.perf_counter()
        contest = contest_of(some)
        chosen = [greedy_weights(contest, without=part, max_steps=steps, patience=steps) for part in PARTS]
        ours = time.perf_counter() - started
        plain = [naive_greedy(some if part is None else some.at(some.folds != part), max_steps=steps) for part in PARTS]
        naive = time.perf_counter() - started - ours
        assert np.allclose(chosen, plain), (chosen, plain)
        print(
            f"  {some.head.num_classes} classes: {ours:.2f} s with preparing, plain {naive:.2f} s ({naive / ours:.1f} "
            "times), the same weights"
        )


def bench_whole(heads: Sequence[Entries]) -> None:
    """Choose a blend of all heads together, as `kaggle-kit blend` does, but for how runs differ."""
    task = dataclasses.replace(read_task("bengali"), heads={one.head.name: one.head for one in heads}, auxiliary={})
    ids = np.array([f"image_{number:07d}" for number in range(len(heads[0].truth))])
    runs = {
        f"run{number}": Predictions(ids=ids, probs={one.head.name: one.values[number] for one in heads})
        for number in range(len(heads[0].values))
    }
    truth = {one.head.name: one.truth for one in heads}
    pool = join_predictions(task, runs, ids=ids, truth=truth, folds=heads[0].folds)
    started = time.perf_counter()
    found = blend_pool(pool)
    seconds = time.perf_counter() - started
    score, gained = found.blend.score, found.rival.shortfall
    assert score is not None
    print(f"\nthe whole choice: {seconds:.0f} s, {len(found.blend.runs)} runs by {found.choice.strategies}")
    print(f"  {task.metric} {score.total:.5f}, {gained.value:+.5f} over the best single run {found.rival.run}")


def main() -> None:
    """Draw, select, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--naive-rows", type=int, default=10_000)
    parser.add_argument("--naive-steps", type=int, default=10)
    parser.add_argument("--whole", action="store_true", help="time the whole choice instead")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    started = time.perf_counter()
    heads = [make_entries(size, num_members=options.members, num_rows=options.rows, seed=size) for size in CLASSES]
    size_gb = sum(one.nbytes for entries in heads for one in entries.values) / 1e9
    print(
        f"{options.members} members, {options.rows:,} images: {size_gb:.2f} GB of probabilities, drawn in "
        f"{time.perf_counter() - started:.0f} s"
    )
    for entries in heads:
        print(f"  {entries.head.num_classes} classes: {describe(entries)}")
    if options.whole:
        bench_whole(heads)
        print(f"peak memory {peak_gb():.2f} GB")
        return
    seconds = bench_full(heads)
    print(f"\nall heads: {seconds:.1f} s, peak memory {peak_gb():.2f} GB")
    bench_naive(heads, rows=options.naive_rows, steps=options.naive_steps)


def peak_gb() -> float:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
