"""Every training setting changes what it says it changes: none is accepted and ignored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Toy, make_wide

from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.settings import build, plain
from kaggle_kit.sources import PackedSource
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train import loop
from kaggle_kit.train import training as training_module
from kaggle_kit.train.averaging import Soup, greedy_soup
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.devices import make_fabric
from kaggle_kit.train.heads import derivation_of
from kaggle_kit.train.job import FoldJob
from kaggle_kit.train.stopping import Stopper
from kaggle_kit.train.training import Training, assemble

BASE: dict[str, Any] = {
    "model": {"name": "test_resnet", "input_size": [24, 32]},
    "loader": {"batch_size": 8},
    "epochs": 2,
}
OWN_LIST = "- HorizontalFlip: {p: 1.0}\n"
# Each setting: what else must hold for it to matter, and another value than the default.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "model.name": ({}, "test_efficientnet"),
    "model.input_size": ({}, [32, 32]),
    "model.pool": ({}, "gem"),
    "model.dropout": ({}, 0.5),
    "model.drop_path": ({"model.name": "test_convnext", "model.input_size": [32, 32]}, 0.5),
    "model.derive_from": ({}, "pair"),
    "optim.name": ({}, "sgd"),
    "optim.lr": ({}, 1e-4),
    "optim.weight_decay": ({}, 0.5),
    "optim.clip_norm": ({"optim.name": "sgd"}, 1e-4),
    "optim.layer_decay": ({}, 0.5),
    "optim.freeze_epochs": ({}, 1),
    "optim.frozen_lr": ({"optim.freeze_epochs": 1}, 1e-4),
    "schedule.name": ({}, "cosine"),
    "schedule.warmup": ({}, 0.6),
    "schedule.flat": ({"schedule.name": "flat-cosine"}, 0.9),
    "schedule.plateau_factor": ({"schedule.name": "plateau", "schedule.plateau_patience": 0, "epochs": 4}, 0.9),
    "schedule.plateau_patience": ({"schedule.name": "plateau", "epochs": 4}, 0),
    "schedule.small_size": ({"schedule.small_epochs": 1, "schedule.small_size": [16, 16]}, [16, 32]),
    "schedule.small_epochs": ({"schedule.small_epochs": 1, "schedule.small_size": [16, 16], "epochs": 3}, 2),
    "loss.name": ({}, "focal"),
    "loss.label_smoothing": ({}, 0.3),
    "loss.class_weights": ({}, "inverse"),
    "loss.effective_beta": ({"loss.class_weights": "effective"}, 0.5),
    "loss.focal_gamma": ({"loss.name": "focal"}, 1.0),
    "loss.head_weights": ({}, {"vowel": 5.0}),
    "sampling.name": ({}, "per-head"),
    "sampling.head": ({"sampling.name": "balanced"}, "root"),
    "augment": ({}, "none"),
    "mix.mixup": ({}, 0.4),
    "mix.cutmix": ({}, 1.0),
    "mix.fmix": ({}, 1.0),
    "mix.share": ({"mix.mixup": 0.4}, 0.3),
    "mix.free_share": ({"mix.mixup": 0.4}, 0.5),
    "average.ema": ({}, 0.9),
    "average.swa_start": ({}, 0.5),
    "average.swa_lr_share": ({"average.swa_start": 0.0}, 0.9),
    "loader.batch_size": ({}, 4),
    "loader.micro_batch": ({}, 4),
    "device.precision": ({}, "bf16"),
    "epochs": ({}, 3),
    "seed": ({}, 1),
}
# Settings that change no weights, or that a whole run is needed for: each has a test of its own below or elsewhere.
APART = {
    "model.pretrained": "tests below",
    "model.weights": "tests below",
    "average.soup": "tests below",
    "loader.num_workers": "tests/test_train.py: the same batches whatever the number",
    "loader.window_gb": "tests below",
    "device.channels_last": "tests below",
    "device.compile": "tests below",
    "log.to": "tests/test_logs.py, and tests below",
    "log.gradients": "tests below",
    "log.project": "tests/test_logs.py",
    "pseudo.predictions": "tests/test_pseudo.py",
    "pseudo.floor": "tests/test_pseudo.py",
    "edits": "tests/test_edits.py",
    "max_hours": "tests/test_resume.py",
}


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def config_with(changes: dict[str, Any]) -> TrainConfig:
    values = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return build(TrainConfig, values)


def paired_task() -> Task:
    """The toy's task with an auxiliary head: the pair of both classes."""
    values = task_to_plain(make_task())
    values["auxiliary"] = {"pair": {"classes": [f"{root}{vowel}" for root in range(3) for vowel in range(2)]}}
    return task_from_plain(values)


