"""Images through a bundle: one thread reads, one fills buffers, one a device computes; results are kept as they come.

    source.chunks()  ->  chunks waiting, at most what is read in one go  ->  batches in reused buffers  ->  devices

So the next shard is read while this one runs, an image is read once for all members, and memory does not grow with the
number of images.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from kaggle_kit.errors import DataError, KitError, PredictionError, brief
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.budget import Budget
from kaggle_kit.runtime.levels import Ladder, Level
from kaggle_kit.runtime.results import Batch, Results
from kaggle_kit.sources import Chunk, Source, fixed_shape
from kaggle_kit.tables import Text

WAITING_BYTES = 128 << 20  # decoded images that wait, where a source reads few at a time
ROWS_AT_ONCE = 1024  # of images that cannot be read
PAGE = 4096
TOUCHING_THREADS = 4  # a mount gives several times as much to several readers
NICENESS = 5  # of reading: it gives way to computing wherever both want a core
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


@dataclass
class _Work:
    """A batch on its way."""

    rows: range
    ids: list[str]
    buffer: Image
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> Image:
        return self.buffer[: len(self.rows)]


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
        self._source, self._results, self._budget = source, results, budget
        self._ladders = list(ladders)
        self._priors, self._batch, self._tolerant = priors, results.batch, tolerant
        self._say, self._spare, self._grace_s, self._clock = say, spare, grace_s, clock
        self.total = len(source)
        self._todo = [range(rows.start, min(rows.stop, self.total)) for rows in results.missing()]
        self._left = sum(len(rows) for rows in self._todo)
        self._state = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._ready: deque[_Work] = deque()
        self._buffers: list[Image] = []
        self._num_buffers = 0
        self._reader_done = self._stop = self._over = False
        self._errors: list[BaseException] = []
        self._devices = 0
        self._reading_s = self._computing_s = self._waiting_s = self._overhead_s = self._first_s = 0.0
        self._started = 0.0
        self._images_read = self._images_computed = 0

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
            self._start()
            try:
                self._watch(every_s, tick)
            finally:
                with self._state:
                    self._stop = self._over = True
                    self._state.notify_all()
        if self._errors:
            raise self._errors[0]
        return Timings(
            seconds=self._clock() - started,
            reading_s=self._reading_s,
            computing_s=self._computing_s,
            waiting_s=self._waiting_s,
            first_s=self._first_s,
            images=self._images_computed,
        )

    def _start(self) -> None:
        # Threads end with the process: a device that hangs must not keep a submission from being written.
        threading.Thread(target=self._guard, args=(self._read,), daemon=True, name="read").start()
        threading.Thread(target=self._guard, args=(self._assemble,), daemon=True, name="assemble").start()
        for ladder in self._ladders:
            self._start_device(ladder)

    def _start_device(self, ladder: Ladder) -> None:
        with self._state:
            self._devices += 1
        name = f"device {ladder.device_id}"
        threading.Thread(target=self._guard, args=(self._compute, ladder), daemon=True, name=name).start()

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
                    self._stop = True
                    self._state.wait_for(lambda: self._left == 0 or self._devices == 0, timeout=self._grace_s)
                    return
            tick()

    # Reading

    def _read(self) -> None:
        _be_nice()
        capacity = self._capacity()
        for rows in filter(len, self._todo):
            for chunk in self._chunks_of(rows):
                with self._state:
                    self._images_read += len(chunk.ids)
                    self._state.wait_for(lambda: self._stop or not self._chunks or self._waiting() < capacity)
                    if self._stop:
                        return
                    self._chunks.append(chunk)
                    self._state.notify_all()
                del chunk
        with self._state:
            self._reader_done = True
            self._state.notify_all()

    def _waiting(self) -> int:
        return sum(len(chunk.ids) for chunk in self._chunks)

    def _capacity(self) -> int:
        """Return how many images may wait: what a source reads in one go, so that it reads the next meanwhile."""
        if self._source.encoded_bytes() is None:
            return max((len(part) for part in self._source.parts()), default=1)
        return max(self._batch, WAITING_BYTES // math.prod(fixed_shape(self._source)))

    def _chunks_of(self, rows: range) -> Iterator[Chunk]:
        """Yield chunks of these rows; where a part of a file is lost, and that is tolerated, of its priors."""
        at = rows.start
        while at < rows.stop:
            try:
                for chunk in self._timed(self._source.chunks(start=at, stop=rows.stop)):
                    _touch(chunk.images)
                    yield chunk
                    at = chunk.stop
                return
            except KitError as error:
                if not self._tolerant:
                    raise
                lost = next(part for part in self._source.parts() if at in part)
                self._say(f"WARNING rows {at:,} to {min(lost.stop, rows.stop):,} cannot be read: {error}")
                yield from self._lost(range(at, min(lost.stop, rows.stop)), str(error))
                at = lost.stop

    def _timed(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        while True:
            started = self._clock()
            try:
                chunk = next(chunks, None)
            finally:
                self._reading_s += self._clock() - started
            if chunk is None:
                return
            yield chunk
            del chunk

    def _lost(self, rows: range, reason: str) -> Iterator[Chunk]:
        blank = np.zeros(fixed_shape(self._source), np.uint8)
        for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
            ids: Text = self._source.ids[start : min(start + ROWS_AT_ONCE, rows.stop)]
            images = np.broadcast_to(blank, (len(ids), *blank.shape))
            broken = dict.fromkeys(ids.tolist(), reason)
            yield Chunk(start=start, ids=ids, images=images, sizes=np.zeros((len(ids), 2), np.int32), broken=broken)

    # Filling buffers

    def _assemble(self) -> None:
        work: _Work | None = None
        while (chunk := self._next_chunk()) is not None:
            at = 0
            while at < len(chunk.ids):
                row = chunk.start + at
                stop = min((row // self._batch + 1) * self._batch, self.total)
                if work is None:
                    buffer = self._take_buffer(chunk.images.shape[1:])
                    if buffer is None:
                        return
                    work = _Work(rows=range(row, row), ids=[], buffer=buffer)
                taken = min(stop - row, len(chunk.ids) - at)
                filled = len(work.rows)
                work.buffer[filled : filled + taken] = chunk.images[at : at + taken]
                names = chunk.ids[at : at + taken].tolist()
                work.ids += names
                work.broken |= {name: chunk.broken[name] for name in names if name in chunk.broken}
                work.rows = range(work.rows.start, row + taken)
                at += taken
                if work.rows.stop == stop:
                    self._pass_on(work)
                    work = None
            del chunk
        if work is not None:
            self._pass_on(work)

    def _next_chunk(self) -> Chunk | None:
        with self._state:
            self._state.wait_for(lambda: self._stop or self._chunks or self._reader_done)
            if self._stop or not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._state.notify_all()
            return chunk

    def _take_buffer(self, shape: tuple[int, ...]) -> Image | None:
        """Return a buffer that is free, or a new one where there are few; None where the pass ends."""
        most = 2 * len(self._ladders) + 2
        with self._state:
            self._state.wait_for(lambda: self._stop or self._buffers or self._num_buffers < most)
            if self._stop:
                return None
            if self._buffers:
                return self._buffers.pop()
            self._num_buffers += 1
        return np.empty((self._batch, *shape), np.uint8)

    def _pass_on(self, work: _Work) -> None:
        with self._state:
            self._ready.append(work)
            self._state.notify_all()

    # Computing

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

    def _next_work(self) -> _Work | None:
        started = self._clock()
        with self._state:
            self._state.wait_for(lambda: self._stop or self._ready or self._left == 0)
            self._waiting_s += self._clock() - started
            if self._stop or not self._ready:
                return None
            return self._ready.popleft()

    def _compute_one(self, ladder: Ladder, work: _Work) -> None:
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
            self._buffers.append(work.buffer)
            self._computing_s += computed
            self._overhead_s += self._clock() - started - computed
            self._images_computed += number
            self._left -= number
            self._state.notify_all()

    def _choose(self, number: int) -> tuple[Level, float]:
        with self._state:
            read_s = self._reading_s / self._images_read if self._images_read else 0.0
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

    def _lose(self, ladder: Ladder, work: _Work, error: Exception) -> None:
        """Hand a device's work on: to the others, or to the CPU where it was the last."""
        with self._state:
            self._ready.appendleft(work)
            self._devices -= 1
            others = self._devices > 0
            self._state.notify_all()
        why = f"device {ladder.device_id} is lost ({brief(error)})"
        if others:
            self._say(f"WARNING {why}; the others take over")
            return
        if self._spare is None:
            raise LostDeviceError(f"{why}; run it again, or on the CPU") from error
        self._say(f"WARNING {why}; the CPU takes over")
        spare, self._spare = self._spare(), None
        self._start_device(spare)


def _be_nice() -> None:
    """Let this thread, and those that it starts, give way to others."""
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _touch(images: Image) -> None:
    """Bring images that lie in a mapped file into memory, by several threads: disks behind a mount are slow alone."""
    if not isinstance(_owner(images), np.memmap) or not images.flags.c_contiguous:
        return
    pages = images.reshape(-1)[::PAGE]
    with ThreadPoolExecutor(TOUCHING_THREADS) as pool:
        list(pool.map(np.max, [part for part in np.array_split(pages, TOUCHING_THREADS) if len(part)]))


def _owner(images: Image) -> object:
    while isinstance(images.base, np.ndarray) and not isinstance(images, np.memmap):
        images = images.base
    return images
