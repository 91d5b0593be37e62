from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from conftest import random_blend, wide_task
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.ensemble import Blend, Prefix, blend_probs, equal_blend, mean_probs
from kaggle_kit.errors import BundleError, ExportError
from kaggle_kit.export.fused import fuse_members
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.onnx import OPSET, export_onnx
from kaggle_kit.mixes import Mix, MixKind
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import build_network

HEADS = {"root": 3, "tags": 4, "vowel": 2}
PIXELS = (4, 5)
KINDS: tuple[MixKind, ...] = tuple(kind for kind in get_args(MixKind) if kind != "rank")
CLOSE = 1e-5

Step = Callable[[onnx.GraphProto, str], str]


def mixed_task() -> Task:
    """A task with a multi-label head among others."""
    tags = {"classes": ["a", "b", "c", "d"], "kind": "multilabel"}
    heads = {"root": {"classes": 3}, "tags": tags, "vowel": {"classes": 2}}
    values = task_to_plain(wide_task()) | {"heads": heads, "metric": "macro_f1"}
    return task_from_plain(values)


TASK = mixed_task()


def constant(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def node(graph: onnx.GraphProto, kind: str, *inputs: str, **attributes: Any) -> str:
    output = f"{kind}_{len(graph.node)}"
    graph.node.append(
        helper.make_node(kind, inputs, [output], f"node_{len(graph.node)}", "traced at home", **attributes)
    )
    return output


def resized(graph: onnx.GraphProto, size: tuple[int, int] = PIXELS) -> str:
    """What all members of one input size do with the image."""
    rng = np.random.default_rng(size[0])
    pixels = node(graph, "Transpose", node(graph, "Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    rows = constant(graph, "rows", rng.random((size[0], 24), np.float32))
    columns = constant(graph, "columns", rng.random((32, size[1]), np.float32))
    pixels = node(graph, "MatMul", node(graph, "MatMul", rows, pixels), columns)
    pixels = node(graph, "Sub", pixels, constant(graph, "mean", np.full((1, 1, 1, 1), 2e4, np.float32)))
    return node(graph, "Div", pixels, constant(graph, "std", np.full((1, 1, 1, 1), 1e3, np.float32)))


def member(
    path: Path,
    *,
    seed: int,
    size: tuple[int, int] = PIXELS,
    scale: float = 3.0,
    shift: float = 0.0,
    step: Step | None = None,
) -> Path:
    """Write a small member of random weights.

    Args:
        path: The file.
        seed: Of the weights.
        size: What images are resized to.
        scale: Of the weights.
        shift: What is added to the logits of each head's first class.
        step: Something else to do with the features on the way.
    """
    graph = helper.make_graph([], "member", [], [])
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["s0", 24, 32, 1]))
    rng = np.random.default_rng(seed)
    features = node(graph, "Flatten", resized(graph, size))
    features = step(graph, features) if step else features
    for head, classes in HEADS.items():
        weights = rng.normal(0, scale, (size[0] * size[1], classes)).astype(np.float32)
        logits = node(graph, "MatMul", features, constant(graph, f"{head}_weights", weights))
        more = constant(graph, f"{head}_bias", np.eye(1, classes, dtype=np.float32) * np.float32(shift))
        kind = "Sigmoid" if head in TASK.multilabel_heads else "Softmax"
        graph.node.append(helper.make_node(kind, [node(graph, "Add", logits, more)], [head]))  # without a name
        graph.output.append(helper.make_tensor_value_info(head, TensorProto.FLOAT, ["s0", classes]))
    return write(graph, path)


def write(graph: onnx.GraphProto, path: Path, *, opset: int = OPSET) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)
    return path


def runs_of(
    folder: Path, sizes: Sequence[int] = (2, 1, 3), *, scale: float = 3.0, shift: float = 0.0
) -> dict[str, list[Path]]:
    """{run: members}, as many as `sizes` says."""
    members = {}
    for number, size in enumerate(sizes):
        paths = [folder / f"run{number}_{fold}.onnx" for fold in range(size)]
        members[f"run{number}"] = [
            member(path, seed=10 * number + fold, scale=scale, shift=shift) for fold, path in enumerate(paths)
        ]
    return members


