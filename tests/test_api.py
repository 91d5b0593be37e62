"""What users call from Python, stage by stage: nothing of it may vanish, or lose its documentation, unnoticed."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kaggle_kit
from kaggle_kit.errors import KitError

ROOT = Path(__file__).parents[1]
PACKAGE = Path(kaggle_kit.__file__).parent
STAGES = {
    "task": {
        "task": "Task Limits read_task task_to_plain",
        "heads": "Head",
        "labels": "Labels read_labels",
        "sources": "PackedSource open_source",
        "sources.protocol": "Chunk Source",
        "packing": "pack plan_packing",
        "packing.competition": "pack_test pack_train",
        "sample": "make_sample",
        "errors": "KitError",
        "settings": "build plain",
    },
    "audit": {
        "audit.examine": "Audit Options examine",
        "audit.report": "write_report",
        "audit.findings": "Finding load_findings",
        "audit.after_model": "look_after_model",
        "edits": "append_edit apply_edits make_edit merge_edits read_edited_labels read_edits",
    },
    "folds": {
        "folds": "Folds make_folds",
        "folds.check": "check_folds read_fold_file",
        "scores": "Score SplitScore score_answers score_split",
        "ledger": "merge_ledgers note_run read_ledger write_ledger",
        "trust": "trust",
        "shakeup.of_runs": "shakeup_of_runs",
    },
    "train": {
        "train.config": "ModelConfig OptimConfig TrainConfig",
        "experiment": "compose_experiment",
        "train.crossval": "train_run",
        "train.everything": "train_everything",
        "train.lr_find": "find_lr",
        "train.weights": "pack_weights",
        "train.checkpoint": "CheckpointInfo load_checkpoint save_checkpoint",
        "runs": "Run read_run",
        "sweep": "run_sweep",
        "baseline": "check_baseline record_baseline",
    },
    "blend": {
        "predictions": "Predictions",
        "blending": "Budget blend_pool fit_blend",
        "blending.pool": "Pool join_predictions make_pool",
        "blending.costs": "Costs measure_costs read_costs",
        "blending.soup": "make_soup",
        "blending.tables": "format_steps",
        "blending.report": "write_blend_report",
        "ensemble": "Blend blend_predictions equal_blend load_blend save_blend",
        "decision": "Decision HeadRule",
        "decision_fitting": "fit_decision",
    },
    "export": {
        "export.bundle": "export_runs write_bundle",
        "export.adopt": "adopt_modules adopt_onnx",
        "export.reading": "Reading",
        "runtime.bundle": "Bundle Member open_bundle",
        "runtime.verify": "verify_bundle",
    },
    "kernel": {
        "runtime.predictor": "Predictor",
        "runtime.submitting": "predict_submission",
        "runtime.supervise": "submit",
        "runtime.bench": "bench_bundle format_bench save_costs",
        "runtime.engines": "query_gpus",
        "runtime.tensorrt": "build_engines",
        "runtime.mounts": "find_bundle find_competition find_engines",
        "runtime.progress": "print_line",
        "runtime.wheels": "install_attached",
        "submission": "read_submission score_submission validate_submission write_submission",
    },
    "kaggle": {
        "platform.doctor": "examine",
        "platform.hidden": "make_hidden",
        "platform.rehearse": "rehearse",
        "platform.projection": "project",
        "platform.wheelhouse": "build_wheelhouse",
        "platform.kernels": "check_kernel new_kernel push_kernel",
        "platform.publish": "publish",
        "platform.competition_submit": "submit_kernel",
        "platform.training": "train_attached",
    },
}
LISTED = {
    f"kaggle_kit.{module}.{name}"
    for modules in STAGES.values()
    for module, names in modules.items()
    for name in names.split()
}
PROMISED = {
    f"{module}.{name}"
    for page in sorted((ROOT / "docs").glob("*.md"))
    for module, names in re.findall(r"^::: (\S+)\n +options:\n +members: \[(.*)\]$", page.read_text("utf-8"), re.M)
    for name in names.split(", ")
}
EXPORTED = {
    "kaggle_kit": "__version__",
    "kaggle_kit.edits": "Action Contradiction Edit Effective FollowedFile Subject append_edit append_edits apply_edits "
    "describe_edits edits_from_text edits_in_force edits_key edits_that_hold effective is_about make_edit merge_edits "
    "parse_edit read_edited_labels read_edits write_edits",
    "kaggle_kit.sources": "Chunk JoinedSource OnBroken PackedSource Source check_ids check_root fixed_shape "
    "image_folder listed_ids open_source read_images resolve_stored",
}


def find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def scripts() -> Iterator[tuple[str, str]]:
    """Yield the Python that users are shown: kernels, notebooks, and the blocks of pages and READMEs."""
    for path in sorted((ROOT / "kernels").glob("*/*.py")):
        yield path.parent.name, path.read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.name, "\n".join(line for line in "\n".join(code).splitlines() if line[:1] not in "!%")
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "datasets").glob("*/*.md")),
    ):
        imports = re.findall(r"^ *(from kaggle_kit\S* import .*)$", path.read_text("utf-8"), re.M)
        yield str(path.relative_to(ROOT)), "\n".join(imports)


def imported(code: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    return {
        f"{node.module}.{alias.name}"
        for node in nodes
        if (node.module or "").startswith("kaggle_kit.")
        for alias in node.names
    }


def functions(path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield a function; of a class its public methods, and how it is made where no dataclass or protocol says so."""
    found = find(path)
    if not inspect.isclass(found):
        yield path, inspect.unwrap(found)
        return
    said = dataclasses.is_dataclass(found) or getattr(found, "_is_protocol", False)
    for name, member in vars(found).items():
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(plain) and (not name.startswith("_") or (name == "__init__" and not said)):
            yield f"{path}.{name}", plain


