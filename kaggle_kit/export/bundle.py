"""Runs and their blend to one bundle, shipped only when it reproduces what was chosen."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kaggle_kit.blending.joining import order_labels
from kaggle_kit.ensemble import Blend, blend_predictions, blend_probs, mean_probs
from kaggle_kit.errors import BundleError, ExportError
from kaggle_kit.export.blended import blended_runs, check_blended, common_task, shared_oofs
from kaggle_kit.export.gate import check_change, measure_change
from kaggle_kit.export.golden import write_golden
from kaggle_kit.export.listing import check_same_runs, naming_output, read_members, write_members
from kaggle_kit.export.members import Exported, Plan, export_members, refused_by_tensorrt, temperatures_of
from kaggle_kit.export.onnx import compare, run_onnx
from kaggle_kit.export.sampling import packed_source, rows_in, sampled_ids, spread
from kaggle_kit.export.stored import advise
from kaggle_kit.export.timing import BATCH, machine_name, time_graphs
from kaggle_kit.export.variant import Variant
from kaggle_kit.files import replacing_folder
from kaggle_kit.labels import Labels, class_shares
from kaggle_kit.metrics import gain
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Predictions, concatenate
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import (
    FUSED,
    Bundle,
    Change,
    Fused,
    Golden,
    Member,
    Parity,
    bundle_files,
    check_blend,
    file_sha256,
    open_bundle,
    write_manifest,
)
from kaggle_kit.scores import score_answers
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import Text
from kaggle_kit.task import Task, refuse_multilabel

PARITY_ROWS = 2000
FUSED_ROWS = 256  # beside the golden images
SCORE_TOLERANCE = 0.01


def write_bundle(
    runs: Sequence[Run],
    blend: Blend,
    out: Path,
    *,
    variant: Variant | None = None,
    fused: bool = False,
    parity_rows: int | None = PARITY_ROWS,
) -> Bundle:
    """Export every fold model of the blend's runs into one bundle.

    Args:
        runs: The runs that the blend was made from, trained folds and all. Those it does not use are not exported;
            they tell which images it was fitted on, where it was made from those that all of them predict.
        blend: The running order, and what becomes of the runs.
        out: The bundle's folder; a bundle that is there is replaced.
        variant: How members answer; None: as their runs do.
        fused: Whether all members and their blend are put into one more graph, which reads an image once.
        parity_rows: Out-of-fold rows of each fold on which members are compared with torch, and the blend with the
            runs' own predictions; None: all.

    Returns:
        The bundle, opened again from disk.

    Raises:
        BundleError: When runs do not fit together, `out` holds something else, or the bundle's score differs.
        SettingError: When the blend corrects for class shares and a head is multi-label, or the variant does not suit
            the runs.
        ExportError: When a member cannot be exported, gives other results, or does not pass the gate; or when the disk
            is full.
    """
    with naming_output(out):
        return _write_bundle(runs, blend, out, variant=variant or Variant(), fused=fused, parity_rows=parity_rows)


def export_runs(
    runs: Sequence[Run],
    out: Path,
    *,
    variant: Variant | None = None,
    blend: Blend | None = None,
    parity_rows: int | None = PARITY_ROWS,
) -> list[Member]:
    """Export every fold model of some runs to a folder of .onnx files, each compared with torch; no bundle yet.

    Args:
        runs: Trained folds and all.
        out: The folder; files of an earlier export of these runs are replaced, as its `members.json` names them.
        variant: How members answer; None: as their runs do.
        blend: Gives the temperatures that are put into the graphs, and must have been fitted on these runs; None: none.
        parity_rows: Out-of-fold rows on which each member is compared with torch; None: all.

    Raises:
        ExportError: When a member cannot be exported, gives other results, or does not pass the gate; when `out` holds
            something else, or exports of other runs; or when the disk is full.
        BundleError: When the blend does not name a run, or was fitted on other predictions of it.
        SettingError: When the variant does not suit the runs.
    """
    with naming_output(out):
        return _export_runs(runs, out, variant=variant or Variant(), blend=blend, parity_rows=parity_rows)


def _write_bundle(
    runs: Sequence[Run], blend: Blend, out: Path, *, variant: Variant, fused: bool, parity_rows: int | None
) -> Bundle:
    chosen = blended_runs(runs, blend)
    task, columns = common_task(chosen, blend)
    if blend.prior_shift:
        refuse_multilabel(task, "correcting for class shares", "blend without --prior-shift")
    check_blend(blend, task, [run.name for run in chosen])
    labels = order_labels(chosen[0].labels(), list(task.heads), columns[chosen[0].name])
    oofs = shared_oofs(chosen, blend, columns=columns, others=[run for run in runs if run.name not in blend.runs])
    oof_score = _oof_score(task, blend, blend_predictions(blend, oofs), labels)
    sampled = sampled_ids(chosen, oofs, parity_rows)
    plan = Plan(variant=variant, rows=parity_rows, sampled=sampled, columns=columns, plainly_too=blend.runs[0])
    with replacing_folder(out, bundle_files(out), what="bundle", error=BundleError) as folder:
        exported = export_members(chosen, folder, plan)
        compared = {name: oof.align(sampled) for name, oof in oofs.items()}
        change = _check_reproduced(task, blend, exported, compared, labels, variant)
        files = {run.name: [one.member.file for one in exported if one.member.run == run.name] for run in chosen}
        golden = write_golden(chosen[0], folder, files, labels, precision=variant.precision)
        # a lower precision rounds otherwise where one graph joins what several do apart; golden images are enough there
        more = spread(sampled, FUSED_ROWS if variant.precision == "fp32" else 0)
        graph = _fuse(task, blend, folder, files, golden, packed_source(chosen[0]), more) if fused else None
        members, whole = _timed(folder, [one.member for one in exported], graph, golden.images)
        bundle = Bundle(
            folder=folder,
            task=task,
            members=tuple(members),
            blend=blend,
            priors={name: tuple(class_shares(labels.classes[name], head)) for name, head in task.heads.items()},
            oof_score=oof_score,
            fused=whole,
            change=change,
            seconds_on=machine_name(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        )
        write_manifest(bundle)
    return open_bundle(out)


def _export_runs(
    runs: Sequence[Run], out: Path, *, variant: Variant, blend: Blend | None, parity_rows: int | None
) -> list[Member]:
    if blend:
        check_blended(runs, blend)
    earlier = read_members(out)
    check_same_runs(earlier, runs, out)
    plan = Plan(variant=variant, rows=parity_rows, temperatures=temperatures_of(blend) if blend else {})
    with replacing_folder(out, earlier.files, what="folder of exports", error=ExportError) as folder:
        members = [one.member for one in export_members(runs, folder, plan)]
        timed: list[Member] = []
        for run in runs:
            images = packed_source(run).take(np.arange(BATCH) % len(packed_source(run)))
            timed += _timed(folder, [member for member in members if member.run == run.name], None, images)[0]
        write_members(folder, timed)
        return timed


def _check_reproduced(
    task: Task,
    blend: Blend,
    exported: Sequence[Exported],
    oofs: Mapping[str, Predictions],
    labels: Labels,
    variant: Variant,
) -> Change | None:
    """Refuse a bundle that decides otherwise than the stored out-of-fold predictions `oofs` of the sampled rows.

    For runs trained on everything, which hold no rows out, the stored predictions stand on both sides.

    Returns:
        What changes; None where all runs were trained on everything.
    """
    said = {name: [one.said for one in exported if one.member.run == name] for name in oofs}
    held_out = [one.member.run for one in exported if one.member.fold != EVERYTHING]
    if not held_out:
        return None
    oof = blend_predictions(blend, oofs)
    if not len(oof):
        raise BundleError("no image that the runs predict is in a fold; oof.npz and folds do not belong together")
    again = blend_predictions(
        blend, {n: concatenate(said[n]).align(oof.ids) if n in held_out else oofs[n] for n in oofs}
    )
    change = measure_change(task, labels.align(oof.ids), oof.probs, again.probs, decision=blend.decision)
    otherwise = any(one.otherwise for one in exported)
    check_change(
        change,
        variant.against_stored(otherwise=otherwise),
        what="the exported blend, compared with the runs' oof.npz,",
        repair=advise(*dict.fromkeys(held_out))
        if variant.precision == "fp32" and not otherwise
        else "export as the runs were validated, or allow more with --max-changed and --max-drop",
    )
    return change


def _oof_score(task: Task, blend: Blend, oof: Predictions, labels: Labels) -> float:
    """Return the score the blend was chosen by, or its score where nothing was fitted; refuse a score it has not."""
    decision = blend.decision
    answers = oof.probs if decision.is_plain else decision.decide(oof.probs, multilabel=task.multilabel_heads)
    found = score_answers(task, labels.align(oof.ids).classes, answers).total
    if blend.score is None:
        return found
    if gain(task.metric, blend.score.total, found) > SCORE_TOLERANCE:  # rules score higher on their own rows
        raise BundleError(
            f"the blend claims {task.metric} {blend.score.total:.4f} out of fold, and scores {found:.4f}; make it "
            "again with `kaggle-kit blend`"
        )
    return blend.score.total


def _fuse(
    task: Task,
    blend: Blend,
    folder: Path,
    files: Mapping[str, Sequence[str]],
    golden: Golden,
    source: PackedSource,
    more: Text,
) -> Fused:
    """Put members and blend into one graph, and compare it with them on the golden images and on `more` of a source."""
    from kaggle_kit.export.fused import (
        fuse_members,  # which needs onnxscript's onnx_ir, whose lack export_onnx explains
    )

    path, many = folder / FUSED, task.multilabel_heads
    fuse_members({name: [folder / file for file in own] for name, own in files.items()}, blend, task, path)
    answers = [(list(golden.probs.values()), OnnxSession(path, device="cpu").run(golden.images))]
    if len(more):
        rows = rows_in(more, source)
        apart = [mean_probs([run_onnx(folder / file, source, rows) for file in own]) for own in files.values()]
        answers.append((apart, run_onnx(path, source, rows)))
    parts = [
        compare(blend_probs(blend, said, multilabel=many), found, multilabel=many, name=path.name)
        for said, found in answers
    ]
    parity = Parity(
        rows=sum(part.rows for part in parts),
        max_abs_diff=max(part.max_abs_diff for part in parts),
        decisions_changed=sum(part.decisions_changed for part in parts),
    )
    return Fused(file=path.name, parity=parity, no_tensorrt=refused_by_tensorrt(path))


def _timed(
    folder: Path, members: Sequence[Member], fused: Fused | None, images: Image
) -> tuple[list[Member], Fused | None]:
    """Return members and fused graph with what an image takes in each, measured side by side."""
    files = [member.file for member in members] + ([fused.file] if fused else [])
    seconds = time_graphs([folder / file for file in files], images)
    timed = [replace(member, seconds=seconds[member.file]) for member in members]
    return timed, replace(fused, seconds=seconds[fused.file]) if fused else None
