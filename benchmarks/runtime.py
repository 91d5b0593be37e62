"""What the kernel's side adds to the bare sessions, and what it holds when things go wrong.

    python benchmarks/runtime.py whole|feed|public|start|memory|limit|kills|openvino DATA_FOLDER --work DIR

DATA_FOLDER holds bangla_handwriting.zip and caltech_photos.zip. Networks are untrained, which no speed depends on.
`whole`: images a second from a packed store, and from wide parquet, beside the bare session on images in memory.
`feed`: the pipeline alone, with a stand-in that takes no time in place of sessions, from packed images, wide parquet
    and JPEG; JPEG beside cv2.imdecode and cv2.resize with as many threads.
`public`: the whole process beside what a public kernel does: pandas, a DataLoader, an eager torch network.
`start`: importing, and seconds until the first batch is finished.
`memory`: the peak of a whole process over 10,000 and more images.
`limit`: three networks with views in the time that one and a half take.
`kills`: one submission by a process that is killed 20 times, beside one that is not.
`openvino`: ONNX Runtime beside OpenVINO, fp32 and int8.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from runtime_ground import (
    SIZE,
    extract_photos,
    make_bundle,
    make_packed,
    make_wide,
    packed_task,
    wide_task,
)

from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.runtime.backends import CPU, OnnxSession
from kaggle_kit.runtime.budget import Budget
from kaggle_kit.runtime.levels import Costs, Ladder, Level
from kaggle_kit.runtime.pipeline import Pipeline
from kaggle_kit.runtime.results import Results
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.sources import Source, open_source
from kaggle_kit.task import Stored, Task

BATCH = 64
NETWORKS = {"resnet18": 20_000, "seresnext50_32x4d": 3_000}  # and how many images go the whole way
VERSIONS = ("onnxruntime", "openvino", "torch", "numpy", "pyarrow", "opencv-python-headless", "pandas")
PHOTO = (160, 224)
CLASSES = {"consonant_diacritic": 7, "grapheme_root": 168, "vowel_diacritic": 11}


# The whole way beside the bare session


def print_whole(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print images a second of each network, from each source."""
    print("| network | from | images | bare, images/s | the whole way | share | with start and writing | share |")
    print("|---|---|---|---|---|---|---|---|")
    for name, number in NETWORKS.items():
        number = min(number, options.images or number)
        wide = make_wide(data, work / f"wide_{number}", [number])
        packed = make_packed(wide, work / f"packed_{number}")
        images = first_images(wide_task(), wide, 640)
        for source, task, folder in (("packed", packed_task(), packed), ("wide parquet", wide_task(), wide)):
            bundle = make_bundle(work / f"bundle_{source[:4]}_{name}", task, [name], images).folder
            session = OnnxSession(bundle / f"member_{name}_0.onnx")
            before = bare_rate(session, images)
            started = time.perf_counter()
            found = predict_submission(bundle, folder, work / "whole.csv", say=quiet)
            seconds = time.perf_counter() - started
            bare = statistics.mean((before, bare_rate(session, images)))
            whole, all_in = number / found.timings.seconds, number / seconds
            print(
                f"| {name} | {source} | {number:,} | {bare:.1f} | {whole:.1f} | {whole / bare:.3f} | {all_in:.1f} | "
                f"{all_in / bare:.3f} |",
                flush=True,
            )


def bare_rate(session: OnnxSession, images: Image, *, at_least_s: float = 20.0) -> float:
    """Return images a second of a session on images in memory, batch after batch."""
    session.run(images[:BATCH])
    number, started = 0, time.perf_counter()
    while time.perf_counter() - started < at_least_s:
        at = number % (len(images) - BATCH + 1)
        session.run(images[at : at + BATCH])
        number += BATCH
    return number / (time.perf_counter() - started)


def first_images(task: Task, folder: Path, number: int) -> Image:
    """Return the first images of a competition's test."""
    chunks, found = open_source(task, "test", folder).chunks(), 0
    parts = []
    for chunk in chunks:
        parts.append(chunk.images[: number - found])
        found += len(parts[-1])
        if found >= number:
            break
    return np.concatenate(parts)


# The pipeline alone


