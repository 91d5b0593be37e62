from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Toy

from kaggle_kit.ensemble import equal_blend
from kaggle_kit.errors import ExportError
from kaggle_kit.export import bundle as bundling
from kaggle_kit.export import golden
from kaggle_kit.export.bundle import export_runs, write_bundle
from kaggle_kit.export.listing import Listed, naming_output, read_members
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import file_sha256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def run(trained: tuple[Toy, list[Run]]) -> Run:
    return trained[1][0]


def test_what_was_written_is_listed_with_its_parity_and_hash(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    members = export_runs([run], out)
    values = json.loads((out / "members.json").read_text())
    for member, listed in zip(members, values["members"], strict=True):
        assert (listed["file"], listed["run"], listed["fold"]) == (member.file, run.name, member.fold)
        assert listed["sha256"] == values["files"][member.file] == file_sha256(out / member.file)
        assert listed["parity"] == dataclasses.asdict(member.parity)
    assert sorted(read_members(out).files) == names(out)
    export_runs([run], out, parity_rows=4)  # in the place of the earlier export
    assert sorted(read_members(out).files) == names(out)


def test_members_that_no_export_listed_are_never_lost(run: Run, tmp_path: Path) -> None:
    (tmp_path / "member_of_mine.onnx").write_text("keep me")
    with pytest.raises(ExportError, match="is not empty and no folder of exports; choose another folder"):
        export_runs([run], tmp_path)
    out = tmp_path / "out"
    export_runs([run], out, parity_rows=4)
    (out / "member_of_mine.onnx").write_text("keep me")
    with pytest.raises(ExportError, match="holds a folder of exports and other files: 'member_of_mine.onnx'; move"):
        export_runs([run], out, parity_rows=4)
    for folder in (tmp_path, out):
        assert (folder / "member_of_mine.onnx").read_text() == "keep me"


def test_exports_of_another_run_are_never_lost(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    first, second = trained[1]
    export_runs([first], tmp_path / "out", parity_rows=4)
    before = names(tmp_path / "out")
    message = (
        r"out holds exports of other runs than 'test_efficientnet', which would be lost: "
        rf"'member_test_resnet_fold0.onnx', 'member_test_resnet_fold1.onnx' of 'test_resnet \({first.id}\)'; export"
    )
    with pytest.raises(ExportError, match=message):
        export_runs([second], tmp_path / "out", parity_rows=4)
    again = dataclasses.replace(first, id="0" * 12)  # trained again, or another of that name
    with pytest.raises(ExportError, match="holds exports of other runs than 'test_resnet', which would be lost"):
        export_runs([again], tmp_path / "out", parity_rows=4)
    assert names(tmp_path / "out") == before
    assert len(export_runs([first, second], tmp_path / "out", parity_rows=4)) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9, "members": [], "files": {}}', '{"format": 1}'])
def test_a_list_that_does_not_read_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "members.json").write_text(text)
    assert read_members(tmp_path) == Listed()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def exported(run: Run, out: Path) -> object:
    return export_runs([run], out, parity_rows=4)


def bundled(run: Run, out: Path) -> object:
    return write_bundle([run], equal_blend([run.name]), out, parity_rows=4)


@pytest.mark.parametrize(
    ("write", "module", "step"),
    [(exported, bundling, "write_members"), (bundled, golden, "save_golden"), (bundled, bundling, "write_manifest")],
)
def test_a_disk_that_fills_at_any_step_names_the_output_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., object], module: object, step: str
) -> None:
    monkeypatch.setattr(module, step, full)
    message = r"/out was not written \(No space left on device\); free some space there, or give another folder"
    with pytest.raises(ExportError, match=message):
        write(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"out was not written \(No such file or directory at gone\); put that file"),
        naming_output(tmp_path / "out"),
    ):
        Path("gone").read_text()
