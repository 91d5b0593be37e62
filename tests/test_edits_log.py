from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_edits import relabel, written

from kaggle_kit.edits import append_edit, append_edits, make_edit, read_edits
from kaggle_kit.edits.log import lock_path
from kaggle_kit.errors import DataError

KEY = "0" * 32
APPEND = """
import sys
from pathlib import Path
from kaggle_kit.edits import append_edit, make_edit
for number in range(int(sys.argv[3])):
    append_edit(Path(sys.argv[1]), make_edit("drop", id=f"{sys.argv[2]}_{number}", why="x" * 2000))
    print(number, flush=True)
"""


def line(**values: object) -> str:
    return json.dumps({"key": KEY, "at": "2026-11-30T12:00:00Z", **values})


def test_edits_come_back_as_they_were_appended(tmp_path: Path) -> None:
    edits = [relabel("é_1", ""), make_edit("drop", id="b", why="equals a", by="bob"), make_edit("keep", id="c")]
    edits.append(make_edit("undo", of=edits[0].key))
    path = written(tmp_path / "new" / "edits.jsonl", *edits)
    assert read_edits(path) == edits and [edit.line for edit in read_edits(path)] == [1, 2, 3, 4]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1]) == {
        "key": edits[1].key,
        "at": edits[1].at,
        "by": "bob",
        "action": "drop",
        "id": "b",
        "why": "equals a",
    }


def test_two_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    names = ("ann", "bob", "cid")
    command = [sys.executable, "-c", APPEND, str(path)]
    running = [subprocess.Popen([*command, name, "60"], stdout=subprocess.DEVNULL) for name in names]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    dropped = [edit.id for edit in read_edits(path)]
    assert sorted(dropped) == sorted(f"{name}_{number}" for name in names for number in range(60))
    for name in names:
        assert [one for one in dropped if one.startswith(name)] == [f"{name}_{number}" for number in range(60)]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    command = [sys.executable, "-c", APPEND, str(path), "ann", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout
    last = int(said[-1])
    append_edit(path, make_edit("keep", id="afterwards"))
    names = [edit.id for edit in read_edits(path)]
    assert names[: last + 1] == [f"ann_{number}" for number in range(last + 1)] and names[-1] == "afterwards"


@pytest.mark.parametrize("length", [1, 20, -3, -1])
def test_a_line_that_a_crash_cut_off_is_passed_over_and_said(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "edits.jsonl", make_edit("drop", id="a"), make_edit("drop", id="ö"))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:length])
    said: list[str] = []
    whole = length == -1  # but for its end
    names = ["a", "ö"][: 1 + whole]
    assert [edit.id for edit in read_edits(path, say=said.append)] == names
    assert said == ([] if whole else [f"{path} line 2 was cut off by a crash and is passed over"])
    append_edit(path, make_edit("keep", id="c"))
    append_edit(path, make_edit("keep", id="d"))
    assert [edit.id for edit in read_edits(path, say=said.append)] == [*names, "c", "d"]
    assert path.read_bytes().startswith(first + second[:length]) and len(said) == 2 * (not whole)


def test_a_file_that_a_person_edited_is_read(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line(action='drop', id='a')}\r\n\r\n".encode())
    assert [edit.id for edit in read_edits(path)] == ["a"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{'key'}\n", "line 2 is no JSON"),
        ('{"key": "\n', "line 2 is no JSON"),
        ("[1]\n", "line 2 is '.1.'; expected an object"),
        (line(action="remove", id="a"), "line 2: `action` is 'remove'; expected one of relabel, drop"),
        (line(id="a"), "line 2: `action` is ''"),
        (line(action="drop", id=["a"]), "line 2: `id` is .'a'.; expected text in quotes"),
        (line(action="drop"), "line 2: `id` is missing; a 'drop' needs it"),
        (line(action="relabel", id="a", value="1"), "line 2: `head` is missing"),
        (line(action="relabel", id="a", head="root", value=1), "line 2: `value` is 1; expected text in quotes"),
        (line(action="undo"), "line 2: `of` is missing"),
        (line(action="undo", of="1" * 32), "line 2 is an undo of '1+', which is in no line before it"),
        (line(action="drop", id="a", reason=""), "line 2: `reason` is unknown; known: key, at"),
        (line(action="drop", id="a", key="1"), "line 2: `key` is '1'; expected 32 hexadecimal"),
        (line(action="drop", id="a", at="noon"), "line 2: `at` is 'noon'; expected a time"),
        (line(action="drop", id="a", at="2026-11-30T12:00:00"), "line 2: `at` .* with its zone"),
    ],
)
def test_a_line_that_is_no_edit_is_named(tmp_path: Path, text: str, match: str) -> None:
    path = written(tmp_path / "edits.jsonl", make_edit("drop", id="a"))
    path.write_text(path.read_text() + text)
    with pytest.raises(DataError, match=match):
        read_edits(path)


@pytest.mark.parametrize("taken", [0, 30, None])
def test_a_decision_of_several_lines_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int | None
) -> None:
    path = written(tmp_path / "edits.jsonl", make_edit("drop", id="a"))
    before, write = path.read_bytes(), os.write

    def full(handle: int, data: bytes) -> int:
        if taken is None:
            write(handle, data)
            raise OSError(28, "No space left on device")
        return write(handle, data[:taken])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises((DataError, OSError), match="took only a part of a decision|No space left"):
        append_edits(path, [make_edit("drop", id=name) for name in "bcd"])
    assert path.read_bytes() == before
    monkeypatch.undo()
    syncs = []
    monkeypatch.setattr(os, "fsync", syncs.append)
    append_edits(path, [make_edit("drop", id=name) for name in "bcd"])
    assert [edit.id for edit in read_edits(path)] == ["a", "b", "c", "d"] and len(syncs) == 1


def test_a_link_and_its_target_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "edits.jsonl")
    assert lock_path(tmp_path / "link") == lock_path(tmp_path / "edits.jsonl") == tmp_path / ".edits.jsonl.lock"


def test_one_key_for_two_edits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join([line(action="drop", id="a")] * 2))
    assert len(read_edits(path)) == 1
    path.write_text(line(action="drop", id="a") + "\n" + line(action="drop", id="b"))
    with pytest.raises(DataError, match="line 2 has the key of line 1"):
        read_edits(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no edits file .*none.jsonl"):
        read_edits(tmp_path / "none.jsonl")


def test_windows_locks_by_its_own_means_and_waits_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def locking(handle: int, mode: int, size: int) -> None:
        tries.append((mode, size))
        if len(tries) == 1:
            raise PermissionError(36, "Resource deadlock avoided")

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_LOCK=1))
    monkeypatch.setattr(sys, "platform", "win32")
    path = tmp_path / "edits.jsonl"
    append_edit(path, make_edit("drop", id="a"))
    assert tries == [(1, 1), (1, 1)] and len(read_edits(path)) == 1
