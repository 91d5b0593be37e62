"""Publish a folder as a dataset: only where its content changed, private, and until kernels can get it.

The content's hash is kept in three places: in the folder (`contents.STATE_FILE`), in the version's message and in the
description's last line. So another machine, or this one after it was killed in the middle, knows what Kaggle has. The
message counts; a first version has none, so of it the description does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kaggle_kit.errors import KaggleError
from kaggle_kit.files import replacing
from kaggle_kit.platform.client import Client, DatasetState
from kaggle_kit.platform.contents import STATE_FILE, read_contents, staged
from kaggle_kit.platform.metadata import DatasetMetadata, read_dataset, read_kernel
from kaggle_kit.platform.polling import Clock, wait_until
from kaggle_kit.settings import build, plain

READY_LIMIT_S = 3600.0
Deed = Literal["created", "versioned", "unchanged"]
_MARK = re.compile(r"kaggle_kit content ([0-9a-f]{16})")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A dataset as it stands after `publish`; also what is noted in the folder.

    Attributes:
        ref: owner/slug.
        content: 16 hexadecimal digits of its files.
        version: What a kernel that starts now gets; None where Kaggle did not say, or nothing was uploaded.
    """

    ref: str
    content: str
    version: int | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """What `publish` did."""

    publication: Publication
    did: Deed


def publish(
    folder: Path,
    client: Client,
    *,
    say: Callable[[str], None],
    message: str = "",
    public: bool = False,
    replace: bool = False,
    kernel: Path | None = None,
    limit_s: float = READY_LIMIT_S,
    clock: Clock | None = None,
) -> Change:
    """Create or version the dataset of a folder where its content changed, and wait until it is ready.

    Args:
        folder: Holds dataset-metadata.json and the files; sub-folders go, too.
        client: Calls Kaggle.
        say: Called with a line for each step.
        message: Of the new version.
        public: Everybody may see a dataset that is created; one that is there stays as it is.
        replace: A dataset of this name that this kit did not publish may get these files in place of its own.
        kernel: The folder of a kernel that must attach this dataset.
        limit_s: How long to wait.
        clock: The time; None: the machine's.

    Raises:
        KaggleError: When the folder must not or cannot be published, its slug is taken, Kaggle refuses, or the dataset
            is not ready in time.
    """
    metadata = read_dataset(folder)
    pinned = _pinned_version(kernel, metadata.ref) if kernel else None
    contents = read_contents(folder)
    refuse(contents.problems, f"{folder} is not published")
    check_owner(metadata.ref, client, what="dataset")
    content = contents.fingerprint()
    say(f"{metadata.ref}: {len(contents.files):,} file(s), {size_text(contents.size_bytes)}, content {content}")
    before = client.find_dataset(metadata.ref)
    noted = noted_publication(folder, metadata.ref)
    _check_slug(metadata.ref, client, before, ours=replace or noted is not None)
    did: Deed = "unchanged"
    if before is None or not _has(before, content, noted=noted):
        did = "created" if before is None else "versioned"
        with staged(contents, _with_mark(metadata, content)) as stage:
            _upload(metadata.ref, stage, client, before, message=_marked(message, content), public=public, say=say)
    newest = max([before.version or 0, *before.notes]) if before else 0
    least = newest if did == "unchanged" else newest + 1
    version = _wait_ready(metadata.ref, client, least, limit_s=limit_s, say=say, clock=clock or Clock()).version
    found = Publication(ref=metadata.ref, content=content, version=version)
    if version is not None:
        _note(folder, found)
    if pinned is not None and version is not None and pinned != version:
        raise KaggleError(
            f"{kernel} attaches {metadata.ref} in version {pinned}, and this is version {version}; write it without a "
            "version, or with this one"
        )
    return Change(publication=found, did=did)


def _check_slug(ref: str, client: Client, before: DatasetState | None, *, ours: bool) -> None:
    """Refuse a name that something else has: a kernel, or a dataset whose files would be lost."""
    if before is None and client.find_kernel(ref) is not None:
        raise KaggleError(f"the slug of {ref} is taken: you have a kernel of that name; choose another slug")
    if before is None or ours or any(_MARK.search(text) for text in (before.description, *before.notes.values())):
        return
    raise KaggleError(
        f"the slug of {ref} is taken: you have a dataset of that name, not published by this kit, and its files would "
        "be replaced; choose another slug, or say --replace"
    )


