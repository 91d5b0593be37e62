"""Hydra composes a training from YAML and overrides; this is the only module that imports it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_kit.errors import KitError, SettingError, did_you_mean
from kaggle_kit.settings import build
from kaggle_kit.train.augment import read_augment
from kaggle_kit.train.config import TrainConfig

if TYPE_CHECKING:
    from kaggle_kit.runs import Run

OWN_SETTINGS = ("task", "data", "folds", "out", "packed", "fold", "like", "overwrite")
# What a training on everything may be told; all else it takes from the run that it follows.
LIKE_SETTINGS = ("like", "out", "packed", "overwrite", "max_hours", "log", "loader.num_workers")
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
        like: The run whose settings and epochs a training on everything takes; `task`, `data` and `folds` are then
            empty.
        overwrite: Replace a run that is there.
        train: The training settings.
    """

    task: str
    data: Path
    folds: Path
    out: Path
    packed: Path | None
    fold: int | None
    like: Path | None
    overwrite: bool
    train: TrainConfig


def compose_experiment(overrides: Sequence[str], *, needs: Sequence[str] = OWN_SETTINGS) -> Experiment:
    """Compose the defaults in `kaggle_kit/conf` with overrides such as `model=resnet50` or `optim.lr=1e-3`.

    Args:
        overrides: Settings, as `KEY=VALUE`.
        needs: Which of task, data, folds and out must be given; others may be left out, and are then empty.

    Raises:
        SettingError: For an override that is malformed, unknown, of the wrong type or out of range.
    """
    _check_form(overrides)
    values = _compose([_for_hydra(override) for override in overrides])
    if values["like"] is not None:
        _check_like(overrides)
        values |= {name: values[name] if values[name] != "???" else "" for name in ("task", "data", "folds")}
    for name in OWN_SETTINGS:
        if values.get(name, "???") == "???":
            if name in needs:
                wanted = [part for part in SHORT_HELP.split() if part.split("=")[0] in needs]
                raise SettingError(f"`{name}` is missing; give {' '.join(wanted)}")
            values[name] = ""
    fold = values["fold"]
    if fold != "all" and not (isinstance(fold, int) and not isinstance(fold, bool)):
        raise SettingError(f"`fold` is {fold!r}; expected all, or a fold's number")
    if not isinstance(values["overwrite"], bool):
        raise SettingError(f"`overwrite` is {values['overwrite']!r}; expected true or false")
    training = {name: value for name, value in values.items() if name not in OWN_SETTINGS}
    if isinstance(training["augment"], str):
        training["augment"] = read_augment(training["augment"])
    return Experiment(
        task=str(values["task"]),
        data=Path(str(values["data"])),
        folds=Path(str(values["folds"])),
        out=Path(str(values["out"])),
        packed=None if values["packed"] is None else Path(str(values["packed"])),
        fold=None if fold == "all" else fold,
        like=None if values["like"] is None else Path(str(values["like"])),
        overwrite=values["overwrite"],
        train=build(TrainConfig, training),
    )


def train_folds(experiment: Experiment, *, on_epoch: Callable[[int, int, float], None] | None = None) -> Run:
    """Train the folds of an experiment.

    Args:
        experiment: As `compose_experiment` gave it; not one that follows another run.
        on_epoch: Told (fold, epoch, score) after every epoch; what it raises ends the training.

    Raises:
        KitError: When task, data, folds and settings do not fit together, or training cannot go on.
    """
    from kaggle_kit.folds import Folds
    from kaggle_kit.task import read_task
    from kaggle_kit.train.crossval import train_run

    return train_run(
        read_task(experiment.task),
        experiment.train,
        data=experiment.data,
        folds=Folds.load(experiment.folds),
        out=experiment.out,
        packed=experiment.packed,
        beside=experiment.folds.parent,
        only=experiment.fold,
        overwrite=experiment.overwrite,
        on_epoch=on_epoch,
    )


