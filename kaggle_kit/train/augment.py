"""Augmentation on stored uint8 images, by albumentations."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from kaggle_kit.pixels import Image
from kaggle_kit.task import Stored, Task
from kaggle_kit.train.config import TrainConfig


class Augment:
    """A preset that gives the same images for the same seed, whatever the number of workers."""

    def __init__(self, preset: str, *, stored: Stored) -> None:
        self._compose = _compose(preset, stored)

    def __call__(self, images: Image, *, seed: int) -> Image:
        """Return augmented copies of (B, H, W, C) uint8 images."""
        if self._compose is None:
            return images
        self._compose.set_random_seed(seed)
        return np.stack([self._compose(image=image)["image"] for image in images])


def make_augment(config: TrainConfig, task: Task) -> Augment:
    """Return the augmentation these settings ask for."""
    assert task.stored is not None
    preset = config.augment
    if preset == "auto":
        preset = "letters" if task.images.channels == 1 else "photos"
    return Augment(preset, stored=task.stored)


def _compose(preset: str, stored: Stored) -> Any:
    if preset == "none":
        return None
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its version check costs a minute offline
    import albumentations as A

    with warnings.catch_warnings():
        # albumentations 2 only warns on an unknown argument, and then ignores it.
        warnings.simplefilter("error")
        if preset == "letters":
            steps = [
                A.Affine(
                    scale=(0.85, 1.15),
                    translate_percent=(-0.06, 0.06),
                    rotate=(-10, 10),
                    shear={"x": (-8, 8), "y": (-4, 4)},
                    fill=_paper(stored),
                    p=0.9,
                )
            ]
        else:
            size = (stored.height, stored.width)
            steps = [
                A.RandomResizedCrop(
                    size=size, scale=(0.6, 1.0), ratio=(0.8 * size[1] / size[0], 1.25 * size[1] / size[0])
                ),
                A.HorizontalFlip(p=0.5),
                A.Affine(rotate=(-5, 5), p=0.3),
                A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            ]
        return A.Compose(steps, seed=0)


def _paper(stored: Stored) -> int:
    """Return the gray value that letters are written on: the padding's where there is one, else white."""
    return stored.fill if stored.fit == "letterbox" else 255
