from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit.baseline import (
    Baseline,
    SeedScore,
    check_baseline,
    format_baseline,
    format_verdict,
    judge,
    read_baseline,
    record_baseline,
)
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.experiment import Experiment
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels


def fake(shift: float = 0.0, noise: float = 0.01):
    """A training whose score is its seed's draw, moved by `shift`."""

    def train(experiment: Experiment) -> SimpleNamespace:
        total = 0.8 + noise * float(np.random.default_rng(experiment.train.seed).normal()) + shift
        return SimpleNamespace(score=SimpleNamespace(total=total, heads={"root": total + 0.1, "vowel": total - 0.1}))

    return train


@pytest.fixture
def overrides(wide: Toy, tmp_path: Path) -> list[str]:
    """A recipe of one's own on the toy competition."""
    import yaml

    from kaggle_kit.task import task_to_plain

    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task_to_plain(wide.task)))
    make_folds(read_labels(wide.task, wide.data), num_folds=2).save(tmp_path / "folds.parquet")
    return [
        f"task={tmp_path}/task.yaml",
        f"data={wide.data}",
        f"folds={tmp_path}/folds.parquet",
        "model=tiny_resnet",
        "model.input_size=[32,48]",
        "loader.batch_size=8",
        "epochs=1",
    ]


def baseline_of(values: list[float], metric: str = "accuracy") -> Baseline:
    scores = tuple(SeedScore(seed=i, total=v, heads={"root": v}, seconds=1.0) for i, v in enumerate(values))
    return Baseline(overrides=(), recipe={}, metric=metric, scores=scores, environment={}, created="")


def test_what_is_recorded_reads_back_equal(overrides: list[str], tmp_path: Path) -> None:
    made = record_baseline(tmp_path / "b.json", overrides, num_seeds=4, train=fake())
    assert read_baseline(tmp_path / "b.json") == made
    assert [score.seed for score in made.scores] == [0, 1, 2, 3]
    totals = [score.total for score in made.scores]
    assert made.mean == pytest.approx(np.mean(totals)) and made.deviation == pytest.approx(np.std(totals, ddof=1))
    assert {"kaggle_kit", "python", "torch", "timm", "albumentations"} <= set(made.environment)
    text = "\n".join(format_baseline(made))
    assert f"macro_recall {made.mean:.4f}" in text and "head vowel" in text


@pytest.mark.parametrize(
    ("shift", "outcome", "passed", "first"),
    [
        (0.0, "identical", True, "IDENTICAL: the same scores to the last bit for the same 3 seed"),
        (1e-9, "unmoved", True, "UNMOVED: macro_recall 0.8"),
        (-0.1, "worse", False, "WORSE: .*down by 0.1"),
        (0.1, "better", True, "BETTER: .*record it anew"),
    ],
)
def test_a_moved_score_is_told_from_seed_noise(
    overrides: list[str], tmp_path: Path, shift: float, outcome: str, passed: bool, first: str
) -> None:
    record_baseline(tmp_path / "b.json", overrides, num_seeds=5, train=fake())
    verdict = check_baseline(tmp_path / "b.json", num_seeds=3, train=fake(shift))
    assert (verdict.outcome, verdict.passed) == (outcome, passed)
    assert re.match(first, format_verdict(verdict)[0])


def test_the_test_is_scipy_s_and_one_new_seed_will_do() -> None:
    from scipy import stats

    old, new = [0.80, 0.81, 0.79, 0.82, 0.80], [0.76, 0.78]
    verdict = judge(baseline_of(old), baseline_of(new).scores, {}, false_alarm=0.02)
    reference = stats.ttest_ind(new, old)
    quantile = stats.t.ppf(0.99, len(old) + len(new) - 2)
    assert verdict.least == pytest.approx(abs((np.mean(new) - np.mean(old)) / reference.statistic) * quantile)
    assert (verdict.outcome == "worse") == (reference.pvalue < 0.02)
    assert judge(baseline_of(old), baseline_of([0.5]).scores, {}).outcome == "worse"


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(4000):
        values = rng.normal(0.9, 0.01, 8).tolist()
        outcomes.append(judge(baseline_of(values[:5]), baseline_of(values[5:]).scores, {}, false_alarm=0.1).outcome)
    for outcome in ("worse", "better"):
        assert outcomes.count(outcome) / 4000 == pytest.approx(0.05, abs=0.015)


