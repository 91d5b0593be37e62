"""What runs must have in common to be blended: heads, classes by name, labels, how folds were made, and images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.edits import edits_key
from kaggle_kit.errors import DataError, PredictionError, SettingError, some_of
from kaggle_kit.folds import Folds, labels_hash
from kaggle_kit.labels import Labels
from kaggle_kit.metrics import gain
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Head, Task, task_to_plain

Ints = npt.NDArray[np.int64]

SOUP_FACTS = "soup.json"  # in the folder of a run whose weights are a mean of other runs'


def match_classes(tasks: tuple[Task, Task], names: tuple[str, str]) -> dict[str, Ints]:
    """Match two runs' classes by name.

    Args:
        tasks: Of the first run, whose order of classes counts, and of another; auxiliary heads are not looked at.
        names: What the two runs are called.

    Returns:
        {head: (C,) the other's column of each of the first's classes}, of heads whose order of classes differs.

    Raises:
        SettingError: When metrics, heads or the names of a head's classes differ, or an order of classes that counts.
    """
    first, other = tasks
    if first.metric != other.metric or set(first.heads) != set(other.heads):
        raise SettingError(
            f"runs {names[0]!r} and {names[1]!r} have different heads or metrics: {list(first.heads)} by "
            f"{first.metric}, and {list(other.heads)} by {other.metric}; blend runs of one task"
        )
    columns = {}
    for name, head in first.heads.items():
        theirs = other.heads[name]
        if (head.kind, head.weight) != (theirs.kind, theirs.weight):
            raise SettingError(
                f"runs {names[0]!r} and {names[1]!r} have different heads or metrics: head {name!r} is {head.kind} of "
                f"weight {head.weight:g}, and {theirs.kind} of weight {theirs.weight:g}; blend runs of one task"
            )
        _check_names(head, theirs, names)
        if head.class_names != theirs.class_names:
            _check_unordered(first, head, names)
            place = {value: column for column, value in enumerate(theirs.class_names)}
            columns[name] = np.array([place[value] for value in head.class_names], np.int64)
    return columns


def order_classes(task: Task, classes: Mapping[str, tuple[str, ...]]) -> Task:
    """Return a task with heads' classes, and what files write for them, in another order.

    Args:
        task: The task.
        classes: {head: C class names}; heads that are not named stay as they are.

    Raises:
        SettingError: When these are not the classes of a head.
    """
    heads = dict(task.heads)
    for name, head in task.heads.items():
        wanted = classes.get(name, head.class_names)
        if set(wanted) != set(head.class_names) or len(wanted) != head.num_classes:
            raise SettingError(
                f"head {name!r} of task {task.name!r} has classes {some_of(head.class_names)}; expected the "
                f"{len(wanted)} classes {some_of(wanted)}, in any order"
            )
        if wanted != head.class_names:
            places = [head.class_names.index(value) for value in wanted]
            values = None if head.values is None else tuple(head.values[place] for place in places)
            heads[name] = dataclasses.replace(head, classes=wanted, values=values)
    return dataclasses.replace(task, heads=heads)


def describe_differences(first: Task, other: Task) -> str:
    """Say in which settings two tasks differ whose classes match by name; nothing: in none.

    The order of classes and auxiliary heads are not looked at.
    """
    names = {name: head.class_names for name, head in first.heads.items()}
    ours, theirs = (dict(_settings(task)) for task in (first, order_classes(other, names)))
    different = [key for key in dict.fromkeys((*ours, *theirs)) if ours.get(key) != theirs.get(key)]
    shown = [f"`{key}` ({ours.get(key)!r} and {theirs.get(key)!r})" for key in different[:3]]
    return ", ".join(shown) + (f" and {len(different) - 3} more" if len(different) > 3 else "")


def _settings(task: Task) -> Iterator[tuple[str, object]]:
    """Yield a task's settings by dotted key, those of auxiliary heads left out and what files write spelled out."""
    heads = {n: dataclasses.replace(h, classes=h.class_names, values=h.class_values) for n, h in task.heads.items()}
    todo: list[tuple[str, object]] = list(task_to_plain(dataclasses.replace(task, heads=heads, auxiliary={})).items())
    for key, value in todo:
        if isinstance(value, dict):
            todo += [(f"{key}.{name}", part) for name, part in value.items()]
        else:
            yield key, value


def _check_names(head: Head, theirs: Head, names: tuple[str, str]) -> None:
    """Refuse heads whose classes have not the same names, in whatever order."""
    lacks = [value for value in head.class_names if value not in set(theirs.class_names)]
    adds = [value for value in theirs.class_names if value not in set(head.class_names)]
    if lacks or adds:
        found = [f"lacks {some_of(lacks)}"] * bool(lacks) + [f"has {some_of(adds)} besides"] * bool(adds)
        raise SettingError(
            f"head {head.name!r} has {theirs.num_classes} classes in run {names[1]!r} and {head.num_classes} in run "
            f"{names[0]!r}: {names[1]!r} {' and '.join(found)}; blend runs that were trained on the same classes"
        )


