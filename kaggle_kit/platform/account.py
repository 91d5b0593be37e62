"""The client that really calls Kaggle, through the official `kaggle` package.

That package logs in when it is imported, prints, and ends the process where it cannot: so it is imported here only,
after credentials were found, with its prints on standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kaggle_kit.errors import KaggleError, brief
from kaggle_kit.platform.client import (
    Allowance,
    DatasetState,
    KernelPhase,
    KernelState,
    OwnKernel,
    Push,
    Submission,
    SubmissionPhase,
    UnreachableError,
)
from kaggle_kit.platform.credentials import HOW, find_credentials
from kaggle_kit.platform.rules import is_gpu

INSTALL = "pip install 'kaggle_kit[kaggle]'"
_OWN_KERNELS = 20  # of those that ran last
_KERNEL_PHASES: dict[str, KernelPhase] = {
    "QUEUED": "queued",
    "NEW_SCRIPT": "queued",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "ERROR": "error",
    "CANCEL_REQUESTED": "cancelled",
    "CANCEL_ACKNOWLEDGED": "cancelled",
}
_SUBMISSION_PHASES: dict[str, SubmissionPhase] = {"PENDING": "pending", "COMPLETE": "complete", "ERROR": "error"}
_SECRET = re.compile(r"(Bearer|Basic)\s+[^\s'\"]+|KGAT_\w+", re.IGNORECASE)


class _AbsentError(KaggleError):
    """Kaggle has no such thing, or hides it from this user: 404 and 403."""


class Account:
    """The user's account on Kaggle: see `client.Client` for what each call does."""

    def __init__(self, api: Any = None) -> None:
        """Log in.

        Args:
            api: A KaggleApi that is logged in; None: a new one, by the credentials that are found.

        Raises:
            KaggleError: When there are no credentials, they are refused, or the `kaggle` package is missing.
        """
        self._api = _log_in() if api is None else api

    def owner(self) -> str:
        """Return the user's own name on Kaggle."""
        return str(self._api.config_values.get("username", ""))

    def find_dataset(self, ref: str) -> DatasetState | None:
        """Return a dataset's state; None where there is none that the user can see."""
        owner, slug = ref.split("/")
        try:
            with _asking(f"dataset {ref}"):
                status = self._api.dataset_status(ref)
        except _AbsentError:
            return None
        request = _sdk("datasets.types.dataset_api_service").ApiGetDatasetRequest()
        request.owner_slug, request.dataset_slug = owner, slug
        with _asking(f"dataset {ref}"), self._api.build_kaggle_client() as kaggle:
            found = kaggle.datasets.dataset_api_client.get_dataset(request)
        return DatasetState(
            status=status,
            version=found.current_version_number or None,
            notes={one.version_number: one.version_notes for one in found.versions or () if one is not None},
            description=found.description,
            private=found.is_private,
        )

    def create_dataset(self, folder: Path, *, public: bool) -> None:
        """Create a dataset of a folder's files."""
        with _asking(f"creating the dataset of {folder}"):
            _check_upload(self._api.dataset_create_new(str(folder), public=public, dir_mode="zip"))

    def version_dataset(self, folder: Path, *, message: str) -> None:
        """Replace a dataset's files by a folder's."""
        with _asking(f"a new version of {folder}"):
            _check_upload(self._api.dataset_create_version(str(folder), message, dir_mode="zip"))

    def own_kernels(self) -> list[OwnKernel]:
        """Return the user's kernels that ran last."""
        with _asking("your kernels"):
            found = self._api.kernels_list(mine=True, sort_by="dateRun", page_size=_OWN_KERNELS) or []
        return [OwnKernel(ref=one.ref, gpu=bool(one.enable_gpu) or is_gpu(one.machine_shape)) for one in found if one]

    def find_kernel(self, ref: str, *, version: int | None = None) -> KernelState | None:
        """Return a kernel's state, or that of one version."""
        name = ref if version is None else f"{ref}/{version}"
        try:
            with _asking(f"kernel {name}"):
                found = self._api.kernels_status(name)
        except _AbsentError:
            return None
        return KernelState(phase=_KERNEL_PHASES.get(found.status.name, "running"), message=found.failure_message)

    def push_kernel(self, folder: Path, *, accelerator: str | None) -> Push:
        """Push the kernel in a folder."""
        with _asking(f"pushing {folder}"):
            answer = self._api.kernels_push(str(folder), acc=accelerator)
        kinds = ("dataset", "competition", "kernel", "model")
        left_out = [f"{kind} {one}" for kind in kinds for one in getattr(answer, f"invalid_{kind}_sources") or ()]
        return Push(
            version=answer.version_number or None,
            url=answer.url,
            error=brief(KaggleError(answer.error)) if answer.error else "",
            left_out=tuple(left_out),
        )

    def kernel_log(self, ref: str) -> str:
        """Return what a kernel printed."""
        with _asking(f"the log of {ref}"):
            return str(self._api.kernels_logs(ref))

    def download_output(self, ref: str, folder: Path) -> list[Path]:
        """Write a kernel's output files into a folder; names that lead out of it are refused."""
        with _asking(f"the output of {ref}"):
            paths, _ = self._api.kernels_output(ref, str(folder), force=True)
        return [Path(path) for path in paths]

    def allowance(self, competition: str) -> Allowance:
        """Return how many submissions are left today."""
        with _asking(f"competition {competition}"):
            limits = self._api.competition_get_submission_limits(competition)
        return Allowance(today=limits.num_today, left=limits.num_allowed_now)

    def submit(self, competition: str, *, kernel: str, version: int, file: str, message: str) -> int:
        """Submit a kernel's version; return the submission's number, 0 where Kaggle names none."""
        with _asking(f"submitting {kernel} version {version}"):
            answer = self._api.competition_submit_code(file, message, competition, kernel, version, quiet=True)
        return int(answer.ref or 0)

    def submissions(self, competition: str) -> list[Submission]:
        """Return the newest submissions."""
        with _asking(f"submissions to {competition}"):
            found = self._api.competition_submissions(competition, page_size=50) or []
        return [_submission(one) for one in found if one]

    def find_submission(self, number: int) -> Submission | None:
        """Return one submission."""
        try:
            with _asking(f"submission {number}"):
                return _submission(self._api.get_submission(number))
        except _AbsentError:
            return None


