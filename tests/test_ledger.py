from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import wide_task
from filelock import FileLock

from kaggle_kit.entries import entry_of, settings_of
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import Folds
from kaggle_kit.ledger import FILE, merge_ledgers, note_run, read_ledger, read_runs, write_ledger
from kaggle_kit.runs import HISTORY, FoldSummary, Run, read_run, write_run
from kaggle_kit.scores import Score, SplitScore
from kaggle_kit.task import Metric, Task
from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig


def make_run(
    folder: Path,
    total: float = 0.9,
    *,
    config: TrainConfig | None = None,
    task: Task | None = None,
    created: str = "2026-01-02T03:04:05+00:00",
    unseen: float | None = None,
) -> Run:
    """Write a run's JSON and folds, as training would leave them."""
    folder.mkdir(parents=True)
    score = Score(
        total=total, heads={"root": total - 0.01, "vowel": total + 0.02}, rows=6, interval=(total - 0.02, total + 0.01)
    )
    part = None if unseen is None else dataclasses.replace(score, total=unseen, interval=None)
    run = Run(
        folder=folder,
        task=task or wide_task(),
        config=config or TrainConfig(),
        data=folder,
        packed=folder,
        packed_key="key",
        scores=SplitScore(all=score, unseen=part),
        folds={number: FoldSummary(epoch=1, score=score, seconds=1.0) for number in range(2)},
        created=created,
    )
    write_run(run)
    run = read_run(folder)  # with its id
    ids = np.array([f"Train_{i}" for i in range(6)])
    fold = np.arange(6) % 2
    Folds(ids=ids, fold=fold, unseen=fold > 5, scheme="stratified", seed=7, data_hash="3f2a1c0b9d8e").save(
        folder / "folds.parquet"
    )
    return run


def names(entries: object) -> list[str]:
    return [one.name for one in entries]


def test_runs_one_and_two_levels_below_are_listed_with_what_was_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.91, unseen=0.5)
    make_run(tmp_path / "deeper" / "b", 0.92)
    make_run(tmp_path / "too" / "deep" / "c")
    note_run(tmp_path / "deeper" / "b", public=0.8, author="anna")
    listing = read_runs(tmp_path)
    assert listing.problems == ()
    found = {one.name: one for one in listing.entries}
    assert set(found) == {"a", "b"}
    assert found["a"].unseen == 0.5 and found["a"].seen is None and found["a"].public is None
    assert found["a"].folds == "stratified 2, seed 7, labels 3f2a1c"
    assert found["a"].interval == pytest.approx((0.89, 0.92))
    assert (found["b"].public, found["b"].author) == (0.8, "anna")


def test_every_kind_of_setting_comes_back_from_the_ledger(tmp_path: Path) -> None:
    model = ModelConfig(pretrained=True, input_size=(64, 96), dropout=0.5)
    run = make_run(tmp_path / "a", config=TrainConfig(model=model, loader=LoaderConfig(num_workers=0), epochs=3))
    note_run(tmp_path / "a", public=0.8)
    (read,) = read_ledger(tmp_path / FILE).entries
    assert read.settings == entry_of(run).settings == settings_of(run.config)
    assert read.settings["model.pretrained"] is True and read.settings["loader.num_workers"] == 0


