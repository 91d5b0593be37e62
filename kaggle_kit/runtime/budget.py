"""The time that a kernel has, and how much of a bundle runs within it.

Speeds are not known beforehand: the same code was seen to run twice as long on another day. So for every batch anew the
most is chosen that all images left could still get in the time left. Where that leaves time over, it is saved up for
the last images, which then get more: the limit is used, and no image goes without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kaggle_kit.runtime.levels import Costs, Level

MARGIN = 0.05  # of the task's own limit: what starts before the kernel's first line, and what a slow disk takes
EXPLORED = 3  # batches that run at the highest level, whatever it takes, so that all of it is measured
EXPLORING_SHARE = 0.02  # of the time left, or its share of the images, that it may take before it begins no further run
SAFETY = 1.03  # how much longer the images left are taken to be than they were


class Budget:
    """Chooses what runs for the next images.

    Attributes:
        levels: What may run, the cheapest first.
        costs: What it takes.
        end: When the last image must be finished, by the clock.
    """

    def __init__(
        self, levels: Sequence[Level], costs: Costs, *, end: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start without having measured anything.

        Args:
            levels: What may run, the cheapest first.
            costs: What it takes, as far as that is known.
            end: When the last image must be finished, by the clock.
            clock: Gives the seconds.
        """
        self.levels = tuple(levels)
        self.costs = costs
        self.end = end
        self._clock = clock
        self._explored = 0

    @property
    def left_s(self) -> float:
        """Seconds left for images."""
        return self.end - self._clock()

    def choose(
        self, images_left: int, *, batch: int = 1, num_workers: int = 1, overhead_s: float = 0.0, read_s: float = 0.0
    ) -> tuple[Level, float]:
        """Return the level for the next images, and the time from which on they begin no further run.

        Args:
            images_left: All that are not finished, these included.
            batch: How many are next.
            num_workers: How many devices share them.
            overhead_s: Seconds an image takes beside the graphs.
            read_s: Seconds an image takes to be read, meanwhile.
        """
        whole = self.levels[-1]
        if self._explored < EXPLORED * num_workers and not self.costs.is_measured(whole):
            self._explored += 1
            return whole, self._clock() + max(EXPLORING_SHARE, batch / images_left) * self.left_s
        for level in reversed(self.levels):
            alone = self.costs.of(level) + overhead_s
            each = max(read_s, alone / num_workers)
            if SAFETY * max(each * images_left, alone * batch) <= self.left_s:
                return level, self.end
        return self.levels[0], self.end
