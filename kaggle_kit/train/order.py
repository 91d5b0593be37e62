"""In which order an epoch shows its images: shuffled, and still read in runs where they outgrow memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kaggle_kit.machine import memory_bytes
from kaggle_kit.sources import PackedSource
from kaggle_kit.sources.stacked import StackedStores

Ints = npt.NDArray[np.int64]
ROWS_A_RUN = 512
# A store up to this share of memory stays in the page cache beside everything else.
CACHED_SHARE = 0.5


def shuffled(num_rows: int, *, seed: int, epoch: int, window: int | None = None) -> Ints:
    """Return 0 to num_rows - 1 in an order that depends on nothing but the arguments.

    Args:
        num_rows: How many.
        seed: The training's.
        epoch: Counted from 0.
        window: None: every order is as likely. Else runs of 512 neighbours are shuffled, and then the rows of as many
            runs together as make up `window` rows: so many images are read from the disk around the same time,
            in long runs, instead of one here and one there.
    """
    rng = np.random.default_rng((seed, 1, epoch))
    if window is None or window >= num_rows:
        return rng.permutation(num_rows)
    offset = int(rng.integers(ROWS_A_RUN))  # other neighbours in every epoch
    runs = np.split(np.arange(num_rows), np.arange(offset, num_rows, ROWS_A_RUN))
    held = max(2, window // ROWS_A_RUN)
    order = rng.permutation(len(runs))
    groups = [np.concatenate([runs[run] for run in order[at : at + held]]) for at in range(0, len(runs), held)]
    return np.concatenate([rng.permutation(group) for group in groups])


def shuffle_window(store: PackedSource | StackedStores, window_gb: float | None) -> int | None:
    """Return how many images to shuffle together, None for all.

    Args:
        store: The images.
        window_gb: How many gigabytes of them; None: all where the store fits half of the memory, else a quarter of
            the memory.
    """
    memory = memory_bytes()
    if window_gb is None and (memory is None or store.num_bytes <= CACHED_SHARE * memory):
        return None
    window_bytes = memory / 4 if window_gb is None and memory is not None else (window_gb or 0.0) * 1e9
    return max(1, round(window_bytes / max(1.0, store.num_bytes / max(1, len(store)))))
