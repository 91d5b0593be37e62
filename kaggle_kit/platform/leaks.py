"""Secrets that must not leave this machine: found by the names and the content of files, named and never shown."""

from __future__ import annotations

import codecs
import fnmatch
import itertools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SCANNED_BYTES = 32_000_000  # of a text file; what lies behind is data
_SNIFFED_BYTES = 8192
_ARCHIVES = (".zip", ".whl", ".npz", ".jar")
_KEY_FILES = (".pem", ".key")  # public certificates are called so, too: their content tells
_KEY_BYTES = 100_000
_SHOWN = 20  # secrets of one kind in a file
_NAMES: Mapping[str, str] = {
    "kaggle.json": "Kaggle's API key",
    "access_token": "Kaggle's access token",
    "access_token.txt": "Kaggle's access token",
    "credentials.json": "credentials",
    ".env": "an environment file",
    ".env.*": "an environment file",
    "*.env": "an environment file",
    ".netrc": "passwords, of wandb among others",
    "_netrc": "passwords, of wandb among others",
    ".pypirc": "PyPI's password",
    ".npmrc": "npm's token",
    ".git-credentials": "git's passwords",
    ".huggingface": "Hugging Face's token",
    "id_rsa": "a private key",
    "id_dsa": "a private key",
    "id_ecdsa": "a private key",
    "id_ed25519": "a private key",
    "*.p12": "a private key",
    "*.pfx": "a private key",
    "*.kdbx": "passwords",
    "wandb_api_key*": "wandb's key",
    "wandb_key*": "wandb's key",
}
_FOLDERS: Mapping[str, str] = {
    ".aws": "AWS credentials",
    ".kaggle": "Kaggle's credentials",
    ".ssh": "private keys",
    ".gnupg": "private keys",
}
_QUOTE = rb"""\\?["']?"""  # also as it stands inside a notebook's JSON
_CONTENT: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("a private key", re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY")),
    ("a Kaggle token", re.compile(rb"\bKGAT_[A-Za-z0-9_-]{16,}")),
    (
        "a Kaggle key",
        re.compile(rb"\bKAGGLE_(?:KEY|API_TOKEN)" + _QUOTE + rb"\s*\]?\s*[:=,]\s*" + _QUOTE + rb"\w{20,}"),
    ),
    (
        "a Kaggle key",
        re.compile(
            rb"\busername\b" + _QUOTE + rb"\s*:[^}]{1,200}?\bkey" + _QUOTE + rb"\s*:\s*" + _QUOTE + rb"[0-9a-f]{32}\b"
        ),
    ),
    ("a Hugging Face token", re.compile(rb"\bhf_[A-Za-z0-9]{30,}")),
    ("a wandb key", re.compile(rb"\bwandb_v\d_[A-Za-z0-9_]{20,}")),
    ("a wandb key", re.compile(rb"(?i)\bwandb\b[^\n]{0,80}?\b[0-9a-f]{40}\b")),
    ("an AWS key", re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    (
        "an AWS secret",
        re.compile(rb"(?i)aws_secret_access_key" + _QUOTE + rb"\s*[:=]\s*" + _QUOTE + rb"[A-Za-z0-9/+]{40}"),
    ),
    ("a GitHub token", re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,})")),
    ("a Slack token", re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("an API key", re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}")),
    ("a Google key", re.compile(rb"\bAIza[A-Za-z0-9_-]{35}\b")),
    ("a signed token", re.compile(rb"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{10,}")),
    (
        "a password or token",
        re.compile(
            rb"(?i)(?:api_?key|api_?token|access_?token|auth_?token|secret_?key|client_?secret|password|passwd)"
            rb"""\\?["']?\s*\]?\s*[:=]\s*\\?["'](?=[^"'\\]*\d)(?=[^"'\\]*[a-z])[\w+/.=-]{20,}\\?["']"""
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A secret that was found: where, and of which kind; never the secret itself.

    Attributes:
        name: The file, as in the folder; a member of an archive follows after `!`.
        line: Counted from 1; None where the name alone gives it away.
        kind: What it is taken for.
    """

    name: str
    line: int | None
    kind: str

    def __str__(self) -> str:
        where = self.name if self.line is None else f"{self.name}, line {self.line}"
        return f"{where}: {self.kind} must not leave this machine; take it out, and replace it where it was used"


def find_leaks(files: Mapping[str, Path]) -> list[Leak]:
    """Return every secret in files, in their order.

    Args:
        files: {name inside the folder that goes, with `/`: path on this machine}.
    """
    return [leak for name, path in files.items() for leak in _leaks_of(name, path)]


def _leaks_of(name: str, path: Path) -> Iterator[Leak]:
    by_name = _kind_of_name(name)
    if by_name:
        yield Leak(name=name, line=None, kind=by_name)
    if path.suffix.lower() in _ARCHIVES and zipfile.is_zipfile(path):
        yield from _leaks_of_members(name, path)
        return
    yield from (Leak(name=name, line=line, kind=kind) for line, kind in _secrets_of(path))


def _kind_of_name(name: str) -> str | None:
    *folders, file = PurePosixPath(name.lower()).parts
    for folder in folders:
        if folder in _FOLDERS:
            return _FOLDERS[folder]
    return next((kind for pattern, kind in _NAMES.items() if fnmatch.fnmatchcase(file, pattern)), None)


def _leaks_of_members(name: str, path: Path) -> Iterator[Leak]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            kind = _kind_of_name(member.filename)
            if kind is None and member.filename.lower().endswith(_KEY_FILES) and member.file_size <= _KEY_BYTES:
                kind = next((kind for _, kind in _secrets_in(archive.read(member))), None)
            if kind:
                yield Leak(name=f"{name}!{member.filename}", line=None, kind=kind)


def _secrets_of(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that hold a secret, and its kind; each line once."""
    with path.open("rb") as file:
        content = file.read(_SNIFFED_BYTES)
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if b"\0" in content and not wide:
            return []
        content += file.read(SCANNED_BYTES - len(content))
    if wide:  # as PowerShell's `>` writes it
        content = content.decode("utf-16", "replace").encode()
    return _secrets_in(content)


def _secrets_in(content: bytes) -> list[tuple[int, str]]:
    found: dict[int, str] = {}
    for kind, pattern in _CONTENT:
        for match in itertools.islice(pattern.finditer(content), _SHOWN):
            found.setdefault(content.count(b"\n", 0, match.start()) + 1, kind)
    return sorted(found.items())
