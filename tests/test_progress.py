from __future__ import annotations

import pytest

from kaggle_kit.progress import progress_bar


def test_logs_get_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaggle_kit.progress.DELAY_S", 0)
    with progress_bar(3, "packing", unit="image") as bar:
        for _ in range(3):
            bar.update()
    text = capsys.readouterr().err
    assert "\r" not in text
    assert text.endswith("\n") and "3/3" in text.splitlines()[-1]


def test_what_is_done_at_once_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, "packing", unit="image") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
