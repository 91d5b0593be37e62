from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import wide_task

from kaggle_kit.errors import SettingError
from kaggle_kit.scores import Score
from kaggle_kit.train.config import LogConfig
from kaggle_kit.train.logs import History, Loggers, Row, check_loggers, history_row, open_loggers, read_history

SCORE = Score(total=0.75, heads={"root": 0.7, "loss": 0.8}, rows=6)


def make_row(epoch: int, *, score: Score | None = SCORE, averages: Mapping[str, float] | None = None) -> Row:
    return history_row(
        epoch=epoch,
        loss=1 / epoch,
        rate=1.23456789e-5,
        score=score,
        averages=averages or {},
        seconds=2.0 * epoch,
        images_per_second=99.96,
        waiting=0.125,
    )


class Listener:
    """A sink that remembers, and fails from a step on."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.told: list[tuple[int, dict]] = []
        self.fails_at = fails_at
        self.closed = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.fails_at:
            raise OSError(28, "No space left on device\nsecret-key")
        self.told.append((step, dict(values)))

    def histogram(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self.log(step, {name: len(array) for name, array in values.items()})

    def close(self) -> None:
        self.closed += 1


def test_a_history_is_whole_after_every_epoch_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "fold0" / "history.csv"
    history = History(path)
    history.add(make_row(1))
    assert " ".join(read_history(path)) == (
        "epoch loss rate score score_root score_loss seconds images_per_second waiting"
    )
    history.add(make_row(2, averages={"ema": 0.9}))
    columns = read_history(path)
    assert columns["epoch"] == [1, 2] and columns["loss"] == [1, 0.5] and columns["score_loss"] == [0.8, 0.8]
    assert columns["rate"] == [1.23457e-5] * 2
    assert math.isnan(columns["ema"][0]) and columns["ema"][1] == 0.9


def test_a_resumed_history_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    first, uninterrupted = History(cut), History(whole)
    for epoch in (1, 2, 3):
        uninterrupted.add(make_row(epoch))
    first.add(make_row(1))
    first.add(make_row(2))
    saved = first.rows[:1]  # killed between the second row and the state that would have known of it
    resumed = History(cut, saved)
    resumed.add(make_row(2))
    resumed.add(make_row(3))
    assert cut.read_bytes() == whole.read_bytes()


def test_a_row_without_validation_has_no_score() -> None:
    assert " ".join(make_row(1, score=None)) == "epoch loss rate seconds images_per_second waiting"


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    history = History(None)
    history.add(make_row(1))
    assert history.rows == [make_row(1)] and read_history(tmp_path / "history.csv") == {}


def test_histories_of_earlier_versions_and_odd_ones_read(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,score,root,seconds\n1,0.5,0.25,0.3,7.5\n2,nan,,x\n")
    columns = read_history(path)
    assert columns["root"][0] == 0.3
    assert [math.isnan(values[1]) for values in columns.values()] == [False, True, True, True, True]


def test_a_listener_that_fails_is_told_of_once_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Listener(), Listener(fails_at=2)
    loggers = Loggers({"bad": bad, "good": good})
    for step in range(5):
        loggers.log(step, {"loss": 1, "weights": "ema"})
    loggers.close()
    assert [step for step, _ in good.told] == [0, 1, 2, 3, 4] and good.told[0][1] == {"loss": 1.0}
    assert [step for step, _ in bad.told] == [0, 1]
    assert (good.closed, bad.closed) == (1, 0)
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "bad failed ([Errno 28] No space left on device secret-key)" in text


def test_an_api_key_is_never_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    Loggers({"bad": Listener(fails_at=0)}).log(0, {})
    assert "secret" not in capsys.readouterr().err


def test_ctrl_c_inside_a_listener_is_no_failure() -> None:
    class Interrupted(Listener):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Loggers({"one": Interrupted()}).log(0, {})


def test_histograms_are_told_when_asked_for_and_only_of_finite_values() -> None:
    network = torch.nn.Linear(2, 3)
    network.weight.grad = torch.tensor([[1.0, math.nan], [math.inf, 2.0], [3.0, 4.0]])
    network.bias.grad = torch.full((3,), math.nan)
    quiet, loud = Listener(), Listener()
    Loggers({"one": quiet}).histograms(7, network)
    Loggers({"one": loud}, gradients=True).histograms(7, network)
    assert quiet.told == []
    assert loud.told == [(7, {"weights/weight": 6, "gradients/weight": 4, "weights/bias": 3})]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_an_error_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=rf"`log.to` asks for {name}, .* pip install 'kaggle_kit\[log\]'"):
        check_loggers(LogConfig(to=(name,)))
    check_loggers(LogConfig())


def test_nobody_listens_by_default(tmp_path: Path) -> None:
    loggers = open_loggers(LogConfig(), task=wide_task(), run_name="a/fold0", folder=tmp_path, settings={})
    loggers.log(1, {"loss": 1.0})
    loggers.histograms(1, torch.nn.Linear(1, 1))
    loggers.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_numbers_histograms_and_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard comes with the extra `log`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = LogConfig(to=("tensorboard",), gradients=True)

    def train(steps: range) -> None:
        loggers = open_loggers(
            config,
            task=wide_task(),
            run_name="a/fold0",
            folder=tmp_path,
            settings={"optim": {"lr": 0.5}},
            step=max(0, steps.start - 1),
        )
        for step in steps:
            loggers.log(step, {"loss": float(step)})
        loggers.histograms(step, torch.nn.Linear(2, 3))
        loggers.close()

    train(range(4))
    train(range(2, 6))  # a resumed training repeats what an earlier one told after its last saved state
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(step, float(step)) for step in range(6)]
    assert {"weights/weight", "weights/bias"} <= set(events.Tags()["histograms"])
    assert b"lr: 0.5" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_where_nothing_can_be_written_costs_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard comes with the extra `log`")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    config = LogConfig(to=("tensorboard",))
    loggers = open_loggers(config, task=wide_task(), run_name="a", folder=tmp_path, settings={})
    loggers.log(1, {"loss": 1.0})
    loggers.close()
    assert capsys.readouterr().err.count("training goes on without it") == 1


WANDB_RUN = """
import os, signal, subprocess, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from conftest import wide_task
import torch
from kaggle_kit.train.config import LogConfig
from kaggle_kit.train.logs import open_loggers
folder, end = Path(sys.argv[1]), sys.argv[2]
loggers = open_loggers(
    LogConfig(to=("wandb",), gradients=True), task=wide_task(), run_name="a/fold0", folder=folder, settings={"lr": 0.5}
)
for step in range(3):
    loggers.log(step, {"loss": float(step)})
