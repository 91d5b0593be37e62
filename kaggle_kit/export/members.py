"""Fold models to .onnx files: each compared with torch, with what its run stored, and gated where it computes less."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from kaggle_kit.blending.joining import order_labels
from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import BundleError, ExportError, SettingError, some_of
from kaggle_kit.export.gate import check_change, measure_change, refusal
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.half import half_candidates
from kaggle_kit.export.int8 import int8_candidates
from kaggle_kit.export.onnx import Columns, export_onnx, measure_parity, run_onnx, write_model
from kaggle_kit.export.sampling import packed_source, parity_ids, rows_in, spread
from kaggle_kit.export.tensorrt import unsupported_operators
from kaggle_kit.export.variant import Variant
from kaggle_kit.export.wrapping import reorder_outputs
from kaggle_kit.labels import Classes
from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Predictions, Probs, concatenate, take_columns
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import Change, Member, Parity
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import Text
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.heads import derivation_of

CALIBRATION_IMAGES = 128  # that show a lower precision what to expect, beside those it is judged on
_TIMED_IMAGES, _TIMED_S = 32, 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is exported, and what it is measured on.

    Attributes:
        variant: How members answer.
        rows: Images of each member's fold that it is measured on; None: all.
        sampled: Ids that members of all runs are measured on, where they validate them.
        columns: {run: its own column of each class}, of runs whose classes come out in another order.
        temperatures: {run: {head: what logits are divided by}}.
    """

    variant: Variant = field(default_factory=Variant)
    rows: int | None = None
    sampled: Text = field(default_factory=lambda: np.zeros(0, np.str_))
    columns: Mapping[str, Columns] = field(default_factory=dict)
    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A member, and what it says of rows whose truth is known.

    Attributes:
        member: The member.
        said: Of rows of its fold, in the precision that it is shipped in.
    """

    member: Member
    said: Predictions


def export_members(runs: Sequence[Run], folder: Path, plan: Plan) -> list[Exported]:
    """Export every fold model of some runs, and check each run against its stored predictions.

    Args:
        runs: Trained folds and all, or adopted.
        folder: Gets one .onnx file a fold model.
        plan: How.

    Raises:
        BundleError: When images or files are missing, or two runs' names come to the same file name.
        ExportError: When a member cannot be exported, or gives other results than it may.
        SettingError: When probabilities are to be derived from a head that no run was trained with.
    """
    if len({_plain_name(run) for run in runs}) < len(runs):
        raise BundleError(f"runs {[run.name for run in runs]} differ only in signs that file names lose; rename one")
    head = plan.variant.derive_from
    if head and not any(head in run.task.auxiliary for run in runs):
        known = some_of(sorted({name for run in runs for name in run.task.auxiliary})) or "none"
        raise SettingError(f"no run was trained with an auxiliary head {head!r} (found: {known}); leave --derive out")
    exported = []
    with progress_bar(sum(len(run.folds) for run in runs), "export", unit="member") as bar:
        for run in runs:
            own = []
            for fold in sorted(run.folds):
                own.append(_export_member(run, fold, folder, plan))
                bar.update()
            _check_stored(run, own, plan)
            exported += own
    return exported


def temperatures_of(blend: Blend) -> dict[str, dict[str, float]]:
    """Return {run: {head: temperature}} of the runs that a blend calibrates."""
    found: dict[str, dict[str, float]] = {name: {} for name in blend.runs}
    for head, mix in blend.whole.heads.items():
        for name, temperature in zip(blend.runs, mix.temperatures, strict=False):
            found[name][head] = temperature
    return found


def machine_name() -> str:
    """Return what members' seconds are measured on."""
    import onnxruntime

    return f"{platform.machine()} CPU, {num_cores()} core(s), onnxruntime {onnxruntime.__version__}"


