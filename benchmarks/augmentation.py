"""What augmentation costs: milliseconds of one core an image, by preset, and for the same by albumentations.

    python benchmarks/augmentation.py [--images DATA_FOLDER] [--repeats 7] [--batch 64]

Prints a markdown table. Everything is measured in turns in one process, on one thread, in the processor's own time,
so that other programs disturb little; the table gives medians. Images are drawn from scikit-learn's digits, or, by
DATA_FOLDER (which holds bangla_handwriting.zip and caltech_photos.zip), are real ones. The lists of albumentations
come as near to the presets as its transforms do; each of them resamples the image again.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from kaggle_kit.pixels import Image, read_stored, resize
from kaggle_kit.task import Stored
from kaggle_kit.train.augment import Augment

SHAPES = ((64, 64, 1), (137, 236, 1), (128, 128, 3))
PRESETS = ("none", "letters", "photos", "strong")
LETTERS = """
- Affine: {rotate: [-10, 10], scale: [0.85, 1.15], translate_percent: [-0.06, 0.06], shear: [-8, 8], fill: 255, p: 1}
- OneOf:
    p: 0.667
    transforms:
      - GridDistortion: {num_steps: 3, distort_limit: 0.25, border_mode: 0, fill: 255}
      - ElasticTransform: {alpha: 40, sigma: 6, border_mode: 0, fill: 255}
- Erasing: {scale: [0.02, 0.06], fill: random, p: 0.15}
"""
PHOTOS = """
- RandomResizedCrop: {size: [HEIGHT, WIDTH], scale: [0.6, 1.0], p: 1}
- Perspective: {scale: [0.01, 0.06], p: 1}
- Affine: {rotate: [-5, 5], border_mode: 4, p: 1}
- HorizontalFlip
- ColorJitter: {brightness: [0.85, 1.15], contrast: [0.75, 1.25], saturation: [0.7, 1.3], hue: [0, 0], p: 1}
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="DATA_FOLDER", help="real images instead of digits")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is measured")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    tables = {shape: measure_shape(shape, options.images, options.repeats, options.batch) for shape in SHAPES}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    print("| ms an image | " + " | ".join(" x ".join(map(str, shape)) for shape in SHAPES) + " |")
    print("|---" + "|---:" * len(SHAPES) + "|")
    for name in names:
        cells = [f"{table[name] * 1e3:.3f}" if name in table else "" for table in tables.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    source = "real images" if options.images else "scikit-learn's digits"
    print(
        f"\nMedians of {options.repeats} batches of {options.batch}, {source}, one thread of {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, OpenCV {cv2.__version__}."
    )


def measure_shape(shape: tuple[int, int, int], folder: Path | None, repeats: int, batch: int) -> dict[str, float]:
    """Return seconds an image by what is done to images of one shape."""
    height, width, channels = shape
    stored = Stored(height=height, width=width, fit="letterbox", fill=255)
    images = drawn_images(shape, batch) if folder is None else real_images(folder, stored, channels, batch)
    own = (LETTERS if channels == 1 else PHOTOS).replace("HEIGHT", str(height)).replace("WIDTH", str(width))
    near = "letters" if channels == 1 else "photos"
    ways: dict[str, Callable[[int], object]] = {}
    for name, preset in [*((preset, preset) for preset in PRESETS), (f"{near}, by albumentations", own)]:
        augment = Augment(preset, stored=stored, channels=channels)
        ways[name] = lambda seed, augment=augment: augment(images, seed=seed)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first is not counted
        for name, way in ways.items():
            started = time.process_time()
            way(repeat)
            seconds[name].append((time.process_time() - started) / len(images))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def drawn_images(shape: tuple[int, int, int], count: int) -> Image:
    """Return digits on white paper, in gray or in colors."""
    from sklearn.datasets import load_digits

    height, width, channels = shape
    glyphs = (255 - load_digits().images[:count] * 15).astype(np.uint8)[..., None]
    large = np.stack([resize(glyph, height, width) for glyph in glyphs])
    tint = np.array([1.0, 0.8, 0.6])[:channels]
    return np.asarray(255 - (255 - large) * tint, np.uint8)


def real_images(folder: Path, stored: Stored, channels: int, count: int) -> Image:
    """Return the first handwriting scans, or photos, at the stored size."""
    with zipfile.ZipFile(folder / ("bangla_handwriting.zip" if channels == 1 else "caltech_photos.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".png", ".jpg")))[:count]
        return np.stack([read_stored(archive.read(name), channels=channels, stored=stored)[0] for name in names])


if __name__ == "__main__":
    main()
