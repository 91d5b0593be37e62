"""The kernel templates: short, complete, and each does its work from a wheel on mounts such as Kaggle's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Toy
from handmade import make_bundle

from kaggle_kit.blending.costs import read_costs
from kaggle_kit.platform.wheel import build_wheel, kernels_folder
from kaggle_kit.runtime.mounts import ROOT_VARIABLE
from kaggle_kit.runtime.wheels import DISTRIBUTIONS

TEMPLATES = sorted(path.name for path in kernels_folder().iterdir() if path.is_dir() and path.name[0] != "_")
DATASETS = Path(__file__).parents[1] / "datasets"


def run_kernel(name: str, root: Path, *, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a template with the package found in its wheel alone, and with modules that cannot be imported."""
    (root / "working").mkdir(parents=True, exist_ok=True)
    script = kernels_folder() / name / f"{name}.py"
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked!r})); sys.path[:] = "
        f"[path for path in sys.path if path != {str(kernels_folder().parent)!r}]; "
        f"sys.argv[:] = [{str(script)!r}]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root / "working",
        env={**os.environ, ROOT_VARIABLE: str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def mount(root: Path, toy: Toy, *, flat: bool) -> None:
    """Lay out wheelhouse, bundle and competition."""
    datasets = root / "input" if flat else root / "input" / "datasets" / "owner"
    competitions = root / "input" if flat else root / "input" / "competitions"
    shutil.copytree(toy.hidden, competitions / "toy-wide")
    (datasets / "kaggle-kit-wheelhouse").mkdir(parents=True)
    build_wheel(datasets / "kaggle-kit-wheelhouse")
    make_bundle(datasets / "kaggle-kit-bundle")


@pytest.mark.parametrize("flat", [True, False])
def test_the_submit_kernel_needs_no_torch_and_imports_from_the_wheel(wide: Toy, tmp_path: Path, flat: bool) -> None:
    mount(tmp_path, wide, flat=flat)
    done = run_kernel("submit", tmp_path, blocked=("torch", "timm", "pandas", "albumentations", "sklearn", "hydra"))
    assert done.returncode == 0, done.stderr
    assert "kaggle-kit-wheelhouse/kaggle_kit-" in done.stdout
    assert len((tmp_path / "working" / "submission.csv").read_text().splitlines()) == 1 + 18


def test_the_bench_kernel_writes_costs_that_planning_at_home_reads(wide: Toy, tmp_path: Path) -> None:
    mount(tmp_path, wide, flat=False)
    done = run_kernel("bench", tmp_path, blocked=("torch", "pandas"))
    assert done.returncode == 0, done.stderr
    working = tmp_path / "working"
    assert sorted(path.name for path in working.iterdir()) == ["bench.json", "bench.txt", "costs.json"]
    bench = json.loads((working / "bench.json").read_text())
    assert read_costs(working / "costs.json", list(bench["seconds"])).seconds == bench["seconds"]
    assert {speed["provider"] for speed in bench["speeds"]} == {"CPUExecutionProvider"} and bench["timings"][
        "images"
    ] == 9
    text = (working / "bench.txt").read_text()
    assert text == done.stdout and "the whole way: " in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("submit", "no folder attached under .* holds manifest.json"),
        ("bench", "nothing was measured: no folder attached under .* holds manifest.json"),
        ("train", "nothing was trained: no overrides.txt is attached"),
        ("build_engine", "no engines were built: no NVIDIA GPU"),
    ],
)
def test_a_kernel_says_in_one_line_what_it_misses(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_kernel(name, tmp_path).stderr == "no kaggle_kit-*.whl is attached: add the wheelhouse\n"
    (tmp_path / "input" / "datasets" / "owner" / "house").mkdir(parents=True)
    build_wheel(tmp_path / "input" / "datasets" / "owner" / "house")
    done = run_kernel(name, tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert pytest.RaisesExc(match=message).matches(ValueError(done.stderr))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_short_and_its_metadata_is_kaggle_s(name: str) -> None:
    folder = kernels_folder() / name
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert metadata["code_file"] == f"{name}.py"
    assert len((folder / f"{name}.py").read_text().splitlines()) <= 45
    owner, slug = metadata["id"].split("/")
    assert metadata["title"].lower().replace(" ", "-") == slug
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert metadata["machine_shape"] == "NvidiaTeslaT4" and metadata["kernel_type"] == "script"
    assert "OWNER/kaggle-kit-wheelhouse" in metadata["dataset_sources"]
    for source in metadata["dataset_sources"]:
        assert source != f"{owner}/{slug}" and (DATASETS / source.removeprefix(f"{owner}/")).is_dir()


def test_every_module_that_a_template_installs_is_known_by_its_distribution() -> None:
    text = "".join((kernels_folder() / name / f"{name}.py").read_text() for name in TEMPLATES)
    for module in ("onnxruntime", "hydra", "tensorrt_libs"):
        assert f'"{module}"' in text and module in DISTRIBUTIONS
