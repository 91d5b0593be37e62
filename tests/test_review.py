from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import images_of, scene
from reviewed import NAMES, counts, decide, issue, made_desk, shown

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.review import desk as desk_module
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.audit.review.opening import check_writable, open_desk
from kaggle_kit.audit.review.queues import ALL_HEADS, QUEUES, question_of
from kaggle_kit.edits import append_edit, effective, log, make_edit, read_edits
from kaggle_kit.errors import DataError
from kaggle_kit.labels import Labels

ROW = {name: row for row, name in enumerate(NAMES)}


def test_queues_hold_what_was_found_the_worst_first(desk: Desk) -> None:
    assert counts(desk) == {"labels": (4, 4), "duplicates": (3, 3), "empty": (1, 1), "broken": (1, 1)}
    assert shown(desk, "labels") == [[NAMES[row]] for row in (3, 4, 5, 6)]
    image = desk.page("labels", start=0, size=1)["entries"][0]["images"][0]
    assert (image["labels"], image["suggested"], image["split"]) == ({"kind": "1"}, {"kind": "0"}, "train")
    assert desk.state()["heads"][0]["classes"][1] == {"value": "1", "name": "<b>dog</b>"}


def test_images_that_belong_together_are_one_entry_contradictions_first(desk: Desk) -> None:
    groups = shown(desk, "duplicates")
    assert sorted(map(sorted, groups)) == sorted(
        [[NAMES[0], NAMES[10]], [NAMES[1], NAMES[11]], ["test0.png", NAMES[2]]]
    )


def test_what_nobody_can_decide_is_in_no_queue(tmp_path: Path) -> None:
    both = [Finding(kind="gray", id=name, split=split, score=1) for name, split in (("i0", "train"), ("i8", "test"))]
    twins = [Finding(kind="exact_duplicate", id=name, split="test", group=0, score=1) for name in ("i8", "i9")]
    assert counts(made_desk(tmp_path, [*both, *twins])) == {"gray": (1, 1)}


def test_decisions_are_on_the_disk_at_once_and_close_their_entry(desk: Desk) -> None:
    answer = decide(desk, "relabel", "labels", NAMES[3], kind="0")
    assert answer["entry"]["images"][0]["edited"] == {"kind": "0"} and answer["said"] == f"{NAMES[3]} is kind 0 now"
    decide(desk, "drop", "labels", NAMES[4])
    assert decide(desk, "keep", "labels", NAMES[5])["queues"][0]["open"] == 1
    found = effective(read_edits(desk.path))
    assert found.relabelled == {NAMES[3]: {"kind": "0"}}
    assert (set(found.dropped), found.kept) == ({NAMES[4]}, frozenset({NAMES[5]}))
    assert [one.by for one in read_edits(desk.path)] == ["ann"] * 3
    assert shown(desk, "labels") == [[NAMES[6]]] and len(shown(desk, "labels", decided=True)) == 4


def test_what_is_kept_for_one_thing_is_still_asked_about_another(tmp_path: Path) -> None:
    findings = [
        issue("i1"),
        issue("i1", kind="top_loss"),
        Finding(kind="gray", id="i1", split="train", score=1),
        *(Finding(kind="exact_duplicate", id=name, split="train", group=3, score=1) for name in ("i1", "i2")),
    ]
    desk = made_desk(tmp_path, findings)
    decide(desk, "keep", "gray", "i1")
    assert counts(desk) == {"labels": (1, 1), "losses": (1, 1), "duplicates": (1, 1), "gray": (0, 1)}
    decide(desk, "keep", "labels", "i1")
    assert counts(desk) == {"labels": (0, 1), "losses": (0, 1), "duplicates": (1, 1), "gray": (0, 1)}
    decide(desk, "drop", "duplicates", "i1")
    assert counts(desk)["duplicates"] == (0, 1)
    by_hand = made_desk(tmp_path / "by_hand", findings)
    append_edit(by_hand.path, make_edit("keep", id="i1", why="I asked the museum"))
    assert counts(by_hand) == {"labels": (0, 1), "losses": (0, 1), "duplicates": (1, 1), "gray": (0, 1)}


