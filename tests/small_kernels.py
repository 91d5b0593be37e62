"""Small kernels for rehearsals: folders made of a line or two of Python."""

from __future__ import annotations

import json
from pathlib import Path

# What a kernel begins with: its root, the toy's mounted files, and submissions that are right but know nothing.
START = """
import csv, os, pathlib, sys
root = pathlib.Path(os.environ["KAGGLE_KIT_ROOT"])
data = next((root / "input").glob("**/sample_submission.csv")).parent
rows = list(csv.reader((data / "sample_submission.csv").open()))
answers = [rows[0], *[[row[0], number % 2] for number, row in enumerate(rows[1:])]]
rerun = "KAGGLE_IS_COMPETITION_RERUN" in os.environ

def write(rows, name="submission.csv"):
    with open(name, "w", newline="") as file:
        csv.writer(file).writerows(rows)
"""


def write_kernel(folder: Path, code: str, **metadata: object) -> Path:
    """Write a kernel's folder and return it."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "main.py").write_text(code)
    values = {"code_file": "main.py", "enable_internet": False, "dataset_sources": ["OWNER/kaggle-kit-wheelhouse"]}
    (folder / "kernel-metadata.json").write_text(json.dumps(values | metadata))
    return folder
