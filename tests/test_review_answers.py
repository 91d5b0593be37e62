"""What a decision on the review page comes to where others were taken before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reviewed import counts, decide, issue, made_desk, shown

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.edits import effective, make_edit, read_edits, write_edits
from kaggle_kit.errors import DataError


def twins(*names: str, group: int = 1, score: float = 1) -> list[Finding]:
    return [
        Finding(
            kind="near_duplicate", id=name, split="test" if name in ("i8", "i9") else "train", group=group, score=score
        )
        for name in names
    ]


def empty(name: str) -> Finding:
    return Finding(kind="empty", id=name, split="train", score=1)


def dropped(desk: Desk) -> set[str]:
    return set(effective(read_edits(desk.path)).dropped)


class TestRelabelOfADroppedImage:
    def test_it_takes_part_again_and_one_undo_drops_it_again(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [issue("i0", label="0", suggested="1"), empty("i0")])
        decide(desk, "drop", "labels", "i0")
        answer = decide(desk, "relabel", "labels", "i0", kind="1")
        assert answer["said"] == "i0 is kind 1 now; it was dropped, and takes part again"
        image = answer["entry"]["images"][0]
        assert (image["dropped"], image["edited"], answer["entry"]["open"]) == (False, {"kind": "1"}, False)
        assert dropped(desk) == set() and counts(desk) == {"labels": (0, 1), "empty": (1, 1)}
        assert desk.undo()["said"] == "undone: keep and relabel of i0"
        assert dropped(desk) == {"i0"}

    def test_another_head_is_still_in_question_then(self, tmp_path: Path) -> None:
        findings = [issue("i1", head="root", label="1"), issue("i1", head="vowel", label="1")]
        ones = ({"classes": 2}, np.ones(8, int))
        desk = made_desk(tmp_path, findings, root=ones, vowel=ones)
        decide(desk, "drop", "labels", "i1")
        assert decide(desk, "relabel", "labels", "i1", root="0")["entry"]["open"]
        decide(desk, "drop", "labels", "i1")
        answer = decide(desk, "relabel", "labels", "i1", root="0")
        assert answer["said"] == "kept i1: it is that already; it was dropped, and takes part again"
        assert answer["entry"]["open"] and dropped(desk) == set()

    def test_a_label_that_is_right_as_it_is_is_kept(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [issue("i0", label="0", suggested="1")])
        decide(desk, "drop", "labels", "i0")
        assert not decide(desk, "relabel", "labels", "i0", kind="0")["entry"]["open"]
        assert effective(read_edits(desk.path)).kept == {"i0"} and dropped(desk) == set()


@pytest.mark.parametrize("right", ["sea", "sky", "sea|sky"])
def test_an_image_of_no_class_is_settled_by_giving_it_one(tmp_path: Path, right: str) -> None:
    tags = ({"kind": "multilabel", "classes": ["sea", "sky"], "separator": "|"}, np.zeros((8, 2), np.uint8))
    desk = made_desk(tmp_path, [issue("i0", head="tags", label="", suggested="sea")], tags=tags)
    image = desk.page("labels", start=0, size=1)["entries"][0]["images"][0]
    assert image["found"][0]["open"]
    answer = decide(desk, "relabel", "labels", "i0", tags=right)
    assert not answer["entry"]["open"] and not answer["entry"]["images"][0]["found"][0]["open"]
    assert counts(desk)["labels"] == (0, 1)


class TestKeepAllOfAGroup:
    def test_what_another_queue_dropped_stays_dropped(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [*twins("i0", "i1", "i2"), empty("i2")])
        decide(desk, "drop", "empty", "i2")
        answer = decide(desk, "keep", "duplicates", "i0")
        assert answer["said"] == "kept 2 of the group; 1 stay dropped, as another queue had it"
        assert dropped(desk) == {"i2"} and counts(desk) == {"duplicates": (0, 1), "empty": (0, 1)}

    @pytest.mark.parametrize("action", ["drop", "only"])
    def test_what_was_dropped_as_a_duplicate_takes_part_again(self, tmp_path: Path, action: str) -> None:
        desk = made_desk(tmp_path, twins("i0", "i1", "i2"))
        decide(desk, action, "duplicates", "i1")
        assert dropped(desk)
        assert decide(desk, "keep", "duplicates", "i0")["said"] == "kept all 3 of the group"
        assert dropped(desk) == set()

    def test_one_is_chosen_and_what_another_queue_dropped_is_not_dropped_twice(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [*twins("i0", "i1", "i2"), empty("i2")])
        decide(desk, "drop", "empty", "i2")
        assert decide(desk, "only", "duplicates", "i0")["said"] == "kept i0, dropped 1 like it"
        decide(desk, "keep", "duplicates", "i0")
        assert dropped(desk) == {"i2"}

    def test_where_other_queues_dropped_all_of_it_nothing_is_kept(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [*twins("i0", "i1"), empty("i0"), empty("i1")])
        for name in ("i0", "i1"):
            decide(desk, "drop", "empty", name)
        with pytest.raises(DataError, match="all of the group were dropped in other queues"):
            decide(desk, "keep", "duplicates", "i0")
        assert dropped(desk) == {"i0", "i1"}


def test_groups_with_nothing_to_drop_come_last_and_say_so(tmp_path: Path) -> None:
    desk = made_desk(tmp_path, [*twins("i0", "i8", group=0, score=9), *twins("i1", "i2", group=1, score=1)])
    assert shown(desk, "duplicates") == [["i1", "i2"], ["i0", "i8"]]
    notes = [entry["note"] for entry in desk.page("duplicates", start=0, size=9)["entries"]]
    assert notes == ["", "nothing to drop: the others are in the test"]
    answer = decide(desk, "only", "duplicates", "i0")
    assert answer["said"] == "kept i0; nothing to drop: the others are in the test"
    assert [edit.action for edit in read_edits(desk.path)] == ["keep"]


def test_kept_labels_of_several_heads_are_said_to_be_right_all(tmp_path: Path) -> None:
    ones = ({"classes": 2}, np.ones(8, int))
    desk = made_desk(
        tmp_path, [issue("i1", head="root"), issue("i1", head="vowel", kind="top_loss")], root=ones, vowel=ones
    )
    assert desk.state()["queues"][0]["question"].endswith("its labels are right in all heads.")
    assert decide(desk, "keep", "labels", "i1")["said"] == "kept i1: all its labels are right"
    assert counts(desk) == {"labels": (0, 1), "losses": (0, 1)}


class TestKeepAllThatAreLeft:
    def test_it_is_one_decision_that_is_undone_in_one(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [empty(f"i{row}") for row in range(6)])
        decide(desk, "drop", "empty", "i1")
        decide(desk, "keep", "empty", "i2")
        answer = desk.keep_rest("empty", count=4)
        assert answer["said"] == "kept 4 image(s), all that were left here" and counts(desk)["empty"] == (0, 6)
        assert effective(read_edits(desk.path)).kept == {"i0", "i2", "i3", "i4", "i5"} and dropped(desk) == {"i1"}
        answer = desk.undo("empty")
        assert (answer["said"], answer["where"]) == ("undone: keep of 4 images", {"queue": "empty", "place": 0})
        assert counts(desk)["empty"] == (4, 6) and effective(read_edits(desk.path)).kept == {"i2"}

    def test_of_groups_the_dropped_stay_so_and_each_image_is_kept_once(self, tmp_path: Path) -> None:
        desk = made_desk(tmp_path, [*twins("i0", "i1", "i2", group=0), *twins("i2", "i3", "i8", group=1)])
        decide(desk, "drop", "duplicates", "i0")
        assert desk.keep_rest("duplicates", count=2)["said"] == "kept 3 image(s), all that were left here"
        assert [edit.id for edit in read_edits(desk.path)] == ["i0", "i1", "i2", "i3"] and dropped(desk) == {"i0"}

    @pytest.mark.parametrize(("queue", "count"), [("empty", 3), ("empty", 1), ("gray", 0), ("nosuch", 2)])
    def test_another_number_than_was_confirmed_is_refused(self, tmp_path: Path, queue: str, count: int) -> None:
        desk = made_desk(tmp_path, [empty("i0"), empty("i1")])
        with pytest.raises(DataError, match=r"(2|0) are open in '.*' now, not . as you were shown|there is no queue"):
            desk.keep_rest(queue, count=count)
        assert not desk.path.exists()


def test_only_new_lines_of_a_long_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kaggle_kit.edits import log

    desk = made_desk(tmp_path, [issue(f"i{row}") for row in range(8)])
    write_edits([make_edit("relabel", id=f"i{row % 8}", head="kind", value="1") for row in range(500)], desk.path)
    desk.state()
    parsed: list[int] = []
    parse_edit = log.parse_edit

    def counted(text: str, *, where: str, line: int = 0) -> object:
        parsed.append(line)
        return parse_edit(text, where=where, line=line)

    monkeypatch.setattr(log, "parse_edit", counted)
    decide(desk, "keep", "labels", "i0")
    desk.undo()
    assert parsed == [501, 502]
