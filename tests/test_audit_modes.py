from __future__ import annotations

import io

import cv2
import numpy as np
import pytest

from kaggle_kit.audit.modes import Mode, read_mode
from kaggle_kit.headers import read_header

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)
COLOUR = np.dstack([GRAY, GRAY, 255 - GRAY])


def mode_of(data: bytes) -> Mode:
    return read_mode(data, read_header(data).format)


def encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "image", "expected"),
    [
        (".jpg", GRAY, "L"),
        (".jpg", COLOUR, "RGB"),
        (".png", GRAY, "L"),
        (".png", COLOUR, "RGB"),
        (".png", np.dstack([COLOUR, GRAY]), "RGBA"),
        (".png", GRAY.astype(np.uint16) * 256, "I;16"),
        (".png", COLOUR.astype(np.uint16) * 256, "RGB;16"),
        (".webp", COLOUR, "RGB"),
        (".bmp", GRAY, "P"),
        (".bmp", COLOUR, "RGB"),
        (".tiff", GRAY, "L"),
        (".tiff", COLOUR, "RGB"),
        (".tiff", GRAY.astype(np.uint16) * 256, "I;16"),
        (".tiff", COLOUR.astype(np.uint16) * 256, "RGB;16"),
    ],
)
def test_a_file_tells_its_mode(suffix: str, image: np.ndarray, expected: str) -> None:
    assert mode_of(encoded(suffix, image)) == Mode(expected, 1)


@pytest.mark.parametrize(
    ("file_format", "mode", "expected"),
    [
        ("PNG", "P", "P"),
        ("PNG", "LA", "LA"),
        ("PNG", "1", "1"),
        ("GIF", "P", "P"),
        ("JPEG", "CMYK", "CMYK"),
        ("TIFF", "CMYK", "CMYK"),
        ("TIFF", "RGBA", "RGBA"),
        ("WEBP", "RGBA", "RGBA"),
    ],
)
def test_modes_are_those_that_pillow_names(file_format: str, mode: str, expected: str) -> None:
    image = pytest.importorskip("PIL.Image").new("RGBA", (9, 7), (250, 20, 30, 99))
    image = (image if "A" in mode else image.convert("RGB")).convert(mode)
    file = io.BytesIO()
    image.save(file, file_format)
    assert mode_of(file.getvalue()).name == expected


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_frames_are_counted(file_format: str) -> None:
    pillow = pytest.importorskip("PIL.Image")
    frames = [pillow.new("RGB", (9, 7), (80 * number, 20, 30)) for number in range(3)]
    file = io.BytesIO()
    frames[0].save(file, file_format, save_all=True, append_images=frames[1:])
    assert mode_of(file.getvalue()).frames == 3


def test_what_is_cut_short_is_no_error() -> None:
    samples = [encoded(suffix, COLOUR) for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff")]
    for data in samples:
        for length in range(26, len(data), 7):
            read_mode(data[:length], read_header(data).format)


def test_a_gif_of_noise_ends() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        read_mode(b"GIF89a" + rng.bytes(200), "gif")
        read_mode(b"II*\0" + rng.bytes(200), "tiff")
