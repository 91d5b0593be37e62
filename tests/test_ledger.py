from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_wide, wide_task

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.ledger import (
    FILE,
    entry_of,
    merge_ledgers,
    note_run,
    read_ledger,
    read_runs,
    settings_of,
    write_ledger,
)
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import FoldSummary, Run, read_run, write_run
from kaggle_kit.runs_command import add_runs_parser, with_listing
from kaggle_kit.scores import Score, SplitScore
from kaggle_kit.task import Task
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
    ids = np.array([f"Train_{i}" for i in range(6)])
    fold = np.arange(6) % 2
    Folds(ids=ids, fold=fold, unseen=fold > 5, scheme="stratified", seed=7, data_hash="x").save(
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
    assert found["a"].folds == "stratified 2, seed 7"
    assert found["a"].interval == pytest.approx((0.89, 0.92))
    assert (found["b"].public, found["b"].author) == (0.8, "anna")


def test_an_entry_holds_the_settings_that_differ_from_the_defaults(tmp_path: Path) -> None:
    config = TrainConfig(model=ModelConfig(name="resnet50", input_size=(64, 96)), epochs=3)
    run = make_run(tmp_path / "a", config=config)
    assert entry_of(run).settings == {"model.name": "resnet50", "model.input_size": [64, 96], "epochs": 3}
    assert settings_of(TrainConfig())["optim.lr"] == 2e-3


def test_every_kind_of_setting_comes_back_from_the_ledger(tmp_path: Path) -> None:
    model = ModelConfig(pretrained=True, input_size=(64, 96), dropout=0.5)
    run = make_run(tmp_path / "a", config=TrainConfig(model=model, loader=LoaderConfig(num_workers=0), epochs=3))
    note_run(tmp_path / "a", public=0.8)
    (read,) = read_ledger(tmp_path / FILE).entries
    assert read.settings == entry_of(run).settings
    assert read.settings["model.pretrained"] is True and read.settings["loader.num_workers"] == 0


def test_a_run_on_some_folds_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    write_run(dataclasses.replace(run, folds={1: run.folds[1]}))
    assert entry_of(read_run(tmp_path / "a")).folds == "stratified 2, seed 7, only 1"
    (tmp_path / "a" / "folds.parquet").write_bytes(b"cut")
    assert entry_of(read_run(tmp_path / "a")).folds == ""


def test_runs_of_the_same_name_have_their_own_ids_and_moving_keeps_it(tmp_path: Path) -> None:
    first = entry_of(make_run(tmp_path / "anna" / "a", created="2026-01-01T00:00:00+00:00"))
    second = entry_of(make_run(tmp_path / "ben" / "a", created="2026-01-01T00:00:01+00:00"))
    assert first.run_id != second.run_id
    (tmp_path / "anna").rename(tmp_path / "moved")
    assert entry_of(read_run(tmp_path / "moved" / "a")).run_id == first.run_id


def test_runs_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    for name, content in (("old", b'{"format": 1}'), ("cut", b'{"format'), ("binary", b"\xff\xfe\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
    listing = read_runs(tmp_path)
    assert names(listing.entries) == ["good"]
    assert len(listing.problems) == 3
    assert "old is not listed" in listing.problems[2] and "train the run again" in listing.problems[2]


def test_a_later_note_keeps_what_it_does_not_give(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8, note="tta x4", author="anna")
    note_run(tmp_path / "a", public=0.81)
    noted = note_run(tmp_path / "a", private=0.7)
    assert (noted.public, noted.private, noted.note, noted.author) == (0.81, 0.7, "tta x4", "anna")
    assert read_runs(tmp_path).entries == read_ledger(tmp_path / FILE).entries == (noted,)
    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["format"] for line in lines] == [1, 1, 1]


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
    assert "1 damaged line(s) skipped: 2 (" in listing.problems[0]


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"[1, 2]", b"null", b'{"format": 9}', b'{"format": 1, "run_id": 3}', b"[" * 100_000, b"\x00\r"],
)
def test_damaged_lines_are_counted_and_the_others_read(tmp_path: Path, damage: bytes) -> None:
    make_run(tmp_path / "a")
    note_run(tmp_path / "a", public=0.8)
    path = tmp_path / FILE
    path.write_bytes(damage + b"\n\n" + path.read_bytes())
    ledger = read_ledger(path)
    assert [one.public for one in ledger.entries] == [0.8]
    assert "1 damaged line(s) skipped: 1 (" in ledger.problems[0]


def test_two_processes_that_note_at_once_lose_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from kaggle_kit.ledger import note_run
for number in range(20):
    note_run(Path(sys.argv[1]), public=number / 100, note=f"{number}")
