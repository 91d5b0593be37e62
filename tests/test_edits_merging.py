from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_edits import at, relabel, written

from kaggle_kit.edits import (
    Contradiction,
    Edit,
    append_edit,
    effective,
    make_edit,
    merge_edits,
    read_edits,
    write_edits,
)
from kaggle_kit.edits.ordering import in_order
from kaggle_kit.errors import DataError


def keep(name: str, why: str = "label") -> Edit:
    return make_edit("keep", id=name, why=why, by="bob")


def drop(name: str) -> Edit:
    return make_edit("drop", id=name, by="bob")


def merged(folder: Path, *files: Sequence[Edit]) -> list[Contradiction]:
    """Merge lists of edits, and check that it matters little which is named first."""
    paths = [folder / f"{number}.jsonl" for number in range(len(files))]
    for path, edits in zip(paths, files, strict=True):
        write_edits(edits, path)
    found = merge_edits(paths, folder / "both")
    content = (folder / "both").read_bytes()
    (folder / "both").unlink()
    again = merge_edits(paths[::-1], folder / "both")
    assert (folder / "both").read_bytes() == content

    def sorted_(ones: list[Contradiction]) -> list[Contradiction]:
        return sorted(ones, key=lambda one: (one.id, one.head, one.first.key, one.second.key))

    assert sorted_(found) == sorted_(again)
    return found


def told(found: list[Contradiction]) -> list[tuple[str, str, str, str, str]]:
    return [(one.id, one.head, one.first.action, one.second.action, one.outcome) for one in found]


def test_two_peoples_files_become_one_by_time(tmp_path: Path) -> None:
    shared, mine, theirs = at(relabel("a", 1), 0), at(relabel("b", 1), 2), at(drop("c"), 1)
    files = [written(tmp_path / "1", shared, mine), written(tmp_path / "2", shared, theirs)]
    assert merge_edits(files, tmp_path / "both") == []
    assert read_edits(tmp_path / "both") == [shared, theirs, mine]
    assert merge_edits(files[::-1], files[0]) == [] and read_edits(files[0]) == [shared, theirs, mine]
    append_edit(files[0], make_edit("undo", of=theirs.key))
    assert merge_edits(files, tmp_path / "new") == [] and not effective(read_edits(tmp_path / "new")).dropped


class TestOrder:
    def test_that_of_a_file_holds_whatever_its_clock_did(self, tmp_path: Path) -> None:
        first, second = at(relabel("a", 1), 9), at(relabel("a", 2), 3)
        undo = at(make_edit("undo", of=second.key), 1)
        merged(tmp_path, [first, second, undo], [at(relabel("b", 0), 5)])
        assert [edit.id for edit in read_edits(tmp_path / "both")] == ["b", "a", "a", ""]
        assert effective(read_edits(tmp_path / "both")).relabelled == {"a": {"root": "1"}, "b": {"root": "0"}}

    def test_it_holds_where_another_file_has_a_part_of_the_lines(self, tmp_path: Path) -> None:
        late, early = at(relabel("a", 1), 9), at(relabel("a", 2), 0)
        merged(tmp_path, [late, early], [early])
        assert read_edits(tmp_path / "both") == [late, early]
        assert effective(read_edits(tmp_path / "both")).relabelled == {"a": {"root": "2"}}

    def test_files_that_disagree_on_the_order_go_by_time(self, tmp_path: Path) -> None:
        before, *circle, behind = (
            at(relabel(name, 1), minute) for name, minute in zip("pabcq", (9, 3, 2, 1, 0), strict=True)
        )
        files = [[before, circle[0], circle[1], behind], [circle[1], circle[2], circle[0]]]
        merged(tmp_path, *files)
        assert "".join(edit.id for edit in read_edits(tmp_path / "both")) == "cpbaq"

    def test_an_undo_stays_behind_what_it_undoes_even_then(self, tmp_path: Path) -> None:
        other, edit = at(relabel("b", 1), 5), at(relabel("a", 1), 9)
        undo = at(make_edit("undo", of=edit.key), 0)
        merged(tmp_path, [other, edit, undo], [edit, undo, other])
        assert [one.key for one in read_edits(tmp_path / "both")] == [other.key, edit.key, undo.key]

    def test_all_orders_of_the_files_give_one(self) -> None:
        lines = [
            dataclasses.replace(at(relabel(f"i{number}", 1), number % 3), key=f"{number:032x}") for number in range(9)
        ]
        files = [[lines[one] for one in file] for file in ((0, 3, 6, 1), (1, 4, 0, 8), (8, 2, 5), (7,))]
        orders = {tuple(edit.id for edit in in_order(way)) for way in itertools.permutations(files)}
        assert len(orders) == 1 and len(next(iter(orders))) == 9


