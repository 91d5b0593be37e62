"""What an audit finds of planted defects, and what it takes in time and memory.

    python benchmarks/audit.py DATA_FOLDER --work DIR [--only found,alike,cost,hashes] [--map pca]

DATA_FOLDER holds fashion_mnist/, bangla_handwriting.zip and caltech_photos.zip. `found` makes the sample `ships` and
compares findings with its record of planted defects. `alike` plants copies (JPEG again, brighter, cropped, mirrored,
smaller) among real photos, scans of handwriting and clothes, which hold duplicates of their own, so that what is found
beside the planted is listed apart. `cost` writes wide parquet of 137 x 236 from Fashion-MNIST enlarged, in four shards,
and audits 5,000, 10,000 and 20,000 images, each in a process of its own; peak memory is the process's, the interpreter
included. `hashes` times the ImageHash package, where it is installed, beside the kit's own hash.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

HEIGHT, WIDTH = 137, 236
SIZES = (5_000, 10_000, 20_000)
SHARDS = 4
PLANTED = 120
CHANGES = ("jpeg", "brighter", "cropped", "mirrored", "smaller")


def find_planted(data: Path, work: Path) -> None:
    """Print recall and precision of each kind of defect planted in the sample `ships`, over three seeds."""
    from kaggle_kit.audit.examine import Options, examine
    from kaggle_kit.sample import make_sample
    from kaggle_kit.task import read_task

    for seed in (0, 1, 2):
        sample = make_sample("ships", work / f"ships{seed}", seed=seed)
        with (sample.hidden / "defects.csv").open(newline="") as file:
            defects = list(csv.DictReader(file))
        options = Options(map_method="pca")
        audit = examine(read_task(sample.task), sample.data, work / f"audit_ships{seed}", options)
        print(f"ships, seed {seed}: {len(audit.images):,} images")
        for kind in ("gray", "empty", "truncated"):
            planted = {row["image"] for row in defects if row["kind"] == kind}
            called = "broken" if kind == "truncated" else kind
            _print_scores(kind, planted, {one.id for one in audit.findings if one.kind == called})
        for kind in ("exact", "near"):
            pairs = {frozenset((r["image"], r["other"])) for r in defects if r["kind"] == f"{kind}_duplicate"}
            groups = audit.duplicates.of_kind("exact" if kind == "exact" else "near")
            found = {
                frozenset(map(str, audit.images.id[[one, other]]))
                for group in groups
                for at, one in enumerate(group.rows)
                for other in group.rows[at + 1 :]
            }
            _print_scores(f"{kind} duplicates (pairs)", pairs, found)


def _print_scores(what: str, planted: set[Any], found: set[Any]) -> None:
    hits = len(planted & found)
    recall, precision = hits / max(len(planted), 1), hits / max(len(found), 1)
    print(f"  {what:27} planted {len(planted):4}  found {len(found):4}  recall {recall:.1%}  precision {precision:.1%}")


def find_alike(data: Path, work: Path) -> None:
    """Print how many planted near duplicates are found among real images that look alike."""
    from kaggle_kit.audit.duplicates import _alike_thumbnails
    from kaggle_kit.audit.measure import measure

    for name, images in (("photos", _photos(data)), ("handwriting", _scans(data)), ("clothes", _clothes(data, 10_000))):
        rng = np.random.default_rng(0)
        pictures = list(images)
        planted = {}
        for number in range(PLANTED):
            original, change = int(rng.integers(len(pictures))), CHANGES[number % len(CHANGES)]
            planted[original, len(pictures)] = change
            pictures.append(_changed(pictures[original], change, rng))
        thumbnails = np.stack([measure(picture).thumbnail for picture in pictures])
        started, rows = time.perf_counter(), np.arange(len(pictures))
        pairs = [_alike_thumbnails(thumbnails, rows, mirrored=side, seed=0) for side in (False, True)]
        seconds = time.perf_counter() - started
        found = {tuple(pair) for part in pairs for pair in part.rows.tolist()}
        by_change = {
            c: (sum(planted[p] == c for p in found & planted.keys()), PLANTED // len(CHANGES)) for c in CHANGES
        }
        shown = ", ".join(f"{change} {hit}/{all_}" for change, (hit, all_) in by_change.items())
        print(
            f"{name}: {len(pictures):,} images, planted found: {shown}; {len(found - planted.keys()):,} other pairs; "
            f"{sum(part.num_compared for part in pairs):,} compared, {seconds:.1f} s"
        )


def _changed(image: np.ndarray, change: str, rng: np.random.Generator) -> np.ndarray:
    import cv2

    channels = image.shape[2]
    if change == "cropped":
        top, left = (max(1, round(side * rng.uniform(0.015, 0.035))) for side in image.shape[:2])
        image = image[top:-top, left:-left]
    elif change == "brighter":
        image = np.clip(image.astype(np.float32) * rng.uniform(1.08, 1.2) + 4, 0, 255).astype(np.uint8)
    elif change == "mirrored":
        image = image[:, ::-1]
    elif change == "smaller":
        image = cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        image = image.reshape(*image.shape[:2], channels)
    quality = int(rng.integers(60, 80))
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
    return decoded[..., None] if channels == 1 else decoded


def _photos(data: Path) -> Iterator[np.ndarray]:
    import cv2

    with zipfile.ZipFile(data / "caltech_photos.zip") as opened:
        for name in opened.namelist():
            if name.endswith(".jpg"):
                yield cv2.imdecode(np.frombuffer(opened.read(name), np.uint8), cv2.IMREAD_COLOR)


def _scans(data: Path) -> Iterator[np.ndarray]:
    """Yield scans of handwriting on paper of 137 x 236."""
    import cv2

    with zipfile.ZipFile(data / "bangla_handwriting.zip") as opened:
        for name in opened.namelist():
            if not name.endswith(".png"):
                continue
            image = cv2.imdecode(np.frombuffer(opened.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            alpha = image[..., 3].astype(np.float32) / 255
            gray = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY) * alpha + 253 * (1 - alpha)
            scale = min(110 / gray.shape[0], 200 / gray.shape[1])
            small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            paper = np.full((HEIGHT, WIDTH, 1), 253, np.float32)
            top, left = (HEIGHT - small.shape[0]) // 2, (WIDTH - small.shape[1]) // 2
            paper[top : top + small.shape[0], left : left + small.shape[1], 0] = np.minimum(small, 253)
            yield paper.astype(np.uint8)


def _clothes(data: Path, number: int) -> Iterator[np.ndarray]:
    with gzip.open(data / "fashion_mnist/train-images-idx3-ubyte.gz") as file:
        values = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    yield from values[:number]


def measure_cost(data: Path, work: Path, method: str) -> None:
    """Print what audits of wide parquet take, and how that grows."""
    before: tuple[int, float] | None = None
    for size in SIZES:
        folder = work / f"wide_{size}"
        _make_wide(data, folder, size)
        for again in (False, True):
            out = work / f"audit_wide_{size}"
            if not again:
                shutil.rmtree(out, ignore_errors=True)
            command = [sys.executable, __file__, "--audit", str(folder), str(out), method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            growth = ""
            if not again:
                if before is not None:
                    power = np.log(found["seconds"] / before[1]) / np.log(size / before[0])
                    growth = f"; grows with N to the {power:.2f}"
                before = size, found["seconds"]
            parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found["parts"].items())
            print(
                f"{size:6,} images{' again' if again else ''}: {found['seconds']:.1f} s, {found['peak_gb']:.2f} GB at "
                f"most ({parts}){growth}; near pairs planted and found {found['near']}, exact {found['exact']}",
                flush=True,
            )


def _make_wide(data: Path, folder: Path, size: int) -> None:
    """Write a competition in four shards of wide parquet, with planted duplicates; the tenth image is of the test."""
    import cv2
    import pyarrow as pa
    from pyarrow import parquet

    if (folder / "planted.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(size)
    images = np.empty((size, HEIGHT, WIDTH), np.uint8)
    for row, small in enumerate(_clothes(data, size)):
        images[row] = 255 - cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    chosen = rng.permutation(size).tolist()
    planted: dict[str, list[tuple[int, int]]] = {"exact": [], "near": []}
    for kind, number in (("exact", size // 200), ("near", size // 100)):
        for turn in range(number):
            copy, original = chosen.pop(), chosen.pop()
            images[copy] = images[original]
            if kind == "near":
                changed = _changed(images[original][..., None], CHANGES[turn % 4], rng)
                images[copy] = cv2.resize(changed, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
            planted[kind].append((min(copy, original), max(copy, original)))
    num_test = size // 10
    splits = np.array_split(np.arange(size - num_test), SHARDS)
    parts = [(f"train_{number}", "Train", rows) for number, rows in enumerate(splits)]
    for name, split, rows in [*parts, ("test_0", "Test", np.arange(size - num_test, size))]:
        flat = np.ascontiguousarray(images[rows].reshape(len(rows), -1).T)
        columns: dict[str, Any] = {"image_id": [f"{split}_{row}" for row in rows]}
        columns |= {str(i): pa.array(values) for i, values in enumerate(flat)}
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=len(rows))
    with gzip.open(data / "fashion_mnist/train-labels-idx1-ubyte.gz") as opened:
        labels = opened.read()[8:]
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "kind"), *((f"Train_{n}", labels[n]) for n in range(size - num_test))])
    with (folder / "sample_submission.csv").open("w", newline="") as file:
        rows = [(f"Test_{n}_kind", 0) for n in range(size - num_test, size)]
        csv.writer(file).writerows([("row_id", "target"), *rows])
    (folder / "planted.json").write_text(json.dumps(planted))


def audit_one(folder: Path, out: Path, method: str) -> None:
    """Audit wide parquet in this process, and print figures as JSON."""
    from kaggle_kit.audit.examine import Options, examine
    from kaggle_kit.task import task_from_plain

    task = task_from_plain(
        {
            "name": "wide-clothes",
            "heads": {"kind": {"classes": 10}},
            "metric": "macro_recall",
            "images": {
                "format": "wide_parquet",
                "train": "train_*.parquet",
                "test": "test_*.parquet",
                "height": HEIGHT,
                "width": WIDTH,
                "channels": 1,
            },
            "submission": {"form": "row_per_head"},
        }
    )
    started = time.perf_counter()
    audit = examine(task, folder, out, Options(map_method=method))
    seconds = time.perf_counter() - started
    planted = json.loads((folder / "planted.json").read_text())
    number = {int(str(name).split("_")[1]): row for row, name in enumerate(audit.images.id)}
    shown = {}
    for kind in ("exact", "near"):
        pairs = {(number[one], number[other]) for one, other in planted[kind]}
        groups = audit.duplicates.of_kind(kind)
        found = {(a, b) for group in groups for a in group.rows for b in group.rows if a < b}
        shown[kind] = f"{len(pairs & found)}/{len(pairs)}, {len(found - pairs)} other pairs in {len(groups)} groups"
    print(json.dumps({"seconds": seconds, "peak_gb": _peak_gb(), "parts": audit.seconds, **shown}))


def _peak_gb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def time_hashes(data: Path, work: Path) -> None:
    """Print what a perceptual hash takes an image: of thumbnails that are there, and by ImageHash."""
    from kaggle_kit.audit.hashing import close_pairs, perceptual_hashes

    thumbnails = np.random.default_rng(0).integers(0, 256, (20_000, 48, 48), np.uint8)
    started = time.perf_counter()
    hashes = perceptual_hashes(thumbnails)
    print(f"the kit's own: {(time.perf_counter() - started) / len(hashes) * 1e6:.1f} microseconds an image")
    for number in (50_000, 100_000, 200_000):
        random = np.random.default_rng(0).integers(0, 2**63, number).astype(np.uint64)
        started = time.perf_counter()
        close_pairs(random, random, radius=8)
        print(f"pairs among {number:,} random hashes: {time.perf_counter() - started:.1f} s")
    try:
        import imagehash
        from PIL import Image
    except ImportError:
        print("ImageHash is not installed")
        return
    pictures = [Image.fromarray(thumbnail) for thumbnail in thumbnails[:1000]]
    started = time.perf_counter()
    for picture in pictures:
        imagehash.phash(picture)
    print(f"ImageHash: {(time.perf_counter() - started) / len(pictures) * 1e6:.1f} microseconds an image")


def main() -> None:
    """Run the benchmarks asked for, or one audit in this process."""
    if sys.argv[1:2] == ["--audit"]:
        audit_one(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="found,alike,cost,hashes")
    parser.add_argument("--map", default="pca", choices=("auto", "pca", "umap"))
    options = parser.parse_args()
    print(describe_machine(("numpy", "opencv-python-headless", "pyarrow", "scikit-learn", "umap-learn")))
    print(f"load when started: {os.getloadavg()[0]:.1f}")
    for name in options.only.split(","):
        if name == "found":
            find_planted(options.data, options.work)
        elif name == "alike":
            find_alike(options.data, options.work)
        elif name == "cost":
            measure_cost(options.data, options.work, options.map)
        elif name == "hashes":
            time_hashes(options.data, options.work)
        else:
            parser.error(f"{name!r} is no benchmark; choose from found, alike, cost, hashes")


if __name__ == "__main__":
    main()
