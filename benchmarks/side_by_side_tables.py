"""The tables of `side_by_side.py`, from the results that it keeps."""

from __future__ import annotations

import ast
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.labels import Classes
from kaggle_kit.scores import bootstrap_heads, head_weights, middle_part, score_answers
from kaggle_kit.submission import read_submission
from kaggle_kit.task import Task, read_task

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
import task_kit  # noqa: E402

CONTENDERS = {"kit": "kaggle_kit", "fastai": "fastai", "timm": "timm"}
DRAWS = 1000
OWN_SHARE = 0.9  # of the wall time: a training that had less of its core had less of a budget
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where results lie, and which.

    Attributes:
        work: The folder.
        seeds: Which seeds.
        tasks: Which tasks.
    """

    work: Path
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]

    def ground(self, name: str) -> Path:
        """Return a task's competition."""
        return self.work / name / "competition"

    def folder(self, name: str, contender: str, seed: int) -> Path:
        """Return where a contender writes."""
        return self.work / name / f"{contender}-{seed}"

    def result_file(self, name: str, contender: str, seed: int) -> Path:
        """Return the file of one result."""
        return self.work / "results" / f"{name}-{contender}-{seed}.json"

    def read_result(self, name: str, contender: str, seed: int) -> Figures:
        """Return one result; empty where there is none."""
        file = self.result_file(name, contender, seed)
        found: Figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender at one task, over the seeds.

    Attributes:
        figures: Of each seed.
        scores: From the artefact, of each seed.
        trained_scores: In the training process, of each seed.
        said: {head: (N,) classes} from the artefact, of the first seed.
        differing: Decisions of artefact and training process that differ, of all heads and seeds.
        decisions: How many those are in all.
    """

    figures: list[Figures]
    scores: list[float]
    trained_scores: list[float]
    said: Classes
    differing: int
    decisions: int

    def median(self, key: str) -> float:
        """Return the median of a figure over the seeds."""
        return float(statistics.median(one[key] for one in self.figures))


def read_said(task: Task, path: Path) -> Classes:
    """Return {head: (N,) class indices} of the decisions that a contender wrote."""
    with np.load(path) as said:
        return {
            name: np.array([head.class_values.index(value) for value in said[name].tolist()])
            for name, head in task.heads.items()
        }


def read_entry(name: str, contender: str, task: Task, truth: Classes, place: Place) -> Entry | None:
    """Return what is there of a contender; None where nothing is."""
    figures, scores, trained_scores, saids, differing = [], [], [], [], 0
    for seed in place.seeds:
        found = place.read_result(name, contender, seed)
        if not found or "failed" in found:
            continue
        folder = place.folder(name, contender, seed)
        said, trained = (read_said(task, folder / f"{what}.npz") for what in ("artefact", "training"))
        figures.append(found)
        scores.append(score_answers(task, truth, said).total)
        trained_scores.append(score_answers(task, truth, trained).total)
        saids.append(said)
        differing += sum(int((said[head] != trained[head]).sum()) for head in task.heads)
    if not figures:
        return None
    decisions = len(figures) * sum(len(classes) for classes in truth.values())
    return Entry(
        figures=figures,
        scores=scores,
        trained_scores=trained_scores,
        said=saids[0],
        differing=differing,
        decisions=decisions,
    )


def read_entries(name: str, place: Place) -> tuple[Task, Classes, dict[str, Entry]]:
    """Return a task, the hidden test's truth, and the contenders that are there."""
    ground = place.ground(name)
    task = read_task(ground / "task.yaml")
    _, truth = read_submission(task, ground / "hidden" / "solution.csv")
    entries = {contender: read_entry(name, contender, task, truth, place) for contender in CONTENDERS}
    return task, truth, {contender: entry for contender, entry in entries.items() if entry}


