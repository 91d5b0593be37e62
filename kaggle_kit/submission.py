"""The competition's answer file: written in the sample submission's order, atomically, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SubmissionError, some_of
from kaggle_kit.heads import Head
from kaggle_kit.labels import Classes, Labels, class_flags, class_indices, class_sets, unseen_combinations
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.predictions import Probs
from kaggle_kit.scores import SplitScore, score_split
from kaggle_kit.tables import Text, check_unique, read_columns, read_header, rows_of, write_rows
from kaggle_kit.task import Task


def expected_rows(task: Task, root: Path) -> Text:
    """Return the ids the sample submission asks for, in its order: (rows,) text.

    Raises:
        DataError: When the sample submission is missing, lacks its id column or repeats an id, or does not have the
            columns of classes that it should, or has them where it should not.
    """
    path = root / task.submission.file
    _check_sample(task, path)
    ids = read_columns(path, [task.submission.id_column])[task.submission.id_column]
    check_unique(ids, path)
    return ids


def _check_sample(task: Task, path: Path) -> None:
    """Refuse a sample submission that spreads classes over columns and a task that does not, or the reverse."""
    form, header = task.submission, read_header(path)
    wanted = [form.id_column, *_answer_columns(task)]
    if form.form == "column_per_class" and header and header != wanted:
        raise DataError(
            f"{path} has columns {some_of(header, 9)}; expected {some_of(wanted, 9)}, as `submission.form` is "
            "column_per_class; list the heads' `classes` or `values` as the file does, in its order"
        )
    for name in task.multilabel_heads if form.form == "row_per_image" else ():
        if set(task.heads[name].class_values) <= set(header) and not set(wanted) <= set(header):
            raise DataError(
                f"{path} has a column for each class of head {name!r} and none of {some_of(wanted[1:])}; set "
                "`submission.form` to column_per_class in the task"
            )


def unfilled_columns(task: Task, root: Path) -> list[str]:
    """Return the sample submission's columns that a submission of this task will not have."""
    own = [task.submission.id_column, *_submission_columns(task)]
    return [name for name in read_header(root / task.submission.file) if name not in own]


def check_columns(task: Task, root: Path) -> None:
    """Refuse a task whose submission has columns that the sample submission lacks, where that is there.

    Raises:
        DataError: Naming both.
    """
    path = root / task.submission.file
    header, own = read_header(path), [task.submission.id_column, *_submission_columns(task)]
    if header and not set(own) <= set(header):
        raise DataError(
            f"{path} has the columns {some_of(header, 9)}, and a submission of this task {some_of(own, 9)}; mend the "
            "task's `submission` (form, id, target) or its heads' names"
        )


def writes_probs(task: Task) -> bool:
    """Return whether a submission holds probabilities, rather than what was decided."""
    return task.submission.form == "column_per_class" and task.metric in PROBABILITY_METRICS


def expected_images(task: Task, rows: Text) -> Text:
    """Return the image ids that these submission rows ask about, in order of first mention.

    Raises:
        SubmissionError: When a row's id does not name an image and a head of the task.
    """
    if task.submission.form != "row_per_head":
        return rows
    images, _ = split_row_ids(task, rows)
    unique, first = np.unique(images, return_index=True)
    return unique[np.argsort(first)] if len(unique) else images


def split_row_ids(task: Task, rows: Text) -> tuple[Text, Text]:
    """Return the image id and the head of each `row_per_head` id.

    Raises:
        SubmissionError: For an id that does not follow the task's `row_id`.
    """
    pattern = _row_id_pattern(task)
    found = [pattern.fullmatch(str(row)) for row in rows]
    if None in found:
        row = rows[found.index(None)]
        raise SubmissionError(
            f"row id {str(row)!r} does not read as {task.submission.row_id!r} with one of the heads "
            f"{', '.join(task.heads)}; mend the task's `submission.row_id` or heads"
        )
    images = [match["image_id"] for match in found if match]
    heads = [match["head"] for match in found if match]
    return np.array(images, dtype=np.str_), np.array(heads, dtype=np.str_)


def _row_id_pattern(task: Task) -> re.Pattern[str]:
    heads = "|".join(re.escape(head) for head in sorted(task.heads, key=len, reverse=True))
    pattern = re.escape(task.submission.row_id)
    pattern = pattern.replace(re.escape("{image_id}"), "(?P<image_id>.+?)")
    return re.compile(pattern.replace(re.escape("{head}"), f"(?P<head>{heads})"))