def images_of(count: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 24, 32, 1), np.uint8)


def separately(members: Mapping[str, Sequence[Path]], images: np.ndarray) -> dict[str, Probs]:
    """{run: the mean of its members}."""
    return {
        name: mean_probs([OnnxSession(path, device="cpu").run(images) for path in paths])
        for name, paths in members.items()
    }


def expected_of(members: Mapping[str, Sequence[Path]], blend: Blend, images: np.ndarray) -> Probs:
    runs = separately(members, images)
    return blend_probs(blend, [runs[name] for name in blend.runs], multilabel=TASK.multilabel_heads)


def fused(members: Mapping[str, Sequence[Path]], blend: Blend, folder: Path, images: np.ndarray) -> Probs:
    path = folder / "fused.onnx"
    fuse_members(members, blend, TASK, path)
    return OnnxSession(path, device="cpu").run(images)


def names(path: Path) -> set[str]:
    """All that have a name in a graph."""
    graph = onnx.load(path).graph
    return {one.name for one in (*graph.node, *graph.initializer)} | {name for one in graph.node for name in one.output}


def distance(one: Probs, other: Probs) -> float:
    assert list(one) == list(other)
    return max(float(np.abs(one[head] - other[head]).max()) for head in one)


def blend_of(kind: MixKind, runs: Sequence[str], *, heated: bool = True, power: float = 0.4) -> Blend:
    """A random blend, with temperatures or without."""
    probs = {head: np.full((1, classes), 1 / classes, np.float32) for head, classes in HEADS.items()}
    oof = Predictions(ids=np.array(["a"]), probs=probs, multilabel=TASK.multilabel_heads)
    blend = random_blend(kind, TASK, dict.fromkeys(runs, oof))
    heads = {
        head: dataclasses.replace(mix, power=power, temperatures=mix.temperatures if heated else ())
        for head, mix in blend.whole.heads.items()
    }
    return dataclasses.replace(blend, prefixes=(*blend.prefixes[:-1], dataclasses.replace(blend.whole, heads=heads)))


def weighed(kind: MixKind, weights: Mapping[str, tuple[float, ...]]) -> Blend:
    """A blend with the weights of each head; heads that are not named have none."""
    number = len(next(iter(weights.values())))
    whole = Prefix(heads={head: Mix(kind=kind, weights=values) for head, values in weights.items()})
    return Blend(runs=tuple(f"run{i}" for i in range(number)), prefixes=(*[Prefix()] * (number - 1), whole))


