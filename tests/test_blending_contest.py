from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from kaggle_kit.blending.contest import Contest
from kaggle_kit.errors import DataError, KitError, PredictionError, SettingError
from kaggle_kit.metrics import CLASS_METRICS, PROBABILITY_METRICS
from kaggle_kit.mixes import Mix, MixKind, mix_head, quantiles
from kaggle_kit.scores import metric_value
from kaggle_kit.task import Head, Metric

KINDS: tuple[MixKind, ...] = ("arithmetic", "geometric", "power", "rank", "vote")
METRICS: tuple[Metric, ...] = get_args(Metric)
MULTILABEL_METRICS = tuple(metric for metric in METRICS if metric != "quadratic_kappa")
HEADS = {
    "many": Head(name="many", classes=23),
    "few": Head(name="few", classes=3, kind="ordinal"),
    "labels": Head(name="labels", classes=5, kind="multilabel"),
}


def make_runs(
    head: Head, *, num_rows: int = 300, num_runs: int = 4, noise: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Truth, probabilities of runs whose errors are alike, and three parts of unequal size."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, head.num_classes)
    shared = rng.normal(0, noise, shape)
    parts = rng.choice([1, 4, 7], num_rows, p=[0.5, 0.3, 0.2])
    if head.kind == "multilabel":
        truth = (rng.random(shape) < 0.3).astype(np.int64)
        logits = [6 * truth - 3 + shared + rng.normal(0, noise, shape) for _ in range(num_runs)]
        return truth, [(1 / (1 + np.exp(-one))).astype(np.float32) for one in logits], parts
    truth = rng.integers(0, head.num_classes, num_rows)
    logits = [3 * np.eye(head.num_classes)[truth] + shared + rng.normal(0, noise, shape) for _ in range(num_runs)]
    probs = [np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in logits]
    return truth, [one.astype(np.float32) for one in probs], parts


def settings_of(kind: MixKind, values: list[np.ndarray], *, warm: bool = False) -> dict[str, Any]:
    """What a contest and a mix both are told."""
    temperatures = tuple(np.linspace(0.6, 1.7, len(values)).tolist()) if warm else ()
    return {"kind": kind, "power": 0.5 if kind == "power" else 1.0, "temperatures": temperatures}


def ranks_of(kind: MixKind, values: list[np.ndarray]) -> list[np.ndarray]:
    return [quantiles(one) for one in values] if kind == "rank" else []


def mixed(head: Head, values: list[np.ndarray], weights: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    mix = Mix(weights=tuple((weights / weights.sum()).tolist()), **settings)
    many = (head.name,) if head.kind == "multilabel" else ()
    ranks = ranks_of(settings["kind"], values)
    return mix_head(mix, head.name, [{head.name: one} for one in values], multilabel=many, ranks=ranks)


def draw_weights(rng: np.random.Generator, num_runs: int) -> list[np.ndarray]:
    """One run alone, all alike, some left out, and any."""
    some = rng.dirichlet(np.ones(num_runs))
    return [
        np.eye(num_runs)[0],
        np.ones(num_runs) / num_runs,
        np.append(some[:-1], 0),
        some,
        rng.integers(0, 4, num_runs) + (np.arange(num_runs) == 1),
    ]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["many", "few"])
def test_every_row_is_decided_as_the_mix_decides_it(name: str, kind: MixKind, warm: bool) -> None:
    head = HEADS[name]
    truth, values, _ = make_runs(head)
    settings = settings_of(kind, values, warm=warm)
    rows = np.arange(len(truth))
    contest = Contest.of("quadratic_kappa", head, truth, values, rows, ranks=ranks_of(kind, values), **settings)
    for weights in draw_weights(np.random.default_rng(1), len(values)):
        decided = mixed(head, values, weights, settings).argmax(axis=1)
        hits, said, true = contest.statistics(weights)[:, :-1].reshape(len(rows), 3, -1).transpose(1, 0, 2)
        np.testing.assert_array_equal(said, np.eye(head.num_classes)[decided])
        np.testing.assert_array_equal(true, np.eye(head.num_classes)[truth])
        np.testing.assert_array_equal(hits, said * true)
        np.testing.assert_array_equal(contest.statistics(weights)[:, -1], (decided - truth) ** 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", HEADS)
def test_scores_are_those_of_the_mix(name: str, metric: Metric, kind: MixKind) -> None:
    head = HEADS[name]
    if head.kind == "multilabel" and metric == "quadratic_kappa":
        return
    truth, values, parts = make_runs(head, num_rows=120)
    settings = settings_of(kind, values, warm=metric == "log_loss")
    contest = Contest.of(metric, head, truth, values, parts, ranks=ranks_of(kind, values), **settings)
    sign = -1 if metric == "log_loss" else 1
    for weights in draw_weights(np.random.default_rng(2), len(values)):
        probs = mixed(head, values, weights, settings)
        for without, name_of_part in [(None, -1), *enumerate(contest.part_names)]:
            kept = parts != name_of_part
            if metric in ("roc_auc", "average_precision"):  # part by part
                own = [parts == part for part in contest.part_names if part != name_of_part]
                scores = [metric_value(metric, truth[rows], probs[rows], head.num_classes) for rows in own]
                expected = np.average(scores, weights=[rows.sum() for rows in own])
            else:
                expected = metric_value(metric, truth[kept], probs[kept], head.num_classes)
            assert contest.score(weights, without=without) == pytest.approx(
                sign * expected, abs=2e-6 if metric == "log_loss" else 1e-12
            )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", HEADS)
def test_goodness_of_summed_parts_is_that_of_the_whole(name: str, metric: Metric) -> None:
    head = HEADS[name]
    if head.kind == "multilabel" and metric == "quadratic_kappa":
        return
    truth, values, parts = make_runs(head)
    contest = Contest.of(metric, head, truth, values, parts)
    weights = np.array([0.4, 0, 0.5, 0.1])
    statistics = contest.statistics(weights)
    assert len(statistics) == contest.num_parts == 3 and contest.num_runs == 4
    assert contest.part_names.tolist() == [1, 4, 7]
    assert contest.goodness(statistics.sum(axis=0)) == contest.score(weights)
    several = np.stack([statistics.sum(axis=0), statistics[1]])
    np.testing.assert_array_equal(contest.goodness(several), [contest.goodness(one) for one in several])
    if metric in CLASS_METRICS:
        whole = Contest.of(metric, head, truth, values, np.zeros(len(truth), int))
        np.testing.assert_array_equal(whole.statistics(weights)[0], statistics.sum(axis=0))


@pytest.mark.parametrize("name", HEADS)
def test_weights_of_any_scale_score_the_same_alone_and_together(name: str) -> None:
    head = HEADS[name]
    truth, values, parts = make_runs(head)
    weights = np.random.default_rng(3).dirichlet(np.ones(4), size=50)  # more than are looked at together
    contest = Contest.of("macro_f1", head, truth, values, parts)
    together = contest.statistics_of(weights)
    one_by_one = Contest.of("macro_f1", head, truth, values, parts)
    np.testing.assert_array_equal(together, [one_by_one.statistics(7 * one) for one in weights])
    np.testing.assert_array_equal(contest.scores(weights, without=2), [one_by_one.score(w, without=2) for w in weights])


def test_statistics_that_were_handed_out_can_be_changed_without_harm() -> None:
    truth, values, parts = make_runs(HEADS["few"])
    contest = Contest.of("accuracy", HEADS["few"], truth, values, parts)
    first = contest.statistics(np.ones(4))
    score = contest.score(np.ones(4))
    first[:] = 0
    assert contest.score(np.ones(4)) == score


def test_few_statistics_are_remembered_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, values, parts = make_runs(HEADS["many"])
    contest = Contest.of("accuracy", HEADS["many"], truth, values, parts)
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=100)
    expected = contest.scores(weights)
    monkeypatch.setattr("kaggle_kit.blending.contest._MOST_BYTES", 1)
    np.testing.assert_array_equal(contest.scores(weights[::-1]), expected[::-1])
    assert len(contest._known) == 32
    np.testing.assert_array_equal(contest.scores(weights), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_equal_runs_and_one_run_score_as_that_run_does(name: str, kind: MixKind) -> None:
    head = HEADS[name]
    truth, values, parts = make_runs(head, num_runs=1)
    ranks = ranks_of(kind, values)
    one = Contest.of("accuracy", head, truth, values, parts, kind=kind, ranks=ranks)
    equal = Contest.of("accuracy", head, truth, values * 3, parts, kind=kind, ranks=ranks * 3)
    assert one.score(np.ones(1)) == equal.score(np.array([0.2, 0.3, 0.5]))
    if kind != "rank":
        assert one.score(np.ones(1)) == metric_value("accuracy", truth, values[0], head.num_classes)


def test_equal_terms_go_to_the_lower_class() -> None:
    head = HEADS["few"]
    first = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.2, 0.2, 0.6], [0.375, 0.625, 0]], np.float32)
    other = np.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.625, 0.375, 0]], np.float32)
    truth = np.array([0, 1, 2, 0])
    contest = Contest.of("accuracy", head, truth, [first, other], np.arange(4))
    for weights in ([1, 1], [1, 0], [0, 1], [3, 3]):
        decided = (np.average([first, other], axis=0, weights=weights)).argmax(axis=1)
        assert contest.statistics(np.array(weights))[:, 3:6].argmax(axis=1).tolist() == decided.tolist()


