"""Encoded bytes to a uint8 image of the stored size: the only CPU pixel code, shared by home and kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import ImageError
from kaggle_kit.task import Stored

Image = npt.NDArray[np.uint8]

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
TAIL_BYTES = 1024
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


def decode_image(data: bytes, *, channels: int) -> Image:
    """Decode an encoded image.

    EXIF orientation is applied to JPEG, 16-bit samples are scaled to 8, alpha is laid over white.

    Args:
        data: JPEG, PNG, WebP, BMP or whatever else OpenCV reads.
        channels: 1 for gray, 3 for RGB.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ImageError: For data that is empty, cut short or no image. The caller knows the id and adds it.
    """
    import cv2

    _check_whole(data)
    is_jpeg = data.startswith(JPEG_START)
    color = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), color if is_jpeg else cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"OpenCV cannot decode it ({error.err}); replace or drop the file") from None
    if image is None:
        raise ImageError(f"not an image OpenCV can decode ({len(data):,} bytes); replace or drop the file")
    return _to_channels(_over_white(_to_eight_bits(image)), channels)


def to_stored(image: Image, stored: Stored) -> Image:
    """Bring an image to the stored size.

    Args:
        image: (H, W, C) uint8 of any size.
        stored: The size and how to reach it.

    Returns:
        (stored.height, stored.width, C) uint8.

    Raises:
        ImageError: When `fit` is none and the size differs.
    """
    size = (stored.height, stored.width)
    if image.shape[:2] == size:
        return image
    if stored.fit == "none":
        raise ImageError(
            f"size is {image.shape[0]} x {image.shape[1]}, expected {size[0]} x {size[1]}; "
            "set fit: stretch or letterbox"
        )
    if stored.fit == "stretch":
        return resize(image, *size)
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    inner = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    out = np.full((*size, image.shape[2]), stored.fill, np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = resize(image, *inner)
    return out


def resize(image: Image, height: int, width: int) -> Image:
    """Resize (H, W, C) uint8: by area when both sides shrink, linearly otherwise."""
    import cv2

    shrinks = height <= image.shape[0] and width <= image.shape[1]
    out = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(out, np.uint8).reshape(height, width, image.shape[2])


def encode_png(image: Image) -> bytes:
    """Encode (H, W, 1 or 3) uint8 without loss."""
    import cv2

    done, data = cv2.imencode(".png", image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return bytes(data.tobytes())


def _check_whole(data: bytes) -> None:
    """Refuse files cut short: OpenCV returns half a JPEG, the rest gray, without a word."""
    if not data:
        raise ImageError("the file is empty (0 bytes); replace or drop it")
    if data.startswith(JPEG_START) and data.find(JPEG_END, _scan_start(data)) < 0:
        raise ImageError(f"a JPEG cut short: no end marker in {len(data):,} bytes; replace or drop the file")
    if data.startswith(PNG_START) and data.rfind(PNG_END) < 0:
        raise ImageError(f"a PNG cut short: no end chunk in {len(data):,} bytes; replace or drop the file")


def _scan_start(data: bytes) -> int:
    """Return where a JPEG's first scan starts, past the thumbnails in its header, which have end markers too."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == JPEG_SCAN:
            return place
        if data[place + 1] == 0xFF:  # padding before a marker
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return max(2, len(data) - TAIL_BYTES)  # stray bytes between segments: look for the end marker near the end only


def _to_eight_bits(image: npt.NDArray[Any]) -> Image:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    raise ImageError(f"pixels are {image.dtype}; expected 8 or 16 bits; convert the file")


def _over_white(image: Image) -> Image:
    if image.ndim == 2 or image.shape[2] != 4:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _to_channels(image: Image, channels: int) -> Image:
    import cv2

    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        return image[..., None] if channels == 1 else np.repeat(image[..., None], 3, axis=2)
    if channels == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)[..., None]
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
