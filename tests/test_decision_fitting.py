from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import wide_task
from test_prior_shift import calibrated

from kaggle_kit.decision import Decision
from kaggle_kit.decision_fitting import (
    RULES,
    FittedDecision,
    _try_rules,
    fit_decision,
    format_decision,
    nested_parts,
)
from kaggle_kit.errors import DataError, PredictionError
from kaggle_kit.scores import bootstrap_heads, middle_part, score_answers
from kaggle_kit.settings import build, plain
from kaggle_kit.task import Metric, Task

SHARES = {"root": np.array([0.85, 0.1, 0.05]), "vowel": np.array([0.9, 0.1])}


def task_of(metric: Metric = "macro_recall") -> Task:
    return dataclasses.replace(wide_task(), metric=metric)


def skewed(rows: int, *, seed: int = 0) -> tuple[dict, dict]:
    """Truth of unequal shares, and calibrated probabilities of it."""
    rng = np.random.default_rng(seed)
    made = {head: calibrated(rows, shares, train=shares, seed=rng) for head, shares in SHARES.items()}
    return {head: truth for head, (truth, _) in made.items()}, {head: probs for head, (_, probs) in made.items()}


def counts_of(truth: dict) -> dict:
    return {head: np.bincount(values, minlength=len(SHARES[head])) for head, values in truth.items()}


def fitted_to(
    truth: dict, probs: dict, metric: Metric = "macro_recall", folds: int = 4, **others: object
) -> FittedDecision:
    numbers = np.arange(len(truth["root"])) % folds
    return fit_decision(task_of(metric), truth, probs, numbers, counts=counts_of(truth), **{"draws": 200, **others})


def test_a_rule_for_a_skewed_problem_is_kept_and_helps_on_fresh_images() -> None:
    truth, probs = skewed(3000)
    fitted = fitted_to(truth, probs)
    assert [(one.head, one.rule.rule) for one in fitted.candidates if one.kept] == [
        ("root", "prior_power"),
        ("vowel", "prior_power"),
    ]
    assert all(one.nested_gain > 0.05 and one.interval[0] > 0 for one in fitted.candidates)
    fresh, fresh_probs = skewed(3000, seed=1)
    before = score_answers(task_of(), fresh, fresh_probs).total
    after = score_answers(task_of(), fresh, fitted.decision.decide(fresh_probs)).total
    assert after - before == pytest.approx(fitted.nested.total - fitted.argmax.total, abs=0.04)
    assert fitted.argmax == dataclasses.replace(
        score_answers(task_of(), truth, probs),
        interval=fitted.argmax.interval,
        head_intervals=fitted.argmax.head_intervals,
    )
    assert fitted.nested.interval is not None and fitted.nested.interval[0] < fitted.nested.total


