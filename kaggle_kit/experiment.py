"""Hydra composes a training from YAML and overrides; this is the only module that imports it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kaggle_kit.errors import KitError, SettingError, did_you_mean
from kaggle_kit.settings import build
from kaggle_kit.train.config import TrainConfig

OWN_SETTINGS = ("task", "data", "folds", "out", "packed", "fold", "overwrite")
SHORT_HELP = "task=TASK data=DIR folds=FILE out=DIR"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One `kaggle-kit train`.

    Attributes:
        task: A preset's name or the path of a task file.
        data: The competition's data folder.
        folds: The fold file.
        out: The run's folder.
        packed: The packed store to read or to make; None: one beside `folds`, or made there.
        fold: One fold's number, or None for all.
        overwrite: Replace a run that is there.
        train: The training settings.
    """

    task: str
    data: Path
    folds: Path
    out: Path
    packed: Path | None
    fold: int | None
    overwrite: bool
    train: TrainConfig


def compose_experiment(overrides: Sequence[str]) -> Experiment:
    """Compose the defaults in `kaggle_kit/conf` with overrides such as `model=resnet50` or `optim.lr=1e-3`.

    Raises:
        SettingError: For an override that is malformed, unknown, of the wrong type or out of range.
    """
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise SettingError(f"{override!r} has no '='; write settings like epochs=3")
    values = _compose(overrides)
    for name in OWN_SETTINGS:
        if values.get(name, "???") == "???":
            raise SettingError(f"`{name}` is missing; give {SHORT_HELP}")
    fold = values["fold"]
    if fold != "all" and not (isinstance(fold, int) and not isinstance(fold, bool)):
        raise SettingError(f"`fold` is {fold!r}; expected all, or a fold's number")
    if not isinstance(values["overwrite"], bool):
        raise SettingError(f"`overwrite` is {values['overwrite']!r}; expected true or false")
    training = {name: value for name, value in values.items() if name not in OWN_SETTINGS}
    return Experiment(
        task=str(values["task"]),
        data=Path(str(values["data"])),
        folds=Path(str(values["folds"])),
        out=Path(str(values["out"])),
        packed=None if values["packed"] is None else Path(str(values["packed"])),
        fold=None if fold == "all" else fold,
        overwrite=values["overwrite"],
        train=build(TrainConfig, training),
    )


def describe_settings() -> str:
    """Return every setting with its default and choices, as the YAML they come from, and the model presets."""
    folder = resources.files("kaggle_kit.conf")
    models = sorted(item.name.removesuffix(".yaml") for item in (folder / "model").iterdir())
    lines = (folder / "config.yaml").read_text(encoding="utf-8").split("\n\nhydra:")[0].splitlines()
    return "\n".join([*lines, "", f"# model presets: {', '.join(models)}", "# model.name takes any timm model"])


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        from hydra import compose, initialize_config_module
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise KitError(f"training needs {error.name}; pip install 'kaggle_kit[train]'") from None

    with initialize_config_module("kaggle_kit.conf", version_base="1.3"):
        try:
            config = compose("config", overrides=list(overrides))
        except HydraException as error:
            known = OmegaConf.to_container(compose("config"))
            raise SettingError(_explain(error, known)) from None
        try:
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
        except OmegaConfBaseException as error:
            raise SettingError(str(error).splitlines()[0]) from None
    assert isinstance(values, dict)
    return values


def _explain(error: Exception, known: Mapping[str, Any]) -> str:
    """Return Hydra's complaint in one line, with the closest setting where one was misspelt."""
    text = str(error)
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        keys = _dotted_keys(known)
        same_end = [key for key in keys if key.rpartition(".")[2] == unknown[1]]
        hint = f"; did you mean {same_end[0]!r}?" if same_end else did_you_mean(unknown[1], keys)
        return f"`{unknown[1]}` is not a setting{hint}"
    absent = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if absent:
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return (
            f"`{absent[1]}={absent[2]}` names no preset{did_you_mean(absent[2], options)}; "
            f"any timm model goes by `model.name={absent[2]}`"
        )
    return " ".join(line for line in text.splitlines() if line and "https://" not in line)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in values.items():
        keys.append(prefix + name)
        if isinstance(value, Mapping):
            keys += _dotted_keys(value, f"{prefix}{name}.")
    return keys
