"""Submit a kernel to a code competition: pushed, waited for, submitted in that very version once, scored.

What was done is noted in the kernel's folder before the next thing is: killed anywhere and called again, it goes on
with the version that was pushed. A version is never submitted twice: the note says so, and where it is lost, the
submission's description on Kaggle.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kaggle_kit.errors import KaggleError
from kaggle_kit.files import replacing
from kaggle_kit.platform import rules
from kaggle_kit.platform.client import Client, Submission, UnreachableError
from kaggle_kit.platform.kernels import RUN_LIMIT_S, check_attached, check_kernel, push_kernel, wait_for_kernel
from kaggle_kit.platform.metadata import KernelMetadata, read_kernel
from kaggle_kit.platform.polling import Clock, wait_until
from kaggle_kit.platform.publish import check_owner, refuse
from kaggle_kit.platform.rules import KERNEL_METADATA
from kaggle_kit.settings import build, plain

STATE_FILE = ".kaggle-kit-submitted.json"  # this kit's own note in the kernel's folder; never pushed
SCORE_LIMIT_S = 14 * 3600.0  # the hidden rerun takes as long as the competition allows, 12 h at most, and may be queued
LISTED_LIMIT_S = 600.0  # how long a submission that was made may be missing from Kaggle's list


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """How far a submission is; also what is noted in the folder.

    Attributes:
        ref: The kernel, owner/slug.
        competition: Its slug.
        key: Of what was pushed: code, metadata, and the datasets' versions; "" where it was pushed otherwise.
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

    def __str__(self) -> str:
        return f"{self.ref} version {self.version or 'N'}"  # N: of a dry run, which pushes none

    @property
    def mark(self) -> str:
        """What its description on Kaggle ends with."""
        return f"(kaggle_kit version {self.version or 'N'} of {self.ref})"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a kernel that was to be submitted.

    Attributes:
        version: The kernel's.
        number: The submission's; 0: there is none.
        public: The public leaderboard's score; None where Kaggle shows none.
        private: The private leaderboard's score; None where Kaggle shows none (yet).
        failure: One line on what failed, the session or the rerun, and what to do; "" when nothing did.
    """

    version: int
    number: int = 0
    public: float | None = None
    private: float | None = None
    failure: str = ""


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
) -> Outcome:
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
        The scores, or what failed on Kaggle.

    Raises:
        KaggleError: When something is refused before it is pushed, no submission is left today, or Kaggle does not
            answer in time.
    """
    clock = clock or Clock()
    kernel = _checked_kernel(folder, competition)
    check_owner(kernel.ref, client, what="kernel")
    note = functools.partial(_note, folder, dry_run=dry_run)
    if version is None:
        attached = check_attached(kernel, client, say=say)  # a new version of the bundle is a new submission
        state = _noted(
            folder, Submitted(ref=kernel.ref, competition=competition, key=_key_of(folder, kernel, attached))
        )
    else:
        state = _noted(folder, Submitted(ref=kernel.ref, competition=competition, key="", version=version))
    if state.version and not state.sent:
        state = _seen_on_kaggle(client, state)
    if not state.sent:
        _check_allowance(client, competition)
    if not state.version:
        state = replace(state, version=_push(folder, client, accelerator=accelerator, say=say, dry_run=dry_run))
    else:
        say(f"{state}: {'submitted before, going on to its score' if state.sent else 'going on with it, it is pushed'}")
    note(state)
    if not state.sent:
        failure = _session_failure(client, state, say=say, clock=clock)
        if failure:
            note(replace(state, version=0))  # called again, it is pushed anew
            return Outcome(version=state.version, failure=failure)
        state = _send(client, state, file=file, message=message, say=say, note=note)
    return _wait_for_score(client, state, say=say, clock=clock, note=note)


def _checked_kernel(folder: Path, competition: str) -> KernelMetadata:
    kernel = read_kernel(folder, internet=False)
    if competition not in kernel.competitions:
        raise KaggleError(
            f"{folder / KERNEL_METADATA} does not attach the competition {competition!r} (with --task, the task's name "
            "is the slug); add it to `competition_sources`, or give --competition one of those that it attaches: "
            f"{', '.join(kernel.competitions) or 'none'}"
        )
    refuse(check_kernel(folder), f"{folder} is not submitted")
    return kernel


def _push(folder: Path, client: Client, *, accelerator: str | None, say: Callable[[str], None], dry_run: bool) -> int:
    """Return the version that was pushed, 0 in a dry run."""
    pushed = push_kernel(folder, client, say=say, accelerator=accelerator)
    if pushed.version is None and not dry_run:
        raise KaggleError(
            f"{folder} was pushed, but Kaggle names no version; see its page, and call this with --version N"
        )
    return pushed.version or 0


def _session_failure(client: Client, state: Submitted, *, say: Callable[[str], None], clock: Clock) -> str:
    """Wait for the kernel's session; return how it failed, "" when it is complete."""
    version = state.version or None
    ended = wait_for_kernel(state.ref, client, version=version, say=say, limit_s=RUN_LIMIT_S, clock=clock)
    if ended.phase == "complete":
        return ""
    reason = f" ({ended.message})" if ended.message else ""
    return (
        f"{state} ended as {ended.phase!r}{reason}; nothing was submitted; read it by `kaggle-kit kernel logs "
        f"{state.ref}`, and call this again, without --version, to push it anew"
    )


