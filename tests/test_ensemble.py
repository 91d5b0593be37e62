from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Blend, Prefix, blend_predictions, equal_blend, load_blend, mean_probs, save_blend
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.mixes import Mix, Stack, Table, quantiles
from kaggle_kit.predictions import Predictions
from kaggle_kit.scores import Score


def make(ids: str, seed: int, classes: int = 3) -> Predictions:
    probs = np.random.default_rng(seed).dirichlet(np.ones(classes), len(ids)).astype(np.float32)
    return Predictions(ids=np.array(list(ids)), probs={"root": probs})


def weighted(*weights: float) -> Blend:
    """A blend of as many runs, named x, y, z, of which each prefix has the weights of its runs, made to sum to 1."""
    rows = [np.array(weights[:count]) / sum(weights[:count]) for count in range(1, len(weights) + 1)]
    prefixes = tuple(Prefix(heads={"root": Mix(weights=tuple(row.tolist()))}) for row in rows)
    return Blend(runs=tuple("xyz"[: len(weights)]), prefixes=prefixes)


def everything(members: dict[str, Predictions]) -> Blend:
    """A blend of x and y that uses all a blend can have: ranks for the first run, a stack of both."""
    rng = np.random.default_rng(0)
    stack = Stack(
        sources=("root",),
        coefficients=Table.of(rng.normal(size=(6, 3))),
        intercept=Table.of(rng.normal(size=3)),
    )
    rule = HeadRule(rule="class_bias", log_bias=(-2.0, 0.1, 1 / 3))
    score = Score(total=1 / 3, heads={"root": 1 / 3}, rows=3, interval=(0.1, 0.7), head_intervals={"root": (0.1, 0.7)})
    return Blend(
        runs=("x", "y"),
        prefixes=(
            Prefix(heads={"root": Mix(kind="rank", weights=(1.0,), temperatures=(1 / 3,))}),
            Prefix(
                heads={"root": Mix(kind="stack", stack=stack, temperatures=(0.7, 1.9))},
                decision=Decision(heads={"root": rule}),
                score=score,
            ),
        ),
        prior_shift=True,
        seconds={"x": 0.1, "y": 1 / 7},
        seconds_on="a test",
        ranks={"root": {name: Table.of(quantiles(one.probs["root"])) for name, one in members.items()}},
        oof_hashes={"x": "0" * 64, "y": "1" * 64},
    )


def test_equal_members_are_the_mean_s_fixed_point() -> None:
    member = make("abc", 0)
    blended = blend_predictions(equal_blend(["x", "y"]), {"x": member, "y": member})
    assert np.allclose(blended.probs["root"], member.probs["root"], atol=1e-7)


def test_runs_are_joined_by_id() -> None:
    first, second = make("abc", 0), make("abc", 1)
    shuffled = second.align(np.array(["c", "a", "b"]))
    blend = equal_blend(["x", "y"])
    expected = blend_predictions(blend, {"x": first, "y": second})
    assert (blend_predictions(blend, {"x": first, "y": shuffled}).probs["root"] == expected.probs["root"]).all()


def test_runs_are_told_apart_by_name_in_whatever_order_they_are_given() -> None:
    first, second, blend = make("abc", 0), make("abc", 1), weighted(3, 1)
    one = blend_predictions(blend, {"x": first, "y": second})
    other = blend_predictions(blend, {"y": second, "unused": make("ab", 2), "x": first})
    assert (one.probs["root"] == other.probs["root"]).all()


def test_weights_count() -> None:
    first, second = make("abc", 0), make("abc", 1)
    found = blend_predictions(weighted(3, 1), {"x": first, "y": second}).probs["root"]
    assert np.allclose(found, 0.75 * first.probs["root"] + 0.25 * second.probs["root"], atol=1e-6)


def test_fold_models_count_the_same() -> None:
    parts = [{"root": np.array([[1, 0]], np.float32)}, {"root": np.array([[0, 1]], np.float32)}]
    assert mean_probs(parts)["root"].tolist() == [[0.5, 0.5]]
    assert mean_probs(parts)["root"].dtype == np.float32


def test_the_first_runs_are_a_blend_of_their_own() -> None:
    members = {"x": make("abc", 0), "y": make("abc", 1), "z": make("abc", 2)}
    blend = weighted(5, 3, 2)
    assert blend.first(3) == blend
    alone = blend_predictions(blend.first(1), {"x": members["x"]})
    assert np.allclose(alone.probs["root"], members["x"].probs["root"], atol=1e-6)
    two = blend.first(2)
    assert two.runs == ("x", "y") and two.whole.heads["root"].weights == (0.625, 0.375)
    assert (
        blend_predictions(two, members).probs["root"] == blend_predictions(weighted(5, 3), members).probs["root"]
    ).all()


def test_the_first_runs_know_of_no_others() -> None:
    members = {"x": make("abc", 0), "y": make("abc", 1)}
    first = everything(members).first(1)
    assert list(first.seconds) == list(first.oof_hashes) == list(first.ranks["root"]) == ["x"]
    assert first.prior_shift and first.score is None and first.decision == Decision()
    assert first.first(1) == first


@pytest.mark.parametrize("number", [0, 3, -1])
def test_more_runs_than_there_are_or_none_are_refused(number: int) -> None:
    with pytest.raises(SettingError, match=rf"the first {number} runs were asked for; the blend has 1 to 2"):
        equal_blend(["x", "y"]).first(number)


