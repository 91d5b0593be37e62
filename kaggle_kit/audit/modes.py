"""What an image file says of its colours and frames, read from its bytes before any decoder sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from kaggle_kit.headers import BMP_CORE_BYTES, JPEG_FRAMES, Format, jpeg_segments, png_chunks, tiff_tags

PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
PNG_WITH_ALPHA = {"L": "LA", "RGB": "RGBA", "P": "PA"}
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
WEBP_ALPHA, WEBP_ANIMATED = 0x10, 0x02
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLES = 258, 262, 277
TIFF_MODES = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "YCbCr", 8: "LAB"}
GIF_TRAILER, GIF_IMAGE, GIF_EXTENSION = 0x3B, 0x2C, 0x21
MAX_PAGES = 10_000


class Mode(NamedTuple):
    """A file's mode as Pillow names it, "I;16" and "RGB;16" for 16 bits a sample, and how many frames it holds."""

    name: str
    frames: int = 1


def read_mode(data: bytes | memoryview, file_format: Format) -> Mode:
    """Read the mode of an encoded image.

    Args:
        data: The whole file; where it is cut short, what is missing is taken for absent.
        file_format: As `headers.read_header` tells it.

    Returns:
        The mode; an empty name where the file does not say.
    """
    return _READERS[file_format](memoryview(data).cast("B"))


def _jpeg_mode(view: memoryview) -> Mode:
    for marker, start, _ in jpeg_segments(view):
        if marker in JPEG_FRAMES and start + 6 <= len(view):
            return Mode(JPEG_MODES.get(view[start + 5], f"{view[start + 5]} components"))
    return Mode("")


def _png_mode(view: memoryview) -> Mode:
    if len(view) < 26:
        return Mode("")
    bits, kind = view[24], view[25]
    name, frames = PNG_MODES.get(kind, ""), 1
    for chunk, start, _ in png_chunks(view):
        if chunk == b"tRNS":
            name = PNG_WITH_ALPHA.get(name, name)
        elif chunk == b"acTL":
            frames = max(1, int.from_bytes(view[start : start + 4], "big"))
        elif chunk == b"IDAT":
            break
    if bits == 16:
        return Mode("I;16" if name == "L" else f"{name};16", frames)
    return Mode("1" if bits == 1 and name == "L" else name, frames)


def _webp_mode(view: memoryview) -> Mode:
    kind = bytes(view[12:16])
    if kind == b"VP8L" and len(view) >= 25:
        return Mode("RGBA" if view[24] & 0x10 else "RGB")
    if kind != b"VP8X" or len(view) < 21:
        return Mode("RGB")
    frames = sum(name == b"ANMF" for name in _riff_chunks(view)) if view[20] & WEBP_ANIMATED else 1
    return Mode("RGBA" if view[20] & WEBP_ALPHA else "RGB", max(1, frames))


def _riff_chunks(view: memoryview) -> Iterator[bytes]:
    place = 12
    while place + 8 <= len(view):
        yield bytes(view[place : place + 4])
        length = int.from_bytes(view[place + 4 : place + 8], "little")
        place += 8 + length + length % 2


def _bmp_mode(view: memoryview) -> Mode:
    core = int.from_bytes(view[14:18], "little") == BMP_CORE_BYTES
    bits = int.from_bytes(view[24:26] if core else view[28:30], "little")
    return Mode("P" if bits <= 8 else "RGB")


def _gif_mode(view: memoryview) -> Mode:
    """Walk a GIF's blocks, counting its images. Source: https://www.w3.org/Graphics/GIF/spec-gif89a.txt."""
    if len(view) < 13:
        return Mode("P")
    place, frames = 13 + _gif_colours(view[10]), 0
    while place < len(view) and view[place] != GIF_TRAILER:
        if view[place] == GIF_IMAGE and place + 10 <= len(view):
            frames += 1
            place += 10 + _gif_colours(view[place + 9]) + 1
        elif view[place] == GIF_EXTENSION:
            place += 2
        else:
            break
        while place < len(view) and view[place]:
            place += 1 + view[place]
        place += 1
    return Mode("P", max(1, frames))


def _gif_colours(flags: int) -> int:
    """Return the bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _tiff_mode(view: memoryview) -> Mode:
    tags = tiff_tags(view)
    name = TIFF_MODES.get(tags.get(TIFF_PHOTOMETRIC, 1), "")
    samples, bits = tags.get(TIFF_SAMPLES, 1), _tiff_bits(view, tags)
    if (name, samples) in (("L", 2), ("RGB", 4)):
        name += "A"
    if bits == 16:
        name = "I;16" if name == "L" else f"{name};16"
    return Mode("1" if bits == 1 and name == "L" else name, _tiff_pages(view))


def _tiff_bits(view: memoryview, tags: dict[int, int]) -> int:
    """Return the bits of the first sample, which of several samples lie behind an offset that `tiff_tags` leaves."""
    if TIFF_BITS in tags:
        return tags[TIFF_BITS]
    order = _tiff_order(view)
    first = int.from_bytes(view[4:8], order)
    for place in range(first + 2, first + 2 + 12 * int.from_bytes(view[first : first + 2], order), 12):
        if int.from_bytes(view[place : place + 2], order) == TIFF_BITS:
            at = int.from_bytes(view[place + 8 : place + 12], order)
            return int.from_bytes(view[at : at + 2], order)
    return 1


def _tiff_pages(view: memoryview) -> int:
    order, place, seen = _tiff_order(view), int.from_bytes(view[4:8], _tiff_order(view)), set[int]()
    while 0 < place < len(view) and place not in seen and len(seen) < MAX_PAGES:
        seen.add(place)
        end = place + 2 + 12 * int.from_bytes(view[place : place + 2], order)
        place = int.from_bytes(view[end : end + 4], order)
    return max(1, len(seen))


def _tiff_order(view: memoryview) -> Literal["little", "big"]:
    return "little" if view[0] == ord("I") else "big"


_READERS = {
    "jpeg": _jpeg_mode,
    "png": _png_mode,
    "webp": _webp_mode,
    "bmp": _bmp_mode,
    "gif": _gif_mode,
    "tiff": _tiff_mode,
}
