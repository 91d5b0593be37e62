from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import HEADS, SIZE, Toy, random_blend
from handmade import make_bundle, random_weights, save_graph, sign
from onnx import helper, numpy_helper
from test_imports import BLOCKED

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Blend, Prefix
from kaggle_kit.errors import BundleError
from kaggle_kit.export.fused import fuse_members
from kaggle_kit.mixes import Mix, MixKind
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import FUSED, GOLDEN, MANIFEST, Bundle, Golden, load_golden, open_bundle, save_golden
from kaggle_kit.runtime.verify import Verified, format_verified, verify_bundle


def quiet(_line: str) -> None:
    pass


def verify(bundle: Bundle) -> Verified:
    return verify_bundle(bundle.folder, say=quiet)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def regild(bundle: Bundle, change: Callable[[Golden], Golden]) -> Bundle:
    """Change the golden images of a bundle, and sign for it."""
    save_golden(change(load_golden(bundle.folder)), bundle.folder)
    return sign(bundle)


def test_a_whole_bundle_is_told_of_line_by_line(bundle: Bundle) -> None:
    said: list[str] = []
    verified = verify_bundle(bundle.folder, say=said.append)
    graphs = ["member_a_fold0.onnx", "member_a_fold1.onnx", "member_b_fold0.onnx", "fused.onnx"]
    assert said == [f"{name}: 20 golden images" for name in graphs]
    assert verified.images == 20
    assert 0 <= verified.difference < 1e-6
    assert verified.notes == ()
    names = [row.what for row in verified.rows]
    assert names == [
        MANIFEST,
        "5 other files",
        "golden images",
        "member_a_fold0.onnx",
        "member_a_fold1.onnx",
        "run 'a'",
        "member_b_fold0.onnx",
        "run 'b'",
        "run 1 alone",
        "runs 1 to 2",
        "fused.onnx",
        "fused graph",
    ]
    lines = format_verified(verified)
    assert any("run 'a', fold 1, fp32; on CPUExecutionProvider" in line for line in lines)
    assert lines[-1].startswith(f"{bundle.folder} is whole: on 20 golden images this machine is at most ")


def test_every_golden_image_is_looked_at_in_batches(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", num_golden=70)
    assert verify(bundle).images == 70

    def spoil_last(golden: Golden) -> Golden:
        golden.probs["b"]["vowel"][69] = golden.probs["b"]["vowel"][69][::-1]
        return golden

    with pytest.raises(BundleError, match=r"run 'b' probabilities .* for head 'vowel' of image 69, .* up to 0 of 255"):
        verify(regild(bundle, spoil_last))


@pytest.mark.parametrize("name", [MANIFEST, GOLDEN, FUSED, "member_b_fold0.onnx"])
def test_a_changed_byte_and_a_missing_file_name_themselves(bundle: Bundle, name: str) -> None:
    path = bundle.folder / name
    data = bytearray(path.read_bytes())
    place = data.index(b"0.5") if name == MANIFEST else len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} has changed"):
        verify(bundle)
    path.unlink()
    expected = r"is no bundle \(no manifest.json\)" if name == MANIFEST else f"{name} is missing"
    with pytest.raises(BundleError, match=expected):
        verify(bundle)


def test_an_unknown_format_names_itself(bundle: Bundle) -> None:
    path = bundle.folder / MANIFEST
    path.write_text(path.read_text().replace('"format": 6', '"format": 4'))
    with pytest.raises(BundleError, match=r"has bundle format 4; kaggle_kit .* reads 6; use the kit that wrote it"):
        verify(bundle)


def test_a_graph_that_is_no_member_is_refused_and_other_files_are_noted(bundle: Bundle) -> None:
    (bundle.folder / "dataset-metadata.json").write_text("{}")
    (bundle.folder / "engines").mkdir()
    verified = verify(bundle)
    assert verified.notes == ("dataset-metadata.json is no part of the bundle", "engines/ is no part of the bundle")
    assert "  note: engines/ is no part of the bundle" in format_verified(verified)
    shutil.copy(bundle.folder / FUSED, bundle.folder / "other.onnx")
    with pytest.raises(BundleError, match=r"holds 'other.onnx', which is no member of the bundle; remove it"):
        verify(bundle)
    besides = ("dataset-metadata.json", "engines", "other.onnx")
    with pytest.raises(BundleError, match=r"holds 'fused.onnx', 'other.onnx', which"):
        verify(sign(dataclasses.replace(bundle, fused=None), besides=besides))


def test_one_file_for_two_members_is_refused(bundle: Bundle) -> None:
    first, second, third = bundle.members
    twice = (first, dataclasses.replace(second, file=first.file), third)
    with pytest.raises(BundleError, match=r"lists 'member_a_fold0.onnx' for two members"):
        verify(sign(dataclasses.replace(bundle, members=twice)))


