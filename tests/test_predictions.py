from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kaggle_kit.errors import PredictionError
from kaggle_kit.predictions import Predictions, concatenate


def make(ids: list[str], rows: list[list[float]]) -> Predictions:
    return Predictions(ids=np.array(ids), probs={"root": np.array(rows, np.float32)})


def test_save_and_load_give_the_same(tmp_path: Path) -> None:
    made = make(["a", "b"], [[0.25, 0.75], [1, 0]])
    made.save(tmp_path / "oof.npz")
    loaded = Predictions.load(tmp_path / "oof.npz")
    assert loaded.ids.tolist() == ["a", "b"]
    assert (loaded.probs["root"] == made.probs["root"]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["oof.npz"]


def test_align_joins_by_id() -> None:
    made = make(["a", "b", "c"], [[1, 0], [0, 1], [0.5, 0.5]])
    assert made.align(np.array(["c", "a"])).probs["root"].tolist() == [[0.5, 0.5], [1, 0]]
    with pytest.raises(PredictionError, match=r"1 of 2 ids have no prediction: 'z'"):
        made.align(np.array(["a", "z"]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[2.0, 0.0]], r"head 'root': probs of 'Test_3' sum to 2.0000 .*pass softmax outputs, not logits"),
        ([[float("nan"), 1.0]], r"probs of 'Test_3' sum to nan"),
        ([[1.5, -0.5]], r"lowest -0.5000"),
    ],
)
def test_probs_that_are_none_are_refused(rows: list[list[float]], message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        make(["Test_3"], rows)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(PredictionError, match=r"1 id\(s\) occur more than once"):
        make(["a", "a"], [[1, 0], [1, 0]])


def test_concatenate_keeps_order_and_refuses_other_heads() -> None:
    first, second = make(["b"], [[1, 0]]), make(["a"], [[0, 1]])
    assert concatenate([first, second]).ids.tolist() == ["b", "a"]
    other = Predictions(ids=np.array(["c"]), probs={"vowel": np.ones((1, 1), np.float32)})
    with pytest.raises(PredictionError, match="different heads"):
        concatenate([first, other])


def test_load_refuses_damaged_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(PredictionError, match="x.npz is damaged"):
        Predictions.load(tmp_path / "x.npz")
    with pytest.raises(PredictionError, match="y.npz is missing"):
        Predictions.load(tmp_path / "y.npz")
