from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pretended_kaggle import PretendedKaggle, patient_clock

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.client import DatasetState, KernelState
from kaggle_kit.platform.contents import STATE_FILE
from kaggle_kit.platform.dry_run import DryRun
from kaggle_kit.platform.kernels import new_kernel
from kaggle_kit.platform.publish import publish


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    values = {"title": "my data", "id": "me/my-data", "licenses": [{"name": "other"}]}
    (made / "dataset-metadata.json").write_text(json.dumps(values))
    (made / "member.onnx").write_bytes(b"weights")
    return made


def go(folder: Path, kaggle: PretendedKaggle, **more):
    said: list[str] = []
    return publish(folder, kaggle, say=said.append, clock=patient_clock(), **more), said


def test_a_dataset_is_created_private_and_only_changes_make_versions(folder: Path) -> None:
    kaggle = PretendedKaggle()
    change, _ = go(folder, kaggle)
    assert (change.did, change.publication.version, kaggle.changes) == ("created", 1, ["create private"])
    assert go(folder, kaggle)[0].did == "unchanged" and len(kaggle.changes) == 1
    (folder / "member.onnx").write_bytes(b"other weights")
    change, _ = go(folder, kaggle, message="better")
    assert (change.did, change.publication.version) == ("versioned", 2)
    assert kaggle.changes[1].startswith("version: better (kaggle_kit content ")


def test_another_machine_knows_the_content_by_the_version_s_message(folder: Path) -> None:
    kaggle = PretendedKaggle()
    go(folder, kaggle)
    (folder / "member.onnx").write_bytes(b"other weights")
    go(folder, kaggle)
    (folder / STATE_FILE).unlink()
    assert go(folder, kaggle)[0].did == "unchanged"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("kaggle.json", b'{"username": "me", "key": "0123456789abcdef0123456789abcdef"}', "Kaggle's API key"),
        (".env", b"WANDB_API_KEY=0123456789012345678901234567890123456789", r"\.env"),
        ("notes.txt", b"-----BEGIN RSA PRIVATE KEY-----\nabc\n", "notes.txt"),
        ("model.pt", b"x", "model.pt"),
        ("a-1+cu12-py3-none-any.whl", b"x", r"\+"),
        ("data.tar.gz", b"x", "data.tar.gz"),
    ],
)
def test_what_must_not_go_is_refused_before_any_call(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    kaggle = PretendedKaggle()
    with pytest.raises(KaggleError, match=message) as error:
        go(folder, kaggle)
    assert kaggle.changes == [] and "0123456789abcdef" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": "short"}, "title"),
        ({"id": "OWNER/my-data"}, "OWNER"),
        ({"id": "you/my-data"}, "is 'you''s, and you are logged in as 'me'; write me/my-data"),
        ({"licenses": []}, "licen"),
        ({"subtitle": "too short"}, "subtitle"),
    ],
)
def test_metadata_that_kaggle_would_refuse_is_refused_first(folder: Path, change: dict, message: str) -> None:
    path = folder / "dataset-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    kaggle = PretendedKaggle()
    with pytest.raises(KaggleError, match=message):
        go(folder, kaggle)
    assert kaggle.changes == []


def test_a_slug_that_a_kernel_has_is_taken(folder: Path) -> None:
    kaggle = PretendedKaggle(kernels={"me/my-data": KernelState(phase="complete")})
    with pytest.raises(KaggleError, match="the slug of me/my-data is taken: you have a kernel of that name"):
        go(folder, kaggle)
    assert kaggle.changes == []


def test_a_dataset_of_other_making_is_replaced_only_where_that_is_said(folder: Path) -> None:
    by_hand = DatasetState(status="ready", version=4, notes={4: "Initial release"})
    kaggle = PretendedKaggle(datasets={"me/my-data": by_hand})
    with pytest.raises(KaggleError, match="the slug of me/my-data is taken: .* not published by this kit, and its"):
        go(folder, kaggle)
    assert kaggle.changes == []
    assert go(folder, kaggle, replace=True)[0].publication.version == 5
    assert go(folder, kaggle)[0].did == "unchanged"


