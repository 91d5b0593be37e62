from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from pages import Page
from test_blending_diversity import TAGS, TWO_HEADS, make_pool, mean_of

from kaggle_kit.blending import Budget, FittedBlend, Rival
from kaggle_kit.blending.choice import Choice, Step
from kaggle_kit.blending.costs import Costs
from kaggle_kit.blending.diversity import measure_diversity
from kaggle_kit.blending.frontier import FrontierPoint
from kaggle_kit.blending.pictures import draw_matrix
from kaggle_kit.blending.pool import Pool
from kaggle_kit.blending.prefixes import Shortfall
from kaggle_kit.blending.report import page_fields, write_blend_report
from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Blend, Prefix
from kaggle_kit.mixes import Mix, Stack, Table
from kaggle_kit.predictions import Predictions
from kaggle_kit.scores import Score, SplitScore, score_answers
from kaggle_kit.train.outcome import Fields

EVIL = "<script>alert('x')</script>&\u0995\u09cd\u09b7"
LONG = "convnext_tiny_384_with_a_<b>very</b>_long_folder_name_that_goes_on_and_on_seed"
BUDGET = Budget(hours=0.5, images=50_000)
THREE_HEADS = {**TWO_HEADS, **TAGS}


def make_step(head: str, name: str, *, kept: bool = False, over: str = "mean", runs: int = 3) -> Step:
    return Step(
        head=head,
        name=name,  # type: ignore[arg-type]
        value=0.9123,
        gain=0.0042 if kept else -0.0011,
        interval=(0.0011, 0.0073) if kept else (-0.0042, 0.0031),
        over=over,
        kept=kept,
        why="better beyond luck" if kept else "may be luck",
        runs=runs,
    )


def make_steps(heads: list[str]) -> tuple[Step, ...]:
    of_head = (("best", False, ""), ("mean", False, "best"), ("greedy", True, "best"), ("stack", False, "best"))
    return tuple(make_step(head, name, kept=kept, over=over) for head in heads for name, kept, over in of_head)


def make_mixes(pool: Pool, count: int) -> dict[str, Mix]:
    """Uneven weights, and of the last run none."""
    rising = np.arange(count, 0, -1.0)
    if count == len(pool.names) > 1:
        rising[-1] = 0
    weights = tuple((rising / rising.sum()).tolist())
    heads = list(pool.task.heads)
    warm = Mix(weights=weights, temperatures=(1.25,) * count)
    return {heads[0]: warm} | dict.fromkeys(heads[1:], Mix(weights=weights))


def make_prefix(pool: Pool, count: int, score: Score) -> Prefix:
    (first, head), *_ = pool.task.heads.items()
    rules = {}
    if count > 1 and head.kind != "multilabel":
        rules[first] = HeadRule(rule="class_bias", log_bias=(0.5,) + (0.0,) * (head.num_classes - 1))
    decision = Decision(heads=Decision.plain(pool.task).heads | rules)
    less = (len(pool.names) - count) / 1000
    own = dataclasses.replace(score, total=score.total - less)
    return Prefix(heads=make_mixes(pool, count), decision=decision, score=own)


def make_fitted(pool: Pool, *, timed: bool = True, compared: bool = True, notes: tuple[str, ...] = ()) -> FittedBlend:
    """Return what fitting could have found, without fitting."""
    names, answers = pool.names, mean_of(pool)
    score = score_answers(pool.task, pool.truth, answers, draws=30)
    seconds = {name: 0.002 * (1 + number) for number, name in enumerate(names)} if timed else {}
    frontier = tuple(
        FrontierPoint(
            runs=names[:count],
            seconds=sum(list(seconds.values())[:count]) if timed else None,
            score=0.8 + 0.1 * (1 - 0.5**count),
            nested_score=None if count == 1 else 0.79 + 0.1 * (1 - 0.5**count),
        )
        for count in range(1, 1 + len(names))
    )
    diversity = None
    if compared:
        diversity = measure_diversity(
            pool, answers=answers, without=lambda others: mean_of(pool.of(others)), seconds=seconds, draws=20
        )
    return FittedBlend(
        blend=Blend(
            runs=names,
            prefixes=tuple(make_prefix(pool, count, score) for count in range(1, 1 + len(names))),
            seconds=seconds,
            seconds_on="a T4" if timed else "",
        ),
        oof=Predictions(ids=pool.ids, probs=answers, multilabel=pool.task.multilabel_heads),
        truth=pool.truth,
        priors=pool.priors,
        scores=SplitScore(all=score),
        fitted=None,
        pool=pool,
        alone={name: 0.5 + number / 100 for number, name in enumerate(names)},
        rival=Rival(run=names[-1], score=score, shortfall=Shortfall(value=0.01, interval=(-0.01, 0.03), share=0.8)),
        choice=Choice(
            strategies=dict.fromkeys(pool.task.heads, "greedy"), steps=make_steps(list(pool.task.heads)), by_rules=True
        ),
        frontier=frontier,
        costs=Costs(seconds=seconds, device="a <T4>") if timed else None,
        diversity=diversity,
        notes=notes,
    )


