from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import BENGALI, EVIL, LONG, made_audit, ships_audit, with_model

from kaggle_kit.audit.examine import Audit
from kaggle_kit.audit.report import page_fields, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of the sample `ships`, with its planted defects."""
    return ships_audit(tmp_path_factory.mktemp("ships"))


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright, of the extra dev")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; apt install chromium")
    with playwright.sync_playwright() as one:
        opened = one.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_map_shows_the_image_of_a_point(ships: Audit, tmp_path: Path, browser: Any, width: int) -> None:
    path = write_report(ships, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    fields, _ = page_fields(ships)
    points = json.loads(fields["map"]["points"])
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    place = int(np.argmin(points["x"]))  # alone at the left edge
    page.mouse.click(
        box["x"] + box["width"] / 2 + (points["x"][place] - 500) / 1000 * (box["width"] - 52),
        box["y"] + box["height"] / 2 + (points["y"][place] - 500) / 1000 * (box["height"] - 52),
    )
    assert page.locator("#shown .id").inner_text() == points["ids"][place]
    assert page.locator("#shown .where").inner_text() == points["where"][place]
    drawn = "document.querySelector('#shown canvas').getContext('2d').getImageData(96, 96, 1, 1).data[3]"
    assert page.evaluate(drawn) == 255
    page.select_option("#by", label="fold")
    assert page.locator("#legend button").all_inner_texts() == ["fold 0", "fold 1", "fold 2", "test"]
    page.locator("#legend button").nth(1).click()
    assert page.locator("#only").input_value() == "1"
    page.locator("#legend button").nth(3).click()
    assert page.locator("#only").input_value() == "-1"
    assert page.locator("#only option:checked").inner_text() == "test (60)"
    for bar in page.locator(".gauge").all():
        box = bar.bounding_box()
        for part in bar.locator("*").all():
            own = part.bounding_box()
            assert own["x"] >= box["x"] - 0.5 and own["x"] + own["width"] <= box["x"] + box["width"] + 0.5
        marker, label = bar.locator("i").bounding_box(), bar.locator(".value").bounding_box()
        ends = (label["x"], label["x"] + label["width"])
        assert min(abs(marker["x"] - end) for end in ends) <= 3
    page.check("#pictures")
    page.click("#closer")
    assert said == []
    page.close()


def test_hostile_names_run_nothing_in_a_browser(tmp_path: Path, browser: Any) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": [EVIL, BENGALI, LONG]}}, num_train=60, num_test=6)
    path = write_report(with_model(audit), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("window.broken") is None
    assert page.locator("#legend button").first.inner_text() == EVIL
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
