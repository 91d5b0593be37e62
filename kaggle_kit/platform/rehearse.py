"""Run a submission kernel at home as Kaggle will: offline, inputs read-only, on the visible and on the hidden test.

Kaggle's Save & Run All meets the visible test, and a kernel that fails there never becomes a submission. What costs one
is the rerun of the whole kernel on the hidden test, whose failures return no log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kaggle_kit.errors import KitError, RehearsalError
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.machine import memory_bytes, num_cores
from kaggle_kit.platform.answers import (
    SUBMISSION,
    Answer,
    kaggle_answer,
    log_warnings,
    report_warnings,
    solution_notes,
    submission_fault,
)
from kaggle_kit.platform.environments import layer_environment
from kaggle_kit.platform.hard_cases import HardCase, Injection, changed_answers, find_cases
from kaggle_kit.platform.mounting import Inputs, Layout, check_inputs, wheel_warnings
from kaggle_kit.platform.processes import GB
from kaggle_kit.platform.script import check_kernel, metadata_warnings, runnable
from kaggle_kit.platform.session import RunKind, SessionLimits, can_isolate, run_session
from kaggle_kit.platform.work_folder import claimed
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.scores import DRAWS, SplitScore
from kaggle_kit.submission import expected_rows, score_submission
from kaggle_kit.submission_checks import look_at_submission
from kaggle_kit.task import Task

Only = Literal["interactive", "visible", "hidden"]
CORES = 4  # of a kernel's machine
DISK_GB = 20.0  # of its working folder


@dataclass(frozen=True, kw_only=True)
class RehearsedRun:
    """One run of the kernel.

    Attributes:
        kind: On which test, and as which of Kaggle's sessions.
        answer: In Kaggle's words.
        detail: Why, where the answer is a failure.
        seconds: Run time here.
        peak_memory_gb: Highest resident memory of all the kernel's processes here; 0 where the system does not tell.
        peak_disk_gb: The most that the working folder took of the disk.
        warnings: What is strange about it, though the answer may be "Complete".
        log: The kernel's output.
        submission: The file it wrote.
    """

    kind: RunKind
    answer: Answer
    detail: str
    seconds: float
    peak_memory_gb: float
    peak_disk_gb: float
    warnings: tuple[str, ...]
    log: Path
    submission: Path


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """How the kernel met a hard case.

    Attributes:
        case: Its name.
        injection: What was done to the hidden test or the machine, or why nothing was.
        run: The run; None where the case does not apply.
        changed: Lines of the submission that differ from the plain rehearsal's.
        changed_elsewhere: Those of them that are about images that the case did not touch.
        lines: Lines of the submission.
    """

    case: str
    injection: Injection
    run: RehearsedRun | None = None
    changed: int = 0
    changed_elsewhere: int = 0
    lines: int = 0


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What Kaggle would have answered; seconds, peaks, log and submission are those of the last plain run.

    Attributes:
        runs: The visible run, then the hidden one, which a failure in the first leaves out.
        cases: Hard cases, in turn.
        isolation: How the network was taken away.
        read_only: Whether writing to the inputs was impossible.
        cores: How many the kernel had.
        warnings: What Kaggle would stumble over though the answer is "Complete", or what it would quietly score as 0.
        notes: In what this machine is less than Kaggle's.
        score: Against the hidden solution, where there is one.
    """

    runs: tuple[RehearsedRun, ...]
    cases: tuple[CaseResult, ...]
    isolation: str
    read_only: bool
    cores: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    score: SplitScore | None

    @property
    def last(self) -> RehearsedRun:
        """The plain run that decides the answer."""
        return self.runs[-1]

    @property
    def answer(self) -> Answer:
        """In Kaggle's words."""
        return self.last.answer

    @property
    def detail(self) -> str:
        """In which run it failed and why; empty where it is complete."""
        return self.last.detail

    @property
    def seconds(self) -> float:
        """Run time here."""
        return self.last.seconds

    @property
    def peak_memory_gb(self) -> float:
        """Highest resident memory here."""
        return self.last.peak_memory_gb

    @property
    def log(self) -> Path:
        """The kernel's output."""
        return self.last.log

    @property
    def submission(self) -> Path:
        """The file the kernel wrote."""
        return self.last.submission

    @property
    def failed_cases(self) -> tuple[str, ...]:
        """The hard cases that would have cost a submission."""
        return tuple(one.case for one in self.cases if one.run is not None and one.run.answer != "Complete")

    @property
    def would_fail(self) -> bool:
        """Whether a submission would have been lost, in the plain runs or in a hard case."""
        return self.answer != "Complete" or bool(self.failed_cases)