def test_where_lower_is_better_a_higher_score_is_worse() -> None:
    old = baseline_of([0.30, 0.31, 0.32], metric="log_loss")
    assert judge(old, baseline_of([0.5, 0.51]).scores, {}).outcome == "worse"
    assert judge(old, baseline_of([0.1, 0.11]).scores, {}).outcome == "better"


def test_a_head_that_changes_is_not_identical() -> None:
    old = baseline_of([0.8, 0.81, 0.82])
    now = [dataclasses.replace(score, heads={"root": score.total + 1e-12}) for score in old.scores]
    assert judge(old, now, {}).outcome == "unmoved"


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(values))


def test_what_changed_since_is_told(overrides: list[str], tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    record_baseline(file, overrides, num_seeds=3, train=fake())
    edit(file, environment={"timm": "0.1"})
    values = json.loads(file.read_text())
    del values["recipe"]["optim.clip_norm"]  # as if the setting were new
    file.write_text(json.dumps(values))
    notes = "\n".join(check_baseline(file, num_seeds=1, train=fake()).notes)
    assert "timm 0.1 became" in notes and "settings that are new since: 'optim.clip_norm'" in notes


def test_a_changed_recipe_is_refused(overrides: list[str], tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    record_baseline(file, overrides, num_seeds=3, train=fake())
    edit(file, recipe={"epochs": "7"})
    with pytest.raises(SettingError, match="another recipe .*epochs: 7 there, 1 now.*record it again"):
        check_baseline(file, train=lambda _: pytest.fail("it trained"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "there is no baseline"),
        ("{", "is no baseline"),
        ("[]", "is no baseline"),
        ('{"format": 9}', "no baseline of format 1"),
        ('{"format": 1, "scores": 3}', "is no baseline"),
    ],
)
def test_files_that_are_no_baseline_are_refused(tmp_path: Path, text: str | None, match: str) -> None:
    file = tmp_path / "b.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=match):
        check_baseline(file)


@pytest.mark.parametrize(
    ("more", "seeds", "match"),
    [
        (["seed=3"], 3, "leave 'seed=3' out"),
        (["out=x"], 3, "leave 'out=x' out"),
        (["epochss=3"], 3, "`epochss` is not a setting"),
        ([], 2, "at least 3 seeds"),
    ],
)
def test_recipes_that_will_not_do_are_refused(
    overrides: list[str], tmp_path: Path, more: list[str], seeds: int, match: str
) -> None:
    with pytest.raises(SettingError, match=match):
        record_baseline(tmp_path / "b.json", [*overrides, *more], num_seeds=seeds, train=fake())
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("options", "match"), [({"num_seeds": 4}, "holds 3 seeds"), ({"false_alarm": 0.0}, "false al")]
)
def test_checks_that_will_not_do_are_refused(
    overrides: list[str], tmp_path: Path, options: dict[str, float], match: str
) -> None:
    record_baseline(tmp_path / "b.json", overrides, num_seeds=3, train=fake())
    with pytest.raises(SettingError, match=match):
        check_baseline(tmp_path / "b.json", train=fake(), **options)


@pytest.mark.slow
def test_an_unchanged_kit_trains_the_same_bits_again(overrides: list[str], tmp_path: Path) -> None:
    made = record_baseline(tmp_path / "b.json", overrides, num_seeds=3)
    assert made.deviation >= 0 and made.scores[0].heads.keys() == {"root", "vowel"}
    assert check_baseline(tmp_path / "b.json", num_seeds=2).outcome == "identical"
