from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from conftest import SIZE, Toy, random_blend, with_blend

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Prefix, blend_predictions, equal_blend
from kaggle_kit.errors import BundleError, ExportError
from kaggle_kit.export import bundle as bundling
from kaggle_kit.export.bundle import export_runs, write_bundle
from kaggle_kit.export.golden import golden_ids
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.onnx import IR_VERSION, OPSET, measure_parity
from kaggle_kit.mixes import Mix, MixKind, Stack, Table
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import _digest, load_golden, open_bundle, write_manifest
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.settings import plain
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import rows_of
from kaggle_kit.train.checkpoint import load_checkpoint


def test_members_take_uint8_and_give_named_probabilities(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    assert [(one.run, one.fold) for one in bundle.members] == [
        (name, fold) for name in ("test_resnet", "test_efficientnet") for fold in (0, 1)
    ]
    for member in bundle.members:
        model = onnx.load(bundle_folder / member.file)
        assert model.ir_version <= IR_VERSION and model.opset_import[0].version == OPSET
        assert [value.name for value in model.graph.output] == ["root", "vowel"]
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        for batch in (1, 7):
            probs = OnnxSession(bundle_folder / member.file).run(np.zeros((batch, *SIZE, 1), np.uint8))
            assert probs["root"].shape == (batch, 3)
            assert np.allclose(probs["root"].sum(axis=1), 1, atol=1e-5)


def test_members_repeat_their_networks(bundle_folder: Path) -> None:
    for member in open_bundle(bundle_folder).members:
        assert member.parity.rows == 24
        assert member.parity.max_abs_diff < 1e-5
        assert member.parity.decisions_changed == 0


def test_the_runtime_gives_the_mean_of_the_torch_networks(trained: tuple[Toy, list[Run]], bundle_folder: Path) -> None:
    _, runs = trained
    store = PackedSource(runs[0].packed)
    images = np.stack([store.read(row) for row in range(16)])
    parts = []
    for run in runs:
        for fold in run.folds:
            network, _ = load_checkpoint(run.checkpoint(fold))
            with torch.inference_mode():
                parts.append({h: v.softmax(1).numpy() for h, v in network(torch.from_numpy(images)).items()})
    found = Predictor(bundle_folder, say=lambda _: None).run(images)
    for head, probs in found.items():
        assert np.abs(probs - np.mean([part[head] for part in parts], axis=0)).max() < 1e-5


def test_the_out_of_fold_score_of_the_blend_is_in_the_manifest(
    trained: tuple[Toy, list[Run]], bundle_folder: Path
) -> None:
    from kaggle_kit.scores import score_answers

    toy, runs = trained
    oof = blend_predictions(equal_blend([run.name for run in runs]), {run.name: run.oof() for run in runs})
    expected = score_answers(toy.task, runs[0].labels().align(oof.ids).classes, oof.probs)
    assert open_bundle(bundle_folder).oof_score == pytest.approx(expected.total)


def test_golden_images_show_every_class(trained: tuple[Toy, list[Run]], bundle_folder: Path) -> None:
    golden = load_golden(bundle_folder)
    assert len(golden.encoded) == len(golden.images)
    assert list(golden.probs) == ["test_resnet", "test_efficientnet"]
    assert all(set(probs) == {"root", "vowel"} for probs in golden.probs.values())
    run = trained[1][0]
    store, labels = PackedSource(run.packed), run.labels()
    shown = labels.align(golden_ids(labels, store))
    assert {head: len(np.unique(classes)) for head, classes in shown.classes.items()} == {"root": 3, "vowel": 2}


def copy_run(run: Run, folder: Path) -> Run:
    return read_run(shutil.copytree(run.folder, folder / run.name))


def test_a_bundle_that_does_not_reproduce_the_score_is_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = copy_run(trained[1][0], tmp_path)
    oof = run.oof()
    truth = run.labels().align(oof.ids).classes
    perfect = {head: np.eye(probs.shape[1], dtype=np.float32)[truth[head]] for head, probs in oof.probs.items()}
    Predictions(ids=oof.ids, probs=perfect).save(run.folder / "oof.npz")
    with pytest.raises(ExportError, match=r"is not shipped: .* from 1.0000 to .*train again"):
        write_bundle([run], equal_blend([run.name]), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_an_export_that_gives_other_results_is_refused(trained: tuple[Toy, list[Run]], bundle_folder: Path) -> None:
    run = trained[1][0]
    network, _ = load_checkpoint(run.checkpoint(0))
    with torch.no_grad():
        network.heads[0].bias += torch.tensor([3.0, 0, 0])
    store = PackedSource(run.packed)
    path = bundle_folder / open_bundle(bundle_folder).members[0].file
    with pytest.raises(ExportError, match=r"member_test_resnet_fold0.onnx does not repeat its network on 24 images"):
        measure_parity(ExportGraph(network), path, store, np.arange(24))


def test_one_graph_of_all_is_compared_beyond_the_golden_images(
    trained: tuple[Toy, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = bundling.run_onnx

    def spoilt(path: Path, source: PackedSource, rows: np.ndarray) -> dict[str, np.ndarray]:
        said = asked(path, source, rows)
        return {head: probs[:, ::-1] for head, probs in said.items()} if path.name == "fused.onnx" else said

    monkeypatch.setattr(bundling, "run_onnx", spoilt)
    run = trained[1][0]
    with pytest.raises(ExportError, match=r"fused.onnx does not repeat its network on 8 images"):
        write_bundle([run], equal_blend([run.name]), tmp_path / "bundle", fused=True, parity_rows=4)


def test_folders_of_other_things_are_never_replaced(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(BundleError, match="is not empty and no bundle"):
        write_bundle(trained[1][:1], equal_blend([trained[1][0].name]), tmp_path)


def test_an_export_into_a_folder_of_other_things_is_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ExportError, match="is not empty and no folder of exports"):
        export_runs(trained[1][:1], tmp_path)


def test_a_blend_of_other_runs_is_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the blend counts run 'other', which was not given"):
        write_bundle(trained[1], equal_blend(["test_resnet", "other"]), tmp_path / "bundle")


def test_images_missing_from_the_packed_store_are_named(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = copy_run(trained[1][0], tmp_path)
    folds = run.fold_table()
    object.__setattr__(folds, "ids", np.array([f"x{name}" for name in folds.ids]))
    folds.save(run.folder / "folds.parquet")
    with pytest.raises(BundleError, match="lacks image 'xTrain_"):
        write_bundle([run], equal_blend([run.name]), tmp_path / "bundle")


def test_other_files_beside_a_bundle_are_never_lost(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    (folder / "dataset-metadata.json").write_text("{}")
    with pytest.raises(BundleError, match=r"holds a bundle and other files: 'dataset-metadata.json'; move them"):
        write_bundle(trained[1][:1], equal_blend([trained[1][0].name]), folder)
    assert (folder / "dataset-metadata.json").exists()


def test_a_run_whose_images_were_packed_again_is_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = replace(trained[1][0], packed_key="other")
    with pytest.raises(
        BundleError, match=r"was packed again from other data or at another size since run 'test_resnet'"
    ):
        write_bundle([run], equal_blend([run.name]), tmp_path / "bundle")


BIASED = Decision(heads={"root": HeadRule(rule="class_bias", log_bias=(1.0, 2.0))})


def last(**changes: Any) -> dict[str, Any]:
    """Return changes to a blend of two runs: what both together become."""
    return {"prefixes": (Prefix(), Prefix(**changes))}


def stack_of(features: int, classes: int, *others: str) -> Mix:
    values = np.zeros((features, classes))
    stack = Stack(sources=("root", "vowel", *others), coefficients=Table.of(values), intercept=Table.of(values[0]))
    return Mix(kind="stack", stack=stack)


def ranked(*classes: int) -> dict[str, Any]:
    """Return changes to a blend of two runs: quantiles of so many classes a run."""
    names = ("test_resnet", "test_efficientnet")
    tables = {name: Table.of(np.zeros((count, 101))) for name, count in zip(names, classes, strict=True)}
    return last(heads={"root": Mix(kind="rank", weights=(0.5, 0.5))}) | {"ranks": {"root": tables}}


def open_manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def sign(folder: Path, change: dict[str, object]) -> None:
    """Change the manifest as its writer would, digest included."""
    values = open_manifest(folder) | change
    del values["sha256"]
    values["sha256"] = _digest(values)
    (folder / "manifest.json").write_text(json.dumps(values))


class TestOpening:
    @pytest.fixture
    def folder(self, bundle_folder: Path, tmp_path: Path) -> Path:
        return shutil.copytree(bundle_folder, tmp_path / "bundle")

    @pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9])
    def test_one_changed_byte_in_any_file_is_named(self, folder: Path, place: float) -> None:
        for path in sorted(folder.iterdir()):
            whole = path.read_bytes()
            data = bytearray(whole)
            data[int(len(data) * place)] ^= 1
            path.write_bytes(data)
            with pytest.raises(BundleError, match=rf"{path.name}"):
                open_bundle(folder)
            path.write_bytes(whole)
        open_bundle(folder)

    def test_a_missing_file_is_named(self, folder: Path) -> None:
        (folder / "golden.npz").unlink()
        with pytest.raises(BundleError, match=r"golden.npz is missing; attach the whole bundle"):
            open_bundle(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 3}, r"has bundle format 3; kaggle_kit .* reads 6"),
            ({"format": 7}, r"has bundle format 7; kaggle_kit .* reads 6"),
            ({"membres": []}, r"`membres` is not a setting; did you mean 'members'"),
            ({"members": []}, "lists no member"),
            ({"files": {"../x": "0"}}, r"files it may not: .*'../x'"),
            ({"task": None}, "a task is a mapping"),
        ],
    )
    def test_manifests_that_are_none_are_refused(self, folder: Path, change: dict[str, object], message: str) -> None:
        sign(folder, change)
        with pytest.raises(BundleError, match=message):
            open_bundle(folder)

    @pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "has bundle format None")])
    def test_what_is_no_manifest_is_refused(self, folder: Path, text: str, message: str) -> None:
        (folder / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match=message):
            open_bundle(folder)

    def test_a_folder_without_manifest_is_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"is no bundle \(no manifest.json\)"):
            open_bundle(tmp_path)

    def test_golden_images_that_come_out_otherwise_stop_the_predictor_but_not_the_rerun(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from kaggle_kit.runtime.bundle import file_sha256, save_golden

        golden = load_golden(folder)
        other = {head: 1 - values for head, values in golden.probs["test_efficientnet"].items()}
        save_golden(dataclasses.replace(golden, probs=golden.probs | {"test_efficientnet": other}), folder)
        files = open_manifest(folder)["files"] | {"golden.npz": file_sha256(folder / "golden.npz")}
        sign(folder, {"files": files})
        wrong = r"golden images give run 'test_efficientnet' probabilities .* away from home"
        with pytest.raises(BundleError, match=wrong):
            Predictor(folder, say=lambda _: None)
        Predictor(folder, num_runs=1, say=lambda _: None)  # the run before it is as it was at home
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        lines: list[str] = []
        Predictor(folder, say=lines.append)
        assert any(line.startswith("WARNING golden images give") for line in lines)

    def test_golden_images_that_come_out_as_nan_are_refused(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = OnnxSession.run

        def broken(session: OnnxSession, images: np.ndarray) -> dict[str, np.ndarray]:
            return {head: np.where(probs > 0.4, np.nan, probs) for head, probs in run(session, images).items()}

        monkeypatch.setattr(OnnxSession, "run", broken)
        with pytest.raises(BundleError, match=r"golden images give run 'test_resnet' probabilities inf away from home"):
            Predictor(folder, say=lambda _: None)

    def test_a_blend_that_was_changed_is_refused(self, folder: Path) -> None:
        values = open_manifest(folder)
        for change in ({"prior_shift": True}, {"runs": values["blend"]["runs"][::-1]}):
            changed = {**values, "blend": {**values["blend"], **change}}
            (folder / "manifest.json").write_text(json.dumps(changed))
            with pytest.raises(BundleError, match=r"manifest.json has changed since it was written"):
                Predictor(folder, say=lambda _: None)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"runs": ("test_efficientnet", "test_resnet")}, r"runs \['test_resnet', .*running order is \['test_eff"),
            (
                {"runs": ("test_resnet",), "prefixes": (Prefix(),)},
                r"running order is \['test_resnet'\]; make the bundle",
            ),
            ({"runs": ("test_resnet",)}, r"`prefixes` are 2; expected one for each of 1 runs"),
            (
                last(heads={"tone": Mix.equal(2)}),
                r"first 2 run\(s\) does not fit: head 'tone' is none of \['root', 'vow",
            ),
            (last(decision=Decision.argmax(["tone"])), r"does not fit: head 'tone' is none of"),
            (last(heads={"root": stack_of(9, 3, "tone")}), r"does not fit: head 'tone' is none of"),
            (last(heads={"root": stack_of(9, 3)}), r"'root' has a stack of \(9, 3\) coefficients, expected \(10, 3\)"),
            (last(heads={"root": stack_of(10, 2)}), r"a stack of \(10, 2\) coefficients, expected \(10, 3\)"),
            (
                last(heads={"root": Mix(kind="rank", weights=(0.5, 0.5))}),
                "no quantiles of 3 classes for run 'test_resnet'",
            ),
            (ranked(3, 2), "head 'root' has no quantiles of 3 classes for run 'test_efficientnet'"),
            (last(decision=BIASED), "head 'root' has a rule of 2 values, expected 3"),
        ],
    )
    def test_blends_that_do_not_fit_members_and_task_are_refused_at_opening_and_writing(
        self, trained: tuple[Toy, list[Run]], folder: Path, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        own = equal_blend(["test_resnet", "test_efficientnet"])
        sign(folder, {"blend": {**plain(own), **plain(change)}})
        with pytest.raises(BundleError, match=message):
            open_bundle(folder)
        if not {"runs"} & set(change):
            with pytest.raises(BundleError, match=message):
                write_bundle(trained[1], dataclasses.replace(own, **change), tmp_path / "other")

    def test_blends_of_every_kind_open_as_they_were_written(
        self, trained: tuple[Toy, list[Run]], folder: Path, tmp_path: Path
    ) -> None:
        toy, runs = trained
        for kind in get_args(MixKind):
            blend = random_blend(kind, toy.task, {run.name: run.oof() for run in runs})
            bundle = open_bundle(with_blend(folder, tmp_path / kind, blend))
            assert bundle.blend == blend and bundle.decision == blend.decision

    def test_a_member_that_is_no_onnx_is_named(self, folder: Path) -> None:
        path = folder / "member_test_resnet_fold1.onnx"
        path.write_bytes(b"nothing")
        with pytest.raises(BundleError, match=r"member_test_resnet_fold1.onnx does not load in onnxruntime"):
            OnnxSession(path)

    def test_writing_the_manifest_again_gives_the_same_bundle(self, folder: Path) -> None:
        before = open_bundle(folder)
        write_manifest(before)
        assert open_bundle(folder) == before


def test_rows_of_is_minus_one_for_absent_ids() -> None:
    assert rows_of(np.array(["b", "z"]), np.array(["a", "b"])).tolist() == [1, -1]
    assert rows_of(np.array(["b"]), np.zeros(0, np.str_)).tolist() == [-1]
