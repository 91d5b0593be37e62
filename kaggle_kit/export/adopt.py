"""Models from elsewhere become runs: one's own modules, or any ONNX file, with their out-of-fold predictions.

An adopted run is blended and bundled like any other. It holds no checkpoint but a member's graph for each fold, in
which everything between the stored image and the probabilities is written down; that this is what the model was shown
when its predictions were made is checked on the images of its own fold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import kaggle_kit
from kaggle_kit.blending.joining import check_heads
from kaggle_kit.edits import apply_edits
from kaggle_kit.errors import DataError, PredictionError, SettingError, some_of
from kaggle_kit.export.adoption import (
    FACTS,
    Adoption,
    adopted_hash,
    check_adopted,
    format_adoption,
    read_adoption,
    write_adoption,
)
from kaggle_kit.export.foreign import foreign_sha256, read_foreign
from kaggle_kit.export.likeness import ROWS, Likeness, ask_member, check_likeness, measure_likeness
from kaggle_kit.export.onnx import ROWS_AT_ONCE, compare, export_onnx, run_onnx, write_model
from kaggle_kit.export.reading import Reading, check_reading
from kaggle_kit.export.sampling import spread
from kaggle_kit.export.wrapping import ReadModule, wrap_onnx
from kaggle_kit.files import replacing_folder
from kaggle_kit.folds import Folds
from kaggle_kit.labels import read_labels, resolve_classes
from kaggle_kit.predictions import Predictions
from kaggle_kit.progress import say
from kaggle_kit.runs import EVERYTHING, FoldSummary, Run, fold_folder, read_run, write_run
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.scores import DRAWS, Score, score_answers, score_split
from kaggle_kit.sources import PackedSource, check_ids, check_root, resolve_stored
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task
from kaggle_kit.train.config import ModelConfig, TrainConfig
from kaggle_kit.train.predict import read_ahead
from kaggle_kit.train.rows import TrainData, fit_together

__all__ = ["adopt_modules", "adopt_onnx", "adopted_hash", "check_adopted", "format_adoption", "read_adoption"]

MEMBER = "member.onnx"

Write = Callable[[int, Path], tuple[str, str]]  # writes a member; returns whence, and the SHA-256 of that


def adopt_onnx(
    files: Mapping[int, Path],
    out: Path,
    *,
    name: str,
    task: Task,
    data: Path,
    packed: PackedSource,
    folds: Folds,
    oof: Predictions,
    reading: Reading,
    like: Run | None = None,
) -> Run:
    """Make a run of ONNX files from any framework.

    Args:
        files: {fold: the model that did not see its images}; or {-1: one that was trained on everything}.
        out: The run's folder: new, or of an adopted run, which is replaced.
        name: What the model is called, as in the ledger.
        task: The competition.
        data: Its data folder.
        packed: Its packed train images.
        folds: Which model was validated on which images.
        oof: Each image's probabilities by the model of its fold, classes in the task's order. Of a model trained on
            everything: those of the cross-validation it follows.
        reading: How the models read images, and what they say.
        like: Of a model trained on everything: the run that folds and predictions are of.

    Raises:
        SettingError: When `reading` does not fit the task, or files and folds do not go together.
        DataError: When data, images and folds do not belong together, or `out` holds something else.
        PredictionError: When predictions lack a head, a class or an image.
        ExportError: When a file is no such model, or does not repeat its predictions.
    """
    case = _make_case(name, task, data, packed, folds, oof, reading, like)
    _check_folds(files, case)

    def write(fold: int, path: Path) -> tuple[str, str]:
        model = wrap_onnx(read_foreign(files[fold]), reading, case.task, name=str(files[fold]))
        write_model(model, path)
        sha256 = foreign_sha256(files[fold])
        return f"{files[fold].name} (SHA-256 {sha256[:12]}...)", sha256

    return _write_run(case, out, write, sorted(files))


def adopt_modules(
    modules: Mapping[int, nn.Module],
    out: Path,
    *,
    name: str,
    task: Task,
    data: Path,
    packed: PackedSource,
    folds: Folds,
    oof: Predictions,
    reading: Reading,
    like: Run | None = None,
) -> Run:
    """Make a run of one's own torch modules.

    Args:
        modules: {fold: the module that did not see its images}; or {-1: one that was trained on everything}. Each takes
            what `reading` says, and returns a tensor for one head, {head: tensor}, or a tuple in the order of
            `Reading.outputs`. They are copied, and stay as they are.
        out: As for `adopt_onnx`.
        name: As for `adopt_onnx`.
        task: As for `adopt_onnx`.
        data: As for `adopt_onnx`.
        packed: As for `adopt_onnx`.
        folds: As for `adopt_onnx`.
        oof: As for `adopt_onnx`.
        reading: As for `adopt_onnx`.
        like: As for `adopt_onnx`.

    Raises:
        SettingError: As `adopt_onnx`.
        DataError: As `adopt_onnx`.
        PredictionError: As `adopt_onnx`.
        ExportError: As `adopt_onnx`; or when a module cannot be exported, or says something else than its export.
    """
    case = _make_case(name, task, data, packed, folds, oof, reading, like)
    _check_folds(modules, case)

    def write(fold: int, path: Path) -> tuple[str, str]:
        module = ReadModule(copy.deepcopy(modules[fold]).float().cpu(), reading, case.task).eval()
        export_onnx(module, path, shape=packed.shape)
        _compare_with_torch(module, path, case, spread(case.ids(fold), ROWS))
        return type(modules[fold]).__name__, foreign_sha256(path)

    return _write_run(case, out, write, sorted(modules))


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What models are adopted for, fitted together."""

    name: str
    task: Task
    data: Path
    source: PackedSource
    ready: TrainData
    oof: Predictions
    reading: Reading
    like: Run | None

    def ids(self, fold: int) -> Text:
        """Return the images a model is compared on."""
        folds = self.ready.folds
        return folds.ids[folds.fold >= 0] if fold == EVERYTHING else folds.ids[folds.fold == fold]


