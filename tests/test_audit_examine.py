from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from audited import files_task, scene, write_files
from conftest import Toy, random_run
from pyarrow import parquet

import kaggle_kit.audit.kept as kept
import kaggle_kit.audit.survey as survey
from kaggle_kit.audit.duplicates import duplicate_groups
from kaggle_kit.audit.embeddings import embed_images
from kaggle_kit.audit.examine import Audit, Options, examine
from kaggle_kit.audit.findings import load_findings
from kaggle_kit.audit.folder import read_weakness
from kaggle_kit.audit.pictures import column_names, read_images
from kaggle_kit.audit.report import write_report
from kaggle_kit.edits import append_edit, make_edit
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.sample import make_sample
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, read_task, task_from_plain, task_to_plain

PCA = Options(map_method="pca")


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def kinds_of(audit: Audit) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in audit.findings:
        found.setdefault(finding.kind, set()).add(finding.id)
    return found


def test_what_is_planted_in_the_sample_is_found_and_nothing_else(tmp_path: Path) -> None:
    sample = make_sample("ships", tmp_path / "ships", num_train=120, num_test=60)
    audit = examine(read_task(sample.task), sample.data, tmp_path / "audit", PCA)
    planted: dict[str, set[str]] = {}
    pairs: dict[str, set[frozenset[str]]] = {"exact": set(), "near": set()}
    for line in (sample.hidden / "defects.csv").read_text().splitlines()[1:]:
        name, _, kind, other, _ = line.split(",")
        planted.setdefault(kind, set()).add(name)
        if other:
            pairs[kind.removesuffix("_duplicate")].add(frozenset((name, other)))
    found = kinds_of(audit)
    assert found["gray"] == planted["gray"]
    assert found["empty"] == planted["empty"]
    assert found["broken"] == planted["truncated"]
    for kind in ("exact", "near"):
        groups = audit.duplicates.of_kind("exact" if kind == "exact" else "near")
        assert {frozenset(audit.images.id[list(group.rows)].tolist()) for group in groups} == pairs[kind]


def test_wide_parquet_with_two_heads_is_audited_whole(wide: Toy, tmp_path: Path) -> None:
    audit = examine(wide.task, wide.data, tmp_path / "audit", PCA)
    assert audit.counts.num_images == {"train": 48, "test": 2}
    assert set(audit.images.mode.tolist()) == {"L"}
    (group,) = audit.duplicates.of_kind("exact")
    assert audit.images.id[list(group.rows)].tolist() == ["Train_0", "Train_1"]
    assert group.contradicts == ("vowel",)
    assert [audit.labels.classes[head][0] for head in ("root", "vowel")] == [0, 0]
    assert ("root", "vowel") in audit.counts.together


