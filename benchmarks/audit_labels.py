"""How many planted wrong labels an audit finds, from the out-of-fold predictions of a small network.

    python benchmarks/audit_labels.py --work DIR [--seeds 0] [--epochs 30] [--model test_resnet]

Makes the sample `ships` of each seed, trains five folds on it as it is, wrong labels and duplicates included, and looks
where the planted ones stand among the label issues: the record of what was planted is read only to count. Ten minutes a
seed on one core. A sample or a run that lies in DIR already is taken as it is.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch

from kaggle_kit.audit.after_model import look_after_model
from kaggle_kit.errors import DataError
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.runs import Run, read_run
from kaggle_kit.sample import Sample, make_sample
from kaggle_kit.sources import resolve_stored
from kaggle_kit.tables import rows_of
from kaggle_kit.task import read_task
from kaggle_kit.train.config import LoaderConfig, ModelConfig, OptimConfig, TrainConfig
from kaggle_kit.train.crossval import train_run

NUM_FOLDS = 5


def trained_run(sample: Sample, work: Path, *, model: str, epochs: int, seed: int) -> Run:
    """Return a run of five folds on a sample, trained now or before."""
    out = work / f"{model}-{epochs}"
    try:
        return read_run(out)
    except DataError:
        pass
    task = read_task(sample.task)
    labels = read_labels(task, sample.data)
    store = pack_train(resolve_stored(task, sample.data), sample.data, work / "packed")
    duplicates = store.duplicate_groups()[rows_of(labels.ids, store.ids)]
    folds = make_folds(labels, "stratified", num_folds=NUM_FOLDS, seed=seed, duplicates=duplicates)
    config = train_config(model=model, epochs=epochs, seed=seed)
    return train_run(task, config, data=sample.data, folds=folds, out=out, packed=store.folder)


def train_config(*, model: str, epochs: int, seed: int, edits: str | None = None) -> TrainConfig:
    """Return how the sample is trained on."""
    return TrainConfig(
        model=ModelConfig(name=model, input_size=(80, 112)),
        optim=OptimConfig(lr=4e-3),
        loader=LoaderConfig(batch_size=32),
        epochs=epochs,
        augment="letters",  # a mirrored digit is none
        edits=edits,
        seed=seed,
    )


def planted_wrong(sample: Sample) -> set[str]:
    """Return the ids of the images whose label the sample got wrong on purpose."""
    with (sample.hidden / "defects.csv").open(encoding="utf-8") as file:
        return {row["image"] for row in csv.DictReader(file) if row["kind"] == "wrong_label"}


def main() -> None:
    """Train, look, and print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--model", default="test_resnet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'seed':>4} {'out of fold':>11} {'planted':>8} {'issues':>7} {'in top 1 x':>11} {'in top 2 x':>11} {'s':>5}"
    )
    for seed in map(int, options.seeds.split(",")):
        work = options.work / f"seed{seed}"
        sample = make_sample("ships", work / "sample", seed=seed)
        run = trained_run(sample, work, model=options.model, epochs=options.epochs, seed=seed)
        wrong = planted_wrong(sample)
        started = time.perf_counter()
        after = look_after_model(run.task, read_labels(run.task, sample.data), [run])
        seconds = time.perf_counter() - started
        ranked = [finding.id for finding in after.findings if finding.kind == "label_issue"]
        found = [len(wrong & set(ranked[: times * len(wrong)])) / len(wrong) for times in (1, 2)]
        print(
            f"{seed:>4} {run.score.total:>11.4f} {len(wrong):>8} {len(ranked):>7} {found[0]:>11.0%} {found[1]:>11.0%} "
            f"{seconds:>5.1f}"
        )


if __name__ == "__main__":
    main()
