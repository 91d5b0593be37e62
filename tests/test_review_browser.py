from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reviewed import NAMES, reviewed_audit

from kaggle_kit.audit.review.app import make_app
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.edits import apply_edits, effective, read_edits
from kaggle_kit.labels import read_labels

playwright = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright, of the extra dev")
uvicorn = pytest.importorskip("uvicorn", reason="the review page needs uvicorn, which the extra audit brings")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt install chromium")
TOKEN = "a-token"  # noqa: S105  of a server that this file starts


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browsed")
    reviewed_audit(folder)
    return folder / "audit"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as one:
        opened = one.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def desk(audited: Path, tmp_path: Path) -> Desk:
    return Desk(audited, edits=tmp_path / "edits.jsonl", by="ann")


@pytest.fixture
def page(desk: Desk, browser: Any) -> Iterator[Any]:
    """Open the page of a server of its own; whatever the console complains of fails the test."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(desk, TOKEN, port=port), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(15_000)
        complaints: list[str] = []
        opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        while not server.started:
            time.sleep(0.02)
        opened.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        opened.wait_for_selector(".entry.here")
        yield opened
        opened.close()
        server.should_exit = True
        thread.join(10)
    assert complaints == []


def wait_for_decisions(desk: Desk, number: int) -> list[Any]:
    """Return all lines of the file, once there are so many."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        edits = read_edits(desk.path) if desk.path.exists() else []
        if len(edits) >= number:
            return edits
        time.sleep(0.05)
    raise AssertionError(f"{len(edits)} decisions, not {number}")


def said(page: Any, text: str) -> None:
    playwright.expect(page.locator("#said")).to_contain_text(text)


def test_a_reviewer_mends_labels_by_keys_alone_and_what_train_sees_changes(
    page: Any, desk: Desk, audited: Path
) -> None:
    for key in "adkr":  # as fast as can be: takes the suggestion for train3, drops train4, keeps train5, asks for train6
        page.keyboard.press(key)
    page.wait_for_selector("#chooser[open]")
    page.keyboard.type("ca")
    page.keyboard.press("Enter")
    said(page, f"relabelled {NAMES[6]}")
    found = effective(wait_for_decisions(desk, 4))
    assert found.relabelled == {NAMES[3]: {"kind": "0"}, NAMES[6]: {"kind": "0"}}
    assert set(found.dropped) == {NAMES[4]} and found.kept == {NAMES[5]}
    labels = read_labels(desk.task, audited.parent / "data")
    edited = apply_edits(labels, read_edits(desk.path), desk.task, path=desk.path)
    assert NAMES[4] not in edited.ids and len(edited) == len(labels) - 1
    assert edited.classes["kind"][edited.ids.tolist().index(NAMES[3])] == 0


def test_digits_relabel_and_undo_takes_it_back(page: Any, desk: Desk) -> None:
    page.keyboard.press("1")
    said(page, f"relabelled {NAMES[3]}")
    page.keyboard.press("u")
    said(page, "undone: relabel")
    assert [one.action for one in wait_for_decisions(desk, 2)] == ["relabel", "undo"]
    assert effective(read_edits(desk.path)).relabelled == {}
    assert page.locator(".entry").count() == 4


def test_one_of_a_group_is_kept_and_the_others_are_dropped(page: Any, desk: Desk) -> None:
    page.get_by_role("button", name="Duplicates").click()
    page.wait_for_selector("#entries.grouped .group")
    ids = page.locator(".entry.here .id").all_text_contents()
    while ids != [NAMES[0], NAMES[10]]:
        page.keyboard.press("ArrowRight")
        ids = page.locator(".entry.here .id").all_text_contents()
    page.keyboard.press("2")
    page.keyboard.press("o")
    said(page, f"kept {NAMES[10]}, dropped {NAMES[0]}")
    found = effective(wait_for_decisions(desk, 2))
    assert found.dropped == {NAMES[0]: f"duplicate of {NAMES[10]}"} and found.kept == {NAMES[10]}


def test_after_a_reload_decided_ones_are_gone_and_can_be_shown_again(page: Any, desk: Desk) -> None:
    page.keyboard.press("k")
    said(page, "kept")
    page.reload()
    page.wait_for_selector(".entry.here")
    assert page.locator(".entry").count() == 3
    page.get_by_label("decided ones too").check()
    playwright.expect(page.locator(".entry")).to_have_count(4)
    assert page.locator(".state.kept").count() == 1
    page.keyboard.press("q")
    page.wait_for_selector("#entries.grouped")


def test_what_files_say_is_shown_as_text(page: Any) -> None:
    assert page.evaluate("window.broken") is None
    assert page.locator(".found").first.text_content().startswith("<script>")
    assert page.locator(".label").first.text_content() == "<b>dog</b>"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
