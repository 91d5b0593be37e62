from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import wide_task

from kaggle_kit.errors import DataError
from kaggle_kit.scores import Score, bootstrap_heads, format_scores, metric_value, score_answers, score_split
from kaggle_kit.settings import build, plain
from kaggle_kit.task import Metric, Task


def task_of(metric: Metric) -> Task:
    return dataclasses.replace(wide_task(), metric=metric)


def noisy(rows: int, seed: int = 0) -> tuple[dict, dict]:
    """Truth and probabilities that are right most of the time."""
    rng = np.random.default_rng(seed)
    truth = {"root": rng.integers(0, 3, rows), "vowel": rng.integers(0, 2, rows)}
    probs = {}
    for head, classes in (("root", 3), ("vowel", 2)):
        logits = rng.normal(0, 1, (rows, classes)) + 2 * np.eye(classes)[truth[head]]
        probs[head] = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return truth, probs


def test_score_is_weighted_over_heads_as_the_task_says() -> None:
    truth = {"root": np.array([0, 1, 2, 0]), "vowel": np.array([0, 1, 1, 0])}
    decided = {"root": np.array([0, 1, 2, 0]), "vowel": np.array([0, 0, 0, 0])}
    score = score_answers(wide_task(), truth, decided)
    assert score.heads == {"root": 1.0, "vowel": 0.5}
    assert score.total == pytest.approx((2 * 1.0 + 0.5) / 3)
    assert score.interval is None


def test_probabilities_and_the_classes_they_decide_score_the_same() -> None:
    truth, probs = noisy(80)
    decided = {head: p.argmax(axis=1) for head, p in probs.items()}
    assert score_answers(wide_task(), truth, probs) == score_answers(wide_task(), truth, decided)


