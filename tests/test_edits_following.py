from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_edits import relabel, written

from kaggle_kit.edits import FollowedFile, append_edit, log, make_edit, read_edits, write_edits
from kaggle_kit.errors import DataError


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the lines that were parsed."""
    numbers, parse = [], log.parse_edit

    def counted(text: str, *, where: str, line: int = 0) -> object:
        numbers.append(line)
        return parse(text, where=where, line=line)

    monkeypatch.setattr(log, "parse_edit", counted)
    return numbers


def test_only_lines_that_are_new_are_parsed(tmp_path: Path, parsed: list[int]) -> None:
    path = tmp_path / "edits.jsonl"
    followed = FollowedFile(path)
    assert followed.edits() == ()
    for number in range(4):
        append_edit(path, relabel(f"i{number}", 1))
        assert followed.edits() is followed.edits()
    assert parsed == [1, 2, 3, 4]
    assert list(followed.edits()) == read_edits(path) and [edit.line for edit in followed.edits()] == [1, 2, 3, 4]
    append_edit(path, make_edit("undo", of=followed.edits()[0].key))
    assert len(followed.edits()) == 5


def test_a_file_that_changed_elsewhere_than_at_its_end_is_parsed_again(tmp_path: Path, parsed: list[int]) -> None:
    path = written(tmp_path / "edits.jsonl", relabel("a", 1), relabel("b", 1))
    followed = FollowedFile(path)
    followed.edits()
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"b"', b'"c"') + make_edit("drop", id="d").to_line().encode())
    assert [edit.id for edit in followed.edits()] == ["a", "c", "d"] and parsed == [1, 2, 1, 2, 3]
    write_edits(read_edits(path)[1:], path)
    assert [edit.id for edit in followed.edits()] == ["c", "d"]
    path.unlink()
    assert followed.edits() == ()
    append_edit(path, relabel("e", 1))
    assert [edit.id for edit in followed.edits()] == ["e"]


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path, before: bytes) -> None:
    path, said = tmp_path / "edits.jsonl", list[str]()
    first, second = (relabel(name, 1).to_line().encode() for name in "ab")
    followed = FollowedFile(path, say=said.append)
    path.write_bytes(before + first + second[:20])
    assert [edit.id for edit in followed.edits()] == ["a"] and said == [
        f"{path} line 2 was cut off by a crash and is passed over"
    ]
    path.write_bytes(before + first + second[:-1])
    assert [edit.id for edit in followed.edits()] == ["a", "b"]
    append_edit(path, relabel("c", 1))
    assert [edit.id for edit in followed.edits()] == ["a", "b", "c"]
    path.write_bytes(before + first + second[:20])
    append_edit(path, relabel("d", 1))
    assert [(edit.id, edit.line) for edit in followed.edits()] == [("a", 1), ("d", 3)]


def test_a_line_that_is_none_is_said_until_it_is_mended(tmp_path: Path) -> None:
    path = written(tmp_path / "edits.jsonl", relabel("a", 1))
    followed = FollowedFile(path)
    followed.edits()
    content = path.read_bytes()
    path.write_bytes(content + b"nonsense\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 2 is no JSON"):
            followed.edits()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert [edit.id for edit in followed.edits()] == ["a"]
    path.write_bytes(content + make_edit("undo", of="1" * 32).to_line().encode())
    with pytest.raises(DataError, match="line 2 is an undo of"):
        followed.edits()
