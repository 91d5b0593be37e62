"""The measures of one image: how bright, sharp, colourful and full it is, and what it is known by."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kaggle_kit.pixels import CONTENT_LEVELS, Image, resize

MEASURED_SIDE = 256  # pixels; what is larger is shrunk, for a network sees no more
THUMBNAIL = 48  # pixels, both sides
HASH_BYTES = 16
GRAY_MEAN, GRAY_LEVELS, GRAY_SHARE = 2.0, 10, 0.005  # JPEG's noise: mean difference of channels, and its tail
LEAST_VARIANCE = 1.0  # levels squared: below, nothing is shown that could be sharp


class Measures(NamedTuple):
    """What is measured of one image; see `pictures.Images` for each."""

    gray: bool
    brightness: float
    contrast: float
    sharpness: float
    content: float
    colourfulness: float
    pixel_hash: bytes
    thumbnail: Image


def measure(image: Image, size: tuple[int, int] | None = None) -> Measures:
    """Measure an image.

    Args:
        image: (H, W, 1 or 3) uint8, RGB.
        size: Its (height, width) before it was brought to a stored size, where it was: images of one content and
            different sizes are no equal images.
    """
    import cv2

    longest = max(image.shape[:2])
    small = image
    if longest > MEASURED_SIDE:
        height, width = (max(1, round(side * MEASURED_SIDE / longest)) for side in image.shape[:2])
        small = resize(image, height, width)
    plane = np.ascontiguousarray(small[..., 0]) if small.shape[2] == 1 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    mean, std = (float(value[0, 0]) for value in cv2.meanStdDev(plane))
    edges = float(cv2.meanStdDev(cv2.Laplacian(plane, cv2.CV_32F))[1][0, 0])
    chroma, is_gray = _colour(small)
    return Measures(
        gray=is_gray,
        brightness=mean / 255,
        contrast=std / 255,
        sharpness=edges**2 / max(std**2, LEAST_VARIANCE),
        content=_content(np.asarray(plane, np.uint8)),
        colourfulness=chroma / 255,
        pixel_hash=_hash(image, size),
        thumbnail=resize(np.asarray(plane, np.uint8)[..., None], THUMBNAIL, THUMBNAIL)[..., 0],
    )


def _colour(image: Image) -> tuple[float, bool]:
    """Return the mean difference between the largest and the smallest channel, and whether that is JPEG's noise."""
    import cv2

    if image.shape[2] == 1:
        return 0.0, True
    red, green, blue = cv2.split(image)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    mean = float(cv2.mean(chroma)[0])
    if mean > GRAY_MEAN:
        return mean, False
    return mean, bool(np.count_nonzero(chroma > GRAY_LEVELS) <= GRAY_SHARE * chroma.size)


def _content(plane: npt.NDArray[np.uint8]) -> float:
    border = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
    middle = len(border) // 2
    background = int(np.partition(border, middle)[middle])
    below, above = max(background - CONTENT_LEVELS, 0), min(background + CONTENT_LEVELS, 255)
    return float((np.count_nonzero(plane < below) + np.count_nonzero(plane > above)) / plane.size)


def _hash(image: Image, size: tuple[int, int] | None) -> bytes:
    """Return 16 bytes of the SHA-256 of shape and pixels, as the packed store cuts its own."""
    shape = np.array([*image.shape, *(size or image.shape[:2])], "<i4")
    return hashlib.sha256(shape.tobytes() + np.ascontiguousarray(image).tobytes()).digest()[:HASH_BYTES]
