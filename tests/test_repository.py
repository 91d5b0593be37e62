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
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line.startswith("kaggle-kit ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_readme_s_commands_are_understood(line: str) -> None:
    options = make_parser().parse_args(with_listing(shlex.split(line)[1:]))
    if "--multirun" in line:
        assert len(expand_multirun(options.overrides)) > 1
    elif line.startswith("kaggle-kit sweep"):
        assert read_space(options.overrides).ranges
    elif "overrides" in options:
        needs = ("task", "data") if line.startswith("kaggle-kit show-augment") else ("task", "data", "folds")
        if options.overrides:
            compose_experiment(options.overrides, needs=needs)


def test_the_readme_shows_the_whole_way() -> None:
    assert [line.split()[1] for line in COMMANDS] == [
        *("pack", "folds", "train", "train", "blend", "bundle", "rehearse"),
        *("predict", "score"),
        *("pack",),
        *("audit", "audit", "review", "folds", "train"),
        *("folds", "folds", "runs", "runs", "runs"),
        *("show-augment", "lr-find", "weights", "train", "train"),
        *("train", "train", "sweep", "baseline", "baseline"),
        *("blend", "blend", "blend", "blend"),
        *("export", "bundle", "bundle", "bundle", "runs"),
        *("doctor", "wheelhouse", "rehearse", "rehearse", "kernel", "kernel", "publish", "publish", "submit"),
        *("predict", "bench"),
    ]


def test_the_readme_s_task_is_one(tmp_path: Path) -> None:
    (block,) = [block for kind, block in BLOCKS if kind == "yaml"]
    (tmp_path / "task.yaml").write_text(block, encoding="utf-8")
    assert read_task(tmp_path / "task.yaml") == read_task("ships")


def test_the_readme_s_python_is_compiled() -> None:
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "README.md", "exec")


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "kaggle_kit").rglob("__init__.py")
    }
    assert set(listed) == found | {"kaggle_kit.kernels"}
