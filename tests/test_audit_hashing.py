from __future__ import annotations

import cv2
import numpy as np

from kaggle_kit.audit.hashing import close_pairs, differing_bits, perceptual_hashes, sign_hashes


def thumbnails(number: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (48, 48)) for _ in range(number)])


def test_a_hash_hardly_changes_with_light_and_noise_and_does_between_pictures() -> None:
    shown = thumbnails()
    noise = np.random.default_rng(1).integers(-6, 7, shown.shape)
    brighter = np.clip(shown * 0.8 + 30 + noise, 0, 255).astype(np.uint8)
    hashes = perceptual_hashes(shown)
    assert differing_bits(hashes, perceptual_hashes(brighter)).max() <= 6
    assert differing_bits(hashes[:-1], hashes[1:]).min() > 10


def test_the_mirrored_hash_is_that_of_the_mirrored_picture() -> None:
    shown = thumbnails()
    flipped = perceptual_hashes(np.ascontiguousarray(shown[:, :, ::-1]))
    assert differing_bits(perceptual_hashes(shown, mirrored=True), flipped).max() <= 2


def test_the_hash_of_a_cropped_picture_is_found_without_cropping() -> None:
    shown = thumbnails()
    inner = np.stack([cv2.resize(picture[2:-2, 2:-2], (48, 48)) for picture in shown])
    straight = differing_bits(perceptual_hashes(shown), perceptual_hashes(inner)).mean()
    cropped = differing_bits(perceptual_hashes(shown, cropped=2 / 48), perceptual_hashes(inner)).mean()
    assert cropped < 0.5 * straight


def test_close_pairs_are_those_that_comparing_all_with_all_finds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300).astype(np.uint64) * np.uint64(2)
    for row in range(100):  # near copies, with 0 to 7 bits changed
        hashes[200 + row] = hashes[row]
        for bit in rng.choice(64, row % 8, replace=False).tolist():
            hashes[200 + row] ^= np.uint64(1 << bit)
    bits = differing_bits(np.repeat(hashes, 300), np.tile(hashes, 300)).reshape(300, 300)
    np.fill_diagonal(bits, 64)
    assert np.array_equal(close_pairs(hashes, hashes, radius=7), np.argwhere(bits <= 7))


def test_very_many_equal_hashes_give_a_bounded_number_of_pairs() -> None:
    hashes = np.zeros(3000, np.uint64)
    pairs = close_pairs(hashes, hashes, radius=4)
    assert 0 < len(pairs) < 3000 * 600
    assert len(np.unique(pairs[:, 0])) == 3000


def test_no_hashes_give_no_pairs() -> None:
    assert close_pairs(np.zeros(0, np.uint64), np.zeros(0, np.uint64), radius=4).shape == (0, 2)


def test_bits_are_counted_without_numpy_2(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2**63, 50).astype(np.uint64) for _ in range(2))
    expected = [(int(a) ^ int(b)).bit_count() for a, b in zip(first, second, strict=True)]
    assert differing_bits(first, second).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert differing_bits(first, second).tolist() == expected


def test_near_vectors_have_near_signs() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 32)).astype(np.float32)
    near = vectors + 0.05 * rng.standard_normal(vectors.shape).astype(np.float32)
    assert differing_bits(sign_hashes(vectors), sign_hashes(near)).max() <= 6
    assert np.array_equal(sign_hashes(vectors), sign_hashes(vectors))


def test_of_too_many_pairs_the_nearest_are_kept() -> None:
    rng = np.random.default_rng(0)
    hashes = np.uint64(1) << rng.integers(0, 64, 200).astype(np.uint64)  # of one bit each
    hashes[:20] = 0
    pairs = close_pairs(hashes, hashes, radius=4, most=5_000)
    assert 0 < len(pairs) <= 5_000
    assert {(row, other) for row in range(20) for other in range(20) if row != other} <= set(map(tuple, pairs.tolist()))
