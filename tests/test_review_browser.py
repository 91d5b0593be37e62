from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from reviewed import NAMES, issue, made_desk

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.review.app import make_app
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.cli import main
from kaggle_kit.edits import effective, read_edited_labels, read_edits
from kaggle_kit.folds import Folds
from kaggle_kit.labels import read_labels
from kaggle_kit.task import task_to_plain
from kaggle_kit.train.rows import fit_together, labelled_images

playwright = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright, of the extra dev")
uvicorn = pytest.importorskip("uvicorn", reason="the review page needs uvicorn, which the extra audit brings")
playwright.expect.set_options(timeout=30_000)  # of a machine that does other things, too
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt install chromium")
TOKEN = "a-token"  # noqa: S105  of a server that this file starts
HOSTILE = ["<script>window.broken=1</script>", "../\"a'b", "ক্ষি.png", *(f"i{row}" for row in range(3, 10))]
Open = Callable[[Desk], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as one:
        opened = one.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def served(desk: Desk) -> Iterator[str]:
    """Yield the address of a server of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(desk, TOKEN, port=port), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Return what opens a desk's page; whatever the console complains of fails the test, but for refused requests."""
    complaints: list[str] = []

    def hear(said: Any) -> None:
        if said.type in ("error", "warning") and "status of 400" not in said.text:
            complaints.append(said.text)

    with ExitStack() as stack:

        def open_it(desk: Desk) -> Any:
            address = stack.enter_context(served(desk))
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            stack.callback(page.close)
            page.set_default_timeout(30_000)
            page.on("console", hear)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address)
            page.wait_for_selector(".entry.here")
            return page

        yield open_it
    assert complaints == []


@pytest.fixture
def page(desk: Desk, open_page: Open) -> Any:
    return open_page(desk)


def says(page: Any, text: str) -> None:
    playwright.expect(page.locator("#said")).to_contain_text(text)


def left(page: Any, queue: str, number: str) -> None:
    """Check how many are open in a queue, as its button says."""
    playwright.expect(page.locator("nav button", has_text=queue).locator(".left")).to_have_text(number)


