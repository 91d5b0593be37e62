"""The same code as a notebook: a script in cells, and a notebook's cells as code."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from kaggle_kit.errors import KaggleError

FORMAT, MINOR_FORMAT = 4, 5
_COMMAND = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)  # IPython's own: %matplotlib, !pip


def notebook_of(script: str, *, name: str = "the script") -> str:
    """Return a script as a notebook's JSON: its docstring as text, its code in cells as blank lines part it.

    In a notebook `sys.exit(0)` is an error to Kaggle. So a `sys.exit(...)` on a line of its own becomes one that
    happens for a failure only.

    Args:
        script: Python code.
        name: The file's, for messages.

    Raises:
        KaggleError: When the script is no Python, or uses `__file__`, which a notebook does not have.
    """
    try:
        tree = ast.parse(script)
    except SyntaxError as error:
        raise KaggleError(f"{name}, line {error.lineno}: {error.msg}; mend the code") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "__file__":
            raise KaggleError(f"{name}, line {node.lineno} uses __file__, which a notebook does not have; leave it out")
    cells = []
    text = ast.get_docstring(tree)
    if text:
        cells.append(_cell("markdown", text, 0))
    cells += [_cell("code", source, number) for number, source in enumerate(_blocks(script, tree), start=1)]
    return json.dumps(_notebook(cells), indent=1, ensure_ascii=False) + "\n"


def code_of(notebook: str) -> list[str]:
    """Return the code of a notebook's cells; lines that only IPython understands become `pass`."""
    content = json.loads(notebook)
    sources = [cell.get("source", "") for cell in content["cells"] if cell["cell_type"] == "code"]
    texts = ["".join(source) if isinstance(source, list) else str(source) for source in sources]
    return ["" if text.lstrip().startswith("%%") else _COMMAND.sub(r"\1pass", text) for text in texts]


def _blocks(script: str, tree: ast.Module) -> Iterator[str]:
    """Yield runs of top-level statements with the comments before them, parted where blank lines part them."""
    lines = script.splitlines()
    body = tree.body
    if body and ast.get_docstring(tree) is not None:
        body = body[1:]
        start = tree.body[0].end_lineno or 0
    else:
        start = 0
    replaced = {node.lineno: _exit_on_failure(script, node) for node in body}
    inside = {number for node in body for number in range(_first_line(node), (node.end_lineno or node.lineno) + 1)}
    block: list[str] = []
    number = start + 1
    ends = {node.lineno: node.end_lineno or node.lineno for node in body}
    while number <= len(lines):
        line = lines[number - 1]
        if not line.strip() and number not in inside:
            if block and any(one.strip() and not one.lstrip().startswith("#") for one in block):
                yield "\n".join(block)
                block = []
            elif block:
                block.append("")
        elif replaced.get(number):
            block.append(str(replaced[number]))
            number = ends[number]
        else:
            block.append(line)
        number += 1
    if any(line.strip() for line in block):
        yield "\n".join(block).rstrip()


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(node.lineno, *(one.lineno for one in decorators)) if decorators else node.lineno


def _exit_on_failure(script: str, node: ast.stmt) -> str | None:
    """Return what a top-level `sys.exit(X)` becomes; None for any other statement."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call) or node.col_offset:
        return None
    call = node.value
    if ast.unparse(call.func) not in ("sys.exit", "exit", "SystemExit") or len(call.args) != 1:
        return None
    value = ast.get_source_segment(script, call.args[0]) or ""
    value = f"({value})" if "\n" in value else value
    return (
        f"if failure := {value}:  # an exit without one would be an error in a notebook\n    raise SystemExit(failure)"
    )


def _cell(kind: str, source: str, number: int) -> dict[str, Any]:
    name = hashlib.sha256(f"{number} {source}".encode()).hexdigest()[:8]
    cell: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


def _notebook(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": FORMAT,
        "nbformat_minor": MINOR_FORMAT,
    }
