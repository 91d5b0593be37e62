from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_export_half import CHANNELS, element_type, make_member, pictures, run, small_net, tensor, weights_of, worst

from kaggle_kit.errors import ExportError
from kaggle_kit.export.int8 import int8_candidates


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, and nothing else."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    return folder


def quantized(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators that read numbers of 8 bits."""
    eight = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return Counter(node.op_type for node in model.graph.node if eight & set(node.input))


def insert(model: onnx.ModelProto, before: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes in front of another, which reads what the last of them writes."""
    place = next(i for i, node in enumerate(model.graph.node) if node.name == before)
    model.graph.node[place].input[0] = nodes[-1].output[0]
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


def attending_net() -> onnx.ModelProto:
    """A net with a depthwise convolution, gates, a sum, and products of activations."""
    model, rng = small_net(), np.random.default_rng(2)
    model.graph.initializer.extend(
        [tensor("deep", rng.normal(0, 0.5, (CHANNELS, 1, 3, 3))), tensor("gate", rng.normal(0, 0.1, (8, 8, 1, 1)))]
    )
    model.graph.initializer.append(tensor("mix", rng.normal(0, 0.3, (32, 32))))
    insert(
        model,
        "relu2",
        helper.make_node("Conv", ["d", "deep"], ["f"], name="depthwise", pads=[1, 1, 1, 1], group=CHANNELS),
        helper.make_node("GlobalAveragePool", ["f"], ["mean_f"], name="squeeze"),
        helper.make_node("Conv", ["mean_f", "gate"], ["g"], name="gating"),
        helper.make_node("Sigmoid", ["g"], ["open"], name="sigmoid"),
        helper.make_node("Mul", ["f", "open"], ["gated"], name="excite"),
        helper.make_node("Add", ["gated", "d"], ["joined"], name="join"),
        helper.make_node("MatMul", ["joined", "mix"], ["mixed"], name="mix"),
        helper.make_node("Transpose", ["mixed"], ["turned"], name="turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["mixed", "turned"], ["scores"], name="attend"),
        helper.make_node("Add", ["scores", "mean"], ["shifted"], name="shift"),
    )
    return model


def test_int8_decides_nearly_as_full_precision_in_a_third_of_the_bytes(
    tmp_path: Path, scratch: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, images = make_member("test_efficientnet", tmp_path), pictures(32)
    before, there = run(model, images), set(scratch.iterdir())
    caplog.clear()
    capfd.readouterr()
    candidates = list(int8_candidates(model, images[:16]))
    assert (capfd.readouterr(), caplog.records, set(scratch.iterdir())) == (("", ""), [], there)
    assert logging.root.manager.disable == logging.NOTSET
    assert [len(one.fp32_nodes) for one in candidates] == sorted({len(one.fp32_nodes) for one in candidates})
    assert len(candidates) == 3
    for candidate in candidates:
        onnx.checker.check_model(candidate.model, full_check=True)
        assert candidate.emulated is candidate.model
        assert (candidate.model.ir_version, len(candidate.model.metadata_props)) == (10, 0)
        assert [(one.domain, one.version) for one in candidate.model.opset_import] == [("", 18)]
        assert {node.domain for node in candidate.model.graph.node} == {""}
        assert element_type(candidate.model, "image") == TensorProto.UINT8
        after = run(candidate.model, images)
        assert {one.dtype for one in after.values()} == {np.dtype(np.float32)}
        assert 0 < worst(before, after) < 0.15
        changed = [(before[head].argmax(1) != after[head].argmax(1)).mean() for head in before]
        assert max(changed) < 0.1
    assert len(weights_of(candidates[0].model)) < 0.4 * len(weights_of(model))


def test_weights_keep_to_seven_bits_and_have_a_scale_per_channel(scratch: Path) -> None:
    candidate = next(int8_candidates(small_net(), pictures(4)))
    numbers = {one.name: numpy_helper.to_array(one) for one in candidate.model.graph.initializer}
    for name in ("w1", "w2", "w3"):
        assert numbers[f"{name}_quantized"].dtype == np.int8
        assert np.abs(numbers[f"{name}_quantized"]).max() == 64
    assert numbers["w1_scale"].shape == numbers["w2_scale"].shape == (CHANNELS,)


def test_ends_stay_float_and_then_more(scratch: Path) -> None:
    model, images = attending_net(), pictures(6)
    candidates = list(int8_candidates(model, images))
    kept = [
        "preprocessing and what follows the heads",
        "preprocessing and what follows the heads, first layers and heads",
        "preprocessing and what follows the heads, first layers and heads, attention products, depthwise and gating "
        "convolutions, and sums",
    ]
    assert [one.kept for one in candidates] == kept
    named = {node.name for node in model.graph.node} - {""}
    first, second, third = (named - set(one.fp32_nodes) for one in candidates)
    assert first == named - {"temperature", "softmax", "shift", "turn", "pool", "flat"}
    assert second == first - {"conv1", "head"}
    assert third == second - {"depthwise", "gating", "squeeze", "sigmoid", "excite", "join", "attend", "halve"}
    for candidate in candidates:
        assert np.isfinite(run(candidate.model, images)["root"]).all()
        assert quantized(candidate.model)["Softmax"] == 0
    assert [quantized(one.model)["Conv"] for one in candidates] == [4, 3, 1]
    assert [quantized(one.model)["MatMul"] for one in candidates] == [2, 2, 1]
    assert [quantized(one.model)["Gemm"] for one in candidates] == [1, 0, 0]


def test_candidates_that_would_change_nothing_are_left_out(scratch: Path) -> None:
    assert len(list(int8_candidates(small_net(), pictures(4)))) == 3
    no_sums = small_net()
    insert(no_sums, "relu2", helper.make_node("Neg", ["c"], ["d"], name="negate"))
    del no_sums.graph.node[[node.name for node in no_sums.graph.node].index("halve")]
    assert len(list(int8_candidates(no_sums, pictures(4)))) == 2
    shallow = small_net()
    names = [node.name for node in shallow.graph.node]
    shallow.graph.node[names.index("halve")].input[0] = "b"
    del shallow.graph.node[names.index("conv2")]
    assert len(list(int8_candidates(shallow, pictures(4)))) == 1  # no layers but the first and the head


def test_the_range_of_all_images_sets_the_scales(scratch: Path) -> None:
    model, images = small_net(), pictures(20)
    dark = images // 4
    scales = []
    for shown in (dark, np.concatenate([dark, images])):
        made = next(int8_candidates(model, shown)).model
        scales.append({one.name: numpy_helper.to_array(one) for one in made.graph.initializer}["normal_scale"])
    assert scales[1] > 1.5 * scales[0]


def test_a_full_disk_says_where_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(
        ExportError, match=r"int8 cannot be calibrated: .* go to .*gone: make room there, or set TMPDIR"
    ):
        next(int8_candidates(small_net(), pictures(1)))
