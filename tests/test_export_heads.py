from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import Toy, random_blend, random_run
from test_multilabel import NAMES, TAGS, sets_of

from kaggle_kit.blending import fit_blend
from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Blend, Prefix, blend_predictions, equal_blend
from kaggle_kit.errors import BundleError, ExportError, PredictionError, SettingError
from kaggle_kit.export.blended import shared_oofs as shared_oofs_of
from kaggle_kit.export.bundle import _check_reproduced, write_bundle
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.members import Exported
from kaggle_kit.export.onnx import export_onnx, measure_parity
from kaggle_kit.export.sampling import sampled_ids
from kaggle_kit.export.variant import Variant
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import class_shares, read_labels, resolve_classes
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import EVERYTHING, FoldSummary, Run, read_run, write_run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import Member, Parity, file_sha256, open_bundle
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.scores import score_answers
from kaggle_kit.sources import PackedSource, open_source
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import read_columns, rows_of, write_rows
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train.checkpoint import load_checkpoint, save_checkpoint
from kaggle_kit.train.config import ModelConfig, TrainConfig

CONFIG = TrainConfig(model=ModelConfig(name="test_resnet", input_size=(32, 48)))
ROOT = {"classes": 3, "kind": "ordinal"}


def relabel(toy: Toy, **changes: object) -> Toy:
    """Give the toy a multi-label and an ordinal head, or others with their labels, and an auxiliary one."""
    heads = {"heads": {"tags": TAGS, "root": ROOT}, **changes}["heads"]
    for folder in (toy.data, toy.hidden):
        rows = [
            [f"Test_{i}", *(["" if head == "tags" else 0 for head in heads])]
            for i in range(2 if folder == toy.data else 9)
        ]
        write_rows(folder / "sample_submission.csv", ["image_id", *heads], rows)
    table = read_columns(toy.data / "train.csv")
    sets = sets_of(table["root"].astype(int), table["vowel"].astype(int))
    columns = {
        "image_id": table["image_id"],
        "tags": np.array([" ".join(np.array(NAMES)[row > 0].tolist()) for row in sets]),
        "root": table["root"],
        "vowel": table["vowel"],
        "whole": np.char.add(table["root"], table["vowel"]),
    }
    write_rows(toy.data / "train.csv", list(columns), zip(*[c.tolist() for c in columns.values()], strict=True))
    values = task_to_plain(toy.task) | {
        "heads": heads,
        "auxiliary": {"whole": {"classes": "from_labels", "weight": 0.5}},
        "metric": "macro_f1",
        "groups": None,
        "submission": {"form": "row_per_image"},
    }
    return dataclasses.replace(toy, task=resolve_classes(task_from_plain(values | changes), toy.data))


def made_run(toy: Toy, folder: Path, *, seed: int = 0) -> Run:
    """Write a run of one held-out part as training would, but for the training."""
    folds = make_folds(read_labels(toy.task, toy.data), "holdout", valid_share=0.4)
    return random_run(toy, folder, folds, seed=seed)


@pytest.fixture
def toy(wide: Toy) -> Toy:
    return relabel(wide)


def test_a_bundle_answers_as_its_networks_do_without_auxiliary_heads(toy: Toy, tmp_path: Path) -> None:
    alone = dataclasses.replace(toy, task=toy.task.without_auxiliary())
    runs = [made_run(toy, tmp_path / "a"), made_run(alone, tmp_path / "b", seed=1)]
    assert runs[0].task.auxiliary and set(runs[0].oof().probs) == {"tags", "root"}
    fitted = fit_blend(runs, strategies=("mean",))
    rule = HeadRule(rule="thresholds", thresholds=(0.3, 0.45, 0.5, 1.002))
    decision = Decision(heads={**fitted.blend.decision.heads, "tags": rule})
    prefix = Prefix(decision=decision)
    blend = dataclasses.replace(fitted.blend, prefixes=(prefix,) * 2)
    bundle = write_bundle(runs, blend, tmp_path / "bundle")
    assert not bundle.task.auxiliary and bundle.task == toy.task.without_auxiliary()
    assert bundle.decision.heads["tags"] == rule
    model = onnx.load(tmp_path / "bundle" / bundle.members[0].file)
    assert [value.name for value in model.graph.output] == ["tags", "root"]
    labels = read_labels(toy.task, toy.data)
    for name, head in toy.task.heads.items():
        assert bundle.priors[name] == pytest.approx(class_shares(labels.classes[name], head))
    assert_the_submission_is_the_networks_mean(toy, runs, decision, tmp_path)


