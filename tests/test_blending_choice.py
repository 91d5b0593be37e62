from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kaggle_kit.blend_command import METHODS
from kaggle_kit.blending import Budget, blend_pool, with_diversity
from kaggle_kit.blending.costs import Costs
from kaggle_kit.blending.pool import Pool, join_predictions
from kaggle_kit.blending.prefixes import helpful_runs
from kaggle_kit.blending.strategies import MEANINGS, STRATEGIES, HeadFitter, strategies_for
from kaggle_kit.blending.tables import format_order, format_steps, format_weights
from kaggle_kit.ensemble import blend_probs, load_blend, save_blend
from kaggle_kit.errors import SettingError
from kaggle_kit.predictions import Predictions
from kaggle_kit.task import Task, task_from_plain


def make_task(metric: str = "accuracy", **heads: dict[str, object]) -> Task:
    return task_from_plain(
        {
            "name": "toy",
            "heads": heads or {"root": {"classes": 5, "weight": 2}, "vowel": {"classes": 3}},
            "metric": metric,
            "images": {"format": "files", "folder": "images", "test_list": "test.csv", "id": "image"},
            "labels": {"id": "image"},
            "submission": {"form": "row_per_head", "id": "row_id"},
        }
    )


def make_pool(task: Task, strengths: list[float], *, rows: int = 600, seed: int = 0, common: float = 0.5) -> Pool:
    """Runs whose logits hold the truth times a strength, and noise of which a part is common to all."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"i{number:05d}" for number in range(rows)])
    truth = {name: rng.integers(head.num_classes, size=rows) for name, head in task.heads.items()}
    shared = {name: rng.normal(size=(rows, head.num_classes)) for name, head in task.heads.items()}
    runs = {}
    for number, strength in enumerate(strengths):
        probs = {}
        for name, head in task.heads.items():
            noise = common * shared[name] + (1 - common) * 2 * rng.normal(size=(rows, head.num_classes))
            logits = strength * np.eye(head.num_classes)[truth[name]] + noise
            exp = np.exp(logits - logits.max(axis=1, keepdims=True))
            probs[name] = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
        runs[f"run{number}"] = Predictions(ids=ids, probs=probs)
    return join_predictions(task, runs, ids=ids, truth=truth, folds=np.arange(rows) % 3)


def test_the_command_line_offers_every_strategy() -> None:
    assert METHODS == STRATEGIES == tuple(MEANINGS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_blends_saves_and_says_what_it_is(strategy: str, tmp_path) -> None:
    pool = make_pool(make_task("macro_recall"), [2.0, 1.5, 1.0])
    found = blend_pool(pool, strategies=[strategy], draws=50)
    assert set(found.choice.strategies.values()) == {strategy}
    assert len(found.blend.prefixes) == len(found.blend.runs)
    assert found.blend.score is not None and found.blend.score.total > 0.3
    save_blend(found.blend, tmp_path / "blend.json")
    assert load_blend(tmp_path / "blend.json") == found.blend
    text = "\n".join([*format_steps(found.choice), *format_weights(found.blend), *format_order(found)])
    assert strategy in text and MEANINGS[strategy] in text and "run0" in text


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_blend_in_running_order_is_the_mix_that_was_fitted(strategy: str) -> None:
    pool = make_pool(make_task(), [1.0, 1.5, 2.0])
    found = blend_pool(pool, strategies=[strategy], fit_rules=False, draws=50)
    runs = [pool.runs[pool.names.index(name)] for name in found.blend.runs]
    mixed = blend_probs(found.blend, runs)
    for head in pool.task.heads:
        fitter = HeadFitter(pool, head)
        expected = fitter.mixed(fitter.fit(strategy), slice(None))
        assert np.abs(mixed[head] - expected).max() < 1e-6


def test_nothing_but_luck_is_not_chosen() -> None:
    kept = 0
    for seed in range(4):
        pool = make_pool(make_task(), [1.5, 1.5], rows=300, seed=seed, common=1.0)  # all runs say the same
        found = blend_pool(pool, draws=100, seed=seed)
        kept += sum(name not in ("best", "mean") for name in found.choice.strategies.values())
    assert kept == 0


def test_a_run_that_knows_nothing_is_left_out() -> None:
    pool = make_pool(make_task(), [2.5, 0.0, 2.5], rows=900, common=0.2)
    found = blend_pool(pool, strategies=["best", "mean", "greedy"], draws=200)
    shares = found.blend.shares()
    assert shares.get("run1", 0.0) < 0.1
    assert found.scores.all.total >= max(step.value for step in found.steps if step.name == "best") - 0.02


def test_scores_are_nested_and_not_those_of_the_rows_fitted_on() -> None:
    rng = np.random.default_rng(0)
    task, rows = make_task(), 240
    ids = np.array([f"i{number}" for number in range(rows)])
    truth = {name: rng.integers(head.num_classes, size=rows) for name, head in task.heads.items()}
    runs = {}
    for number in range(8):
        probs = {name: rng.dirichlet(np.ones(head.num_classes), rows) for name, head in task.heads.items()}
        runs[f"run{number}"] = Predictions(ids=ids, probs={name: p.astype(np.float32) for name, p in probs.items()})
    pool = join_predictions(task, runs, ids=ids, truth=truth, folds=np.arange(rows) % 4)
    found = blend_pool(pool, strategies=["search"], fit_rules=False, draws=50)
    fitter = HeadFitter(pool, "root")
    in_sample = (fitter.mixed(fitter.fit("search"), slice(None)).argmax(axis=1) == truth["root"]).mean()
    assert in_sample > 0.24 and found.scores.all.heads["root"] < in_sample


def test_every_prefix_has_mixes_rules_and_a_score_of_its_own() -> None:
    pool = make_pool(make_task("macro_recall"), [1.0, 2.0, 1.5], common=0.2)
    costs = Costs(seconds={"run0": 0.01, "run1": 0.02, "run2": 0.01}, device="here", measured_here=True)
    found = blend_pool(pool, strategies=["mean"], costs=costs, draws=50)
    assert set(found.blend.runs) == {"run0", "run1", "run2"} and found.blend.seconds == costs.seconds
    scores = [prefix.score.total for prefix in found.blend.prefixes if prefix.score]
    assert len(scores) == 3 and scores[-1] > scores[0]
    first = found.blend.first(2)
    alone = blend_pool(pool.of(first.runs), strategies=["mean"], draws=50)
    assert first.score is not None and alone.blend.score is not None
    assert first.score.total == pytest.approx(alone.blend.score.total)


def test_a_budget_leaves_runs_out_and_needs_costs() -> None:
    pool = make_pool(make_task(), [2.0, 1.5, 1.9], common=0.2)
    costs = Costs(seconds={"run0": 0.010, "run1": 0.001, "run2": 0.012}, device="here", measured_here=True)
    budget = Budget(hours=0.012 * 1000 / 3600, images=1000)
    found = blend_pool(pool, budget=budget, costs=costs, strategies=["best", "mean"], draws=50)
    assert sum(costs.seconds[name] for name in found.blend.runs) <= budget.seconds
    assert [point.runs for point in found.frontier]
    with pytest.raises(SettingError, match="needs to know what runs cost"):
        blend_pool(pool, budget=budget, draws=50)
    with pytest.raises(SettingError, match="'run1'"):
        blend_pool(pool, budget=Budget(hours=1e-6, images=1000), costs=costs, draws=50)
    with pytest.raises(SettingError, match="hours above 0"):
        Budget(hours=0, images=1000)


def test_what_dropping_a_run_costs_is_measured_by_fitting_without_it() -> None:
    pool = make_pool(make_task(), [2.5, 2.4, 0.2], common=0.1)
    found = with_diversity(blend_pool(pool, strategies=["mean"], draws=50))
    assert found.diversity is not None
    change = {one.run: one.change for one in found.diversity.dropped}
    assert change["run0"] > change["run2"]


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "macro_f1", "weighted_f1", "quadratic_kappa"])
def test_every_metric_is_blended_and_never_falls_far_behind_the_best_run(metric: str) -> None:
    pool = make_pool(make_task(metric), [2.0, 1.0, 1.8], rows=400, common=0.3)
    found = blend_pool(pool, strategies=["best", "mean", "convex", "greedy", "calibrated"], draws=60)
    best = next(step for step in found.steps if step.name == "best" and step.head == "root")
    used = next(step for step in found.steps if step.kept and step.head == "root")
    assert (used.value <= best.value) if metric == "log_loss" else (used.value >= best.value)


def test_a_single_run_is_left_as_it_is() -> None:
    pool = make_pool(make_task(), [2.0])
    found = blend_pool(pool, draws=50)
    assert found.blend.runs == ("run0",) and not found.shortfalls
    assert strategies_for(pool) == ("mean",)


def test_multilabel_heads_are_blended() -> None:
    task = make_task("macro_f1", tags={"classes": ["a", "b", "c"], "kind": "multilabel"})
    rng = np.random.default_rng(0)
    ids = np.array([f"i{number}" for number in range(300)])
    truth = {"tags": (rng.random((300, 3)) < 0.4).astype(np.uint8)}
    runs = {
        f"run{number}": Predictions(
            ids=ids,
            probs={
                "tags": (1 / (1 + np.exp(-(3 * truth["tags"] - 1.5 + rng.normal(size=(300, 3)) * noise)))).astype("f4")
            },
            multilabel=("tags",),
        )
        for number, noise in enumerate((1.0, 2.0, 4.0))
    }
    pool = join_predictions(task, runs, ids=ids, truth=truth, folds=np.arange(300) % 3)
    for strategy in STRATEGIES[:-1]:
        found = blend_pool(pool, strategies=[strategy], draws=30)
        assert found.blend.score is not None and found.blend.score.total > 0.6, strategy


def test_few_groups_that_agree_by_chance_are_not_enough() -> None:
    pool = make_pool(make_task(), [1.5, 1.5, 1.5], rows=90, common=0.8)
    grouped = dataclasses.replace(pool, groups=np.arange(90) % 3)
    tried = blend_pool(grouped, strategies=["mean", "greedy", "search"], draws=200)
    alone = blend_pool(pool, strategies=["mean", "greedy", "search"], draws=200)
    for by_groups, by_images in zip(tried.steps, alone.steps, strict=True):
        assert by_groups.interval[0] <= by_images.interval[0] and by_groups.interval[1] >= by_images.interval[1]


def test_runs_that_harm_beyond_luck_are_left_out_wherever_they_come() -> None:
    pool = make_pool(make_task(), [2.5, 2.4, 0.0], rows=900, common=0.1)
    means = dict.fromkeys(pool.task.heads, "mean")
    assert helpful_runs(pool, means, rules=()) == ("run0", "run1")
    assert helpful_runs(pool.of(["run2", "run1", "run0"]), means, rules=()) == ("run1", "run0")


def test_the_best_run_alone_is_decided_by_rules_of_its_own() -> None:
    pool = make_pool(make_task("macro_recall"), [1.0, 2.5, 1.2], common=0.2)
    found = blend_pool(pool, strategies=["mean"], draws=50)
    alone = blend_pool(pool.of(["run1"]), draws=50)
    assert found.rival.run == "run1" and alone.blend.score is not None and found.blend.score is not None
    assert found.rival.score.total == pytest.approx(alone.blend.score.total)
    assert found.rival.shortfall.value == pytest.approx(found.blend.score.total - alone.blend.score.total)
    assert set(found.alone) == {"run0", "run1", "run2"}


def test_ranks_of_a_part_are_taken_from_the_others() -> None:
    pool = make_pool(make_task(), [1.5, 1.0])
    fitter = HeadFitter(pool, "root")
    changed = [{name: values.copy() for name, values in run.items()} for run in pool.runs]
    held = pool.parts == 0
    for run in changed:
        run["root"][held] = run["root"][held][:, ::-1]
    other = HeadFitter(dataclasses.replace(pool, runs=tuple(changed)), "root")
    assert all((a == b).all() for a, b in zip(fitter.ranks(0), other.ranks(0), strict=True))
    assert not all((a == b).all() for a, b in zip(fitter.ranks(), other.ranks(), strict=True))
