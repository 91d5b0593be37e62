"""Search for settings by Optuna: workers, here and on other machines, share one study and its trials.

    OUT/study.db           the study, where no other database is given
    OUT/trial_0007         a trial's run, like any other: `kaggle-kit runs OUT` compares them
    OUT/trials.csv         every trial: state, score, settings, who ran it
    OUT/best.yaml          the best trial's settings, and the command that trains them again
    OUT/sweep.png          scores over trials, and which settings made them differ

Pruning: at every tenth of a trial's training, after the third, the best score so far of its first fold is compared
with the median of the complete trials at the same tenth; a trial below it ends. Tenths and not epochs, because
schedules scale with `epochs`, which may differ between trials; the first fold alone, because a later one would be
compared with the scores of other images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.entries import settings_of
from kaggle_kit.errors import DataError, KitError, SettingError
from kaggle_kit.experiment import Experiment, train_folds
from kaggle_kit.folds import Folds
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.progress import say
from kaggle_kit.settings import fingerprint
from kaggle_kit.sweep.report import (
    State,
    SweepResult,
    TrialRow,
    format_trial,
    rank_trials,
    retrain_command,
    write_report,
)
from kaggle_kit.sweep.space import Space, check_space, read_space
from kaggle_kit.task import Task, read_task

if TYPE_CHECKING:
    import optuna

    from kaggle_kit.sweep.study import Ended, OnEpoch, Train, Worker

OWN_STUDY = "sweep"  # the study's name in a sweep's own file
OF_THE_MACHINE = ("device.channels_last", "device.compile", "loader.num_workers", "loader.window_gb")
WEIGHTS = (".safetensors", ".pt")


def train_experiment(experiment: Experiment, on_epoch: OnEpoch) -> float:
    """Train an experiment and return its out-of-fold score; what `kaggle-kit train` would do."""
    return train_folds(experiment, on_epoch=on_epoch).score.total


def run_sweep(
    overrides: Sequence[str],
    *,
    trials: int = 30,
    space_file: Path | None = None,
    storage: str = "",
    study_name: str = "",
    hours: float | None = None,
    seed: int = 0,
    prune: bool = True,
    stale_after_s: int = 120,
    train: Train = train_experiment,
) -> SweepResult:
    """Run trials until the study has as many as asked, and write what was found.

    The same command again, at the same time or later, here or on another machine, joins the study: workers share its
    trials, and a sweep that was stopped goes on. The trial of a worker that died is run again by another one, in the
    same folder, so from its last checkpoint where that is the same disk. A trial that fails is counted, with its
    message.

    Args:
        overrides: `KEY=VALUE` as for `kaggle-kit train`, where VALUE may be a range; see `sweep.space.read_space`.
        trials: How many there shall be in all, pruned and failed ones too.
        space_file: A YAML file of ranges.
        storage: The study's database; empty: `OUT/study.db`, for workers that share a local disk (SQLite's locks are
            not sound on network drives).
        study_name: In the database; needed with `storage`, which others may share.
        hours: No trial goes on after so many hours; one that is cut short is continued by the next worker.
        seed: Of the search; a trial's settings follow from it, its number and the trials before.
        prune: Stop trials below the median.
        stale_after_s: Seconds without a sign of life after which a worker counts as dead.
        train: What trains; another one in tests.

    Raises:
        SettingError: For settings, ranges or a study that do not fit.
        KitError: When three trials in a row fail alike, or the database does not answer.
    """
    _check_arguments(trials=trials, storage=storage, study_name=study_name, hours=hours, stale_after_s=stale_after_s)
    space = read_space(overrides, space_file)
    first = check_space(space)
    task, folds = read_task(first.task), Folds.load(first.folds)
    if (first.out / "run.json").exists():
        raise DataError(f"{first.out} is a run; a sweep's folder holds runs: choose another `out`")
    try:
        from kaggle_kit.sweep.study import Worker, open_study
    except ImportError as error:
        raise KitError(f"a sweep needs {error.name}; pip install 'kaggle_kit[sweep]'") from None
    first.out.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(first.out / 'study.db').resolve()}"
    name = study_name or OWN_STUDY
    minimize = task.metric in LOWER_IS_BETTER
    same = _identity(space, first, task, folds)
    with open_study(url, name, same, minimize=minimize, seed=seed, stale_after_s=stale_after_s) as study:
        worker = Worker(
            study,
            space,
            out=first.out,
            trials=trials,
            train=train,
            judged_fold=first.fold or 0,
            one_fold=first.fold is not None or folds.num_folds == 1,
            prune=prune,
            deadline=math.inf if hours is None else time.monotonic() + hours * 3600,
        )
        ended: Ended = "interrupted"  # should it end by an error, what was found is written all the same
        try:
            ended = _work(worker, study, first.out, trials=trials, minimize=minimize, patience_s=2 * stale_after_s)
        finally:
            result = _result(study, space, first.out, wanted=trials, minimize=minimize, ended=ended)
            write_report(result, space)
    return result


def _work(worker: Worker, study: optuna.Study, out: Path, *, trials: int, minimize: bool, patience_s: float) -> Ended:
    """Run trials while some are missing; then wait until it is sure that those of others run in living workers."""
    from kaggle_kit.sweep.study import POLL_S

    waiting_since: float | None = None
    try:
        while worker.stopped is None:
            running = worker.find_dead_workers()
            if worker.num_missing() > 0:
                waiting_since = None
                trial = worker.run_trial()
                if trial is not None:
                    _tell(study, out, trial.number, trials=trials, minimize=minimize)
                continue
            now = time.monotonic()
            if waiting_since is None and running:
                say(f"{running} trial(s) run in other workers; looking whether these live, {patience_s:.0f} s at most")
            waiting_since = waiting_since or now
            if not running or now - waiting_since > patience_s:
                return "done"
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return "interrupted"
    return worker.stopped


def _tell(study: optuna.Study, out: Path, number: int, *, trials: int, minimize: bool) -> None:
    """Say how a trial ended, and drop the weights of a pruned one, which nobody will continue."""
    rows = _rows(study)
    row = next(one for one in rows if one.number == number)
    best = next(iter(rank_trials(rows, minimize=minimize)), None)
    place = sum(one.state in ("complete", "pruned", "failed") for one in rows)
    say(format_trial(row, best, place=f"{place} of {trials}"))
    if row.state == "pruned":
        for path in (out / row.folder).rglob("*"):
            if path.suffix in WEIGHTS:
                path.unlink(missing_ok=True)


def _result(study: optuna.Study, space: Space, out: Path, *, wanted: int, minimize: bool, ended: Ended) -> SweepResult:
    rows = _rows(study)
    best = next(iter(rank_trials(rows, minimize=minimize)), None)
    return SweepResult(
        out=out,
        study=study.study_name,
        trials=tuple(dataclasses.replace(row, settings=_as_written(space, row)) for row in rows),
        wanted=wanted,
        minimize=minimize,
        ended=ended,
        importances=_importances(study),
        command="" if best is None else retrain_command(space, best, out),
    )


def _as_written(space: Space, row: TrialRow) -> dict[str, str]:
    """Return a trial's settings in the order of the space."""
    return {key: row.settings[key] for key in space.ranges if key in row.settings}