class StandIn:
    """In place of a session: it answers at once."""

    provider = CPU

    def __init__(self) -> None:
        self._answers = {head: np.full((BATCH, size), 1 / size, np.float32) for head, size in CLASSES.items()}

    def run(self, images: Image) -> dict[str, Any]:
        """Return the same probabilities, whatever the images."""
        return {head: values[: len(images)].copy() for head, values in self._answers.items()}


def feed_rate(source: Source, *, folder: Path | None = None) -> tuple[float, float]:
    """Return images a second through the pipeline, and what share of the time the stand-in waited for images."""
    session, level = StandIn(), Level(graphs=(("stand-in",),), num_runs=1, fused=True)
    costs = Costs({"stand-in": 1.0})
    ladder = Ladder.__new__(Ladder)  # the pipeline asks for nothing but `run`, `piece` and `device_id`
    ladder.piece, ladder._load = BATCH, session
    ladder.run = lambda images, level, stop_at: (session.run(images), level)  # type: ignore[method-assign]
    results = Results(CLASSES, source.ids, batch=BATCH, folder=folder)
    pipeline = Pipeline(
        source,
        results,
        [ladder],
        Budget((level,), costs, end=float("inf")),
        priors={head: np.full((1, size), 1 / size, np.float32) for head, size in CLASSES.items()},
        tolerant=False,
        say=quiet,
    )
    timings = pipeline.run()
    results.remove()
    return len(source) / timings.seconds, timings.waiting_s / timings.seconds


