"""Candidates for a lower precision, and where in a member's graph fewer digits may be tried at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from kaggle_kit.errors import ExportError
from kaggle_kit.export.foreign import data_inputs
from kaggle_kit.export.onnx import MAX_INSIDE

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MIN_OPSET = 13  # below it, a weight has one scale for all channels
_SUMMED = frozenset({"Softmax", "LogSoftmax"})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A member in a lower precision, before anybody has measured whether it is good enough.

    Attributes:
        model: What is shipped.
        emulated: Computes on this CPU what `model` will where it is meant to run; may be the same.
        fp32_nodes: Names of the nodes that keep full precision.
        kept: One phrase on what these are.
    """

    model: onnx.ModelProto
    emulated: onnx.ModelProto
    fp32_nodes: tuple[str, ...]
    kept: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Names of a member's nodes, by where they lie.

    Attributes:
        before: Preprocessing: from the stored image to what the first layer reads.
        first: Layers that read it.
        last: Layers that nothing but `after` comes after: a linear one per head.
        after: From the heads' logits to probabilities.
    """

    before: frozenset[str]
    first: frozenset[str]
    last: frozenset[str]
    after: frozenset[str]


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with named nodes, constants among the initializers, and the type of every tensor noted.

    Raises:
        ExportError: When it holds an operator or is of a size that no lower precision is made of.
    """
    _check_plain(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for place, node in enumerate(copy.graph.node):
        del node.metadata_props[:]  # the exporter's stack traces, which name files of this machine
        node.name = node.name or f"{node.op_type}/{place}"
        value = _constant(node)
        if value is None:
            nodes.append(node)
        else:
            copy.graph.initializer.append(value)
    replace_nodes(copy.graph, nodes)
    inputs = data_inputs(copy)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return onnx.shape_inference.infer_shapes(copy)


def find_parts(model: onnx.ModelProto) -> Parts:
    """Find preprocessing, first and last layers, and what turns logits into probabilities.

    A product with a constant matrix belongs to the preprocessing while its result is a batch of images, as in a
    resize; a layer whose input was a softmax over (B, C) only sums probabilities, and belongs to what comes after.

    Args:
        model: As `prepare` returns it.
    """
    ranks = _ranks(model)
    derived = {value.name for value in model.graph.input}  # what depends on pixels, and not only on their number
    inside = set(derived)
    before: set[str] = set()
    first: set[str] = set()
    for node in model.graph.node:
        read = derived & set(node.input)
        if not read or node.op_type == "Shape":
            continue
        derived.update(node.output)
        resize = node.op_type == "MatMul" and ranks.get(node.output[0]) == 4 and len(read) == 1
        if node.op_type in LAYERS and not resize:
            first.update({node.name} if read & inside else ())
        elif read <= inside:
            before.add(node.name)
            inside.update(node.output)
    last, after = _find_tail(model, before, ranks)
    return Parts(before=frozenset(before), first=frozenset(first), last=frozenset(last), after=frozenset(after))


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return {tensor: its element type} of a model whose shapes were inferred."""
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


def readers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return {tensor: nodes that read it}."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def writers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return {tensor: the node that writes it}."""
    return {name: node for node in graph.node for name in node.output}


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put other nodes, in their order of execution, in the place of a graph's own."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def replace_initializers(graph: onnx.GraphProto, tensors: Iterable[TensorProto]) -> None:
    """Put other initializers in the place of a graph's own."""
    kept = list(tensors)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _find_tail(model: onnx.ModelProto, before: Collection[str], ranks: dict[str, int]) -> tuple[set[str], set[str]]:
    """Return the names of the last layers, and of the nodes after them."""
    writers = writers_of(model.graph)
    last: set[str] = set()
    after: set[str] = set()
    waiting = [writers[value.name] for value in model.graph.output]
    while waiting:
        node = waiting.pop()
        if node.name in after or node.name in last or node.name in before:
            continue
        if node.op_type in LAYERS and not _reads_probabilities(node, writers, ranks):
            last.add(node.name)
            continue
        after.add(node.name)
        waiting += [writers[name] for name in node.input if name in writers]
    return last, after


def _reads_probabilities(node: onnx.NodeProto, writers: dict[str, onnx.NodeProto], ranks: dict[str, int]) -> bool:
    """Whether a softmax over (B, C) comes before a layer, and no other layer between them."""
    waiting, seen = list(node.input), set(node.input)
    while waiting:
        name = waiting.pop()
        writer = writers.get(name)
        if writer is None or writer.op_type in LAYERS:
            continue
        if writer.op_type in _SUMMED and ranks.get(name) == 2:
            return True
        waiting += [name for name in writer.input if name not in seen]
        seen.update(writer.input)
    return False


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return {tensor: number of dimensions}, where it is known."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type for value in values}
    return {name: len(kind.shape.dim) for name, kind in types.items() if kind.HasField("shape")}


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """Return what a Constant node holds, named as its output; None for any other node."""
    if node.op_type != "Constant":
        return None
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name != "value":  # a number or a list of them
        kind = TensorProto.FLOAT if "float" in attribute.name else TensorProto.INT64
        shape = [len(value)] if isinstance(value, list) else []
        value = onnx.helper.make_tensor("", kind, shape, value if shape else [value])
    tensor = TensorProto()
    tensor.CopyFrom(value)
    tensor.name = node.output[0]
    return tensor


def _check_plain(model: onnx.ModelProto) -> None:
    """Refuse what neither ONNX Runtime's quantisation nor ours looks into."""
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise ExportError(f"opset {opset} is too old for fp16 and int8; export it with {MIN_OPSET} to 20, or ship fp32")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > MAX_INSIDE:
        raise ExportError(
            f"the member has {size:,} bytes of weights, and fp16 and int8 are made of at most {MAX_INSIDE:,}; ship fp32"
        )
    for node in model.graph.node:
        inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if inner or node.domain not in ("", "ai.onnx"):
            what = "which holds graphs of its own" if inner else f"of domain {node.domain!r}"
            raise ExportError(
                f"operator {node.op_type} ({node.name or 'unnamed'}), {what}, cannot be brought to fp16 or int8, which "
                "know standard operators alone; export the model without it, or ship fp32"
            )
