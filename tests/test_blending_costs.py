from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from conftest import Toy

from kaggle_kit.blending.costs import Costs, measure_costs, read_costs
from kaggle_kit.errors import CheckpointError, DataError, SettingError
from kaggle_kit.runs import Run


def costs_file(folder: Path, **changed: object) -> Path:
    path = folder / "costs.json"
    values = {"format": 1, "kind": "costs", "device": "Tesla T4", "runs": {"a": 0.012, "b": 3}} | changed
    path.write_text(json.dumps(values))
    return path


def test_costs_are_those_of_the_file(tmp_path: Path) -> None:
    seconds = {"a": 0.012, "\u0995 b": 3}
    costs = read_costs(costs_file(tmp_path, runs=seconds), ["a", "\u0995 b"])
    assert costs == Costs(seconds=seconds, device="Tesla T4")


def test_runs_that_nobody_asks_for_may_cost_anything(tmp_path: Path) -> None:
    costs = read_costs(costs_file(tmp_path, runs={"a": 0.5, "b": "later"}), ["a"])
    assert costs == Costs(seconds={"a": 0.5}, device="Tesla T4", measured_here=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"runs": {"a": 1}},
            r"does not say what 1 of 2 runs take: 'b'; add `runs.b`.* by the name of the run's folder$",
        ),
        ({"runs": {"a": 1, "bb": 1}}, r"'b'; add `runs.b`.* the name of the run's folder; did you mean 'bb'\?$"),
        ({"runs": {}}, r"2 of 2 runs take: 'a', 'b'; add `runs.a`"),
        ({"runs": {"a": 1, "b": 0}}, r"costs.json: run 'b' takes 0 seconds .* above 0; mend `runs`"),
        ({"runs": {"a": 1, "b": -0.5}}, r"run 'b' takes -0.5"),
        ({"runs": {"a": float("nan"), "b": 1}}, r"run 'a' takes nan"),
        ({"runs": {"a": float("inf"), "b": 1}}, r"run 'a' takes inf"),
        ({"runs": {"a": "fast", "b": 1}}, r"run 'a' takes 'fast'"),
        ({"runs": {"a": True, "b": 1}}, r"run 'a' takes True"),
        ({"runs": {"a": None, "b": 1}}, r"run 'a' takes None"),
        ({"runs": [1, 2]}, r"holds `runs` list .*seconds: \{\"format\": 1"),
        ({"device": ""}, r"`device` '', rather than .*; expected, by the names of the runs' folders"),
        ({"device": None}, r"`device` None"),
        ({"kind": "blend"}, r"of kind 'blend' and format 1, rather than 'costs' and 1; expected, by the names"),
        ({"format": 2}, r"format 2, rather than 'costs' and 1; expected"),
    ],
)
def test_a_file_that_says_no_costs_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_costs(costs_file(tmp_path, **changed), ["a", "b"])


def test_a_run_is_not_taken_for_another_that_is_given(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"'resnet_b'; add") as caught:
        read_costs(costs_file(tmp_path, runs={"resnet_a": 1}), ["resnet_a", "resnet_b"])
    assert "mean" not in str(caught.value) and "?" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "kind None"), ("", "is not JSON")])
def test_a_file_of_something_else_is_refused_with_an_example_that_works(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=message) as caught:
        read_costs(path, ["resnet18"])
    said = str(caught.value)
    path.write_text(said[said.index('{"format"') :])
    assert read_costs(path, ["resnet18"]).device == "Tesla T4"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no file of costs .*nowhere.json"):
        read_costs(tmp_path / "nowhere.json", ["a"])


def test_a_run_is_measured_with_all_its_fold_models(trained: tuple[Toy, list[Run]]) -> None:
    runs = trained[1]
    costs = measure_costs(runs, images=8, seconds_a_run=0)
    assert costs.measured_here and costs.device
    assert list(costs.seconds) == [run.name for run in runs]
    assert all(0 < seconds < 10 for seconds in costs.seconds.values())
    assert len(runs[0].folds) == 2


def test_fold_models_add_up(trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained[1][0]
    single = dataclasses.replace(run, folds={0: run.folds[0]})
    monkeypatch.setattr("kaggle_kit.blending.costs._time_image", lambda timed, limit_s: 0.25)
    assert measure_costs([run]).seconds == {run.name: 0.5}
    assert measure_costs([single]).seconds == {run.name: 0.25}


@pytest.mark.parametrize(
    ("rounds", "steady"), [((0.2, 0.21, 0.25), True), ((0.2, 0.9, 0.21), False), ((0.5, 0.2, 0.2), False)]
)
def test_runs_take_turns_and_the_fastest_round_counts(
    trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch, rounds: tuple[float, ...], steady: bool
) -> None:
    runs, turns = trained[1], []

    def took(timed: object, *, limit_s: float) -> float:
        assert limit_s == 2.0
        turns.append(id(timed))
        return rounds[(len(turns) - 1) // len(runs)]

    monkeypatch.setattr("kaggle_kit.blending.costs._time_image", took)
    costs = measure_costs(runs, images=4, seconds_a_run=6.0)
    assert turns == turns[: len(runs)] * 3 and len(set(turns)) == len(runs)
    assert costs.seconds == pytest.approx({run.name: 0.2 * len(run.folds) for run in runs})
    assert costs.steady is steady


def test_the_device_counts_threads_in_words(trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("kaggle_kit.blending.costs._time_image", lambda timed, limit_s: 0.25)
    said = []
    for count in (1, 2):
        monkeypatch.setattr("torch.get_num_threads", lambda count=count: count)
        said.append(measure_costs(trained[1][:1], images=2).device)
    assert said == ["this CPU, 1 thread", "this CPU, 2 threads"]


def test_a_run_whose_images_are_gone_cannot_be_measured(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = dataclasses.replace(trained[1][0], packed=tmp_path / "gone")
    with pytest.raises(
        DataError, match=rf"run '{run.name}' cannot be measured .*gone is no packed store.*file of costs"
    ):
        measure_costs([run])


def test_a_run_whose_images_have_another_size_cannot_be_measured(trained: tuple[Toy, list[Run]]) -> None:
    run = trained[1][0]
    task = dataclasses.replace(run.task, stored=dataclasses.replace(run.task.stored, height=12, fit="stretch"))
    with pytest.raises(DataError, match=r"images of \(24, 32, 1\), and it was trained on \(12, 32, 1\)"):
        measure_costs([dataclasses.replace(run, task=task)])


def test_a_run_without_checkpoint_cannot_be_measured(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        measure_costs([dataclasses.replace(trained[1][0], folder=tmp_path)])


def test_measuring_without_torch_says_what_to_install(
    trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r"needs torch, .* install kaggle_kit\[train\], or give a file of costs"):
        measure_costs(trained[1])