def _export_member(run: Run, fold: int, folder: Path, plan: Plan) -> Exported:
    source = packed_source(run)
    ids = parity_ids(run, fold, plan.sampled, plan.rows)
    if not len(ids):
        raise BundleError(
            f"fold {fold} of run {run.name!r} holds no images to compare on; its folds.parquet is not its own"
        )
    part = "everything" if fold == EVERYTHING else f"fold{fold}"
    path = folder / f"member_{_plain_name(run)}_{part}.onnx"
    make = _copy_adopted if run.is_adopted else _trace
    member, probs = make(run, fold, path, source, ids, plan)
    if plan.variant.precision != "fp32":
        lowered, probs = _lower(run, path, source, ids, probs, plan)
        member = replace(member, precision=plan.variant.precision, lowered=lowered)
    timed = source.take(spread(np.arange(len(source)), _TIMED_IMAGES))
    refused = unsupported_operators(onnx.load(path, load_external_data=False))
    member = replace(
        member,
        seconds=seconds_an_image(path, timed),
        no_tensorrt=tuple(f"{name}: {why}" for name, why in refused.items()),
    )
    return Exported(member=member, said=Predictions(ids=ids, probs=probs, multilabel=run.task.multilabel_heads))


def _trace(run: Run, fold: int, path: Path, source: PackedSource, ids: Text, plan: Plan) -> tuple[Member, Probs]:
    """Export a checkpoint, and return the member with what it says of these images in full precision."""
    network, info = load_checkpoint(run.checkpoint(fold))
    if info.task != run.task:
        raise ExportError(f"{run.checkpoint(fold)} was trained for another task than {run.folder / 'run.json'} says")
    derive_from = plan.variant.derive_from if plan.variant.derive_from in run.task.auxiliary else ""
    graph = ExportGraph(
        network,
        columns=plan.columns.get(run.name),
        tta=plan.variant.tta,
        derive_from=derive_from,
        derivation=derivation_of(run.task, run.labels(), derive_from) if derive_from else None,
        temperatures=plan.temperatures.get(run.name),
    )
    export_onnx(graph, path, shape=source.shape)
    parity, probs = measure_parity(graph, path, source, rows_in(ids, source))
    model = info.config.model
    member = Member(
        file=path.name,
        run=run.name,
        fold=fold,
        score=info.score.total if info.score else run.score.total,
        score_of="fold" if info.score else "cross-validation",
        config_hash=info.config_hash,
        parity=parity,
        run_id=run.id,
        model=model.name,
        licence=_licence(model.name) if model.pretrained else "",
        kit_version=info.kit_version,
        tta=plan.variant.tta,
        derived_from=derive_from or model.derive_from,
        stored=_against_stored(run, fold, ids, probs, plan),
    )
    return member, probs


def _copy_adopted(run: Run, fold: int, path: Path, source: PackedSource, ids: Text, plan: Plan) -> tuple[Member, Probs]:
    """Take a model from elsewhere as it is, and return the member with what it says of these images."""
    if plan.temperatures.get(run.name):
        raise SettingError(f"run {run.name!r} was adopted, and its graph takes no temperatures; leave --blend out")
    if plan.variant.tta or plan.variant.derive_from:
        raise SettingError(
            f"run {run.name!r} was adopted: its graph cannot be averaged over changed images, nor derived from another "
            "head; leave --tta and --derive out, or export that inside the model"
        )
    write_model(reorder_outputs(onnx.load(run.onnx(fold)), plan.columns.get(run.name, {})), path)
    probs = run_onnx(path, source, rows_in(ids, source))
    summary = run.folds[fold].score
    member = Member(
        file=path.name,
        run=run.name,
        fold=fold,
        score=summary.total if summary else run.score.total,
        score_of="fold" if summary else "cross-validation",
        config_hash="",
        parity=Parity(rows=0, max_abs_diff=0.0, decisions_changed=0),
        run_id=run.id,
        model=run.config.model.name,
    )
    stored = _against_stored(run, fold, ids, probs, plan)
    if stored:
        parity = Parity(
            rows=stored.rows, max_abs_diff=stored.max_abs_diff, decisions_changed=round(stored.decisions_changed)
        )
        member = replace(member, stored=stored, parity=parity)
    return member, probs


