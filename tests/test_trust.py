from __future__ import annotations

import pytest
from test_standings import entry

from kaggle_kit.entries import Entry
from kaggle_kit.errors import SettingError
from kaggle_kit.trust import different_folds, trust


def test_trust_needs_three_scored_runs() -> None:
    answer = trust([entry("a", 0.9, 0.8), entry("b", 0.8)])
    assert answer.text.startswith("private board: 1 run(s) have a private score; note 2 more")
    assert answer.spearman is None and answer.gap == pytest.approx(-0.1)
    with pytest.raises(SettingError, match="of 2 tasks; give those of one"):
        trust([entry("a", 0.9, 0.8), entry("b", 0.8, task="other")])


def test_trust_is_measured_and_names_what_breaks_the_order() -> None:
    good = [entry(f"r{i}", 0.9 + i / 100, 0.8 + i / 100) for i in range(5)]
    answer = trust(good)
    assert answer.text.startswith("private board: CV can be trusted: Spearman 1.00, Kendall 1.00 over 5 runs")
    assert answer.gap == pytest.approx(-0.1) and answer.spread == pytest.approx(0, abs=1e-9)
    assert answer.chance == pytest.approx(1 / 120)  # one order of 5!
    broken = [*good[:4], entry("odd", 0.99, 0.1)]
    answer = trust(broken)
    assert answer.out_of_order == ("odd",)
    assert "Out of order: odd (place 1 by CV, 5 on the board)" in answer.text
    against = [entry(f"r{i}", 0.9 + i / 100, 0.8 - i / 100) for i in range(6)]
    assert trust(against).text.startswith("private board: CV cannot be trusted to order runs: Spearman -1.00")
    assert trust(against[:3]).text.startswith(
        "private board: CV does not order these runs as the board does, but they are too few"
    )
    assert "too few runs" in trust(good[:3]).text
    assert "same private score" in trust([entry(f"r{i}", i / 10, 0.5) for i in range(3)]).text


def test_places_follow_the_metric_s_direction() -> None:
    entries = [entry(f"r{i}", 0.3 + i / 100, 0.4 + i / 100, metric="log_loss") for i in range(4)]
    answer = trust([*entries, entry("odd", 0.2, 0.9, metric="log_loss")])
    assert "odd (place 1 by CV, 5 on the board)" in answer.text


def noisy(step: float, half: float, scores: tuple[float, ...]) -> list[Entry]:
    """Runs whose CV rises by `step`, inside intervals of twice `half`."""
    totals = [0.9 + step * i for i in range(len(scores))]
    return [
        entry(f"r{i}", total, score, interval=(total - half, total + half))
        for i, (total, score) in enumerate(zip(totals, scores, strict=True))
    ]


@pytest.mark.parametrize("scores", [(0.86, 0.85, 0.84, 0.83, 0.82, 0.81), (0.81, 0.82, 0.83, 0.84, 0.85, 0.86)])
def test_runs_that_differ_by_less_than_the_noise_of_cv_show_nothing(scores: tuple[float, ...]) -> None:
    answer = trust(noisy(1e-5, 0.02, scores))
    assert answer.text.startswith(
        "private board: CV of these runs differs by at most 0.00005, less than its noise (0.02 either way), "
        "so they cannot show whether CV is to be trusted: Spearman"
    )
    assert answer.noise == pytest.approx(0.02)
    assert "cannot show" not in trust(noisy(0.01, 0.02, scores)).text


def test_large_differences_come_with_a_number() -> None:
    scores = (0.80, 0.82, 0.81, 0.85, 0.83, 0.84, 0.82, 0.87)
    answer = trust(noisy(0.01, 0.005, scores))
    assert answer.safe_difference == pytest.approx(0.03)  # r3 and r6
    assert answer.text.startswith(
        "private board: CV can be trusted for large differences only, here those above 0.0300: Spearman"
    )


def test_where_the_widest_pair_is_swapped_no_difference_is_safe() -> None:
    scores = (0.85, 0.80, 0.81, 0.82, 0.83, 0.86, 0.87, 0.88, 0.845)
    answer = trust(noisy(0.01, 0.005, scores))
    assert answer.safe_difference is None and answer.spearman is not None
    assert answer.text.startswith(
        "private board: CV orders these runs in part only, and those that differ most in CV are swapped too"
    )


@pytest.mark.parametrize(
    ("folds", "differ", "not_known"),
    [
        (("a", "a", ""), "", "The folds of 1 run(s) are not known"),
        (("", "", ""), "", "The folds of 3 run(s) are not known"),
        (("a", "b", "a"), "these runs have different folds: a ('r0', 'r2'); b ('r1'); their CV compares only", ""),
        (
            ("a", "b", ""),
            "these runs have different folds: a ('r0'); b ('r1'); their CV compares only",
            "The folds of 1",
        ),
        (tuple("abcdef"), "a ('r0'); b ('r1'); c ('r2'); d ('r3') and 2 more; their CV", ""),
        (("a", "a", "a"), "", ""),
    ],
)
def test_unknown_folds_are_not_said_to_differ(folds: tuple[str, ...], differ: str, not_known: str) -> None:
    entries = [entry(f"r{i}", 0.9 + i / 100, 0.8 + i / 100, folds=one) for i, one in enumerate(folds)]
    text, sentences = trust(entries).text, different_folds(entries)
    assert len(sentences) == bool(differ) and differ in "".join(sentences)
    assert not_known in text and ("not known" in text) == bool(not_known) and "differ" not in text


def test_each_answer_begins_with_its_board() -> None:
    entries = [entry(f"r{i}", 0.9 + i / 100, 0.8 + i / 100, public=0.7) for i in range(3)]
    assert trust(entries, "public").text == (
        "public board: all 3 runs have the same public score: there is no order to compare."
    )
    assert trust(entries, "private").text.startswith("private board: CV ")
    assert trust(entries[:1], "public").text.startswith("public board: 1 run(s) have a public score; note 2 more")