def test_a_run_keeps_its_notes_when_its_folder_is_renamed_or_moved(tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs" / "a")
    second = make_run(tmp_path / "runs" / "b")
    assert first.id != second.id and len(first.id) == 12
    note_run(first.folder, public=0.8)
    first.folder.rename(tmp_path / "runs" / "renamed")
    second.folder.rename(tmp_path / "runs" / "a")
    listing = read_runs(tmp_path / "runs")
    assert {one.name: one.public for one in listing.entries} == {"renamed": 0.8, "a": None}
    (tmp_path / "runs" / "sub").mkdir()
    (tmp_path / "runs" / "renamed").rename(tmp_path / "runs" / "sub" / "moved")
    assert {one.name: one.public for one in read_runs(tmp_path / "runs").entries} == {"moved": 0.8, "a": None}


def test_a_run_that_a_link_leads_to_is_noted_where_the_link_is_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "disk" / "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "disk" / "a")
    note_run(tmp_path / "runs" / "a", public=0.8)
    assert [one.public for one in read_runs(tmp_path / "runs").entries] == [0.8]
    assert (tmp_path / "runs" / FILE).is_file()
    assert not (tmp_path / "disk" / FILE).exists()


def test_runs_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    for name, content in (("old", b'{"format": 1}'), ("cut", b'{"format'), ("binary", b"\xff\xfe\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
    listing = read_runs(tmp_path)
    assert names(listing.entries) == ["good"]
    assert len(listing.problems) == 3
    assert "old is not listed" in listing.problems[2] and "train the run again" in listing.problems[2]


def test_trainings_that_have_not_ended_are_told_of(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    for name in ("begun", "sweep/trial"):
        (tmp_path / name / "fold0").mkdir(parents=True)
        (tmp_path / name / "fold0" / HISTORY).touch()
        (problem,) = read_runs(tmp_path if name == "begun" else tmp_path / "sweep").problems
        assert f"the training {tmp_path / name} has not ended and is not listed" in problem
    (tmp_path / "sweep" / "trial_0003" / "fold0").mkdir(parents=True)
    (tmp_path / "sweep" / "trial_0003" / "fold0" / HISTORY).touch()  # given up by its sweep
    (problem,) = read_runs(tmp_path).problems
    assert problem.startswith("2 trainings have not ended and are not listed: ")


def test_a_later_note_keeps_what_it_does_not_give(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8, note="tta x4", author="anna")
    note_run(tmp_path / "a", public=0.81)
    noted = note_run(tmp_path / "a", private=0.7, author="ben")
    assert (noted.public, noted.private, noted.note, noted.author) == (0.81, 0.7, "tta x4", "ben")
    assert read_runs(tmp_path).entries == read_ledger(tmp_path / FILE).entries == (noted,)
    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["format"] for line in lines] == [1, 1, 1]


def test_a_note_is_signed_by_who_notes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8, author="anna")
    monkeypatch.setenv("LOGNAME", "ben")
    assert note_run(tmp_path / "a", note="also mine").author == "ben"


def test_what_was_noted_is_taken_back_and_may_be_noted_again(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8, private=0.7, note="wrong run")
    cleared = note_run(tmp_path / "a", clear=["public", "note", "public"], author="anna")
    assert (cleared.public, cleared.private, cleared.note, cleared.author) == (None, 0.7, "", "anna")
    assert json.loads((tmp_path / FILE).read_text().splitlines()[-1])["cleared"] == ["public", "note"]
    assert read_runs(tmp_path).entries == read_ledger(tmp_path / FILE).entries == (cleared,)
    assert note_run(tmp_path / "a", public=0.81).public == 0.81
    assert read_runs(tmp_path).entries[0].note == ""


def test_a_merge_keeps_what_was_taken_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "anna" / "a")
    note_run(run.folder, public=0.8)
    shutil.copytree(tmp_path / "anna", tmp_path / "ben")
    note_run(run.folder, clear=["public"])
    anna, ben = tmp_path / "anna" / FILE, tmp_path / "ben" / FILE
    original = tmp_path / "original.jsonl"
    shutil.copy(ben, original)
    assert merge_ledgers(ben, [anna]).updated == 1
    merge_ledgers(anna, [original])
    assert [read_ledger(path).entries[0].public for path in (anna, ben)] == [None, None]
    note_run(tmp_path / "ben" / "a", public=0.9)
    merge_ledgers(anna, [ben])
    assert read_ledger(anna).entries[0].public == 0.9


def test_the_last_note_wins_whatever_the_clock_says(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    ahead = note_run(tmp_path / "a", public=0.1)
    line = json.loads((tmp_path / FILE).read_text()) | {"noted": "2999-01-01T00:00:00+00:00"}
    (tmp_path / FILE).write_text(json.dumps(line) + "\n")
    assert note_run(tmp_path / "a", public=0.2).public == 0.2 != ahead.public


def test_a_cut_last_line_is_named_and_the_next_note_starts_a_new_one(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    note_run(tmp_path / "a", public=0.8)
    note_run(tmp_path / "b", public=0.7)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-40])
    listing = read_runs(tmp_path)
    assert {one.name: one.public for one in listing.entries} == {"a": 0.8, "b": None}
    assert len(listing.problems) == 1 and "line 2, the last, was cut off" in listing.problems[0]
    note_run(tmp_path / "b", public=0.75)
    listing = read_runs(tmp_path)
    assert {one.name: one.public for one in listing.entries} == {"a": 0.8, "b": 0.75}
    assert "1 line(s), 2 (" in listing.problems[0]
    assert listing.problems[0].endswith("cannot be read and are skipped; note those runs again")


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"[1, 2]", b"null", b'{"a": 9}', b'{"format": 1, "run_id": 3}', b"[" * 100_000, b"\x00\r"],
)
def test_damaged_lines_are_counted_and_the_others_read(tmp_path: Path, damage: bytes) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8)
    path = tmp_path / FILE
    path.write_bytes(damage + b"\n\n" + path.read_bytes())
    ledger = read_ledger(path)
    assert [one.public for one in ledger.entries] == [0.8]
    assert "1 line(s), 1 (" in ledger.problems[0] and ledger.problems[0].endswith("note those runs again")


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("change", [{"format": 9}, {"team": "x"}])
def test_lines_of_another_version_ask_for_an_update(tmp_path: Path, change: dict, end: bytes) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8)
    path, other = tmp_path / FILE, tmp_path / "other.jsonl"
    newer = json.dumps(json.loads(path.read_text()) | change).encode() + end
    other.write_bytes(newer)
    path.write_bytes(path.read_bytes() + newer)
    ledger = read_ledger(path)
    assert [one.public for one in ledger.entries] == [0.8]
    (problem,) = ledger.problems
    assert "1 line(s), 2 (" in problem and problem.endswith("of another kit version are skipped; update kaggle_kit")
    with pytest.raises(DataError, match=r"other.jsonl: .* of another kit version .*; update kaggle_kit"):
        merge_ledgers(path, [other])


