"""A training that was cut off goes on as if it never had been."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Toy, make_wide

from kaggle_kit.errors import CheckpointError, DataError, Interrupted, KitError, SettingError
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.task import task_to_plain
from kaggle_kit.train import crossval
from kaggle_kit.train import training as training_module
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import (
    AverageConfig,
    LoaderConfig,
    LossConfig,
    MixConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
)
from kaggle_kit.train.course import Course
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.logs import read_history
from kaggle_kit.train.losses import TrainingLoss
from kaggle_kit.train.stopping import Stopper

SMALL = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(24, 32)), loader=LoaderConfig(batch_size=8), epochs=3
)
# Everything that is random or remembers something.
FULL = dataclasses.replace(
    SMALL,
    model=ModelConfig(name="test_resnet", input_size=(24, 32), dropout=0.2, drop_path=0.0),
    optim=OptimConfig(freeze_epochs=1, layer_decay=0.8),
    schedule=ScheduleConfig(name="plateau", plateau_patience=0, small_size=(16, 16), small_epochs=1),
    loss=LossConfig(class_weights="sqrt"),
    sampling=SamplingConfig(name="balanced"),
    mix=MixConfig(mixup=0.4, cutmix=1.0, fmix=1.0),
    average=AverageConfig(ema=0.9, swa_start=0.4, soup=2),
)
TIMES = {"seconds", "images_per_second", "waiting"}


class Killed(BaseException):
    """What a test throws in place of a kill."""


def train(toy: Toy, out: Path, config: TrainConfig = SMALL, **options) -> Run:
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    return train_run(
        toy.task, config, data=toy.data, folds=folds, out=out, packed=toy.data.parent / "packed", **options
    )


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training of any fold die after this step."""
    end_step = Course.end_step

    def dying(self: Course, loss: torch.Tensor, norm: torch.Tensor) -> None:
        end_step(self, loss, norm)
        if self.step == step:
            raise Killed

    monkeypatch.setattr(Course, "end_step", dying)


