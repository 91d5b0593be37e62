"""Bring many bare images to the stored size at once."""

from __future__ import annotations

import numpy as np

from kaggle_kit.machine import decoding_pool
from kaggle_kit.pixels import Image, to_stored
from kaggle_kit.sources.protocol import split_rows
from kaggle_kit.task import Stored

ROWS_A_JOB = 64


def match_channels(images: Image, channels: int) -> Image:
    """Return (N, H, W, channels) images: gray repeated for 3, RGB turned to gray for 1."""
    import cv2

    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])[..., None].astype(np.uint8)


def fit_images(images: Image, stored: Stored | None) -> Image:
    """Return (N, H, W, C) images at the stored size, or as they are where it is theirs or None.

    All cores take part: OpenCV works without the interpreter's lock.
    """
    if stored is None or (images.shape[1:3] == (stored.height, stored.width) and stored.fit != "content"):
        return images
    out = np.empty((len(images), stored.height, stored.width, images.shape[3]), np.uint8)

    def fit(rows: range) -> None:
        for row in rows:
            out[row] = to_stored(images[row], stored)

    with decoding_pool() as pool:
        list(pool.map(fit, split_rows(0, len(images), ROWS_A_JOB)))
    return out
