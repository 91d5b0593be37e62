"""Fold models to .onnx files: each compared with torch, with what its run stored, and gated where it computes less."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import BundleError, SettingError, some_of
from kaggle_kit.export.adopt import adopted_hash, check_adopted
from kaggle_kit.export.gate import check_change, measure_change
from kaggle_kit.export.graph import Columns, ExportGraph
from kaggle_kit.export.lowering import Lowered, lower_precision
from kaggle_kit.export.onnx import export_onnx, measure_parity, rerun, run_onnx, write_model
from kaggle_kit.export.sampling import packed_source, parity_ids, rows_in
from kaggle_kit.export.stored import against_stored, check_checkpoint, check_stored, labels_of
from kaggle_kit.export.tensorrt import unsupported_operators
from kaggle_kit.export.variant import Variant
from kaggle_kit.export.wrapping import reorder_outputs
from kaggle_kit.labels import Labels
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.runtime.bundle import Change, Member, Parity
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import Text
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.heads import derivation_of
from kaggle_kit.train.model import Network


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is exported, and what it is measured on.

    Attributes:
        variant: How members answer.
        rows: Images of each member's fold that it is measured on; None: all.
        sampled: Ids that members of all runs are measured on, where they validate them.
        columns: {run: its own column of each class}, of runs whose classes come out in another order.
        temperatures: {run: {head: what logits are divided by}}.
        plainly_too: The run whose members are exported without views too, for when there is no time for them; empty:
            none.
    """

    variant: Variant = field(default_factory=Variant)
    rows: int | None = None
    sampled: Text = field(default_factory=lambda: np.zeros(0, np.str_))
    columns: Mapping[str, Columns] = field(default_factory=dict)
    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    plainly_too: str = ""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A member, and what it says of rows whose truth is known.

    Attributes:
        member: The member.
        said: Of rows of its fold, in the precision that it is shipped in.
        plainly: Of the same rows, in full precision.
        usually: What its network says of them as it was validated: without views, derived heads and temperatures.
        otherwise: Whether it is meant to answer otherwise than its run did, whatever the precision.
    """

    member: Member
    said: Predictions
    plainly: Predictions
    usually: Predictions
    otherwise: bool = False


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
    _check_runs(runs, plan)
    exported = []
    with progress_bar(sum(len(run.folds) for run in runs), "export", unit="member") as bar:
        for run in runs:
            own = []
            for fold in sorted(run.folds):
                bar.set_postfix_str(f"{run.name} {_part_name(fold)}")
                own.append(_export_member(run, fold, folder, plan))
                bar.update()
            check_stored(
                run,
                {one.member.fold: one.plainly for one in own},
                {one.member.fold: one.usually for one in own},
                plan.columns.get(run.name, {}),
                variant=plan.variant,
                otherwise=own[0].otherwise,
            )
            exported += own
    return exported


def temperatures_of(blend: Blend) -> dict[str, dict[str, float]]:
    """Return {run: {head: temperature}} of the runs that a blend calibrates."""
    found: dict[str, dict[str, float]] = {name: {} for name in blend.runs}
    for head, mix in blend.whole.heads.items():
        for name, temperature in zip(blend.runs, mix.temperatures, strict=False):
            found[name][head] = temperature
    return found


def _check_runs(runs: Sequence[Run], plan: Plan) -> None:
    """Refuse, before any work, runs that cannot be exported together, or not as they are asked to be."""
    names = [_plain_name(run) for run in runs]
    twice = [run.name for run, name in zip(runs, names, strict=True) if names.count(name) > 1]
    if twice:
        raise BundleError(
            f"the names of runs {twice} come to one file name; give each run once, or rename a folder (signs other "
            "than letters, digits, '_', '.' and '-' are lost)"
        )
    head = plan.variant.derive_from
    if head and not any(head in run.task.auxiliary for run in runs):
        known = some_of(sorted({name for run in runs for name in run.task.auxiliary})) or "none"
        raise SettingError(
            f"no run was trained with an auxiliary head {head!r} (found: {known}); leave --derive out, or train "
            "with it under the task's `auxiliary`"
        )
    for run in runs:
        if run.is_adopted and plan.temperatures.get(run.name):
            raise SettingError(f"run {run.name!r} was adopted, and its graph takes no temperatures; leave --blend out")
        if run.is_adopted and (plan.variant.tta or head):
            raise SettingError(
                f"run {run.name!r} was adopted: its graph cannot be averaged over changed images, nor derived from "
                "another head; leave --tta and --derive out, or export that inside the model"
            )


def _export_member(run: Run, fold: int, folder: Path, plan: Plan) -> Exported:
    source = packed_source(run)
    ids = parity_ids(run, fold, plan.sampled, plan.rows)
    if not len(ids):
        raise BundleError(
            f"fold {fold} of run {run.name!r} holds no images to compare on; its folds.parquet is not its own"
        )
    path = folder / f"member_{_plain_name(run)}_{_part_name(fold)}.onnx"
    make = _copy_adopted if run.is_adopted else _trace
    member, plainly, usually = make(run, fold, path, source, ids, plan)
    derived = member.derived_from not in ("", run.config.model.derive_from)
    if fold == EVERYTHING and (member.tta or derived):
        member = replace(member, stored=_gated_views(run, path, plainly, usually, plan))
    said = plainly
    if plan.variant.precision != "fp32":
        lowered = _lowered(run, path, source, plainly, plan)
        member = replace(member, precision=plan.variant.precision, lowered=lowered.change, kept=lowered.kept)
        said = replace(plainly, probs=lowered.probs)
    if member.tta and run.name == plan.plainly_too:
        member = replace(member, plain=_export_plain(run, fold, path, source, ids, plan))
    member = replace(member, no_tensorrt=refused_by_tensorrt(path))
    otherwise = derived or bool(member.tta or plan.temperatures.get(run.name))
    return Exported(member=member, said=said, plainly=plainly, usually=usually, otherwise=otherwise)


def _lowered(run: Run, path: Path, source: PackedSource, plainly: Predictions, plan: Plan) -> Lowered:
    """Put a graph in the precision asked for, gated by what it changes of what it says in full precision."""
    labels = labels_of(run, plainly.ids, plan.columns.get(run.name, {}))

    def measure(said: Probs, judged: npt.NDArray[np.bool_]) -> Change:
        before = _rows_of(plainly.probs, judged)
        return measure_change(run.task, _part(labels, judged), before, _rows_of(said, judged))

    return lower_precision(path, source, rows_in(plainly.ids, source), variant=plan.variant, measure=measure)


def _export_plain(run: Run, fold: int, beside: Path, source: PackedSource, ids: Text, plan: Plan) -> str:
    """Export a member without its views, compared and gated as members are, and return its file's name."""
    path = beside.with_name(f"{beside.stem}_plain.onnx")
    network, _ = load_checkpoint(run.checkpoint(fold))
    graph = _graph(run, network, plan, tta=())
    export_onnx(graph, path, shape=source.shape)
    _, probs = measure_parity(graph, path, source, rows_in(ids, source))
    if plan.variant.precision != "fp32":
        said = Predictions(ids=ids, probs=probs, multilabel=run.task.multilabel_heads)
        _lowered(run, path, source, said, plan)
    return path.name