def _rows(study: optuna.Study) -> list[TrialRow]:
    from kaggle_kit.sweep.study import folder_of, retried_numbers, takes_a_place

    trials = study.get_trials(deepcopy=False)
    retried = retried_numbers(trials)
    rows = []
    for trial in trials:
        if "surplus" in trial.user_attrs:
            continue
        state: State = "cut short"
        if takes_a_place(trial, retried):
            names: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
            names |= {"RUNNING": "running", "WAITING": "waiting"}
            state = names[trial.state.name]
        died = f"its worker died {trial.user_attrs.get('kills', 0) + 1} times" if state == "failed" else ""
        rows.append(
            TrialRow(
                number=trial.number,
                state=state,
                score=trial.value if state in ("complete", "pruned") else None,
                settings={key: str(value) for key, value in trial.params.items()},
                folder=folder_of(trial),
                seconds=trial.duration.total_seconds() if trial.duration else None,
                worker=trial.user_attrs.get("worker", ""),
                error=trial.user_attrs.get("error", died),
                retry_of=trial.user_attrs.get("retry_of"),
            )
        )
    return rows


def _importances(study: optuna.Study) -> dict[str, float]:
    """Return what Optuna finds, the most important first; nothing where too few trials differ."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return {key: share for key, share in shares.items() if math.isfinite(share)}


def _identity(space: Space, first: Experiment, task: Task, folds: Folds) -> dict[str, str]:
    """Return what all workers of a study must agree on; paths and machines may differ."""
    validated = hashlib.sha256(f"{folds.ids.tolist()}{folds.fold.tolist()}".encode()).hexdigest()[:12]
    shared = {
        key: str(value)
        for key, value in settings_of(first.train).items()
        if key not in (*OF_THE_MACHINE, *space.ranges) and not key.startswith("log.")
    }
    ranges = {f"range of {key}": str(one) for key, one in space.ranges.items()}
    fold = "all" if first.fold is None else str(first.fold)
    return {**ranges, **shared, "task": f"{task.name} {fingerprint(task)}", "folds": validated, "fold": fold}


def _check_arguments(*, trials: int, storage: str, study_name: str, hours: float | None, stale_after_s: int) -> None:
    if trials < 1:
        raise SettingError(f"--trials is {trials}; a sweep needs at least 1")
    if hours is not None and not hours > 0:
        raise SettingError(f"--hours is {hours:g}; it must be above 0")
    if stale_after_s < 2:
        raise SettingError(f"a worker cannot count as dead after {stale_after_s} s; give at least 2")
    if storage and not study_name:
        raise SettingError("--storage is given without --study; name the study, for others may share the database")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("a sweep is not started by torchrun; start one worker a GPU, with CUDA_VISIBLE_DEVICES")