def _make_case(
    name: str,
    task: Task,
    data: Path,
    packed: PackedSource,
    folds: Folds,
    oof: Predictions,
    reading: Reading,
    like: Run | None,
) -> _Case:
    """Fit everything together by id, before any model is read."""
    check_root(data)
    task = resolve_classes(resolve_stored(task, data), data)
    check_reading(reading, task)
    if not name.strip():
        raise SettingError("`name` is empty; give the name of the model, such as keras_convnet")
    wanted = (*task.stored_size, task.images.channels)
    if packed.shape != wanted:
        raise DataError(
            f"{packed.folder} holds images of {packed.shape}, and the task stores {wanted}; pack them again"
        )
    labels = apply_edits(read_labels(task, data), folds.edits, task, path="the folds' edits")
    check_ids(packed, labels.ids, where=str(data / task.labels.file))
    ready = fit_together(task, labels, folds, packed)
    if not ready.folds.num_folds:
        raise SettingError(f"the folds validate no image (scheme {folds.scheme!r}); give those that the models had")
    check_heads(task, name, oof)
    return _Case(
        name=name,
        task=task,
        data=data,
        source=packed,
        ready=ready,
        oof=_fitted_oof(oof, ready, task),
        reading=reading,
        like=like,
    )


def _fitted_oof(oof: Predictions, ready: TrainData, task: Task) -> Predictions:
    """Return predictions of the task's heads, of the images that validate, fold by fold."""
    folds = ready.folds
    places = np.argsort(folds.fold, kind="stable")
    ids = folds.ids[places[folds.fold[places] >= 0]]
    lacks = ids[rows_of(ids, oof.ids) < 0]
    if len(lacks):
        counts = np.bincount(folds.fold[folds.rows(lacks)], minlength=folds.num_folds)
        raise PredictionError(
            f"the out-of-fold predictions lack {len(lacks):,} of the {len(ids):,} images that validate "
            f"({some_of(lacks)}; by fold: {counts.tolist()}); predict each with the model of its fold, or give the "
            "folds that it had"
        )
    if len(oof) > len(ids):
        say(f"{len(oof) - len(ids):,} predictions are of images that validate in no fold, or are broken; left out")
    heads = {head: oof.probs[head] for head in task.heads}
    return Predictions(ids=oof.ids, probs=heads, multilabel=task.multilabel_heads).align(ids)


def _check_folds(given: Mapping[int, object], case: _Case) -> None:
    """Refuse models that are not just those of the folds, or the one of everything."""
    if set(given) == {EVERYTHING}:
        if case.like is None:
            return
        own = case.like.oof()
        known = set(own.ids.tolist()) == set(case.oof.ids.tolist())
        if not known or any((own.align(case.oof.ids).probs[h] != case.oof.probs[h]).any() for h in case.task.heads):
            raise SettingError(
                f"`oof` are not the out-of-fold predictions of run {case.like.name!r}, which `like` says; give that "
                "run's, or leave `like` out"
            )
        return
    if case.like is not None:
        raise SettingError(f"`like` goes with one model trained on everything (fold {EVERYTHING}); leave it out")
    wanted = set(range(case.ready.folds.num_folds))
    found = [f"fold {fold} has none" for fold in sorted(wanted - set(given))[:1]]
    found += [f"there is no fold {fold}" for fold in sorted(set(given) - wanted)[:1]]
    if found:
        raise SettingError(
            f"{len(given)} model(s) are given for {len(wanted)} folds: {' and '.join(found)}; give the model of each "
            f"fold, 0 to {len(wanted) - 1}, or one that was trained on everything, as fold {EVERYTHING}"
        )


