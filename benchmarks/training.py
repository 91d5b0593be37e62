"""How fast training goes, and how far it gets in how many minutes, beside what people use instead.

    python benchmarks/training.py throughput DATA_FOLDER --work DIR [--images 10000] [--repeats 5] [--threads 2]
    python benchmarks/training.py loader DATA_FOLDER --work DIR
    python benchmarks/training.py score DATA_FOLDER --work DIR [--size 28] [--epochs 5] [--seeds 0,1,2]

DATA_FOLDER holds fashion_mnist/ and caltech_photos.zip. One environment for all, so that torch is the same: kaggle_kit
with its train extra, timm, fastai, lightning, torchvision. Every training is a process of its own, those that are
compared take turns, and ratios are taken within a round; the tables give medians. `throughput` trains one epoch of
`--images` by each library's own means (see benchmarks/peers): images a second from the end of step `--warm` to the end
of the last, of which an epoch of 10,000 images has 156; fewer are an estimate of it. "kaggle_kit x" is its images a
second over the contender's. Processor time is that of all of a contender's processes, and so tells the work apart from
the machine's other load. Contenders read files of the size that is trained (`photos`: the JPEG files as they are),
kaggle_kit its packed store, made beforehand. `--peers own` leaves memory format and the optimizer's kernels to each
library's defaults; `tuned`: channels last and fused for all.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from measured import Plan, plan_text  # noqa: E402

LIBRARIES = ("torch", "timm", "fastai", "lightning", "torchvision", "albumentations", "opencv-python-headless", "numpy")
CONTENDERS = ("kit", "timm", "fastai", "lightning")
NAMES = {"kit": "kaggle_kit", "tensors": "tensors in memory"}
DATA = {"fashion": 64, "photos": 128, "photos-small": 128}
VALID = 64
PRESETS = ("none", "letters", "photos", "strong")
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train for a score: a contender, and what it is given."""

    name: str
    script: str
    recipe: str
    augment: str = "preset"
    lr: float | None = None


RECIPES = (
    Recipe(name="kaggle_kit, defaults", script="kit", recipe="equal"),
    Recipe(name="fastai, fit_one_cycle, its defaults (1e-3)", script="fastai", recipe="own"),
    Recipe(name="fastai, fit_one_cycle at 3e-3", script="fastai", recipe="own", lr=3e-3),
    Recipe(name="timm, train.py's defaults (SGD 0.025, cosine)", script="timm", recipe="own"),
    Recipe(name="timm, AdamW 2e-3, one cycle, milder crops", script="timm", recipe="equal"),
)


# The images.


def make_data(name: str, data: Path, work: Path, *, size: int, images: int, test: int) -> Path:
    """Write train/, valid/ and test/ as folders a class, and the same files linked for kaggle_kit; once.

    Args:
        name: `fashion`, `photos`, or `photos-small`: the photos as JPEG files of the size that is trained.
        data: Holds the originals.
        work: Where the folder goes.
        size: Pixels a side.
        images: How many train images at most.
        test: How many test images; the photos have none.

    Returns:
        The folder.
    """
    folder = work / f"{name}-{size}-{images}-{test}"
    if (folder / "whole").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    found = fashion_files(data, size, images, test) if name == "fashion" else photo_files(data, size, images, name)
    for part, kind, file, blob in found:
        path = folder / part / kind / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
        linked = folder / "kit" / "images" / kind / f"{part}-{file}"
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.hardlink_to(path)
    (folder / "kit" / "test.csv").write_text("image_id\n", encoding="utf-8")
    (folder / "whole").touch()
    return folder


