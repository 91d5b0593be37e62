"""What do blends of several runs gain on a hidden test?

    python benchmarks/ensembles.py members DATA_FOLDER --work WORK_FOLDER
    python benchmarks/ensembles.py compare --work WORK_FOLDER

`members`: makes three competitions for every seed and trains four small networks on each: `digits` (the sample, whose
hidden test shows new combinations), `bangla` (handwriting, a writer held out, another one for every seed) and
`caltech` (photos, 15 % held out, another part for every seed). The networks differ in architecture and input size,
and so in strength. Then each predicts the hidden test. What is finished is skipped when the same command is run again,
and a training that was cut off goes on.
`compare`: fits blends to the out-of-fold predictions of every competition whose members are finished, applies them to
its hidden test, and prints what the automatic choice gains over the best single run, the mean and others.

WORK_FOLDER/NAME/seedS/data, hidden, task.yaml, folds.parquet    the competition; hidden/solution.csv is the truth
WORK_FOLDER/NAME/seedS/runs/MEMBER                               a run: out-of-fold predictions, seconds a fold
WORK_FOLDER/NAME/seedS/predictions/MEMBER.npz                    of the hidden test, the mean of the run's fold models
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ensemble_comparison import Compared, Members, compare_ways, print_choices, print_gains, print_scores
from real_data import PLANS, make_competition

from kaggle_kit.folds import Folds, Scheme, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.sample import make_sample
from kaggle_kit.sample_digits import UNSEEN_SHARE
from kaggle_kit.sources import open_source, resolve_stored
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task, read_task
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import LoaderConfig, ModelConfig, OptimConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.predict import EVAL_BATCH, predict_batches

NUM_FOLDS = 3
DIGITS_SIZES = (2000, 3000)  # train images and hidden test
WRITERS = ("4", "3", "2", "1")  # who is held out, by seed; there is no fifth, so seed 4 holds out seed 0's again


@dataclass(frozen=True, kw_only=True)
class Contest:
    """How a data set is validated, and who takes part.

    Attributes:
        scheme: Of the folds.
        epochs: Of every training.
        members: {name: network}; they differ in strength on purpose.
    """

    scheme: Scheme
    epochs: int
    members: dict[str, ModelConfig]


CONTESTS = {
    "digits": Contest(
        scheme="unseen",
        epochs=8,
        members={
            "resnet_48": ModelConfig(name="test_resnet", input_size=(48, 80)),
            "resnet_32": ModelConfig(name="test_resnet", input_size=(32, 56)),
            "efficientnet_40": ModelConfig(name="test_efficientnet", input_size=(40, 68)),
            "convnext_32": ModelConfig(name="test_convnext", input_size=(32, 56)),
        },
    ),
    "bangla": Contest(
        scheme="grouped",
        epochs=18,
        members={
            "resnet_40": ModelConfig(name="test_resnet", input_size=(40, 60)),
            "resnet_32": ModelConfig(name="test_resnet", input_size=(32, 48)),
            "efficientnet_40": ModelConfig(name="test_efficientnet", input_size=(40, 60)),
            "convnext_32": ModelConfig(name="test_convnext", input_size=(32, 48)),
        },
    ),
    "caltech": Contest(
        scheme="stratified",
        epochs=18,
        members={
            "resnet_64": ModelConfig(name="test_resnet", input_size=(64, 86)),
            "resnet_48": ModelConfig(name="test_resnet", input_size=(48, 64)),
            "efficientnet_64": ModelConfig(name="test_efficientnet", input_size=(64, 86)),
            "convnext_40": ModelConfig(name="test_convnext", input_size=(40, 54)),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A competition of one seed, and where its parts lie.

    Attributes:
        name: Which data set.
        seed: Draws the hidden test, the folds and the members' weights.
        work: The folder of all of them.
    """

    name: str
    seed: int
    work: Path

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.work / self.name / f"seed{self.seed}"

    @property
    def data(self) -> Path:
        """What the competitor sees."""
        return self.folder / "data"

    @property
    def hidden(self) -> Path:
        """The hidden test, with solution.csv."""
        return self.folder / "hidden"

    @property
    def task_file(self) -> Path:
        """The task."""
        return self.folder / "task.yaml"

    @property
    def folds_file(self) -> Path:
        """Who validates what, the same for all members."""
        return self.folder / "folds.parquet"

    @property
    def contest(self) -> Contest:
        """How it is validated, and who takes part."""
        return CONTESTS[self.name]

    def run_folder(self, member: str) -> Path:
        """Return where a member's run lies."""
        return self.folder / "runs" / member

    def predictions_file(self, member: str) -> Path:
        """Return where a member's predictions of the hidden test lie."""
        return self.folder / "predictions" / f"{member}.npz"

    @property
    def is_finished(self) -> bool:
        """Whether all members are trained and have predicted the hidden test, which comes last."""
        return all(self.predictions_file(member).is_file() for member in self.contest.members)

    def read_task(self) -> Task:
        """Return the task, stored size known."""
        return resolve_stored(read_task(self.task_file), self.data)


