"""The real client, with the `kaggle` package's API faked: no network, and no account."""

from __future__ import annotations

import inspect
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.account import Account
from kaggle_kit.platform.client import KernelState, OwnKernel, Push, Submission, UnreachableError

requests = pytest.importorskip("requests", reason="the kaggle package is not installed")
enums = pytest.importorskip("kagglesdk.kernels.types.kernels_enums", reason="the kaggle package is not installed")
statuses = pytest.importorskip("kagglesdk.competitions.types.submission_status")


def refusal(status: int, text: str = "no") -> Exception:
    error: Exception = requests.exceptions.HTTPError(text, response=SimpleNamespace(status_code=status))
    return error


def raising(error: Exception):
    def call(*_arguments: object, **_named: object) -> None:
        raise error

    return call


def submission(**more: object) -> SimpleNamespace:
    values = {"ref": 9, "status": statuses.SubmissionStatus.COMPLETE, "description": "x", "error_description": ""}
    return SimpleNamespace(**(values | {"public_score": "0.91", "private_score": ""} | more))


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("QUEUED", "queued"),
        ("NEW_SCRIPT", "queued"),
        ("RUNNING", "running"),
        ("COMPLETE", "complete"),
        ("ERROR", "error"),
        ("CANCEL_REQUESTED", "cancelled"),
        ("CANCEL_ACKNOWLEDGED", "cancelled"),
    ],
)
def test_every_status_of_the_package_is_a_phase(status: str, phase: str) -> None:
    asked = []

    def kernels_status(name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(status=enums.KernelWorkerStatus[status], failure_message="why")

    state = Account(SimpleNamespace(kernels_status=kernels_status)).find_kernel("me/kernel", version=3)
    assert state == KernelState(phase=phase, message="why")
    assert asked == ["me/kernel/3"]


def test_the_statuses_are_all_that_the_package_has() -> None:
    assert len(enums.KernelWorkerStatus) == 7 and len(statuses.SubmissionStatus) == 3


@pytest.mark.parametrize("error", [refusal(404), refusal(403), ValueError("Cannot access kernel 'me/kernel'")])
def test_what_is_not_there_or_hidden_is_none(error: Exception) -> None:
    api = SimpleNamespace(
        kernels_status=raising(error), dataset_status=raising(refusal(403)), get_submission=raising(refusal(404))
    )
    account = Account(api)
    assert account.find_kernel("me/kernel") is None
    assert account.find_dataset("me/my-data") is None
    assert account.find_submission(9) is None


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (refusal(401), KaggleError, r"Kaggle refuses the credentials \(401\); get a token at"),
        (refusal(400, "bad"), KaggleError, "kernel me/kernel: Kaggle answers 400: bad"),
        (refusal(429), UnreachableError, "Kaggle is busy"),
        (refusal(503), UnreachableError, "Kaggle is busy"),
        (requests.exceptions.ConnectionError("no route"), UnreachableError, "cannot be reached .* no route"),
        (requests.exceptions.Timeout("slow"), UnreachableError, "cannot be reached"),
        (requests.exceptions.InvalidHeader("odd"), KaggleError, "check the token"),
        (ValueError("some\nlines"), KaggleError, "kernel me/kernel: some lines"),
    ],
)
def test_what_the_package_raises_is_one_line(error: Exception, kind: type[KaggleError], message: str) -> None:
    with pytest.raises(KaggleError, match=message) as raised:
        Account(SimpleNamespace(kernels_status=raising(error))).find_kernel("me/kernel")
    assert type(raised.value) is kind and "\n" not in str(raised.value)


@pytest.mark.parametrize("secret", ["Bearer abcdef0123456789", "KGAT_abcdef0123456789", "Basic YW5uYTpzZWNyZXQ="])
def test_no_message_shows_a_token(secret: str) -> None:
    error = requests.exceptions.InvalidHeader(f"Authorization: {secret} is odd")
    with pytest.raises(KaggleError, match=r"\*\*\*") as raised:
        Account(SimpleNamespace(kernels_status=raising(error))).find_kernel("me/kernel")
    assert secret.split()[-1] not in str(raised.value)


def test_what_the_package_prints_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    def kernels_logs(ref: str) -> str:
        sys.stdout.write("Warning: a new version of the package is there\n")
        return f"log of {ref}"

    assert Account(SimpleNamespace(kernels_logs=kernels_logs)).kernel_log("me/kernel") == "log of me/kernel"
    printed = capsys.readouterr()
    assert printed.out == "" and "new version" in printed.err


def test_a_dataset_s_versions_come_with_their_messages() -> None:
    versions = [SimpleNamespace(version_number=number, version_notes=f"note {number}") for number in (2, 1)]
    found = SimpleNamespace(current_version_number=2, versions=versions, description="d", is_private=True)
    datasets = SimpleNamespace(dataset_api_client=SimpleNamespace(get_dataset=lambda request: found))
    api = SimpleNamespace(
        dataset_status=lambda ref: "ready", build_kaggle_client=lambda: nullcontext(SimpleNamespace(datasets=datasets))
    )
    state = Account(api).find_dataset("me/my-data")
    assert state is not None and state.ready and state.private
    assert (state.version, state.notes, state.description) == (2, {2: "note 2", 1: "note 1"}, "d")


