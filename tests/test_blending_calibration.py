from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from kaggle_kit.blending import calibration
from kaggle_kit.blending.calibration import best_factor, draw_rows, fit_temperature, loss_and_error
from kaggle_kit.errors import DataError, KitError, PredictionError
from kaggle_kit.mixes import calibrate, softmax


def too_sure(
    temperature: float, *, rows: int = 5000, classes: int = 5, many: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from right probabilities, and these with their logarithms multiplied by a temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, (rows, classes))
    if many:
        right = 1 / (1 + np.exp(-scores))
        return (rng.random(right.shape) < right).astype(np.uint8), (1 / (1 + np.exp(-temperature * scores)))
    right = softmax(scores)
    truth = (rng.random((rows, 1)) > right.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return truth, softmax(temperature * scores).astype(np.float32)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("temperature", [0.4, 0.8, 1.5, 2.5])
def test_the_temperature_that_made_a_run_too_sure_is_found(temperature: float, many: bool) -> None:
    truth, probs = too_sure(temperature, many=many)
    assert fit_temperature(probs, truth, multilabel=many) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("many", [False, True])
def test_no_other_temperature_has_a_lower_log_loss(many: bool) -> None:
    truth, probs = too_sure(2.0, rows=500, many=many)

    def loss_at(log: float) -> float:
        calibrated = calibrate(probs, float(np.exp(log)), multilabel=many)
        if many:
            return float(np.mean([log_loss(t, p, labels=[0, 1]) for t, p in zip(truth.T, calibrated.T, strict=True)]))
        return float(log_loss(truth, calibrated, labels=range(5)))

    best = minimize_scalar(loss_at, bounds=np.log([1 / 8, 8]), method="bounded", options={"xatol": 1e-6})
    assert fit_temperature(probs, truth, multilabel=many) == pytest.approx(np.exp(best.x), rel=1e-3)


@pytest.mark.parametrize("many", [False, True])
def test_a_temperature_stays_1_where_no_other_gains(many: bool) -> None:
    equal = np.full((20, 2), 0.5, np.float32)
    truth = np.tile([0, 1], (20, 1)) if many else np.arange(20) % 2
    assert fit_temperature(equal, truth, multilabel=many) == 1
    truth, probs = too_sure(1.0, rows=20_000, many=many)
    assert fit_temperature(probs, truth, multilabel=many) == pytest.approx(1, abs=0.03)


def test_temperatures_end_at_an_eighth_and_at_8() -> None:
    right, wrong = np.array([[0.9, 0.1]], np.float32), np.array([[0.1, 0.9]], np.float32)
    one = np.zeros(1, np.int64)
    assert fit_temperature(right, one, multilabel=False) == pytest.approx(1 / 8)
    assert fit_temperature(wrong, one, multilabel=False) == pytest.approx(8)


def test_certain_errors_are_calibrated_to_finite_losses() -> None:
    probs = np.eye(3, dtype=np.float32)[np.arange(300) % 3]
    truth = np.arange(300) % 3
    truth[:30] = (truth[:30] + 1) % 3  # a tenth is wrong and sure of it
    temperature = fit_temperature(probs, truth, multilabel=False)
    assert 1 < temperature < 8
    assert calibrate(probs, temperature, multilabel=False)[np.arange(300), truth].mean() == pytest.approx(
        0.82, abs=0.02
    )


def test_many_rows_are_drawn_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, probs = too_sure(2.0, rows=4000)
    monkeypatch.setattr(calibration, "MOST_ROWS", 1000)
    few = fit_temperature(probs, truth, multilabel=False)
    assert few == fit_temperature(probs, truth, multilabel=False) == pytest.approx(2, rel=0.15)
    drawn = draw_rows(4000, 1000)
    assert len(set(drawn.tolist())) == 1000 and (np.diff(drawn) > 0).all()
    assert few == fit_temperature(probs[drawn], truth[drawn], multilabel=False)
    assert draw_rows(3, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("many", [False, True])
def test_the_derivative_is_that_of_the_loss(many: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 30, (6, 3))  # far enough for an exponential to overflow in float32
    truth = rng.integers(0, 2, (6, 3)) if many else rng.integers(0, 3, 6)
    loss, error = loss_and_error(scores, truth)
    for cell in np.ndindex(6, 3):
        moved = scores.copy()
        moved[cell] += 1e-5
        assert (loss_and_error(moved, truth)[0] - loss) / 1e-5 == pytest.approx(error[cell], abs=1e-4)
    assert np.isfinite(loss_and_error(scores.astype(np.float32) * 100, truth)[0])


def test_a_factor_is_fitted_beside_an_offset() -> None:
    rng = np.random.default_rng(0)
    known, new = rng.normal(0, 1, (2, 20_000, 3))
    right = softmax(known + 3 * new)
    truth = (rng.random((20_000, 1)) > right.cumsum(axis=1)[:, :-1]).sum(axis=1)
    assert best_factor(new, truth, low=0, high=50, offset=known) == pytest.approx(3, rel=0.05)
    assert best_factor(-new, truth, low=0, high=50, offset=known) == 0
    assert best_factor(new, truth, low=0, high=2, offset=known) == 2


@pytest.mark.parametrize(
    ("probs", "truth", "many", "error", "message"),
    [
        ([[0.5, 0.5]], [0, 1], False, DataError, r"truth has shape \(2,\) .* expected truth of shape \(1,\)"),
        ([[0.5, 0.5]], [0], True, DataError, r"expected truth of shape \(1, 2\)"),
        ([[0.5, 0.5]], [2], False, DataError, "truth is 2 to 2; expected class indices 0 to 1"),
        ([[0.5, 0.5]], [[0, 2]], True, DataError, "truth is 0 to 2; expected 0 and 1"),
        ([[0.5, 0.5], [np.nan, 0.5]], [0, 0], False, PredictionError, r"1 of 2 rows are NaN .*first: row 1"),
        ([[3.5, -2.5]], [0], False, PredictionError, "from -2.5 to 3.5.; pass probabilities, not logits"),
        (np.zeros((0, 2)), [], False, PredictionError, r"shape \(0, 2\); expected .* at least one row"),
        ([0.5, 0.5], [0, 1], False, PredictionError, r"shape \(2,\)"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    probs: object, truth: object, many: bool, error: type[KitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_temperature(np.array(probs, np.float32), np.array(truth, np.int64), multilabel=many)
