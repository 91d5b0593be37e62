"""Images of a source in batches: one thread reads what comes next, another fills buffers that are used again.

source.chunks()  ->  chunks waiting, at most what is read in one go  ->  batches in reused buffers
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

from kaggle_kit.errors import ImageError, KitError
from kaggle_kit.pixels import Image
from kaggle_kit.sources import Chunk, Source, fixed_shape
from kaggle_kit.tables import Text

WAITING_BYTES = 128 << 20  # decoded images that wait, where a source reads few at a time
ROWS_AT_ONCE = 1024  # of images that cannot be read
PAGE = 4096
TOUCHING_THREADS = 4  # a mount gives several times as much to several readers
NICENESS = 5  # of reading: it gives way to computing wherever both want a core


@dataclass
class Work:
    """A batch on its way.

    Attributes:
        rows: Of the source.
        ids: Of its images.
        buffer: (batch, H, W, C), of which the first ones are its images.
        broken: {id: reason} of images that could not be read; theirs are zeros.
    """

    rows: range
    ids: list[str]
    buffer: Image
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> Image:
        """(n, H, W, C) uint8."""
        return self.buffer[: len(self.rows)]


class Feed:
    """Batches of a source, for several devices.

    Attributes:
        reading_s: How long the thread that reads was busy.
        num_read: Images that it has read.
    """

    def __init__(
        self,
        source: Source,
        todo: Sequence[range],
        *,
        batch: int,
        num_buffers: int,
        tolerant: bool,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to read some rows of a source.

        Args:
            source: The images.
            todo: Rows to read, in order.
            batch: Images a batch; rows are divided at its multiples.
            num_buffers: How many batches there may be at once.
            tolerant: Whether images of a part of a file that cannot be read are broken ones, rather than an error.
            say: Where lines go.
            clock: Gives seconds.
        """
        self._source, self._todo, self._batch = source, [rows for rows in todo if len(rows)], batch
        self._num_buffers, self._tolerant, self._say, self._clock = num_buffers, tolerant, say, clock
        self._state = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._ready: deque[Work] = deque()
        self._buffers: list[Image] = []
        self._num_made = 0
        self._reader_done = self._stop = False
        self.reading_s, self.num_read = 0.0, 0

    def start(self, guard: Callable[[Callable[[], object]], object]) -> None:
        """Start both threads, each of which runs its work through `guard`.

        Python waits for them at its end: libraries abort the process where it ends beneath them.
        """
        threading.Thread(target=guard, args=(self._read,), name="read").start()
        threading.Thread(target=guard, args=(self._assemble,), name="assemble").start()

    def stop(self) -> None:
        """End: whoever waits for a batch gets none."""
        with self._state:
            self._stop = True
            self._state.notify_all()

    def next(self) -> Work | None:
        """Return the next batch, or None at the end; until then, one may be put back that others wait for."""
        with self._state:
            self._state.wait_for(lambda: self._stop or self._ready)
            return None if self._stop else self._ready.popleft()

    def put_back(self, work: Work) -> None:
        """Give a batch to whoever asks next."""
        with self._state:
            self._ready.appendleft(work)
            self._state.notify_all()

    def free(self, work: Work) -> None:
        """Let a batch's buffer be used again."""
        with self._state:
            self._buffers.append(work.buffer)
            self._state.notify_all()

    # Reading

    def _read(self) -> None:
        _be_nice()
        capacity = self._capacity()
        for rows in self._todo:
            for chunk in self._chunks_of(rows):
                with self._state:
                    self.num_read += len(chunk.ids)
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
        if _holds_pixels(self._source):
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
                self.reading_s += self._clock() - started
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
        work: Work | None = None
        while (chunk := self._next_chunk()) is not None:
            at = 0
            while at < len(chunk.ids):
                row = chunk.start + at
                stop = min((row // self._batch + 1) * self._batch, len(self._source))
                if work is None:
                    buffer = self._take_buffer(chunk.images.shape[1:])
                    if buffer is None:
                        return
                    work = Work(rows=range(row, row), ids=[], buffer=buffer)
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
        """Return a buffer that is free, or a new one where there are few; None at the end."""
        with self._state:
            self._state.wait_for(lambda: self._stop or self._buffers or self._num_made < self._num_buffers)
            if self._stop:
                return None
            if self._buffers:
                return self._buffers.pop()
            self._num_made += 1
        return np.empty((self._batch, *shape), np.uint8)

    def _pass_on(self, work: Work) -> None:
        with self._state:
            self._ready.append(work)
            self._state.notify_all()


def _holds_pixels(source: Source) -> bool:
    """Return whether a source holds bare pixels, by its first image: counting all files' bytes may take minutes."""
    try:
        return not len(source) or source.encoded(0) is None
    except ImageError:
        return False


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