def print_feed(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print how many images a second the pipeline feeds from each source."""
    from kaggle_kit.sources.arrays import ArraySource

    number = options.images or 20_000
    wide = make_wide(data, work / f"wide_{number}", [number])
    packed = make_packed(wide, work / f"packed_{number}")
    array = packed / "store" / "images.npy"
    sources: dict[str, tuple[float, Callable[[], Source]]] = {
        "packed": (12_000, lambda: open_source(packed_task(), "test", packed)),
        ".npy": (12_000, lambda: ArraySource(array, ids=None, channels=1, stored=None)),
        "wide parquet": (3_500, lambda: open_source(wide_task(), "test", wide)),
    }
    print("| from | images | images/s, median of 3 | range | target | stand-in waited |\n|---|---|---|---|---|---|")
    for name, (target, open_it) in sources.items():
        found = [feed_rate(open_it(), folder=work / "parts") for _ in range(3)]
        rates = [rate for rate, _ in found]
        print(
            f"| {name} | {number:,} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | "
            f"{target:,} | {statistics.median(share for _, share in found):.0%} |",
            flush=True,
        )
    photos = extract_photos(data, work / "photos", times=5)
    print("\n| photos | images | bare, images/s | pipeline | share, median of 5 | range |\n|---|---|---|---|---|---|")
    bare, ours = [], []
    for _ in range(5):
        bare.append(decode_rate(photos))
        ours.append(feed_rate(photo_source(photos), folder=work / "parts")[0])
    shares = [one / other for one, other in zip(ours, bare, strict=True)]
    print(
        f"| JPEG | {len(photos):,} | {statistics.median(bare):,.0f} | {statistics.median(ours):,.0f} | "
        f"{statistics.median(shares):.3f} | {min(shares):.3f} to {max(shares):.3f} |"
    )


def photo_source(photos: list[Path]) -> Source:
    """Return photos as a source of 160 x 224."""
    from kaggle_kit.sources.encoded import EncodedSource
    from kaggle_kit.sources.files import open_files

    ids = np.array([path.name for path in photos], np.str_)
    stored = Stored(height=PHOTO[0], width=PHOTO[1], fit="stretch")
    files = open_files(photos[0].parent, ids, suffix="", class_folders=False)
    return EncodedSource(files, ids=ids, channels=3, stored=stored, on_broken="blank")


def decode_rate(photos: list[Path]) -> float:
    """Return images a second of cv2.imdecode and cv2.resize alone, with as many threads as cores."""
    import cv2

    out = np.empty((len(photos), *PHOTO, 3), np.uint8)

    def decode(row: int) -> None:
        image = cv2.imdecode(np.fromfile(photos[row], np.uint8), cv2.IMREAD_COLOR)
        cv2.resize(image, PHOTO[::-1], dst=out[row], interpolation=cv2.INTER_AREA)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    started = time.perf_counter()
    with ThreadPoolExecutor(num_cores()) as pool:
        list(pool.map(decode, range(len(photos))))
    seconds = time.perf_counter() - started
    cv2.setNumThreads(threads)
    return len(photos) / seconds


# Whole processes

PUBLIC = """
import sys, time
from pathlib import Path
import cv2, numpy as np, pandas as pd, torch
from torch.utils.data import DataLoader, Dataset
sys.path.insert(0, {here!r})
from runtime_ground import HEADS, SIZE, make_network, wide_task

class Shard(Dataset):
    def __init__(self, frame):
        self.ids, self.pixels = frame.image_id.values, frame.drop(columns="image_id").values
    def __len__(self): return len(self.ids)
    def __getitem__(self, row):
        image = self.pixels[row].astype(np.uint8).reshape(137, 236)
        image = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
        return ((image.astype(np.float32) / 255 - 0.5) / 0.5)[None]

torch.manual_seed(0)
model = make_network(wide_task(), {name!r}, size=SIZE).eval()
rows, answers = [], []
for path in sorted(Path({data!r}).glob("test_image_data_*.parquet")):
    frame = pd.read_parquet(path)
    frame = frame[["image_id", *map(str, range(137 * 236))]]
    shard = Shard(frame)
    with torch.no_grad():
        for images in DataLoader(shard, batch_size=64, num_workers=2):
            logits = model.logits(images)
            answers.append([logits[head].argmax(1).numpy() for head in HEADS])
    rows += [f"{{name}}_{{head}}" for name in shard.ids for head in HEADS]
targets = np.stack([np.concatenate(part) for part in zip(*answers)], axis=1).ravel()
pd.DataFrame({{"row_id": rows, "target": targets}}).to_csv({out!r}, index=False)
"""


def print_public(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print seconds and peak memory of the kit's process and of a public kernel's, taking turns."""
    number, name = options.images or 5_000, "resnet18"
    wide = make_wide(data, work / f"wide_{number}", [number])
    bundle = make_bundle(work / f"bundle_wide_{name}", wide_task(), [name], first_images(wide_task(), wide, 64)).folder
    here = str(Path(__file__).parent)
    public = PUBLIC.format(here=here, name=name, data=str(wide), out=str(work / "public.csv"))
    commands = {
        "pandas, DataLoader, eager torch": [sys.executable, "-c", public],
        "kaggle-kit predict": [*kit("predict"), str(bundle), str(wide), "--out", str(work / "kit.csv")],
    }
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
    for _ in range(options.rounds):
        for what, command in commands.items():
            found[what].append(run_measured(command))
    print(f"| {number:,} images, {name} at {SIZE[0]} px | seconds, median | peak memory, GB |\n|---|---|---|")
    for what, rounds in found.items():
        print(f"| {what} | {statistics.median(s for s, _ in rounds):.1f} | {max(gb for _, gb in rounds):.2f} |")
    pairs = list(zip(*found.values(), strict=True))
    print(
        f"\nthe kit is {statistics.median(a[0] / b[0] for a, b in pairs):.2f} x as fast, with "
        f"{max(b[1] for _, b in pairs) / max(a[1] for a, _ in pairs):.2f} of the memory"
    )


def kit(command: str) -> list[str]:
    """Return how a command is called."""
    return [sys.executable, "-m", "kaggle_kit", command]


def run_measured(command: Sequence[str]) -> tuple[float, float]:
    """Return seconds and peak memory of a process and its children; pages that they share count once."""
    started, peak = time.perf_counter(), 0.0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None:
        peak = max(peak, session_memory_gb(child.pid))
        time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"{command[:4]} ended with {child.returncode}")
    return time.perf_counter() - started, peak


def session_memory_gb(session: int) -> float:
    """Return the proportional set size of all processes of a session: shared pages count once."""
    kilobytes = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                rollup = (path / "smaps_rollup").read_text()
                kilobytes += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration, ValueError):
            continue
    return kilobytes / (1 << 20)


