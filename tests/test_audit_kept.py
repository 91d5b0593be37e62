from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from audited import images_of, scene

from kaggle_kit.audit import kept
from kaggle_kit.audit.drift import compare_splits
from kaggle_kit.audit.kept import DRIFT, MAP, known_drift, known_map
from kaggle_kit.audit.map2d import Map, draw_map
from kaggle_kit.audit.pictures import Images


@pytest.fixture(scope="module")
def images() -> Images:
    """Fifty images of train and fifty of a darker test."""
    light = [scene(seed) for seed in range(50)]
    return images_of([*light, *(scene(seed) // 3 for seed in range(50, 100))], num_test=50)


def same_map(one: Map | None, other: Map | None) -> bool:
    assert one is not None and other is not None
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "x", "y"))
    return arrays and (one.method, one.made_from, one.text) == (other.method, other.made_from, other.text)


def test_the_same_images_keep_map_and_drift(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed, drift = known_map(images, tmp_path, method="pca"), known_drift(images, tmp_path)
    assert same_map(placed, draw_map(images, method="pca")) and drift == compare_splits(images)
    assert drift.suspects and drift.drifted
    monkeypatch.setattr(kept, "draw_map", lambda *_, **__: pytest.fail("a map was drawn"))
    monkeypatch.setattr(kept, "compare_splits", lambda *_, **__: pytest.fail("splits were compared"))
    assert same_map(known_map(images, tmp_path, method="pca"), placed)
    assert known_drift(images, tmp_path) == drift


@pytest.mark.parametrize("change", ["image", "seed", "embeddings", "damaged"])
def test_anything_else_is_made_anew(
    change: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_map(images, tmp_path, method="pca")
    known_drift(images, tmp_path)
    made: list[str] = []
    monkeypatch.setattr(kept, "draw_map", lambda *_, **__: made.append("map") or draw_map(images, method="pca"))
    monkeypatch.setattr(kept, "compare_splits", lambda *_, **__: made.append("drift") or compare_splits(images))
    now, seed, embeddings = images, 0, None
    if change == "image":
        hashes = images.pixel_hash.copy()
        hashes[3] = hashes[4]
        now = dataclasses.replace(images, pixel_hash=hashes)
    elif change == "seed":
        seed = 1
    elif change == "embeddings":
        embeddings = np.random.default_rng(0).standard_normal((100, 128)).astype(np.float32)
    else:
        (tmp_path / MAP).write_bytes(b"no parquet")
        (tmp_path / DRIFT).write_text("{")
    known_map(now, tmp_path, embeddings=embeddings, method="pca", seed=seed)
    known_drift(now, tmp_path, seed=seed)
    assert made == (["map"] if change == "embeddings" else ["map", "drift"])


def test_too_few_images_leave_no_map_and_a_drift_of_nothing_known(images: Images, tmp_path: Path) -> None:
    known_map(images, tmp_path, method="pca")
    few = images_of([scene(0), scene(1)], num_test=1)
    assert known_map(few, tmp_path, method="pca") is None and not (tmp_path / MAP).exists()
    first, again = known_drift(few, tmp_path), known_drift(few, tmp_path)
    assert np.isnan(first.auc) and np.isnan(again.auc) and first.text == again.text
    assert "key" in json.loads((tmp_path / DRIFT).read_text())
