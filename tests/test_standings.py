from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kaggle_kit.entries import Entry, by_task, settings_of
from kaggle_kit.errors import DataError
from kaggle_kit.settings import fingerprint
from kaggle_kit.standings import NO_SCORE, _defaults, changed_settings, format_ledger, make_figure, plot_ledger
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.trust import trust

DEFAULTS = settings_of(TrainConfig())


def entry(name: str, total: float, private: float | None = None, **fields: object) -> Entry:
    values = {"task": "toy", "metric": "macro_recall", "created": "2026-01-01", "heads": {"kind": total}} | fields
    return Entry(run_id=fingerprint([name, str(fields)]), name=name, total=total, private=private, **values)


def test_only_settings_that_differ_are_columns_and_common_ones_stand_above() -> None:
    fields = {"folds": "stratified 5, seed 0", "heads": {"root": 0.8, "vowel": 0.9}, "interval": (0.85, 0.95)}
    entries = [
        entry("a", 0.9, settings=DEFAULTS | {"model.dropout": 0.1}, **fields),
        entry("b", 0.91, settings=DEFAULTS | {"model.dropout": 0.1, "epochs": 3}, public=0.85, **fields),
        entry("c", 0.92, settings=DEFAULTS | {"model.dropout": 0.1, "model.input_size": [64, 96]}, **fields),
    ]
    entries[1] = dataclasses.replace(entries[1], note="two\nlines")
    assert changed_settings(entries) == ["epochs", "model.input_size"]
    assert [" ".join(line.split()) for line in format_ledger(entries)] == [
        "toy: 3 run(s) by macro_recall, higher is better, best CV first",
        "all runs: model.dropout=0.1; folds stratified 5, seed 0",
        "run CV 95 % interval root vowel public changed settings",
        "c 0.9200 0.8500 to 0.9500 0.8000 0.9000 epochs=20; model.input_size=[64,96]",
        'b 0.9100 0.8500 to 0.9500 0.8000 0.9000 0.8500 epochs=3; model.input_size=null; "two lines"',
        "a 0.9000 0.8500 to 0.9500 0.8000 0.9000 epochs=20; model.input_size=null",
        "CV is of each run alone, by its highest probability; note the score a run got alone",
    ]


def test_what_a_score_is_compared_with_is_said_once_and_only_where_one_is_noted() -> None:
    unscored, scored = entry("a", 0.9), entry("b", 0.8, 0.7)
    assert "note the score" not in "\n".join(format_ledger([unscored]))
    assert (
        "\n".join(format_ledger([unscored, scored, entry("c", 0.3, 0.4, task="other")])).count("a run got alone") == 1
    )
    losses = format_ledger([entry("a", 0.3, 0.4, metric="log_loss")])
    assert losses[-1] == "CV is of each run alone; note the score a run got alone"


def test_a_run_whose_folder_is_gone_is_marked() -> None:
    entries = [entry("a", 0.9), entry("b", 0.8)]
    lines = format_ledger(entries, gone={entries[1].run_id})
    assert lines[-1].startswith("b (folder gone)  0.8") and "gone" not in "".join(lines[:-1])


def test_one_run_shows_what_is_not_default() -> None:
    table = format_ledger([entry("a", 0.9, settings=DEFAULTS | {"epochs": 3}, folds="stratified 5")])
    assert table[-1].endswith("epochs=3; folds stratified 5") and len(table) == 3


def test_a_setting_that_another_version_did_not_have_is_not_made_up() -> None:
    settings = [DEFAULTS, DEFAULTS | {"epochs": 3}, {k: v for k, v in DEFAULTS.items() if k != "epochs"}]
    entries = [entry(name, 0.9, settings=one) for name, one in zip("abc", settings, strict=True)]
    assert changed_settings(entries) == ["epochs"]
    assert all(line.endswith(f"epochs={n}") for line, n in zip(format_ledger(entries)[2:4], (20, 3), strict=True))
    assert "epochs" not in format_ledger(entries)[4]
    entries = [entry("a", 0.9, settings=DEFAULTS | {"ema": 0.99}), entry("b", 0.8, settings=DEFAULTS)]
    assert changed_settings(entries) == ["ema"] and "all runs" not in "".join(format_ledger(entries))


