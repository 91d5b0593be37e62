"""What the kit's pixel code gives for all images of an archive, by the OpenCV of the Python that runs this.

    PYTHONPATH=REPOSITORY python benchmarks/opencv_pixels.py ARCHIVE TASK_FILE OUT.npz [DECODED.npz]

It needs no more than the kernel's side has. With DECODED.npz, an earlier OUT.npz, resizing starts from its images.
`rehearsal.py` says what for.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from kaggle_kit.pixels import Image, decode_image, read_stored, to_stored
from kaggle_kit.task import Stored, read_task

SUFFIXES = (".jpg", ".png")
FITS = {
    "smaller, by area (48 x 64)": Stored(height=48, width=64, fit="stretch"),
    "larger, linearly (300 x 400)": Stored(height=300, width=400, fit="stretch"),
    "one side of each (300 x 64)": Stored(height=300, width=64, fit="stretch"),
    "cropped to content (64 x 64)": Stored(height=64, width=64, fit="content"),
}
RESIZED = 400  # images, spread over all
CONTROL = "for comparison: turned by bare cv2.warpAffine"  # the kit's CPU stage does without


def main(archive: Path, task_file: Path, out: Path, decoded: Path | None) -> None:
    """Write decoded, resized and stored images."""
    task = read_task(task_file)
    channels = task.images.channels
    with zipfile.ZipFile(archive) as opened:
        encoded = [opened.read(name) for name in sorted(opened.namelist()) if name.endswith(SUFFIXES)]
    images = [decode_image(data, channels=channels) for data in encoded]
    arrays = {
        "stored": np.stack([read_stored(data, channels=channels, stored=task.stored)[0] for data in encoded]),
        "decoded": np.concatenate([image.ravel() for image in images]),
        "shapes": np.array([image.shape for image in images]),
    }
    first = list(read_decoded(decoded)) if decoded else images
    some = np.unique(np.linspace(0, len(first) - 1, RESIZED).astype(int))
    arrays |= {name: np.stack([to_stored(first[row], stored) for row in some]) for name, stored in FITS.items()}
    arrays[CONTROL] = np.stack([turn(arrays["stored"][row]) for row in some])
    np.savez(out, version=np.array(cv2.__version__), **arrays)


def turn(image: Image) -> Image:
    """Return an image turned by 7 degrees."""
    height, width = image.shape[:2]
    turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), 7, 1.0), (width, height))
    return np.asarray(turned, np.uint8)


def read_decoded(path: Path) -> Iterator[Image]:
    """Yield the decoded images of an earlier OUT.npz."""
    with np.load(path) as arrays:
        flat, at = arrays["decoded"], 0
        for shape in arrays["shapes"]:
            yield flat[at : at + shape.prod()].reshape(shape)
            at += shape.prod()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
