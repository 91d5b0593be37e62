"""A member in fp16: weights and activations in half the bytes, with islands in full precision where they need it.

ONNX Runtime has a converter of its own (`onnxruntime.transformers.float16`), which was tried first: it wrote a tensor
twice where two islands read it, which no runtime loads, and rounded between neighbouring nodes of one island, so that
one meant for overflow overflowed all the same (seen in 1.31).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.export.candidate import (
    Candidate,
    find_parts,
    prepare,
    readers_of,
    replace_initializers,
    replace_nodes,
    tensor_types,
    writers_of,
)
from kaggle_kit.pixels import Image

LARGEST = 65504.0
SAFE = LARGEST / 4  # other images may go higher than those that were measured
SAFE_SQUARE = 128.0  # its square is SAFE
_SMALLEST = np.float32(2.0**-24)
ROWS_AT_ONCE = 8

# They square what they read, or need digits after the point of large numbers.
_SQUARING = frozenset(
    {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization"}
    | {"ReduceL2", "ReduceSumSquare", "Softmax", "LogSoftmax"}
)
_DELICATE = _SQUARING | {"Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Softplus", "CumSum", "GlobalAveragePool"}
# They only move or choose numbers, which have been rounded before.
_EXACT = frozenset(
    {"Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "Max"}
    | {"MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
)


def half_candidates(model: onnx.ModelProto, images: Image) -> Iterator[Candidate]:
    """Yield forms of a member in fp16, the boldest first.

    Args:
        model: In fp32: uint8 images in, float probabilities out.
        images: (n, H, W, C) uint8 real ones, at least one, on which activations are measured.

    Raises:
        ExportError: When it holds an operator or is of a size that cannot be converted.
    """
    plain = prepare(model)
    parts = find_parts(plain)
    outputs = {value.name for value in plain.graph.output}
    ends = parts.before | parts.after | {node.name for node in plain.graph.node if outputs & set(node.output)}
    large = _large_nodes(plain, images) - ends
    kept = "preprocessing and what follows the heads"
    if large:
        kept += f", and {len(large)} nodes with numbers near the end of fp16's range"
    yield _candidate(plain, ends | large, kept)
    delicate = {n.name for n in plain.graph.node if n.op_type in _DELICATE or n.op_type.startswith("Reduce")}
    delicate |= parts.last
    if not delicate <= ends | large:
        yield _candidate(plain, ends | large | delicate, f"{kept}, and norms, means, exponentials and heads")


def measure_magnitudes(model: onnx.ModelProto, images: Image) -> dict[str, float]:
    """Return {float tensor: the largest magnitude it takes on these images}, for all that nodes write.

    Args:
        model: As `prepare` returns it.
        images: (n, H, W, C) uint8.
    """
    import onnxruntime as ort

    types = tensor_types(model)
    names = [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"]))
        watched.graph.output.append(helper.make_tensor_value_info(f"{name}/max", TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest = np.zeros(len(names), np.float32)
    for start in range(0, len(images), ROWS_AT_ONCE):
        batch = {model.graph.input[0].name: images[start : start + ROWS_AT_ONCE]}
        found = session.run([f"{name}/max" for name in names], batch)
        largest = np.maximum(largest, [values.max(initial=0) for values in found])  # NaN stays
    return dict(zip(names, largest.tolist(), strict=True))


def to_half(model: onnx.ModelProto, islands: Collection[str]) -> onnx.ModelProto:
    """Return a model that computes in fp16, but for some nodes; its inputs and outputs keep their types.

    Args:
        model: As `prepare` returns it.
        islands: Names of nodes that keep fp32, those that write outputs among them. Between neighbours nothing is
            rounded.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    writer = _HalfWriter(model)
    for node in half.graph.node:
        writer.add(node, island=node.name in islands)
    replace_nodes(half.graph, writer.nodes)
    used = {name for node in half.graph.node for name in node.input}
    tensors = [tensor for tensor in half.graph.initializer if tensor.name in used]
    replace_initializers(half.graph, [*tensors, *writer.constants])
    del half.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(half)


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an fp32 model that rounds and overflows as an fp16 one does on a GPU, which adds up products in fp32.

    ONNX Runtime's own CPU run of an fp16 graph shows neither: it has few fp16 kernels there, and computes whole runs of
    nodes in fp32. It keeps explicit casts to fp16 and back, which are put here after every node that rounds.

    Args:
        model: As `to_half` returns it.
    """
    types = tensor_types(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        _retype(node, TensorProto.FLOAT16, TensorProto.FLOAT)
        nodes.append(node)
        for place, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16 and node.op_type not in _EXACT:
                node.output[place] = f"{name}/exact"
                nodes.append(_cast(f"{name}/exact", f"{name}/rounded", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}/rounded", name, TensorProto.FLOAT))
    replace_nodes(copy.graph, nodes)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(_converted(tensor, TensorProto.FLOAT16, TensorProto.FLOAT))
    del copy.graph.value_info[:]
    return copy


class _HalfWriter:
    """Takes a model's nodes one by one, and makes them fp16 with the casts they need.

    Attributes:
        nodes: In the order of execution.
        constants: Initializers that fp16 nodes read.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
        self._types = tensor_types(model)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._halves: set[str] = set()  # what nodes so far write in fp16
        self._made: set[str] = set()  # what was cast so far

    def add(self, node: onnx.NodeProto, *, island: bool) -> None:
        """Add a node, in fp16 unless it is an island or no fp16 form of it exists."""
        schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        written = [place for place, name in enumerate(node.output) if self._is_float(name)]
        half = not island and all(_allows_half(schema.outputs, place) for place in written)
        for place, name in enumerate(node.input):
            if self._is_float(name):
                node.input[place] = self._as(name, half=half and _allows_half(schema.inputs, place))
        if half:
            self._halves.update(node.output[place] for place in written)
            _retype(node, TensorProto.FLOAT, TensorProto.FLOAT16)
        self.nodes.append(node)

    def _is_float(self, name: str) -> bool:
        return bool(self._types.get(name) == TensorProto.FLOAT)

    def _as(self, name: str, *, half: bool) -> str:
        """Return what a float tensor is called in fp16, or in fp32, after a cast where there is none yet."""
        if half == (name in self._halves):
            return name
        wanted = f"{name}/half" if half else f"{name}/float"
        if wanted not in self._made:
            self._made.add(wanted)
            if name in self._weights:
                self.constants.append(_converted(self._weights[name], TensorProto.FLOAT, TensorProto.FLOAT16))
                self.constants[-1].name = wanted
            else:
                self.nodes.append(_cast(name, wanted, TensorProto.FLOAT16 if half else TensorProto.FLOAT))
        return wanted


