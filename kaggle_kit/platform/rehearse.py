"""Run a submission kernel at home as Kaggle will: offline, inputs read-only, on the hidden test, within limits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kaggle_kit.errors import DataError, KitError, RehearsalError, some_of
from kaggle_kit.labels import read_labels
from kaggle_kit.platform import sandbox
from kaggle_kit.platform.wheel import build_wheel
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.runtime.mounts import ROOT_VARIABLE, TIME_LIMIT_VARIABLE
from kaggle_kit.runtime.report import read_report
from kaggle_kit.scores import DRAWS, SplitScore
from kaggle_kit.sources import image_folder, listed_ids
from kaggle_kit.submission import expected_rows, score_submission, validate_submission
from kaggle_kit.task import Task

Answer = Literal[
    "Complete",
    "Notebook Timeout",
    "Notebook Threw Exception",
    "Notebook Exceeded Allowed Compute",
    "Submission CSV Not Found",
    "Submission Scoring Error",
]
NOT_MOUNTED = ("solution.csv", "defects.csv")
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")  # never credentials
SUBMISSION = "submission.csv"
POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What Kaggle would have answered.

    Attributes:
        answer: In Kaggle's words.
        detail: Why, where the answer is a failure.
        seconds: Run time of the kernel here.
        peak_memory_gb: Highest resident memory of all the kernel's processes here; 0 where the system does not tell.
        isolation: How the network was taken away.
        read_only: Whether writing to the inputs was impossible.
        warnings: What the rehearsal cannot show but Kaggle would stumble over.
        log: The kernel's output.
        submission: The file it wrote.
        score: Against the hidden solution, where there is one.
    """

    answer: Answer
    detail: str
    seconds: float
    peak_memory_gb: float
    isolation: str
    read_only: bool
    warnings: tuple[str, ...]
    log: Path
    submission: Path
    score: SplitScore | None


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How the child process ended."""

    returncode: int
    killed_for: Literal["", "time", "memory"]
    seconds: float
    peak_gb: float


def rehearse(
    kernel: Path,
    task: Task,
    *,
    data: Path,
    hidden: Path,
    bundle: Path,
    work: Path,
    time_limit_s: float | None = None,
    memory_gb: float | None = None,
    echo: Callable[[str], object] = print,
) -> Rehearsal:
    """Rehearse a submission kernel.

    Args:
        kernel: The folder with `kernel-metadata.json` and the script it names.
        task: The competition.
        data: The competition's data folder.
        hidden: Files that take the place of the visible test, and `solution.csv`.
        bundle: Attached as a dataset, beside the running kit's own wheel.
        work: The folder for mounts, log and submission; its earlier rehearsal is replaced.
        time_limit_s: Seconds; None: the task's limit.
        memory_gb: Gigabytes; None: the task's limit.
        echo: Where the kernel's output goes, line by line.

    Raises:
        RehearsalError: When there is no kernel to run, or `work` holds something else.
        DataError: When data or hidden test are incomplete.
    """
    script = _kernel_script(kernel)
    _check_inputs(task, data=data, hidden=hidden, bundle=bundle)
    root = _fresh_root(work)
    namespaces = _namespaces_work(root / "input")
    # Files that the kernel could write to are copied, never linked: they are the user's own.
    place = _link if namespaces else _copy
    competition = _mount_inputs(root, task, data=data, hidden=hidden, bundle=bundle, place=place)
    outcome = _run_kernel(
        root,
        script,
        namespaces=namespaces,
        time_limit_s=task.limits.hours * 3600 if time_limit_s is None else time_limit_s,
        memory_gb=task.limits.memory_gb if memory_gb is None else memory_gb,
        echo=echo,
    )
    submission = root / "working" / SUBMISSION
    answer, detail = _kaggle_answer(task, outcome, root / "kernel.log", submission, competition)
    return Rehearsal(
        answer=answer,
        detail=detail,
        seconds=outcome.seconds,
        peak_memory_gb=outcome.peak_gb,
        isolation="network namespace" if namespaces else "sockets blocked in Python",
        read_only=namespaces,
        warnings=(*_warnings(kernel), *_shortfalls(submission)),
        log=root / "kernel.log",
        submission=submission,
        score=_hidden_score(task, submission, hidden=hidden, data=data) if answer == "Complete" else None,
    )


def _kernel_script(kernel: Path) -> Path:
    path = kernel / "kernel-metadata.json"
    if not path.is_file():
        raise RehearsalError(f"{kernel} is no kernel (no kernel-metadata.json); give a folder such as kernels/submit")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        script = kernel / str(metadata["code_file"])
    except (ValueError, KeyError, TypeError):
        raise RehearsalError(f"{path} does not name a `code_file`; see kernels/submit for one that does") from None
    if metadata.get("enable_internet", True):
        raise RehearsalError(f"{path}: write `enable_internet: false`; Kaggle's own default is true")
    if script.suffix != ".py" or not script.is_file():
        raise RehearsalError(f"{path}: code_file {metadata['code_file']!r} is no Python script beside it")
    return script.resolve()


def _warnings(kernel: Path) -> tuple[str, ...]:
    """Return what only Kaggle's image would show: this child runs with home's packages."""
    metadata = json.loads((kernel / "kernel-metadata.json").read_text(encoding="utf-8"))
    sources = [str(source) for source in metadata.get("dataset_sources", [])]
    if any("onnxruntime" in source for source in sources):
        return ()
    return (
        f"{kernel / 'kernel-metadata.json'} attaches no onnxruntime dataset ({', '.join(sources) or 'none at all'}); "
        "Kaggle's image has no onnxruntime, see datasets/kaggle-kit-onnxruntime",
    )


def _shortfalls(submission: Path) -> Iterator[str]:
    """Yield what the kit's own kernel says it could not do, though Kaggle would be content."""
    report = read_report(submission)
    if "unfinished" in report:
        yield (
            f"the submission is unfinished ({report['unfinished']}): {report['images_of_priors']:,} of "
            f"{report['images']:,} images have the class priors"
        )
    elif report.get("broken"):
        yield f"{report['broken']:,} of {report['images']:,} images are broken and have the class priors"


