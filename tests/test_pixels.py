from __future__ import annotations

import cv2
import numpy as np
import pytest

from kaggle_kit.errors import ImageError
from kaggle_kit.pixels import decode_image, encode_png, resize, to_stored
from kaggle_kit.task import Stored

RNG = np.random.default_rng(0)
PHOTO = cv2.resize(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def test_jpeg_becomes_rgb() -> None:
    blue = np.zeros((16, 16, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV writes BGR
    pixel = decode_image(encode(blue), channels=3)[8, 8]
    assert pixel[2] > 240 and pixel[0] < 15


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gray", [False, True])
def test_every_format_gives_the_channels_asked_for(suffix: str, channels: int, gray: bool) -> None:
    image = decode_image(encode(PHOTO[..., 0] if gray else PHOTO, suffix), channels=channels)
    assert image.shape == (60, 80, channels)
    assert image.dtype == np.uint8


def test_png_round_trip_is_lossless() -> None:
    for image in (PHOTO, PHOTO[..., :1]):
        assert (decode_image(encode_png(image), channels=image.shape[2]) == image).all()


def test_sixteen_bits_are_scaled() -> None:
    image = np.full((4, 4), 0x80FF, np.uint16)
    assert (decode_image(encode(image, ".png"), channels=1) == 0x80).all()


def test_alpha_is_laid_over_white() -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = [0, 0, 255, 255]
    image[1, 1] = [0, 0, 0, 128]
    decoded = decode_image(encode(image, ".png"), channels=3)
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [127, 127, 127]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_files_cut_short_are_refused(suffix: str, share: float) -> None:
    data = encode(PHOTO, suffix)
    with pytest.raises(ImageError, match="cut short: no end"):
        decode_image(data[: int(len(data) * share)], channels=3)


def test_a_jpeg_cut_short_is_refused_though_its_thumbnail_is_whole() -> None:
    thumbnail = encode(PHOTO[:8, :8])
    exif = b"Exif\x00\x00" + thumbnail
    photo = encode(PHOTO)
    data = photo[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + photo[2:]
    assert decode_image(data, channels=3).shape == (60, 80, 3)
    with pytest.raises(ImageError, match="no end marker"):
        decode_image(data[:-100], channels=3)


def test_stray_bytes_between_segments_do_not_break_a_jpeg() -> None:
    data = encode(PHOTO)
    place = 4 + int.from_bytes(data[4:6], "big")
    stray = data[:place] + b"\x00" + data[place:]
    assert decode_image(stray, channels=3).shape == (60, 80, 3)


@pytest.mark.parametrize(("data", "message"), [(b"", r"empty \(0 bytes\)"), (b"GIF89a nothing", "not an image OpenCV")])
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data, channels=3)


def test_letterbox_keeps_the_aspect_ratio_and_pads_evenly() -> None:
    out = to_stored(np.full((10, 20, 1), 200, np.uint8), Stored(height=40, width=40, fit="letterbox", fill=7))
    assert out.shape == (40, 40, 1)
    assert (out[10:30] == 200).all() and (out[:10] == 7).all() and (out[30:] == 7).all()


def test_stretch_fills_the_size_and_none_refuses_another() -> None:
    image = PHOTO[..., :1]
    assert to_stored(image, Stored(height=9, width=31, fit="stretch")).shape == (9, 31, 1)
    with pytest.raises(ImageError, match="size is 60 x 80, expected 9 x 31"):
        to_stored(image, Stored(height=9, width=31))


def test_resize_shrinks_by_area() -> None:
    image = np.zeros((4, 4, 1), np.uint8)
    image[::2] = 200
    assert (resize(image, 2, 2) == 100).all()
