from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from kaggle_kit.blending.contest import Contest
from kaggle_kit.blending.costs import Costs
from kaggle_kit.blending.frontier import (
    FrontierPoint,
    SubsetScores,
    find_frontier,
    format_frontier,
    point_within,
    running_order,
)
from kaggle_kit.blending.plots import draw_frontier
from kaggle_kit.blending.pool import Pool
from kaggle_kit.errors import SettingError
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.scores import score_answers
from kaggle_kit.task import Metric, task_from_plain
from kaggle_kit.train.plots import save_figure, to_svg

METRICS: tuple[Metric, ...] = get_args(Metric)
SINGLE = {"root": {"classes": 4, "weight": 2}, "vowel": {"classes": 3}}
SEVERAL = {"tags": {"classes": 3, "kind": "multilabel"}}


def make_pool(
    num_runs: int, *, metric: str = "accuracy", heads: Mapping[str, Any] = SINGLE, num_rows: int = 120, seed: int = 0
) -> Pool:
    """Runs of different strength, whose errors are partly alike, in three parts."""
    rng = np.random.default_rng(seed)
    images = {"format": "files", "folder": "images", "test_list": "test.csv"}
    submission = {"form": "row_per_head", "id": "row_id"}
    task = task_from_plain(
        {"name": "made-up", "heads": dict(heads), "metric": metric, "images": images, "submission": submission}
    )
    runs: list[dict[str, np.ndarray]] = [{} for _ in range(num_runs)]
    truth, priors = {}, {}
    for name, head in task.heads.items():
        many, shape = head.kind == "multilabel", (num_rows, head.num_classes)
        said = (
            rng.integers(0, 2, shape)
            if many
            else np.eye(head.num_classes, dtype=int)[rng.integers(0, shape[1], num_rows)]
        )
        truth[name] = said if many else said.argmax(axis=1)
        priors[name] = said.mean(axis=0)
        shared = rng.normal(0, 0.7, shape)
        for number, run in enumerate(runs):
            scores = np.exp(2 * said - 1 + shared + rng.normal(0, 0.8 + 0.15 * number, shape))
            run[name] = (scores / (1 + scores) if many else scores / scores.sum(axis=1, keepdims=True)).astype(
                np.float32
            )
    return Pool(
        task=task,
        names=tuple(f"run{number}" for number in range(num_runs)),
        ids=np.array([str(row) for row in range(num_rows)]),
        runs=tuple(runs),
        truth=truth,
        parts=rng.integers(0, 3, num_rows),
        unseen=np.zeros(num_rows, bool),
        groups=None,
        counts={},
        priors=priors,
    )


def scores_of(pool: Pool) -> SubsetScores:
    contests = {
        name: Contest.of(pool.task.metric, head, pool.truth[name], [run[name] for run in pool.runs], pool.parts)
        for name, head in pool.task.heads.items()
    }
    return SubsetScores.of(pool, contests)


def make_seconds(pool: Pool, seed: int = 0) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {name: float(rng.lognormal(-4, 1)) for name in pool.names}


def mean_score(pool: Pool, names: tuple[str, ...], rows: Any = slice(None)) -> float:
    """The score of a mean by the long way round."""
    runs = pool.of(names).runs
    mean = {head: np.mean([run[head][rows] for run in runs], axis=0) for head in pool.task.heads}
    return score_answers(pool.task, {head: one[rows] for head, one in pool.truth.items()}, mean).total


