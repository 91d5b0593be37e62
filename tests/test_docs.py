"""The documentation's site: built without network, whole, and true of the code and the command line."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from kaggle_kit.cli import make_parser
from kaggle_kit.experiment import compose_experiment
from kaggle_kit.runs_command import with_listing
from kaggle_kit.sweep.space import read_space

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
NAVIGATION = [
    Path(name).stem for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for name in entry.values()
]
PROMISED = re.compile(r"^::: (\S+)\n    options:\n      members: \[(.*)\]$", flags=re.MULTILINE)
SHELL = re.compile(r"```sh\n(.*?)```", flags=re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BUILD = """
import socket, sys

def refuse(*arguments, **settings):
    raise OSError("the site is built without network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]], standalone_mode=False)
print("imported:", *({"torch", "timm", "hydra", "pandas", "onnxruntime"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of the site, and what its build printed."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"there is no {package} here; pip install 'kaggle_kit[docs]'")
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-c", BUILD, str(ROOT / "mkdocs.yml"), str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def site(built: tuple[Path, str]) -> Path:
    return built[0]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands, and of the commands below them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield one
                yield from parsers(one)


def joined(text: str) -> str:
    """Return a text in which each command is one line."""
    return re.sub(r"\\\n\s*", "", text)


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in joined(text).splitlines() if line.strip().startswith("kaggle-kit ")]


WRITTEN = [line for page in PAGES.values() for block in SHELL.findall(page) for line in lines_of(block)]
EXAMPLES = [line for parser in parsers(make_parser()) for line in lines_of(parser.epilog or "")]


def imported(code: str) -> set[str]:
    """Return the dotted names of the package that a script imports."""
    return {
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kaggle_kit.")
        for name in node.names
    }


def anchors(site: Path) -> set[str]:
    return {name for path in site.glob("*.html") for name in re.findall(r'id="([^"]+)"', path.read_text("utf-8"))}


class Assets(HTMLParser):
    """Collects the addresses that a page loads; those that a person may click do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = {"src", "srcset", "data", "poster"} | ({"href"} if tag in ("link", "use", "image") else set())
        self.addresses += [value or "" for name, value in attrs if name in loads]


def test_every_page_of_the_navigation_is_built_and_no_other_is_written(site: Path) -> None:
    assert {*PAGES, "commands"} == set(NAVIGATION)
    assert {path.stem for path in site.glob("*.html")} == {*NAVIGATION, "404"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_every_name_that_it_promises(page: str, site: Path) -> None:
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    promised = [f"{module}.{name}" for module, names in PROMISED.findall(PAGES[page]) for name in names.split(", ")]
    assert promised
    assert PAGES[page].count("\n::: ") == len(PROMISED.findall(PAGES[page]))
    assert [name for name in promised if f'id="{name}"' not in html] == []


@pytest.mark.parametrize("source", ["README.md", *sorted(str(one) for one in (ROOT / "kernels").glob("*/*.py"))])
def test_whatever_readme_and_kernels_import_is_on_a_page(source: str, site: Path) -> None:
    text = (ROOT / source).read_text(encoding="utf-8")
    names = set().union(*map(imported, PYTHON.findall(text) if source.endswith(".md") else [text]))
    known = anchors(site)
    homes = {name.rpartition(".")[2] for name in known if name.startswith("kaggle_kit.")}
    assert {name for name in names if name not in known and name.rpartition(".")[2] not in homes} == set()


def test_the_pages_python_imports_what_exists() -> None:
    names = {name for page in PAGES.values() for block in PYTHON.findall(page) for name in imported(block)}
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_pages_lead_from_one_stage_to_the_next() -> None:
    stages = NAVIGATION[1:-1]
    for page, following in zip(stages, [*stages[1:], "commands"], strict=True):
        assert f"]({following}.md)" in PAGES[page], f"{page} does not lead to {following}"


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assets = Assets()
        assets.feed(path.read_text(encoding="utf-8"))
        assert assets.addresses
        assert [one for one in assets.addresses if re.match(r"\s*([a-z]+:)?//", one)] == [], path.name
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", path.read_text("utf-8")) == [], path.name


def test_the_site_names_no_path_of_this_machine(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text, path.name
        assert str(Path.home()) not in text, path.name


def test_sources_are_parsed_and_not_imported(built: tuple[Path, str]) -> None:
    assert built[1].splitlines()[-1] == "imported:"


def test_every_command_and_option_is_on_the_page_of_commands(site: Path) -> None:
    html = (site / "commands.html").read_text(encoding="utf-8")
    text = joined(unescape(re.sub(r"<[^>]+>", "", html)))
    for parser in parsers(make_parser()):
        assert f'id="{parser.prog.replace(" ", "-")}"' in html
        options = {option for action in parser._actions for option in action.option_strings}
        assert [one for one in options if not re.search(rf"(?<![\w-]){re.escape(one)}(?![\w-])", text)] == []
        assert all(line in text for line in lines_of(parser.epilog or ""))


def test_every_command_has_a_line_on_the_page_of_its_stage() -> None:
    commands = {parser.prog.split()[1] for parser in parsers(make_parser())}
    assert {line.split()[1] for line in WRITTEN} == commands


@pytest.mark.parametrize("line", dict.fromkeys(WRITTEN + EXAMPLES))
def test_the_pages_commands_are_understood(line: str) -> None:
    options = make_parser().parse_args(with_listing(shlex.split(line)[1:]))
    if line.startswith("kaggle-kit sweep"):
        assert read_space(options.overrides).ranges
    elif "overrides" in options and options.overrides and "--multirun" not in line:
        needs = ("task", "data") if line.startswith("kaggle-kit show-augment") else ("task", "data", "folds")
        compose_experiment(options.overrides, needs=needs)


def test_pages_name_only_commands_that_exist() -> None:
    commands = {parser.prog for parser in parsers(make_parser())}
    named = {name for page in PAGES.values() for name in re.findall(r"`(kaggle-kit [a-z-]+)", page)}
    assert named <= commands


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt install chromium")
def test_the_site_opens_from_disk_and_its_search_finds_a_function(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright, of the extra dev")
    asked: list[str] = []
    complaints: list[str] = []
    with playwright.sync_playwright() as one:
        browser = one.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for name in NAVIGATION:
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.locator("input[name=query]").click()
        page.keyboard.type("freeze_backbone")
        found = page.locator(".md-search-result__link").first
        found.wait_for(timeout=30_000)
        assert "training.html" in str(found.get_attribute("href"))
        browser.close()
    assert complaints == []
    assert [address for address in asked if not address.startswith("file:")] == []
