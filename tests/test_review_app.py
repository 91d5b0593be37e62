from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reviewed import NAMES, issue, made_desk

from kaggle_kit import review_command
from kaggle_kit.audit.review.app import HEADER, make_app
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.cli import main
from kaggle_kit.edits import make_edit, read_edits

pytest.importorskip("starlette", reason="the review page needs starlette, which the extra audit brings")
pytest.importorskip("httpx", reason="starlette's test client needs httpx, of the extra dev")
TOKEN, PORT = "a-token", 8123
BODY = {"action": "keep", "queue": "labels", "entry": 0, "row": 3}


def client_of(desk: Desk) -> Any:
    from starlette.testclient import TestClient

    return TestClient(make_app(desk, TOKEN, port=PORT), base_url=f"http://127.0.0.1:{PORT}", headers={HEADER: TOKEN})


@pytest.fixture
def client(desk: Desk) -> Iterator[Any]:
    with client_of(desk) as one:
        yield one


def test_the_page_asks_shows_and_decides(client: Any, desk: Desk) -> None:
    assert client.get("/api/state").json()["queues"][0]["name"] == "labels"
    page = client.get("/api/queue/labels?size=2").json()
    assert [entry["images"][0]["id"] for entry in page["entries"]] == [NAMES[3], NAMES[4]]
    assert [one["place"] for one in client.get("/api/queue/labels?before=2&size=1").json()["entries"]] == [1]
    answer = client.post("/api/decide", json={**BODY, "action": "relabel", "values": {"kind": "0"}})
    assert answer.status_code == 200 and answer.json()["queues"][0]["open"] == 3
    assert client.get("/api/queue/labels").json()["count"] == 3
    assert client.get("/api/queue/labels?all=1").json()["count"] == 4
    assert client.post("/api/undo", json={"queue": "labels"}).json()["where"] == {"queue": "labels", "place": 0}
    assert [edit.action for edit in read_edits(desk.path)] == ["relabel", "undo"]
    assert client.get("/image/4").headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({HEADER: ""}, 403),
        ({HEADER: "another"}, 403),
        ({HEADER: "ক".encode()}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"origin": f"https://127.0.0.1:{PORT}"}, 403),
        ({"origin": "null"}, 403),
        ({"host": f"evil.example:{PORT}"}, 403),
        ({"host": "127.0.0.1:9"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin"}, 200),
        ({"host": f"localhost:{PORT}", "origin": f"http://localhost:{PORT}"}, 200),
    ],
)
def test_only_the_page_itself_is_answered(client: Any, desk: Desk, change: dict[str, str], code: int) -> None:
    for address in ("/", "/api/state", "/api/queue/labels", "/thumbnail/0", "/image/0"):
        assert client.get(address, headers=change).status_code == code, address
    assert client.post("/api/decide", json=BODY, headers=change).status_code == code
    assert client.post("/api/undo", json={}, headers=change).status_code == code
    rest = client.post("/api/keep_rest", json={"queue": "empty", "count": 1}, headers=change)
    assert rest.status_code == code
    assert desk.path.exists() == (code == 200)


def test_a_link_from_another_site_opens_the_page_and_nothing_else(client: Any) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/", headers={**link, "sec-fetch-dest": "iframe"}).status_code == 403
    assert client.get("/", headers={**link, HEADER: "guessed"}).status_code == 403
    assert client.get("/api/state", headers=link).status_code == 403
    assert client.post("/api/decide", json=BODY, headers=link).status_code == 403


def test_the_token_may_be_in_the_address(client: Any) -> None:
    del client.headers[HEADER]
    for address in ("/", "/thumbnail/0"):
        assert client.get(address).status_code == 403
        assert client.get(f"{address}?token={TOKEN}").status_code == 200
        assert client.get(f"{address}?token={TOKEN[:-1]}").status_code == 403


