from __future__ import annotations

import pytest
from pretended_kaggle import patient_clock

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.client import UnreachableError
from kaggle_kit.platform.polling import FIRST_S, LONGEST_S, MAX_FAILURES, Clock, wait_until


def wait(ask, clock: Clock | None = None, limit_s: float = 3600.0) -> tuple[object, list[str]]:
    said: list[str] = []
    return wait_until(ask, what="dataset me/a", limit_s=limit_s, say=said.append, clock=clock or patient_clock()), said


def test_a_change_is_said_once_and_the_pauses_grow() -> None:
    words = ["pending"] * 12 + ["processing", "ready"]
    slept: list[float] = []
    patient = patient_clock()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        patient.sleep(seconds)

    def ask() -> tuple[str | None, str]:
        word = words.pop(0)
        return ("yes" if word == "ready" else None), word

    answer, said = wait(ask, Clock(now=patient.now, sleep=sleep))
    assert answer == "yes"
    assert slept[0] == FIRST_S and slept == sorted(slept) and max(slept) == LONGEST_S
    changes = [line for line in said if "pending" not in line]
    assert [line.partition(" (")[0] for line in changes] == ["dataset me/a: processing", "dataset me/a: ready"]
    assert 2 <= len(said) - len(changes) <= 3  # at first, and every five minutes


def test_zero_is_an_answer() -> None:
    assert wait(lambda: (0, "none"))[0] == 0


def test_when_the_time_is_up_it_says_how_it_stands() -> None:
    with pytest.raises(KaggleError, match=r"dataset me/a is still 'pending' after 60 s; look on kaggle\.com, and call"):
        wait(lambda: (None, "pending"), limit_s=60.0)


def test_a_few_calls_without_an_answer_are_waited_out() -> None:
    failures = [True] * (MAX_FAILURES - 1)

    def ask() -> tuple[str | None, str]:
        if failures and failures.pop():
            raise UnreachableError("no route")
        return "yes", "ready"

    answer, said = wait(ask)
    assert answer == "yes" and "dataset me/a: no answer from Kaggle" in said


def test_many_in_a_row_are_an_error() -> None:
    def ask() -> tuple[str | None, str]:
        raise UnreachableError("no route")

    with pytest.raises(UnreachableError, match="no route"):
        wait(ask, limit_s=1e9)


def test_what_kaggle_refuses_ends_it_at_once() -> None:
    def ask() -> tuple[str | None, str]:
        raise KaggleError("no")

    with pytest.raises(KaggleError, match="^no$"):
        wait(ask)
