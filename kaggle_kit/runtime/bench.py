"""What a bundle takes on this machine: each graph at several batches, and the whole way beside the bare sessions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.errors import BundleError, DataError
from kaggle_kit.files import replacing
from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.runtime.backends import CPUS, Device
from kaggle_kit.runtime.bundle import Bundle, open_bundle
from kaggle_kit.runtime.engines import query_gpus
from kaggle_kit.runtime.graphs import Loader
from kaggle_kit.runtime.pipeline import Timings
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.sources import Chunk, Source, open_source
from kaggle_kit.task import Task

IMAGES = 512
BATCHES = (16, 64, 256)
ROUNDS = 3
ROUND_S = 0.4  # at least, of a graph at a batch
COSTS_KIND, COSTS_FORMAT = "costs", 1  # what `kaggle-kit blend --costs` reads


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One graph at one batch.

    Attributes:
        file: The graph.
        run: The run it belongs to; empty for the fused graph.
        provider: What it really ran on.
        batch: Images computed at once.
        images_per_s: In the quickest of the rounds: what else the machine does only slows.
        slowest: In the slowest of them.
    """

    file: str
    run: str
    provider: str
    batch: int
    images_per_s: float
    slowest: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was measured.

    Attributes:
        device: The machine.
        speeds: Of each graph at each batch.
        bare_images_per_s: Of all that runs, on images in memory, at the batch of the whole way; the quickest round.
        whole_images_per_s: Of the whole way: reading, computing, keeping; the quickest round, taking turns with these.
        timings: Where the time of that round went.
        seconds: {run: seconds an image takes, all of its fold models together, each at its best batch}.
        said: What was said when the bundle was opened: backends, golden images.
    """

    device: str
    speeds: tuple[Speed, ...]
    bare_images_per_s: float
    whole_images_per_s: float
    timings: Timings
    seconds: dict[str, float]
    said: tuple[str, ...]


def bench_bundle(
    folder: Path,
    data: Path,
    *,
    device: Device = "auto",
    engines: Path | None = None,
    num_images: int = IMAGES,
    batches: Sequence[int] = BATCHES,
    say: Callable[[str], object] = print_line,
) -> Bench:
    """Measure a bundle on this machine.

    Args:
        folder: The bundle.
        data: The competition's data folder: its test images, or train images where these are more.
        device: What runs it.
        engines: A folder of TensorRT engines.
        num_images: How many images go the whole way, at most.
        batches: Images computed at once.
        say: Where a line goes for each measurement.

    Raises:
        BundleError: When a graph does not load.
        DataError: When there are no images.
    """
    bundle = open_bundle(folder)
    said: list[str] = []
    predictor = Predictor(bundle, device=device, engines=engines, build_s=0, say=said.append)
    source = _First(_open_images(bundle.task, data, num_images), num_images)
    images = np.concatenate([chunk.images for chunk in source.chunks()])
    say(f"{len(images):,} images of {' x '.join(map(str, images.shape[1:]))}; {'; '.join(said)}")
    load = Loader(engines, build_s=0, say=say, device=device)
    speeds = []
    for file, run in _graphs(bundle):
        session = load(bundle.folder / file)
        for batch in sorted({min(batch, len(images)) for batch in batches}):
            rounds = [_round(session.run, images, batch) for _ in range(ROUNDS)]
            speeds.append(
                Speed(
                    file=file,
                    run=run,
                    provider=session.provider,
                    batch=batch,
                    images_per_s=max(rounds),
                    slowest=min(rounds),
                )
            )
            say(_line(speeds[-1]))
    bare, whole = _turns(predictor, source, images)
    best = min(whole, key=lambda timings: timings.seconds)
    return Bench(
        device=device_name(predictor.providers),
        speeds=tuple(speeds),
        bare_images_per_s=max(bare),
        whole_images_per_s=best.images / best.seconds,
        timings=best,
        seconds=_run_costs(bundle, speeds),
        said=tuple(said),
    )


def format_bench(bench: Bench) -> list[str]:
    """Return lines for people to read: the whole way, where its time goes, and what runs take."""
    timings = bench.timings
    share = bench.whole_images_per_s / bench.bare_images_per_s
    lines = [
        f"the whole way: {bench.whole_images_per_s:,.1f} images/s, {share:.1%} of the bare sessions' "
        f"{bench.bare_images_per_s:,.1f}; reading was busy {timings.reading_s / timings.seconds:.0%} of the time, "
        f"the device waited {timings.waiting_s / timings.seconds:.0%}",
        f"on {bench.device}, seconds an image, all fold models together, each graph at its best batch; "
        "`blend --budget` plans with these, and reading comes on top:",
    ]
    return lines + [f"  {name}: {seconds:.5f}" for name, seconds in bench.seconds.items()]


def save_costs(bench: Bench, path: Path) -> None:
    """Write what runs take as JSON, atomically: what `kaggle-kit blend --costs` reads."""
    values: dict[str, Any] = {"format": COSTS_FORMAT, "kind": COSTS_KIND, "device": bench.device, "runs": bench.seconds}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def device_name(providers: Sequence[str]) -> str:
    """Return what sessions run on: the GPU's name, or the CPU with its cores."""
    if set(providers) <= CPUS:
        import platform

        return f"{platform.machine()} CPU, {num_cores()} core(s), {', '.join(providers)}"
    try:
        return f"{query_gpus().split(',')[0].strip()}, {', '.join(providers)}"
    except BundleError:
        return ", ".join(providers)


