"""Why a network cannot be exported, in one line: which operator, or which line of code, in which of its modules."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

_REPAIR = "or choose another model"


class _Place(NamedTuple):
    """A module, by its name in the network, and the line of its code that was run last."""

    module: str
    line: str


def explain(error: BaseException, graph: nn.Module) -> str:
    """Return why torch's exporter gave up.

    The exporter says so in errors that chain, each some hundred lines long; what it was at when it gave up stands in
    their tracebacks.

    Args:
        error: What `torch.onnx.export` raised.
        graph: What was exported.
    """
    causes = list(_chain(error))
    for cause in causes:
        node = _find_node(cause)
        if node is not None:
            operator = str(node.target).removesuffix(".default")
            return (
                f"operator {operator} in {_module_of(node)} has no form in ONNX; replace it there by operators that "
                f"have one, {_REPAIR}"
            )
    place = _find_place(causes[-1], graph)
    where = f"{place.module} cannot be traced" if place else "it cannot be traced"
    at = f" at `{place.line}`" if place and place.line else ""
    if isinstance(causes[-1], GuardOnDataDependentSymNode):
        return f"{where}:{at} it decides by values of the images; use torch.where instead, {_REPAIR}"
    return f"{where}:{at} {_first_line(causes[-1])}; mend it, {_REPAIR}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the origin last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _frames(error: BaseException) -> Iterator[FrameType]:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame


def _find_node(error: BaseException) -> torch.fx.Node | None:
    """Return the operator that was being translated; None where none was yet."""
    nodes = [frame.f_locals.get("node") for frame in _frames(error) if "onnx" in frame.f_code.co_filename]
    return next((node for node in nodes if isinstance(node, torch.fx.Node)), None)


def _module_of(node: torch.fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "the graph around the network"
    name, kind = stack[-1]
    return _describe(name, (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2])


def _find_place(error: BaseException, graph: nn.Module) -> _Place | None:
    """Return the innermost module that was being run, and the line of it; None where none was."""
    names = {id(module): name for name, module in graph.named_modules()}
    found: _Place | None = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        own = frame.f_locals.get("self")
        if id(own) not in names or frame.f_code.co_name in ("_call_impl", "_wrapped_call_impl"):
            continue
        line = linecache.getline(frame.f_code.co_filename, number).strip()
        found = _Place(_describe(names[id(own)], type(own).__name__), line)
    return found


def _describe(name: str, kind: str) -> str:
    return f"module {name.removeprefix('network.')} ({kind})" if name else f"module {kind}"


def _first_line(error: BaseException) -> str:
    """Return an error's first sentence."""
    line = (str(error).strip().splitlines() or [""])[0].partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__
