from __future__ import annotations

import csv
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from kaggle_kit.errors import KitError, SettingError
from kaggle_kit.experiment import Experiment, compose_experiment
from kaggle_kit.folds import Folds
from kaggle_kit.sweep import run_sweep
from kaggle_kit.sweep.report import SweepResult, format_sweep
from kaggle_kit.sweep.space import Range, check_space, parse_range, read_space

optuna = pytest.importorskip("optuna")
Train = Callable[[Experiment, Callable[[int, int, float], None]], float]
LR = "optim.lr=log(1e-4,1e-2)"
STALE_S = 2


def save_folds(path: Path, *, num_folds: int = 2) -> None:
    ids = np.array([f"Train_{i}" for i in range(12)], np.str_)
    Folds(
        ids=ids,
        fold=np.arange(12) % num_folds,
        unseen=np.zeros(12, bool),
        scheme="stratified",
        seed=0,
        data_hash="0",
    ).save(path)


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """Overrides that name a task, folds and an `out`; no image is read."""
    save_folds(tmp_path / "folds.parquet")
    return ["task=digits", f"data={tmp_path}", f"folds={tmp_path}/folds.parquet", f"out={tmp_path}/out"]


def bowl(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
    """Best at a learning rate of 1e-3; as good in every epoch of every fold."""
    score = 1 - abs(math.log10(experiment.train.optim.lr) + 3) / 2
    for fold in range(2):
        for epoch in range(1, experiment.train.epochs + 1):
            on_epoch(fold, epoch, score)
    return score


def sweep(overrides: list[str], train: Train = bowl, **options) -> SweepResult:
    return run_sweep(overrides, train=train, stale_after_s=STALE_S, **options)


def test_a_sweep_finds_the_best_setting_and_writes_what_it_found(base: list[str], tmp_path: Path) -> None:
    result = sweep([*base, LR, "epochs=10", "model=choice(resnet18,resnet50)"], trials=16)
    assert result.counts["complete"] + result.counts.get("pruned", 0) == 16 and result.ended == "done"
    assert result.best is not None and result.best.score is not None and result.best.score > 0.9
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
    assert [int(row["trial"]) for row in rows] == list(range(16))
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert float(best["optim.lr"]) == float(result.best.settings["optim.lr"])
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
    assert max(result.importances, key=lambda key: result.importances[key]) == "optim.lr"
    assert "optim.lr" in "\n".join(format_sweep(result))


def test_the_command_that_trains_the_best_again_composes_to_its_settings(base: list[str], tmp_path: Path) -> None:
    result = sweep([*base, LR, "loader.batch_size=choice(8,16)", "schedule.small_size=null"], trials=2)
    words = shlex.split(result.command)
    experiment = compose_experiment(words[2:])
    assert words[:2] == ["kaggle-kit", "train"] and experiment.out == tmp_path / "out" / "best"
    assert result.best is not None
    assert experiment.train.optim.lr == float(result.best.settings["optim.lr"])
    assert str(experiment.train.loader.batch_size) == result.best.settings["loader.batch_size"]


def test_every_trial_has_a_run_folder_of_its_own_and_the_settings_it_says(base: list[str], tmp_path: Path) -> None:
    seen: dict[str, float] = {}

    def train(experiment: Experiment, on_epoch: object) -> float:
        seen[experiment.out.name] = experiment.train.optim.lr
        assert experiment.out.parent == tmp_path / "out"
        return experiment.train.optim.lr

    result = sweep([*base, LR], train, trials=4)
    assert seen == {trial.folder: float(trial.settings["optim.lr"]) for trial in result.trials}
    assert list(seen) == ["trial_0000", "trial_0001", "trial_0002", "trial_0003"]


def test_same_seed_same_trials_and_another_seed_others(base: list[str], tmp_path: Path) -> None:
    def tried(name: str, seed: int, *parts: int) -> list[dict[str, str]]:
        overrides = [*base[:3], f"out={tmp_path}/{name}", LR, "model.dropout=uniform(0,0.5)"]
        return [trial.settings for trial in [sweep(overrides, trials=n, seed=seed) for n in parts][-1].trials]

    once = tried("a", 0, 13)
    assert tried("b", 0, 4, 13) == once  # started again
    assert tried("c", 1, 2) != once[:2]
    assert len({trial["optim.lr"] for trial in once}) == 13


def test_lower_is_better_where_the_metric_says_so(base: list[str], tmp_path: Path) -> None:
    from kaggle_kit.task import read_task, task_to_plain

    task = {**task_to_plain(read_task("digits")), "metric": "log_loss"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    result = sweep([f"task={tmp_path}/task.yaml", *base[1:], LR], lambda e, _: e.train.optim.lr, trials=4)
    assert result.best is not None
    assert result.best.score == min(trial.score for trial in result.trials if trial.score is not None)


def test_a_sweep_started_again_goes_on_to_the_asked_number(base: list[str]) -> None:
    assert sweep([*base, LR], trials=2).counts == {"complete": 2}
    again = sweep([*base, LR], trials=5)
    assert again.counts == {"complete": 5}
    ran: list[int] = []
    assert sweep([*base, LR], lambda *_: ran.append(1) or 0.0, trials=5).counts == {"complete": 5} and not ran


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["optim.lr=log(1e-4,1e-1)"], r"range of optim.lr: log\(0.0001,0.01\) there, log\(0.0001,0.1\) now"),
        ([LR, "epochs=7"], "epochs: 20 there, 7 now"),
        ([LR, "fold=1"], "fold: all there, 1 now"),
        ([LR, "task=bengali"], "task: digits-cv .* there, bengaliai-cv19 .* now"),
        ([LR, "model.dropout=uniform(0,0.5)"], "range of model.dropout: none there, uniform"),
    ],
)
def test_another_sweep_s_study_is_refused(base: list[str], overrides: list[str], match: str) -> None:
    sweep([*base, LR], trials=1)
    kept = [override for override in base if not any(o.split("=")[0] == override.split("=")[0] for o in overrides)]
    with pytest.raises(SettingError, match=match):
        sweep([*kept, *overrides], trials=2)


