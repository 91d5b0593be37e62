"""The whole way on real images: folds, two runs, blend, bundle, offline rehearsal, score; and an anchor beside it.

    python benchmarks/real_data.py bangla DATA_FOLDER --work WORK_FOLDER
    python benchmarks/real_data.py caltech DATA_FOLDER --work WORK_FOLDER

`bangla`: handwritten Bengali graphemes (bangla_handwriting.zip), the 35 commonest roots, one writer held out as the
hidden test, folds grouped by the other writers. `caltech`: 12 classes of photos (caltech_photos.zip), 15 % held out,
stratified. Both are made into a competition's files, and then only `kaggle-kit` commands are run. The anchor, HOG and a
linear SVM, is trained and scored on the same images in the same run. No weights are pretrained: none are at hand here.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from kaggle_kit.labels import read_labels
from kaggle_kit.pixels import decode_image, resize
from kaggle_kit.platform.wheel import kernels_folder
from kaggle_kit.scores import metric_value
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Metric, Task, read_task

ROOTS = 35
METRICS: tuple[Metric, ...] = ("accuracy", "macro_recall", "weighted_f1")
HOG_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a data set becomes a competition, and how it is trained."""

    archive: str
    id_column: str
    heads: tuple[str, ...]
    settings: tuple[str, ...]
    runs: dict[str, tuple[str, ...]]
    folds: tuple[str, ...]


PLANS = {
    "bangla": Plan(
        archive="bangla_handwriting.zip",
        id_column="image_id",
        heads=("root", "vowel", "consonant"),
        settings=("model=tiny_resnet", "epochs=30", "optim.lr=4e-3", "loader.batch_size=32"),
        runs={"resnet_64": ("model.input_size=[64,96]",), "resnet_48": ("model.input_size=[48,72]", "seed=1")},
        folds=("--scheme", "grouped", "--n", "3"),
    ),
    "caltech": Plan(
        archive="caltech_photos.zip",
        id_column="image",
        heads=("category",),
        settings=("model=tiny_resnet", "epochs=30", "optim.lr=4e-3", "loader.batch_size=32"),
        runs={"resnet_96": (), "resnet_64": ("model.input_size=[64,86]", "seed=1")},
        folds=("--scheme", "stratified", "--n", "3"),
    ),
}


def main() -> None:
    """Run one plan and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("data", type=Path, help="the folder with the archives")
    parser.add_argument("--work", type=Path, required=True, help="a folder to work in; replaced")
    parser.add_argument("--writer", default="4", help="bangla: who is held out (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="print the tables of the finished run in --work")
    options = parser.parse_args()
    plan = PLANS[options.plan]
    task_file = options.work / "task.yaml"
    if not options.again:
        shutil.rmtree(options.work, ignore_errors=True)
        make_competition(options.plan, plan, options.data / plan.archive, options.work, options.writer)
        run_commands(plan, options.work, task_file)
    stages = json.loads((options.work / "stages.json").read_text(encoding="utf-8"))
    task = read_task(task_file)
    print(f"\n{options.plan}, {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}")
    print("\n| stage | minutes |\n|---|---|\n" + "\n".join(f"| {name} | {s / 60:.1f} |" for name, s in stages))
    print(score_table(task, options.work))


def make_competition(name: str, plan: Plan, archive: Path, work: Path, writer: str, *, seed: int = 0) -> None:
    """Write data/, hidden/ and task.yaml; `writer` is bangla's hidden test, `seed` draws caltech's."""
    with zipfile.ZipFile(archive) as files:
        rows = list(csv.DictReader(io.TextIOWrapper(files.open("labels.csv"), "utf-8")))
        if name == "bangla":
            commonest = [root for root, _ in collections.Counter(row["root"] for row in rows).most_common(ROOTS)]
            rows = [row for row in rows if row["root"] in commonest]
            hidden = [row["writer"] == writer for row in rows]
        else:
            hidden = stratified_part([row["category"] for row in rows], share=0.15, seed=seed)
        for folder in ("data/images", "hidden/images"):
            (work / folder).mkdir(parents=True)
        for row, is_hidden in zip(rows, hidden, strict=True):
            file = row[plan.id_column] + (".png" if name == "bangla" else "")
            (work / ("hidden" if is_hidden else "data") / "images" / file).write_bytes(files.read(f"images/{file}"))
    write_tables(plan, work, rows, hidden)
    task = make_task(name, plan, rows)
    (work / "task.yaml").write_text(yaml.safe_dump(task, allow_unicode=True, sort_keys=False), encoding="utf-8")


def stratified_part(labels: list[str], *, share: float, seed: int = 0) -> list[bool]:
    """Return True for the held-out share of every class."""
    from sklearn.model_selection import train_test_split

    _, held_out = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed)
    return np.isin(np.arange(len(labels)), held_out).tolist()


def write_tables(plan: Plan, work: Path, rows: list[dict[str, str]], hidden: list[bool]) -> None:
    """Write train.csv, and the hidden test's list, sample submission and solution; the visible test is empty."""
    columns = [plan.id_column, *plan.heads, *(["writer"] if "writer" in rows[0] else [])]
    train = [[row[column] for column in columns] for row, out in zip(rows, hidden, strict=True) if not out]
    test = [row for row, out in zip(rows, hidden, strict=True) if out]
    write_rows(work / "data" / "train.csv", columns, train)
    several = len(plan.heads) > 1
    header = ["row_id", "target"] if several else [plan.id_column, *plan.heads]
    ids = [f"{row[plan.id_column]}_{head}" if several else row[plan.id_column] for row in test for head in plan.heads]
    truth = [row[head] for row in test for head in plan.heads]
    for folder, part in (("data", []), ("hidden", test)):
        write_rows(work / folder / "test.csv", [plan.id_column], [[row[plan.id_column]] for row in part])
        shown = ids if part else []
        write_rows(work / folder / "sample_submission.csv", header, [[row, truth[0]] for row in shown])
    write_rows(work / "hidden" / "solution.csv", header, zip(ids, truth, strict=True))