def _log_in() -> Any:
    source = find_credentials()
    said = io.StringIO()  # what the package prints: its long help, or with VERBOSE set every header of a request
    try:
        with _asking("logging in"), contextlib.redirect_stdout(said):
            api = importlib.import_module("kaggle.api.kaggle_api_extended").KaggleApi()
            api.args = [word for word in api.args if word != "--verbose"]
            api.authenticate()
    except ModuleNotFoundError as error:
        raise KaggleError(f"this command needs the package {error.name}; {INSTALL}") from None
    except SystemExit:
        raise KaggleError(f"Kaggle refuses the credentials of {source}: they are wrong or expired; {HOW}") from None
    return api


def _sdk(module: str) -> Any:
    return importlib.import_module(f"kagglesdk.{module}")


def _check_upload(answer: Any) -> None:
    if str(answer.status).lower() != "ok":
        raise KaggleError(f"Kaggle refuses the dataset: {brief(KaggleError(answer.error or answer.status))}")


def _submission(one: Any) -> Submission:
    return Submission(
        number=one.ref,
        phase=_SUBMISSION_PHASES.get(one.status.name, "pending"),
        description=one.description,
        error=one.error_description.strip(),
        public=_score(one.public_score),
        private=_score(one.private_score),
    )


def _score(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn what the package and its connection raise into one line, and its prints to standard error."""
    requests = importlib.import_module("requests")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KaggleError:
        raise
    except requests.exceptions.HTTPError as error:
        raise _http_error(what, error) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise UnreachableError(f"Kaggle cannot be reached ({what}): {_words(error)}; call this again later") from None
    except requests.exceptions.RequestException as error:
        raise KaggleError(f"{what}: the request failed: {_words(error)}; check the token and the proxy") from None
    except (ValueError, TypeError) as error:  # as the package refuses
        kind = _AbsentError if "Cannot access kernel" in str(error) else KaggleError
        raise kind(f"{what}: {_words(error)}") from None


def _http_error(what: str, error: Any) -> KaggleError:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return KaggleError(f"{what}: Kaggle refuses the credentials (401); {HOW}")
    if status in (403, 404):
        return _AbsentError(f"{what}: Kaggle answers {status}: {_words(error)}; it is not there, or not yours to use")
    if status == 429 or (status is not None and status >= 500):
        return UnreachableError(f"{what}: Kaggle is busy ({status}); call this again later")
    return KaggleError(f"{what}: Kaggle answers {status}: {_words(error)}")


def _words(error: Exception) -> str:
    return _SECRET.sub("***", brief(error, 400))[:200]
