"""What torch's exporter leaves undone in a graph: exact rewrites, each of which any backend may be fed with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from kaggle_kit.runtime.backends import INPUT

Array = npt.NDArray[np.float32]


def fold_batchnorm(model: onnx.ModelProto) -> int:
    """Fold every BatchNormalization into the convolution before it.

    The exporter does so itself, but for weights that several convolutions share: those of an image seen at several
    sizes. Here convolutions that share weights and BatchNorm share the folded weights.

    Args:
        model: Changed in place.

    Returns:
        How many BatchNormalization nodes are left: those that no convolution precedes.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    folded: dict[tuple[str, ...], list[str]] = {}
    left = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = made_by.get(norm.input[0])
        parameters = (*(conv.input[1:] if conv else ()), *norm.input[1:])
        known = all(name in stored for name in parameters)
        if conv is None or conv.op_type != "Conv" or uses[norm.input[0]] != 1 or not known:
            left += 1
            continue
        if parameters not in folded:
            tensors = _folded([numpy_helper.to_array(stored[name]) for name in parameters], _epsilon(norm))
            folded[parameters] = [f"{parameters[0]}.folded{len(folded)}", f"{parameters[0]}.bias{len(folded)}"]
            made = zip(folded[parameters], tensors, strict=True)
            graph.initializer.extend([numpy_helper.from_array(tensor, name) for name, tensor in made])
        conv.input[1:] = folded[parameters]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    _drop_unused(graph)
    return left


def cast_first(model: onnx.ModelProto) -> None:
    """Let nothing but one Cast read the images: TensorRT takes uint8 into a Cast alone, not into a Shape.

    Args:
        model: Changed in place; its images are read by a Cast, and by others that ask for their shape.
    """
    nodes = list(model.graph.node)
    cast = next((node for node in nodes if node.op_type == "Cast" and INPUT in node.input), None)
    if cast is None:
        return
    for node in nodes:
        if node.op_type == "Shape" and INPUT in node.input:
            node.input[0] = cast.output[0]
    del model.graph.node[:]
    model.graph.node.extend([cast, *(node for node in nodes if node is not cast)])


def drop_notes(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes beside a graph, such as the folders of this machine.

    Args:
        model: Changed in place.
    """
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        noted.ClearField("doc_string")
        del noted.metadata_props[:]


def _epsilon(norm: onnx.NodeProto) -> float:
    return next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)


def _folded(arrays: list[Array], epsilon: float) -> tuple[Array, Array]:
    """Return the weights and the bias of a convolution followed by BatchNorm.

    Args:
        arrays: Weights, the bias where there is one, then BatchNorm's scale, bias, mean and variance.
        epsilon: BatchNorm's.
    """
    weights, *bias, scale, shift, mean, variance = arrays
    factor = scale / np.sqrt(variance + epsilon)
    start = bias[0] if bias else np.zeros_like(mean)
    shape = (-1, *[1] * (weights.ndim - 1))
    return (
        (weights * factor.reshape(shape)).astype(np.float32),
        ((start - mean) * factor + shift).astype(np.float32),
    )


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        names = {tensor.name for tensor in kept}
        for place in reversed(range(len(graph.initializer))):
            if graph.initializer[place].name not in names:
                del graph.initializer[place]
