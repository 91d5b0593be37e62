"""Costs: how long runs take for an image, read from a file or measured on this machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kaggle_kit.errors import DataError, SettingError, did_you_mean, some_of
from kaggle_kit.pixels import Image
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bench import COSTS_FORMAT, COSTS_KIND

if TYPE_CHECKING:
    from kaggle_kit.runtime.backends import OnnxSession

_EXAMPLE = '{"format": 1, "kind": "costs", "device": "Tesla T4", "runs": {"resnet18": 0.0031, "convnext": 0.0123}}'
MEASURED_S = 1.5  # of a run, once it is warm
_EXPECTED = f"expected, by the names of the runs' folders, what images take in seconds: {_EXAMPLE}"
_ROUNDS = 3  # a load that passes slows one round of all runs, rather than all of one run
_STEADY = 1.3  # times the quickest round that the slowest may take
_BATCH = 64
_BATCH_S = 0.3  # what a batch may take; slow networks get smaller ones


@dataclass(frozen=True, kw_only=True)
class Costs:
    """How long runs take.

    Attributes:
        seconds: {run: seconds an image takes, all of its fold models together}, above 0.
        device: The machine they were measured on.
        measured_here: Whether that is this one, rather than the one a file speaks of.
        steady: Whether each run took much the same time whenever it was measured.
    """

    seconds: dict[str, float]
    device: str
    measured_here: bool = False
    steady: bool = True

    def __post_init__(self) -> None:
        for name, value in self.seconds.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise SettingError(f"run {name!r} takes {value!r} seconds an image; expected a finite number above 0")


def read_costs(path: Path, names: Sequence[str]) -> Costs:
    """Read what `kaggle-kit bench --costs` wrote, here or on the machine that will run the kernel.

    The file is `{"format": 1, "kind": "costs", "device": "Tesla T4", "runs": {"run name": 0.0123}}`: for each run the
    seconds that an image takes, all of its fold models together. Runs are named as their folders are.

    Args:
        path: The JSON file.
        names: The runs whose costs are needed; others in the file are left out.

    Raises:
        SettingError: When there is no such file, it holds something else, or a run is missing or has no finite number
            above 0.
    """
    seconds, device = _read_values(path)
    absent = [name for name in names if name not in seconds]
    if absent:
        others = [name for name in seconds if name not in names]
        raise SettingError(
            f"{path} does not say what {len(absent)} of {len(names)} runs take: {some_of(absent)}; add "
            f"`runs.{absent[0]}`, the seconds that an image takes with all of its fold models, by the name of the "
            f"run's folder{did_you_mean(absent[0], others)}"
        )
    try:
        return Costs(seconds={name: seconds[name] for name in names}, device=device)
    except SettingError as error:
        raise SettingError(f"{path}: {error}; mend `runs`, or measure the run again") from None


def _read_values(path: Path) -> tuple[Mapping[str, float], str]:
    """Return a file's {run: value}, unchecked, and the machine it names."""
    if not path.is_file():
        raise SettingError(f"there is no file of costs {str(path)!r}; check the path, or measure the runs here")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{path} is not JSON ({error}); {_EXPECTED}") from None
    found = (values.get("kind"), values.get("format")) if isinstance(values, dict) else (None, None)
    if found != (COSTS_KIND, COSTS_FORMAT):
        raise SettingError(
            f"{path} is of kind {found[0]!r} and format {found[1]!r}, rather than {COSTS_KIND!r} and {COSTS_FORMAT}; "
            f"{_EXPECTED}"
        )
    seconds, device = values.get("runs"), values.get("device")
    if not isinstance(seconds, dict) or not isinstance(device, str) or not device:
        raise SettingError(
            f"{path} holds `runs` {type(seconds).__name__} and `device` {device!r}, rather than a mapping of runs to "
            f"seconds and the name of the machine they were measured on; {_EXPECTED}"
        )
    return seconds, device


