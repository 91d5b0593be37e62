from __future__ import annotations

from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from scipy.optimize import minimize

from kaggle_kit.blending.contest import Contest
from kaggle_kit.blending.weights import convex_weights, greedy_weights, search_weights, truth_probs
from kaggle_kit.errors import DataError, PredictionError, SettingError
from kaggle_kit.metrics import log_loss
from kaggle_kit.mixes import MixKind
from kaggle_kit.task import Head, Metric

METRICS: tuple[Metric, ...] = get_args(Metric)
LETTERS = Head(name="letters", classes=6)
LABELS = Head(name="labels", classes=4, kind="multilabel")


def make_runs(
    head: Head = LETTERS, *, num_rows: int = 400, num_runs: int = 5, seed: int = 0
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Truth, probabilities of runs of falling strength, and three parts."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, head.num_classes)
    shared, noise = rng.normal(0, 1, shape), np.linspace(1, 2, num_runs)
    if head.kind == "multilabel":
        truth = (rng.random(shape) < 0.3).astype(np.int64)
        logits = [4 * truth - 2 + shared + one * rng.normal(0, 1, shape) for one in noise]
        return truth, [(1 / (1 + np.exp(-one))).astype(np.float32) for one in logits], np.arange(num_rows) % 3
    truth = rng.integers(0, head.num_classes, num_rows)
    logits = [2 * np.eye(head.num_classes)[truth] + shared + one * rng.normal(0, 1, shape) for one in noise]
    probs = [np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in logits]
    return truth, [one.astype(np.float32) for one in probs], np.arange(num_rows) % 3


def make_contest(
    metric: Metric = "accuracy", head: Head = LETTERS, *, kind: MixKind = "arithmetic", **sizes: Any
) -> Contest:
    truth, values, parts = make_runs(head, **sizes)
    return Contest.of(metric, head, truth, values, parts, kind=kind)


def log_likelihood(weights: np.ndarray, probs: np.ndarray) -> float:
    return float(np.log(probs @ weights).mean())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("head", [LETTERS, LABELS], ids=lambda head: head.name)
def test_weights_are_no_worse_than_the_best_run_and_search_is_no_worse_than_its_start(
    head: Head, metric: Metric
) -> None:
    if head.kind == "multilabel" and metric == "quadratic_kappa":
        return
    contest = make_contest(metric, head, num_rows=150, num_runs=3)
    for without in (None, 1):
        singles = contest.scores(np.eye(3), without=without)
        greedy = greedy_weights(contest, without=without, max_steps=12)
        searched = search_weights(contest, greedy, without=without)
        assert contest.score(greedy, without=without) >= singles.max()
        assert contest.score(searched, without=without) >= contest.score(greedy, without=without) - 1e-12
        for weights in (greedy, searched):
            assert weights.shape == (3,) and weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ["arithmetic", "geometric", "vote"])
def test_greedy_takes_the_best_prefix_of_the_path_that_plain_numpy_goes(kind: MixKind) -> None:
    contest = make_contest("macro_recall", kind=kind)
    counts, path = np.zeros(5), []
    for _ in range(15):
        scores = [contest.score(counts + one) for one in np.eye(5)]
        close = [number for number, score in enumerate(scores) if score >= max(scores) - 1e-12]
        counts = counts + np.eye(5)[([number for number in close if counts[number]] or close)[0]]
        path.append((contest.score(counts), counts))
    best = max(score for score, _ in path)
    expected = next(counts for score, counts in path if score >= best - 1e-12)
    found = greedy_weights(contest, max_steps=15, patience=15)
    np.testing.assert_allclose(found, expected / expected.sum())


def test_greedy_does_not_look_at_the_part_left_out() -> None:
    truth, values, parts = make_runs()
    rows = parts != 1
    changed = [np.where(rows[:, None], one, np.roll(one, 1, axis=1)) for one in values]
    some = Contest.of("accuracy", LETTERS, truth[rows], [one[rows] for one in values], parts[rows])
    for own in (values, changed):
        contest = Contest.of("accuracy", LETTERS, truth, own, parts)
        np.testing.assert_array_equal(greedy_weights(contest, without=1), greedy_weights(some))
        np.testing.assert_array_equal(search_weights(contest, np.ones(5), without=1), search_weights(some, np.ones(5)))


@pytest.mark.parametrize("num_runs", [1, 20])
def test_equal_runs_make_the_first_one_do(num_runs: int) -> None:
    truth, values, parts = make_runs(num_runs=1)
    contest = Contest.of("accuracy", LETTERS, truth, values * num_runs, parts)
    np.testing.assert_array_equal(greedy_weights(contest), np.eye(num_runs)[0])
    assert search_weights(contest, np.ones(num_runs)).sum() == pytest.approx(1)
    weights = convex_weights(truth_probs(LETTERS, truth, values * num_runs))
    np.testing.assert_allclose(weights, np.ones(num_runs) / num_runs)


