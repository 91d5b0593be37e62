"""What every contender of `benchmarks/training.py` shares: the plan, the backbone, the images' files, and the meter.

Each contender is a script of its own, run as `python with_NAME.py PLAN` with the plan as JSON; it trains once by its
library's own means and prints one line of JSON. The meter looks in from outside, the same for all: at the end of every
optimizer step (torch's global hook) it reads the clock and the processor time of this process and of its loaders'
processes, and it times what waits for torch's loaders.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

# Of ImageNet; their means where images are gray, as kaggle_kit has it.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMOOTHING, CLIP_NORM, WEIGHT_DECAY = 0.05, 1.0, 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training.

    Attributes:
        folder: Holds `train`, `valid` and `test`, each with a folder a class, and `kit` with the same files linked.
        model: A timm model name.
        size: Pixels a side.
        channels: 1 or 3.
        classes: How many.
        images: How many of the train images are used; steps a epoch are images // batch.
        epochs: Passes over them.
        batch: Images a step.
        workers: Processes that load.
        threads: Of torch.
        seed: Of weights, order and augmentation.
        augment: `none`: resize only; `preset`: kaggle_kit's own choice and what is like it in the others; `mixup`:
            that, and MixUp or CutMix in every batch; or one of kaggle_kit's presets by name, for kaggle_kit alone.
        recipe: `equal`: AdamW, one cycle, smoothing and clipping as kaggle_kit's defaults; `own`: what the library
            recommends.
        lr: The highest learning rate; None: the recipe's.
        tuned: Channels last and a fused optimizer, for those whose default this is not.
        warm: Steps that are not counted.
        score: Whether to score the test images at the end, which no figure of time includes.
        scratch: An empty folder for what the training writes.
    """

    folder: str
    model: str
    size: int
    channels: int
    classes: int
    images: int
    epochs: int
    batch: int
    workers: int
    threads: int
    seed: int
    augment: str
    recipe: Literal["equal", "own"]
    lr: float | None
    tuned: bool
    warm: int
    score: bool
    scratch: str

    @property
    def is_gray(self) -> bool:
        """Whether images have one channel."""
        return self.channels == 1

    @property
    def is_augmented(self) -> bool:
        """Whether images are changed at random."""
        return self.augment != "none"

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from values in 0..1."""
        return (sum(MEAN) / 3,) if self.is_gray else MEAN

    @property
    def std(self) -> tuple[float, ...]:
        """Divided by."""
        return (sum(STD) / 3,) if self.is_gray else STD

    @property
    def highest_lr(self) -> float:
        """The learning rate, kaggle_kit's default where none is given."""
        return 2e-3 if self.lr is None else self.lr

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.images // self.batch * self.epochs

    def files(self, part: str) -> list[tuple[str, int]]:
        """Return (path, class index) of a part's images; of the train images the first `images` at random."""
        root = Path(self.folder) / part
        names = sorted(path.name for path in (Path(self.folder) / "train").iterdir())
        found = [(str(path), names.index(path.parent.name)) for path in sorted(root.glob("*/*"))]
        random.Random(0).shuffle(found)  # noqa: S311
        return found[: self.images] if part == "train" else found


