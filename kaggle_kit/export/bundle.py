"""Runs and their blend to one bundle, shipped only when it reproduces what was chosen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.joining import describe_differences, match_classes, order_classes, order_labels
from kaggle_kit.ensemble import Blend, blend_predictions, mean_probs
from kaggle_kit.errors import BundleError, DataError, ExportError, SettingError
from kaggle_kit.export.onnx import Columns, export_onnx, measure_parity
from kaggle_kit.files import check_replaceable, replacing_folder
from kaggle_kit.labels import Labels, class_shares
from kaggle_kit.metrics import gain
from kaggle_kit.pixels import encode_png
from kaggle_kit.predictions import Predictions, Probs, concatenate, take_columns
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import (
    Bundle,
    Golden,
    Member,
    bundle_files,
    check_blend,
    file_sha256,
    open_bundle,
    save_golden,
    write_manifest,
)
from kaggle_kit.scores import Answers, score_answers
from kaggle_kit.sources import PackedSource, Source, open_source
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task, refuse_multilabel
from kaggle_kit.train.checkpoint import load_checkpoint

T = TypeVar("T", bound=np.generic)

PARITY_ROWS = 500
NUM_GOLDEN = 16
SCORE_TOLERANCE = 0.01
CHANGED_SHARE = 0.005  # of decisions; GPUs round convolutions otherwise than the CPU that exports


@dataclass(frozen=True, kw_only=True)
class _Exported:
    """A member and what it says of out-of-fold rows of its fold, among them all that are sampled for every run."""

    member: Member
    oof: Predictions


def write_bundle(runs: Sequence[Run], blend: Blend, out: Path, *, parity_rows: int = PARITY_ROWS) -> Bundle:
    """Export every fold model of the blend's runs into one bundle.

    Args:
        runs: The runs that the blend was made from, trained folds and all. Those it does not use are not exported;
            they tell which images it was fitted on, where it was made from those that all of them predict.
        blend: The running order, and what becomes of the runs.
        out: The bundle's folder; a bundle that is there is replaced.
        parity_rows: Out-of-fold rows of each fold on which members are compared with torch, and the blend with the
            runs' own predictions.

    Returns:
        The bundle, opened again from disk.

    Raises:
        BundleError: When runs do not fit together, `out` holds something else, or the bundle's score differs.
        SettingError: When the blend corrects for class shares and a head is multi-label.
        ExportError: When a member cannot be exported or gives other results.
    """
    chosen = _blended_runs(runs, blend)
    task, columns = _common_task(chosen, blend)
    if blend.prior_shift:
        refuse_multilabel(task, "correcting for class shares", "blend without --prior-shift")
    check_blend(blend, task, [run.name for run in chosen])
    labels = order_labels(chosen[0].labels(), list(task.heads), columns[chosen[0].name])
    oofs = _shared_oofs(chosen, blend, columns=columns, others=[run for run in runs if run.name not in blend.runs])
    oof_score = _oof_score(task, blend, blend_predictions(blend, oofs), labels)
    sampled = _sampled_ids(chosen, oofs, parity_rows)
    oofs = {name: oof.align(sampled) for name, oof in oofs.items()}
    with replacing_folder(out, bundle_files(out), what="bundle", error=BundleError) as folder:
        exported = _export_members(chosen, folder, sampled, parity_rows, columns=columns)
        _check_score(task, blend, exported, oofs, labels)
        _write_golden(chosen[0], folder, exported, labels)
        bundle = Bundle(
            folder=folder,
            task=task,
            members=tuple(one.member for one in exported),
            blend=blend,
            priors={name: tuple(class_shares(labels.classes[name], head)) for name, head in task.heads.items()},
            oof_score=oof_score,
            files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        )
        write_manifest(bundle)
    return open_bundle(out)


def export_runs(runs: Sequence[Run], out: Path, *, parity_rows: int = PARITY_ROWS) -> list[Member]:
    """Export every fold model of some runs to a folder of .onnx files, each compared with torch; no bundle yet.

    Args:
        runs: Trained folds and all.
        out: The folder; .onnx files of the same names are replaced.
        parity_rows: Out-of-fold rows on which each member is compared with torch.

    Raises:
        ExportError: When a member cannot be exported or gives other results.
    """
    own = [path.name for path in out.glob("member_*.onnx")]
    check_replaceable(out, own, what="export", error=ExportError)
    out.mkdir(parents=True, exist_ok=True)
    sampled = np.zeros(0, np.str_)  # nothing is compared across runs, which may be of several tasks
    return [one.member for one in _export_members(runs, out, sampled, parity_rows, columns={})]


def _common_task(runs: Sequence[Run], blend: Blend) -> tuple[Task, dict[str, Columns]]:
    """Return the task of a blend's runs, classes in the blend's order, and {run: its own column of each class}.

    What was learned beside the task is left out, which a bundle neither holds nor needs.
    """
    first = runs[0]
    try:
        task = order_classes(first.task.without_auxiliary(), blend.classes)
        columns: dict[str, Columns] = {
            run.name: match_classes((task, run.task), (first.name, run.name)) for run in runs
        }
    except SettingError as error:
        raise BundleError(f"no bundle can hold this blend's runs: {error}") from None
    for run in runs:
        different = describe_differences(task, run.task)
        if different:
            raise BundleError(
                f"the tasks of runs {first.name!r} and {run.name!r} differ in {different}; a bundle holds members of "
                "one task that read the same images: train both on one task file, or blend one of the two"
            )
    return task, columns


def _blended_runs(runs: Sequence[Run], blend: Blend) -> list[Run]:
    """Return the blend's runs in its order, after checking that it was fitted on them as they are."""
    if not runs:
        raise BundleError("no runs were given; name at least one run folder")
    by_name = {run.name: run for run in runs}
    absent = [name for name in blend.runs if name not in by_name]
    if absent:
        raise BundleError(f"the blend counts run {absent[0]!r}, which was not given; give all of {list(blend.runs)}")
    for name in blend.runs:
        if name in blend.oof_hashes and file_sha256(by_name[name].oof_file) != blend.oof_hashes[name]:
            raise BundleError(
                f"the blend was fitted on other out-of-fold predictions of run {name!r}: it was trained again since; "
                "make the blend again with `kaggle-kit blend`"
            )
    return [by_name[name] for name in blend.runs]


