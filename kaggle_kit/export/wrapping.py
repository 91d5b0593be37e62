"""A model from elsewhere inside a member's graph: stored uint8 images in, probabilities of every head out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from kaggle_kit.errors import ExportError, some_of
from kaggle_kit.export.foreign import data_inputs, fixed_sides, graphs_within
from kaggle_kit.export.onnx import IR_VERSION, OPSET, Columns
from kaggle_kit.export.reading import Reading
from kaggle_kit.runtime.backends import INPUT
from kaggle_kit.task import Task
from kaggle_kit.train.model import Preprocess, resize_weights

_INSIDE = "model/"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_TO_PLANES, _FROM_PLANES = (0, 3, 1, 2), (0, 2, 3, 1)


def wrap_onnx(model: onnx.ModelProto, reading: Reading, task: Task, *, name: str) -> onnx.ModelProto:
    """Put what a model expects of images before it, and what a member says after it.

    Args:
        model: As `read_foreign` gives it; left as it is.
        reading: How it reads images, and what it says; fits the task.
        task: Stored size known.
        name: Of its file, for messages.

    Returns:
        A model with the input `image`, (batch, H, W, C) uint8, and an output of probabilities for each head, (batch,
        classes) float32, classes in the task's order.

    Raises:
        ExportError: When its input or outputs are not what `reading` and the task say.
    """
    given = _check_input(model, reading, task, name)
    outputs = _find_outputs(model, reading, task, name)
    inside = compose.add_prefix(model, _INSIDE)
    graph = _Nodes(prefix="reading/")
    pixels = _write_reading(graph, reading, task, elem_type=given.type.tensor_type.elem_type)
    graph.add("Identity", [pixels], output=_INSIDE + given.name)
    head_nodes = _Nodes(prefix="answer/")
    columns = reading.columns(task)
    for head, value in outputs.items():
        _write_answer(head_nodes, head, value, reading, task, columns.get(head))
    height, width = task.stored_size
    made = helper.make_graph(
        [*graph.nodes, *inside.graph.node, *head_nodes.nodes],
        "member",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", height, width, task.images.channels])],
        [
            helper.make_tensor_value_info(head.name, TensorProto.FLOAT, ["batch", head.num_classes])
            for head in task.heads.values()
        ],
        initializer=[*graph.constants, *inside.graph.initializer, *head_nodes.constants],
        sparse_initializer=list(inside.graph.sparse_initializer),
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="kaggle_kit"
    )


def reorder_outputs(model: onnx.ModelProto, columns: Columns) -> onnx.ModelProto:
    """Return a member's model with the classes of some heads in another order.

    Args:
        model: Outputs named after heads; left as it is.
        columns: {head: (C,) the model's column of each class that comes out}; other heads stay as they are.

    Raises:
        ExportError: When the model has no output of a head.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, names = made.graph, [output.name for output in model.graph.output]
    for head, places in columns.items():
        if head not in names:
            raise ExportError(f"the model has no output {head!r}, only {some_of(names, 9)}; name one of these")
        nodes = _Nodes(prefix=f"{head}/{len(graph.node)}/")  # differs at each call, in the names it gives
        own = f"{head}/{len(graph.node)}"
        for inner in graphs_within(graph):
            _rename(inner, head, own)
        nodes.add("Gather", [own, nodes.constant("order", places)], output=head, axis=1)
        graph.node.extend(nodes.nodes)
        graph.initializer.extend(nodes.constants)
        side = graph.output[names.index(head)].type.tensor_type.shape.dim[1]
        side.dim_value = len(places)
    return made


class ReadModule(nn.Module):
    """A module from elsewhere as a member: stored uint8 images in, one tensor of probabilities per head out.

    Attributes:
        names: The heads, in the order in which they come out.
    """

    def __init__(self, module: nn.Module, reading: Reading, task: Task) -> None:
        super().__init__()
        mean, std = reading.scale(task)
        self.module = module
        self.reading = reading
        self.names = tuple(task.heads)
        self._sizes = {head.name: head.num_classes for head in task.heads.values()}
        self.preprocess = Preprocess(task.stored_size, reading.size or task.stored_size, mean=mean, std=std)
        self._many = frozenset(task.multilabel_heads)
        self._flips = reading.order == "bgr" and task.images.channels == 3
        for head, places in reading.columns(task).items():
            self.register_buffer(f"columns_{self.names.index(head)}", torch.from_numpy(places), persistent=False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a (B, C) float32 tensor per head from (B, H, W, channels) uint8."""
        said = self.module(self._pixels(image))
        answers = said_by_head(said, self.reading, self._sizes)
        return tuple(self._probs(number, head, answers[head].float()) for number, head in enumerate(self.names))

    def _pixels(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the module reads; a gray image is repeated where there are three means to subtract."""
        pixels: torch.Tensor = self.preprocess(image.float().flip(3) if self._flips else image)
        if self.reading.dtype == "uint8":
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(*_FROM_PLANES) if self.reading.layout == "nhwc" else pixels

    def _probs(self, number: int, head: str, answer: torch.Tensor) -> torch.Tensor:
        if self.reading.activation == "softmax":
            answer = answer.sigmoid() if head in self._many else answer.softmax(dim=1)
        places: torch.Tensor | None = getattr(self, f"columns_{number}", None)
        return answer if places is None else answer.index_select(1, places)


def said_by_head(said: Any, reading: Reading, heads: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return {head: what a module says of it}, from a tensor, a mapping, or a tuple in the order of the outputs.

    Args:
        said: What the module returns.
        reading: Names the outputs.
        heads: {head: its number of classes}.

    Raises:
        ExportError: When that is of other heads or shapes, or no tensors.
    """
    found: dict[str, Any] = {}
    order = tuple(reading.outputs) or tuple(heads)
    if isinstance(said, torch.Tensor):
        said = (said,)
    if isinstance(said, Mapping):
        found = {head: said[name] for head in heads if (name := reading.outputs.get(head, head)) in said}
    elif isinstance(said, tuple | list) and len(said) == len(order):
        found = dict(zip(order, said, strict=True))
    wrong = [head for head in heads if not isinstance(found.get(head), torch.Tensor)]
    if wrong:
        several = f" of {some_of(said, 9)}" if isinstance(said, Mapping) else ""
        several = f" of {len(said)}" if isinstance(said, tuple | list) else several
        raise ExportError(
            f"the module returns a {type(said).__name__}{several}, which has nothing for head {wrong[0]!r}; return a "
            "tensor for one head, a dict {head: logits}, or a tuple in the order of `outputs`"
        )
    for head, classes in heads.items():
        shape = tuple(found[head].shape)
        if len(shape) != 2 or shape[1] != classes:
            raise ExportError(
                f"the module returns {_sides([None, *shape[1:]])} for head {head!r}, expected (any, {classes}): a row "
                "for each image, a column for each class; return such a tensor of logits or probabilities"
            )
    return found


class _Nodes:
    """Nodes that follow each other, and their constants."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix = prefix

    def add(self, operator: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        """Append a node, and return the name of its output."""
        name = f"{self._prefix}{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a constant, and return its full name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), self._prefix + name))
        return self._prefix + name


def _write_reading(graph: _Nodes, reading: Reading, task: Task, *, elem_type: int) -> str:
    """Write the nodes from the stored images to what the model reads, and return the last one's output.

    Cast comes first, which is where TensorRT takes uint8.
    """
    pixels = graph.add("Cast", [INPUT], to=TensorProto.FLOAT)
    pixels = graph.add("Transpose", [pixels], perm=_TO_PLANES)
    stored = task.stored_size
    size = reading.size or stored
    if size != stored:
        rows, columns = resize_weights(stored[0], size[0]).numpy(), resize_weights(stored[1], size[1]).numpy().T
        pixels = graph.add("MatMul", [graph.constant("rows", rows), pixels])
        pixels = graph.add("MatMul", [pixels, graph.constant("columns", columns)])
    if reading.order == "bgr" and task.images.channels == 3:
        pixels = graph.add("Gather", [pixels, graph.constant("bgr", np.array([2, 1, 0], np.int64))], axis=1)
    if reading.num_channels(task) > task.images.channels:
        pixels = graph.add("Concat", [pixels] * reading.num_channels(task), axis=1)
    if reading.mean:
        mean, std = (255 * np.array(values, np.float32).reshape(1, -1, 1, 1) for values in reading.scale(task))
        pixels = graph.add("Sub", [pixels, graph.constant("mean", mean)])
        pixels = graph.add("Div", [pixels, graph.constant("std", std)])
    if reading.layout == "nhwc":
        pixels = graph.add("Transpose", [pixels], perm=_FROM_PLANES)
    if reading.dtype == "uint8":
        pixels = graph.add("Round", [pixels])
        bounds = [graph.constant(name, np.array(value, np.float32)) for name, value in (("black", 0), ("white", 255))]
        pixels = graph.add("Clip", [pixels, *bounds])
    return pixels if elem_type == TensorProto.FLOAT else graph.add("Cast", [pixels], to=elem_type)


def _write_answer(
    graph: _Nodes, head: str, value: Any, reading: Reading, task: Task, places: npt.NDArray[np.int64] | None
) -> None:
    """Write the nodes from a model's output to a head's probabilities."""
    answer = _INSIDE + value.name
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        answer = graph.add("Cast", [answer], output=f"{head}/float32", to=TensorProto.FLOAT)
    if reading.activation == "softmax" and head in task.multilabel_heads:
        answer = graph.add("Sigmoid", [answer], output=f"{head}/probs")
    elif reading.activation == "softmax":
        answer = graph.add("Softmax", [answer], output=f"{head}/probs", axis=1)
    if places is None:
        graph.add("Identity", [answer], output=head)
    else:
        graph.add("Gather", [answer, graph.constant(f"{head}/order", places)], output=head, axis=1)


def _check_input(model: onnx.ModelProto, reading: Reading, task: Task, name: str) -> Any:
    """Return a model's one input, which must be what `reading` says."""
    inputs = data_inputs(model)
    if len(inputs) != 1:
        raise ExportError(
            f"{name} has {len(inputs)} inputs ({some_of([one.name for one in inputs], 9)}); expected one, the images"
        )
    (given,) = inputs
    found = given.type.tensor_type.elem_type
    allowed = (TensorProto.UINT8,) if reading.dtype == "uint8" else _FLOATS
    if found not in allowed:
        raise ExportError(
            f"{name}: input {given.name!r} is {TensorProto.DataType.Name(found).lower()}, and the reading says "
            f"{reading.dtype}; give its `dtype`, float32 (for float16, too) or uint8"
        )
    size, channels = reading.size or task.stored_size, reading.num_channels(task)
    wanted = [None, channels, *size] if reading.layout == "nchw" else [None, *size, channels]
    sides = fixed_sides(given)
    known = zip(sides[1:], wanted[1:], strict=False)
    if len(sides) != 4 or any(side not in (None, own) for side, own in known):
        raise ExportError(
            f"{name}: input {given.name!r} is {_sides(sides)}, and the reading says {_sides(wanted)} "
            f"({reading.layout}); give the `size`, `layout` and `channels` it was trained with"
        )
    return given


def _find_outputs(model: onnx.ModelProto, reading: Reading, task: Task, name: str) -> dict[str, Any]:
    """Return {head: output} of a model, which must be of the task's classes."""
    outputs = {one.name: one for one in onnx.shape_inference.infer_shapes(model).graph.output}
    wanted = reading.outputs or {head: head for head in task.heads}
    if not reading.outputs and len(task.heads) == len(outputs) == 1:
        wanted = {head: next(iter(outputs)) for head in task.heads}
    for head in task.heads.values():
        if wanted[head.name] not in outputs:
            raise ExportError(
                f"{name} has no output {wanted[head.name]!r} for head {head.name!r}, only {some_of(outputs, 9)}; say "
                "which is which with `outputs`"
            )
        value = outputs[wanted[head.name]]
        sides, kind = fixed_sides(value), value.type.tensor_type.elem_type
        if len(sides) != 2 or sides[1] not in (None, head.num_classes):
            raise ExportError(
                f"{name}: output {value.name!r} is {_sides(sides)}, expected (batch, {head.num_classes}), a column for "
                f"each class of head {head.name!r}"
            )
        if kind not in _FLOATS:
            raise ExportError(
                f"{name}: output {value.name!r} is {TensorProto.DataType.Name(kind).lower()}; expected logits or "
                f"probabilities of head {head.name!r}, which blends need, rather than decided classes"
            )
    return {head: outputs[wanted[head]] for head in task.heads}


def _sides(sides: Sequence[int | None]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in sides)})"


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Rename a value in a graph's nodes."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == before:
                    names[place] = after