@pytest.mark.parametrize("metric", ["macro_recall", "macro_f1", "weighted_f1", "quadratic_kappa"])
def test_a_rule_fitted_to_noise_is_not_kept(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    truth = {"root": rng.integers(0, 3, 400), "vowel": rng.integers(0, 2, 400)}
    probs = {h: rng.dirichlet(np.ones(c), 400).astype(np.float32) for h, c in (("root", 3), ("vowel", 2))}
    fitted = fitted_to(truth, probs, metric)
    assert fitted.decision.is_plain and not any(one.kept for one in fitted.candidates)
    assert max(one.in_sample_gain for one in fitted.candidates) > 0  # what would have been believed
    assert fitted.nested == fitted.argmax
    assert format_decision(fitted)[-1].startswith("no rule helps beyond luck: let the highest probability decide")


def test_the_rule_with_more_parameters_must_be_better_than_the_simpler_one() -> None:
    truth, probs = skewed(4000)
    for head, values in probs.items():  # a model that is wrong about one class in a way no power of counts mends
        values[:, 0] *= 0.02 if head == "root" else 1
        values[:, 1] *= 20 if head == "root" else 1
        values /= values.sum(axis=1, keepdims=True)
    kept = {one.head: one for one in fitted_to(truth, probs).candidates if one.kept}
    assert kept["root"].rule.rule == "class_bias"
    assert kept["vowel"].rule.rule == "prior_power"


def test_each_head_is_fitted_alone_and_judged_by_nested_decisions() -> None:
    truth, probs = skewed(600)
    fitted = fitted_to(truth, probs)
    changed = {head: values.copy() for head, values in truth.items()}
    changed["vowel"][0] = 1 - changed["vowel"][0]
    again = fitted_to(changed, probs).candidates
    assert [one.rule for one in again[:2]] == [one.rule for one in fitted.candidates[:2]]  # each head alone
    assert [one.nested_gain for one in again[:2]] == [one.nested_gain for one in fitted.candidates[:2]]
    flattered = [one for one in fitted.candidates if one.in_sample_gain > one.nested_gain]
    assert len(flattered) >= 3


def test_images_of_one_fold_are_parted_at_random() -> None:
    truth, probs = skewed(1000)
    one = fitted_to(truth, probs, folds=1)
    assert one.decision.heads["root"].rule != "argmax"
    fifths = nested_parts(np.zeros(1000, int), truth["root"], seed=0)
    assert np.bincount(fifths).tolist() == [200] * 5
    for label in range(3):
        counts = np.bincount(fifths[truth["root"] == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    as_folds = fit_decision(task_of(), truth, probs, fifths, counts=counts_of(truth), draws=200)
    assert (one.decided["root"] == as_folds.decided["root"]).all()
    assert [c.nested_gain for c in one.candidates[:2]] == [c.nested_gain for c in as_folds.candidates[:2]]
    again, other = fitted_to(truth, probs, folds=1), fitted_to(truth, probs, folds=1, seed=1)
    assert all((one.decided[head] == again.decided[head]).all() for head in SHARES) and one == again
    assert [c.rule for c in one.candidates] == [c.rule for c in other.candidates]
    assert [c.nested_gain for c in one.candidates] != [c.nested_gain for c in other.candidates]


@pytest.mark.parametrize("metric", ["macro_recall", "quadratic_kappa"])
def test_no_fold_s_truth_moves_the_decisions_of_that_fold(metric: Metric) -> None:
    truth, probs = skewed(600)
    folds, counts = np.arange(600) % 4, counts_of(truth)
    parts = dict.fromkeys(SHARES, folds)
    before = _try_rules(task_of(metric), truth, probs, parts, counts, RULES)
    rng = np.random.default_rng(0)
    for fold in range(4):
        held = folds == fold
        changed = {h: np.where(held, rng.integers(0, len(s), 600), truth[h]) for h, s in SHARES.items()}
        after = _try_rules(task_of(metric), changed, probs, parts, counts, RULES)
        for head in SHARES:
            for rule in RULES:
                old, new = before[head][rule], after[head][rule]
                assert (old.nested[held] == new.nested[held]).all()
        assert any((before[h][r].nested != after[h][r].nested).any() for h in SHARES for r in RULES)


def noise(rows: int, *, informed: bool, seed: int) -> tuple[dict, dict]:
    """Truth of equal shares, and probabilities no rule can help: right as they are, or of nothing."""
    rng = np.random.default_rng(seed)
    truth, probs = {}, {}
    for head, values in SHARES.items():
        even = np.full(len(values), 1 / len(values))
        truth[head], probs[head] = calibrated(rows, even, train=even, seed=rng)
        if not informed:
            probs[head] = rng.dirichlet(np.ones(len(even)), rows).astype(np.float32)
    return truth, probs


@pytest.mark.parametrize(("informed", "most"), [(True, 0.06), (False, 0.12)])
def test_a_rule_is_seldom_kept_where_none_can_help(informed: bool, most: float) -> None:
    kept = []
    for seed in range(40):
        fitted = fitted_to(*noise(200, informed=informed, seed=seed), draws=100)
        kept += [rule.rule != "argmax" for rule in fitted.decision.heads.values()]
    assert len(kept) == 80 and np.mean(kept) <= most


def test_random_fifths_keep_groups_together() -> None:
    rng = np.random.default_rng(0)
    writers, truth = rng.integers(100, 140, 1000), rng.integers(0, 3, 1000)
    parts = nested_parts(np.zeros(1000, int), truth, groups=writers, seed=0)
    assert all(len(set(parts[writers == writer])) == 1 for writer in set(writers))
    assert [len(set(writers[parts == part])) for part in range(5)] == [8] * 5
    alone = nested_parts(np.zeros(1000, int), truth, groups=rng.permutation(1000), seed=0)
    assert sorted(np.bincount(alone)) == [200] * 5
    assert (nested_parts(truth, truth, groups=writers, seed=0) == truth).all()  # folds are taken as they are


def test_groups_are_drawn_together() -> None:
    truth, probs = skewed(400)
    decided = {head: values.argmax(axis=1) for head, values in probs.items()}
    twice, decided_twice = ({h: np.tile(v, 2) for h, v in values.items()} for values in (truth, decided))
    groups = np.tile(np.arange(400) + 7, 2)
    (single,) = middle_part(bootstrap_heads(task_of(), truth, [decided], draws=1000)[:, 0, :1])
    (paired,) = middle_part(bootstrap_heads(task_of(), twice, [decided_twice], draws=1000, groups=groups)[:, 0, :1])
    (naive,) = middle_part(bootstrap_heads(task_of(), twice, [decided_twice], draws=1000)[:, 0, :1])
    assert paired == pytest.approx(single, abs=0.01)
    assert naive[1] - naive[0] < 0.85 * (paired[1] - paired[0])
    drawn = bootstrap_heads(task_of(), truth, [decided, truth], draws=20, groups=np.arange(400))
    assert drawn.shape == (20, 2, 2) and (drawn[:, 1] == 1).all() and len(np.unique(drawn[:, 0, 0])) > 10


def test_copies_of_images_make_no_rule_better_than_luck() -> None:
    rng = np.random.default_rng(3)
    truth = {head: np.repeat(rng.integers(0, len(s), 60), 20) for head, s in SHARES.items()}
    probs = {h: np.repeat(rng.dirichlet(np.ones(len(s)), 60), 20, axis=0) for h, s in SHARES.items()}
    copies = np.repeat(np.arange(60), 20)
    assert not fitted_to(truth, probs, folds=1).decision.is_plain
    assert fitted_to(truth, probs, folds=1, groups=copies).decision.is_plain


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "average_precision"])
def test_for_metrics_of_probabilities_nothing_is_fitted(metric: Metric) -> None:
    truth, probs = skewed(200)
    fitted = fitted_to(truth, probs, metric)
    assert fitted.decision.is_plain and fitted.candidates == () and fitted.nested == fitted.argmax
    (line,) = format_decision(fitted)
    assert f"metric {metric} scores the probabilities themselves" in line


def test_a_head_whose_truth_is_one_class_keeps_the_highest_probability() -> None:
    truth, probs = skewed(500)
    truth["vowel"][:] = 0
    fitted = fitted_to(truth, probs)
    assert {one.head for one in fitted.candidates} == {"root"}
    assert fitted.decision.heads["vowel"].rule == "argmax"
    truth["root"][:] = 2
    assert "single class" in format_decision(fitted_to(truth, probs))[0]


def test_a_class_that_one_fold_alone_holds_is_no_trouble() -> None:
    truth, probs = skewed(300)
    truth["root"][:] = np.where(np.arange(300) % 4 == 0, 2, 0)
    assert len(fitted_to(truth, probs).candidates) == 4


def test_the_reason_says_what_a_rule_that_is_not_kept_does() -> None:
    sure = {head: np.arange(300) % len(s) for head, s in SHARES.items()}
    certain = {head: np.eye(len(s), dtype=np.float32)[sure[head]] for head, s in SHARES.items()}
    assert {one.why for one in fitted_to(sure, certain).candidates} == {"changes nothing"}
    assert "no: changes nothing" in format_decision(fitted_to(sure, certain))[1]
    candidates = fitted_to(*skewed(3000)).candidates
    assert candidates[1].why == "prior_power is simpler, and as good within luck" and candidates[1].interval[0] > 0


def test_the_nested_decisions_are_those_that_were_scored() -> None:
    truth, probs = skewed(500)
    fitted = fitted_to(truth, probs)
    assert score_answers(task_of(), truth, fitted.decided).heads == fitted.nested.heads
    assert score_answers(task_of(), truth, fitted_to(truth, probs, "log_loss").decided).heads == fitted.argmax.heads


def test_the_decision_survives_json_and_the_table_lines_up() -> None:
    fitted = fitted_to(*skewed(500))
    assert build(Decision, json.loads(json.dumps(plain(fitted.decision)))) == fitted.decision
    lines = format_decision(fitted)
    assert len(lines) == 1 + 4 + 1
    assert len({line.find("  yes:") if "yes:" in line else line.find("  no:") for line in lines[1:-1]}) == 1
    assert "use the fitted decision (a rule for root" in lines[-1] and "macro_recall" in lines[-1]


def without(values: dict, head: str) -> dict:
    return {name: value for name, value in values.items() if name != head}


TRUTH, PROBS = skewed(20)
NAN = PROBS | {"root": np.where(np.arange(20)[:, None] == 7, np.nan, PROBS["root"])}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"truth": without(TRUTH, "root")}, DataError, r"head 'root' has no truth \(found: vowel\)"),
        ({"probs": without(PROBS, "vowel")}, PredictionError, r"head 'vowel' has no probs \(found: root\)"),
        ({"counts": {}}, DataError, "head 'root' has no counts"),
        ({"probs": NAN}, PredictionError, "head 'root': probs of 1 of 20 rows are NaN, .* row 7"),
        ({"probs": PROBS | {"root": -PROBS["root"]}}, PredictionError, "20 of 20 rows are NaN, infinite or below 0"),
        ({"probs": PROBS | {"root": PROBS["vowel"]}}, PredictionError, r"have shape \(20, 2\); expected \(20, 3\)"),
        (
            {"truth": TRUTH | {"vowel": TRUTH["root"] + 1}},
            DataError,
            "head 'vowel': truth .* class indices from 0 to 1",
        ),
        ({"truth": TRUTH | {"vowel": TRUTH["vowel"][:5]}}, DataError, r"truth has shape \(5,\).*expected \(20,\)"),
        ({"counts": {"root": np.zeros(3), "vowel": np.ones(2)}}, DataError, "head 'root': counts have .* sum 0"),
        ({"counts": {"root": np.ones(2), "vowel": np.ones(2)}}, DataError, r"shape \(2,\) .* expected \(3,\)"),
        ({"groups": np.arange(5)}, DataError, r"groups have shape \(5,\) and 5 different .*; expected \(20,\)"),
        ({"groups": np.ones(20)}, DataError, r"and 1 different number\(s\); expected .* leave `groups` out"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    given = {"truth": TRUTH, "probs": PROBS, "folds": np.arange(20) % 2, "counts": counts_of(TRUTH)} | changes
    with pytest.raises(error, match=message):
        fit_decision(task_of(), **given)


def test_no_rows_are_refused() -> None:
    nothing = {head: values[:0] for head, values in TRUTH.items()}
    with pytest.raises(DataError, match=r"head 'root': truth has shape \(0,\)"):
        fit_decision(
            task_of(),
            nothing,
            {head: values[:0] for head, values in PROBS.items()},
            np.arange(0),
            counts=counts_of(TRUTH),
        )
