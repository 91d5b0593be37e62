from __future__ import annotations

import ast
import json

import pytest

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.notebooks import code_of, notebook_of
from kaggle_kit.platform.wheel import kernels_folder

SCRIPT = '''"""Say hello.

More of it.
"""

import os
import sys

# A comment of its own.

# How loud.
LOUD = 3


def hello() -> int:
    """Greet.

    Twice.
    """
    text = """a

    b"""

    return len(text)


@property

def odd(self): ...


x = [
    1,

    2,
]
y = hello()
if y:
    pass

sys.exit(hello() - y)
'''


def cells_of(notebook: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]


def test_a_script_becomes_cells_where_blank_lines_part_its_blocks() -> None:
    text, *cells = cells_of(notebook_of(SCRIPT))
    assert text == "Say hello.\n\nMore of it."
    assert [cell.splitlines()[0] for cell in cells] == [
        "import os",
        "# A comment of its own.",
        "def hello() -> int:",
        "@property",
        "x = [",
        "if failure := hello() - y:  # an exit without one would be an error in a notebook",
    ]
    assert cells[1].splitlines() == ["# A comment of its own.", "", "# How loud.", "LOUD = 3"]
    assert cells[2].endswith("return len(text)") and cells[3].endswith("def odd(self): ...")


@pytest.mark.parametrize(
    ("found", "ends"), [("0", None), ("3", 3), ("'too bad'", "too bad"), ("None", None), ("3\n    or 4", 3)]
)
def test_an_exit_happens_for_a_failure_only(found: str, ends: object) -> None:
    code = "\n".join(code_of(notebook_of(f"import sys\nsys.exit(\n    {found}\n)\n")))
    if ends is None:
        exec(code, {})  # noqa: S102  our own code
    else:
        with pytest.raises(SystemExit) as stopped:
            exec(code, {})  # noqa: S102  our own code
        assert stopped.value.code == ends


@pytest.mark.parametrize("path", sorted(kernels_folder().glob("*/*.py")), ids=lambda path: path.name)
def test_the_templates_say_the_same_as_notebooks(path) -> None:
    script = path.read_text(encoding="utf-8")
    notebook = notebook_of(script)
    tree = ast.parse(script)
    statements = [ast.unparse(node) for node in tree.body[1:] if "sys.exit(" not in ast.unparse(node)]
    found = [ast.unparse(node) for node in ast.parse("\n".join(code_of(notebook))).body]
    assert [one for one in found if "SystemExit(failure)" not in one and "sys.exit(" not in one] == statements
    assert notebook_of(script) == notebook


@pytest.mark.parametrize("script", [SCRIPT, "x = 1\n", "", "# only a comment\n", '"""Only text."""\n'])
def test_the_json_is_a_valid_notebook(script: str) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with the kaggle package")
    nbformat.validate(nbformat.reads(notebook_of(script), as_version=4))
    identities = [cell["id"] for cell in json.loads(notebook_of(script))["cells"]]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    ("script", "said"),
    [("def f(:\n", "s.py, line 1: invalid syntax"), ("a = 1\nprint(__file__)", "s.py, line 2 uses __file__")],
)
def test_a_script_that_cannot_be_a_notebook_is_refused(script: str, said: str) -> None:
    with pytest.raises(KaggleError, match=said):
        notebook_of(script, name="s.py")


def test_ipython_s_commands_are_passed_over() -> None:
    cells = [
        {"cell_type": "code", "source": ["%matplotlib inline\n", "if True:\n", "    !pip list\n", "x = 5 % 3"]},
        {"cell_type": "code", "source": "%%bash\nls"},
        {"cell_type": "markdown", "source": "text"},
    ]
    assert code_of(json.dumps({"cells": cells})) == ["pass\nif True:\n    pass\nx = 5 % 3", ""]
