from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from audited import files_task, images_of, labels_of, scene

from kaggle_kit.audit.duplicates import duplicate_findings, duplicate_groups, find_duplicates
from kaggle_kit.audit.findings import save_findings
from kaggle_kit.errors import DataError


def again(image: np.ndarray, quality: int = 60) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


SCENES = [scene(seed) for seed in range(30)]
COPIES = {
    "jpeg": again(SCENES[0]),
    "brighter": np.clip(SCENES[0] * 1.15 + 4, 0, 255).astype(np.uint8),
    "cropped": again(SCENES[0][2:-1, 2:-3]),
    "mirrored": again(np.ascontiguousarray(SCENES[0][:, ::-1])),
    "larger": cv2.resize(SCENES[0], (200, 150)),
    "gray": np.repeat(cv2.cvtColor(SCENES[0], cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_a_near_duplicate_and_nothing_else_is(change: str) -> None:
    images = images_of([*SCENES, COPIES[change]])
    found = find_duplicates(images, labels_of(images, kind=np.zeros(40, np.int64)))
    (group,) = found.groups
    assert (group.kind, group.rows) == ("near", (0, 30))
    assert group.how == ("mirrored" if change == "mirrored" else "")
    assert group.similarity > 0.95
    assert found.group_of.tolist() == [*range(30), 0]


def test_equal_pixels_are_exact_duplicates_and_a_near_group_holds_them_too() -> None:
    images = images_of([*SCENES, SCENES[3].copy(), COPIES["jpeg"], SCENES[0].copy()], num_test=1)
    found = find_duplicates(images, labels_of(images, kind=np.arange(32) % 2))
    exact, near = found.of_kind("exact"), found.of_kind("near")
    assert [(group.rows, group.crosses, group.contradicts) for group in exact] == [
        ((3, 30), False, ("kind",)),
        ((0, 32), True, ()),
    ]
    assert [(group.rows, group.crosses, group.contradicts) for group in near] == [((0, 31, 32), True, ("kind",))]
    assert len({group.number for group in found.groups}) == 3


def test_findings_say_what_equals_what_and_which_label_it_has() -> None:
    images = images_of([*SCENES, SCENES[3].copy()])
    labels = labels_of(images, kind=np.arange(31) % 2)
    first, second = duplicate_findings(find_duplicates(images, labels), images, labels, files_task())
    assert (first.id, first.kind, first.head, first.label) == ("i3", "exact_duplicate", "kind", "1")
    assert first.group == second.group
    assert second.label == "0"
    assert "the same pixels as i30 (train)" in first.detail
    assert "contradict each other in kind" in first.detail


def test_pictures_that_show_nothing_are_no_near_duplicates_of_each_other() -> None:
    flat = [np.full((40, 50, 3), 100 + seed, np.uint8) for seed in range(6)]
    images = images_of([*SCENES, *flat])
    assert find_duplicates(images, labels_of(images, kind=np.zeros(40, np.int64))).groups == ()


def test_near_duplicates_can_be_left_out_and_dropped_images_equal_none() -> None:
    images = images_of([*SCENES, SCENES[3].copy(), COPIES["jpeg"]])
    labels = labels_of(images, kind=np.zeros(40, np.int64))
    assert [group.kind for group in find_duplicates(images, labels, near=False).groups] == ["exact"]
    dropped = np.isin(images.id, ["i30", "i31"])
    assert find_duplicates(images, labels, leave_out=dropped).groups == ()


def test_broken_images_equal_none() -> None:
    images = images_of(
        [*SCENES, SCENES[3].copy()],
        broken=np.array([*[""] * 30, "cut short"]),
        pixel_hash=np.array([*images_of(SCENES).pixel_hash.tolist(), ""]),
    )
    assert find_duplicates(images, labels_of(images, kind=np.zeros(40, np.int64))).groups == ()


def test_embeddings_find_what_thumbnails_do_not() -> None:
    images = images_of(SCENES)
    embeddings = np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32)
    embeddings[7] = 2 * embeddings[2] + 0.02
    embeddings[5] = np.nan
    labels = labels_of(images, kind=np.zeros(40, np.int64))
    (group,) = find_duplicates(images, labels, embeddings=embeddings).groups
    assert (group.rows, group.how) == ((2, 7), "by embeddings")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_handful_of_images_is_enough(number: int) -> None:
    images = images_of([SCENES[0], SCENES[0].copy(), COPIES["jpeg"]][:number])
    found = find_duplicates(images, labels_of(images, kind=np.zeros(9, np.int64)))
    assert len(found.of_kind("exact")) == (number > 1)


def test_groups_come_back_from_the_findings_for_any_ids(tmp_path: Path) -> None:
    images = images_of([*SCENES, SCENES[3].copy(), COPIES["jpeg"], SCENES[0].copy()], num_test=1)
    labels = labels_of(images, kind=np.zeros(40, np.int64))
    findings = duplicate_findings(find_duplicates(images, labels), images, labels, files_task())
    save_findings(findings, tmp_path / "findings.parquet")
    groups = duplicate_groups(tmp_path, np.array(["i31", "i5", "i3", "unknown", "i0", "i30", "i32"]))
    assert groups.tolist() == [0, 1, 2, 3, 0, 2, 6]  # i32 is of the test


def test_a_folder_without_an_audit_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="findings.parquet is missing"):
        duplicate_groups(tmp_path, np.array(["a"]))
