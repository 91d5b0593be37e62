"""timm: its loader with transforms, optimizer factory and cosine schedule in a plain loop, and a state_dict to load.

What stands between `user` and `end` is what a user would write for the tasks named there; the rest holds the budget and
takes the time. The recipe is the one that did best of timm's in `benchmarks/training.py`: AdamW at 2e-3, mild crops;
train.py's own defaults are made for hundreds of epochs. As in train.py, the best epoch on the validation images is
kept. Several heads are one layer whose outputs are split, and their losses are summed.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tasks import Clock, Said, Spec, TimeIsUp, begin, measure_prediction, report, save_said, size_mb
from torch.optim.optimizer import register_optimizer_step_post_hook

# isort: off
# user: bangla caltech fashion
import json
import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import Dataset

# end
# user: fashion
import gzip
# end
# isort: on


# user: bangla
BANGLA = SimpleNamespace(
    heads={"root": 2, "vowel": 1, "consonant": 1},
    channels=1,
    moments={"mean": (0.5,), "std": (0.5,)},
    augment={"scale": (0.75, 1.0), "ratio": (1.3, 1.7), "hflip": 0.0, "color_jitter": 0.0, "re_prob": 0.25},
)


def list_bangla(root: Path, part: str) -> tuple[pd.DataFrame, list[Any]]:
    """Return the table of a part, and its images."""
    table = pd.read_csv(root / ("split.csv" if part == "data" else "hidden/test.csv"), dtype=str, keep_default_na=False)
    return table, [f"{root}/{part}/images/{name}.png" for name in table.image_id]


def open_bangla(path: Any) -> Image.Image:
    """Return a grapheme, stretched before it is cropped: some are twice as wide as high."""
    return Image.open(path).convert("L").resize((144, 96))


# end
# user: caltech
CALTECH = SimpleNamespace(
    heads={"category": 1},
    channels=3,
    moments={},
    augment={"scale": (0.5, 1.0), "ratio": (1.0, 1.78), "hflip": 0.5, "color_jitter": 0.2},
)


def list_caltech(root: Path, part: str) -> tuple[pd.DataFrame, list[Any]]:
    """Return the table of a part, and its images."""
    table = pd.read_csv(root / ("split.csv" if part == "data" else "hidden/test.csv"), dtype=str)
    return table, [f"{root}/{part}/images/{name}" for name in table.image]


def open_caltech(path: Any) -> Image.Image:
    """Return a photo."""
    return Image.open(path).convert("RGB")


# end
# user: fashion
FASHION = SimpleNamespace(
    heads={"label": 1},
    channels=1,
    moments={"mean": (0.5,), "std": (0.5,)},
    augment={"scale": (0.75, 1.0), "ratio": (0.85, 1.18), "hflip": 0.5, "color_jitter": 0.0, "re_prob": 0.25},
)


def list_fashion(root: Path, part: str) -> tuple[pd.DataFrame, list[Any]]:
    """Return the table of a part, and its images."""
    path = root / part / ("train-images-idx3-ubyte.gz" if part == "data" else "t10k-images-idx3-ubyte.gz")
    pixels = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    return pd.read_csv(root / ("split.csv" if part == "data" else "hidden/test.csv"), dtype=str), list(pixels)


def open_fashion(pixels: Any) -> Image.Image:
    """Return an image."""
    return Image.fromarray(pixels)


# end
SETUPS = {"bangla": BANGLA, "caltech": CALTECH, "fashion": FASHION}
LISTS = {"bangla": list_bangla, "caltech": list_caltech, "fashion": list_fashion}
OPENERS = {"bangla": open_bangla, "caltech": open_caltech, "fashion": open_fashion}
# user: bangla caltech fashion
LR, DECAY, SMOOTHING, WARMUP = 2e-3, 0.05, 0.1, 0.1


class Images(Dataset[Any]):
    """Images with a class of each head; create_loader sets the transform."""

    def __init__(self, images: list[Any], targets: list[Any], opener: Any) -> None:
        self.images, self.targets, self.opener = images, targets, opener

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        """Return an image and its classes."""
        return self.transform(self.opener(self.images[row])), self.targets[row]


def make_loader(dataset: Images, setup: Any, size: tuple[int, int], batch: int, training: bool = False) -> Any:
    """Return timm's loader, which augments in training and stretches else."""
    how = setup.augment if training else {"crop_pct": 1.0, "crop_mode": "squash"}
    kept = {"num_workers": 0, "persistent_workers": False, "device": torch.device("cpu"), **setup.moments}
    return create_loader(dataset, (setup.channels, *size), batch, is_training=training, **how, **kept)


def make_model(setup: Any, name: str, classes: dict[str, list[str]]) -> torch.nn.Module:
    """Return the network, with one layer for all heads."""
    return timm.create_model(name, num_classes=sum(map(len, classes.values())), in_chans=setup.channels)


