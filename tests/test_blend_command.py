from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import Toy, make_wide, random_run

from kaggle_kit.blending.costs import Costs
from kaggle_kit.cli import main
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.runs import EVERYTHING, Run, read_run, write_run

Capture = pytest.CaptureFixture[str]


def copied(run: Run, folder: Path, **changed: object) -> Run:
    """A run of the same weights and predictions, under another name."""
    shutil.copytree(run.folder, folder)
    write_run(dataclasses.replace(run, folder=folder, id="", **changed))
    return read_run(folder)


def other_size(run: Run, folder: Path) -> Run:
    model = dataclasses.replace(run.config.model, input_size=(64, 64))
    return copied(run, folder, config=dataclasses.replace(run.config, model=model))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs of the same weights, which are always averaged; read-only."""
    folder = tmp_path_factory.mktemp("pair")
    toy = make_wide(folder)
    folds = make_folds(read_labels(toy.task, toy.data), "stratified", num_folds=2, seed=0)
    first = random_run(toy, folder / "a", folds)
    return [first, copied(first, folder / "b")]


def costs_file(folder: Path, **seconds: float) -> str:
    path = folder / "costs.json"
    path.write_text(json.dumps({"format": 1, "kind": "costs", "device": "Tesla T4", "runs": seconds}))
    return str(path)


def command(runs: list[Run], out: Path, *asked: str) -> list[str]:
    return ["blend", *(str(run.folder) for run in runs), "--out", str(out / "blend.json"), *asked, "--json"]


def blended(capsys: Capture, arguments: list[str]) -> tuple[dict, str]:
    """Return the result for `--json` and what was printed before it."""
    assert main(arguments) == 0
    text, _, result = capsys.readouterr().out.strip().rpartition("\n")
    return json.loads(result), text


def refused(capsys: Capture, arguments: list[str]) -> str:
    """Return the one line on standard error."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def quick(out: Path) -> list[str]:
    """Options that soups are tried with: nothing is searched, and nothing measured."""
    return ["--method", "mean", "--decision", "argmax", "--costs", "none", "--soup", str(out / "soups")]


def test_the_result_names_what_was_chosen_and_where_it_lies(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: Capture
) -> None:
    runs = trained[1]
    result, text = blended(capsys, command(runs, tmp_path, "--method", "mean", "--costs", "none"))
    assert set(result) >= {
        *("out", "page", "runs", "shares", "strategies", "steps", "score", "prefixes", "frontier", "seconds"),
        *("scores", "candidates", "prior_shift", "prior_shift_effects"),
    }
    assert sorted(result["runs"]) == sorted(run.name for run in runs)
    assert Path(result["out"]).is_file() and Path(result["page"]).is_file()
    assert [prefix["runs"] for prefix in result["prefixes"]] == [result["runs"][:1], result["runs"]]
    assert all(f"{result[name]}: " in text for name in ("out", "page"))


def test_a_mean_that_is_asked_for_weighs_all_runs_equally(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: Capture
) -> None:
    runs = trained[1]
    result, _ = blended(capsys, command(runs, tmp_path, "--method", "mean", "--costs", "none"))
    assert result["strategies"] == dict.fromkeys(runs[0].task.heads, "mean")
    assert result["shares"] == pytest.approx({run.name: 0.5 for run in runs})


