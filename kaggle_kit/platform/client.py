"""The one seam to Kaggle: the few calls this kit makes, and what they answer.

`account.Account` makes them through the official `kaggle` package, `dry_run.DryRun` shows them and makes none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from kaggle_kit.errors import KaggleError

KernelPhase = Literal["queued", "running", "complete", "error", "cancelled"]
SubmissionPhase = Literal["pending", "complete", "error"]


class UnreachableError(KaggleError):
    """Kaggle does not answer, or only that it is busy: what is asked again later may be answered."""


@dataclass(frozen=True, kw_only=True)
class DatasetState:
    """A dataset, as Kaggle has it.

    Attributes:
        status: `ready`, `failed`, `deleted`, or one of several words for being processed.
        version: The version that a kernel gets now; None where Kaggle does not say.
        notes: {version: the message it was uploaded with}, of the versions that Kaggle lists; one may be newer than
            `version` while it is processed.
        description: As its page shows it.
        private: Nobody else sees it.
    """

    status: str
    version: int | None = None
    notes: dict[int, str]
    description: str = ""
    private: bool | None = None

    @property
    def ready(self) -> bool:
        """Whether a kernel that starts now gets the newest version."""
        return self.status == "ready"


@dataclass(frozen=True, kw_only=True)
class KernelState:
    """A kernel's newest session, or that of one version."""

    phase: KernelPhase
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class OwnKernel:
    """One of the user's kernels: owner/slug, and whether its last session had a GPU."""

    ref: str
    gpu: bool


@dataclass(frozen=True, kw_only=True)
class Push:
    """Kaggle's answer to a push.

    Attributes:
        version: None where Kaggle names none.
        url: Where its progress is shown.
        error: Kaggle's words; "" when it was taken.
        left_out: Sources that Kaggle did not attach.
    """

    version: int | None
    url: str = ""
    error: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Submissions: made today, and how many more are allowed today."""

    today: int
    left: int


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission to a competition; scores are None until, and unless, Kaggle publishes them."""

    number: int
    phase: SubmissionPhase
    description: str = ""
    error: str = ""
    public: float | None = None
    private: float | None = None


class Client(Protocol):
    """The calls; each raises KaggleError where Kaggle refuses, UnreachableError where it does not answer."""

    def owner(self) -> str:
        """Return the user's own name on Kaggle."""

    def find_dataset(self, ref: str) -> DatasetState | None:
        """Return a dataset's state; None where there is none that the user can see."""

    def create_dataset(self, folder: Path, *, public: bool) -> None:
        """Create a dataset of a folder's files by the dataset-metadata.json in it; sub-folders go as zip."""

    def version_dataset(self, folder: Path, *, message: str) -> None:
        """Replace a dataset's files by a folder's: a new version."""

    def own_kernels(self) -> list[OwnKernel]:
        """Return the user's kernels that ran last, newest first, not all."""

    def find_kernel(self, ref: str, *, version: int | None = None) -> KernelState | None:
        """Return the state of a kernel's newest session or of one version's; None where there is no such kernel."""

    def push_kernel(self, folder: Path, *, accelerator: str | None) -> Push:
        """Push the kernel in a folder, which starts a session."""

    def kernel_log(self, ref: str) -> str:
        """Return what a kernel printed."""

    def download_output(self, ref: str, folder: Path) -> list[Path]:
        """Write a kernel's output files into a folder."""

    def allowance(self, competition: str) -> Allowance:
        """Return how many submissions are left today."""

    def submit(self, competition: str, *, kernel: str, version: int, file: str, message: str) -> int:
        """Submit a kernel's version to a code competition; return the submission's number.

        Args:
            competition: Its name, as in its page's address.
            kernel: owner/slug.
            version: The kernel's, once it has run.
            file: The output file that is the submission.
            message: What the submission is called.
        """

    def submissions(self, competition: str) -> list[Submission]:
        """Return the newest submissions, not all."""

    def find_submission(self, number: int) -> Submission | None:
        """Return one submission; None where Kaggle does not know it (yet)."""


def connect() -> Client:
    """Return the client that really calls Kaggle.

    Raises:
        KaggleError: When there are no credentials, they are refused, or the `kaggle` package is missing.
    """
    from kaggle_kit.platform.account import Account

    return Account()
