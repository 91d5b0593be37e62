"""The same three tasks by kaggle_kit, fastai and timm, each with the same minutes on one core.

    python benchmarks/side_by_side.py DATA_FOLDER --work DIR [--minutes 5] [--seeds 0] [--fastai-python PYTHON]
    python benchmarks/side_by_side.py DATA_FOLDER --work DIR --again

DATA_FOLDER holds bangla_handwriting.zip, caltech_photos.zip and fashion_mnist/. `bangla`: Bengali handwriting, three
heads, one writer held out as the hidden test, macro recall 2:1:1. `caltech`: 12 classes of photos, 15 % held out,
weighted F1. `fashion`: the first 15,000 train images of Fashion-MNIST and its official test, accuracy; one pass over
all 60,000 takes most of the minutes, and then who fits one more whole pass into them would be measured.

All train the same backbone from scratch at the same size and batch, on the same images, and validate on the same ones:
kaggle_kit's first fold. kaggle_kit has its defaults; fastai those of vision_learner and fit_one_cycle; timm AdamW with
a cosine schedule in a plain loop, untuned. A short trial times each one's steps and so gives it as many epochs as the
minutes hold; the clock, which for kaggle_kit runs while it packs the images too, ends what has not ended by then. Then
each exports, and says what it thinks of the hidden test; fresh processes without network say it again from the
exported artefact alone. All processes keep to one core; where others use it too, `--clock processor` counts what a
process had of it (kaggle_kit, whose `max_hours` is of the wall clock, then ends by its epochs alone). Results are kept
in --work: the same call goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import describe_machine
from real_data import PLANS, make_competition
from side_by_side_tables import CONTENDERS, PEERS, Place, print_summary, print_task

from kaggle_kit.files import replacing
from kaggle_kit.folds import Folds
from kaggle_kit.tables import write_rows

sys.path.insert(0, str(PEERS))
from tasks import NO_NETWORK, STARTED, Spec

PACKAGES = ("torch", "timm", "onnxruntime", "opencv-python-headless", "pillow", "numpy")
VALIDATION = 0.4  # seconds of a validation image, of a train image's: it has no backward pass
TRUSTED = 0.93  # share of the budget that is planned for: machines are not even
STRATIFIED = ("--scheme", "stratified", "--n", "5")
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contenders are given for one task."""

    size: tuple[int, int]
    batch: int
    scheme: tuple[str, ...]


SETTINGS = {
    "bangla": Setting(size=(64, 96), batch=32, scheme=PLANS["bangla"].folds),
    "caltech": Setting(size=(96, 128), batch=32, scheme=STRATIFIED),
    "fashion": Setting(size=(32, 32), batch=64, scheme=STRATIFIED),
}


# The competitions


def make_ground(name: str, data: Path, work: Path, *, fashion_images: int) -> Path:
    """Return the folder of a competition, made once: task.yaml, data/, hidden/ and split.csv."""
    ground = work / name / "competition"
    if (ground / "split.csv").is_file() and (name != "fashion" or sum(count_split(ground)) == fashion_images):
        return ground
    shutil.rmtree(ground, ignore_errors=True)
    if name == "fashion":
        make_fashion(data / "fashion_mnist", ground, images=fashion_images)
    else:
        make_competition(name, PLANS[name], data / PLANS[name].archive, ground, "4")
    task_file = ground / "task.yaml"
    task = yaml.safe_load(task_file.read_text(encoding="utf-8"))
    text = yaml.safe_dump(task, allow_unicode=True, sort_keys=False, default_flow_style=None, width=118)
    task_file.write_text(text, encoding="utf-8")  # as short as a person writes it
    folds = [sys.executable, "-m", "kaggle_kit.cli", "folds", str(task_file), str(ground / "data")]
    run([*folds, "--out", str(ground / "folds.parquet"), *SETTINGS[name].scheme])
    write_split(name, ground)
    return ground


