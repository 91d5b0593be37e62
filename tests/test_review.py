from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from reviewed import NAMES, reviewed_audit

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.review.app import HEADER, make_app
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.audit.review.queues import QUEUES, make_entries
from kaggle_kit.cli import main
from kaggle_kit.edits import effective, make_edit, read_edits
from kaggle_kit.errors import DataError

starlette = pytest.importorskip("starlette", reason="the review page needs starlette, which the extra audit brings")
TOKEN, PORT = "a-token", 8123
ROW = {name: row for row, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    reviewed_audit(folder)
    return folder / "audit"


@pytest.fixture
def desk(audited: Path, tmp_path: Path) -> Desk:
    return Desk(audited, edits=tmp_path / "edits.jsonl", by="ann")


@pytest.fixture
def client(desk: Desk) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with TestClient(make_app(desk, TOKEN, port=PORT), base_url=f"http://127.0.0.1:{PORT}") as one:
        one.headers[HEADER] = TOKEN
        yield one


def test_queues_hold_what_was_found_the_worst_first(desk: Desk) -> None:
    state = desk.state()
    counts = {queue["name"]: (queue["open"], queue["count"]) for queue in state["queues"]}
    assert counts["labels"] == (4, 4) and counts["duplicates"] == (3, 3)
    page = desk.page("labels", start=0, size=24, everything=False)
    assert [entry["images"][0]["id"] for entry in page["entries"]] == [NAMES[row] for row in (3, 4, 5, 6)]
    image = page["entries"][0]["images"][0]
    assert (image["labels"], image["suggested"], image["split"]) == ({"kind": "1"}, {"kind": "0"}, "train")
    assert state["heads"][0]["classes"][1] == {"value": "1", "name": "<b>dog</b>"}


def test_images_that_belong_together_are_one_entry(desk: Desk) -> None:
    entries = desk.page("duplicates", start=0, size=24, everything=False)["entries"]
    groups = [{image["id"] for image in entry["images"]} for entry in entries]
    assert {NAMES[0], NAMES[10]} in groups and {NAMES[2], "test0.png"} in groups


def test_decisions_are_on_the_disk_at_once_and_close_their_entry(desk: Desk) -> None:
    answer = desk.decide("relabel", row=ROW[NAMES[3]], head="kind", value="0")
    assert answer["image"]["edited"] == {"kind": "0"}
    desk.decide("drop", row=ROW[NAMES[4]], why="empty")
    desk.decide("keep", row=ROW[NAMES[5]])
    found = effective(read_edits(desk.path))
    assert found.relabelled == {NAMES[3]: {"kind": "0"}}
    assert (found.dropped, found.kept) == ({NAMES[4]: "empty"}, frozenset({NAMES[5]}))
    assert [one.by for one in read_edits(desk.path)] == ["ann"] * 3
    assert desk.page("labels", start=0, size=24, everything=False)["count"] == 1
    assert desk.page("labels", start=0, size=24, everything=True)["count"] == 4
    assert desk.state()["decisions"] == 3


def test_undo_takes_back_one_s_own_last_decision_that_holds(desk: Desk) -> None:
    for name in (NAMES[3], NAMES[4]):
        desk.decide("drop", row=ROW[name])
    assert desk.undo()["image"]["id"] == NAMES[4]
    assert desk.undo()["image"]["id"] == NAMES[3]
    assert effective(read_edits(desk.path)).dropped == {}
    with pytest.raises(DataError, match="nothing of yours to undo"):
        desk.undo()


def test_another_reviewer_s_decisions_appear_and_are_not_undone(audited: Path, desk: Desk) -> None:
    bob = Desk(audited, edits=desk.path, by="bob")
    bob.decide("drop", row=ROW[NAMES[3]])
    assert desk.page("labels", start=0, size=24, everything=False)["count"] == 3
    with pytest.raises(DataError, match="nothing of yours"):
        desk.undo()


def decide_all(audited: Path, path: Path, name: str) -> None:
    desk = Desk(audited, edits=path, by=name)
    for row in range(len(NAMES)):
        desk.decide("keep", row=row, why=name)


def test_two_reviewers_at_once_lose_nothing(audited: Path, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=decide_all, args=(audited, path, name)) for name in ("ann", "bob")]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    edits = read_edits(path)
    assert [sum(one.by == name for one in edits) for name in ("ann", "bob")] == [len(NAMES)] * 2


