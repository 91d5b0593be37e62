from __future__ import annotations

import numpy as np
import pytest

from kaggle_kit.errors import PredictionError
from kaggle_kit.prior_shift import (
    MIN_ROWS_PER_CLASS,
    estimate_priors,
    shift_predictions,
    shift_probs,
)

TRAIN = np.array([0.6, 0.3, 0.1])


def calibrated(
    rows: int, shares: np.ndarray, *, train: np.ndarray = TRAIN, seed: int | np.random.Generator = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Truth of some shares, and probabilities that are right where the classes have train's."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(shares), rows, p=shares)
    seen = rng.normal(0, 1, (rows, len(shares))) + 1.5 * np.eye(len(shares))[truth]
    odds = train * np.exp(1.5 * seen)
    return truth, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def test_shares_that_did_not_shift_are_found_again() -> None:
    _, probs = calibrated(20_000, TRAIN)
    found = estimate_priors(probs, TRAIN)
    assert found.converged and found.priors.sum() == pytest.approx(1)
    assert found.priors == pytest.approx(TRAIN, abs=0.01)
    assert shift_probs(probs, TRAIN, TRAIN) == pytest.approx(probs, abs=1e-6)


def test_a_known_shift_is_found_and_the_corrected_probabilities_decide_better() -> None:
    shares = np.array([0.1, 0.2, 0.7])
    truth, probs = calibrated(20_000, shares)
    found = estimate_priors(probs, TRAIN)
    assert found.converged and found.priors == pytest.approx(shares, abs=0.015)
    shifted = shift_probs(probs, TRAIN, found.priors)
    assert shifted.dtype == np.float32 and shifted.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert (shifted.argmax(axis=1) == truth).mean() > (probs.argmax(axis=1) == truth).mean() + 0.05
    assert shifted.mean(axis=0) == pytest.approx(found.priors, abs=1e-4)


def test_the_estimate_gives_up_after_the_steps_it_was_given() -> None:
    _, probs = calibrated(500, np.array([0.1, 0.2, 0.7]))
    found = estimate_priors(probs, TRAIN, max_steps=2)
    assert found.steps == 2 and not found.converged


def test_a_class_that_train_lacks_keeps_its_probability_as_given() -> None:
    probs = np.array([[0.8, 0.2, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]], np.float32)
    train = np.array([0.5, 0.5, 0.0])
    shifted = shift_probs(probs, train, np.array([0.25, 0.75, 0.0]))
    assert (shifted[:, 2] == probs[:, 2]).all()
    assert shifted.sum(axis=1) == pytest.approx(1)
    assert shifted[0] == pytest.approx([0.4 / 0.7, 0.3 / 0.7, 0])
    assert shifted[1] == pytest.approx([0.6 * 0.25, 0.6 * 0.75, 0.4])
    gone = shift_probs(np.array([[1.0, 0.0]], np.float32), np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    assert gone.tolist() == [[1.0, 0.0]]  # a row that would vanish


def test_the_estimate_is_that_without_the_class_that_train_lacks() -> None:
    _, probs = calibrated(2000, np.array([0.1, 0.2, 0.7]))
    alone = estimate_priors(probs, TRAIN).priors
    kept = np.random.default_rng(1).choice([0.5, 0.9], (2000, 1))
    wider = np.hstack([probs * kept, 1 - kept]).astype(np.float32)
    half = np.hstack([probs / 2, np.full((2000, 1), 0.5)]).astype(np.float32)
    train = np.append(TRAIN, 0)
    assert estimate_priors(half, train).priors == pytest.approx(np.append(alone, 0), abs=1e-5)
    found = estimate_priors(wider, train).priors
    assert found[3] == 0 and found[:3] == pytest.approx(alone, abs=0.05)  # rows count for what they hold of classes
    shifted, _ = shift_predictions({"root": wider}, {"root": train})
    assert (shifted["root"][:, 3] == wider[:, 3]).all() and (shifted["root"] != wider).any()
    strange = np.vstack([half, [[0, 0, 0, 1]]]).astype(np.float32)
    assert (estimate_priors(strange, train).priors == estimate_priors(half, train).priors).all()


def test_heads_with_too_few_rows_stay_as_they_are_and_it_is_said() -> None:
    _, many = calibrated(400, np.array([0.1, 0.2, 0.7]))
    few = many[: 3 * MIN_ROWS_PER_CLASS - 1]
    shifted, said = shift_predictions({"root": few}, {"root": TRAIN})
    assert shifted["root"] is few
    assert said == ["head 'root': class shares left as in train: 29 usable images are fewer than 30"]
    shifted, said = shift_predictions({"root": many}, {"root": TRAIN})
    assert (shifted["root"] != many).any()
    assert "from 400 images in" in said[0] and "class 2 moved most, from 0.1000 to 0." in said[0]


def test_skipped_rows_are_neither_counted_nor_changed() -> None:
    _, probs = calibrated(400, np.array([0.1, 0.2, 0.7]))
    skip = np.arange(400) % 4 == 0
    broken = probs.copy()
    broken[skip] = TRAIN
    shifted, said = shift_predictions({"root": broken}, {"root": TRAIN}, skip=skip)
    alone, _ = shift_predictions({"root": probs[~skip]}, {"root": TRAIN})
    assert (shifted["root"][skip] == broken[skip]).all()
    assert (shifted["root"][~skip] == alone["root"]).all()
    assert "from 300 images" in said[0]


@pytest.mark.parametrize(
    ("probs", "train", "message"),
    [
        (np.ones((9, 2)), [0.5, 0.3, 0.2], r"probs have shape \(9, 2\) and train_priors \(3,\); expected"),
        (np.ones((9, 2)), [60, 40], "train_priors sum to 100.0000 .*, not 1; pass shares of the train labels"),
        (np.ones((9, 2)), [1.5, -0.5], r"\(lowest -0.5000\), not 1"),
        (np.ones((9, 2)), [np.nan, 0.5], "sum to nan"),
        (np.full((9, 2), np.nan), [0.5, 0.5], "probs of 9 rows hold NaN"),
        (np.ones((0, 2)), [0.5, 0.5], r"there are no probs to estimate class shares from \(0 rows\)"),
        (np.array([[0.0, 1.0]]), [1.0, 0.0], r"\(1 rows\); give at least one row with a probability above 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(probs: np.ndarray, train: list, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        estimate_priors(probs, np.array(train))


def test_errors_name_the_head() -> None:
    _, probs = calibrated(100, TRAIN)
    with pytest.raises(PredictionError, match=r"head 'root' has no train_priors \(found: vowel\)"):
        shift_predictions({"root": probs}, {"vowel": TRAIN})
    with pytest.raises(PredictionError, match="head 'root': train_priors sum to 10"):
        shift_predictions({"root": probs}, {"root": TRAIN * 10})
    with pytest.raises(PredictionError, match=r"head 'root': skip has shape \(3,\); expected \(100,\)"):
        shift_predictions({"root": probs}, {"root": TRAIN}, skip=np.zeros(3, bool))
