from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Toy
from pretended_kaggle import READY, PretendedKaggle

from kaggle_kit import kaggle_command
from kaggle_kit.cli import main
from kaggle_kit.platform.client import KernelState, Submission
from kaggle_kit.runs import Run


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    assert main(["kernel", "new", "submit", str(tmp_path / "k"), "--owner", "me", "--competition", "toy-wide"]) == 0
    return tmp_path / "k"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> PretendedKaggle:
    kaggle = PretendedKaggle(datasets={"me/kaggle-kit-wheelhouse": READY, "me/kaggle-kit-bundle": READY})
    monkeypatch.setattr(kaggle_command, "_connected", lambda: kaggle)
    return kaggle


def test_a_made_kernel_is_sound_and_a_spoilt_one_exits_with_1(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "check", str(kernel)]) == 0
    (kernel / "submit.py").write_text("def (")
    assert main(["kernel", "check", str(kernel)]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_submission_s_scores_are_noted_of_the_run(
    kernel: Path, there: PretendedKaggle, trained: tuple[Toy, list[Run]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained[1][0].folder
    ledger = run.parent / "ledger.jsonl"
    before = ledger.read_bytes() if ledger.exists() else None
    try:
        assert main(["submit", str(kernel), "--run", str(run), "--json"]) == 0
        said = capsys.readouterr().out.strip().splitlines()
        assert json.loads(said[-1])["public"] == 0.91
        assert "toy-wide: public 0.91000, private 0.88000" in said
        assert '"public": 0.91' in ledger.read_text()
    finally:
        ledger.unlink() if before is None else ledger.write_bytes(before)


@pytest.mark.parametrize("where", ["session", "rerun"])
def test_a_submission_that_fails_on_kaggle_exits_with_1(
    kernel: Path, there: PretendedKaggle, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "session":
        there.kernels["me/kaggle-kit-submit"] = KernelState(phase="error", message="boom")
    else:
        there.scored = Submission(number=9, phase="complete", error="Notebook Timeout")
    assert main(["submit", str(kernel), "--json"]) == 1
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-2].startswith("FAILED ") and json.loads(said[-1])["public"] is None
    assert ("boom" if where == "session" else "Notebook Timeout") in json.loads(said[-1])["failure"]


def test_what_submit_cannot_do_is_one_line(
    kernel: Path, there: PretendedKaggle, capsys: pytest.CaptureFixture[str]
) -> None:
    there.left = 0
    assert main(["submit", str(kernel)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no submission to toy-wide is left today (5 made)" in error
    assert there.changes == []


def test_a_dry_run_of_publishing_leaves_the_folder_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert main(["publish", str(tmp_path), "--id", "me/my-data", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would call create_dataset('me/my-data', 'private'" in said
    assert said.rstrip().endswith("me/my-data: a dry run, nothing was uploaded")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_metadata_of_a_name_that_is_refused_is_not_left_behind(
    tmp_path: Path, there: PretendedKaggle, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert main(["publish", str(tmp_path), "--id", "me/My_Data"]) == 2
    assert "expected a slug of a-z, 0-9 and single hyphens; write 'my-data'" in capsys.readouterr().err
    (tmp_path / "dataset-metadata.json").write_text("{")
    assert main(["publish", str(tmp_path), "--id", "me/my-data"]) == 2
    assert "is no JSON" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["new", "check", "push", "status", "logs", "output"])
def test_every_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["kernel", verb, "--help"])
    assert f"example:\n  kaggle-kit kernel {verb} " in capsys.readouterr().out


def test_publishing_writes_the_metadata_that_lacks(
    there: PretendedKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    assert main(["publish", str(folder)]) == 2
    assert "dataset-metadata.json is missing; say --id OWNER/SLUG" in capsys.readouterr().err
    assert main(["publish", str(folder), "--id", "me/my-data"]) == 0
    assert json.loads((folder / "dataset-metadata.json").read_text())["title"] == "my data"
    assert "me/my-data was created, version 1" in capsys.readouterr().out
    assert main(["publish", str(folder), "--id", "me/other-data"]) == 2


def test_a_session_that_fails_exits_with_1(kernel: Path, there: PretendedKaggle, tmp_path: Path) -> None:
    there.kernels["me/kaggle-kit-submit"] = KernelState(phase="error", message="boom")
    assert main(["kernel", "push", str(kernel), "--wait"]) == 1
    assert main(["kernel", "status", str(kernel)]) == 1
    assert main(["kernel", "logs", "me/kaggle-kit-submit"]) == 0
    assert main(["kernel", "output", "me/kaggle-kit-submit", "--out", str(tmp_path / "out")]) == 0
    assert main(["kernel", "status", "nothing"]) == 2


def test_without_credentials_it_says_how_to_get_them(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "KAGGLE_API_V1_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["kernel", "push", str(kernel)]) == 2
    assert "there are no credentials for Kaggle; get a token at" in capsys.readouterr().err


def test_a_dry_run_needs_no_account(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(kernel), "--dry-run"]) == 0
    assert "a dry run, nothing was submitted" in capsys.readouterr().out
    assert main(["kernel", "push", str(kernel), "--wait", "--dry-run"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("a dry run, nothing was pushed")
