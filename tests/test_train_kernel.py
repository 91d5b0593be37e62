from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Toy

from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.platform.wheel import build_wheel, find_kernel
from kaggle_kit.runs import read_run
from kaggle_kit.task import task_to_plain

KERNEL = find_kernel(Path("train"))
OVERRIDES = """# tiny, for a test
task=toy
model=tiny_resnet
model.input_size=[32,48]
loader.batch_size=8
loader.num_workers=0
epochs=2
"""


def mount(root: Path, toy: Toy, overrides: str = OVERRIDES) -> Path:
    """Lay out a training kernel's inputs as Kaggle mounts them, and return the folder of datasets."""
    datasets = root / "input" / "datasets" / "owner"
    shutil.copytree(toy.data, root / "input" / "competitions" / "toy")
    (datasets / "wheel").mkdir(parents=True)
    build_wheel(datasets / "wheel")
    training = datasets / "training"
    training.mkdir()
    (training / "overrides.txt").write_text(overrides)
    (training / "task.yaml").write_text(yaml.safe_dump(task_to_plain(toy.task)))
    make_folds(read_labels(toy.task, toy.data), num_folds=2).save(training / "folds.parquet")
    (root / "working").mkdir()
    return datasets


def run_kernel(root: Path) -> subprocess.CompletedProcess[str]:
    (root / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, str(KERNEL / "train.py")],
        cwd=root / "working",
        env={**os.environ, "KAGGLE_KIT_ROOT": str(root), "TMPDIR": str(root / "tmp"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_training_kernel_trains_and_goes_on_with_an_earlier_output(wide: Toy, tmp_path: Path) -> None:
    root = tmp_path / "kaggle"
    datasets = mount(root, wide)
    done = run_kernel(root)
    assert done.returncode == 0, done.stdout + done.stderr
    run = read_run(root / "working" / "run")
    assert list(run.folds) == [0, 1] and run.config.epochs == 2 and run.config.max_hours == 8.5
    assert not list((root / "working").glob("packed*"))  # gigabytes that nobody wants as output
    # As if the limit had ended it in the second fold: the next version of the kernel finds the first one's output.
    earlier = root / "input" / "notebooks" / "owner" / "kaggle-kit-train" / "run"
    shutil.copytree(run.folder, earlier)
    (earlier / "run.json").unlink()
    shutil.rmtree(earlier / "fold1")
    shutil.rmtree(root / "working")
    (root / "working").mkdir()
    again = run_kernel(root)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on with {earlier}" in again.stdout and "fold 0:" not in again.stderr
    assert read_run(root / "working" / "run").scores == run.scores
    shutil.rmtree(datasets / "wheel")
    assert "no kaggle_kit-*.whl is attached" in run_kernel(root).stderr


def test_a_training_kernel_without_settings_says_what_is_missing(wide: Toy, tmp_path: Path) -> None:
    datasets = mount(tmp_path, wide)
    (datasets / "training" / "overrides.txt").unlink()
    assert "no overrides.txt is attached" in run_kernel(tmp_path).stderr


def test_the_training_kernel_has_no_internet() -> None:
    metadata = json.loads((KERNEL / "kernel-metadata.json").read_text())
    assert metadata["enable_internet"] is False and metadata["code_file"] == "train.py"
