"""The competition's answer file: written in the sample submission's order, atomically, and checked."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kaggle_kit.errors import SubmissionError, some_of
from kaggle_kit.labels import Classes, Labels, class_indices, unseen_combinations
from kaggle_kit.scores import SplitScore, score_split
from kaggle_kit.tables import Text, check_unique, read_columns, rows_of, write_rows
from kaggle_kit.task import Task


def expected_rows(task: Task, root: Path) -> Text:
    """Return the ids the sample submission asks for, in its order: (rows,) text.

    Raises:
        DataError: When the sample submission is missing, lacks its id column or repeats an id.
    """
    path = root / task.submission.file
    ids = read_columns(path, [task.submission.id_column])[task.submission.id_column]
    check_unique(ids, path)
    return ids


def expected_images(task: Task, rows: Text) -> Text:
    """Return the image ids that these submission rows ask about, in order of first mention.

    Raises:
        SubmissionError: When a row's id does not name an image and a head of the task.
    """
    if task.submission.form == "row_per_image":
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


def write_submission(task: Task, path: Path, *, rows: Text, ids: Text, decided: Classes) -> None:
    """Write the submission atomically, with exactly the rows asked for.

    Args:
        task: Gives the form and what a class is called.
        path: The CSV file to write.
        rows: Submission ids in order, from `expected_rows`.
        ids: (N,) image ids.
        decided: {head: (N,) class indices}.

    Raises:
        SubmissionError: When a row asks for an image that was not predicted.
    """
    form = task.submission
    values = {name: np.array(head.class_values)[decided[name]] for name, head in task.heads.items()}
    if form.form == "row_per_head":
        images, heads = split_row_ids(task, rows)
        places = _places(images, ids)
        answers = [str(values[head][place]) for head, place in zip(heads.tolist(), places.tolist(), strict=True)]
        write_rows(path, [form.id_column, form.target], zip(rows.tolist(), answers, strict=True))
        return
    places = _places(rows, ids)
    columns = [values[name][places].tolist() for name in task.heads]
    write_rows(path, [form.id_column, *_answer_columns(task)], zip(rows.tolist(), *columns, strict=True))


def _places(images: Text, ids: Text) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    places = rows_of(images, ids)
    if (places < 0).any():
        missing = np.unique(images[places < 0])
        raise SubmissionError(
            f"{len(missing):,} image(s) of the sample submission have no prediction: {some_of(missing)}; "
            "is a test shard or file missing?"
        )
    return places


def _answer_columns(task: Task) -> list[str]:
    return [task.submission.target] if len(task.heads) == 1 else list(task.heads)


def read_submission(task: Task, path: Path) -> tuple[Text, Classes]:
    """Read a submission or a solution.

    Returns:
        Image ids (N,) in the file's order and {head: (N,) class indices}.

    Raises:
        DataError: For a missing file or column, a repeated id, or a value that is none of a head's classes.
        SubmissionError: For an id that names no head, or an image that lacks a head.
    """
    form = task.submission
    if form.form == "row_per_image":
        table = read_columns(path, [form.id_column, *_answer_columns(task)])
        ids = table[form.id_column]
        check_unique(ids, path)
        columns = zip(task.heads.items(), _answer_columns(task), strict=True)
        return ids, {name: class_indices(head, table[column], ids, path) for (name, head), column in columns}
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
        decided[name] = class_indices(head, table[form.target][mine][places], ids, path)
    return ids, decided


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
    answered, decided = read_submission(task, submission)
    rows = rows_of(ids, answered)
    if (rows < 0).any():
        missing = ids[rows < 0]
        raise SubmissionError(
            f"{submission} lacks {len(missing):,} of {len(ids):,} images of {solution}: "
            f"{some_of(missing)}; predict them"
        )
    labels = Labels(ids=ids, classes=truth)
    unseen = None if train is None else unseen_combinations(labels, train)
    return score_split(task, truth, {head: classes[rows] for head, classes in decided.items()}, unseen, draws=draws)


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
    answers = [form.target] if form.form == "row_per_head" else _answer_columns(task)
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
    if form.form == "row_per_image":
        read_submission(task, path)
        return
    images, heads = split_row_ids(task, ids)
    for name, head in task.heads.items():
        mine = heads == name
        class_indices(head, table[form.target][mine], images[mine], path)