def train_members(ground: Ground, archives: Path, *, epochs: int | None) -> None:
    """Make the competition, train its members and predict its hidden test, each unless that was done before.

    Args:
        ground: Which one.
        archives: The folder with the data sets' archives.
        epochs: Instead of the contest's own; None: its own.
    """
    title = f"{ground.name} seed {ground.seed}"
    started = time.perf_counter()
    make_ground(ground, archives)
    folds = fold_ground(ground)
    say_done(f"{title}: {len(folds.ids):,} train images in {folds.num_folds} {folds.scheme} folds", started)
    for place, member in enumerate(ground.contest.members):
        started = time.perf_counter()
        run = train_member(ground, member, folds, seed=10 * ground.seed + place, epochs=epochs)
        say_done(f"{title}: {member} trained, out-of-fold {run.task.metric} {run.score.total:.4f}", started)
    started = time.perf_counter()
    num_images = predict_hidden(ground)
    say_done(f"{title}: {num_images:,} hidden images predicted by each member", started)


def make_ground(ground: Ground, archives: Path) -> None:
    """Write data/, hidden/ and task.yaml, unless they are there; what a cut-off call left is replaced."""
    if ground.name == "digits":
        num_train, num_test = DIGITS_SIZES
        make_sample("digits", ground.folder, seed=ground.seed, num_train=num_train, num_test=num_test)
    elif not ground.task_file.is_file():  # it is written last
        shutil.rmtree(ground.folder, ignore_errors=True)
        plan, writer = PLANS[ground.name], WRITERS[ground.seed % len(WRITERS)]
        make_competition(ground.name, plan, archives / plan.archive, ground.folder, writer, seed=ground.seed)


def fold_ground(ground: Ground) -> Folds:
    """Pack the images, and return the folds, made unless they are there."""
    labels = read_labels(ground.read_task(), ground.data)
    store = pack_train(ground.read_task(), ground.data, ground.folder / "packed")
    if not ground.folds_file.is_file():
        equal = store.duplicate_groups()[rows_of(labels.ids, store.ids)]
        folds = make_folds(
            labels,
            ground.contest.scheme,
            num_folds=NUM_FOLDS,
            seed=ground.seed,
            duplicates=equal,
            unseen_share=UNSEEN_SHARE,
            rare="train",
        )
        folds.save(ground.folds_file)
    return Folds.load(ground.folds_file)


def train_member(ground: Ground, member: str, folds: Folds, *, seed: int, epochs: int | None) -> Run:
    """Return a member's run, trained as far as it is not finished."""
    config = TrainConfig(
        model=ground.contest.members[member],
        optim=OptimConfig(lr=4e-3),
        loader=LoaderConfig(batch_size=32),
        epochs=epochs or ground.contest.epochs,
        seed=seed,
    )
    packed = ground.folder / "packed"
    out = ground.run_folder(member)
    return train_run(ground.read_task(), config, data=ground.data, folds=folds, out=out, packed=packed)


