from __future__ import annotations

import subprocess
import sys
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


def test_what_is_in_order_already_is_not_copied() -> None:
    made = make(["a", "b"], [[1, 0], [0, 1]])
    assert made.align(np.array(["a", "b"])).probs["root"] is made.probs["root"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[2.0, 0.0]], r"head 'root': probs of 'Test_3' are outside \[0, 1\] .*highest 2.0000.*look like logits"),
        ([[1.5, -0.5]], r"lowest -0.5000.*sum 1.0000.*pass softmax outputs, not logits \(1 of 1 row"),
        ([[-0.1, -2.4]], r"highest -0.1000.*look like logits"),
        ([[float("nan"), 1.0]], r"probs of 'Test_3' hold NaN \(class 0\), not a probability; leave"),
        ([[0.0, float("inf")]], r"probs of 'Test_3' hold inf \(class 1\)"),
        ([[0.5, 0.4]], r"probs of 'Test_3' sum to 0.9000, not 1 .*pass softmax outputs of all classes"),
        ([[]], r"head 'root': probs have shape \(1, 0\); expected \(1, classes\)"),
    ],
)
def test_probs_that_are_none_are_refused(rows: list[list[float]], message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        make(["Test_3"], rows)


def test_the_first_wrong_row_is_named_and_all_are_counted() -> None:
    with pytest.raises(PredictionError, match=r"probs of 'b' sum to 0.5000.*\(2 of 3 row\(s\)\)"):
        make(["a", "b", "c"], [[0.5, 0.5], [0.25, 0.25], [0, 0]])


def test_what_half_precision_rounds_is_accepted() -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(168, 0.1), 50).astype(np.float16)
    assert len(make([str(row) for row in range(50)], probs.tolist())) == 50


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.ones((1, 1)), "probs are float64; expected float32, as of astype"),
        (np.ones((2, 1), np.float32), r"probs have shape \(2, 1\); expected \(1, classes\)"),
        (np.ones(1, np.float32), r"probs have shape \(1,\)"),
    ],
)
def test_other_arrays_are_refused(probs: np.ndarray, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        Predictions(ids=np.array(["a"]), probs={"root": probs})


def test_a_multilabel_class_that_is_nan_is_named() -> None:
    probs = np.array([[0.1, np.nan]], np.float32)
    with pytest.raises(PredictionError, match=r"multi-label head 'tags': probs of 'a' .*\(class 1 is NaN\)"):
        Predictions(ids=np.array(["a"]), probs={"tags": probs}, multilabel=("tags",))


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(PredictionError, match=r"1 id\(s\) occur more than once: 'a' \(2 times\); keep one row of each"):
        make(["b", "a", "a"], [[1, 0], [1, 0], [1, 0]])


@pytest.mark.parametrize("ids", [np.array([1, 2]), np.array(["a", "b"], object), np.array([["a"], ["b"]])])
def test_ids_are_text(ids: np.ndarray) -> None:
    with pytest.raises(PredictionError, match=r"expected \(N,\) text, such as from astype"):
        Predictions(ids=ids, probs={"root": np.ones((2, 1), np.float32)})


def test_concatenate_keeps_order_and_refuses_other_heads_or_classes() -> None:
    first, second = make(["b"], [[1, 0]]), make(["a"], [[0, 1]])
    assert concatenate([first, second]).ids.tolist() == ["b", "a"]
    other = Predictions(ids=np.array(["c"]), probs={"vowel": np.ones((1, 1), np.float32)})
    with pytest.raises(PredictionError, match="different heads"):
        concatenate([first, other])
    with pytest.raises(PredictionError, match=r"head 'root': parts have \[2, 3\] classes"):
        concatenate([first, make(["c"], [[1, 0, 0]])])


def test_load_refuses_damaged_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(PredictionError, match="x.npz is damaged"):
        Predictions.load(tmp_path / "x.npz")
    with pytest.raises(PredictionError, match="y.npz is missing"):
        Predictions.load(tmp_path / "y.npz")


def test_predictions_need_numpy_alone() -> None:
    blocked = ("pyarrow", "cv2", "yaml", "scipy", "sklearn", "pandas", "torch", "tqdm")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import kaggle_kit.predictions"
    subprocess.run([sys.executable, "-c", code], check=True)
