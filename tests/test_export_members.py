from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from conftest import Toy, random_run
from test_export_heads import relabel

from kaggle_kit.ensemble import Blend, Prefix, equal_blend
from kaggle_kit.errors import BundleError, ExportError, SettingError
from kaggle_kit.export import golden, lowering, members
from kaggle_kit.export.bundle import export_runs, write_bundle
from kaggle_kit.export.candidate import Candidate
from kaggle_kit.export.golden import golden_ids
from kaggle_kit.export.members import temperatures_of
from kaggle_kit.export.variant import Variant
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.mixes import Mix
from kaggle_kit.runs import Run, read_run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.levels import make_levels
from kaggle_kit.runtime.verify import verify_bundle
from kaggle_kit.sources import PackedSource, open_source
from kaggle_kit.train.checkpoint import load_checkpoint, save_checkpoint
from kaggle_kit.train.heads import derivation_of

LOOSE = Variant(max_changed=1, max_drop=1)  # 24 images a fold tell little of a metric


@pytest.fixture
def with_whole(wide: Toy, tmp_path: Path) -> Run:
    """A run that was trained with an auxiliary head, each of whose classes has one root and one vowel."""
    toy = relabel(wide, heads={"root": {"classes": 3}, "vowel": {"classes": 2}}, metric="macro_recall")
    return random_run(toy, tmp_path / "a", make_folds(read_labels(toy.task, toy.data), "stratified", num_folds=2))


def test_heads_are_summed_from_an_auxiliary_one_and_the_difference_is_measured(with_whole: Run, tmp_path: Path) -> None:
    run = with_whole
    (member, _) = export_runs([run], tmp_path / "onnx", variant=dataclasses.replace(LOOSE, derive_from="whole"))
    assert member.derived_from == "whole"
    assert member.stored and member.stored.decisions_changed > 0
    network, _ = load_checkpoint(run.checkpoint(0))
    images = PackedSource(run.packed).take(np.arange(8))
    with torch.inference_mode():
        whole = network(torch.from_numpy(images), auxiliary=True)["whole"].softmax(1).numpy()
    found = OnnxSession(tmp_path / "onnx" / member.file).run(images)
    for head, classes in derivation_of(run.task, run.labels(), "whole").items():
        expected = np.stack([whole[:, classes == k].sum(1) for k in range(found[head].shape[1])], axis=1)
        assert np.abs(found[head] - expected).max() < 1e-5