def test_one_of_a_group_is_kept_in_one_decision_that_is_undone_in_one(desk: Desk) -> None:
    answer = decide(desk, "only", "duplicates", NAMES[10])
    assert answer["said"] == f"kept {NAMES[10]}, dropped 1 like it" and not answer["entry"]["open"]
    assert effective(read_edits(desk.path)).dropped == {NAMES[0]: f"duplicate of {NAMES[10]}"}
    assert desk.undo("duplicates")["where"]["queue"] == "duplicates"
    found = effective(read_edits(desk.path))
    assert (found.dropped, found.kept, counts(desk)["duplicates"]) == ({}, frozenset(), (3, 3))


def test_a_group_is_settled_when_all_are_kept_or_one_is_left(tmp_path: Path) -> None:
    names = ["i0", "i1", "i2", "i8"]
    twins = [
        Finding(kind="near_duplicate", id=name, split="test" if name == "i8" else "train", group=1, score=1)
        for name in names
    ]
    desk = made_desk(tmp_path, twins)
    decide(desk, "drop", "duplicates", "i0")
    assert counts(desk)["duplicates"] == (1, 1)
    decide(desk, "drop", "duplicates", "i2")
    assert counts(desk)["duplicates"] == (0, 1)
    decide(desk, "keep", "duplicates", "i1")
    found = effective(read_edits(desk.path))
    assert (found.dropped, found.kept) == ({}, frozenset({"i0", "i1", "i2"}))


def test_what_speaks_against_the_model_is_said_where_its_doubts_are_asked_about() -> None:
    labels, duplicates = (next(queue for queue in QUEUES if queue.name == name) for name in ("labels", "duplicates"))
    weakness = "This model errs on 29% of kind itself: look at the first 30 only."
    assert question_of(labels, all_heads=True, weakness=weakness) == f"{weakness} {labels.question} {ALL_HEADS}"
    assert question_of(labels, all_heads=False, weakness="") == labels.question
    assert question_of(duplicates, all_heads=False, weakness=weakness) == duplicates.question


def test_a_label_is_settled_when_every_questioned_head_is_answered(tmp_path: Path) -> None:
    findings = [issue("i1", head="root"), issue("i1", head="vowel")]
    two = {"root": ({"classes": 3}, np.ones(8, int)), "vowel": ({"classes": 2}, np.ones(8, int))}
    desk = made_desk(tmp_path, findings, **two)
    decide(desk, "relabel", "labels", "i1", root="2")
    assert counts(desk)["labels"] == (1, 1)
    with pytest.raises(DataError, match="'i1' is that already; head 'vowel' is still in question"):
        decide(desk, "relabel", "labels", "i1", root="2")
    decide(desk, "relabel", "labels", "i1", vowel="1")  # as it is: kept
    assert counts(desk)["labels"] == (0, 1)
    desk.undo()
    decide(desk, "relabel", "labels", "i1", root="0", vowel="0")
    assert counts(desk)["labels"] == (0, 1)
    desk.undo()
    assert effective(read_edits(desk.path)).relabelled == {"i1": {"root": "2"}}


def test_several_classes_are_written_in_their_order(tmp_path: Path) -> None:
    head = {"kind": "multilabel", "classes": ["sea", "sky", "ক"], "separator": "|"}
    sets = np.eye(3, dtype=np.uint8)[np.arange(8) % 3]
    desk = made_desk(tmp_path, [issue("i0", head="tags", label="sea", suggested="")], tags=(head, sets))
    image = decide(desk, "relabel", "labels", "i0", tags="ক| sea|ক")["entry"]["images"][0]
    assert (image["labels"], image["edited"]) == ({"tags": "sea"}, {"tags": "sea|ক"})
    assert decide(desk, "relabel", "labels", "i0", tags="")["entry"]["images"][0]["edited"] == {"tags": ""}
    with pytest.raises(DataError, match="'land' is no class of head 'tags'"):
        decide(desk, "relabel", "labels", "i0", tags="sea|land")