def test_without_costs_nothing_is_measured_and_none_are_told(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("kaggle_kit.blending.costs._time_image")
    result, _ = blended(capsys, command(trained[1], tmp_path, "--method", "mean", "--costs", "none"))
    assert result["seconds"] == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--budget", "2"], "--budget and --images go together"),
        (["--images", "200000"], "--budget and --images go together"),
        (["--costs", "missing.json"], "there is no file of costs 'missing.json'"),
        (["--costs", "missing.json", "--soup", "soups"], "there is no file of costs 'missing.json'"),
        (["--budget", "2", "--images", "9", "--costs", "none"], "budget needs to know what runs cost"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    pair: list[Run],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, command(pair, tmp_path, *asked))
    assert list(tmp_path.iterdir()) == []


def test_an_odd_run_is_blended_beside_the_soup_of_the_others(pair: list[Run], tmp_path: Path, capsys: Capture) -> None:
    odd = other_size(pair[0], tmp_path / "odd")
    result, text = blended(capsys, command([odd, *pair], tmp_path, *quick(tmp_path)))
    assert set(result["runs"]) == {"odd", "a", "b", "soup_test_resnet"}
    assert "not averaged: runs 'a' and 'odd' differ in `model.input_size`: [32, 48] and [64, 64]\n" in text
    assert "the 2 of 2 runs that make up the soup 'soup_test_resnet' were chosen by the labels" in text


def test_groups_of_one_architecture_have_a_soup_each(pair: list[Run], tmp_path: Path, capsys: Capture) -> None:
    large = other_size(pair[0], tmp_path / "c")
    runs = [*pair, large, copied(large, tmp_path / "d")]
    result, text = blended(capsys, command(runs, tmp_path, *quick(tmp_path)))
    assert {"soup_test_resnet_32x48", "a", "b", "c", "d"} <= set(result["runs"])
    made = {path.name for path in (tmp_path / "soups").iterdir()}
    assert made <= {"soup_test_resnet_32x48", "soup_test_resnet_64x64"} and "not averaged" not in text


def test_where_no_two_runs_can_be_averaged_it_says_why(pair: list[Run], tmp_path: Path, capsys: Capture) -> None:
    first, odd = pair[0], other_size(pair[0], tmp_path / "odd")
    line = refused(capsys, command([first, odd], tmp_path, *quick(tmp_path)))
    assert "no two of the 2 given are: runs 'a' and 'odd' differ in `model.input_size`: [32, 48] and [64, 64];" in line
    everything = {EVERYTHING: dataclasses.replace(first.folds[0], score=None)}
    full = [copied(first, tmp_path / name, folds=everything, like=str(first.folder)) for name in ("c", "d")]
    assert "each was trained on everything" in refused(capsys, command(full, tmp_path, *quick(tmp_path)))
    assert "'a' is the only one of test_resnet" in refused(capsys, command([first, *full], tmp_path, *quick(tmp_path)))
    assert not (tmp_path / "soups").exists()


def test_a_soup_costs_what_its_best_ingredient_costs(pair: list[Run], tmp_path: Path, capsys: Capture) -> None:
    asked = [*quick(tmp_path), "--costs", costs_file(tmp_path, a=0.25, b=0.5)]
    result, _ = blended(capsys, command(pair, tmp_path, *asked))
    assert result["seconds"] == {"a": 0.25, "b": 0.5, "soup_test_resnet": 0.25}
    assert json.loads((tmp_path / "blend.json").read_text())["seconds"]["soup_test_resnet"] == 0.25


def test_costs_that_lack_a_run_are_refused_before_soups_are_made(
    pair: list[Run], tmp_path: Path, capsys: Capture
) -> None:
    asked = [*quick(tmp_path), "--costs", costs_file(tmp_path, a=0.25)]
    assert "does not say what 1 of 2 runs take: 'b'" in refused(capsys, command(pair, tmp_path, *asked))
    assert not (tmp_path / "soups").exists()


def test_only_the_runs_given_are_measured(
    pair: list[Run], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(runs: list[Run]) -> Costs:
        assert runs == pair
        return Costs(seconds={run.name: 0.5 for run in runs}, device="here", measured_here=True)

    monkeypatch.setattr("kaggle_kit.blending.costs.measure_costs", measured)
    budget = ["--costs", "here", "--budget", "1", "--images", "7200"]
    result, _ = blended(capsys, command(pair, tmp_path, *quick(tmp_path), *budget))
    assert list(result["seconds"].values()) == [0.5] and len(result["runs"]) == 1


def test_a_run_after_prior_shift_is_no_value_of_it(pair: list[Run], tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["blend", "--prior-shift", str(pair[0].folder), "--out", str(tmp_path / "blend.json")])
    assert stopped.value.code == 2
    assert "put --prior-shift after the runs" in capsys.readouterr().err


def test_a_run_that_is_given_twice_is_named(pair: list[Run], tmp_path: Path, capsys: Capture) -> None:
    folder = str(pair[0].folder)
    assert main(["blend", folder, f"{folder}/", folder, "--out", str(tmp_path / "blend.json")]) == 2
    assert "is given 3 times; name each run once" in capsys.readouterr().err