@pytest.mark.parametrize("heated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_says_what_numpy_makes_of_the_separate_members(kind: MixKind, heated: bool, tmp_path: Path) -> None:
    members, images = runs_of(tmp_path), images_of()
    blend = blend_of(kind, list(members), heated=heated)
    found, expected = fused(members, blend, tmp_path, images), expected_of(members, blend, images)
    assert distance(found, expected) < CLOSE
    said = [blend.decision.decide(probs, multilabel=TASK.multilabel_heads) for probs in (found, expected)]
    assert all((said[0][head] == said[1][head]).all() for head in HEADS)


@pytest.mark.parametrize("heated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_sure_lose_no_digits(kind: MixKind, heated: bool, tmp_path: Path) -> None:
    members, images = runs_of(tmp_path, (5, 3), scale=0.004, shift=12.5), images_of()
    blend = blend_of(kind, list(members), heated=heated)
    assert distance(fused(members, blend, tmp_path, images), expected_of(members, blend, images)) < 1e-6


@pytest.mark.parametrize("power", [0.01, 0.5, 2, 50])
def test_powers_of_small_probabilities_do_not_vanish(power: float, tmp_path: Path) -> None:
    members, images = runs_of(tmp_path, scale=0.3), images_of()
    blend = blend_of("power", list(members), power=power)
    assert distance(fused(members, blend, tmp_path, images), expected_of(members, blend, images)) < CLOSE


def test_votes_for_one_half_are_counted_whatever_the_temperature(tmp_path: Path) -> None:
    members = {f"run{i}": [member(tmp_path / f"{i}.onnx", seed=i, scale=0)] for i in range(2)}  # all classes alike
    blend, images = blend_of("vote", list(members)), images_of(2)
    found = fused(members, blend, tmp_path, images)
    assert distance(found, expected_of(members, blend, images)) < CLOSE
    assert found["root"][0].argmax() == 0 and (found["tags"] > 0.99).all()


@pytest.mark.parametrize("count", [1, 7])
def test_a_batch_has_any_size_and_outputs_keep_the_heads_names(count: int, tmp_path: Path) -> None:
    members, images = runs_of(tmp_path, (1, 1)), images_of(count)
    found = fused(members, equal_blend(list(members)), tmp_path, images)
    assert {head: probs.shape for head, probs in found.items()} == {head: (count, c) for head, c in HEADS.items()}
    assert distance(found, expected_of(members, equal_blend(list(members)), images)) < CLOSE


def test_a_head_that_is_not_named_is_the_mean_of_all_runs(tmp_path: Path) -> None:
    members, images = runs_of(tmp_path), images_of()
    blend = weighed("geometric", {"root": (0.7, 0.0, 0.3)})
    assert distance(fused(members, blend, tmp_path, images), expected_of(members, blend, images)) < CLOSE


def test_a_run_that_counts_for_no_head_is_not_in_the_graph(tmp_path: Path) -> None:
    members, images = runs_of(tmp_path), images_of()
    blend = weighed("arithmetic", dict.fromkeys(HEADS, (0.25, 0.0, 0.75)))
    expected = expected_of(members, blend, images)
    found = fused({**members, "run1": []}, blend, tmp_path, images)
    assert distance(found, expected) < CLOSE
    assert not any(name.startswith("run1/") for name in names(tmp_path / "fused.onnx"))


def test_a_run_that_counts_for_one_head_is_asked_for_it_alone(tmp_path: Path) -> None:
    members, images = runs_of(tmp_path, (1, 1)), images_of()
    blend = weighed("arithmetic", {"root": (0.5, 0.5), "tags": (1.0, 0.0), "vowel": (0.0, 1.0)})
    assert distance(fused(members, blend, tmp_path, images), expected_of(members, blend, images)) < CLOSE
    found = names(tmp_path / "fused.onnx")
    assert {"run0/0/root_weights", "run0/0/tags_weights", "run1/0/root_weights", "run1/0/vowel_weights"} <= found
    assert not {"run0/0/vowel_weights", "run1/0/tags_weights"} & found


def test_what_members_do_alike_is_done_once(tmp_path: Path) -> None:
    members = runs_of(tmp_path, (2, 2))
    members["run1"][1] = member(tmp_path / "larger.onnx", seed=5, size=(6, 8))
    blend = equal_blend(list(members))
    assert distance(fused(members, blend, tmp_path, images_of()), expected_of(members, blend, images_of())) < CLOSE
    model = onnx.load(tmp_path / "fused.onnx")
    counts = Counter(one.op_type for one in model.graph.node if not one.name.startswith("blend/"))
    assert (counts["Cast"], counts["Transpose"]) == (1, 1)
    assert (counts["Sub"], counts["Div"], counts["Flatten"]) == (2, 2, 2)  # once a size
    assert counts["MatMul"] == 2 * 2 + 4 * len(HEADS)
    contents = [(one.data_type, tuple(one.dims), one.raw_data) for one in model.graph.initializer]
    assert len(set(contents)) == len(contents)


def test_heads_that_say_the_same_are_still_two(tmp_path: Path) -> None:
    task = task_from_plain(task_to_plain(TASK) | {"heads": {name: {"classes": 3} for name in ("root", "again")}})
    graph = onnx.load(member(tmp_path / "member.onnx", seed=0)).graph
    del graph.output[1:]
    (root,) = [one for one in graph.node if "root" in one.output]
    graph.node.append(helper.make_node("Softmax", root.input, ["again"]))
    graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, ["s0", 3]))
    fuse_members({"run": [write(graph, tmp_path / "member.onnx")]}, equal_blend(["run"]), task, tmp_path / "fused.onnx")
    found = OnnxSession(tmp_path / "fused.onnx", device="cpu").run(images_of())
    assert list(found) == ["root", "again"] and (found["root"] == found["again"]).all()