def _candidate(plain: onnx.ModelProto, islands: Collection[str], kept: str) -> Candidate:
    half = to_half(plain, islands)
    return Candidate(model=half, emulated=emulate_half(half), fp32_nodes=tuple(sorted(islands)), kept=kept)


def _large_nodes(model: onnx.ModelProto, images: Image) -> set[str]:
    """Return the names of nodes that read or write numbers which fp16 may not hold."""
    writers, readers = writers_of(model.graph), readers_of(model.graph)
    magnitudes = measure_magnitudes(model, images)
    heavy = [tensor.name for tensor in model.graph.initializer if _largest(tensor) > LARGEST]
    large = [name for name, value in magnitudes.items() if not value <= SAFE]
    nodes = [node for name in [*heavy, *large] for node in readers.get(name, [])]
    nodes += [writers[name] for name in large]
    for node in model.graph.node:
        if node.op_type in _SQUARING and not magnitudes.get(node.input[0], 0.0) <= SAFE_SQUARE:
            nodes.append(node)
            if node.op_type in ("Softmax", "LogSoftmax"):
                nodes.append(writers[node.input[0]])
    return {node.name for node in nodes}


def _largest(tensor: TensorProto) -> float:
    if tensor.data_type != TensorProto.FLOAT:
        return 0.0
    values = np.abs(numpy_helper.to_array(tensor))
    return float(values[values < np.inf].max(initial=0))  # infinity, as in a mask, is one in fp16 too


def _allows_half(formals: Sequence[onnx.defs.OpSchema.FormalParameter], place: int) -> bool:
    """Whether an operator takes or gives fp16 at a place; the last one may stand for all that follow."""
    return "tensor(float16)" in formals[min(place, len(formals) - 1)].types


def _retype(node: onnx.NodeProto, before: int, after: int) -> None:
    """Change the float type that a node's attributes name or hold."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", helper.make_tensor("", TensorProto.FLOAT, [1], [0.0])))
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == before:
            attribute.i = after
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_converted(attribute.t, before, after))


def _converted(tensor: TensorProto, before: int, after: int) -> TensorProto:
    """Return a tensor in another float type; one that is not of type `before` as it is."""
    if tensor.data_type != before:
        return tensor
    values = numpy_helper.to_array(tensor).astype(np.float32)
    if after == TensorProto.FLOAT:
        return numpy_helper.from_array(values, tensor.name)
    tiny = (values != 0) & (np.abs(values) < _SMALLEST)  # a divisor must not become 0
    values = np.where(tiny, np.copysign(_SMALLEST, values), values)
    with np.errstate(over="ignore"):  # what does not fit is infinite, as it will be
        return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _cast(source: str, name: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name=f"{source}/cast{to}", to=to)