def user_lines(name: str, contender: str, ground: Path, asked: Figures) -> list[str]:
    """Return the lines that a user of a contender writes for a task: no blank ones, comments or docstrings."""
    if contender == "kit":
        text = task_kit.user_text(
            ground, model=asked["model"], size=tuple(asked["size"]), batch=asked["batch"], scheme=tuple(asked["scheme"])
        )
        return text.splitlines()
    text = (PEERS / f"task_{contender}.py").read_text(encoding="utf-8")
    documented = (ast.FunctionDef, ast.ClassDef)
    tree = ast.walk(ast.parse(text))
    docs = [node.body[0] for node in tree if isinstance(node, documented) and ast.get_docstring(node)]
    left_out = {number for node in docs for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines, counts = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if bare.startswith("# user:") or bare == "# end":
            counts = name in bare.split()
        elif counts and bare and not bare.startswith("#") and number not in left_out:
            lines.append(line)
    return lines


COLUMNS = (
    "contender",
    "lines a user writes",
    "training, min",
    "processor min",
    "epochs",
    "hidden score",
    "95 % of images",
    "kaggle_kit minus it",
    "artefact, MB",
    "written in, s",
    "kernel start, s (processor)",
    "images/s (a processor second)",
    "runs offline",
    "artefact minus training process",
    "decisions that differ",
)


def print_task(name: str, place: Place) -> None:
    """Print a task's table."""
    task, truth, entries = read_entries(name, place)
    num_images = len(next(iter(truth.values())))
    print(f"\n{name}: {task.metric}, {num_images:,} hidden images, seeds {', '.join(map(str, place.seeds))}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for contender, title in CONTENDERS.items():
        if contender in entries:
            cells = task_cells(name, contender, task, truth, entries, place)
            print(f"| {' | '.join([title, *cells])} |")
        else:
            found = [place.read_result(name, contender, seed).get("failed", "not run") for seed in place.seeds]
            print(f"| {title} | {' '.join(found[0].split())[-200:]} |{' |' * (len(COLUMNS) - 2)}")
    print(sharing_text(entries))


def sharing_text(entries: dict[str, Entry]) -> str:
    """Return a warning where others took this core's time from a training; empty where none did."""
    shares = {
        CONTENDERS[contender]: min(one["processor_minutes"] / one["minutes"] for one in entry.figures)
        for contender, entry in entries.items()
    }
    if min(shares.values(), default=1.0) >= OWN_SHARE:
        return ""
    told = ", ".join(f"{title} {share:.0%}" for title, share in shares.items())
    return f"\nWARNING the core was shared with others; of the training time each had: {told}"


def task_cells(
    name: str, contender: str, task: Task, truth: Classes, entries: dict[str, Entry], place: Place
) -> list[str]:
    """Return a contender's cells of a task's table, but for the first."""
    entry = entries[contender]
    low, high = score_answers(task, truth, entry.said, draws=DRAWS).interval or (math.nan, math.nan)
    score = f"{statistics.mean(entry.scores):.4f}"
    if len(entry.scores) > 1:
        score += f" ({min(entry.scores):.4f} to {max(entry.scores):.4f})"
    early = " (cut off)" if any(one["ended_early"] for one in entry.figures) else ""
    return [
        str(len(user_lines(name, contender, place.ground(name), entry.figures[0]["asked"]))),
        f"{entry.median('minutes'):.2f}",
        f"{entry.median('processor_minutes'):.2f}",
        f"{entry.median('epochs'):g}{early}",
        score,
        f"{low:.4f} to {high:.4f}",
        "" if contender == "kit" or "kit" not in entries else difference(task, truth, entries["kit"], entry),
        f"{entry.median('artefact_mb'):.1f}",
        f"{entry.median('export_s'):.1f}",
        f"{entry.median('start_s'):.1f} ({entry.median('start_processor_s'):.1f})",
        f"{entry.median('images_per_s'):,.0f} ({entry.median('images_per_processor_s'):,.0f})",
        offline_text(entry),
        f"{statistics.mean(entry.scores) - statistics.mean(entry.trained_scores):+.4f}",
        f"{entry.differing} of {entry.decisions:,}",
    ]


def difference(task: Task, truth: Classes, ours: Entry, theirs: Entry) -> str:
    """Return ours minus theirs over the seeds, and the interval of the first seed's when the images are resampled."""
    drawn = bootstrap_heads(task, truth, [ours.said, theirs.said], draws=DRAWS) @ head_weights(task)  # (draws, 2)
    ((low, high),) = middle_part(drawn[:, :1] - drawn[:, 1:])
    return f"{statistics.mean(ours.scores) - statistics.mean(theirs.scores):+.4f} ({low:+.4f} to {high:+.4f})"


def offline_text(entry: Entry) -> str:
    """Return whether the artefact predicted without network, and how that was taken away."""
    ways = {"namespace": "in a network namespace", "sockets": "with sockets blocked"}
    how = ", ".join(sorted({ways[one["without_network"]] for one in entry.figures}))
    return f"{'yes' if all(one['offline'] for one in entry.figures) else 'NETWORK WAS THERE'}, {how}"


def print_summary(place: Place) -> None:
    """Print all tasks in one table: a contender a line."""
    found = {name: read_entries(name, place)[2] for name in place.tasks}
    titles = [
        "contender",
        *(f"{name}, score" for name in place.tasks),
        "lines, all tasks apart",
        "start, processor s",
        "MB",
    ]
    titles += [*(f"{name}, images a processor s" for name in place.tasks), "decisions that differ"]
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for contender, title in CONTENDERS.items():
        entries = [found[name].get(contender) for name in place.tasks]
        there = [(name, entry) for name, entry in zip(place.tasks, entries, strict=True) if entry]
        if not there:
            continue
        lines = [
            len(user_lines(name, contender, place.ground(name), entry.figures[0]["asked"])) for name, entry in there
        ]
        cells = [f"{statistics.mean(entry.scores):.4f}" if entry else "" for entry in entries]
        cells += ["+".join(map(str, lines)) + f" = {sum(lines)}"]
        cells += [
            f"{statistics.median(entry.median(key) for _, entry in there):.1f}"
            for key in ("start_processor_s", "artefact_mb")
        ]
        cells += [f"{entry.median('images_per_processor_s'):,.0f}" if entry else "" for entry in entries]
        cells += [f"{sum(entry.differing for _, entry in there)} of {sum(entry.decisions for _, entry in there):,}"]
        print(f"| {' | '.join([title, *cells])} |")
    print(f"\nVersions: {json.dumps(versions(found))}")


def versions(found: dict[str, dict[str, Entry]]) -> Figures:
    """Return the versions that each contender's training reported."""
    return {
        title: next((e[contender].figures[0]["versions"] for e in found.values() if contender in e), {})
        for contender, title in CONTENDERS.items()
    }