def test_the_folder_holds_what_was_found(files: Toy, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    audit = examine(files.task, files.data, out, PCA)
    meta = json.loads((out / "audit.json").read_text())
    assert task_from_plain(meta["task"]) == files.task
    assert (meta["kind"], meta["data"]) == ("audit", str(files.data.resolve()))
    assert load_findings(out / "findings.parquet") == list(audit.findings)
    assert json.loads((out / "findings.json").read_text())[0]["id"] == audit.findings[0].id
    summary = json.loads((out / "summary.json").read_text())
    assert summary["findings"]["broken"] == 1
    assert summary["first"][0]["command"] == f"kaggle-kit review {out}"
    assert (summary["weakness"], read_weakness(out), read_weakness(tmp_path)) == ("", "", "")
    images = read_images(out)
    for name in column_names():
        assert np.array_equal(getattr(images, name), getattr(audit.images, name)), name
    assert duplicate_groups(out, read_labels(files.task, files.data).ids).shape == (20,)


def test_a_second_audit_reads_no_image_and_a_changed_file_is_seen(
    files: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = examine(files.task, files.data, tmp_path / "audit", PCA)
    with monkeypatch.context() as patched:
        patched.setattr(survey, "_measure_all", lambda *_: pytest.fail("an image was read"))
        again = examine(files.task, files.data, tmp_path / "audit", PCA)
    assert again.findings == first.findings
    (files.data / "images" / "5.jpg").write_bytes(b"no image")
    assert "5.jpg" in kinds_of(examine(files.task, files.data, tmp_path / "audit", PCA))["broken"]


def test_odd_files_are_listed_and_never_fatal(tmp_path: Path) -> None:
    data, plain = tmp_path / "data", {f"{seed}.png": scene(seed) for seed in range(40)}
    pillow = pytest.importorskip("PIL.Image")
    cmyk, gif = io.BytesIO(), io.BytesIO()
    pillow.fromarray(scene(90)).convert("CMYK").save(cmyk, "JPEG")
    pillow.fromarray(scene(91)).save(gif, "GIF", save_all=True, append_images=[pillow.fromarray(scene(92))])
    odd: dict[str, bytes | np.ndarray | None] = {
        "none.png": b"",
        "text.png": b"<html>404</html>",
        "cut.png": png(scene(93))[:900],
        "gone.png": None,
        "deep.png": scene(94).astype(np.uint16) * 257,
        "alpha.png": np.dstack([scene(95), np.full((60, 80), 200, np.uint8)]),
        "cmyk.png": cmyk.getvalue(),
        "moving.png": gif.getvalue(),
        "huge.png": png(np.zeros((10_001, 10_000, 1), np.uint8)),
        "long.png": scene(96, height=12, width=900),
        "dot.png": np.zeros((1, 1, 3), np.uint8),
    }
    write_files(data, {**plain, **odd}, {"t.png": scene(97)})
    (data / "images" / "stray.png").write_bytes(png(scene(98)))
    audit = examine(files_task(), data, tmp_path / "audit", PCA)
    found = kinds_of(audit)
    assert found["broken"] == {"none.png", "text.png", "cut.png", "huge.png"}
    assert found["missing_image"] == {"gone.png"}
    assert found["missing_label"] == {"stray.png"}
    assert found["mode"] == {"deep.png", "alpha.png", "cmyk.png", "moving.png", "huge.png"}
    assert found["size"] >= {"long.png", "dot.png", "huge.png"}
    assert audit.counts.num_images == {"train": 50, "test": 1}


def test_all_images_broken_and_no_test_still_give_an_audit(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_files(data, {f"{row}.png": b"broken" for row in range(4)}, {})
    (data / "test.csv").unlink()
    audit = examine(files_task(), data, tmp_path / "audit", PCA)
    assert len(kinds_of(audit)["broken"]) == 4
    assert (audit.drift, audit.map) == (None, None)
    assert "test was left out" in audit.notes[0]


@pytest.mark.parametrize("num_train", [1, 3])
def test_a_single_image_is_enough(num_train: int, tmp_path: Path) -> None:
    write_files(tmp_path / "data", {f"{row}.png": scene(row) for row in range(num_train)}, {})
    audit = examine(files_task(), tmp_path / "data", tmp_path / "audit")
    assert audit.counts.num_images["train"] == num_train
    assert not audit.duplicates.groups


def test_no_images_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {}, {"t.png": scene(0)})
    with pytest.raises(DataError, match="has no rows"):
        examine(files_task(), tmp_path / "data", tmp_path / "audit")


def test_ids_in_one_file_and_not_in_the_other_are_told_for_parquet(wide: Toy, tmp_path: Path) -> None:
    table = (wide.data / "train.csv").read_text().splitlines()
    (wide.data / "train.csv").write_text("\n".join([*table[:-2], "Train_99,0,0,w1"]) + "\n")
    with (wide.data / "sample_submission.csv").open("a") as file:
        file.write("Test_77_vowel,0\nTest_77_root,0\n")
    found = kinds_of(examine(wide.task, wide.data, tmp_path / "audit", PCA))
    assert found["missing_image"] == {"Train_99", "Test_77"}
    assert found["missing_label"] == {"Train_46", "Train_47"}


def _zipped(toy: Toy) -> None:
    import shutil

    shutil.make_archive(str(toy.data / "images"), "zip", toy.data / "images")
    shutil.rmtree(toy.data / "images")


def test_a_zip_is_read_where_it_lies_with_members_that_lack(files: Toy, tmp_path: Path) -> None:
    (files.data / "images" / "7.jpg").unlink()
    (files.data / "images" / "more.jpg").write_bytes((files.data / "images" / "8.jpg").read_bytes())
    _zipped(files)
    values = task_to_plain(files.task)
    values["images"]["folder"] = "images.zip"
    audit = examine(task_from_plain(values), files.data, tmp_path / "audit", PCA)
    found = kinds_of(audit)
    assert (found["broken"], found["missing_image"], found["missing_label"]) == ({"3.jpg"}, {"7.jpg"}, {"more.jpg"})


def test_class_folders_are_audited(tmp_path: Path) -> None:
    for row in range(6):
        folder = tmp_path / "data" / "train" / ("cat", "dog")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}.png").write_bytes(png(scene(row)))
    task = files_task(
        heads={"kind": {"classes": ["cat", "dog"]}},
        images={"format": "files", "folder": "train", "class_folders": True, "test_list": "test.csv"},
        labels={"file": ""},
    )
    audit = examine(task, tmp_path / "data", tmp_path / "audit", PCA)
    assert audit.counts.heads["kind"].count.tolist() == [3, 3]


def test_arrays_and_packed_stores_are_audited(wide: Toy, tmp_path: Path) -> None:
    store = pack_train(wide.task, wide.data, tmp_path / "store")
    packed = examine(wide.task, wide.data, tmp_path / "packed", Options(packed=store.folder, map_method="pca"))
    direct = examine(wide.task, wide.data, tmp_path / "direct", PCA)
    assert np.array_equal(
        packed.images.pixel_hash == packed.images.pixel_hash[0], direct.images.pixel_hash == direct.images.pixel_hash[0]
    )
    np.save(wide.data / "train.npy", np.stack([image[..., 0] for image in map(store.read, range(48))]))
    np.save(wide.data / "test.npy", np.zeros((3, 24, 32), np.uint8))
    values = task_to_plain(wide.task)
    values |= {"images": {"format": "array", "channels": 1, "train": "train.npy", "test": "test.npy"}, "stored": None}
    audit = examine(task_from_plain(values), wide.data, tmp_path / "array", PCA)
    assert len(audit.duplicates.of_kind("exact")) == 2  # the train's, and three blank test images


def test_pixels_come_back_by_row_whatever_the_source(wide: Toy, files: Toy, tmp_path: Path) -> None:
    for number, toy in enumerate((wide, files)):
        audit = examine(toy.task, toy.data, tmp_path / f"audit{number}", PCA)
        rows = [0, 3, 17]
        found = dict(audit.opened.read("train", rows))
        assert set(found) == ({0, 3, 17} if toy is wide else {0, 17})  # 3.jpg is broken
        assert {row: image.shape[2] for row, image in found.items()} == dict.fromkeys(found, toy.task.images.channels)


def test_a_foreign_folder_or_an_audit_of_other_data_is_refused(files: Toy, wide: Toy, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(DataError, match="not empty and no audit"):
        examine(files.task, files.data, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    examine(files.task, files.data, tmp_path / "audit", PCA)
    with pytest.raises(DataError, match="holds an audit of task 'toy-files'"):
        examine(wide.task, wide.data, tmp_path / "audit")
    with pytest.raises(DataError, match="is, or lies in, the data folder"):
        examine(files.task, files.data, files.data / "audit")


def test_decisions_stay_and_the_audit_says_that_it_does_not_apply_them(files: Toy, tmp_path: Path) -> None:
    examine(files.task, files.data, tmp_path / "audit", PCA)
    (tmp_path / "audit" / "edits.jsonl").write_text("")
    audit = examine(files.task, files.data, tmp_path / "audit", dataclasses.replace(PCA, fast=True))
    assert (tmp_path / "audit" / "edits.jsonl").is_file()
    assert any("--edits" in note for note in audit.notes)
    assert any("--fast" in note for note in audit.notes)
    assert not audit.duplicates.near_searched


def test_the_same_data_gives_the_same_findings(files: Toy, tmp_path: Path) -> None:
    first, second = (examine(files.task, files.data, tmp_path / name, PCA) for name in ("one", "two"))
    assert first.findings == second.findings
    assert (tmp_path / "one" / "findings.parquet").read_bytes() == (tmp_path / "two" / "findings.parquet").read_bytes()


def test_edits_change_labels_and_take_dropped_images_out_of_the_findings(wide: Toy, tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    append_edit(edits, make_edit("drop", id="Train_1", why="duplicate of Train_0", by="me"))
    append_edit(edits, make_edit("relabel", id="Train_2", head="root", value="2", by="me"))
    before = examine(wide.task, wide.data, tmp_path / "before", PCA)
    after = examine(wide.task, wide.data, tmp_path / "after", dataclasses.replace(PCA, edits=edits))
    assert "exact_duplicate" in kinds_of(before)
    assert "exact_duplicate" not in kinds_of(after)
    assert "missing_label" not in kinds_of(after)
    assert after.labels.classes["root"][after.labels.ids == "Train_2"] == [2]
    assert any("--edits" in step.command for step in after.advice)
    assert after.counts.num_labelled == before.counts.num_labelled - 1


def test_a_run_s_network_compares_images_too(trained: tuple[Toy, list], tmp_path: Path) -> None:
    toy, runs = trained
    audit = examine(toy.task, toy.data, tmp_path / "audit", dataclasses.replace(PCA, embeddings=runs[0].folder))
    assert audit.map is not None
    assert audit.map.made_from == "embeddings"
    embeddings = embed_images(audit.images, runs[0], toy.data)
    assert embeddings.shape == (50, 128)
    assert np.isfinite(embeddings).all()
    assert np.allclose(embeddings[0], embeddings[1])  # equal images
    assert np.array_equal(embeddings, embed_images(audit.images, runs[0], toy.data))


def test_folds_of_an_audit_are_counted(trained: tuple[Toy, list], tmp_path: Path) -> None:
    toy, runs = trained
    audit = examine(toy.task, toy.data, tmp_path / "audit", dataclasses.replace(PCA, folds=runs[0].fold_table()))
    assert audit.counts.fold_sizes.sum() == 48
    assert audit.fold_of()[-2:].tolist() == [-1, -1]
    assert set(audit.fold_of()[:48].tolist()) == {0, 1}


def test_runs_that_will_not_do_are_refused_before_any_image_is_read(
    wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = make_folds(read_labels(wide.task, wide.data), "stratified", num_folds=2, seed=0)
    run = random_run(wide, tmp_path / "runs" / "a", folds)
    other = dataclasses.replace(wide.task.heads["root"], classes=("a", "b", "c"), values=("0", "1", "2"))
    task = dataclasses.replace(wide.task, heads={**wide.task.heads, "root": other})
    monkeypatch.setattr(survey, "_measure_all", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(DataError, match="head 'root' has 3 classes in .*: the run lacks 'a', 'b', 'c' and has '0'"):
        examine(task, wide.data, tmp_path / "audit", dataclasses.replace(PCA, runs=(run.folder,)))
    with pytest.raises(DataError, match="nowhere holds no finished run"):
        examine(wide.task, wide.data, tmp_path / "audit", dataclasses.replace(PCA, embeddings=tmp_path / "nowhere"))
    run.checkpoint(0).unlink()
    with pytest.raises(DataError, match="best.safetensors is missing: run 'a' has no network to ask"):
        examine(wide.task, wide.data, tmp_path / "audit", dataclasses.replace(PCA, embeddings=run.folder))


def test_what_takes_long_is_named_before_it_begins(files: Toy, tmp_path: Path) -> None:
    said: list[str] = []
    examine(files.task, files.data, tmp_path / "audit", PCA, say=said.append)
    assert [line for line in said if line.endswith(" ...")] == [f"{line.split(':')[0]} ..." for line in said[1::2]]
    assert "map ..." in said and said[said.index("map ...") + 1].startswith("map: ")


def test_near_duplicates_left_out_and_umap_asked_for_do_not_go_together(files: Toy, tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="without umap-learn, which the extra map brings, that is refused first")
    with pytest.raises(SettingError, match="--fast leaves out UMAP, and --map umap asks for it"):
        examine(files.task, files.data, tmp_path / "audit", Options(fast=True, map_method="umap"))
    assert not (tmp_path / "audit").exists()


def test_a_second_audit_draws_no_map_and_compares_no_splits(
    files: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = examine(files.task, files.data, tmp_path / "audit", PCA)
    for name in ("draw_map", "compare_splits"):
        monkeypatch.setattr(kept, name, lambda *_, **__: pytest.fail("it was made again"))
    again = examine(files.task, files.data, tmp_path / "audit", PCA)
    assert first.map is not None and again.map is not None
    assert np.array_equal(first.map.x, again.map.x) and np.array_equal(first.map.rows, again.map.rows)


def encoded_parquet(data: Path) -> Task:
    """Write a competition of encoded images in parquet: one broken, two equal, two without a label."""
    data.mkdir()
    for split, number in (("train", 30), ("test", 6)):
        blobs = [png(scene(row + 100 * (split == "test"))) for row in range(number)]
        if split == "train":
            blobs[3], blobs[5] = b"broken", blobs[4]
        table = {"id": [f"{split}/{row}" for row in range(number)], "image": [{"bytes": blob} for blob in blobs]}
        parquet.write_table(pa.table(table), data / f"{split}_0.parquet", row_group_size=4)
    write_rows(data / "train.csv", ["id", "kind"], [[f"train/{row}", row % 2] for row in range(28)])
    write_rows(data / "sample_submission.csv", ["id", "kind"], [[f"test/{row}", 0] for row in range(6)])
    images = {"format": "encoded_parquet", "train": "train_*.parquet", "test": "test_*.parquet", "image": "image"}
    return files_task(
        images={**images, "id": "id", "channels": 3},
        labels={"id": "id"},
        submission={"form": "row_per_image", "id": "id", "target": "kind"},
    )


def test_encoded_parquet_is_audited_whole(tmp_path: Path) -> None:
    task = encoded_parquet(tmp_path / "data")
    audit = examine(task, tmp_path / "data", tmp_path / "audit", PCA)
    found = kinds_of(audit)
    assert audit.counts.num_images == {"train": 30, "test": 6} and audit.counts.num_labelled == 28
    assert (found["broken"], found["missing_label"]) == ({"train/3"}, {"train/28", "train/29"})
    assert found["exact_duplicate"] == {"train/4", "train/5"}
    (group,) = audit.duplicates.of_kind("exact")
    assert group.contradicts == ("kind",)
    assert "train/3" in write_report(audit, tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_multi_label_task_is_audited_whole_with_a_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_files(data, {f"{row}.png": scene(row) for row in range(60)}, {"t.png": scene(100)})
    tags = {"tags": {"classes": ["sea", "sky", "land"], "kind": "multilabel"}}
    submission = {"form": "row_per_image", "id": "image", "target": "tags"}
    task = files_task(heads=tags, metric="macro_f1", submission=submission, stored={"height": 60, "width": 80})
    sets = [["sea"] * (row % 2) + ["sky"] * (row % 3 == 0) + ["land"] for row in range(60)]
    sets[7] = ["sky", "land"]  # and its picture shows the sea
    write_rows(data / "train.csv", ["image", "tags"], [[f"{row}.png", " ".join(one)] for row, one in enumerate(sets)])
    toy = Toy(task=task, data=data, hidden=data)
    run = random_run(
        toy, tmp_path / "runs" / "a", make_folds(read_labels(task, data), "stratified", num_folds=2, seed=0)
    )
    sound = np.array([[row % 2, row % 3 == 0, 1] for row in range(60)])
    ids = np.array([f"{row}.png" for row in range(60)])
    probs = np.where(sound > 0, 0.9, 0.1).astype(np.float32)
    Predictions(ids=ids, probs={"tags": probs}, multilabel=("tags",)).save(run.oof_file)
    audit = examine(task, data, tmp_path / "audit", dataclasses.replace(PCA, runs=(run.folder,)))
    (issue,) = [one for one in audit.findings if one.kind == "label_issue"]
    assert (issue.id, issue.label, issue.suggested) == ("7.png", "sky land", "sea land")
    assert issue.detail == "sea 90%, labelled without; sky 10%, labelled with"
    assert audit.after is not None and audit.after.heads[0].note.startswith("1 of 3 classes were not looked at")
    text = write_report(audit, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "tags: 1 label looks wrong" in text and "1 of 3 classes were not looked at" in text