def test_undo_takes_back_one_s_own_decisions_that_hold_one_by_one(desk: Desk) -> None:
    for name in (NAMES[3], NAMES[4]):
        decide(desk, "drop", "labels", name)
    assert [desk.undo()["said"] for _ in range(2)] == [f"undone: drop of {name}" for name in (NAMES[4], NAMES[3])]
    assert effective(read_edits(desk.path)).dropped == {}
    with pytest.raises(DataError, match="there is nothing to undo by 'ann'"):
        desk.undo()


def test_undo_says_where_the_image_is_asked_about(desk: Desk) -> None:
    decide(desk, "drop", "labels", NAMES[4])
    answer = desk.undo("empty")
    assert (answer["said"], answer["where"]) == (f"undone: drop of {NAMES[4]}", {"queue": "empty", "place": 0})


def test_another_reviewer_s_decisions_appear_and_are_not_undone(audited: Path, desk: Desk) -> None:
    bob = open_desk(audited, edits=desk.path, by="bob")
    decide(bob, "drop", "labels", NAMES[3])
    assert len(shown(desk, "labels")) == 3
    with pytest.raises(DataError, match="nothing to undo by 'ann'"):
        desk.undo()


def decide_all(audited: Path, path: Path, name: str) -> None:
    desk = open_desk(audited, edits=path, by=name)
    for _ in range(10):
        for row in (3, 4, 5, 6):
            decide(desk, "keep", "labels", NAMES[row])


def test_two_reviewers_at_once_lose_nothing(audited: Path, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=decide_all, args=(audited, path, name)) for name in ("ann", "bob")]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    edits = read_edits(path)
    assert [sum(one.by == name for one in edits) for name in ("ann", "bob")] == [40, 40]


def test_a_page_starts_at_a_place_that_decisions_do_not_move(tmp_path: Path) -> None:
    desk = made_desk(tmp_path, [issue(f"i{row}", label=str(row % 2), suggested="") for row in range(8)])
    assert shown(desk, "labels", size=3) == [["i0"], ["i1"], ["i2"]]
    for name in ("i0", "i1"):
        decide(desk, "keep", "labels", name)
    page = desk.page("labels", start=3, size=3)
    assert [entry["place"] for entry in page["entries"]] == [3, 4, 5] and (page["before"], page["count"]) == (1, 6)
    back = desk.page("labels", start=6, size=3, back=True)
    assert [entry["place"] for entry in back["entries"]] == [3, 4, 5]
    assert desk.page("labels", start=99, size=3)["entries"] == []


