from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_wide
from test_ledger import make_run, names

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import make_folds
from kaggle_kit.ledger import FILE
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import read_run, write_run
from kaggle_kit.runs_command import add_runs_parser, with_listing
from kaggle_kit.settings import plain


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
        ("runs lst", "runs list lst"),
        ("runs nte RUN --public 0.9", "runs nte RUN --public 0.9"),
        ("runs --plot cv.png DIR", "runs list --plot cv.png DIR"),
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
    assert result["ledger"] == runs / FILE
    assert 'run0: CV 0.9000, public 0.8800 (-0.0200), private 0.8700 (-0.0300), "tta x4"' in capsys.readouterr().out
    result, _ = call("note", runs / "run0", "--clear", "public", "--clear", "note")
    assert (result["run"].public, result["run"].private, result["run"].note) == (None, 0.87, "")
    told = capsys.readouterr().out
    assert 'run0: CV 0.9000, private 0.8700 (-0.0300)\ntaken back: public 0.8800, note "tta x4"\n' in told
    assert result["taken_back"] == {"public": 0.88, "note": "tta x4"}
    result, options = call(runs, "--plot", tmp_path / "cv.png", "--json")
    assert options.json and not options.debug
    assert names(result["runs"]) == ["run2", "run1", "run0"]
    assert result["plot"].is_file() and result["tasks"][0]["changed"] == []
    assert "note 2 more to see whether CV can be trusted" in capsys.readouterr().out
    call("export", runs, "--out", tmp_path / "mine.jsonl", "--author", "anna")
    other.mkdir()
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
    runs = plain(result["runs"])
    assert runs[0]["name"] == result["choice"] and set(runs[0]) == {
        "name", "cv", "public", "public_interval", "private", "private_interval", "leads_public", "leads_private"
    }  # fmt: skip
    assert json.loads(json.dumps(runs)) and result["sentence"].startswith("Choose")
    assert result["notes"][-1].startswith("only 20 draw(s)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--private-unseen 40", "--private-unseen is 40.0; give a share from 0 to 1, not percent"),
        ("--public-unseen nan", "--public-unseen is nan; give a share"),
        ("--public-images 0", "--public-images is 0; give 1 or more"),
        ("--private-images -3", "--private-images is -3; give 1 or more"),
        ("--draws 0", "--draws is 0; give 1 or more"),
        ("--seed -1", "--seed is -1; give 0 or more"),
    ],
)
def test_a_shake_up_s_errors_name_the_option(words: str, message: str) -> None:
    given = ["--public-images", "9", "--private-images", "9", *words.split()]
    with pytest.raises(SettingError, match=message):
        call("shake-up", "absent", *given)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lst", "there is no folder 'lst', and no `kaggle-kit runs lst`; did you mean `list`?"),
        ("experiments", "; give a folder of runs, or one of list, note, merge, export, shake-up"),
        ("runs", "there is no folder 'runs'; give the one that holds your run folders"),
        ("deep/lst", "there is no folder 'deep/lst'; give the one"),
    ],
)
def test_a_mistyped_subcommand_is_told_from_a_folder(
    word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(message)):
        call(word)
    (tmp_path / word).mkdir(parents=True)
    assert call(word)[0]["runs"] == []


def test_a_plot_is_drawn_before_a_score_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs" / "a")
    result, _ = call(tmp_path / "runs", "--plot", tmp_path / "cv.png")
    assert result["plot"].is_file()
    assert f"{tmp_path / 'cv.png'}: CV alone; no leaderboard score noted yet: kaggle-kit" in capsys.readouterr().out


def test_different_folds_are_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, 0.9 + i / 100) for i, name in enumerate("abc")]
    for run in runs:
        call("note", run.folder, "--public", "0.8")
    dataclasses.replace(runs[0].fold_table(), seed=8).save(runs[0].folder / "folds.parquet")
    capsys.readouterr()
    result, _ = call(tmp_path)
    told = capsys.readouterr().out
    message = (
        "these runs have different folds: stratified 2, seed 7, labels 3f2a1c ('c', 'b'); "
        "stratified 2, seed 8, labels 3f2a1c ('a'); their CV compares only roughly"
    )
    assert result["problems"] == [message] and f"WARNING {message}\n" in told
    assert told.count("folds") == 4  # a run's each, and the warning's
    assert "\npublic board: " in told


def test_a_link_s_note_is_said_to_lie_beside_the_link(tmp_path: Path) -> None:
    make_run(tmp_path / "disk" / "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "disk" / "a")
    assert call("note", tmp_path / "runs" / "a", "--public", "0.7")[0]["ledger"] == tmp_path / "runs" / FILE
