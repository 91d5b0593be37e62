from __future__ import annotations

import dataclasses
import math
from typing import get_args

import numpy as np
import pytest

from kaggle_kit.blending.diversity import (
    Diversity,
    Dropped,
    format_diversity,
    measure_diversity,
    where_they_disagree,
)
from kaggle_kit.blending.pool import Pool
from kaggle_kit.errors import DataError
from kaggle_kit.predictions import Probs
from kaggle_kit.scores import score_answers
from kaggle_kit.task import Metric, Task, task_from_plain

TWO_HEADS = {"root": {"classes": ["a", "b", "c"], "weight": 3}, "vowel": {"classes": 2}}
TAGS = {"tags": {"classes": ["cat", "dog", "owl", "never"], "kind": "multilabel"}}


def make_task(heads: dict, metric: str = "accuracy") -> Task:
    images = {"format": "files", "folder": "images", "test_list": "test.csv"}
    submission = {"form": "row_per_head", "id": "row_id"}
    values = {"name": "made-up", "heads": heads, "metric": metric, "images": images, "submission": submission}
    return task_from_plain({**values, "stored": {"height": 24, "width": 32}})


def make_pool(
    heads: dict, *, num_runs: int = 3, num_images: int = 90, metric: str = "accuracy", names: tuple[str, ...] = ()
) -> Pool:
    """Runs that err together on some images and alone on others, the later ones more often."""
    rng = np.random.default_rng(0)
    task = make_task(heads, metric)
    truth, runs = {}, [{} for _ in range(num_runs)]
    for name, head in task.heads.items():
        shape = (num_images, head.num_classes)
        if head.kind == "multilabel":
            truth[name] = (rng.random(shape) < 0.4).astype(np.int64)
            truth[name][:, -1] = 0
            signal = 2 * truth[name] - 1
        else:
            truth[name] = rng.integers(0, head.num_classes, num_images)
            signal = 2 * np.eye(head.num_classes)[truth[name]]
        hard = rng.normal(size=shape)
        for number, run in enumerate(runs):
            scores = 2 * signal + 1.4 * hard + (0.8 + number / num_runs) * rng.normal(size=shape)
            run[name] = as_probs(scores, many=head.kind == "multilabel")
    counts = {
        h: t.sum(axis=0) if t.ndim == 2 else np.bincount(t, minlength=task.heads[h].num_classes)
        for h, t in truth.items()
    }
    return Pool(
        task=task,
        names=names or tuple(f"run{number}" for number in range(num_runs)),
        ids=np.array([f"image{number}" for number in range(num_images)]),
        runs=tuple(runs),
        truth=truth,
        parts=np.arange(num_images) % 3,
        unseen=np.zeros(num_images, bool),
        groups=None,
        counts=counts,
        priors={head: values / values.sum() for head, values in counts.items()},
    )


def as_probs(scores: np.ndarray, *, many: bool) -> np.ndarray:
    if many:
        return (1 / (1 + np.exp(-scores))).astype(np.float32)
    values = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def mean_of(pool: Pool) -> Probs:
    return {head: np.mean([run[head] for run in pool.runs], axis=0) for head in pool.task.heads}


def measure(pool: Pool, *, drop: bool = False, draws: int = 50, seconds: dict[str, float] | None = None) -> Diversity:
    without = (lambda names: mean_of(pool.of(names))) if drop else None
    return measure_diversity(pool, answers=mean_of(pool), without=without, draws=draws, seconds=seconds)


def with_probs(pool: Pool, probs: list[list[list[float]]], truth: list[int]) -> Pool:
    """Replace a pool of one head by a few written images."""
    (head,) = pool.task.heads
    rows = len(truth)
    return dataclasses.replace(
        pool,
        names=pool.names[: len(probs)],
        ids=pool.ids[:rows],
        runs=tuple({head: np.array(values, np.float32)} for values in probs),
        truth={head: np.array(truth)},
        parts=pool.parts[:rows],
        unseen=pool.unseen[:rows],
    )


