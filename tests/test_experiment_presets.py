from __future__ import annotations

import re
from importlib import resources

import pytest

from kaggle_kit.experiment import compose_experiment
from kaggle_kit.task import preset_names

FOLDER = resources.files("kaggle_kit.conf") / "experiment"
NAMES = sorted(item.name.removesuffix(".yaml") for item in FOLDER.iterdir() if item.name.endswith(".yaml"))


def test_there_is_one_for_every_task_preset() -> None:
    assert preset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_composes_by_the_command_it_shows(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    (command,) = re.findall(r"^# (kaggle-kit train .*)$", text, flags=re.MULTILINE)
    experiment = compose_experiment(command.split()[2:])
    assert experiment.task == name and f"experiment={name}" in command
    assert "not measured" in text  # until somebody has


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_goes_before_an_experiment(name: str) -> None:
    files = ["data=d", "folds=f", "out=o"]
    changed = compose_experiment([f"experiment={name}", *files, "epochs=30", "model=resnet18", "optim.lr=0.5"])
    assert (changed.train.epochs, changed.train.model.name, changed.train.optim.lr) == (30, "resnet18", 0.5)


def test_the_experiments_do_what_the_write_ups_did() -> None:
    files = ["data=d", "folds=f", "out=o"]
    bengali, ships = (compose_experiment([f"experiment={name}", *files]).train for name in ("bengali", "ships"))
    assert bengali.model.name == "seresnext50_32x4d" and bengali.schedule.small_size == (128, 128)
    assert bengali.mix.cutmix and bengali.mix.mixup and bengali.average.swa_start < 1
    assert bengali.loss.class_weights == "sqrt" and bengali.augment == "letters"
    assert ships.model.name == "resnet50" and ships.model.pretrained and ships.optim.freeze_epochs == 5
    assert ships.augment == "photos"


@pytest.mark.parametrize("override", ["loss.head_weights.root=2", "loss.head_weights={root:2}"])
def test_weights_of_heads_are_set_as_other_settings_are(override: str) -> None:
    made = compose_experiment(["task=digits", "data=x", "folds=y", "out=z", override])
    assert made.train.loss.head_weights == {"root": 2.0}