def test_a_whole_last_line_without_a_line_break_counts(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert (read_ledger(path).entries[0].public, read_ledger(path).problems) == (0.8, ())
    path.write_bytes(path.read_bytes() + b'\n{"format": 1, "run_id": 3}')
    (problem,) = read_ledger(path).problems
    assert "cut off" not in problem and "1 line(s), 2 (`name` is missing" in problem


def test_a_ledger_that_another_process_holds_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8)
    shutil.copy(tmp_path / FILE, tmp_path / "other.jsonl")
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("kaggle_kit.ledger._LOCK_S", 0.01)
    with FileLock(tmp_path / ".ledger.lock"):
        with pytest.raises(DataError, match=r"\.ledger\.lock was held by another process for 0.01 s; end that process"):
            note_run(tmp_path / "a", public=0.9)
        with pytest.raises(DataError, match="held by another process"):
            merge_ledgers(tmp_path / FILE, [tmp_path / "other.jsonl"])
        assert (tmp_path / FILE).read_bytes() == before
    assert note_run(tmp_path / "a", public=0.9).public == 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to note of .*a; give .*--public 0.9812"),
        ({"note": "", "author": "x"}, "nothing to note"),
        ({"public": float("nan")}, "`public` is nan; give the number"),
        ({"private": float("inf")}, "`private` is inf; give the number"),
        ({"note": "tta \udcff"}, r"`note` is 'tta \\udcff', which cannot be written as UTF-8"),
        ({"public": 0.8, "author": "\udcff"}, r"`author` is '\\udcff', which cannot be written as UTF-8"),
        ({"public": 95.3}, r"--public is 95.3; macro_recall lies from 0 to 1; percent\? give --public 0.953"),
        (
            {"private": -0.1},
            "--private is -0.1; macro_recall lies from 0 to 1; give the score as the leaderboard shows",
        ),
        ({"private": 953}, "--private is 953; macro_recall lies from 0 to 1; give the score as the leaderboard shows"),
        ({"clear": ["note"]}, "--clear note: 'a' has no note to take back .nothing is noted."),
        ({"public": 0.8, "clear": ["public"]}, "`public` is 0.8 and cleared at once; give one of the two"),
    ],
)
def test_nonsense_is_not_noted(tmp_path: Path, values: dict, message: str) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(SettingError, match=message):
        note_run(tmp_path / "a", **values)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("metric", "fits", "refused", "message"),
    [
        ("log_loss", 3.2, -0.1, "log_loss lies at 0 or above"),
        ("quadratic_kappa", -0.2, -1.1, "quadratic_kappa lies from -1 to 1"),
        ("roc_auc", 1, 1.5, "roc_auc lies from 0 to 1"),
    ],
)
def test_a_score_that_the_metric_never_has_is_refused(
    tmp_path: Path, metric: Metric, fits: float, refused: float, message: str
) -> None:
    make_run(tmp_path / "a", task=dataclasses.replace(wide_task(), metric=metric))
    assert note_run(tmp_path / "a", public=fits).public == fits
    with pytest.raises(SettingError, match=f"--private is {refused}; {message}"):
        note_run(tmp_path / "a", private=refused)