def raises_itself(function: Callable[..., Any]) -> bool:
    """Whether a function's own body raises an error that a user can mend."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    raised = [function.__globals__.get(ast.unparse(call.func)) for call in calls]
    return any(inspect.isclass(one) and issubclass(one, KitError) for one in raised)


def check_function(name: str, function: Callable[..., Any]) -> None:
    """Assert that a function is typed, and that its docstring says what goes in and what goes wrong."""
    signature, described = inspect.signature(function), inspect.getdoc(function) or ""
    asked = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    assert [one.name for one in asked if one.annotation is one.empty] == [], f"{name} has arguments without a type"
    assert signature.return_annotation is not signature.empty, f"{name} does not say what type it returns"
    assert described or (name.endswith("__init__") and len(asked) < 3), f"{name} has no docstring"
    if len(asked) > 2 and "see `" not in described:  # fewer are told by their names and types
        untold = [one.name for one in asked if f"\n    {one.name}: " not in described]
        assert untold == [], f"{name} does not tell its arguments {untold}"
    assert "Raises:" in described or not raises_itself(function), f"{name} does not say what it raises"


@pytest.mark.parametrize(("source", "code"), list(scripts()))
def test_what_users_are_shown_is_listed_here(source: str, code: str) -> None:
    commands = {"kaggle_kit.cli.main"}  # run in a notebook as in a shell
    assert imported(code) - LISTED - commands == set(), source


def test_what_is_listed_here_is_on_a_page() -> None:
    assert {path.rpartition(".")[2] for path in LISTED} <= {path.rpartition(".")[2] for path in PROMISED}


@pytest.mark.parametrize("path", sorted(LISTED | PROMISED))
def test_a_public_name_is_there_documented_and_typed(path: str) -> None:
    found = find(path)
    described = inspect.getdoc(found) or ""
    assert described
    if dataclasses.is_dataclass(found) and len(dataclasses.fields(found)) > 4:
        assert [one.name for one in dataclasses.fields(found) if f"{one.name}: " not in described] == []
    for name, function in functions(path):
        check_function(name, function)


def test_packages_export_what_is_listed_and_nothing_else() -> None:
    exporting = {}
    for path in sorted(PACKAGE.rglob("__init__.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                name = ".".join(("kaggle_kit", *path.parent.relative_to(PACKAGE).parts))
                exporting[name] = set(ast.literal_eval(node.value))
    assert exporting == {name: set(names.split()) for name, names in EXPORTED.items()}