def test_correlation_and_disagreement_are_numpys_weighted_over_heads() -> None:
    pool = make_pool(TWO_HEADS)
    found = measure(pool)
    correlation, differ = np.zeros((3, 3)), np.zeros((3, 3))
    for head, share in (("root", 0.75), ("vowel", 0.25)):
        decided = np.stack([run[head].argmax(axis=1) for run in pool.runs])
        correlation += share * np.corrcoef(decided != pool.truth[head])
        differ += share * np.array([[np.mean(one != other) for other in decided] for one in decided])
    np.testing.assert_allclose(found.error_correlation, correlation, atol=1e-9)
    np.testing.assert_allclose(found.disagreement, differ, atol=1e-12)


def test_errors_of_multilabel_heads_are_counted_by_class_and_answers_by_image() -> None:
    pool = make_pool(TAGS)
    found = measure(pool)
    said = np.stack([run["tags"] >= 0.5 for run in pool.runs])
    wrong = (said != pool.truth["tags"]).reshape(3, -1)
    np.testing.assert_allclose(found.error_correlation, np.corrcoef(wrong), atol=1e-9)
    assert found.disagreement[0, 2] == pytest.approx((said[0] != said[2]).any(axis=1).mean())
    right = (said == pool.truth["tags"]).all(axis=2)
    assert list(found.unique_right.values()) == [int((one & (right.sum(axis=0) == 1)).sum()) for one in right]


def test_equal_runs_are_alike_and_know_nothing_alone() -> None:
    pool = make_pool(TWO_HEADS, num_runs=2)
    pool = dataclasses.replace(pool, runs=(pool.runs[0],) * 2)
    found = measure(pool, drop=True)
    np.testing.assert_allclose(found.error_correlation, 1)
    assert not found.disagreement.any() and set(found.unique_right.values()) == {0}
    assert [one.change for one in found.dropped] == [0, 0] and found.dropped[0].interval == (0, 0)
    assert found.dropped[0].verdict == "may be luck"
    assert where_they_disagree(pool) == ()


@pytest.mark.parametrize("right", [True, False], ids=["never wrong", "always wrong"])
def test_a_run_without_errors_to_compare_has_no_correlation(right: bool) -> None:
    pool = make_pool({"root": {"classes": 3}}, num_runs=2)
    sure = np.eye(3, dtype=np.float32)[pool.truth["root"] if right else (pool.truth["root"] + 1) % 3]
    pool = dataclasses.replace(pool, runs=({"root": sure}, pool.runs[1]))
    found = measure(pool)
    assert np.isnan(found.error_correlation[0]).all() and found.error_correlation[1, 1] == 1
    assert "\u2013" in format_diversity(found)[2]


def test_a_head_in_which_a_run_makes_no_error_is_left_out_of_its_correlations() -> None:
    pool = make_pool(TWO_HEADS, num_runs=2)
    runs = (pool.runs[0] | {"vowel": np.eye(2, dtype=np.float32)[pool.truth["vowel"]]}, pool.runs[1])
    found = measure(dataclasses.replace(pool, runs=runs))
    wrong = [run["root"].argmax(axis=1) != pool.truth["root"] for run in runs]
    assert found.error_correlation[0, 1] == pytest.approx(np.corrcoef(wrong)[0, 1])


