"""Images through a bundle: a feed of batches, one thread a device that computes them, and results kept as they come.

So the next shard is read while this one runs, an image is read once for all members, and memory does not grow with the
number of images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kaggle_kit.errors import DataError, PredictionError, brief
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.budget import Budget
from kaggle_kit.runtime.feed import Feed, Work
from kaggle_kit.runtime.levels import Ladder, Level
from kaggle_kit.runtime.results import Batch, Results
from kaggle_kit.sources import Source

GRACE_S = 2.0  # how long what runs at the end of time is waited for


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time went.

    Attributes:
        seconds: Wall time.
        reading_s: Of the thread that reads, beside the others.
        computing_s: Of graphs and mixing, over all devices.
        waiting_s: Of devices without images.
        first_s: Until the first batch was finished.
        images: Computed.
    """

    seconds: float = 0.0
    reading_s: float = 0.0
    computing_s: float = 0.0
    waiting_s: float = 0.0
    first_s: float = 0.0
    images: int = 0


class LostDeviceError(RuntimeError):
    """The last device failed; a new process may find it well again."""


class Pipeline:
    """One pass over the images of a source."""

    def __init__(
        self,
        source: Source,
        results: Results,
        ladders: Sequence[Ladder],
        budget: Budget,
        *,
        priors: Probs,
        tolerant: bool,
        say: Callable[[str], object],
        spare: Callable[[], Ladder] | None = None,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a pass over what is missing from the results.

        Args:
            source: The images.
            results: Where probabilities go.
            ladders: One for each device.
            budget: Chooses what runs.
            priors: {head: (1, C)} what broken images get.
            tolerant: Whether images that cannot be read, or whose probabilities are NaN, get the priors even where a
                whole part of a file is lost.
            say: Where lines go.
            spare: Makes a ladder on the CPU, for when every device is lost.
            grace_s: How long what runs at the end of time is waited for.
            clock: Gives seconds.
        """
        self._results, self._budget = results, budget
        self._ladders = list(ladders)
        self._priors, self._tolerant = priors, tolerant
        self._say, self._spare, self._grace_s, self._clock = say, spare, grace_s, clock
        self.total = len(source)
        todo = [range(rows.start, min(rows.stop, self.total)) for rows in results.missing()]
        self._left = sum(len(rows) for rows in todo)
        self._feed = Feed(
            source,
            todo,
            batch=results.batch,
            num_buffers=2 * len(ladders) + 2,
            tolerant=tolerant,
            say=say,
            clock=clock,
        )
        self._state = threading.Condition()
        self._over = False
        self._errors: list[BaseException] = []
        self._devices = self._images_computed = 0
        self._computing_s = self._waiting_s = self._overhead_s = self._first_s = self._started = 0.0

    @property
    def done(self) -> int:
        """How many images are finished, those of earlier passes included."""
        return self.total - self._left

    @property
    def computed(self) -> int:
        """How many images this pass has finished."""
        return self._images_computed

    def run(self, *, every_s: float = 0.5, tick: Callable[[], object] = lambda: None) -> Timings:
        """Go through all images, or as many as there is time for.

        Args:
            every_s: How often `tick` is called.
            tick: Is told that time has passed.

        Raises:
            KitError: When images cannot be read or computed.
            LostDeviceError: When the last device is lost and there is no spare.
        """
        self._started = started = self._clock()
        if self._left:
            self._feed.start(self._guard)
            for ladder in self._ladders:
                self._start_device(ladder)
            try:
                self._watch(every_s, tick)
            finally:
                self._feed.stop()
                with self._state:
                    self._over = True
        if self._errors:
            raise self._errors[0]
        return Timings(
            seconds=self._clock() - started,
            reading_s=self._feed.reading_s,
            computing_s=self._computing_s,
            waiting_s=self._waiting_s,
            first_s=self._first_s,
            images=self._images_computed,
        )

    def _start_device(self, ladder: Ladder) -> None:
        with self._state:
            self._devices += 1
        name = f"device {ladder.device_id}"
        threading.Thread(target=self._guard, args=(self._compute, ladder), name=name).start()

    def _guard(self, work: Callable[..., object], *arguments: object) -> None:
        """Let an error of a thread end the pass."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  raised again by `run`
            with self._state:
                self._errors.append(error)
                self._state.notify_all()

    def _watch(self, every_s: float, tick: Callable[[], object]) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._left == 0 or self._errors, timeout=every_s)
                if self._left == 0 or self._errors:
                    return
            if self._budget.left_s <= 0:
                self._feed.stop()
                with self._state:
                    self._state.wait_for(lambda: self._left == 0 or self._devices == 0, timeout=self._grace_s)
                return
            tick()

    def _compute(self, ladder: Ladder) -> None:
        while (work := self._next_work()) is not None:
            try:
                self._compute_one(ladder, work)
            except (DataError, PredictionError):
                raise
            except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
                self._lose(ladder, work, error)
                return
        with self._state:
            self._devices -= 1
            self._state.notify_all()

    def _next_work(self) -> Work | None:
        started = self._clock()
        work = self._feed.next()
        with self._state:
            self._waiting_s += self._clock() - started
        return work

    def _compute_one(self, ladder: Ladder, work: Work) -> None:
        started = self._clock()
        number = len(work.rows)
        level, stop_at = self._choose(number)
        if len(work.broken) == number:
            probs, reached = {head: np.repeat(values, number, axis=0) for head, values in self._priors.items()}, level
        else:
            probs, reached = ladder.run(work.images, level, stop_at=stop_at)
            work.broken |= self._not_finite(work.ids, probs)
            for row, name in enumerate(work.ids):
                if name in work.broken:
                    for head, values in probs.items():
                        values[row] = self._priors[head][0]
        computed = self._clock() - started
        batch = Batch(
            rows=work.rows, num_runs=reached.num_runs, cut=reached.cut, piece=ladder.piece, broken=work.broken
        )
        with self._state:
            if self._over:  # what is written by now is what counts
                return
            self._results.put(batch, probs)
            self._first_s = self._first_s or self._clock() - self._started
            self._computing_s += computed
            self._overhead_s += self._clock() - started - computed
            self._images_computed += number
            self._left -= number
            self._state.notify_all()
        self._feed.free(work)

    def _choose(self, number: int) -> tuple[Level, float]:
        with self._state:
            read_s = self._feed.reading_s / self._feed.num_read if self._feed.num_read else 0.0
            overhead_s = self._overhead_s / self._images_computed if self._images_computed else 0.0
            return self._budget.choose(
                self._left, batch=number, num_workers=max(self._devices, 1), overhead_s=overhead_s, read_s=read_s
            )

    def _not_finite(self, ids: list[str], probs: Probs) -> dict[str, str]:
        """Return {id: reason} of images that no probabilities came out for."""
        finite = np.all([np.isfinite(values).all(axis=1) for values in probs.values()], axis=0)
        names = [name for name, sound in zip(ids, finite.tolist(), strict=True) if not sound]
        if names and not self._tolerant:
            raise PredictionError(
                f"probabilities of {names[0]!r} hold NaN, of {len(names)} image(s) of its batch; "
                "a lower precision or another runtime overflows: make the bundle in fp32"
            )
        return dict.fromkeys(names, "its probabilities are NaN or infinite")

    def _lose(self, ladder: Ladder, work: Work, error: Exception) -> None:
        """Hand a device's work on: to the others, or to the CPU where it was the last."""
        with self._state:
            self._devices -= 1
            others = self._devices > 0
            self._state.notify_all()
        self._feed.put_back(work)
        why = f"device {ladder.device_id} is lost ({brief(error)})"
        if others:
            self._say(f"WARNING {why}; the others take over")
            return
        if self._spare is None:
            raise LostDeviceError(f"{why}; run it again, or on the CPU") from error
        self._say(f"WARNING {why}; the CPU takes over")
        spare, self._spare = self._spare(), None
        self._start_device(spare)
