"""What runs must have in common for their weights to be averaged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kaggle_kit.errors import CheckpointError, DataError, SettingError, some_of
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.settings import plain
from kaggle_kit.sources import PackedSource
from kaggle_kit.task import Task, task_to_plain

_OF_TASK = ("heads", "auxiliary", "metric", "stored")
_OF_MODEL = ("name", "input_size", "pool", "derive_from")
_REPAIR = "average runs of one architecture, trained on one fold file"
Shapes = dict[str, tuple[int, ...]]


def check_ingredients(runs: Sequence[Run]) -> None:
    """Refuse runs whose fold models cannot be averaged fold by fold.

    Raises:
        SettingError: For fewer than two runs, equal names, a run that was trained on everything or adopted, or another
            task or architecture.
        DataError: For other packed images, other folds, a fold that was not trained, or other tensors.
        CheckpointError: When a checkpoint is missing or damaged.
    """
    if len(runs) < 2:
        raise SettingError(f"a soup takes at least 2 runs; found {len(runs)}")
    twice = [name for name, count in Counter(run.name for run in runs).items() if count > 1]
    if twice:
        raise SettingError(f"{len(runs)} runs are given, and two are named {twice[0]!r}; give each once, or rename one")
    for run in runs:
        if run.is_adopted:
            raise SettingError(
                f"run {run.name!r} comes from elsewhere, as a graph and without weights to average; leave it out"
            )
        if EVERYTHING in run.folds:
            raise SettingError(
                f"run {run.name!r} was trained on everything, so that nothing scores an average with it; give the run "
                f"that it followed, {run.like or 'one with folds'}"
            )
    first = runs[0]
    for other in runs[1:]:
        _check_settings(first, other)
        _check_images(first, other)
    _check_folds(runs)
    for fold in first.folds:
        expected = _shapes(first.checkpoint(fold))
        for other in runs[1:]:
            _check_shapes(expected, first.checkpoint(fold), other.checkpoint(fold))


def group_ingredients(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together whose fold models could be averaged, by their settings, packed images and folds.

    Returns:
        Groups in the order of their first runs, of a run alone where no other goes with it. Runs that were trained on
        everything, and those from elsewhere, are in none.
    """
    groups: list[list[Run]] = []
    for run in runs:
        if run.is_adopted or EVERYTHING in run.folds:
            continue
        fitting = (group for group in groups if not _why_apart(group[0], run))
        found = next(fitting, None)
        if found is None:
            groups.append([run])
        else:
            found.append(run)
    return groups


def describe_alone(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Say of the runs that are alone in their group why, each beside the largest other group of its architecture.

    Where all groups of an architecture are of one run, that is the first of them.
    """
    by_architecture: dict[str, list[Sequence[Run]]] = {}
    for group in groups:
        by_architecture.setdefault(group[0].config.model.name, []).append(group)
    sentences = []
    for name, alike in by_architecture.items():
        largest = max(alike, key=len)
        if len(alike) == len(largest) == 1:
            sentences.append(f"run {largest[0].name!r} is the only one of {name} with folds")
        alone = [group[0] for group in alike if group is not largest and len(group) == 1]
        sentences += [_why_apart(largest[0], run) for run in alone]
    return sentences


def name_soups(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a folder name for the soup of each group, none alike: by architecture, and where needed size and number.

    Sizes and numbers are there only where several groups are of one architecture.
    """
    architectures = Counter(group[0].config.model.name for group in groups)
    given: Counter[str] = Counter()
    names = []
    for group in groups:
        model = group[0].config.model
        name = f"soup_{model.name}".replace("/", "_")
        if architectures[model.name] > 1:
            name += f"_{'x'.join(map(str, model.input_size or group[0].task.stored_size))}"
        given[name] += 1
        names.append(name if given[name] == 1 else f"{name}_{given[name]}")
    return names


def open_store(run: Run) -> PackedSource:
    """Return the packed images that a run was trained from.

    Raises:
        DataError: When they are gone, or were packed anew since.
    """
    store = PackedSource(run.packed)
    if store.key != run.packed_key:
        raise DataError(
            f"{run.packed} was packed again from other data or at another size since run {run.name!r} was trained "
            f"(key {run.packed_key}, now {store.key}); pack what it was trained on"
        )
    return store


def _why_apart(first: Run, other: Run) -> str:
    """Return why two runs' weights are not to be averaged; nothing where settings, images and folds go together."""
    try:
        _check_settings(first, other)
        _check_images(first, other)
        _check_folds([first, other])
    except (SettingError, DataError) as error:
        return str(error).removesuffix(f"; {_REPAIR}")
    return ""


def _check_settings(first: Run, other: Run) -> None:
    pairs = [(f"task.{name}", _task_part(first.task, name), _task_part(other.task, name)) for name in _OF_TASK]
    own, others = (plain(run.config.model) for run in (first, other))
    pairs += [(f"model.{name}", str(own[name]), str(others[name])) for name in _OF_MODEL]
    for key, one, two in pairs:
        if one != two:
            raise SettingError(
                f"runs {first.name!r} and {other.name!r} differ in `{key}`: {_short(one)} and {_short(two)}; {_REPAIR}"
            )


def _task_part(task: Task, name: str) -> str:
    """Return a part of a task as text, in which heads keep their order: it numbers their tensors."""
    return json.dumps(task_to_plain(task).get(name), ensure_ascii=False)


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def _check_images(first: Run, other: Run) -> None:
    if other.packed_key != first.packed_key:
        raise DataError(
            f"runs {first.name!r} and {other.name!r} were trained from other packed images (keys {first.packed_key} "
            f"and {other.packed_key}); average runs that were trained from one store, or pack it the same way"
        )


def _check_folds(runs: Sequence[Run]) -> None:
    first, folds = runs[0], runs[0].fold_table()
    for run in runs:
        missing = sorted(set(range(folds.num_folds)) - set(run.folds))
        if missing:
            raise DataError(
                f"run {run.name!r} has trained {len(run.folds)} of {folds.num_folds} folds, not fold {missing[0]}; "
                "train the others, too: the same `kaggle-kit train` without `fold`"
            )
        if run is first:
            continue
        other = run.fold_table()
        same = np.array_equal(other.ids, folds.ids) or set(other.ids.tolist()) == set(folds.ids.tolist())
        if other.data_hash != folds.data_hash or not same:
            raise DataError(
                f"the folds of runs {first.name!r} and {run.name!r} were made from other labels (hash "
                f"{folds.data_hash}, {len(folds.ids):,} images, and {other.data_hash}, {len(other.ids):,}); {_REPAIR}"
            )
        moved = folds.ids[other.fold[other.rows(folds.ids)] != folds.fold]
        if len(moved):
            raise DataError(
                f"runs {first.name!r} and {run.name!r} validate {len(moved):,} of {len(folds.ids):,} images in other "
                f"folds ({some_of(moved)}), so that an average of their weights was trained on what it would be "
                f"scored on; {_REPAIR}"
            )


def _check_shapes(expected: Shapes, first: Path, other: Path) -> None:
    found = _shapes(other)
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise DataError(
            f"{other} and {first} hold {len(wrong):,} tensor(s) of other names or shapes: {wrong[0]!r} is "
            f"{found.get(wrong[0])} and {expected.get(wrong[0])}; {_REPAIR}, with one version of timm"
        )


def _shapes(path: Path) -> Shapes:
    """Return {tensor: shape} of a checkpoint, from its header alone."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; train the fold again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); train the fold again") from None
