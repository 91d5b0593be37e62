from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from kaggle_kit.blending import stacking
from kaggle_kit.blending.calibration import loss_and_error
from kaggle_kit.blending.stacking import StackModel, can_stack, fit_logistic, fit_ridge, fit_stack
from kaggle_kit.errors import DataError, KitError, PredictionError, SettingError
from kaggle_kit.heads import Head
from kaggle_kit.metrics import log_loss
from kaggle_kit.mixes import Mix, mix_head, softmax

MODELS: tuple[StackModel, ...] = ("logistic", "ridge")
Runs = list[dict[str, np.ndarray]]


def head_of(classes: int, *, many: bool = False, name: str = "a") -> Head:
    return Head(name=name, classes=classes, kind="multilabel" if many else "multiclass")


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores))


def seen(truth: np.ndarray, classes: int, rng: np.random.Generator, *, strength: float = 3.0) -> np.ndarray:
    """Probabilities that tell the truth up to noise; multi-label where the truth is."""
    scores = rng.normal(0, 1, (len(truth), classes))
    if truth.ndim == 2:
        return sigmoid(scores + strength * (truth - 0.5)).astype(np.float32)
    return softmax(scores + strength * np.eye(classes)[truth]).astype(np.float32)


def world(
    rows: int = 600,
    classes: int = 4,
    *,
    many: bool = False,
    strengths: Sequence[float] = (2.5, 2.0, 1.5),
    seed: int = 0,
) -> tuple[np.ndarray, Runs]:
    """Truth, and runs that see it, each by itself."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (rows, classes)) if many else rng.integers(0, classes, rows)
    return truth, [{"a": seen(truth, classes, rng, strength=strength)} for strength in strengths]


def take(runs: Runs, rows: np.ndarray | slice) -> Runs:
    return [{head: run[head][rows] for head in run} for run in runs]


def nested(head: Head, truth: np.ndarray, runs: Runs, model: StackModel, sources: tuple[str, ...] = ()) -> np.ndarray:
    """Probabilities of each fifth by a stack fitted to the others."""
    many = (head.name,) if head.kind == "multilabel" else ()
    parts = np.arange(len(truth)) % 5
    result = np.empty(runs[0][head.name].shape, np.float32)
    for part in range(5):
        others, held = parts != part, parts == part
        mix = fit_stack(
            head,
            truth[others],
            take(runs, others),
            sources=sources,
            multilabel=many,
            model=model,
            parts=parts[others],
        )
        result[held] = mix_head(mix, head.name, take(runs, held), multilabel=many)
    return result


def mean_of(runs: Runs, *, many: bool = False) -> np.ndarray:
    return mix_head(Mix.equal(len(runs)), "a", runs, multilabel=("a",) * many)


def right(truth: np.ndarray, probs: np.ndarray) -> float:
    said = probs >= 0.5 if truth.ndim == 2 else probs.argmax(axis=1)
    return float((said == truth).mean())


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_stack_beats_the_mean_where_one_run_has_permuted_classes(model: StackModel, many: bool) -> None:
    truth, runs = world(many=many)
    runs[0]["a"] = runs[0]["a"][:, [2, 3, 0, 1]]  # the best of them
    probs = nested(head_of(4, many=many), truth, runs, model)
    mean = mean_of(runs, many=many)
    assert right(truth, probs) > right(truth, mean) + 0.05
    assert log_loss(truth, probs) < 0.8 * log_loss(truth, mean)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_stack_of_random_probabilities_scores_at_chance_where_it_is_fitted_without_the_rows(
    model: StackModel, many: bool
) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (1500, 4)) if many else rng.integers(0, 4, 1500)
    noise = [seen(np.zeros_like(truth), 4, rng, strength=0) for _ in range(4)]
    probs = nested(head_of(4, many=many), truth, [{"a": one} for one in noise], model)
    # three standard errors; and probabilities say that nothing is known
    assert right(truth, probs) == pytest.approx(0.5 if many else 0.25, abs=3 * 0.011)
    assert log_loss(truth, probs) == pytest.approx(np.log(2) if many else np.log(4), abs=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_another_head_helps_where_its_truth_determines_this_one(model: StackModel) -> None:
    rng = np.random.default_rng(0)
    other = rng.integers(0, 6, 800)
    truth = np.array([0, 0, 1, 1, 2, 2])[other]
    runs = [{"a": seen(truth, 3, rng, strength=1.0), "b": seen(other, 6, rng, strength=5.0)} for _ in range(2)]
    alone = nested(head_of(3), truth, runs, model)
    both = nested(head_of(3), truth, runs, model, ("a", "b"))
    assert right(truth, both) > right(truth, alone) + 0.2
    assert log_loss(truth, both) < 0.4 * log_loss(truth, alone)


def test_a_multi_label_head_can_be_read_beside_a_multiclass_one() -> None:
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 2, (800, 2))
    truth = tags[:, 0] * 2 + tags[:, 1]
    runs = [{"a": seen(truth, 4, rng, strength=1.0), "tags": seen(tags, 2, rng, strength=8.0)} for _ in range(2)]
    rows, held = slice(0, 600), slice(600, 800)
    mix = fit_stack(head_of(4), truth[rows], take(runs, rows), sources=("tags", "a"), multilabel=("tags",))
    assert right(truth[held], mix_head(mix, "a", take(runs, held), multilabel=("tags",))) > 0.95
    assert right(truth[held], mean_of(take(runs, held))) < 0.7


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_class_that_is_never_true_is_never_said(model: StackModel, seed: int) -> None:
    truth, runs = world(300, 6, seed=seed)
    kept = ~np.isin(truth, [0, 3])
    mix = fit_stack(head_of(6), truth[kept], take(runs, kept), model=model)
    rng = np.random.default_rng(seed)
    wild = [{"a": rng.dirichlet(np.full(6, 0.05), 2000).astype(np.float32)} for _ in runs]
    for one in (wild, take(runs, ~kept)):
        probs = mix_head(mix, "a", one)
        assert probs[:, [0, 3]].max() < 1e-9
        assert not np.isin(probs.argmax(axis=1), [0, 3]).any()
    assert right(truth[kept], mix_head(mix, "a", take(runs, kept))) > 0.95  # no index shift


@pytest.mark.parametrize("model", MODELS)
def test_classes_of_a_multi_label_head_that_are_never_or_always_true(model: StackModel) -> None:
    truth, runs = world(300, 4, many=True)
    truth[:, 1], truth[:, 2] = 0, 1
    mix = fit_stack(head_of(4, many=True), truth, runs, multilabel=("a",), model=model)
    probs = mix_head(mix, "a", runs, multilabel=("a",))
    assert probs[:, 1].max() < 1e-9 and probs[:, 2].min() > 0.5 and probs[:, 2].mean() > 0.98
    assert right(truth[:, [0, 3]], probs[:, [0, 3]]) > 0.85


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_few_rows_give_probabilities_all_the_same(model: StackModel, many: bool, rows: int) -> None:
    truth, runs = world(rows, many=many)
    mix = fit_stack(head_of(4, many=many), truth, runs, multilabel=("a",) * many, model=model)
    probs = mix_head(mix, "a", runs, multilabel=("a",) * many)
    assert np.isfinite(probs).all()
    if not many:
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
        assert np.isin(probs.argmax(axis=1), truth).all()


@pytest.mark.parametrize("model", MODELS)
def test_one_class_alone_is_always_said(model: StackModel) -> None:
    _, runs = world(50)
    mix = fit_stack(head_of(4), np.full(50, 2), runs, model=model)
    assert mix_head(mix, "a", runs)[:, 2].min() > 0.999


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_runs", [1, 20])
def test_one_run_and_twenty_equal_ones_give_the_same(model: StackModel, num_runs: int) -> None:
    truth, runs = world(300, strengths=(2.5,))
    probs = mix_head(fit_stack(head_of(4), truth, runs * num_runs, model=model), "a", runs * num_runs)
    assert log_loss(truth, probs) <= log_loss(truth, runs[0]["a"]) + 0.01
    assert right(truth, probs) == pytest.approx(right(truth, runs[0]["a"]), abs=0.03)


def test_hard_probabilities_and_constant_columns_do_no_harm() -> None:
    truth, runs = world(400)
    runs[1]["a"] = np.eye(4, dtype=np.float32)[runs[1]["a"].argmax(axis=1)]
    runs.append({"a": np.full((400, 4), 0.25, np.float32)})
    for model in MODELS:
        probs = nested(head_of(4), truth, runs, model)
        assert right(truth, probs) > right(truth, runs[0]["a"])
        assert log_loss(truth, probs) < log_loss(truth, runs[0]["a"])


@pytest.mark.parametrize("model", MODELS)
def test_a_stack_is_calibrated_where_the_runs_are_not(model: StackModel) -> None:
    truth, runs = world(1000)
    sure = [{"a": softmax(5 * np.log(run["a"].astype(np.float64))).astype(np.float32)} for run in runs]
    probs = nested(head_of(4), truth, sure, model)
    assert probs.max(axis=1).mean() == pytest.approx(right(truth, probs), abs=0.03)
    assert sure[2]["a"].max(axis=1).mean() > right(truth, sure[2]["a"]) + 0.1


@pytest.mark.parametrize("model", MODELS)
def test_the_same_rows_and_seed_give_the_same_stack(model: StackModel) -> None:
    truth, runs = world(200)
    again = [fit_stack(head_of(4), truth, runs, model=model, seed=7) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("model", MODELS)
def test_many_values_are_fitted_to_drawn_rows(model: StackModel, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, runs = world(600)
    truth[0], truth[1:] = 3, truth[1:] % 3
    monkeypatch.setattr(stacking, "_MOST_VALUES", 12 * 200)
    mix = fit_stack(head_of(4), truth, runs, model=model, parts=np.arange(600) % 3, groups=np.arange(600) // 2)
    probs = mix_head(mix, "a", runs)
    assert right(truth, probs) > 0.85
    assert probs[:, 3].max() > 1e-9  # its one row may not be drawn


def test_parts_and_groups_are_kept_together() -> None:
    # each row stands twice, with a run that knows it by heart: only whole groups held out show that it knows nothing
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, 60), 2)
    codes = np.repeat(rng.dirichlet(np.ones(40), 60), 2, axis=0).astype(np.float32)
    run = {"a": np.full((120, 2), 0.5, np.float32), "b": codes}
    kept = fit_stack(head_of(2), truth, [run], sources=("a", "b"), groups=np.repeat(np.arange(60), 2))
    loose = fit_stack(head_of(2), truth, [run], sources=("a", "b"))
    sizes = [np.abs(mix.stack.coefficients.values[2:]).max() for mix in (kept, loose)]
    assert sizes[0] < 0.3 * sizes[1]


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("many", [False, True])
def test_the_logistic_regression_is_scikit_learn_s(strength: float, many: bool) -> None:
    truth, runs = world(300, many=many)
    features = np.concatenate([np.log(run["a"].astype(np.float64)) for run in runs], axis=1)
    found = fit_logistic(features, truth, 4, strength=strength, max_steps=5000, tolerance=1e-12)
    columns = truth.T if many else [truth]
    theirs = [
        LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-8, max_iter=5000).fit(features, column)
        for column in columns
    ]
    expected = np.concatenate([one.coef_ for one in theirs]).T
    np.testing.assert_allclose(found, expected, atol=2e-3)
    quick = fit_logistic(features.astype(np.float32), truth, 4, strength=strength)
    decide = sigmoid if many else softmax
    np.testing.assert_allclose(decide(features @ quick), decide(features @ expected), atol=0.05)


def test_a_fit_goes_on_from_where_another_ended_and_beside_an_offset() -> None:
    truth, runs = world(300)
    features, offset = np.log(runs[0]["a"].astype(np.float64)), np.log(runs[1]["a"].astype(np.float64))
    cold = fit_logistic(features, truth, 4, strength=1.0, offset=offset, max_steps=5000, tolerance=1e-12)
    warm = fit_logistic(features, truth, 4, strength=1.0, offset=offset, start=cold, max_steps=1)
    np.testing.assert_allclose(warm, cold, atol=1e-4)
    _, error = loss_and_error(offset + features @ cold, truth)
    np.testing.assert_allclose(features.T @ error + cold, 0, atol=1e-3)  # where the penalised loss is flat


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_the_ridge_regression_is_scikit_learn_s(strength: float) -> None:
    truth, runs = world(300)
    features = np.concatenate([np.log(run["a"].astype(np.float64)) for run in runs], axis=1)
    targets = np.eye(4)[truth]
    theirs = Ridge(alpha=strength, fit_intercept=False).fit(features, targets)
    np.testing.assert_allclose(fit_ridge(features, targets, strength=strength), theirs.coef_.T, atol=1e-8)


def test_a_logistic_regression_is_for_what_it_can_afford() -> None:
    assert can_stack(8_000, 5 * 168, 168)
    assert can_stack(160_000, 5 * 7, 7)
    assert not can_stack(160_000, 5 * 168, 168)


GOOD = np.full((3, 2), 0.5, np.float32)
NAN = np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("runs", "truth", "sources", "many", "error", "message"),
    [
        ([], [0, 1, 0], (), (), SettingError, "head 'a': there are no runs to stack"),
        ([{"a": GOOD}], [0, 1, 0], ("b",), (), SettingError, "`sources` are 'b'; expected the head itself"),
        ([{"a": GOOD}], [0, 1, 0], ("a", "a"), (), SettingError, "expected the head itself, each once"),
        ([{"a": GOOD}], [0, 1, 0], (), ("a",), SettingError, "head 'a' is multiclass; `multilabel` says 'a'"),
        ([{"a": GOOD}], [0, 1, 0], ("a", "b"), (), PredictionError, "run 1 has no probs of head 'b', only 'a'"),
        (
            [{"a": GOOD}, {"a": GOOD[:2]}],
            [0, 1, 0],
            (),
            (),
            PredictionError,
            r"run 2, head 'a': .*\(2, 2\); expected \(3, 2\)",
        ),
        ([{"a": GOOD}, {"a": NAN}], [0, 1, 0], (), (), PredictionError, "run 2, head 'a': .*NaN.*row 1"),
        ([{"a": GOOD, "b": NAN}], [0, 1, 0], ("a", "b"), (), PredictionError, "run 1, head 'b': .*NaN"),
        ([{"a": GOOD}], [0, 2, 0], (), (), DataError, "truth is 0 to 2; expected class indices 0 to 1"),
        ([{"a": GOOD}], [0, 1], (), (), PredictionError, r"expected \(2, 2\)"),
        ([{"a": GOOD[:0]}], [], (), (), PredictionError, "at least one row"),
    ],
)
def test_what_cannot_be_stacked_is_refused(
    runs: Runs, truth: list[int], sources: tuple[str, ...], many: tuple[str, ...], error: type[KitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_stack(head_of(2), np.array(truth, np.int64), runs, sources=sources, multilabel=many)