def expand_multirun(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return a name and the overrides of each training that lists of values such as `optim.lr=1e-3,3e-3` stand for.

    Ranges mean what they mean to Hydra: `seed=range(3)`.

    Raises:
        SettingError: For an override that is malformed, or when there is no list.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    _check_form(overrides)
    try:
        parsed = OverridesParser.create().parse_overrides([_for_hydra(one) for one in overrides])
    except HydraException as error:
        raise SettingError(" ".join(str(error).split())) from None
    fixed = [one.input_line for one in parsed if not one.is_sweep_override()]
    lists = [
        [(one.get_key_element().lstrip("+"), value) for value in one.sweep_string_iterator()]
        for one in parsed
        if one.is_sweep_override()
    ]
    if not lists:
        raise SettingError("--multirun needs a list of values, such as optim.lr=1e-3,3e-3 or seed=range(3)")
    jobs = [
        (
            ",".join(re.sub(r"[^\w.=,-]", "_", f"{key}={value}") for key, value in chosen),
            [*fixed, *(_for_hydra(f"{key}={value}") for key, value in chosen)],
        )
        for chosen in itertools.product(*lists)
    ]
    names = [name for name, _ in jobs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingError(f"two of the trainings would go into one folder, {twice!r}; list each value once")
    return jobs


def describe_settings() -> str:
    """Return every setting with its default and choices, as the YAML they come from, and the model presets."""
    folder = resources.files("kaggle_kit.conf")
    models = _names(folder / "model")
    lines = (folder / "config.yaml").read_text(encoding="utf-8").split("\n\nhydra:")[0].splitlines()
    return "\n".join(
        [
            *lines,
            "",
            f"# model presets: {', '.join(models)}",
            "# model.name takes any timm model, model.pool auto, avg, gem or concat; the settings of a preset:",
            *(f"#   model.{line}" for line in (folder / "model" / "resnet18.yaml").read_text().splitlines()),
            f"# experiments, as experiment=NAME: {', '.join(_names(folder / 'experiment'))}",
        ]
    )


def preset_models() -> dict[str, str]:
    """Return {preset: the timm model it names}."""
    import yaml

    folder = resources.files("kaggle_kit.conf") / "model"
    files = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in _names(folder)}
    return {name: str(yaml.safe_load(text)["name"]) for name, text in files.items()}


def _names(folder: Traversable) -> list[str]:
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _check_form(overrides: Sequence[str]) -> None:
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise SettingError(f"{override!r} has no '='; write settings like epochs=3")


def _for_hydra(override: str) -> str:
    """Return an override as Hydra wants it: `experiment=` without a plus, weights of heads, unknown to it, with two."""
    if re.match(r"loss\.head_weights[.=]", override):
        return f"++{override}"
    return override.removeprefix("+") if override.startswith("+experiment=") else override


def _check_like(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = re.split("=", override.lstrip("+~"), maxsplit=1)[0]
        if not any(key == name or key.startswith(f"{name}.") for name in LIKE_SETTINGS):
            raise SettingError(
                f"`{key}` cannot be given beside `like`, which takes a run's settings as they are; leave it out "
                f"(what may be given: {', '.join(LIKE_SETTINGS)})"
            )


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
        hint = f"; any timm model goes by `model.name={absent[2]}`" if absent[1] == "model" else ""
        return f"`{absent[1]}={absent[2]}` names no preset{hint}{did_you_mean(absent[2], options)}"
    several = re.match(r"Ambiguous value for argument '([^=']+)=([^']*)'", text)
    if several:
        return f"`{several[1]}={several[2]}` lists several values; add --multirun to train with each of them"
    return " ".join(line for line in text.splitlines() if line and "https://" not in line)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in values.items():
        keys.append(prefix + name)
        if isinstance(value, Mapping):
            keys += _dotted_keys(value, f"{prefix}{name}.")
    return keys
