from __future__ import annotations

from pathlib import Path

import pytest

from kaggle_kit.demo import DemoSettings, format_demo, run_demo
from kaggle_kit.errors import DataError

SMALL = DemoSettings(num_train=100, num_test=100, epochs=1, models=("test_resnet",))


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    first = run_demo(tmp_path / "demo", SMALL)
    assert [stage for stage, _, _ in first.stages] == [
        "sample",
        "pack",
        "folds",
        "train test_resnet",
        "blend",
        "bundle",
        "rehearse",
        "torch again",
    ]
    assert first.hidden.all.rows == 100 and (first.differing, first.decisions) == (0, 300)
    text = format_demo(first)
    assert "0 decisions differ" in text and "hidden test" in text and "Where to look next" in text


def test_the_demo_never_replaces_other_things(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="is not empty and no earlier demo"):
        run_demo(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").exists()
