from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE
from handmade import make_bundle, random_weights, save_graph

from kaggle_kit.errors import BundleError
from kaggle_kit.runtime.backends import OnnxSession, describe_session
from kaggle_kit.runtime.openvino import PROVIDER, OpenVinoSession
from kaggle_kit.runtime.predictor import BATCH, Predictor

pytest.importorskip("openvino", reason="needs the extra [openvino]")


def test_probabilities_are_those_of_onnx_runtime_in_fp32(tmp_path: Path) -> None:
    save_graph([random_weights(1)], [1.0], tmp_path / "x.onnx")
    images = np.random.default_rng(0).integers(0, 256, (10, *SIZE, 1), dtype=np.uint8)
    ours, theirs = (OnnxSession(tmp_path / "x.onnx", device=device) for device in ("openvino", "cpu"))
    assert ours.provider == PROVIDER
    assert ours.outputs == theirs.outputs
    for number in (10, 1, 3):
        found, expected = ours.run(images[:number]), theirs.run(images[:number])
        for head, values in expected.items():
            assert np.abs(found[head] - values).max() < 1e-6, "bf16 would be 1e-3 away"
    first = ours.run(images[:2])["root"]
    ours.run(images[2:4])
    assert (first == ours.run(images[:2])["root"]).all(), "what was returned stays"
    assert "by OpenVINO 20" in describe_session(ours)


def test_a_bundle_runs_on_it_and_agrees_with_home(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    said: list[str] = []
    predictor = Predictor(tmp_path / "bundle", device="openvino", say=said.append)
    assert predictor.providers == (PROVIDER,)
    assert predictor.batch == BATCH
    assert any("golden images agree" in line for line in said)


def test_what_it_does_not_take_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="x.onnx does not load in OpenVINO 20.*run it with another device"):
        OpenVinoSession(tmp_path / "x.onnx")


def test_where_it_is_not_installed_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match=r"pip install 'kaggle_kit\[openvino\]'"):
        OnnxSession(tmp_path / "x.onnx", device="openvino")