def rehearse(
    kernel: Path,
    task: Task,
    *,
    data: Path,
    work: Path,
    hidden: Path | None = None,
    bundle: Path | None = None,
    attach: Sequence[Path] = (),
    layout: Layout = "new",
    only: Only | None = None,
    inject: Sequence[str] = (),
    time_limit_s: float | None = None,
    memory_gb: float | None = None,
    disk_gb: float = DISK_GB,
    cores: int | None = None,
    python: Path | None = None,
    echo: Callable[[str], object] = print,
) -> Rehearsal:
    """Rehearse a submission kernel.

    Args:
        kernel: The folder with `kernel-metadata.json` and the script or notebook it names.
        task: The competition.
        data: The competition's data folder, with its visible test.
        work: The folder for mounts, logs and submissions; its earlier rehearsal is replaced.
        hidden: Files that take the place of the visible test, and `solution.csv`; None only where it is not run.
        bundle: Attached as a dataset.
        attach: Further folders, each attached as a dataset of its name. Unless one holds the kit's wheel, the wheel of
            the running kit is attached too.
        layout: Where inputs are mounted: as today, or in the older flat way.
        only: One of the runs alone; None: the visible test, then the hidden one.
        inject: Hard cases, each a run on its own copy of the hidden test once the plain runs are complete.
        time_limit_s: Seconds of each run; None: the task's limit.
        memory_gb: Gigabytes; None: the task's limit.
        disk_gb: Gigabytes of the working folder.
        cores: How many the kernel gets; None: 4, as on Kaggle, or as many as there are.
        python: The interpreter that runs the kernel, in a layer of its own that takes what the kernel installs; None:
            this one.
        echo: Where the kernel's output goes, line by line.

    Raises:
        RehearsalError: When there is no kernel to run, `work` holds something else, or another rehearsal runs there.
        DataError: When data or hidden test are incomplete.
    """
    kinds: tuple[RunKind, ...] = ("visible", "hidden") if only is None else (only,)
    if "hidden" in kinds and hidden is None:
        raise RehearsalError(
            "there is no hidden test to run; give its folder (--hidden), have one made of train images "
            "(--hidden-images), or rehearse the visible test alone (--only visible)"
        )
    cases = find_cases(inject)
    if cases and "hidden" not in kinds:
        raise RehearsalError("hard cases are made of the hidden test; rehearse it too (leave --only out)")
    inputs = Inputs(task=task, data=data, bundle=bundle, attached=tuple(attach), layout=layout)
    labels = _check(kernel, inputs, hidden=hidden if "hidden" in kinds else None, visible=set(kinds) != {"hidden"})
    unscored = tuple(solution_notes(task, hidden)) if hidden and "hidden" in kinds else ()
    limits = SessionLimits(
        time_s=task.limits.hours * 3600 if time_limit_s is None else time_limit_s,
        memory_gb=task.limits.memory_gb if memory_gb is None else memory_gb,
        disk_gb=disk_gb,
        cores=min(CORES if cores is None else cores, num_cores()),
    )
    with claimed(work) as (root, left):
        if left:
            echo(f"{left} process(es) of a killed rehearsal were still at work in {work}, and are ended")
        isolated = can_isolate(root)
        stage = _Stage(
            code=check_kernel(kernel),
            inputs=replace(inputs, copies=not isolated),
            hidden=hidden,
            limits=limits,
            isolated=isolated,
            python=python,
            echo=echo,
        )
        runs = _plain_runs(stage, kinds, root)
        complete = runs[-1].answer == "Complete"
        results = [_run_case(stage, case, runs[-1], root) for case in cases if complete]
    return Rehearsal(
        runs=tuple(runs),
        cases=tuple(results),
        isolation="network namespace" if isolated else "sockets blocked in Python",
        read_only=isolated,
        cores=limits.cores,
        warnings=(*metadata_warnings(kernel), *wheel_warnings(inputs.attached), *_told(runs, results)),
        notes=(*_notes(limits, asked=cores), *unscored),
        score=_hidden_score(task, runs[-1], hidden, labels) if complete else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """All that the runs of a rehearsal share."""

    code: Path
    inputs: Inputs
    hidden: Path | None
    limits: SessionLimits
    isolated: bool
    python: Path | None
    echo: Callable[[str], object]

    def run(self, kind: RunKind, root: Path, case: HardCase | None = None) -> tuple[RehearsedRun | None, Injection]:
        """Lay out inputs, do to them what a hard case does, and run the kernel; None where the case does not apply."""
        for name in ("input", "working", "outside"):
            (root / name).mkdir(parents=True)
        competition = self.inputs.lay_out(root / "input", self.hidden if kind == "hidden" else None)
        injection = case.inject(self.inputs.task, competition, root / "outside") if case else Injection()
        if injection.skipped:
            return None, injection
        python = Path(sys.executable) if self.python is None else layer_environment(self.python, root / "python")
        session = run_session(
            root,
            runnable(self.code, root / "outside"),
            kind=kind,
            limits=self.limits,
            isolated=self.isolated,
            python=python,
            variables=injection.variables,
            echo=_say_nothing if case else self.echo,  # a dozen logs on the screen would hide the answers
        )
        log, submission = root / "kernel.log", root / "working" / SUBMISSION
        answer, detail = kaggle_answer(session, self.limits, log=log, submission=submission)
        warnings = [*log_warnings(log), *report_warnings(submission)]
        fault = submission_fault(self.inputs.task, submission, competition) if answer == "Complete" else ""
        if fault and kind == "hidden":
            answer, detail = "Submission Scoring Error", fault
        elif fault:
            warnings.append(f"what it wrote would not be scored ({fault}); of the visible run, Kaggle scores nothing")
        elif answer == "Complete" and kind == "hidden" and case is None:
            warnings += _look(self.inputs, submission, competition)
        return RehearsedRun(
            kind=kind,
            answer=answer,
            detail=f"in the {kind} run: {detail}" if detail else "",
            seconds=session.seconds,
            peak_memory_gb=session.peak_memory_gb,
            peak_disk_gb=session.peak_disk_gb,
            warnings=tuple(warnings),
            log=log,
            submission=submission,
        ), injection


def _check(kernel: Path, inputs: Inputs, *, hidden: Path | None, visible: bool) -> Labels | None:
    """Refuse what is the user's slip; return train's labels where the score will need them."""
    check_kernel(kernel)
    check_inputs(inputs, hidden=hidden, visible=visible)
    scored = hidden is not None and (hidden / "solution.csv").is_file()
    return read_labels(inputs.task, inputs.data) if scored else None  # better refused now than after the run


def _plain_runs(stage: _Stage, kinds: Sequence[RunKind], root: Path) -> list[RehearsedRun]:
    runs: list[RehearsedRun] = []
    for kind in kinds:
        if len(kinds) > 1:
            stage.echo(f"{kind} test:")
        run, _ = stage.run(kind, root / kind)
        assert run is not None
        runs.append(run)
        if run.answer != "Complete":
            break
    return runs


def _run_case(stage: _Stage, case: HardCase, plain: RehearsedRun, root: Path) -> CaseResult:
    run, injection = stage.run("hidden", root / "cases" / case.name, case)
    ended = f"{run.answer}, {run.seconds:,.1f} s" if run else "does not apply"
    stage.echo(f"hard case {case.name} ({case.about}): {ended}")
    if run is None or run.answer != "Complete":
        return CaseResult(case=case.name, injection=injection, run=run)
    changed, elsewhere, lines = changed_answers(stage.inputs.task, run.submission, plain.submission, injection.touched)
    return CaseResult(
        case=case.name,
        injection=injection,
        run=run,
        changed=changed,
        changed_elsewhere=elsewhere,
        lines=lines,
    )


def _look(inputs: Inputs, submission: Path, competition: Path) -> tuple[str, ...]:
    priors = open_bundle(inputs.bundle).priors if inputs.bundle else None
    task = inputs.task
    sample = competition / task.submission.file
    return look_at_submission(task, submission, rows=expected_rows(task, competition), sample=sample, priors=priors)


def _told(runs: Sequence[RehearsedRun], results: Sequence[CaseResult]) -> Iterator[str]:
    for run in runs:
        yield from (f"{run.kind} run: {warning}" for warning in run.warnings)
    for one in results:
        if one.changed_elsewhere and one.run is not None:
            why = "; ".join(one.run.warnings) or "are images joined by place, not by id?"
            yield (
                f"hard case {one.case}: {one.changed_elsewhere:,} of {one.lines:,} answers changed that it did not "
                f"touch ({why})"
            )


def _say_nothing(_line: str) -> None:
    pass


def _notes(limits: SessionLimits, *, asked: int | None) -> Iterator[str]:
    wanted = CORES if asked is None else asked
    if limits.cores < wanted:
        cores = f"{limits.cores} core{'s' * (limits.cores > 1)}"
        yield f"{cores} here in place of {wanted}: it takes longer here than it would with them"
    whole = memory_bytes()
    if whole is not None and whole / GB < limits.memory_gb:
        yield f"this machine has {whole / GB:.0f} GB of memory, less than the limit of {limits.memory_gb:g} GB"


def _hidden_score(task: Task, run: RehearsedRun, hidden: Path | None, labels: Labels | None) -> SplitScore | None:
    if run.kind != "hidden" or hidden is None or labels is None:
        return None
    try:
        return score_submission(task, run.submission, hidden / "solution.csv", train=labels, draws=DRAWS)
    except KitError as error:
        raise RehearsalError(f"the kernel ended well, but what it wrote cannot be scored: {error}") from None
