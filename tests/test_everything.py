"""A training on all images takes over a cross-validated run's settings, end and scores."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import Toy, make_wide
from test_resume import Killed, kill_at

from kaggle_kit.blending import fit_blend
from kaggle_kit.cli import main
from kaggle_kit.ensemble import equal_blend
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.runs import EVERYTHING, FoldSummary, Run, read_run
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.tables import read_columns
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import AverageConfig, LoaderConfig, ModelConfig, TrainConfig, Weights
from kaggle_kit.train.course import Course
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.data import TrainStream
from kaggle_kit.train.everything import chosen_end, train_everything
from kaggle_kit.train.logs import read_history

SMALL = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(24, 32)),
    average=AverageConfig(ema=0.9),
    loader=LoaderConfig(batch_size=8),
    epochs=3,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_wide(tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="module")
def validated(toy: Toy) -> Run:
    """A cross-validated run; read-only."""
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    return train_run(toy.task, SMALL, data=toy.data, folds=folds, out=toy.data.parent / "runs" / "cv")


@pytest.fixture(scope="module")
def everything(validated: Run) -> Run:
    """The training on everything that follows it; read-only."""
    return train_everything(ending(validated, "ema", 2), out=validated.folder.with_name("all"))


def ending(run: Run, weights: Weights, *epochs: int) -> Run:
    """Return the run as if its folds had chosen these weights after these epochs."""
    folds = {
        fold: FoldSummary(epoch=epoch, score=run.score, seconds=1.0, weights=weights)
        for fold, epoch in enumerate(epochs)
    }
    return dataclasses.replace(run, folds=folds)


def same_weights(first: Path, second: Path) -> bool:
    states = [load_checkpoint(path)[0].state_dict() for path in (first, second)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("average", "kept", "epochs", "expected"),
    [
        (AverageConfig(), ["raw"] * 3, [1, 3, 2], ("raw", 2)),
        (AverageConfig(), ["raw"] * 2, [1, 2], ("raw", 2)),
        (AverageConfig(ema=0.9), ["ema", "raw", "ema"], [3, 1, 3], ("ema", 3)),
        (AverageConfig(ema=0.9), ["raw", "ema", "raw"], [1, 3, 1], ("raw", 1)),
        (AverageConfig(swa_start=0.5), ["swa", "swa"], [3, 3], ("swa", 3)),
        (AverageConfig(swa_start=0.5, soup=2), ["soup", "soup", "raw"], [1, 1, 2], ("swa", 3)),
        (AverageConfig(ema=0.9, soup=2), ["soup", "soup"], [2, 2], ("ema", 2)),
        (AverageConfig(soup=2), ["soup", "soup"], [2, 2], ("raw", 2)),
    ],
)
def test_most_folds_choose_the_weights_and_their_median_the_end(
    validated: Run, average: AverageConfig, kept: list[Weights], epochs: list[int], expected: tuple[Weights, int]
) -> None:
    like = ending(validated, "raw", *epochs)
    folds = {fold: dataclasses.replace(one, weights=kept[fold]) for fold, one in like.folds.items()}
    config = dataclasses.replace(like.config, average=average)
    assert chosen_end(dataclasses.replace(like, folds=folds, config=config)) == expected


@pytest.mark.parametrize("scheme", ["stratified", "holdout"])
def test_every_image_trains_also_those_that_validated(
    toy: Toy, validated: Run, tmp_path: Path, streams: list[TrainStream], scheme: str
) -> None:
    like = ending(validated, "raw", 1)
    if scheme == "holdout":
        folds = make_folds(read_labels(toy.task, toy.data), "holdout", valid_share=0.25)
        config = dataclasses.replace(SMALL, epochs=1)
        like = train_run(toy.task, config, data=toy.data, folds=folds, out=tmp_path / "cv", packed=validated.packed)
        streams.clear()
    train_everything(like, out=tmp_path / "all")
    (stream,) = streams
    assert stream.steps_per_epoch == 6
    shown = [name for step in range(6) for name in stream.ids_of(step)]
    assert sorted(shown) == sorted(read_labels(toy.task, toy.data).ids.tolist())


def test_it_ends_after_the_epoch_the_folds_chose_and_keeps_their_weights(validated: Run, everything: Run) -> None:
    assert list(everything.folds) == [EVERYTHING]
    summary = everything.folds[EVERYTHING]
    assert (summary.epoch, summary.weights, summary.score, summary.stopped) == (2, "ema", None, "")
    _, info = load_checkpoint(everything.checkpoint(EVERYTHING))
    assert (info.fold, info.epoch, info.weights, info.score) == (EVERYTHING, 2, "ema", None)
    history = read_history(everything.folder / "everything" / "history.csv")
    assert len(history["loss"]) == 2 and "score" not in history
    assert everything.config == validated.config
    names = {path.name for path in (everything.folder / "everything").iterdir()}
    assert names == {"best.safetensors", "fold.json", "history.csv"}


def test_raw_and_averaged_weights_of_one_training_are_kept_apart(
    validated: Run, everything: Run, tmp_path: Path
) -> None:
    raw = train_everything(ending(validated, "raw", 2), out=tmp_path / "raw")
    again = train_everything(ending(validated, "ema", 2), out=tmp_path / "ema")
    assert not same_weights(raw.checkpoint(EVERYTHING), everything.checkpoint(EVERYTHING))
    assert same_weights(again.checkpoint(EVERYTHING), everything.checkpoint(EVERYTHING))


def test_an_average_of_the_last_epochs_is_taken_of_the_whole_training(validated: Run, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, average=AverageConfig(swa_start=0.3, soup=2))
    like = dataclasses.replace(ending(validated, "soup", 1, 1), config=config)
    run = train_everything(like, out=tmp_path / "all")
    assert (run.folds[EVERYTHING].epoch, run.folds[EVERYTHING].weights) == (3, "swa")
    assert load_checkpoint(run.checkpoint(EVERYTHING))[1].weights == "swa"


def test_scores_and_predictions_are_those_of_the_run_it_follows(validated: Run, everything: Run) -> None:
    assert everything.scores == validated.scores and everything.like == str(validated.folder.resolve())
    assert everything.id != validated.id
    for name in ("oof.npz", "folds.parquet"):
        assert (everything.folder / name).read_bytes() == (validated.folder / name).read_bytes()
    page = everything.report.read_text(encoding="utf-8")
    assert f"those of {validated.folder.resolve()}, whose settings" in page


def test_runs_that_cannot_be_followed_are_refused(validated: Run, everything: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"all was trained on everything itself; give the run it followed, .*cv"):
        train_everything(everything, out=tmp_path / "all")
    with pytest.raises(SettingError, match=r"`out` is .*cv, the run that is followed; choose another folder"):
        train_everything(validated, out=validated.folder / ".." / "cv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").touch()
    with pytest.raises(DataError, match="is not empty and no run"):
        train_everything(validated, out=tmp_path / "mine", overwrite=True)
    assert not (tmp_path / "all").exists() and read_run(validated.folder) == validated


def test_data_that_changed_since_is_refused(wide: Toy, tmp_path: Path) -> None:
    folds = make_folds(read_labels(wide.task, wide.data), num_folds=2)
    config = dataclasses.replace(SMALL, epochs=1)
    like = train_run(wide.task, config, data=wide.data, folds=folds, out=tmp_path / "cv", only=0)
    labels = wide.data / "train.csv"
    before = labels.read_text()
    labels.write_text(before.replace("Train_2,1,", "Train_2,2,"))
    assert labels.read_text() != before
    with pytest.raises(DataError, match="the folds were made from other labels"):
        train_everything(like, out=tmp_path / "all")
    labels.write_text(before)
    shutil.copy(wide.data / "train_0.parquet", wide.data / "train_3.parquet")
    with pytest.raises(DataError):
        train_everything(like, out=tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_killed_and_resumed_equals_uninterrupted(
    validated: Run, everything: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = ending(validated, "ema", 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(8, patch)
        train_everything(like, out=tmp_path / "all")
    assert not (tmp_path / "all" / "run.json").exists()
    run = train_everything(like, out=tmp_path / "all")
    assert run.checkpoint(EVERYTHING).read_bytes() == everything.checkpoint(EVERYTHING).read_bytes()
    assert not (tmp_path / "all" / "everything" / "state.pt").exists()


def test_a_finished_one_is_left_as_it_is(validated: Run, everything: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in everything.folder.rglob("*") if path.is_file()}
    again = train_everything(ending(validated, "ema", 2), out=everything.folder)
    assert again.id == everything.id and again == everything
    assert "this run is finished; nothing is left to train" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in everything.folder.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {everything.folder / ".kaggle-kit-run"}


def test_another_end_or_another_run_never_goes_on_in_its_folder(validated: Run, everything: Run) -> None:
    with pytest.raises(DataError, match=r"begun otherwise: `epoch` was 2, is now 1"):
        train_everything(ending(validated, "ema", 1), out=everything.folder)
    other = dataclasses.replace(ending(validated, "ema", 2), id="another")
    with pytest.raises(DataError, match=r"begun otherwise: `like` was '\w+', is now 'another'"):
        train_everything(other, out=everything.folder)
    assert read_run(everything.folder) == everything


def test_out_of_time_leaves_a_usable_checkpoint_and_can_be_extended(
    validated: Run, everything: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_step = Course.end_step

    def slow(self: Course, loss: torch.Tensor, norm: torch.Tensor) -> None:
        end_step(self, loss, norm)
        time.sleep(0.5)

    like = ending(validated, "ema", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Course, "end_step", slow)
        hurried = train_everything(like, out=tmp_path / "all", max_hours=1e-4)
    assert hurried.folds[EVERYTHING].stopped == "out of time" and hurried.config.max_hours == 1e-4
    load_checkpoint(hurried.checkpoint(EVERYTHING))
    whole = train_everything(like, out=tmp_path / "all")
    assert whole.folds[EVERYTHING].stopped == "" and whole.folds[EVERYTHING].epoch == 2
    assert same_weights(whole.checkpoint(EVERYTHING), everything.checkpoint(EVERYTHING))


@pytest.mark.slow
def test_it_replaces_the_validated_run_in_blend_and_bundle(
    toy: Toy, validated: Run, everything: Run, tmp_path: Path
) -> None:
    fitted, expected = fit_blend([everything]), fit_blend([validated])
    assert fitted.scores == expected.scores
    assert fitted.blend.decision == expected.blend.decision
    bundle = write_bundle([everything], fitted.blend, tmp_path / "fitted")
    (member,) = bundle.members
    assert (member.file, member.fold, bundle.blend.runs) == ("member_all_everything.onnx", EVERYTHING, ("all",))
    assert bundle.oof_score == pytest.approx(fitted.blend.score.total if fitted.blend.score else validated.score.total)
    both = write_bundle([validated, everything], equal_blend(["cv", "all"]), tmp_path / "both")
    assert [(one.run, one.fold) for one in both.members] == [("cv", 0), ("cv", 1), ("all", EVERYTHING)]
    assert both.blend.shares() == {"cv": 0.5, "all": 0.5}
    for name in ("fitted", "both"):
        predicted = predict_submission(tmp_path / name, toy.hidden, tmp_path / f"{name}.csv", say=lambda _: None)
        assert len(predicted.predictions) == 9
        assert len(read_columns(tmp_path / f"{name}.csv")["row_id"]) == 18


def test_the_command_line_goes_the_whole_way(
    validated: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(validated.folder, tmp_path / "runs" / "cv")
    out = tmp_path / "runs" / "all"
    assert main(["train", f"like={tmp_path / 'runs' / 'cv'}", f"out={out}", "loader.num_workers=0", "--json"]) == 0
    told = capsys.readouterr()
    assert (
        "everything: not scored at epoch" in told.out
        and "trained on everything to its end; the scores are those of cv" in told.out
    )
    assert "training on all 48 images for" in told.err
    assert list(json.loads(told.out.splitlines()[-1])["folds"]) == ["-1"]
    assert (out / "run.html").is_file()
    assert main(["runs", str(tmp_path / "runs"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert {run["name"] for run in listed} == {"cv", "all"}
    bundle = tmp_path / "bundle"
    assert main(["bundle", str(out), "--out", str(bundle), "--json"]) == 0
    capsys.readouterr()
    hidden = validated.data.parent / "hidden"
    assert main(["predict", str(bundle), str(hidden), "--out", str(tmp_path / "s.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["like={cv}", "out={out}", "optim.lr=1"], "`optim.lr` cannot be given beside `like`"),
        (["like={cv}", "out={out}", "model=resnet50"], "`model` cannot be given beside `like`"),
        (["like={cv}", "out={out}", "loader.batch_size=4"], "`loader.batch_size` cannot be given beside `like`"),
        (["like={cv}", "out={out}", "fold=0"], "`fold` cannot be given beside `like`"),
        (["like={cv}", "out={out}", "data=x"], "`data` cannot be given beside `like`"),
        (["like={cv}"], "`out` is missing"),
        (["like={cv}", "out={cv}"], "the run that is followed; choose another folder"),
        (["like={out}", "out={out}"], "holds no finished run"),
    ],
)
def test_settings_of_its_own_are_refused(
    validated: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    places = {"cv": validated.folder, "out": tmp_path / "out"}
    assert main(["train", *(setting.format(**places) for setting in settings)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("kaggle-kit: ") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_weights_that_time_did_not_allow_are_not_claimed(
    validated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_step = Course.end_step

    def slow(self: Course, loss: torch.Tensor, norm: torch.Tensor) -> None:
        end_step(self, loss, norm)
        time.sleep(0.5)

    config = dataclasses.replace(SMALL, average=AverageConfig(swa_start=0.5))
    like = dataclasses.replace(ending(validated, "swa", 1, 1), config=config)
    monkeypatch.setattr(Course, "end_step", slow)
    run = train_everything(like, out=tmp_path / "all", max_hours=1e-4)
    assert run.folds[EVERYTHING].weights == load_checkpoint(run.checkpoint(EVERYTHING))[1].weights == "raw"