def _check_unordered(task: Task, head: Head, names: tuple[str, str]) -> None:
    """Refuse another order of classes where it says which class is near to which."""
    if head.kind == "ordinal" or task.metric == "quadratic_kappa":
        raise SettingError(
            f"head {head.name!r} has its classes in another order in run {names[1]!r} than in run {names[0]!r}, and "
            f"the order counts ({head.kind} head, {task.metric}); train both on one task file"
        )


def check_unchanged(run: Run, labels: Labels, folds: Folds) -> None:
    """Refuse labels that are no longer those a run was trained on.

    Raises:
        DataError: Naming the run.
    """
    found = labels_hash(labels)
    if found != folds.data_hash:
        raise DataError(
            f"the labels in {run.data} have changed since run {run.name!r} was trained (hash {folds.data_hash}, now "
            f"{found}); put the old label file back, or train again"
        )


def check_same_labels(
    runs: tuple[Run, Run], labels: Labels, folds: tuple[Folds, Folds], columns: Mapping[str, Ints]
) -> None:
    """Refuse a run that was trained on other labels than the first run.

    Args:
        runs: The first run and another one.
        labels: Of the first run.
        folds: Of the two runs.
        columns: {head: (C,) the other's column of each of the first's classes} where the order differs.

    Raises:
        DataError: With counts of images that are labelled differently, or for one of the two alone.
    """
    first, other = runs
    expected = folds[0].data_hash
    if folds[1].data_hash == expected and not columns:
        return
    own = other.labels()
    check_unchanged(other, own, folds[1])
    own = order_labels(own, list(labels.classes), columns)
    if labels_hash(own) == expected:
        return
    raise DataError(
        f"runs {first.name!r} and {other.name!r} were trained on different labels: {_count_differences(labels, own)}; "
        + _how_labels_differ((first, other), (edits_key(folds[0].edits), edits_key(folds[1].edits)))
    )


def _how_labels_differ(runs: tuple[Run, Run], keys: tuple[str, str]) -> str:
    """Return why two runs' labels differ, as far as can be told, and the repair."""
    if keys[0] == keys[1]:
        return f"blend runs that were trained on one label file (in {runs[0].data} and {runs[1].data})"
    what = [f"edits (hash {key})" if key else "no edits" for key in keys]
    told = [f"{run.name!r} has {one}" for run, one in zip(runs, what, strict=True)]
    return f"{' and '.join(told)}: make folds with the edits that are right, and train both on them with `edits=FILE`"


def order_labels(labels: Labels, heads: Sequence[str], columns: Mapping[str, Ints]) -> Labels:
    """Return labels with heads and classes in another order.

    Args:
        labels: Of any images.
        heads: All heads, in the order wanted.
        columns: {head: (C,) the column of each class} where the order of classes differs.
    """
    classes = {}
    for head in heads:
        own = labels.classes[head]
        if head in columns:
            own = own[:, columns[head]] if own.ndim == 2 else np.argsort(columns[head])[own]
        classes[head] = own
    return Labels(ids=labels.ids, classes=classes, groups=labels.groups)


def _count_differences(first: Labels, other: Labels) -> str:
    """Say in what two label files differ."""
    rows = rows_of(first.ids, other.ids)
    here, there = np.flatnonzero(rows >= 0), rows[rows >= 0]
    differs = np.zeros(len(here), bool)
    for head, classes in first.classes.items():
        differs |= (classes[here] != other.classes[head][there]).reshape(len(here), -1).any(axis=1)
    example = f", the first {str(first.ids[here[np.argmax(differs)]])!r}" if differs.any() else ""
    alone = (len(first) - len(here), len(other) - len(here))
    if not (differs.any() or any(alone)):
        return f"the groups of the {len(here):,} images differ"
    return (
        f"{int(differs.sum()):,} of {len(here):,} images that both label are of other classes{example}; {alone[0]:,} "
        f"are labelled for the first alone, {alone[1]:,} for the second"
    )


def compare_folds(first: Folds, other: Folds, *, names: tuple[str, str]) -> str:
    """Compare how two runs' images were divided, which are labelled alike.

    Args:
        first: The folds of the first run.
        other: The folds of another one.
        names: What the two runs are called.

    Returns:
        A sentence where they were divided by the same scheme in another way, as by another seed; else nothing.

    Raises:
        DataError: When they were divided by different schemes, or by one that holds out combinations of heads and
            others are unseen. Elsewhere a few rare ones are unseen by chance, and the first run's count.
    """
    rows = other.rows(first.ids)
    moved = int((other.fold[rows] != first.fold).sum())
    runs = f"runs {names[0]!r} and {names[1]!r}"
    if first.scheme != other.scheme:
        raise DataError(
            f"{runs} were trained on folds of different schemes, {first.scheme!r} and {other.scheme!r}, which put "
            f"{moved:,} of {len(first.ids):,} images into different folds; train both on one fold file"
        )
    unseen = other.unseen[rows]
    if first.scheme == "unseen" and (unseen != first.unseen).any():
        raise DataError(
            f"{runs} were trained on folds that hold out other combinations of heads: {int(first.unseen.sum()):,} and "
            f"{int(unseen.sum()):,} images are unseen, {int((unseen != first.unseen).sum()):,} of them in one of the "
            "two alone; train both on one fold file"
        )
    if not moved:
        return ""
    return (
        f"run {names[1]!r} validated {moved:,} of {len(first.ids):,} images in another fold than run {names[0]!r}, "
        "whose folds are held out here: its models have learned from labels of a held-out fold, so that nested scores "
        "may flatter a little"
    )


