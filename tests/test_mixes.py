from __future__ import annotations

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
from scipy.stats import rankdata

from kaggle_kit import decision
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.mixes import (
    FLOOR,
    LEAST_POWER,
    MOST_POWER,
    Mix,
    MixKind,
    Stack,
    Table,
    calibrate,
    from_terms,
    half_term,
    mix_head,
    quantiles,
    softmax,
    stack_features,
    to_terms,
)
from kaggle_kit.settings import build, plain

MEANS: tuple[MixKind, ...] = ("arithmetic", "geometric", "power")
WEIGHED: tuple[MixKind, ...] = (*MEANS, "rank", "vote")
POWERS = (0.5, 1.0, 2.0, 7.0)


def runs_of(
    rows: int = 40, classes: int = 4, num_runs: int = 3, *, many: bool = False, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Runs that agree somewhat, none of whose probabilities is below the floor."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 1.5, (rows, classes))
    scores = [shared + rng.normal(0, 1, (rows, classes)) for _ in range(num_runs)]
    return [{"a": (1 / (1 + np.exp(-s)) if many else softmax(s)).astype(np.float32)} for s in scores]


def weigh(kind: MixKind, *weights: float, power: float = 2.0, temperatures: tuple[float, ...] = ()) -> Mix:
    return Mix(kind=kind, weights=weights, power=power, temperatures=temperatures)


def mixed(mix: Mix, runs: list[dict[str, np.ndarray]], *, many: bool = False) -> np.ndarray:
    """The mix of head `a`, its ranks among the rows themselves."""
    ranks = [quantiles(run["a"]) for run in runs] if mix.kind == "rank" else ()
    return mix_head(mix, "a", runs, multilabel=("a",) * many, ranks=ranks)


def stack_of(features: int, classes: int, sources: tuple[str, ...] = ("a",), seed: int = 0) -> Mix:
    rng = np.random.default_rng(seed)
    coefficients = Table.of(rng.normal(0, 0.3, (features, classes)))
    return Mix(
        kind="stack", stack=Stack(sources=sources, coefficients=coefficients, intercept=Table.of(np.ones(classes)))
    )


def test_every_kind_is_tested_here() -> None:
    assert {*WEIGHED, "stack"} == set(get_args(MixKind))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("power", POWERS)
def test_equal_members_are_every_mean_s_fixed_point(kind: MixKind, power: float, many: bool) -> None:
    run = runs_of(many=many)[0]
    mix = weigh(kind, 0.2, 0.3, 0.5, power=power)
    np.testing.assert_allclose(mixed(mix, [run, run, run], many=many), run["a"], atol=1e-6)


def test_probabilities_below_the_floor_move_a_fixed_point_by_no_more_than_the_floor_a_class() -> None:
    probs = np.zeros((1, 168), np.float32)
    probs[0, 3] = 1
    for kind in MEANS:
        assert np.abs(mixed(weigh(kind, 0.5, 0.5), [{"a": probs}] * 2) - probs).max() < 168 * FLOOR


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", MEANS)
def test_a_run_of_weight_1_is_itself_whatever_the_others_are(kind: MixKind, many: bool) -> None:
    runs = runs_of(many=many)
    np.testing.assert_allclose(mixed(weigh(kind, 0, 1, 0), runs, many=many), runs[1]["a"], atol=1e-6)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", WEIGHED)
def test_the_order_of_runs_changes_nothing_when_weights_go_along(kind: MixKind, many: bool) -> None:
    runs, weights, temperatures = runs_of(many=many), (0.2, 0.3, 0.5), (0.5, 1.0, 2.0)
    if kind == "rank":
        temperatures = ()
    here = mixed(weigh(kind, *weights, temperatures=temperatures), runs, many=many)
    there = mixed(weigh(kind, *weights[::-1], temperatures=temperatures[::-1]), runs[::-1], many=many)
    np.testing.assert_allclose(here, there, atol=1e-6)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", [*WEIGHED, "stack"])
def test_rows_are_float32_probabilities_that_sum_to_1_where_classes_exclude_each_other(
    kind: MixKind, many: bool
) -> None:
    runs = runs_of(many=many)
    runs[0]["a"][0] = 0 if many else [1, 0, 0, 0]
    probs = mixed(stack_of(12, 4) if kind == "stack" else weigh(kind, 0.2, 0.3, 0.5), runs, many=many)
    assert probs.dtype == np.float32 and probs.shape == (40, 4)
    assert probs.min() >= 0 and probs.max() <= 1
    if not many:
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", [*WEIGHED, "stack"])
def test_chunks_change_nothing(kind: MixKind, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of()
    mix = stack_of(12, 4) if kind == "stack" else weigh(kind, 0.2, 0.3, 0.5)
    whole = mixed(mix, runs)
    monkeypatch.setattr(decision, "_CHUNK", 7)
    np.testing.assert_allclose(mixed(mix, runs), whole, atol=1e-7)


@pytest.mark.parametrize("kind", [*WEIGHED, "stack"])
def test_one_row_is_mixed_as_among_others_and_no_rows_give_none(kind: MixKind) -> None:
    runs = runs_of()
    mix = stack_of(12, 4) if kind == "stack" else weigh(kind, 0.2, 0.3, 0.5)
    ranks = [quantiles(run["a"]) for run in runs]
    for rows in (slice(5, 6), slice(0, 0)):
        part = [{"a": run["a"][rows]} for run in runs]
        found = mix_head(mix, "a", part, ranks=ranks)
        np.testing.assert_allclose(found, mix_head(mix, "a", runs, ranks=ranks)[rows], atol=1e-7)


def test_means_are_what_their_names_say() -> None:
    runs = runs_of(num_runs=2)
    one, two = (run["a"].astype(np.float64) for run in runs)
    product = one**0.25 * two**0.75
    squares = np.sqrt(0.25 * one**2 + 0.75 * two**2)
    np.testing.assert_allclose(mixed(weigh("arithmetic", 0.25, 0.75), runs), 0.25 * one + 0.75 * two, atol=1e-6)
    for kind, expected in (("geometric", product), ("power", squares)):
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(mixed(weigh(kind, 0.25, 0.75), runs), expected, atol=1e-6)


def test_the_geometric_mean_of_a_multi_label_head_is_the_mean_of_logits() -> None:
    runs = runs_of(num_runs=2, many=True)
    logits = [np.log(run["a"] / (1 - run["a"].astype(np.float64))) for run in runs]
    expected = 1 / (1 + np.exp(-(0.25 * logits[0] + 0.75 * logits[1])))
    np.testing.assert_allclose(mixed(weigh("geometric", 0.25, 0.75), runs, many=True), expected, atol=1e-6)


def test_a_power_mean_lies_between_the_geometric_mean_and_the_maximum() -> None:
    runs = runs_of()
    shares = (1 / 3,) * 3
    highest = np.max([run["a"] for run in runs], axis=0)
    ends = {
        LEAST_POWER: mixed(weigh("geometric", *shares), runs),
        1.0: mixed(weigh("arithmetic", *shares), runs),
        MOST_POWER: highest / highest.sum(axis=1, keepdims=True),
    }
    for power, expected in ends.items():
        tolerance = 1e-6 if power == 1 else 0.02
        np.testing.assert_allclose(mixed(weigh("power", *shares, power=power), runs), expected, atol=tolerance)


@pytest.mark.parametrize("power", [LEAST_POWER, MOST_POWER])
@pytest.mark.parametrize("classes", [4, 1000])
def test_no_allowed_power_underflows(power: float, classes: int) -> None:
    probs = np.full((1, classes), 1 / classes, np.float32)
    found = mixed(weigh("power", 0.5, 0.5, power=power), [{"a": probs}] * 2)
    np.testing.assert_allclose(found, probs, rtol=1e-5)


def test_a_probability_of_0_does_not_silence_the_other_runs() -> None:
    runs = [{"a": np.array([[1, 0]], np.float32)}, {"a": np.array([[0, 1]], np.float32)}]
    for kind in ("geometric", "power"):
        assert mixed(weigh(kind, 0.4, 0.6), runs)[0, 1] > 0.5
        assert mixed(weigh(kind, 0.4, 0.6), runs, many=True)[0, 1] > 0.5


def test_votes_count_runs_and_equal_ones_go_by_the_mean() -> None:
    sure, unsure = np.array([[0.9, 0.1, 0]], np.float32), np.array([[0.45, 0.55, 0]], np.float32)
    third = np.array([[0.3, 0.3, 0.4]], np.float32)
    assert mixed(weigh("vote", 1 / 3, 1 / 3, 1 / 3), [{"a": p} for p in (sure, unsure, unsure)]).argmax() == 1
    assert mixed(weigh("arithmetic", 1 / 3, 1 / 3, 1 / 3), [{"a": p} for p in (sure, unsure, unsure)]).argmax() == 0
    assert mixed(weigh("vote", 0.5, 0.5), [{"a": p} for p in (sure, unsure)]).argmax() == 0
    assert mixed(weigh("vote", 1 / 3, 1 / 3, 1 / 3), [{"a": p} for p in (sure, unsure, third)]).argmax() == 0


def test_votes_of_a_multi_label_head_are_one_a_class() -> None:
    runs = [{"a": np.array([[0.6, 0.4, 0.5, 0.9]], np.float32)}, {"a": np.array([[0.6, 0.4, 0.5, 0.2]], np.float32)}]
    found = mixed(weigh("vote", 0.5, 0.5), runs, many=True)[0]
    assert (found >= 0.5).tolist() == [True, False, True, True]  # of equal votes 0.55 decides


@pytest.mark.parametrize("kind", [*WEIGHED])
@pytest.mark.parametrize("power", POWERS)
def test_the_highest_mean_term_decides_as_the_mix_does(kind: MixKind, power: float) -> None:
    for many in (False, True):
        runs = runs_of(many=many)
        tables = [quantiles(run["a"]) for run in runs]
        terms = [
            to_terms(kind, run["a"].astype(np.float64), power=power, multilabel=many, ranks=table)
            for run, table in zip(runs, tables, strict=True)
        ]
        mean, probs = np.mean(terms, axis=0), mixed(weigh(kind, 1 / 3, 1 / 3, 1 / 3, power=power), runs, many=many)
        if many:
            np.testing.assert_array_equal(mean >= half_term(kind, power=power), probs >= 0.5)
        else:
            np.testing.assert_array_equal(mean.argmax(axis=1), probs.argmax(axis=1))


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("power", POWERS)
def test_half_a_term_is_a_probability_of_a_half(kind: MixKind, power: float) -> None:
    half = to_terms(kind, np.array([[0.5]]), power=power, multilabel=True)
    assert half == pytest.approx(half_term(kind, power=power))
    assert from_terms(kind, half, power=power, multilabel=True) == pytest.approx(0.5, abs=1e-12)


def test_ranks_are_shares_of_the_rows_that_have_less_and_equal_rows_share_theirs() -> None:
    rng = np.random.default_rng(0)
    probs = rng.random((1001, 3)).astype(np.float32)
    probs[:, 1] = np.round(probs[:, 1], 1)
    terms = to_terms("rank", probs.astype(np.float64), ranks=quantiles(probs))
    for column in range(3):
        exact = (rankdata(probs[:, column]) - 1) / 1000
        np.testing.assert_allclose(terms[:, column], exact, atol=0.006)  # 101 quantiles
    np.testing.assert_array_equal(np.argsort(terms[:, 0], kind="stable"), np.argsort(probs[:, 0], kind="stable"))


def test_a_constant_column_ranks_in_the_middle_and_what_lies_outside_at_the_ends() -> None:
    table = quantiles(np.full((9, 1), 0.25, np.float32))
    terms = to_terms("rank", np.array([[0.1], [0.25], [0.3]]), ranks=table)
    assert terms[:, 0].tolist() == [0, 0.5, 1]
    mostly_0 = quantiles(np.array([[0.0]] * 90 + [[0.5]] * 10, np.float32))
    low, high = to_terms("rank", np.array([[0.0], [0.5]]), ranks=mostly_0)[:, 0]
    assert low == pytest.approx(0.45, abs=0.01) and high == pytest.approx(0.95, abs=0.01)


def test_ranks_do_not_see_how_sure_a_run_is() -> None:
    runs = runs_of(2000, many=True, num_runs=2)
    surer = [runs[0], {"a": runs[1]["a"] ** 3}]
    mix = weigh("rank", 0.5, 0.5)
    np.testing.assert_allclose(mixed(mix, runs, many=True), mixed(mix, surer, many=True), atol=0.01)


@pytest.mark.parametrize("many", [False, True])
def test_temperatures_divide_logarithms(many: bool) -> None:
    probs = runs_of(many=many)[0]["a"]
    assert (calibrate(probs, 1.0, multilabel=many) == probs).all()
    flat, sharp = calibrate(probs, 1e6, multilabel=many), calibrate(probs, 0.01, multilabel=many)
    np.testing.assert_allclose(flat, 0.5 if many else 0.25, atol=1e-4)
    assert ((sharp >= 0.5) == (probs >= 0.5)).all() if many else (sharp.argmax(1) == probs.argmax(1)).all()
    there = calibrate(calibrate(probs, 3.0, multilabel=many), 1 / 3, multilabel=many)
    np.testing.assert_allclose(there, probs, atol=1e-6)


def test_temperatures_are_each_run_s_own_and_come_first() -> None:
    runs = runs_of(num_runs=2)
    own = [{"a": calibrate(run["a"], t, multilabel=False)} for run, t in zip(runs, (0.5, 3.0), strict=True)]
    for kind in ("arithmetic", "geometric", "power", "vote"):
        found = mixed(weigh(kind, 0.4, 0.6, temperatures=(0.5, 3.0)), runs)
        np.testing.assert_allclose(found, mixed(weigh(kind, 0.4, 0.6), own), atol=1e-6)


def test_a_stack_is_a_linear_model_of_the_logarithms_of_its_sources() -> None:
    rng = np.random.default_rng(0)
    runs = [
        {**run, "b": softmax(rng.normal(0, 1, (40, 2))).astype(np.float32), "c": rng.random((40, 3), np.float32)}
        for run in runs_of(num_runs=2)
    ]
    mix = stack_of(2 * (2 + 4 + 3), 4, ("b", "a", "c"))
    logs = [[np.log(run["b"]), np.log(run["a"]), np.log(run["c"] / (1 - run["c"].astype(np.float64)))] for run in runs]
    features = np.concatenate([block for run in logs for block in run], axis=1)
    np.testing.assert_allclose(stack_features(runs, ("b", "a", "c"), multilabel=("c",)), features, atol=1e-5)
    expected = softmax(features @ mix.stack.coefficients.values + 1)
    np.testing.assert_allclose(mix_head(mix, "a", runs, multilabel=("c",)), expected, atol=1e-6)
    halved = stack_features(runs, ("a",), temperatures=(2.0, 4.0))
    np.testing.assert_allclose(halved, features[:, [2, 3, 4, 5, 11, 12, 13, 14]] / np.repeat([2, 4], 4), atol=1e-6)


def test_a_stack_of_identities_is_the_geometric_mean() -> None:
    for many in (False, True):
        runs = runs_of(many=many)
        thirds = Table.of(np.concatenate([np.eye(4) / 3] * 3))
        mix = Mix(kind="stack", stack=Stack(sources=("a",), coefficients=thirds, intercept=Table.of(np.zeros(4))))
        mean = mixed(weigh("geometric", *(1 / 3,) * 3), runs, many=many)
        np.testing.assert_allclose(mixed(mix, runs, many=many), mean, atol=1e-6)


@pytest.mark.parametrize(
    "mix",
    [
        Mix.equal(3),
        weigh("power", 0.25, 0.75, power=0.5, temperatures=(0.5, 2.0)),
        weigh("rank", 1.0),
        stack_of(12, 4),
    ],
)
def test_a_mix_survives_json(mix: Mix) -> None:
    again = build(Mix, json.loads(json.dumps(plain(mix))))
    assert again == mix
    if mix.stack:
        runs = runs_of()
        assert (mixed(again, runs) == mixed(mix, runs)).all()


def test_a_table_keeps_float32_values_and_its_shape() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert (Table.of(values).values == values).all()
    assert (Table.of(values.T).values == values.T).all()
    assert Table.of(np.zeros((0, 4))).values.shape == (0, 4)


@pytest.mark.parametrize("num_runs", [1, 3, 7, 20, 49])
def test_equal_weights_are_accepted_for_any_number_of_runs(num_runs: int) -> None:
    run = runs_of()[0]
    np.testing.assert_allclose(mixed(Mix.equal(num_runs), [run] * num_runs), run["a"], atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": ()}, "'arithmetic' has 0 weights; a stack has a model"),
        ({"kind": "stack", "weights": (1.0,)}, "'stack' has 1 weights"),
        ({"kind": "stack"}, "'stack' has 0 weights"),
        ({"weights": (0.5, 0.6)}, "`weights` sum to 1.1"),
        ({"weights": (1.5, -0.5)}, "lowest -0.5"),
        ({"weights": (1.0, float("nan"))}, "`weights` sum to nan"),
        ({"weights": (0.5, 0.5), "temperatures": (1.0,)}, "1 temperatures and 2 weights"),
        ({"weights": (1.0,), "temperatures": (0.0,)}, "expected finite numbers above 0"),
        ({"weights": (0.5, 0.5), "temperatures": (1.0, float("nan"))}, "expected finite numbers above 0"),
        ({"weights": (0.5, 0.5), "temperatures": (1.0, float("inf"))}, "expected finite numbers above 0"),
        ({"weights": (1.0,), "power": 0.0}, "`power` is 0.0; expected 0.01 to 50"),
        ({"weights": (1.0,), "power": 1000.0}, "`power` is 1000.0; expected 0.01 to 50"),
        ({"weights": (1.0,), "power": float("nan")}, "`power` is nan"),
    ],
)
def test_mixes_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Mix(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((1,), "not base64!", "`data` is not base64"),
        ((2,), Table.of(np.zeros(3)).data, "`data` holds 12 bytes; shape .2,. needs 8"),
        ((-1, -3), Table.of(np.zeros(3)).data, "`data` holds 12 bytes"),
        ((1,), Table.of(np.zeros(1)).data[:-8] + "AADAfw==", "NaN or infinite"),
    ],
)
def test_damaged_tables_are_refused(shape: tuple[int, ...], data: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Table(shape=shape, data=data)


def test_a_stack_s_tables_must_fit_each_other() -> None:
    with pytest.raises(SettingError, match=r"shape \(6, 3\) and `intercept` \(2,\)"):
        Stack(sources=("a",), coefficients=Table.of(np.zeros((6, 3))), intercept=Table.of(np.zeros(2)))


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (Mix.equal(2), "head 'a': 3 runs for 2 weights"),
        (stack_of(8, 4), "a stack of 8 features got 12"),
        (stack_of(12, 5), "a stack of 5 classes got 4"),
        (stack_of(12, 4, ("b",)), "run 1 has no probs of head 'b' .found: 'a'."),
        (dataclasses.replace(stack_of(12, 4), temperatures=(1.0,)), "3 runs for 1 temperatures"),
        (weigh("rank", *(1 / 3,) * 3), "3 runs and quantiles of 0"),
    ],
)
def test_runs_that_are_not_the_mix_s_are_refused(mix: Mix, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        mix_head(mix, "a", runs_of())


def test_runs_that_differ_in_shape_are_refused() -> None:
    runs = runs_of()
    narrow = [*runs[:2], {"a": runs[2]["a"][:, :1]}]  # NumPy would spread the one column over all classes
    with pytest.raises(PredictionError, match=r"head 'a': run 3 has probs of shape \(40, 1\) and run 1 of \(40, 4\)"):
        mix_head(Mix.equal(3), "a", narrow)
    with pytest.raises(PredictionError, match="there are no runs to mix"):
        mix_head(stack_of(12, 4), "a", [])
    short = [quantiles(run["a"][:, :3]) for run in runs]
    with pytest.raises(PredictionError, match=r"quantiles of run 1 have shape \(3, 101\); expected \(4, 2 or more\)"):
        mix_head(weigh("rank", *(1 / 3,) * 3), "a", runs, ranks=short)


def test_an_image_below_all_that_was_seen_has_equal_ranks() -> None:
    tables = [quantiles(np.full((20, 3), 1 / 3, np.float32))]
    probs = np.full((1, 3), 1 / 3 - 1e-6, np.float32)
    assert mix_head(Mix(kind="rank", weights=(1.0,)), "a", [{"a": probs}], ranks=tables) == pytest.approx(1 / 3)
