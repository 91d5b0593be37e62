"""The file of edits: read by all, appended to by several people at once."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kaggle_kit.edits.edit import Edit, parse_edit
from kaggle_kit.errors import DataError
from kaggle_kit.files import replacing

Say = Callable[[str], None]
_CUT_OFF = "  <- cut off by a crash"  # what is put behind a line that a crash left unfinished


def append_edit(path: Path, edit: Edit) -> None:
    """Add a decision at the end of a file, which is made where it is absent; it is on the disk afterwards.

    It is one line in one write, under a lock that a killed process lets go: processes that append at once lose
    nothing, and a line that a crash cut off is marked as such, for `read_edits` to pass over.

    Raises:
        DataError: When the disk takes only a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            text = (_mended_end(path) + edit.to_line()).encode()
            if os.write(handle, text) < len(text):
                raise DataError(f"{path}: the disk took only a part of a line; make room, and decide again")
            os.fsync(handle)
        finally:
            os.close(handle)


def read_edits(path: Path, *, say: Say | None = None) -> list[Edit]:
    """Read the decisions of a file, in its order.

    Args:
        path: The file.
        say: Told of lines that a crash cut off, which are passed over.

    Raises:
        DataError: When there is no such file, or naming the line that is none.
    """
    if not path.is_file():
        raise DataError(f"there is no edits file {str(path)!r}; check its path, or make one with `kaggle-kit review`")
    return _edits_of(path.read_bytes(), path, say)


def edits_from_text(text: str, *, where: object) -> tuple[Edit, ...]:
    """Return the decisions of a text of whole lines, as `Edit.to_line` gives them.

    Args:
        text: The lines.
        where: What the text is called in messages.

    Raises:
        DataError: Naming the line that is none.
    """
    return tuple(_edits_of(text.encode(), where, None))


def _edits_of(content: bytes, path: object, say: Say | None) -> list[Edit]:
    edits: dict[str, Edit] = {}
    for number, text, is_whole in _lines(content):
        where = f"{path} line {number}"
        if text.endswith(_CUT_OFF) or not (is_whole or _is_json(text)):
            if say is not None:
                say(f"{where} was cut off by a crash and is passed over")
            continue
        edit = parse_edit(text, where=where, line=number)
        if edits.setdefault(edit.key, edit) != edit:
            raise DataError(f"{where} has the key of line {edits[edit.key].line}, and says something else; delete one")
        if edit.of and edit.of not in edits:
            raise DataError(f"{where} is an undo of {edit.of!r}, which is in no line before it; delete one of the two")
    return list(edits.values())


def write_edits(edits: Iterable[Edit], path: Path) -> None:
    """Write a file of these decisions, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes("".join(edit.to_line() for edit in edits).encode())


def _lines(content: bytes) -> Iterator[tuple[int, str, bool]]:
    """Yield number, text, and whether its end is there, of each line that is not blank."""
    parts = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, part in enumerate(parts, start=1):
        text = part.decode(errors="replace").rstrip()
        if text:
            yield number, text, number < len(parts)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _mended_end(path: Path) -> str:
    """Return what must follow a file's last line for a new line to begin: nothing where that is whole."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) in (b"", b"\n"):
            return ""
        file.seek(0)
        *_, last = file
    return "\n" if _is_json(last.decode(errors="replace")) else f"{_CUT_OFF}\n"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which lies beside it, so that the file itself may be replaced meanwhile."""
    handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(handle)
        yield
    finally:
        os.close(handle)  # lets the lock go, as does the end of the process


def _wait_for(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            with contextlib.suppress(OSError):  # it gives up after ten seconds
                msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
                return
    else:
        import fcntl

        with contextlib.suppress(OSError):  # a file system without locks; a write at the end is whole there as a rule
            fcntl.flock(handle, fcntl.LOCK_EX)
