"""A member in int8, for CPUs: its layers compute in 8 bits, scaled by what real images gave."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx

from kaggle_kit.errors import ExportError
from kaggle_kit.export.candidate import LAYERS, Candidate, find_parts, prepare
from kaggle_kit.pixels import Image

ROWS_AT_ONCE = 8

_BETWEEN = frozenset({"Add", "Mul", "Sigmoid", "GlobalAveragePool"})
_POOLS = frozenset({"MaxPool", "AveragePool"})
_QUANTIZED = LAYERS | _BETWEEN | _POOLS | {"Relu", "Clip"}
_SHORT_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_OF_MAPS = _BETWEEN | _POOLS | {"Relu", "Clip", "HardSigmoid", "ReduceMean"}


def int8_candidates(model: onnx.ModelProto, images: Image) -> Iterator[Candidate]:
    """Yield forms of a member in int8, the boldest first.

    Args:
        model: In fp32: uint8 images in, float probabilities out.
        images: (n, H, W, C) uint8 real ones, at least one, whose activations set the scales.

    Raises:
        ExportError: When it holds an operator or weights or is of a size that cannot be converted, or the disk is full.
    """
    plain = prepare(model)
    _check_weights(plain)
    parts = find_parts(plain)
    kept, excluded = "", _between_others(plain)
    steps = (
        ("preprocessing and what follows the heads", parts.before | parts.after),
        (", first layers and heads", parts.first | parts.last),
        (", attention products, depthwise and gating convolutions, and sums", _delicate(plain)),
    )
    before: set[str] = set()
    for more, nodes in steps:
        kept, excluded = kept + more, excluded | nodes
        quantized = {n.name for n in plain.graph.node if n.op_type in _QUANTIZED and n.name not in excluded}
        layers = any(node.op_type in LAYERS and node.name in quantized for node in plain.graph.node)
        if quantized == before or (before and not layers):
            continue
        before, made = quantized, _quantize(plain, images, excluded)
        rest = tuple(sorted(node.name for node in plain.graph.node if node.name not in quantized))
        yield Candidate(model=made, emulated=made, fp32_nodes=rest, kept=kept)


def _check_weights(model: onnx.ModelProto) -> None:
    """Refuse layers whose weights have 16 bits: ONNX Runtime makes graphs of them that it does not load itself."""
    read = {name for node in model.graph.node if node.op_type in LAYERS for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in read and tensor.data_type in _SHORT_FLOATS:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            raise ExportError(
                f"weights {tensor.name!r} are {kind}, and int8 is made of float32; export the model in float32 and "
                "adopt that, or ship it as it is (--precision fp32)"
            )


class _Batches:
    """Images as ONNX Runtime's calibration reads them."""

    def __init__(self, name: str, images: Image) -> None:
        starts = range(0, len(images), ROWS_AT_ONCE)
        self._batches = iter([{name: images[start : start + ROWS_AT_ONCE]} for start in starts])

    def get_next(self) -> dict[str, Image] | None:
        """Return {input: (B, H, W, C) uint8}; None: there are no more."""
        return next(self._batches, None)


def _quantize(model: onnx.ModelProto, images: Image, excluded: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    ready = onnx.ModelProto()
    ready.CopyFrom(model)
    add_pre_process_metadata(ready)  # else it advises to do what the exporter has done
    try:
        with tempfile.TemporaryDirectory(prefix="kaggle-kit-") as folder, _quiet():
            path = Path(folder) / "int8.onnx"
            quantize_static(
                ready,
                path,
                _Batches(model.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(_QUANTIZED),
                per_channel=True,
                # CPUs without VNNI add two products of 8 bits in 16 bits, which saturate; weights of 7 bits cannot
                # (on such a CPU 1.3 % of decisions changed instead of 36 %, the mean of 8 small nets). What is measured
                # at home must hold on Kaggle, whose CPUs are of both kinds.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(excluded),
                # a matrix product is followed by a bias, which is added to its 32-bit sums
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
            made = onnx.load(path)
    except OSError as error:
        raise ExportError(
            f"int8 cannot be calibrated: {error}; temporary files go to {tempfile.gettempdir()}: make room there, or "
            "set TMPDIR to another folder"
        ) from None
    del made.metadata_props[:]
    return made


def _between_others(model: onnx.ModelProto) -> set[str]:
    """Return sums, products, sigmoids and means that do not read results of convolutions alone.

    After a matrix product 8 bits make them slower and worse, as they have a float on either side.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    maps: set[str] = set()
    others = set()
    for node in model.graph.node:
        read = set(node.input) - constants - {""}
        if node.op_type == "Conv" or (node.op_type in _OF_MAPS and read and read <= maps):
            maps.update(node.output)
        elif node.op_type in _BETWEEN:
            others.add(node.name)
    return others


def _delicate(model: onnx.ModelProto) -> set[str]:
    """Return nodes with few numbers per scale, or of two unknowns: they lose most of their digits to 8 bits."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    found = {node.name for node in model.graph.node if node.op_type in _BETWEEN}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = weights.get(node.input[1])
            depthwise = weight is not None and weight.dims[1] == 1 and weight.dims[0] > 1
            gating = [dim.dim_value for dim in shapes.get(node.input[0], ())][2:] == [1, 1]
            if depthwise or gating:
                found.add(node.name)
        if node.op_type == "MatMul" and not any(name in weights for name in node.input):
            found.add(node.name)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
