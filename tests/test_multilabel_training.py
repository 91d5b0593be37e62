"""Heads that are not one class of many go the whole way: trained, blended, bundled and submitted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import Toy
from test_multilabel import NAMES, many

from kaggle_kit.blending import fit_blend
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels, resolve_classes
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.scores import score_answers
from kaggle_kit.sources import PackedSource
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import read_columns, rows_of, write_rows
from kaggle_kit.task import task_from_plain, task_to_plain
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import LoaderConfig, LossConfig, MixConfig, ModelConfig, OptimConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.everything import train_everything
from kaggle_kit.train.predict import predict_rows

SMALL = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(24, 32)),
    optim=OptimConfig(lr=5e-3),
    loader=LoaderConfig(batch_size=8),
    epochs=2,
)
ROOT = {"classes": 3, "kind": "ordinal", "weight": 2}


def train(toy: Toy, out: Path, config: TrainConfig = SMALL, **options) -> Run:
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    return train_run(toy.task, config, data=toy.data, folds=folds, out=out, beside=out.parent.parent, **options)


def ordered(toy: Toy, *, metric: str = "quadratic_kappa") -> Toy:
    """Make the toy's root an ordinal head, and the pair of both classes an auxiliary one, sometimes unknown."""
    table = read_columns(toy.data / "train.csv")
    pair = np.char.add(table["root"], table["vowel"])
    pair[7::9] = ""
    rows = zip(*[column.tolist() for column in [*table.values(), pair]], strict=True)
    write_rows(toy.data / "train.csv", [*table, "pair"], rows)
    for folder, number in ((toy.data, 2), (toy.hidden, 9)):
        write_rows(folder / "sample_submission.csv", ["image_id", "root"], [[f"Test_{i}", 0] for i in range(number)])
    values = task_to_plain(toy.task) | {
        "heads": {"root": ROOT},
        "auxiliary": {"pair": {"classes": "from_labels", "weight": 0.5}},
        "metric": metric,
        "submission": {"form": "row_per_image"},
    }
    return dataclasses.replace(toy, task=task_from_plain(values))


def check_oof(run: Run) -> None:
    """Compare the stored predictions and score with those of the stored checkpoints."""
    store, folds, oof = PackedSource(run.packed), run.fold_table(), run.oof()
    assert sorted(oof.ids) == sorted(folds.ids)
    for fold in run.folds:
        ids = folds.ids[folds.fold == fold]
        network, info = load_checkpoint(run.checkpoint(fold))
        probs = predict_rows(network, store, rows_of(ids, store.ids))
        assert set(probs) == set(run.task.heads) and info.score == run.folds[fold].score
        for head, values in probs.items():
            assert np.abs(values - oof.align(ids).probs[head]).max() < 1e-5
    truth = run.labels().align(oof.ids).classes
    assert score_answers(run.task, truth, oof.probs).total == pytest.approx(run.score.total)


@pytest.mark.parametrize("spread", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_multilabel_head_goes_from_images_to_a_submission(wide: Toy, tmp_path: Path, spread: bool) -> None:
    toy = many(wide, spread=spread)
    run = train(toy, tmp_path / "runs" / "a")
    assert run.oof().multilabel == ("tags",) and len(run.oof()) == 48
    assert not np.allclose(run.oof().probs["tags"].sum(axis=1), 1, atol=0.05)
    check_oof(run)
    fitted = fit_blend([run])
    bundle = write_bundle([run], fitted.blend, tmp_path / "bundle")
    assert [(one.fold, one.parity.decisions_changed) for one in bundle.members] == [(0, 0), (1, 0)]
    out = tmp_path / "s.csv"
    predicted = predict_submission(tmp_path / "bundle", toy.hidden, out, say=lambda _: None)
    ids, decided = read_submission(toy.task, out)
    assert ids.tolist() == [f"Test_{i}" for i in range(9)]
    expected = bundle.decision.decide(predicted.predictions.align(ids).probs, multilabel=("tags",))
    assert (decided["tags"] == expected["tags"]).all()
    cells = read_columns(out)["target"].tolist()
    assert all(set(cell.split()) <= set(NAMES) for cell in cells)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "bce"])
def test_every_loss_and_mixing_train_a_multilabel_head(wide: Toy, tmp_path: Path, loss: str) -> None:
    config = dataclasses.replace(
        SMALL,
        epochs=1,
        loss=LossConfig(name=loss, class_weights="sqrt"),  # type: ignore[arg-type]
        mix=MixConfig(mixup=0.4, cutmix=1.0, fmix=1.0),
    )
    run = train(many(wide), tmp_path / "runs" / "a", config, only=0)
    probs = run.oof().probs["tags"]
    assert len(probs) == 24 and ((probs > 0) & (probs < 1)).all()


@pytest.mark.slow
def test_training_learns_which_classes_an_image_shows(wide: Toy, tmp_path: Path) -> None:
    toy = many(wide)
    run = train(toy, tmp_path / "runs" / "a", dataclasses.replace(SMALL, epochs=12, augment="none"), only=0)
    assert run.score.total > 0.8
    truth = read_labels(toy.task, toy.data).align(run.oof().ids).classes["tags"]
    assert ((run.oof().probs["tags"] >= 0.5) == truth).mean() > 0.9


