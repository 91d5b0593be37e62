"""The shake-up of finished runs, from their folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kaggle_kit.errors import DataError, some_of
from kaggle_kit.metrics import CLASS_METRICS
from kaggle_kit.runs import Run
from kaggle_kit.shakeup import Part, Shakeup, estimate_shakeup
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import refuse_multilabel


def shakeup_of_runs(runs: Sequence[Run], *, public: Part, private: Part, draws: int = 300, seed: int = 0) -> Shakeup:
    """Estimate the shake-up of finished runs of one task, from their out-of-fold predictions joined by id.

    Runs decide by their highest probability here, without the rules that `kaggle-kit blend` fits.
    Which combinations are unseen is read from the first run's folds; a note says so where another run had others.

    Args:
        runs: Finished, of one task.
        public: What the public board scores.
        private: What the private board scores.
        draws: How many times both are drawn.
        seed: Same seed, same images.

    Raises:
        SettingError: As there.
        DataError: As there, and when names repeat, tasks differ, or less than half of the images are in all runs.
    """
    _check_runs(runs)
    task, ids, answers = runs[0].task, {}, {}
    refuse_multilabel(task, "a shake-up", "compare the runs' cross-validation")
    for run in runs:  # decided at once where that will do: the probabilities of many runs fill the memory
        oof = run.oof()
        ids[run.name] = oof.ids
        answers[run.name] = oof.decide() if task.metric in CLASS_METRICS else oof.probs
    common, notes = _common_ids(ids)
    rows = {name: rows_of(common, found) for name, found in ids.items()}
    aligned = {name: {h: values[rows[name]] for h, values in heads.items()} for name, heads in answers.items()}
    notes += _fold_notes(runs, common)
    folds = runs[0].fold_table()
    unseen = folds.unseen[folds.rows(common)]
    truth = runs[0].labels().align(common).classes
    shakeup = estimate_shakeup(task, truth, aligned, unseen, public=public, private=private, draws=draws, seed=seed)
    return dataclasses.replace(shakeup, notes=(*notes, *shakeup.notes))


def _check_runs(runs: Sequence[Run]) -> None:
    if not runs:
        raise DataError("there are no runs to compare; name at least one")
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"several runs are named {some_of(twice)}; runs are told apart by name, rename their folders")
    first, *others = ((run.name, run.task.name, run.task.metric, run.task.heads) for run in runs)
    for other in others:
        if other[1:] != first[1:]:
            (a, *_), (b, *_) = first, other
            tasks = " and ".join(
                f"{task!r} ({metric} of {some_of(heads, 9)})" for _, task, metric, heads in (first, other)
            )
            raise DataError(f"runs {a!r} and {b!r} are of different tasks, {tasks}; compare runs of one task")


def _common_ids(ids: Mapping[str, Text]) -> tuple[Text, list[str]]:
    """Return the ids that all runs have, in the first one's order, and a note where some are left out."""
    common, *others = ids.values()
    for found in others:
        common = common[rows_of(common, found) >= 0]
    num_all = len(np.unique(np.concatenate(list(ids.values()))))
    if len(common) == num_all:
        return common, []
    counts = ", ".join(f"{name!r} {len(found):,}" for name, found in ids.items())
    if 2 * len(common) < num_all:
        raise DataError(
            f"only {len(common):,} of {num_all:,} images have out-of-fold predictions of all runs ({counts}), expected "
            "at least half; compare runs of the same data and folds"
        )
    return common, [f"{num_all - len(common):,} of {num_all:,} images are not in all runs ({counts}) and were left out"]


def _fold_notes(runs: Sequence[Run], ids: Text) -> list[str]:
    """Say which runs were trained on other folds or labels than the first."""
    first, *others = (run.fold_table() for run in runs)
    validated_by = first.fold[first.rows(ids)]
    made = [
        f"{run.name!r} ({folds.scheme}, seed {folds.seed})"
        for run, folds in zip(runs[1:], others, strict=True)
        if folds.data_hash != first.data_hash or (folds.fold[folds.rows(ids)] != validated_by).any()
    ]
    if not made:
        return []
    return [
        f"{', '.join(made)} had other folds or labels than {runs[0].name!r} ({first.scheme}, seed {first.seed}), whose "
        "unseen combinations are taken for all: scores on them do not compare like with like"
    ]