def test_killed_after_the_upload_nothing_is_uploaded_again(folder: Path) -> None:
    kaggle = PretendedKaggle()

    def say(line: str) -> None:
        if "ready" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(folder, kaggle, say=say, clock=patient_clock())
    assert not (folder / STATE_FILE).exists()
    assert go(folder, kaggle)[0].did == "unchanged"
    assert kaggle.changes == ["create private"]


def test_it_waits_until_kaggle_gives_the_new_version(folder: Path) -> None:
    class Slow(PretendedKaggle):
        asked = 0

        def find_dataset(self, ref: str) -> DatasetState | None:
            state = super().find_dataset(ref)
            self.asked += 1
            if len(self.changes) < 2 or state is None:
                return state
            if self.asked < 6:  # still the one before, as ready as ever
                return replace(state, version=1)
            return replace(state, status="pending") if self.asked < 9 else state

    kaggle = Slow()
    go(folder, kaggle)
    (folder / "member.onnx").write_bytes(b"other weights")
    change, said = go(folder, kaggle)
    assert change.publication.version == 2 and kaggle.asked >= 9
    assert [line.partition(" (")[0] for line in said[-3:]] == [
        "dataset me/my-data: still version 1",
        "dataset me/my-data: pending",
        "dataset me/my-data: ready, version 2",
    ]


def test_the_kernel_s_version_of_it_must_be_the_new_one(folder: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    new_kernel("submit", kernel, owner="me", competition="digits", datasets=["me/my-data/3"])
    with pytest.raises(KaggleError, match="attaches me/my-data in version 3, and this is version 1"):
        go(folder, PretendedKaggle(), kernel=kernel)
    new_kernel("submit", tmp_path / "newest", owner="me", competition="digits", datasets=["me/my-data"])
    assert go(folder, PretendedKaggle(), kernel=tmp_path / "newest")[0].did == "created"


@pytest.mark.parametrize("public", [False, True])
def test_whoever_sees_it_is_said(folder: Path, public: bool) -> None:
    kaggle = PretendedKaggle()
    _, said = go(folder, kaggle, public=public)
    assert kaggle.changes == [f"create {'public' if public else 'private'}"]
    assert any("PUBLIC: everybody sees it" in line for line in said) == public


def test_a_dataset_that_stays_in_processing_is_said_with_its_state(folder: Path) -> None:
    pending = DatasetState(status="pending", version=1, notes={}, description="kaggle_kit content 0123456789abcdef")
    kaggle = PretendedKaggle(datasets={"me/my-data": pending})
    kaggle.version_dataset = lambda folder, message: None  # type: ignore[method-assign]
    with pytest.raises(KaggleError, match=r"dataset me/my-data is still 'pending' after"):
        go(folder, kaggle, limit_s=60.0)


def test_a_kernel_that_does_not_attach_it_is_said(folder: Path, tmp_path: Path) -> None:
    new_kernel("submit", tmp_path / "kernel", owner="me", competition="digits")
    kaggle = PretendedKaggle()
    with pytest.raises(KaggleError, match="does not attach me/my-data; add it to `dataset_sources`"):
        go(folder, kaggle, kernel=tmp_path / "kernel")
    assert kaggle.changes == []


def test_a_dry_run_shows_the_files_and_notes_nothing(folder: Path) -> None:
    said: list[str] = []
    client = DryRun(said.append, owner="me", datasets={"me/my-data": None})
    publish(folder, client, say=said.append, clock=patient_clock())
    assert any(line.startswith("would call create_dataset('me/my-data', 'private'") for line in said)
    assert "    member.onnx  7 bytes" in said
    assert not (folder / STATE_FILE).exists()