def test_what_only_this_machine_has_may_differ_between_workers(base: list[str]) -> None:
    sweep([*base, LR], trials=1)
    assert sweep([*base, LR, "loader.num_workers=1", "device.compile=true"], trials=2).counts == {"complete": 2}


def test_bad_trials_are_pruned_at_tenths_of_the_first_fold(base: list[str]) -> None:
    epochs: dict[str, list[tuple[int, int]]] = {}

    def train(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
        ran = epochs.setdefault(experiment.out.name, [])
        bad = len(epochs) > 5
        (experiment.out / "fold0").mkdir(parents=True)
        (experiment.out / "fold0" / "last.safetensors").touch()
        (experiment.out / "fold0" / "history.csv").touch()
        for fold in range(2):
            for epoch in range(1, 21):
                ran.append((fold, epoch))
                # A trial that is only bad in its second fold goes on: others' second folds are other images.
                on_epoch(fold, epoch, 0.9 - len(epochs) / 1000 - 0.8 * (bad and (fold or len(epochs) % 2)))
        return 0.5

    result = sweep([*base, LR], train, trials=8)
    states = [trial.state for trial in result.trials]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states[5:]
    pruned = next(trial for trial in result.trials if trial.state == "pruned")
    assert epochs[pruned.folder][-1] == (0, 6)  # the third tenth: the first after the warm-up
    assert not list(result.out.glob(f"{pruned.folder}/**/*.safetensors"))
    assert list(result.out.glob(f"{pruned.folder}/**/history.csv"))
    assert all(len(epochs[trial.folder]) == 40 for trial in result.trials if trial.state == "complete")
    assert list(result.out.glob("trial_0000/**/*.safetensors"))


def test_trials_of_different_lengths_are_compared_at_the_same_share_of_their_training(base: list[str]) -> None:
    steps: dict[int, list[int]] = {}

    def train(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
        for epoch in range(1, experiment.train.epochs + 1):
            on_epoch(0, epoch, epoch / experiment.train.epochs)
        return 1.0

    result = sweep([*base, "epochs=choice(4,25)"], train, trials=6)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{result.out}/study.db")
    for trial in study.trials:
        steps[int(trial.params["epochs"])] = sorted(trial.intermediate_values)
        assert all(0 <= value - step / 10 < 0.1 for step, value in trial.intermediate_values.items())
    assert steps == {4: [2, 5, 7, 10], 25: list(range(1, 11))}


def test_no_pruning_when_asked(base: list[str]) -> None:
    def train(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
        number = int(experiment.out.name[-4:])
        for epoch in range(1, 21):
            on_epoch(0, epoch, -float(number))
        return -float(number)

    assert sweep([*base, LR], train, trials=6, prune=False).counts == {"complete": 6}
    fresh = [*base[:3], f"{base[3]}2", LR]
    assert sweep(fresh, train, trials=6).counts == {"complete": 5, "pruned": 1}
    only_fold = [*base[:3], f"{base[3]}3", LR, "fold=1"]
    assert sweep(only_fold, train, trials=6).counts == {"complete": 6}  # fold 0 is not what is trained


def test_a_failing_trial_keeps_its_message_and_the_sweep_goes_on(base: list[str]) -> None:
    calls: list[int] = []

    def train(experiment: Experiment, on_epoch: object) -> float:
        calls.append(1)
        if len(calls) in (2, 3, 5):
            raise KitError(f"the loss is NaN at step {len(calls)}")
        return 0.5

    result = sweep([*base, LR], train, trials=6)
    assert result.counts == {"complete": 3, "failed": 3}
    assert result.trials[1].error == "the loss is NaN at step 2"
    assert "3 failed; the last, trial 4: the loss is NaN at step 5" in "\n".join(format_sweep(result))


def test_three_trials_that_fail_alike_end_the_sweep(base: list[str], tmp_path: Path) -> None:
    calls: list[int] = []

    def train(experiment: Experiment, on_epoch: object) -> float:
        calls.append(1)
        raise KitError(f"{experiment.out} does not fit; lower the batch size")

    with pytest.raises(KitError, match="3 trials in a row failed alike, so the sweep ends: .*lower the batch size"):
        sweep([*base, LR], train, trials=9)
    assert len(calls) == 3
    assert (tmp_path / "out" / "trials.csv").read_text().count("failed") == 3


def test_an_interrupted_trial_goes_on_in_its_folder_with_its_settings(base: list[str]) -> None:
    ran: list[tuple[str, float]] = []

    def train(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
        ran.append((experiment.out.name, experiment.train.optim.lr))
        on_epoch(0, 2, 0.1)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return 0.5

    first = sweep([*base, LR], train, trials=3)
    assert first.ended == "interrupted" and "the same command goes on" in format_sweep(first)[-1]
    assert first.counts == {"complete": 1, "cut short": 1, "waiting": 1}
    second = sweep([*base, LR], train, trials=3)
    assert second.counts == {"complete": 3, "cut short": 1} and second.ended == "done"
    assert ran[2] == ran[1] and ran[2][0] == "trial_0001"
    assert [trial.retry_of for trial in second.trials] == [None, None, 1, None]


def test_when_its_hours_are_over_a_trial_is_cut_short_and_continued_later(base: list[str]) -> None:
    def train(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
        time.sleep(0.1)
        on_epoch(0, 1, 0.5)
        return 0.5

    first = sweep([*base, LR], train, trials=2, hours=0.05 / 3600)
    assert first.ended == "hours" and first.counts == {"cut short": 1, "waiting": 1}
    assert sweep([*base, LR], train, trials=2).counts == {"complete": 2, "cut short": 1}


WORKER = """
import os, sys, time
from pathlib import Path
from kaggle_kit.sweep import run_sweep

out = Path(sys.argv[1])

def train(experiment, on_epoch):
    (out.parent / "ran").mkdir(exist_ok=True)
    (out.parent / "ran" / f"{experiment.out.name}_{os.getpid()}").write_text(str(experiment.train.optim.lr))
    on_epoch(0, 4, 0.5)
    if os.environ.get("VICTIM") and experiment.out.name >= "trial_0002":
        (out.parent / "hanging").write_text(experiment.out.name)
        time.sleep(600)
    time.sleep(0.1)
    return experiment.train.optim.lr

overrides = ["task=digits", f"data={out.parent}", f"folds={out.parent}/folds.parquet", f"out={out}"]
result = run_sweep([*overrides, "optim.lr=log(1e-4,1e-2)"], trials=12, train=train, stale_after_s=2)
print(result.counts)
"""


def start_worker(tmp_path: Path, *, victim: bool = False) -> subprocess.Popen[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"VICTIM": "1"} if victim else {})
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(tmp_path / "out")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_workers_share_a_study_and_one_killed_loses_nothing(base: list[str], tmp_path: Path) -> None:
    victim = start_worker(tmp_path, victim=True)
    while not (tmp_path / "hanging").exists():
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.05)
    others = [start_worker(tmp_path) for _ in range(2)]
    while not len(list((tmp_path / "ran").glob("trial_0004*"))):
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    outputs = [worker.communicate(timeout=120) for worker in others]
    assert [worker.returncode for worker in others] == [0, 0], outputs
    assert all("'complete': 12" in out and "'cut short': 1" in out for out, _ in outputs), outputs
    lost = (tmp_path / "hanging").read_text()
    tries = [path.read_text() for path in (tmp_path / "ran").glob(f"{lost}_*")]
    assert len(tries) == 2 and tries[0] == tries[1]  # again, with its settings, in its folder
    folders = [path.name.rsplit("_", 1)[0] for path in (tmp_path / "ran").iterdir()]
    assert len(folders) == 13 and len(set(folders)) == 12  # no other trial ran twice
    workers = {path.name.rsplit("_", 1)[1] for path in (tmp_path / "ran").iterdir()}
    assert len(workers) == 3
    result = sweep([*base, LR], trials=12)
    assert result.counts == {"complete": 12, "cut short": 1}
    assert len({trial.settings["optim.lr"] for trial in result.trials}) == 12


def test_a_worker_that_was_thought_dead_leaves_its_trial_to_the_other(base: list[str], tmp_path: Path) -> None:
    """A suspended laptop: its trial was declared dead and run again by the time it wakes up."""
    from kaggle_kit.sweep.study import requeue

    def asleep(experiment: Experiment, on_epoch: Callable[[int, int, float], None]) -> float:
        if experiment.out.name == "trial_0000" and not calls:
            calls.append(1)
            study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/out/study.db")
            trial = study.trials[0]
            study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
            requeue(study, trial, killed=True)
            on_epoch(0, 2, 0.9)
            raise AssertionError("goes on with a trial that is another's")
        return 0.5

    calls: list[int] = []
    result = sweep([*base, LR], asleep, trials=2)
    assert result.counts == {"complete": 2, "cut short": 1}
    assert result.trials[0].state == "cut short" and result.trials[1].folder == "trial_0000"


def test_a_trial_that_kills_its_workers_is_given_up(base: list[str], tmp_path: Path) -> None:
    from kaggle_kit.sweep.study import MOST_KILLS, requeue, retried_numbers, takes_a_place

    study = optuna.create_study()
    study.ask()
    for number in range(MOST_KILLS + 1):
        study.tell(number, state=optuna.trial.TrialState.FAIL)
        requeue(study, study.trials[number], killed=True)
        if number < MOST_KILLS:
            study.ask()
    assert len(study.trials) == MOST_KILLS + 1
    retried = retried_numbers(study.trials)
    assert [takes_a_place(trial, retried) for trial in study.trials] == [False] * MOST_KILLS + [True]


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("optim.lrr=log(1e-4,1e-2)", r"`optim.lrr` is not a setting; did you mean 'optim.lr'"),
        ("optim.lr=log(1e-2,1e-4)", "`optim.lr` is 'log.*': the low end 0.01 is not below the high end 0.0001"),
        ("optim.lr=log(0,1e-2)", "it needs a low end above 0"),
        ("optim.lr=uniform(1,1)", "the low end 1 is not below"),
        ("optim.lr=uniform(1)", r"uniform\(\) has 1 numbers; write log\(LOW,HIGH\)"),
        ("optim.lr=uniform(a,b)", "'a' is no number"),
        ("optim.lr=logg(1,2)", r"a range is log.*; did you mean 'log'\?"),
        ("optim.lr=__import__(os)", "a range is log"),
        ("epochs=int(1,2.5)", r"int\(\) takes whole numbers"),
        ("epochs=int(1,10,4)", "step 4 does not lead from 1 to 10"),
        ("epochs=choice()", "empty option"),
        ("epochs=choice(3,3)", "names an option twice"),
        ("epochs=choice(3,many)", "`epochs` is 'many'"),
        ("epochs=int(0,5)", "`epochs` is 0; expected 1"),
        ("model.dropout=uniform(0,2)", "`dropout` is 2.0; expected 0 to 0.95"),
        ("model=choice(resnet18,resnet19)", "`model=resnet19` names no preset"),
        ("data=choice(a,b)", "`data` is no setting to sweep over"),
        ("seed=int(0,5)", "`seed` is no setting to sweep over"),
        ("like=runs/a", "`like` |cannot be given beside `like`"),
        ("overwrite=true", "`overwrite` is not for sweeps"),
        ("epochs", "has no '='"),
    ],
)
def test_slips_are_told_before_any_trial(base: list[str], override: str, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        sweep([*base, override], lambda *_: pytest.fail("a trial ran"), trials=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trials": 0}, "--trials is 0"),
        ({"hours": 0.0}, "--hours is 0"),
        ({"storage": "sqlite:///x.db"}, "--storage is given without --study"),
        ({"storage": "study.db", "study_name": "s"}, "--storage is no database address"),
        ({"storage": "postgresql+nodriver://u:geheim@h/d", "study_name": "s"}, "--storage is no database address"),
        ({"storage": "sqlite:////no/such/folder/study.db", "study_name": "s"}, "does not answer: unable to open"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(base: list[str], options: dict[str, object], match: str) -> None:
    with pytest.raises(KitError, match=match) as caught:
        sweep([*base, LR], **{"trials": 1, **options})
    assert "geheim" not in str(caught.value)


def test_passwords_are_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from sqlalchemy.exc import OperationalError

    from kaggle_kit.sweep.study import explained

    with (
        pytest.raises(KitError) as caught,
        explained("postgresql://me:geheim@host/db"),
    ):
        raise OperationalError("select", {}, Exception("no login for me with geheim"))
    assert "geheim" not in str(caught.value) and "postgresql://me:***@host/db" in str(caught.value)


def test_ranges_are_read_as_they_are_written() -> None:
    assert parse_range("a", "log(1e-4, 1e-2)") == Range(kind="log", low=1e-4, high=1e-2)
    assert parse_range("a", "int(5,20,5)") == Range(kind="int", low=5, high=20, step=5)
    assert parse_range("a", "choice([64,64],'a,b',null)") == Range(kind="choice", options=("[64,64]", "'a,b'", "null"))
    assert [parse_range("a", text) for text in ("0.1", "resnet18", "[1,2]", "float(3)", "{a: 1}")] == [None] * 5
    for text in ("log(0.0001,0.01)", "int(5,20,5)", "choice([64,64],x)", "uniform(0.0,0.5)"):
        assert str(parse_range("a", text)) == text


def test_the_default_space_composes_and_gives_way_to_the_command_line(base: list[str], tmp_path: Path) -> None:
    space = read_space(base)
    assert {"epochs", "loader.batch_size", "optim.lr", "optim.weight_decay"} <= set(space.ranges)
    check_space(space)
    assert "epochs" not in read_space([*base, "epochs=3"]).ranges
    assert set(read_space([*base, LR]).ranges) == {"optim.lr"}
    own = tmp_path / "space.yaml"
    own.write_text("optim.lr: log(1e-3, 1e-1)\nepochs: 3\nmodel.dropout: uniform(0, 0.5)\n")
    both = read_space([*base, LR], own)
    assert str(both.ranges["optim.lr"]) == "log(0.0001,0.01)" and "epochs=3" in both.fixed
    assert set(both.ranges) == {"optim.lr", "model.dropout"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("optim: {lr: 3}", "dotted names, not nested"),
        ("- a", "must hold lines like"),
        ("epochs: 3", "there is nothing to sweep"),
        ("a: [", "is not valid YAML"),
        (None, "there is no space file"),
    ],
)
def test_space_files_that_are_none_are_refused(base: list[str], tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "space.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match=match):
        read_space(base, path)
