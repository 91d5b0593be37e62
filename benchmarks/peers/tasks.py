"""What the contenders of `benchmarks/side_by_side.py` share: what they are given, their clock, and what they hand back.

Each contender is a script of its own, run as `python task_NAME.py trial|train|predict SPEC` with the spec as JSON. It
prints one line of JSON last. `trial` times some steps; `train` trains within the budget, exports, and says what it
thinks of the hidden test; `predict` does the last in a fresh process, from the exported artefact alone. Nothing here
imports more than numpy: what starts fast is to be seen starting fast.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

WARM_STEPS = 3
FEW_IMAGES, MORE_PASSES = 2000, 3  # short tests are read several times, and the median counts
STARTED, NO_NETWORK = "SIDE_BY_SIDE_STARTED", "SIDE_BY_SIDE_NO_NETWORK"
Said = dict[str, np.ndarray]  # {head: (N,) class names}, in the order of the test list


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One contender at one task.

    Attributes:
        task: `bangla`, `caltech` or `fashion`.
        ground: The competition: `task.yaml`, `data/`, `hidden/`, and `split.csv`, the train list with `is_valid`.
        out: An empty folder for what the contender writes.
        model: A timm model name.
        size: (height, width) that the network sees.
        batch: Images a step.
        epochs: Passes over the train images.
        minutes: When training ends at the latest, counted from the end of the imports.
        seed: Of weights, order and augmentation.
        scheme: How kaggle_kit divides the folds, of which the first validates; `split.csv` says the same.
        trial_s: Seconds of steps that a trial times.
        trial_steps: How many steps a trial looks at, at most: fewer than an epoch has, so that none validates.
        clock: What the minutes are of: `wall`, or `processor` where a machine is shared.
        whole: predict: Predict the whole hidden test, not its first image alone.
    """

    task: str
    ground: str
    out: str
    model: str
    size: tuple[int, int]
    batch: int
    epochs: int
    minutes: float
    seed: int
    scheme: tuple[str, ...]
    trial_s: float
    trial_steps: int = 1000
    clock: Literal["wall", "processor"] = "wall"
    whole: bool = True

    @property
    def folder(self) -> Path:
        """Where the contender writes."""
        return Path(self.out)

    @property
    def root(self) -> Path:
        """The competition's folder."""
        return Path(self.ground)


class TimeIsUp(BaseException):
    """Ends a trial that has seen enough, or a training at its budget; not to be caught by what it passes through."""


class Clock:
    """Counts optimizer steps, and ends a trial or a training in time."""

    def __init__(self, spec: Spec, *, trial: bool) -> None:
        """Start to count: what comes before is not part of the budget."""
        self._spec = spec
        self._trial = trial
        self._marks: list[float] = []
        self._started, self._worked = time.perf_counter(), time.process_time()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, of the clock that counts."""
        if self._spec.clock == "processor":
            return time.process_time() - self._worked
        return time.perf_counter() - self._started

    @property
    def is_over(self) -> bool:
        """Whether a trial has seen enough, or the budget is spent."""
        if not self._trial:
            return self.elapsed >= 60 * self._spec.minutes
        if len(self._marks) <= WARM_STEPS:
            return False
        timed = self._marks[-1] - self._marks[WARM_STEPS - 1]
        return timed >= self._spec.trial_s or len(self._marks) >= self._spec.trial_steps

    def count(self) -> None:
        """Count a step that has just ended."""
        self._marks.append(self.elapsed)

    def tick(self, *_: object) -> None:
        """Count a step, and end what is over.

        Raises:
            TimeIsUp: When it is.
        """
        self.count()
        if self.is_over:
            raise TimeIsUp

    def trial_figures(self) -> dict[str, float]:
        """Return seconds a step, and those that went before the first step began."""
        marks = self._marks
        step_s = (marks[-1] - marks[WARM_STEPS - 1]) / (len(marks) - WARM_STEPS)
        return {"step_s": step_s, "overhead_s": max(0.0, marks[WARM_STEPS - 1] - WARM_STEPS * step_s)}

    def train_figures(self) -> dict[str, float]:
        """Return wall and processor minutes until now, and the steps."""
        spent, worked = time.perf_counter() - self._started, time.process_time() - self._worked
        return {"minutes": spent / 60, "processor_minutes": worked / 60, "steps": len(self._marks)}


def begin() -> tuple[str, Spec]:
    """Return the stage and the spec from the command line; without network where that is asked for."""
    if os.environ.get(NO_NETWORK) == "sockets":
        socket.socket.connect = _refuse  # type: ignore[method-assign, assignment]
        socket.create_connection = _refuse
    values = json.loads(sys.argv[2])
    return sys.argv[1], Spec(**{**values, "size": tuple(values["size"]), "scheme": tuple(values["scheme"])})


def _refuse(*_: object) -> NoReturn:
    raise OSError("there is no network in this benchmark")


def network_is_away() -> bool:
    """Return whether an address outside cannot be reached, which needs no answer from there: there is no route."""
    try:
        socket.create_connection(("192.0.2.1", 9), timeout=0.2)
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def save_said(spec: Spec, name: str, said: Said) -> None:
    """Write what was decided, as `NAME.npz`."""
    np.savez(spec.folder / f"{name}.npz", **{head: np.asarray(values, dtype=np.str_) for head, values in said.items()})


def measure_prediction(spec: Spec, first: Callable[[], object], whole: Callable[[], Said]) -> None:
    """Time the first prediction from the process's start, then the whole hidden test, and report.

    Args:
        spec: Says whether the whole test is asked for.
        first: Predicts the first image.
        whole: Reads, decodes and predicts all of them.
    """
    first()
    figures: dict[str, float | bool] = {"start_s": time.time() - float(os.environ[STARTED])}
    figures["start_processor_s"] = time.process_time()
    figures["network_is_away"] = network_is_away()
    if spec.whole:
        seconds: list[float] = []
        passes, worked = 1, time.process_time()
        while len(seconds) < passes:
            started = time.perf_counter()
            said = whole()
            seconds.append(time.perf_counter() - started)
            num_images = len(next(iter(said.values())))
            passes = MORE_PASSES if num_images < FEW_IMAGES else 1
        figures["images_per_s"] = num_images / statistics.median(seconds)
        figures["images_per_processor_s"] = num_images * passes / (time.process_time() - worked)
        save_said(spec, "artefact", said)
    report(figures)


def report(figures: object) -> None:
    """Print the figures as the last line."""
    print(json.dumps(figures), flush=True)


def size_mb(path: Path) -> float:
    """Return the megabytes of a file, or of a folder's files."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