def describe_doubles(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each run whose out-of-fold predictions are those of another one, given before it."""
    sources: dict[str, list[str]] = {}
    for run in runs:
        sources.setdefault(run.like or str(run.folder.resolve()), []).append(run.name)
    return [
        f"{', '.join(names[1:])} and {names[0]} have the out-of-fold predictions of one run, for a training on "
        "everything takes those of the run it follows: together they count more than once; blend one of them"
        for names in sources.values()
        if len(names) > 1
    ]


def describe_soups(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each run that is a soup: its members were chosen on the images that are to score a blend.

    Raises:
        DataError: When a soup's file does not read.
    """
    return [_describe_soup(run, path) for run in runs if (path := run.folder / SOUP_FACTS).is_file()]


def _describe_soup(run: Run, path: Path) -> str:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        (best, *_), members, tried = facts["members"], len(facts["members"]), len(facts["tried"])
        gained, alone = float(facts["gain"]), float(facts["alone"])
        nested = None if facts["nested"] is None else gain(run.task.metric, float(facts["nested"]), alone)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not read ({error!r}); make the soup again") from None
    sentence = (
        f"the {members} of {tried} runs that make up the soup {run.name!r} were chosen by the labels of these images, "
        f"so that its score here, and that of a blend with it, is too good: its gain over {best!r} is {gained:.4f}"
    )
    if nested is None:
        return f"{sentence}; how much of that is due to the choice is not known"
    return (
        f"{sentence}, and {nested:.4f} with members chosen without the fold that they are scored on, so that "
        f"{max(0.0, gained - nested):.4f} is due to the choice"
    )


def check_heads(task: Task, name: str, predictions: Predictions) -> None:
    """Refuse predictions that are not of the task's heads and classes; further heads are not looked at.

    Raises:
        PredictionError: Naming the run, the head, and what it has.
    """
    for head in task.heads.values():
        if head.name not in predictions.probs:
            raise PredictionError(
                f"run {name!r} has no probs of head {head.name!r}, only of {some_of(predictions.probs, 9)}; predict "
                f"every head of task {task.name!r}"
            )
        found = predictions.probs[head.name].shape[1]
        if found != head.num_classes:
            raise PredictionError(
                f"run {name!r}: head {head.name!r} has probs of {found} classes; expected {head.num_classes} "
                f"({some_of(head.class_names)}): give each class a column, 0 for one that it never says"
            )
        many = head.name in predictions.multilabel
        if many != (head.kind == "multilabel"):
            raise PredictionError(
                f"run {name!r}: head {head.name!r} is {head.kind} in task {task.name!r}, and its predictions are "
                f"{'' if many else 'not '}multi-label; make them again for this task"
            )


def shared_ids(predictions: Mapping[str, Predictions], *, common_only: bool) -> tuple[Text, list[str]]:
    """Return the images to blend on, in the first run's order, and sentences on those that are left out.

    Args:
        predictions: {run: predictions}.
        common_only: Whether images are left out which not all runs predict; else they are refused.

    Raises:
        PredictionError: When a run lacks images, or runs have fewer than two in common.
    """
    first_name, first = next(iter(predictions.items()))
    shared = np.ones(len(first), bool)
    for name, one in predictions.items():
        if np.array_equal(one.ids, first.ids):
            continue
        found = rows_of(first.ids, one.ids) >= 0
        if not common_only:
            _check_covers(first.ids[~found], (first_name, len(first)), name)
            if found.sum() < len(one):  # looking ids up takes its time
                _check_covers(one.ids[rows_of(one.ids, first.ids) < 0], (name, len(one)), first_name)
        shared &= found
    ids = first.ids if shared.all() else first.ids[shared]
    left_out = {name: len(one) - len(ids) for name, one in predictions.items() if len(one) > len(ids)}
    if len(ids) < 2:
        sizes = ", ".join(f"{name!r} {len(one):,}" for name, one in predictions.items())
        raise PredictionError(
            f"{len(ids)} image(s) are predicted by all runs ({sizes}), and a blend needs 2 or more; blend runs that "
            "predict the same images"
        )
    if not left_out:
        return ids, []
    counts = ", ".join(f"{count:,} of {name}" for name, count in left_out.items())
    return ids, [f"blended on the {len(ids):,} images that all runs predict; left out are {counts}"]


def _check_covers(missing: Text, other: tuple[str, int], name: str) -> None:
    """Refuse a run that has not predicted what another one, of so many images, has."""
    if len(missing):
        raise PredictionError(
            f"run {name!r} lacks predictions of {len(missing):,} of the {other[1]:,} images that run {other[0]!r} "
            f"predicts, the first {str(missing[0])!r}; train its other folds, or blend on the images that all runs "
            "predict: `--common`"
        )
