"""Progress bars for people, and a line now and then for logs."""

from __future__ import annotations

import sys
from typing import Any


def say(text: str) -> None:
    """Tell the person at the terminal something that is no result: one line on standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def progress_bar(total: int, what: str, *, unit: str) -> Any:
    """Return a tqdm bar on standard error; where nobody watches a terminal it prints a line every 15 seconds.

    Args:
        total: How many units there are.
        what: What is going on, shown at its left.
        unit: What is counted, in the singular.
    """
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    return tqdm(
        total=total, desc=what, unit=unit, mininterval=0.2 if watched else 15, file=sys.stderr, dynamic_ncols=watched
    )