def assert_the_submission_is_the_networks_mean(toy: Toy, runs: list[Run], decision: Decision, folder: Path) -> None:
    for path in toy.data.glob("train_*.parquet"):
        shutil.copy(path, toy.hidden)
    said: list[str] = []
    predict_submission(folder / "bundle", toy.hidden, folder / "s.csv", say=said.append)
    assert any("every class is said whose probability reaches its threshold" in line for line in said)
    source = open_source(toy.task, "test", toy.hidden)
    images = np.concatenate([chunk.images for chunk in source.chunks()])
    sums = {name: np.zeros((len(images), head.num_classes)) for name, head in toy.task.heads.items()}
    for run in runs:
        for fold in run.folds:
            network, _ = load_checkpoint(run.checkpoint(fold))
            with torch.inference_mode():
                logits = network(torch.from_numpy(images))
            sums["tags"] += logits["tags"].sigmoid().numpy() / 2
            sums["root"] += logits["root"].exp().numpy() / 2  # an ordinal head gives logarithms of probabilities
    ids, decided = read_submission(toy.task, folder / "s.csv")
    rows = rows_of(ids, source.ids)
    assert ((sums["tags"] >= np.array(decision.heads["tags"].thresholds))[rows] == decided["tags"]).all()
    assert (decision.heads["root"].decide(sums["root"])[rows] == decided["root"]).all()


def test_a_broken_image_gets_the_shares_of_the_classes(toy: Toy, tmp_path: Path) -> None:
    run = made_run(toy, tmp_path / "a")
    write_bundle([run], equal_blend(["a"]), tmp_path / "bundle", parity_rows=4)
    predictor = Predictor(tmp_path / "bundle", say=lambda _: None)
    found = predictor.answers.collect(predictor.make_results(np.array(["x"]))).predictions
    assert found.multilabel == ("tags",)
    assert found.probs["tags"][0] == pytest.approx(predictor.bundle.priors["tags"])
    with pytest.raises(SettingError, match="correcting for class shares is for images of one class, and head 'tags'"):
        Predictor(tmp_path / "bundle", prior_shift=True, say=lambda _: None)
    with pytest.raises(SettingError, match="blend without --prior-shift"):
        write_bundle([run], dataclasses.replace(equal_blend(["a"]), prior_shift=True), tmp_path / "other")
    with pytest.raises(SettingError, match="leave --prior-shift out"):
        fit_blend([run], prior_shift=True)


def test_probabilities_of_classes_are_submitted_where_the_metric_wants_them(wide: Toy, tmp_path: Path) -> None:
    form = {"form": "column_per_class"}
    toy = relabel(wide, metric="log_loss", submission=form, heads={"tags": TAGS}, auxiliary={})
    write_rows(toy.data / "sample_submission.csv", ["image_id", *NAMES], [[f"Test_{i}", 0, 0, 0, 0] for i in range(2)])
    run = made_run(toy, tmp_path / "a")
    write_bundle([run], fit_blend([run]).blend, tmp_path / "bundle")
    said: list[str] = []
    predicted = predict_submission(tmp_path / "bundle", toy.data, tmp_path / "s.csv", say=said.append)
    assert not any("WARNING" in line for line in said)
    table = read_columns(tmp_path / "s.csv")
    found = np.stack([table[name] for name in NAMES], axis=1).astype(np.float32)
    assert (found == predicted.predictions.align(table["image_id"]).probs["tags"]).all()


def test_a_run_on_everything_stands_for_the_run_it_followed(toy: Toy, tmp_path: Path) -> None:
    run = made_run(toy, tmp_path / "a")
    folder = shutil.copytree(run.folder, tmp_path / "all")
    network, info = load_checkpoint(run.checkpoint(0))
    (folder / "everything").mkdir()
    unscored = dataclasses.replace(info, fold=EVERYTHING, score=None)
    save_checkpoint(folder / "everything" / "best.safetensors", network, unscored)
    summary = {EVERYTHING: FoldSummary(epoch=1, score=None, seconds=0.0)}
    write_run(dataclasses.replace(run, folder=folder, folds=summary, like="a", id=""))
    both = [run, read_run(folder)]
    write_bundle([both[1]], equal_blend(["all"]), tmp_path / "alone")
    (member,) = open_bundle(tmp_path / "alone").members
    assert (member.file, member.fold) == ("member_all_everything.onnx", -1)
    assert (member.score, member.score_of, member.stored) == (run.score.total, "cross-validation", None)
    oof = blend_predictions(equal_blend(["a"]), {"a": run.oof()})
    flipped = {name: np.ascontiguousarray(probs[:, ::-1]) for name, probs in oof.probs.items()}
    Predictions(ids=oof.ids, probs=flipped, multilabel=("tags",)).save(run.oof_file)
    with pytest.raises(ExportError, match=r"run 'a', compared with its oof.npz, is not shipped: \d+ of \d+ decisions"):
        write_bundle([read_run(run.folder), both[1]], equal_blend(["a", "all"]), tmp_path / "bundle")


