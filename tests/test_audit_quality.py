from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
from audited import images_of, scene

from kaggle_kit.audit.quality import quality_findings, robust_z

SCENES = [scene(seed) for seed in range(40)]


def kinds(pictures: list[np.ndarray], **columns: object) -> list[tuple[str, str]]:
    return [(finding.kind, finding.id) for finding in quality_findings(images_of(pictures, **columns))]


def glyph(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    paper = np.full((70, 110, 1), 250, np.uint8)
    points = rng.integers(15, 55, (5, 2)) + np.array([25, 0])
    cv2.polylines(paper, [points.astype(np.int32)], False, 10, 4)
    return paper


def test_ordinary_photos_have_nothing_wrong() -> None:
    assert kinds(SCENES) == []


def test_white_paper_with_glyphs_is_not_too_bright_and_a_blank_sheet_is_empty() -> None:
    glyphs = [glyph(seed) for seed in range(40)]
    assert kinds(glyphs) == []
    assert kinds([*glyphs, np.full((70, 110, 1), 251, np.uint8)]) == [("empty", "i40")]


def test_a_dark_set_has_no_dark_images_and_a_dark_image_among_photos_is_one() -> None:
    dark = [(picture * 0.08).astype(np.uint8) for picture in SCENES]
    assert kinds(dark) == []
    assert kinds([*SCENES, dark[0]]) == [("dark", "i40")]


def test_too_bright_empty_gray_and_blurred_photos_are_found() -> None:
    odd = {
        "bright": np.clip(SCENES[1].astype(np.int16) + 135, 0, 255).astype(np.uint8),
        "empty": (SCENES[2] * 0.02 + 110).astype(np.uint8),
        "gray": np.repeat(SCENES[3][..., :1], 3, axis=2),
        "blurred": cv2.GaussianBlur(scene(77), (0, 0), 3),
    }
    found = kinds([*SCENES, *odd.values()])
    assert set(found) >= {(kind, f"i{40 + place}") for place, kind in enumerate(odd)}
    assert {name for _, name in found} == {"i40", "i41", "i42", "i43"}


def test_a_gray_data_set_has_no_gray_images() -> None:
    assert kinds([np.repeat(picture[..., :1], 3, axis=2) for picture in SCENES]) == []


def test_unusual_modes_and_animations_are_told() -> None:
    modes = np.array([*["RGB"] * 38, "CMYK", "RGB"])
    frames = np.array([*[1] * 39, 12])
    found = quality_findings(images_of(SCENES, mode=modes, frames=frames))
    assert [(one.kind, one.id) for one in found] == [("mode", "i38"), ("mode", "i39")]
    assert "mode CMYK" in found[0].detail
    assert "12 frames" in found[1].detail
    half = np.array(["RGB", "L"] * 20)
    assert quality_findings(images_of(SCENES, mode=half)) == []


def test_sizes_and_shapes_far_from_usual_are_told() -> None:
    height = np.array([*[60] * 37, 600, 6, 60])
    width = np.array([*[80] * 37, 800, 8, 700])
    found = quality_findings(images_of(SCENES, height=height, width=width))
    assert Counter((one.kind, one.id) for one in found) == {("size", "i37"): 1, ("size", "i38"): 1, ("size", "i39"): 1}
    assert "600 x 800: 10.0 times larger than usual" in {one.id: one.detail for one in found}["i37"]


def test_broken_images_are_listed_with_their_reason_and_measured_by_nothing_else() -> None:
    broken = np.array([*[""] * 39, "a JPEG cut short"])
    (finding,) = quality_findings(images_of(SCENES, broken=broken))
    assert (finding.kind, finding.detail) == ("broken", "a JPEG cut short")


def test_a_few_images_are_not_compared() -> None:
    assert kinds([*SCENES[:3], np.zeros((60, 80, 3), np.uint8)]) == []


def test_robust_z_is_not_moved_by_outliers() -> None:
    values = np.array([*np.linspace(-1, 1, 101), 1000.0])
    z = robust_z(values, least_sigma=0.01)
    assert abs(z[:101]).max() < 2
    assert z[101] > 100
    assert robust_z(np.array([1.0, 1.0, 1.0, 1.1]), least_sigma=0.1).max() < 1.01
