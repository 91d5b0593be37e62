"""An image file's format and size from its first bytes, before any decoder sees them.

Only the six formats that competitions ship are known; the exotic decoders inside OpenCV are never reached.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kaggle_kit.errors import ImageError

Format = Literal["jpeg", "png", "webp", "bmp", "gif", "tiff"]

SIGNATURES: dict[Format, bytes] = {  # patterns, where a dot is any byte
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "bmp": rb"BM",
    "gif": rb"GIF8[79]a",
    "tiff": rb"II\*\x00|MM\x00\*",
}
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
JPEG_BARE = {0x01, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8}  # markers without a length
JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
JPEG_END, JPEG_SCAN, JPEG_APP1 = 0xD9, 0xDA, 0xE1
EXIF_START = b"Exif\x00\x00"
BMP_CORE_BYTES = 12
TIFF_WIDTH, TIFF_HEIGHT, TIFF_ORIENTATION = 256, 257, 274
TIFF_BYTES = {1: 1, 3: 2, 4: 4}  # BYTE, SHORT, LONG


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        format: One of six.
        height: Pixels as stored, before the orientation is applied; at least 1.
        width: Pixels as stored, before the orientation is applied; at least 1.
        orientation: 1 to 8 as in EXIF; of JPEG and TIFF only, 1 for the others.
    """

    format: Format
    height: int
    width: int
    orientation: int = 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) once the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes | memoryview) -> Header:
    """Read an image's format and size without decoding it.

    Args:
        data: The encoded image; its beginning is enough, a JPEG's up to its first scan.

    Returns:
        The header, with both sides at least 1.

    Raises:
        ImageError: For data that is empty, of another format, cut short within the header, or without pixels.
    """
    view = memoryview(data).cast("B")
    if not view:
        raise ImageError("the file is empty (0 bytes); replace or drop it")
    name = next((name for name, start in SIGNATURES.items() if re.match(start, view, re.DOTALL)), None)
    if name is None:
        raise ImageError(
            f"begins with {bytes(view[:8]).hex(' ')}, which is no JPEG, PNG, WebP, BMP, GIF or classic TIFF; "
            "convert it to PNG or JPEG"
        )
    height, width, orientation = _READERS[name](view)
    if height < 1 or width < 1:
        raise ImageError(f"the {name} header gives {height} x {width} pixels; replace or drop the file")
    return Header(name, height, width, orientation if 1 <= orientation <= 8 else 1)


def jpeg_segments(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield a JPEG's segments up to its first scan, skipping stray bytes as libjpeg does.

    Args:
        data: The encoded JPEG.

    Yields:
        (marker, start, end) of each segment's content; `end` may lie beyond the data. The scan comes last.
    """
    place = 2
    while found := JPEG_MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if marker in JPEG_BARE:
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if marker == JPEG_END or length < 2:
            return
        yield marker, place + 2, place + length
        if marker == JPEG_SCAN:
            return
        place += length


def png_chunks(data: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of each chunk's content of a PNG; `end` may lie beyond the data."""
    place = 8
    while place + 8 <= len(data):
        start = place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        yield bytes(data[place + 4 : start]), start, end
        place = end + 4  # the checksum


def tiff_tags(data: bytes | memoryview) -> dict[int, int]:
    """Return the whole numbers of a TIFF's first directory by tag, of EXIF's too; empty when it is none.

    Of several values the first is taken, as long as they all lie within the directory.
    """
    if not re.match(SIGNATURES["tiff"], data):
        return {}
    order: Literal["little", "big"] = "little" if data[0] == ord("I") else "big"
    first = int.from_bytes(data[4:8], order) + 2
    tags: dict[int, int] = {}
    for place in range(first, first + 12 * int.from_bytes(data[first - 2 : first], order), 12):
        entry = data[place : place + 12]
        if len(entry) < 12:
            break
        size = TIFF_BYTES.get(int.from_bytes(entry[2:4], order), 0)
        if 0 < size * int.from_bytes(entry[4:8], order) <= 4:
            tags.setdefault(int.from_bytes(entry[:2], order), int.from_bytes(entry[8 : 8 + size], order))
    return tags


def _read_jpeg(view: memoryview) -> tuple[int, int, int]:
    size, orientation = None, 0
    for marker, start, end in jpeg_segments(view):
        if marker in JPEG_FRAMES and size is None:
            size = _number(view, start + 1, 2, order="big"), _number(view, start + 3, 2, order="big")
        elif marker == JPEG_APP1 and not orientation and view[start : start + 6] == EXIF_START:
            orientation = tiff_tags(view[start + 6 : end]).get(TIFF_ORIENTATION, 1)
    if size is None:
        raise ImageError(f"a JPEG cut short: no frame header in {len(view):,} bytes; replace or drop the file")
    return *size, orientation


def _read_png(view: memoryview) -> tuple[int, int, int]:
    return _number(view, 20, 4, order="big"), _number(view, 16, 4, order="big"), 1


def _read_webp(view: memoryview) -> tuple[int, int, int]:
    """Source: https://developers.google.com/speed/webp/docs/riff_container, RFC 6386 and RFC 9649."""
    kind = bytes(view[12:16])
    if kind == b"VP8X":
        return _number(view, 27, 3) + 1, _number(view, 24, 3) + 1, 1
    if kind == b"VP8L":
        bits = _number(view, 21, 4)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 1
    if kind == b"VP8 ":
        return _number(view, 28, 2) & 0x3FFF, _number(view, 26, 2) & 0x3FFF, 1
    raise ImageError(f"a WebP whose first chunk is {kind!r}, not VP8, VP8L or VP8X; replace or drop the file")


def _read_bmp(view: memoryview) -> tuple[int, int, int]:
    if _number(view, 14, 4) == BMP_CORE_BYTES:
        return _number(view, 20, 2), _number(view, 18, 2), 1
    return abs(_number(view, 22, 4, signed=True)), _number(view, 18, 4, signed=True), 1  # negative: top row first


def _read_gif(view: memoryview) -> tuple[int, int, int]:
    return _number(view, 8, 2), _number(view, 6, 2), 1


def _read_tiff(view: memoryview) -> tuple[int, int, int]:
    tags = tiff_tags(view)
    if not {TIFF_HEIGHT, TIFF_WIDTH} <= tags.keys():
        raise ImageError(f"a TIFF cut short: no size in {len(view):,} bytes; replace or drop the file")
    return tags[TIFF_HEIGHT], tags[TIFF_WIDTH], tags.get(TIFF_ORIENTATION, 1)


def _number(
    view: memoryview, place: int, size: int, *, order: Literal["little", "big"] = "little", signed: bool = False
) -> int:
    if place + size > len(view):
        raise ImageError(f"cut short within its header ({len(view):,} bytes); replace or drop the file")
    return int.from_bytes(view[place : place + size], order, signed=signed)


_READERS = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "bmp": _read_bmp,
    "gif": _read_gif,
    "tiff": _read_tiff,
}
