from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_losses import make_task

from kaggle_kit.errors import SettingError
from kaggle_kit.labels import Labels
from kaggle_kit.train.config import SamplingConfig
from kaggle_kit.train.order import ROWS_A_RUN
from kaggle_kit.train.sampling import drawn, row_weights

N = 600
TASK = make_task(
    {"root": {"classes": 4}, "vowel": {"classes": 3}},
    {"grapheme": {"classes": 6}},
)
RNG = np.random.default_rng(0)
LABELS = Labels(
    ids=np.arange(N).astype(np.str_),
    classes={"root": RNG.choice(3, N, p=[0.8, 0.17, 0.03]), "vowel": RNG.choice(3, N, p=[0.1, 0.2, 0.7])},
    auxiliary={"grapheme": RNG.choice(6, N, p=[0.3, 0.3, 0.2, 0.1, 0.05, 0.05]) - 1},
)
ROWS = np.sort(np.random.default_rng(1).permutation(N)[:500])


def weights_of(config: SamplingConfig) -> np.ndarray:
    weights = row_weights(TASK, config, LABELS, ROWS)
    assert weights is not None
    assert weights.shape == (500,) and weights.min() > 0 and weights.sum() == pytest.approx(1)
    return weights


def shares(classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.bincount(classes[ROWS], weights)


def test_shuffling_weighs_nothing() -> None:
    assert row_weights(TASK, SamplingConfig(), LABELS, ROWS) is None


def test_balanced_shows_every_class_that_there_is_equally_often() -> None:
    assert shares(LABELS.classes["root"], weights_of(SamplingConfig(name="balanced", head="root"))) == pytest.approx(
        1 / 3
    )


def test_sqrt_shows_classes_by_the_square_root_of_their_counts() -> None:
    roots = np.sqrt(np.bincount(LABELS.classes["root"][ROWS]))
    found = shares(LABELS.classes["root"], weights_of(SamplingConfig(name="sqrt", head="root")))
    assert found == pytest.approx(roots / roots.sum())


@pytest.mark.parametrize(("name", "power"), [("balanced", 0.0), ("sqrt", 0.5)])
def test_without_a_head_the_combination_of_heads_counts(name: Any, power: float) -> None:
    combined = LABELS.classes["root"] * 3 + LABELS.classes["vowel"]
    counts = np.bincount(combined[ROWS]).astype(float)
    expected = np.where(counts > 0, counts**power, 0)
    found = shares(combined, weights_of(SamplingConfig(name=name)))
    assert found == pytest.approx(expected / expected.sum())


def test_per_head_is_the_mean_of_what_balances_each_head() -> None:
    expected = np.zeros(500)
    for classes in LABELS.classes.values():
        counts = np.bincount(classes[ROWS])
        expected += 1 / counts[classes[ROWS]] / (counts > 0).sum() / 2
    assert weights_of(SamplingConfig(name="per-head")) == pytest.approx(expected)


def test_rows_without_a_known_class_keep_their_share() -> None:
    classes = LABELS.auxiliary["grapheme"]
    weights = weights_of(SamplingConfig(name="balanced", head="grapheme"))
    unknown = classes[ROWS] < 0
    assert 0 < unknown.sum() < 500
    assert weights[unknown] == pytest.approx(1 / 500)
    assert shares(classes + 1, weights)[1:] == pytest.approx((1 - unknown.mean()) / 5)


def test_rows_of_which_no_class_is_known_are_drawn_alike() -> None:
    labels = Labels(ids=LABELS.ids, classes=LABELS.classes, auxiliary={"grapheme": np.full(N, -1)})
    weights = row_weights(TASK, SamplingConfig(name="balanced", head="grapheme"), labels, ROWS)
    assert weights == pytest.approx(1 / 500)


def test_rows_of_several_labels_weigh_the_mean_of_them() -> None:
    task = make_task({"tags": {"classes": 3, "kind": "multilabel"}})
    tags = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] * 2 + [[0, 0, 0]] * 4, np.uint8)
    labels = Labels(ids=np.arange(12).astype(np.str_), classes={"tags": tags})
    weights = row_weights(task, SamplingConfig(name="balanced", head="tags"), labels, np.arange(12))
    expected = np.array([1 / 8] * 6 + [(1 / 8 + 1 / 2) / 2] * 2 + [1 / 4] * 4)
    assert weights == pytest.approx(expected / expected.sum())
    combined = row_weights(task, SamplingConfig(name="balanced"), labels, np.arange(12))
    assert combined == pytest.approx(np.array([1 / 18] * 6 + [1 / 6] * 2 + [1 / 12] * 4))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(SettingError, match="`sampling.head` is 'roots'.*did you mean 'root'"):
        row_weights(TASK, SamplingConfig(name="balanced", head="roots"), LABELS, ROWS)


