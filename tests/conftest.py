"""One toy competition for every stage: two heads, several shards, a duplicate and a broken image."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.ensemble import Blend, Prefix
from kaggle_kit.mixes import Mix, MixKind, Stack, Table, quantiles
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, task_from_plain

if TYPE_CHECKING:
    from kaggle_kit.audit.review.desk import Desk
    from kaggle_kit.folds import Folds
    from kaggle_kit.predictions import Predictions
    from kaggle_kit.runs import Run
    from kaggle_kit.train.data import TrainStream
    from kaggle_kit.train.job import FoldJob

# Before torch is imported: the networks here are too small for two threads, which wait for each other where tests, or
# anything else, run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SIZE = (24, 32)
HEADS = {"root": 3, "vowel": 2}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy competition: its task, what the competitor sees, and the hidden test."""

    task: Task
    data: Path
    hidden: Path


def wide_task() -> Task:
    return task_from_plain(
        {
            "name": "toy-wide",
            "heads": {"root": {"classes": 3, "weight": 2}, "vowel": {"classes": 2}},
            "metric": "macro_recall",
            "groups": "writer",
            "images": {
                "format": "wide_parquet",
                "train": "train_*.parquet",
                "test": "test_*.parquet",
                "height": SIZE[0],
                "width": SIZE[1],
                "channels": 1,
            },
            "stored": {"height": SIZE[0], "width": SIZE[1]},
            "submission": {"form": "row_per_head", "id": "row_id"},
        }
    )


def files_task() -> Task:
    return task_from_plain(
        {
            "name": "toy-files",
            "heads": {"kind": {"classes": ["cat", "dog"], "values": [1, 2]}},
            "metric": "weighted_f1",
            "images": {"format": "files", "folder": "images", "test_list": "test.csv", "id": "image"},
            "stored": {"height": 24, "width": 32, "fit": "letterbox"},
            "labels": {"id": "image"},
            "submission": {"form": "row_per_image", "id": "image", "target": "kind"},
        }
    )


def draw(root: int, vowel: int, rng: np.random.Generator) -> np.ndarray:
    """A bright block whose place tells the root, on paper whose shade tells the vowel."""
    image = rng.integers(0, 30, SIZE, dtype=np.uint8) + np.uint8(100 * vowel)
    image[6:18, 2 + 10 * root : 10 + 10 * root] = 255
    return image


def write_shard(path: Path, ids: list[str], images: np.ndarray) -> None:
    flat = images.reshape(len(images), SIZE[0] * SIZE[1])
    columns = {"image_id": pa.array(ids)} | {str(i): pa.array(flat[:, i]) for i in range(flat.shape[1])}
    columns["__index_level_0__"] = pa.array(np.arange(len(ids)))
    parquet.write_table(pa.table(columns), path)


def make_wide(folder: Path, *, num_train: int = 48, num_test: int = 9) -> Toy:
    data, hidden = folder / "data", folder / "hidden"
    data.mkdir(parents=True)
    hidden.mkdir()
    rng = np.random.default_rng(0)
    classes = np.stack([rng.integers(0, c, num_train + num_test) for c in HEADS.values()], axis=1)
    classes[:6] = [[root, vowel] for root in range(3) for vowel in range(2)]
    images = np.stack([draw(root, vowel, rng) for root, vowel in classes])
    images[1] = images[0]  # a duplicate
    train_ids = [f"Train_{i}" for i in range(num_train)]
    test_ids = [f"Test_{i}" for i in range(num_test)]
    for shard, rows in enumerate(np.array_split(np.arange(num_train), 3)):
        write_shard(data / f"train_{shard}.parquet", [train_ids[i] for i in rows], images[rows])
    table = [
        [name, *pair, f"w{i % 4}"] for i, (name, pair) in enumerate(zip(train_ids, classes.tolist(), strict=False))
    ]
    write_rows(data / "train.csv", ["image_id", "root", "vowel", "writer"], table)
    _write_wide_test(data, test_ids[:2], images[num_train : num_train + 2], None)
    _write_wide_test(hidden, test_ids, images[num_train:], classes[num_train:])
    return Toy(task=wide_task(), data=data, hidden=hidden)


def _write_wide_test(folder: Path, ids: list[str], images: np.ndarray, classes: np.ndarray | None) -> None:
    for shard, rows in enumerate(np.array_split(np.arange(len(ids)), 2)):
        write_shard(folder / f"test_{shard}.parquet", [ids[i] for i in rows], images[rows])
    row_ids = [f"{name}_{head}" for name in ids for head in ("vowel", "root")]
    write_rows(folder / "sample_submission.csv", ["row_id", "target"], [[row, 0] for row in row_ids])
    if classes is not None:
        truth = [value for root, vowel in classes.tolist() for value in (vowel, root)]
        write_rows(folder / "solution.csv", ["row_id", "target"], zip(row_ids, truth, strict=True))