def test_a_class_that_only_a_run_without_weight_beats_still_wins_its_ties() -> None:
    head = HEADS["few"]
    runs = [[[0.4, 0.4, 0.2]], [[0.3, 0.5, 0.2]], [[0.3, 0.2, 0.5]]]
    values = [np.array(run, np.float32) for run in runs]
    contest = Contest.of("accuracy", head, np.array([0]), values, np.zeros(1, int))
    assert contest.score(np.array([1, 0, 0])) == 1  # class 1 has no less than class 0 in the first two runs
    assert contest.score(np.array([1, 0.001, 0])) == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", HEADS)
def test_one_row_or_one_true_class_has_a_score(name: str, metric: Metric) -> None:
    head = HEADS[name]
    if head.kind == "multilabel" and metric == "quadratic_kappa":
        return
    truth, values, parts = make_runs(head, num_runs=3)
    weights = np.array([0.5, 0.3, 0.2])
    one = Contest.of(metric, head, truth[:1], [own[:1] for own in values], parts[:1])
    alike = Contest.of(metric, head, np.zeros_like(truth), values, parts)  # also: most classes are never true
    assert np.isfinite(one.score(weights)) and np.isfinite(alike.score(weights))
    assert np.isfinite(alike.score(weights, without=0))
    if metric in ("roc_auc", "average_precision"):
        assert one.score(weights) == alike.score(weights) == 0
    else:
        sign = -1 if metric == "log_loss" else 1
        expected = metric_value(
            metric, np.zeros_like(truth), mixed(head, values, weights, {"kind": "arithmetic"}), head.num_classes
        )
        assert alike.score(weights) == pytest.approx(sign * expected, abs=1e-6)