def test_only_what_a_single_run_gets_right_counts_as_its_own() -> None:
    pool = make_pool({"vowel": {"classes": 2}}, num_runs=3)
    yes, no = [0.1, 0.9], [0.9, 0.1]
    pool = with_probs(pool, [[yes, yes, no, no], [no, yes, no, no], [no, no, yes, no]], truth=[1, 1, 1, 1])
    assert measure(pool).unique_right == {"run0": 1, "run1": 0, "run2": 1}


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        *((metric, "multiclass") for metric in get_args(Metric)),
        *((metric, "multilabel") for metric in get_args(Metric) if metric != "quadratic_kappa"),  # of classes in order
    ],
)
def test_every_metric_gives_scores_and_gains_in_the_direction_that_helps(metric: str, kind: str) -> None:
    heads = TAGS if kind == "multilabel" else {"root": {"classes": 4}}
    pool = make_pool(heads, num_runs=4, metric=metric)
    useless = {head: np.full_like(probs, 1 / probs.shape[1]) for head, probs in pool.runs[0].items()}
    pool = dataclasses.replace(pool, runs=(useless, *pool.runs[1:]))

    def without(names: tuple[str, ...]) -> Probs:
        return useless if "run3" not in names else mean_of(pool.of(names))

    found = measure_diversity(pool, answers=pool.runs[3], without=without, draws=40)
    assert found.scores == {
        name: score_answers(pool.task, pool.truth, run).total for name, run in zip(pool.names, pool.runs, strict=True)
    }
    helps = found.dropped[3]
    assert helps.run == "run3" and helps.change > 0 and helps.verdict == "helps"
    assert all(low <= high and math.isfinite(low) for low, high in (one.interval for one in found.dropped))


def test_dropping_refits_the_others_and_pairs_the_resamples() -> None:
    pool = make_pool(TWO_HEADS, num_runs=3)
    found = measure(pool, drop=True, seconds={"run1": 0.5})
    whole = score_answers(pool.task, pool.truth, mean_of(pool)).total
    for one in found.dropped:
        others = pool.of([name for name in pool.names if name != one.run])
        assert one.change == pytest.approx(whole - score_answers(pool.task, pool.truth, mean_of(others)).total)
        assert one.interval[0] <= one.change <= one.interval[1]
        assert one.interval[1] - one.interval[0] < 0.2
    assert [one.seconds for one in found.dropped] == [None, 0.5, None]
    again = measure(pool, drop=True, seconds={"run1": 0.5})
    assert again.dropped == found.dropped