def make_files(folder: Path) -> Toy:
    data, hidden = folder / "data", folder / "hidden"
    (data / "images").mkdir(parents=True)
    (hidden / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    rows = []
    for i in range(24):
        image = cv2.resize(draw(i % 2, 0, rng), (40 + i, 30))
        cv2.imwrite(str(data / "images" / f"{i}.jpg"), cv2.merge([image, image, 255 - image]))
        rows.append([f"{i}.jpg", 1 + i % 2])
    truncated = data / "images" / "3.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    write_rows(data / "train.csv", ["image", "kind"], rows[:20])
    write_rows(data / "test.csv", ["image"], [row[:1] for row in rows[20:]])
    write_rows(data / "sample_submission.csv", ["image", "kind"], [[row[0], 1] for row in rows[20:]])
    for name in [row[0] for row in rows[20:]]:
        (hidden / "images" / name).write_bytes((data / "images" / name).read_bytes())
    for name in ("test.csv", "sample_submission.csv"):
        (hidden / name).write_bytes((data / name).read_bytes())
    write_rows(hidden / "solution.csv", ["image", "kind"], rows[20:])
    return Toy(task=files_task(), data=data, hidden=hidden)


@pytest.fixture
def wide(tmp_path: Path) -> Toy:
    """A fresh toy competition in wide parquet, to be broken at will."""
    return make_wide(tmp_path / "wide")


@pytest.fixture
def files(tmp_path: Path) -> Toy:
    """A fresh toy competition of JPEG files; train image 3.jpg is cut short."""
    return make_files(tmp_path / "files")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[TrainStream]:
    """The batches of every training from here on."""
    from kaggle_kit.train import training

    made: list[TrainStream] = []
    make = training._make_stream

    def noted(job: FoldJob, fabric: object) -> TrainStream:
        made.append(make(job, fabric))
        return made[-1]

    monkeypatch.setattr(training, "_make_stream", noted)
    return made


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the audit of `reviewed.reviewed_audit`, its data beside it; read-only."""
    from reviewed import reviewed_audit

    folder = tmp_path_factory.mktemp("audited")
    reviewed_audit(folder)
    return folder / "audit"


@pytest.fixture
def desk(audited: Path, tmp_path: Path) -> Desk:
    """A desk of that audit, with decisions of its own."""
    from kaggle_kit.audit.review.opening import open_desk

    return open_desk(audited, edits=tmp_path / "edits.jsonl", by="ann")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, list]:
    """A toy competition and two finished runs on it; read-only."""
    from kaggle_kit.folds import make_folds
    from kaggle_kit.labels import read_labels
    from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
    from kaggle_kit.train.crossval import train_run

    folder = tmp_path_factory.mktemp("trained")
    toy = make_wide(folder)
    folds = make_folds(read_labels(toy.task, toy.data), "stratified", num_folds=2, seed=0)
    runs = []
    for name in ("test_resnet", "test_efficientnet"):
        config = TrainConfig(
            model=ModelConfig(name=name, input_size=(32, 48)), loader=LoaderConfig(batch_size=8), epochs=2
        )
        runs.append(train_run(toy.task, config, data=toy.data, folds=folds, out=folder / "runs" / name))
    return toy, runs


@pytest.fixture(scope="session")
def bundle_folder(trained: tuple[Toy, list], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the trained runs; read-only."""
    from kaggle_kit.ensemble import equal_blend
    from kaggle_kit.export.bundle import write_bundle

    _, runs = trained
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(runs, equal_blend([run.name for run in runs]), folder)
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, list, Path]:
    """A toy with three kinds of heads, a run on everything, two on different folds, and their bundle; read-only."""
    from test_export_heads import ROOT, relabel
    from test_multilabel import TAGS

    from kaggle_kit.ensemble import equal_blend
    from kaggle_kit.export.bundle import write_bundle
    from kaggle_kit.folds import make_folds
    from kaggle_kit.labels import read_labels

    folder = tmp_path_factory.mktemp("mixed")
    heads = {"tags": TAGS, "root": ROOT, "vowel": {"classes": 2}}
    toy = relabel(make_wide(folder / "toy"), heads=heads, auxiliary={})
    labels = read_labels(toy.task, toy.data)
    folds = [make_folds(labels, "stratified", num_folds=2, seed=seed) for seed in (0, 1)]
    first, second = (random_run(toy, folder / name, folds[i], seed=i) for i, name in enumerate(("first", "second")))
    runs = [random_run(toy, folder / "all", folds[0], seed=2, like=first), first, second]
    write_bundle(runs, equal_blend([run.name for run in runs]), folder / "bundle")
    return toy, runs, folder / "bundle"


