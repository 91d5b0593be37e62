"""When to stop before the last epoch: at Ctrl-C, when told to terminate, when the time is up."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import torch

from kaggle_kit.progress import say

Reason = Literal["", "interrupted", "out of time"]
_REASONS: tuple[Reason, ...] = ("", "out of time", "interrupted")  # the last one outweighs the others
# Between processes a stop is agreed on every so many steps: asking costs a little.
ASK_EVERY = 20
SAME_PRESS_S = 2.0  # torchrun passes on what the terminal has told a process already


class Stopper:
    """A context in which Ctrl-C and SIGTERM ask for an orderly end; a second one ends at once."""

    def __init__(self, fabric: Any, *, deadline: float | None) -> None:
        """Stop nothing yet.

        Args:
            fabric: All its ranks stop at the same step.
            deadline: When time is up, as `time.monotonic()` counts; None: never.
        """
        self._fabric = fabric
        self._deadline = deadline
        self._interrupted = False
        self._terminated = False
        self._pressed = 0.0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier.clear()

    def reason(self, step: int, *, reserve_s: float) -> Reason:
        """Return why to stop after this step; empty: go on. The same on all ranks.

        Args:
            step: Counted from 0.
            reserve_s: Seconds that ending takes: time is up so much earlier.
        """
        late = self._deadline is not None and time.monotonic() + reserve_s >= self._deadline
        own = 2 if self._interrupted else 1 if late else 0
        if self._fabric.world_size == 1:
            return _REASONS[own]
        if step % ASK_EVERY:
            return ""
        worst = self._fabric.all_reduce(torch.tensor(float(own), device=self._fabric.device), reduce_op="max")
        return _REASONS[int(worst.item())]

    @property
    def hurried(self) -> bool:
        """Whether SIGTERM asked for the end: who sends it kills within seconds."""
        return self._terminated

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted and now - self._pressed > SAME_PRESS_S:
            raise KeyboardInterrupt
        if not self._interrupted:
            say("stopping after this step; nothing is lost, and a second Ctrl-C ends at once")
        self._interrupted, self._pressed = True, now
        self._terminated = self._terminated or number == signal.SIGTERM
