"""What the competition would accept and nobody would want: constant answers, the class priors, the sample itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import some_of
from kaggle_kit.heads import Head
from kaggle_kit.labels import Classes
from kaggle_kit.predictions import Probs
from kaggle_kit.submission import read_probs, read_submission, validate_submission, writes_probs
from kaggle_kit.tables import Text, read_columns
from kaggle_kit.task import Task

FEWEST = 10  # images below which equal answers prove nothing
EXPECTED = 5  # images of a class that should be there before its absence is worth a word
MISSING_SHARE = 0.5  # of the classes that should be there
SUM_TOLERANCE = 1e-3


def look_at_submission(
    task: Task,
    path: Path,
    *,
    rows: Text,
    sample: Path | None = None,
    priors: Mapping[str, Sequence[float]] | None = None,
) -> tuple[str, ...]:
    """Return what is strange about a submission, though the competition would accept it.

    Args:
        task: The competition.
        path: The submission.
        rows: Submission ids in order, from `expected_rows`.
        sample: The sample submission: equal answers are said.
        priors: {head: C class shares in train}, such as a bundle's; without them, "as good as all-default" and lacking
            classes are not looked for.

    Raises:
        SubmissionError: For columns, order, count or duplicates that the competition would refuse.
        DataError: For values it would refuse: types, range, NaN.
    """
    validate_submission(task, path, rows=rows)
    found: list[str] = []
    if sample is not None and len(rows) >= FEWEST and _same_answers(path, sample):
        found.append(f"{path} answers what the sample submission does, row by row; nothing was predicted")
    probs: Probs = {}
    if writes_probs(task):
        _, probs = read_probs(task, path)
        classes: Classes = {
            head: values if task.heads[head].kind == "multilabel" else values.argmax(axis=1)
            for head, values in probs.items()
        }
    else:
        _, classes = read_submission(task, path)
        found.extend(_points(task, path))
    for name, head in task.heads.items():
        shares = None if priors is None else np.asarray(priors[name], np.float64)
        found.extend(_of_head(head, classes[name], probs.get(name), shares))
    return tuple(found)


def _of_head(
    head: Head,
    classes: npt.NDArray[np.generic],
    probs: npt.NDArray[np.float32] | None,
    shares: npt.NDArray[np.float64] | None,
) -> Iterator[str]:
    number = len(classes)
    if number < FEWEST:
        return
    answers = classes if probs is None else probs
    if bool((answers == answers[:1]).all()):
        default = shares is not None and classes.ndim == 1 and int(shares.argmax()) == int(classes[0])
        why = "train's commonest class, as good as all-default: " if default else ""
        yield (
            f"head {head.name!r}: all {number:,} images have the same answer ({why}{_named(head, answers[0])}); "
            "is a model missing, or are all images read as one?"
        )
        return
    if probs is not None and head.kind == "multiclass":
        wrong = np.abs(probs.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE
        if wrong.any():
            yield f"head {head.name!r}: probabilities of {int(wrong.sum()):,} images do not sum to 1; scale them"
    if shares is not None and classes.ndim == 1:
        yield from _lacking(head, classes, shares)


def _lacking(head: Head, classes: npt.NDArray[np.generic], shares: npt.NDArray[np.float64]) -> Iterator[str]:
    """Yield a line where classes that train shows often are never answered."""
    should = np.flatnonzero(shares * len(classes) >= EXPECTED)
    never = should[~np.isin(should, classes)]
    if len(should) > 1 and len(never) > MISSING_SHARE * len(should):
        names = some_of([head.class_values[index] for index in never.tolist()])
        yield (
            f"head {head.name!r}: {len(never):,} of {len(should):,} classes that a test like train would show are "
            f"never answered ({names}); are classes in the model's order?"
        )


def _named(head: Head, answer: npt.NDArray[np.generic]) -> str:
    if not answer.ndim:
        return head.class_values[int(answer)]
    return " ".join(f"{float(value):.4g}" for value in answer.ravel()[:5].tolist()) + (
        " ..." if answer.size > 5 else ""
    )


def _same_answers(path: Path, sample: Path) -> bool:
    ours, theirs = read_columns(path), read_columns(sample)
    return list(ours) == list(theirs) and all((ours[name] == theirs[name]).all() for name in ours)


def _points(task: Task, path: Path) -> Iterator[str]:
    """Yield a line where class numbers are written as `3.0`, which some metrics refuse."""
    columns = read_columns(path)
    columns.pop(task.submission.id_column)
    known = {value for head in task.heads.values() for value in head.class_values}
    for name, values in columns.items():
        pointed = [value for value in np.unique(values).tolist() if value.endswith(".0") and value not in known]
        if pointed:
            shown = some_of(pointed)
            yield f"{path}: column {name!r} writes classes as {shown}; some metrics refuse that, write integers"