def test_members_that_say_other_classes_are_refused(toy: Toy, tmp_path: Path) -> None:
    run = made_run(toy, tmp_path / "a")
    network, _ = load_checkpoint(run.checkpoint(0))
    source = PackedSource(run.packed)
    path = tmp_path / "m.onnx"
    graph = ExportGraph(network)
    export_onnx(graph, path, shape=source.shape)
    probs = OnnxSession(path).run(source.take(np.arange(8)))
    assert not np.allclose(probs["tags"].sum(axis=1), 1) and np.allclose(probs["root"].sum(axis=1), 1, atol=1e-5)
    images = torch.from_numpy(source.take(np.arange(8)))
    for found, expected in zip(probs.values(), graph(images), strict=True):
        assert np.abs(found - expected.detach().numpy()).max() < 1e-5
    parity, _ = measure_parity(graph, path, source, np.arange(48))
    assert parity.decisions_changed == 0
    with torch.no_grad():
        network.heads[0].bias += torch.tensor([0, 0, 0, 9.0])
    with pytest.raises(ExportError, match=r"decisions of head\(s\) 'tags' change; not shipped"):
        measure_parity(graph, path, source, np.arange(48))


def test_tasks_of_bundles_read_back(toy: Toy) -> None:
    task: Task = toy.task
    assert task_from_plain(task_to_plain(task)) == task
    assert task.multilabel_heads == ("tags",)


def flipped(oof: Predictions) -> Predictions:
    probs = {head: np.ascontiguousarray(values[:, ::-1]) for head, values in oof.probs.items()}
    return dataclasses.replace(oof, probs=probs)


def exported(run: Run, oof: Predictions) -> list[Exported]:
    """Return what the fold models of a run would say at export, if these were their answers."""
    folds, members = run.fold_table(), []
    for fold in run.folds:
        parity = Parity(rows=0, max_abs_diff=0.0, decisions_changed=0)
        member = Member(file="", run=run.name, fold=fold, score=0.5, config_hash="", parity=parity)
        said = oof.align(folds.ids[folds.fold == max(fold, 0)])
        members.append(Exported(member=member, said=said, plainly=said, usually=said))
    return members


def shared_oofs(runs: list[Run], blend: Blend, *, others: Sequence[Run] = ()) -> dict[str, Predictions]:
    return shared_oofs_of(runs, blend, columns={run.name: {} for run in runs}, others=others)


class TestImagesFittedOn:
    """Of a blend of the images that its run shares with one that it left out, of fewer images and another task."""

    @pytest.fixture
    def runs(self, mixed: tuple[Toy, list[Run], Path], tmp_path: Path) -> list[Run]:
        first, second = mixed[1][1:]
        fewer = read_run(shutil.copytree(second.folder, tmp_path / "second"))
        fewer.oof().align(fewer.oof().ids[5:]).save(fewer.oof_file)
        return [first, fewer]

    def blend(self, runs: list[Run], num_images: int) -> Blend:
        hashes = {runs[0].name: file_sha256(runs[0].oof_file)}
        return dataclasses.replace(equal_blend([runs[0].name]), oof_hashes=hashes, num_images=num_images)

    def test_runs_that_were_left_out_tell_which(self, runs: list[Run]) -> None:
        (shared,) = shared_oofs(runs[:1], self.blend(runs, 43), others=runs[1:]).values()
        assert (np.sort(shared.ids) == np.sort(runs[1].oof().ids)).all()
        (whole,) = shared_oofs(runs[:1], self.blend(runs, 48), others=runs[1:]).values()
        assert len(whole) == 48, "a run that the blend was not made from changes nothing"

    def test_without_them_the_repair_is_named(self, runs: list[Run], tmp_path: Path) -> None:
        message = r"fitted on 43 images, and the 1 run\(s\) given share 48; give `kaggle-kit bundle` all runs that"
        with pytest.raises(BundleError, match=message):
            write_bundle(runs[:1], self.blend(runs, 43), tmp_path / "bundle")
        with pytest.raises(BundleError, match=r"fitted on 40 images, and the 2 run\(s\) given share 43"):
            write_bundle(runs, self.blend(runs, 40), tmp_path / "bundle")

    def test_what_was_blended_on_common_images_becomes_a_bundle(self, runs: list[Run], tmp_path: Path) -> None:
        blend = fit_blend(runs, strategies=("mean",), common_only=True, fit_rules=False).blend
        assert blend.num_images == 43 and blend.score is not None
        bundle = write_bundle(runs, blend, tmp_path / "both", parity_rows=4)
        assert bundle.blend == blend and bundle.oof_score == blend.score.total
        oof = runs[0].oof().align(runs[1].oof().ids)
        expected = score_answers(runs[0].task, runs[0].labels().align(oof.ids).classes, oof.probs).total
        one = write_bundle(runs, self.blend(runs, 43), tmp_path / "one", parity_rows=4)
        assert one.oof_score == pytest.approx(expected) and {member.run for member in one.members} == {"first"}

    def test_what_a_run_that_is_not_blended_was_trained_for_does_not_matter(
        self, runs: list[Run], tmp_path: Path
    ) -> None:
        other = dataclasses.replace(runs[1], task=dataclasses.replace(runs[1].task, metric="accuracy"))
        bundle = write_bundle([runs[0], other], equal_blend([runs[0].name]), tmp_path / "bundle", parity_rows=4)
        assert bundle.task == runs[0].task


