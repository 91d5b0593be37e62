from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from audited import files_task, write_files
from reported import BENGALI, EVIL, LONG, Drawn, Page, made_audit, read_page, ships_audit, with_model

from kaggle_kit.audit import montage, sections
from kaggle_kit.audit.after_model import look_after_model
from kaggle_kit.audit.captions import LONGEST, cut
from kaggle_kit.audit.duplicates import Duplicates, Group
from kaggle_kit.audit.examine import Advice, Audit, Options, examine
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.map_section import as_json
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.report import page_fields, write_report
from kaggle_kit.audit.traits import Trait
from kaggle_kit.folds import Folds
from kaggle_kit.predictions import Predictions


@pytest.fixture(scope="module")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of the sample `ships`, with its planted defects."""
    return ships_audit(tmp_path_factory.mktemp("ships"))


def test_the_page_holds_all_it_needs_and_runs_no_script_but_its_own(ships: Audit, tmp_path: Path) -> None:
    page = read_page(ships, tmp_path)
    pictures = [one for one in page.addresses if not one.startswith("#")]
    assert len(pictures) > 30 and all(one.startswith("data:image/") for one in pictures)
    assert {one[1:] for one in page.addresses if one.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    (data, points), (_, script) = page.scripts
    assert data["type"] == "application/json" and json.loads(points)["ids"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert "http" not in script and "fetch(" not in script


def test_it_goes_from_what_to_do_first_to_the_single_image(ships: Audit, tmp_path: Path) -> None:
    page = read_page(ships, tmp_path)
    assert all(step.text in page.text for step in ships.advice)
    titles = ["What to do first", "Classes", "What classes look like", "Sizes and light", "Files and lists"]
    titles += ["Unlike the rest", "Duplicates", "Train and test", "Map"]
    assert "No class is rare (fewer than" in page.text
    places = [page.text.rindex(title) for title in titles]
    assert places == sorted(places)
    for kind in ("broken", "empty", "exact_duplicate"):
        ids = [finding.id for finding in ships.findings if finding.kind == kind]
        assert ids and all(name in page.text for name in ids)
    assert "crosses train and test" in page.text
    assert "Label issues" not in page.text


def test_counts_are_those_of_the_audit(ships: Audit) -> None:
    fields, _ = page_fields(ships)
    (head,) = fields["classes"]["heads"]
    counted = ships.counts.heads["category"]
    assert {row["name"]: row["images"] for row in head["rows"]} == {
        name: f"{number:,}" for name, number in zip(counted.names, counted.count.tolist(), strict=True)
    }
    assert all(sum(map(int, row["folds"])) == int(row["images"]) for row in head["rows"])
    assert [fold["images"] for fold in fields["classes"]["folds"]] == ["40", "40", "40"]
    assert fields["tiles"][:4] == [("180", "images"), ("120", "train"), ("60", "test"), ("120", "labelled")]


def test_points_are_coloured_by_class_split_and_fold(ships: Audit) -> None:
    fields, pictures = page_fields(ships)
    points = json.loads(fields["map"]["points"])
    number = len(points["ids"])
    assert number == len(pictures.dots) == 179  # one image is cut short
    assert all(len(points[name]) == number for name in ("x", "y", "where", "labels"))
    by = {view["name"]: view for view in points["views"]}
    assert list(by) == ["category", "split", "fold"]
    for place, name in enumerate(points["ids"]):
        row = int(np.flatnonzero(ships.images.id == name)[0])
        label, is_test = int(ships.label_rows()[row]), ships.images.split[row] == "test"
        assert by["split"]["of"][place] == is_test
        assert by["category"]["of"][place] == (-1 if is_test else ships.labels.classes["category"][label])
        assert by["fold"]["of"][place] == (-1 if is_test else ships.fold_of()[row])


def test_a_broken_image_is_told_of_without_a_picture(ships: Audit) -> None:
    fields, pictures = page_fields(ships)
    row = int(np.flatnonzero(ships.images.broken != "")[0])
    assert row not in pictures.alone and row not in pictures.tiles and row not in pictures.dots
    (broken,) = [one for one in fields["files"]["lists"] if one["title"] == "Cannot be read"]
    assert broken["rows"][0]["id"] == ships.images.id[row] and "cut short" in broken["rows"][0]["text"]


def test_hostile_names_are_harmless_and_readable(tmp_path: Path) -> None:
    heads = {"kind": {"classes": [EVIL, BENGALI, LONG]}, "</h3><img src=x>": {"classes": [EVIL + "2", "b"]}}
    audit = made_audit(tmp_path, heads, num_train=60, num_test=6)
    ids = audit.images.id.astype(object)
    ids[:3] = [EVIL, BENGALI, LONG]
    images = dataclasses.replace(audit.images, id=ids.astype(np.str_))
    labels = dataclasses.replace(audit.labels, ids=images.id[:60])
    sources = {"train": Drawn(images.id[:60]), "test": Drawn(images.id[60:])}
    opened = Opened(sources=sources, absent={}, unnamed={}, stray=np.array([EVIL]))  # type: ignore[arg-type]
    findings = tuple(
        Finding(kind=kind, id=name, split="train", detail=EVIL) for kind in ("broken", "dark") for name in ids[:3]
    )
    groups = (Group(kind="exact", number=0, rows=(0, 1, 60), crosses=True, contradicts=("</h3><img src=x>",)),)
    audit = dataclasses.replace(
        audit,
        images=images,
        labels=labels,
        opened=opened,
        findings=findings,
        duplicates=Duplicates(groups=groups, group_of=np.arange(66)),
        advice=(Advice(text=EVIL, command=f"kaggle-kit review '{EVIL}'", severity="now"),),
        notes=(EVIL,),
    )
    page = read_page(with_model(audit), tmp_path)
    assert len(page.scripts) == 2 and not any("broken=1" in script for data, script in page.scripts if not data)
    assert not {one for one in page.addresses if not one.startswith(("data:image/", "#"))}
    points = json.loads(page.scripts[0][1])
    assert points["ids"][0] == EVIL and points["views"][0]["names"][:2] == [EVIL, BENGALI]
    assert page.text.count(EVIL) > 10 and BENGALI in page.text
    assert LONG not in page.text and cut(LONG) in page.text and len(cut(LONG)) <= LONGEST


def test_json_cannot_end_the_element_it_stands_in() -> None:
    text = as_json({EVIL: "</script><!-- & \u2028"})
    assert not re.search(r"[<>&\u2028]", text) and json.loads(text) == {EVIL: "</script><!-- & \u2028"}


def test_nothing_to_tell_makes_a_short_page(tmp_path: Path) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": 2}}, num_train=40, map=None, findings=())
    page = read_page(audit, tmp_path)
    assert "Nothing was found that needs mending." in page.text
    assert "Every image can be read" in page.text and "Equal: 0 groups" in page.text
    assert page.scripts == []
    for title in ("Unlike the rest", "Train and test", "Map", "Label issues", "Never right", "Top losses"):
        assert title not in page.text


def test_what_a_model_stumbles_over_is_shown_with_its_images(tmp_path: Path) -> None:
    heads = {"kind": {"classes": ["cat", "dog", "cow"], "values": [7, 8, 9]}, "size": {"classes": ["small", "large"]}}
    audit = with_model(made_audit(tmp_path, heads, num_train=200))
    fields, pictures = page_fields(audit)
    model = fields["model"]
    assert audit.after is not None
    issues = [one for one in audit.findings if one.kind == "label_issue" and one.head == "kind"]
    shown = model["issues"][0]["items"]
    assert [item["id"] for item in shown] == [one.id for one in issues[: len(shown)]] and len(shown) > 5
    assert {item["label"] for item in shown} <= {"cat", "dog", "cow"}  # not what files write
    assert all(item["row"] in pictures.alone for item in shown)
    kind = model["heads"][0]
    assert [[int(cell["count"] or 0) for cell in line["cells"]] for line in kind["lines"]] == audit.after.heads[
        0
    ].matrix.tolist()
    titles = ["Files and lists", "Label issues", "Top losses", "What is confused", "Map"]
    places = [read_page(audit, tmp_path).text.rindex(title) for title in titles]
    assert places == sorted(places)
    pair = kind["pairs"][0]
    assert int(pair["images"]) == audit.after.heads[0].pairs[0].images and len(pair["items"]) == 5
    page = read_page(audit, tmp_path)
    assert f"{pair['label']} taken for {pair['said']}" in page.text
    assert [view["name"] for view in json.loads(fields["map"]["points"])["views"]][-1] == "the model"


def test_what_a_weak_model_doubts_stands_apart(tmp_path: Path) -> None:
    audit = with_model(made_audit(tmp_path, {"kind": {"classes": 5}}, num_train=400), right=0.5, noise=0.4)
    assert audit.after is not None
    (look,) = audit.after.heads
    (issues,) = page_fields(audit)[0]["model"]["issues"]
    assert issues["number"] == f"{look.num_issues:,}" and look.num_doubts > 0
    assert int(issues["num_unsure"]) == look.num_doubts
    assert all(item["text"].startswith("not sure: ") for item in issues["unsure"])
    assert not any(item["text"].startswith("not sure: ") for item in issues["items"])
    page = read_page(audit, tmp_path)
    assert f"This model {look.weakness}: train a better one, or look at the first 30 only." in page.text
    assert f"{look.num_issues} labels that look wrong" in page.text
    assert f"Not sure: {look.num_doubts} more of which the model says otherwise" in page.text


def test_a_trait_is_told_above_the_images_that_have_it(tmp_path: Path) -> None:
    trait = Trait(kind="dark", head="kind", value="1", name="night", images=9, of_class=9, found=12, test_share=0.1)
    dark = tuple(Finding(kind="dark", id=f"i{row}", split="train", score=-0.1) for row in range(9))
    audit = made_audit(tmp_path, {"kind": {"classes": ["day", "night"]}}, num_train=40, findings=dark, traits=(trait,))
    text = "9 of the 12 labelled images that are dark are 'night', which is dark in all its images: a trait"
    assert text in read_page(audit, tmp_path).text


def test_combinations_never_got_are_listed_with_what_is_said_instead(tmp_path: Path) -> None:
    audit = with_model(
        made_audit(tmp_path, {"kind": {"classes": ["cat", "dog"]}, "size": {"classes": 2}}, num_train=100)
    )
    assert audit.after is not None
    probs = {name: one.copy() for name, one in audit.after.probs.items()}
    truth = audit.after.truth
    rows = np.flatnonzero((truth["kind"] == 1) & (truth["size"] == 0))
    probs["kind"][rows] = [0.9, 0.1]
    oof = Predictions(ids=audit.labels.ids, probs=probs)
    run = SimpleNamespace(name="b", folder=Path("b"), task=audit.task, oof=lambda: oof)
    after = look_after_model(audit.task, audit.labels, [run])  # type: ignore[list-item]
    page = read_page(dataclasses.replace(audit, after=after), tmp_path)
    assert f"dog said cat 0 {len(rows)}" in page.text


def test_a_multi_label_head_is_shown_label_by_label(tmp_path: Path) -> None:
    heads = {"tags": {"classes": ["red", "round", "big"], "kind": "multilabel"}}
    audit = with_model(made_audit(tmp_path, heads, num_train=150, num_test=5))
    fields, _ = page_fields(audit)
    rows = {row["name"]: row for row in fields["model"]["heads"][0]["sets"]}
    truth = audit.labels.classes["tags"].sum(axis=0)
    assert [int(rows[name]["images"]) for name in ("red", "round", "big")] == truth.tolist()
    view = json.loads(fields["map"]["points"])["views"][0]
    assert view["names"][-2:] == ["no class", "several classes"] and max(view["of"]) <= 4 and view["of"][-1] == -1
    assert "tags with itself" in read_page(audit, tmp_path).text


def test_many_classes_fold_away_and_the_most_confused_come_first(tmp_path: Path) -> None:
    heads = {name: {"classes": 168} for name in ("root", "vowel", "consonant")}
    audit = with_model(made_audit(tmp_path, heads, num_train=3000, num_test=20))
    fields, pictures = page_fields(audit)
    assert len(pictures.tiles) <= sections.MOST_TILES
    assert [len(one["cards"]) + len(one["more"]) for one in fields["montages"]] == [168] * 3
    assert all(int(pair["images"]) > 1 for head in fields["model"]["heads"] for pair in head["pairs"])
    head = fields["model"]["heads"][0]
    assert head["heat"].startswith("data:image/png") and head["lines"] == []
    wrong = [int(row["images"]) * (1 - float(row["right"][:-1]) / 100) for row in head["worst"]]
    assert len(wrong) == 15 and all(a >= b - 0.1 for a, b in itertools.pairwise(wrong))
    assert len(write_report(audit, tmp_path / "report.html").read_bytes()) < 4e6


def test_pictures_that_do_not_fit_are_left_out_from_the_end_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": 2}}, num_train=80)
    dark = tuple(Finding(kind="dark", id=f"i{row}", split="train") for row in range(18))
    audit = with_model(dataclasses.replace(audit, findings=dark))
    whole, _ = page_fields(audit)
    monkeypatch.setattr(montage, "MAX_ALONE_BYTES", 3000)
    fields, pictures = page_fields(audit)
    kept = [item["row"] in pictures.alone for item in fields["model"]["issues"][0]["items"]]
    assert kept[0] and not any(item["row"] in pictures.alone for item in fields["odd"][0]["items"][-3:])
    assert not any("left out" in note for note in whole["notes"])
    assert any(re.fullmatch(r"\d+ pictures were left out so that this page stays small\.", n) for n in fields["notes"])
    assert "no picture" in read_page(audit, tmp_path).text


def test_a_source_that_fails_midway_leaves_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": 2}}, num_train=30)

    def fail(self: object, row: int) -> np.ndarray:
        raise OSError(f"stale handle at {row}")

    monkeypatch.setattr(Drawn, "read", fail)
    fields, pictures = page_fields(audit)
    assert not pictures.dots and fields["map"] == {}
    assert "Some pictures of train are missing: stale handle at 0." in fields["notes"]
    assert "kind" in read_page(audit, tmp_path).text


def test_the_same_audit_gives_the_same_page(ships: Audit, tmp_path: Path) -> None:
    first = write_report(ships, tmp_path / "a.html").read_bytes()
    assert write_report(ships, tmp_path / "b.html").read_bytes() == first


def test_two_hundred_thousand_images_give_a_small_page(tmp_path: Path) -> None:
    heads = {"root": {"classes": 168}, "vowel": {"classes": 11}, "consonant": {"classes": 7}}
    number = 200_000
    ids = np.array([f"i{row}" for row in range(number)])
    folds = Folds(
        ids=ids, fold=np.arange(number) % 5, unseen=np.zeros(number, bool), scheme="made", seed=0, data_hash=""
    )
    audit = made_audit(tmp_path, heads, num_train=number, num_test=20, folds=folds)
    dark = tuple(Finding(kind="dark", id=f"i{row}", split="train", score=1) for row in range(50_000))
    groups = tuple(Group(kind="exact", number=n, rows=tuple(range(9 * n, 9 * n + 9))) for n in range(20_000))
    audit = dataclasses.replace(
        audit, findings=dark, duplicates=Duplicates(groups=groups, group_of=np.arange(number + 20))
    )
    page = write_report(audit, tmp_path / "report.html")
    assert page.stat().st_size < 5e6
    text = Page(page.read_text(encoding="utf-8")).text
    assert (
        f"And 49,982 more; kaggle-kit review {tmp_path} shows all that are of train." in text
        and "2,000 of 200,020 images are drawn" in text
    )
    assert "20,000 groups, 180,000 images" in text


def test_a_task_without_test_or_readable_images_has_a_page_too(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": b"no picture" for row in range(4)}, {})
    audit = examine(files_task(), tmp_path / "data", tmp_path / "audit", Options(map_method="pca", fast=True))
    page = read_page(audit, tmp_path)
    assert "Cannot be read: 4" in page.text and "Nearly equal images were not looked for." in page.text
