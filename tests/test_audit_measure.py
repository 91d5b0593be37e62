from __future__ import annotations

import cv2
import numpy as np
import pytest

from kaggle_kit.audit.measure import measure

RNG_SEED = 0


def photo(height: int = 90, width: int = 120) -> np.ndarray:
    rng = np.random.default_rng(RNG_SEED)
    coarse = rng.integers(20, 230, (9, 12, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)


def test_light_contrast_and_colour_are_what_they_are() -> None:
    flat = measure(np.full((40, 50, 3), 51, np.uint8))
    assert flat.brightness == pytest.approx(0.2, abs=1e-3)
    assert (flat.contrast, flat.content, flat.colourfulness, flat.gray) == (0, 0, 0, True)
    assert measure(photo()).colourfulness > 0.1
    assert not measure(photo()).gray


def test_gray_survives_jpeg_and_a_tint_does_not_count_as_gray() -> None:
    plain = np.repeat(photo()[..., :1], 3, axis=2)
    again = cv2.imdecode(cv2.imencode(".jpg", plain, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    sepia = (plain * np.array([1.0, 0.85, 0.65])).astype(np.uint8)
    assert measure(again).gray
    assert not measure(sepia).gray


def test_blurring_takes_sharpness_away_and_less_contrast_does_not() -> None:
    sharp = photo()
    pale = (sharp.astype(np.float32) * 0.5 + 60).astype(np.uint8)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    assert measure(blurred).sharpness < 0.1 * measure(sharp).sharpness
    assert measure(pale).sharpness == pytest.approx(measure(sharp).sharpness, rel=0.2)


def test_content_is_what_differs_from_paper() -> None:
    paper = np.full((100, 100, 1), 250, np.uint8)
    paper[40:60, 40:60] = 10
    assert measure(paper).content == pytest.approx(0.04, abs=1e-3)


def test_equal_pixels_have_equal_hashes_and_other_shapes_have_not() -> None:
    image = photo()
    assert measure(image).pixel_hash == measure(image[:, :, :].copy()).pixel_hash
    assert measure(image).pixel_hash == measure(np.asfortranarray(image)).pixel_hash
    changed = image.copy()
    changed[5, 5, 0] ^= 1
    assert measure(image).pixel_hash != measure(changed).pixel_hash
    black = np.zeros((4, 6, 1), np.uint8)
    assert measure(black).pixel_hash != measure(black.reshape(6, 4, 1)).pixel_hash
    assert measure(image, (90, 120)).pixel_hash != measure(image, (180, 240)).pixel_hash


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 900, 3), (700, 1, 1), (2, 3, 1)])
def test_any_shape_is_measured(shape: tuple[int, int, int]) -> None:
    measures = measure(np.full(shape, 9, np.uint8))
    assert measures.thumbnail.shape == (48, 48)
    assert np.isfinite([measures.brightness, measures.contrast, measures.sharpness, measures.content]).all()
