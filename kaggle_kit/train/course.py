"""How far a training has come: its steps, the loss since the epoch began, the time, and what is no number."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from kaggle_kit.errors import KitError, some_of
from kaggle_kit.progress import say
from kaggle_kit.train.data import Batch, TrainStream
from kaggle_kit.train.losses import Targets, TrainingLoss

# Looking at the loss waits for a GPU, so there only every so many steps are looked at, all at once.
LOOK_EVERY = 50
LEAST_MICRO_BATCH = 2  # BatchNorm has no variance of a single image


class Course:
    """The step a training is at, and what happened since its epoch began.

    Attributes:
        step: The next one, counted from 0 over all epochs.
        micro_batch: How many images are in memory at once; halved where memory runs out.
        seconds: That training has taken, in earlier sessions too.
        validation_s: That scoring one network took the last time.
        longest_epoch_s: That the images of the slowest epoch so far took.
    """

    def __init__(self, stream: TrainStream, *, micro_batch: int | None, device: torch.device, scaled: bool) -> None:
        """Begin at the first step.

        Args:
            stream: The training's batches.
            micro_batch: Images at once; None: a whole batch.
            device: Where losses are.
            scaled: Whether gradients are scaled for fp16: infinite ones are then nothing to worry about.
        """
        self._stream = stream
        self._look_every = 1 if device.type == "cpu" else LOOK_EVERY
        self._scaled = scaled
        self.step = 0
        self.micro_batch = micro_batch or stream.batch_size
        self.seconds = 0.0
        self.validation_s = 0.0
        self.longest_epoch_s = 0.0
        self._since = time.perf_counter()
        self._loss_sum = torch.zeros((), device=device)
        self._bad_step = torch.full((), -1, device=device)
        self._num_images = 0
        self._epoch_seconds = 0.0
        self._waited = 0.0

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0."""
        return self.step // self._stream.steps_per_epoch

    def batches(self, loader: Iterable[Batch], steps: range) -> Iterator[tuple[int, Batch]]:
        """Yield each step with its batch, and remember how long the loader was waited for."""
        self._since = time.perf_counter()
        batches = iter(loader)
        for step in steps:
            asked = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - asked
            yield step, batch

    def backward(
        self,
        fabric: Any,
        model: Any,
        optimizer: torch.optim.Optimizer,
        loss_of: TrainingLoss,
        images: torch.Tensor,
        targets: Targets,
    ) -> torch.Tensor:
        """Compute a step's gradients, in as many parts as memory asks for; return its loss.

        Raises:
            torch.OutOfMemoryError: When not even two images at a time fit, or several processes train together, which
                would have to agree on a smaller part.
        """
        while True:
            try:
                return self._backward(fabric, model, loss_of, images, targets)
            except torch.OutOfMemoryError:
                if fabric.world_size > 1 or self.micro_batch <= LEAST_MICRO_BATCH:
                    raise
            self.micro_batch = -(-min(self.micro_batch, len(images)) // 2)
            say(
                f"memory ran out: {self.micro_batch} images at once from now on, and still {len(images)} a step; "
                f"loader.micro_batch={self.micro_batch} begins so"
            )
            optimizer.zero_grad()
            if images.is_cuda:
                torch.cuda.empty_cache()

    def _backward(
        self, fabric: Any, model: Any, loss_of: TrainingLoss, images: torch.Tensor, targets: Targets
    ) -> torch.Tensor:
        total = torch.zeros((), device=images.device)
        # even parts, and none of a single image, where there are more
        num_parts = max(1, min(-(-len(images) // self.micro_batch), len(images) // LEAST_MICRO_BATCH))
        ends = [len(images) * place // num_parts for place in range(num_parts + 1)]
        for start, end in itertools.pairwise(ends):
            part = slice(start, end)
            some = {head: values[part] for head, values in targets.items()}
            with fabric.no_backward_sync(model, enabled=end < len(images)):
                loss = loss_of(model(images[part], auxiliary=True), some, batch=targets)
                fabric.backward(loss)
            total += loss.detach()
        return total

    def end_step(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Count a step.

        Args:
            loss: Its loss.
            norm: The norm of its gradients before clipping.

        Raises:
            KitError: As `check`, which is called now and then.
        """
        good = torch.isfinite(loss) if self._scaled else torch.isfinite(loss) & torch.isfinite(norm)
        self._bad_step = torch.where(good | (self._bad_step >= 0), self._bad_step, self.step)
        self._loss_sum += loss
        self._num_images += self._stream.batch_size
        self.step += 1
        if self.step % self._look_every == 0:
            self.check()

    def check(self) -> None:
        """Refuse to go on from weights that are no numbers.

        Raises:
            KitError: With the step, its epoch and its images.
        """
        bad = int(self._bad_step.item())
        if bad >= 0:
            epoch, place = divmod(bad, self._stream.steps_per_epoch)
            raise KitError(
                f"the loss or its gradients are no number at step {place + 1} of epoch {epoch + 1}, on images "
                f"{some_of(self._stream.ids_of(bad))}; look at these, lower `optim.lr`, or set device.precision=fp32, "
                "and train again with overwrite=true; the best checkpoint so far is kept until then"
            )

    def end_epoch(self) -> dict[str, float]:
        """Return the epoch's mean loss, images a second, and the share of time spent waiting for images."""
        self._count_time()
        loss = self._loss_sum.item() / self._stream.steps_per_epoch
        seconds = max(self._epoch_seconds, 1e-9)
        self.longest_epoch_s = max(self.longest_epoch_s, seconds)
        row = {
            "loss": loss,
            "images_per_second": self._num_images / seconds,
            "waiting": self._waited / seconds,
        }
        self._loss_sum.zero_()
        self._num_images, self._epoch_seconds, self._waited = 0, 0.0, 0.0
        return row

    def count_other_time(self) -> float:
        """Add the time since the epoch ended, which no images were trained in, to `seconds`, and return them all."""
        self.seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()
        return self.seconds

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from."""
        self._count_time()
        return {
            "step": self.step,
            "micro_batch": self.micro_batch,
            "seconds": self.seconds,
            "loss_sum": self._loss_sum,
            "num_images": self._num_images,
            "epoch_seconds": self._epoch_seconds,
            "waited": self._waited,
            "validation_s": self.validation_s,
            "longest_epoch_s": self.longest_epoch_s,
            "window": self._stream.window,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved course."""
        self.step, self.micro_batch, self.seconds = state["step"], state["micro_batch"], state["seconds"]
        self._loss_sum.copy_(state["loss_sum"])
        self._num_images = state["num_images"]
        self._epoch_seconds, self._waited = state["epoch_seconds"], state["waited"]
        self.validation_s, self.longest_epoch_s = state["validation_s"], state["longest_epoch_s"]
        self._stream.set_window(state["window"])  # by itself it follows the machine's memory

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._epoch_seconds += now - self._since
        self._since = now