def write_submission(
    task: Task,
    path: Path,
    *,
    rows: Text,
    ids: Text,
    decided: Classes,
    probs: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Write the submission atomically, with exactly the rows asked for.

    Args:
        task: Gives the form and what a class is called.
        path: The CSV file to write.
        rows: Submission ids in order, from `expected_rows`.
        ids: (N,) image ids.
        decided: {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}.
        probs: {head: (N, C) probabilities}; needed where `writes_probs`.

    Raises:
        SubmissionError: When a row asks for an image that was not predicted.
    """
    form = task.submission
    if form.form == "column_per_class":
        spread = _spread(task, decided, probs)[_places(rows, ids)].tolist()
        lines = ([row, *values] for row, values in zip(rows.tolist(), spread, strict=True))
        write_rows(path, [form.id_column, *_answer_columns(task)], lines)
        return
    values = {name: _class_texts(head, decided[name]) for name, head in task.heads.items()}
    if form.form == "row_per_head":
        images, heads = split_row_ids(task, rows)
        places = _places(images, ids)
        answers = [str(values[head][place]) for head, place in zip(heads.tolist(), places.tolist(), strict=True)]
        write_rows(path, [form.id_column, form.target], zip(rows.tolist(), answers, strict=True))
        return
    places = _places(rows, ids)
    columns = [values[name][places].tolist() for name in task.heads]
    write_rows(path, [form.id_column, *_answer_columns(task)], zip(rows.tolist(), *columns, strict=True))


def _class_texts(head: Head, decided: npt.NDArray[Any]) -> Text:
    """Return (N,) what files write for (N,) class indices, or (N, C) of 0 and 1."""
    names = np.array(head.class_values)
    if decided.ndim == 1:
        return np.asarray(names[decided], np.str_)
    return np.array([head.separator.join(names[row > 0].tolist()) for row in decided], np.str_)


def _spread(task: Task, decided: Classes, probs: Mapping[str, npt.NDArray[Any]] | None) -> npt.NDArray[Any]:
    """Return (N, columns) one column for each class of each head."""
    if writes_probs(task):
        assert probs is not None, f"metric {task.metric} needs probabilities in the submission"
        return np.concatenate([np.asarray(probs[name], np.float32) for name in task.heads], axis=1)
    parts = []
    for name, head in task.heads.items():
        many = decided[name].ndim == 2
        parts.append(decided[name] if many else decided[name][:, None] == np.arange(head.num_classes))
    return np.concatenate(parts, axis=1).astype(np.int64)


def _places(images: Text, ids: Text) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    places = rows_of(images, ids)
    if (places < 0).any():
        missing = np.unique(images[places < 0])
        raise SubmissionError(
            f"{len(missing):,} image(s) of the sample submission have no prediction: {some_of(missing)}; "
            "is a test shard or file missing?"
        )
    return places


def _submission_columns(task: Task) -> list[str]:
    """Return a submission's columns but its ids'."""
    return [task.submission.target] if task.submission.form == "row_per_head" else _answer_columns(task)


def _answer_columns(task: Task) -> list[str]:
    if task.submission.form == "column_per_class":
        return [value for head in task.heads.values() for value in head.class_values]
    return [task.submission.target] if len(task.heads) == 1 else list(task.heads)


def read_submission(task: Task, path: Path) -> tuple[Text, Classes]:
    """Read a submission or a solution.

    Returns:
        Image ids (N,) in the file's order and {head: (N,) class indices, or of multi-label heads (N, C) uint8 of 0
        and 1}.

    Raises:
        DataError: For a missing file or column, a repeated id, or a value that is none of a head's classes.
        SubmissionError: For an id that names no head, or an image that lacks a head.
    """
    form = task.submission
    if form.form != "row_per_head":
        table = read_columns(path, [form.id_column, *_answer_columns(task)])
        ids = table[form.id_column]
        check_unique(ids, path)
        if form.form == "column_per_class":
            return ids, {name: _gathered(head, table, ids, path) for name, head in task.heads.items()}
        columns = zip(task.heads.items(), _answer_columns(task), strict=True)
        return ids, {name: _read_classes(head, table[column], ids, path) for (name, head), column in columns}
    table = read_columns(path, [form.id_column, form.target])
    check_unique(table[form.id_column], path)
    images, heads = split_row_ids(task, table[form.id_column])
    ids = expected_images(task, table[form.id_column])
    decided = {}
    for name, head in task.heads.items():
        mine = heads == name
        places = rows_of(ids, images[mine])
        if (places < 0).any():
            raise SubmissionError(f"{path}: {some_of(ids[places < 0])} lack a row for head {name!r}; add it")
        decided[name] = _read_classes(head, table[form.target][mine][places], ids, path)
    return ids, decided


def _read_classes(head: Head, values: Text, ids: Text, path: Path) -> npt.NDArray[Any]:
    read = class_sets if head.kind == "multilabel" else class_indices
    return read(head, values, ids, path)


def _gathered(head: Head, table: Mapping[str, Text], ids: Text, path: Path) -> npt.NDArray[Any]:
    """Return a head's classes from a column for each of them."""
    flags = class_flags(head, table, ids, path)
    if head.kind == "multilabel":
        return flags
    wrong = flags.sum(axis=1) != 1
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}: {str(ids[row])!r} has {flags[row].sum()} of the {head.num_classes} classes of head "
            f"{head.name!r}; expected a single 1, {int(wrong.sum()):,} row(s) in all; mend the file"
        )
    return np.asarray(flags.argmax(axis=1), np.int64)