def _shared_oofs(
    runs: Sequence[Run], blend: Blend, *, columns: Mapping[str, Columns], others: Sequence[Run]
) -> dict[str, Predictions]:
    """Return the runs' out-of-fold predictions, of a fitted blend those of the images that it was fitted on.

    Args:
        runs: The blend's.
        blend: The blend.
        columns: {run: its own column of each class}.
        others: Runs that the blend may have been made from and does not use.
    """
    oofs = {run.name: run.oof() for run in runs}
    oofs = {n: dataclasses.replace(oof, probs=take_columns(oof.probs, columns[n])) for n, oof in oofs.items()}
    if not (blend.oof_hashes or blend.num_images):
        return oofs
    shared = _common_ids(list(oofs.values()))
    if not len(shared):
        raise BundleError("the runs' folds share no validation images; train them on the same fold file")
    if blend.num_images not in (0, len(shared)):  # then other runs lack some of them
        shared = _common_ids([*oofs.values(), *(run.oof() for run in others)])
        if len(shared) != blend.num_images:
            raise BundleError(
                f"the blend was fitted on {blend.num_images:,} images, and the {len(runs) + len(others)} run(s) given "
                f"share {len(shared):,}; give `kaggle-kit bundle` all runs that `kaggle-kit blend` was given, also "
                "those that it left out, and no others"
            )
    return {name: oof if len(oof) == len(shared) else oof.align(shared) for name, oof in oofs.items()}


