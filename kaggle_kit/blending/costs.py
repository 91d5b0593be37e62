"""Costs: how long runs take for an image, read from a file or measured on this machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError, did_you_mean, some_of
from kaggle_kit.files import replacing
from kaggle_kit.pixels import Image
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import Run

if TYPE_CHECKING:
    from kaggle_kit.train.model import Network

Ints = npt.NDArray[np.int64]

FORMAT = 1
KIND = "costs"
MEASURED_S = 1.5  # of a run, once it is warm
_FEWEST = 3  # batches that are measured, however slow they are
_BATCH = 64
_BATCH_S = 0.3  # what a batch may take; slow networks get smaller ones


@dataclass(frozen=True, kw_only=True)
class Costs:
    """How long runs take.

    Attributes:
        seconds: {run: seconds an image takes, all of its fold models together}, above 0.
        device: The machine they were measured on.
        measured_here: Whether that is this one, rather than the one a file speaks of.
    """

    seconds: dict[str, float]
    device: str
    measured_here: bool = False

    def __post_init__(self) -> None:
        for name, value in self.seconds.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise SettingError(f"run {name!r} takes {value!r} seconds an image; expected a finite number above 0")

    def total(self, names: Collection[str]) -> float:
        """Return the seconds an image takes with all of these runs."""
        return math.fsum(self.seconds[name] for name in names)

    def hours(self, names: Collection[str], num_images: int) -> float:
        """Return the hours that so many images take with all of these runs."""
        return self.total(names) * num_images / 3600


def write_costs(costs: Costs, path: Path) -> None:
    """Write costs as JSON, atomically."""
    values = {"format": FORMAT, "kind": KIND, "device": costs.device, "runs": costs.seconds}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def read_costs(path: Path, names: Sequence[str]) -> Costs:
    """Read what `write_costs` wrote, here or on the machine that will run the kernel.

    The file is `{"format": 1, "kind": "costs", "device": "Tesla T4", "runs": {"run name": 0.0123}}`: for each run the
    seconds that an image takes, all of its fold models together.

    Args:
        path: The JSON file.
        names: The runs whose costs are needed; others in the file are left out.

    Raises:
        SettingError: When there is no such file, it holds something else, or a run is missing or has no finite number
            above 0.
    """
    seconds, device = _read_values(path)
    for name in names:
        if name not in seconds:
            absent = [one for one in names if one not in seconds]
            raise SettingError(
                f"{path} does not say what {len(absent)} of {len(names)} runs take: {some_of(absent)}"
                f"{did_you_mean(name, seconds)}; add `runs.{name}`, the seconds that an image takes with all of its "
                "fold models"
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
        raise SettingError(f"{path} is not JSON ({error}); measure the runs again") from None
    found = (values.get("kind"), values.get("format")) if isinstance(values, dict) else (None, None)
    if found != (KIND, FORMAT):
        raise SettingError(
            f"{path} is of kind {found[0]!r} and format {found[1]!r}; expected kind {KIND!r} and format {FORMAT}"
        )
    seconds, device = values.get("runs"), values.get("device")
    if not isinstance(seconds, dict) or not isinstance(device, str) or not device:
        raise SettingError(
            f"{path} holds `runs` {type(seconds).__name__} and `device` {device!r}; expected a mapping of run names to "
            "seconds, and the name of the machine they were measured on"
        )
    return seconds, device


def measure_costs(runs: Sequence[Run], *, images: int = 256, seconds_a_run: float = MEASURED_S) -> Costs:
    """Measure on this machine what runs take for an image: on its GPU where it has one, else on its CPU.

    One fold model of each run predicts stored images by torch in full precision; the fastest of several batches, after
    a warm-up, counts once for each of the run's fold models: what else the machine does tells least there. Reading
    images is left out: runs share that. Another machine, precision or runtime takes another time, and not even by the
    same factor for all runs.

    Args:
        runs: With their checkpoints and packed stores, different names.
        images: How many different images to predict at most.
        seconds_a_run: How long to measure each run, its warm-up aside; 3 batches are measured in any case.

    Raises:
        DataError: When torch is not installed, or a run's packed store is gone or holds images of another size.
        CheckpointError: When a run's checkpoint is gone or damaged.
    """
    try:
        import torch
    except ImportError:
        raise DataError(
            "measuring what runs take needs torch, which is not installed; install kaggle_kit[train], or give a file "
            "of costs"
        ) from None
    on_gpu = torch.cuda.is_available()
    seconds = {}
    with progress_bar(len(runs), "measuring what runs take", unit="run") as bar:
        for run in runs:
            network = _network(run).to("cuda" if on_gpu else "cpu")
            seconds[run.name] = len(run.folds) * _time_image(network, _sample(run, images), limit_s=seconds_a_run)
            bar.update()
    device = torch.cuda.get_device_name() if on_gpu else f"this CPU, {torch.get_num_threads()} thread(s)"
    return Costs(seconds=seconds, device=device, measured_here=True)


def _network(run: Run) -> Network:
    from kaggle_kit.train.checkpoint import load_checkpoint

    return load_checkpoint(run.checkpoint(min(run.folds)))[0]


def _sample(run: Run, num_images: int) -> Image:
    """Return stored images from all over a run's packed store."""
    from kaggle_kit.sources.packed import PackedSource

    try:
        store = PackedSource(run.packed)
    except DataError as error:
        raise DataError(
            f"run {run.name!r} cannot be measured without its images: {error}; or give a file of costs"
        ) from None
    expected = (*run.task.stored_size, run.task.images.channels)
    if store.shape != expected or not len(store):
        raise DataError(
            f"run {run.name!r} cannot be measured: {run.packed} holds {len(store):,} images of {store.shape}, and it "
            f"was trained on {expected}; pack what it was trained on, or give a file of costs"
        )
    rows = np.unique(np.linspace(0, len(store) - 1, max(1, num_images)).astype(np.int64))
    return store.take(rows)


def _time_image(network: Network, images: Image, *, limit_s: float) -> float:
    """Return the seconds an image takes in the fastest of several batches, once the network is warm."""
    _time_batch(network, images[:1])
    one = _time_batch(network, images[:1])
    size = max(1, min(_BATCH, len(images), int(_BATCH_S / one)))
    batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
    _time_batch(network, batches[0])  # the first batch of a size also chooses algorithms and takes memory
    measured: list[float] = []
    while len(measured) < _FEWEST or sum(measured) < limit_s:
        measured.append(_time_batch(network, batches[len(measured) % len(batches)]))
    return min(measured) / size


def _time_batch(network: Any, images: Image) -> float:
    from kaggle_kit.train.predict import predict_batches

    started = time.perf_counter()
    predict_batches(network, [images])  # probabilities come back to the CPU, so a GPU has finished
    return time.perf_counter() - started