class TestContradictions:
    def test_they_are_returned_with_what_becomes_of_the_image(self, tmp_path: Path) -> None:
        seen = at(relabel("d", 1), 0)
        mine = [seen, at(drop("b"), 1), at(relabel("c", 1), 1), at(relabel("a", 1), 3), at(drop("e"), 5)]
        theirs = [seen, at(relabel("a", 2), 2), at(keep("b"), 2), at(drop("c"), 3), at(relabel("d", 2), 4)]
        theirs += [at(drop("e"), 5)]
        found = merged(tmp_path, mine, theirs)
        assert [(one.id, one.head, one.first, one.second, one.outcome) for one in found] == [
            ("a", "root", theirs[1], mine[3], "root 1"),
            ("b", "", mine[1], theirs[2], "kept"),
            ("c", "", mine[2], theirs[3], "dropped"),
        ]

    def test_a_dropped_image_stays_dropped_whoever_relabels_it_later(self, tmp_path: Path) -> None:
        for number, minutes in enumerate([(1, 3), (3, 1)]):
            folder = tmp_path / str(number)
            folder.mkdir()
            found = merged(folder, [at(drop("a"), minutes[0])], [at(relabel("a", 1), minutes[1])])
            assert [one.outcome for one in found] == ["dropped"]
            assert set(effective(read_edits(folder / "both")).dropped) == {"a"}

    @pytest.mark.parametrize("minutes", [(1, 3), (3, 1)])
    @pytest.mark.parametrize(
        ("mine", "theirs", "expected"),
        [
            ([keep("a")], [relabel("a", 1)], "root 1"),
            ([keep("a", "I asked the museum")], [relabel("a", 1)], "root 1"),
            ([keep("a"), keep("a", "gray")], [relabel("a", 1)], "root 1"),
            ([keep("a"), relabel("a", 1, "vowel")], [relabel("a", 1)], "root 1"),
            ([keep("a", "gray")], [relabel("a", 1)], ""),
            ([keep("a", "brought back")], [relabel("a", 1)], ""),
            ([keep("b")], [relabel("a", 1)], ""),
            ([keep("a"), relabel("a", 1)], [relabel("a", 1)], ""),
        ],
    )
    def test_a_label_that_one_kept_and_another_changed_is_one(
        self, tmp_path: Path, mine: list[Edit], theirs: list[Edit], expected: str, minutes: tuple[int, int]
    ) -> None:
        mine, theirs = (
            [at(edit, minute) for edit in file] for file, minute in zip((mine, theirs), minutes, strict=True)
        )
        found = merged(tmp_path, mine, theirs)
        actions = ("keep", "relabel") if minutes == (1, 3) else ("relabel", "keep")
        assert told(found) == ([("a", "root", *actions, expected)] if expected else [])

    def test_what_one_decided_in_view_of_the_other_is_none(self, tmp_path: Path) -> None:
        kept = at(keep("a"), 1)
        assert merged(tmp_path, [kept], [kept, at(relabel("a", 1), 3)]) == []

    def test_a_third_person_may_have_settled_it(self, tmp_path: Path) -> None:
        dropped, kept = at(drop("a"), 1), at(keep("a"), 3)
        undo = at(make_edit("undo", of=kept.key), 5)
        found = merged(tmp_path, [dropped], [kept], [dropped, kept, undo])
        assert told(found) == [("a", "", "drop", "keep", "dropped")]


class TestOut:
    @pytest.mark.parametrize("content", ["mine", "my thesis"])
    def test_a_file_that_is_not_merged_is_not_replaced(self, tmp_path: Path, content: str) -> None:
        files = [written(tmp_path / name, drop(name)) for name in ("ann", "bob")]
        out = tmp_path / "out"
        out.write_text(drop("c").to_line() + drop("d").to_line() if content == "mine" else content)
        before, held = out.read_bytes(), "2 decision.s." if content == "mine" else "something else than edits"
        with pytest.raises(DataError, match=f"out exists and holds {held}, which would be lost; name it among"):
            merge_edits(files, out)
        assert out.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == [".ann.lock", ".bob.lock", "ann", "bob", "out"]

    def test_a_link_to_one_of_the_files_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        files = [written(tmp_path / "disk" / "ann", drop("a")), written(tmp_path / "bob", drop("b"))]
        link = tmp_path / "link"
        link.symlink_to(files[0])
        merge_edits(files, link)
        assert link.is_symlink() and {edit.id for edit in read_edits(files[0])} == {"a", "b"}

    def test_a_folder_is_refused_by_its_own_name(self, tmp_path: Path) -> None:
        file = written(tmp_path / "ann", drop("a"))
        (tmp_path / "folder").mkdir()
        with pytest.raises(
            DataError, match=r"folder is a folder; give the path of a file, such as .*folder/edits.jsonl$"
        ):
            merge_edits([file], tmp_path / "folder")
        assert not (tmp_path / ".folder.lock").exists()

    def test_no_files_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nothing to merge"):
            merge_edits([], tmp_path / "both")

    def test_one_key_for_two_decisions_is_refused(self, tmp_path: Path) -> None:
        one = drop("a")
        files = [written(tmp_path / "1", one), written(tmp_path / "2", dataclasses.replace(one, id="b"))]
        with pytest.raises(DataError, match="2 line 1 has the key of .*1 line 1, and says something else"):
            merge_edits(files, tmp_path / "both")