def _common_ids(parts: Sequence[Predictions]) -> Text:
    """Return the ids that all parts have, in the order of the first."""
    shared = parts[0].ids
    for part in parts[1:]:
        shared = shared[np.isin(shared, part.ids)]
    return shared


def _sampled_ids(runs: Sequence[Run], oofs: Mapping[str, Predictions], limit: int) -> Text:
    """Return images that all runs predict, at most `limit` of each fold of the first run that holds images out."""
    run = next((run for run in runs if EVERYTHING not in run.folds), runs[0])
    folds, parts = run.fold_table(), [np.zeros(0, np.str_)]
    for fold in range(folds.num_folds):
        ids = folds.ids[folds.fold == fold]
        parts.append(_spread(ids[np.isin(ids, oofs[run.name].ids)], limit))
    return np.concatenate(parts)


def _export_members(
    runs: Sequence[Run], folder: Path, sampled: Text, parity_rows: int, *, columns: Mapping[str, Columns]
) -> list[_Exported]:
    exported = []
    if len({_plain_name(run) for run in runs}) < len(runs):
        raise BundleError(f"runs {[run.name for run in runs]} differ only in signs that file names lose; rename one")
    with progress_bar(sum(len(run.folds) for run in runs), "export", unit="member") as bar:
        for run in runs:
            for fold in sorted(run.folds):
                rows = _parity_ids(run, fold, sampled, parity_rows)
                exported.append(_export_member(run, fold, folder, ids=rows, columns=columns.get(run.name, {})))
                bar.update()
    return exported


def _plain_name(run: Run) -> str:
    """Return a run's name in signs that survive an upload to Kaggle, which strips some."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", run.name)


def _parity_ids(run: Run, fold: int, sampled: Text, limit: int) -> Text:
    """Return images of a member's fold: all that are sampled for every run, and others up to `limit`."""
    folds = run.fold_table()
    own = folds.ids if fold == EVERYTHING else folds.ids[folds.fold == fold]
    shared = np.isin(own, sampled)
    return np.concatenate([own[shared], _spread(own[~shared], max(0, limit - int(shared.sum())))])


def _export_member(run: Run, fold: int, folder: Path, *, ids: Text, columns: Columns) -> _Exported:
    """Export a member, its classes in the order of `columns`, and compare it with torch on these images."""
    network, info = load_checkpoint(run.checkpoint(fold))
    if info.task != run.task:
        raise ExportError(f"{run.checkpoint(fold)} was trained for another task than {run.folder / 'run.json'} says")
    source = _packed(run)
    part = "everything" if fold == EVERYTHING else f"fold{fold}"
    path = folder / f"member_{_plain_name(run)}_{part}.onnx"
    export_onnx(network, path, shape=source.shape, columns=columns)
    parity, probs = measure_parity(network, path, source, _rows(ids, source), columns=columns)
    member = Member(
        file=path.name,
        run=run.name,
        fold=fold,
        score=info.score.total if info.score else None,
        config_hash=info.config_hash,
        parity=parity,
    )
    return _Exported(member=member, oof=Predictions(ids=ids, probs=probs, multilabel=run.task.multilabel_heads))


def _packed(run: Run) -> PackedSource:
    source = PackedSource(run.packed)
    if source.key != run.packed_key:
        raise BundleError(
            f"{run.packed} was packed again from other data or at another size since run {run.name!r} was trained; "
            "train it again, or pack what it was trained on"
        )
    return source