def with_blend(bundle: Path, folder: Path, blend: Blend) -> Path:
    """Return a copy of a bundle that has another blend of the same runs."""
    from kaggle_kit.runtime.bundle import open_bundle, write_manifest

    shutil.copytree(bundle, folder, copy_function=os.link)
    write_manifest(dataclasses.replace(open_bundle(folder), blend=blend))
    return folder


def random_run(toy: Toy, folder: Path, folds: Folds, *, seed: int = 0, like: Run | None = None) -> Run:
    """Write a run as training would, but for the training; with `like`, as one on everything that follows that run."""
    import torch

    from kaggle_kit.labels import read_labels
    from kaggle_kit.packing.competition import pack_train
    from kaggle_kit.predictions import Predictions, concatenate
    from kaggle_kit.runs import EVERYTHING, FoldSummary, Run, fold_folder, read_run, write_run
    from kaggle_kit.scores import score_answers, score_split
    from kaggle_kit.tables import rows_of
    from kaggle_kit.train.checkpoint import CheckpointInfo, save_checkpoint
    from kaggle_kit.train.config import ModelConfig, TrainConfig
    from kaggle_kit.train.model import build_network
    from kaggle_kit.train.predict import predict_rows

    config = TrainConfig(model=ModelConfig(name="test_resnet", input_size=(32, 48)))
    source = pack_train(toy.task, toy.data, beside=folder.parent)
    folder.mkdir(parents=True)
    folds.save(folder / "folds.parquet")
    labels = read_labels(toy.task, toy.data)
    parts, summaries = [], {}
    for fold in [EVERYTHING] if like else range(folds.num_folds):
        torch.manual_seed(10 * seed + max(fold, 0))
        network = build_network(toy.task, config.model).eval()
        for weights in network.heads.parameters():
            weights.data *= 20  # so that it says something else of every image
        score = None
        if not like:
            ids = folds.ids[folds.fold == fold]
            probs = predict_rows(network, source, rows_of(ids, source.ids))
            score = score_answers(toy.task, labels.align(ids).classes, probs)
            parts.append(Predictions(ids=ids, probs=probs, multilabel=toy.task.multilabel_heads))
        fold_folder(folder, fold).mkdir()
        info = CheckpointInfo(task=toy.task, config=config, fold=fold, epoch=1, score=score)
        save_checkpoint(fold_folder(folder, fold) / "best.safetensors", network, info)
        summaries[fold] = FoldSummary(epoch=1, score=score, seconds=0.0)
    oof = like.oof() if like else concatenate(parts)
    oof.save(folder / "oof.npz")
    truth, unseen = labels.align(oof.ids).classes, folds.unseen[folds.rows(oof.ids)]
    run = Run(
        folder=folder,
        task=toy.task,
        config=config,
        data=toy.data,
        packed=source.folder,
        packed_key=source.key,
        scores=score_split(toy.task, truth, oof.probs, unseen),
        folds=summaries,
        like=str(like.folder) if like else "",
    )
    write_run(run)
    return read_run(folder)


def random_blend(kind: MixKind, task: Task, oofs: Mapping[str, Predictions]) -> Blend:
    """Make a blend of one kind that mixes and decides otherwise for every head, at every cut of the runs."""
    rng = np.random.default_rng(0)
    prefixes = []
    for number in range(1, len(oofs) + 1):
        mixes = {head: _random_mix(kind, number, task, head, rng) for head in task.heads}
        rules = {head: _random_rule(task, head, rng) for head in task.heads}
        prefixes.append(Prefix(heads=mixes, decision=Decision(heads=rules)))
    ranks = {head: {name: Table.of(quantiles(oof.probs[head])) for name, oof in oofs.items()} for head in task.heads}
    return Blend(runs=tuple(oofs), prefixes=tuple(prefixes), ranks=ranks if kind == "rank" else {})


def _random_mix(kind: MixKind, num_runs: int, task: Task, head: str, rng: np.random.Generator) -> Mix:
    temperatures = () if kind == "rank" else tuple(rng.uniform(0.3, 3, num_runs).tolist())
    if kind != "stack":
        weights = rng.dirichlet(np.ones(num_runs))
        return Mix(kind=kind, weights=tuple(weights.tolist()), temperatures=temperatures, power=0.4)
    read = num_runs * sum(one.num_classes for one in task.heads.values())
    classes = task.heads[head].num_classes
    coefficients, intercept = rng.normal(0, 0.5, (read, classes)), rng.normal(0, 0.5, classes)
    stack = Stack(sources=tuple(task.heads), coefficients=Table.of(coefficients), intercept=Table.of(intercept))
    return Mix(kind=kind, stack=stack, temperatures=temperatures)


def _random_rule(task: Task, head: str, rng: np.random.Generator) -> HeadRule:
    values = tuple(rng.uniform(0.2, 0.8, task.heads[head].num_classes).tolist())
    if head in task.multilabel_heads:
        return HeadRule(rule="thresholds", thresholds=values)
    return HeadRule(rule="class_bias", log_bias=values)
