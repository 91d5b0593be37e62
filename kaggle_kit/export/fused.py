"""All members and their blend as one .onnx graph: the image is read once, and what members share is computed once.

The graph does what `ensemble.mean_probs` and `ensemble.blend_probs` do, but in float32 where numpy has float64:
probabilities differ by about 1e-7. Where float32 would lose more, another formula is taken that is equal in real
numbers: logits are divided, clipped and averaged as logits, without a probability in between, and powers are those of
the ratio to the highest probability, since the 50th power of 0.1 is 0 in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import Sequential, common

from kaggle_kit.decision import HALF
from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import ExportError, brief, some_of
from kaggle_kit.export.onnx import IR_VERSION, OPSET, write_model
from kaggle_kit.mixes import FLOOR, Mix
from kaggle_kit.mixes import VOTE_TIE as TIE
from kaggle_kit.runtime.backends import INPUT
from kaggle_kit.runtime.bundle import check_blend
from kaggle_kit.task import Task

Values = Mapping[str, ir.Value]  # {head: (B, C) float32}
Constant = float | npt.NDArray[np.int64] | npt.NDArray[np.float64]

_MOST_LOGIT = math.log((1 - FLOOR) / FLOOR)
_REPAIR = "bundle without --fused"


def fuse_members(members: Mapping[str, Sequence[Path]], blend: Blend, task: Task, out: Path) -> None:
    """Write members and their blend as one .onnx file: input `image`, one output of mixed probabilities per head.

    Runs that count for no head are left out, and of a member the heads that its run does not count for.

    Args:
        members: {run: its members' .onnx files, which count the same}; their input is (B, H, W, C) uint8, their outputs
            are named after the heads and are (B, C) float32.
        blend: What to make of all its runs.
        task: Gives the heads, and the size of stored images.
        out: The file; it appears whole or not at all.

    Raises:
        BundleError: When the blend does not fit the task.
        ExportError: When a head is mixed by rank, a run has no members, or members do not fit into one graph.
    """
    check_blend(blend, task, blend.runs)
    mixes = {head: blend.whole.heads.get(head, Mix.equal(len(blend.runs))) for head in task.heads}
    ranked = [head for head, mix in mixes.items() if mix.kind == "rank"]
    if ranked:
        raise ExportError(
            f"head {ranked[0]!r} is mixed by rank, which looks up quantiles, and no operator does; {_REPAIR}, or blend "
            "with another --method"
        )
    graph = ir.Graph([_image(task)], [], nodes=[], opset_imports={"": OPSET}, name=task.name)
    writer, runs = _MixWriter(graph, task), []
    for name, counts in _counted_runs(blend, mixes):
        parts = _add_members(graph, name, members.get(name, ()), task) if counts else []
        runs.append({head: writer.mean([part[head] for part in parts]) for head in task.heads if parts})
    for head, mix in mixes.items():
        output, wanted = writer.mixed(mix, head, runs), _probs(head, task.heads[head].num_classes)
        output.name, output.type, output.shape = wanted.name, wanted.type, wanted.shape
        graph.outputs.append(output)
    write_model(_deduplicated(ir.Model(graph, ir_version=IR_VERSION, producer_name="kaggle_kit")), out)


def _counted_runs(blend: Blend, mixes: Mapping[str, Mix]) -> Iterator[tuple[str, bool]]:
    """Yield each run and whether it counts for a head."""
    for number, name in enumerate(blend.runs):
        yield name, any(mix.stack is not None or mix.weights[number] > 0 for mix in mixes.values())


def _add_members(graph: ir.Graph, run: str, paths: Sequence[Path], task: Task) -> list[Values]:
    """Move a run's members into the graph, and return each one's probabilities."""
    if not paths:
        raise ExportError(f"run {run!r} of the blend has no members; give those of all of its runs")
    return [_add_member(graph, path, task, prefix=f"{run}/{number}/") for number, path in enumerate(paths)]


def _add_member(graph: ir.Graph, path: Path, task: Task, *, prefix: str) -> Values:
    """Move a member into the graph, its names with a prefix, and return its probabilities."""
    model = _load(path)
    _check_signature(model.graph, task, path)
    outputs = {str(value.name): value for value in model.graph.outputs}
    model.graph.inputs[0].replace_all_uses_with(graph.inputs[0])
    model.graph.inputs.clear()
    model.graph.outputs.clear()
    _prefix_names(model, prefix)
    for name in list(model.graph.initializers):
        graph.register_initializer(model.graph.initializers.pop(name))
    nodes = list(model.graph)
    model.graph.remove(nodes)
    graph.extend(nodes)
    return {head: outputs[head] for head in task.heads}


def _load(path: Path) -> ir.Model:
    """Read a member, with weights that lie beside it, of the kit's opset and ONNX's own operators alone."""
    try:
        proto = onnx.load(path)
        model: ir.Model = ir.from_proto(proto)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{path.name} does not read as ONNX ({brief(error)}); export it again") from None
    others = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.all_nodes() if node.domain})
    if others:
        raise ExportError(f"{path.name} uses operators that are not ONNX's own: {some_of(others)}; {_REPAIR}")
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset != OPSET:
        raise ExportError(f"{path.name} is of opset {opset}, and one graph has one, {OPSET}; export it again")
    return model


def _check_signature(graph: ir.Graph, task: Task, path: Path) -> None:
    """Refuse a member whose input and outputs are not those of the task."""
    outputs = {value.name: value for value in graph.outputs}
    wanted = [_probs(name, head.num_classes) for name, head in task.heads.items()]
    fits = len(graph.inputs) == 1 and _is_like(graph.inputs[0], _image(task))
    if not fits or not all(one.name in outputs and _is_like(outputs[one.name], one) for one in wanted):
        raise ExportError(
            f"{path.name} makes {_described(graph.outputs)} of {_described(graph.inputs)}; expected "
            f"{_described(wanted)} of {_described([_image(task)])}; export it again for task {task.name!r}"
        )


def _image(task: Task) -> ir.Value:
    shape = ir.Shape(["batch", *task.stored_size, task.images.channels])
    return ir.Value(name=INPUT, type=ir.TensorType(ir.DataType.UINT8), shape=shape)


def _probs(head: str, num_classes: int) -> ir.Value:
    return ir.Value(name=head, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", num_classes]))


def _is_like(found: ir.Value, wanted: ir.Value) -> bool:
    """Return whether a value has the name, type and shape that are wanted, as far as its shape is known."""
    if (found.name, found.dtype) != (wanted.name, wanted.dtype) or found.shape is None or wanted.shape is None:
        return False
    sizes = [a == b or not isinstance(a, int) for a, b in zip(found.shape, wanted.shape, strict=False)]
    return len(found.shape) == len(wanted.shape) and all(sizes)


def _described(values: Sequence[ir.Value]) -> str:
    """Return names, types and shapes, such as `image UINT8[batch,24,32,1]`."""
    return ", ".join(f"{value.name} {value.dtype}{value.shape or ''}" for value in values) or "nothing"


def _prefix_names(model: ir.Model, prefix: str) -> None:
    """Put a prefix before all names of nodes and values, so that they differ from those of other members."""
    for graph in (model.graph, *model.graph.subgraphs()):
        values = (*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs))
        for item in (*graph, *values):
            item.name = f"{prefix}{item.name}" if item.name else item.name  # nodes, and outputs nobody asks for


def _deduplicated(model: ir.Model) -> onnx.ModelProto:
    """Return a model in which equal constants are held, and equal nodes of equal inputs computed, once."""
    Sequential(
        common.ClearMetadataAndDocStringPass(),  # where in whose source a node was traced
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateHashedInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    )(model)
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # members name sizes alike that differ
    return proto


class _MixWriter:
    """Adds to a graph what numpy computes in `ensemble` and `mixes`; values are (B, C) float32.

    Args:
        graph: Where nodes are added.
        task: Gives the heads.
    """

    def __init__(self, graph: ir.Graph, task: Task) -> None:
        self._graph, self._task = graph, task

    def mean(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Return the mean, rounded but once: logits near 1 are made of the last digits."""
        first, *others = parts
        if not others:
            return first
        away = [self._op("Sub", part, first) for part in others]
        return self._op("Add", first, self._op("Div", self._op("Sum", *away), float(len(parts))))

    def mixed(self, mix: Mix, head: str, runs: Sequence[Values]) -> ir.Value:
        """Return a head's probabilities, as `mix_head` does."""
        many = head in self._task.multilabel_heads
        if mix.stack is not None:
            return self._normalised(self._stacked(mix, runs), many=many)
        temperatures = mix.temperatures or (1.0,) * len(runs)
        counted = [number for number, weight in enumerate(mix.weights) if weight > 0]
        weights = [mix.weights[number] for number in counted]
        used = [(runs[number][head], temperatures[number]) for number in counted]
        if mix.kind == "geometric":
            logs = [self._bounded_logs(*one, many=many) for one in used]
            return self._normalised(self._sum(logs, weights), many=many)
        probs = [self._calibrated(*one, many=many) for one in used]
        if mix.kind == "power":
            mean = self._power_mean(probs, weights, mix.power)
        elif mix.kind == "vote":
            votes = [self._vote(head, value, many=many) for value, _ in used]  # which no temperature changes
            ties = self._op("Mul", self._sum(probs, weights), TIE)
            mean = self._op("Div", self._op("Add", self._sum(votes, weights), ties), 1 + TIE)
        else:
            mean = self._sum(probs, weights)
        if many:
            return self._op("Clip", mean, 0.0, 1.0)
        total = self._op("ReduceSum", mean, np.array([1]))
        return self._op("Div", mean, self._op("Max", total, FLOOR))

    def _stacked(self, mix: Mix, runs: Sequence[Values]) -> ir.Value:
        """Return the linear model's scores."""
        assert mix.stack is not None
        many, temperatures = self._task.multilabel_heads, mix.temperatures or (1.0,) * len(runs)
        logs = [
            self._logs(run[source], temperature, many=source in many)
            for run, temperature in zip(runs, temperatures, strict=True)
            for source in mix.stack.sources
        ]
        scores = self._op("MatMul", self._op("Concat", *logs, attributes={"axis": 1}), mix.stack.coefficients.values)
        return self._op("Add", scores, mix.stack.intercept.values)

    def _logs(self, probs: ir.Value, temperature: float, *, many: bool) -> ir.Value:
        """Return logarithms, or a multi-label head's logits, divided by a temperature."""
        logs = self._op("Log", self._op("Max", probs, FLOOR))
        if many:  # not of 1 - FLOOR, of which float32 keeps one digit
            logs = self._op("Sub", logs, self._op("Log", self._op("Max", self._op("Sub", 1.0, probs), FLOOR)))
        return logs if temperature == 1 else self._op("Div", logs, temperature)

    def _normalised(self, logs: ir.Value, *, many: bool) -> ir.Value:
        return self._op("Sigmoid", logs) if many else self._op("Softmax", logs, attributes={"axis": 1})

    def _calibrated(self, probs: ir.Value, temperature: float, *, many: bool) -> ir.Value:
        if temperature == 1:
            return probs
        return self._normalised(self._logs(probs, temperature, many=many), many=many)

    def _bounded_logs(self, probs: ir.Value, temperature: float, *, many: bool) -> ir.Value:
        """Return the logarithms, or logits, of calibrated probabilities that are at least FLOOR."""
        logs = self._logs(probs, temperature, many=many)
        if temperature == 1:
            return logs
        if many:
            return self._op("Clip", logs, -_MOST_LOGIT, _MOST_LOGIT)
        return self._op("Max", self._op("LogSoftmax", logs, attributes={"axis": 1}), math.log(FLOOR))

    def _power_mean(self, probs: Sequence[ir.Value], weights: Sequence[float], power: float) -> ir.Value:
        """Return the power mean, made of ratios to the highest, whose powers do not all vanish."""
        above = [self._op("Max", value, FLOOR) for value in probs]
        highest = self._op("Max", *above)
        powers = [self._op("Pow", self._op("Div", value, highest), power) for value in above]
        return self._op("Mul", highest, self._op("Pow", self._sum(powers, weights), 1 / power))

    def _vote(self, head: str, probs: ir.Value, *, many: bool) -> ir.Value:
        """Return 1 for what is said, else 0."""
        if many:
            said = self._op("GreaterOrEqual", probs, HALF)
        else:
            classes = np.arange(self._task.heads[head].num_classes)[None]
            said = self._op("Equal", self._op("ArgMax", probs, attributes={"axis": 1}), classes)
        return self._op("Cast", said, attributes={"to": ir.DataType.FLOAT.value})

    def _sum(self, terms: Sequence[ir.Value], weights: Sequence[float]) -> ir.Value:
        weighed = [self._op("Mul", term, weight) for term, weight in zip(terms, weights, strict=True)]
        return self._op("Sum", *weighed)

    def _op(self, kind: str, *inputs: ir.Value | Constant, attributes: Mapping[str, int] | None = None) -> ir.Value:
        """Add a node, numbers among its inputs as float32 constants, whole ones as int64, and return its output."""
        values = [value if isinstance(value, ir.Value) else self._constant(value) for value in inputs]
        node = ir.node(kind, values, attributes, name=f"blend/{len(self._graph)}/{kind}")
        node.outputs[0].name = str(node.name)
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, value: Constant) -> ir.Value:
        array = np.asarray(value)
        kept = array if array.dtype == np.int64 else array.astype(np.float32)
        name = f"blend/constant_{len(self._graph.initializers)}"
        constant = ir.val(name, const_value=ir.tensor(kept, name=name))
        self._graph.register_initializer(constant)
        return constant