def test_the_graph_keeps_to_one_opset_of_onnx_s_own_operators(tmp_path: Path) -> None:
    members = runs_of(tmp_path, (2, 1))
    for kind in KINDS:
        fuse_members(members, blend_of(kind, list(members)), TASK, tmp_path / "fused.onnx")
        model = onnx.load(tmp_path / "fused.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
        assert model.ir_version == 10 and not model.functions and not model.graph.value_info
        assert {one.domain for one in model.graph.node} == {""}
        assert not any(one.doc_string or one.metadata_props for one in model.graph.node)  # paths at home
        assert [one.name for one in model.graph.input] == ["image"]


def halved(graph: onnx.GraphProto, features: str) -> str:
    """Half precision on the way."""
    half = node(graph, "Cast", features, to=TensorProto.FLOAT16)
    half = node(graph, "Mul", half, constant(graph, "half", np.array(0.5, np.float16)))
    return node(graph, "Cast", half, to=TensorProto.FLOAT)


def quantised(graph: onnx.GraphProto, features: str) -> str:
    """Eight bits on the way."""
    scale = constant(graph, "scale", np.array(0.1, np.float32))
    zero = constant(graph, "zero", np.array(128, np.uint8))
    return node(graph, "DequantizeLinear", node(graph, "QuantizeLinear", features, scale, zero), scale, zero)


def branching(graph: onnx.GraphProto, features: str) -> str:
    """A choice between two graphs that read what lies outside of them, and a constant that is a node."""
    branches = {}
    for name, kind in (("then_branch", "Neg"), ("else_branch", "Relu")):
        inner = helper.make_graph([], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["s0", 20])])
        two = constant(inner, "two", np.array(2, np.float32))
        inner.node.append(helper.make_node("Mul", [node(inner, kind, features), two], [name]))
        branches[name] = inner
    limit = node(graph, "Constant", value=numpy_helper.from_array(np.array(0, np.float32)))
    above = node(graph, "Greater", node(graph, "ReduceMean", features, keepdims=0), limit)
    return node(graph, "If", above, **branches)


@pytest.mark.parametrize("step", [halved, quantised, branching])
def test_members_may_compute_in_other_ways(step: Step, tmp_path: Path) -> None:
    paths = [member(tmp_path / f"{i}.onnx", seed=i, scale=0.3, step=step if i else None) for i in range(3)]
    members, blend = {"a": paths[:2], "b": paths[2:]}, equal_blend(["a", "b"])
    found, expected = fused(members, blend, tmp_path, images_of()), expected_of(members, blend, images_of())
    assert distance(found, expected) < CLOSE


def test_weights_may_lie_beside_a_member_and_do_not_lie_beside_the_graph(tmp_path: Path) -> None:
    members, images, blend = runs_of(tmp_path, (1, 1)), images_of(), equal_blend(["run0", "run1"])
    expected = expected_of(members, blend, images)
    for path in (path for paths in members.values() for path in paths):
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    (tmp_path / "out").mkdir()
    assert distance(fused(members, blend, tmp_path / "out", images), expected) < CLOSE
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fused.onnx"]


def test_exported_networks_of_two_architectures_read_the_image_once(tmp_path: Path) -> None:
    members = {}
    for seed, name in enumerate(("test_resnet", "test_convnext")):
        torch.manual_seed(seed)
        network = build_network(TASK, ModelConfig(name=name, input_size=(32, 48)), load_pretrained=False)
        members[name] = [tmp_path / f"{name}.onnx"]
        export_onnx(ExportGraph(network), members[name][0], shape=(24, 32, 1))
    blend = blend_of("geometric", list(members))
    assert distance(fused(members, blend, tmp_path, images_of(7)), expected_of(members, blend, images_of(7))) < CLOSE
    kinds = Counter(one.op_type for one in onnx.load(tmp_path / "fused.onnx").graph.node)
    apart = [Counter(one.op_type for one in onnx.load(path).graph.node) for (path,) in members.values()]
    assert kinds["Cast"] == 1 and [one["Cast"] for one in apart] == [1, 1]
    assert kinds["Conv"] == apart[0]["Conv"] + apart[1]["Conv"]


