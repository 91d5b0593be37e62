"""What a run left behind, and how far its members may be from it: checkpoints, settings, out-of-fold predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.joining import order_labels
from kaggle_kit.errors import BundleError, ExportError, RefusedError, some_of
from kaggle_kit.export.gate import check_change, measure_change
from kaggle_kit.export.graph import Columns
from kaggle_kit.export.likeness import MEAN_DIFF
from kaggle_kit.export.variant import Variant
from kaggle_kit.labels import Labels
from kaggle_kit.predictions import Predictions, Probs, concatenate, take_columns
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.runtime.bundle import Change
from kaggle_kit.settings import fingerprint, plain
from kaggle_kit.tables import Text
from kaggle_kit.task import Task
from kaggle_kit.train.checkpoint import CheckpointInfo
from kaggle_kit.train.config import LogConfig, TrainConfig

_OWN = "put the run's own checkpoint back, or train it again"


def check_checkpoint(run: Run, fold: int, info: CheckpointInfo) -> None:
    """Refuse a checkpoint of another task, fold or training than its run's.

    Raises:
        ExportError: Naming the file, and in what it differs.
    """
    path, known = run.checkpoint(fold), run.folder / "run.json"
    if info.task != run.task:
        raise ExportError(
            f"{path} was trained for another task than {known} says ({_describe_task(info.task)} instead of "
            f"{_describe_task(run.task)}); {_OWN}"
        )
    if info.fold != fold:
        raise ExportError(f"{path} is a checkpoint of fold {info.fold}, expected fold {fold}; {_OWN}")
    different = _different_settings(info.config, run.config)
    if different:
        raise ExportError(
            f"{path} was trained with other settings than {known} says (hash {info.config_hash} instead of "
            f"{fingerprint(run.config)}, by {some_of(different)}); {_OWN}"
        )


def labels_of(run: Run, ids: Text, columns: Columns) -> Labels:
    """Return the labels of some images, classes in the order in which members give them.

    Args:
        run: Whose.
        ids: Which images.
        columns: {head: the run's own column of each class}.
    """
    return order_labels(run.labels(), list(run.task.heads), columns).align(ids)


def against_stored(run: Run, fold: int, said: Predictions, columns: Columns) -> Change | None:
    """Measure what probabilities change against the run's stored ones.

    Args:
        run: Whose.
        fold: Of the member that says them.
        said: Of images that the fold holds out, classes in the order of `columns`.
        columns: {head: the run's own column of each class}.

    Returns:
        The change; None where the fold holds no images out.

    Raises:
        BundleError: When the run stored none of most of these images.
    """
    if fold == EVERYTHING:
        return None
    known, stored = _stored(run, fold, said.ids, columns)
    labels = labels_of(run, said.ids[known], columns)
    return measure_change(run.task, labels, stored, {head: probs[known] for head, probs in said.probs.items()})


def check_stored(
    run: Run,
    said: Mapping[int, Predictions],
    usually: Mapping[int, Predictions],
    columns: Columns,
    *,
    variant: Variant,
    otherwise: bool,
) -> None:
    """Refuse members that answer otherwise than the run's stored predictions, beyond what half precision explains.

    Args:
        run: Whose.
        said: {fold: what its member says of images that it holds out, in full precision}.
        usually: {fold: what the network says of them as it was validated, without views and the like}.
        columns: {head: the run's own column of each class}.
        variant: Says what a change may cost.
        otherwise: Whether members are meant to answer otherwise than the run did.

    Raises:
        RefusedError: With the numbers.
    """
    folds = [fold for fold in said if fold != EVERYTHING]
    if not folds:
        return
    change = against_stored(run, folds[0], concatenate([said[fold] for fold in folds]), columns)
    assert change is not None
    check_change(
        change,
        variant.limits("views" if otherwise else "stored"),
        what=f"run {run.name!r}, compared with its oof.npz,",
        repair="export it as it was validated, or allow more with --max-drop" if otherwise else advise(run.name),
    )
    for fold in folds:
        _check_network(run, fold, usually[fold], columns)


def advise(*names: str) -> str:
    """Return what to do where members of some runs do not repeat what these stored."""
    return (
        f"if checkpoints and oof.npz of {some_of(names)} belong together, and few images and near ties explain it, "
        "allow more with --max-changed and --max-drop; else train again"
    )


def _check_network(run: Run, fold: int, usually: Predictions, columns: Columns) -> None:
    """Refuse a network that is not the one whose predictions the run stored, whatever else is allowed."""
    known, stored = _stored(run, fold, usually.ids, columns)
    for head, probs in stored.items():
        mean = float(np.abs(usually.probs[head][known] - probs).max(axis=1).mean())
        if not mean <= MEAN_DIFF:
            raise RefusedError(
                f"fold {fold} of run {run.name!r} is not shipped: probabilities of head {head!r} differ from those in "
                f"{run.oof_file} by {mean:.1e} of an image on average, on {known.sum():,} images, expected at most "
                f"{MEAN_DIFF} whatever the limits; one of the two is another network's: {_OWN}"
            )


def _stored(run: Run, fold: int, ids: Text, columns: Columns) -> tuple[npt.NDArray[np.bool_], Probs]:
    """Return which of these images the run predicts, and its probabilities of those."""
    oof = run.oof()
    known = np.isin(ids, oof.ids)
    if 2 * known.sum() < len(ids):  # some may have been left out on purpose
        raise BundleError(
            f"{run.oof_file} has {int(known.sum()):,} of {len(ids):,} images of fold {fold}, {str(ids[~known][0])!r} "
            "not among them; it is not this run's: train again"
        )
    return known, take_columns(oof.align(ids[known]).probs, columns)


def _different_settings(first: TrainConfig, second: TrainConfig) -> Sequence[str]:
    """Return the names of settings that differ, but for those that a training may go on with otherwise."""
    one, other = (plain(_without_free(config)) for config in (first, second))
    return [name for name in one if one[name] != other[name]]


def _without_free(config: TrainConfig) -> TrainConfig:
    """Return settings but for what `kaggle_kit.train.run_folder.FREE` names: nothing of it reaches the weights."""
    loader = dataclasses.replace(config.loader, num_workers=None)
    return dataclasses.replace(config, max_hours=None, log=LogConfig(), loader=loader)


def _describe_task(task: Task) -> str:
    heads = ", ".join(f"{name} of {head.num_classes} classes" for name, head in task.trained_heads.items())
    return f"{task.name}: {heads}, {task.metric}"
