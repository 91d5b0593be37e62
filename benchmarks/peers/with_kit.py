"""kaggle_kit: a packed store, its stream of batches, and `train_fold`."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning_fabric  # noqa: F401  (imported where first needed: not part of the training, as with the others)
import numpy as np
import timm.optim  # noqa: F401
from measured import Plan, begin

from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.task import Stored, Task, task_from_plain
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import DeviceConfig, LoaderConfig, MixConfig, ModelConfig, TrainConfig
from kaggle_kit.train.job import FoldJob
from kaggle_kit.train.loop import train_fold
from kaggle_kit.train.predict import predict_rows


def main() -> None:
    """Train, and report."""
    plan, meter = begin()
    task, root = make_task(plan), Path(plan.folder) / "kit"
    source = pack_train(task, root, root / f"packed{plan.size}")
    labels = read_labels(task, root).align(source.ids)
    rows = {part: part_rows(source.ids, part) for part in ("train", "valid", "test")}
    folder = Path(plan.scratch)
    job = FoldJob(
        task=task,
        config=make_config(plan),
        source=source,
        labels=labels,
        train_rows=np.random.default_rng(0).permutation(rows["train"])[: plan.images],
        valid_rows=rows["valid"] if not plan.score else rows["train"][:0],
        fold=0,
        folder=folder,
    )
    meter.start()
    train_fold(job)
    call_s, accuracy = meter.elapsed(), None
    if plan.score:
        (checkpoint,) = folder.glob("*.safetensors")
        network, _ = load_checkpoint(checkpoint)
        decided = predict_rows(network, source, rows["test"])["label"].argmax(axis=1)
        accuracy = float((decided == labels.classes["label"][rows["test"]]).mean())
    with (folder / "history.csv").open(encoding="utf-8") as file:
        waiting = [float(row["waiting"]) for row in csv.DictReader(file)]
    meter.report(accuracy, call_s=call_s, waiting=sum(waiting) / len(waiting))


def make_task(plan: Plan) -> Task:
    """Return the task of a folder of class folders."""
    stored = Stored(height=plan.size, width=plan.size, fit="stretch")
    classes = sorted(path.name for path in (Path(plan.folder) / "train").iterdir())
    values = {
        "name": "benchmark",
        "heads": {"label": {"classes": classes}},
        "metric": "accuracy",
        "images": {
            "format": "files",
            "channels": plan.channels,
            "folder": "images",
            "class_folders": True,
            "test_list": "test.csv",
        },
        "labels": {"file": ""},
        "submission": {"form": "row_per_image"},
    }
    return task_from_plain(values).with_stored(stored)


def make_config(plan: Plan) -> TrainConfig:
    """Return kaggle_kit's defaults, but for what the plan says of them."""
    preset = {"preset": "auto", "mixup": "auto"}.get(plan.augment, plan.augment)
    return TrainConfig(
        model=ModelConfig(name=plan.model),
        augment=preset,
        mix=MixConfig(mixup=0.2, cutmix=1.0, free_share=0.0) if plan.augment == "mixup" else MixConfig(),
        loader=LoaderConfig(batch_size=plan.batch, num_workers=plan.workers),
        device=DeviceConfig(precision="fp32"),
        epochs=plan.epochs,
        seed=plan.seed,
    )


def part_rows(ids: np.ndarray, part: str) -> np.ndarray:
    """Return the rows of the images whose file name begins with the part's."""
    return np.flatnonzero(np.char.find(ids, f"/{part}-") >= 0)


if __name__ == "__main__":
    main()
