from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import draw, wide_task
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.errors import ExportError
from kaggle_kit.export.candidate import Candidate, find_parts, prepare
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.half import emulate_half, half_candidates, measure_magnitudes, to_half
from kaggle_kit.export.onnx import export_onnx
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.task import task_from_plain, task_to_plain
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import build_network

CHANNELS = 8
LOUD = 3e4  # weights as large fit fp16, and what they make of pixels does not


def pictures(number: int) -> Image:
    rng = np.random.default_rng(0)
    return np.stack([draw(i % 3, i % 2, rng) for i in range(number)])[..., None]


def run(model: onnx.ModelProto, images: Image) -> Probs:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def worst(first: Probs, second: Probs) -> float:
    return max(float(np.abs(first[head] - second[head]).max()) for head in first)


def tensor(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def small_net(loud: float = 1.0, *, kind: str = "Relu", opset: int = 18) -> onnx.ModelProto:
    """Two convolutions and a head by hand; numbers between the two are `loud` times as large as they need to be."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Constant", [], ["mean"], value=tensor("", [[[[100.0]]]])),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["shape"], value_ints=[0, CHANNELS]),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "mean"], ["normal"]),
        helper.make_node("Conv", ["normal", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node(kind, ["a"], ["b"], name="between"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "half"], ["d"], name="halve"),
        helper.make_node("Relu", ["d"], ["e"], name="relu2"),
        helper.make_node("GlobalMaxPool", ["e"], ["pooled"], name="pool"),
        helper.make_node("Reshape", ["pooled", "shape"], ["features"], name="flat"),
        helper.make_node("Gemm", ["features", "w3"], ["logits"], name="head"),
        helper.make_node("Mul", ["logits", "half"], ["cool"], name="temperature"),
        helper.make_node("Softmax", ["cool"], ["root"], name="softmax", axis=1),
    ]
    weights = [
        tensor("w1", rng.normal(0, 0.5, (CHANNELS, 1, 3, 3)) * loud),
        tensor("w2", rng.normal(0, 0.5, (CHANNELS, CHANNELS, 3, 3)) / loud),
        tensor("w3", rng.normal(0, 0.5, (CHANNELS, 3))),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 24, 32, 1])
    root = helper.make_tensor_value_info("root", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "small", [image], [root], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def make_member(name: str, folder: Path, *, tta: tuple[str, ...] = (), derive: bool = False) -> onnx.ModelProto:
    """Export a timm network of 64 x 64 pixels that says something else of every image, and so decides clearly."""
    torch.manual_seed(0)
    task = task_from_plain(task_to_plain(wide_task()) | {"auxiliary": {"both": {"classes": 6}}})
    network = build_network(task, ModelConfig(name=name, input_size=(64, 64)), load_pretrained=False)
    for weights in network.heads.parameters():
        weights.data *= 20
    derivation = {"root": np.arange(6) // 2, "vowel": np.arange(6) % 2}
    graph = ExportGraph(network, tta=tta, derive_from="both" if derive else "", derivation=derivation)
    export_onnx(graph, folder / "member.onnx", shape=(24, 32, 1))
    return onnx.load(folder / "member.onnx")


def element_type(model: onnx.ModelProto, name: str) -> int:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    return next(value.type.tensor_type.elem_type for value in values if value.name == name)


def test_parts_of_a_graph_are_found_by_what_they_read() -> None:
    parts = find_parts(prepare(small_net()))
    assert parts.before == {"Cast/0", "Transpose/1", "Sub/5", "Div/6"}
    assert (parts.first, parts.last, parts.after) == ({"conv1"}, {"head"}, {"temperature", "softmax"})


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """A network with views and derived heads, and a plain one."""
    folder = tmp_path_factory.mktemp("members")
    viewed = make_member("test_resnet", folder, tta=("scale=0.75",), derive=True)
    return {"viewed": viewed, "plain": make_member("test_vit", folder)}


def test_resizes_views_and_summed_probabilities_are_no_layers(members: dict[str, onnx.ModelProto]) -> None:
    model = prepare(members["viewed"])
    parts, kinds = find_parts(model), {node.name: node.op_type for node in model.graph.node}
    assert {kinds[name] for name in parts.first} == {"Conv"}
    assert {kinds[name] for name in parts.last} == {"Gemm"}
    # the network has no matrix products of its own: the resize and one view's own come first, sums of classes last
    assert [kinds[name] for name in parts.before].count("MatMul") == 4
    assert [kinds[name] for name in parts.after].count("MatMul") == 4
    assert "Softmax" in {kinds[name] for name in parts.after}


@pytest.mark.parametrize("name", ["viewed", "plain"])
def test_half_decides_as_full_precision_in_half_the_bytes(name: str, members: dict[str, onnx.ModelProto]) -> None:
    model, images = members[name], pictures(24)
    before = run(model, images)
    candidates = list(half_candidates(model, images[:8]))
    assert len(candidates) == 2
    for candidate in candidates:
        after = run(candidate.emulated, images)
        assert 0 < worst(before, after) < 1e-2
        assert {head: said.argmax(1).tolist() for head, said in after.items()} == {
            head: said.argmax(1).tolist() for head, said in before.items()
        }
        assert worst(before, run(candidate.model, images)) < 1e-2
        onnx.checker.check_model(candidate.model, full_check=True)
        assert element_type(candidate.model, "image") == TensorProto.UINT8
        assert {element_type(candidate.model, head) for head in before} == {TensorProto.FLOAT}
        assert (candidate.model.ir_version, candidate.model.opset_import[0].version) == (10, 18)
        assert len(weights_of(candidate.model)) < 0.6 * len(weights_of(model))
    assert set(candidates[0].fp32_nodes) < set(candidates[1].fp32_nodes)
    assert candidates[0].kept == "preprocessing and what follows the heads"
    assert candidates[1].kept.endswith("and norms, means, exponentials and heads")


def weights_of(model: onnx.ModelProto) -> bytes:
    return b"".join(one.raw_data for one in model.graph.initializer)


def test_onnxruntimes_own_run_on_the_cpu_hides_an_overflow_that_the_emulation_shows() -> None:
    model, images = small_net(LOUD), pictures(6)
    before, plain = run(model, images), prepare(model)
    parts = find_parts(plain)
    half = to_half(plain, parts.before | parts.after)
    assert measure_magnitudes(plain, images)["a"] > 65504 > numpy_helper.to_array(model.graph.initializer[0]).max()
    assert worst(before, run(half, images)) < 0.1
    assert not np.isfinite(run(emulate_half(half), images)["root"]).all()


def test_layers_that_overflow_become_islands() -> None:
    model, images = small_net(LOUD), pictures(6)
    candidate = next(half_candidates(model, images))
    assert {"conv1", "between", "conv2"} <= set(candidate.fp32_nodes)
    assert not {"halve", "relu2", "head"} & set(candidate.fp32_nodes)
    assert candidate.kept.endswith("3 nodes with numbers near the end of fp16's range")
    assert 0 < worst(run(model, images), run(candidate.emulated, images)) < 1e-2


def test_a_margin_is_kept_for_images_that_were_not_measured() -> None:
    model, images = small_net(), pictures(6)
    largest = measure_magnitudes(prepare(model), images)["a"]
    near = 65504 / largest / 2
    assert "conv1" in next(half_candidates(small_net(near), images)).fp32_nodes
    assert "conv1" not in next(half_candidates(small_net(near / 3), images)).fp32_nodes


def test_magnitudes_are_the_largest_of_all_images() -> None:
    plain, images = prepare(small_net()), pictures(20)
    parts = [measure_magnitudes(plain, images[i : i + 1]) for i in range(20)]
    found = measure_magnitudes(plain, images)
    assert found["pixels"] == 255
    for name, value in found.items():
        assert value == pytest.approx(max(part[name] for part in parts), rel=1e-6)


def test_the_emulation_rounds_what_every_layer_writes_and_reads() -> None:
    model, images = small_net(), pictures(4)
    plain = prepare(model)
    parts = find_parts(plain)
    emulated = emulate_half(to_half(plain, parts.before | parts.after))
    for name in ("a", "b", "e", "logits"):
        emulated.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    emulated.graph.output.append(helper.make_tensor_value_info("normal", TensorProto.FLOAT, None))
    values = run(emulated, images)
    for name in ("a", "b", "e", "logits"):
        np.testing.assert_array_equal(values[name], values[name].astype(np.float16))
    assert (values["normal"] != values["normal"].astype(np.float16)).any()  # preprocessing is not rounded
    half = values["normal"].astype(np.float16).astype(np.float64)
    weights = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16).astype(np.float64)
    padded = np.pad(half[0, 0], 1)
    inner = sum(weights[0, 0, i, j] * padded[i : i + 24, j : j + 32] for i in range(3) for j in range(3))
    np.testing.assert_allclose(values["a"][0, 0], inner, rtol=2**-10, atol=1e-3)


def test_neighbours_in_an_island_hand_on_full_precision_and_share_their_casts() -> None:
    plain = prepare(small_net())
    parts = find_parts(plain)
    half = to_half(plain, parts.before | parts.after | {"conv1", "between", "conv2"})
    casts = [node.input[0] for node in half.graph.node if node.op_type == "Cast"]
    assert casts == ["image", "c", "logits"]
    numbers = {one.name: one.data_type for one in half.graph.initializer}
    assert numbers["half"] == TensorProto.FLOAT  # read by an island,
    assert numbers["half/half"] == TensorProto.FLOAT16  # and by another node
    assert numbers["w1"] == TensorProto.FLOAT


def squares_of(op: str) -> onnx.ModelProto:
    """A net whose numbers between its convolutions fit fp16, but not their squares."""
    model = small_net(300.0, kind="Relu" if op == "Softmax" else "Identity")
    for place, node in enumerate(model.graph.node):
        if node.name == "between":
            new = helper.make_node(op, ["a", "ones", "ones"][: 1 if op == "Softmax" else 3], ["b"], name="between")
            model.graph.node[place].CopyFrom(new)
    ones = np.ones(32 if op == "LayerNormalization" else CHANNELS)
    model.graph.initializer.append(tensor("ones", ones))
    if op in ("InstanceNormalization", "LayerNormalization", "Softmax"):
        scale = numpy_helper.to_array(model.graph.initializer[1]) * 300
        model.graph.initializer[1].CopyFrom(tensor("w2", scale))
    return model


@pytest.mark.parametrize(
    ("op", "islands"),
    [
        ("LayerNormalization", {"between"}),
        ("InstanceNormalization", {"between"}),
        ("Softmax", {"conv1", "between"}),
    ],
)
def test_what_squares_large_numbers_is_an_island(op: str, islands: set[str]) -> None:
    model, images = squares_of(op), pictures(6)
    candidate = next(half_candidates(model, images))
    assert set(candidate.fp32_nodes) & {"conv1", "between", "conv2"} == islands
    assert worst(run(model, images), run(candidate.emulated, images)) < 2e-2


def with_mask(value: float) -> onnx.ModelProto:
    """A net that hides some features behind a large negative number, as attention masks do."""
    model = small_net()
    mask = np.zeros((1, CHANNELS, 1, 1))
    mask[:, 0] = value
    model.graph.initializer.append(tensor("mask", mask))
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "relu2")
    model.graph.node[place].input[0] = "masked"
    model.graph.node.insert(place, helper.make_node("Add", ["d", "mask"], ["masked"], name="hide"))
    return model


@pytest.mark.parametrize("value", [-1e9, -np.inf])
def test_masks_beyond_the_range_keep_their_meaning(value: float) -> None:
    model, images = with_mask(value), pictures(6)
    candidate = next(half_candidates(model, images))
    assert "hide" in candidate.fp32_nodes
    assert worst(run(model, images), run(candidate.emulated, images)) < 1e-2
    plain = prepare(model)
    whole = to_half(plain, find_parts(plain).before | find_parts(plain).after)
    numbers = {one.name: numpy_helper.to_array(one) for one in whole.graph.initializer}
    assert numbers["mask/half"].reshape(-1)[0] == -np.inf


def test_a_divisor_too_small_for_half_is_not_rounded_to_nothing() -> None:
    model = small_net()
    model.graph.initializer.append(tensor("tiny", -1e-12))
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "relu2")
    model.graph.node[place].input[0] = "lifted"
    model.graph.node.insert(place, helper.make_node("Add", ["d", "tiny"], ["lifted"], name="lift"))
    candidate = next(half_candidates(model, pictures(6)))
    numbers = {one.name: numpy_helper.to_array(one) for one in candidate.model.graph.initializer}
    assert numbers["tiny/half"] == np.float16(-6e-8)


def test_types_that_nodes_name_or_make_follow() -> None:
    model = small_net()
    made = [
        helper.make_node("Shape", ["d"], ["size"], name="size"),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"], name="zeros"),
        helper.make_node(
            "ConstantOfShape",
            ["size"],
            ["ones"],
            name="ones",
            value=helper.make_tensor("", TensorProto.FLOAT, [1], [1]),
        ),
        helper.make_node("Add", ["zeros", "ones"], ["sum"], name="sum"),
        helper.make_node("Cast", ["sum"], ["whole"], name="whole", to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["back"], name="back", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["d", "back"], ["same"], name="same"),
    ]
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "relu2")
    model.graph.node[place].input[0] = "same"
    for node in reversed(made):
        model.graph.node.insert(place, node)
    images = pictures(6)
    candidate = next(half_candidates(model, images))
    onnx.checker.check_model(candidate.model, full_check=True)
    assert not {node.name for node in made} & set(candidate.fp32_nodes)
    types = {name: element_type(candidate.model, name) for name in ("zeros", "ones", "back", "whole")}
    assert types == dict.fromkeys(("zeros", "ones", "back"), TensorProto.FLOAT16) | {"whole": TensorProto.INT32}
    assert worst(run(model, images), run(candidate.emulated, images)) < 1e-2
    assert worst(run(model, images), run(candidate.model, images)) < 1e-2


def test_operators_and_inputs_without_a_half_form_keep_floats() -> None:
    model = small_net()
    model.graph.initializer.extend([tensor("scales", [1, 1, 2, 2]), tensor("step", 0.25)])
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.uint8), "zero"))
    made = [
        helper.make_node("Resize", ["d", "", "scales"], ["big"], name="big", mode="nearest"),
        helper.make_node("QuantizeLinear", ["big", "step", "zero"], ["steps"], name="steps"),
        helper.make_node("DequantizeLinear", ["steps", "step", "zero"], ["numbers"], name="numbers"),
    ]
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "relu2")
    model.graph.node[place].input[0] = "numbers"
    for node in reversed(made):
        model.graph.node.insert(place, node)
    images = pictures(6)
    candidate = next(half_candidates(model, images))
    onnx.checker.check_model(candidate.model, full_check=True)
    assert element_type(candidate.model, "big") == TensorProto.FLOAT16
    assert element_type(candidate.model, "numbers") == TensorProto.FLOAT
    assert worst(run(model, images), run(candidate.model, images)) < 0.1  # steps of 0.25


def test_a_graph_without_delicate_operators_has_one_candidate_less() -> None:
    model = small_net()
    nodes = {node.name: node for node in model.graph.node}
    nodes["head"].output[0] = "root"  # nothing follows the head, which is an island as it writes the result
    del model.graph.node[-2:]
    candidates: list[Candidate] = list(half_candidates(model, pictures(2)))
    assert [set(one.fp32_nodes) for one in candidates] == [{"Cast/0", "Transpose/1", "Sub/5", "Div/6", "head"}]
    assert element_type(candidates[0].model, "root") == TensorProto.FLOAT
    loud = small_net(LOUD)
    loud.graph.node[-3].op_type = "MatMul"  # whose features overflow too
    last = next(one for one in loud.graph.initializer if one.name == "w2")
    last.CopyFrom(tensor("w2", numpy_helper.to_array(last) * LOUD))
    assert len(list(half_candidates(loud, pictures(2)))) == 1


def refused() -> Iterator[tuple[onnx.ModelProto, str]]:
    yield small_net(opset=12), "opset 12 is too old for fp16 and int8; export it with 13 to 20"
    model = small_net()
    model.graph.node[8].domain = "com.microsoft"
    yield model, r"operator Relu \(between\), of domain 'com.microsoft', cannot be brought to fp16 or int8"
    model = small_net()
    branch = helper.make_graph([], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["yes"], ["no"], then_branch=branch, else_branch=branch))
    yield model, r"operator If \(unnamed\), which holds graphs of its own"


@pytest.mark.parametrize(("model", "message"), list(refused()))
def test_what_cannot_be_converted_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        next(half_candidates(model, pictures(1)))


def test_a_member_of_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaggle_kit.export.candidate.MAX_INSIDE", 1000)
    with pytest.raises(ExportError, match=r"2,688 bytes of weights, and fp16 and int8 are made of at most 1,000"):
        next(half_candidates(small_net(), pictures(1)))


def test_weights_listed_as_inputs_and_notes_are_left_behind() -> None:
    model = small_net()
    model.graph.input.insert(0, helper.make_tensor_value_info("w1", TensorProto.FLOAT, [CHANNELS, 1, 3, 3]))
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/me/train.py"')
    candidate = next(half_candidates(model, pictures(2)))
    assert [value.name for value in candidate.model.graph.input] == ["image"]
    assert b"/home/me" not in candidate.model.SerializeToString()