"""
    for name in "ab":
        make_run(tmp_path / name)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    for name in "ab":
        assert [line["note"] for line in lines if line["name"] == name] == [f"{number}" for number in range(20)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to note of .*a; give .*--public 0.9812"),
        ({"note": "", "author": "x"}, "nothing to note"),
        ({"public": float("nan")}, "`public` is nan; give the number"),
        ({"private": float("inf")}, "`private` is inf; give the number"),
    ],
)
def test_nonsense_is_not_noted(tmp_path: Path, values: dict, message: str) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(SettingError, match=message):
        note_run(tmp_path / "a", **values)
    assert not (tmp_path / FILE).exists()


def test_folders_that_hold_no_runs_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(DataError, match=r"there is no folder '.*absent'; give the one"):
        read_runs(tmp_path / "absent")
    with pytest.raises(DataError, match=r"a is a run itself; list the folder that holds it: kaggle-kit runs /"):
        read_runs(tmp_path / "a")
    with pytest.raises(DataError, match="no finished run"):
        note_run(tmp_path, public=0.5)
    assert read_runs(tmp_path / "a" / "..").entries


def team(tmp_path: Path) -> tuple[Path, Path]:
    """Two teammates: a run of each, one that both have, and notes by both."""
    for who in ("anna", "ben"):
        make_run(tmp_path / who / f"of_{who}", 0.9)
        make_run(tmp_path / who / "shared", 0.95)
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
    make_run(tmp_path / "carl" / "shared", 0.95)
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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("runs", "runs list"),
        ("runs DIR", "runs list DIR"),
        ("runs DIR --plot cv.png", "runs list DIR --plot cv.png"),
        ("runs --plot cv.png", "runs list --plot cv.png"),
        ("runs --json", "runs list --json"),
        ("runs ./note", "runs list ./note"),
        ("runs list DIR", "runs list DIR"),
        ("runs note RUN --public 0.9", "runs note RUN --public 0.9"),
        ("runs --json note RUN", "runs --json note RUN"),
        ("runs shake-up a", "runs shake-up a"),
        ("runs --help", "runs --help"),
        ("runs DIR --help", "runs list DIR --help"),
        ("train runs", "train runs"),
        ("--version", "--version"),
        ("", ""),
    ],
)
def test_runs_without_a_subcommand_lists(typed: str, meant: str) -> None:
    assert with_listing(typed.split()) == meant.split()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kaggle-kit")
    subparsers = parser.add_subparsers()

    def add(name: str, run: object, purpose: str, example: str) -> argparse.ArgumentParser:
        one = subparsers.add_parser(name, help=purpose, epilog=example)
        one.add_argument("--json", action="store_true")
        one.add_argument("--debug", action="store_true")
        one.set_defaults(run=run)
        return one

    add_runs_parser(add)
    return parser


def call(*words: object) -> tuple[dict, argparse.Namespace]:
    options = make_parser().parse_args(with_listing(["runs", *map(str, words)]))
    result, code = options.run(options)
    assert code == 0
    return result, options


def test_the_commands_note_list_export_and_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, other = tmp_path / "runs", tmp_path / "other"
    for number in range(3):
        make_run(runs / f"run{number}", 0.9 + number / 100)
    result, _ = call("note", runs / "run0", "--public", "0.88", "--private", "0.87", "--note", "tta x4")
    assert result["run"].private == 0.87
    assert 'run0: CV 0.9000, public 0.8800 (-0.0200), private 0.8700 (-0.0300), "tta x4"' in capsys.readouterr().out
    result, options = call(runs, "--plot", tmp_path / "cv.png", "--json")
    assert options.json and not options.debug
    assert names(result["runs"]) == ["run2", "run1", "run0"]
    assert result["plot"].is_file() and result["tasks"][0]["changed"] == []
    assert "note 2 more to see whether CV can be trusted" in capsys.readouterr().out
    call("export", runs, "--out", tmp_path / "mine.jsonl", "--author", "anna")
    result, options = call("--json", "merge", other, tmp_path / "mine.jsonl")
    assert options.json and result["merged"].added == 3
    assert names(call(other)[0]["runs"]) == ["run2", "run1", "run0"]


def test_every_subcommand_s_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("list", "note", "merge", "export", "shake-up"):
        with pytest.raises(SystemExit):
            make_parser().parse_args(["runs", name, "--help"])
        text = capsys.readouterr().out
        assert "example:\n  kaggle-kit runs" in text and "--json" in text and "exit code: 0 done" in text


def test_the_command_foresees_a_shake_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = make_wide(tmp_path / "toy")
    for number in range(2):
        run = make_run(tmp_path / f"run{number}", 0.9 + number / 100, task=toy.task)
        write_run(dataclasses.replace(run, data=toy.data))
        labels = read_run(run.folder).labels()
        make_folds(labels, num_folds=2).save(run.folder / "folds.parquet")
        rng = np.random.default_rng(number)
        probs = {
            name: rng.dirichlet(np.ones(head.num_classes), len(labels)).astype(np.float32)
            for name, head in toy.task.heads.items()
        }
        Predictions(ids=labels.ids, probs=probs).save(run.folder / "oof.npz")
    words = ("--public-images", "20", "--private-images", "40", "--public-unseen", "0", "--draws", "20")
    picture = tmp_path / "shakeup.png"
    result, options = call("shake-up", tmp_path / "run0", tmp_path / "run1", *words, "--out", picture)
    assert result["choice"] in ("run0", "run1") and options.private_unseen is None
    assert picture.is_file() and "run1" in capsys.readouterr().out
