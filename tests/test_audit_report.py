from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from audited import files_task, images_of, scene, write_files
from conftest import Toy

from kaggle_kit.audit import montage, plots, sections
from kaggle_kit.audit.after_model import look_after_model
from kaggle_kit.audit.captions import LONGEST, cut
from kaggle_kit.audit.counts import count_classes, rare_findings
from kaggle_kit.audit.duplicates import Duplicates, Group
from kaggle_kit.audit.examine import Advice, Audit, Options, examine
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.map2d import Map
from kaggle_kit.audit.map_section import as_json
from kaggle_kit.audit.montage import Wanted, gather_pictures
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.pictures import Images
from kaggle_kit.audit.report import page_fields, write_report
from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.sample import make_sample
from kaggle_kit.task import read_task

EVIL = "<script>window.broken=1</script>\"'&</style>"
BENGALI = "\u0995\u09cd\u09b7\u09bf"
LONG = "a-name-without-end-" * 40


class Page(HTMLParser):
    """What of a page the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.policy = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._inside = tag
        self.addresses += [found[name] for name in ("src", "href", "data", "action", "poster") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "script":
            self.scripts.append((found, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        assert not any(name.startswith("on") for name in found)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is read, spaces as one."""
        return " ".join(" ".join(self.texts).split())


def read_page(audit: Audit, folder: Path) -> Page:
    """Write the report and read it back."""
    return Page(write_report(audit, folder / "report.html").read_text(encoding="utf-8"))


class Drawn:
    """A source whose images are drawn when they are read; broken ones fail as real ones do."""

    stored = None
    shape = (24, 32, 1)

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def read(self, row: int) -> np.ndarray:
        return np.full((24, 32, 1), row % 256, np.uint8)

    def encoded_bytes(self) -> int:
        return 1


def made_audit(folder: Path, heads: dict[str, Any], *, num_train: int, num_test: int = 0, **parts: Any) -> Audit:
    """Return an audit of images that are drawn when they are read, however many there are."""
    rng, number = np.random.default_rng(0), num_train + num_test
    one = images_of([scene(0, channels=1)])
    columns = {f.name: np.repeat(getattr(one, f.name), number, axis=0) for f in dataclasses.fields(Images)}
    columns["id"] = np.array([f"i{row}" for row in range(number)])
    columns["split"] = np.array(["train"] * num_train + ["test"] * num_test, np.str_)
    columns["brightness"] = rng.random(number).astype(np.float32)
    images = Images(**columns)
    task = files_task(heads=heads, metric="macro_f1", submission={"form": "row_per_head", "id": "row_id"})
    classes = {name: rng.integers(0, head.num_classes, num_train) for name, head in task.heads.items()}
    for name in task.multilabel_heads:
        classes[name] = (rng.random((num_train, task.heads[name].num_classes)) < 0.3).astype(np.uint8)
    labels = Labels(ids=images.id[:num_train], classes=classes)
    folds = parts.get("folds")
    counts = count_classes(task, labels, num_images={"train": num_train, "test": num_test}, folds=folds)
    shown = np.arange(min(number, 5000))
    place = rng.uniform(-1, 1, (2, len(shown))).astype(np.float32)
    sources = {"train": Drawn(images.id[:num_train])} | ({"test": Drawn(images.id[num_train:])} if num_test else {})
    values: dict[str, Any] = {
        "task": task,
        "data": folder / "data",
        "folder": folder,
        "opened": Opened(sources=sources, absent={}, unnamed={}),  # type: ignore[arg-type]
        "images": images,
        "labels": labels,
        "folds": None,
        "counts": counts,
        "duplicates": Duplicates(groups=(), group_of=np.arange(number)),
        "drift": None,
        "leaks": (),
        "map": Map(rows=shown, x=place[0], y=place[1], method="pca", made_from="thumbnails", text="A map"),
        "findings": tuple(rare_findings(counts, task)),
        "advice": (Advice(text="Nothing was found that needs mending.", severity="fine"),),
    }
    return Audit(**{**values, **parts})


