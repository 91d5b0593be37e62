from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.ledger import Entry
from kaggle_kit.settings import fingerprint
from kaggle_kit.standings import by_task, changed_settings, format_ledger, plot_ledger, trust


def entry(name: str, total: float, private: float | None = None, **fields: object) -> Entry:
    values = {"task": "toy", "metric": "macro_recall", "created": "2026-01-01", "heads": {"kind": total}} | fields
    return Entry(run_id=fingerprint([name, str(fields)]), name=name, total=total, private=private, **values)


def test_only_settings_that_differ_are_columns_and_common_ones_stand_above() -> None:
    fields = {"folds": "stratified 5, seed 0", "heads": {"root": 0.8, "vowel": 0.9}, "interval": (0.85, 0.95)}
    entries = [
        entry("a", 0.9, settings={"model.dropout": 0.1}, **fields),
        entry("b", 0.91, settings={"model.dropout": 0.1, "epochs": 3}, public=0.85, note="two\nlines", **fields),
        entry("c", 0.92, settings={"model.dropout": 0.1, "model.input_size": [64, 96]}, **fields),
    ]
    assert changed_settings(entries) == ["epochs", "model.input_size"]
    assert [" ".join(line.split()) for line in format_ledger(entries)] == [
        "toy: 3 run(s) by macro_recall, higher is better, best CV first",
        "all runs: model.dropout=0.1; folds stratified 5, seed 0",
        "run CV 95 % interval root vowel public changed settings",
        "c 0.9200 0.8500 to 0.9500 0.8000 0.9000 epochs=20; model.input_size=[64,96]",
        'b 0.9100 0.8500 to 0.9500 0.8000 0.9000 0.8500 epochs=3; model.input_size=null; "two lines"',
        "a 0.9000 0.8500 to 0.9500 0.8000 0.9000 epochs=20; model.input_size=null",
    ]


def test_the_table_is_sorted_by_the_metric_s_direction_and_tasks_are_kept_apart() -> None:
    entries = [entry("a", 0.3, metric="log_loss"), entry("b", 0.2, metric="log_loss")]
    entries += [entry("c", 0.3, task="other"), entry("d", 0.4, task="other"), entry("e", float("nan"), task="other")]
    assert [[one.name for one in group] for group in by_task(entries)] == [["d", "c", "e"], ["b", "a"]]
    lines = format_ledger(entries)
    assert "toy: 2 run(s) by log_loss, lower is better, best CV first" in lines
    assert "" in lines and "kaggle-kit train" in format_ledger([])[0]


def test_authors_are_shown_when_there_are_several_and_tell_namesakes_apart() -> None:
    entries = [entry("a", 0.3, author="anna"), entry("a", 0.2, author="ben"), entry("c", 0.1, author="ben")]
    table = "\n".join(format_ledger(entries))
    assert "author" in table and "a (anna)" in table and "a (ben)" in table and "c (ben)" not in table
    assert "author" not in "\n".join(format_ledger(entries[1:]))


def test_trust_needs_three_scored_runs() -> None:
    answer = trust([entry("a", 0.9, 0.8), entry("b", 0.8)])
    assert answer.text.startswith("1 run(s) have a private score; note 2 more")
    assert answer.spearman is None and answer.gap == pytest.approx(-0.1)
    with pytest.raises(SettingError, match="of 2 tasks; give those of one"):
        trust([entry("a", 0.9, 0.8), entry("b", 0.8, task="other")])


def test_trust_is_measured_and_names_what_breaks_the_order() -> None:
    good = [entry(f"r{i}", 0.9 + i / 100, 0.8 + i / 100) for i in range(5)]
    answer = trust(good)
    assert answer.text.startswith("CV can be trusted: Spearman 1.00, Kendall 1.00 over 5 runs")
    assert answer.gap == pytest.approx(-0.1) and answer.spread == pytest.approx(0, abs=1e-9)
    assert answer.chance == pytest.approx(1 / 120)  # one order of 5!
    broken = [*good[:4], entry("odd", 0.99, 0.1)]
    answer = trust(broken)
    assert answer.out_of_order == ("odd",)
    assert "Out of order: odd (place 1 by CV, 5 on the board)" in answer.text
    against = [entry(f"r{i}", 0.9 + i / 100, 0.8 - i / 100) for i in range(6)]
    assert trust(against).text.startswith("CV cannot be trusted to order runs: Spearman -1.00")
    assert trust(against[:3]).text.startswith("CV does not order these runs as the board does, but they are too few")
    assert "too few runs" in trust(good[:3]).text
    assert "same private score" in trust([entry(f"r{i}", i / 10, 0.5) for i in range(3)]).text


def test_places_follow_the_metric_s_direction() -> None:
    entries = [entry(f"r{i}", 0.3 + i / 100, 0.4 + i / 100, metric="log_loss") for i in range(4)]
    answer = trust([*entries, entry("odd", 0.2, 0.9, metric="log_loss")])
    assert "odd (place 1 by CV, 5 on the board)" in answer.text


@pytest.mark.parametrize("num_runs", [1, 3, 20])
def test_the_plot_is_a_png(tmp_path: Path, num_runs: int) -> None:
    rng = np.random.default_rng(0)
    entries = [
        entry(f"${i}_名", 0.9 + rng.random() / 50, 0.8 + rng.random() / 50, public=0.85 if i % 2 else None)
        for i in range(num_runs)
    ]
    plot_ledger([*entries, entry("other", 0.5, 0.4, task="other"), entry("unscored", 0.9)], tmp_path / "cv.png")
    assert (tmp_path / "cv.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in tmp_path.iterdir()] == ["cv.png"]


def test_a_plot_needs_a_score(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run has a leaderboard score to draw; note some: kaggle-kit runs note"):
        plot_ledger([entry("a", 0.9)], tmp_path / "cv.png")