def check_equal(found: Run, expected: Run, fold: int = 0) -> None:
    assert found.checkpoint(fold).read_bytes() == expected.checkpoint(fold).read_bytes()
    for head, probs in expected.oof().probs.items():
        assert (found.oof().probs[head] == probs).all()
    histories = [read_history(run.folder / f"fold{fold}" / "history.csv") for run in (found, expected)]
    for column in histories[1].keys() - TIMES:
        assert np.array_equal(histories[0][column], histories[1][column], equal_nan=True), column
    before, after = (run.folds[fold] for run in (expected, found))
    assert dataclasses.replace(after, seconds=0) == dataclasses.replace(before, seconds=0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_wide(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(toy: Toy) -> dict[str, Run]:
    """The same trainings, never cut off; read-only."""
    return {name: train(toy, toy.data.parent / name, config, only=0) for name, config in CONFIGS.items()}


CONFIGS = {"small": SMALL, "full": FULL}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("small", 2), ("full", 1), ("full", 3), ("full", 5), ("full", 9)])
@pytest.mark.parametrize("every_step", [False, True])
def test_killed_at_any_step_and_resumed_equals_uninterrupted_bit_for_bit(
    toy: Toy,
    uninterrupted: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    step: int,
    every_step: bool,
) -> None:
    if every_step:
        monkeypatch.setattr(training_module, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        train(toy, tmp_path / "run", CONFIGS[name], only=0)
    assert not (tmp_path / "run" / "run.json").exists()
    check_equal(train(toy, tmp_path / "run", CONFIGS[name], only=0), uninterrupted[name])
    assert not (tmp_path / "run" / "fold0" / "state.pt").exists()


@pytest.mark.slow
def test_a_process_killed_by_the_system_loses_nothing_but_the_last_steps(
    toy: Toy, uninterrupted: dict[str, Run], tmp_path: Path
) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from conftest import wide_task
import test_resume as t
from kaggle_kit.train.course import Course
end_step = Course.end_step
def slow(self, loss, norm):
    end_step(self, loss, norm)
    if self.step == 4:
        print("step 4", flush=True)
        time.sleep(60)
Course.end_step = slow
t.train(t.Toy(task=wide_task(), data=Path({str(toy.data)!r}), hidden=Path()), Path({str(tmp_path / "run")!r}), only=0)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "step 4"
    process.kill()
    process.wait()
    process.stdout.close()
    assert (tmp_path / "run" / "fold0" / "state.pt").is_file()
    check_equal(train(toy, tmp_path / "run", only=0), uninterrupted["small"])


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(
    toy: Toy, uninterrupted: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(fold: int, epoch: int, score: float) -> None:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(
        KitError, match=r"interrupted in epoch 2 of 3 of fold 0; the same command goes on.*best\.safete"
    ):
        train(toy, tmp_path / "run", only=0, on_epoch=interrupt)
    load_checkpoint(tmp_path / "run" / "fold0" / "best.safetensors")
    check_equal(train(toy, tmp_path / "run", only=0), uninterrupted["small"])
    assert "going on with a run that was begun earlier" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("sent", "kept"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_interrupted_before_the_first_epoch_ends_there_is_a_checkpoint_where_there_is_time(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sent: signal.Signals,
    kept: bool,
) -> None:
    end_step = Course.end_step

    def interrupted(self: Course, loss: torch.Tensor, norm: torch.Tensor) -> None:
        end_step(self, loss, norm)
        if self.step == 1:
            os.kill(os.getpid(), sent)

    monkeypatch.setattr(Course, "end_step", interrupted)
    with pytest.raises(KitError, match=r"interrupted in epoch 1 of 3"):
        train(toy, tmp_path / "run", only=0)
    assert "stopping after this step; nothing is lost" in capsys.readouterr().err
    assert (tmp_path / "run" / "fold0" / "state.pt").is_file()
    assert (tmp_path / "run" / "fold0" / "best.safetensors").is_file() is kept
    if kept:
        _, info = load_checkpoint(tmp_path / "run" / "fold0" / "best.safetensors")
        assert info.epoch == 1 and info.score is not None


def test_a_time_limit_ends_every_fold_with_a_usable_checkpoint_and_can_be_extended(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_step = Course.end_step

    def slow(self: Course, loss: torch.Tensor, norm: torch.Tensor) -> None:
        end_step(self, loss, norm)
        time.sleep(0.2)

    hurried = dataclasses.replace(SMALL, epochs=50, max_hours=3 / 3600)
    with monkeypatch.context() as patch:
        patch.setattr(Course, "end_step", slow)
        run = train(toy, tmp_path / "run", hurried)
    assert [summary.stopped for summary in run.folds.values()] == ["out of time"] * 2
    assert all(1 <= summary.epoch < 50 for summary in run.folds.values())
    assert len(run.oof()) == 48
    steps = {fold: torch.load(tmp_path / "run" / f"fold{fold}" / "state.pt")["course"]["step"] for fold in (0, 1)}
    shorter = dataclasses.replace(hurried, max_hours=1e-4)
    again = train(toy, tmp_path / "run", shorter)
    later = {fold: torch.load(tmp_path / "run" / f"fold{fold}" / "state.pt")["course"]["step"] for fold in (0, 1)}
    assert all(later[fold] > steps[fold] for fold in steps)
    assert read_run(again.folder).config.max_hours == 1e-4


@pytest.mark.slow
def test_a_time_limit_that_is_extended_never_loses_better_weights(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = Stopper.reason
    config = dataclasses.replace(SMALL, epochs=4, average=AverageConfig(ema=0.9, swa_start=0.2, soup=3))
    with monkeypatch.context() as patch:
        patch.setattr(Stopper, "reason", lambda self, step, *, reserve_s: "out of time" if step == 7 else "")
        stopped = train(toy, tmp_path / "run", config, only=0)
    assert stopped.folds[0].stopped == "out of time"
    assert Stopper.reason is reason
    going_on = train(toy, tmp_path / "run", config, only=0)
    assert not going_on.folds[0].stopped
    before, after = (run.folds[0].score for run in (stopped, going_on))
    assert before is not None and after is not None and after.total >= before.total
    check_consistent(going_on)
    left = {path.name for path in (tmp_path / "run" / "fold0").iterdir()}
    assert left == {"best.safetensors", "fold.json", "history.csv", "oof.npz"}


def check_consistent(run: Run) -> None:
    """The summary, the checkpoint and the predictions tell of the same weights."""
    from kaggle_kit.scores import score_answers

    for fold, summary in run.folds.items():
        _, info = load_checkpoint(run.checkpoint(fold))
        assert (info.epoch, info.weights, info.score) == (summary.epoch, summary.weights, summary.score)
        oof = Predictions.load(run.folder / f"fold{fold}" / "oof.npz")
        truth = run.labels().align(oof.ids).classes
        assert info.score is not None
        assert score_answers(run.task, truth, oof.probs).total == pytest.approx(info.score.total)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["finish_fold", "write_run", "report_on"])
def test_killed_while_a_fold_or_the_run_is_finished_it_is_finished_later(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    config = dataclasses.replace(SMALL, epochs=2, average=AverageConfig(soup=2))
    train(toy, tmp_path / "run", config, only=0)

    def killed(*_arguments: object, **_options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(crossval, victim, killed)
        train(toy, tmp_path / "run", config)
    run = train(toy, tmp_path / "run", config)
    assert list(run.folds) == [0, 1] and len(run.oof()) == 48
    assert run.report.is_file()
    check_consistent(run)


@pytest.mark.slow
def test_what_a_kill_leaves_behind_never_blocks_the_way(toy: Toy, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=1)
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    train(toy, out, config, only=0)
    (out / ".oof.npz.ab12.npz").touch()
    (out / ".run.json.cd34.json").touch()
    (out / "fold0" / ".state.pt.ef56.pt").touch()
    assert len(train(toy, out, config).folds) == 2
    assert not [path.name for path in (*out.iterdir(), *(out / "fold0").iterdir()) if path.name.count(".") > 2]


@pytest.mark.slow
def test_overwriting_goes_on_with_what_the_same_command_began(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SMALL, epochs=2)
    train(toy, tmp_path / "run", dataclasses.replace(config, seed=5), only=0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        train(toy, tmp_path / "run", config, only=0, overwrite=True)
    steps: list[int] = []
    end_step = Course.end_step

    def counted(self: Course, loss: torch.Tensor, norm: torch.Tensor) -> None:
        end_step(self, loss, norm)
        steps.append(self.step)

    monkeypatch.setattr(Course, "end_step", counted)
    first = train(toy, tmp_path / "run", config, only=0, overwrite=True)
    assert steps[0] == 4  # the first epoch's three steps are not taken again
    assert train(toy, tmp_path / "run", config).id == first.id  # a ledger knows it by that


@pytest.mark.slow
def test_ctrl_c_at_the_end_of_a_fold_is_heard(toy: Toy, tmp_path: Path) -> None:
    def interrupt(fold: int, epoch: int, score: float) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    config = dataclasses.replace(SMALL, epochs=2)
    with pytest.raises(Interrupted, match="interrupted after fold 0 was finished; the same command goes on with the"):
        train(toy, tmp_path / "run", config, on_epoch=interrupt)
    assert list(train(toy, tmp_path / "run", config).folds) == [0, 1]


def test_small_epochs_never_lower_the_rate(toy: Toy, tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="plateau", plateau_patience=0, warmup=0, small_size=(16, 16), small_epochs=4)
    run = train(toy, tmp_path / "run", dataclasses.replace(SMALL, epochs=5, schedule=schedule), only=0)
    assert read_history(run.folder / "fold0" / "history.csv")["rate"] == [2e-3] * 5


def test_folds_trained_one_by_one_make_up_one_run(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(SMALL, epochs=1)
    first = train(toy, tmp_path / "run", config, only=1)
    assert list(first.folds) == [1] and len(first.oof()) == 24
    both = train(toy, tmp_path / "run", config)
    assert list(both.folds) == [0, 1] and len(both.oof()) == 48
    assert both.folds[1] == first.folds[1]
    written = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    assert train(toy, tmp_path / "run", config).scores == both.scores
    assert "this run is finished; nothing is left to train" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == written


def test_another_training_never_goes_on_in_a_runs_folder(toy: Toy, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=1)
    run = train(toy, tmp_path / "run", config, only=0)
    other = dataclasses.replace(config, optim=OptimConfig(lr=1e-3), loader=LoaderConfig(batch_size=4))
    with pytest.raises(
        DataError, match=r"begun otherwise: `optim.lr` was 0.002, is now 0.001, and 'loader.batch_size'"
    ):
        train(toy, tmp_path / "run", other, only=0)
    assert read_run(tmp_path / "run").scores == run.scores
    again = train(toy, tmp_path / "run", other, only=0, overwrite=True)
    assert again.config.optim.lr == 1e-3


def test_loaders_and_loggers_may_change_between_sessions(toy: Toy, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=1)
    first = train(toy, tmp_path / "run", config, only=0)
    loader = LoaderConfig(batch_size=8, num_workers=0)
    assert train(toy, tmp_path / "run", dataclasses.replace(config, loader=loader), only=0).id == first.id


def test_two_processes_never_train_into_one_folder(toy: Toy, tmp_path: Path) -> None:
    import filelock

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".kaggle-kit-run").touch()
    with filelock.FileLock(tmp_path / "run" / ".lock"), pytest.raises(DataError, match="another process trains into"):
        train(toy, tmp_path / "run", only=0, overwrite=True)


def test_a_full_disk_leaves_the_last_good_state(
    toy: Toy, uninterrupted: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Callable[[Path, dict], None] = training_module.save_state
    calls = []

    def full(path: Path, state: dict) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        save(path, state)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(training_module, "save_state", full)
        train(toy, tmp_path / "run", only=0)
    assert not [path.name for path in (tmp_path / "run" / "fold0").iterdir() if path.name.startswith(".")]
    check_equal(train(toy, tmp_path / "run", only=0), uninterrupted["small"])


def test_a_damaged_state_is_an_error_that_says_what_to_delete(toy: Toy, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        train(toy, tmp_path / "run", only=0)
    state = tmp_path / "run" / "fold0" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state.pt is damaged .*delete it to train this fold again"):
        train(toy, tmp_path / "run", only=0)


def test_a_loss_that_is_no_number_names_the_step_and_its_images(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = TrainingLoss.total
    calls = []

    def bad(self: TrainingLoss, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(0)
        return total(self, losses) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(TrainingLoss, "total", bad)
    with pytest.raises(
        KitError, match=r"no number at step 2 of epoch 2, on images 'Train_\d+', .* and 5 more; look at"
    ):
        train(toy, tmp_path / "run", only=0)
    _, info = load_checkpoint(tmp_path / "run" / "fold0" / "best.safetensors")
    assert info.epoch == 1  # the last good one stays


def test_memory_that_runs_out_halves_what_is_computed_at_once_and_not_the_step(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = TrainingLoss.forward

    def small_memory(self, logits, targets, *, batch=None):
        if len(targets["root"]) > 3:
            raise torch.OutOfMemoryError
        return forward(self, logits, targets, batch=batch)

    # without BatchNorm, whose statistics follow what is computed at once
    config = dataclasses.replace(SMALL, model=ModelConfig(name="test_convnext", input_size=(32, 32)))
    whole = train(toy, tmp_path / "whole", config, only=0)
    monkeypatch.setattr(TrainingLoss, "forward", small_memory)
    parts = train(toy, tmp_path / "parts", config, only=0)
    said = capsys.readouterr().err
    assert "memory ran out: 4 images at once from now on, and still 8 a step" in said
    assert "memory ran out: 2 images at once" in said
    for name, value in load_checkpoint(whole.checkpoint(0))[0].state_dict().items():
        assert torch.allclose(value, load_checkpoint(parts.checkpoint(0))[0].state_dict()[name], atol=1e-3), name


def test_not_even_two_images_in_memory_is_one_line(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self, logits, targets, *, batch=None):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TrainingLoss, "forward", no_memory)
    with pytest.raises(KitError, match=r"fold 0 does not fit the device's memory; lower `loader.micro_batch`, now 8"):
        train(toy, tmp_path / "run", only=0)


def test_batches_that_no_fold_can_fill_are_refused(toy: Toy, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, loader=LoaderConfig(batch_size=25))
    with pytest.raises(SettingError, match=r"`loader.batch_size` is 25, and fold 0 trains on 24 images; lower it"):
        train(toy, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_together_and_every_row_is_predicted_in_order(toy: Toy, tmp_path: Path) -> None:
    import yaml

    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    folds.save(tmp_path / "folds.parquet")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(task_to_plain(toy.task)))))
    settings = ["model=tiny_resnet", "loader.batch_size=4", "epochs=6", "optim.lr=5e-3", "average.swa_start=0.5"]
    places = [f"task={tmp_path / 'task.yaml'}", f"data={toy.data}", f"folds={tmp_path / 'folds.parquet'}"]
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kaggle_kit"]
    done = subprocess.run(
        [sys.executable, *together, "train", *places, f"out={tmp_path / 'two'}", *settings],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("out-of-fold") == 1  # the first speaks for both
    two = read_run(tmp_path / "two")
    config = dataclasses.replace(two.config, loader=LoaderConfig(batch_size=8))
    one = train_run(toy.task, config, data=toy.data, folds=folds, out=tmp_path / "one", packed=two.packed)
    assert (two.oof().ids == one.oof().ids).all()
    assert sorted(two.oof().ids) == sorted(read_labels(toy.task, toy.data).ids)
    network, _ = load_checkpoint(two.checkpoint(0))
    from kaggle_kit.sources import PackedSource
    from kaggle_kit.tables import rows_of
    from kaggle_kit.train.predict import predict_rows

    store = PackedSource(two.packed)
    ids = folds.ids[folds.fold == 0]
    again = predict_rows(network, store, rows_of(ids, store.ids))
    assert max(np.abs(again[h] - two.oof().align(ids).probs[h]).max() for h in again) < 1e-5
    assert abs(two.score.total - one.score.total) < 0.25  # 48 images