@pytest.mark.parametrize(
    "priors", [{}, {"root": (0.5, 0.5)}, {"root": (0.5, 0.5, float("nan"))}, {"root": (2.0, 0, 0)}]
)
def test_priors_that_a_broken_image_could_not_get_are_refused(bundle: Bundle, priors: dict) -> None:
    with pytest.raises(BundleError, match="has no priors of head 'root' that broken images could get"):
        verify(sign(dataclasses.replace(bundle, priors=priors)))


def nan_weights() -> dict[str, np.ndarray]:
    weights = dict(random_weights(0))
    weights["root"] = np.full_like(weights["root"], np.nan)
    return weights


@pytest.mark.parametrize(
    ("networks", "shares", "batch", "message"),
    [
        ([random_weights(0, {"root": 3})], [1.0], "batch", r"gives \['root'\]; expected one output for each head"),
        ([random_weights(0, {"root": 3, "vowel": 2, "tone": 2})], [1.0], "batch", r"gives \['root', 'tone', 'vowel'\]"),
        ([random_weights(0, {"root": 4, "vowel": 2})], [1.0], "batch", r"head 'root' has shape \(20, 4\); expected"),
        ([nan_weights()], [1.0], "batch", "head 'root' of golden image 0 has nan, which is no probability"),
        ([random_weights(0)], [-1.0], "batch", "head 'root' of golden image 0 has -0.*, which is no probability"),
        ([random_weights(0)], [0.9], "batch", r"head 'root' of golden image \d+ has probabilities that sum to 0.9000"),
        (
            [random_weights(0)],
            [1.0],
            20,
            r"does not run on stored images of 24 x 32 x 1, one or 64 at a time: .*INVALID",
        ),
    ],
)
def test_a_graph_that_gives_no_probabilities_is_refused(
    bundle: Bundle, networks: list, shares: list[float], batch: str | int, message: str
) -> None:
    save_graph(networks, shares, bundle.folder / "member_b_fold0.onnx", batch=batch)
    with pytest.raises(BundleError, match=f"member_b_fold0.onnx.*{message}"):
        verify(sign(bundle))


def test_a_file_that_is_no_graph_is_refused(bundle: Bundle) -> None:
    (bundle.folder / FUSED).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"fused.onnx does not load in onnxruntime"):
        verify(sign(bundle))


def test_a_graph_in_which_images_of_a_batch_mix_is_refused(bundle: Bundle) -> None:
    path = bundle.folder / "member_b_fold0.onnx"
    model = onnx.load(path)
    (flatten,) = [node for node in model.graph.node if node.op_type == "Flatten"]
    flatten.output[0] = "own"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    model.graph.node.insert(2, helper.make_node("ReduceMean", ["own", "axes"], ["mean"]))
    model.graph.node.insert(3, helper.make_node("Sub", ["own", "mean"], ["flat"]))
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"gives an image other probabilities when it is alone: head '(root|vowel)'"):
        verify(sign(bundle))


def test_a_member_that_says_otherwise_than_at_home_names_its_run(bundle: Bundle) -> None:
    save_graph([random_weights(99)], [1.0], bundle.folder / "member_a_fold1.onnx")
    wrong = r"golden images give run 'a' probabilities 0.\d+ away from home \(allowed 0.002\), the furthest for head"
    with pytest.raises(BundleError, match=wrong):
        verify(sign(bundle))


def test_a_fused_graph_of_another_blend_is_refused(bundle: Bundle) -> None:
    networks = [random_weights(seed) for seed in (0, 1, 10)]
    save_graph(networks, [0.25, 0.25, 0.5], bundle.folder / FUSED)
    with pytest.raises(BundleError, match=r"fused.onnx gives probabilities 0.\d+ away from the blend of the separate"):
        verify(sign(bundle))


def test_a_fused_graph_that_only_home_disagrees_with_is_refused(bundle: Bundle) -> None:
    """Each run may be away by the tolerance, here one way for all runs, and the fused graph a little more."""
    tolerance = 1e-3
    networks = [random_weights(seed) for seed in (0, 1, 10)]
    save_graph(networks, [0.35, 0.35, 0.301], bundle.folder / FUSED)  # above the members by a thousandth at most

    def shifted(golden: Golden) -> Golden:
        probs: dict[str, Probs] = {
            run: {head: values - np.float32(0.9 * tolerance) for head, values in heads.items()}
            for run, heads in golden.probs.items()
        }
        return dataclasses.replace(golden, probs=probs, tolerance=tolerance)

    with pytest.raises(BundleError, match="golden images give the fused graph probabilities 0.00.* away from home"):
        verify(regild(bundle, shifted))


def test_a_cut_of_the_blend_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    cold = Prefix(heads={head: Mix(kind="geometric", weights=(1.0,), temperatures=(5e-324,)) for head in HEADS})
    blend = Blend(runs=("a", "b"), prefixes=(cold, Prefix(heads={head: Mix(weights=(0.7, 0.3)) for head in HEADS})))
    bundle = make_bundle(tmp_path / "bundle", blend=blend)
    wrong = r"the blend of the first 1 run\(s\): head 'root' of golden image 0 has nan, which is no probability"
    with pytest.raises(BundleError, match=wrong):
        verify(bundle)


