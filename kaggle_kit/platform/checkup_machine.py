"""The doctor's look at the machine: disk, memory, cores, and the time limit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from kaggle_kit.platform.findings import Finding, Level
from kaggle_kit.platform.surroundings import GB, Surroundings
from kaggle_kit.runtime.mounts import TIME_LIMIT_VARIABLE, kernel_limit_s
from kaggle_kit.task import Task

FULL_GB = 1.0  # a submission, its report and what libraries write
TIGHT_GB = 5.0  # a training run's checkpoints
PACKED_IMAGES = 100_000
KAGGLE_CORES = 4
_NEAR = 0.9  # of the limit: a machine of 30 GB shows a little less


def check_disk(here: Surroundings, task: Task | None) -> Iterator[Finding]:
    """Yield what is free in the working folder and in that for temporary files."""
    temporary = Path(tempfile.gettempdir())
    for folder, free in here.free_disk_gb.items():
        level: Level = "red" if free < FULL_GB else "yellow" if free < TIGHT_GB else "green"
        frees = "delete old runs and packed stores" if folder != temporary else "delete files there, or set TMPDIR"
        yield Finding(
            level=level,
            what="disk",
            found=f"{free:.1f} GB free in {folder}{_packed_size(here, task) if folder == here.working else ''}",
            expected=f"{TIGHT_GB:g} GB or more" if level != "green" else "",
            repair=frees if level != "green" else "",
        )


def _packed_size(here: Surroundings, task: Task | None) -> str:
    if here.on_kaggle or task is None or task.stored is None:
        return ""
    height, width = task.stored_size
    size = PACKED_IMAGES * height * width * task.images.channels / GB
    return f"; a packed store takes {size:.1f} GB for {PACKED_IMAGES:,} images of {height} x {width}"


def check_memory(here: Surroundings, task: Task | None) -> Iterator[Finding]:
    """Yield memory, against the kernel's where the task is known."""
    if here.memory_gb is None:
        yield Finding(
            level="yellow",
            what="memory",
            found="not known: this system does not say",
            repair="have 16 GB or more; rehearse measures what a kernel takes on Linux",
        )
        return
    free = "" if here.free_memory_gb is None else f", {min(here.free_memory_gb, here.memory_gb):.1f} GB free"
    found = f"{here.memory_gb:.1f} GB{free}"
    if task is None or here.memory_gb >= _NEAR * task.limits.memory_gb:
        yield Finding(level="green", what="memory", found=found)
    elif here.on_kaggle:
        yield Finding(
            level="yellow",
            what="memory",
            found=found,
            expected=f"{task.limits.memory_gb:g} GB, says task {task.name!r}",
            repair="rehearse with --memory at what is here, and choose the accelerator that the task names",
        )
    else:
        yield Finding(
            level="yellow",
            what="memory",
            found=f"{found}, and the kernel has {task.limits.memory_gb:g} GB",
            repair="no matter for a submission; a rehearsal here may run out of memory where Kaggle would not",
        )


def check_cores(here: Surroundings) -> Iterator[Finding]:
    """Yield the cores, beside Kaggle's."""
    beside = "" if here.on_kaggle else f" (Kaggle: {KAGGLE_CORES})"
    yield Finding(level="green", what="cores", found=f"{here.num_cores}{beside}")


def check_time_limit(task: Task | None, *, source: str, overridden: bool) -> Iterator[Finding]:
    """Yield how long the kernel may run.

    Args:
        task: The competition; None: not known.
        source: Where it is known from.
        overridden: Whether the environment gives another limit.
    """
    if task is None:
        yield Finding(
            level="yellow",
            what="time limit",
            found="not known: neither a task nor a bundle",
            repair="give --task TASK or --bundle DIR (in a notebook: examine(task='bengali')); the competition's page, "
            "under Code Requirements, has the hours for `limits: {hours: ...}`",
        )
        return
    try:
        seconds = kernel_limit_s(task)
    except ValueError as error:
        repair = f"unset {TIME_LIMIT_VARIABLE}, or set it to seconds"
        yield Finding(
            level="red", what="time limit", found=f"${TIME_LIMIT_VARIABLE} is no number: {error}", repair=repair
        )
        return
    where = f"${TIME_LIMIT_VARIABLE}, in place of {task.limits.hours:g} h" if overridden else f"{source} {task.name!r}"
    yield Finding(level="green", what="time limit", found=f"{seconds / 3600:.4g} h ({seconds:,.0f} s), from {where}")
