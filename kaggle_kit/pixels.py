"""Encoded bytes to a uint8 image of the stored size: the only CPU pixel code, shared by home and kernel.

OpenCV decodes; what it gets wrong in silence, or differently from version to version (4.10 to 5.0 were measured), is
settled here: halves of JPEGs, EXIF orientation behind other metadata, transparent gray of PNG, alpha of TIFF.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import ImageError
from kaggle_kit.headers import BMP_CORE_BYTES, JPEG_SCAN, Header, jpeg_segments, png_chunks, read_header, tiff_tags
from kaggle_kit.task import Stored

Image = npt.NDArray[np.uint8]

# Changes with any pixel that this module gives for the same file: stores packed before are then packed again.
PIXELS_VERSION = 1
MAX_PIXELS = 100_000_000
REDUCTIONS = (8, 4, 2)
JPEG_END = b"\xff\xd9"
TAIL_BYTES = 1024
PNG_GRAY = 0
TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_EXTRA = 262, 277, 338
WHITE_IS_ZERO = 0
NO_ALPHA, STRAIGHT_ALPHA = 0, 2  # 1 is alpha multiplied in
CONTENT_LEVELS = 25  # gray levels from the background, at least
CONTENT_AREA, CONTENT_SHARE = 4, 50  # a component's pixels, at least; how many times smaller than the largest it may be
CONTENT_PADDING = 0.05


def decode_image(data: bytes | memoryview, *, channels: int, at_least: tuple[int, int] | None = None) -> Image:
    """Decode an encoded image.

    EXIF orientation is applied to JPEG, 16-bit samples are scaled to 8, alpha is laid over white, and an animation
    gives its first frame.

    Args:
        data: JPEG, PNG, WebP, BMP, TIFF, or GIF (which OpenCV reads from 4.12 on).
        channels: 1 for gray, 3 for RGB.
        at_least: (height, width) that suffices: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as both sides, after
            orientation, stay at least this long. Other formats ignore it.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ImageError: For data that is empty, cut short, too large or no image. The caller knows the id and adds it.
    """
    view = memoryview(data).cast("B")
    return _decode(view, read_header(view), channels, at_least)


def read_stored(data: bytes | memoryview, *, channels: int, stored: Stored | None) -> tuple[Image, tuple[int, int]]:
    """Decode an image and bring it to the stored size, decoding no more of a JPEG than that takes.

    Args:
        data: The encoded image.
        channels: 1 for gray, 3 for RGB.
        stored: The size and how to reach it; none leaves the image as decoded.

    Returns:
        The (H, W, channels) uint8 image, and its original (height, width) after orientation.

    Raises:
        ImageError: As `decode_image` and `to_stored`.
    """
    view = memoryview(data).cast("B")
    header = read_header(view)
    size = header.shown_size
    needed = None
    if stored is not None and stored.fit == "stretch":
        needed = (stored.height, stored.width)
    elif stored is not None and stored.fit == "letterbox":
        needed = _inner_size(size, (stored.height, stored.width))
    image = _decode(view, header, channels, needed)
    if needed is not None:  # from the original's aspect ratio: a reduced image's is rounded
        image = resize(image, *needed)
    return image if stored is None else to_stored(image, stored), size


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
    if stored.fit == "content":
        return _letterbox(crop_content(image), size, _background(image))
    if image.shape[:2] == size:
        return image
    if stored.fit == "none":
        raise ImageError(
            f"size is {image.shape[0]} x {image.shape[1]}, expected {size[0]} x {size[1]}; "
            "set fit: stretch, letterbox or content"
        )
    return resize(image, *size) if stored.fit == "stretch" else _letterbox(image, size, stored.fill)


def crop_content(image: Image) -> Image:
    """Crop an image to what stands out from its background: a glyph on paper, of any number of strokes and dots.

    The background is the border's median gray; content differs from it by more than Otsu's threshold, and by more than
    25 gray levels. Connected parts below 4 pixels or 1/50 of the largest part are specks. Color that has the
    background's gray is not seen.

    Args:
        image: (H, W, C) uint8, C 1 or 3.

    Returns:
        (h, w, C) uint8: the content and 5 % of its longer side around it, which beyond the image's edge is filled with
        the background's color; the image as it is when nothing stands out.
    """
    import cv2

    gray = image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    difference = cv2.absdiff(gray, np.full_like(gray, _background(gray[..., None])[0]))
    otsu, _ = cv2.threshold(difference, 0, 255, cv2.THRESH_OTSU)
    content = (difference > max(CONTENT_LEVELS, otsu)).astype(np.uint8)
    parts = cv2.connectedComponentsWithStats(content, connectivity=8)[2][1:]  # (N, 5): left, top, width, height, area
    areas = parts[:, cv2.CC_STAT_AREA].astype(np.int64)
    kept = parts[(areas >= CONTENT_AREA) & (areas * CONTENT_SHARE >= areas.max(initial=0))]
    if not len(kept):
        return image
    start = kept[:, :2].min(axis=0)[::-1]
    end = (kept[:, :2] + kept[:, 2:4]).max(axis=0)[::-1]
    padding = round(CONTENT_PADDING * int((end - start).max()))
    return _cut(image, (start - padding).tolist(), (end + padding).tolist())


def resize(image: Image, height: int, width: int) -> Image:
    """Resize (H, W, C) uint8: by area where both sides shrink, linearly where none does.

    Where one grows, OpenCV's area mode is a linear one, and would alias a side that shrinks to less than half: that
    one is shrunk by area first. To half, a linear mode still sees every pixel.
    """
    import cv2

    smaller = (min(height, image.shape[0]), min(width, image.shape[1]))
    if smaller != (height, width) and 2 * height >= image.shape[0] and 2 * width >= image.shape[1]:
        smaller = (image.shape[0], image.shape[1])
    for size, how in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape[:2] != size:
            out = cv2.resize(image, size[::-1], interpolation=how)
            image = np.asarray(out, np.uint8).reshape(*size, image.shape[2])
    return image


def encode_png(image: Image) -> bytes:
    """Encode (H, W, 1 or 3) uint8 without loss."""
    import cv2

    done, data = cv2.imencode(".png", image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return bytes(data.tobytes())


def _decode(view: memoryview, header: Header, channels: int, at_least: tuple[int, int] | None) -> Image:
    import cv2

    if header.height * header.width > MAX_PIXELS:
        raise ImageError(
            f"size is {header.height:,} x {header.width:,}, {header.height * header.width:,} pixels; at most "
            f"{MAX_PIXELS:,} are decoded; shrink the image or drop the file"
        )
    _check_whole(view, header)
    if header.format == "jpeg":
        return _decode_jpeg(view, header, channels, at_least)
    # OpenCV takes a BMP with OS/2's 12-byte header for gray unless told otherwise.
    is_core = header.format == "bmp" and view[14] == BMP_CORE_BYTES
    image = _imdecode(view, header, cv2.IMREAD_COLOR if is_core else cv2.IMREAD_UNCHANGED)
    _check_size(image, header.shown_size)
    if header.format == "tiff":
        image = _tiff_over_white(image, tiff_tags(view))
    if header.format == "png" and image.ndim == 2:
        image = _whiten_transparent(image, view)
    return _to_channels(_over_white(_to_eight_bits(image)), channels)


def _decode_jpeg(view: memoryview, header: Header, channels: int, at_least: tuple[int, int] | None) -> Image:
    """Decode a JPEG as small as allowed, and turn it: OpenCV 4.10 misses an orientation that comes after XMP."""
    import cv2

    factor = 1
    if at_least is not None:
        fits = (
            n for n in REDUCTIONS if all(_part(s, n) >= a for s, a in zip(header.shown_size, at_least, strict=True))
        )
        factor = next(fits, 1)
    # Straight to RGB where OpenCV can (4.11), which saves a pass over the whole image.
    rgb = getattr(cv2, "IMREAD_COLOR_RGB", 0)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else rgb or cv2.IMREAD_COLOR
    reduced = 0 if factor == 1 else 8 * factor  # IMREAD_REDUCED_*_2, 4 and 8 are 16, 32 and 64
    image = _imdecode(view, header, flag | reduced | cv2.IMREAD_IGNORE_ORIENTATION)
    _check_size(image, (-(-header.height // factor), -(-header.width // factor)))
    # A last row or column from less than half a block is mostly padding, and would shift the rest once resized.
    image = image[: _part(header.height, factor), : _part(header.width, factor)]
    image = _turn(image, header.orientation)
    return image if rgb and channels == 3 else _to_channels(image, channels)


def _imdecode(view: memoryview, header: Header, flags: int) -> npt.NDArray[Any]:
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(view, np.uint8), flags)
        reason = "damaged, cut short or of an unusual kind"
    except cv2.error as error:
        image, reason = None, " ".join(str(getattr(error, "err", error)).split())
    if image is None:
        raise ImageError(
            f"OpenCV {cv2.__version__} cannot decode this {header.format} of {len(view):,} bytes ({reason}); "
            "convert it to PNG, replace or drop the file"
        )
    return np.asarray(image)


def _check_whole(view: memoryview, header: Header) -> None:
    """Refuse files cut short that OpenCV takes: it returns half a JPEG, the rest gray, without a word."""
    if header.format == "jpeg" and view[-2:] != JPEG_END:
        # The header's thumbnails have end markers too: only those behind the first scan count.
        scan = next((end for marker, _, end in jpeg_segments(view) if marker == JPEG_SCAN), len(view))
        tail = max(scan, len(view) - TAIL_BYTES)
        if not any(JPEG_END in bytes(view[start:]) for start in (tail, scan)):
            raise ImageError(f"a JPEG cut short: no end marker in {len(view):,} bytes; replace or drop the file")
    if header.format == "png" and all(name != b"IEND" for name, _, _ in png_chunks(view)):
        raise ImageError(f"a PNG cut short: no end chunk in {len(view):,} bytes; replace or drop the file")


def _check_size(image: npt.NDArray[Any], expected: tuple[int, int]) -> None:
    if image.shape[:2] != expected:
        raise ImageError(
            f"decodes to {image.shape[0]} x {image.shape[1]}, but its header says {expected[0]} x {expected[1]}; "
            "replace or drop the file"
        )


def _part(side: int, factor: int) -> int:
    """Return a side of the reduced image, rounded: libjpeg itself rounds up."""
    return (side + factor // 2) // factor


def _turn(image: npt.NDArray[Any], orientation: int) -> Image:
    """Apply an EXIF orientation: transpose for 5 to 8, then flip. Source: EXIF 2.32, tag 0x0112."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _whiten_transparent(image: npt.NDArray[Any], view: memoryview) -> npt.NDArray[Any]:
    """Make the gray that a PNG declares transparent white; OpenCV does so for palettes and color only."""
    bits, kind = view[24], view[25]
    clear = [view[start:end] for name, start, end in png_chunks(view) if name == b"tRNS"]
    if kind != PNG_GRAY or not clear or len(clear[0]) != 2:
        return image
    top = 65535 if bits == 16 else 255
    level = int.from_bytes(clear[0], "big") % (1 << bits) * top // ((1 << bits) - 1)
    return np.where(image == level, image.dtype.type(top), image)


