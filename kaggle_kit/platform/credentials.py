"""Whether there are credentials for Kaggle, by the `kaggle` package's own order; none is read into a message."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.rules import CREDENTIALS_PAGE

HOW = (
    f"get a token at {CREDENTIALS_PAGE} (Generate New Token) and save it in ~/.kaggle/access_token, or set "
    "KAGGLE_API_TOKEN"
)


def find_credentials(environment: Mapping[str, str] | None = None) -> str:
    """Return where the `kaggle` package will find credentials: a variable's name or a file.

    Args:
        environment: The environment variables; None: this process's.

    Raises:
        KaggleError: When there are none, with how to get them.
    """
    environment = os.environ if environment is None else environment
    found = next(_places(environment), None)
    if found is None:
        raise KaggleError(f"there are no credentials for Kaggle; {HOW}")
    return found


def _places(environment: Mapping[str, str]) -> Iterator[str]:
    home = Path("~").expanduser()
    if _has_text(environment.get("KAGGLE_API_V1_TOKEN")) and "KAGGLE_KERNEL_RUN_TYPE" in environment:
        yield "KAGGLE_API_V1_TOKEN"
    token = environment.get("KAGGLE_API_TOKEN")
    if token and (not _exists(token) or _has_text(token)):  # a token, or the path of a file that holds one
        yield "KAGGLE_API_TOKEN"
    for name in ("access_token", "access_token.txt"):
        if _has_text(str(home / ".kaggle" / name)):
            yield str(home / ".kaggle" / name)
    settings = config_folder(environment) / "kaggle.json"
    known = _keys_of(settings) | {key for key in ("username", "key") if environment.get(f"KAGGLE_{key.upper()}")}
    if {"username", "key"} <= known:
        yield str(settings) if settings.is_file() else "KAGGLE_USERNAME and KAGGLE_KEY"
    if (home / ".kaggle" / "credentials.json").is_file():
        yield str(home / ".kaggle" / "credentials.json")


def config_folder(environment: Mapping[str, str]) -> Path:
    """Return where the `kaggle` package looks for kaggle.json."""
    given = environment.get("KAGGLE_CONFIG_DIR")
    if given:
        return Path(given)
    folder = Path("~/.kaggle").expanduser()
    if sys.platform.startswith("linux") and not folder.exists():
        return Path(environment.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "kaggle"
    return folder


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # too long for a path, as a token may be
        return False


def _has_text(path: str | None) -> bool:
    try:
        return bool(path) and bool(Path(str(path)).read_bytes().strip())
    except OSError:
        return False


def _keys_of(path: Path) -> set[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return {key for key in values if values[key]} if isinstance(values, dict) else set()