def test_a_rule_of_another_kind_of_head_is_refused(bundle: Bundle) -> None:
    decision = Decision(heads={"root": HeadRule.halves(3)})
    last = dataclasses.replace(bundle.blend.whole, decision=decision)
    blend = dataclasses.replace(bundle.blend, prefixes=(bundle.blend.prefixes[0], last))
    wrong = (
        r"the first 2 run\(s\) does not fit: head 'root' is multiclass and has a rule 'thresholds', which is for others"
    )
    with pytest.raises(BundleError, match=wrong):
        verify(sign(dataclasses.replace(bundle, blend=blend)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda golden: dataclasses.replace(golden, tolerance=float("nan")), "a tolerance of nan; expected as many"),
        (
            lambda golden: dataclasses.replace(golden, encoded=golden.encoded[:-1]),
            "holds 19 encoded images, 20 decoded",
        ),
        (lambda golden: dataclasses.replace(golden, encoded=(), images=golden.images[:0]), "holds 0 encoded images, 0"),
        (lambda golden: dataclasses.replace(golden, probs={"a": golden.probs["a"]}), r"probabilities \{\} of run 'b'"),
        (
            lambda golden: dataclasses.replace(
                golden, probs={**golden.probs, "b": {"root": golden.probs["b"]["root"]}}
            ),
            r"probabilities \{'root': \(20, 3\)\} of run 'b'; expected \{'root': \(20, 3\), 'vowel': \(20, 2\)\}",
        ),
        (
            lambda golden: dataclasses.replace(golden, encoded=(b"no image", *golden.encoded[1:])),
            "golden image 0 cannot be read by this machine's OpenCV",
        ),
        (
            lambda golden: dataclasses.replace(golden, images=golden.images[:, :12]),
            r"golden image 0 is \(24, 32, 1\) here, and was \(12, 32, 1\) at home",
        ),
    ],
)
def test_golden_images_that_are_not_whole_are_refused(
    bundle: Bundle, change: Callable[[Golden], Golden], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        verify(regild(bundle, change))


def test_a_golden_file_of_another_kind_is_refused(bundle: Bundle) -> None:
    with (bundle.folder / GOLDEN).open("wb") as file:
        np.savez(file, images=np.zeros((1, *SIZE, 1), np.uint8))
    with pytest.raises(BundleError, match=r"golden.npz does not read \('sizes.*'\); make the bundle again"):
        verify(sign(bundle))
    (bundle.folder / GOLDEN).write_bytes(b"no archive")
    with pytest.raises(BundleError, match=r"golden.npz does not read"):
        verify(sign(bundle))


def test_other_pixels_are_counted(bundle: Bundle) -> None:
    verified = verify(regild(bundle, lambda golden: dataclasses.replace(golden, images=golden.images ^ 3)))
    assert any("pixels differ from home's by up to 3 of 255" in row.found for row in verified.rows)


def test_a_bundle_is_verified_in_a_folder_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.folder, tmp_path / "mounted")
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    for path in (*copy.iterdir(), copy):
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    try:
        assert verify_bundle(copy, say=quiet).images == 20
        assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    finally:
        copy.chmod(stat.S_IRWXU)


def test_a_bundle_is_verified_where_torch_and_its_like_are_blocked(bundle: Bundle) -> None:
    code = f"""
import sys
for name in {(*BLOCKED, "tqdm", "pyarrow")!r}:
    sys.modules[name] = None  # importing it now raises ImportError
from pathlib import Path
from kaggle_kit.runtime.verify import format_verified, verify_bundle
print(*format_verified(verify_bundle(Path({str(bundle.folder)!r}))), sep="\\n")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "is whole: on 20 golden images" in done.stdout


def test_exported_runs_of_three_kinds_of_heads_are_verified(mixed: tuple[Toy, list[Run], Path]) -> None:
    verified = verify_bundle(mixed[2], say=quiet)
    assert verified.difference < 1e-5
    names = [row.what for row in verified.rows]
    assert [name for name in names if name.startswith("member_")] == [m.file for m in open_bundle(mixed[2]).members]
    assert [name for name in names if name.startswith("run ")] == [
        "run 'all'",
        "run 'first'",
        "run 'second'",
        "run 1 alone",
    ]


@pytest.mark.parametrize("kind", ["arithmetic", "geometric", "power", "vote", "stack"])
def test_fused_graphs_of_every_mix_are_verified(tmp_path: Path, kind: MixKind) -> None:
    bundle = make_bundle(tmp_path / "bundle", num_golden=64)
    ids, probs = np.arange(64).astype(np.str_), load_golden(bundle.folder).probs
    blend = random_blend(kind, bundle.task, {run: Predictions(ids=ids, probs=probs[run]) for run in probs})
    files = {run: [bundle.folder / member.file for member in bundle.members if member.run == run] for run in blend.runs}
    fuse_members(files, blend, bundle.task, bundle.folder / FUSED)
    assert verify(sign(dataclasses.replace(bundle, blend=blend))).difference < 1e-5