@pytest.mark.parametrize(
    "address",
    [
        "/image/../../etc/passwd",
        "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image//etc/passwd",
        "/image/-1",
        "/image/99999",
        "/image/x",
        "/image/1e3",
        "/thumbnail/14",
        "/thumbnail/-1",
        "/audit.json",
        "/page.js",
        "/api/queue/../state/edits.jsonl",
        "/api/queue/nosuch",
        "/api/queue/labels?start=-1",
        "/api/queue/labels?size=many",
        "/api/queue/labels?start=99999999999999999999",
    ],
)
def test_no_request_reaches_another_file(client: Any, address: str) -> None:
    assert client.get(address).status_code in (400, 404)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "explode"}, "action is 'explode'"),
        ({"action": "undo"}, "action is 'undo'"),
        ({"action": 3}, "action is 3; expected text"),
        ({"queue": "label"}, "there is no queue 'label'; did you mean 'labels'?"),
        ({"entry": 99}, "has no entry 99"),
        ({"entry": None}, "entry is None; expected a whole number"),
        ({"row": 4}, "image 4 is not in entry 0"),
        ({"row": -1}, "image -1 is not in entry 0"),
        ({"row": "3"}, "row is '3'"),
        ({"row": True}, "row is True"),
        ({"row": 3.0}, "row is 3.0"),
        ({"queue": "duplicates", "entry": 2, "row": 12}, "'test0.png' is no labelled train image"),
        ({"action": "relabel"}, "no head is relabelled"),
        ({"action": "relabel", "values": {"sort": "1"}}, "there is no head 'sort'"),
        ({"action": "relabel", "values": {"kind": "7"}}, "'7' is no class of head 'kind'"),
        ({"action": "relabel", "values": {"kind": "\ud800"}}, "is no class of head 'kind'"),
        ({"action": "relabel", "values": {"kind": 1}}, "values is {'kind': 1}; expected {head: class}"),
        ({"action": "relabel", "values": ["kind"]}, "values is ['kind']"),
        ({"path": "/etc"}, "no object of"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    client: Any, desk: Desk, change: dict[str, Any], message: str
) -> None:
    answer = client.post(
        "/api/decide", content=json.dumps({**BODY, **change}), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 and message in answer.json()["error"]
    assert not desk.path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 50_000, b" " * 200_000 + b"{}", b"nan"])