def _fresh_root(work: Path) -> Path:
    marker = work / ".kaggle-kit-rehearsal"
    if work.exists() and any(work.iterdir()):
        if not marker.is_file():
            raise RehearsalError(f"{work} is not empty and no rehearsal; choose another folder")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    marker.touch()
    (work / "working").mkdir()
    (work / "input").mkdir()
    (work / "home").mkdir()
    return work.resolve()


def _check_inputs(task: Task, *, data: Path, hidden: Path, bundle: Path) -> None:
    """Refuse what is the user's slip and not the kernel's, before the kernel is blamed for it."""
    bundled = open_bundle(bundle).task.name
    if bundled != task.name:
        raise RehearsalError(
            f"{bundle} is a bundle for task {bundled!r}, not {task.name!r}; give the task's own bundle"
        )
    if not hidden.is_dir():
        raise DataError(f"there is no hidden test {str(hidden)!r}; give a folder with {_hidden_files(task)}")
    patterns = [task.submission.file, *task.images.test_files]
    missing = [pattern for pattern in patterns if not any(hidden.glob(pattern))]
    if missing:
        raise DataError(f"{hidden} lacks {some_of(missing)}; a hidden test is made of {_hidden_files(task)}")
    if (hidden / "solution.csv").is_file():
        read_labels(task, data)  # scoring needs them at the end; better refused now than after the run


def _hidden_files(task: Task) -> str:
    return f"{', '.join([task.submission.file, *task.images.test_files])} and, to be scored, solution.csv"


def _mount_inputs(
    root: Path, task: Task, *, data: Path, hidden: Path, bundle: Path, place: Callable[[Path, Path], object]
) -> Path:
    """Lay out inputs as Kaggle mounts them, and return the competition's folder."""
    competition = root / "input" / "competitions" / task.name
    replaced = {path.relative_to(data) for path in _visible_test(task, data)}
    for path in _files_below(data):
        if path.relative_to(data) not in replaced:
            place(path, competition / path.relative_to(data))
    for path in _files_below(hidden):
        if path.name not in NOT_MOUNTED:
            place(path, competition / path.relative_to(hidden))
    for path in _files_below(bundle):
        place(path, root / "input" / "datasets" / "owner" / "kaggle-kit-bundle" / path.name)
    wheels = root / "input" / "datasets" / "owner" / "kaggle-kit-wheel"
    wheels.mkdir(parents=True)
    build_wheel(wheels)
    return competition


def _visible_test(task: Task, data: Path) -> Iterator[Path]:
    images = task.images
    if images.format != "files":
        for found in data.glob(images.test):
            yield from [found] if found.is_file() else _files_below(found)
    else:
        folder = image_folder(task, "test", data)
        yield from (folder / f"{name}{images.suffix}" for name in listed_ids(task, "test", data).tolist())


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or a system without hard links
        shutil.copy2(path, target)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy2(path, target)