@pytest.mark.parametrize("window", [None, 1, 2000])
@pytest.mark.parametrize("num_rows", [1, 7, 5000])
def test_rows_come_as_often_as_their_share_asks(num_rows: int, window: int | None) -> None:
    weights = np.random.default_rng(num_rows).gamma(0.5, size=num_rows)
    rows = drawn(num_rows, weights, seed=3, epoch=1, window=window)
    wanted = num_rows * weights / weights.sum()
    assert len(rows) == num_rows and rows.dtype == np.int64
    assert np.abs(np.bincount(rows, minlength=num_rows) - wanted).max() < 1


def test_classes_come_as_often_as_their_share_asks() -> None:
    weights = weights_of(SamplingConfig(name="balanced", head="root"))
    for epoch in range(20):
        classes = LABELS.classes["root"][ROWS[drawn(500, weights, seed=0, epoch=epoch)]]
        assert np.abs(np.bincount(classes) - 500 / 3).max() < 1 + 1e-6


def test_over_epochs_every_row_has_its_share() -> None:
    weights = weights_of(SamplingConfig(name="balanced", head="root"))
    counts = sum(np.bincount(drawn(500, weights, seed=0, epoch=epoch), minlength=500) for epoch in range(400))
    assert np.abs(counts / 400 - 500 * weights).max() < 0.15


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    weights = np.random.default_rng(0).random(1000)
    first = drawn(1000, weights, seed=3, epoch=1)
    assert (first == drawn(1000, weights, seed=3, epoch=1)).all()
    assert (np.sort(first) != np.sort(drawn(1000, weights, seed=3, epoch=2))).any()
    assert (np.sort(first) != np.sort(drawn(1000, weights, seed=4, epoch=1))).any()


def test_a_row_that_comes_often_comes_all_over_the_epoch() -> None:
    rows = drawn(1000, np.r_[np.ones(999), 999.0], seed=0, epoch=0)
    places = np.flatnonzero(rows == 999)
    assert len(places) == 500
    assert 150 < (np.diff(places) == 1).sum() < 350


def test_any_two_rows_may_be_drawn_in_one_epoch() -> None:
    rows = drawn(1000, np.r_[np.full(500, 0.2), np.full(500, 1.8)], seed=0, epoch=0)
    light = np.unique(rows[rows < 500])
    assert len(light) == 100
    assert np.diff(light).min() == 1 and np.diff(light).max() > 8  # every fifth, were they not shuffled


def test_a_window_reads_few_runs_around_the_same_time() -> None:
    weights = np.random.default_rng(0).random(100_000)

    def runs_of_batches(window: int | None) -> float:
        order = drawn(100_000, weights, seed=0, epoch=0, window=window)
        return float(np.mean([len(set(rows // ROWS_A_RUN)) for rows in order[:99_000].reshape(-1, 1000)]))

    assert runs_of_batches(window=4096) < 60
    assert runs_of_batches(window=None) > 150