def test_bodies_that_are_no_json_or_too_long_are_refused(client: Any, desk: Desk, content: bytes) -> None:
    for address in ("/api/decide", "/api/undo", "/api/keep_rest"):
        answer = client.post(address, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
    assert client.post("/api/decide", content=b"{}", headers={"content-type": "text/plain"}).status_code == 400
    assert client.get("/api/decide").status_code == 405
    assert not desk.path.exists()


def test_all_that_is_left_is_kept_where_the_number_is_right(client: Any, desk: Desk) -> None:
    for sent in ({"queue": "labels"}, {"queue": "labels", "count": 3}, {"queue": "labels", "count": 4, "row": 1}):
        assert client.post("/api/keep_rest", json=sent).status_code == 400
    assert not desk.path.exists()
    answer = client.post("/api/keep_rest", json={"queue": "labels", "count": 4}).json()
    assert answer["said"] == "kept 4 image(s), all that were left here" and answer["queues"][0]["open"] == 0


def test_the_page_runs_no_script_but_its_own(client: Any) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert answer.text.count(f'<script nonce="{nonce}">') == answer.text.count("<script") == 1
    assert not {"NONCE", "STYLE", "SCRIPT"} & set(re.findall(r"\w+", answer.text))
    assert "http" not in re.sub(r"[^\n]*new Error[^\n]*", "", answer.text)  # it loads nothing from elsewhere
    assert answer.headers["cache-control"] == "no-store" and answer.headers["referrer-policy"] == "no-referrer"
    assert client.get("/").headers["content-security-policy"] != policy


def test_ids_and_classes_travel_as_they_are(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "../a\"b'c", "ক্ষি.png", *(f"i{row}" for row in range(3, 10))]
    head = {"classes": ["<b>ক</b>", 'a"/\\']}
    desk = made_desk(tmp_path, [issue(names[0], label="a")], ids=names, kind=(head, np.arange(8) % 2))
    with client_of(desk) as client:
        entry = client.get("/api/queue/labels?all=1").json()["entries"][0]
        assert entry["images"][0]["id"] == names[0] and entry["images"][0]["labels"] == {"kind": "<b>ক</b>"}
        sent = {"action": "relabel", "queue": "labels", "entry": 0, "row": 0, "values": {"kind": 'a"/\\'}}
        assert client.post("/api/decide", json=sent).json()["entry"]["images"][0]["edited"] == {"kind": 'a"/\\'}
    assert read_edits(desk.path)[0].id == names[0]


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
    assert "2 decisions of 2 files" in said
    assert "head 'kind' of 'a': ann: relabel 1; bob: relabel 0; with both it is kind 0" in said
    dropped = make_edit("drop", id="a", by="cid")
    (tmp_path / "cid.jsonl").write_text(dropped.to_line())
    assert main(["review", "--merge", *files, str(tmp_path / "cid.jsonl"), "--out", files[0]]) == 1
    said = capsys.readouterr().out
    assert "'a': ann: relabel 1; cid: drop; with both it is dropped" in said
    assert main(["review", "--merge", *files, "--out", str(tmp_path / "cid.jsonl")]) == 2
    assert "cid.jsonl exists and holds 1 decision(s), which would be lost; name it among" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merge", "a.jsonl"], "--merge takes edits files and --out FILE"),
        ([], "give the folder of an audit, or --merge FILE ... --out FILE"),
        (["{audit}", "--out", "x.jsonl"], "--out goes with --merge"),
        (["{tmp}/nothing"], "holds no audit; make one with `kaggle-kit audit TASK DATA --out"),
        (["{audit}", "--port", "99999"], "--port is 99999; expected 1024 to 65535"),
        (["{audit}", "--port", "80"], "--port is 80; expected 1024 to 65535, or leave it out for a free one"),
        (["{audit}", "--port", "{taken}"], "cannot be had (Address already in use); another review may be open there"),
        (["{audit}", "--edits", "{tmp}"], "is a folder; give --edits the path of a file"),
        (["{audit}", "--edits", "{other}"], "line 1: 'nobody' is no labelled train image of 'odd'"),
        (["{audit}", "--packed", "{tmp}"], "kaggle-kit: "),
    ],
)
def test_what_a_tired_person_gets_wrong_is_said_in_one_line(
    options: list[str], message: str, audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(make_edit("drop", id="nobody").to_line())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = [one.format(audit=audited, tmp=tmp_path, other=other, taken=port) for one in options]
        assert main(["review", "--no-browser", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_what_is_not_installed_is_named_with_its_extra(
    audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["review", str(audited)]) == 2
    assert "needs starlette and uvicorn; pip install 'kaggle_kit[audit]'" in capsys.readouterr().err


def test_no_browser_is_opened_where_it_would_take_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert not review_command._has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert review_command._has_screen()


def started(audited: Path, edits: Path) -> tuple[subprocess.Popen[str], str, list[str]]:
    """Start the command, and return it, the page's address, and what it said before."""
    command = [sys.executable, "-m", "kaggle_kit.cli", "review", str(audited), "--no-browser", "--edits", str(edits)]
    process = subprocess.Popen(
        [*command, "--by", "ann", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        if "token=" in line:
            return process, line.strip(), said
        said.append(line)
    raise AssertionError(said)


def sent(address: str, body: dict[str, Any]) -> Any:
    base, _, token = address.partition("/?token=")
    headers = {HEADER: token, "content-type": "application/json"}
    request = urllib.request.Request(f"{base}/api/decide", json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def test_ctrl_c_ends_with_a_summary_and_a_kill_loses_nothing(audited: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    process, address, said = started(audited, edits)
    assert said[0] == "Label issues: 4 open of 4\n"
    sent(address, BODY)
    process.kill()
    process.communicate()
    process, address, said = started(audited, edits)
    assert said[0] == "Label issues: 3 open of 4\n"
    sent(address, {**BODY, "entry": 1, "row": 4})
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    summary, line = out.splitlines()[-2:]
    assert summary == f"2 image(s) decided in {edits}; 7 still open"
    assert json.loads(line) == {"edits": str(edits), "decisions": 2, "open": 7}
    assert process.returncode == 0


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["review", "--help"])
    said = capsys.readouterr().out
    for option in ("--edits", "--by", "--packed", "--port", "--no-browser", "--merge", "--out"):
        assert option in said
