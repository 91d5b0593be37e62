"""How fast a training is beside other work on the same cores: as the kit sets OpenMP, and as torch comes.

    python benchmarks/shared_cores.py DATA_FOLDER --work DIR [--rounds 3]

Trains a small network on caltech_photos.zip by `kaggle-kit train`, two epochs, alone and beside busy processes, taking
turns. These are in sessions of their own, as another terminal's are: where Linux groups by session
(`cat /proc/sys/kernel/sched_autogroup_enabled` says 1), each session has an equal share. Compared are GNU OpenMP's own
spinning of idle threads (300,000 turns) and the kit's. Prints images a second of the second epoch, the middle of the
rounds.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import describe_machine
from real_data import PLANS, make_competition

SPINNING = {"torch as it comes": {"GOMP_SPINCOUNT": "300000"}, "kaggle_kit": {}}  # GNU's default, and ours
BUSY = "while True: sum(range(1000))"
SETTINGS = ("model=tiny_resnet", "model.input_size=[64,96]", "epochs=2", "loader.batch_size=32")


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep as many processes busy as are asked for, each in a session of its own."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(number)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def images_per_second(ground: Path, out: Path, variables: dict[str, str]) -> float:
    """Train once and return the speed of the last epoch."""
    shutil.rmtree(out, ignore_errors=True)
    places = [f"task={ground / 'task.yaml'}", f"data={ground / 'data'}", f"folds={ground / 'folds.parquet'}"]
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    subprocess.run(
        [sys.executable, "-m", "kaggle_kit", "train", *places, f"out={out}", f"packed={ground / 'packed'}", *SETTINGS],
        env={**unset, "NO_ALBUMENTATIONS_UPDATE": "1", **variables},
        check=True,
        capture_output=True,
    )
    with (out / "fold0" / "history.csv").open(encoding="utf-8", newline="") as lines:
        return float(list(csv.DictReader(lines))[-1]["images_per_second"])


def main() -> None:
    """Measure, and print a line for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with caltech_photos.zip")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ground = options.work / "caltech"
    if not (ground / "folds.parquet").is_file():
        make_competition("caltech", PLANS["caltech"], options.data / "caltech_photos.zip", ground, "")
        make_folds = ["folds", str(ground / "task.yaml"), str(ground / "data"), "--out", str(ground / "folds.parquet")]
        command = [sys.executable, "-m", "kaggle_kit", *make_folds, "--scheme", "holdout", "--labels-only"]
        subprocess.run(command, check=True)
    print(describe_machine(("torch", "timm")))
    print(f"| busy processes | {' | '.join(f'{name}, images/s' for name in SPINNING)} |\n|---|---|---|")
    for busy in (0, 1, 2):
        speeds: dict[str, list[float]] = {name: [] for name in SPINNING}
        for _ in range(options.rounds):
            for name, variables in SPINNING.items():
                with busy_processes(busy):
                    speeds[name].append(images_per_second(ground, options.work / "run", variables))
        print(f"| {busy} | {' | '.join(f'{statistics.median(each):,.0f}' for each in speeds.values())} |", flush=True)


if __name__ == "__main__":
    main()
