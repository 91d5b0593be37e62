"""The trainings behind `claims.py`: each is one change to a base, trained with one seed and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from hidden import predict_hidden
from real_data import PLANS, make_competition

from kaggle_kit.files import replacing
from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.labels import Classes, Labels, read_labels, unseen_combinations
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.settings import build
from kaggle_kit.submission import read_submission
from kaggle_kit.task import Stored, Task, read_task, task_from_plain, task_to_plain
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.everything import train_everything

GroundName = Literal["stand-in", "handwriting"]
TRAIN_IMAGES, HIDDEN_IMAGES = 6_000, 6_000
WRITERS = ("4", "3", "2", "1")  # held out by seed
NUM_FOLDS = 5  # fold 0 is trained, or else everything
SIZE = (48, 80)  # of the stand-in's stored images
BASE: dict[GroundName, dict[str, Any]] = {
    "stand-in": {
        "epochs": 12,
        "augment": "letters",
        "model": {"name": "test_resnet"},
        "optim": {"lr": 4e-3},
        "loader": {"batch_size": 64},
    },
    "handwriting": {
        "epochs": 40,
        "augment": "letters",
        "model": {"name": "test_resnet", "input_size": [48, 72]},
        "optim": {"lr": 2e-3},
        "loader": {"batch_size": 32},
    },
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One change to the base of a ground.

    Attributes:
        ground: What it is trained and tested on.
        settings: Of the training, where they differ from the ground's base.
        auxiliary: Stand-in: whether the whole grapheme is a further target.
        weights_of: The arm whose network is the start; it belongs to the other ground.
        like: The arm of which this is the training on everything.
    """

    ground: GroundName = "stand-in"
    settings: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: bool = False
    weights_of: str = ""
    like: str = ""


CHANGES: dict[str, Mapping[str, Any]] = {
    "no_augmentation": {"augment": "none"},
    "mixed": {"mix": {"mixup": 0.4, "cutmix": 1.0, "share": 0.5}},
    "swa": {"average": {"swa_start": 0.7}},
    "class_weights": {"loss": {"class_weights": "sqrt"}},
}
ARMS: dict[str, Arm] = {
    "base": Arm(),
    "written": Arm(ground="handwriting"),
    **{f"written_{name}": Arm(ground="handwriting", settings=change) for name, change in CHANGES.items()},
    "auxiliary": Arm(auxiliary=True),
    "written_larger_model": Arm(ground="handwriting", settings={"model": {"name": "resnet10t"}}),
    "written_larger_image": Arm(ground="handwriting", settings={"model": {"input_size": [72, 108]}}),
    "pretrained": Arm(ground="handwriting", weights_of="base"),
    "frozen_first": Arm(ground="handwriting", weights_of="base", settings={"optim": {"freeze_epochs": 8}}),
    "discriminative": Arm(ground="handwriting", weights_of="base", settings={"optim": {"layer_decay": 0.5}}),
    "gently_discriminative": Arm(ground="handwriting", weights_of="base", settings={"optim": {"layer_decay": 0.8}}),
    "everything": Arm(like="base"),
    "written_everything": Arm(ground="handwriting", like="written"),
    **{name: Arm(settings=change) for name, change in CHANGES.items()},
}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A competition that arms are trained on.

    Attributes:
        task: Stored at an arm's size.
        data: Its data folder.
        hidden: Its hidden test.
        folds: Of a seed.
    """

    task: Task
    data: Path
    hidden: Path
    folds: Folds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one training.

    Attributes:
        arm: Which.
        seed: Of everything drawn.
        task: The competition.
        said: Of the hidden test.
        truth: {head: (N,) classes} of the same images.
        unseen: (N,) whether an image's combination is in none of the train images.
        cpu_minutes: Processor time of the training.
        run: The run.
    """

    arm: str
    seed: int
    task: Task
    said: Predictions
    truth: Classes
    unseen: np.ndarray
    cpu_minutes: float
    run: Run


def make_grounds(data: Path, work: Path, seeds: list[int]) -> None:
    """Render and unpack what arms are trained on, unless it is there, and pack it; before processes start."""
    if not (work / "stand-in" / "made").is_file():
        script = str(Path(__file__).with_name("render_bengali.py"))
        counts = ["--train", str(TRAIN_IMAGES), "--test", str(HIDDEN_IMAGES)]
        graphemes, out = str(data / "bengali_graphemes.tsv"), str(work / "stand-in")
        subprocess.run([sys.executable, script, graphemes, out, *counts], check=True)
        (work / "stand-in" / "made").touch()
    for seed in seeds:
        folder = handwriting_folder(work, seed)
        if not (folder / "task.yaml").is_file():
            make_competition(
                "bangla", PLANS["bangla"], data / "bangla_handwriting.zip", folder, WRITERS[seed % len(WRITERS)]
            )
    for arm in ARMS.values():
        for seed in seeds if arm.ground == "handwriting" else seeds[:1]:
            ground = open_ground(arm, work, seed)
            pack_train(ground.task, ground.data, store_folder(arm, work, seed))


