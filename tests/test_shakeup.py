from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import make_wide, wide_task

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import Folds
from kaggle_kit.labels import read_labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.scores import Score, SplitScore, bootstrap_heads, score_answers
from kaggle_kit.shakeup import Part, Shakeup, estimate_shakeup
from kaggle_kit.shakeup.of_runs import shakeup_of_runs
from kaggle_kit.shakeup.report import advise, format_shakeup, outlooks, plot_shakeup
from kaggle_kit.task import Metric, Task
from kaggle_kit.train.config import ModelConfig, TrainConfig

ROWS = 400
UNSEEN = np.arange(ROWS) % 4 == 0
TRUTH = {"root": np.arange(ROWS) % 3, "vowel": np.arange(ROWS) // 3 % 2}
SIZES = {"root": 3, "vowel": 2}
SEEN_PART = Part(num_images=200, unseen_share=0)
HALF_PART = Part(num_images=200, unseen_share=0.5)


def task_of(metric: Metric) -> Task:
    return dataclasses.replace(wide_task(), metric=metric)


def answers(seen: float, unseen: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Classes of which this share is right."""
    draws = np.random.default_rng([99, seed]).random(ROWS)  # the seed of an estimate would draw what it is made of
    right = draws < np.where(UNSEEN, unseen, seen)
    return {head: np.where(right, truth, (truth + 1) % SIZES[head]) for head, truth in TRUTH.items()}


def probs(right: float) -> dict[str, np.ndarray]:
    """Probabilities that give the true class about as much."""
    noise = np.random.default_rng(99).normal(0, 0.15, ROWS)
    values = {}
    for head, truth in TRUTH.items():
        of_truth = np.clip(right + noise, 0.05, 0.95)
        values[head] = np.repeat(((1 - of_truth) / (SIZES[head] - 1))[:, None], SIZES[head], axis=1)
        values[head][np.arange(ROWS), truth] = of_truth
    return {head: value.astype(np.float32) for head, value in values.items()}


def estimate(runs: dict, metric: Metric = "accuracy", **changed) -> Shakeup:
    values = {"public": SEEN_PART, "private": HALF_PART, "draws": 60} | changed
    return estimate_shakeup(task_of(metric), TRUTH, runs, UNSEEN, **values)


@pytest.mark.parametrize("share", [0, 0.25, 0.33, 0.5, 1])
def test_every_draw_holds_exactly_the_wanted_share_of_unseen_rows(share: float) -> None:
    part = Part(num_images=200, unseen_share=share)
    shakeup = estimate({"a": answers(seen=1, unseen=0)}, public=part, private=HALF_PART)
    assert shakeup.public == pytest.approx(1 - share, abs=1e-9)
    assert shakeup.private == pytest.approx(0.5, abs=1e-9)
    assert shakeup.cv == pytest.approx([0.75])


@pytest.mark.parametrize("metric", ["macro_recall", "log_loss", "roc_auc"])
def test_scores_vary_as_resampled_images_do(metric: Metric) -> None:
    run = answers(0.8, 0.6) if metric == "macro_recall" else probs(0.6)
    task = task_of(metric)
    everything = np.zeros(ROWS, bool)
    part = Part(num_images=ROWS, unseen_share=0)
    shakeup = estimate_shakeup(task, TRUTH, {"a": run}, everything, public=part, private=part, draws=150)
    plain = bootstrap_heads(task, TRUTH, [run], draws=150)[:, 0] @ [2 / 3, 1 / 3]
    assert shakeup.public.mean() == pytest.approx(plain.mean(), abs=5e-3)
    both = np.sqrt(2) * plain.std()  # of the part, and as much again of cross-validation, which has as many rows
    assert shakeup.public.std() == pytest.approx(both, rel=0.3)
    assert shakeup.cv[0] == pytest.approx(score_answers(task, TRUTH, run).total)
    assert (shakeup.public != shakeup.private).any()


@pytest.mark.parametrize("metric", ["macro_recall", "log_loss", "average_precision"])
def test_identical_runs_tie(metric: Metric) -> None:
    run = probs(0.6)
    shakeup = estimate({"a": run, "b": run, "c": run}, metric, draws=20)
    assert shakeup.rank_change == 0
    assert shakeup.leader_holds == shakeup.choice_leads == 1
    assert shakeup.leads_private == pytest.approx(1 / 3)
    assert shakeup.lost == pytest.approx((0, 0, 0), abs=1e-12) and shakeup.noise == 0
    assert shakeup.rival is None and np.isnan(shakeup.spearman)
    assert shakeup.rank_moves[0].tolist() == [1, 0, 0] and np.isnan(shakeup.rank_moves[1:]).all()
    assert advise(shakeup).startswith("Choose any of 'a', 'b', 'c': they score the same")


def test_a_run_better_on_unseen_and_worse_on_seen_wins_private_and_loses_public() -> None:
    shakeup = estimate({"seen": answers(0.98, 0.3), "unseen": answers(0.85, 0.8)})
    assert shakeup.choice == "unseen" and shakeup.rival == "seen"
    assert shakeup.leads_public.tolist() == [1, 0]
    assert shakeup.leads_private.tolist() == [0, 1]
    assert shakeup.rank_moves.tolist() == [[0, 1], [1, 0]]
    assert (shakeup.leader_holds, shakeup.choice_leads, shakeup.rank_change) == (0, 1, 1)
    assert shakeup.spearman == pytest.approx(-1)
    lost, low, high = shakeup.lost
    assert lost == pytest.approx(np.diff(shakeup.expected_private)[0]) and 0 < low < lost < high
    assert shakeup.noise > lost + (0.98 - 0.85) / 2
    assert advise(shakeup).startswith("Choose 'unseen', even if another leads the public board: it is best")
    assert "wrong in 100 % and costs" in advise(shakeup)


def test_the_same_parts_and_a_clear_leader_are_no_shakeup() -> None:
    runs = {"bad": answers(0.5, 0.5), "good": answers(0.95, 0.9, seed=1), "worse": answers(0.2, 0.2, seed=2)}
    shakeup = estimate(runs, public=HALF_PART)
    assert shakeup.rank_change == 0 and shakeup.spearman == pytest.approx(1)
    assert shakeup.order.tolist() == [1, 0, 2]
    assert advise(shakeup).startswith("Choose 'good', which will lead the public board too")
    assert advise(shakeup).endswith("too: it leads private in 100 % of draws.")


def test_a_sure_choice_that_may_not_lead_public_is_told_without_ifs() -> None:
    shakeup = estimate({"seen": answers(0.9, 0.3), "unseen": answers(0.85, 0.8)})
    one, other = shakeup.public.max(), shakeup.public.min()
    early = np.arange(60)[:, None] < 6  # the other leads public, and both lead private
    public = np.where(early, [[one, other]], [[other, one]])
    private = np.where(early, one, [[other, one]])
    sure = dataclasses.replace(shakeup, public=public, private=private)
    assert advise(sure) == "Choose 'unseen': it leads private in 100 % of draws, whatever the public board says."


def test_the_outlooks_hold_what_the_table_shows() -> None:
    shakeup = estimate({"seen": answers(0.98, 0.3), "unseen": answers(0.85, 0.8)})
    best, other = outlooks(shakeup)
    assert (best.name, other.name, best.leads_private, best.leads_public) == ("unseen", "seen", 1, 0)
    assert best.cv == shakeup.cv[1] and best.private == pytest.approx(shakeup.expected_private[1])
    assert best.public_interval == pytest.approx(np.quantile(shakeup.public[:, 1], [0.025, 0.975]))


def test_a_rank_correlation_that_is_none_is_left_out() -> None:
    shakeup = estimate({"a": answers(0.9, 0.5), "b": answers(0.8, 0.6)})
    tied = dataclasses.replace(shakeup, public=np.full_like(shakeup.public, 0.9))
    assert np.isnan(tied.spearman) and tied.rival is not None
    assert "nan" not in "".join(format_shakeup(tied)) and "ranks move by" in "".join(format_shakeup(tied))
    assert "rank correlation" in "".join(format_shakeup(shakeup))


def test_percentages_of_few_draws_are_called_coarse() -> None:
    (note,) = estimate({"a": answers(1, 1)}, draws=20).notes
    assert note == "only 20 draw(s): percentages are coarse, in steps of 5 %; draw more, such as 300"


def test_how_runs_decide_is_said_of_metrics_of_classes_alone() -> None:
    assert "highest probability" not in "".join(format_shakeup(estimate({"a": probs(0.6)}, "log_loss")))


def test_runs_that_lead_together_share_the_draw() -> None:
    best = answers(0.95, 0.9)
    shakeup = estimate({"a": best, "b": best, "c": answers(0.5, 0.5)})
    assert shakeup.leads_private.tolist() == [0.5, 0.5, 0]
    assert shakeup.rank_moves[2].tolist() == [0, 0, 1] and np.isnan(shakeup.rank_moves[1]).all()
    assert shakeup.choice == "a" and shakeup.rival == "c"
    assert shakeup.rank_change == 0 and shakeup.leader_holds == 1


def test_the_lower_log_loss_is_better() -> None:
    shakeup = estimate({"worse": probs(0.5), "better": probs(0.8)}, "log_loss")
    assert shakeup.choice == "better" and shakeup.order.tolist() == [1, 0]
    assert shakeup.leads_public.tolist() == [0, 1]
    assert shakeup.expected_private[1] < shakeup.expected_private[0]
    swapped = dataclasses.replace(shakeup, public=shakeup.public[:, ::-1])
    assert swapped.lost[0] == pytest.approx(-np.diff(shakeup.expected_private)[0]) and swapped.lost[1] > 0


def test_the_same_seed_draws_the_same_images() -> None:
    runs = {"a": answers(0.9, 0.5), "b": answers(0.8, 0.6, seed=1)}
    first, same, other = (estimate(runs, seed=seed) for seed in (3, 3, 4))
    assert (first.public == same.public).all() and (first.private == same.private).all()
    assert advise(first) == advise(same)
    assert (first.public != other.public).any()


def test_probabilities_and_the_classes_they_decide_shake_alike() -> None:
    decided = {head: p.argmax(axis=1) for head, p in probs(0.5).items()}
    shakeup = estimate({"probs": probs(0.5), "classes": decided})
    assert (shakeup.public[:, 0] == shakeup.public[:, 1]).all()


def test_one_run_is_told_how_far_its_score_moves() -> None:
    shakeup = estimate({"only": answers(0.9, 0.5)})
    assert advise(shakeup).startswith("With 'only' alone no rank can change, but expect its score to go from 0.")
    low, high = np.quantile(shakeup.private - shakeup.public, [0.025, 0.975])
    same = dataclasses.replace(shakeup, public=shakeup.private[::-1])
    assert f"but expect about {shakeup.private.mean():.4f} on both; they will differ by -0." in advise(same)
    assert advise(same).endswith("in 95 % of draws.")
    assert f"a change of {low:.4f} to {high:.4f}" in advise(shakeup)
    assert shakeup.rank_change == 0 and shakeup.leads_private.tolist() == [1]


def test_few_unseen_rows_are_noted() -> None:
    few = np.arange(ROWS) < 5
    big = Part(num_images=1000, unseen_share=0.5)
    shakeup = estimate_shakeup(task_of("accuracy"), TRUTH, {"a": answers(1, 1)}, few, public=big, private=big, draws=50)
    assert len(shakeup.notes) == 1
    assert "only 5 out-of-fold row(s) are unseen" in shakeup.notes[0]
    assert not estimate({"a": answers(1, 1)}, draws=50).notes
    assert format_shakeup(shakeup)[-1].startswith("note: only 5 out-of-fold")


def test_a_metric_that_sorts_draws_less_where_there_is_much_to_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaggle_kit.shakeup._MOST_VALUES", 1)
    monkeypatch.setattr("kaggle_kit.shakeup._FEWEST_DRAWS", 7)
    shakeup = estimate({"a": probs(0.6)}, "roc_auc")
    assert len(shakeup.public) == 7
    assert shakeup.notes == ("roc_auc sorts probabilities: parts were drawn 7 times, not 60",)


def test_the_table_names_each_run_and_ends_with_the_sentence() -> None:
    shakeup = estimate({"seen": answers(0.98, 0.3), "a_longer_name": answers(0.85, 0.8)})
    lines = format_shakeup(shakeup)
    assert lines[1].startswith("a_longer_name") and lines[2].startswith("seen")
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[1].endswith("0 %          100 %")
    assert "60 draws; public: 200 images, 0 % unseen; private: 200 images, 50 % unseen" in lines[-3]
    assert lines[-2] == "runs decide by their highest probability here; `blend` may add fitted rules"
    assert lines[-1] == advise(shakeup)


@pytest.mark.parametrize("num_runs", [1, 2, 23])
def test_the_plot_is_a_png(num_runs: int, tmp_path: Path) -> None:
    runs = {f"{'very_' * 9}long_$name$_{i}": answers(0.9, 0.5 + i / 50, seed=i) for i in range(num_runs)}
    plot_shakeup(estimate(runs, draws=20), tmp_path / "shakeup.png")
    assert (tmp_path / "shakeup.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_runs_that_tie_everywhere_can_be_plotted(tmp_path: Path) -> None:
    plot_shakeup(estimate({"a": answers(1, 1), "b": answers(1, 1)}), tmp_path / "shakeup.png")
    assert (tmp_path / "shakeup.png").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_images": 0, "unseen_share": 0.5}, "`num_images` of a part is 0; give 1 or more"),
        ({"num_images": 9, "unseen_share": 30}, "`unseen_share` of a part is 30; give a share from 0 to 1"),
        ({"num_images": 9, "unseen_share": float("nan")}, "`unseen_share` of a part is nan"),
    ],
)
def test_a_part_that_is_none_is_refused(values: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Part(**values)


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        (np.zeros(ROWS, bool), "the private part needs 100 unseen image.* 0 of 400 .* --scheme unseen.* share of 0"),
        (np.ones(ROWS, bool), "the public part needs 200 seen image.* 0 of 400 .* --scheme stratified.* share of 1"),
        (np.zeros(ROWS), "`unseen` is float64 .400,.; give one bool"),
        (np.zeros(0, bool), "`unseen` is bool .0,.; give one bool"),
        (np.ones(9, bool), "truth, head 'root' has shape .400,.; expected .9,."),
    ],
)
def test_parts_that_cannot_be_drawn_are_refused(unseen: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimate_shakeup(task_of("accuracy"), TRUTH, {"a": answers(1, 1)}, unseen, public=SEEN_PART, private=HALF_PART)


def with_nan() -> dict[str, np.ndarray]:
    broken = probs(0.6)
    broken["vowel"][7, 1] = np.nan
    return broken


@pytest.mark.parametrize(
    ("metric", "runs", "message"),
    [
        ("accuracy", {}, "there are no runs to compare"),
        ("accuracy", {"a": answers(1, 1), "b": with_nan()}, "run 'b', head 'vowel': probs of row 7 hold NaN .1 row"),
        ("log_loss", {"b": with_nan()}, "run 'b', head 'vowel': probs of row 7 hold NaN"),
        ("log_loss", {"a": answers(1, 1)}, "run 'a', head 'root' has shape .400,.; expected .400, 3."),
        ("accuracy", {"a": {"root": TRUTH["root"]}}, "run 'a' has no head 'vowel', only 'root'"),
        ("accuracy", {"a": TRUTH | {"vowel": TRUTH["root"]}}, "head 'vowel' is int64 from 0 to 2; expected class"),
        ("accuracy", {"a": TRUTH | {"root": TRUTH["root"] * 0.5}}, "head 'root' is float64 from 0.0 to 1.0"),
    ],
)
def test_answers_that_do_not_fit_are_refused(metric: Metric, runs: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimate(runs, metric)


def test_no_draws_and_parts_too_small_for_the_metric_are_refused() -> None:
    with pytest.raises(SettingError, match="`draws` is 0"):
        estimate({"a": answers(1, 1)}, draws=0)
    with pytest.raises(DataError, match="roc_auc has no value in 60 of 60 draws; give parts of more images"):
        estimate({"a": probs(0.6)}, "roc_auc", private=Part(num_images=1, unseen_share=0))


def finished_run(
    folder: Path, task: Task, data: Path, folds: Folds, *, seed: int = 0, rows: slice = slice(None)
) -> Run:
    """A run folder as far as a shake-up reads it; its images lie in another order for each seed."""
    rng = np.random.default_rng(seed)
    labels = read_labels(task, data).take(rng.permutation(48)[rows])
    values = {}
    for head, classes in labels.classes.items():
        noisy = rng.random((len(labels), SIZES[head])) + np.eye(SIZES[head])[classes]
        values[head] = (noisy / noisy.sum(axis=1, keepdims=True)).astype(np.float32)
    Predictions(ids=labels.ids, probs=values).save(folder / "oof.npz")
    folds.save(folder / "folds.parquet")
    score = SplitScore(all=Score(total=0.0, heads={}, rows=1))
    config = TrainConfig(model=ModelConfig(name="test_resnet"))
    return Run(folder=folder, task=task, config=config, data=data, packed=data, packed_key="", scores=score, folds={})


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Task, Path, Folds]:
    made = make_wide(tmp_path / "toy")
    ids = read_labels(made.task, made.data).ids
    rows = np.arange(48)
    folds = Folds(ids=ids, fold=rows % 2, unseen=rows % 3 == 0, scheme="unseen", seed=0, data_hash="x")
    return made.task, made.data, folds


PARTS = {"public": Part(num_images=20, unseen_share=0.2), "private": Part(num_images=30, unseen_share=0.5)}


@pytest.mark.parametrize("metric", ["macro_recall", "log_loss"])
def test_runs_are_joined_by_id(metric: Metric, toy: tuple, tmp_path: Path) -> None:
    task, data, folds = toy
    task = dataclasses.replace(task, metric=metric)
    runs = [finished_run(tmp_path / name, task, data, folds, seed=seed) for seed, name in enumerate("ab")]
    shakeup = shakeup_of_runs(runs, **PARTS, draws=5)
    assert shakeup.names == ("a", "b") and shakeup.public.shape == (5, 2)
    for run, cv in zip(runs, shakeup.cv, strict=True):
        oof = run.oof()
        assert cv == pytest.approx(score_answers(task, run.labels().align(oof.ids).classes, oof.probs).total)
    assert [note[:19] for note in shakeup.notes] == ["only 16 out-of-fold", "only 5 draw(s): per"]


def test_other_folds_and_left_out_images_are_noted(toy: tuple, tmp_path: Path) -> None:
    task, data, folds = toy
    other = dataclasses.replace(folds, fold=1 - folds.fold, scheme="grouped", seed=7)
    runs = [
        finished_run(tmp_path / "a", task, data, folds, rows=slice(0, 40)),
        finished_run(tmp_path / "b", task, data, other, seed=1),
    ]
    left_out, folds_differ, *_ = shakeup_of_runs(runs, **PARTS, draws=2).notes
    assert left_out == "8 of 48 images are not in all runs ('a' 40, 'b' 48) and were left out"
    assert folds_differ.startswith("'b' (grouped, seed 7) had other folds or labels than 'a' (unseen, seed 0)")


def test_runs_that_cannot_be_compared_are_refused(toy: tuple, tmp_path: Path) -> None:
    task, data, folds = toy
    run = finished_run(tmp_path / "a", task, data, folds)
    same_name = finished_run(tmp_path / "other" / "a", task, data, folds)
    few = finished_run(tmp_path / "few", task, data, folds, rows=slice(0, 20))
    other_task = dataclasses.replace(same_name, folder=tmp_path / "b", task=dataclasses.replace(task, name="else"))
    for runs, message in (
        ([], "there are no runs to compare"),
        ([run, same_name], "several runs are named 'a'; .* rename their folders"),
        (
            [run, other_task],
            "runs 'a' and 'b' are of different tasks, 'toy-wide' .* and 'else' .macro_recall of 'root'",
        ),
        ([run, few], "only 20 of 48 images have .* all runs .'a' 48, 'few' 20., expected at least half"),
    ):
        with pytest.raises(DataError, match=message):
            shakeup_of_runs(runs, **PARTS)


def test_runs_that_are_equal_in_truth_are_rarely_told_apart() -> None:
    """Cross-validation is a sample too: of two runs of one accuracy neither is sure to lead a large private part."""
    sure = 0
    for seed in range(20):
        rng = np.random.default_rng([7, seed])
        truth = {"root": np.zeros(1000, int), "vowel": np.zeros(1000, int)}
        runs = {name: {"root": (rng.random(1000) > 0.9).astype(int), "vowel": truth["vowel"]} for name in ("a", "b")}
        task = dataclasses.replace(wide_task(), metric="accuracy")
        found = estimate_shakeup(
            task,
            truth,
            runs,
            np.zeros(1000, bool),
            public=Part(num_images=30_000, unseen_share=0),
            private=Part(num_images=70_000, unseen_share=0),
            draws=100,
        )
        sure += found.choice_leads >= 0.95
    assert sure <= 4


def test_equal_leaders_lead_the_public_board_too() -> None:
    rng = np.random.default_rng(5)
    truth = {"root": rng.integers(0, 3, 300), "vowel": rng.integers(0, 2, 300)}
    wrong = {head: 1 - np.minimum(classes, 1) for head, classes in truth.items()}
    good = {head: np.where(rng.random(300) < 0.9, classes, 0) for head, classes in truth.items()}
    part = Part(num_images=200, unseen_share=0)
    runs = {"a": good, "b": good, "c": good, "bad": wrong}
    found = estimate_shakeup(wide_task(), truth, runs, np.zeros(300, bool), public=part, private=part, draws=50)
    assert "which will lead the public board too" in advise(found)
