"""The script that a kernel's folder names, and what its metadata would make Kaggle do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kaggle_kit.errors import RehearsalError, did_you_mean

METADATA = "kernel-metadata.json"
RUNTIMES = ("onnxruntime", "wheelhouse")  # what a dataset that brings onnxruntime has in its name
# In a notebook, leaving by `sys.exit` is an error, whatever its code.
RUN_NOTEBOOK = """import runpy
import sys

try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as error:
    sys.exit(f"sys.exit({{error.code!r}}) in a notebook, which Kaggle takes for a failure")
"""
NO_PYTHON = re.compile(r"\s*[!%?]|.*\?\s*$")  # a shell's command, a magic, a question


def check_kernel(kernel: Path) -> Path:
    """Return the code file that a kernel's metadata names.

    Raises:
        RehearsalError: When there is none, it is neither script nor notebook, or the kernel may use the internet.
    """
    path = kernel / METADATA
    if not path.is_file():
        known = [one.parent.name for one in kernel.parent.glob(f"*/{METADATA}")]
        hint = did_you_mean(kernel.name, known, listed=False) or "; give a folder such as kernels/submit"
        raise RehearsalError(f"{kernel} is no kernel (no {METADATA}){hint}")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        code = kernel / str(metadata["code_file"])
    except (ValueError, KeyError, TypeError):
        raise RehearsalError(f"{path} does not name a `code_file`; see kernels/submit for one that does") from None
    if metadata.get("enable_internet", True):
        raise RehearsalError(f"{path}: write `enable_internet: false`; Kaggle's own default is true")
    if code.suffix not in (".py", ".ipynb") or not code.is_file():
        raise RehearsalError(f"{path}: code_file {metadata['code_file']!r} is no Python script or notebook beside it")
    if code.suffix == ".ipynb":
        notebook_code(code)  # what cannot be run is better refused now than after minutes
    return code.resolve()


def runnable(code: Path, root: Path) -> Path:
    """Return a script, or one in `root` that runs what a notebook's cells make together."""
    if code.suffix != ".ipynb":
        return code
    cells, script = root / f"{code.stem}_cells.py", root / f"{code.stem}.py"
    cells.write_text(notebook_code(code), encoding="utf-8")
    script.write_text(RUN_NOTEBOOK.format(path=str(cells)), encoding="utf-8")
    return script


def notebook_code(path: Path) -> str:
    """Return the code of a notebook's cells, one after the other.

    Raises:
        RehearsalError: For a damaged notebook, or a line that IPython alone understands.
    """
    try:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        texts = [_text(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError):
        raise RehearsalError(f"{path} is no whole notebook; save it again") from None
    for number, text in enumerate(texts, start=1):
        odd = [line for line in text.splitlines() if NO_PYTHON.fullmatch(line) or NO_PYTHON.match(line)]
        if odd and not _compiles(text):
            raise RehearsalError(
                f"{path} code cell {number} holds {odd[0].strip()!r}, which is not Python; write it as Python "
                "(subprocess.run([...]) for a command) to rehearse it"
            )
    return "\n\n".join(f"# Cell {number}\n{text}" for number, text in enumerate(texts, start=1)) + "\n"


def metadata_warnings(kernel: Path) -> Iterator[str]:
    """Yield what only Kaggle's image would show: a rehearsal runs with the packages that are here."""
    metadata: dict[str, Any] = json.loads((kernel / METADATA).read_text(encoding="utf-8"))
    sources = [str(source) for source in metadata.get("dataset_sources", [])]
    if not any(runtime in source for source in sources for runtime in RUNTIMES):
        yield (
            f"{kernel / METADATA} attaches no onnxruntime dataset ({', '.join(sources) or 'none at all'}); "
            "Kaggle's image has no onnxruntime, see `kaggle-kit wheelhouse`"
        )


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _compiles(text: str) -> bool:
    try:
        compile(text, "cell", "exec")
    except SyntaxError:
        return False
    return True
