from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import Toy, random_blend, with_blend

import kaggle_kit
from kaggle_kit.mixes import MixKind
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.sources import open_source

PACKAGE = Path(kaggle_kit.__file__).parent
LAYERS = (
    (
        "__main__",
        "audit_command",
        "baseline",
        "blend_command",
        "cli",
        "commands",
        "demo",
        "doctor_command",
        "experiment",
        "export_command",
        "kaggle_command",
        "rehearse_command",
        "review_command",
        "runs_command",
        "sweep",
        "train_command",
        "wheelhouse_command",
    ),
    (
        "audit",
        "blending",
        "decision_fitting",
        "decision_search",
        "entries",
        "export",
        "folds",
        "ledger",
        "packing",
        "platform",
        "progress",
        "runs",
        "sample",
        "sample_digits",
        "sample_ships",
        "shakeup",
        "shift_effect",
        "standings",
        "threshold_search",
        "train",
        "trust",
    ),
    ("runtime",),
    (
        "decision",
        "ensemble",
        "errors",
        "files",
        "headers",
        "edits",
        "heads",
        "labels",
        "machine",
        "metrics",
        "mixes",
        "multilabel",
        "pixels",
        "predictions",
        "prior_shift",
        "scores",
        "settings",
        "sources",
        "submission",
        "submission_checks",
        "tables",
        "task",
    ),
)
KERNEL_SIDE = {"numpy", "pyarrow", "cv2", "yaml", "onnxruntime", "openvino"}
HEAVY = {"pyarrow", "cv2", "yaml", "onnxruntime", "openvino"}
BLOCKED = (
    "torch",
    "torchvision",
    "timm",
    "pandas",
    "albumentations",
    "sklearn",
    "scipy",
    "hydra",
    "onnx",
    "matplotlib",
)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name not in ("__init__", "conf", "tasks"):
            yield name, path


def layer_of(name: str) -> int:
    (layer,) = [number for number, names in enumerate(LAYERS) if name in names]
    return layer


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(("name", "path"), [pytest.param(n, p, id=str(p.relative_to(PACKAGE))) for n, p in modules()])
def test_nothing_imports_upwards(name: str, path: Path) -> None:
    for target in imported(ast.parse(path.read_text())):
        inside = target.split(".")
        if inside[0] == "kaggle_kit" and len(inside) > 1:
            assert layer_of(inside[1]) >= layer_of(name), f"{path.name} imports {target}"


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=str(p.relative_to(PACKAGE))) for n, p in modules() if layer_of(n) >= 2]
)
def test_the_kernel_side_imports_only_what_a_kernel_has(path: Path) -> None:
    tree = ast.parse(path.read_text())
    outside = {name.split(".")[0] for name in imported(tree)} - set(sys.stdlib_module_names) - {"kaggle_kit"}
    assert outside <= KERNEL_SIDE
    top_level = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node)
    }
    assert not top_level & HEAVY


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, kaggle_kit, kaggle_kit.cli; print([m for m in sys.modules if m in ('numpy', 'torch', 'pandas')])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(PACKAGE))) for _, p in modules()])
def test_nothing_is_read_written_or_seeded_at_import(path: Path) -> None:
    tree = ast.parse(path.read_text())
    plain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If)
    statements = [node for node in tree.body if not isinstance(node, plain)]
    called = {ast.unparse(call.func) for node in statements for call in ast.walk(node) if isinstance(call, ast.Call)}
    values = {
        "datetime.timedelta",
        "frozenset",
        "get_args",
        "len",
        "np.zeros",
        "math.log",
        "np.float32",
        "range",
        "re.compile",
        "_NAMES.split",
    }
    allowed = values | {"TypeVar", "Path", "DemoSettings", "HardCase", "Limits", "Queue"}
    assert called <= allowed, called
    assert not [node for node in statements if "os.environ" in ast.unparse(node)]


def test_only_experiment_imports_hydra() -> None:
    users = {
        path.name
        for _, path in modules()
        if any(n.split(".")[0] == "hydra" for n in imported(ast.parse(path.read_text())))
    }
    assert users == {"experiment.py"}


def test_a_bundle_gives_a_submission_where_torch_and_its_like_are_blocked(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path
) -> None:
    toy, runs = trained
    kinds = get_args(MixKind)
    for kind in kinds:
        blend = random_blend(kind, toy.task, {run.name: run.oof() for run in runs})
        with_blend(bundle_folder, tmp_path / kind, blend)
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it now raises ImportError
from pathlib import Path
from kaggle_kit.runtime.submitting import predict_submission
hidden, folder = Path({str(toy.hidden)!r}), Path({str(tmp_path)!r})
predict_submission(Path({str(bundle_folder)!r}), hidden, folder / "s.csv")
for kind in {kinds!r}:
    for number in (1, 2):
        found = predict_submission(folder / kind, hidden, folder / f"{{kind}}_{{number}}.csv", num_runs=number)
        found.predictions.save(folder / f"{{kind}}_{{number}}.npz")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("s", *(f"{kind}_{number}" for kind in kinds for number in (1, 2))):
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) == 1 + 18
    for kind in kinds:
        here = Predictor(tmp_path / kind, say=lambda _: None).predict(open_source(toy.task, "test", toy.hidden))
        there = Predictions.load(tmp_path / f"{kind}_2.npz").align(here.predictions.ids)
        for head, probs in here.predictions.probs.items():
            assert np.abs(probs - there.probs[head]).max() < 1e-6
