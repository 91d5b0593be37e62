from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from kaggle_kit.errors import ImageError
from kaggle_kit.headers import Header, jpeg_segments, png_chunks, read_header, tiff_tags

HEIGHT, WIDTH = 37, 53
PHOTO = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
BMP_CORE = b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
BMP_TOP_DOWN = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<Iii", 40, WIDTH, -HEIGHT)
SAVED = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless": ("WEBP", {"lossless": True}),
    "extended": ("WEBP", {"lossless": True, "exif": b"Exif\x00\x00II*\x00"}),
    "animated": ("WEBP", {"save_all": True, "append_images": [PHOTO.transpose(Pillow.Transpose.ROTATE_180)]}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "tiff_lzw": ("TIFF", {"compression": "tiff_lzw"}),
}


def saved(name: str) -> bytes:
    buffer = io.BytesIO()
    form, options = SAVED[name]
    PHOTO.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def tiff(order: str, *, height: int = HEIGHT, width: int = WIDTH, orientation: int = 1) -> bytes:
    """Return a TIFF's first directory, height as a LONG and width as a SHORT."""
    start = b"II*\x00" if order == "<" else b"MM\x00*"
    entries = struct.pack(order + "HHIHH", 256, 3, 1, width, 0) + struct.pack(order + "HHII", 257, 4, 1, height)
    entries += struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    return start + struct.pack(order + "IH", 8, 3) + entries + bytes(4)


@pytest.mark.parametrize("name", SAVED)
def test_the_header_gives_what_pillow_gives(name: str) -> None:
    header = read_header(saved(name))
    assert header.format == SAVED[name][0].lower()
    assert (header.height, header.width) == header.shown_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("data", "form"),
    [(BMP_CORE, "bmp"), (BMP_TOP_DOWN, "bmp"), (tiff("<"), "tiff"), (tiff(">"), "tiff")],
    ids=["bmp of 12 bytes", "bmp from the top", "tiff little endian", "tiff big endian"],
)
def test_headers_that_pillow_does_not_write_are_read(data: bytes, form: str) -> None:
    header = read_header(data)
    assert (header.format, header.height, header.width) == (form, HEIGHT, WIDTH)


@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_of_jpeg_and_tiff_swaps_the_shown_size(orientation: int) -> None:
    exif = Pillow.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    PHOTO.save(buffer, "JPEG", exif=exif)
    expected = orientation if 1 <= orientation <= 8 else 1
    for data in (buffer.getvalue(), tiff("<", orientation=orientation)):
        header = read_header(data)
        assert (header.height, header.width, header.orientation) == (HEIGHT, WIDTH, expected)
        assert header.shown_size == ((WIDTH, HEIGHT) if expected >= 5 else (HEIGHT, WIDTH))


def test_a_view_of_signed_bytes_is_read_as_bytes_are() -> None:
    data = saved("png")
    assert read_header(memoryview(data).cast("b")) == read_header(data) == Header("png", HEIGHT, WIDTH)


def test_a_thumbnail_does_not_give_the_size() -> None:
    buffer = io.BytesIO()
    PHOTO.resize((8, 8)).save(buffer, "JPEG")
    photo, block = saved("jpeg"), b"Exif\x00\x00" + buffer.getvalue()
    data = photo[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + photo[2:]
    assert read_header(data) == Header("jpeg", HEIGHT, WIDTH)


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".hdr", ".sr", ".jp2"])
def test_formats_with_exotic_decoders_are_refused(suffix: str) -> None:
    image = np.zeros((64, 64, 1 if suffix == ".pgm" else 3), np.float32 if suffix == ".hdr" else np.uint8)
    done, data = cv2.imencode(suffix, image)
    assert done
    with pytest.raises(ImageError, match="which is no JPEG, PNG, WebP, BMP, GIF or classic TIFF; convert it to PNG"):
        read_header(data.tobytes())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"the file is empty \(0 bytes\); replace or drop it"),
        (b"v/1\x01", "begins with 76 2f 31 01, which is no JPEG"),
        (b"II+\x00" + bytes(60), "begins with 49 49 2b 00 00 00 00 00, which is no JPEG"),
        (b"<html>Not found</html>", "begins with 3c 68 74 6d 6c 3e 4e 6f"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "which is no JPEG"),
        (b"RIFF\x00\x00\x00\x00WEBPICCP", "first chunk is b'ICCP', not VP8, VP8L or VP8X"),
        (b"GIF89a\x00\x00\x05\x00", "the gif header gives 5 x 0 pixels; replace"),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, -5, 5), "the bmp header gives 5 x -5 pixels"),
        (tiff("<", height=0), f"the tiff header gives 0 x {WIDTH} pixels"),
        (b"BM" + bytes(9), r"cut short within its header \(11 bytes\)"),
        (b"\x89PNG\r\n\x1a\n\x00", r"cut short within its header \(9 bytes\)"),
        (b"\xff\xd8\xff\xe0\x00\x00", "a JPEG cut short: no frame header in 6 bytes"),
        (b"\xff\xd8" + b"\xff" * 1_000_000, "a JPEG cut short: no frame header in 1,000,002 bytes"),
        (b"\xff\xd8" + b"\xff\xd0" * 100_000, "no frame header"),
        (b"MM\x00*\x00\x00\x00\x08\xff\xff" + bytes(50), "a TIFF cut short: no size in 60 bytes"),
        (b"II*\x00\xff\xff\xff\xff", "a TIFF cut short"),
        (b"II*\x00\x00\x00\x00\x00" + bytes(12), "a TIFF cut short"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_header(data)


def test_garbage_gives_an_image_error_or_a_header() -> None:
    rng = np.random.default_rng(0)
    starts = [saved(name)[:700] for name in SAVED] + [BMP_CORE, BMP_TOP_DOWN, tiff("<"), tiff(">")]
    for _ in range(300):
        for start in starts:
            data = bytearray(start[: int(rng.integers(1, len(start) + 1))])
            for place in rng.integers(0, len(data), 4):
                data[place] = (0, 1, 0x7F, 0xFF, int(rng.integers(256)))[int(rng.integers(5))]
            try:
                header = read_header(bytes(data))
            except ImageError:
                continue
            assert header.height > 0 and header.width > 0 and 1 <= header.orientation <= 8


def test_segments_and_chunks_end_where_the_pixels_begin() -> None:
    jpeg, png = saved("jpeg"), saved("png")
    markers = [marker for marker, _, _ in jpeg_segments(jpeg)]
    assert markers[0] == 0xE0 and markers[-1] == 0xDA and 0xC0 in markers
    assert [name for name, _, _ in png_chunks(png)] == [b"IHDR", b"IDAT", b"IEND"]
    assert [end - start for _, start, end in png_chunks(png)][::2] == [13, 0]
    assert not list(jpeg_segments(b"")) and not list(png_chunks(b"")) and not tiff_tags(b"no TIFF")