def print_start(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print seconds until the first batch is finished, and those of importing."""
    number = options.images or 20_000
    wide = make_wide(data, work / f"wide_{number}", [number])
    packed = make_packed(wide, work / f"packed_{number}")
    images = first_images(wide_task(), wide, 64)
    code = "import kaggle_kit.runtime.supervise, kaggle_kit.runtime.predictor"
    found = {what: import_s(what) for what in ("pass", "import numpy", code)}
    print(
        f"importing the runtime: {found[code] - found['pass']:.2f} s more than Python's own {found['pass']:.2f} s; "
        f"alone takes {found['import numpy'] - found['pass']:.2f} s of that\n"
    )
    print("| from | images | process to first batch, s, median of 5 | reading alone, s |\n|---|---|---|---|")
    for source, task, folder in (("packed", packed_task(), packed), ("wide parquet", wide_task(), wide)):
        bundle = make_bundle(work / f"bundle_{source[:4]}_resnet18", task, ["resnet18"], images).folder
        seconds = statistics.median(first_batch_s(bundle, folder, work / "start.csv") for _ in range(5))
        print(f"| {source} | {number:,} | {seconds:.2f} | {read_s(task, folder):.2f} |", flush=True)


def import_s(code: str) -> float:
    """Return the median of the seconds that processes take to run a line."""
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def first_batch_s(bundle: Path, folder: Path, out: Path) -> float:
    """Return seconds from the start of a process until its first batch is finished; then it is killed."""
    parts = out.with_name(f".{out.name}.parts") / "done.jsonl"
    parts.unlink(missing_ok=True)
    started = time.perf_counter()
    command = [*kit("predict"), str(bundle), str(folder), "--out", str(out)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (parts.is_file() and parts.stat().st_size):
        time.sleep(0.005)
        if child.poll() is not None:
            raise SystemExit(f"predict ended with {child.returncode}")
    seconds = time.perf_counter() - started
    child.kill()
    child.wait()
    return seconds


def read_s(task: Task, folder: Path) -> float:
    """Return seconds until a source has given its first images, opening it included."""
    started = time.perf_counter()
    next(open_source(task, "test", folder).chunks())
    return time.perf_counter() - started


def print_memory(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print the peak memory of whole processes with few and many images."""
    shards = options.shards
    print("| images | shards | peak memory, GB | of a shard's pixels | images/s |\n|---|---|---|---|---|")
    for number in (1, len(shards)):
        total = sum(shards[:number])
        wide = make_wide(data, work / f"memory_{number}", shards[:number])
        code = MEMORY.format(here=str(Path(__file__).parent), folder=str(wide), parts=str(work / "parts"))
        seconds, peak = run_measured([sys.executable, "-c", code])
        of_shard = peak / (max(shards) * 137 * 236 / (1 << 30))
        print(f"| {total:,} | {number} | {peak:.2f} | {of_shard:.2f} | {total / seconds:,.0f} |", flush=True)


MEMORY = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from runtime import feed_rate
from runtime_ground import wide_task
from kaggle_kit.sources import open_source
feed_rate(open_source(wide_task(), "test", Path({folder!r})), folder=Path({parts!r}))
"""


# When things go wrong


def print_limit(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print what becomes of three networks with views in the time of one and a half."""
    number = options.images or 3_000
    wide = make_wide(data, work / f"wide_{number}", [number])
    packed = make_packed(wide, work / f"packed_{number}")
    images = first_images(wide_task(), wide, 640)
    names = ["resnet18", "resnet18", "resnet18"]
    made = make_bundle(work / "bundle_three", packed_task(), names, images, size=(64, 64), tta=("hflip",))
    one = 1 / bare_rate(OnnxSession(made.folder / made.members[0].file), images, at_least_s=5)
    print(
        "| limit, s | used, s | share | images by runs | images without | expected score |\n|---|---|---|---|---|---|"
    )
    for runs in (1.5, 2.5, 4.0):
        limit = runs * one * number + 5
        command = [*kit("predict"), str(made.folder), str(packed), "--out", str(work / "limit.csv")]
        started = time.perf_counter()
        subprocess.run([*command, "--time-limit", f"{limit:.1f}s"], check=True, stdout=subprocess.DEVNULL)
        used = time.perf_counter() - started
        report = json.loads((work / "limit.report.json").read_text())
        by_runs = ", ".join(f"{runs_}: {count:,}" for runs_, count in report["images_by_runs"].items())
        none, score = report["images_by_runs"].get("0", 0), report["expected_score"]
        print(
            f"| {limit:.1f} ({runs} networks) | {used:.1f} | {used / limit:.3f} | {by_runs} | {none} | {score:.4f} |",
            flush=True,
        )


def print_kills(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print whether a process that is killed again and again writes what one that is not writes."""
    number, rng = options.images or 3_000, random.Random(0)  # noqa: S311
    wide = make_wide(data, work / f"wide_{number}", [number])
    packed = make_packed(wide, work / f"packed_{number}")
    images = first_images(wide_task(), wide, 64)
    bundle = make_bundle(work / "bundle_pack_resnet18", packed_task(), ["resnet18"], images).folder
    out = {name: work / f"{name}.csv" for name in ("whole", "killed")}
    command = [*kit("predict"), str(bundle), str(packed), "--probs"]
    started = time.perf_counter()
    subprocess.run(
        [*command, str(work / "whole.npz"), "--out", str(out["whole"])], check=True, stdout=subprocess.DEVNULL
    )
    usual = time.perf_counter() - started
    kills = attempts = 0
    while True:
        attempts += 1
        child = subprocess.Popen(
            [*command, str(work / "killed.npz"), "--out", str(out["killed"])], stdout=subprocess.DEVNULL
        )
        try:
            child.wait(rng.uniform(0.5, 3) if kills < 20 else None)
            break
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
    same = out["whole"].read_bytes() == out["killed"].read_bytes()
    probs = [np.load(work / f"{name}.npz") for name in ("whole", "killed")]
    equal = all((probs[0][name] == probs[1][name]).all() for name in probs[0].files)
    print(f"{number:,} images, {usual:.1f} s undisturbed; {kills} kills in {attempts} processes: submission ", end="")
    print(f"{'bit-identical' if same else 'DIFFERENT'}, probabilities {'bit-identical' if equal else 'DIFFERENT'}")


def print_openvino(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print images a second of ONNX Runtime and OpenVINO, taking turns, and how far OpenVINO is away."""
    number = options.images or 3_000
    wide = make_wide(data, work / f"wide_{number}", [number])
    images = first_images(wide_task(), wide, 640)
    print("| network | onnxruntime, images/s | OpenVINO fp32 | x | max abs difference |\n|---|---|---|---|---|")
    for name in NETWORKS:
        path = make_bundle(work / f"bundle_wide_{name}", wide_task(), [name], images).folder / f"member_{name}_0.onnx"
        sessions = {device: OnnxSession(path, device=device) for device in ("cpu", "openvino")}
        rates: dict[str, list[float]] = {device: [] for device in sessions}
        for _ in range(options.rounds):
            for device, session in sessions.items():
                rates[device].append(bare_rate(session, images, at_least_s=5))
        said = [session.run(images[:BATCH]) for session in sessions.values()]
        away = max(float(np.abs(said[0][head] - said[1][head]).max()) for head in said[0])
        cpu, vino = (statistics.median(found) for found in rates.values())
        print(f"| {name} | {cpu:.1f} | {vino:.1f} | {vino / cpu:.2f} | {away:.1e} |", flush=True)


def quiet(_line: str) -> None:
    """Say nothing."""


PARTS = {
    "whole": print_whole,
    "feed": print_feed,
    "public": print_public,
    "start": print_start,
    "memory": print_memory,
    "limit": print_limit,
    "kills": print_kills,
    "openvino": print_openvino,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("data", type=Path, help="the folder with the archives")
    parser.add_argument("--work", type=Path, required=True, help="a folder to work in; what is made there is kept")
    parser.add_argument("--images", type=int, help="instead of each part's own number")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--shards", type=int, nargs="+", default=[10_000, 50_210, 50_210, 50_210, 39_370], help="memory"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"{describe_machine(VERSIONS)}\n", flush=True)
    PARTS[options.part](options.data, options.work, options)


if __name__ == "__main__":
    main()