def _check_score(
    task: Task, blend: Blend, exported: Sequence[_Exported], oofs: Mapping[str, Predictions], labels: Labels
) -> None:
    """Refuse a bundle that decides otherwise than the stored out-of-fold predictions `oofs` of the sampled rows.

    For runs trained on everything, which hold no rows out, the stored predictions stand on both sides.
    """
    members = {name: [one.oof for one in exported if one.member.run == name] for name in oofs}
    held_out = [one.member.run for one in exported if one.member.fold != EVERYTHING]
    if not held_out:
        return
    oof = blend_predictions(blend, oofs)
    if not len(oof):
        raise BundleError("no image that the runs predict is in a fold; oof.npz and folds do not belong together")
    again = blend_predictions(
        blend, {n: concatenate(members[n]).align(oof.ids) if n in held_out else oofs[n] for n in oofs}
    )
    truth = labels.align(oof.ids).classes
    many = task.multilabel_heads
    before, after = (blend.decision.decide(part.probs, multilabel=many) for part in (oof, again))
    # of an image's multi-label head, each class is a part of one decision
    changed = sum(float((before[h] != after[h]).reshape(len(oof), -1).mean(axis=1).sum()) for h in task.heads)
    if changed > CHANGED_SHARE * len(oof) * len(task.heads):
        answers: list[Answers] = [after, before]
        if blend.decision.is_plain:  # the only decision of a metric of probabilities, which takes no classes
            answers = [again.probs, oof.probs]
        scores = [score_answers(task, truth, one).total for one in answers]
        raise BundleError(
            f"the exported blend decides {changed:,.0f} of {len(oof) * len(task.heads):,} out-of-fold answers "
            f"otherwise than the runs' oof.npz and scores {scores[0]:.4f}, not {scores[1]:.4f}; "
            "checkpoints and oof.npz do not belong together, train again"
        )


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


def _write_golden(run: Run, folder: Path, exported: Sequence[_Exported], labels: Labels) -> None:
    """Pick images that cover many classes, and record what each run says of them through ONNX."""
    source = _packed(run)
    ids = _golden_ids(labels, source)
    images = np.stack([source.read(row) for row in _rows(ids, source).tolist()])
    originals = _originals(run)
    encoded = tuple(map(encode_png, images)) if originals is None else tuple(_encoded(originals, ids))
    parts: dict[str, list[Probs]] = {}
    for one in exported:
        session = OnnxSession(folder / one.member.file, device="cpu")
        parts.setdefault(one.member.run, []).append(session.run(images))
    probs = {name: mean_probs(members) for name, members in parts.items()}
    save_golden(Golden(encoded=encoded, fitted=originals is None, images=images, probs=probs), folder)


def _golden_ids(labels: Labels, source: PackedSource) -> Text:
    """Return ids that show each head's classes in turn, until there are enough."""
    usable = np.isin(labels.ids, source.ids) & ~np.isin(labels.ids, list(source.broken))
    chosen: dict[int, None] = {}
    for classes in labels.classes.values():
        if classes.ndim == 2:
            first = (classes.astype(bool) & usable[:, None]).argmax(axis=0)
        else:
            _, first = np.unique(np.where(usable, classes, -1), return_index=True)
        chosen |= dict.fromkeys(row for row in first.tolist() if usable[row])
    return labels.ids[_spread(np.array(list(chosen), np.int64), NUM_GOLDEN)]


def _originals(run: Run) -> Source | None:
    """Return the images as the competition ships them, or None where these are bare pixels or gone by now."""
    if run.task.images.format not in ("files", "encoded_parquet"):
        return None
    try:
        return open_source(run.task, "train", run.data)
    except DataError:
        return None


def _encoded(source: Source, ids: Text) -> Iterator[bytes]:
    """Yield the images' own files."""
    for row in _rows(ids, source).tolist():
        data = source.encoded(row)
        assert data is not None
        yield bytes(data)


def _rows(ids: Text, source: Source) -> npt.NDArray[np.int64]:
    rows = rows_of(ids, source.ids)
    if (rows < 0).any():
        raise BundleError(f"{source.describe()} lacks image {str(ids[rows < 0][0])!r}; pack the data again")
    return rows


def _spread(values: npt.NDArray[T], limit: int) -> npt.NDArray[T]:
    """Return at most `limit` values, evenly spread."""
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(np.int64)]