def _upload(
    ref: str,
    stage: Path,
    client: Client,
    before: DatasetState | None,
    *,
    message: str,
    public: bool,
    say: Callable[[str], None],
) -> None:
    if before is None:
        say(f"{ref}: creating it, {'PUBLIC: everybody sees it' if public else 'private'}")
        client.create_dataset(stage, public=public)
        return
    if public and before.private:
        say(f"{ref} exists and stays private; make it public on its page")
    elif before.private is False:
        say(f"{ref} is PUBLIC: everybody sees the new version")
    say(f"{ref}: uploading a new version")
    client.version_dataset(stage, message=message)


def _note(folder: Path, publication: Publication) -> None:
    with replacing(folder / STATE_FILE) as temporary:
        temporary.write_text(json.dumps(plain(publication)) + "\n", encoding="utf-8")


def noted_publication(folder: Path, ref: str) -> Publication | None:
    """Return what was noted in the folder of this dataset; None where nothing was, or it cannot be read."""
    try:
        noted = build(Publication, json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # every KitError is a ValueError
        return None
    return noted if noted.ref == ref else None


def refuse(problems: Sequence[str], what: str) -> None:
    """Raise the first of some problems, and how many more there are.

    Raises:
        KaggleError: When there are any.
    """
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise KaggleError(f"{what}: {problems[0]}{more}")


def check_owner(ref: str, client: Client, *, what: str) -> None:
    """Refuse what somebody else's name stands before.

    Raises:
        KaggleError: When it is not the user's own.
    """
    owner, slug = ref.split("/")
    if owner.lower() != client.owner().lower():
        me = client.owner()
        raise KaggleError(f"the {what} {ref} is {owner!r}'s, and you are logged in as {me!r}; write {me}/{slug}")


def size_text(size_bytes: int) -> str:
    """Return a size in the unit that suits it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} bytes"


def _pinned_version(kernel: Path, ref: str) -> int | None:
    """Return the version of a dataset that a kernel attaches, None for the newest; refuse one that attaches none."""
    for source in read_kernel(kernel).datasets:
        parts = source.split("/")
        if "/".join(parts[:2]) == ref:
            return int(parts[2]) if len(parts) == 3 else None
    raise KaggleError(f"{kernel} does not attach {ref}; add it to `dataset_sources` in its kernel-metadata.json")


def content_of(state: DatasetState) -> str | None:
    """Return the content's hash of the newest version on Kaggle, None where it was not published by this kit."""
    newest = max(state.notes, default=None)
    found = _MARK.search(state.notes[newest]) if newest is not None else None
    if found is None and (newest or state.version) == 1:
        found = _MARK.search(state.description)
    return found[1] if found else None


def _has(before: DatasetState, content: str, *, noted: Publication | None) -> bool:
    """Return whether Kaggle's newest version holds this content."""
    if before.status in ("failed", "deleted"):
        return False
    there = content_of(before)
    if there is None and noted is not None and before.version is not None and noted.version == before.version:
        there = noted.content
    return there == content


def _with_mark(metadata: DatasetMetadata, content: str) -> dict[str, Any]:
    description = _MARK.sub("", str(metadata.values.get("description", ""))).rstrip()
    return {**metadata.values, "description": f"{description}\n\nkaggle_kit content {content}".lstrip()}


def _marked(message: str, content: str) -> str:
    return f"{message or 'update'} (kaggle_kit content {content})"


def _wait_ready(
    ref: str, client: Client, least: int, *, limit_s: float, say: Callable[[str], None], clock: Clock
) -> DatasetState:
    """Wait until a kernel that starts gets version `least`: right after an upload the status is still the old one's."""

    def ask() -> tuple[DatasetState | None, str]:
        state = client.find_dataset(ref)
        if state is None:
            return None, "not there yet"
        if state.status in ("failed", "deleted"):
            raise KaggleError(f"Kaggle could not process {ref} (status {state.status}); see its page")
        if not state.ready:
            return None, state.status
        if state.version is not None and state.version < least:
            return None, f"still version {state.version}"
        return state, "ready" + ("" if state.version is None else f", version {state.version}")

    return wait_until(ask, what=f"dataset {ref}", limit_s=limit_s, say=say, clock=clock)
