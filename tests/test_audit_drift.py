from __future__ import annotations

import math

import numpy as np
import pytest
from audited import files_task, images_of, labels_of, scene

from kaggle_kit.audit import map2d
from kaggle_kit.audit.drift import compare_splits, drift_findings
from kaggle_kit.audit.leaks import find_leaks
from kaggle_kit.audit.map2d import draw_map
from kaggle_kit.errors import SettingError

SCENES = [scene(seed) for seed in range(160)]


def test_a_test_drawn_from_train_looks_like_it() -> None:
    drift = compare_splits(images_of(SCENES, num_test=60))
    assert drift.low < 0.55
    assert drift.drifted == ()
    assert drift.suspects == {}
    assert "look alike" in drift.text


def test_a_brighter_test_is_told_with_its_direction_and_its_images() -> None:
    brighter = [np.clip(picture.astype(np.int16) + 60, 0, 255).astype(np.uint8) for picture in SCENES[100:]]
    images = images_of([*SCENES[:100], *brighter], num_test=60)
    drift = compare_splits(images)
    assert drift.visible_auc > 0.9
    assert "test images are brighter: brightness" in drift.text
    assert {one.name for one in drift.drifted if not one.is_leak} >= {"brightness"}
    findings = list(drift_findings(drift, images))
    assert {finding.split for finding in findings} == {"test"}
    assert findings[0].score >= findings[-1].score > 0


def test_file_sizes_that_give_the_test_away_are_said_to_be_of_the_files_alone() -> None:
    num_bytes = np.array([1000] * 100 + [2000] * 60) + np.arange(160) % 7
    drift = compare_splits(images_of(SCENES, num_test=60, num_bytes=num_bytes))
    assert drift.auc > 0.95
    assert drift.visible_auc < 0.65
    (size,) = drift.drifted
    assert (size.name, size.is_leak) == ("num_bytes", True)
    assert "larger files" in size.text


def test_modes_that_differ_are_told_by_their_shares() -> None:
    mode = np.array(["RGB"] * 100 + ["L"] * 40 + ["RGB"] * 20)
    drift = compare_splits(images_of(SCENES, num_test=60, mode=mode))
    assert drift.drifted[0].text == "66.7% of the test images are mode L, against 0.0% in train"


@pytest.mark.parametrize("num_test", [0, 5])
def test_too_few_images_are_not_compared(num_test: int) -> None:
    drift = compare_splits(images_of(SCENES[:60], num_test=num_test))
    assert math.isnan(drift.auc)
    assert "Too few images" in drift.text


def test_the_same_seed_gives_the_same_answer() -> None:
    images = images_of(SCENES, num_test=60)
    assert compare_splits(images, seed=3) == compare_splits(images, seed=3)


def test_sizes_and_row_order_that_tell_the_class_are_leaks() -> None:
    kind = np.arange(160) % 2
    images = images_of(SCENES, num_bytes=1000 + 500 * kind + np.arange(160) % 11)
    (leak,) = find_leaks(images, labels_of(images, kind=kind), files_task())
    assert (leak.head, leak.name) == ("kind", "file size")
    assert leak.strength > 0.5
    ordered = images_of(SCENES)
    (leak,) = find_leaks(ordered, labels_of(ordered, kind=np.arange(160) // 80), files_task())
    assert leak.name == "row order"
    rng = np.random.default_rng(0)
    assert find_leaks(ordered, labels_of(ordered, kind=rng.integers(0, 2, 160)), files_task()) == ()


def test_the_map_places_every_readable_image_and_likes_lie_together() -> None:
    near = [np.clip(picture.astype(np.int16) + 2, 0, 255).astype(np.uint8) for picture in SCENES[:10]]
    broken = np.array([*[""] * 169, "cut"])
    placed = draw_map(images_of([*SCENES, *near], broken=broken), method="pca")
    assert placed is not None
    assert placed.rows.tolist() == [*range(169)]
    assert max(abs(placed.x).max(), abs(placed.y).max()) == pytest.approx(1)
    assert np.hypot(placed.x[:9] - placed.x[160:169], placed.y[:9] - placed.y[160:169]).max() < 0.05
    again = draw_map(images_of([*SCENES, *near], broken=broken), method="pca")
    assert again is not None
    assert np.array_equal(placed.x, again.x)


def test_a_map_of_embeddings_leaves_out_what_has_none() -> None:
    images = images_of(SCENES[:60])
    embeddings = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    embeddings[4] = np.nan
    placed = draw_map(images, embeddings=embeddings, method="pca")
    assert placed is not None
    assert placed.made_from == "embeddings"
    assert 4 not in placed.rows


@pytest.mark.parametrize(("number", "there"), [(1, False), (2, False), (3, True)])
def test_a_map_needs_three_images(number: int, there: bool) -> None:
    assert (draw_map(images_of(SCENES[:number])) is not None) == there


def test_umap_by_name_is_that_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map2d, "_has_umap", lambda: False)
    with pytest.raises(SettingError, match="--map umap needs the package umap-learn"):
        draw_map(images_of(SCENES[:3]), method="umap")
    placed = draw_map(images_of(SCENES[:60]))
    assert placed is not None and placed.method == "pca"


@pytest.mark.slow
def test_umap_is_quiet_and_the_same_for_the_same_seed() -> None:
    pytest.importorskip("umap", reason="UMAP needs umap-learn, which the extra map brings")
    first, second = (draw_map(images_of(SCENES[:60]), method="umap", seed=1) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.method == "umap"
    assert np.array_equal(first.x, second.x)
