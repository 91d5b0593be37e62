"""The two notebooks for Kaggle: the one that submits is the kernel's code, the one that trains runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Toy

from kaggle_kit.platform.notebooks import code_of, notebook_of
from kaggle_kit.platform.wheel import build_wheel, find_kernel
from kaggle_kit.runs import read_run
from kaggle_kit.task import task_to_plain

FOLDER = Path(__file__).parents[1] / "notebooks"


def test_the_notebook_that_submits_is_the_kernel() -> None:
    script = find_kernel(Path("submit")) / "submit.py"
    expected = code_of(notebook_of(script.read_text(encoding="utf-8")))
    assert code_of((FOLDER / "submit.ipynb").read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("name", ["train", "submit"])
def test_notebooks_are_committed_without_output(name: str) -> None:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert cells[0]["cell_type"] == "markdown"


@pytest.mark.slow
def test_the_notebook_that_trains_leaves_a_run(wide: Toy, tmp_path: Path) -> None:
    datasets = tmp_path / "input" / "datasets" / "owner"
    shutil.copytree(wide.data, tmp_path / "input" / "competitions" / "toy")
    (datasets / "wheelhouse").mkdir(parents=True)
    build_wheel(datasets / "wheelhouse")
    (datasets / "task.yaml").write_text(yaml.safe_dump(task_to_plain(wide.task)), encoding="utf-8")
    (tmp_path / "working").mkdir()
    code = "\n".join(code_of((FOLDER / "train.ipynb").read_text(encoding="utf-8")))
    settings = ["model=tiny_resnet", "model.input_size=[32,48]", "epochs=1", "loader.batch_size=8"]
    code = re.sub("^TASK = .*$", f"TASK = {str(datasets / 'task.yaml')!r}", code, flags=re.MULTILINE)
    code = re.sub("^SETTINGS = .*$", f"SETTINGS = {settings!r}", code, flags=re.MULTILINE)
    code = re.sub("^SCHEME = .*$", "SCHEME = 'stratified'", code, flags=re.MULTILINE).replace('"--n", 5', '"--n", 2')
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "working",
        env={**os.environ, "KAGGLE_KIT_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_run(tmp_path / "working" / "runs" / "first").score.total > 0
    assert (tmp_path / "working" / "augment.png").is_file()