def test_a_run_that_knows_the_truth_gets_all_the_weight() -> None:
    truth, values, parts = make_runs()
    values[3] = np.eye(6, dtype=np.float32)[truth] * 0.99 + np.float32(0.01 / 6)
    contest = Contest.of("macro_f1", LETTERS, truth, values, parts)
    np.testing.assert_array_equal(greedy_weights(contest), np.eye(5)[3])
    np.testing.assert_array_equal(convex_weights(truth_probs(LETTERS, truth, values)), np.eye(5)[3])
    assert contest.score(search_weights(contest, np.ones(5))) == 1


def test_search_finds_what_a_grid_finds() -> None:
    contest = make_contest(num_runs=3, seed=3)
    grid = np.array([one for one in product(range(26), repeat=3) if sum(one) == 25])
    best = contest.scores(grid).max()
    assert contest.score(search_weights(contest, greedy_weights(contest))) >= best - 1 / 400
    assert contest.score(search_weights(contest, np.ones(3))) > contest.score(np.ones(3))


def test_small_weights_are_left_out_where_that_costs_nothing() -> None:
    truth, values, parts = make_runs(num_runs=2)
    contest = Contest.of("accuracy", LETTERS, truth, [values[0], values[0], values[1]], parts)
    weights = search_weights(contest, np.array([0.995, 0.005, 0]))
    assert weights[1] == 0 or weights[1] >= 0.01


@pytest.mark.parametrize("seed", range(3))
def test_convex_weights_are_those_that_scipy_finds(seed: int) -> None:
    truth, values, _ = make_runs(seed=seed)
    probs = truth_probs(LETTERS, truth, values)
    found = convex_weights(probs, tolerance=1e-9)
    solved = minimize(
        lambda weights: -log_likelihood(weights, probs),
        np.full(5, 0.2),
        jac=lambda weights: -((1 / (probs @ weights)) @ probs) / len(probs),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert log_likelihood(found, probs) == pytest.approx(-solved.fun, abs=1e-6)
    np.testing.assert_allclose(found, solved.x, atol=0.01)
    contest = make_contest("log_loss", seed=seed)
    assert contest.score(found) == pytest.approx(log_likelihood(found, probs), abs=1e-6)
    assert contest.score(found) >= contest.scores(np.eye(5)).max()


@pytest.mark.parametrize("head", [LETTERS, LABELS], ids=lambda head: head.name)
def test_likelihood_is_the_log_loss_and_rows_are_images(head: Head) -> None:
    truth, values, parts = make_runs(head)
    probs = truth_probs(head, truth, values)
    size = head.num_classes if head.kind == "multilabel" else 1
    assert probs.shape == (400 * size, 5) and probs.dtype == np.float64
    assert -np.log(probs[:, 2]).mean() == pytest.approx(log_loss(truth, values[2]), abs=1e-6)
    rows = parts != 1
    some = convex_weights(truth_probs(head, truth[rows], [one[rows] for one in values]))
    np.testing.assert_array_equal(convex_weights(probs, rows), some)
    np.testing.assert_array_equal(convex_weights(probs, np.repeat(rows, size)), some)


def test_convex_weights_of_sure_and_wrong_runs_are_finite() -> None:
    rng = np.random.default_rng(0)
    probs = (rng.random((50, 4)) < 0.5).astype(np.float32)  # in some rows all are sure, and wrong
    weights = convex_weights(probs)
    assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(convex_weights(np.zeros((3, 2))), [0.5, 0.5])
    np.testing.assert_array_equal(convex_weights(np.array([[1.0, 0.0]])), [1, 0])


def test_the_same_call_twice_gives_the_same_weights() -> None:
    found = []
    for _ in range(2):
        contest = make_contest("macro_f1")
        probs = truth_probs(LETTERS, *make_runs()[:2])
        found.append([greedy_weights(contest), search_weights(contest, np.ones(5)), convex_weights(probs)])
    np.testing.assert_array_equal(found[0], found[1])


def test_what_cannot_be_fitted_is_refused() -> None:
    contest = make_contest()
    with pytest.raises(SettingError, match="`max_steps` is 0; give at least 1"):
        greedy_weights(contest, max_steps=0)
    with pytest.raises(SettingError, match="part 3 of 3 cannot be left out"):
        greedy_weights(contest, without=3)
    with pytest.raises(SettingError, match="expected 5 numbers of at least 0, not all 0"):
        search_weights(contest, np.zeros(5))
    with pytest.raises(DataError, match="there are no rows to fit weights to"):
        convex_weights(np.ones((4, 2)), np.zeros(4, bool))
    with pytest.raises(PredictionError, match="run 1 gives the truth of row 2 a probability of nan"):
        convex_weights(np.array([[0.5, 0.5], [0.5, 0.5], [0.5, np.nan]]))
