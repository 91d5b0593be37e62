from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Toy

from kaggle_kit.cli import main
from kaggle_kit.ensemble import equal_blend, save_blend
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import load_golden, open_bundle

LOOSE = ("--max-changed", "1", "--max-drop", "1")  # 24 images a fold tell little of a metric


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    """Run a command; return its exit code, the lines it printed and its errors."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_a_bundle_is_made_whole_and_verified(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [run.folder for run in trained[1]]
    out = tmp_path / "bundle"
    code, lines, _ = run_command(capsys, "bundle", *folders, "--fused", "--full", "--json", "--out", out)
    assert code == 0, _
    assert sum("repeats torch to" in line and "0 decisions differ" in line for line in lines) == 4
    assert any(line.startswith("fused.onnx: all in one graph") for line in lines)
    assert any(line.startswith("the blend, against what the runs stored: no decision changes") for line in lines)
    result = json.loads(lines[-1])
    assert result["fused"]["parity"]["decisions_changed"] == 0 and len(result["members"]) == 4
    bundle = open_bundle(out)
    assert result["fused"]["parity"]["rows"] == len(load_golden(out).images) + 48, "and all out-of-fold images"
    assert bundle.created and bundle.seconds_on and all(member.seconds > 0 for member in bundle.members)
    assert [member.run_id for member in bundle.members] == [run.id for run in trained[1] for _ in (0, 1)]
    assert {member.model for member in bundle.members} == {"test_resnet", "test_efficientnet"}

    code, lines, _ = run_command(capsys, "bundle", "--verify", out, "--json")
    assert code == 0 and json.loads(lines[-1])["sound"] is True


def test_runs_that_the_blend_left_out_are_named(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, out = [run.folder for run in trained[1]], tmp_path / "bundle"
    save_blend(equal_blend(["test_resnet"]), tmp_path / "blend.json")
    code, lines, _ = run_command(
        capsys, "bundle", *folders, "--blend", tmp_path / "blend.json", "--out", out, "--json", *LOOSE
    )
    assert code == 0, _
    assert lines.count("test_efficientnet is not in the blend and not exported") == 1
    assert json.loads(lines[-1])["left_out"] == ["test_efficientnet"]
    assert {member.run for member in open_bundle(out).members} == {"test_resnet"}


def test_a_bundle_that_is_not_sound_exits_with_1_and_says_why(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    path = folder / "member_test_resnet_fold1.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    code, lines, _ = run_command(capsys, "bundle", folder, "--verify", "--json")
    assert code == 1 and "is not sound" in lines[0] and path.name in lines[0]
    assert path.name in json.loads(lines[-1])["why"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bundle", "RUN"), "say where the bundle goes with --out DIR"),
        (("bundle", "a", "b", "--verify"), "--verify takes one bundle, not 2 folders"),
        (("bundle", "RUN", "--out", "OUT", "--tta", "hflop"), "did you mean 'hflip'"),
        (("export", "RUN", "--out", "OUT", "--derive", "grapheme"), "no run was trained with an auxiliary head 'grap"),
        (("export", "RUN", "--out", "OUT", "--max-drop", "7"), "`max_drop` is 7.0; expected 0 to 1"),
    ],
)
def test_what_cannot_be_exported_is_said(
    trained: tuple[Toy, list[Run]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    places = {"RUN": trained[1][0].folder, "OUT": tmp_path / "out"}
    code, _, errors = run_command(capsys, *(places.get(word, word) for word in arguments))
    assert code == 2 and message in errors
    assert not list(tmp_path.iterdir())


def test_views_and_a_lower_precision_are_measured_and_said(
    trained: tuple[Toy, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained[1][0], tmp_path / "onnx"
    code, lines, _ = run_command(
        capsys, "export", run.folder, "--tta", "shift=1", "--precision", "fp16", "--out", out, "--json", *LOOSE
    )
    assert code == 0, _
    assert sum(line.startswith("  fp16 against fp32: ") for line in lines) == 2
    assert sum(line.startswith("  against oof.npz: ") for line in lines) == 2
    members = json.loads(lines[-1])["members"]
    assert [(one["tta"], one["precision"]) for one in members] == [(["shift=1"], "fp16")] * 2
    code, _, _ = run_command(capsys, "export", run.folder, "--out", out)  # in the place of the earlier export
    names = ["member_test_resnet_fold0.onnx", "member_test_resnet_fold1.onnx", "members.json"]
    assert code == 0 and sorted(path.name for path in out.iterdir()) == names
    (out / "mine.txt").write_text("keep me")
    code, _, errors = run_command(capsys, "export", run.folder, "--out", out)
    assert code == 2 and "holds a folder of exports and other files" in errors