class TestScore:
    """Of the runs `all`, on everything, and `first` and `second`, which hold out by different folds."""

    def check(self, mixed: tuple[Toy, list[Run], Path], *flip: str, names: tuple[str, ...] = ()) -> None:
        """Check the blend of some runs, where the members of others answer otherwise than their oof.npz."""
        toy, runs, _ = mixed
        chosen = [run for run in runs if run.name in (names or ("all", "first", "second"))]
        oofs = {run.name: run.oof() for run in chosen}
        blend = random_blend("geometric", toy.task, oofs)
        said = [one for run in chosen for one in exported(run, flipped(run.oof()) if run.name in flip else run.oof())]
        sampled = sampled_ids(chosen, oofs, 10)
        _check_reproduced(
            toy.task,
            blend,
            said,
            {name: oof.align(sampled) for name, oof in oofs.items()},
            chosen[0].labels(),
            Variant(),
        )

    def test_only_runs_that_hold_images_out_can_differ(self, mixed: tuple[Toy, list[Run], Path]) -> None:
        self.check(mixed)
        self.check(mixed, "all")
        self.check(mixed, "all", names=("all",))
        with pytest.raises(ExportError, match=r"the exported blend, compared with .* \d+ of 60 decisions change"):
            self.check(mixed, "second")
        with pytest.raises(ExportError, match="oof.npz"):
            self.check(mixed, "first", names=("all", "first"))

    def test_the_same_images_are_sampled_for_every_run_by_the_folds_of_the_first(
        self, mixed: tuple[Toy, list[Run], Path]
    ) -> None:
        _, runs, _ = mixed
        oofs, folds = {run.name: run.oof() for run in runs}, runs[1].fold_table()
        assert (runs[1].fold_table().fold != runs[2].fold_table().align(folds.ids).fold).any()
        sampled = sampled_ids(runs, oofs, 7)
        assert np.bincount(folds.fold[folds.rows(sampled)]).tolist() == [7, 7] and len(set(sampled)) == 14
        assert len(sampled_ids(runs, oofs, 500)) == 48

    def test_a_fitted_blend_takes_the_images_that_all_runs_predict(
        self, mixed: tuple[Toy, list[Run], Path], tmp_path: Path
    ) -> None:
        _, runs, _ = mixed
        fewer = read_run(shutil.copytree(runs[2].folder, tmp_path / "second"))
        part = fewer.oof().ids[5:]
        fewer.oof().align(part).save(fewer.oof_file)
        chosen, blend = [runs[1], fewer], equal_blend(["first", "second"])
        fitted = dataclasses.replace(blend, oof_hashes={"first": "", "second": ""})
        shared = shared_oofs(chosen, fitted)
        assert [len(oof) for oof in shared.values()] == [43, 43]
        assert set(sampled_ids(chosen, shared, 500)) == set(part)
        with pytest.raises(PredictionError, match="run 'second' predicts 43 images"):
            write_bundle(chosen, blend, tmp_path / "bundle")
        nothing = flipped(fewer.oof())
        dataclasses.replace(nothing, ids=np.char.add("x", nothing.ids)).save(fewer.oof_file)
        with pytest.raises(BundleError, match="share no validation images"):
            shared_oofs(chosen, fitted)

    def test_members_are_compared_with_torch_on_images_of_their_own_fold(
        self, mixed: tuple[Toy, list[Run], Path]
    ) -> None:
        bundle = open_bundle(mixed[2])
        assert [(one.run, one.fold, one.parity.rows) for one in bundle.members] == [
            ("all", EVERYTHING, 48),
            *((name, fold, 24) for name in ("first", "second") for fold in (0, 1)),
        ]
