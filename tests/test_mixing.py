from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kaggle_kit.train.config import MixConfig
from kaggle_kit.train.losses import known_rows
from kaggle_kit.train.mixing import Mixer, low_frequency_mask, random_box

ON: dict[str, MixConfig] = {
    "mixup": MixConfig(mixup=0.4),
    "cutmix": MixConfig(cutmix=1.0),
    "fmix": MixConfig(fmix=1.0),
}
KINDS = list(ON)
SIZE = (12, 17)


def make_batch(num_images: int = 6, channels: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(num_images)
    images = torch.from_numpy(rng.integers(0, 256, (num_images, *SIZE, channels), dtype=np.uint8))
    targets = {
        "root": torch.eye(5)[torch.from_numpy(rng.integers(0, 5, num_images))],
        "soft": torch.from_numpy(rng.dirichlet(np.ones(3), num_images)).float(),
        "tags": torch.from_numpy(rng.integers(0, 2, (num_images, 4))).float(),
    }
    return images, targets


def slow_reference(
    kind: str, images: np.ndarray, targets: dict[str, np.ndarray], *, seed: int, step: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Mix by plain loops, image by image and pixel by pixel; only what is drawn is drawn alike."""
    rng = np.random.default_rng((seed, 3, step))
    rng.random(), rng.integers(1)
    alpha = getattr(ON[kind], kind)
    share = rng.beta(alpha, alpha)
    num_images, height, width, channels = images.shape
    shift = rng.integers(1, num_images)
    own = np.full((height, width), share)
    if kind == "cutmix":
        box_rows, box_columns = random_box((height, width), share, rng)
        own = np.array(
            [
                [
                    0.0 if box_rows.start <= y < box_rows.stop and box_columns.start <= x < box_columns.stop else 1.0
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
    if kind == "fmix":
        own = low_frequency_mask((height, width), share, rng).astype(float)
    mixed = np.zeros(images.shape)
    mixed_targets = {head: np.zeros(rows.shape) for head, rows in targets.items()}
    for i in range(num_images):
        partner = (i + shift) % num_images
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    mixed[i, y, x, c] = own[y, x] * images[i, y, x, c] + (1 - own[y, x]) * images[partner, y, x, c]
        for head, rows in targets.items():
            mixed_targets[head][i] = own.mean() * rows[i] + (1 - own.mean()) * rows[partner]
    return mixed, mixed_targets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_images", "channels"), [(2, 1), (6, 3)])
def test_pixels_and_targets_of_every_head_match_a_slow_reference(kind: str, num_images: int, channels: int) -> None:
    images, targets = make_batch(num_images, channels)
    mixer = Mixer(ON[kind], seed=7, num_steps=100)
    for step in range(5):
        mixed, mixed_targets = mixer(images, targets, step=step)
        expected, expected_targets = slow_reference(
            kind, images.numpy(), {head: rows.numpy() for head, rows in targets.items()}, seed=7, step=step
        )
        assert mixed.dtype == (torch.float32 if kind == "mixup" else torch.uint8)
        assert mixed.numpy() == pytest.approx(expected, abs=1e-3)
        for head in targets:
            assert mixed_targets[head].numpy() == pytest.approx(expected_targets[head], abs=1e-6)
            assert mixed_targets[head].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_targets_sum_to_1_and_those_of_several_labels_stay_between_0_and_1(kind: str) -> None:
    images, targets = make_batch(16)
    mixer = Mixer(ON[kind], seed=1, num_steps=1000)
    changed = 0
    for step in range(200):
        _, mixed = mixer(images, targets, step=step)
        for head in ("root", "soft"):
            torch.testing.assert_close(mixed[head].sum(1), torch.ones(16))
        assert all(rows.min() >= 0 and rows.max() <= 1 for rows in mixed.values())
        changed += int((mixed["root"] != targets["root"]).any())
    assert changed > 150


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_in_is_left_as_it_was_and_whole_numbers_mix_alike(kind: str, dtype: torch.dtype) -> None:
    (images, targets), (kept_images, kept_targets) = make_batch(), make_batch()
    images = images.to(dtype)
    mixed, _ = Mixer(ON[kind], seed=0, num_steps=10)(images, targets, step=0)
    assert torch.equal(mixed.float(), Mixer(ON[kind], seed=0, num_steps=10)(kept_images, targets, step=0)[0].float())
    assert torch.equal(images, kept_images.to(dtype))
    assert all(torch.equal(targets[head], kept_targets[head]) for head in targets)


@pytest.mark.parametrize(
    ("config", "num_images", "step"),
    [
        (MixConfig(), 6, 0),
        (MixConfig(mixup=1.0, share=0.0), 6, 0),
        (MixConfig(mixup=1.0), 1, 0),
        (MixConfig(mixup=1.0, free_share=0.25), 6, 75),
        (MixConfig(cutmix=1.0, free_share=1.0), 6, 0),
    ],
)
def test_a_batch_that_is_not_mixed_is_the_very_same(config: MixConfig, num_images: int, step: int) -> None:
    images, targets = make_batch(num_images)
    found_images, found_targets = Mixer(config, seed=0, num_steps=100)(images, targets, step=step)
    assert found_images is images and found_targets is targets


def test_the_last_part_is_not_mixed() -> None:
    mixer = Mixer(MixConfig(cutmix=1.0, free_share=0.25), seed=0, num_steps=100)
    assert [step for step in range(120) if mixer.kind(step) is not None] == list(range(75))


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_share_is_met_and_those_that_are_on_share_it_equally(share: float) -> None:
    mixer = Mixer(MixConfig(mixup=0.4, cutmix=1.0, fmix=1.0, share=share, free_share=0), seed=0, num_steps=6000)
    kinds = [mixer.kind(step) for step in range(6000)]
    for kind in KINDS:
        assert kinds.count(kind) / 6000 == pytest.approx(share / 3, abs=0.025)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_mixed_the_same_whenever_it_comes(kind: str) -> None:
    images, targets = make_batch()

    def mixed(step: int, seed: int = 5) -> Any:
        return Mixer(ON[kind], seed=seed, num_steps=100)(images, targets, step=step)

    used = Mixer(ON[kind], seed=5, num_steps=100)
    used(images, targets, step=1)
    (first, first_targets), (again, again_targets) = mixed(3), used(images, targets, step=3)
    assert torch.equal(first, again)
    assert all(torch.equal(first_targets[head], again_targets[head]) for head in targets)
    assert not all(torch.equal(first, mixed(step)[0]) for step in (4, 5, 6))
    assert not all(torch.equal(first, mixed(3, seed)[0]) for seed in (6, 7, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_says_how_even_mixtures_are(kind: str) -> None:
    images, targets = torch.zeros((2, 64, 64, 1), dtype=torch.uint8), {"root": torch.eye(2)}

    def evenness(alpha: float) -> float:
        mixer = Mixer(replace(MixConfig(), **{kind: alpha}), seed=0, num_steps=1000)
        return float(np.mean([mixer(images, targets, step=step)[1]["root"].min() for step in range(200)]))

    assert evenness(0.1) + 0.05 < evenness(10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_mixed_with_an_unknown_label_is_unknown(kind: str) -> None:
    images, targets = make_batch()
    targets["grapheme"] = torch.eye(6)
    targets["grapheme"][[0, 3]] = 0
    mixer = Mixer(ON[kind], seed=2, num_steps=1000)
    unclear = 0
    for step in range(100):
        _, mixed = mixer(images, targets, step=step)
        known = known_rows("multiclass", mixed["grapheme"])
        assert known_rows("multiclass", mixed["root"]).all()
        own, partner = mixed["grapheme"].diagonal(), mixed["grapheme"].sum(1) - mixed["grapheme"].diagonal()
        for row in range(6):
            assert bool(known[row]) == bool(own[row] + partner[row] >= 0.99)
        assert known.sum() <= 4
        unclear += int(known.sum() < 4)
    assert unclear > 50


@pytest.mark.parametrize("size", [(32, 32), (33, 20), (1, 9)])
@pytest.mark.parametrize("share", [0.0, 0.31, 1.0])
def test_a_mask_holds_the_share_it_was_asked_for(size: tuple[int, int], share: float) -> None:
    mask = low_frequency_mask(size, share, np.random.default_rng(0))
    assert mask.shape == size and mask.sum() == round(share * size[0] * size[1])


def test_a_mask_is_a_few_patches_and_each_place_is_as_likely() -> None:
    masks = np.array([low_frequency_mask((32, 48), 0.5, np.random.default_rng(seed)) for seed in range(200)])
    steps = (masks[:, 1:] != masks[:, :-1]).mean() + (masks[:, :, 1:] != masks[:, :, :-1]).mean()
    assert steps < 0.2  # 1 for noise
    assert np.abs(masks.mean(0) - 0.5).max() < 0.2


def test_boxes_have_the_area_asked_for_where_no_edge_cuts_them_off() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(500):
        rows, columns = random_box((40, 60), 0.75, rng)
        assert 0 <= rows.start <= rows.stop <= 40 and 0 <= columns.start <= columns.stop <= 60
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start))
    assert max(areas) == 20 * 30 and min(areas) < 20 * 30
    rows, columns = random_box((40, 60), 1.0, rng)
    assert rows.start == rows.stop and columns.start == columns.stop
