"""Runs whose labels were edited, on their way into a blend, a bundle and a shake-up."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from conftest import Toy, make_wide

from kaggle_kit.blending import fit_blend
from kaggle_kit.edits import append_edit, make_edit, read_edited_labels
from kaggle_kit.ensemble import equal_blend
from kaggle_kit.errors import DataError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import make_folds
from kaggle_kit.runs import Run
from kaggle_kit.runtime.verify import verify_bundle
from kaggle_kit.scores import score_answers
from kaggle_kit.shakeup import Part
from kaggle_kit.shakeup.of_runs import shakeup_of_runs
from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
from kaggle_kit.train.crossval import train_run


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, list[Run], Run]:
    """A toy, two runs with edits, and one without; read-only."""
    folder = tmp_path_factory.mktemp("edited")
    toy, edits = make_wide(folder), folder / "edits.jsonl"
    for number in range(10, 16):
        append_edit(edits, make_edit("relabel", id=f"Train_{number}", head="vowel", value=str(number % 2)))
    append_edit(edits, make_edit("drop", id="Train_9"))
    runs = []
    for name, path in (("a", edits), ("b", edits), ("plain", None)):
        folds = make_folds(read_edited_labels(toy.task, toy.data, path), num_folds=2)
        config = TrainConfig(
            model=ModelConfig(name="test_resnet", input_size=(32, 48)),
            loader=LoaderConfig(batch_size=8),
            epochs=1,
            seed=len(runs),
            edits=path and str(path),
        )
        runs.append(train_run(toy.task, config, data=toy.data, folds=folds, out=folder / "runs" / name))
    edits.unlink()
    return toy, runs[:2], runs[2]


def test_a_run_is_scored_against_edited_labels(edited: tuple[Toy, list[Run], Run]) -> None:
    toy, (run, _), plain = edited
    oof, labels = run.oof(), run.labels()
    assert len(labels) == 47 and len(plain.labels()) == 48 and "Train_9" not in labels.ids
    assert score_answers(toy.task, labels.align(oof.ids).classes, oof.probs).total == run.score.total
    changed = labels.classes["vowel"] != plain.labels().align(labels.ids).classes["vowel"]
    assert changed.any() and {int(name[6:]) for name in labels.ids[changed]} <= set(range(10, 16))
    assert "edits.jsonl" in run.report.read_text(encoding="utf-8")


def test_edited_runs_are_blended_and_bundled(edited: tuple[Toy, list[Run], Run], tmp_path: Path) -> None:
    _, runs, plain = edited
    assert fit_blend(runs).blend.num_images == 47
    write_bundle(runs, equal_blend([run.name for run in runs]), tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle", say=lambda _: None).images > 0
    with pytest.raises(DataError, match="'a' and 'plain' were trained on .* edits .* and 'plain' has no edits: make"):
        fit_blend([runs[0], plain])


def test_edited_runs_are_shaken_up(edited: tuple[Toy, list[Run], Run]) -> None:
    _, runs, _ = edited
    part = Part(num_images=200, unseen_share=0)
    assert set(shakeup_of_runs(runs, public=part, private=part, draws=20).names) == {"a", "b"}


def test_labels_that_changed_since_are_still_found_out(edited: tuple[Toy, list[Run], Run], tmp_path: Path) -> None:
    toy, (run, other), _ = edited
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("Train_20,0", "Train_20,1").replace("Train_20,2", "Train_20,0"))
    with pytest.raises(DataError, match="have changed since run 'a' was trained"):
        fit_blend([dataclasses.replace(run, data=data), other])