def _namespaces_work(folder: Path) -> bool:
    """Try for real: many containers have `unshare` and forbid it."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write("")
        script.flush()
        command = [*_in_namespaces(), sys.executable, sandbox.__file__, script.name, "--read-only", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _in_namespaces() -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--net", "--mount"]


def _run_kernel(
    root: Path,
    script: Path,
    *,
    namespaces: bool,
    time_limit_s: float,
    memory_gb: float,
    echo: Callable[[str], object],
) -> _Outcome:
    command = [sys.executable, "-u", sandbox.__file__, str(script)]
    command = (
        [*_in_namespaces(), *command, "--read-only", str(root / "input")]
        if namespaces
        else [*command, "--block-sockets"]
    )
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {
        ROOT_VARIABLE: str(root),
        TIME_LIMIT_VARIABLE: str(time_limit_s),
        "HOME": str(root / "home"),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KAGGLE_IS_COMPETITION_RERUN": "1",
    }
    log = root / "kernel.log"
    with log.open("wb") as output:
        started = time.monotonic()
        child = subprocess.Popen(
            command,
            cwd=root / "working",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return _watch(child, log, started, time_limit_s=time_limit_s, memory_gb=memory_gb, echo=echo)
        finally:
            if child.poll() is None:  # Ctrl-C here must not leave it running for hours
                _kill_session(child)
                child.wait()


def _watch(
    child: subprocess.Popen[bytes],
    log: Path,
    started: float,
    *,
    time_limit_s: float,
    memory_gb: float,
    echo: Callable[[str], object],
) -> _Outcome:
    killed_for: Literal["", "time", "memory"] = ""
    peak = 0.0
    with log.open("r", encoding="utf-8", errors="replace") as lines:
        while child.poll() is None:
            time.sleep(POLL_S)
            peak = max(peak, _memory_gb(child.pid))
            if not killed_for and time.monotonic() - started > time_limit_s:
                killed_for = "time"
            elif not killed_for and peak > memory_gb:
                killed_for = "memory"
            if killed_for:
                _kill_session(child)
            for line in lines:
                echo(f"    {line.rstrip()}")
        for line in lines:
            echo(f"    {line.rstrip()}")
    seconds = time.monotonic() - started
    return _Outcome(returncode=child.returncode, killed_for=killed_for, seconds=seconds, peak_gb=peak)


def _kill_session(child: subprocess.Popen[bytes]) -> None:
    """Kill the kernel and all that it started, whatever groups they made of themselves."""
    for pid, _ in _processes_of(child.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.kill()


def _processes_of(session: int) -> Iterator[tuple[int, int]]:
    """Yield (process id, resident pages) of a session's processes, from /proc; none where there is none."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            yield int(path.parent.name), int(fields[21])


def _memory_gb(session: int) -> float:
    """Return the resident memory of all processes of a session; 0 where the system does not tell."""
    pages = sum(own for _, own in _processes_of(session))
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 30) if pages else 0.0


def _kaggle_answer(task: Task, outcome: _Outcome, log: Path, submission: Path, competition: Path) -> tuple[Answer, str]:
    if outcome.killed_for == "time":
        return "Notebook Timeout", f"stopped after {outcome.seconds:.0f} s, its limit"
    if outcome.killed_for == "memory":
        return "Notebook Exceeded Allowed Compute", f"stopped at {outcome.peak_gb:.1f} GB of memory"
    if outcome.returncode != 0:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        if outcome.returncode < 0:
            return "Notebook Threw Exception", f"killed by signal {-outcome.returncode}"
        return "Notebook Threw Exception", text.splitlines()[-1] if text else f"exit code {outcome.returncode}"
    if not submission.is_file():
        return "Submission CSV Not Found", f"expected {submission.name} in the working folder"
    try:
        validate_submission(task, submission, rows=expected_rows(task, competition))
    except KitError as error:
        return "Submission Scoring Error", str(error)
    return "Complete", ""


def _hidden_score(task: Task, submission: Path, *, hidden: Path, data: Path) -> SplitScore | None:
    solution = hidden / "solution.csv"
    if not solution.is_file():
        return None
    return score_submission(task, submission, solution, train=read_labels(task, data), draws=DRAWS)