def handwriting_folder(work: Path, seed: int) -> Path:
    """Return where the handwriting with a seed's writer held out is."""
    return work / f"handwriting-{WRITERS[seed % len(WRITERS)]}"


def store_folder(arm: Arm, work: Path, seed: int) -> Path:
    """Return where an arm's packed images are."""
    return handwriting_folder(work, seed) / "packed" if arm.ground == "handwriting" else work / f"packed-{SIZE[0]}"


def open_ground(arm: Arm, work: Path, seed: int) -> Ground:
    """Return what an arm is trained and tested on."""
    if arm.ground == "handwriting":
        folder = handwriting_folder(work, seed)
        task = read_task(folder / "task.yaml")
        labels = read_labels(task, folder / "data")
        folds = make_folds(labels, "stratified", num_folds=NUM_FOLDS, seed=seed, rare="train")
    else:
        folder = work / "stand-in"
        task = read_task("bengali").with_stored(Stored(height=SIZE[0], width=SIZE[1], fit="stretch"))
        labels = read_labels(task, folder / "data")
        folds = make_folds(labels, "unseen", num_folds=NUM_FOLDS, seed=seed, rare="train")
    if arm.auxiliary:
        further = {"grapheme": {"classes": "from_labels", "weight": 0.5}}
        task = task_from_plain({**task_to_plain(task), "auxiliary": further})
    return Ground(task=task, data=folder / "data", hidden=folder / "hidden", folds=folds)


def config_of(arm: Arm, work: Path, seed: int) -> TrainConfig:
    """Return an arm's settings."""
    values: dict[str, Any] = {**BASE[arm.ground], "seed": seed}
    for name, value in arm.settings.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, Mapping) else value
    if arm.weights_of:
        weights = read_run(run_folder(arm.weights_of, work, seed)).checkpoint(0)
        values["model"] = {**values["model"], "pretrained": True, "weights": str(weights)}
    return build(TrainConfig, values)


def run_folder(name: str, work: Path, seed: int) -> Path:
    """Return an arm's run folder."""
    return work / "runs" / f"seed{seed}" / name


def measure(name: str, work: Path, seed: int) -> None:
    """Train an arm with a seed and predict the hidden test, unless that was done before."""
    torch.set_num_threads(1)
    out = run_folder(name, work, seed)
    done = out.with_name(f"{name}.json")
    if done.is_file():
        return
    arm = ARMS[name]
    ground = open_ground(arm, work, seed)
    packed = store_folder(arm, work, seed)
    started, wall = time.process_time(), time.perf_counter()
    if arm.like:
        run = train_everything(read_run(run_folder(arm.like, work, seed)), out=out, packed=packed)
    else:
        config = config_of(arm, work, seed)
        run = train_run(
            ground.task, config, data=ground.data, folds=ground.folds, out=out, packed=packed, only=0, overwrite=True
        )
    spent = {"cpu_s": time.process_time() - started, "wall_s": time.perf_counter() - wall, "load": os.getloadavg()[0]}
    (said,) = predict_hidden(ground.task, [run], ground.hidden)
    said.save(out.with_name(f"{name}.npz"))
    with replacing(done) as temporary:
        temporary.write_text(json.dumps(spent), encoding="utf-8")
    print(f"{name}, seed {seed}: {spent['cpu_s'] / 60:.1f} minutes of processor time", file=sys.stderr, flush=True)


def read_outcome(name: str, work: Path, seed: int) -> Outcome | None:
    """Return what came of a training; None where it was not measured."""
    out = run_folder(name, work, seed)
    done = out.with_name(f"{name}.json")
    if not done.is_file():
        return None
    ground = open_ground(ARMS[name], work, seed)
    ids, truth = read_submission(ground.task, ground.hidden / "solution.csv")
    train = read_labels(ground.task.without_auxiliary(), ground.data)
    return Outcome(
        arm=name,
        seed=seed,
        task=ground.task.without_auxiliary(),
        said=Predictions.load(out.with_name(f"{name}.npz")).align(ids),
        truth=truth,
        unseen=unseen_combinations(Labels(ids=ids, classes=truth), train),
        cpu_minutes=json.loads(done.read_text(encoding="utf-8"))["cpu_s"] / 60,
        run=read_run(out),
    )