def test_images_of_a_group_are_resampled_together() -> None:
    pool = make_pool(TWO_HEADS, num_images=60)
    grouped = dataclasses.replace(pool, groups=np.arange(60) // 20)
    assert measure(pool, drop=True).dropped[0].interval != measure(grouped, drop=True).dropped[0].interval


def test_decided_classes_may_stand_for_the_blend() -> None:
    pool = make_pool(TWO_HEADS)
    decided = {head: probs.argmax(axis=1) for head, probs in mean_of(pool).items()}
    found = measure_diversity(pool, answers=decided, without=lambda _: decided, draws=20)
    assert {one.change for one in found.dropped} == {0.0}


def test_one_run_has_nothing_to_be_compared_with() -> None:
    pool = make_pool(TWO_HEADS, num_runs=1)
    found = measure(pool, drop=True)
    assert found.dropped == () and found.disagreement.tolist() == [[0]]
    assert where_they_disagree(pool) == ()
    assert len(format_diversity(found)) == 2


def test_one_image_of_one_class_is_measured() -> None:
    pool = make_pool({"vowel": {"classes": 2}}, num_runs=2)
    pool = with_probs(pool, [[[0.2, 0.8]], [[0.6, 0.4]]], truth=[1])
    found = measure(pool, drop=True)
    assert found.disagreement[0, 1] == 1 and np.isnan(found.error_correlation).all()
    assert found.dropped[0].change == 1 and found.dropped[0].interval == (1, 1)


def test_a_metric_without_a_value_is_refused() -> None:
    pool = make_pool({"vowel": {"classes": 2}}, num_runs=2, metric="roc_auc")
    pool = dataclasses.replace(pool, truth={"vowel": np.ones(len(pool), np.int64)})
    with pytest.raises(DataError, match="roc_auc has no value"):
        measure(pool)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool({**TWO_HEADS, **TAGS}, num_runs=4)
    whole, disputes = measure(pool), where_they_disagree(pool)
    monkeypatch.setattr("kaggle_kit.decision._CHUNK", 7)
    parts = measure(pool)
    np.testing.assert_allclose(parts.error_correlation, whole.error_correlation, atol=1e-12)
    np.testing.assert_allclose(parts.disagreement, whole.disagreement, atol=1e-12)
    assert parts.unique_right == whole.unique_right and where_they_disagree(pool) == disputes


def test_the_most_disputed_images_come_first_with_what_each_run_says() -> None:
    pool = make_pool({"root": {"classes": ["a", "b", "c"]}}, num_runs=3)
    a, b, c = [0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.0, 0.1, 0.9]
    pool = with_probs(pool, [[a, a, a, a], [a, a, b, b], [a, b, b, c]], truth=[0, 0, 2, 1])
    disputes = where_they_disagree(pool)
    assert [one.id for one in disputes] == ["image3", "image2", "image1"]  # of the last two the less likely truth first
    assert disputes[0].entropy == pytest.approx(math.log2(3))
    assert disputes[1].entropy == pytest.approx(-math.log2(1 / 3) / 3 - math.log2(2 / 3) * 2 / 3)
    assert disputes[0].truth == {"root": "b"}
    said = disputes[0].opinions["root"]
    assert [(one.said, round(one.chance, 4), one.right) for one in said.values()] == [
        ("a", 0.8, False),
        ("b", 0.5, True),
        ("c", 0.9, False),
    ]
    assert [one.id for one in where_they_disagree(pool, limit=1)] == ["image3"]


def test_labels_of_a_multilabel_head_are_listed_and_their_disputes_add_up() -> None:
    pool = make_pool(TAGS, num_runs=2)
    truth = np.array([[1, 0, 1, 0], [0, 0, 0, 0]])
    first = np.array([[0.9, 0.1, 0.6, 0.2], [0.1, 0.1, 0.1, 0.1]], np.float32)
    second = np.array([[0.9, 0.7, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]], np.float32)
    pool = dataclasses.replace(
        pool, ids=pool.ids[:2], truth={"tags": truth}, runs=({"tags": first}, {"tags": second}), parts=pool.parts[:2]
    )
    (one,) = where_they_disagree(pool)
    assert one.entropy == pytest.approx(2) and one.truth == {"tags": "cat, owl"}
    opinions = list(one.opinions["tags"].values())
    assert [(opinion.said, opinion.right) for opinion in opinions] == [("cat, owl", True), ("cat, dog", False)]
    assert opinions[0].chance == pytest.approx(0.6)


def test_a_table_has_all_pairs_of_a_few_runs() -> None:
    pool = make_pool(TWO_HEADS, num_runs=8)
    found = measure(pool, drop=True, seconds={"run0": 0.0123})
    lines = format_diversity(found)
    assert f"{found.disagreement[0, 7]:.1%}" in lines[1] and f"{found.error_correlation[7, 0]:.2f}" in lines[8]
    assert lines[1].startswith("1 run0") and "below the diagonal" in lines[9]
    assert any("12.3" in line and "run0" in line for line in lines[10:]) and len(lines) == 10 + 1 + 8
    assert max(map(len, lines)) <= 100


def test_a_table_of_many_runs_names_the_most_and_the_least_alike() -> None:
    names = tuple(f"a_long_folder_name_of_a_run_that_goes_on_and_on_{number:02}" for number in range(20))
    pool = make_pool(TWO_HEADS, num_runs=20, names=names)
    lines = format_diversity(measure(pool))
    assert len(lines) == 1 + 20 + 10
    assert lines[21].startswith("most alike: ") and lines[-1].startswith("most different: ")
    values = [float(line.split("correlate ")[1].split(",")[0]) for line in lines[21:]]
    assert values[:5] == sorted(values[:5], reverse=True) and values[5:] == sorted(values[5:])
    assert values[4] > values[-1] and max(map(len, lines)) <= 150


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.001, 0.2), "helps"), ((-0.2, -0.001), "hurts"), ((0.0, 0.2), "may be luck")]
)
def test_a_run_helps_where_the_interval_lies_above_zero(interval: tuple[float, float], verdict: str) -> None:
    assert Dropped(run="a", change=0.0, interval=interval).verdict == verdict
