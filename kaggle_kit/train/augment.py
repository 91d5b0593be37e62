"""Augmentation on stored uint8 images: presets, or one's own albumentations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.pixels import Image
from kaggle_kit.task import Stored, Task
from kaggle_kit.train.config import AUGMENT_PRESETS, TrainConfig
from kaggle_kit.train.own_list import OwnList, read_list
from kaggle_kit.train.warps import Recipe, change_colors, erase_boxes, make_meshes, thicken_strokes, warp_images

SUFFIXES = (".yaml", ".yml")


class Augment:
    """An augmentation that gives the same images for the same seed, whatever the number of workers.

    Attributes:
        recipe: What a preset does; None for `none` and for one's own list.
    """

    def __init__(self, preset: str, *, stored: Stored, channels: int) -> None:
        """Prepare a preset, or one's own list, which is tried on made-up images.

        Args:
            preset: One of `AUGMENT_PRESETS`, or the text of a YAML list of albumentations.
            stored: The size of the images.
            channels: 1 for gray, 3 for RGB.

        Raises:
            SettingError: For a list with unknown transforms or arguments, or one that gives other than uint8 images of
                the stored size.
        """
        self._shape = (stored.height, stored.width, channels)
        self.recipe = preset_recipe(preset, channels=channels) if preset in AUGMENT_PRESETS else None
        self._own = OwnList(preset, shape=self._shape) if preset not in AUGMENT_PRESETS else None
        self._meshes = make_meshes((stored.height, stored.width))

    def __call__(self, images: Image, *, seed: int) -> Image:
        """Return augmented copies of images; `none` returns the images themselves.

        Args:
            images: (B, H, W, C) uint8, of the stored size.
            seed: At least 0. Same images and seed, same result, bit for bit.
        """
        assert images.shape[1:] == self._shape, f"images are {images.shape[1:]}, not {self._shape}"
        if self._own is not None:
            return self._own(images, seed=seed)
        if self.recipe is None or not len(images):
            return images
        rng = np.random.default_rng(seed)
        out = warp_images(images, self.recipe, self._meshes, rng)
        for change in (thicken_strokes, change_colors, erase_boxes):
            change(out, self.recipe, rng)
        return out


def make_augment(config: TrainConfig, task: Task) -> Augment:
    """Return the augmentation these settings ask for.

    Raises:
        SettingError: As `Augment` does for one's own list.
    """
    assert task.stored is not None
    return Augment(config.augment, stored=task.stored, channels=task.images.channels)


def read_augment(value: str) -> str:
    """Return what `TrainConfig.augment` takes, given a preset's name or the path of a YAML list.

    Args:
        value: A preset, the path of a `.yaml` or `.yml` file, or the text of a list, which is returned as it is.

    Raises:
        SettingError: For a file that is missing, not UTF-8 or not a list of transforms, or an unknown preset.
    """
    if value in AUGMENT_PRESETS:
        return value
    if "\n" not in value and value.lower().endswith(SUFFIXES):
        path = Path(value)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise SettingError(f"`augment`: cannot read {value!r} ({error.strerror}); check the path") from None
        except UnicodeDecodeError:
            raise SettingError(f"`augment`: {value!r} is not UTF-8 text; expected a list in YAML") from None
        read_list(text, where=repr(value))
        return text if text.endswith("\n") else f"{text}\n"  # by its end of line a list is told from a preset's name
    if "\n" in value or ":" in value:
        read_list(value)
        return value
    raise SettingError(
        f"`augment` is {value!r}; expected one of {', '.join(AUGMENT_PRESETS)}, or a .yaml file with a list of "
        f"albumentations{did_you_mean(value, AUGMENT_PRESETS)}"
    )


def preset_recipe(preset: str, *, channels: int) -> Recipe | None:
    """Return what a preset does to images of so many channels; None for `none`."""
    letters = Recipe(
        rotate=10,
        zoom=(0.85, 1.15),
        aspect=0.15,
        shift=0.06,
        shear=8,
        grid=0.25,
        elastic=0.3,
        erase=0.15,
        erase_area=(0.02, 0.06),
    )
    photos = Recipe(
        rotate=5,
        zoom=(1.0, 1.3),
        aspect=0.15,
        warp=0.06,
        flip=True,
        brightness=0.15,
        contrast=0.25,
        saturation=0.3,
        outside="mirror",
    )
    strong_letters = Recipe(
        rotate=18,
        zoom=(0.75, 1.25),
        aspect=0.25,
        shift=0.08,
        shear=14,
        warp=0.06,
        grid=0.35,
        elastic=0.42,
        thickness=0.25,
        brightness=0.1,
        contrast=0.3,
        erase=0.4,
        erase_area=(0.02, 0.12),
    )
    strong_photos = Recipe(
        rotate=12,
        zoom=(1.0, 1.8),
        aspect=0.3,
        shear=5,
        warp=0.12,
        grid=0.2,
        flip=True,
        brightness=0.25,
        contrast=0.4,
        saturation=0.7,
        erase=0.4,
        erase_area=(0.02, 0.2),
        outside="mirror",
    )
    gray = channels == 1
    recipes = {"letters": letters, "photos": photos, "strong": strong_letters if gray else strong_photos, "none": None}
    return recipes["letters" if gray else "photos"] if preset == "auto" else recipes[preset]