def _write_run(case: _Case, out: Path, write: Write, given: Sequence[int]) -> Run:
    """Write a run of models that are checked one by one; it appears whole or not at all."""
    own = _own_files(out)
    known = read_run(out).id if own else ""
    with replacing_folder(out, own, what="run from elsewhere", error=DataError) as folder:
        checked, written, originals, summaries = {}, {}, {}, {}
        for fold in given:
            path = fold_folder(folder, fold) / MEMBER
            path.parent.mkdir()
            origin, originals[str(fold)] = write(fold, path)
            checked[str(fold)] = _check_member(case, fold, path, origin)
            written[str(fold)] = {
                file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(path.parent.iterdir())
            }
            score = None if fold == EVERYTHING else _score_fold(case, fold)
            summaries[fold] = FoldSummary(epoch=0, score=score, seconds=0.0)
        case.oof.save(folder / "oof.npz")
        case.ready.folds.save(folder / "folds.parquet")
        adoption = Adoption(reading=case.reading, checked=checked, files=written, originals=originals)
        write_adoption(adoption, folder)
        write_run(_make_run(case, folder, summaries, known))
    return read_run(out)


def _own_files(out: Path) -> tuple[str, ...]:
    """Return the names of what an adopted run in `out` is made of; none where there is no such run."""
    if not (out / "run.json").is_file() or not (run := read_run(out)).is_adopted:
        return ()
    folders = {Path(name).parent.name for name in run.adopted.values()}
    whole = [name for name in folders if all(path.name.startswith(MEMBER) for path in (out / name).glob("*"))]
    return ("run.json", "oof.npz", "folds.parquet", FACTS, *whole)


def _make_run(case: _Case, folder: Path, summaries: dict[int, FoldSummary], known: str) -> Run:
    folds, labels = case.ready.folds, case.ready.labels.align(case.oof.ids)
    unseen = folds.unseen[folds.rows(case.oof.ids)]
    scores = score_split(case.task, labels.classes, case.oof.probs, unseen, draws=DRAWS, groups=labels.group_numbers())
    return Run(
        folder=folder,
        task=case.task,
        config=TrainConfig(model=ModelConfig(name=case.name)),
        data=case.data,
        packed=case.source.folder,
        packed_key=case.source.key,
        scores=case.like.scores if case.like else scores,
        folds=summaries,
        like=str(case.like.folder.resolve()) if case.like else "",
        environment={
            "trained": "elsewhere",
            "kaggle_kit": kaggle_kit.__version__,
            **{name: metadata.version(name) for name in ("onnx", "onnxruntime")},
        },
        id=known,
        adopted={fold: f"{fold_folder(Path(), fold).name}/{MEMBER}" for fold in summaries},
    )


def _compare_with_torch(module: ReadModule, path: Path, case: _Case, ids: Text) -> None:
    """Refuse an export that says something else than its module, in full precision on the CPU."""
    rows = rows_of(ids, case.source.ids)
    parts: dict[str, list[npt.NDArray[np.float32]]] = {head: [] for head in module.names}
    with torch.inference_mode():
        for images in read_ahead(case.source, rows, size=ROWS_AT_ONCE):
            for head, probs in zip(module.names, module(torch.from_numpy(images)), strict=True):
                parts[head].append(probs.numpy())
    expected = {head: np.concatenate(part) for head, part in parts.items()}
    found = run_onnx(path, case.source, rows)
    compare(expected, found, multilabel=case.task.multilabel_heads, name=type(module.module).__name__)


def _score_fold(case: _Case, fold: int) -> Score:
    oof = case.oof.align(case.ids(fold))
    return score_answers(case.task, case.ready.labels.align(oof.ids).classes, oof.probs)


def _check_member(case: _Case, fold: int, path: Path, origin: str) -> Likeness:
    """Compare a written member with the predictions that came with it; refuse one that does not repeat them."""
    ids = spread(case.ids(fold), ROWS)
    said = ask_member(path, case.source, ids, case.task, model=origin)
    truth = case.ready.labels.align(ids).classes
    likeness = measure_likeness(case.task, truth, said, case.oof.align(ids), model=origin)
    check_likeness(likeness, fold, case.reading)
    if not likeness.repeats and fold != EVERYTHING:
        say(f"WARNING fold {fold}: {origin} does not quite repeat its predictions: {likeness}")
    return likeness