def read_probs(task: Task, path: Path) -> tuple[Text, Probs]:
    """Read a submission that holds probabilities.

    Returns:
        Image ids (N,) in the file's order and {head: (N, C) float32}.

    Raises:
        DataError: For a missing file or column, a repeated id, or a value that is no number from 0 to 1.
    """
    table = read_columns(path, [task.submission.id_column, *_answer_columns(task)])
    ids = table.pop(task.submission.id_column)
    check_unique(ids, path)
    for column, values in table.items():
        wrong = [not _is_share(value) for value in values.tolist()]
        if any(wrong):
            row = wrong.index(True)
            raise DataError(
                f"{path}: column {column!r} of {str(ids[row])!r} is {str(values[row])!r}; expected a probability, "
                f"0 to 1; {sum(wrong):,} row(s) in all"
            )
    heads = task.heads.items()
    return ids, {n: np.stack([table[v] for v in h.class_values], axis=1).astype(np.float32) for n, h in heads}


def _is_share(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def score_submission(
    task: Task, submission: Path, solution: Path, *, train: Labels | None = None, draws: int = 0
) -> SplitScore:
    """Score a submission against the solution, joined by id.

    Args:
        task: The competition.
        submission: The answer.
        solution: The truth, in the form of a submission.
        train: The train labels: with them, combinations that train shows and does not show are scored apart.
        draws: Resamples of the images for the 95 % intervals; 0 for no intervals.

    Raises:
        DataError: When a file is missing or holds an unknown class.
        SubmissionError: When the submission lacks an image of the solution.
    """
    ids, truth = read_submission(task, solution)
    answered, answers = (read_probs if writes_probs(task) else read_submission)(task, submission)
    rows = rows_of(ids, answered)
    if (rows < 0).any():
        missing = ids[rows < 0]
        raise SubmissionError(
            f"{submission} lacks {len(missing):,} of {len(ids):,} images of {solution}: "
            f"{some_of(missing)}; predict them"
        )
    labels = Labels(ids=ids, classes=truth)
    unseen = None if train is None else unseen_combinations(labels, train)
    return score_split(task, truth, {head: values[rows] for head, values in answers.items()}, unseen, draws=draws)


def validate_submission(task: Task, path: Path, *, rows: Text) -> None:
    """Check a submission as the competition would: columns, ids, their order, and values.

    Args:
        task: The competition.
        path: The submission.
        rows: Submission ids in order, from `expected_rows`.

    Raises:
        SubmissionError: With the first thing the competition would refuse.
    """
    form = task.submission
    answers = _submission_columns(task)
    if not path.is_file():
        raise SubmissionError(f"{path} is missing; the kernel must write it")
    table = read_columns(path)
    if list(table) != [form.id_column, *answers]:
        raise SubmissionError(f"{path} has columns {list(table)}; expected {[form.id_column, *answers]}")
    ids = table[form.id_column]
    if len(ids) != len(rows):
        raise SubmissionError(f"{path} has {len(ids):,} rows; the sample submission has {len(rows):,}")
    if (ids != rows).any():
        row = int(np.argmax(ids != rows))
        raise SubmissionError(
            f"{path} line {row + 2} is {str(ids[row])!r}; the sample submission has {str(rows[row])!r} there; "
            "write rows in its order"
        )
    if form.form != "row_per_head":
        (read_probs if writes_probs(task) else read_submission)(task, path)
        return
    images, heads = split_row_ids(task, ids)
    for name, head in task.heads.items():
        mine = heads == name
        _read_classes(head, table[form.target][mine], images[mine], path)