def test_a_dataset_is_private_unless_said_and_keeps_its_folders(tmp_path: Path) -> None:
    calls: list[object] = []

    def create(*arguments: object, **named: object) -> SimpleNamespace:
        calls.append((arguments, named))
        return SimpleNamespace(status="ok", error="")

    account = Account(SimpleNamespace(dataset_create_new=create, dataset_create_version=create))
    account.create_dataset(tmp_path, public=False)
    account.version_dataset(tmp_path, message="better")
    assert calls == [
        ((str(tmp_path),), {"public": False, "dir_mode": "zip"}),
        ((str(tmp_path), "better"), {"dir_mode": "zip"}),
    ]


def test_a_dataset_that_kaggle_answers_with_an_error_is_refused(tmp_path: Path) -> None:
    api = SimpleNamespace(dataset_create_new=lambda *_, **__: SimpleNamespace(status="error", error="title in use"))
    with pytest.raises(KaggleError, match="Kaggle refuses the dataset: title in use"):
        Account(api).create_dataset(tmp_path, public=False)


def test_a_push_says_what_was_left_out(tmp_path: Path) -> None:
    answer = SimpleNamespace(
        version_number=4,
        url="https://kaggle.example",
        error="",
        invalid_dataset_sources=["me/gone"],
        invalid_competition_sources=["digits"],
        invalid_kernel_sources=None,
        invalid_model_sources=[],
    )
    account = Account(SimpleNamespace(kernels_push=lambda folder, acc: answer))
    assert account.push_kernel(tmp_path, accelerator=None) == Push(
        version=4, url="https://kaggle.example", left_out=("dataset me/gone", "competition digits")
    )
    answer.error, answer.version_number = "Maximum batch GPU session\ncount reached", 0
    pushed = account.push_kernel(tmp_path, accelerator="NvidiaTeslaT4")
    assert (pushed.version, pushed.error) == (None, "Maximum batch GPU session count reached")


def test_kernels_count_as_gpu_by_the_switch_or_the_machine() -> None:
    kernels = [
        SimpleNamespace(ref="me/old", enable_gpu=True, machine_shape=""),
        SimpleNamespace(ref="me/new", enable_gpu=None, machine_shape="NvidiaTeslaT4"),
        SimpleNamespace(ref="me/cpu", enable_gpu=False, machine_shape=None),
        None,
    ]
    account = Account(SimpleNamespace(kernels_list=lambda **named: kernels))
    assert account.own_kernels() == [
        OwnKernel(ref="me/old", gpu=True),
        OwnKernel(ref="me/new", gpu=True),
        OwnKernel(ref="me/cpu", gpu=False),
    ]


def test_scores_are_numbers_or_none() -> None:
    api = SimpleNamespace(
        get_submission=lambda number: submission(),
        competition_submissions=lambda competition, page_size: [submission(error_description=" late "), None],
        competition_get_submission_limits=lambda name: SimpleNamespace(num_today=2, num_allowed_now=3),
    )
    account = Account(api)
    assert account.find_submission(9) == Submission(number=9, phase="complete", description="x", public=0.91)
    assert [one.error for one in account.submissions("digits")] == ["late"]
    assert (account.allowance("digits").today, account.allowance("digits").left) == (2, 3)


def test_a_submission_names_kernel_and_version() -> None:
    calls: list[object] = []

    def send(*arguments: object, **named: object) -> SimpleNamespace:
        calls.append((arguments, named))
        return SimpleNamespace(ref=12)

    account = Account(SimpleNamespace(competition_submit_code=send))
    assert account.submit("digits", kernel="me/k", version=7, file="submission.csv", message="m") == 12
    assert calls == [(("submission.csv", "m", "digits", "me/k", 7), {"quiet": True})]


def test_every_call_exists_in_the_package_with_these_names() -> None:
    api = pytest.importorskip("kaggle.api.kaggle_api_extended").KaggleApi
    takes = {
        "dataset_status": (),
        "dataset_create_new": ("public", "dir_mode"),
        "dataset_create_version": ("dir_mode",),
        "kernels_list": ("mine", "sort_by", "page_size"),
        "kernels_status": (),
        "kernels_push": ("acc",),
        "kernels_logs": (),
        "kernels_output": ("force",),
        "competition_get_submission_limits": (),
        "competition_submit_code": ("quiet",),
        "competition_submissions": ("page_size",),
        "get_submission": (),
        "build_kaggle_client": (),
    }
    for name, named in takes.items():
        assert set(named) <= set(inspect.signature(getattr(api, name)).parameters), name