def make_task(name: str, plan: Plan, rows: list[dict[str, str]]) -> dict[str, object]:
    """Return the task as plain values."""
    heads = {head: {"classes": sorted({row[head] for row in rows})} for head in plan.heads}
    task: dict[str, object] = {"name": name, "heads": heads, "labels": {"id": plan.id_column}}
    images = {"format": "files", "folder": "images", "test_list": "test.csv", "id": plan.id_column}
    if name == "bangla":
        heads["root"]["weight"] = 2
        task |= {"metric": "macro_recall", "groups": "writer", "images": {**images, "channels": 1, "suffix": ".png"}}
        task |= {"stored": {"height": 96, "width": 144, "fit": "letterbox", "fill": 255}}
        return task | {"submission": {"form": "row_per_head", "id": "row_id"}}
    task |= {"metric": "weighted_f1", "images": {**images, "channels": 3}}
    task |= {"stored": {"height": 96, "width": 128, "fit": "letterbox"}}
    return task | {"submission": {"form": "row_per_image", "id": plan.id_column, "target": "category"}}


def run_commands(plan: Plan, work: Path, task_file: Path) -> None:
    """Run the commands a competitor would, and keep (stage, seconds) in stages.json."""
    data, task = str(work / "data"), str(task_file)
    folds, bundle, blend = str(work / "folds.parquet"), str(work / "bundle"), str(work / "blend.json")
    runs = [str(work / "runs" / name) for name in plan.runs]
    commands = [("folds", ["folds", task, data, "--out", folds, *plan.folds])]
    for (name, own), run in zip(plan.runs.items(), runs, strict=True):
        settings = [*plan.settings, *own]
        commands.append(
            (f"train {name}", ["train", f"task={task}", f"data={data}", f"folds={folds}", f"out={run}", *settings])
        )
    commands.append(("blend", ["blend", *runs, "--out", blend]))
    commands.append(("bundle", ["bundle", *runs, "--blend", blend, "--out", bundle]))
    rehearse = ["rehearse", str(kernels_folder() / "submit"), "--task", task, "--data", data, "--bundle", bundle]
    commands.append(("rehearse", [*rehearse, "--hidden", str(work / "hidden"), "--work", str(work / "rehearsal")]))
    stages: list[tuple[str, float]] = []
    for stage, command in commands:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kaggle_kit.cli", *command], check=True)
        stages.append((stage, time.perf_counter() - started))
        (work / "stages.json").write_text(json.dumps(stages), encoding="utf-8")


def score_table(task: Task, work: Path) -> str:
    """Return the hidden test's scores as a Markdown table: the kit's blend beside HOG + linear SVM."""
    ids, truth = read_submission(task, work / "hidden" / "solution.csv")
    ours_ids, ours = read_submission(task, work / "rehearsal" / "working" / "submission.csv")
    assert (ids == ours_ids).all()
    anchor = hog_svm(task, work, ids.tolist())
    members = json.loads((work / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    lines = ["\n| head | classes | metric | HOG + linear SVM | kaggle_kit blend |", "|---|---|---|---|---|"]
    for name, head in task.heads.items():
        for metric in METRICS:
            values = [metric_value(metric, truth[name], decided[name], head.num_classes) for decided in (anchor, ours)]
            lines.append(f"| {name} | {head.num_classes} | {metric} | {values[0]:.4f} | {values[1]:.4f} |")
    lines.append(f"\n{len(ids)} hidden images; out-of-fold {task.metric} of the blend {members['oof_score']:.4f}")
    return "\n".join(lines)


def hog_svm(task: Task, work: Path, test_ids: list[str]) -> dict[str, np.ndarray]:
    """Return {head: decided classes} of HOG features and a linear SVM a head, trained on all of data/."""
    from sklearn.svm import LinearSVC

    labels = read_labels(task, work / "data")
    train = np.stack([hog(task, work / "data", name) for name in labels.ids.tolist()])
    test = np.stack([hog(task, work / "hidden", name) for name in test_ids])
    return {head: LinearSVC(C=0.1).fit(train, classes).predict(test) for head, classes in labels.classes.items()}


def hog(task: Task, root: Path, name: str) -> np.ndarray:
    """Return the HOG features of one image, stretched to 64 x 64 gray."""
    path = root / task.images.folder / f"{name}{task.images.suffix}"
    image = resize(decode_image(path.read_bytes(), channels=1), HOG_SIDE, HOG_SIDE)
    from skimage.feature import hog as describe  # pip install scikit-image; OpenCV 5 has no HOG of its own

    return np.asarray(describe(image[..., 0], orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)))


if __name__ == "__main__":
    main()