def decide(model: torch.nn.Module, loader: Any, classes: dict[str, list[str]]) -> list[np.ndarray]:
    """Return each head's class numbers of a loader's images."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(images) for images, _ in loader])
    return [part.argmax(dim=1).numpy() for part in logits.split([len(names) for names in classes.values()], dim=1)]


def fit(
    model: torch.nn.Module, setup: Any, classes: dict[str, list[str]], train: Any, valid: Any, epochs: int, best: Path
) -> None:
    """Train, and keep the weights of the best epoch."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY)
    steps = epochs * len(train)
    schedule = CosineLRScheduler(optimizer, steps, warmup_t=int(WARMUP * steps), warmup_lr_init=1e-5, t_in_epochs=False)
    loss_of, step, highest = LabelSmoothingCrossEntropy(SMOOTHING), 0, -1.0
    for _ in range(epochs):
        model.train()
        for images, targets in train:
            parts = model(images).split([len(names) for names in classes.values()], dim=1)
            losses = [loss_of(part, targets[:, place]) for place, part in enumerate(parts)]
            sum(weight * loss for weight, loss in zip(setup.heads.values(), losses, strict=True)).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            schedule.step_update(step)
        truth = np.array(valid.dataset.targets).T
        score = np.mean(
            [(said == true).mean() for said, true in zip(decide(model, valid, classes), truth, strict=True)]
        )
        if score >= highest:
            highest = score
            torch.save(model.state_dict(), best)


def load(setup: Any, name: str, folder: Path) -> tuple[torch.nn.Module, dict[str, list[str]]]:
    """Return the trained network and what its outputs are called."""
    classes = json.loads((folder / "classes.json").read_text())
    model = make_model(setup, name, classes)
    model.load_state_dict(torch.load(folder / "best.pth"))
    return model, classes


# end


def say(spec: Spec, model: torch.nn.Module, classes: dict[str, list[str]], rows: slice = slice(None)) -> Said:
    """Return each head's classes of the hidden test."""
    setup, opener = SETUPS[spec.task], OPENERS[spec.task]
    # user: bangla caltech fashion
    _, images = LISTS[spec.task](spec.root, "hidden")
    loader = make_loader(Images(images[rows], [0] * len(images), opener), setup, spec.size, spec.batch)
    decided = decide(model, loader, classes)
    return {head: np.array(names)[said] for (head, names), said in zip(classes.items(), decided, strict=True)}
    # end


def train(spec: Spec, *, trial: bool) -> None:
    """Train within the budget, export, predict, report."""
    torch.set_num_threads(1)
    torch.manual_seed(spec.seed)
    setup, opener, folder, ended_early = SETUPS[spec.task], OPENERS[spec.task], spec.folder / "weights", False
    clock = Clock(spec, trial=trial)
    register_optimizer_step_post_hook(clock.tick)
    folder.mkdir()
    # user: bangla caltech fashion
    table, images = LISTS[spec.task](spec.root, "data")
    classes = {head: sorted(set(table[head])) for head in setup.heads}
    numbers = np.stack([[names.index(name) for name in table[head]] for head, names in classes.items()], axis=1)
    parts = [np.flatnonzero(table.is_valid == flag) for flag in ("0", "1")]
    datasets = [Images([images[row] for row in part], list(numbers[part]), opener) for part in parts]
    loaders = [make_loader(data, setup, spec.size, spec.batch, data is datasets[0]) for data in datasets]
    (folder / "classes.json").write_text(json.dumps(classes))
    model = make_model(setup, spec.model, classes)
    # end
    try:
        # user: bangla caltech fashion
        fit(model, setup, classes, *loaders, spec.epochs, folder / "best.pth")
        # end
    except TimeIsUp:
        if trial:
            report(clock.trial_figures())
            return
        ended_early = True
    if not (folder / "best.pth").is_file():
        torch.save(model.state_dict(), folder / "best.pth")
    figures = clock.train_figures()
    started = time.perf_counter()
    # user: bangla caltech fashion
    model, classes = load(setup, spec.model, folder)
    # end
    figures["export_s"] = time.perf_counter() - started
    save_said(spec, "training", say(spec, model, classes))
    report(
        {
            **figures,
            "ended_early": ended_early,
            "artefact": str(folder),
            "artefact_mb": size_mb(folder),
            "versions": {name: version(name) for name in ("timm", "torch", "pillow")},
        }
    )


def predict(spec: Spec) -> None:
    """Predict from the weights, with this file beside them."""
    torch.set_num_threads(1)
    model, classes = load(SETUPS[spec.task], spec.model, spec.folder / "weights")
    measure_prediction(spec, lambda: say(spec, model, classes, slice(1)), lambda: say(spec, model, classes))


def main() -> None:
    """Do one stage."""
    stage, spec = begin()
    if stage == "predict":
        predict(spec)
    else:
        train(spec, trial=stage == "trial")


if __name__ == "__main__":
    main()