def _against_stored(run: Run, fold: int, ids: Text, probs: Probs, plan: Plan) -> Change | None:
    """Return what these probabilities change against the run's stored ones; None where it stores none of them."""
    oof = run.oof()
    known = np.isin(ids, oof.ids)
    if fold == EVERYTHING or not known.any():
        return None
    stored = take_columns(oof.align(ids[known]).probs, plan.columns.get(run.name, {}))
    own = {head: values[known] for head, values in probs.items()}
    return measure_change(run.task, _truth(run, ids[known], plan), stored, own)


def _truth(run: Run, ids: Text, plan: Plan) -> Classes:
    return order_labels(run.labels(), list(run.task.heads), plan.columns.get(run.name, {})).align(ids).classes


def _lower(run: Run, path: Path, source: PackedSource, ids: Text, probs: Probs, plan: Plan) -> tuple[Change, Probs]:
    """Replace a member's file by the boldest form of lower precision that passes the gate.

    Returns:
        What that changes, and what it says of these images where it is meant to run.
    """
    precision = plan.variant.precision
    assert precision != "fp32"
    limits, rows = plan.variant.limits(precision), rows_in(ids, source)
    others = np.setdiff1d(np.flatnonzero(~np.isin(source.ids, list(source.broken))), rows)
    images = source.take(spread(others if len(others) else rows, CALIBRATION_IMAGES))
    make = half_candidates if precision == "fp16" else int8_candidates
    truth, change = _truth(run, ids, plan), None
    for candidate in make(onnx.load(path), images):
        said = run_onnx(candidate.emulated.SerializeToString(), source, rows)
        change = measure_change(run.task, truth, probs, said)
        if not refusal(change, limits):
            write_model(candidate.model, path)
            return change, said
    assert change is not None
    check_change(
        change,
        limits,
        what=f"{path.name} in {precision}",
        repair="ship fp32, or allow more with --max-changed and --max-drop",
    )
    raise AssertionError("refused changes do not pass")


def _check_stored(run: Run, exported: Sequence[Exported], plan: Plan) -> None:
    """Refuse members that answer otherwise than the run's stored predictions, beyond what half precision explains."""
    held_out = [one for one in exported if one.member.fold != EVERYTHING]
    if not held_out:
        return
    said = concatenate([one.said for one in held_out])
    change = _against_stored(run, held_out[0].member.fold, said.ids, said.probs, plan)
    calibrated = bool(plan.temperatures.get(run.name))
    if change:
        check_change(
            change,
            plan.variant.against_stored(calibrated=calibrated),
            what=f"run {run.name!r}, compared with its oof.npz,",
            repair="its checkpoints and oof.npz do not belong together, train again"
            if plan.variant.is_plain and not calibrated
            else "export it as it was validated, or allow more with --max-drop",
        )


def _plain_name(run: Run) -> str:
    """Return a run's name in signs that survive an upload to Kaggle, which strips some."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", run.name)


def _licence(name: str) -> str:
    """Return what timm states of pretrained weights."""
    import timm

    own = timm.get_pretrained_cfg(name)
    return str(own.license or "") if own else ""


def seconds_an_image(path: Path, images: Image) -> float:
    """Return what an image takes on this CPU, the fastest of several batches of (B, H, W, C) stored images."""
    session = OnnxSession(path, device="cpu")
    batch = images[:_TIMED_IMAGES]
    times: list[float] = []
    while len(times) < 2 or sum(times) < _TIMED_S:
        started = time.perf_counter()
        session.run(batch)
        times.append(time.perf_counter() - started)
    return min(times) / len(batch)
