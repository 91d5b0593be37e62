"""What one fold's training is made of, and what happens at the ends of epochs and of the whole."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kaggle_kit.errors import CheckpointError
from kaggle_kit.metrics import gain
from kaggle_kit.progress import progress_bar
from kaggle_kit.scores import Score, score_answers
from kaggle_kit.settings import plain
from kaggle_kit.train.augment import make_augment
from kaggle_kit.train.averages import Averages
from kaggle_kit.train.averaging import State, greedy_soup
from kaggle_kit.train.checkpoint import load_weights
from kaggle_kit.train.config import Weights
from kaggle_kit.train.course import Course
from kaggle_kit.train.data import TrainStream, make_loader
from kaggle_kit.train.job import FoldJob
from kaggle_kit.train.logs import Loggers, Row, history_row, open_loggers
from kaggle_kit.train.losses import TrainingLoss, make_loss
from kaggle_kit.train.mixing import Mixer
from kaggle_kit.train.model import Network, build_network, freeze_backbone, unfreeze
from kaggle_kit.train.optim import Schedule, make_optimizer, make_schedule
from kaggle_kit.train.order import shuffle_window
from kaggle_kit.train.predict import predict_together
from kaggle_kit.train.record import FoldRecord, Standing
from kaggle_kit.train.sampling import row_weights
from kaggle_kit.train.state import STATE, load_state, save_state

# A kill costs at most so much work: the state is also saved between the ends of epochs.
SAVE_EVERY_S = 600.0
PASS_SHARE = 0.5  # a pass for BatchNorm statistics takes about a third of an epoch, which has a backward pass too


@dataclass(kw_only=True)
class Training:
    """A fold's training under way. What changes from step to step is in `parts`, which are saved and restored."""

    job: FoldJob
    fabric: Any
    network: Network
    model: Any
    optimizer: Any
    schedule: Schedule
    stream: TrainStream
    loss_of: TrainingLoss
    mixer: Mixer
    averages: Averages
    course: Course
    record: FoldRecord
    loggers: Loggers
    parts: dict[str, Any]
    _saved: float = 0.0

    def seed_of(self, step: int) -> int:
        """Return the seed of a step, another on every rank."""
        place = (self.job.seed, 5, step, self.fabric.global_rank)
        return int(np.random.default_rng(place).integers(2**63))

    def size_of(self, epoch: int) -> tuple[int, int]:
        """Return the (height, width) the network sees in an epoch, counted from 0."""
        schedule = self.job.config.schedule
        small = schedule.small_size if epoch < schedule.small_epochs else None
        return small or self._final_size

    def enter_epoch(self, epoch: int) -> None:
        """Freeze what is frozen in this epoch, and set the size the networks see."""
        if epoch < self.job.config.optim.freeze_epochs:
            freeze_backbone(self.network)
        else:
            unfreeze(self.network)
        self._set_size(self.size_of(epoch))
        self.model.train()

    def end_epoch(self) -> Row:
        """Validate the weights and their averages, keep the best, save all, and return the epoch's history."""
        self.course.check()
        epoch = self.course.epoch  # counted from 1: the step is the next epoch's first
        self._share_buffers()
        self.averages.end_epoch(epoch)
        rate = self.schedule.rate(self.course.step - 1)
        figures = self.course.end_epoch()
        scores: dict[Weights, Score] = {}
        if len(self.job.valid_rows):
            before = self.record.best
            scores = self._validate(epoch)
            small = self.size_of(epoch - 1) != self._final_size  # whose scores are never the best
            self.schedule.end_epoch(better=small or self.record.best is not before)
        row = history_row(
            epoch=epoch,
            rate=rate,
            score=scores.pop("raw", None),
            averages={weights: score.total for weights, score in scores.items()},
            seconds=self.course.count_other_time(),
            **figures,
        )
        if self.job.config.schedule.small_epochs:
            row["size"] = "x".join(map(str, self.size_of(epoch - 1)))
        self.record.history.add(row)
        self.loggers.log(self.course.step, row)
        self.save_state()
        self.record.settle()
        self.record.drop_contenders()
        return row

    def finish(self, asked: Callable[[int], None]) -> Weights:
        """Score what is only known at the end: averages with BatchNorm statistics of their own, and the soup.

        Args:
            asked: Called with a number now and then, to end by an error where an end was asked for.

        Returns:
            Which weights were kept.
        """
        self._share_buffers()
        self._set_size(self._final_size)
        self.averages.finish(lambda: self._images_again(asked))
        if not len(self.job.valid_rows):
            kept: dict[Weights, Network] = {"raw": self.network, **dict(self.averages.all())}
            weights = self.job.keep if self.job.keep in kept else "raw"
            self.record.keep_unscored(kept[weights], epoch=self.epochs_begun, weights=weights)
            return weights
        if self.record.best is None or self.course.step % self.stream.steps_per_epoch:
            self._offer(self.network, "raw", self.epochs_begun)  # stopped within an epoch, or in one at another size
        for weights, network in self.averages.all():
            self._offer(network, weights, self.epochs_begun)
        self._offer_soup(self.epochs_begun)
        assert self.record.best is not None
        return self.record.best.weights

    def ensure_checkpoint(self) -> Standing | None:
        """Keep the weights as they are where none were kept yet; return what is kept, None where nothing validates."""
        if not len(self.job.valid_rows):
            self.record.keep_unscored(self.network, epoch=self.epochs_begun, weights="raw")
        elif self.record.best is None:
            self._share_buffers()
            self._set_size(self._final_size)
            self._offer(self.network, "raw", self.epochs_begun)
            self.record.settle()
        return self.record.best

    @property
    def epochs_begun(self) -> int:
        """How many epochs the weights have seen, the last one maybe in part."""
        return -(-self.course.step // self.stream.steps_per_epoch)

    @property
    def reserve_s(self) -> float:
        """Seconds that ending in good order takes, as far as this training's own pace tells."""
        averages = len(self.averages.networks())
        validations = 1 + averages + self.job.config.average.soup
        return self.course.validation_s * validations + PASS_SHARE * self.course.longest_epoch_s * averages

    def save_state(self) -> None:
        """Write everything that the training goes on from; the first rank's holds for all.

        Raises:
            KitError: Where it could not go on from these weights, for they are no numbers; an earlier state stays.
        """
        self.course.check()
        self._saved = time.monotonic()
        if self.fabric.is_global_zero:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            save_state(self.job.folder / STATE, state)

    def save_state_now_and_then(self) -> None:
        """Save the state where the last time is long ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save_state()

    def restore(self) -> None:
        """Go on from a saved state, if there is one."""
        self._saved = time.monotonic()
        path = self.job.folder / STATE
        state = load_state(path)
        if state is None:
            return
        fused = [group.get("fused") for group in self.optimizer.param_groups]
        try:
            for name, part in self.parts.items():
                if state[name]:  # empty: another precision's
                    part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not fit this training ({' '.join(str(error).split())[:200]}); was it saved with another "
                "timm version? Delete it to train this fold again from its start"
            ) from None
        for group, value in zip(self.optimizer.param_groups, fused, strict=True):
            if "fused" in group:
                group["fused"] = value  # this device's, not that of the one before
        self.record.settle()

    def summary(self, row: Row) -> str:
        """Return an epoch in a few words, for the progress bar."""
        text = f"epoch {row['epoch']}/{self.job.config.epochs} loss {float(row['loss']):.3f}"
        if "score" in row:
            text += f" score {float(row['score']):.4f}"
        best = self.record.best
        return text + (f" best {best.score.total:.4f} ({best.weights})" if best else "")

    @property
    def _final_size(self) -> tuple[int, int]:
        return self.job.config.model.input_size or self.job.task.stored_size

    def _validate(self, epoch: int) -> dict[Weights, Score]:
        """Score the weights and their running averages."""
        started = time.perf_counter()
        counts = self.size_of(epoch - 1) == self._final_size
        running: list[tuple[Weights, Network]] = [("raw", self.network), *self.averages.running()]
        scores = {weights: self._offer(network, weights, epoch, counts=counts) for weights, network in running}
        self.course.validation_s = (time.perf_counter() - started) / len(running)
        return scores

    def remember_best(self) -> None:
        """Tell the saved state which weights were kept at the end; all else in it stays as it was before the end."""
        path = self.job.folder / STATE
        if self.fabric.is_global_zero and path.is_file():
            state = load_state(path)
            assert state is not None
            save_state(path, {**state, "record": self.record.state_dict()})

    def _share_buffers(self) -> None:
        """Give all ranks the first one's buffers: each has BatchNorm statistics of its own images."""
        if self.fabric.world_size > 1:
            for network in (self.network, *self.averages.networks()):
                for buffer in network.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def _offer(self, network: Network, weights: Weights, epoch: int, *, counts: bool = True) -> Score:
        probs = predict_together(self.fabric, network, self.job.source, self.job.valid_rows)
        return self.record.offer(network, probs, epoch=epoch, weights=weights, counts=counts)

    def _offer_soup(self, epoch: int) -> None:
        """Offer the greedy soup of the best epochs' weights."""
        self.fabric.barrier()  # the first rank has written them
        contenders = self.record.contenders()
        if len(contenders) < 2:
            return
        network = copy.deepcopy(self.network)

        def score(weights: State) -> float:
            load_weights(network, weights, where="a soup")
            probs = predict_together(self.fabric, network, self.job.source, self.job.valid_rows)
            return score_answers(self.job.task, self.record.truth, probs).total

        metric = self.job.task.metric
        paths = [path for _, path in contenders]
        soup = greedy_soup(paths, score=score, better=lambda new, old: gain(metric, new, old) > 0)
        load_weights(network, soup.state, where="the soup")
        self._offer(network, "soup", epoch)

    def _images_again(self, asked: Callable[[int], None]) -> Iterator[torch.Tensor]:
        """Yield the images of one more epoch, augmented as in training and not mixed, for BatchNorm statistics."""
        steps = range(len(self.stream), len(self.stream) + self.stream.steps_per_epoch)
        workers = self.job.config.loader.num_workers
        with progress_bar(len(steps), f"{self.job.title}: BatchNorm of averages", unit="step") as bar:
            for step, batch in enumerate(
                make_loader(self.stream, steps, num_workers=workers, device=self.fabric.device)
            ):
                asked(step)
                yield from batch.images.to(self.fabric.device).split(self.course.micro_batch)
                bar.update()

    def _set_size(self, size: tuple[int, int]) -> None:
        for network in (self.network, *self.averages.networks()):
            if network.input_size != size:
                network.set_input_size(size)


def assemble(job: FoldJob, fabric: Any) -> Training:
    """Make everything a fold's training needs, in the state it was saved in if it was begun before.

    Args:
        job: What is trained on what.
        fabric: Launched.

    Raises:
        KitError: When settings, labels and weights do not fit together, or the saved state is damaged.
    """
    task, config, device = job.task, job.config, fabric.device
    torch.manual_seed(job.seed)
    network = build_network(task, config.model, derivation=job.derivation)
    if config.device.channels_last:
        network.to(memory_format=torch.channels_last)
    network.to(device)
    stream = _make_stream(job, fabric)
    optimizer = make_optimizer(network, config.optim)
    schedule = make_schedule(config, steps_per_epoch=stream.steps_per_epoch, epochs=config.epochs)
    averages = Averages(network, config)
    model, fabric_optimizer = fabric.setup(torch.compile(network) if config.device.compile else network, optimizer)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None:  # another fold's may have gone far
        scaler.load_state_dict(torch.amp.GradScaler(device.type).state_dict())
    course = Course(
        stream,
        micro_batch=config.loader.micro_batch,
        device=device,
        scaled=scaler is not None,
    )
    record = FoldRecord(
        task,
        config,
        fold=job.fold,
        folder=job.folder,
        ids=job.source.ids[job.valid_rows],
        truth=job.labels.take(job.valid_rows).classes,
        writes=fabric.is_global_zero,
    )
    training = Training(
        job=job,
        fabric=fabric,
        network=network,
        model=model,
        optimizer=fabric_optimizer,
        schedule=schedule,
        stream=stream,
        loss_of=make_loss(task, config.loss, job.labels, job.train_rows).to(device),
        mixer=Mixer(config.mix, seed=job.seed, num_steps=len(stream)),
        averages=averages,
        course=course,
        record=record,
        loggers=Loggers({}),
        parts={
            "network": network,
            "optimizer": optimizer,
            "schedule": schedule,
            "precision": fabric.strategy.precision,
            "averages": averages,
            "course": course,
            "record": record,
        },
    )
    training.restore()
    if fabric.is_global_zero:
        training.loggers = open_loggers(
            config.log,
            task=task,
            run_name=f"{job.folder.parent.name}/{job.folder.name}",
            folder=job.folder,
            settings=plain(config),
            step=course.step,
        )
    return training


def _make_stream(job: FoldJob, fabric: Any) -> TrainStream:
    config = job.config
    return TrainStream(
        job.source,
        job.labels,
        job.train_rows,
        batch_size=config.loader.batch_size,
        epochs=config.epochs,
        seed=job.seed,
        augment=make_augment(config, job.task),
        row_weights=row_weights(job.task, config.sampling, job.labels, job.train_rows),
        window=shuffle_window(job.source, config.loader.window_gb),
        rank=fabric.global_rank,
        num_ranks=fabric.world_size,
    )
