"""fastai: a DataBlock, vision_learner and fit_one_cycle with their defaults, learn.export and load_learner.

What stands between `user` and `end` is what a user would write for the tasks named there, in about as few lines as its
tutorials do; the rest holds the budget and takes the time. Several heads are one layer whose outputs are split, and
their losses are summed. The exported pickle needs `summed_loss` where it is loaded: this very file.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks import Clock, Said, Spec, TimeIsUp, begin, measure_prediction, report, save_said, size_mb

# isort: off
# user: bangla caltech fashion
import numpy as np
import pandas as pd
from fastai.vision.all import *

# end
# user: fashion
import gzip
# end
# isort: on

warnings.simplefilter("ignore")  # torch deprecates what fastai's warp and learn.export do


# user: bangla
HEADS, ROOT_COUNTS = {"root": 35, "vowel": 10, "consonant": 6}, 2


def summed_loss(logits: Any, *targets: Any) -> Any:
    """Return the heads' losses, summed with their weights."""
    root, vowel, consonant = map(F.cross_entropy, logits.split(list(HEADS.values()), dim=1), targets)
    return ROOT_COUNTS * root + vowel + consonant


def learn_bangla(root: Path, model: str, size: tuple[int, int], batch: int) -> Learner:
    """Return the Learner of three heads."""
    train = pd.read_csv(root / "split.csv", dtype=str, keep_default_na=False)
    train["path"] = f"{root}/data/images/" + train.image_id + ".png"
    block = DataBlock(
        blocks=(ImageBlock(PILImageBW), *[CategoryBlock(vocab=sorted(set(train[head]))) for head in HEADS]),
        n_inp=1,
        get_x=ColReader("path"),
        get_y=[ColReader(head) for head in HEADS],
        splitter=IndexSplitter(np.flatnonzero(train.is_valid == "1")),
        item_tfms=Resize(size, method="squish"),
        batch_tfms=[*aug_transforms(do_flip=False), Normalize.from_stats([0.5], [0.5])],
    )
    data = block.dataloaders(train, bs=batch, num_workers=0)
    outputs = sum(HEADS.values())
    return vision_learner(data, model, pretrained=False, n_in=1, n_out=outputs, loss_func=summed_loss)


def say_bangla(learn: Learner, root: Path, rows: slice = slice(None)) -> Said:
    """Return each head's classes of the hidden test."""
    test = pd.read_csv(root / "hidden" / "test.csv", dtype=str)[rows]
    test["path"] = f"{root}/hidden/images/" + test.image_id + ".png"
    logits, _ = learn.get_preds(dl=learn.dls.test_dl(test, num_workers=0))
    parts = zip(HEADS, learn.dls.vocab, logits.split(list(HEADS.values()), dim=1), strict=True)
    return {head: np.array(vocab)[part.argmax(dim=1)] for head, vocab, part in parts}


# end
# user: caltech
def learn_caltech(root: Path, model: str, size: tuple[int, int], batch: int) -> Learner:
    """Return the Learner of photos."""
    train = pd.read_csv(root / "split.csv", dtype=str)
    train["path"] = f"{root}/data/images/" + train.image
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path"),
        get_y=ColReader("category"),
        splitter=IndexSplitter(np.flatnonzero(train.is_valid == "1")),
        item_tfms=Resize(size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
    )
    data = block.dataloaders(train, bs=batch, num_workers=0)
    return vision_learner(data, model, pretrained=False, metrics=accuracy)


def say_caltech(learn: Learner, root: Path, rows: slice = slice(None)) -> Said:
    """Return the classes of the hidden test."""
    test = pd.read_csv(root / "hidden" / "test.csv", dtype=str)[rows]
    test["path"] = f"{root}/hidden/images/" + test.image
    logits, _ = learn.get_preds(dl=learn.dls.test_dl(test, num_workers=0))
    return {"category": np.array(learn.dls.vocab)[logits.argmax(dim=1)]}


