"""What a rehearsal says of Kaggle: its projections, the kernel under the image's packages, and OpenCV's versions.

    python benchmarks/rehearsal.py --part train|projection|images|opencv DATA_FOLDER --work DIR

DATA_FOLDER holds bangla_handwriting.zip and caltech_photos.zip. What is made in --work is kept; environments and wheels
need the network once.
`train`: small networks for `images` and `opencv`, which otherwise train them first.
`projection`: rehearsals of 2,000 images of wide parquet, projected to 20,000, beside rehearsals of 20,000; untrained.
`images`: the submit kernel by Python, numpy, pyarrow, OpenCV and onnxruntime-gpu of each image that the kit knows,
    beside this Python's: golden images, and decisions that differ.
`opencv`: decoding and resizing by OpenCV of both images, on all images of both archives, and decisions that differ.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from machine import describe_machine
from opencv_pixels import CONTROL, FITS
from real_data import PLANS, make_competition
from runtime import first_images, quiet
from runtime_ground import make_bundle, make_wide, wide_task

import kaggle_kit
from kaggle_kit.platform.environments import make_environment
from kaggle_kit.platform.profiles import read_profiles
from kaggle_kit.platform.projection import Projection, project
from kaggle_kit.platform.rehearse import Rehearsal, rehearse
from kaggle_kit.platform.wheel import kernels_folder
from kaggle_kit.runtime.bundle import load_golden
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.report import read_report
from kaggle_kit.submission import read_submission
from kaggle_kit.task import Task, read_task

VERSIONS = ("onnxruntime", "numpy", "pyarrow", "opencv-python-headless")
NETWORK, SIZE = "resnet10t", (64, 64)
TRAINING = ("model=tiny_resnet", "epochs=8", "optim.lr=4e-3", "loader.batch_size=32")
ALL_VERSIONS = """
import sys, cv2, numpy, pyarrow
print(f"{sys.version.split()[0]}, {numpy.__version__}, {pyarrow.__version__}, {cv2.__version__}")
"""


# Projections


def print_projection(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Print projections beside what they foretell, taking turns."""
    small, large = options.images
    print("| shards | round | seconds | projected | x | GB | projected | x |\n|---|---|---|---|---|---|---|---|")
    found: list[tuple[float, float]] = []
    for shards in options.shards:
        tests = [make_wide(data, work / f"wide_{shards}_{n}", [n // shards] * shards) for n in (small, large)]
        bundle = make_bundle(
            work / "bundle_wide", wide_task(), [NETWORK], first_images(wide_task(), tests[0], 64), size=SIZE
        )
        for number in range(1, options.rounds + 1):
            told = foretell(bundle.folder, tests[0], work, images=large)
            whole = rehearse_wide(bundle.folder, tests[1], work)
            seconds, gb = told.seconds_here / whole.seconds, told.memory_gb / whole.peak_memory_gb
            found.append((seconds, gb))
            print(
                f"| {shards} | {number} | {whole.seconds:.1f} | {told.seconds_here:.1f} | {seconds:.3f} | "
                f"{whole.peak_memory_gb:.2f} | {told.memory_gb:.2f} | {gb:.3f} |",
                flush=True,
            )
    print(f"\n{small:,} images rehearsed, projected to {large:,}; target: within 15 %")
    for what, ratios in zip(("time", "memory"), zip(*found, strict=True), strict=True):
        furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
        print(f"{what}: median {statistics.median(ratios):.3f} of what was measured, furthest {furthest:.3f}")


def foretell(bundle: Path, small: Path, work: Path, *, images: int) -> Projection:
    """Return the projection of a rehearsal of few images."""
    result = rehearse_wide(bundle, small, work)
    told = project(result, wide_task(), test=small, images=images)
    assert not told.unknown, told.unknown
    return told


def rehearse_wide(bundle: Path, test: Path, work: Path) -> Rehearsal:
    """Return a rehearsal of wide parquet."""
    return rehearse_hidden(wide_task(), data=test, hidden=test, bundle=bundle, work=work / "rehearsal")


def rehearse_hidden(
    task: Task,
    *,
    data: Path,
    hidden: Path,
    bundle: Path,
    work: Path,
    python: Path | None = None,
    attach: tuple[Path, ...] = (),
) -> Rehearsal:
    """Return a rehearsal of the hidden test alone."""
    result = rehearse(
        kernels_folder() / "submit",
        task,
        data=data,
        work=work,
        hidden=hidden,
        bundle=bundle,
        attach=attach,
        only="hidden",
        python=python,
        echo=quiet,
    )
    if result.answer != "Complete":
        raise SystemExit(f"{result.answer}: {result.detail}; {result.log}")
    return result


# The kernel under the image's packages


def train(data: Path, work: Path, name: str) -> Path:
    """Make a competition of an archive and a bundle of two fold models for it, unless done; return its folder."""
    folder = work / name
    bundle = folder / "bundle"
    if not (bundle / "manifest.json").is_file():
        make_competition(name, PLANS[name], data / PLANS[name].archive, folder, "4")
        task, train_data, folds, run = (str(folder / part) for part in ("task.yaml", "data", "folds.parquet", "run"))
        commands = (
            ["folds", task, train_data, "--out", folds, "--scheme", "stratified", "--n", "2"],
            ["train", f"task={task}", f"data={train_data}", f"folds={folds}", f"out={run}", *TRAINING],
            ["bundle", run, "--out", str(bundle)],
        )
        for command in commands:
            print(f"{name}: {command[0]}", file=sys.stderr, flush=True)
            kit = [sys.executable, "-m", "kaggle_kit", *command]
            subprocess.run(kit, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def print_training(data: Path, work: Path, _options: argparse.Namespace) -> None:
    """Train, and print what came out."""
    for name in PLANS:
        folder = train(data, work, name)
        print(
            f"{folder}: out-of-fold score {Predictor(folder / 'bundle', device='cpu', say=quiet).bundle.oof_score:.4f}"
        )


def print_images(data: Path, work: Path, _options: argparse.Namespace) -> None:
    """Print what the submit kernel gives under each image's packages, beside this Python's."""
    wheels = fetch_wheels(work / "wheels")
    pythons = {"home": None, **environments(work)}
    for python in pythons.values():
        done = subprocess.run(
            [python or sys.executable, "-c", ALL_VERSIONS], capture_output=True, text=True, check=True
        )
        print(f"{python or 'home'}: Python, numpy, pyarrow, OpenCV {done.stdout.strip()}")
    print("\n| images | under | onnxruntime | OpenCV | golden | tolerance | decisions | differ from home's |")
    print("|---|---|---|---|---|---|---|---|")
    for what, (task, visible, hidden, bundle) in grounds(data, work).items():
        home: dict[str, np.ndarray] = {}
        for name, python in pythons.items():
            result = rehearse_hidden(
                task,
                data=visible,
                hidden=hidden,
                bundle=bundle,
                work=work / "rehearsal",
                python=python,
                attach=(wheels,) if python else (),
            )
            _, decided = read_submission(task, result.submission)
            home = home or decided
            differ = sum(int((decided[head] != home[head]).sum()) for head in home)
            total = sum(len(classes) for classes in home.values())
            versions = read_report(result.submission)["versions"]
            golden = re.search(r"golden images agree to (\S+)", result.log.read_text())
            agree, tolerance = golden.group(1) if golden else "TOO FAR", load_golden(bundle).tolerance
            print(
                f"| {what} | {name} | {versions['onnxruntime']} | {versions['opencv']} | "
                f"{agree} | {tolerance:g} | {total:,} | {differ} |",
                flush=True,
            )


def grounds(data: Path, work: Path) -> dict[str, tuple[Task, Path, Path, Path]]:
    """Return {images: (task, visible data, hidden test, bundle)}."""
    wide = make_wide(data, work / "wide_4_2000", [500] * 4)
    untrained = make_bundle(
        work / "bundle_wide", wide_task(), [NETWORK], first_images(wide_task(), wide, 64), size=SIZE
    )
    found = {"wide parquet, untrained": (wide_task(), wide, wide, untrained.folder)}
    for name, what in (("caltech", "JPEG photos"), ("bangla", "PNG scans")):
        folder = train(data, work, name)
        task = read_task(folder / "task.yaml")
        found[what] = (task, folder / "data", folder / "hidden", folder / "bundle")
    return found


def environments(work: Path) -> dict[str, Path]:
    """Return {profile: interpreter}."""
    return {
        name: make_environment(profile, work / "environments" / name, say=lambda line: print(line, file=sys.stderr))
        for name, profile in read_profiles().items()
    }


def fetch_wheels(folder: Path) -> Path:
    """Download onnxruntime-gpu as each profile brings it, unless it is there; its requirements are not needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for profile in read_profiles().values():
        if not any(folder.glob(f"onnxruntime_gpu-*-{profile.python_tag}-*.whl")):
            (wanted,) = (one for one in profile.brings if one.startswith("onnxruntime-gpu"))
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
            systems = [f"--platform=manylinux_2_{number}_x86_64" for number in (27, 28)]
            command += ["--python-version", profile.python, *systems, "-d", str(folder), wanted]
            subprocess.run(command, check=True)
    return folder


# OpenCV's versions


def print_opencv(data: Path, work: Path, _options: argparse.Namespace) -> None:
    """Print how far the pixels of the images' OpenCV versions differ, and what becomes of decisions."""
    old_python, new_python = environments(work).values()
    print("| archive | what | images | differ | values that differ | largest | mean |")
    print("|---|---|---|---|---|---|---|")
    decided: list[str] = []
    for name, plan in PLANS.items():
        folder = train(data, work, name)
        first, second = work / f"pixels_{name}_old.npz", work / f"pixels_{name}_new.npz"
        worker = [Path(__file__).with_name("opencv_pixels.py"), data / plan.archive, folder / "task.yaml"]
        where = {**os.environ, "PYTHONPATH": str(Path(kaggle_kit.__file__).parents[1])}
        subprocess.run([old_python, *worker, first], check=True, env=where)
        subprocess.run([new_python, *worker, second, first], check=True, env=where)
        with np.load(first) as before, np.load(second) as after:
            assert (before["shapes"] == after["shapes"]).all()
            versions = f"OpenCV {before['version']} and {after['version']}"
            ends = np.cumsum(before["shapes"].prod(axis=1))[:-1]
            whole = [np.split(one["decoded"], ends) for one in (before, after)]
            print(compare(name, "decoded", *whole), flush=True)
            for what in (*FITS, "stored", CONTROL):
                print(compare(name, what, list(before[what]), list(after[what])), flush=True)
            decided.append(
                f"{versions}, " + compare_decisions(name, folder / "bundle", before["stored"], after["stored"])
            )
    print("\n" + "\n".join(decided))


def compare(name: str, what: str, before: list[np.ndarray], after: list[np.ndarray]) -> str:
    """Return a table's row on the differences of images' values."""
    away = [np.abs(a.astype(np.int16) - b) for a, b in zip(before, after, strict=True)]
    values = sum(one.size for one in away)
    differ = sum(int((one > 0).sum()) for one in away)
    images = sum(bool(one.any()) for one in away)
    mean = sum(int(one.sum(dtype=np.int64)) for one in away) / values
    return (
        f"| {name} | {what} | {len(away):,} | {images:,} | {differ / values:.4%} | "
        f"{max(int(one.max()) for one in away)} | {mean:.2e} |"
    )


def compare_decisions(name: str, bundle: Path, before: np.ndarray, after: np.ndarray) -> str:
    """Return a line on the decisions of the same sessions, here, on both versions' stored images."""
    predictor = Predictor(bundle, device="cpu", say=quiet)
    starts = range(0, len(before), predictor.batch)
    found = [[predictor.run(images[at : at + predictor.batch]) for at in starts] for images in (before, after)]
    differ = total = 0
    away = 0.0
    for one, other in zip(*found, strict=True):
        for head, probs in one.items():
            differ += int((probs.argmax(axis=1) != other[head].argmax(axis=1)).sum())
            total += len(probs)
            away = max(away, float(np.abs(probs - other[head]).max()))
    return f"{name}: {differ} of {total:,} decisions change, probabilities by up to {away:.1e}"


PARTS = {"train": print_training, "projection": print_projection, "images": print_images, "opencv": print_opencv}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with the archives")
    parser.add_argument("--part", choices=tuple(PARTS), required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder to work in; what is made there is kept")
    parser.add_argument("--rounds", type=int, default=2, help="projection, of each number of shards (default: 2)")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4], help="projection (default: 1 4)")
    parser.add_argument("--images", type=int, nargs=2, default=[2_000, 20_000], help="projection (default: 2000 20000)")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"{describe_machine(VERSIONS)}\n", flush=True)
    PARTS[options.part](options.data.resolve(), options.work, options)


if __name__ == "__main__":
    main()