def fashion_files(data: Path, size: int, images: int, test: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (part, class, file name, PNG) of Fashion-MNIST, brought to `size`; train and valid lie apart."""
    import cv2

    for prefix, counts in (("train", {"train": images, "valid": VALID}), ("t10k", {"test": test})):
        pixels = _idx(data / "fashion_mnist" / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = _idx(data / "fashion_mnist" / f"{prefix}-labels-idx1-ubyte.gz", 8)
        rows = iter(np.random.default_rng(0).permutation(len(pixels)).tolist())
        for part, count in counts.items():
            for row in (next(rows) for _ in range(count)):
                image = pixels[row]
                if size != 28:
                    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
                yield part, str(labels[row]), f"{row:05d}.png", cv2.imencode(".png", image)[1].tobytes()


def photo_files(data: Path, size: int, images: int, name: str) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (part, class, file name, JPEG) of the photos, as they are or shrunk."""
    import cv2

    with zipfile.ZipFile(data / "caltech_photos.zip") as files:
        rows = list(csv.DictReader(io.TextIOWrapper(files.open("labels.csv"), "utf-8")))
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        for place, row in enumerate(rows[place] for place in order[: images + VALID]):
            blob = files.read(f"images/{row['image']}")
            if name == "photos-small":
                image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)
                image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
                blob = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            yield "valid" if place < VALID else "train", row["category"], row["image"], blob


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def pack(plan: Plan) -> float:
    """Pack the images for kaggle_kit, as its first run would, and return the seconds."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from measured import Plan; "
        "from with_kit import make_task; from kaggle_kit.packing.competition import pack_train; "
        "plan = Plan(**json.loads(sys.argv[2])); root = Path(plan.folder) / 'kit'; "
        "pack_train(make_task(plan), root, root / f'packed{plan.size}')"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(PEERS), plan_text(plan)], check=True, capture_output=True)
    return time.perf_counter() - started


# One training in a process of its own.


def train(script: str, plan: Plan) -> Figures:
    """Train by a contender's script, and return its figures."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(plan.threads),
        "MKL_NUM_THREADS": str(plan.threads),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        given = dataclasses.replace(plan, scratch=scratch)
        command = [sys.executable, str(PEERS / f"with_{script}.py"), plan_text(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"with_{script}.py failed:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["steps"] in (plan.steps, 0) or plan.recipe == "own", f"{script}: {figures['steps']} steps"
    return figures


def rounds(plans: dict[str, tuple[str, Plan]], repeats: int) -> dict[str, list[Figures]]:
    """Return every contender's figures, a list over rounds in which they take turns, each round from another on."""
    seen: dict[str, list[Figures]] = {name: [] for name in plans}
    names = list(plans)
    for place in range(repeats):
        first = place % len(names)
        for name in names[first:] + names[:first]:
            script, plan = plans[name]
            seen[name].append(train(script, plan))
            print(f"round {place + 1} of {repeats}: {name} {seen[name][-1]}", file=sys.stderr, flush=True)
    return seen


def choose_workers(script: str, plan: Plan, options: argparse.Namespace) -> Plan:
    """Return the plan with the number of workers that a short training is fastest with."""
    if len(options.workers) == 1 or script == "tensors":
        return dataclasses.replace(plan, workers=options.workers[0] if script != "tensors" else 0)
    images = min(plan.images, plan.batch * (plan.warm + options.trial_steps))
    tried = [dataclasses.replace(plan, images=images, workers=workers) for workers in options.workers]
    seconds = [train(script, one)["step_s"] for one in tried]
    return dataclasses.replace(plan, workers=options.workers[seconds.index(min(seconds))])


# What is printed.


def throughput(options: argparse.Namespace) -> None:
    """Print images a second of one epoch, for each data set and augmentation."""
    for name in options.data:
        made = make_plan(name, options)
        for augment in options.augment:
            plan = dataclasses.replace(made, augment=augment)
            scripts = [*options.contenders, *(["tensors"] if augment == "none" else [])]
            plans = {script: (script, choose_workers(script, plan, options)) for script in scripts}
            seen = rounds(plans, options.repeats)
            what = f"{name}, {plan.size} px, augmentation `{augment}`, {plan.images:,} images, {plan.steps} steps"
            print(f"\n{what}\n\n{throughput_table(plans, seen)}", flush=True)


def throughput_table(plans: dict[str, tuple[str, Plan]], seen: dict[str, list[Figures]]) -> str:
    """Return the table: one contender a line, kaggle_kit's ratio to it a round taken first, then the median."""
    lines = [
        "| contender | workers | images/s | kaggle_kit x | least and most | processor ms an image | kaggle_kit uses x |"
        " waits | whole call, s | kaggle_kit x | peak GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in seen.items():
        plan = plans[name][1]
        ratios = [theirs["step_s"] / ours["step_s"] for theirs, ours in zip(figures, seen["kit"], strict=True)]
        work = [ours["cpu_s"] / theirs["cpu_s"] for theirs, ours in zip(figures, seen["kit"], strict=True)]
        whole = [theirs["call_s"] / ours["call_s"] for theirs, ours in zip(figures, seen["kit"], strict=True)]
        one = {key: statistics.median(figure[key] for figure in figures) for key in figures[0] if key != "accuracy"}
        lines.append(
            f"| {NAMES.get(name, name)} | {plan.workers} | {plan.batch / one['step_s']:,.1f} "
            f"| {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} "
            f"| {one['cpu_s'] / plan.batch * 1000:.2f} | {statistics.median(work):.3f} | {one['waiting']:.1%} "
            f"| {one['call_s']:.1f} | {statistics.median(whole):.3f} | {one['peak_gb']:.2f} |"
        )
    return "\n".join(lines)


def loader(options: argparse.Namespace) -> None:
    """Print kaggle_kit's share of time spent waiting for images, by preset and workers."""
    print("\n| data | preset | workers | images/s | waits |\n|---|---|---|---|---|")
    for name in options.data:
        made = make_plan(name, options)
        for preset in PRESETS:
            for workers in options.workers:
                plan = dataclasses.replace(made, augment=preset, workers=workers)
                seen = rounds({preset: ("kit", plan)}, options.repeats)[preset]
                step_s, waiting = (statistics.median(one[key] for one in seen) for key in ("step_s", "waiting"))
                print(f"| {name} | {preset} | {workers} | {plan.batch / step_s:,.1f} | {waiting:.1%} |", flush=True)


def score(options: argparse.Namespace) -> None:
    """Print accuracy on Fashion-MNIST's test images against minutes, for each recipe, over seeds."""
    base = dataclasses.replace(make_plan("fashion", options), score=True, epochs=options.epochs)
    seen: dict[str, list[Figures]] = {recipe.name: [] for recipe in RECIPES}
    workers = {script: choose_workers(script, _quick(base), options).workers for script in ("kit", "fastai", "timm")}
    for seed in options.seeds:
        for recipe in RECIPES:
            plan = dataclasses.replace(
                base,
                seed=seed,
                recipe=recipe.recipe,
                augment=recipe.augment,
                lr=recipe.lr,
                workers=workers[recipe.script],
                tuned=recipe.recipe == "equal" and base.tuned,
            )
            seen[recipe.name].append(train(recipe.script, plan))
            print(f"seed {seed}: {recipe.name} {seen[recipe.name][-1]}", file=sys.stderr, flush=True)
    print(
        f"\nFashion-MNIST, {base.images:,} images of {base.size} px, {options.epochs} epochs, "
        f"{options.test:,} test images"
    )
    print(f"\n{score_table(seen, options.seeds)}")
    if options.png:
        draw(seen, options.png)


def _quick(plan: Plan) -> Plan:
    return dataclasses.replace(plan, score=False, epochs=1)


def score_table(seen: dict[str, list[Figures]], seeds: list[int]) -> str:
    """Return the table: one recipe a line."""
    lines = ["| recipe | test accuracy, mean | " + " | ".join(f"seed {seed}" for seed in seeds) + " | minutes |"]
    lines.append("|---|---|" + "---|" * (len(seeds) + 1))
    for name, figures in seen.items():
        scores = [one["accuracy"] for one in figures]
        minutes = statistics.median(one["call_s"] for one in figures) / 60
        each = " | ".join(f"{value:.4f}" for value in scores)
        lines.append(f"| {name} | {statistics.mean(scores):.4f} | {each} | {minutes:.2f} |")
    return "\n".join(lines)


def draw(seen: dict[str, list[Figures]], path: Path) -> None:
    """Draw accuracy against minutes, a point a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, figures in seen.items():
        axes.scatter([one["call_s"] / 60 for one in figures], [one["accuracy"] for one in figures], label=name)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("test accuracy")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


# What is asked.


def make_plan(name: str, options: argparse.Namespace) -> Plan:
    """Return the plan of one epoch, the data made and packed."""
    size = options.size or DATA[name]
    folder = make_data(name, options.folder, options.work, size=size, images=options.images, test=options.test)
    train_files = list((folder / "train").glob("*/*"))
    plan = Plan(
        folder=str(folder),
        model=options.model,
        size=size,
        channels=1 if name == "fashion" else 3,
        classes=len(list((folder / "train").iterdir())),
        images=min(options.images, len(train_files)),
        epochs=1,
        batch=options.batch,
        workers=0,
        threads=options.threads,
        seed=0,
        augment="preset",
        recipe="equal",
        lr=None,
        tuned=options.peers == "tuned",
        warm=options.warm,
        score=False,
        scratch="",
    )
    print(f"{name}: packed and checked in {pack(plan):.1f} s, start of Python included", file=sys.stderr, flush=True)
    return plan


def describe(options: argparse.Namespace) -> str:
    """Return the machine, versions and settings."""
    versions = ", ".join(f"{library} {metadata.version(library)}" for library in LIBRARIES)
    return (
        f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {versions}; "
        f"{options.model}, batch {options.batch}, {options.threads} thread(s), fp32, peers {options.peers}; "
        f"load before: {os.getloadavg()[0]:.2f}"
    )


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"throughput": throughput, "loader": loader, "score": score}
    parser.add_argument("command", choices=commands)
    parser.add_argument("folder", type=Path, help="the data")
    parser.add_argument("--work", type=Path, required=True, help="where images and stores are written")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, help="pixels a side; else 64, of photos 128")
    parser.add_argument("--images", type=int, default=10_000, help="train images, at most")
    parser.add_argument("--test", type=int, help="score: test images (10,000)")
    parser.add_argument("--epochs", type=int, default=5, help="score: passes")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="score")
    parser.add_argument("--png", type=Path, help="score: a picture too")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warm", type=int, default=5, help="steps that are not counted")
    parser.add_argument("--workers", type=_numbers, default=[0, 1, 2], help="tried by each contender")
    parser.add_argument("--trial-steps", type=int, default=10, help="steps of each such try")
    parser.add_argument("--data", type=_words, default=["fashion", "photos"], help=f"of {', '.join(DATA)}")
    parser.add_argument("--augment", type=_words, default=["none", "preset", "mixup"])
    parser.add_argument("--contenders", type=_words, default=list(CONTENDERS))
    parser.add_argument("--peers", choices=("own", "tuned"), default="tuned")
    options = parser.parse_args()
    options.run = commands[options.command]
    if options.test is None:
        options.test = 10_000 if options.command == "score" else VALID
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Measure what is asked."""
    options = read_options()
    print(describe(options), flush=True)
    options.run(options)


if __name__ == "__main__":
    main()