def _send(
    client: Client,
    state: Submitted,
    *,
    file: str,
    message: str,
    say: Callable[[str], None],
    note: Callable[[Submitted], None],
) -> Submitted:
    """Submit, noting before that it may have been done."""
    state = replace(state, sent=True)
    note(state)
    text = f"{message or 'submitted'} {state.mark}"
    try:
        number = client.submit(state.competition, kernel=state.ref, version=state.version, file=file, message=text)
    except UnreachableError:  # it may have arrived: the list tells
        say(f"{state}: no answer from Kaggle; looking whether it was submitted")
        return state
    except KaggleError as error:
        note(replace(state, sent=False))
        raise _explained(error, state.competition) from None
    say(f"{state}: submitted to {state.competition}")
    state = replace(state, number=number)
    note(state)
    return state


def _wait_for_score(
    client: Client,
    state: Submitted,
    *,
    say: Callable[[str], None],
    clock: Clock,
    note: Callable[[Submitted], None],
) -> Outcome:
    number = state.number or _find_number(client, state, say=say, clock=clock)
    if not number:
        note(replace(state, sent=False))
        raise KaggleError(f"{state} is not among your submissions to {state.competition}; call this again to submit it")
    note(replace(state, number=number))

    def ask() -> tuple[Submission | None, str]:
        found = client.find_submission(number)
        if found is None:
            return None, "not there yet"
        return (None if found.phase == "pending" else found), found.phase

    what = f"submission {number} of {state}"
    found = wait_until(ask, what=what, limit_s=SCORE_LIMIT_S, say=say, clock=clock)
    failure = ""
    scoreless = found.public is None and found.private is None
    if found.phase == "error" or (found.error and scoreless):  # Kaggle calls that complete, too
        failure = (
            f"{what} failed: Kaggle says {found.error or 'nothing more'!r}; `kaggle-kit rehearse` it with --inject "
            "all, mend it, and submit it anew"
        )
    return Outcome(version=state.version, number=number, public=found.public, private=found.private, failure=failure)


def _find_number(client: Client, state: Submitted, *, say: Callable[[str], None], clock: Clock) -> int:
    """Return the number of a submission that may have been made, 0 when it is not listed in time."""
    started = clock.now()

    def ask() -> tuple[int | None, str]:
        found = _find(client, state)
        if found is not None:
            return found.number, "listed"
        late = clock.now() - started >= LISTED_LIMIT_S
        return (0 if late else None), "not listed"

    what = f"submission of {state}"
    return wait_until(ask, what=what, limit_s=2 * LISTED_LIMIT_S, say=say, clock=clock)


def _seen_on_kaggle(client: Client, state: Submitted) -> Submitted:
    """Return the state with the submission that Kaggle lists of this version, whoever submitted it from wherever."""
    found = _find(client, state)
    return state if found is None else replace(state, sent=True, number=found.number)


def _find(client: Client, state: Submitted) -> Submission | None:
    """Return the submission whose description says it is this version's."""
    return next((one for one in client.submissions(state.competition) if one.description.endswith(state.mark)), None)


def _check_allowance(client: Client, competition: str) -> None:
    try:
        allowance = client.allowance(competition)
    except UnreachableError:
        raise
    except KaggleError as error:
        raise _explained(error, competition) from None
    if allowance.left < 1 and allowance.today < 1:  # what Kaggle says to somebody who is in no team
        raise KaggleError(
            f"Kaggle allows you no submission to {competition}, and you have made none today; join it and accept its "
            f"rules at {rules.rules_page(competition)}; nothing was pushed"
        )
    if allowance.left < 1:
        raise KaggleError(
            f"no submission to {competition} is left today ({allowance.today} made); nothing was pushed, call this "
            "again tomorrow (UTC)"
        )


def _explained(error: KaggleError, competition: str) -> KaggleError:
    """Return the error with its repair, where Kaggle's words tell it."""
    if rules.RULES_NOT_ACCEPTED.search(str(error)):
        return KaggleError(f"{error}; accept the rules at {rules.rules_page(competition)}, and call this again")
    if rules.DAILY_LIMIT.search(str(error)):
        return KaggleError(f"{error}; call this again tomorrow (UTC): it goes on with the version that was pushed")
    return error


def _noted(folder: Path, fresh: Submitted) -> Submitted:
    """Return what was noted of the same kernel and version; the beginning where it has changed since."""
    try:
        noted = build(Submitted, json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # every KitError is a ValueError
        return fresh
    same = noted.version == fresh.version if fresh.version else noted.key == fresh.key
    return noted if same and (noted.ref, noted.competition) == (fresh.ref, fresh.competition) else fresh


def _key_of(folder: Path, kernel: KernelMetadata, attached: Mapping[str, int | None]) -> str:
    digest = hashlib.sha256(json.dumps(attached, sort_keys=True).encode())
    for path in (folder / KERNEL_METADATA, kernel.code_file):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _note(folder: Path, state: Submitted, *, dry_run: bool) -> None:
    if not dry_run:
        with replacing(folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps(plain(state)) + "\n", encoding="utf-8")
