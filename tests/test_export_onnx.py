from __future__ import annotations

import contextlib
import errno
import resource
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import SIZE, wide_task
from test_export_graph import DERIVATION, WHOLE, network_of, task_of

import kaggle_kit
from kaggle_kit.errors import BundleError, ExportError
from kaggle_kit.export import onnx as exporting
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.obstacles import explain
from kaggle_kit.export.onnx import IR_VERSION, OPSET, compare, export_onnx, measure_parity, rerun, run_onnx, write_model
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.task import Task
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import Network, build_network

SHAPE = (*SIZE, 1)
ROWS = np.arange(7)
CUDNN: Any = torch.backends.cudnn


@dataclass
class Images:
    """A stand-in for packed images."""

    images: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


SOURCE: Any = Images(np.random.default_rng(0).integers(0, 256, (7, *SHAPE), dtype=np.uint8))


def lively(network: Network) -> Network:
    """Give BatchNorm something to do, and heads logits such as trained networks have."""
    torch.manual_seed(1)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            norm.bias.data.normal_(0, 0.1)
    channels = network.preprocess.mean.shape[1]
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.repeat(SOURCE.images, channels, axis=3)), auxiliary=True)
    for head, values in zip(network.heads, logits.values(), strict=True):
        head.weight.data *= 3 / float(values.std())
    return network


def tiny(block: torch.nn.Module | None = None, task: Task | None = None) -> Network:
    """Make a network of one convolution, so that tracing it takes little, with a block of one's own after it."""
    network = network_of(task or wide_task())
    features = int(network.heads[0].in_features)
    layers = {
        "stem": torch.nn.Conv2d(1, features, 5, stride=4, bias=False),
        "norm": torch.nn.BatchNorm2d(features),
        "block": block or torch.nn.ReLU(),
        "pool": torch.nn.AdaptiveAvgPool2d(1),
        "flat": torch.nn.Flatten(),
    }
    network.backbone = torch.nn.Sequential(OrderedDict(layers)).eval()
    return network if block else lively(network)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportGraph, Path]:
    """A plain network and its file; read-only."""
    graph = ExportGraph(lively(network_of(wide_task())))
    path = tmp_path_factory.mktemp("exported") / "member.onnx"
    export_onnx(graph, path, shape=SHAPE)
    return graph, path


def assert_plain(path: Path, shape: tuple[int, ...] = SHAPE) -> onnx.ModelProto:
    """Check that a file keeps to what every backend takes, and return it."""
    model = onnx.load(path)
    nodes = model.graph.node
    assert model.ir_version == IR_VERSION
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    assert not model.functions and {node.domain for node in nodes} == {""}
    assert not any(node.op_type == "BatchNormalization" for node in nodes)
    assert [node.op_type for node in nodes if "image" in node.input] == ["Cast"] and nodes[0].op_type == "Cast"
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    assert dims[0].dim_param and tuple(dim.dim_value for dim in dims[1:]) == shape
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return model


def assert_repeats(graph: ExportGraph, path: Path, *, channels: int = 1) -> None:
    """Check that a file gives what torch gives, for batches of 1, 3 and 7."""
    session = OnnxSession(path, device="cpu")
    for batch in (1, 3, 7):
        images = np.repeat(SOURCE.images[:batch], channels, axis=3)
        with torch.inference_mode():
            expected = graph(torch.from_numpy(images))
        found = session.run(images)
        assert list(found) == list(graph.names)
        for name, probs in zip(graph.names, expected, strict=True):
            np.testing.assert_allclose(found[name], probs.numpy(), atol=1e-5, rtol=0)


def test_a_file_keeps_to_the_standard_and_notes_no_folder_of_this_machine(exported: tuple[ExportGraph, Path]) -> None:
    graph, path = exported
    model = assert_plain(path)
    assert [output.name for output in model.graph.output] == ["root", "vowel"]
    assert_repeats(graph, path)
    assert str(Path(torch.__file__).parents[1]).encode() not in path.read_bytes()
    assert [one.name for one in path.parent.iterdir()] == ["member.onnx"]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("specs", [["hflip"], ["vflip"], ["scale=0.9,1.1"], ["shift=4"], ["hflip", "scale=0.8"]])