def predict_hidden(ground: Ground) -> int:
    """Write what each member says of the hidden test, unless it is there; return how many images that test has."""
    source = open_source(ground.read_task(), "test", ground.hidden)
    missing = [member for member in ground.contest.members if not ground.predictions_file(member).is_file()]
    if missing:
        images = np.concatenate([chunk.images for chunk in source.chunks()])
        batches = np.array_split(images, max(1, len(images) // EVAL_BATCH))
        for member in missing:
            run = read_run(ground.run_folder(member))
            networks = [load_checkpoint(run.checkpoint(fold))[0] for fold in run.folds]
            parts = [predict_batches(network, batches) for network in networks]
            probs = {head: np.mean([part[head] for part in parts], axis=0) for head in parts[0]}
            Predictions(ids=source.ids, probs=probs).save(ground.predictions_file(member))
    return len(source.ids)


def say_done(text: str, started: float) -> None:
    """Print a finished step with its seconds."""
    print(f"{text} ({time.perf_counter() - started:.1f} s)", flush=True)


def train_all(options: argparse.Namespace) -> None:
    """Train all members of every contest: the first seed of all data sets first."""
    for seed in options.seeds:
        for name in options.only:
            train_members(Ground(name=name, seed=seed, work=options.work), options.data, epochs=options.epochs)


def read_members(ground: Ground) -> Members:
    """Return a finished ground's runs, and what they say of its hidden test."""
    names = list(ground.contest.members)
    ids, truth = read_submission(ground.read_task(), ground.hidden / "solution.csv")
    return Members(
        name=ground.name,
        seed=ground.seed,
        runs=[read_run(ground.run_folder(member)) for member in names],
        hidden={member: Predictions.load(ground.predictions_file(member)) for member in names},
        ids=ids,
        truth=truth,
    )


def compare_all(options: argparse.Namespace) -> None:
    """Compare ways to blend on every finished ground, and print the tables."""
    grounds = [Ground(name=name, seed=seed, work=options.work) for name in options.only for seed in options.seeds]
    for ground in grounds:
        if not ground.is_finished:
            print(f"not finished, and left out: {ground.name} seed {ground.seed}")
    compared: list[Compared] = []
    for ground in (ground for ground in grounds if ground.is_finished):
        started = time.perf_counter()
        members = read_members(ground)
        compared += [compare_ways(members, fit_rules=fit_rules) for fit_rules in (True, False)]
        print(f"{members.title} compared ({time.perf_counter() - started:.1f} s)", file=sys.stderr, flush=True)
    if not compared:
        raise SystemExit(f"nothing to compare: no ground of {options.work} is finished; run `members` first")
    print_scores(compared)
    print_gains(compared)
    print_choices(compared)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="PART")
    training = parts.add_parser("members", help="train the members and predict the hidden tests")
    training.set_defaults(part=train_all)
    training.add_argument("data", type=Path, help="the folder with the archives")
    comparing = parts.add_parser("compare", help="compare ways to blend the finished members on the hidden tests")
    comparing.set_defaults(part=compare_all)
    for part in (training, comparing):
        part.add_argument(
            "--work", type=Path, required=True, help="a folder to work in; what is finished there is kept"
        )
        part.add_argument("--only", type=contest_names, default=list(CONTESTS), help="such as digits,caltech")
        part.add_argument("--seeds", type=seed_numbers, default=[0, 1, 2], help="such as 0,1 (default: 0,1,2)")
    training.add_argument("--epochs", type=int, help="instead of the contests' own, to try it out")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}\n", flush=True)
    options.part(options)


def contest_names(text: str) -> list[str]:
    """Return the contests of a list with commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in CONTESTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no data set {unknown[0]!r}; expected some of {','.join(CONTESTS)}")
    return names


def seed_numbers(text: str) -> list[int]:
    """Return the seeds of a list with commas."""
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