def test_a_page_of_200_000_findings_is_quick() -> None:
    findings = [
        Finding(kind="near_duplicate", id=f"i{row}", split="train", group=row // 2, score=row % 7)
        for row in range(200_000)
    ]
    rows = {("train", f"i{row}"): row for row in range(200_000)}
    started = time.monotonic()
    entries = make_entries(QUEUES[2], findings, rows)
    assert len(entries) == 100_000 and entries[0].findings[0][0].score == 6
    assert time.monotonic() - started < 20  # a hang, not a timing


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({HEADER: ""}, 403),
        ({HEADER: "another"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example:8123"}, 403),
        ({"host": "127.0.0.1:9"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin"}, 200),
        ({"host": f"localhost:{PORT}"}, 200),
    ],
)
def test_only_the_page_itself_is_answered(client: Any, change: dict[str, str], code: int) -> None:
    for address in ("/", "/api/state", "/thumbnail/0", "/image/0"):
        assert client.get(address, headers=change).status_code == code, address
    body = {"action": "keep", "row": 0}
    assert client.post("/api/decide", json=body, headers=change).status_code == code


def test_the_token_may_be_in_the_address_for_images(client: Any) -> None:
    del client.headers[HEADER]
    assert client.get("/image/0").status_code == 403
    assert client.get(f"/image/0?token={TOKEN}").status_code == 200


@pytest.mark.parametrize(
    "address",
    ["/image/../../etc/passwd", "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/image/-1", "/image/99999", "/image/x"],
)
def test_no_request_reaches_another_file(client: Any, address: str) -> None:
    assert client.get(address).status_code in (400, 404)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"action": "explode", "row": 0}, "action is 'explode'"),
        ({"action": "undo", "row": 0}, "action is 'undo'"),
        ({"action": "drop", "row": 99}, "there is no image 99"),
        ({"action": "drop", "row": -1}, "there is no image -1"),
        ({"action": "drop", "row": "0"}, "row is '0'"),
        ({"action": "drop", "row": True}, "row is True"),
        ({"action": "drop", "row": 12}, "'test0.png' is no labelled train image"),
        ({"action": "relabel", "row": 0, "head": "sort", "value": "1"}, "there is no head 'sort'"),
        ({"action": "relabel", "row": 0, "head": "kind", "value": "7"}, "'7' is no class of head 'kind'"),
        ({"action": "drop", "row": 0, "why": 3}, "why is 3"),
        ({"action": "drop", "row": 0, "path": "/etc"}, "no object of"),
        ([1], "no object of"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    client: Any, desk: Desk, body: Any, message: str
) -> None:
    answer = client.post("/api/decide", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]
    assert not desk.path.exists()


def test_bodies_that_are_no_json_or_too_long_are_refused(client: Any, desk: Desk) -> None:
    kind = {"content-type": "application/json"}
    assert client.post("/api/decide", content=b"{", headers=kind).status_code == 400
    assert client.post("/api/decide", content=b" " * 200_000, headers=kind).status_code == 400
    assert client.post("/api/decide", content=b"{}", headers={"content-type": "text/plain"}).status_code == 400
    assert not desk.path.exists()


def test_pictures_are_the_images_themselves(client: Any, audited: Path) -> None:
    path = audited.parent / "data" / "images" / NAMES[4]
    sent = cv2.imdecode(np.frombuffer(client.get("/image/4?queue=labels").content, np.uint8), cv2.IMREAD_COLOR)
    assert (sent == cv2.imread(str(path))).all()
    small = cv2.imdecode(np.frombuffer(client.get("/thumbnail/4").content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert small.shape[:2] == (48, 48)


def test_the_page_runs_no_script_but_its_own(client: Any) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in answer.text and "NONCE" not in answer.text
    assert client.get("/").headers["content-security-policy"] != policy


def test_edits_of_other_data_are_refused_when_the_page_is_opened(audited: Path, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text(make_edit("drop", id="nobody").to_line(), encoding="utf-8")
    with pytest.raises(DataError, match="edits.jsonl line 1: 'nobody' is no labelled train image"):
        Desk(audited, edits=path)


def test_a_folder_without_an_audit_and_data_that_are_gone_are_said(audited: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no audit; make one with `kaggle-kit audit"):
        Desk(tmp_path)
    meta = json.loads((audited / "audit.json").read_text())
    (tmp_path / "audit.json").write_text(json.dumps({**meta, "data": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match="gone, which .* is an audit of, is gone"):
        Desk(tmp_path)


def test_the_command_merges_two_people_s_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        dataclasses.replace(
            make_edit("relabel", id="a", head="kind", value=value, by=name), at=f"2026-11-30T0{hour}:00:00Z"
        )
        for hour, (name, value) in enumerate([("ann", "1"), ("bob", "0")])
    ]
    for name, line in zip(("ann", "bob"), lines, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(line.to_line())
    files = [str(tmp_path / f"{name}.jsonl") for name in ("ann", "bob")]
    assert main(["review", "--merge", *files, "--out", str(tmp_path / "both.jsonl")]) == 1
    said = capsys.readouterr().out
    assert (
        "2 decisions of 2 files" in said and "head 'kind' of 'a': ann: relabel 1; later bob: relabel 0, which" in said
    )
    assert main(["review", "--merge", *files]) == 2
    assert main(["review"]) == 2