def test_every_view_answers_in_onnx_as_in_torch(specs: list[str], tmp_path: Path) -> None:
    graph = ExportGraph(tiny(), tta=specs)
    export_onnx(graph, tmp_path / "member.onnx", shape=SHAPE)
    assert_views(graph, tmp_path / "member.onnx")


def assert_views(graph: ExportGraph, path: Path) -> None:
    model = assert_plain(path)
    assert_repeats(graph, path)
    assert not {"Shape", "Range", "Resize", "GatherND", "ScatterND"} & {node.op_type for node in model.graph.node}
    weights = sum(one.numel() for one in graph.network.parameters())
    held = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert held < weights + 10_000  # however many views, the weights are there once


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_all_views_of_a_real_network_answer_in_onnx_as_in_torch(name: str, tmp_path: Path) -> None:
    specs = ["hflip", "scale=0.9,1.1"] if name == "test_efficientnet" else ["vflip", "shift=4"]
    graph = ExportGraph(lively(network_of(wide_task(), name=name)), tta=specs)
    export_onnx(graph, tmp_path / "member.onnx", shape=SHAPE)
    assert_views(graph, tmp_path / "member.onnx")


def test_derived_heads_temperatures_and_columns_answer_in_onnx_as_in_torch(tmp_path: Path) -> None:
    graph = ExportGraph(
        tiny(task=task_of(auxiliary=WHOLE)),
        derive_from="whole",
        derivation=DERIVATION,
        columns={"root": np.array([1, 2, 0])},
        temperatures={"root": 1.5},
    )
    export_onnx(graph, tmp_path / "member.onnx", shape=SHAPE)
    model = assert_plain(tmp_path / "member.onnx")
    assert_repeats(graph, tmp_path / "member.onnx")
    assert (
        sum(node.op_type in ("Gemm", "MatMul") for node in model.graph.node) == 1 + 2 + 2
    )  # no direct head, 2 resizes


def model_names() -> list[str]:
    presets = sorted((Path(kaggle_kit.__file__).parent / "conf" / "model").glob("*.yaml"))
    return [str(yaml.safe_load(path.read_text())["name"]) for path in presets]


# All presets were exported and compared by hand: they take 3 to 17 s of a core each.
@pytest.mark.parametrize(
    "name",
    [
        "test_byobnet",
        "test_convnext",
        "test_vit",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("convnext_tiny", "efficientnet_b0")),
    ],
)
def test_a_model_of_each_family_is_exported(name: str, tmp_path: Path) -> None:
    assert name in (*model_names(), "test_vit")
    channels = 3 if name in ("efficientnet_b0", "test_vit") else 1
    images = {"format": "wide_parquet", "train": "a*.parquet", "test": "b*.parquet", "height": 24, "width": 32}
    task = task_of(images=images | {"channels": channels})
    graph = ExportGraph(lively(build_network(task, ModelConfig(name=name, input_size=(32, 48))).eval()))
    export_onnx(graph, tmp_path / "member.onnx", shape=(*SIZE, channels))
    model = assert_plain(tmp_path / "member.onnx", (*SIZE, channels))
    if name != "test_vit":
        assert not {"Shape", "Range", "Resize"} & {node.op_type for node in model.graph.node}
    assert_repeats(graph, tmp_path / "member.onnx", channels=channels)


