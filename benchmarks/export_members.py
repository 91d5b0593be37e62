"""The networks of the export benchmark: which they are, and how they are trained. `export.py` says how to run it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from real_data import PLANS, make_competition

from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.runs import Run
from kaggle_kit.sample import make_sample
from kaggle_kit.sources import resolve_stored
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Stored, Task, read_task
from kaggle_kit.train.config import LoaderConfig, ModelConfig, OptimConfig, Size, TrainConfig
from kaggle_kit.train.crossval import train_run

NETWORKS = {
    "efficientnet_b0": "efficientnet_b0",
    "vit_tiny": "vit_tiny_patch16_224",
    "resnet50": "resnet50",
    "seresnext50": "seresnext50_32x4d",
    "convnext_tiny": "convnext_tiny",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "efficientnet_b0_long": "efficientnet_b0",
}
LONGER = {"efficientnet_b0_long": 12}  # epochs; after few, this one has images whose logits are beyond 100
DIGITS_SIZES = (2700, 300)  # train images and hidden test
HELD_BACK = "4"  # bangla's writer who is in the hidden test
STORED = (80, 80)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """How a data set is divided, and what its networks see.

    Attributes:
        valid_share: Of the images; the others train.
        input_size: (height, width).
        epochs: Of every training but the longer ones.
        members: Networks, by their short names.
    """

    valid_share: float
    input_size: Size
    epochs: int
    members: tuple[str, ...]


CONTESTS = {
    "caltech": Contest(valid_share=0.5, input_size=(64, 64), epochs=3, members=tuple(NETWORKS)),
    "bangla": Contest(valid_share=0.5, input_size=(64, 64), epochs=3, members=tuple(NETWORKS)),
    "digits": Contest(valid_share=0.75, input_size=(64, 112), epochs=2, members=tuple(NETWORKS)[:5]),
}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A competition, and where its parts lie.

    Attributes:
        name: Which data set.
        work: The folder of all of them.
    """

    name: str
    work: Path

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.work / self.name

    @property
    def data(self) -> Path:
        """What the competitor sees."""
        return self.folder / "data"

    @property
    def contest(self) -> Contest:
        """How it is divided, and what its networks see."""
        return CONTESTS[self.name]

    def run_folder(self, member: str) -> Path:
        """Return where a member's run lies."""
        return self.folder / "runs" / member

    def read_task(self) -> Task:
        """Return the task, stored size known."""
        task = read_task(self.folder / "task.yaml")
        if self.name == "digits":
            return resolve_stored(task, self.data)
        fill = task.stored.fill if task.stored else 0
        return task.with_stored(Stored(height=STORED[0], width=STORED[1], fit="letterbox", fill=fill))


def train_members(ground: Ground, archives: Path, *, epochs: int | None) -> None:
    """Make the competition and train its members, each unless that was done before.

    Args:
        ground: Which one.
        archives: The folder with the data sets' archives.
        epochs: Instead of the contest's own; None: its own.
    """
    started = time.perf_counter()
    make_ground(ground, archives)
    folds = fold_ground(ground)
    held_out = int((folds.fold == 0).sum())
    say_done(f"{ground.name}: {len(folds.ids) - held_out:,} images train, {held_out:,} are held out", started)
    for member in ground.contest.members:
        started = time.perf_counter()
        run = train_member(ground, member, folds, epochs=epochs or LONGER.get(member, ground.contest.epochs))
        say_done(f"{ground.name}: {member} trained, {run.task.metric} {run.score.total:.4f}", started)


def make_ground(ground: Ground, archives: Path) -> None:
    """Write data/, hidden/ and task.yaml, unless they are there; what a cut-off call left is replaced."""
    if ground.name == "digits":
        num_train, num_test = DIGITS_SIZES
        make_sample("digits", ground.folder, num_train=num_train, num_test=num_test)
    elif not (ground.folder / "task.yaml").is_file():  # it is written last
        shutil.rmtree(ground.folder, ignore_errors=True)
        plan = PLANS[ground.name]
        make_competition(ground.name, plan, archives / plan.archive, ground.folder, HELD_BACK)


def fold_ground(ground: Ground) -> Folds:
    """Pack the images, and return who trains and who is held out, divided unless that was done."""
    file = ground.folder / "folds.parquet"
    store = pack_train(ground.read_task(), ground.data, ground.folder / "packed")
    if not file.is_file():
        labels = read_labels(ground.read_task(), ground.data)
        equal = store.duplicate_groups()[rows_of(labels.ids, store.ids)]
        share = ground.contest.valid_share
        make_folds(labels, "holdout", valid_share=share, duplicates=equal, rare="train").save(file)
    return Folds.load(file)


def train_member(ground: Ground, member: str, folds: Folds, *, epochs: int) -> Run:
    """Return a member's run, trained as far as it is not finished."""
    config = TrainConfig(
        model=ModelConfig(name=NETWORKS[member], input_size=ground.contest.input_size),
        optim=OptimConfig(lr=1e-3),
        loader=LoaderConfig(batch_size=16),
        augment="none",
        epochs=epochs,
        seed=list(dict.fromkeys(NETWORKS.values())).index(NETWORKS[member]),
    )
    packed = ground.folder / "packed"
    out = ground.run_folder(member)
    return train_run(ground.read_task(), config, data=ground.data, folds=folds, out=out, packed=packed)


def say_done(text: str, started: float) -> None:
    """Print a finished step with its seconds."""
    print(f"{text} ({time.perf_counter() - started:.1f} s)", flush=True)