def with_input(path: Path, *sizes: int | str, kind: int = TensorProto.UINT8) -> None:
    edit(path, lambda graph: graph.input[0].CopyFrom(helper.make_tensor_value_info("image", kind, sizes)))


def with_output(path: Path, name: str, kind: int, *sizes: int | str) -> None:
    edit(path, lambda graph: graph.output[0].CopyFrom(helper.make_tensor_value_info(name, kind, sizes)))


def edit(path: Path, change: Callable[[onnx.GraphProto], object], *, opset: int = OPSET) -> None:
    graph = onnx.load(path).graph
    change(graph)
    write(graph, path, opset=opset)


def beside(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="gone.data", size_threshold=0)
    (path.parent / "gone.data").unlink()


def foreign(graph: onnx.GraphProto) -> None:
    graph.node[0].domain = "com.microsoft"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no graph"), "a.onnx does not read as ONNX .*; export it again"),
        (lambda path: path.unlink(), "a.onnx does not read as ONNX .*; export it again"),
        (beside, "a.onnx does not read as ONNX .*gone.data.*; export it again"),
        (lambda path: edit(path, foreign), "not ONNX's own: 'com.microsoft.Cast'; bundle without --fused"),
        (lambda path: edit(path, str, opset=17), "a.onnx is of opset 17, and one graph has one, 18"),
        (
            lambda path: with_input(path, "n", 24, 30, 1),
            r"of image UINT8\[n,24,30,1\]; .* of image UINT8\[batch,24,32,1\]",
        ),
        (lambda path: with_input(path, 1, 24, 32, 1), r"of image UINT8\[1,24,32,1\]; expected"),
        (lambda path: with_input(path, "n", 24, 32, 1, kind=TensorProto.FLOAT), "of image FLOAT"),
        (lambda path: edit(path, lambda graph: graph.input.add(name="more")), "image UINT8.*, more"),
        (
            lambda path: edit(path, lambda graph: graph.output.pop(0)),
            r"makes tags FLOAT.*expected root FLOAT\[batch,3\]",
        ),
        (lambda path: with_output(path, "root", TensorProto.FLOAT, "n", 5), r"root FLOAT\[n,5\].* for task 'toy-wide'"),
        (lambda path: with_output(path, "root", TensorProto.FLOAT16, "n", 3), r"root FLOAT16\[n,3\]"),
        (lambda path: with_output(path, "root", TensorProto.FLOAT, 3), r"root FLOAT\[3\]"),
    ],
)
def test_members_that_make_no_graph_are_named(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = member(tmp_path / "a.onnx", seed=0)
    spoil(path)
    with pytest.raises(ExportError, match=message):
        fuse_members({"run": [path]}, equal_blend(["run"]), TASK, tmp_path / "fused.onnx")
    assert not (tmp_path / "fused.onnx").exists()


def test_ranks_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    members = runs_of(tmp_path, (1, 1))
    with pytest.raises(
        ExportError, match="head 'root' is mixed by rank.*bundle without --fused, or blend with another --method"
    ):
        fuse_members(members, blend_of("rank", list(members)), TASK, tmp_path / "fused.onnx")


def test_a_run_that_counts_needs_members(tmp_path: Path) -> None:
    members = runs_of(tmp_path, (1,))
    with pytest.raises(ExportError, match="run 'run1' of the blend has no members"):
        fuse_members(members, equal_blend(["run0", "run1"]), TASK, tmp_path / "fused.onnx")


def test_a_blend_of_another_task_is_refused(tmp_path: Path) -> None:
    blend = weighed("arithmetic", {"colour": (1.0,)})
    with pytest.raises(BundleError, match="head 'colour' is none of"):
        fuse_members(runs_of(tmp_path, (1,)), blend, TASK, tmp_path / "fused.onnx")