def make_fashion(source: Path, ground: Path, *, images: int) -> None:
    """Write Fashion-MNIST as a competition: its idx files, those of train cut to the first images, and the answers."""
    for folder in ("data", "hidden"):
        (ground / folder).mkdir(parents=True)
    shutil.copy(source / "t10k-images-idx3-ubyte.gz", ground / "hidden")
    for file, header, each in (("train-images-idx3-ubyte.gz", 16, 28 * 28), ("train-labels-idx1-ubyte.gz", 8, 1)):
        whole = gzip.decompress((source / file).read_bytes())
        cut = whole[:4] + images.to_bytes(4, "big") + whole[8 : header + images * each]
        (ground / "data" / file).write_bytes(gzip.compress(cut))
    truth = read_labels(source / "t10k-labels-idx1-ubyte.gz")
    answers = [[str(row), str(label)] for row, label in enumerate(truth)]
    write_rows(ground / "hidden" / "test.csv", ["image_id"], [[row] for row, _ in answers])
    write_rows(ground / "hidden" / "sample_submission.csv", ["image_id", "label"], [[row, "0"] for row, _ in answers])
    write_rows(ground / "hidden" / "solution.csv", ["image_id", "label"], answers)
    where = {"format": "array", "train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"}
    task = {
        "name": "fashion",
        "heads": {"label": {"classes": 10}},
        "metric": "accuracy",
        "images": {**where, "channels": 1},
        "stored": {"height": 28, "width": 28, "fit": "none"},
        "labels": {"file": "train-labels-idx1-ubyte.gz"},
        "submission": {"form": "row_per_image", "target": "label"},
    }
    (ground / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")


def read_labels(path: Path) -> list[int]:
    """Return the labels of an idx file."""
    labels: list[int] = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=8).tolist()
    return labels


