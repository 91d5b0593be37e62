from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kaggle_kit.audit import plots


@pytest.mark.parametrize(
    ("values", "whole", "peak"),
    [([0, 1, 2, 3] * 10, True, 1), (np.linspace(0, 1, 3200), False, 32), ([5.0] * 50 + [9.0], False, 32)],
)
def test_a_histogram_is_highest_where_most_values_are(values: Any, whole: bool, peak: int) -> None:
    found = plots.histogram("x", {"train": np.array(values), "test": np.zeros(0)}, str, whole=whole)
    (line,) = found["lines"]
    heights = [float(pair.split(",")[1]) for pair in line["points"].split()]
    assert min(heights) == 0 and max(heights) == plots.HEIGHT and line["name"] == "train"
    assert len(heights) == 2 * (4 if whole else peak) + 2


def test_equal_values_are_said_rather_than_drawn() -> None:
    same = plots.histogram("x", {"train": np.full(9, 3), "test": np.full(2, 3)}, lambda value: f"{value:.0f} px")
    assert (same["same"], same["lines"]) == ("3 px", [])
    assert plots.histogram("x", {"train": np.zeros(0)}, str) == {"title": "x", "same": "", "lines": []}


def test_columns_stand_in_order_and_are_bounded() -> None:
    found = plots.columns(np.array([1, 4, 2]), ["a", "b", "c"])
    assert [one["title"] for one in found] == ["b: 4", "c: 2", "a: 1"]
    assert [one["height"] for one in found] == ["100.00", "50.00", "25.00"]
    assert len(plots.columns(np.arange(5000), list(map(str, range(5000))))) == plots.MOST_COLUMNS
    assert plots.columns(np.zeros(3, int), list("abc"))[0]["height"] == "0.00"