def _graph(run: Run, network: Network, plan: Plan, *, tta: Sequence[str]) -> ExportGraph:
    derive_from = plan.variant.derive_from if plan.variant.derive_from in run.task.auxiliary else ""
    return ExportGraph(
        network,
        columns=plan.columns.get(run.name, {}),
        tta=tta,
        derive_from=derive_from,
        derivation=derivation_of(run.task, run.labels(), derive_from) if derive_from else None,
        temperatures=plan.temperatures.get(run.name),
    )


def refused_by_tensorrt(path: Path) -> tuple[str, ...]:
    """Return what TensorRT's parser would refuse in a graph, and why."""
    refused = unsupported_operators(onnx.load(path, load_external_data=False))
    return tuple(f"{name}: {why}" for name, why in refused.items())


def _trace(
    run: Run, fold: int, path: Path, source: PackedSource, ids: Text, plan: Plan
) -> tuple[Member, Predictions, Predictions]:
    """Export a checkpoint; return the member, what it says in full precision, and what its network usually says."""
    network, info = load_checkpoint(run.checkpoint(fold))
    check_checkpoint(run, fold, info)
    columns, rows = plan.columns.get(run.name, {}), rows_in(ids, source)
    graph = _graph(run, network, plan, tta=plan.variant.tta)
    export_onnx(graph, path, shape=source.shape)
    parity, probs = measure_parity(graph, path, source, rows)
    said = Predictions(ids=ids, probs=probs, multilabel=run.task.multilabel_heads)
    usually = said
    if plan.variant.tta or graph.derive_from or plan.temperatures.get(run.name):
        usually = replace(said, probs=rerun(ExportGraph(network, columns=columns), source, rows))
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
        derived_from=graph.derive_from or model.derive_from,
        stored=against_stored(run, fold, said, columns),
    )
    return member, said, usually


