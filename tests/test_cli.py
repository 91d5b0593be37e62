from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Toy

from kaggle_kit import commands
from kaggle_kit.cli import main, make_parser
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.submission import read_submission
from kaggle_kit.task import task_from_plain, task_to_plain

COMMANDS = (
    *(
        "demo",
        "sample",
        "audit",
        "review",
        "folds",
        "pack",
        "train",
        "lr-find",
        "show-augment",
        "weights",
        "sweep",
        "baseline",
        "blend",
    ),
    *(
        "runs",
        "export",
        "bundle",
        "predict",
        "bench",
        "score",
        "rehearse",
        "wheelhouse",
        "kernel",
        "publish",
        "submit",
        "doctor",
    ),
)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture
def task_file(trained: tuple[Toy, list[Run]], tmp_path: Path) -> str:
    import yaml

    values = task_to_plain(trained[0].task)
    for head in values["heads"].values():
        del head["name"]
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  kaggle-kit {command}" in text
    assert "exit code: 0 done" in text and "--json" in text


def test_every_command_is_tested() -> None:
    (choices,) = [a.choices for a in make_parser()._actions if a.choices]
    assert tuple(choices) == COMMANDS


def test_the_commands_go_the_whole_way(
    trained: tuple[Toy, list[Run]], task_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy, _ = trained
    data, out = str(toy.data), tmp_path / "out"
    folds, runs, bundle = str(out / "folds.parquet"), str(out / "a"), str(out / "bundle")
    assert main(["folds", task_file, data, "--out", folds, "--n", "2", "--json"]) == 0
    made = last_json(capsys)
    assert sum(made["sizes"]) == 48
    assert made["duplicates"] == 2
    assert main(["pack", task_file, data, "--out", str(out / "packed"), "--json"]) == 0
    assert last_json(capsys)["shape"] == [24, 32, 1]
    settings = ["model=tiny_resnet", "epochs=1", "loader.batch_size=8", f"packed={out / 'packed'}"]
    train = ["train", f"task={task_file}", f"data={data}", f"folds={folds}", f"out={runs}", *settings, "--json"]
    assert main(train) == 0
    assert set(last_json(capsys)["folds"]) == {"0", "1"}
    assert main(["folds", task_file, data, "--check", folds, "--json"]) == 0
    assert {finding["verdict"] for finding in last_json(capsys)["findings"]} <= {"ok", "note"}
    assert main(["folds", task_file, data, "--out", folds, "--check"]) == 0
    assert "sound" in capsys.readouterr().out
    assert main(["runs", str(out), "--json"]) == 0
    assert last_json(capsys)["runs"][0]["name"] == "a"
    assert main(["blend", runs, "--out", str(out / "blend.json"), "--prior-shift", "--json"]) == 0
    assert last_json(capsys)["shares"] == {"a": 1.0}
    assert main(["export", runs, "--out", str(out / "onnx"), "--json"]) == 0
    assert last_json(capsys)["members"][0]["file"] == "member_a_fold0.onnx"
    assert main(["bundle", runs, "--blend", str(out / "blend.json"), "--out", bundle, "--json"]) == 0
    assert len(last_json(capsys)["members"]) == 2
    submission = str(out / "submission.csv")
    assert main(["predict", bundle, str(toy.hidden), "--out", submission, "--json"]) == 0
    assert last_json(capsys)["images"] == 9
    solution = str(toy.hidden / "solution.csv")
    assert main(["score", task_file, submission, solution, "--data", data, "--json"]) == 0
    assert 0 <= last_json(capsys)["score"]["all"]["total"] <= 1
    rehearse = ["rehearse", "submit", "--task", task_file, "--data", data, "--hidden", str(toy.hidden)]
    rehearse += ["--bundle", bundle, "--work", str(out / "rehearsal"), "--json"]
    assert main(rehearse) == 0
    assert last_json(capsys)["answer"] == "Complete"
    assert main([*rehearse, "--time-limit", "0.1s"]) == 1
    assert last_json(capsys)["answer"] == "Notebook Timeout"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folds", "bengall", "x", "--out", "y.parquet"], "did you mean 'bengali'?"),
        (
            ["train", "task=digits", "data=x", "out=y", "folds=z", "optim.lrr=1"],
            "`optim.lrr` is not a setting; did you mean 'optim.lr'?",
        ),
        (
            ["train", "task=digits", "data=x", "out=y", "folds=z", "model=resnt50"],
            "`model=resnt50` names no preset; any timm model goes by `model.name=resnt50`; did you mean 'resnet50'",
        ),
        (
            ["train", "task=digits", "data=x", "out=y", "folds=z", "optim.lr=fast"],
            "`optim.lr` is 'fast' (str); expected float",
        ),
        (["train", "task=digits", "data=x", "out=y", "folds=z", "augment=letter"], "did you mean 'letters'?"),
        (
            ["train", "task=digits", "data=x", "out=y", "folds=z", "+epoch=3"],
            "`epoch` is not a setting; did you mean 'epochs'?",
        ),
        (
            ["train", "task=digits", "data=x", "out=y", "folds=z", "fold=first"],
            "`fold` is 'first'; expected all, or a fold's number",
        ),
        (["train", "task=digits", "data"], "'data' has no '='; write settings like epochs=3"),
        (["train", "~fold", "task=digits", "data=x", "out=y", "folds=z"], "`fold` is missing"),
        (["train", "task=digits", "data=x", "out=y", "folds=z", "lr=3"], "did you mean 'optim.lr'?"),
        (["train", "task=digits"], "`data` is missing; give task=TASK data=DIR folds=FILE out=DIR"),
        (["train", "task=digits", "data=x", "out=y", "folds=z"], "there is no fold file 'z'"),
        (["folds", "digits", "x"], "say where the folds go with --out folds.parquet, or which file to check"),
        (["runs", "nowhere"], "nowhere"),
        (["blend", "nowhere", "--out", "b.json"], "nowhere holds no finished run"),
        (["predict", "nowhere", "x", "--out", "s.csv"], "nowhere is no bundle"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("kaggle-kit: ") and message in line


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("data/folds.parquet", "lies in the data folder"),
        ("folds.csv", "does not end in .parquet; write to"),
        ("data", "is a folder; give a file in it, such as"),
    ],
)
def test_results_never_take_the_place_of_other_files(
    trained: tuple[Toy, list[Run]],
    task_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    message: str,
) -> None:
    data = shutil.copytree(trained[0].data, tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    assert main(["folds", task_file, str(data), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_stored_size_that_pack_prints_is_yaml_a_task_takes(
    trained: tuple[Toy, list[Run]], task_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    out = str(tmp_path / "packed")
    assert main(["pack", task_file, str(trained[0].data), "--out", out, "--size", "12", "16"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "stored:" in line]
    values = yaml.safe_load(Path(task_file).read_text()) | yaml.safe_load(line.partition("task: ")[2])
    assert task_from_plain(values).stored_size == (12, 16)


def test_a_blend_below_its_best_run_says_so(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = trained[1]
    assert main(["blend", *[str(run.folder) for run in runs], "--out", str(tmp_path / "b.json"), "--json"]) == 0
    text = capsys.readouterr().out
    score = json.loads(text.splitlines()[-1])["score"]["total"]
    assert ("the blend scores below" in text) == (max(run.score.total for run in runs) > score)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epochs=3"], "; settings are written without dashes: epochs=3; see kaggle-kit train --help"),
        (
            ["train", "--task", "--data", "./d", "--lr=1"],
            "without dashes: task=... data=... lr=1; see ",
        ),
        (["train", "--batch-size=32"], "without dashes: batch_size=32; see kaggle-kit train --help"),
        (["sweep", "--trails", "30"], "unrecognized arguments: --trails; did you mean '--trials'?; see"),
        (["runs", "note", "r", "--publik", "0.9"], "did you mean '--public'?; see kaggle-kit runs note --help"),
        (["audit", "t", "d", "--out", "a", "--ooof", "r"], "--ooof r; did you mean '--oof'?; see kaggle-kit audit"),
        (["score", "t", "s", "d", "--x=1"], "unrecognized arguments: --x=1; see kaggle-kit score --help"),
        (["folds", "t", "d", "--scheme", "stratifed"], "; did you mean 'stratified'?; see kaggle-kit folds --help"),
        (["predict"], "the following arguments are required: BUNDLE, DATA, --out; see kaggle-kit predict --help"),
    ],
)
def test_wrong_arguments_are_one_line_too(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("kaggle-kit: ") and message in line


def test_errors_are_machine_readable_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nowhere", "x", "--out", "s.csv", "--json"]) == 2
    assert "is no bundle" in last_json(capsys)["error"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nowhere", "x", "--out", "s.csv", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_torch(_options: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(commands, "demo", no_torch)
    assert main(["demo"]) == 2
    assert "this command needs torch; pip install 'kaggle_kit[train]'" in capsys.readouterr().err


def test_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--settings"]) == 0
    text = capsys.readouterr().out
    assert "label_smoothing: 0.05" in text and "epochs: 20" in text
    assert "# model presets: convnext_tiny, " in text and "hydra:" not in text


def test_defaults_in_yaml_are_those_of_the_dataclasses() -> None:
    from kaggle_kit.experiment import compose_experiment
    from kaggle_kit.train.config import TrainConfig

    made = compose_experiment(["task=digits", "data=x", "folds=y", "out=z"])
    assert made.train == TrainConfig()


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_options: object) -> None:
        raise OSError(28, "No space left on device", "runs/a/last.safetensors")

    monkeypatch.setattr(commands, "demo", full)
    assert main(["demo"]) == 2
    assert "No space left on device: runs/a/last.safetensors" in capsys.readouterr().err


def test_a_check_looks_at_images_where_they_are_packed_and_packs_none(
    wide: Toy, task_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "elsewhere" / "somebody.csv"
    path.parent.mkdir()
    rows = [f"Train_{i},{i % 2}" for i in range(48)]  # Train_0 and Train_1 are equal; writers go by i % 4
    path.write_text("\n".join(["image_id,fold", *rows]) + "\n")
    check = ["folds", task_file, str(wide.data), "--check", str(path)]
    before = sorted(tmp_path.rglob("*"))
    assert main(check) == 0
    told = capsys.readouterr().out
    assert "no packed store of these images" in told and "sound as far as labels tell" in told
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["pack", task_file, str(wide.data), "--out", str(tmp_path / "store")]) == 0
    assert main([*check, "--packed", str(tmp_path / "store")]) == 1
    assert "LEAK  1 set(s) of equal images lie in several folds" in capsys.readouterr().out
    assert main([*check, "--labels-only", "--scheme", "grouped"]) == 0
    path.write_text("\n".join(["image_id,fold", *(f"Train_{i},{i % 3}" for i in range(48))]) + "\n")
    assert main([*check, "--labels-only", "--scheme", "grouped"]) == 1
    assert "LEAK  4 of 4 groups lie in several folds" in capsys.readouterr().out


def test_a_share_of_unseen_images_that_cannot_be_reached_is_said(
    wide: Toy, task_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "folds.parquet")
    command = ["folds", task_file, str(wide.data), "--out", out, "--scheme", "unseen", "--n", "2", "--labels-only"]
    assert main([*command, "--unseen-share", "0.2"]) == 0
    assert "of the validating images show unseen combinations, not 20.0%" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "shifts"), [([], False), (["--prior-shift", "always"], True)])
def test_class_shares_are_corrected_only_when_asked_for(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], shifts: bool
) -> None:
    runs = [str(run.folder) for run in trained[1]]
    blend = tmp_path / "blend.json"
    assert main(["blend", *runs, "--out", str(blend), *asked, "--json"]) == 0
    assert last_json(capsys)["prior_shift"] is shifts
    assert json.loads(blend.read_text())["prior_shift"] is shifts


def test_probabilities_of_the_test_are_saved_and_trained_on(
    trained: tuple[Toy, list[Run]],
    bundle_folder: Path,
    task_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy, runs = trained
    data = shutil.copytree(toy.data, tmp_path / "data")
    for path in (*toy.hidden.glob("test_*.parquet"), toy.hidden / "sample_submission.csv"):
        shutil.copy(path, data)
    submission, probs = str(tmp_path / "s.csv"), str(tmp_path / "made" / "probs.npz")
    assert main(["predict", str(bundle_folder), str(data), "--out", submission, "--probs", probs, "--json"]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    assert json.loads(told[-1])["probs"] == probs and f"{probs}: probabilities of 9 images" in told
    predictions = Predictions.load(Path(probs))
    assert predictions.ids.tolist() == [f"Test_{i}" for i in range(9)]
    ids, decided = read_submission(toy.task, Path(submission))
    for head, classes in open_bundle(bundle_folder).decision.decide(predictions.align(ids).probs).items():
        assert (decided[head] == classes).all()
    folds = shutil.copy(runs[0].folder / "folds.parquet", tmp_path)  # images are packed beside it
    places = [f"task={task_file}", f"data={data}", f"folds={folds}", f"packed={tmp_path / 'packed'}", "fold=0"]
    settings = ["model=tiny_resnet", "model.input_size=[24,32]", "epochs=1", "loader.batch_size=8"]
    pseudo = [f"pseudo.predictions={probs}", "pseudo.floor=0"]
    assert main(["train", *places, *settings, *pseudo, f"out={tmp_path / 'run'}"]) == 0
    assert "9 of 9 test images are predicted with at least 0 and train too" in capsys.readouterr().err
    run = read_run(tmp_path / "run")
    assert run.config.pseudo.predictions == probs and len(run.oof()) == 24


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ("data/probs.npz", "lies in the data folder"),
        ("probs.csv", "does not end in .npz; write to"),
        ("data", "is a folder; give a file in it, such as"),
    ],
)
def test_probabilities_that_cannot_be_saved_are_refused_before_predicting(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], probs: str, message: str
) -> None:
    (tmp_path / "data").mkdir()
    words = [str(bundle_folder), str(tmp_path / "data"), "--out", str(tmp_path / "s.csv")]
    assert main(["predict", *words, "--probs", str(tmp_path / probs)]) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_folds_refuse_a_submission_that_the_sample_contradicts(
    wide: Toy, task_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(task_file).read_text()
    assert "target: target" in text
    Path(task_file).write_text(text.replace("target: target", "target: label"))
    make = ["folds", task_file, str(wide.data), "--out", str(tmp_path / "f.parquet"), "--labels-only"]
    assert main(make) == 2
    assert "mend the task's `submission`" in capsys.readouterr().err
    (wide.data / "sample_submission.csv").unlink()
    assert main(make) == 0
    assert "sample_submission.csv; rehearsal and submission need it" in capsys.readouterr().out
