from __future__ import annotations

import json
from pathlib import Path

import pytest

from kaggle_kit.errors import RehearsalError
from kaggle_kit.platform.script import check_kernel, notebook_code, runnable


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not name a `code_file`"),
        ([], "does not name a `code_file`"),
        ({"code_file": "main.py"}, "write `enable_internet: false`"),
        ({"code_file": "none.py", "enable_internet": False}, "code_file 'none.py' is no Python script or notebook"),
        ({"code_file": "main.R", "enable_internet": False}, "code_file 'main.R' is no Python script or notebook"),
    ],
)
def test_kernels_that_are_none_are_refused(tmp_path: Path, metadata: object, message: str) -> None:
    with pytest.raises(RehearsalError, match=r"is no kernel \(no kernel-metadata.json\)"):
        check_kernel(tmp_path)
    (tmp_path / "main.R").touch()
    (tmp_path / "kernel-metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(RehearsalError, match=message):
        check_kernel(tmp_path)


def write_notebook(path: Path, *cells: object) -> Path:
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]}))
    return path


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("x = 1\n!pip install onnxruntime", "!pip install onnxruntime"), ("%matplotlib inline", "%matplotlib inline")],
)
def test_lines_that_are_no_python_are_refused(tmp_path: Path, cell: str, shown: str) -> None:
    with pytest.raises(RehearsalError, match=f"code cell 2 holds '{shown}', which is not Python; write it as Python"):
        notebook_code(write_notebook(tmp_path / "a.ipynb", "y = 2", cell))


def test_python_that_looks_like_magic_is_python(tmp_path: Path) -> None:
    text = 'x = (7\n    % 4)\ns = """\n!not a command\n"""'
    assert text in notebook_code(write_notebook(tmp_path / "a.ipynb", text))


def test_damaged_notebooks_are_refused(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"cells": [{}]}'):
        (tmp_path / "a.ipynb").write_text(content)
        with pytest.raises(RehearsalError, match="is no whole notebook"):
            notebook_code(tmp_path / "a.ipynb")


def test_a_script_is_run_as_it_is(tmp_path: Path) -> None:
    assert runnable(tmp_path / "main.py", tmp_path) == tmp_path / "main.py"
