"""ONNX files from elsewhere, brought to the kit's opset, with a batch of any size."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from onnx import numpy_helper

from kaggle_kit.errors import ExportError, brief, some_of
from kaggle_kit.export.onnx import IR_VERSION, OPSET

MOST_BYTES = 2**31 - 1  # a protocol buffer, which is what reads, converts and checks a graph
OWN_DOMAINS = ("", "ai.onnx")


def read_foreign(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that another tool wrote, as one graph of ONNX's own operators at the kit's opset.

    Weights in files beside it are taken in, functions are written out, and a batch of one fixed size is freed where
    only the shapes of Reshape hold it.

    Raises:
        ExportError: When there is no such file, it is damaged or too large, uses operators of other domains, or cannot
            be brought to the opset.
    """
    model = _load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    nodes = [node for graph in graphs_within(model.graph) for node in graph.node]
    others = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in OWN_DOMAINS})
    if others:
        raise ExportError(
            f"{path} uses {len(others)} operator(s) that are not ONNX's own and that not every runtime has: "
            f"{some_of(others, 9)}; export it from its framework again, without a runtime's own optimisations"
        )
    for node in nodes:
        node.domain = ""
    model = _at_opset(model, path)
    _free_batch(model)
    return model


def foreign_sha256(path: Path) -> str:
    """Return the SHA-256 of an ONNX file that `read_foreign` reads, in hexadecimal.

    Files beside it that hold its weights follow it in what is hashed, by name. So without any it is the file's own.
    """
    model = onnx.load(path, load_external_data=False)
    beside = {
        entry.value
        for graph in graphs_within(model.graph)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    digest = hashlib.sha256()
    for file in (path, *(path.parent / name for name in sorted(beside))):
        with file.open("rb") as opened:
            hashlib.file_digest(opened, lambda: digest)
    return digest.hexdigest()


def graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all that its nodes hold, such as the branches of an If."""
    yield graph
    for node in graph.node:
        for one in node.attribute:
            for inner in (one.g,) if one.type == one.GRAPH else one.graphs:
                yield from graphs_within(inner)


def data_inputs(model: onnx.ModelProto) -> list[Any]:
    """Return the graph's inputs but for its weights, which old files list among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def fixed_sides(value: Any) -> list[int | None]:
    """Return a value's sides, None where one is free; none where even their number is not known."""
    return [side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim]


def _load(path: Path) -> onnx.ModelProto:
    """Return what a file holds, with the weights that lie beside it."""
    if not path.is_file():
        raise ExportError(f"there is no ONNX file {str(path)!r}; check the path")
    with _explained(path):
        model = onnx.load(path, load_external_data=False)
    if not model.graph.node:
        raise ExportError(f"{path} holds no operators, so it is no ONNX model or is cut short; copy it again")
    size = _num_bytes(model, path)
    if size > MOST_BYTES:
        raise ExportError(f"{path} has {size:,} bytes of weights; a model from elsewhere may have {MOST_BYTES:,}")
    with _explained(path):
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    from google.protobuf.message import DecodeError

    try:
        yield
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ExportError(
            f"{path} does not read as an ONNX model ({brief(error)}); copy it again, with the files beside it that "
            "hold its weights"
        ) from None


def _num_bytes(model: onnx.ModelProto, path: Path) -> int:
    """Return the size of a model with the weights that lie beside it."""
    lengths = [
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    return path.stat().st_size + sum(lengths)


def _at_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model at the kit's opset."""
    found = max((one.version for one in model.opset_import if one.domain in OWN_DOMAINS), default=0)
    try:
        if found < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
        elif found > OPSET:
            model = _lowered(model)
        model.ir_version = IR_VERSION
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        why = f"is of opset {found} and cannot be brought to {OPSET}" if found != OPSET else "is no valid ONNX model"
        raise ExportError(f"{path} {why} ({brief(error)}); export it again, with opset {OPSET}") from None
    return model


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of a newer opset, operators that are new in it written out as what they stand for.

    ONNX's converter knows few ways down. What the older opset says otherwise is found by the check that follows, or by
    the comparison with predictions.
    """
    nodes = [node for graph in graphs_within(model.graph) for node in graph.node]
    new = sorted({node.op_type for node in nodes if not _is_known(node.op_type)})
    if new:
        model = onnx.inliner.inline_selected_functions(
            model, [("", name) for name in new], exclude=False, inline_schema_functions=True
        )
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return model


def _is_known(operator: str) -> bool:
    try:
        onnx.defs.get_schema(operator, OPSET, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _free_batch(model: onnx.ModelProto) -> None:
    """Let Reshape take the batch from what it is given, where its shape names the one batch of the export.

    Whether nothing else holds the batch is seen by running it.
    """
    inputs = data_inputs(model)
    batch = fixed_sides(inputs[0])[:1] if len(inputs) == 1 else []
    if batch in ([], [None]):
        return
    shapes = _known_sides(model)
    constants = _constants(model.graph)
    for number, node in enumerate(model.graph.node):
        keeps_zero = any(one.name == "allowzero" and one.i for one in node.attribute)
        if node.op_type != "Reshape" or keeps_zero or node.input[1] not in constants:
            continue
        wanted = constants[node.input[1]].copy()
        if wanted[:1].tolist() == batch == shapes.get(node.input[0], [])[:1]:
            wanted[0] = 0  # as it is in the input
            name = f"{node.input[1]}/any_batch_{number}"
            model.graph.initializer.append(numpy_helper.from_array(wanted, name))
            node.input[1] = name


def _known_sides(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: fixed_sides(value) for value in (*graph.input, *graph.value_info)}


def _constants(graph: Any) -> dict[str, Any]:
    """Return {name: array} of a graph's constant one-dimensional integers."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for one in node.attribute:
            if node.op_type == "Constant" and one.name == "value":
                found[node.output[0]] = one.t
    whole = {name: tensor for name, tensor in found.items() if tensor.data_type == onnx.TensorProto.INT64}
    return {name: np.array(numpy_helper.to_array(one)) for name, one in whole.items() if len(one.dims) == 1}
