"""A stand-in for Kaggle: remembers what was called, and answers as it is told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.client import (
    Allowance,
    DatasetState,
    KernelState,
    OwnKernel,
    Push,
    Submission,
    UnreachableError,
)
from kaggle_kit.platform.polling import Clock

READY = DatasetState(status="ready", version=3, notes={})


@dataclass
class PretendedKaggle:
    """What Kaggle has, and what it was asked to change."""

    datasets: dict[str, DatasetState | None] = field(default_factory=dict)
    kernels: dict[str, KernelState] = field(default_factory=dict)
    own: list[OwnKernel] = field(default_factory=list)
    pushed: Push = field(default_factory=lambda: Push(version=7, url="https://kaggle.example/k"))
    left: int = 5
    today: int = 5
    refuses: str = ""
    unanswered: bool = False
    arrives: bool = True
    listed: list[Submission] = field(default_factory=list)
    scored: Submission = field(
        default_factory=lambda: Submission(number=99, phase="complete", public=0.91, private=0.88)
    )
    changes: list[str] = field(default_factory=list)

    def owner(self) -> str:
        return "me"

    def find_dataset(self, ref: str) -> DatasetState | None:
        return self.datasets.get(ref)

    def create_dataset(self, folder: Path, *, public: bool) -> None:
        self.changes.append(f"create {'public' if public else 'private'}")
        values = json.loads((folder / "dataset-metadata.json").read_text())
        self.datasets[values["id"]] = DatasetState(
            status="ready", version=1, notes={}, description=values["description"], private=not public
        )

    def version_dataset(self, folder: Path, *, message: str) -> None:
        self.changes.append(f"version: {message}")
        before = self.datasets["me/my-data"]
        assert before is not None
        newest = (before.version or 0) + 1
        self.datasets["me/my-data"] = DatasetState(status="ready", version=newest, notes={newest: message})

    def own_kernels(self) -> list[OwnKernel]:
        return self.own

    def find_kernel(self, ref: str, *, version: int | None = None) -> KernelState | None:
        return self.kernels.get(ref)

    def push_kernel(self, folder: Path, *, accelerator: str | None) -> Push:
        self.changes.append("push")
        self.kernels.setdefault("me/kaggle-kit-submit", KernelState(phase="complete"))
        return self.pushed

    def kernel_log(self, ref: str) -> str:
        return "hello"

    def download_output(self, ref: str, folder: Path) -> list[Path]:
        (folder / "costs.json").write_text("{}")
        return [folder / "costs.json"]

    def allowance(self, competition: str) -> Allowance:
        return Allowance(today=self.today, left=self.left)

    def submit(self, competition: str, *, kernel: str, version: int, file: str, message: str) -> int:
        if self.refuses:
            raise KaggleError(self.refuses)
        if self.arrives:
            self.changes.append(f"submit {kernel} {version} {file}")
            self.listed.insert(0, replace(self.scored, description=message))
        if self.unanswered:
            raise UnreachableError("no answer")
        return self.scored.number

    def submissions(self, competition: str) -> list[Submission]:
        return self.listed

    def find_submission(self, number: int) -> Submission | None:
        return self.scored


def patient_clock() -> Clock:
    """Return a clock that waits no time."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return Clock(now=lambda: now[0], sleep=sleep)
