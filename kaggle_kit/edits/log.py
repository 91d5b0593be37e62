"""The file of edits: read by all, appended to by several people at once."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kaggle_kit.edits.edit import Edit, parse_edit
from kaggle_kit.errors import DataError
from kaggle_kit.files import replacing

Say = Callable[[str], None]
BOM = b"\xef\xbb\xbf"  # which some editors put before a text
_CUT_OFF = "  <- cut off by a crash"  # what is put behind a line that a crash left unfinished


def append_edit(path: Path, edit: Edit) -> None:
    """Add one decision at the end of a file, as `append_edits` does."""
    append_edits(path, [edit])


def append_edits(path: Path, edits: Sequence[Edit]) -> None:
    """Add decisions at the end of a file, which is made where it is absent: all are on the disk afterwards, or none.

    They are one write, under a lock that a killed process lets go: processes that append at once lose nothing. What
    the disk took of a write that failed is taken back. A line that a crash cut off is marked as such, for `read_edits`
    to pass over.

    Args:
        path: The file.
        edits: In their order.

    Raises:
        DataError: When the disk takes only a part of them.
        OSError: When it takes none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            _write_whole(handle, (_mended_end(path) + "".join(edit.to_line() for edit in edits)).encode(), path)
        finally:
            os.close(handle)


def _write_whole(handle: int, data: bytes, path: Path) -> None:
    """Put data at the end of a file and onto the disk, or leave the file as it was."""
    size, done = os.fstat(handle).st_size, False
    try:
        if os.write(handle, data) < len(data):
            raise DataError(f"{path}: the disk took only a part of a decision; make room, and decide again")
        os.fsync(handle)
        done = True
    finally:
        if not done:
            os.ftruncate(handle, size)


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
    parse_edits(content.removeprefix(BOM), edits, path=path, say=say)
    return list(edits.values())


def parse_edits(
    content: bytes, edits: dict[str, Edit], *, path: object, first_line: int = 1, say: Say | None = None
) -> None:
    """Add the decisions of lines to those of the lines before, by key.

    Args:
        content: The lines.
        edits: {key: decision} of the lines before, in their order.
        path: The file, for messages.
        first_line: The number of the first line.
        say: Told of lines that a crash cut off, which are passed over.

    Raises:
        DataError: Naming the line that is none.
    """
    for number, text, is_whole in _lines(content, first_line):
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


def write_edits(edits: Iterable[Edit], path: Path) -> None:
    """Write a file of these decisions, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes("".join(edit.to_line() for edit in edits).encode())


def _lines(content: bytes, first_line: int) -> Iterator[tuple[int, str, bool]]:
    """Yield number, text, and whether its end is there, of each line that is not blank."""
    parts = content.split(b"\n")
    for place, part in enumerate(parts, start=1):
        text = part.decode(errors="replace").rstrip()
        if text:
            yield first_line + place - 1, text, place < len(parts)


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


def lock_path(path: Path) -> Path:
    """Return where the lock of a file is: beside it, so that the file may be replaced; of a link, beside its target."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.lock")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file."""
    handle = os.open(lock_path(path), os.O_RDWR | os.O_CREAT, 0o644)
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