def _tiff_over_white(image: npt.NDArray[Any], tags: dict[int, int]) -> npt.NDArray[Any]:
    """Lay a TIFF's alpha over white, where libtiff has already multiplied it into colors of 8 bits but not of 16."""
    if tags.get(TIFF_SAMPLES, 1) == 2:
        raise ImageError("a gray TIFF with alpha, which OpenCV drops; convert it to PNG")
    if image.dtype == np.uint16 and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        return ~image
    if image.ndim == 2 or image.shape[2] != 4:
        return image
    kind = tags.get(TIFF_EXTRA, STRAIGHT_ALPHA)
    if kind == NO_ALPHA:
        return image[..., :3]
    if kind == STRAIGHT_ALPHA and image.dtype != np.uint8:
        return image
    image = _to_eight_bits(image)
    return np.minimum(image[..., :3], image[..., 3:]) + (255 - image[..., 3:])


def _to_eight_bits(image: npt.NDArray[Any]) -> Image:
    import cv2

    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return np.asarray(cv2.convertScaleAbs(image, alpha=255 / 65535), np.uint8)  # rounds
    raise ImageError(f"pixels are {image.dtype}; expected 8 or 16 bits; convert the file")


def _over_white(image: Image) -> Image:
    if image.ndim == 2 or image.shape[2] != 4:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    out = image[..., :3] * alpha
    out += 255 * (255 - alpha) + 127
    out //= 255
    return out.astype(np.uint8)


def _to_channels(image: Image, channels: int) -> Image:
    import cv2

    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        return image[..., None] if channels == 1 else np.repeat(image[..., None], 3, axis=2)
    if channels == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)[..., None]
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _inner_size(size: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) of the same aspect ratio inside `outer`."""
    scale = min(outer[0] / size[0], outer[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _letterbox(image: Image, size: tuple[int, int], fill: int | Image) -> Image:
    inner = _inner_size((image.shape[0], image.shape[1]), size)
    if inner == size:
        return resize(image, *size)
    out = np.full((*size, image.shape[2]), fill, np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = resize(image, *inner)
    return out


def _background(image: Image) -> Image:
    """Return the border's median of (H, W, C), channel by channel: (C,)."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.asarray(np.median(border, axis=0).round(), np.uint8)


def _cut(image: Image, start: list[int], end: list[int]) -> Image:
    """Cut rows and columns out, which may lie beyond the image; there the background goes on."""
    inside = image[max(0, start[0]) : end[0], max(0, start[1]) : end[1]]
    out = np.full((end[0] - start[0], end[1] - start[1], image.shape[2]), _background(image), np.uint8)
    top, left = max(0, -start[0]), max(0, -start[1])
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out
