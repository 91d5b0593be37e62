from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.export.rewrites import cast_first, drop_notes, fold_batchnorm

RNG = np.random.default_rng(0)
NORM = ("scale", "shift", "mean", "variance")


def model_of(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.ModelProto:
    """Make a model of (batch, 6, 6, 3) uint8 images with weights of two convolutions and two BatchNorms."""
    weights = {f"weight{i}": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32) for i in (0, 1)}
    vectors = {f"{name}{i}": RNG.uniform(0.5, 2, 4).astype(np.float32) for name in (*NORM, "bias") for i in (0, 1)}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 6, 6, 3])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
            [numpy_helper.from_array(values, name) for name, values in (weights | vectors).items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def pixels() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
    ]


def conv(out: str, *weights: str) -> onnx.NodeProto:
    return helper.make_node("Conv", ["pixels", *weights], [out])


def norm(into: str, out: str, number: int = 0, **epsilon: float) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [into, *(f"{name}{number}" for name in NORM)], [out], **epsilon)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    return [np.asarray(values) for values in session.run(None, {"image": images})]


@pytest.mark.parametrize(
    ("nodes", "outputs", "left", "weights"),
    [
        ([conv("a", "weight0"), norm("a", "b")], ["b"], 0, 2),
        ([conv("a", "weight0", "bias0"), norm("a", "b", epsilon=0.1)], ["b"], 0, 2),
        # weights shared by two passes, and the same weights before another BatchNorm
        ([conv("a", "weight0"), norm("a", "b"), conv("c", "weight0"), norm("c", "d")], ["b", "d"], 0, 2),
        ([conv("a", "weight0"), norm("a", "b"), conv("c", "weight0"), norm("c", "d", 1)], ["b", "d"], 0, 4),
        ([conv("a", "weight0"), norm("a", "b"), conv("c", "weight0")], ["b", "c"], 0, 3),
        # what a convolution gives is needed elsewhere, or no convolution comes before
        ([conv("a", "weight0"), norm("a", "b")], ["a", "b"], 1, 5),
        ([conv("a", "weight0"), norm("a", "b"), helper.make_node("Relu", ["a"], ["c"])], ["b", "c"], 1, 5),
        ([conv("z", "weight0"), helper.make_node("Relu", ["z"], ["a"]), norm("a", "b")], ["b"], 1, 5),
    ],
)
def test_folding_changes_no_result(nodes: list[onnx.NodeProto], outputs: list[str], left: int, weights: int) -> None:
    model = model_of([*pixels(), *nodes], outputs)
    expected = run(model)
    assert fold_batchnorm(model) == left
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == left
    assert len(model.graph.initializer) == weights
    for found, values in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-3)  # pixels up to 255, weights of size 1


def test_weights_that_are_computed_are_not_folded() -> None:
    made = helper.make_node("Mul", ["weight0", "weight1"], ["made"])
    model = model_of([*pixels(), made, conv("a", "made"), norm("a", "b")], ["b"])
    assert fold_batchnorm(model) == 1


def test_a_norm_of_the_graphs_own_input_stays() -> None:
    cast = helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)
    model = model_of([cast, norm("image", "b")], ["b"])
    assert fold_batchnorm(model) == 1


def test_only_the_cast_reads_the_images() -> None:
    shape = helper.make_node("Shape", ["image"], ["size"], start=0, end=1)
    number = helper.make_node("Cast", ["size"], ["number"], to=TensorProto.FLOAT)
    product = helper.make_node("Mul", ["pixels", "number"], ["c"])
    model = model_of([shape, number, *pixels(), product], ["c"])
    expected = run(model)
    cast_first(model)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Shape", "Cast", "Transpose", "Mul"]
    assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Cast"]
    assert np.array_equal(run(model)[0], expected[0])


def test_a_graph_that_casts_nothing_stays() -> None:
    model = model_of([helper.make_node("Shape", ["image"], ["size"])], ["size"])
    before = model.SerializeToString()
    cast_first(model)
    assert model.SerializeToString() == before


def test_notes_go() -> None:
    model = model_of([*pixels(), conv("a", "weight0")], ["a"])
    before = model.SerializeToString()
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "made in /home/me"
    for noted in (model, model.graph, model.graph.node[2], model.graph.initializer[0], model.graph.output[0]):
        note = noted.metadata_props.add()
        note.key, note.value = "pkg.torch.onnx.stack_trace", "/home/me/model.py"
    drop_notes(model)
    assert b"/home/me" not in model.SerializeToString()
    assert model.SerializeToString() == before
