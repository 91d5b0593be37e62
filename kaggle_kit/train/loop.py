"""The training loop: one fold, top to bottom. Fabric supplies devices, precision and gradient scaling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from kaggle_kit.errors import Interrupted
from kaggle_kit.predictions import Predictions
from kaggle_kit.progress import progress_bar, say
from kaggle_kit.scores import Score
from kaggle_kit.train.config import Weights
from kaggle_kit.train.data import make_loader
from kaggle_kit.train.devices import denormals_flushed, make_fabric
from kaggle_kit.train.job import FoldJob
from kaggle_kit.train.losses import soft_targets
from kaggle_kit.train.record import OOF
from kaggle_kit.train.stopping import Reason, Stopper
from kaggle_kit.train.training import Training, assemble

OnEpoch = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What training a fold gave.

    Attributes:
        score: The kept weights', on the validation rows; None where nothing validates.
        epoch: How many epochs the kept weights had seen.
        weights: Which weights were kept.
        seconds: Wall time, of earlier sessions too.
        oof: The kept weights' predictions of the validation rows; None where nothing validates.
        stopped: Why it ended before its last epoch; empty: it did not.
        scores: {weights: the best score that weights of this kind had}.
        interrupted: Whether Ctrl-C asked for an end when there was nothing left to do.
    """

    score: Score | None
    epoch: int
    weights: Weights
    seconds: float
    oof: Predictions | None
    stopped: Reason = ""
    scores: dict[Weights, float] = field(default_factory=dict)
    interrupted: bool = False


@denormals_flushed()
def train_fold(
    job: FoldJob,
    *,
    fabric: Any = None,
    deadline: float | None = None,
    last_epoch: int | None = None,
    on_epoch: OnEpoch | None = None,
) -> FoldResult:
    """Train one network and validate it after every epoch, from where an earlier call was cut off.

    Writes `best.safetensors`, `oof.npz` and `history.csv` into the job's folder, and `state.pt` until it is through.

    Args:
        job: What is trained on what.
        fabric: Launched; None: on this process's own device.
        deadline: When to end, as `time.monotonic()` counts; None: after the last epoch.
        last_epoch: End after this epoch of the schedule; None: after all.
        on_epoch: Told (fold, epoch, score) after every epoch; what it raises ends the training.

    Raises:
        KitError: When the loss is no longer a number.
        Interrupted: When Ctrl-C or SIGTERM asked for an end.
        torch.OutOfMemoryError: When not even two images at a time fit the device's memory.
    """
    training = assemble(job, fabric or make_fabric(job.config))
    try:
        with Stopper(training.fabric, deadline=deadline) as stopper:
            stopped = _run_steps(training, stopper, last_epoch=last_epoch, on_epoch=on_epoch)
            if stopped == "interrupted":
                raise Interrupted(_interrupted(training, hurried=stopper.hurried))
            weights = training.finish(lambda step: _check_asked(training, stopper, step))
            if stopped:
                training.remember_best()
            training.record.settle()
            interrupted = stopper.reason(0, reserve_s=0.0) == "interrupted"
    finally:
        training.loggers.close()
    return _result(training, weights, stopped, interrupted=interrupted)


def _run_steps(training: Training, stopper: Stopper, *, last_epoch: int | None, on_epoch: OnEpoch | None) -> Reason:
    job, config, fabric, course = training.job, training.job.config, training.fabric, training.course
    per_epoch = training.stream.steps_per_epoch
    steps = range(course.step, per_epoch * min(last_epoch or config.epochs, config.epochs))
    loader = fabric.setup_dataloaders(
        make_loader(training.stream, steps, num_workers=config.loader.num_workers, device=fabric.device),
        use_distributed_sampler=False,
    )
    training.enter_epoch(course.epoch)
    with progress_bar(steps.stop, job.title, unit="step", initial=steps.start) as bar:
        for step, batch in course.batches(loader, steps):
            # Whatever is random in a step is the step's own, so that a training goes on as if never cut off.
            torch.manual_seed(training.seed_of(step))
            images, targets = training.mixer(batch.images, soft_targets(job.task, batch.labels), step=step)
            training.schedule.apply(training.optimizer, step)
            loss = course.backward(fabric, training.model, training.optimizer, training.loss_of, images, targets)
            norm = fabric.clip_gradients(
                training.model, training.optimizer, max_norm=config.optim.clip_norm, error_if_nonfinite=False
            )
            training.optimizer.step()
            if (step + 1) % per_epoch == 0:
                training.loggers.histograms(course.step, training.network)
            training.optimizer.zero_grad()
            training.averages.end_step()
            course.end_step(loss, norm)
            bar.update()
            if course.step % per_epoch == 0:
                row = training.end_epoch()
                bar.set_postfix_str(training.summary(row), refresh=False)
                if on_epoch is not None and "score" in row:
                    on_epoch(job.fold, course.epoch, float(row["score"]))
                if course.step < steps.stop:
                    training.enter_epoch(course.epoch)
            stopped = stopper.reason(step, reserve_s=training.reserve_s)
            if stopped and course.step < steps.stop:
                training.save_state()
                return stopped
            training.save_state_now_and_then()
    return ""


def _check_asked(training: Training, stopper: Stopper, step: int) -> None:
    """End while the averages are finished, if Ctrl-C asks for it: the saved state is of the last step."""
    if stopper.reason(step, reserve_s=0.0) == "interrupted":
        raise Interrupted(_interrupted(training, hurried=stopper.hurried))


def _interrupted(training: Training, *, hurried: bool) -> str:
    """Make sure that there is a usable checkpoint, where there is time, and say where it is and how to go on."""
    job = training.job
    epoch = min(training.course.epoch + 1, job.config.epochs)
    text = f"interrupted in epoch {epoch} of {job.config.epochs} of {job.title}; the same command goes on from there"
    if hurried and training.record.best is None:
        return text
    if training.record.best is None:
        say(f"{job.title}: keeping the weights as they are, so that there is a checkpoint")
    best = training.ensure_checkpoint()
    kept = f"The best so far ({best.score.total:.4f})" if best else "The weights as they are"
    return f"{text}. {kept}: {training.record.best_file}"


def _result(training: Training, weights: Weights, stopped: Reason, *, interrupted: bool) -> FoldResult:
    job, record = training.job, training.record
    if stopped:
        say(f"{job.title}: time is up in epoch {training.epochs_begun} of {job.config.epochs}")
    if len(record.scores) > 1:
        said = ", ".join(f"{kind} {score:.4f}" for kind, score in record.scores.items())
        say(f"{job.title}: {said}; the {weights} weights are kept")
    training.fabric.barrier()  # the first rank's files are whole
    best = record.best
    return FoldResult(
        score=best.score if best else None,
        epoch=best.epoch if best else training.epochs_begun,
        weights=weights,
        seconds=training.course.count_other_time(),
        oof=Predictions.load(job.folder / OOF) if best else None,
        stopped=stopped,
        scores=record.scores,
        interrupted=interrupted,
    )
