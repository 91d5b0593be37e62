from __future__ import annotations

import csv
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
from kaggle_kit.platform.training import MARKER, go_on, train_attached
from kaggle_kit.platform.wheel import build_wheel, find_kernel
from kaggle_kit.runs import read_run
from kaggle_kit.runtime.mounts import ROOT_VARIABLE
from kaggle_kit.task import task_to_plain
from kaggle_kit.train.run_folder import MARKER as RUN_MARKER

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
    (datasets / "wheelhouse").mkdir(parents=True)
    build_wheel(datasets / "wheelhouse")
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


def attach_output(root: Path) -> Path:
    """Begin a session that attaches the last one's output, in the flat layout, and return where its run lies.

    Hidden files are gone.
    """
    output = root / "input" / "kaggle-kit-train"
    for path in sorted((root / "working").rglob(".*")):
        path.unlink()
    (root / "working").rename(output)
    (root / "working").mkdir()
    for folder in [*(root / "input" / "datasets" / "owner").iterdir(), root / "input" / "competitions" / "toy"]:
        folder.rename(root / "input" / folder.name)
    return output / "run"


def read_history(run: Path) -> list[list[str]]:
    """Return what both folds' epochs came to, but not the time they took."""
    found = []
    for fold in (0, 1):
        with (run / f"fold{fold}" / "history.csv").open() as lines:
            found += [[row[name] for name in ("epoch", "loss", "score")] for row in csv.DictReader(lines)]
    return found


@pytest.mark.slow
def test_the_training_kernel_ends_in_time_and_goes_on_in_the_next_session(wide: Toy, tmp_path: Path) -> None:
    whole, root = tmp_path / "whole", tmp_path / "kaggle"
    mount(whole, wide)
    done = run_kernel(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = read_run(whole / "working" / "run")
    assert list(expected.folds) == [0, 1] and expected.config.epochs == 2 and expected.config.max_hours == 8.5
    assert sorted(path.name for path in (whole / "working").iterdir()) == ["begun.json", "run"]  # and no packed images
    mount(root, wide, OVERRIDES + "max_hours=0.0001\n")
    done = run_kernel(root)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = read_run(root / "working" / "run")
    assert [fold.stopped for fold in ended.folds.values()] == ["out of time"] * 2
    earlier = attach_output(root)
    (root / "input" / "training" / "overrides.txt").write_text(OVERRIDES)
    again = run_kernel(root)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on with {earlier}" in again.stdout
    run = read_run(root / "working" / "run")
    assert [fold.stopped for fold in run.folds.values()] == ["", ""]
    # What it ended with in the middle of an epoch may stay the best, so scores may differ; the epochs do not.
    assert read_history(run.folder) == read_history(expected.folder)


def test_a_training_kernel_says_what_is_missing(wide: Toy, tmp_path: Path) -> None:
    datasets = mount(tmp_path, wide)
    settings = datasets / "training" / "overrides.txt"
    settings.write_text("# mine\nepochs 20\n")
    assert "overrides.txt line 2 is 'epochs 20'; expected a setting such as" in run_kernel(tmp_path).stderr
    (datasets / "training" / "task.yaml").unlink()
    settings.write_text("epochs=20\n")
    assert "has no task.yaml, and its overrides.txt names no task" in run_kernel(tmp_path).stderr
    settings.unlink()
    assert "nothing was trained: no overrides.txt is attached" in run_kernel(tmp_path).stderr
    shutil.rmtree(datasets / "wheelhouse")
    assert "no kaggle_kit-*.whl is attached" in run_kernel(tmp_path).stderr


def test_what_is_attached_is_given_to_the_training_on_all_gpus(
    wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = mount(tmp_path, wide, "epochs=3\nmax_hours=2\n")
    (datasets / "training" / "packed").mkdir()
    (datasets / "weights").mkdir()
    (datasets / "weights" / "index.json").touch()
    (datasets / "weights" / "resnet.safetensors").touch()
    (tmp_path / "elsewhere").mkdir()
    called = []
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(subprocess, "call", lambda command, env: called.append((command, env["PYTHONPATH"])) or 3)
    working = tmp_path / "elsewhere"
    assert train_attached(working, wheel=Path("kit.whl"), max_hours=8.5, say=pytest.fail) == 3
    ((command, paths),) = called
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert command[5:8] == ["-m", "kaggle_kit", "train"] and paths == f"kit.whl{os.pathsep}before"
    training = datasets / "training"
    assert dict(word.split("=", 1) for word in command[8:]) == {
        "task": str(training / "task.yaml"),
        "data": str(tmp_path / "input" / "competitions" / "toy"),
        "folds": str(training / "folds.parquet"),
        "packed": str(training / "packed"),
        "out": str(working / "run"),
        "max_hours": "2",
        "epochs": "3",
        "model.weights": str(datasets / "weights"),
    }


@pytest.mark.parametrize("place", ["notebooks/owner/train", "train"])
@pytest.mark.parametrize("hidden", [True, False])
def test_an_output_goes_on_from_either_mount_with_its_hidden_files_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, hidden: bool
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    run = tmp_path / "input" / place / "run"
    (run / "fold0").mkdir(parents=True)
    (run / MARKER if hidden else run.parent / "begun.json").write_text("{}")
    (tmp_path / "working").mkdir()
    said: list[str] = []
    go_on(tmp_path / "working", say=said.append)
    assert said == [f"going on with {run}"]
    assert (tmp_path / "working" / "run" / MARKER).read_text() == "{}"


def test_the_run_s_marker_is_the_training_s() -> None:
    assert MARKER == RUN_MARKER