def every_subset(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [some for size in range(1, 1 + len(names)) for some in itertools.combinations(names, size)]


def count_scored(scores: SubsetScores, monkeypatch: pytest.MonkeyPatch) -> list[frozenset[int]]:
    """Return what grows by every subset that is asked for."""
    asked: list[frozenset[int]] = []
    measure = scores.measure

    def counted(several: Sequence[frozenset[int]]) -> Any:
        asked.extend(several)
        return measure(several)

    monkeypatch.setattr(scores, "measure", counted)
    return asked


def sign(metric: str) -> int:
    return -1 if metric in LOWER_IS_BETTER else 1


COUNTED = tuple(metric for metric in METRICS if metric not in ("roc_auc", "average_precision"))


@pytest.mark.parametrize("metric", COUNTED)
def test_a_subset_scores_what_its_mean_scores_in_all_and_without_each_part(metric: Metric) -> None:
    pool = make_pool(4, metric=metric)
    scores = scores_of(pool)
    for some in every_subset(pool.names):
        subset = frozenset(pool.names.index(name) for name in some)
        assert scores.value(scores.measure([subset])[0, 0]) == pytest.approx(mean_score(pool, some))
        for part, number in enumerate(np.unique(pool.parts)):
            found = scores.value(scores.measure([subset])[0, 1 + part])
            assert found == pytest.approx(mean_score(pool, some, pool.parts != number))


@pytest.mark.parametrize("metric", [metric for metric in COUNTED if metric != "quadratic_kappa"])
def test_subsets_of_multilabel_heads_score_what_their_mean_scores(metric: Metric) -> None:
    pool = make_pool(3, metric=metric, heads=SEVERAL)
    scores = scores_of(pool)
    for some in every_subset(pool.names):
        subset = frozenset(pool.names.index(name) for name in some)
        assert scores.value(scores.measure([subset])[0, 0]) == pytest.approx(mean_score(pool, some))


@pytest.mark.parametrize(("metric", "num_runs"), [("macro_recall", 6), ("log_loss", 5), ("quadratic_kappa", 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_frontier_is_what_all_subsets_say(metric: Metric, num_runs: int, seed: int) -> None:
    pool = make_pool(num_runs, metric=metric, seed=seed)
    seconds = make_seconds(pool, seed)
    points = find_frontier(pool.names, seconds, scores_of(pool))
    cost = {some: sum(seconds[name] for name in some) for some in every_subset(pool.names)}
    goodness = {some: sign(metric) * mean_score(pool, some) for some in cost}
    for point in points:
        assert point.seconds == pytest.approx(cost[point.runs])
        assert sign(metric) * point.score == pytest.approx(goodness[point.runs])
    for some in cost:
        reached = [one for one in points if one.seconds is not None and one.seconds <= cost[some] * (1 + 1e-12)]
        assert sign(metric) * reached[-1].score >= goodness[some] - 1e-8
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(points))  # type: ignore[operator]
    assert all(sign(metric) * a.score < sign(metric) * b.score for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_best_within_a_budget_fits_it_and_more_never_scores_less(metric: Metric) -> None:
    pool = make_pool(6, metric=metric)
    seconds, scores = make_seconds(pool), scores_of(pool)
    cost = {some: sum(seconds[name] for name in some) for some in every_subset(pool.names)}
    goodness = {some: sign(metric) * mean_score(pool, some) for some in cost}
    points = find_frontier(pool.names, seconds, scores)
    before = -np.inf
    for limit in np.linspace(min(seconds.values()), 1.1 * sum(seconds.values()), 25):
        runs = point_within(points, limit).runs
        assert cost[runs] <= limit
        assert goodness[runs] == pytest.approx(max(goodness[some] for some in cost if cost[some] <= limit))
        assert goodness[runs] >= before - 1e-9
        before = goodness[runs]


@pytest.mark.parametrize("seed", range(4))
def test_the_search_of_many_runs_finds_what_all_subsets_of_few_say(seed: int) -> None:
    pool = make_pool(6, seed=seed)
    seconds = make_seconds(pool, seed)
    searched = find_frontier(pool.names, seconds, scores_of(pool), exhaustive_runs=0)
    every = find_frontier(pool.names, seconds, scores_of(pool))
    assert [point.runs for point in searched] == [point.runs for point in every]


def test_twenty_runs_are_searched_within_the_number_of_subsets_and_alike_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = make_pool(20, num_rows=60)
    seconds, scores = make_seconds(pool), scores_of(pool)
    scored = count_scored(scores, monkeypatch)
    points = find_frontier(pool.names, seconds, scores, most_subsets=900)
    assert len(scored) == len(set(scored)) <= 900
    assert all(a.score < b.score for a, b in itertools.pairwise(points))
    assert find_frontier(pool.names, seconds, scores, most_subsets=900) == points
    scores.measure([frozenset([1, 2, 3, 5, 8, 13])])  # what else was scored changes nothing
    assert find_frontier(pool.names, seconds, scores, most_subsets=900) == points
    for single in pool.names:
        assert point_within(points, seconds[single]).score >= mean_score(pool, (single,)) - 1e-9


def test_the_nested_score_chooses_on_the_other_parts() -> None:
    pool = make_pool(4, num_rows=60)
    seconds = make_seconds(pool)
    for point in find_frontier(pool.names, seconds, scores_of(pool)):
        answers = {head: np.zeros_like(pool.runs[0][head]) for head in pool.task.heads}
        within = [some for some in every_subset(pool.names) if sum(map(seconds.get, some)) <= point.seconds + 1e-12]  # type: ignore[arg-type]
        within.sort(key=lambda some: sum(seconds[name] for name in some))
        for part in np.unique(pool.parts):
            held = pool.parts == part
            best = max(within, key=lambda some: round(mean_score(pool, some, ~held), 9))
            for head in answers:
                answers[head][held] = np.mean([run[head][held] for run in pool.of(best).runs], axis=0)
        assert point.nested_score == pytest.approx(score_answers(pool.task, pool.truth, answers).total)


def test_where_nothing_was_chosen_the_nested_score_is_the_score() -> None:
    pool = make_pool(1)
    (point,) = find_frontier(pool.names, {"run0": 0.5}, scores_of(pool))
    assert point.runs == ("run0",) and point.nested_score == pytest.approx(point.score)


def test_one_part_alone_has_no_nested_score() -> None:
    pool = make_pool(3)
    pool.parts[:] = 4
    assert {point.nested_score for point in find_frontier(pool.names, None, scores_of(pool))} == {None}


@pytest.mark.parametrize("metric", METRICS)
def test_one_image_has_a_frontier(metric: Metric) -> None:
    pool = make_pool(3, num_rows=1, metric=metric)
    assert find_frontier(pool.names, None, scores_of(pool))


def test_equal_runs_are_worth_no_more_than_the_cheapest() -> None:
    pool = make_pool(1, metric="log_loss")
    pool = Pool(**{**vars(pool), "names": ("a", "b", "c"), "runs": pool.runs * 3})
    points = find_frontier(pool.names, {"a": 3, "b": 1, "c": 2}, scores_of(pool))
    assert [point.runs for point in points] == [("b",)]
    assert running_order(pool.names, {"a": 3, "b": 1, "c": 2}, scores_of(pool)) == ("b", "c", "a")
    assert running_order(pool.names, None, scores_of(pool)) == ("a", "b", "c")


def test_without_seconds_runs_count_the_same() -> None:
    pool = make_pool(5)
    points = find_frontier(pool.names, None, scores_of(pool))
    assert [point.seconds for point in points] == [None] * len(points)
    assert all(len(a.runs) < len(b.runs) for a, b in itertools.pairwise(points))
    best = max(pool.names, key=lambda name: mean_score(pool, (name,)))
    assert points[0].runs == (best,)
    with pytest.raises(SettingError, match="not known what runs take"):
        point_within(points, 1.0)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
@pytest.mark.parametrize("timed", [True, False])
def test_last_in_running_order_is_what_gains_least_a_second_over_those_before_it(metric: Metric, timed: bool) -> None:
    pool = make_pool(5, metric=metric)
    seconds, scores = make_seconds(pool) if timed else None, scores_of(pool)
    order = running_order(pool.names, seconds, scores)
    assert sorted(order) == sorted(pool.names)
    assert order == running_order(pool.names, seconds, scores_of(pool))
    for size in range(5, 1, -1):
        whole = sign(metric) * mean_score(pool, order[:size])
        margin = {}
        for name in order[:size]:
            gained = whole - sign(metric) * mean_score(pool, tuple(one for one in order[:size] if one != name))
            margin[name] = gained / seconds[name] if seconds and gained > 0 else gained
        assert margin[order[size - 1]] == pytest.approx(min(margin.values()), abs=1e-7)


def test_a_cheap_run_that_is_weak_does_not_come_before_a_good_one() -> None:
    pool = make_pool(3, heads={"root": {"classes": 4}})
    rng = np.random.default_rng(5)
    weak, good = (
        np.where(rng.random(len(pool)) < share, pool.truth["root"], rng.integers(0, 4, len(pool)))
        for share in (0.4, 0.8)
    )
    for run, said in zip(pool.runs, (weak, good, good), strict=True):
        run["root"][:] = 0.1 + 0.6 * np.eye(4)[said]
    seconds = {"run0": 0.001, "run1": 0.01, "run2": 0.02}
    assert running_order(pool.names, seconds, scores_of(pool)) == ("run1", "run2", "run0")


def test_twenty_runs_are_ordered_by_210_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(20, num_rows=40)
    scores = scores_of(pool)
    scored = count_scored(scores, monkeypatch)
    assert sorted(running_order(pool.names, make_seconds(pool), scores)) == sorted(pool.names)
    assert len(scored) == len(set(scored)) <= 210


def test_one_run_is_in_order() -> None:
    assert running_order(["run0"], {"run0": 2.0}, scores_of(make_pool(1))) == ("run0",)


def test_what_harms_most_comes_last_however_cheap() -> None:
    pool = make_pool(4, heads={"root": {"classes": 4}})
    for bad, share in ((1, 0.3), (3, 1.0)):
        wrong = np.random.default_rng(bad).random(len(pool)) < share
        pool.runs[bad]["root"][:] = pool.runs[0]["root"]
        pool.runs[bad]["root"][wrong] = np.eye(4)[(pool.truth["root"][wrong] + 1) % 4]
    for seconds in ({"run0": 5.0, "run1": 4.0, "run2": 4.5, "run3": 0.01}, None):
        order = running_order(pool.names, seconds, scores_of(pool))
        assert order[2:] == ("run1", "run3")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_seconds_must_be_above_0(value: float) -> None:
    pool = make_pool(2)
    with pytest.raises(SettingError, match=rf"1 of 2 runs have no time: 'run1' \({value}\)"):
        find_frontier(pool.names, {"run0": 1.0, "run1": value}, scores_of(pool))
    with pytest.raises(SettingError, match=r"'run1' \(missing\)"):
        running_order(pool.names, {"run0": 1.0}, scores_of(pool))


def test_a_budget_that_nothing_fits_names_the_cheapest_run() -> None:
    pool = make_pool(3)
    points = find_frontier(pool.names, {"run0": 0.5, "run1": 0.3, "run2": 1.0}, scores_of(pool))
    with pytest.raises(SettingError, match=r"no run fits 1 h for 36,000 images: the cheapest, 'run1', takes 3 h for"):
        point_within(points, 0.1, num_images=36_000)
    with pytest.raises(SettingError, match=r"no run fits 100 s for 1,000 images: the cheapest, 'run1', takes 300 s"):
        point_within(points, 0.1)
    assert point_within(points, 0.3).runs == ("run1",)


def made_points(count: int, *, low: bool = False, span: float = 60.0) -> list[FrontierPoint]:
    scores = 0.97 - 0.05 * np.exp(-np.linspace(0, 3, count))
    return [
        FrontierPoint(
            runs=tuple(f"a_very_long_name_of_a_run_{number}_{one}" for one in range(1 + 2 * number // 3)),
            seconds=0.004 * span ** (number / max(1, count - 1)),
            score=float(1 - score if low else score),
            nested_score=float(1 - score + 0.001 if low else score - 0.001),
        )
        for number, score in enumerate(scores)
    ]


def test_the_table_marks_the_chosen_runs_and_says_where_seconds_come_from() -> None:
    points = made_points(4)
    here = Costs(seconds={}, device="this CPU", measured_here=True)
    lines = format_frontier(
        points, metric="log_loss", chosen=points[2].runs, costs=here, num_images=36_000, accelerator="NvidiaTeslaT4"
    )
    assert "mean of the runs" in lines[0] and "by the highest probability (log_loss: lower is better)" in lines[0]
    assert "h for 36,000" in lines[1] and " chosen " in lines[1]
    assert [" yes " in line for line in lines[2:6]] == [False, False, True, False]
    assert lines[2].split()[:5] == ["1", "4", "0.04", f"{points[0].score:.4f}", f"{points[0].nested_score:.4f}"]
    assert lines[-1] == (
        "seconds were measured here, on this CPU; what they are on NvidiaTeslaT4 is unknown: measure there, and give "
        "that file of costs"
    )
    there = Costs(seconds={}, device="Tesla T4")
    assert (
        format_frontier(points, metric="accuracy", costs=there)[-1] == "seconds come from a file, measured on Tesla T4"
    )
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize("chosen", [(), ("a", "b")])
def test_a_table_of_which_nothing_was_chosen_has_no_column_of_it(chosen: tuple[str, ...]) -> None:
    points = made_points(4)
    lines = format_frontier(points, metric="accuracy", chosen=chosen)
    assert "chosen" not in "".join(lines)
    assert lines[1].index("which") == lines[2].index(points[0].runs[0])
    marked = format_frontier(points, metric="accuracy", chosen=points[0].runs)
    assert marked[1].index("which") == marked[2].index(points[0].runs[0])
    assert marked[1].index("chosen") == marked[2].index("yes")


@pytest.mark.parametrize("measured_here", [True, False])
def test_the_table_says_where_timings_were_unsteady(measured_here: bool) -> None:
    costs = Costs(seconds={}, device="this CPU, 1 thread", measured_here=measured_here, steady=False)
    line = format_frontier(made_points(2), metric="accuracy", costs=costs)[-1]
    assert "unsteady, so that the running order may change" in line and "on a quiet machine, or give a file" in line


def test_a_long_table_leaves_out_what_gains_little() -> None:
    points = made_points(40)
    lines = format_frontier(points, metric="accuracy", chosen=points[-2].runs)
    assert len(lines) < 40 and "left out" in lines[-1]
    assert sum(" yes " in line for line in lines) == 1
    assert f"{points[-1].score:.4f}" in lines[-2] and f"{points[0].score:.4f}" in lines[2]
    assert " and 24 more" in lines[-2]


def test_a_table_without_seconds_has_no_column_of_them() -> None:
    pool = make_pool(2)
    points = find_frontier(pool.names, None, scores_of(pool))
    lines = format_frontier(points, metric="accuracy", num_images=100)
    assert "1,000" not in lines[1] and "100" not in lines[1] and "not known" in lines[-1]


@pytest.mark.parametrize(("count", "span"), [(1, 1.0), (2, 3.0), (20, 60.0)])
def test_the_picture_names_the_chosen_point_and_both_ends(count: int, span: float, tmp_path: Path) -> None:
    points = made_points(count, span=span)
    chosen = points[count // 2]
    figure = draw_frontier(
        points,
        metric="accuracy",
        chosen=chosen.runs,
        prefixes=[(1.1 * point.seconds, point.score - 0.002) for point in points if point.seconds],
        num_images=200_000,
        hours_budget=9.0,
    )
    assert figure is not None
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.texts]
    assert sum("chosen" in name for name in names) == 1
    assert f"{len(points[-1].runs)} runs" in names or count <= 2 or "chosen" in names[0]
    assert axes.get_xlabel() == "hours for 200,000 images" and "higher is better" in axes.get_ylabel()
    assert axes.get_xscale() == "log"  # the limit is far away
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert save_figure(figure, tmp_path / "frontier.png").stat().st_size > 10_000
    assert "currentColor" in to_svg(figure)


def test_the_picture_is_logarithmic_only_where_times_span_a_decade() -> None:
    scales = []
    for span in (3.0, 30.0):
        figure = draw_frontier(made_points(5, span=span, low=True), metric="log_loss")
        assert figure is not None
        scales.append(figure.axes[0].get_xscale())
        assert "lower is better" in figure.axes[0].get_ylabel()
        assert figure.axes[0].get_xlabel() == "seconds for 1,000 images"
    assert scales == ["linear", "log"]


@pytest.mark.parametrize("name", ["\u0995", "$x^", "plain"])
def test_names_a_font_may_lack_are_numbers_in_the_picture(name: str, tmp_path: Path) -> None:
    points = [
        FrontierPoint(runs=(name,), seconds=None, score=0.5),
        FrontierPoint(runs=("a", name), seconds=None, score=0.6),
    ]
    figure = draw_frontier(points, metric="accuracy", chosen=("a", name))
    assert figure is not None
    save_figure(figure, tmp_path / "frontier.png")
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "2 runs, chosen",
        name if name.isascii() else "run of point 1",
    ]
    assert figure.axes[0].get_xlabel() == "runs"


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_frontier([], metric="accuracy") is None


@pytest.mark.parametrize(
    ("points", "num_images", "message"),
    [
        (made_points(2), None, "the number of images is not known"),
        ([FrontierPoint(runs=("a",), seconds=None, score=0.5)], 100, "what runs take is not known"),
    ],
)
def test_a_budget_that_cannot_be_drawn_is_refused(
    points: list[FrontierPoint], num_images: int | None, message: str
) -> None:
    with pytest.raises(SettingError, match=f"`hours_budget` is 9.0, and {message}"):
        draw_frontier(points, metric="accuracy", num_images=num_images, hours_budget=9.0)