def test_runs_without_that_head_answer_for_themselves(
    with_whole: Run, trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    variant = dataclasses.replace(LOOSE, derive_from="whole")
    made = export_runs([with_whole, trained[1][0]], tmp_path / "onnx", variant=variant, parity_rows=4)
    assert [one.derived_from for one in made] == ["whole", "whole", "", ""]
    assert made[-1].stored and made[-1].stored.decisions_changed == 0


def test_derived_heads_that_lower_the_metric_are_refused(with_whole: Run, tmp_path: Path) -> None:
    oof, labels = with_whole.oof(), with_whole.labels()
    truth = labels.align(oof.ids).classes
    right = {head: np.eye(probs.shape[1], dtype=np.float32)[truth[head]] for head, probs in oof.probs.items()}
    dataclasses.replace(oof, probs=right).save(with_whole.oof_file)  # nothing can be better than this
    with pytest.raises(ExportError, match=r"run 'a', compared with its oof.npz, is not shipped: .*--max-drop"):
        export_runs([with_whole], tmp_path / "onnx", variant=Variant(derive_from="whole"))
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_precision_that_changes_too_much_is_refused_with_numbers_and_leaves_nothing(
    trained: tuple[Toy, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    seen = []

    def spoilt(model: onnx.ModelProto, images: np.ndarray) -> Iterator[Candidate]:
        for _ in range(2):
            seen.append(len(images))
            other = onnx.ModelProto.FromString(model.SerializeToString())
            tensor = next(t for t in other.graph.initializer if t.name.endswith("heads.0.bias"))
            tensor.raw_data = np.array([99, value, 0], np.float32).tobytes()
            yield Candidate(model=other, emulated=other, fp32_nodes=(), kept="")

    monkeypatch.setattr(lowering, "half_candidates", spoilt)
    message = r"fold\d.onnx in fp16 is not shipped: .*; ship fp32, or allow more with --max-changed and --max-drop"
    with pytest.raises(ExportError, match=message) as refused:
        write_bundle(trained[1][:1], equal_blend(["test_resnet"]), tmp_path / "b", variant=Variant(precision="fp16"))
    assert ("NaN" if np.isnan(value) else "decisions change") in str(refused.value)
    assert set(seen) == {24}  # images of the other fold
    assert not list(tmp_path.iterdir())


def test_temperatures_of_a_blend_go_into_the_graphs(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = trained[1][0]
    mix = Mix(weights=(1.0,), temperatures=(2.5,))
    blend = Blend(runs=(run.name,), prefixes=(Prefix(heads={"root": mix}),))
    assert temperatures_of(blend) == {run.name: {"root": 2.5}}
    plain = export_runs([run], tmp_path / "plain")
    warm = export_runs([run], tmp_path / "warm", blend=blend)
    images = PackedSource(run.packed).take(np.arange(8))
    before = OnnxSession(tmp_path / "plain" / plain[0].file).run(images)
    after = OnnxSession(tmp_path / "warm" / warm[0].file).run(images)
    expected = before["root"] ** (1 / 2.5)
    assert np.abs(after["root"] - expected / expected.sum(axis=1, keepdims=True)).max() < 1e-5
    assert np.abs(after["vowel"] - before["vowel"]).max() < 1e-6


def test_a_run_whose_folds_are_not_its_own_is_named(with_whole: Run, tmp_path: Path) -> None:
    folds = with_whole.fold_table()
    other = dataclasses.replace(folds, fold=np.where(folds.fold == 1, -1, 0))
    other.save(with_whole.folder / "folds.parquet")
    with pytest.raises(BundleError, match="fold 1 of run 'a' holds no images to compare on"):
        export_runs([with_whole], tmp_path / "onnx")


def test_golden_images_show_every_class_and_the_first_show_the_most(
    mixed: tuple[Toy, list[Run], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mixed[1][1]
    labels, source = run.labels(), PackedSource(run.packed)
    ids = golden_ids(labels, source)
    assert len(ids) == len(set(ids.tolist())) == golden.LEAST_GOLDEN
    shown = labels.align(ids).classes
    for head, classes in labels.classes.items():
        assert set(np.unique(shown[head], axis=0).ravel()) >= set(np.unique(classes, axis=0).ravel())
    monkeypatch.setattr(golden, "LEAST_GOLDEN", 2)
    few = golden_ids(labels, source)
    assert (few == ids[: len(few)]).all() and 2 < len(few) < golden.MOST_GOLDEN
    monkeypatch.setattr(golden, "MOST_BYTES", 3 * int(np.prod(source.shape)))
    assert (golden_ids(labels, source) == ids[:3]).all()


def test_an_adopted_run_takes_no_views(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = dataclasses.replace(trained[1][0], adopted={0: "fold0/member.onnx", 1: "fold1/member.onnx"})
    with pytest.raises(SettingError, match="was adopted: its graph cannot be averaged over changed images"):
        export_runs([run], tmp_path / "onnx", variant=Variant(tta=("hflip",)))
    blend = Blend(runs=(run.name,), prefixes=(Prefix(heads={"root": Mix(weights=(1.0,), temperatures=(2.0,))}),))
    with pytest.raises(SettingError, match="its graph takes no temperatures; leave --blend out"):
        export_runs([run], tmp_path / "onnx", blend=blend)


def test_weights_that_were_pretrained_carry_their_licence() -> None:
    assert members._licence("resnet18.tv_in1k") == "bsd-3-clause"
    assert members._licence("test_resnet_that_is_not") == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("other_ids", r"oof.npz has 0 of 24 images of fold 0, 'Train_\d+' not among them; it is not this run's"),
        (
            "other_task",
            r"was trained for another task than .*\(other: root of 3 classes, .* instead of toy-wide: ",
        ),
        ("twice", r"the names of runs \['test_resnet', 'test_resnet'\] come to one file name; give each run once"),
        ("blend", r"the blend counts runs \['other'\], not 'test_resnet'"),
        ("stale", r"the blend was fitted on other out-of-fold predictions of run 'test_resnet'"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    trained: tuple[Toy, list[Run]], tmp_path: Path, change: str, message: str
) -> None:
    run = read_run(shutil.copytree(trained[1][0].folder, tmp_path / trained[1][0].name))
    runs, blend = [run], None
    if change == "other_ids":
        oof = run.oof()
        dataclasses.replace(oof, ids=np.char.add("x", oof.ids)).save(run.oof_file)
    elif change == "other_task":
        network, info = load_checkpoint(run.checkpoint(0))
        other = dataclasses.replace(info, task=dataclasses.replace(info.task, name="other"))
        save_checkpoint(run.checkpoint(0), network, other)
    elif change == "twice":
        runs = [run, trained[1][0]]
    elif change == "blend":
        blend = equal_blend(["other"])
    else:
        blend = dataclasses.replace(equal_blend([run.name]), oof_hashes={run.name: "0"})
    with pytest.raises((BundleError, ExportError), match=message):
        export_runs(runs, tmp_path / "onnx", blend=blend)
    assert not (tmp_path / "onnx").exists()


def test_images_that_changed_since_they_were_packed_are_no_golden_ones(files: Toy, tmp_path: Path) -> None:
    run = random_run(files, tmp_path / "a", make_folds(read_labels(files.task, files.data), "stratified", num_folds=2))
    write_bundle([run], equal_blend(["a"]), tmp_path / "sound")
    for path in (files.data / "images").iterdir():
        image = cv2.imread(str(path))
        if image is not None:
            cv2.imwrite(str(path), 255 - image)
    with pytest.raises(BundleError, match=r"image '\d+.jpg' in .* is not the one in .*pack it again and train again"):
        write_bundle([run], equal_blend(["a"]), tmp_path / "bundle")


def test_the_first_run_of_a_bundle_with_views_is_kept_without_them_too(
    trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    toy, runs = trained
    blend = equal_blend([run.name for run in runs])
    variant = dataclasses.replace(LOOSE, tta=("shift=1",), precision="fp16")
    bundle = write_bundle(runs, blend, tmp_path / "bundle", variant=variant, fused=True)
    assert [member.plain for member in bundle.members] == [
        f"{Path(member.file).stem}_plain.onnx" if member.run == runs[0].name else "" for member in bundle.members
    ]
    assert set(bundle.graphs) <= set(bundle.files)
    first = bundle.members[0]
    images = open_source(toy.task, "test", toy.hidden).read(0)[None]
    network, _ = load_checkpoint(runs[0].checkpoint(first.fold))
    with torch.inference_mode():
        expected = network(torch.from_numpy(images))["root"].softmax(1).numpy()
    found = {file: OnnxSession(bundle.folder / file).run(images)["root"] for file in (first.file, first.plain)}
    assert np.abs(found[first.plain] - expected).max() < 2e-3
    levels = make_levels(bundle, bundle.blend, fused=True)
    assert [level.cut for level in levels] == [True, True, False, False]
    assert "without views" in str([row.found for row in verify_bundle(bundle.folder, say=lambda _: None).rows])