def test_what_was_not_noted_cannot_be_taken_back(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", private=0.7, note="x")
    with pytest.raises(
        SettingError, match=r"--clear public: 'a' has no public score to take back \(noted: private, note\)"
    ):
        note_run(tmp_path / "a", clear=["note", "public"])
    note_run(tmp_path / "a", clear=["note"])
    with pytest.raises(SettingError, match="--clear note: 'a' has no note"):
        note_run(tmp_path / "a", clear=["note"])


def test_copies_of_a_run_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "old_b")
    listing = read_runs(tmp_path)
    message = f"{tmp_path / 'b'} and {tmp_path / 'old_b'} are the same run (a copied folder); listed as old_b"
    assert listing.problems == (message,) and names(listing.entries) == ["old_b"]


def test_a_noted_run_without_its_folder_is_told_from_a_teammate_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "anna")
    kept, lost = make_run(tmp_path / "anna" / "kept"), make_run(tmp_path / "anna" / "lost")
    make_run(tmp_path / "ben" / "of_ben")
    for run in (kept, lost):
        note_run(run.folder, public=0.8)
    note_run(tmp_path / "ben" / "of_ben", public=0.7, author="ben")
    merge_ledgers(tmp_path / "anna" / FILE, [tmp_path / "ben" / FILE])
    assert read_runs(tmp_path / "anna").gone == frozenset()
    shutil.rmtree(lost.folder)
    assert read_runs(tmp_path / "anna").gone == {lost.id}


def test_folders_that_hold_no_runs_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(DataError, match=r"there is no folder '.*absent'; give the one"):
        read_runs(tmp_path / "absent")
    with pytest.raises(DataError, match=r"a is a run itself; give the folder that holds it: /"):
        read_runs(tmp_path / "a")
    with pytest.raises(DataError, match="no finished run"):
        note_run(tmp_path, public=0.5)
    assert read_runs(tmp_path / "a" / "..").entries


def test_a_merge_refuses_folders_that_hold_no_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8)
    with pytest.raises(DataError, match=r"there is no folder '.*absent'; give the one .*, or make it"):
        merge_ledgers(tmp_path / "absent" / FILE, [tmp_path / FILE])
    with pytest.raises(DataError, match=r"a is a run itself; give the folder that holds it: /"):
        merge_ledgers(tmp_path / "a" / FILE, [tmp_path / FILE])
    assert not (tmp_path / "absent").exists() and not (tmp_path / "a" / FILE).exists()