loggers.histograms(3, torch.nn.Linear(2, 3))
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "service dies":
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    (service,) = [line.split()[0] for line in listed.stdout.splitlines() if "wandb" in line]
    os.kill(int(service), signal.SIGKILL)
    for step in range(3, 60):
        loggers.log(step, {"loss": float(step)})
loggers.close()
print("trained on")
"""


def run_wandb(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_API_KEY": "0" * 39 + "f", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(folder), end],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )


@pytest.mark.slow
def test_wandb_is_offline_silent_and_one_run_whatever_kills_it(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb comes with the extra `log`")
    folder = tmp_path / "fold0"
    killed = run_wandb(folder, "killed")
    assert killed.returncode == -signal.SIGKILL and killed.stdout == killed.stderr == ""
    resumed = run_wandb(folder, "closed")
    assert (resumed.returncode, resumed.stdout, resumed.stderr) == (0, "trained on\n", "")
    known = (folder / "wandb-run.txt").read_text().strip()
    written = sorted((folder / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(written) == 2 and len(list((folder / "wandb").glob("offline-run-*"))) == 2
    assert b"loss" in written[1].read_bytes()
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if b"0" * 39 + b"f" in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="finds the service by ps")
def test_a_dead_wandb_service_costs_no_training(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb comes with the extra `log`")
    done = run_wandb(tmp_path / "fold0", "service dies")
    assert done.returncode == 0 and done.stdout == "trained on\n"
    assert done.stderr.count("wandb failed (") == 1


def test_the_history_is_plain_csv(tmp_path: Path) -> None:
    History(tmp_path / "history.csv").add(make_row(1))
    with (tmp_path / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {name: str(value) for name, value in make_row(1).items()}
