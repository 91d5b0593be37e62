"""A file of edits that is read again and again while people append to it."""

from __future__ import annotations

from pathlib import Path

from kaggle_kit.edits.edit import Edit
from kaggle_kit.edits.log import BOM, Say, parse_edits


class FollowedFile:
    """What a file of edits holds now: only lines that are new since it was last asked are parsed.

    Where anything but its end has changed, as by an editor or a merge, all lines are.
    """

    def __init__(self, path: Path, *, say: Say | None = None) -> None:
        """Follow a file.

        Args:
            path: May be absent: it holds nothing then.
            say: Told of lines that a crash cut off.
        """
        self._path, self._say = path, say
        self._status: tuple[int, ...] | None = None
        self._forget()

    def edits(self) -> tuple[Edit, ...]:
        """Return the decisions, in the file's order; the same object as last time where nothing has changed.

        Raises:
            DataError: Naming the line that is none.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._status = None
            self._forget()
            return self._edits
        status = (found.st_mtime_ns, found.st_size, found.st_ino)
        if status != self._status:
            self._status = None  # until all is read
            self._read()
            self._status = status
        return self._edits

    def _forget(self) -> None:
        self._whole, self._known = b"", dict[str, Edit]()
        self._edits: tuple[Edit, ...] = ()

    def _read(self) -> None:
        content = self._path.read_bytes().removeprefix(BOM)
        if not content.startswith(self._whole):
            self._forget()
        start, known = len(self._whole), self._known
        end = content.rfind(b"\n") + 1  # the last line may be half written: it is read again
        first_line = self._whole.count(b"\n") + 1
        self._whole, self._known = b"", {}  # should a line be none
        parse_edits(content[start:end], known, path=self._path, first_line=first_line, say=self._say)
        last = dict(known)
        parse_edits(content[end:], last, path=self._path, first_line=content.count(b"\n") + 1, say=self._say)
        self._whole, self._known = content[:end], known
        self._edits = tuple(last.values())
