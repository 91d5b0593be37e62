from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kaggle_kit.ensemble import Blend, blend_predictions, equal_blend, load_blend, mean_probs, save_blend
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.predictions import Predictions


def make(ids: str, seed: int, classes: int = 3) -> Predictions:
    probs = np.random.default_rng(seed).dirichlet(np.ones(classes), len(ids)).astype(np.float32)
    return Predictions(ids=np.array(list(ids)), probs={"root": probs})


def test_equal_members_are_the_mean_s_fixed_point() -> None:
    member = make("abc", 0)
    blended = blend_predictions(equal_blend(["x", "y"]), {"x": member, "y": member})
    assert np.allclose(blended.probs["root"], member.probs["root"], atol=1e-7)


def test_runs_are_joined_by_id() -> None:
    first, second = make("abc", 0), make("abc", 1)
    shuffled = second.align(np.array(["c", "a", "b"]))
    blend = equal_blend(["x", "y"])
    expected = blend_predictions(blend, {"x": first, "y": second})
    assert (blend_predictions(blend, {"x": first, "y": shuffled}).probs["root"] == expected.probs["root"]).all()


def test_weights_count() -> None:
    parts = [{"root": np.array([[1, 0]], np.float32)}, {"root": np.array([[0, 1]], np.float32)}]
    assert np.allclose(mean_probs(parts, [3, 1])["root"], [[0.75, 0.25]])


@pytest.mark.parametrize("other", [make("ab", 1), make("abd", 1), make("abc", 1, classes=4)])
def test_runs_that_do_not_fit_are_refused(other: Predictions) -> None:
    with pytest.raises(PredictionError, match="run 'y' predicts|have no prediction"):
        blend_predictions(equal_blend(["x", "y"]), {"x": make("abc", 0), "y": other})


def test_a_missing_run_is_named() -> None:
    with pytest.raises(PredictionError, match="run 'y' of the blend has no predictions"):
        blend_predictions(equal_blend(["x", "y"]), {"x": make("abc", 0)})


def test_runs_of_the_same_name_are_refused() -> None:
    with pytest.raises(SettingError, match="tells them apart by name"):
        equal_blend(["x", "x"])


@pytest.mark.parametrize("weights", [{}, {"x": 0.5}, {"x": 1.5, "y": -0.5}])
def test_weights_that_are_none_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="`weights`"):
        Blend(weights=weights)


def test_save_and_load_give_the_same(tmp_path: Path) -> None:
    blend = Blend(weights={"x": 0.25, "y": 0.75})
    save_blend(blend, tmp_path / "blend.json")
    assert load_blend(tmp_path / "blend.json") == blend


@pytest.mark.parametrize("text", ["no json", "[]", '{"format": 99}', '{"format": 1, "weights": {"x": "1"}}'])
def test_what_is_no_blend_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "blend.json").write_text(text)
    with pytest.raises(SettingError, match=r"blend\.json"):
        load_blend(tmp_path / "blend.json")