# end
# user: fashion
def read_idx(path: Path, header: int) -> np.ndarray:
    """Return the bytes of an idx file."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def learn_fashion(root: Path, model: str, size: tuple[int, int], batch: int) -> Learner:
    """Return the Learner of Fashion-MNIST."""
    pixels = read_idx(root / "data" / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read_idx(root / "data" / "train-labels-idx1-ubyte.gz", 8).tolist()
    block = DataBlock(
        blocks=(ImageBlock(PILImageBW), CategoryBlock),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter(np.flatnonzero(pd.read_csv(root / "split.csv").is_valid == 1)),
        item_tfms=Resize(size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5], [0.5])],
    )
    data = block.dataloaders(list(zip(pixels, labels, strict=True)), bs=batch, num_workers=0)
    return vision_learner(data, model, pretrained=False, n_in=1, metrics=accuracy)


def say_fashion(learn: Learner, root: Path, rows: slice = slice(None)) -> Said:
    """Return the classes of the hidden test."""
    pixels = read_idx(root / "hidden" / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[rows]
    logits, _ = learn.get_preds(dl=learn.dls.test_dl([(image,) for image in pixels], num_workers=0))
    return {"label": np.array(learn.dls.vocab)[logits.argmax(dim=1)]}


# end
LEARN = {"bangla": learn_bangla, "caltech": learn_caltech, "fashion": learn_fashion}
SAY = {"bangla": say_bangla, "caltech": say_caltech, "fashion": say_fashion}


class Watch(Callback):
    """Ends a training when the clock says so."""

    def __init__(self, clock: Clock, *, trial: bool) -> None:
        self.clock, self.trial, self.ended_early = clock, trial, False

    def after_batch(self) -> None:
        """Count a step."""
        if not self.training:
            return
        if self.trial:
            self.clock.tick()
            return
        self.clock.count()
        if self.clock.is_over:
            self.ended_early = self.pct_train < 1 - 1 / (self.n_epoch * self.n_iter)
            raise CancelFitException


def train(spec: Spec, *, trial: bool) -> None:
    """Train within the budget, export, predict, report."""
    set_seed(spec.seed)
    torch.set_num_threads(1)
    clock = Clock(spec, trial=trial)
    learn = LEARN[spec.task](spec.root, spec.model, spec.size, spec.batch)
    watch = Watch(clock, trial=trial)
    with learn.no_bar(), learn.no_logging():
        try:
            # user: bangla caltech fashion
            learn.fit_one_cycle(spec.epochs, cbs=watch)
            # end
        except TimeIsUp:
            report(clock.trial_figures())
            return
        figures = clock.train_figures()
        started = time.perf_counter()
        # user: bangla caltech fashion
        learn.export(spec.folder / "learner.pkl")
        # end
        export_s = time.perf_counter() - started
        save_said(spec, "training", SAY[spec.task](learn, spec.root))
    report(
        {
            **figures,
            "export_s": export_s,
            "ended_early": watch.ended_early,
            "artefact": str(spec.folder / "learner.pkl"),
            "artefact_mb": size_mb(spec.folder / "learner.pkl"),
            "versions": {name: version(name) for name in ("fastai", "torch", "timm", "pillow")},
        }
    )


def predict(spec: Spec) -> None:
    """Predict from the pickle, with this file beside it."""
    torch.set_num_threads(1)
    # user: bangla caltech fashion
    learn = load_learner(spec.folder / "learner.pkl")
    # end
    say = SAY[spec.task]
    with learn.no_bar(), learn.no_logging():
        measure_prediction(spec, lambda: say(learn, spec.root, slice(1)), lambda: say(learn, spec.root))


def main() -> None:
    """Do one stage."""
    stage, spec = begin()
    if stage == "predict":
        predict(spec)
        return
    train(spec, trial=stage == "trial")


if __name__ == "__main__":
    main()
