"""Progress bars for people, and a line now and then for logs."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from kaggle_kit.machine import is_first_process

LINE_EVERY_S = 15
DELAY_S = 1.0


def say(text: str) -> None:
    """Tell the person at the terminal something that is no result: one line on standard error.

    Of several processes that `torchrun` started together the first speaks for all.
    """
    if is_first_process():
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def progress_bar(total: int, what: str, *, unit: str, initial: int = 0) -> Any:
    """Return a tqdm bar on standard error, shown after a second.

    Where nobody watches a terminal it prints a line every 15 seconds.

    Args:
        total: How many units there are.
        what: What is going on, shown at its left.
        unit: What is counted, in the singular.
        initial: How many are done already.
    """
    from tqdm import tqdm

    if not is_first_process():
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(
            total=total, desc=what, unit=unit, initial=initial, mininterval=0.2, delay=DELAY_S, dynamic_ncols=True
        )
    lines = _Lines(sys.stderr)
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        mininterval=LINE_EVERY_S,
        delay=DELAY_S,
        ascii=True,
        file=lines,
    )


class _Lines:
    """A text stream that turns a bar's redrawing of one line into lines of a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write what was drawn, as a line."""
        drawn = text.replace("\r", "").strip()
        if drawn:
            self._stream.write(f"{drawn}\n")

    def flush(self) -> None:
        """Pass on a flush."""
        self._stream.flush()
