"""The files around the package: what README, setup.cfg and .gitignore promise."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest

from kaggle_kit.cli import make_parser
from kaggle_kit.experiment import compose_experiment, expand_multirun
from kaggle_kit.runs_command import with_listing
from kaggle_kit.sweep.space import read_space
from kaggle_kit.task import read_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "competitions").glob("*/README.md"))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line.startswith("kaggle-kit ")
]


WORKED = sorted((ROOT / "competitions").glob("*/*"))
WORKED_LINES = [
    re.sub(r'"\$\{settings\[@\]\}"|"\$@"', "", line).replace('"$data"', "./data").replace('"$hidden"', "./hidden")
    for path in WORKED
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.startswith("kaggle-kit ")
]


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS + WORKED_LINES))
def test_commands_of_readme_and_worked_competitions_are_understood(line: str) -> None:
    options = make_parser().parse_args(with_listing(shlex.split(line)[1:]))
    if "--multirun" in line:
        assert len(expand_multirun(options.overrides)) > 1
    elif line.startswith("kaggle-kit sweep"):
        assert read_space(options.overrides).ranges
    elif "overrides" in options:
        needs = ("task", "data") if line.startswith("kaggle-kit show-augment") else ("task", "data", "folds")
        if options.overrides:
            compose_experiment(options.overrides, needs=needs)


@pytest.mark.parametrize("name", ["bengali", "ships"])
def test_a_worked_competition_s_script_trains_as_its_page_says(name: str) -> None:
    """What `run.sh` passes as settings stands in the page's commands."""
    script, page = ((ROOT / "competitions" / name / file).read_text("utf-8") for file in ("run.sh", "README.md"))
    (settings,) = re.findall(r"^settings=\((.*)\)$", script, flags=re.MULTILINE)
    trained = [line for line in page.splitlines() if line.startswith("kaggle-kit train task=")]
    assert trained and all(set(shlex.split(settings)) <= set(shlex.split(line)) for line in trained)


def test_the_readme_shows_the_whole_way() -> None:
    assert [line.split()[1] for line in COMMANDS] == [
        *("audit", "review"),
        *("folds", "train", "train", "audit", "blend"),
        *("bundle", "rehearse"),
        *("wheelhouse", "kernel", "publish", "publish", "submit"),
        *("folds", "runs", "runs", "runs"),
        *("show-augment", "lr-find", "weights", "train", "train", "train", "sweep", "baseline", "baseline"),
        *("blend", "bundle", "bundle", "predict", "score", "bench"),
        *("doctor", "rehearse", "rehearse", "kernel"),
    ]


def test_the_readme_s_task_is_one(tmp_path: Path) -> None:
    (block,) = [block for kind, block in BLOCKS if kind == "yaml"]
    (tmp_path / "task.yaml").write_text(block, encoding="utf-8")
    assert read_task(tmp_path / "task.yaml") == read_task("ships")


def test_the_readme_s_python_is_compiled() -> None:
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in PAGES])
def test_pages_link_to_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "kaggle_kit").rglob("__init__.py")
    }
    assert set(listed) == found | {"kaggle_kit.kernels"}