def write_split(name: str, ground: Path) -> None:
    """Write split.csv: the train list with `is_valid`, 1 where kaggle_kit's first fold validates, else 0."""
    if name == "fashion":
        labels = read_labels(ground / "data" / "train-labels-idx1-ubyte.gz")
        rows = [{"image_id": str(row), "label": str(label)} for row, label in enumerate(labels)]
    else:
        with (ground / "data" / "train.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    folds = Folds.load(ground / "folds.parquet")
    fold_of = dict(zip(folds.ids.tolist(), folds.fold.tolist(), strict=True))
    id_column = next(iter(rows[0]))
    lines = [[*row.values(), str(int(fold_of[row[id_column]] == 0))] for row in rows]
    write_rows(ground / "split.csv", [*rows[0], "is_valid"], lines)


def count_split(ground: Path) -> tuple[int, int]:
    """Return how many images train and validate."""
    with (ground / "split.csv").open(encoding="utf-8", newline="") as file:
        flags = [row["is_valid"] for row in csv.DictReader(file)]
    return flags.count("0"), flags.count("1")


# One contender at one task


def run(command: list[str], **more: str) -> Figures:
    """Run a process on this one's core with one thread, and return the line of JSON that it prints last."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, **threads, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1", **more}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:300]}\nended with {done.returncode}:\n{done.stderr[-3000:]}")
    lines = done.stdout.splitlines()
    figures: Figures = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return figures


def stage(name: str, contender: str, spec: Spec, options: argparse.Namespace, **more: str) -> Figures:
    """Run a stage of a contender's script; `predict` without network."""
    python = str(options.fastai_python) if contender == "fastai" else sys.executable
    command = [python, str(PEERS / f"task_{contender}.py"), name, json.dumps(dataclasses.asdict(spec))]
    if name == "predict":
        more |= {STARTED: repr(time.time())}
        if options.without_network == "sockets":
            more |= {NO_NETWORK: "sockets"}
        else:
            command = ["unshare", "-rn", *command]
    return run(command, **more)


def measure(name: str, contender: str, seed: int, ground: Path, options: argparse.Namespace) -> Figures:
    """Time, train, export, and predict from the artefact in fresh processes."""
    setting = SETTINGS[name]
    folder = options.work / name / f"{contender}-{seed}"
    num_train, num_valid = count_split(ground)
    spec = Spec(
        task=name,
        ground=str(ground),
        out=str(folder / "trial"),
        model=options.model,
        size=setting.size,
        batch=setting.batch,
        epochs=1000,
        minutes=options.minutes,
        seed=seed,
        scheme=setting.scheme,
        trial_s=min(15.0, 6 * options.minutes),
        trial_steps=num_train // setting.batch,
        clock=options.clock,
    )
    shutil.rmtree(folder, ignore_errors=True)
    Path(spec.out).mkdir(parents=True)
    trial = stage("trial", contender, spec, options)
    shutil.rmtree(spec.out)
    epoch_s = trial["step_s"] * (num_train // setting.batch + VALIDATION * num_valid / setting.batch)
    epochs = max(1, int((TRUSTED * 60 * options.minutes - trial["overhead_s"]) / epoch_s))
    spec = dataclasses.replace(spec, out=str(folder), epochs=epochs)
    trained = stage("train", contender, spec, options)
    told = [
        stage("predict", contender, dataclasses.replace(spec, whole=not start), options)
        for start in range(options.starts)
    ]
    return {
        **trained,
        "epochs": epochs,
        "epoch_s_foreseen": epoch_s,
        **{key: told[0][key] for key in ("images_per_s", "images_per_processor_s")},
        **{key: statistics.median(one[key] for one in told) for key in ("start_s", "start_processor_s")},
        "offline": all(one["network_is_away"] for one in told),
        "without_network": options.without_network,
    }


# What is asked


def measure_all(place: Place, options: argparse.Namespace) -> None:
    """Measure what is not there yet: seed by seed, the contenders in turn, a file each, failures too."""
    for seed in options.seeds:
        for name in options.tasks:
            ground = make_ground(name, options.data, options.work, fashion_images=options.fashion_images)
            for contender in options.contenders:
                file = place.result_file(name, contender, seed)
                asked = {
                    "minutes": options.minutes,
                    "clock": options.clock,
                    "model": options.model,
                    **dataclasses.asdict(SETTINGS[name]),
                }
                asked |= {"images": options.fashion_images} if name == "fashion" else {}
                asked = json.loads(json.dumps(asked))
                found = place.read_result(name, contender, seed)
                if found and "failed" not in found:
                    if found["asked"] != asked:
                        raise SystemExit(f"{file} is of other settings ({found['asked']}); give another --work")
                    continue
                began = time.time()
                try:
                    found = measure(name, contender, seed, ground, options)
                except RuntimeError as error:
                    found = {"failed": str(error)}
                print(
                    f"{name}, {contender}, seed {seed}: {time.time() - began:.0f} s {found}",
                    file=sys.stderr,
                    flush=True,
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as path:
                    path.write_text(json.dumps({**found, "asked": asked}, indent=1), encoding="utf-8")


def describe(options: argparse.Namespace) -> str:
    """Return the machine, the versions and what all were given."""
    fastai = run(
        [
            str(options.fastai_python),
            "-c",
            "import json, platform; from importlib.metadata import version as of; "
            "found = {name: of(name) for name in ('fastai', 'torch', 'timm', 'pillow')}; "
            "print(json.dumps({'Python': platform.python_version(), **found}))",
        ]
    )
    sizes = ", ".join(f"{name} {'x'.join(map(str, one.size))} batch {one.batch}" for name, one in SETTINGS.items())
    return (
        f"{describe_machine(PACKAGES)}; fastai's environment: {', '.join(f'{k} {v}' for k, v in fastai.items())}\n"
        f"one core, one thread; {options.minutes:g} {options.clock} minutes a training; {options.model} from scratch; "
        f"{sizes}; load before: {os.getloadavg()[0]:.2f}"
    )


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with the archives")
    parser.add_argument("--work", type=Path, required=True, help="where all is written, and what is there is kept")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training (default: %(default)s)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="what the minutes are of")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=list(CONTENDERS))
    parser.add_argument("--model", default="resnet10t", help="of timm (default: %(default)s)")
    parser.add_argument("--fashion-images", type=int, default=15_000, help="of its 60,000 (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes that are timed (default: %(default)s)")
    parser.add_argument("--core", type=int, help="the core that all keep to (default: the last one)")
    parser.add_argument(
        "--fastai-python", type=Path, default=Path(sys.executable), help="of an environment with fastai"
    )
    parser.add_argument("--again", action="store_true", help="print the tables of what is in --work")
    return parser.parse_args()


def choose_isolation() -> str:
    """Return how network is taken away: `namespace` where this user may make one, else `sockets`."""
    try:
        tried = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return "sockets"
    return "namespace" if tried.returncode == 0 else "sockets"


def main() -> None:
    """Measure what is asked, and print the tables."""
    options = read_options()
    options.work = options.work.resolve()
    place = Place(work=options.work, seeds=tuple(options.seeds), tasks=tuple(options.tasks))
    if not options.again:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if options.core is None else options.core})
        options.without_network = choose_isolation()
        options.work.mkdir(parents=True, exist_ok=True)
        (options.work / "machine.txt").write_text(describe(options), encoding="utf-8")
        measure_all(place, options)
    print((options.work / "machine.txt").read_text(encoding="utf-8"))
    for name in options.tasks:
        print_task(name, place)
    print_summary(place)


if __name__ == "__main__":
    main()