def with_model(audit: Audit, *, sure: float = 0.6) -> Audit:
    """Return the audit with a model that is right more often than not."""
    rng, probs = np.random.default_rng(1), {}
    for name, head in audit.task.heads.items():
        truth = audit.labels.classes[name]
        if truth.ndim == 2:
            probs[name] = np.clip(0.2 + 0.6 * truth + rng.normal(0, 0.2, truth.shape), 0, 1).astype(np.float32)
            continue
        said = np.where(rng.random(len(truth)) < 0.8, truth, rng.integers(0, head.num_classes, len(truth)))
        probs[name] = np.full((len(truth), head.num_classes), (1 - sure) / (head.num_classes - 1), np.float32)
        probs[name][np.arange(len(truth)), said] = sure
    oof = Predictions(ids=audit.labels.ids, probs=probs, multilabel=audit.task.multilabel_heads)
    run = SimpleNamespace(name="a-run", folder=Path("a-run"), oof=lambda: oof)
    after = look_after_model(audit.task, audit.labels, [run])  # type: ignore[list-item]
    return dataclasses.replace(audit, after=after, findings=(*audit.findings, *after.findings))


@pytest.fixture(scope="module")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of the sample `ships`, with its planted defects."""
    folder = tmp_path_factory.mktemp("ships")
    sample = make_sample("ships", folder / "ships", num_train=120, num_test=60)
    task = read_task(sample.task)
    folds = make_folds(read_labels(task, sample.data), "stratified", num_folds=3, seed=0)
    return examine(task, sample.data, folder / "audit", Options(map_method="pca", folds=folds))


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
    pair = kind["pairs"][0]
    assert int(pair["images"]) == audit.after.heads[0].pairs[0].images and len(pair["items"]) == 5
    page = read_page(audit, tmp_path)
    assert f"{pair['label']} taken for {pair['said']}" in page.text
    assert [view["name"] for view in json.loads(fields["map"]["points"])["views"]][-1] == "the model"


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
    run = SimpleNamespace(name="b", folder=Path("b"), oof=lambda: oof)
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


def test_each_image_is_read_once_whatever_it_is_wanted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": 2}}, num_train=50, num_test=50)
    read: list[str] = []
    real = Drawn.read
    monkeypatch.setattr(Drawn, "read", lambda self, row: read.append(str(self.ids[row])) or real(self, row))
    wanted = Wanted(alone=[3, 3, 60, 99], tiles={3, 60}, dots={3, 4})
    pictures = gather_pictures(audit.opened, audit.images, wanted)
    assert sorted(read) == ["i3", "i4", "i60", "i99"]
    assert (set(pictures.alone), set(pictures.tiles), set(pictures.dots)) == ({3, 60, 99}, {3, 60}, {3, 4})
    assert pictures.dots[4].shape == (64, 64, 4) and pictures.tiles[60].shape == (*pictures.tile_size, 4)
    height, width = pictures.tile_size
    assert width / height == pytest.approx(80 / 60, rel=0.02)
    data = base64.b64decode(pictures.alone[60].split(",")[1])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (24, 32, 3) and abs(int(shown[12, 16, 0]) - 10) < 4  # row 60 is the test's 10


def test_files_that_can_only_be_read_whole_are_not_where_that_takes_long(
    wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = examine(wide.task, wide.data, tmp_path / "audit", Options(map_method="pca"))
    wanted = Wanted(alone=[0], dots=set(range(48)))
    sharp = gather_pictures(audit.opened, audit.images, wanted)
    assert sharp.notes == () and len(sharp.dots) == 48
    monkeypatch.setattr(montage, "MAX_WHOLE_ROWS", 20)  # one of three shards of 16 rows: that of image 0
    coarse = gather_pictures(audit.opened, audit.images, wanted)
    assert [note.split(":")[0] for note in coarse.notes] == ["32 pictures of train are coarse"]
    assert set(coarse.dots) == set(sharp.dots) and coarse.alone == sharp.alone
    same = [bool((coarse.dots[row] == sharp.dots[row]).all()) for row in range(48)]
    assert same == [row < 16 for row in range(48)]
    distances = [np.abs(coarse.dots[row].astype(int) - sharp.dots[row]).mean() for row in range(16, 48)]
    assert max(distances) < 12


def test_colours_and_shape_survive(tmp_path: Path) -> None:
    red = np.zeros((200, 50, 3), np.uint8)
    red[..., 0] = 220
    tile = montage._padded(montage.to_bgr(red), (62, 62))
    assert tile[31, 31].tolist() == [0, 0, 220, 255] and tile[31, 0, 3] == 0
    address = montage.montage_uri([tile] * 7)
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert sheet.shape == (2 * 62 + 2, 5 * 62 + 4 * 2, 4) and sheet[31, 31, 2] > 180 and sheet[100, 300, 3] == 0


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
    assert "And 49,982 more in findings.parquet." in text and "2,000 of 200,020 images are drawn" in text
    assert "20,000 groups, 180,000 images" in text


@pytest.mark.parametrize(
    ("values", "whole", "peak"),
    [([0, 1, 2, 3] * 10, True, 1), (np.linspace(0, 1, 3200), False, 32), ([5.0] * 50 + [9.0], False, 32)],
)
def test_a_histogram_is_highest_where_most_values_are(values: Any, whole: bool, peak: int) -> None:
    found = plots.histogram("x", {"train": np.array(values), "test": np.zeros(0)}, str, whole=whole)
    (line,) = found["lines"]
    heights = [float(pair.split(",")[1]) for pair in line["points"].split()]
    assert min(heights) == 0 and max(heights) == plots.HEIGHT and line["name"] == "train"
    assert len(heights) == 2 * (4 if whole else peak) + 2


def test_equal_values_are_said_rather_than_drawn() -> None:
    same = plots.histogram("x", {"train": np.full(9, 3), "test": np.full(2, 3)}, lambda value: f"{value:.0f} px")
    assert (same["same"], same["lines"]) == ("3 px", [])
    assert plots.histogram("x", {"train": np.zeros(0)}, str) == {"title": "x", "same": "", "lines": []}


def test_columns_stand_in_order_and_are_bounded() -> None:
    found = plots.columns(np.array([1, 4, 2]), ["a", "b", "c"])
    assert [one["title"] for one in found] == ["b: 4", "c: 2", "a: 1"]
    assert [one["height"] for one in found] == ["100.00", "50.00", "25.00"]
    assert len(plots.columns(np.arange(5000), list(map(str, range(5000))))) == plots.MOST_COLUMNS
    assert plots.columns(np.zeros(3, int), list("abc"))[0]["height"] == "0.00"


def test_a_task_without_test_or_readable_images_has_a_page_too(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": b"no picture" for row in range(4)}, {})
    audit = examine(files_task(), tmp_path / "data", tmp_path / "audit", Options(map_method="pca", fast=True))
    page = read_page(audit, tmp_path)
    assert "Cannot be read: 4" in page.text and "Nearly equal images were not looked for." in page.text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser test needs playwright, of the extra dev")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; apt install chromium")
    with playwright.sync_playwright() as one:
        opened = one.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_map_shows_the_image_of_a_point(ships: Audit, tmp_path: Path, browser: Any, width: int) -> None:
    path = write_report(ships, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    fields, _ = page_fields(ships)
    points = json.loads(fields["map"]["points"])
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    place = int(np.argmin(points["x"]))  # alone at the left edge
    page.mouse.click(
        box["x"] + box["width"] / 2 + (points["x"][place] - 500) / 1000 * (box["width"] - 52),
        box["y"] + box["height"] / 2 + (points["y"][place] - 500) / 1000 * (box["height"] - 52),
    )
    assert page.locator("#shown .id").inner_text() == points["ids"][place]
    assert page.locator("#shown .where").inner_text() == points["where"][place]
    drawn = "document.querySelector('#shown canvas').getContext('2d').getImageData(96, 96, 1, 1).data[3]"
    assert page.evaluate(drawn) == 255
    page.select_option("#by", label="fold")
    assert page.locator("#legend button").all_inner_texts() == ["fold 0", "fold 1", "fold 2"]
    page.locator("#legend button").nth(1).click()
    assert page.locator("#only").input_value() == "1"
    page.check("#pictures")
    page.click("#closer")
    assert said == []
    page.close()


def test_hostile_names_run_nothing_in_a_browser(tmp_path: Path, browser: Any) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": [EVIL, BENGALI, LONG]}}, num_train=60, num_test=6)
    path = write_report(with_model(audit), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("window.broken") is None
    assert page.locator("#legend button").first.inner_text() == EVIL
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