def test_of_a_queue_of_200_000_images_only_what_changed_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 200_000
    few = images_of([scene(0)])
    columns = {
        name: np.zeros((number, *getattr(few, name).shape[1:]), getattr(few, name).dtype)
        for name in few.__dataclass_fields__
    }
    names = np.array([f"i{row}" for row in range(number)], np.str_)
    images = images_of([scene(0)], **{**columns, "id": names, "split": np.full(number, "train")})
    made = made_desk(tmp_path, [])
    findings = [issue(f"i{row}") for row in range(number)]
    findings += [
        Finding(kind="near_duplicate", id=f"i{row}", split="train", group=row // 2, score=row % 7)
        for row in range(number)
    ]
    desk = Desk(
        made.task,
        Labels(ids=names, classes={"kind": np.ones(number, np.int64)}),
        images,
        findings,
        made.pictures,
        path=made.path,
        by="ann",
    )
    for name in ("i199999", "i3"):
        desk.decide("drop", queue="labels", entry=int(name[1:]), row=int(name[1:]), values={})
    parsed: list[object] = []
    looked: list[object] = []
    parse_edit, is_open = log.parse_edit, desk_module.is_open
    monkeypatch.setattr(log, "parse_edit", lambda *a, **k: (parsed.append(a), parse_edit(*a, **k))[1])
    monkeypatch.setattr(desk_module, "is_open", lambda *a: (looked.append(a), is_open(*a))[1])
    for _ in range(10):
        page = desk.page("labels", start=150_000, size=24)
        desk.decide("keep", queue="labels", entry=7, row=7, values={})
        desk.state()
    assert len(parsed) == 10  # each line once
    assert len(looked) == 2  # the two entries of image 7, and only when it was kept first
    assert page["count"] == number - 3 and len(page["entries"]) == 24
    assert counts(desk)["duplicates"] == (number // 2 - 2, number // 2)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "../../etc/passwd", "a'b\"c", "ক্ষি.png", "a b/c\\d"])
def test_any_id_is_decided_about(tmp_path: Path, name: str) -> None:
    desk = made_desk(
        tmp_path, [issue(name, label="0", suggested="1")], ids=[name, *(f"i{row}" for row in range(1, 10))]
    )
    decide(desk, "relabel", "labels", name, kind="1")
    assert effective(read_edits(desk.path)).relabelled == {name: {"kind": "1"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "undo"}, "action is 'undo'; expected relabel, drop, keep or only"),
        ({"queue": "label"}, "there is no queue 'label'; did you mean 'labels'?"),
        ({"entry": 9}, "queue 'labels' has no entry 9; it has 1"),
        ({"entry": -1}, "queue 'labels' has no entry -1"),
        ({"row": 2}, "image 2 is not in entry 0 of queue 'labels'"),
        ({"queue": "duplicates", "row": 8}, "'i8' is no labelled train image"),
        ({"values": {}}, "no head is relabelled"),
        ({"values": {"sort": "1"}}, "there is no head 'sort'; known: kind"),
        ({"values": {"kind": "7"}}, "'7' is no class of head 'kind'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    twins = [
        Finding(kind="exact_duplicate", id=name, split=split, group=0, score=1)
        for name, split in (("i1", "train"), ("i8", "test"))
    ]
    desk = made_desk(tmp_path, [issue("i1"), *twins])
    sent: dict[str, Any] = {"action": "relabel", "queue": "labels", "entry": 0, "row": 1, "values": {"kind": "0"}}
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        desk.decide(**{**sent, **change})
    assert not desk.path.exists()


def test_a_disk_that_takes_nothing_is_said_and_the_decision_is_not_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match="No space left on device.: this was not decided; make room there"):
        decide(desk, "drop", "labels", NAMES[3])
    monkeypatch.undo()
    assert counts(desk)["labels"] == (4, 4)
    decide(desk, "drop", "labels", NAMES[3])
    assert [edit.action for edit in read_edits(desk.path)] == ["drop"]


def test_an_edits_file_that_a_person_broke_is_said_by_its_line(desk: Desk) -> None:
    decide(desk, "drop", "labels", NAMES[3])
    with desk.path.open("a") as file:
        file.write('{"action": "explode"}\n')
    with pytest.raises(DataError, match="edits.jsonl line 2: `action` is 'explode'"):
        desk.state()


def test_edits_of_other_data_are_refused_when_the_page_is_opened(audited: Path, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text(make_edit("drop", id="nobody").to_line(), encoding="utf-8")
    with pytest.raises(DataError, match="edits.jsonl line 1: 'nobody' is no labelled train image"):
        open_desk(audited, edits=path)


def test_a_folder_without_an_audit_and_data_that_are_gone_are_said(audited: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no audit; make one with `kaggle-kit audit"):
        open_desk(tmp_path)
    meta = json.loads((audited / "audit.json").read_text())
    (tmp_path / "audit.json").write_text(json.dumps({**meta, "data": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match="gone, which is gone; put the data back there"):
        open_desk(tmp_path)


def test_a_place_that_cannot_be_written_is_said_before_anything_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="is a folder; give --edits the path of a file"):
        check_writable(tmp_path)
    path = tmp_path / "edits.jsonl"
    path.write_text("")
    monkeypatch.setattr(
        os, "access", lambda place, _: Path(place) == path
    )  # but not the folder, which is to hold a lock
    with pytest.raises(DataError, match=f"edits.jsonl cannot be written: {tmp_path} is read-only; give --edits"):
        check_writable(path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match="new/edits.jsonl cannot be written: .* is read-only; give --edits"):
        check_writable(tmp_path / "new" / "edits.jsonl")
