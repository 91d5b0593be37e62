"""`kaggle-kit rehearse`: a submission kernel at home, as Kaggle will run it, before a submission is spent."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_kit.commands import CHECK_FAILED, DONE, Result
from kaggle_kit.errors import SettingError

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder
    from kaggle_kit.platform.rehearse import CaseResult, Rehearsal, RehearsedRun
    from kaggle_kit.task import Task


def add_rehearse_parsers(add: Adder) -> None:
    """Add `rehearse`."""
    one = add(
        "rehearse",
        rehearse,
        "run a submission kernel offline as Kaggle will",
        "kaggle-kit rehearse submit --task digits --data ./digits/data --hidden ./digits/hidden --bundle ./bundle\n"
        "  kaggle-kit rehearse submit --task digits --data ./digits/data --hidden-images 20000 --bundle ./bundle\n"
        "  kaggle-kit rehearse submit --task digits --data ./digits/data --hidden ./digits/hidden --bundle ./bundle "
        "--inject all",
    )
    one.add_argument(
        "kernel", type=Path, metavar="KERNEL_DIR", help="a kernel's folder; `submit` for the kit's own template"
    )
    one.add_argument(
        "--task", required=True, metavar="TASK", help="a preset's name (bengali, ships, digits), or a task.yaml's path"
    )
    one.add_argument("--data", type=Path, required=True, metavar="DATA", help="the competition's data folder")
    _add_inputs(one)
    _add_limits(one)
    one.add_argument(
        "--only",
        choices=("interactive", "visible", "hidden"),
        help="one run alone; visible: Save & Run All; interactive: the same as an editor's session (default: visible, "
        "then hidden)",
    )
    one.add_argument(
        "--inject",
        nargs="+",
        default=[],
        metavar="CASE",
        help="hard cases, each a run of its own on a copy of the hidden test: truncated-image, one-row, empty-test, "
        "new-size, extra-column, shuffled-rows, missing-shard, duplicate-id, corrupt-shard, no-gpu, provider-fallback, "
        "or all",
    )
    one.add_argument(
        "--packages-from",
        metavar="PROFILE",
        help="run the kernel by an image's Python, with its numpy, pyarrow and OpenCV: a profile's name, such as "
        "python3.12, or its file; made once beside --work, which needs the network",
    )
    one.add_argument(
        "--work", type=Path, default=Path("rehearsal"), metavar="DIR", help="logs, submissions (default: %(default)s)"
    )
    one.add_argument("--costs", type=Path, metavar="FILE", help="costs.json, measured there by kernels/bench")
    one.add_argument(
        "--images", type=_count, metavar="N", help="project to a test of so many images (default: as rehearsed)"
    )


def _add_inputs(one: argparse.ArgumentParser) -> None:
    hidden = one.add_mutually_exclusive_group()
    hidden.add_argument(
        "--hidden",
        type=Path,
        metavar="DIR",
        help="replaces the visible test: sample submission, test list, images or shards; and solution.csv",
    )
    hidden.add_argument(
        "--hidden-images",
        type=_count,
        metavar="N",
        help="replace the visible test by N train images under new ids, made once beside --work",
    )
    one.add_argument(
        "--seed", type=_seed, default=0, metavar="S", help="which train images are taken (default: %(default)s)"
    )
    one.add_argument("--bundle", type=Path, metavar="DIR", help="attached as a dataset")
    one.add_argument(
        "--attach",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="attach a further folder as a dataset of its name; may be given again. Unless one holds it, the wheel of "
        "this kit is attached too",
    )
    one.add_argument(
        "--layout",
        choices=("new", "old"),
        default="new",
        help="where inputs are mounted: competitions/SLUG and datasets/OWNER/SLUG, or SLUG (default: %(default)s)",
    )


def _add_limits(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--time-limit",
        type=parse_seconds,
        metavar="2h",
        help="like 90s, 30m or 2h: when a run is stopped, and what the kit's kernels keep to; default: the task's",
    )
    one.add_argument("--memory", type=_gigabytes, metavar="GB", help="default: the task's")
    one.add_argument(
        "--disk", type=_gigabytes, default=20.0, metavar="GB", help="of the working folder (default: %(default)g)"
    )
    one.add_argument("--cores", type=_count, metavar="N", help="default: 4, as there, or as many as there are here")


def rehearse(options: argparse.Namespace) -> tuple[Result, int]:
    """Run a submission kernel as Kaggle will."""
    from kaggle_kit.platform.hard_cases import find_cases
    from kaggle_kit.platform.rehearse import rehearse
    from kaggle_kit.platform.wheel import find_kernel
    from kaggle_kit.task import read_task

    find_cases(options.inject)  # slips are better told before minutes are spent
    _check_costs(options)
    task = read_task(options.task)
    hidden = None if options.only in ("visible", "interactive") else _hidden_test(options, task)
    result = rehearse(
        find_kernel(options.kernel),
        task,
        data=options.data,
        work=options.work,
        hidden=hidden,
        bundle=options.bundle,
        attach=options.attach,
        layout=options.layout,
        only=options.only,
        inject=options.inject,
        time_limit_s=options.time_limit,
        memory_gb=options.memory,
        disk_gb=options.disk,
        cores=options.cores,
        python=_interpreter(options),
    )
    projected = _projected(options, task, result, hidden)
    _print_rehearsal(result, projected, made=options.hidden_images is not None)
    return {**_jsonable(result), "projected": projected}, CHECK_FAILED if result.would_fail else DONE


def _check_costs(options: argparse.Namespace) -> None:
    if options.costs is None:
        return
    from kaggle_kit.blending.costs import read_costs
    from kaggle_kit.runtime.bundle import open_bundle

    if options.bundle is None:
        raise SettingError("--costs are of a bundle's runs; give --bundle too")
    read_costs(options.costs, open_bundle(options.bundle).blend.runs)


def _hidden_test(options: argparse.Namespace, task: Task) -> Path | None:
    from kaggle_kit.platform.hidden import make_hidden

    if options.hidden_images is None:
        return Path(options.hidden) if options.hidden else None
    folder = _beside(options.work, "hidden")
    made = make_hidden(task, options.data, folder, images=options.hidden_images, seed=options.seed, say=print)
    return made.folder


def _projected(options: argparse.Namespace, task: Task, result: Rehearsal, hidden: Path | None) -> list[str]:
    from kaggle_kit.platform.projection import format_projection, project

    if hidden is None or result.last.kind != "hidden" or result.answer != "Complete":
        return []
    projection = project(result, task, test=hidden, data=options.data, images=options.images, costs=options.costs)
    return format_projection(projection)


def _interpreter(options: argparse.Namespace) -> Path | None:
    if options.packages_from is None:
        return None
    from kaggle_kit.platform.environments import make_environment
    from kaggle_kit.platform.profiles import read_profile

    profile = read_profile(options.packages_from)
    return make_environment(profile, _beside(options.work, profile.name), say=print)


def _beside(work: Path, name: str) -> Path:
    return work.resolve().with_name(f"{work.resolve().name}-{name}")


# Printing


def _print_rehearsal(result: Rehearsal, projected: list[str], *, made: bool) -> None:
    from kaggle_kit.scores import format_scores

    print()
    for warning in result.warnings:
        print(f"WARNING {warning}")
    for note in result.notes:
        print(f"note: {note}")
    for run in result.runs:
        print(f"{run.kind} run: {run.answer}, {_measured(run)}")
    inputs = "inputs read-only" if result.read_only else "inputs not protected from writing here"
    cores = f"{result.cores} core{'s' if result.cores > 1 else ''}"
    print(f"measured here, with {cores}; {result.isolation}, {inputs}")
    for line in projected:
        print(line)
    if result.score is not None:
        print("\n".join(format_scores({"hidden test": result.score})))
        if made:
            print("this hidden test is made of train images, which models know: its score says nothing of the real one")
    _print_cases(result.cases)
    if result.answer == "Complete":
        print(f"the submission: {result.submission}")
    print(f"Kaggle would answer: {result.answer}{': ' + result.detail if result.detail else ''}")
    if result.answer != "Complete":
        print(f"the whole log: {result.log}")
    elif result.failed_cases:
        lost = ", ".join(result.failed_cases)
        print(f"but {len(result.failed_cases)} hard case(s) would have cost a submission: {lost}")


def _print_cases(cases: tuple[CaseResult, ...]) -> None:
    if not cases:
        return
    rows = [("hard case", "Kaggle would answer", "answers that changed", "what was done")]
    for one in cases:
        if one.run is None:
            rows.append((one.case, "(does not apply)", "", one.injection.skipped))
            continue
        complete = one.run.answer == "Complete"
        changed = f"{one.changed:,} of {one.lines:,}" if complete else ""
        said = one.injection.said if complete else f"{one.injection.said}; {one.run.detail}; {one.run.log}"
        rows.append((one.case, one.run.answer, changed, said))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]).rstrip())


def _measured(run: RehearsedRun) -> str:
    memory = f"{run.peak_memory_gb:.2f} GB of memory" if run.peak_memory_gb else "memory unknown here"
    return f"{run.seconds:,.1f} s, at most {memory} and {run.peak_disk_gb:.2f} GB of disk"


def _jsonable(result: Rehearsal) -> dict[str, Any]:
    """Return what `--json` tells: the runs and cases, and what the last plain run decides."""
    last = {name: value for name, value in dataclasses.asdict(result.last).items() if name not in ("kind", "warnings")}
    about = ("isolation", "read_only", "cores", "warnings", "notes", "score")
    cases = [
        {
            "case": one.case,
            "said": one.injection.said,
            "skipped": one.injection.skipped,
            "answer": one.run.answer if one.run else None,
            "detail": one.run.detail if one.run else "",
            "changed": one.changed,
            "changed_elsewhere": one.changed_elsewhere,
            "lines": one.lines,
        }
        for one in result.cases
    ]
    runs = [dataclasses.asdict(run) for run in result.runs]
    return {**last, **{name: getattr(result, name) for name in about}, "runs": runs, "cases": cases}


# Values on the command line


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number above 0")
    return number


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give a whole number, 0 or above")
    return int(text)


def parse_seconds(text: str) -> float:
    """Return the seconds that 90s, 30m or 2h come to; an argument's type."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1]]
    except (KeyError, ValueError, IndexError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it like 90s, 30m or 2h")
    return seconds


def _gigabytes(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give gigabytes above 0, like 30")
    return size
