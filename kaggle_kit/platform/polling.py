"""Waiting for Kaggle: ask again and again, a little slower each time, and say how it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.client import UnreachableError

T = TypeVar("T")

FIRST_S, LONGEST_S, GROWTH = 5.0, 60.0, 1.5
SAID_EVERY_S = 300.0
MAX_FAILURES = 10  # asked in a row without an answer


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The time, so that tests need none."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def wait_until(
    ask: Callable[[], tuple[T | None, str]],
    *,
    what: str,
    limit_s: float,
    say: Callable[[str], None],
    clock: Clock,
) -> T:
    """Ask until there is an answer.

    Args:
        ask: Returns the answer, None as long as there is none, and how it stands, in a word.
        what: What is waited for, such as `dataset anna/my-bundle`.
        limit_s: How long.
        say: Called when it stands differently, and every five minutes.
        clock: The time.

    Raises:
        KaggleError: When the time is up.
        UnreachableError: When Kaggle does not answer many times in a row.
    """
    started = last_said = clock.now()
    word, pause, failures = "", FIRST_S, 0
    while True:
        before = word
        try:
            answer, word = ask()
            failures = 0
        except UnreachableError:
            failures += 1
            if failures >= MAX_FAILURES:
                raise
            answer, word = None, "no answer from Kaggle"
        waited = clock.now() - started
        if word != before or clock.now() - last_said >= SAID_EVERY_S:
            say(f"{what}: {word}" + (f" (after {_minutes(waited)})" if waited >= 1 else ""))
            last_said = clock.now()
        if answer is not None:
            return answer
        if waited >= limit_s:
            raise KaggleError(
                f"{what} is still {word!r} after {_minutes(waited)}; look on kaggle.com, and call this again"
            )
        clock.sleep(min(pause, max(limit_s - waited, 1.0)))
        pause = min(pause * GROWTH, LONGEST_S)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