def test_a_reviewer_mends_labels_by_keys_alone_and_folds_and_train_see_it(
    page: Any, desk: Desk, audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in "adkrca":  # as fast as can be: accepts for train3, drops train4, keeps train5, and types "ca" for train6
        page.keyboard.press(key)
    playwright.expect(page.locator("#choices li")).to_have_count(1)
    page.keyboard.press("Enter")
    left(page, "Label issues", "✓")
    found = effective(read_edits(desk.path))
    assert found.relabelled == {NAMES[3]: {"kind": "0"}}
    assert set(found.dropped) == {NAMES[4]} and found.kept == {NAMES[5], NAMES[6]}  # train6 is a cat already
    data, task = audited.parent / "data", tmp_path / "task.yaml"
    before, labels = read_labels(desk.task, data), read_edited_labels(desk.task, data, desk.path)
    assert NAMES[4] not in labels.ids and len(labels) == len(before) - 1
    assert labels.classes["kind"][labels.ids.tolist().index(NAMES[3])] == 0
    task.write_text(yaml.safe_dump(task_to_plain(desk.task)), encoding="utf-8")
    out = tmp_path / "folds.parquet"
    made = ["folds", str(task), str(data), "--out", str(out), "--n", "2", "--edits", str(desk.path)]
    assert main([*made, "--audit", str(audited)]) == 0
    assert "1 image(s) relabelled, 1 dropped" in capsys.readouterr().out
    folds = Folds.load(out)
    assert NAMES[4] not in folds.ids and {one.id for one in folds.edits} == {NAMES[3], NAMES[4]}
    full, source, _ = labelled_images(str(task), data, packed=None, beside=tmp_path, edits=desk.path)
    ready = fit_together(full, labels, folds, source)
    for number in range(2):
        trained = source.ids[ready.train_rows(number)].tolist() + source.ids[ready.valid_rows(number)].tolist()
        assert sorted(trained) == sorted({*NAMES} - {NAMES[4], NAMES[7]})  # one was dropped, one cannot be read
    fold = dict(zip(folds.ids.tolist(), folds.fold.tolist(), strict=True))
    assert fold[NAMES[0]] == fold[NAMES[10]] and fold[NAMES[1]] == fold[NAMES[11]]


def test_digits_relabel_and_undo_takes_back_one_after_the_other(page: Any, desk: Desk) -> None:
    for key in "0k":
        page.keyboard.press(key)
    left(page, "Label issues", "2")
    page.keyboard.press("u")
    says(page, f"undone: keep of {NAMES[4]}")
    page.keyboard.press("u")
    says(page, f"undone: relabel of {NAMES[3]}")
    left(page, "Label issues", "4")
    assert page.locator(".entry.here .id").text_content() == NAMES[3]
    page.keyboard.press("u")
    says(page, "there is nothing to undo by 'ann'")
    assert [one.action for one in read_edits(desk.path)] == ["relabel", "keep", "undo", "undo"]


def test_one_of_a_group_is_kept_and_the_others_are_dropped(page: Any, desk: Desk) -> None:
    page.get_by_role("button", name="Duplicates").click()
    page.wait_for_selector("#entries.grouped .group")
    for _ in range(3):
        if page.locator(".entry.here .id").all_text_contents() == [NAMES[0], NAMES[10]]:
            break
        page.keyboard.press("ArrowRight")
    for key in "2o":
        page.keyboard.press(key)
    says(page, f"kept {NAMES[10]}, dropped 1 like it")
    found = effective(read_edits(desk.path))
    assert found.dropped == {NAMES[0]: f"duplicate of {NAMES[10]}"} and found.kept == {NAMES[10]}
    page.keyboard.press("u")
    left(page, "Duplicates", "3")
    page.keyboard.press("k")
    says(page, "kept all 2 of the group")


def test_after_a_reload_decided_ones_are_gone_and_can_be_shown_again(page: Any, desk: Desk) -> None:
    page.get_by_role("button", name="Drop").first.click()
    says(page, f"dropped {NAMES[3]}")
    page.reload()
    playwright.expect(page.locator(".entry")).to_have_count(3)
    page.get_by_label("show decided too").check()
    playwright.expect(page.locator(".entry")).to_have_count(4)
    assert page.locator(".state.dropped").count() == 1
    page.reload()
    playwright.expect(page.locator(".entry")).to_have_count(4)
    assert "#labels/0/all" in page.url
    for _ in range(2):
        page.keyboard.press("q")
    playwright.expect(page.locator("nav .here")).to_contain_text("Empty")
    page.reload()
    playwright.expect(page.locator("nav .here")).to_contain_text("Empty")


def test_pictures_come_whole_and_a_broken_one_says_why(page: Any) -> None:
    img = page.locator(".entry.here img:not(.rough)")
    img.wait_for()
    assert img.evaluate("one => [one.naturalWidth, one.naturalHeight]") == [80, 60]
    page.keyboard.press("z")
    playwright.expect(page.locator(".entry:visible")).to_have_count(1)
    page.keyboard.press("z")
    page.get_by_role("button", name="Broken files").click()
    playwright.expect(page.locator(".frame p")).to_contain_text("which is no JPEG, PNG")


def test_heads_are_relabelled_one_by_one_or_together(tmp_path: Path, open_page: Open) -> None:
    tags = {"kind": "multilabel", "classes": ["sea", "sky", "land"]}
    sets = np.zeros((8, 3), np.uint8)
    heads = {"root": ({"classes": 12}, np.arange(8)), "tags": (tags, sets)}
    findings = [issue("i1", head="root", label="1", suggested="11"), issue("i2", head="root", label="2", suggested="3")]
    desk = made_desk(tmp_path, findings, **heads)
    page = open_page(desk)
    page.keyboard.press("7")
    says(page, "i1 is root 7 now")
    playwright.expect(page.locator(".entry.here .id")).to_have_text("i2")
    for key in ("h", "r"):
        page.keyboard.press(key)
    for typed in ("lan", "sea"):
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    says(page, "i2 is tags sea land now")
    playwright.expect(page.locator(".entry.here .label.active")).to_contain_text("root")  # that is still to answer
    for key in ("r", "Tab", "Tab", "1", "1", "Enter"):
        page.keyboard.press(key)
    says(page, "i2 is root 11 now")
    page.keyboard.press("h")
    found = effective(read_edits(desk.path)).relabelled
    assert found == {"i1": {"root": "7"}, "i2": {"tags": "sea land", "root": "11"}}


def test_a_key_that_is_held_decides_once_and_moves_on_and_on(tmp_path: Path, open_page: Open) -> None:
    desk = made_desk(tmp_path, [issue(f"i{row}", label=str(row % 2), suggested="") for row in range(8)])
    page = open_page(desk)

    def hold(key: str) -> None:
        for _ in range(4):
            page.keyboard.down(key)
        page.keyboard.up(key)

    hold("d")
    left(page, "Label issues", "7")
    hold("j")
    playwright.expect(page.locator(".entry.here .id")).to_have_text("i5")
    hold("r")
    assert page.locator("#wanted").input_value() == ""
    for key in ("1", "Backspace"):
        hold(key)
    playwright.expect(page.locator("#choices li")).to_have_count(2)
    page.keyboard.type("0")
    hold("Enter")
    says(page, "i5 is kind 0 now")
    assert [(one.action, one.id) for one in read_edits(desk.path)] == [("drop", "i0"), ("relabel", "i5")]


def test_all_that_are_left_are_kept_and_come_back_at_once(tmp_path: Path, open_page: Open) -> None:
    gray = [Finding(kind="gray", id=f"i{row}", split="train", score=1) for row in range(5)]
    desk = made_desk(tmp_path, gray)
    page = open_page(desk)
    page.keyboard.press("d")
    left(page, "Gray", "4")
    page.keyboard.press("Shift+K")
    playwright.expect(page.locator("#resting")).to_have_text('Keep all that are left in "Gray among colour": 4 images?')
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keep the rest").click()
    page.get_by_role("button", name="Keep all").click()
    says(page, "kept 4 image(s), all that were left here")
    left(page, "Gray", "✓")
    playwright.expect(page.get_by_role("button", name="Keep the rest")).to_be_hidden()
    page.keyboard.press("u")
    says(page, "undone: keep of 4 images")
    left(page, "Gray", "4")
    for key in ("Shift+K", "y"):
        page.keyboard.press(key)
    left(page, "Gray", "✓")


@pytest.mark.parametrize(
    ("classes", "legend"),
    [
        ([f"c{one}" for one in range(12)], "1c02c13c24c35c46c57c68c79c8others:r"),
        ([str(one) for one in range(12)], "others than digits:r"),
        ([str(one) for one in range(10)], ""),
        (["cat", "dog"], "1cat2dog"),
    ],
)
def test_the_legend_says_what_digits_stand_for_and_how_to_give_others(
    tmp_path: Path, open_page: Open, classes: list[str], legend: str
) -> None:
    first, second = classes[:2]
    findings = [issue("i0", label=first, suggested=second)]
    page = open_page(made_desk(tmp_path, findings, kind=({"classes": classes}, np.zeros(8, int))))
    assert page.locator("#legend").text_content() == legend


def test_a_group_with_nothing_to_drop_says_so(tmp_path: Path, open_page: Open) -> None:
    pairs = [
        Finding(kind="exact_duplicate", id=name, split=split, group=0)
        for name, split in (("i0", "train"), ("i8", "test"))
    ]
    page = open_page(made_desk(tmp_path, pairs))
    playwright.expect(page.locator(".entry > .found")).to_have_text("nothing to drop: the others are in the test")
    page.keyboard.press("o")
    says(page, "kept i0; nothing to drop: the others are in the test")


def test_the_next_page_passes_nothing_over(tmp_path: Path, open_page: Open) -> None:
    twins = [
        Finding(kind="exact_duplicate", id=f"i{row}", split="train", group=100 * row + other, score=1)
        for row in range(0, 6)
        for other in range(0, 6)
    ]
    twins += [Finding(**{**one.__dict__, "id": "i7"}) for one in twins]
    desk = made_desk(tmp_path, twins)
    page = open_page(desk)
    playwright.expect(page.locator("#place")).to_have_text("1-8 of 36")
    desk.decide("drop", queue="duplicates", entry=0, row=0, values={})  # another page decides: six entries go
    page.keyboard.press("]")
    playwright.expect(page.locator("#place")).to_have_text("3-10 of 30")
    page.keyboard.press("[")
    playwright.expect(page.locator("#place")).to_have_text("1-8 of 30")
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    says(page, "this is the first one")


def test_what_files_say_is_shown_as_text(tmp_path: Path, open_page: Open) -> None:
    names = ["<b>ক</b>", "<img src=x onerror=window.broken=1>"]
    findings = [
        issue(name, label=names[row % 2], suggested=names[1 - row % 2], detail=HOSTILE[0], score=-row)
        for row, name in enumerate(HOSTILE[:3])
    ]
    desk = made_desk(tmp_path, findings, ids=HOSTILE, kind=({"classes": names}, np.arange(8) % 2))
    page = open_page(desk)
    playwright.expect(page.locator(".entry .id")).to_have_text(HOSTILE[:3])
    assert page.locator(".found").first.text_content() == HOSTILE[0]
    page.keyboard.press("r")
    playwright.expect(page.locator("#choices li")).to_have_count(2)
    page.keyboard.type("onerror")
    page.keyboard.press("Enter")
    says(page, f"is kind {names[1]} now")
    assert page.evaluate("window.broken") is None
    assert effective(read_edits(desk.path)).relabelled == {HOSTILE[0]: {"kind": names[1]}}


def test_an_error_is_said_and_the_entry_stays(page: Any, desk: Desk) -> None:
    desk.path.write_text("nonsense\n")
    page.keyboard.press("d")
    says(page, "edits.jsonl line 1 is no JSON")
    playwright.expect(page.locator(".entry:not(.settled)")).to_have_count(4)
    desk.path.unlink()
    page.keyboard.press("d")
    says(page, f"dropped {NAMES[3]}")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('queues').className") == ("after" if width == 390 else "")