def make_task() -> Task:
    from conftest import wide_task

    return wide_task()


@dataclasses.dataclass(frozen=True)
class Ground:
    """What all trainings here share."""

    toy: Toy
    task: Task
    store: PackedSource


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    toy = make_wide(tmp_path_factory.mktemp("recipe"))
    table = toy.data / "train.csv"
    lines = table.read_text().splitlines()
    rows = [line + "," + "".join(line.split(",")[1:3]) for line in lines[1:]]
    table.write_text("\n".join([f"{lines[0]},pair", *rows]) + "\n")
    task = paired_task()
    return Ground(toy, task, pack_train(task, toy.data, toy.data.parent / "packed"))


def start(ground: Ground, config: TrainConfig, folder: Path) -> Training:
    labels = read_labels(ground.task, ground.toy.data)
    rows = np.arange(len(labels))
    job = FoldJob(
        task=ground.task,
        config=config,
        source=ground.store,
        labels=labels.align(ground.store.ids),
        train_rows=rows[rows % 3 > 0],
        valid_rows=rows[rows % 3 == 0],
        fold=0,
        folder=folder,
        derivation=derivation_of(ground.task, labels, config.model.derive_from) if config.model.derive_from else None,
    )
    return assemble(job, make_fabric(config))


def train(ground: Ground, config: TrainConfig, folder: Path) -> Training:
    training = start(ground, config, folder)
    loop._run_steps(training, Stopper(training.fabric, deadline=None), last_epoch=None, on_epoch=None)
    training.finish(lambda step: None)
    training.record.settle()
    training.record.drop_contenders()
    return training