def test_shares_are_the_mean_over_heads() -> None:
    heads = {"root": Mix(weights=(0.5, 0.5)), "vowel": Mix(weights=(1.0, 0.0))}
    blend = Blend(runs=("x", "y"), prefixes=(Prefix(), Prefix(heads=heads)))
    assert blend.shares() == {"x": 0.75, "y": 0.25}
    assert equal_blend(["x", "y"]).shares() == {"x": 0.5, "y": 0.5}
    stacked = everything({"x": make("abc", 0), "y": make("abc", 1)})
    assert stacked.shares() == {"x": 0.5, "y": 0.5}


@pytest.mark.parametrize("other", [make("ab", 1), make("abd", 1), make("abc", 1, classes=4)])
def test_runs_that_do_not_fit_are_refused(other: Predictions) -> None:
    with pytest.raises(PredictionError, match="run 'y' predicts|run 'y', joined with run 'x': .*have no prediction"):
        blend_predictions(equal_blend(["x", "y"]), {"x": make("abc", 0), "y": other})


def test_a_missing_run_is_named() -> None:
    with pytest.raises(PredictionError, match="run 'y' of the blend has no predictions"):
        blend_predictions(equal_blend(["x", "y"]), {"x": make("abc", 0)})


def test_a_mix_by_rank_without_quantiles_names_the_run() -> None:
    prefixes = (Prefix(), Prefix(heads={"root": Mix(kind="rank", weights=(0.5, 0.5))}))
    members = {"x": make("abc", 0), "y": make("abc", 1)}
    ranks = {"root": {"x": Table.of(quantiles(members["x"].probs["root"]))}}
    with pytest.raises(PredictionError, match="head 'root' is mixed by rank, and `ranks` has no quantiles of run 'y'"):
        blend_predictions(Blend(runs=("x", "y"), prefixes=prefixes, ranks=ranks), members)


def test_a_stack_of_other_classes_is_refused() -> None:
    members = {"x": make("abc", 0, classes=4), "y": make("abc", 1, classes=4)}
    blend = everything({"x": make("abc", 0), "y": make("abc", 1)})
    with pytest.raises(PredictionError, match="head .root.: a stack of .* give it the runs and classes"):
        blend_predictions(blend, members)


def test_runs_of_the_same_name_are_refused() -> None:
    with pytest.raises(SettingError, match="tells them apart by name"):
        equal_blend(["x", "x"])


@pytest.mark.parametrize(
    ("mixes", "message"),
    [
        ([], "`prefixes` are 0; expected one for each of 2 runs"),
        ([Mix.equal(1)], "`prefixes` are 1"),
        ([Mix.equal(1), Mix.equal(3)], r"`prefixes\[1\].heads.root` has 3 weights; expected 2"),
        ([Mix.equal(2), Mix.equal(2)], r"`prefixes\[0\].heads.root` has 2 weights; expected 1"),
    ],
)
def test_prefixes_that_do_not_fit_the_runs_are_refused(mixes: list[Mix], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Blend(runs=("x", "y"), prefixes=tuple(Prefix(heads={"root": mix}) for mix in mixes))


def test_a_blend_of_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="`runs` is empty"):
        equal_blend([])


def test_temperatures_of_a_stack_are_one_a_run() -> None:
    blend = everything({"x": make("abc", 0), "y": make("abc", 1)})
    mix = dataclasses.replace(blend.whole.heads["root"], temperatures=(1.0, 1.0, 1.0))
    with pytest.raises(SettingError, match=r"`prefixes\[1\].heads.root` has 3 temperatures; expected 2, or none"):
        dataclasses.replace(blend, prefixes=(Prefix(), Prefix(heads={"root": mix})))


@pytest.mark.parametrize("weights", [(), (0.5, 0.2), (1.5, -0.5), (0.5, float("nan"))])
def test_weights_that_are_none_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="weigh"):
        Mix(weights=weights)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_are_none_are_refused_wherever_they_stand(value: float) -> None:
    for temperatures in ((value, 1.0), (1.0, value)):
        with pytest.raises(SettingError, match="expected finite numbers above 0"):
            Mix(weights=(0.5, 0.5), temperatures=temperatures)


def test_save_and_load_give_the_same_blend_and_the_same_bits(tmp_path: Path) -> None:
    members = {"x": make("abc", 0), "y": make("abc", 1)}
    blend = everything(members)
    save_blend(blend, tmp_path / "blend.json")
    loaded = load_blend(tmp_path / "blend.json")
    assert loaded == blend
    for count in (1, 2):
        expected = blend_predictions(blend.first(count), members).probs["root"]
        assert (blend_predictions(loaded.first(count), members).probs["root"] == expected).all()


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"format": 99}',
        '{"format": 3}',
        '{"format": 3, "runs": ["x"], "prefixes": [{"heads": {"root": {"weights": ["1"]}}}]}',
        '{"format": 3, "runs": ["x"], "prefixes": [], "weights": {"x": 1}}',
    ],
)
def test_what_is_no_blend_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "blend.json").write_text(text)
    with pytest.raises(SettingError, match=r"blend\.json"):
        load_blend(tmp_path / "blend.json")


@pytest.mark.parametrize("data", ["é", "%", "AAAA"])
def test_a_table_that_was_changed_is_refused(tmp_path: Path, data: str) -> None:
    save_blend(everything({"x": make("abc", 0), "y": make("abc", 1)}), tmp_path / "blend.json")
    values = json.loads((tmp_path / "blend.json").read_text())
    values["ranks"]["root"]["x"]["data"] = data
    (tmp_path / "blend.json").write_text(json.dumps(values))
    with pytest.raises(SettingError, match=r"blend\.json: `ranks.root.x`: `data` (is not base64|holds 3 bytes)"):
        load_blend(tmp_path / "blend.json")
