"""What a blend's runs have in common: one task, one order of classes, and the images that all of them predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kaggle_kit.blending.joining import (
    check_same_labels,
    check_unchanged,
    describe_differences,
    match_classes,
    order_classes,
)
from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import BundleError, DataError, SettingError
from kaggle_kit.export.graph import Columns
from kaggle_kit.predictions import Predictions, take_columns
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.tables import Text
from kaggle_kit.task import Task


def common_task(runs: Sequence[Run], blend: Blend) -> tuple[Task, dict[str, Columns]]:
    """Return the task of a blend's runs, classes in the blend's order, and {run: its own column of each class}.

    What was learned beside the task is left out, which a bundle neither holds nor needs.

    Raises:
        BundleError: Naming the runs and in what their tasks differ, or that they were trained on different labels.
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
    _check_labels(runs)
    return task, columns


def _check_labels(runs: Sequence[Run]) -> None:
    """Refuse runs that were trained on different labels; one alone has nothing to differ from."""
    first, others = runs[0], runs[1:]
    if not others:
        return
    labels, folds = first.labels(), first.fold_table()
    try:
        check_unchanged(first, labels, folds)
        for run in others:
            columns = match_classes((first.task.without_auxiliary(), run.task), (first.name, run.name))
            check_same_labels((first, run), labels, (folds, run.fold_table()), columns)
    except DataError as error:
        raise BundleError(f"no bundle can hold these runs: {error}") from None


def blended_runs(runs: Sequence[Run], blend: Blend) -> list[Run]:
    """Return the blend's runs in its order, after checking that it was fitted on them as they are.

    Raises:
        BundleError: Naming the run that was not given, given twice, or was trained again since.
    """
    if not runs:
        raise BundleError("no runs were given; name at least one run folder")
    by_name: dict[str, Run] = {}
    for run in runs:
        if run.name in by_name:
            raise BundleError(
                f"two runs are called {run.name!r}: {by_name[run.name].folder} and {run.folder}; give it once, or "
                "rename a folder and blend again"
            )
        by_name[run.name] = run
    absent = [name for name in blend.runs if name not in by_name]
    if absent:
        raise BundleError(f"the blend counts run {absent[0]!r}, which was not given; give all of {list(blend.runs)}")
    check_blended([by_name[name] for name in blend.runs], blend)
    return [by_name[name] for name in blend.runs]


def check_blended(runs: Sequence[Run], blend: Blend) -> None:
    """Refuse runs that a blend does not name, or that were trained again since it was fitted.

    Raises:
        BundleError: Naming the run.
    """
    for run in runs:
        if run.name not in blend.runs:
            raise BundleError(f"the blend counts runs {list(blend.runs)}, not {run.name!r}; give it the blend's own")
        if run.name in blend.oof_hashes and file_sha256(run.oof_file) != blend.oof_hashes[run.name]:
            raise BundleError(
                f"the blend was fitted on other out-of-fold predictions of run {run.name!r}: it was trained again "
                "since, or is another of that name; make the blend again with `kaggle-kit blend`"
            )


def shared_oofs(
    runs: Sequence[Run], blend: Blend, *, columns: Mapping[str, Columns], others: Sequence[Run]
) -> dict[str, Predictions]:
    """Return the runs' out-of-fold predictions, of a fitted blend those of the images that it was fitted on.

    Args:
        runs: The blend's.
        blend: The blend.
        columns: {run: its own column of each class}.
        others: Runs that the blend may have been made from and does not use.

    Raises:
        BundleError: When they are not the images that the blend was fitted on.
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
