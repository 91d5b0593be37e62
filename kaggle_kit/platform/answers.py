"""What Kaggle would have answered to a run of a kernel, and what it would not say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from kaggle_kit.errors import DataError, KitError, some_of
from kaggle_kit.machine import memory_bytes
from kaggle_kit.platform.processes import GB
from kaggle_kit.platform.session import Session, SessionLimits
from kaggle_kit.runtime.progress import gpu_memory_gb
from kaggle_kit.runtime.report import read_report
from kaggle_kit.submission import expected_images, expected_rows, read_submission, validate_submission
from kaggle_kit.task import Task

Answer = Literal[
    "Complete",
    "Notebook Timeout",
    "Notebook Threw Exception",
    "Notebook Exceeded Allowed Compute",
    "Submission CSV Not Found",
    "Submission Scoring Error",
]
SUBMISSION = "submission.csv"
CPU_PROVIDERS = {"CPUExecutionProvider", "OpenVINOExecutionProvider"}
# What urllib, requests, pip, huggingface_hub and this rehearsal's own sandbox say where there is no network.
NO_NETWORK = re.compile(
    r"rehearsal: the submission kernel has no network|name resolution|Name or service not known|getaddrinfo failed|"
    r"Network is unreachable|Max retries exceeded|Failed to establish a new connection|NewConnectionError|"
    r"outgoing traffic has been disabled|urlopen error",
    re.IGNORECASE,
)
# What ONNX Runtime and torch say when they go on without the GPU that they were asked to use.
NO_GPU = re.compile(
    r"Specified provider '(CUDA|Tensorrt)ExecutionProvider' is not in available|"
    r"Failed to create (CUDA|Tensorrt)ExecutionProvider|CUDA initialization: |CUDA is not available",
    re.IGNORECASE,
)


def kaggle_answer(session: Session, limits: SessionLimits, *, log: Path, submission: Path) -> tuple[Answer, str]:
    """Return the answer to a run, in Kaggle's words, and why; "Complete" before the submission is read."""
    if session.stopped_for == "time":
        return "Notebook Timeout", f"stopped after {session.seconds:.0f} s; its limit is {limits.time_s:,.0f} s"
    if session.stopped_for == "memory":
        return "Notebook Exceeded Allowed Compute", _describe_memory(session, limits)
    if session.stopped_for == "disk":
        return (
            "Notebook Exceeded Allowed Compute",
            f"the working folder held {session.peak_disk_gb:.2f} GB; its limit is {limits.disk_gb:g} GB",
        )
    if session.returncode != 0:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        if session.returncode < 0:
            return "Notebook Threw Exception", f"killed by signal {-session.returncode}"
        return "Notebook Threw Exception", text.splitlines()[-1] if text else f"exit code {session.returncode}"
    if not submission.is_file():
        return "Submission CSV Not Found", _describe_absence(submission)
    return "Complete", ""


def submission_fault(task: Task, submission: Path, competition: Path) -> str:
    """Return what the competition would refuse in a submission; nothing where it is sound."""
    try:
        validate_submission(task, submission, rows=expected_rows(task, competition))
    except KitError as error:
        return str(error)
    return ""


def solution_notes(task: Task, hidden: Path) -> Iterator[str]:
    """Yield why a hidden test's score is none, or not of all its images.

    Raises:
        DataError: When its solution holds images that its sample submission does not ask for, or cannot be read.
    """
    solution = hidden / "solution.csv"
    if not solution.is_file():
        yield f"{solution} is not there: nothing was scored"
        return
    asked = expected_images(task, expected_rows(task, hidden))
    solved = read_submission(task, solution)[0]
    unasked = solved[~np.isin(solved, asked)]
    if len(unasked):
        raise DataError(
            f"{solution} has {len(unasked):,} image(s) that {hidden / task.submission.file} does not ask for: "
            f"{some_of(unasked)}; give both the same images"
        )
    lacking = asked[~np.isin(asked, solved)]
    if len(lacking):
        yield f"{solution} lacks {len(lacking):,} of {len(asked):,} images, and they are not scored: {some_of(lacking)}"


def log_warnings(log: Path) -> Iterator[str]:
    """Yield what a kernel's output tells of that ended well all the same: a network or a GPU that was not there."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for pattern, what in (
        (NO_NETWORK, "the log speaks of a network, and there is none in the rerun"),
        (NO_GPU, "the log speaks of the CPU in place of a GPU"),
    ):
        found = [line.strip() for line in lines if pattern.search(line)]
        excused = found and pattern is NO_GPU and not gpu_memory_gb()
        here = " (this machine has no GPU; there it may be otherwise)" if excused else ""
        if found:
            yield f"{what}{here}: {found[-1][:200]}"


def report_warnings(submission: Path) -> Iterator[str]:
    """Yield what the kit's own kernel says it could not do, though Kaggle would be content."""
    report = read_report(submission)
    if "unfinished" in report:
        yield (
            f"the submission is unfinished ({report['unfinished']}): {report['images_of_priors']:,} of "
            f"{report['images']:,} images have the class priors"
        )
    elif report.get("broken"):
        yield f"{report['broken']:,} of {report['images']:,} images are broken and have the class priors"
    providers = set(report.get("providers", []))
    if providers and providers <= CPU_PROVIDERS and gpu_memory_gb():
        yield "the kernel ran on the CPU, though this machine has a GPU; its log says why it was passed over"


def _describe_memory(session: Session, limits: SessionLimits) -> str:
    if session.peak_memory_gb > limits.memory_gb:
        return f"stopped at {session.peak_memory_gb:.1f} GB of memory; its limit is {limits.memory_gb:g} GB"
    whole = (memory_bytes() or 0) / GB
    return (
        f"killed by this system at {session.peak_memory_gb:.1f} GB of memory; this machine has {whole:.0f} GB, and the "
        f"limit is {limits.memory_gb:g} GB"
    )


def _describe_absence(submission: Path) -> str:
    near = sorted(path.name for path in submission.parent.iterdir() if path.suffix in (".csv", ".parquet", ".zip"))
    found = f"; found {', '.join(near[:3])}" if near else ""
    return f"expected {submission.name} in the working folder{found}"