def team(tmp_path: Path) -> tuple[Path, Path]:
    """Two teammates: a run of each, one that both have, and notes by both."""
    for who in ("anna", "ben"):
        make_run(tmp_path / who / f"of_{who}", 0.9)
    make_run(tmp_path / "anna" / "shared", 0.95)
    shutil.copytree(tmp_path / "anna" / "shared", tmp_path / "ben" / "shared")
    for who in ("anna", "ben"):
        note_run(tmp_path / who / f"of_{who}", public=0.8, author=who)
    note_run(tmp_path / "anna" / "shared", public=0.7, note="old", author="anna")
    note_run(tmp_path / "ben" / "shared", public=0.71, private=0.6, author="ben")
    note_run(tmp_path / "anna" / "shared", note="new", author="anna")
    return tmp_path / "anna" / FILE, tmp_path / "ben" / FILE


def test_merging_gives_the_same_either_way_and_again(tmp_path: Path) -> None:
    anna, ben = team(tmp_path)
    original = tmp_path / "anna_before.jsonl"
    original.write_bytes(anna.read_bytes())
    result = merge_ledgers(anna, [ben])
    assert (result.added, result.updated, result.unchanged) == (1, 1, 0)
    result = merge_ledgers(ben, [original, original])
    assert (result.added, result.updated, result.unchanged) == (1, 1, 0)
    entries = {one.name: one for one in read_ledger(anna).entries}
    assert entries == {one.name: one for one in read_ledger(ben).entries}
    shared = entries["shared"]
    assert (shared.public, shared.private, shared.note) == (0.71, 0.6, "new")
    before = anna.read_bytes()
    result = merge_ledgers(anna, [ben, anna])
    assert (result.added, result.updated, result.unchanged) == (0, 0, 3)
    assert anna.read_bytes() == before


def test_merging_does_not_depend_on_who_goes_first(tmp_path: Path) -> None:
    anna, ben = team(tmp_path)
    carl = tmp_path / "carl" / FILE
    shutil.copytree(tmp_path / "anna" / "shared", tmp_path / "carl" / "shared")
    note_run(tmp_path / "carl" / "shared", public=0.72)
    ways = []
    for number, order in enumerate(([anna, ben, carl], [carl, anna, ben], [ben, carl, anna])):
        into = tmp_path / f"way{number}.jsonl"
        for path in order:
            merge_ledgers(into, [path])
        ways.append({one.run_id: one for one in read_ledger(into).entries})
    assert ways[0] == ways[1] == ways[2]


def test_merging_names_files_that_are_no_ledgers(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other.csv holds no entry of a ledger; .* runs export"):
        merge_ledgers(tmp_path / FILE, [tmp_path / "other.csv"])
    with pytest.raises(DataError, match="no ledger file .*absent"):
        merge_ledgers(tmp_path / FILE, [tmp_path / "absent"])
    assert not (tmp_path / FILE).exists()


def test_an_export_carries_runs_that_were_never_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "anna" / "a", 0.9)
    make_run(tmp_path / "anna" / "b", 0.8)
    note_run(tmp_path / "anna" / "b", public=0.7, author="anna")
    write_ledger(tmp_path / "anna", tmp_path / "anna.jsonl", author="anna")
    make_run(tmp_path / "ben" / "c", 0.7)
    assert merge_ledgers(tmp_path / "ben" / FILE, [tmp_path / "anna.jsonl"]).added == 2
    listed = {one.name: one for one in read_runs(tmp_path / "ben").entries}
    assert {name: one.author for name, one in listed.items()} == {"a": "anna", "b": "anna", "c": ""}
    assert listed["b"].public == 0.7
    with pytest.raises(SettingError, match="the folder's own ledger; write to another"):
        write_ledger(tmp_path / "ben", tmp_path / "ben" / FILE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no run to write"):
        write_ledger(tmp_path / "empty", tmp_path / "x.jsonl")
