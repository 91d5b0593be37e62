from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy, wide_task

from kaggle_kit.errors import DataError, KitError, SubmissionError
from kaggle_kit.labels import Labels
from kaggle_kit.submission import (
    check_columns,
    expected_images,
    expected_rows,
    read_submission,
    score_submission,
    split_row_ids,
    unfilled_columns,
    validate_submission,
    write_submission,
)
from kaggle_kit.task import task_from_plain, task_to_plain

IDS = np.array(["Test_1", "Test_0"])
DECIDED = {"root": np.array([2, 0]), "vowel": np.array([1, 0])}


def test_rows_follow_the_sample_submission(wide: Toy, tmp_path: Path) -> None:
    rows = expected_rows(wide.task, wide.data)
    assert expected_images(wide.task, rows).tolist() == ["Test_0", "Test_1"]
    path = tmp_path / "submission.csv"
    write_submission(wide.task, path, rows=rows, ids=IDS, decided=DECIDED)
    assert path.read_text() == "row_id,target\nTest_0_vowel,0\nTest_0_root,0\nTest_1_vowel,1\nTest_1_root,2\n"
    validate_submission(wide.task, path, rows=rows)


def test_a_row_an_image_writes_the_files_values(files: Toy, tmp_path: Path) -> None:
    rows = expected_rows(files.task, files.data)
    path = tmp_path / "submission.csv"
    write_submission(files.task, path, rows=rows, ids=rows[::-1], decided={"kind": np.array([0, 1, 0, 1])})
    assert path.read_text() == "image,kind\n20.jpg,2\n21.jpg,1\n22.jpg,2\n23.jpg,1\n"
    validate_submission(files.task, path, rows=rows)


def test_an_empty_test_gives_a_valid_empty_submission(wide: Toy, tmp_path: Path) -> None:
    (wide.data / "sample_submission.csv").write_text("row_id,target\n")
    rows = expected_rows(wide.task, wide.data)
    empty = {head: np.zeros(0, np.int64) for head in DECIDED}
    write_submission(wide.task, tmp_path / "s.csv", rows=rows, ids=np.zeros(0, np.str_), decided=empty)
    validate_submission(wide.task, tmp_path / "s.csv", rows=rows)
    assert (tmp_path / "s.csv").read_text() == "row_id,target\n"


def test_an_image_without_prediction_is_named_and_nothing_is_written(wide: Toy, tmp_path: Path) -> None:
    rows = expected_rows(wide.task, wide.data)
    with pytest.raises(SubmissionError, match=r"1 image\(s\) of the sample submission have no prediction: 'Test_0'"):
        one = {head: classes[:1] for head, classes in DECIDED.items()}
        write_submission(wide.task, tmp_path / "s.csv", rows=rows, ids=IDS[:1], decided=one)
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("row_id,target", "row_id,answer", r"has columns \['row_id', 'answer'\]; expected \['row_id', 'target'\]"),
        ("Test_0_vowel,0\n", "", "has 3 rows; the sample submission has 4"),
        (
            "Test_0_vowel,0\nTest_0_root,0",
            "Test_0_root,0\nTest_0_vowel,0",
            "line 2 is 'Test_0_root'; .* has 'Test_0_vowel'",
        ),
        ("Test_1_root,2", "Test_1_root,3", r"head 'root' of 'Test_1' is '3'; expected one of its 3 classes"),
        ("Test_1_root,2", "Test_1_root,", "head 'root' of 'Test_1' is ''"),
        ("Test_1_root,2", "Test_1_root,nan", "head 'root' of 'Test_1' is 'nan'"),
    ],
)
def test_what_kaggle_would_refuse_is_refused(wide: Toy, tmp_path: Path, old: str, new: str, message: str) -> None:
    rows = expected_rows(wide.task, wide.data)
    path = tmp_path / "s.csv"
    write_submission(wide.task, path, rows=rows, ids=IDS, decided=DECIDED)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(KitError, match=message):
        validate_submission(wide.task, path, rows=rows)


def test_a_sample_that_asks_one_head_of_an_image_is_answered(wide: Toy, tmp_path: Path) -> None:
    (wide.data / "sample_submission.csv").write_text("row_id,target\nTest_0_root,0\n")
    rows = expected_rows(wide.task, wide.data)
    write_submission(wide.task, tmp_path / "s.csv", rows=rows, ids=IDS, decided=DECIDED)
    validate_submission(wide.task, tmp_path / "s.csv", rows=rows)
    assert (tmp_path / "s.csv").read_text() == "row_id,target\nTest_0_root,0\n"


def test_a_head_that_ends_another_head_s_name_is_told_apart() -> None:
    values = task_to_plain(wide_task())
    values["heads"] = {"root": {"classes": 3}, "grapheme_root": {"classes": 3}}
    images, heads = split_row_ids(task_from_plain(values), np.array(["Test_0_grapheme_root", "Test_0_root"]))
    assert images.tolist() == ["Test_0", "Test_0"] and heads.tolist() == ["grapheme_root", "root"]


def test_without_train_labels_nothing_is_called_seen(wide: Toy) -> None:
    solution = wide.hidden / "solution.csv"
    score = score_submission(wide.task, solution, solution)
    assert score.all.total == 1.0 and score.seen is None and score.unseen is None


def test_row_ids_of_unknown_heads_are_named(wide: Toy) -> None:
    path = wide.data / "sample_submission.csv"
    path.write_text(path.read_text().replace("Test_0_root", "Test_0_rooot"))
    with pytest.raises(SubmissionError, match="row id 'Test_0_rooot' does not read as"):
        expected_images(wide.task, expected_rows(wide.task, wide.data))


def test_scores_join_by_id_and_keep_unseen_apart(wide: Toy, tmp_path: Path) -> None:
    ids, truth = read_submission(wide.task, wide.hidden / "solution.csv")
    rows = expected_rows(wide.task, wide.hidden)
    path = tmp_path / "s.csv"
    write_submission(wide.task, path, rows=rows, ids=ids, decided=truth)
    train = Labels(ids=np.array(["a"]), classes={"root": np.array([0]), "vowel": np.array([0])})
    score = score_submission(wide.task, path, wide.hidden / "solution.csv", train=train)
    assert score.all.total == 1.0
    assert score.unseen is not None and score.unseen.rows > 0
    assert (score.seen.rows if score.seen else 0) + score.unseen.rows == len(ids)


def test_columns_of_the_sample_that_the_task_does_not_name_are_found(wide: Toy) -> None:
    assert unfilled_columns(wide.task, wide.data) == []
    path = wide.data / "sample_submission.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",Usage", *[line + ",Public" for line in lines[1:]]]) + "\n")
    assert unfilled_columns(wide.task, wide.data) == ["Usage"]
    assert len(expected_rows(wide.task, wide.data)) == len(lines) - 1


def test_a_sample_without_a_column_of_the_submission_is_refused(files: Toy) -> None:
    sample = files.data / files.task.submission.file
    sample.write_text(sample.read_text().replace("\n", ",Public\n").replace(",Public", ",Usage", 1))
    check_columns(files.task, files.data)  # one more than ours is none of our doing
    other = replace(files.task, submission=replace(files.task.submission, target="label"))
    with pytest.raises(DataError, match="a submission of this task 'image', 'label'; mend the task's `submission`"):
        check_columns(other, files.data)
    sample.unlink()
    check_columns(other, files.data)
