"""A sweep's study in Optuna: trials that several workers share, and that survive a worker's death."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from kaggle_kit.errors import Interrupted, KitError, SettingError
from kaggle_kit.experiment import Experiment
from kaggle_kit.progress import say
from kaggle_kit.sweep.space import Range, Space

OnEpoch = Callable[[int, int, float], None]
Train = Callable[[Experiment, OnEpoch], float]
Ended = Literal["done", "hours", "interrupted"]

MOST_KILLS = 3  # of one trial's workers; then the trial may be what kills them, by memory for one
SAME_ERRORS = 3  # in a row end a sweep
LOCK_S = 60  # how long SQLite waits for another worker's write
STEPS = 10  # a trial is compared with others at every tenth of its training
WARM_STEPS = 3  # tenths without pruning: rates still rise then
STARTUP = 5  # trials that are never pruned
BEATS = 6  # heartbeats in the time after which a worker counts as dead
POLL_S = 0.5


class Unfinished(Exception):  # noqa: N818
    """A trial ends here without a score; whoever raises it has said what becomes of it."""


class NumberedSampler(BaseSampler):
    """TPE whose random numbers are a function of (seed, the trial's number).

    One seed for all workers would have them try the same settings; and a sweep that is started again would repeat its
    first ones.

    Args:
        seed: At least 0.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = self._of_trial(0)

    def _of_trial(self, number: int) -> TPESampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        with _experimental():
            return TPESampler(seed=seed, constant_liar=True)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start the trial's own stream of random numbers."""
        self._tpe = self._of_trial(trial.number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE does."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE does."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE does."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


@contextlib.contextmanager
def open_study(
    url: str, name: str, identity: Mapping[str, str], *, minimize: bool, seed: int, stale_after_s: int
) -> Iterator[optuna.Study]:
    """Join a study, or start it.

    Args:
        url: The database, as SQLAlchemy writes it; its password is never shown.
        name: The study's name in it.
        identity: What every worker must agree on: {what: its value}.
        minimize: Whether a lower score is better.
        seed: Of the sampler.
        stale_after_s: A worker that gave no sign of life for so many seconds is dead: its trial is run again.

    Raises:
        KitError: When the database does not answer.
        SettingError: When the address is none, or the study is of another sweep.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with explained(url):
            storage = _open_storage(url, stale_after_s)
            try:
                study = optuna.create_study(
                    storage=storage,
                    study_name=name,
                    load_if_exists=True,
                    direction="minimize" if minimize else "maximize",
                    sampler=NumberedSampler(seed),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARM_STEPS),
                )
                _check_identity(study, identity)
                yield study
            finally:
                storage.remove_session()
                storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(before)


def _open_storage(url: str, stale_after_s: int) -> optuna.storages.RDBStorage:
    lock = {"connect_args": {"timeout": LOCK_S}} if url.startswith("sqlite") else None
    try:
        with _experimental():
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=lock,
                heartbeat_interval=max(1, stale_after_s // BEATS),
                grace_period=stale_after_s,
                heartbeat_stale_trial_callback=lambda study, trial: requeue(study, trial, killed=True),
            )
    except ImportError:
        kind = sqlalchemy.engine.make_url(url).drivername
        raise KitError(
            f"the driver of {kind} databases is not installed; for PostgreSQL pip install psycopg2-binary"
        ) from None


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what a database complains about into one line without its password."""
    try:
        yield
    except sqlalchemy.exc.ArgumentError:
        raise SettingError(
            "--storage is no database address; write sqlite:////shared/study.db or postgresql://user:password@host/db"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        address = sqlalchemy.engine.make_url(url)
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        if address.password:
            cause = cause.replace(str(address.password), "***")
        raise KitError(
            f"the study's database {address.render_as_string(hide_password=True)} does not answer: {cause}; check the "
            "address; started again, the sweep goes on where it was"
        ) from None


def _check_identity(study: optuna.Study, identity: Mapping[str, str]) -> None:
    """Refuse a study of another sweep; a new one gets this sweep's identity."""
    if "sweep" not in study.user_attrs:
        study.set_user_attr("sweep", json.dumps(dict(identity), sort_keys=True))
    there: dict[str, str] = json.loads(study.user_attrs["sweep"])
    keys = sorted(key for key in {*there, *identity} if there.get(key) != identity.get(key))
    if keys:
        told = "; ".join(f"{key}: {there.get(key, 'none')} there, {identity.get(key, 'none')} now" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise SettingError(
            f"study {study.study_name!r} is of another sweep ({told}{more}); give its settings, or another `out` or "
            "--study"
        )


def requeue(study: optuna.Study, trial: FrozenTrial, *, killed: bool) -> None:
    """Have a trial's settings tried again, in its folder, where its run goes on from its last checkpoint.

    Args:
        study: The trial's study.
        trial: One that ended without a score.
        killed: Whether its worker died, which is done with the same trial `MOST_KILLS` times at most.
    """
    kills = trial.user_attrs.get("kills", 0) + killed
    if kills > MOST_KILLS or "surplus" in trial.user_attrs:
        return
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"folder": folder_of(trial), "kills": kills, "retry_of": trial.number},
            intermediate_values=trial.intermediate_values,
        )
    )


def folder_of(trial: FrozenTrial | Trial) -> str:
    """Return the name of a trial's run folder: its number, or that of the trial it continues."""
    return str(trial.user_attrs.get("folder", f"trial_{trial.number:04d}"))


def retried_numbers(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that others continue."""
    return {int(trial.user_attrs["retry_of"]) for trial in trials if "retry_of" in trial.user_attrs}


def takes_a_place(trial: FrozenTrial, retried: set[int]) -> bool:
    """Return whether a trial is one of those asked for: not where it was cut short, and is or will be run again."""
    if trial.state != TrialState.FAIL:
        return True
    if "surplus" in trial.user_attrs:
        return False
    return "error" in trial.user_attrs or (
        trial.number not in retried and trial.user_attrs.get("kills", 0) >= MOST_KILLS
    )


class Worker:
    """Runs trials of a study, one after the other.

    Args:
        study: Shared with other workers.
        space: What the trials try.
        out: The sweep's folder.
        trials: How many trials there shall be in all.
        train: Trains an experiment and returns its score; calls its second argument after every epoch.
        judged_fold: The fold whose scores decide on pruning.
        one_fold: Whether it is the only one.
        prune: Stop trials below the median.
        deadline: In `time.monotonic`'s seconds.
    """

    stopped: Ended | None = None

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        *,
        out: Path,
        trials: int,
        train: Train,
        judged_fold: int,
        one_fold: bool,
        prune: bool,
        deadline: float = math.inf,
    ) -> None:
        self._study, self._space, self._out, self._trials, self._train = study, space, out, trials, train
        self._judged_fold, self._one_fold, self._prune, self._deadline = judged_fold, one_fold, prune, deadline
        self._errors: list[str] = []
        self._current: tuple[int, bool] = (-1, False)  # the trial, and whether others have taken it over

    def num_missing(self) -> int:
        """Return how many trials no worker has begun; those that wait to be run again count."""
        trials = self._study.get_trials(deepcopy=False)
        retried = retried_numbers(trials)
        begun = [trial for trial in trials if trial.state != TrialState.WAITING and takes_a_place(trial, retried)]
        return self._trials - len(begun)

    def find_dead_workers(self) -> int:
        """Have the trials of dead workers run again, and return how many trials still run."""
        with _experimental():
            optuna.storages.fail_stale_trials(self._study)
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def run_trial(self) -> FrozenTrial | None:
        """Run one trial, and return it; None where its place was taken, or another worker took it over.

        Raises:
            KitError: When the last trials all failed alike.
        """
        self._current = (-1, False)
        try:
            self._study.optimize(self._objective, n_trials=1, catch=(KitError, Unfinished), gc_after_trial=True)
        except ValueError:  # Optuna's, for a score of a trial that is no longer ours
            if not self._current[1]:
                raise
            say(f"trial {self._current[0]} was taken over by another worker, which found this one silent")
            return None
        trial = self._study.get_trials(deepcopy=False)[self._current[0]]
        if self.stopped and trial.state == TrialState.FAIL:
            requeue(self._study, trial, killed=False)
        error = trial.user_attrs.get("error")
        self._errors = [*self._errors, re.sub(r"\d+", "0", error)][-SAME_ERRORS:] if error else []
        if error and self._errors == self._errors[:1] * SAME_ERRORS:
            raise KitError(f"{SAME_ERRORS} trials in a row failed alike, so the sweep ends: {error}")
        return None if "surplus" in trial.user_attrs else trial

    def _objective(self, trial: Trial) -> float:
        self._current = (trial.number, False)
        try:
            if self._is_surplus(trial.number):
                trial.set_user_attr("surplus", True)
                raise Unfinished
            trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
            trial.set_user_attr("folder", folder_of(trial))
            values = {key: suggest(trial, key, one) for key, one in self._space.ranges.items()}
            try:
                experiment = self._space.compose(values, out=self._out / folder_of(trial))
                return self._train(experiment, self._reporter(trial, experiment))
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                raise Unfinished from None
            except Interrupted:
                self.stopped = "interrupted"
                raise Unfinished from None
            except KitError as error:
                trial.set_user_attr("error", " ".join(str(error).split()))
                raise
        except optuna.exceptions.UpdateFinishedTrialError:
            raise Unfinished from None
        finally:
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            self._current = (trial.number, frozen.state.is_finished())

    def _is_surplus(self, number: int) -> bool:
        """Return whether workers that began at the same moment have all places by now; the lower numbers keep them."""
        trials = self._study.get_trials(deepcopy=False)
        retried = retried_numbers(trials)
        return sum(takes_a_place(trial, retried) for trial in trials[:number]) >= self._trials

    def _reporter(self, trial: Trial, experiment: Experiment) -> OnEpoch:
        epochs = experiment.train.epochs
        known = set(self._study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def on_epoch(fold: int, epoch: int, score: float) -> None:
            if time.monotonic() >= self._deadline:
                self.stopped = "hours"
                raise Unfinished
            step = STEPS * epoch // epochs
            if fold != self._judged_fold or step == STEPS * (epoch - 1) // epochs or step in known:
                return
            trial.report(score, step)
            at_its_end = step == STEPS and self._one_fold
            if self._prune and not at_its_end and trial.should_prune():
                raise optuna.TrialPruned

        return on_epoch


def suggest(trial: Trial, key: str, one: Range) -> float | str:
    """Return the value that the study's sampler tries in this trial."""
    if one.kind == "choice":
        return str(trial.suggest_categorical(key, one.options))
    if one.kind == "int":
        return trial.suggest_int(key, int(one.low), int(one.high), step=one.step)
    return trial.suggest_float(key, one.low, one.high, log=one.kind == "log")


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Use what Optuna calls experimental without its saying so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