def trace(training: Training) -> str:
    """Return a digest of all weights and scores that a training came to."""
    digest = hashlib.sha256()
    for network in (training.network, *training.averages.networks()):
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.float().numpy().tobytes())
    digest.update(json.dumps(plain(training.record.best)).encode())
    digest.update(json.dumps(len(training.record.history.rows)).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def traces(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of trainings by their settings, so that none is done twice."""
    return {}


def traced(ground: Ground, traces: dict[str, str], changes: dict[str, Any], folder: Path) -> str:
    key = json.dumps(changes, sort_keys=True)
    if key not in traces:
        traces[key] = trace(train(ground, config_with(changes), folder))
    return traces[key]


def test_every_setting_is_walked() -> None:
    settings = set(leaves(plain(TrainConfig())))
    assert settings == set(CHANGES) | set(APART)
    assert not set(CHANGES) & set(APART)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_the_training(ground: Ground, traces: dict[str, str], tmp_path: Path, name: str) -> None:
    context, value = CHANGES[name]
    before = traced(ground, traces, context, tmp_path / "before")
    after = traced(ground, traces, {**context, name: value}, tmp_path / "after")
    assert before != after, f"{name} changes nothing"


@pytest.mark.slow
def test_the_same_settings_give_the_same_bits(ground: Ground, traces: dict[str, str], tmp_path: Path) -> None:
    again = trace(train(ground, config_with({}), tmp_path))
    assert traced(ground, traces, {}, tmp_path / "again") == again


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["letters", "photos", "strong", OWN_LIST])
def test_every_augmentation_is_its_own(ground: Ground, traces: dict[str, str], tmp_path: Path, augment: str) -> None:
    found = traced(ground, traces, {"augment": augment}, tmp_path / "own")
    others = {traced(ground, traces, {"augment": one}, tmp_path / one) for one in ("none", "photos") if one != augment}
    assert found not in others


def test_channels_last_is_how_weights_lie(ground: Ground, tmp_path: Path) -> None:
    for on in (True, False):
        training = start(ground, config_with({"device.channels_last": on}), tmp_path / str(on))
        weights = [value for value in training.network.parameters() if value.ndim == 4 and min(value.shape) > 1]
        assert weights
        assert all(value.is_contiguous(memory_format=torch.channels_last) is on for value in weights)


def test_compile_compiles(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def fake(network: torch.nn.Module) -> torch.nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", fake)
    start(ground, config_with({}), tmp_path / "off")
    assert not compiled
    training = start(ground, config_with({"device.compile": True}), tmp_path / "on")
    assert compiled == [training.network]


def test_a_window_reaches_the_stream(ground: Ground, tmp_path: Path) -> None:
    from kaggle_kit.train.order import shuffle_window

    assert shuffle_window(ground.store, None) is None
    window = shuffle_window(ground.store, 0.001)
    assert window
    assert start(ground, config_with({"loader.window_gb": 0.001}), tmp_path).stream.window == window


@pytest.mark.slow
def test_pretrained_weights_are_where_training_starts(ground: Ground, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(7)
    path = tmp_path / "weights.safetensors"
    weights = timm.create_model("test_resnet").state_dict()
    save_file(weights, path)
    changes = {"model.pretrained": True, "model.weights": str(path)}
    network = start(ground, config_with(changes), tmp_path / "pretrained").network
    random = start(ground, config_with({}), tmp_path / "random").network
    name = "layer4.0.conv1.weight"
    assert torch.equal(network.backbone.state_dict()[name], weights[name])
    assert not torch.equal(random.backbone.state_dict()[name], weights[name])


@pytest.mark.slow
def test_a_soup_is_cooked_of_the_best_epochs_and_scored(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cooked: list[list[str]] = []

    def soup(paths: list[Path], **options: Any) -> Soup:
        cooked.append([path.name for path in paths])
        return greedy_soup(paths, **options)

    monkeypatch.setattr(training_module, "greedy_soup", soup)
    train(ground, config_with({"epochs": 4}), tmp_path / "off")
    assert not cooked
    training = train(ground, config_with({"epochs": 4, "average.soup": 3}), tmp_path / "on")
    (names,) = cooked
    assert len(names) == 3 and len(set(names)) == 3
    scores = {row["epoch"]: row["score"] for row in training.record.history.rows}
    best = sorted(scores, key=lambda epoch: -float(scores[epoch]))
    assert float(scores[int(names[0][len("contender") : -len("_raw.safetensors")])]) == scores[best[0]]


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True])
def test_loggers_are_told_of_every_epoch(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradients: bool
) -> None:
    told: dict[str, list[Any]] = {"log": [], "histogram": [], "close": []}

    class Listener:
        def log(self, step: int, values: dict[str, float]) -> None:
            told["log"].append((step, values))

        def histogram(self, step: int, values: dict[str, Any]) -> None:
            told["histogram"].append(sorted(values))

        def close(self) -> None:
            told["close"].append(True)

    from kaggle_kit.train.logs import Loggers

    def listening(config, **_options):
        assert config.to == ("tensorboard",)
        return Loggers({"fake": Listener()}, gradients=config.gradients)

    monkeypatch.setattr(training_module, "open_loggers", listening)
    config = config_with({"log.to": ["tensorboard"], "log.gradients": gradients})
    training = start(ground, config, tmp_path)
    loop._run_steps(training, Stopper(training.fabric, deadline=None), last_epoch=None, on_epoch=None)
    assert [step for step, _ in told["log"]] == [4, 8]
    assert {"loss", "rate", "score", "score_root", "seconds", "waiting"} <= told["log"][0][1].keys()
    assert len(told["histogram"]) == (2 if gradients else 0)
    if gradients:
        assert any(name.startswith("gradients/") for name in told["histogram"][0])
