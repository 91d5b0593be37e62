"""Submit a kernel to a code competition: pushed, waited for, submitted in that very version once, scored.

What was done is noted in the kernel's folder before the next thing is: killed anywhere and called again, it goes on
with the version that was pushed, and a version is never submitted twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kaggle_kit.errors import KaggleError
from kaggle_kit.files import replacing
from kaggle_kit.platform.client import Client, Submission
from kaggle_kit.platform.kernels import RUN_LIMIT_S, check_attached, check_kernel, push_kernel, wait_for_kernel
from kaggle_kit.platform.metadata import KernelMetadata, read_kernel
from kaggle_kit.platform.polling import Clock, wait_until
from kaggle_kit.platform.publish import check_owner, refuse
from kaggle_kit.platform.rules import KERNEL_METADATA
from kaggle_kit.settings import build, plain

STATE_FILE = ".kaggle-kit-submitted.json"  # this kit's own note in the kernel's folder; never pushed
SCORE_LIMIT_S = 14 * 3600.0  # the hidden rerun takes as long as the competition allows, 12 h at most, and may be queued
MARK = "kaggle_kit version"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """How far a submission is; also what is noted in the folder.

    Attributes:
        ref: The kernel, owner/slug.
        competition: Its slug.
        key: Of what was pushed: code, metadata, and the datasets' versions.
        version: That was pushed; 0: none yet.
        sent: Whether it was submitted, or may have been.
        number: The submission's; 0: unknown.
    """

    ref: str
    competition: str
    key: str
    version: int = 0
    sent: bool = False
    number: int = 0


def submit_kernel(
    folder: Path,
    client: Client,
    *,
    competition: str,
    say: Callable[[str], None],
    version: int | None = None,
    file: str = "submission.csv",
    message: str = "",
    accelerator: str | None = None,
    clock: Clock | None = None,
    dry_run: bool = False,
) -> Submission:
    """Submit a kernel's version and wait for its score.

    Args:
        folder: The kernel's.
        client: Calls Kaggle.
        competition: Its slug.
        say: Called with a line for each step.
        version: Submit this one, which was pushed already; None: push the folder as it is.
        file: What the kernel writes.
        message: Shown beside the submission.
        accelerator: In place of the metadata's.
        clock: The time; None: the machine's.
        dry_run: The client pretends: nothing is noted, and no version is known.

    Returns:
        The submission, scored.

    Raises:
        KaggleError: When something is refused before it is pushed, the kernel fails, no submission is left today, or
            the rerun ends without a score.
    """
    kernel = read_kernel(folder, internet=False)
    if competition not in kernel.competitions:
        raise KaggleError(
            f"{folder / KERNEL_METADATA} does not attach {competition!r}; add it to `competition_sources`, or choose "
            f"another: {', '.join(kernel.competitions) or 'it attaches none'}"
        )
    clock = clock or Clock()
    refuse(check_kernel(folder), f"{folder} is not submitted")
    check_owner(kernel.ref, client, what="kernel")
    attached = check_attached(kernel, client, say=say)  # a new version of the bundle is a new submission
    state = _noted(folder, kernel, competition, attached)
    if version is not None and version != state.version:
        state = replace(state, version=version, sent=False, number=0)
    if not state.sent:
        _check_allowance(client, competition)
    if not state.version:
        pushed = push_kernel(folder, client, say=say, accelerator=accelerator)
        if pushed.version is None and not dry_run:
            raise KaggleError(
                f"{kernel.ref} was pushed, but Kaggle names no version; see its page, and call this with --version N"
            )
        state = replace(state, version=pushed.version or 0)
        _note(folder, state, dry_run=dry_run)
    else:
        say(f"{kernel.ref}: going on with version {state.version}, which was pushed before")
    if not state.sent:
        ended = wait_for_kernel(
            kernel.ref, client, version=state.version or None, say=say, limit_s=RUN_LIMIT_S, clock=clock
        )
        if ended.phase != "complete":
            raise KaggleError(
                f"{kernel.ref} version {state.version} ended as {ended.phase!r}"
                f"{f' ({ended.message})' if ended.message else ''}; read it by `kaggle-kit kernel logs {kernel.ref}`; "
                "nothing was submitted"
            )
        state = _send(folder, client, state, file=file, message=message, say=say, dry_run=dry_run)
    return _wait_for_score(client, state, say=say, clock=clock)


def _send(
    folder: Path,
    client: Client,
    state: Submitted,
    *,
    file: str,
    message: str,
    say: Callable[[str], None],
    dry_run: bool,
) -> Submitted:
    """Submit, noting before that it may have been done."""
    state = replace(state, sent=True)
    _note(folder, state, dry_run=dry_run)
    text = f"{message or 'kaggle_kit'} ({_mark(state)})"
    try:
        number = client.submit(state.competition, kernel=state.ref, version=state.version, file=file, message=text)
    except KaggleError:
        if _find(client, state) is None:  # it was refused, and may be tried again
            _note(folder, replace(state, sent=False), dry_run=dry_run)
            raise
        number = 0
    say(f"{state.ref} version {state.version}: submitted to {state.competition}")
    state = replace(state, number=number)
    _note(folder, state, dry_run=dry_run)
    return state


def _wait_for_score(client: Client, state: Submitted, *, say: Callable[[str], None], clock: Clock) -> Submission:
    def ask() -> tuple[Submission | None, str]:
        found = client.find_submission(state.number) if state.number else _find(client, state)
        if found is None:
            return None, "not listed yet"
        return (None if found.phase == "pending" else found), found.phase

    what = f"submission of {state.ref} version {state.version}"
    found = wait_until(ask, what=what, limit_s=SCORE_LIMIT_S, say=say, clock=clock)
    if found.phase == "error" or found.error:  # a COMPLETE one may carry an error, and no score
        raise KaggleError(
            f"{what} failed: Kaggle says {found.error or 'nothing more'!r}; rehearse with `kaggle-kit rehearse ... "
            "--inject all`, mend the kernel, and push it again"
        )
    return found


def _find(client: Client, state: Submitted) -> Submission | None:
    """Return the submission whose description says it is this version's."""
    own = [one for one in client.submissions(state.competition) if _mark(state) in one.description]
    return own[0] if own else None


def _mark(state: Submitted) -> str:
    return f"{MARK} {state.version} of {state.ref}"


def _check_allowance(client: Client, competition: str) -> None:
    allowance = client.allowance(competition)
    if allowance.left < 1:
        raise KaggleError(
            f"no submission to {competition} is left today ({allowance.today} made); nothing was pushed, call this "
            "again tomorrow (UTC)"
        )


def _noted(folder: Path, kernel: KernelMetadata, competition: str, attached: Mapping[str, int | None]) -> Submitted:
    """Return what was noted of this kernel as it is now; the beginning where it has changed since."""
    fresh = Submitted(ref=kernel.ref, competition=competition, key=_key_of(folder, kernel, attached))
    try:
        noted = build(Submitted, json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # every KitError is a ValueError
        return fresh
    same = (noted.ref, noted.competition, noted.key) == (fresh.ref, fresh.competition, fresh.key)
    return noted if same else fresh


def _key_of(folder: Path, kernel: KernelMetadata, attached: Mapping[str, int | None]) -> str:
    digest = hashlib.sha256(json.dumps(attached, sort_keys=True).encode())
    for path in (folder / KERNEL_METADATA, kernel.code_file):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _note(folder: Path, state: Submitted, *, dry_run: bool) -> None:
    if not dry_run:
        with replacing(folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps(plain(state)) + "\n", encoding="utf-8")
