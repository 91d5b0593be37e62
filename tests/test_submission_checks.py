from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import files_task, wide_task

from kaggle_kit.errors import DataError
from kaggle_kit.submission_checks import look_at_submission
from kaggle_kit.task import Task, task_from_plain, task_to_plain

ROWS = np.array([f"Test_{i}_{head}" for i in range(12) for head in ("vowel", "root")])


def write(path: Path, answers: list[object], rows: np.ndarray = ROWS) -> Path:
    lines = [f"{row},{answer}" for row, answer in zip(rows.tolist(), answers, strict=True)]
    path.write_text("\n".join(["row_id,target", *lines]) + "\n")
    return path


def test_a_submission_that_varies_is_passed_over_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", [i // 2 % 2 for i in range(24)])
    sample = write(tmp_path / "sample.csv", [0] * 24)
    priors = {"root": [0.5, 0.5, 0.0], "vowel": [0.5, 0.5]}
    assert look_at_submission(wide_task(), path, rows=ROWS, sample=sample, priors=priors) == ()


def test_the_same_answer_everywhere_is_said_for_each_head(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", [i % 2 + (i // 2 % 2 if i % 2 else 0) for i in range(24)])
    (line,) = look_at_submission(wide_task(), path, rows=ROWS)
    assert line.startswith("head 'vowel': all 12 images have the same answer (0)")
    (line,) = look_at_submission(wide_task(), path, rows=ROWS, priors={"root": [0, 0.5, 0.5], "vowel": [0.9, 0.1]})
    assert "train's commonest class, as good as all-default: 0" in line


def test_the_sample_itself_is_said(tmp_path: Path) -> None:
    answers = [i // 2 % 2 for i in range(24)]
    path, sample = write(tmp_path / "s.csv", answers), write(tmp_path / "sample.csv", answers)
    (line,) = look_at_submission(wide_task(), path, rows=ROWS, sample=sample)
    assert "answers what the sample submission does" in line


def test_classes_that_never_come_are_said(tmp_path: Path) -> None:
    task = task_from_plain(task_to_plain(wide_task()) | {"heads": {"root": {"classes": 20}, "vowel": {"classes": 2}}})
    rows = np.array([f"Test_{i}_{head}" for i in range(200) for head in ("vowel", "root")])
    path = write(tmp_path / "s.csv", [i // 2 % 2 for i in range(400)], rows)
    (line,) = look_at_submission(task, path, rows=rows, priors={"root": [0.05] * 20, "vowel": [0.5, 0.5]})
    assert "head 'root': 18 of 20 classes that a test like train would show are never answered ('2', '3', " in line


def test_too_few_images_prove_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", [0] * 6, ROWS[:6])
    assert look_at_submission(wide_task(), path, rows=ROWS[:6], sample=path) == ()


def test_classes_written_with_a_point_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", [f"{i // 2 % 2}.0" for i in range(24)])
    (line,) = look_at_submission(wide_task(), path, rows=ROWS)
    assert "writes classes as '0.0', '1.0'" in line


def probabilities() -> Task:
    return task_from_plain(
        task_to_plain(files_task()) | {"metric": "log_loss", "submission": {"form": "column_per_class", "id": "image"}}
    )


def test_probabilities_are_looked_at_as_such(tmp_path: Path) -> None:
    rows, path = np.array([f"{i}.jpg" for i in range(12)]), tmp_path / "s.csv"

    def say(values: list[tuple[float, float]]) -> tuple[str, ...]:
        lines = [f"{row},{a},{b}" for row, (a, b) in zip(rows.tolist(), values, strict=True)]
        path.write_text("\n".join(["image,1,2", *lines]) + "\n")
        return look_at_submission(probabilities(), path, rows=rows)

    assert say([(0.5 + i / 100, 0.5 - i / 100) for i in range(12)]) == ()
    assert "have the same answer (0.75 0.25)" in say([(0.75, 0.25)] * 12)[0]
    assert "probabilities of 11 images do not sum to 1" in say([(0.5 + i / 100, 0.4) for i in range(12)])[0]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["nan", *[0] * 23], "'Test_0' is 'nan'"),
        ([7, *[0] * 23], "'Test_0' is '7'; expected one of its 2 classes"),
    ],
)
def test_what_the_competition_would_refuse_is_an_error(answers: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        look_at_submission(wide_task(), write(tmp_path / "s.csv", answers), rows=ROWS)