@pytest.mark.slow
def test_probabilities_of_every_class_are_submitted_where_the_metric_wants_them(wide: Toy, tmp_path: Path) -> None:
    toy = many(wide, metric="average_precision", form="column_per_class")
    run = train(toy, tmp_path / "runs" / "a", dataclasses.replace(SMALL, epochs=1), only=0)
    write_bundle([run], fit_blend([run]).blend, tmp_path / "bundle")
    out = tmp_path / "s.csv"
    predicted = predict_submission(tmp_path / "bundle", toy.hidden, out, say=lambda _: None)
    table = read_columns(out)
    found = np.stack([table[name] for name in NAMES], axis=1).astype(np.float32)
    assert (found == predicted.predictions.align(table["image_id"]).probs["tags"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("derive_from", ["", "pair"])
def test_an_ordinal_head_is_learned_beside_an_auxiliary_one_that_nothing_else_holds(
    wide: Toy, tmp_path: Path, derive_from: str
) -> None:
    toy = ordered(wide)
    config = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, derive_from=derive_from))
    run = train(toy, tmp_path / "runs" / "a", config)
    resolved = resolve_classes(toy.task, toy.data)
    assert run.task == resolved and resolved.auxiliary["pair"].num_classes == 6
    assert read_run(run.folder).task == resolved
    assert load_checkpoint(run.checkpoint(0))[1].task.auxiliary == resolved.auxiliary
    with np.load(run.oof_file) as stored:
        assert set(stored.files) == {"ids", "probs/root"}
    assert set(run.score.heads) == {"root"}
    check_oof(run)
    bundle = write_bundle([run], fit_blend([run]).blend, tmp_path / "bundle")
    assert bundle.task == resolved.without_auxiliary()
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert "pair" not in str({key: value for key, value in manifest.items() if key != "members"})
    for member in bundle.members:
        assert member.derived_from == derive_from
        outputs = onnx.load(tmp_path / "bundle" / member.file).graph.output
        assert [value.name for value in outputs] == ["root"] and member.parity.decisions_changed == 0
    out = tmp_path / "s.csv"
    predicted = predict_submission(tmp_path / "bundle", toy.hidden, out, say=lambda _: None)
    assert set(predicted.predictions.probs) == {"root"}
    ids, decided = read_submission(toy.task, out)
    expected = bundle.decision.decide(predicted.predictions.align(ids).probs)
    assert len(ids) == 9 and (decided["root"] == expected["root"]).all()


def test_derived_probabilities_are_sums_of_the_auxiliary_classes(wide: Toy, tmp_path: Path) -> None:
    toy = ordered(wide)
    config = dataclasses.replace(SMALL, epochs=1, model=dataclasses.replace(SMALL.model, derive_from="pair"))
    run = train(toy, tmp_path / "runs" / "a", config, only=0)
    network, _ = load_checkpoint(run.checkpoint(0))
    images = torch.from_numpy(PackedSource(run.packed).take(np.arange(4)))
    with torch.inference_mode():
        logits = network.eval()(images, auxiliary=True)
    pairs = logits["pair"].softmax(1)  # 00 01 10 11 20 21
    assert torch.allclose(logits["root"].exp(), pairs.reshape(4, 3, 2).sum(2), atol=1e-5)


def test_a_training_on_everything_keeps_derived_heads(wide: Toy, tmp_path: Path) -> None:
    toy = ordered(wide)
    config = dataclasses.replace(SMALL, epochs=1, model=dataclasses.replace(SMALL.model, derive_from="pair"))
    like = train(toy, tmp_path / "runs" / "a", config, only=0)
    run = train_everything(like, out=tmp_path / "runs" / "all")
    bundle = write_bundle([run], fit_blend([run]).blend, tmp_path / "bundle")
    assert [member.fold for member in bundle.members] == [-1] and not bundle.task.auxiliary


def test_auxiliary_classes_of_which_one_belongs_to_two_are_refused(wide: Toy, tmp_path: Path) -> None:
    toy = ordered(wide)
    labels = toy.data / "train.csv"
    labels.write_text(labels.read_text().replace("Train_0,0,0,w0,00", "Train_0,2,0,w0,00"))
    config = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, derive_from="pair"))
    with pytest.raises(DataError, match=r"auxiliary head 'pair': class '00' belongs to classes '0' and '2' of head 'r"):
        train(toy, tmp_path / "runs" / "a", config)


def test_sets_of_classes_are_not_derived(wide: Toy, tmp_path: Path) -> None:
    toy = many(wide)
    values = task_to_plain(toy.task) | {"auxiliary": {"writer": {"classes": "from_labels"}}, "groups": None}
    both = dataclasses.replace(toy, task=task_from_plain(values))
    config = dataclasses.replace(SMALL, epochs=1)
    derived = dataclasses.replace(config, model=dataclasses.replace(config.model, derive_from="writer"))
    with pytest.raises(SettingError, match=r"classes of head 'tags' do not exclude each other \(multilabel\)"):
        train(both, tmp_path / "runs" / "a", derived)
    run = train(both, tmp_path / "runs" / "b", config, only=0)
    assert set(Predictions.load(run.oof_file).probs) == {"tags"} and run.task.auxiliary["writer"].num_classes == 4
