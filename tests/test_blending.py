from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit.blending import fit_blend, foresee_prior_shift
from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Blend, blend_predictions, equal_blend, load_blend, save_blend
from kaggle_kit.errors import BundleError, SettingError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.predictions import Predictions
from kaggle_kit.prior_shift import shift_predictions
from kaggle_kit.runs import Run
from kaggle_kit.runtime.answers import Predicted
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.scores import score_answers
from kaggle_kit.submission import read_submission

RULES = Decision(
    heads={"root": HeadRule(rule="class_bias", log_bias=(-2.0, 0.5, 1.5)), "vowel": HeadRule(rule="argmax")}
)


def quiet(_line: str) -> None:
    pass


def with_rules(blend: Blend) -> Blend:
    """Return a blend whose every cut decides by the rules."""
    return dataclasses.replace(
        blend, prefixes=tuple(dataclasses.replace(prefix, decision=RULES) for prefix in blend.prefixes)
    )


def mean_oof(runs: list[Run]) -> Predictions:
    """Return the out-of-fold predictions of the runs' equal mean."""
    return blend_predictions(equal_blend([run.name for run in runs]), {run.name: run.oof() for run in runs})


@pytest.fixture(scope="session")
def ruled_bundle(trained: tuple[Toy, list[Run]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that decides by rules and corrects for class shares."""
    runs = trained[1]
    blend = dataclasses.replace(with_rules(equal_blend([run.name for run in runs])), prior_shift=True)
    folder = tmp_path_factory.mktemp("ruled") / "bundle"
    write_bundle(runs, blend, folder)
    return folder


def test_a_blend_is_scored_out_of_fold_and_says_what_it_tried(trained: tuple[Toy, list[Run]]) -> None:
    toy, runs = trained
    found = fit_blend(runs)
    assert len(found.oof) == 48 and found.fitted is not None
    assert found.blend.score == found.fitted.nested
    assert found.scores.all.total == pytest.approx(score_answers(toy.task, found.truth, found.oof.probs).total)
    assert all(shares.sum() == pytest.approx(1) for shares in found.priors.values())
    plain = fit_blend(runs, fit_rules=False)
    assert plain.blend.decision.is_plain and plain.blend.score == plain.scores.all


def test_a_blend_of_nothing_or_of_two_tasks_is_refused(trained: tuple[Toy, list[Run]]) -> None:
    runs = trained[1]
    with pytest.raises(SettingError, match="no runs were given"):
        fit_blend([])
    other = dataclasses.replace(runs[1], task=dataclasses.replace(runs[1].task, metric="accuracy"))
    with pytest.raises(SettingError, match="different heads or metrics"):
        fit_blend([runs[0], other])


def test_rules_travel_with_the_blend(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    blend = with_rules(fit_blend(trained[1], prior_shift=True).blend)
    assert blend.prior_shift and all(prefix.decision == RULES for prefix in blend.prefixes)
    save_blend(blend, tmp_path / "blend.json")
    assert load_blend(tmp_path / "blend.json") == blend


def test_the_kernel_decides_by_the_bundle_s_rules(
    trained: tuple[Toy, list[Run]], ruled_bundle: Path, tmp_path: Path
) -> None:
    toy, runs = trained
    assert open_bundle(ruled_bundle).decision == RULES
    lines: list[str] = []
    predicted = predict_submission(ruled_bundle, toy.hidden, tmp_path / "s.csv", say=lines.append)
    ids, decided = read_submission(toy.task, tmp_path / "s.csv")
    expected = RULES.decide(predicted.predictions.align(ids).probs)
    assert all((decided[head] == expected[head]).all() for head in expected)
    assert any("root: the highest log(probability) + bias decides" in line for line in lines)
    assert any("head 'root'" in line and "9" in line for line in lines), "too few images for class shares must be said"
    oof = mean_oof(runs)
    truth = runs[0].labels().align(oof.ids).classes
    score = score_answers(toy.task, truth, RULES.decide(oof.probs))
    assert open_bundle(ruled_bundle).oof_score == pytest.approx(score.total)


def test_class_shares_are_estimated_from_all_images_but_broken_ones(
    trained: tuple[Toy, list[Run]], ruled_bundle: Path
) -> None:
    oof = mean_oof(trained[1])
    broken = {str(oof.ids[0]): "cut short"}
    predictor = Predictor(ruled_bundle, say=quiet)
    skip = np.isin(oof.ids, list(broken))
    priors = {head: np.array(shares) for head, shares in predictor.bundle.priors.items()}
    expected = RULES.decide(shift_predictions(oof.probs, priors, skip=skip)[0])
    found = predictor.decide(Predicted(predictions=oof, broken=broken))
    assert all((found[head] == expected[head]).all() for head in expected)
    plain = Predictor(ruled_bundle, prior_shift=False, say=quiet).decide(Predicted(predictions=oof))
    assert all((plain[head] == RULES.decide(oof.probs)[head]).all() for head in expected)


def test_a_blend_of_runs_that_were_trained_again_is_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    runs = trained[1]
    blend = fit_blend(runs).blend
    last = blend.runs[-1]
    stale = dataclasses.replace(blend, oof_hashes={**blend.oof_hashes, last: "0" * 64})
    with pytest.raises(BundleError, match=f"other out-of-fold predictions of run '{last}'"):
        write_bundle(runs, stale, tmp_path / "bundle")


def test_the_manifest_shows_the_rules(ruled_bundle: Path) -> None:
    text = (ruled_bundle / "manifest.json").read_text()
    for prefix in json.loads(text)["blend"]["prefixes"]:
        assert prefix["decision"]["heads"]["root"]["log_bias"] == [-2.0, 0.5, 1.5]


def test_the_effect_of_correcting_class_shares_is_shown(trained: tuple[Toy, list[Run]]) -> None:
    effects = foresee_prior_shift(fit_blend(trained[1], fit_rules=False))
    assert [effect.head for effect in effects] == ["root", "vowel", "total"]
    for effect in effects:
        assert [change.shares for change in effect.changes] == ["as in train", "balanced", "random"]