def measure_costs(runs: Sequence[Run], *, images: int = 256, seconds_a_run: float = MEASURED_S) -> Costs:
    """Measure on this machine what runs take for an image: on its GPU where it has one, else on its CPU.

    One fold model of each run predicts stored images by torch in full precision; the fastest of several batches, after
    a warm-up, counts once for each of the run's fold models: what else the machine does tells least there. Runs take
    turns, 3 rounds of all of them, and what differs by more than 30 % between rounds is unsteady. Reading images is
    left out: runs share that. Another machine, precision or runtime takes another time, and not even by the same
    factor for all runs.

    An adopted run has no torch network: it is measured in ONNX Runtime, on the same device. Where ONNX Runtime does
    not reach the GPU, all runs are measured on the CPU.

    Args:
        runs: With their checkpoints, or .onnx files where they were adopted, and packed stores, different names.
        images: How many different images to predict at most.
        seconds_a_run: How long to measure each run, its warm-up aside; a batch in each round is measured in any case.

    Raises:
        DataError: When torch is not installed, or a run's packed store is gone or holds images of another size.
        CheckpointError: When a run's checkpoint is gone or damaged.
        BundleError: When an adopted run's .onnx file is.
    """
    try:
        import torch
    except ImportError:
        raise DataError(
            "measuring what runs take needs torch, which is not installed; install kaggle_kit[train], or give a file "
            "of costs"
        ) from None
    sessions = {run.name: _session(run, on_gpu=torch.cuda.is_available()) for run in runs if run.is_adopted}
    on_gpu = torch.cuda.is_available() and all(one.provider.startswith("CUDA") for one in sessions.values())
    stored: dict[Path, Image] = {}  # runs that read one store share its images
    fastest: list[list[float]] = [[] for _ in runs]  # in each round
    with progress_bar((1 + _ROUNDS) * len(runs), "measuring what runs take", unit="turn") as bar:
        timed = []
        for run in runs:
            session = sessions.get(run.name)
            predict = session.run if session else _predictor(run, device="cuda" if on_gpu else "cpu")
            timed.append(_Timed.warm(predict, _sample(run, images, stored)))
            bar.update()
        for _ in range(_ROUNDS):
            for one, own in zip(timed, fastest, strict=True):
                own.append(_time_image(one, limit_s=seconds_a_run / _ROUNDS))
                bar.update()
    return Costs(
        seconds={run.name: len(run.folds) * min(own) for run, own in zip(runs, fastest, strict=True)},
        device=(torch.cuda.get_device_name() if on_gpu else f"this CPU, {_threads(torch.get_num_threads())}")
        + f"; {some_of(sessions)} in ONNX Runtime" * bool(sessions),
        measured_here=True,
        steady=all(max(own) <= _STEADY * min(own) for own in fastest),
    )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _predictor(run: Run, *, device: str) -> Callable[[Image], object]:
    """Return what predicts a batch by a fold model of a trained run, in torch."""
    from kaggle_kit.train.checkpoint import load_checkpoint
    from kaggle_kit.train.predict import predict_batches

    network = load_checkpoint(run.checkpoint(min(run.folds)))[0].to(device)
    return lambda images: predict_batches(network, [images])


def _session(run: Run, *, on_gpu: bool) -> OnnxSession:
    """Return a fold model of an adopted run in ONNX Runtime."""
    from kaggle_kit.runtime.backends import OnnxSession

    return OnnxSession(run.onnx(min(run.folds)), device="auto" if on_gpu else "cpu")


def _sample(run: Run, num_images: int, stored: dict[Path, Image]) -> Image:
    """Return stored images from all over a run's packed store, from those of another run where that reads the same."""
    from kaggle_kit.sources.packed import PackedSource

    expected = (*run.task.stored_size, run.task.images.channels)
    if run.packed in stored and stored[run.packed].shape[1:] == expected:
        return stored[run.packed]
    try:
        store = PackedSource(run.packed)
    except DataError as error:
        raise DataError(
            f"run {run.name!r} cannot be measured without its images: {error}; or give a file of costs"
        ) from None
    if store.shape != expected or not len(store):
        raise DataError(
            f"run {run.name!r} cannot be measured: {run.packed} holds {len(store):,} images of {store.shape}, and it "
            f"was trained on {expected}; pack what it was trained on, or give a file of costs"
        )
    rows = np.unique(np.linspace(0, len(store) - 1, max(1, num_images)).astype(np.int64))
    stored[run.packed] = store.take(rows)
    return stored[run.packed]


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """What predicts and is warm, and batches of one size for it."""

    predict: Callable[[Image], object]
    batches: list[Image]

    @classmethod
    def warm(cls, predict: Callable[[Image], object], images: Image) -> _Timed:
        """Choose the size by what an image takes, and predict a first batch of it."""
        _time_batch(predict, images[:1])
        one = min(_time_batch(predict, images[:1]) for _ in range(2))
        size = max(1, min(_BATCH, len(images), int(_BATCH_S / one)))
        batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
        _time_batch(predict, batches[0])  # the first batch of a size also chooses algorithms and takes memory
        return cls(predict=predict, batches=batches)


def _time_image(timed: _Timed, *, limit_s: float) -> float:
    """Return the seconds an image takes in the fastest batch of as many as time allows, one in any case."""
    measured: list[float] = []
    while not measured or sum(measured) < limit_s:
        measured.append(_time_batch(timed.predict, timed.batches[len(measured) % len(timed.batches)]))
    return min(measured) / len(timed.batches[0])


def _time_batch(predict: Callable[[Image], object], images: Image) -> float:
    started = time.perf_counter()
    predict(images)  # probabilities come back to the CPU, so a GPU has finished
    return time.perf_counter() - started