def read_page(folder: Path, fitted: FittedBlend, budget: Budget | None = None) -> Page:
    return Page(write_blend_report(folder / "blend.html", task=fitted.pool.task, fitted=fitted, budget=budget))


def check_whole(page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [value for _, attributes in page.tags for key, value in attributes.items() if key.endswith("href")]
    named += [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", page.source)]
    assert named and {str(value)[1:] for value in named} <= set(ids)
    assert not re.search(r"url\((?!#)|@import|\bsrc=", page.source)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedBlend, Fields, Page]:
    names = (EVIL, "$x^{", *(f"{LONG}{number}" for number in range(10)))
    heads = {EVIL: {"classes": ["a", EVIL, "c"], "weight": 2}, **THREE_HEADS}
    fitted = make_fitted(
        make_pool(heads, num_runs=12, names=names), notes=("3 images <left> out", "3 images <left> out")
    )
    page = read_page(tmp_path_factory.mktemp("twelve"), fitted, BUDGET)
    return fitted, page_fields(fitted.pool.task, fitted, BUDGET), page


def test_a_page_is_whole_loads_nothing_and_runs_nothing(twelve: tuple[FittedBlend, Fields, Page]) -> None:
    check_whole(twelve[2])


def test_names_from_files_are_text_and_never_markup(twelve: tuple[FittedBlend, Fields, Page]) -> None:
    _, _, page = twelve
    assert page.has(EVIL) and "<script" not in page.source and page.has(f"{LONG}9")
    assert page.has("a <T4>") and page.source.count("3 images &lt;left&gt; out") == 1


def test_the_page_says_what_was_chosen_tried_and_scored(twelve: tuple[FittedBlend, Fields, Page]) -> None:
    fitted, _, page = twelve
    score, rival = fitted.blend.score, fitted.rival
    assert page.has(f"accuracy {score.total:.4f} (95 % interval {score.interval[0]:.4f} to {score.interval[1]:.4f})")
    assert page.has(f"0.0100 better (-0.0100 to +0.0300) than the best run alone, {rival.run}, by rules of its own")
    assert page.has("Chosen: the weighted mean, weights by greedy forward selection (3 of 12 runs). Out of fold")
    assert page.has("greedy 3 0.9123 +0.0042 +0.0011 to +0.0073 best yes better beyond luck")
    assert page.has("11 of 12 runs with weight")


def test_the_running_order_sums_seconds_and_marks_what_is_too_late(twelve: tuple[FittedBlend, Fields, Page]) -> None:
    _, fields, page = twelve
    rows = fields["order"]
    assert [row["seconds"] for row in rows[:3]] == ["2.0", "6.0", "12.0"]
    assert [row["hours"] for row in rows[:2]] == ["0.03", "0.08"]
    assert [row["in_time"] for row in rows] == ["yes"] * 5 + ["no"] * 7  # 36 ms an image: five take 30
    assert page.has("The budget is 0.5 h for 50,000 images.") and page.has("h for 50,000 images")
    assert page.has(f"{EVIL}: the highest log(probability) + bias decides; biases from +0.00")


def test_every_picture_has_words(twelve: tuple[FittedBlend, Fields, Page]) -> None:
    fitted, fields, page = twelve
    words = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(words) == 3 == sum(tag == "svg" for tag, _ in page.tags)
    assert words[0].startswith("accuracy over what runs take: 12 sets") and words[1].startswith("Correlation of errors")
    assert f"From {fitted.diversity.error_correlation.min():.2f} (" in fields["matrices"][0]["text"]


def test_disputes_show_the_heads_in_which_runs_differ(twelve: tuple[FittedBlend, Fields, Page]) -> None:
    _, fields, page = twelve
    rows = fields["disputes"]
    assert 0 < len(rows) <= 20 and page.has("Where they disagree")
    for row in rows:
        assert row["heads"]
        for line in row["heads"]:
            assert len({cell["said"] for cell in line["cells"]}) > 1 and len(line["cells"]) == 12
            assert all(cell["wrong"] == (cell["said"] != line["truth"]) for cell in line["cells"])


def test_the_same_blend_gives_the_same_page(twelve: tuple[FittedBlend, Fields, Page], tmp_path: Path) -> None:
    fitted, _, page = twelve
    assert read_page(tmp_path, fitted, BUDGET).source == page.source


@pytest.mark.parametrize(
    ("heads", "num_runs"),
    [({"root": {"classes": 3}}, 1), (TAGS, 1), ({"root": {"classes": 3}}, 3), (TAGS, 3), (THREE_HEADS, 20)],
)
def test_pages_of_any_size_are_whole(heads: dict, num_runs: int, tmp_path: Path) -> None:
    fitted = make_fitted(make_pool(heads, num_runs=num_runs))
    page = read_page(tmp_path, fitted)
    check_whole(page)
    assert page.has("Blend of 1 run" if num_runs == 1 else f"Blend of {num_runs} runs")
    assert page.has("Where they disagree") == page.has("Correlation of errors") == (num_runs > 1)
    assert page.has(" head strategy ") == (len(heads) > 1) and page.has("A single run, run0.") == (num_runs == 1)


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    fitted = make_fitted(make_pool(TWO_HEADS), timed=False, compared=False)
    page = read_page(tmp_path, fitted, Budget(hours=1, images=10))
    check_whole(page)
    assert page.has("Seconds are not known") and not page.has("s for 1,000 images") and not page.has("in time")
    assert not page.has("How runs differ") and not page.has("Without each run")


def test_a_blend_of_which_nothing_is_known_has_a_page(tmp_path: Path) -> None:
    fitted = make_fitted(make_pool(TWO_HEADS, num_runs=2), timed=False, compared=False)
    blend = Blend(runs=fitted.pool.names, prefixes=(Prefix(), Prefix()))
    choice = dataclasses.replace(fitted.choice, steps=())
    page = read_page(tmp_path, dataclasses.replace(fitted, blend=blend, frontier=(), choice=choice))
    check_whole(page)
    assert page.has("Chosen: arithmetic mix of 2 runs") and not page.has("What was tried")
    assert page.has("0.500") and page.has("the highest probability decides")


def test_runs_that_are_no_part_of_the_blend_are_listed_and_not_compared(tmp_path: Path) -> None:
    pool = make_pool(TWO_HEADS, num_runs=4)
    fitted = dataclasses.replace(make_fitted(pool.of(("run2", "run0"))), pool=pool)
    page = read_page(tmp_path, fitted)
    fields = page_fields(pool.task, fitted, None)
    assert [(row["number"], row["name"]) for row in fields["weights"]] == [
        (1, "run2"),
        (2, "run0"),
        ("", "run1"),
        ("", "run3"),
    ]
    assert page.has("Runs without a number were given and are not used.")
    assert [run["name"] for run in fields["runs"]] == ["run2", "run0"]


def test_a_stack_has_no_weights_to_show(tmp_path: Path) -> None:
    pool = make_pool({"root": {"classes": 3}}, num_runs=2)
    fitted = make_fitted(pool)
    stack = Stack(sources=("root",), coefficients=Table.of(np.zeros((6, 3))), intercept=Table.of(np.zeros(3)))
    whole = dataclasses.replace(fitted.blend.whole, heads={"root": Mix(kind="stack", stack=stack)})
    blend = dataclasses.replace(fitted.blend, prefixes=(fitted.blend.prefixes[0], whole))
    page = read_page(tmp_path, dataclasses.replace(fitted, blend=blend))
    assert page.has("A stack is a linear model, which has no weights.") and page.has("run0 model")


def test_a_lower_loss_is_better(tmp_path: Path) -> None:
    fitted = make_fitted(make_pool({"root": {"classes": 3}}, metric="log_loss"))
    page = read_page(tmp_path, fitted)
    assert page.has("0.0100 better (") and page.has("log_loss out of fold, lower is better")


@pytest.mark.parametrize(("size", "numbers"), [(2, 2), (12, 132), (13, 0)])
def test_a_matrix_has_numbers_up_to_12_runs(size: int, numbers: int) -> None:
    values = np.random.default_rng(0).random((size, size))
    figure = draw_matrix(values + values.T, ["$a^", EVIL, *map(str, range(2, size))], color="#3b82f6", form="{:.2f}")
    (axes,) = figure.axes
    assert len(axes.texts) == numbers and len(axes.collections[0].get_paths()) == size * (size - 1)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["$a^ 1", "2"]


def test_a_matrix_of_equal_values_and_gaps_is_drawn() -> None:
    figure = draw_matrix(
        np.array([[1, 0.5, np.nan], [0.5, 1, 0.5], [np.nan, 0.5, 1]]), ["a", "b", "c"], color="red", form="{:.1f}"
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.5"] * 4


def test_runs_that_make_no_errors_have_no_matrix_of_them(tmp_path: Path) -> None:
    pool = make_pool({"root": {"classes": 3}}, num_runs=2)
    sure = {"root": np.eye(3, dtype=np.float32)[pool.truth["root"]]}
    page = read_page(tmp_path, make_fitted(dataclasses.replace(pool, runs=(sure, sure))))
    check_whole(page)
    assert not page.has("Correlation of errors From") and page.has("All runs decide every image alike.")