def test_many_classes_of_noise_are_decided_as_the_mix_decides_them() -> None:
    head = Head(name="noise", classes=100)
    values = list(np.random.default_rng(0).dirichlet(np.ones(100), size=(20, 60)).astype(np.float32))
    truth = np.arange(60)
    contest = Contest.of("accuracy", head, truth, values, truth)
    for weights in draw_weights(np.random.default_rng(1), 20):
        decided = mixed(head, values, weights, {"kind": "arithmetic"}).argmax(axis=1)
        np.testing.assert_array_equal(contest.statistics(weights)[:, 100:200].argmax(axis=1), decided)


@pytest.mark.parametrize("name", HEADS)
def test_blocks_of_rows_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = HEADS[name]
    truth, values, parts = make_runs(head)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    for metric in ("quadratic_kappa" if head.kind != "multilabel" else "macro_f1", "log_loss"):
        whole = Contest.of(metric, head, truth, values, parts).statistics(weights)
        with monkeypatch.context() as patched:
            patched.setattr("kaggle_kit.blending.terms._BLOCK", 1_000)
            patched.setattr("kaggle_kit.blending.open_rows._BLOCK", 100)
            np.testing.assert_allclose(Contest.of(metric, head, truth, values, parts).statistics(weights), whole)


@pytest.mark.parametrize("metric", PROBABILITY_METRICS)
def test_metrics_of_many_rows_are_taken_of_a_sample_that_keeps_the_parts(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = HEADS["few"]
    truth, values, parts = make_runs(head, num_rows=3000)
    whole = Contest.of(metric, head, truth, values, parts, kind="geometric")
    monkeypatch.setattr("kaggle_kit.blending.mixed_rows._MOST_SORTED_ROWS", 1000)
    monkeypatch.setattr("kaggle_kit.blending.mixed_rows._MOST_MIXED", 3000)
    sample = Contest.of(metric, head, truth, values, parts, kind="geometric")
    again = Contest.of(metric, head, truth, values, parts, kind="geometric")
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    _, counts = np.unique(parts, return_counts=True)
    np.testing.assert_array_equal(sample.statistics(weights)[:, 1], counts // 3)
    assert sample.score(weights) == again.score(weights) == pytest.approx(whole.score(weights), abs=0.05)


def broken(values: list[np.ndarray], value: float) -> list[np.ndarray]:
    copy = [one.copy() for one in values]
    copy[2][17, 1] = value
    return copy


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda v: {"values": []}, PredictionError, "head 'few': 0 runs and no rows; give at least one"),
        (lambda v: {"values": [one[:0] for one in v]}, PredictionError, "4 runs and no rows"),
        (
            lambda v: {"values": [v[0], v[1][:-1]]},
            PredictionError,
            r"run 1 has .* shape \(299, 3\); expected \(300, 3\)",
        ),
        (
            lambda v: {"values": [one[:, :2] for one in v]},
            PredictionError,
            r"run 0 has .* \(300, 2\); expected \(300, 3\)",
        ),
        (lambda v: {"values": broken(v, np.nan)}, PredictionError, "run 2 has nan in row 17; expected finite"),
        (lambda v: {"values": broken(v, np.inf)}, PredictionError, "run 2 has .* in row 17"),
        (lambda v: {"truth": np.zeros(7, int)}, DataError, r"truth has shape \(7,\) .* expected \(300,\)"),
        (lambda v: {"parts": np.zeros(7, int)}, DataError, r"parts \(7,\); expected \(300,\)"),
        (lambda v: {"kind": "stack"}, SettingError, "a stack weighs no runs"),
        (lambda v: {"kind": "rank"}, PredictionError, "0 tables of quantiles for 4 runs"),
        (lambda v: {"ranks": [quantiles(one) for one in v]}, PredictionError, "4 tables .* mixed by arithmetic"),
        (lambda v: {"temperatures": (1.0, 2.0)}, SettingError, "2 temperatures for 4 runs; give one a run"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: Any, error: type[KitError], match: str) -> None:
    truth, values, parts = make_runs(HEADS["few"])
    given = {"truth": truth, "values": values, "parts": parts, **change(values)}
    with pytest.raises(error, match=match):
        Contest.of("accuracy", HEADS["few"], **given)


@pytest.mark.parametrize(
    "weights", [[1, 1], [0, 0, 0, 0], [0.5, -0.1, 0.3, 0.3], [np.nan, 0, 0, 1], [np.inf, 0, 0, 0], [[1, 0, 0, 0]] * 2]
)
def test_what_is_no_weights_is_refused(weights: list[Any]) -> None:
    truth, values, parts = make_runs(HEADS["few"])
    contest = Contest.of("accuracy", HEADS["few"], truth, values, parts)
    with pytest.raises(SettingError, match="expected 4 numbers of at least 0, not all 0"):
        contest.score(np.array(weights))


@pytest.mark.parametrize(("without", "num_parts"), [(3, 3), (-1, 3), (0, 1)])
def test_a_part_that_cannot_be_left_out_is_refused(without: int, num_parts: int) -> None:
    truth, values, _ = make_runs(HEADS["few"])
    contest = Contest.of("accuracy", HEADS["few"], truth, values, np.arange(300) % num_parts)
    with pytest.raises(SettingError, match=f"part {without} of {num_parts} cannot be left out"):
        contest.score(np.ones(4), without=without)
