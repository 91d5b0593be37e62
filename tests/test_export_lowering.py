from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.errors import ExportError
from kaggle_kit.export import lowering
from kaggle_kit.export.candidate import Candidate
from kaggle_kit.export.lowering import Lowered, lower_precision
from kaggle_kit.export.variant import Variant
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.bundle import Change, Precision

UNCHANGED = Change(
    rows=6,
    decisions=6,
    decisions_changed=0,
    max_abs_diff=0.0,
    score_before=1.0,
    score_after=1.0,
    gain=0.0,
    interval=(0.0, 0.0),
)


class Pictures:
    """As much of a packed store as lowering reads."""

    def __init__(self) -> None:
        self.ids = np.array([f"i{row}" for row in range(12)])
        self.broken: dict[str, str] = {}
        self._images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)

    def take(self, rows: npt.NDArray[np.int64]) -> Image:
        return self._images[rows]


def net(kind: int, *, layers: bool = True) -> onnx.ModelProto:
    """A member that computes in one float type, as a model from elsewhere may; or that has no weights."""
    rng, numbers = np.random.default_rng(0), helper.tensor_dtype_to_np_dtype(kind)
    sizes = {"w1": (64, 16), "w2": (16, 16), "w3": (16, 3)} if layers else {}
    weights = [numpy_helper.from_array(rng.normal(0, 0.1, size).astype(numbers), name) for name, size in sizes.items()]
    nodes = [helper.make_node("Cast", ["image"], ["pixels"], to=kind), helper.make_node("Flatten", ["pixels"], ["w0"])]
    if layers:
        for before, name in zip(("w0_", "w1_", "w2_"), sizes, strict=True):
            nodes.append(helper.make_node("MatMul", [before, name], [f"{name}_"], name=name))
        nodes[2].input[0] = "w0"
        last = "w3_"
    else:
        nodes.append(helper.make_node("ReduceMean", ["w0"], ["mean"], keepdims=1))
        nodes.append(helper.make_node("Concat", ["mean"] * 3, ["logits"], axis=1))
        last = "logits"
    nodes.append(helper.make_node("Cast", [last], ["float"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Softmax", ["float"], ["root"], axis=1))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 1])
    root = helper.make_tensor_value_info("root", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "net", [image], [root], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def lowered(model: onnx.ModelProto, path: Path, precision: Precision) -> Lowered:
    onnx.save(model, path)

    def measure(_: Probs, judged: npt.NDArray[np.bool_]) -> Change:
        assert judged.all()
        return UNCHANGED

    source, rows = Pictures(), np.arange(6)
    return lower_precision(path, source, rows, variant=Variant(precision=precision), measure=measure)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_layers_in_full_precision_are_lowered(precision: Precision, kind: int, tmp_path: Path) -> None:
    before = net(kind)
    assert lowered(before, tmp_path / "m.onnx", precision).kept
    assert (tmp_path / "m.onnx").read_bytes() != before.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "layers", "message"),
    [
        (
            TensorProto.FLOAT16,
            True,
            r"^m.onnx in int8: weights 'w1' are float16, and int8 is made of float32; .* \(--precision fp32\)$",
        ),
        (TensorProto.FLOAT, False, r"^m.onnx has nothing that int8 computes otherwise: .*; ship fp32$"),
    ],
)
def test_what_int8_cannot_be_made_of_is_said_in_a_line(kind: int, layers: bool, message: str, tmp_path: Path) -> None:
    before = net(kind, layers=layers)
    with pytest.raises(ExportError, match=message):
        lowered(before, tmp_path / "m.onnx", "int8")
    assert (tmp_path / "m.onnx").read_bytes() == before.SerializeToString()


def test_a_form_that_no_runtime_here_loads_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = net(TensorProto.FLOAT)
    broken.graph.node[-1].input[0] = "nowhere"
    form = Candidate(model=broken, emulated=broken, fp32_nodes=(), kept="")
    monkeypatch.setattr(lowering, "half_candidates", lambda *_: iter([form]))
    with pytest.raises(ExportError, match=r"^m.onnx in fp16 does not run here: .*nowhere.*; ship fp32, or export"):
        lowered(net(TensorProto.FLOAT), tmp_path / "m.onnx", "fp16")