class Doubled(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.ops.kk_test.double(pixels)


class Special(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(pixels)


class Deciding(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.mean() > 0:
            return pixels + 1
        return pixels


class Broken(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such size. Try another.\nAnd more")


class Silent(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ForTwo(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(2, *pixels.shape[1:])


@pytest.fixture(scope="module")
def double() -> Iterator[None]:
    """An operator of one's own, which ONNX does not know."""
    library = torch.library.Library("kk_test", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
    torch.library.register_fake("kk_test::double", torch.empty_like, lib=library)
    yield
    library._destroy()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Doubled,
            r"'test_resnet' cannot be exported: operator kk_test.double in module backbone.block "
            r"\(Doubled\) has no form in ONNX; replace it there by operators that have one, or choose another model$",
        ),
        (Special, r"operator prims.bessel_j0 in module backbone.block \(Special\) has no form in ONNX"),
        (
            Deciding,
            r"module backbone.block \(Deciding\) cannot be traced: at `if pixels.mean\(\) > 0:` it decides by "
            r"values of the images; use torch.where instead, or choose another model$",
        ),
        (
            Broken,
            r"backbone.block \(Broken\) cannot be traced: at `raise ValueError\(.*\)` ValueError: no such size; mend",
        ),
        (
            Silent,
            r"backbone.block \(Silent\) cannot be traced: at `raise NotImplementedError` NotImplementedError; me",
        ),
        (ForTwo, "'image', 'root', 'vowel' comes in batches of 2 alone, the number of images it was traced with"),
    ],
)
def test_what_cannot_be_exported_is_named_with_its_module(
    module: type[torch.nn.Module], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = tiny(module())
    with pytest.raises(ExportError, match=message) as raised:
        export_onnx(ExportGraph(network), tmp_path / "member.onnx", shape=SHAPE)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_operator_around_the_network_is_named_too(
    double: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = ExportGraph(tiny())
    monkeypatch.setattr(graph, "views", [torch.ops.kk_test.double])
    with pytest.raises(ExportError, match=r"operator kk_test.double in module ExportGraph has no form in ONNX"):
        export_onnx(graph, tmp_path / "member.onnx", shape=SHAPE)


def test_an_operator_of_no_module_and_an_error_of_none_are_told() -> None:
    node = torch.fx.Graph().call_function(torch.ops.aten.relu.default)
    try:
        raise RuntimeError
    except RuntimeError as error:
        assert explain(error, torch.nn.Module()).startswith(f"operator {node.target!s}"[:-8] + " in the graph around")
    unplaced = explain(RuntimeError("out of luck"), torch.nn.Module())
    assert unplaced == "it cannot be traced: RuntimeError: out of luck; mend it, or choose another model"


@pytest.mark.parametrize("name", ["onnxscript", "onnx"])
def test_a_missing_package_is_named_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "kaggle_kit.export.rewrites", raising=False)
    with pytest.raises(ExportError, match=rf"export needs {name}, which is not installed; pip install 'kaggle_k"):
        export_onnx(ExportGraph(network_of(wide_task())), tmp_path / "member.onnx", shape=SHAPE)
    assert not list(tmp_path.iterdir())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_and_leaves_nothing(
    exported: tuple[ExportGraph, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported[1])
    (tmp_path / "member.onnx").write_bytes(b"an earlier one")
    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(ExportError, match=r"member.onnx cannot be written \(No space left on device\); free"):
        write_model(model, tmp_path / "member.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["member.onnx"]
    assert (tmp_path / "member.onnx").read_bytes() == b"an earlier one"


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let writing to a file fail beyond a size, as it does where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("inside", [exporting.MAX_INSIDE, 10_000])
def test_a_disk_that_fills_up_halfway_leaves_nothing(
    inside: int, exported: tuple[ExportGraph, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported[1])
    monkeypatch.setattr(exporting, "MAX_INSIDE", inside)
    refused = pytest.raises(ExportError, match=r"member.onnx cannot be written \(File too large\); free some space")
    with files_of_at_most(200_000), refused:
        write_model(model, tmp_path / "member.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(exported: tuple[ExportGraph, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"member.onnx cannot be written \(.*\); free some space, or give another"):
        write_model(onnx.load(exported[1]), tmp_path / "file" / "member.onnx")


def test_a_model_that_is_none_is_not_written(exported: tuple[ExportGraph, Path], tmp_path: Path) -> None:
    model = onnx.load(exported[1])
    model.graph.node[-1].op_type = "Sofmax"
    with pytest.raises(ExportError, match=r"^member.onnx would be no valid ONNX model: .*Sofmax.*; not written$"):
        write_model(model, tmp_path / "member.onnx")
    assert not list(tmp_path.iterdir())


def test_weights_beyond_what_a_file_holds_go_into_one_beside_it(
    exported: tuple[ExportGraph, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_INSIDE", 100_000)
    for _ in range(2):  # the second time over the first
        write_model(onnx.load(exported[1]), tmp_path / "member.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member.onnx", "member.onnx.data"]
    assert (tmp_path / "member.onnx").stat().st_size < 100_000
    assert (tmp_path / "member.onnx.data").stat().st_size > 1_000_000
    expected, found = (run_onnx(path, SOURCE, ROWS) for path in (exported[1], tmp_path / "member.onnx"))
    for name, probs in expected.items():
        assert np.array_equal(found[name], probs)
    (tmp_path / "member.onnx.data").unlink()
    with pytest.raises(BundleError, match="does not load"):
        OnnxSession(tmp_path / "member.onnx", device="cpu")


def test_an_older_ir_version_stays(exported: tuple[ExportGraph, Path], tmp_path: Path) -> None:
    model = onnx.load(exported[1])
    model.ir_version = 9
    write_model(model, tmp_path / "member.onnx")
    assert onnx.load(tmp_path / "member.onnx").ir_version == 9


def test_a_file_and_its_bytes_run_alike(exported: tuple[ExportGraph, Path]) -> None:
    rows = np.array([5, 0, 3])
    found = run_onnx(exported[1], SOURCE, rows)
    assert {name: probs.shape for name, probs in found.items()} == {"root": (3, 3), "vowel": (3, 2)}
    for name, probs in run_onnx(exported[1].read_bytes(), SOURCE, rows).items():
        assert probs.dtype == np.float32 and np.array_equal(probs, found[name])


def test_parity_is_measured_on_all_rows_and_gives_what_the_file_says(
    exported: tuple[ExportGraph, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS_AT_ONCE", 3)
    parity, probs = measure_parity(*exported, SOURCE, ROWS)
    assert parity.rows == 7 and parity.max_abs_diff < 1e-5 and parity.decisions_changed == 0
    for name, values in rerun(exported[0], SOURCE, ROWS).items():
        np.testing.assert_allclose(probs[name], values, atol=1e-5)


def test_an_export_that_does_not_repeat_its_network_is_refused(exported: tuple[ExportGraph, Path]) -> None:
    other = ExportGraph(lively(network_of(task_of(heads={"root": {"classes": 3}, "vowel": {"classes": 2}}))))
    with torch.no_grad():
        other.network.heads[0].bias += torch.tensor([5.0, 0, 0])
    with pytest.raises(ExportError, match=r"member.onnx does not repeat its network on 7 images: .* head\(s\) 'root'"):
        measure_parity(other, exported[1], SOURCE, ROWS)


def switch_legacy(*, on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def switch_new(*, on: bool) -> None:
    for place in (torch.backends.cuda.matmul, CUDNN.conv):
        place.fp32_precision = "tf32" if on else "ieee"


def precisions() -> list[str]:
    return [place.fp32_precision for place in (torch.backends.cuda.matmul, CUDNN.conv)]


@pytest.fixture
def _tf32_as_it_was() -> Iterator[None]:
    places = (torch.backends.cuda.matmul, CUDNN.conv)
    before = precisions()
    yield
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value


@pytest.mark.usefixtures("_tf32_as_it_was")
@pytest.mark.parametrize("switch", [switch_legacy, switch_new])
def test_rerunning_is_in_full_precision_and_leaves_all_as_it_was(
    exported: tuple[ExportGraph, Path], monkeypatch: pytest.MonkeyPatch, switch: Callable[..., None]
) -> None:
    graph = exported[0]
    seen: list[tuple[list[str], int]] = []
    forward = graph.forward

    def watch(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append((precisions(), len(image)))
        return forward(image)

    monkeypatch.setattr(graph, "forward", watch)
    switch(on=True)
    found = rerun(graph, SOURCE, ROWS)
    assert seen == [(["ieee", "ieee"], 7)] and precisions() == ["tf32", "tf32"]
    assert next(graph.parameters()).device.type == "cpu" and not graph.training
    assert {probs.dtype for probs in found.values()} == {np.dtype(np.float32)}


def test_tf32_is_switched_off_where_torch_has_the_old_switch_alone() -> None:
    old = types.SimpleNamespace(allow_tf32=True)
    assert exporting._tf32_switch(None, old) == (old, "allow_tf32", False)
    assert exporting._tf32_switch(old, old) == (old, "allow_tf32", False)


def test_rerunning_out_of_memory_goes_on_with_half_the_batch(
    exported: tuple[ExportGraph, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, sizes = exported[0], list[int]()
    expected, forward = rerun(graph, SOURCE, ROWS), graph.forward

    def limited(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(image))
        if len(image) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(image)

    monkeypatch.setattr(graph, "forward", limited)
    monkeypatch.setattr(exporting, "EVAL_BATCH", 8)
    found = rerun(graph, SOURCE, ROWS)
    assert sizes == [7, 4, 2, 2, 2, 1]
    for name, probs in expected.items():
        np.testing.assert_allclose(found[name], probs, atol=1e-6)
    monkeypatch.setattr(graph, "forward", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        rerun(graph, SOURCE, ROWS)


EVEN = {"root": np.array([[0.5, 0.3, 0.2], [0.40001, 0.39999, 0.20000]], np.float32)}


def moved(by: float, row: int = 0, head: str = "root") -> dict[str, np.ndarray]:
    """Return probabilities of which one moved from the first class to the second."""
    probs = {name: values.copy() for name, values in EVEN.items()}
    probs[head][row, :2] += np.array([-by, by], np.float32)
    return probs


def test_a_near_tie_may_change_places() -> None:
    parity = compare(EVEN, moved(5e-5, row=1), multilabel=(), name="m")
    assert parity.decisions_changed == 1 and parity.rows == 2
    assert parity.max_abs_diff == pytest.approx(5e-5, rel=1e-2)
    tags = {"tags": np.array([[0.50001, 0.9]], np.float32)}
    changed = compare(tags, {"tags": tags["tags"] - np.float32(4e-5)}, multilabel=("tags",), name="m")
    assert changed.decisions_changed == 1


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (moved(2e-4), r"^m does not repeat its network on 2 images: probabilities differ by up to 2.00e-04 \(allowed"),
        (moved(0.2), r"decisions of head\(s\) 'root' change; not shipped"),
        (moved(float("nan")), "differ by up to nan"),
        ({"root": EVEN["root"][:, :2]}, r"m gives {'root': \(2, 2\)}, its network {'root': \(2, 3\)}; not shipped"),
        ({"rot": EVEN["root"]}, "m gives {'rot'"),
        ({**EVEN, "more": EVEN["root"]}, "m gives "),
    ],
)
def test_other_probabilities_are_refused(found: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compare(EVEN, found, multilabel=(), name="m")


def test_nan_in_any_head_is_refused() -> None:
    both = {"root": EVEN["root"], "tags": np.array([[0.1], [np.nan]], np.float32)}
    for order in (("root", "tags"), ("tags", "root")):
        found = {name: both[name] for name in order}
        expected = {name: np.nan_to_num(values) for name, values in found.items()}
        with pytest.raises(ExportError, match="differ by up to nan"):
            compare(expected, found, multilabel=("tags",), name="m")