def test_defaults_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("kaggle_kit.standings.settings_of", lambda config: calls.append(config) or {"epochs": 20})
    _defaults.cache_clear()
    format_ledger([entry(f"r{i}", 0.9, settings={"epochs": i}) for i in range(5)])
    _defaults.cache_clear()
    assert len(calls) == 1


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
    assert "author" in table and "a (by anna)" in table and "a (by ben)" in table and "c (by" not in table
    assert "author" not in "\n".join(format_ledger(entries[1:]))
    first, second = entry("b", 0.3, 0.1), entry("b", 0.2, 0.2)
    table = "\n".join(format_ledger([first, dataclasses.replace(second, run_id="d143")]))
    assert f"b (run {first.run_id[:4]})" in table and "b (run d143)" in table


def test_the_plot_shows_every_score_over_cv(tmp_path: Path) -> None:
    entries = [entry(f"r{i}", 0.9 + i / 100, 0.8 + i / 100, public=0.85 if i % 2 else None) for i in range(4)]
    entries[0] = dataclasses.replace(entries[0], interval=(0.85, 0.97))
    figure = make_figure([entry("other", 0.5, 0.4, task="other"), *entries, entry("unscored", 0.9)])
    other, axes = figure.axes
    assert other.get_title().startswith("other, private board: 1 run(s) have a private score")
    assert " ".join(axes.get_title().split()) == f"toy, {trust(entries).text}"
    assert axes.get_xlabel() == "CV: macro_recall out of fold, with 95 % interval"
    assert axes.get_ylabel() == "leaderboard score"
    drawn = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axes.containers}
    by_cv = sorted(entries, key=lambda one: -one.total)
    assert drawn == {
        "public score": [[one.total, one.public] for one in by_cv if one.public],
        "private score": [[one.total, one.private] for one in by_cv],
    }
    private = next(bars for bars in axes.containers if bars.get_label() == "private score")
    assert private.lines[2][0].get_segments()[-1] == pytest.approx(np.array([[0.85, 0.8], [0.97, 0.8]]))
    assert {text.get_text() for text in axes.texts} == {"r0", "r1", "r2", "r3"}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "private board = CV -0.1000, the mean gap" in labels and any(
        text.startswith("score = CV") for text in labels
    )


def test_the_plot_names_the_best_and_says_how_low_is_better() -> None:
    entries = [entry(f"r{i}", 0.3 + i / 100, 0.4 + i / 100, metric="log_loss") for i in range(20)]
    (axes,) = make_figure(entries).axes
    assert axes.get_xlabel().endswith("lower is better")
    assert {text.get_text() for text in axes.texts} == {f"r{i}" for i in range(15)}
    assert axes.get_legend().get_title().get_text() == "named: the 15 best by CV of 20"
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0


def test_the_plot_is_a_png_whatever_runs_are_called(tmp_path: Path) -> None:
    plot_ledger([entry(f"${i}_名", 0.9 + i / 100, 0.8 + i / 100) for i in range(3)], tmp_path / "cv.png")
    assert (tmp_path / "cv.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in tmp_path.iterdir()] == ["cv.png"]


def test_without_a_score_the_plot_shows_cv_alone(tmp_path: Path) -> None:
    entries = [entry(f"r{i}", 0.9 + i / 100, interval=(0.85, 0.97 + i / 100)) for i in range(3)]
    figure = make_figure([*entries, entry("other", 0.3, task="other", metric="log_loss")])
    other, axes = figure.axes
    assert (
        figure.get_suptitle() == NO_SCORE == ("no leaderboard score noted yet: kaggle-kit runs note RUN --public SCORE")
    )
    (bars,) = axes.containers
    assert bars.lines[0].get_xydata().tolist() == [[0.92, 0], [0.91, 1], [0.9, 2]]
    assert bars.lines[2][0].get_segments()[0] == pytest.approx(np.array([[0.85, 0], [0.99, 0]]))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["r2", "r1", "r0"]
    assert axes.get_ylabel() == "" and axes.get_ylim() == (2.5, -0.5)
    assert other.get_xlabel().endswith("lower is better")
    plot_ledger(entries * 20, tmp_path / "cv.png")
    assert (tmp_path / "cv.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_says_that_folds_differ() -> None:
    entries = [entry(f"r{i}", 0.9 + i / 100, 0.8, folds=f"stratified {i}") for i in range(2)]
    (axes,) = make_figure(entries).axes
    assert "Their folds differ" in axes.get_title() and axes.get_title().startswith("toy, private board: ")


def test_a_plot_needs_a_cv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 1 run\(s\) has a CV to draw; train one"):
        plot_ledger([entry("a", float("nan"))], tmp_path / "cv.png")
    assert list(tmp_path.iterdir()) == []