def _copy_adopted(
    run: Run, fold: int, path: Path, source: PackedSource, ids: Text, plan: Plan
) -> tuple[Member, Predictions, Predictions]:
    """Take a model from elsewhere as it is; return the member and what it says, twice, for it has no variants."""
    check_adopted(run, fold)
    columns = plan.columns.get(run.name, {})
    write_model(reorder_outputs(onnx.load(run.onnx(fold)), columns), path)
    probs = run_onnx(path, source, rows_in(ids, source))
    said = Predictions(ids=ids, probs=probs, multilabel=run.task.multilabel_heads)
    summary = run.folds[fold].score
    member = Member(
        file=path.name,
        run=run.name,
        fold=fold,
        score=summary.total if summary else run.score.total,
        score_of="fold" if summary else "cross-validation",
        config_hash=adopted_hash(run, fold),
        parity=Parity(rows=0, max_abs_diff=0.0, decisions_changed=0),
        run_id=run.id,
        model=run.config.model.name,
    )
    stored = against_stored(run, fold, said, columns)
    if stored:
        parity = Parity(rows=stored.rows, max_abs_diff=stored.max_abs_diff, decisions_changed=stored.decisions_changed)
        member = replace(member, stored=stored, parity=parity)
    return member, said, said


def _gated_views(run: Run, path: Path, said: Predictions, usually: Predictions, plan: Plan) -> Change:
    """Return what views or a derived head change of a training on everything, which no stored predictions can judge."""
    labels = labels_of(run, said.ids, plan.columns.get(run.name, {}))
    change = measure_change(run.task, labels, usually.probs, said.probs)
    check_change(
        change,
        plan.variant.limits("views"),
        what=f"{path.name}, compared with its network without --tta and --derive on images that it has learned,",
        repair="leave these out, or allow more with --max-drop",
    )
    return change


def _part(labels: Labels, rows: npt.NDArray[np.bool_]) -> Labels:
    return labels.align(labels.ids[rows])


def _rows_of(probs: Probs, rows: npt.NDArray[np.bool_]) -> Probs:
    return {head: values[rows] for head, values in probs.items()}


def _plain_name(run: Run) -> str:
    """Return a run's name in signs that survive an upload to Kaggle, which strips some."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", run.name)


def _part_name(fold: int) -> str:
    return "everything" if fold == EVERYTHING else f"fold{fold}"


def _licence(name: str) -> str:
    """Return what timm states of pretrained weights."""
    import timm

    own = timm.get_pretrained_cfg(name)
    return str(own.license or "") if own else ""
