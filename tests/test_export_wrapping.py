from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from conftest import wide_task
from onnx import TensorProto, helper, numpy_helper
from test_multilabel import task_of
from torch import nn

from kaggle_kit.errors import ExportError, SettingError
from kaggle_kit.export import foreign
from kaggle_kit.export.foreign import foreign_sha256, graphs_within, read_foreign
from kaggle_kit.export.reading import Reading, check_reading
from kaggle_kit.export.wrapping import ReadModule, reorder_outputs, wrap_onnx
from kaggle_kit.task import Head, Stored, Task


def shown(images: np.ndarray, reading: Reading) -> np.ndarray:
    """What a teammate's own pipeline makes of (N, H, W, C) stored images, in plain NumPy and OpenCV."""
    made = []
    for image in images.astype(np.float32):
        one = image if reading.size is None else cv2.resize(image, reading.size[::-1], interpolation=cv2.INTER_LINEAR)
        one = one.reshape(*one.shape[:2], -1)
        one = one[..., ::-1] if reading.order == "bgr" else one
        one = np.repeat(one, (reading.channels or one.shape[2]) // one.shape[2], axis=2)
        if reading.mean:
            one = (one / 255 - np.float32(reading.mean)) / np.float32(reading.std)
        made.append(one if reading.layout == "nhwc" else one.transpose(2, 0, 1))
    pixels = np.stack(made).astype(np.float32)
    return pixels.round().astype(np.uint8) if reading.dtype == "uint8" else pixels


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def linear(
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
    batch: int | str = "n",
) -> onnx.ModelProto:
    """A model that is linear in its pixels: logits of each output from an input `x` of this shape."""
    rng, count = np.random.default_rng(0), int(np.prod(shape))
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
    ]
    weights = []
    for name, size in sizes.items():
        weights.append(numpy_helper.from_array(rng.normal(0, 0.01, (count, size)).astype(np.float32), f"{name}_w"))
        nodes.append(helper.make_node("MatMul", ["flat", f"{name}_w"], [f"{name}_f"]))
        nodes.append(helper.make_node("Cast", [f"{name}_f"], [name], to=dtype if dtype != 2 else TensorProto.FLOAT))
    outputs = [
        helper.make_tensor_value_info(name, dtype if dtype != 2 else TensorProto.FLOAT, [batch, size])
        for name, size in sizes.items()
    ]
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info("x", dtype, [batch, *shape])], outputs, weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def logits_of(model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    return {one.name: flat @ weights[f"{one.name}_w"] for one in model.graph.output}


class Linear(nn.Module):
    """The same as a module."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.names = [one.name for one in model.graph.output]
        for one in model.graph.initializer:
            self.register_buffer(one.name, torch.from_numpy(numpy_helper.to_array(one).copy()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: x.float().flatten(1) @ getattr(self, f"{name}_w") for name in self.names}


def color_task(**heads: Head) -> Task:
    """A task of 12 x 10 images of 3 channels."""
    base = task_of(tags2={"classes": 2})
    images = dataclasses.replace(base.images, channels=3, height=12, width=10)
    own = heads or {"root": Head(name="root", classes=("a", "b", "c"))}
    return dataclasses.replace(base, heads=own, images=images, stored=Stored(height=12, width=10))


def asked(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


@pytest.mark.parametrize(
    "reading",
    [
        Reading(),
        Reading(mean=(0.0,), std=(1.0,)),
        Reading(layout="nhwc", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)),
        Reading(size=(15, 20)),
        Reading(size=(15, 20), layout="nhwc", order="bgr", mean=(0.4, 0.5, 0.6), std=(1 / 255,) * 3),
        Reading(dtype="uint8"),
        Reading(dtype="uint8", size=(13, 17), layout="nhwc"),
        Reading(order="bgr"),
    ],
    ids=str,
)
def test_graph_module_and_plain_numpy_read_images_alike(reading: Reading) -> None:
    task, images = color_task(), np.random.default_rng(1).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    pixels = shown(images, reading)
    model = linear(pixels.shape[1:], {"root": 3}, dtype=TensorProto.UINT8 if reading.dtype == "uint8" else 1)
    expected = softmax(logits_of(model, pixels)["root"])
    wrapped = wrap_onnx(model, reading, task, name="m.onnx")
    onnx.checker.check_model(wrapped, full_check=True)
    assert np.abs(asked(wrapped, images)["root"] - expected).max() < 2e-5
    module = ReadModule(Linear(model), reading, task)
    assert np.abs(module(torch.from_numpy(images))[0].numpy() - expected).max() < 2e-5


def test_gray_images_are_repeated_for_a_model_of_three_channels() -> None:
    task = task_of()
    images = np.random.default_rng(1).integers(0, 256, (3, 24, 32, 1), dtype=np.uint8)
    reading = Reading(channels=3, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, order="bgr")
    model = linear((3, 24, 32), {"tags": 4})
    logits = logits_of(model, shown(images, reading))["tags"]
    expected = 1 / (1 + np.exp(-logits))  # a multi-label head
    wrapped = wrap_onnx(model, reading, task, name="m.onnx")
    assert np.abs(asked(wrapped, images)["tags"] - expected).max() < 1e-5
    assert np.abs(ReadModule(Linear(model), reading, task)(torch.from_numpy(images))[0].numpy() - expected).max() < 1e-5


def test_classes_outputs_and_half_precision_are_as_the_model_has_them() -> None:
    task = color_task(root=Head(name="root", classes=("a", "b", "c")), vowel=Head(name="vowel", classes=2))
    images = np.random.default_rng(1).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    reading = Reading(
        outputs={"vowel": "second", "root": "first"}, classes={"root": ("c", "a", "b")}, mean=(0.5,), std=(0.5,)
    )
    model = linear((3, 12, 10), {"first": 3, "second": 2})
    logits = logits_of(model, shown(images, dataclasses.replace(reading, mean=(0.5,) * 3, std=(0.5,) * 3)))
    found = asked(wrap_onnx(model, reading, task, name="m.onnx"), images)
    assert list(found) == ["root", "vowel"]
    assert np.abs(found["root"] - softmax(logits["first"])[:, [1, 2, 0]]).max() < 1e-5
    assert np.abs(found["vowel"] - softmax(logits["second"])).max() < 1e-5
    half = wrap_onnx(linear((3, 12, 10), {"first": 3, "second": 2}, dtype=10), reading, task, name="m.onnx")
    assert np.abs(asked(half, images)["root"] - found["root"]).max() < 5e-3
    module = ReadModule(Linear(model), reading, task)
    assert [one.shape[1] for one in module(torch.from_numpy(images))] == [3, 2]
    assert np.abs(module(torch.from_numpy(images))[0].numpy() - found["root"]).max() < 1e-5


def test_probabilities_stay_as_they_are() -> None:
    model = linear((3, 12, 10), {"root": 3})
    images = np.random.default_rng(1).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    found = asked(wrap_onnx(model, Reading(activation="none"), color_task(), name="m.onnx"), images)
    assert np.abs(found["root"] - logits_of(model, shown(images, Reading()))["root"]).max() < 1e-3


@pytest.mark.parametrize(
    ("returned", "names", "problem"),
    [
        (lambda x: (x[:, :3], x[:, 3:]), {}, ""),
        (lambda x: [x[:, 3:], x[:, :3]], {"vowel": "v", "root": "r"}, ""),
        (lambda x: {"r": x[:, :3], "v": x[:, 3:]}, {"vowel": "v", "root": "r"}, ""),
        (lambda x: x[:, :3], {}, "returns a tuple of 1, which has nothing for head 'root'"),
        (lambda x: {"root": x[:, :3]}, {}, "dict of 'root', which has nothing for head 'vowel'"),
        (lambda x: (x, None), {}, "nothing for head 'vowel'"),
        (lambda x: 3.5, {}, "returns a float"),
        (
            lambda x: (x[:, None, :3], x[:, 3:]),
            {},
            r"returns \(any, 1, 3\) for head 'root', expected \(any, 3\): a row",
        ),
        (lambda x: (x[:, :3], x[:, 3:, None, None]), {}, r"returns \(any, 2, 1, 1\) for head 'vowel', expected"),
        (lambda x: (x[:, :3], x), {}, r"returns \(any, 5\) for head 'vowel', expected \(any, 2\)"),
        (lambda x: (x[:, 0], x[:, 3:]), {}, r"returns \(any\) for head 'root', expected \(any, 3\)"),
    ],
)
def test_a_module_may_return_what_it_likes(returned: Any, names: dict[str, str], problem: str) -> None:
    class Returning(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return returned(x.mean((2, 3)).repeat(1, 2)[:, :5])

    task = color_task(root=Head(name="root", classes=3), vowel=Head(name="vowel", classes=2))
    graph = ReadModule(Returning(), Reading(outputs=names), task)
    images = torch.zeros((2, 12, 10, 3), dtype=torch.uint8)
    if problem:
        with pytest.raises(ExportError, match=problem):
            graph(images)
    else:
        assert [one.shape[1] for one in graph(images)] == [3, 2]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"layout": "hwc"}, r"`layout` is 'hwc'; did you mean 'nhwc'\?"),
        ({"dtype": "float16"}, "`dtype` is 'float16'; did you mean 'float32'"),
        ({"activation": "sigmoid"}, "`activation` is 'sigmoid'"),
        ({"order": "gbr"}, "`order` is 'gbr'"),
        ({"size": (0, 32)}, r"`size` is \[0, 32\]"),
        ({"channels": 4}, "`channels` is 4; give 1 or 3"),
        ({"mean": (0.5,)}, r"`mean` has 1 value\(s\) and `std` 0"),
        ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "give numbers"),
        ({"mean": (0.5,), "std": (1.0,), "dtype": "uint8"}, "uint8, which is not normalised"),
        ({"channels": 1}, "`channels` is 1, and images of task 'toy-wide' have 3"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, r"`mean` has 2 values, and the model sees 3 channel\(s\)"),
        ({"outputs": {"rot": "x"}}, r"`outputs` names head 'rot'; did you mean 'root'\?"),
        ({"outputs": {"root": "x"}}, "`outputs` does not say what head 'vowel' is called"),
        ({"classes": {"vowl": ("a",)}}, "`classes` names head 'vowl'"),
        ({"classes": {"root": ("a", "b")}}, "`classes` of head 'root' are 2, expected the 3 .* alone, or twice: 'c'"),
        ({"classes": {"root": ("a", "b", "c", "c")}}, "alone, or twice: 'c'"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(values: dict[str, Any], problem: str) -> None:
    task = color_task(root=Head(name="root", classes=("a", "b", "c")), vowel=Head(name="vowel", classes=2))
    with pytest.raises(SettingError, match=problem):
        check_reading(Reading(**values), task)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def changed(*, nodes: Any = (), **values: Any) -> onnx.ModelProto:
    """The linear model of the toy's images, with nodes put between its output and what comes out."""
    model = linear((1, 24, 32), {"root": 3, "vowel": 2}, **values)
    for node in nodes:
        model.graph.node.append(node)
    return model


def foreign_operator() -> onnx.ModelProto:
    model = changed()
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "FusedConv"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def second_input() -> onnx.ModelProto:
    model = changed()
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    return model


def hidden_operator() -> onnx.ModelProto:
    branches = {
        name: helper.make_graph(
            [helper.make_node("Odd", ["root"], [name], domain="com.microsoft")],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    model = changed(nodes=[helper.make_node("If", ["always"], ["odd"], **branches)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def dilated() -> onnx.ModelProto:
    node = helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[2, 2], dilations=[2, 2])
    return changed(nodes=[node], opset=19)


@pytest.mark.parametrize(
    ("model", "reading", "problem"),
    [
        (None, Reading(), "there is no ONNX file .*m.onnx'; check the path"),
        (b"\xff\xfe no model", Reading(), "m.onnx does not read as an ONNX model"),
        (b"", Reading(), "holds no operators"),
        (changed().SerializeToString()[:2000], Reading(), "m.onnx (does not read|holds no)"),
        (foreign_operator(), Reading(), r"uses 1 operator\(s\) that are not ONNX's own .*'com.microsoft.FusedConv'"),
        (hidden_operator(), Reading(), "'com.microsoft.Odd'"),
        (second_input(), Reading(), r"has 2 inputs \('x', 'y'\); expected one"),
        (changed(), Reading(dtype="uint8"), "input 'x' is float, and the reading says uint8"),
        (changed(dtype=TensorProto.UINT8), Reading(), "input 'x' is uint8, and the reading says float32"),
        (changed(), Reading(layout="nhwc"), r"is \(any, 1, 24, 32\), and the reading says \(any, 24, 32, 1\) \(nhwc\)"),
        (changed(), Reading(size=(32, 32)), r"the reading says \(any, 1, 32, 32\)"),
        (
            changed(),
            Reading(outputs={"root": "a", "vowel": "b"}),
            "no output 'a' for head 'root', only 'root', 'vowel'",
        ),
        (linear((1, 24, 32), {"root": 4, "vowel": 2}), Reading(), r"'root' is \(any, 4\), expected \(batch, 3\)"),
        (dilated(), Reading(), "of opset 19 and cannot be brought to 18 .*dilations"),
        (
            linear((1, 24, 32), {"root": 3, "vowel": 2}, dtype=TensorProto.INT32),
            Reading(),
            "input 'x' is int32, and the reading",
        ),
    ],
)
def test_a_file_that_is_no_such_model_is_refused(tmp_path: Path, model: Any, reading: Reading, problem: str) -> None:
    path = tmp_path / "m.onnx"
    if model is not None:
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(ExportError, match=problem):
        wrap_onnx(read_foreign(path), reading, wide_task(), name=str(path))


def test_decided_classes_are_no_probabilities() -> None:
    model = linear((3, 12, 10), {"root": 3})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ExportError, match="output 'root' is int64; expected logits or probabilities"):
        wrap_onnx(model, Reading(), color_task(), name="m.onnx")


def test_a_model_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(changed(), tmp_path / "m.onnx")
    monkeypatch.setattr(foreign, "MOST_BYTES", 1000)
    with pytest.raises(ExportError, match=r"has 1\d,\d{3} bytes of weights; a model from elsewhere may have 1,000"):
        read_foreign(path)


def test_weights_beside_a_file_are_taken_in(tmp_path: Path) -> None:
    model, images = changed(), np.zeros((2, 24, 32, 1), np.uint8)
    expected = asked(wrap_onnx(model, Reading(), wide_task(), name="m"), images)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    found, known = read_foreign(tmp_path / "m.onnx"), foreign_sha256(tmp_path / "m.onnx")
    both = (tmp_path / "m.onnx").read_bytes() + (tmp_path / "weights.bin").read_bytes()
    assert known == hashlib.sha256(both).hexdigest()
    assert not any(one.external_data for one in found.graph.initializer)
    assert np.array_equal(asked(wrap_onnx(found, Reading(), wide_task(), name="m"), images)["root"], expected["root"])
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match="does not read .* with the files beside it that hold its weights"):
        read_foreign(tmp_path / "m.onnx")


def test_functions_are_written_out_and_weights_among_the_inputs_are_none(tmp_path: Path) -> None:
    model = changed()
    double = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    for node in model.graph.node:
        if node.output[0] == "root":
            node.domain, node.op_type = "mine", "Twice"
            del node.attribute[:]
    model.functions.append(double)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.input.append(helper.make_tensor_value_info("root_w", TensorProto.FLOAT, [768, 3]))
    images = np.random.default_rng(1).integers(0, 9, (2, 24, 32, 1), dtype=np.uint8)
    wrapped = wrap_onnx(read_foreign(save(model, tmp_path / "m.onnx")), Reading(), wide_task(), name="m")
    expected = softmax(2 * logits_of(changed(), shown(images, Reading()))["root"])
    assert np.abs(asked(wrapped, images)["root"] - expected).max() < 1e-5


def reshaping(*, batch: int | str, shape: list[int], mixing: bool = False) -> onnx.ModelProto:
    """The linear model, flattened by a Reshape of this shape; a mixing one subtracts the mean of the batch."""
    model = changed(batch=batch)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    flatten.input.append("shape")
    constant = helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array(shape)))
    nodes = [constant, *model.graph.node]
    if mixing:
        flatten.input[0] = "centred"
        mean = [
            helper.make_node("ReduceMean", ["float", "first"], ["mean"]),
            helper.make_node("Sub", ["float", "mean"], ["centred"]),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
        nodes = [*nodes[:2], *mean, *nodes[2:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_operators_that_are_newer_than_the_opset_are_written_out(tmp_path: Path) -> None:
    model = linear((1, 24, 32), {"root": 3, "vowel": 2}, opset=20)
    last = next(node for node in model.graph.node if node.output[0] == "root")
    last.op_type = "Gelu"
    del last.attribute[:]
    images = np.random.default_rng(1).integers(0, 99, (2, 24, 32, 1), dtype=np.uint8)
    found = read_foreign(save(model, tmp_path / "m.onnx"))
    assert "Gelu" not in {node.op_type for node in found.graph.node} and found.opset_import[0].version == 18
    logits = torch.from_numpy(logits_of(model, shown(images, Reading()))["root"])
    expected = softmax(nn.functional.gelu(logits).numpy())
    assert np.abs(asked(wrap_onnx(found, Reading(), wide_task(), name="m"), images)["root"] - expected).max() < 1e-5


@pytest.mark.parametrize(("batch", "shape"), [(1, [1, -1]), (1, [1, 768]), ("n", [-1, 768])])
def test_a_batch_of_one_is_freed(tmp_path: Path, batch: int | str, shape: list[int]) -> None:
    images = np.random.default_rng(1).integers(0, 99, (5, 24, 32, 1), dtype=np.uint8)
    path = save(reshaping(batch=batch, shape=shape), tmp_path / "m.onnx")
    found = asked(wrap_onnx(read_foreign(path), Reading(), wide_task(), name="m"), images)
    expected = softmax(logits_of(changed(), shown(images, Reading()))["root"])
    assert np.abs(found["root"] - expected).max() < 1e-5


def test_values_within_inner_graphs_are_renamed_too() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["root"], ["twice"])],
        "then",
        [],
        [helper.make_tensor_value_info("twice", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["root"], ["less"])],
        "else",
        [],
        [helper.make_tensor_value_info("less", TensorProto.FLOAT, None)],
    )
    model = linear((3, 12, 10), {"root": 3})
    model.graph.node.append(helper.make_node("If", ["always"], ["vowel"], then_branch=inner, else_branch=other))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.output.append(helper.make_tensor_value_info("vowel", TensorProto.FLOAT, ["n", 3]))
    task = color_task(root=Head(name="root", classes=3), vowel=Head(name="vowel", classes=3))
    wrapped = wrap_onnx(model, Reading(), task, name="m")
    images = np.random.default_rng(1).integers(0, 9, (2, 12, 10, 3), dtype=np.uint8)
    made = asked(reorder_outputs(wrapped, {"root": np.array([1, 0, 2])}), images)
    assert np.abs(made["root"][:, [1, 0, 2]] - made["vowel"]).max() < 1e-6


def test_graphs_within_graphs_are_found_wherever_a_node_holds_them() -> None:
    deep, second, third = (helper.make_graph([], name, [], []) for name in ("deep", "second", "third"))
    first = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=deep)], "first", [], [])
    node = helper.make_node("Either", ["x"], ["y"], domain="theirs", one=first, several=[second, third], number=1)
    outer = helper.make_graph([node], "outer", [], [])
    assert [graph.name for graph in graphs_within(outer)] == ["outer", "first", "deep", "second", "third"]