def test_a_metric_of_probabilities_refuses_classes() -> None:
    truth, probs = noisy(10)
    assert score_answers(task_of("log_loss"), truth, probs).total > 0
    with pytest.raises(DataError, match="head 'root': metric log_loss scores probabilities, and only classes"):
        score_answers(task_of("log_loss"), truth, truth)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"root": np.zeros(10, int)}, r"head 'vowel' has no answers \(found: 'root'\)"),
        ({"root": np.zeros(9, int), "vowel": np.zeros(10, int)}, r"head 'root': answers have shape \(9,\)"),
        ({"root": np.full(10, 3), "vowel": np.zeros(10, int)}, "answers are 3 to 3; expected class indices 0 to 2"),
        ({"root": np.zeros((10, 2)), "vowel": np.zeros(10, int)}, r"expected \(10,\) classes or \(10, 3\) prob"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answers: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_answers(wide_task(), noisy(10)[0], answers)


def test_a_curve_of_one_class_is_refused_and_left_out_of_a_split() -> None:
    truth, probs = noisy(40)
    unseen = truth["vowel"] == 1
    split = score_split(task_of("roc_auc"), truth, probs, unseen)
    assert split.all.total > 0.5 and split.seen is None and split.unseen is None
    truth["vowel"][:] = 1
    with pytest.raises(DataError, match="head 'vowel': roc_auc has no value, for all 40 images are of one class"):
        score_answers(task_of("roc_auc"), truth, probs)


def test_score_split_scores_the_parts_apart() -> None:
    truth = {"root": np.array([0, 1, 2, 0]), "vowel": np.array([0, 1, 1, 0])}
    decided = {"root": np.array([0, 1, 0, 1]), "vowel": np.array([0, 1, 0, 1])}
    split = score_split(wide_task(), truth, decided, np.array([False, False, True, True]))
    assert split.seen is not None and split.seen.total == 1.0
    assert split.unseen is not None and split.unseen.total == 0.0
    assert split.all.rows == 4
    assert any("unseen" in line for line in format_scores({"x": split}))


def test_score_refuses_no_rows() -> None:
    empty = {"root": np.zeros(0, int), "vowel": np.zeros(0, int)}
    with pytest.raises(DataError, match="no rows to score"):
        score_answers(wide_task(), empty, empty)


@pytest.mark.parametrize("metric", ["macro_recall", "weighted_f1", "quadratic_kappa", "log_loss", "roc_auc"])
def test_resampling_outcomes_varies_as_resampling_images_does(metric: Metric) -> None:
    truth, probs = noisy(400)
    task = task_of(metric)
    found = bootstrap_heads(task, truth, [probs], draws=600, seed=1)[:, 0]
    rng = np.random.default_rng(2)
    picks = [rng.integers(400, size=400) for _ in range(600)]
    for column, (name, head) in enumerate(task.heads.items()):
        images = [metric_value(metric, truth[name][rows], probs[name][rows], head.num_classes) for rows in picks]
        assert found[:, column].mean() == pytest.approx(np.mean(images), abs=4e-3)
        assert found[:, column].std() == pytest.approx(np.std(images), rel=0.15)


@pytest.mark.parametrize("metric", ["macro_recall", "log_loss", "average_precision"])
def test_several_answers_are_scored_on_the_same_images(metric: Metric) -> None:
    truth, probs = noisy(300)
    task = task_of(metric)
    worse = {head: np.roll(p, 1, axis=0) for head, p in probs.items()}
    found = bootstrap_heads(task, truth, [probs, worse, probs], draws=100)
    assert found.shape == (100, 3, 2)
    assert np.allclose(found[:, 0], found[:, 2], rtol=0, atol=1e-12)
    assert (found[:, 0] != found[:, 1]).all()


def test_images_of_a_group_are_drawn_together() -> None:
    truth, probs = noisy(100)
    twins = {head: np.repeat(classes, 9, axis=0) for head, classes in truth.items()}
    alike = {head: np.repeat(p, 9, axis=0) for head, p in probs.items()}
    for metric in ("macro_recall", "log_loss", "roc_auc"):
        task = task_of(metric)
        single = bootstrap_heads(task, truth, [probs], draws=400)[:, 0].std(axis=0)
        grouped = bootstrap_heads(task, twins, [alike], draws=400, groups=np.repeat(np.arange(100), 9))[:, 0].std(
            axis=0
        )
        assert grouped == pytest.approx(single, rel=0.25)
        apart = bootstrap_heads(task, twins, [alike], draws=400)[:, 0].std(axis=0)
        assert (apart < 0.6 * grouped).all()


def test_the_interval_holds_the_score_and_narrows_with_images() -> None:
    widths = []
    for rows in (100, 10_000):
        truth, probs = noisy(rows)
        score = score_answers(wide_task(), truth, probs, draws=200)
        assert score.interval is not None
        assert score.interval[0] < score.total < score.interval[1]
        assert set(score.head_intervals) == {"root", "vowel"}
        widths.append(score.interval[1] - score.interval[0])
    assert widths[1] < widths[0] / 5


def test_an_interval_lies_around_a_score_that_rare_classes_make() -> None:
    rng = np.random.default_rng(0)
    task = wide_task()
    head = dataclasses.replace(task.heads["root"], classes=40, values=None)
    task = dataclasses.replace(task, heads={"root": head})
    classes = np.concatenate([np.arange(20), np.repeat(np.arange(20, 40), 10)])  # one image of each of the first 20
    truth = {"root": classes}
    answers = {"root": np.where((classes < 20) | (rng.random(220) < 0.3), classes, 20)}
    score = score_answers(task, truth, answers, draws=200)
    drawn = np.quantile(bootstrap_heads(task, truth, [answers], draws=200)[:, 0, 0], [0.025, 0.975])
    assert not drawn[0] < score.total < drawn[1]  # every resample lacks some of the classes
    assert score.interval is not None and score.interval[0] < score.total < score.interval[1]
    assert np.ptp(score.interval) == pytest.approx(np.ptp(drawn))
    perfect = score_answers(task, truth, truth, draws=200).interval
    assert perfect is not None and 0 <= perfect[0] <= perfect[1] <= 1


def test_the_same_seed_gives_the_same_interval_and_a_score_survives_json() -> None:
    truth, probs = noisy(50)
    score = score_answers(wide_task(), truth, probs, draws=50, seed=3)
    assert score == score_answers(wide_task(), truth, probs, draws=50, seed=3)
    assert build(Score, plain(score)) == score
    assert "[" in str(score)


def test_one_row_has_an_interval_too() -> None:
    truth, probs = noisy(1)
    for metric in ("macro_recall", "log_loss"):
        score = score_answers(task_of(metric), truth, probs, draws=20)
        assert score.interval is not None and score.interval[0] == pytest.approx(score.interval[1])


def test_the_table_shows_intervals_when_there_are_any() -> None:
    truth, probs = noisy(60)
    unseen = np.arange(60) % 4 == 0
    lines = format_scores({"with": score_split(wide_task(), truth, probs, unseen, draws=20)})
    assert "95 % interval" in lines[0] and all(" to " in line for line in lines[1:])
    assert len({len(line) for line in lines}) == 1