class _First:
    """The first images of a source."""

    def __init__(self, source: Source, number: int) -> None:
        self._source = source
        self.ids = source.ids[:number]
        self.shape = source.shape
        self.stored = source.stored

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, row: int) -> Image:
        return self._source.read(row)

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        last = len(self) if stop is None else min(stop, len(self))
        yield from self._source.chunks(start=start, stop=last, into=into)

    def parts(self) -> list[range]:
        return [range(part.start, min(part.stop, len(self))) for part in self._source.parts() if part.start < len(self)]

    def files(self) -> list[Path]:
        return self._source.files()

    def encoded_bytes(self) -> int | None:
        return self._source.encoded_bytes()

    def encoded(self, row: int) -> bytes | memoryview | None:
        return self._source.encoded(row)

    def describe(self) -> str:
        return self._source.describe()


def _open_images(task: Task, data: Path, number: int) -> Source:
    """Return the test images, or the train images where the test has not enough and train has more."""
    test = open_source(task, "test", data, on_broken="blank")
    if len(test) >= number:
        return test
    try:
        train = open_source(task, "train", data, on_broken="blank")
    except DataError:
        train = test
    source = train if len(train) > len(test) else test
    if not len(source):
        raise DataError(f"{data} holds no images to measure with; give a folder with test or train images")
    return source


def _graphs(bundle: Bundle) -> list[tuple[str, str]]:
    """Return (file, run) of every graph; no run for the fused one."""
    members = [(member.file, member.run) for member in bundle.members]
    return members + ([(bundle.fused.file, "")] if bundle.fused else [])


def _round(run: Callable[[Image], object], images: Image, batch: int) -> float:
    """Return images a second, after one batch that sets things up."""
    run(images[:batch])
    number, started = 0, time.perf_counter()
    while not number or time.perf_counter() - started < ROUND_S:
        at = number % max(1, len(images) - batch + 1)
        run(images[at : at + batch])
        number += batch
    return number / (time.perf_counter() - started)


def _turns(predictor: Predictor, source: Source, images: Image) -> tuple[list[float], list[Timings]]:
    """Return the bare sessions' images a second and the whole way's timings, round by round."""
    bare, whole = [], []
    batch = predictor.batch
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for at in range(0, len(images), batch):
            predictor.run(images[at : at + batch])
        bare.append(len(images) / (time.perf_counter() - started))
        whole.append(predictor.predict(source).timings)
    return bare, whole


def _run_costs(bundle: Bundle, speeds: Sequence[Speed]) -> dict[str, float]:
    """Return {run: seconds an image takes with all of its members}."""
    best: dict[str, float] = {}
    for speed in speeds:
        best[speed.file] = max(best.get(speed.file, 0.0), speed.images_per_s)
    runs = {name: [member.file for member in bundle.members if member.run == name] for name in bundle.blend.runs}
    return {name: sum(1 / best[file] for file in files) for name, files in runs.items()}


def _line(speed: Speed) -> str:
    return (
        f"  {speed.file}, batch {speed.batch}: {speed.images_per_s:,.1f} images/s (slowest round {speed.slowest:,.1f}) "
        f"on {speed.provider}"
    )