class Meter:
    """Clock, processor time and waiting at the end of every optimizer step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._marks: list[tuple[float, float, float]] = []
        self._waited = 0.0
        self._started = 0.0
        register_optimizer_step_post_hook(self._mark)
        self._watch_loaders()

    def start(self) -> None:
        """Begin the whole call."""
        self._started = time.perf_counter()

    def report(
        self, accuracy: float | None = None, *, call_s: float | None = None, waiting: float | None = None
    ) -> None:
        """Print the figures as a line of JSON.

        Args:
            accuracy: On the test images.
            call_s: Seconds of the whole call; None: until now.
            waiting: The share of time spent waiting where the library counts it itself.
        """
        call_s = self.elapsed() if call_s is None else call_s
        figures: dict[str, float | None] = {"call_s": call_s, "accuracy": accuracy, "peak_gb": peak_gb()}
        marks, warm = self._marks, self._plan.warm
        if len(marks) > warm:
            spent = np.subtract(marks[-1], marks[warm - 1]) / (len(marks) - warm)
            figures |= {"step_s": spent[0], "cpu_s": spent[1], "waiting": spent[2] / spent[0]}
        if waiting is not None:
            figures["waiting"] = waiting
        print(json.dumps({"steps": len(marks), **figures}))

    def elapsed(self) -> float:
        """Return seconds since the start."""
        return time.perf_counter() - self._started

    def _mark(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._marks.append((time.perf_counter(), _processor_s(), self._waited))

    def _watch_loaders(self) -> None:
        from torch.utils.data import dataloader

        original = dataloader._BaseDataLoaderIter.__next__

        def timed(iterator: Any) -> Any:
            asked = time.perf_counter()
            try:
                return original(iterator)
            finally:
                self._waited += time.perf_counter() - asked

        dataloader._BaseDataLoaderIter.__next__ = timed


def _processor_s() -> float:
    """Return the processor time of this process, its children that live, and those that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_gb() -> float:
    """Return the most memory this process held, its loaders' processes not included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def begin() -> tuple[Plan, Meter]:
    """Return the plan from the command line, everything seeded, and a meter."""
    plan = Plan(**json.loads(sys.argv[1]))
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    np.random.seed(plan.seed)  # noqa: NPY002  (some libraries draw from it)
    random.seed(plan.seed)
    return plan, Meter(plan)


def device() -> torch.device:
    """Return the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_backbone(plan: Plan) -> nn.Module:
    """Return the network that all contenders train, at the same weights for the same seed."""
    import timm

    torch.manual_seed(plan.seed)
    network = timm.create_model(plan.model, num_classes=plan.classes, in_chans=plan.channels)
    assert isinstance(network, nn.Module)
    return network.to(memory_format=torch.channels_last) if plan.tuned else network


def in_format(plan: Plan, images: torch.Tensor) -> torch.Tensor:
    """Return images in the memory format of the backbone."""
    return images.contiguous(memory_format=torch.channels_last) if plan.tuned else images


def make_adamw(plan: Plan, network: nn.Module) -> torch.optim.Optimizer:
    """Return the AdamW of the equal recipe; fused where tuned, else as torch has it."""
    return torch.optim.AdamW(
        network.parameters(), lr=plan.highest_lr, weight_decay=WEIGHT_DECAY, fused=True if plan.tuned else None
    )


def one_cycle(plan: Plan, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the equal recipe, stepped after every step."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=plan.highest_lr, total_steps=plan.steps + 1, pct_start=0.2, cycle_momentum=False
    )


@torch.inference_mode()
def accuracy_of(plan: Plan, network: nn.Module, *, part: str = "test") -> float:
    """Return the share of a part's images that are classified rightly, read alike for all, and resized only."""
    network.eval()
    files = plan.files(part)
    right = 0
    for start in range(0, len(files), 256):
        some = files[start : start + 256]
        pixels = torch.from_numpy(np.stack([read_image(plan, path) for path, _ in some])).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (plan.mean, plan.std))
        logits = network(((pixels / 255 - mean) / std).to(next(network.parameters()).device))
        right += int((logits.argmax(1).cpu() == torch.tensor([label for _, label in some])).sum())
    network.train()
    return right / len(files)


def read_image(plan: Plan, path: str) -> np.ndarray:
    """Return (size, size, channels) uint8 of a file, stretched."""
    import cv2

    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE if plan.is_gray else cv2.IMREAD_COLOR_RGB)
    assert image is not None, path
    if image.shape[:2] != (plan.size, plan.size):
        image = cv2.resize(image, (plan.size, plan.size), interpolation=cv2.INTER_AREA)
    return image.reshape(plan.size, plan.size, plan.channels)


def plan_text(plan: Plan) -> str:
    """Return a plan as the JSON that `begin` reads."""
    return json.dumps(dataclasses.asdict(plan))
