from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from kaggle_kit import pixels
from kaggle_kit.errors import ImageError
from kaggle_kit.pixels import Image, crop_content, decode_image, encode_png, read_stored, resize, to_stored
from kaggle_kit.task import Stored

RNG = np.random.default_rng(0)
PHOTO = cv2.resize(RNG.integers(30, 226, (6, 8, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_LINEAR)
WIDE = cv2.resize(PHOTO, (322, 180), interpolation=cv2.INTER_LINEAR)
BLOCKS = WIDE[:176, :320]  # whole blocks of 8 x 8
RAMP = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
RGB = Pillow.fromarray(PHOTO)
GRAY = RGB.convert("L")
BILEVEL = RGB.convert("1")
PALETTE = RGB.convert("P", palette=Pillow.Palette.ADAPTIVE, colors=16)
RGBA = Pillow.fromarray(np.dstack([PHOTO, RAMP]))
GRAY_ALPHA = Pillow.merge("LA", [GRAY, Pillow.fromarray(RAMP)])
CMYK = Pillow.merge("CMYK", [*RGB.split(), Pillow.fromarray(RAMP)])
TURNED = RGB.transpose(Pillow.Transpose.ROTATE_180)
LEAST_GIF = (4, 12)

opencv_version = tuple(int(part) for part in cv2.__version__.split(".")[:2])
reads_gif = pytest.mark.skipif(opencv_version < LEAST_GIF, reason="OpenCV reads GIF and animations from 4.12 on")


def encode(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return bytes(data.tobytes())


def save(image: Pillow.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def over_white(data: bytes) -> np.ndarray:
    """Return what Pillow makes of it: (H, W, 3)."""
    image = Pillow.open(io.BytesIO(data)).convert("RGBA")
    white = Pillow.new("RGBA", image.size, "white")
    return np.asarray(Pillow.alpha_composite(white, image).convert("RGB"))


def difference(image: np.ndarray, other: np.ndarray) -> int:
    assert image.shape == other.shape
    return int(np.abs(image.astype(int) - other.astype(int)).max())


def oriented(image: np.ndarray, orientation: int, *, after_xmp: bool = False) -> bytes:
    exif = Pillow.Exif()
    exif[274] = orientation
    data = save(Pillow.fromarray(image), "JPEG", quality=95, exif=exif)
    xmp = b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta/>"
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:] if after_xmp else data


def add_transparency(png: bytes, level: bytes) -> bytes:
    place, chunk = png.find(b"IDAT") - 4, b"tRNS" + level
    return png[:place] + struct.pack(">I", len(level)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[place:]


def ycck() -> bytes:
    """Return a JPEG whose Adobe marker says YCCK, which Pillow does not write: CMYK's bytes taken for YCCK."""
    data = save(CMYK, "JPEG", quality=95)
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    return data[:transform] + b"\x02" + data[transform + 1 :]


def tiff(image: np.ndarray, *, photometric: int, extra: int | None = None) -> bytes:
    """Return an uncompressed TIFF of (H, W, C)."""
    height, width, samples = image.shape
    tags = {256: width, 257: height, 259: 1, 262: photometric, 277: samples, 278: height, 279: image.nbytes}
    tags |= {258: 8 * image.itemsize, 273: 0} | ({} if extra is None else {338: extra})
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = end + 2 * samples
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()) if tag != 258)
    bits = struct.pack("<HHI", 258, 3, samples)
    bits += struct.pack("<HH", tags[258], 0) if samples == 1 else struct.pack("<I", end)
    bits_each = struct.pack("<H", tags[258]) * samples
    count = struct.pack("<H", len(tags))
    directory: bytes = count + entries[:24] + bits + entries[24:] + bytes(4) + bits_each
    return b"II*\x00\x08\x00\x00\x00" + directory + bytes(image.tobytes())


def test_jpeg_becomes_rgb() -> None:
    blue = np.zeros((16, 16, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV writes BGR
    pixel = decode_image(encode(blue), channels=3)[8, 8]
    assert pixel[2] > 240 and pixel[0] < 15


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gray", [False, True])
def test_every_format_gives_the_channels_asked_for(suffix: str, channels: int, gray: bool) -> None:
    image = decode_image(encode(PHOTO[..., 0] if gray else PHOTO, suffix), channels=channels)
    assert image.shape == (60, 80, channels)
    assert image.dtype == np.uint8


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        pytest.param(save(RGB, "JPEG"), 1, id="JPEG"),
        pytest.param(save(RGB, "JPEG", progressive=True), 1, id="progressive JPEG"),
        pytest.param(save(GRAY, "JPEG"), 1, id="gray JPEG"),
        pytest.param(save(CMYK, "JPEG", quality=95), 2, id="CMYK JPEG"),
        pytest.param(ycck(), 2, id="YCCK JPEG"),
        pytest.param(save(RGB, "PNG"), 0, id="PNG"),
        pytest.param(save(RGBA, "PNG"), 1, id="PNG with alpha"),
        pytest.param(save(GRAY_ALPHA, "PNG"), 1, id="gray PNG with alpha"),
        pytest.param(save(BILEVEL, "PNG"), 0, id="PNG of 1 bit"),
        pytest.param(save(BILEVEL, "PNG", transparency=0), 0, id="PNG of 1 bit, black transparent"),
        pytest.param(save(GRAY, "PNG", transparency=GRAY.getpixel((4, 3))), 0, id="PNG, one gray transparent"),
        pytest.param(save(RGB, "PNG", transparency=RGB.getpixel((4, 3))), 0, id="PNG, one color transparent"),
        pytest.param(save(PALETTE, "PNG"), 0, id="palette PNG"),
        pytest.param(save(PALETTE, "PNG", bits=4), 0, id="palette PNG of 4 bits"),
        pytest.param(save(PALETTE, "PNG", transparency=3), 0, id="palette PNG, one color transparent"),
        pytest.param(save(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))), 1, id="palette PNG with alpha"),
        pytest.param(save(RGB, "WEBP"), 1, id="WebP"),
        pytest.param(save(RGBA, "WEBP", lossless=True), 1, id="WebP with alpha"),
        pytest.param(
            save(RGB, "WEBP", lossless=True, save_all=True, append_images=[TURNED]),
            0,
            id="animated WebP",
            marks=reads_gif,
        ),
        pytest.param(save(RGB, "BMP"), 0, id="BMP"),
        pytest.param(save(PALETTE, "BMP"), 0, id="palette BMP"),
        pytest.param(save(BILEVEL, "BMP"), 0, id="BMP of 1 bit"),
        pytest.param(save(RGB, "GIF"), 0, id="GIF", marks=reads_gif),
        pytest.param(save(PALETTE, "GIF", transparency=3), 0, id="GIF, one color transparent", marks=reads_gif),
        pytest.param(save(RGB, "GIF", save_all=True, append_images=[TURNED]), 0, id="animated GIF", marks=reads_gif),
        pytest.param(save(RGB, "TIFF", compression="tiff_lzw"), 0, id="TIFF"),
        pytest.param(save(PALETTE, "TIFF"), 0, id="palette TIFF"),
        pytest.param(save(BILEVEL, "TIFF", compression="group4"), 0, id="fax TIFF"),
        pytest.param(save(CMYK, "TIFF"), 2, id="CMYK TIFF"),
        pytest.param(save(RGBA, "TIFF"), 1, id="TIFF with alpha"),
        pytest.param(tiff(np.asarray(GRAY)[..., None], photometric=0), 0, id="TIFF where white is zero"),
    ],
)
def test_pixels_are_those_of_pillow(data: bytes, tolerance: int) -> None:
    expected = over_white(data)
    assert difference(decode_image(data, channels=3), expected) <= tolerance
    gray = np.asarray(Pillow.fromarray(expected).convert("L"))[..., None]
    assert difference(decode_image(data, channels=1), gray) <= tolerance + 1


@pytest.mark.parametrize("multiplied", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_of_a_tiff_is_laid_over_white_once(multiplied: bool, dtype: type[Any]) -> None:
    alpha = np.full((60, 80, 1), 100, np.uint8)
    expected = (PHOTO.astype(int) * alpha + 255 * (255 - alpha.astype(int))) // 255
    color = PHOTO.astype(int) * alpha // 255 if multiplied else PHOTO
    image = np.dstack([color, alpha]).astype(dtype) * (257 if dtype is np.uint16 else 1)
    data = tiff(image.astype(dtype), photometric=2, extra=1 if multiplied else 2)
    assert difference(decode_image(data, channels=3), expected) <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_sample_that_is_no_alpha_is_dropped(dtype: type[Any]) -> None:
    image = np.dstack([PHOTO, RAMP]).astype(dtype) * (257 if dtype is np.uint16 else 1)
    data = tiff(image.astype(dtype), photometric=2, extra=0)
    assert (decode_image(data, channels=3) == PHOTO).all()


def test_sixteen_bits_where_white_is_zero_are_turned_round() -> None:
    data = tiff(np.full((4, 4, 1), 0xFFFF - 0x8080, np.uint16), photometric=0)
    assert (decode_image(data, channels=1) == 0x80).all()


def test_a_bmp_of_os2_keeps_its_color() -> None:
    rows = PHOTO[::-1, :, ::-1].tobytes()
    data = b"BM" + struct.pack("<IHHI", 26 + len(rows), 0, 0, 26) + struct.pack("<IHHHH", 12, 80, 60, 1, 24) + rows
    assert (decode_image(data, channels=3) == PHOTO).all()


def test_png_round_trip_is_lossless() -> None:
    for image in (PHOTO, PHOTO[..., :1]):
        assert (decode_image(encode_png(image), channels=image.shape[2]) == image).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_and_rounded(suffix: str) -> None:
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(image * 255.0 / 65535).astype(np.uint8)
    assert (decode_image(encode(image, suffix), channels=1)[..., 0] == expected).all()


def test_a_transparent_gray_of_sixteen_bits_is_white() -> None:
    image = np.array([[0x1234, 0x1235]], np.uint16)
    data = add_transparency(encode(image, ".png"), b"\x12\x34")
    assert decode_image(data, channels=1).ravel().tolist() == [255, 0x12]


def test_alpha_is_laid_over_white() -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = [0, 0, 255, 255]
    image[1, 1] = [0, 0, 0, 128]
    decoded = decode_image(encode(image, ".png"), channels=3)
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [127, 127, 127]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("after_xmp", [False, True])
def test_exif_orientation_is_that_of_pillow(orientation: int, after_xmp: bool) -> None:
    data = oriented(BLOCKS, orientation, after_xmp=after_xmp)
    expected = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
    assert difference(decode_image(data, channels=3), np.asarray(expected)) <= 1
    assert difference(decode_image(data, channels=1), np.asarray(expected.convert("L"))[..., None]) <= 2
    least = (22, 40) if orientation < 5 else (40, 22)
    reduced = decode_image(data, channels=3, at_least=least)
    assert reduced.shape[:2] == least
    assert difference(reduced, resize(np.asarray(expected), *least)) <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff_is_that_of_pillow(orientation: int) -> None:
    data = save(RGB, "TIFF", tiffinfo={274: orientation})
    image, size = read_stored(data, channels=3, stored=None)
    assert difference(image, np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))) == 0
    assert size == image.shape[:2]


@pytest.mark.parametrize(
    ("orientation", "at_least", "expected"),
    [
        (1, (180, 322), (180, 322)),
        (1, (500, 500), (180, 322)),
        (1, (91, 10), (180, 322)),
        (1, (90, 161), (90, 161)),
        (1, (46, 10), (90, 161)),
        (1, (45, 81), (45, 81)),
        (1, (24, 40), (45, 81)),
        (1, (23, 40), (23, 40)),
        (1, (1, 1), (23, 40)),
        (6, (161, 90), (161, 90)),
        (6, (90, 161), (322, 180)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_decoded_no_larger_than_it_takes(
    orientation: int, at_least: tuple[int, int], expected: tuple[int, int], channels: int
) -> None:
    image = decode_image(oriented(WIDE, orientation), channels=channels, at_least=at_least)
    assert image.shape == (*expected, channels)


def test_a_reduced_jpeg_does_not_shift() -> None:
    """A side of 8 n + 1 has a last block of one pixel; counted in full, it would shift what lies before it."""
    image = np.full((33, 257, 3), 255, np.uint8)
    image[:, 248:] = 0
    reduced = decode_image(encode(image), channels=1, at_least=(4, 4))
    assert reduced.shape == (4, 32, 1)
    assert (reduced[:, :31] > 250).all() and (reduced[:, 31] < 5).all()


def test_a_view_is_decoded_as_bytes_are() -> None:
    for suffix in (".jpg", ".png", ".tiff"):
        data = encode(PHOTO, suffix)
        view = memoryview(b"before" + data)[6:].cast("b")
        assert (decode_image(view, channels=3) == decode_image(data, channels=3)).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff", pytest.param(".gif", marks=reads_gif)])
def test_files_cut_short_are_refused(suffix: str, share: float) -> None:
    data = encode(PHOTO, suffix)
    with pytest.raises(ImageError, match="cut short"):
        decode_image(data[: int(len(data) * share)], channels=3)


def test_a_jpeg_cut_short_is_refused_though_its_thumbnail_is_whole() -> None:
    thumbnail = encode(PHOTO[:8, :8])
    exif = b"Exif\x00\x00" + thumbnail
    photo = encode(PHOTO)
    data = photo[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + photo[2:]
    assert decode_image(data, channels=3).shape == (60, 80, 3)
    with pytest.raises(ImageError, match="no end marker"):
        decode_image(data[:-100], channels=3)


def test_bytes_after_the_end_do_not_break_a_jpeg() -> None:
    assert decode_image(encode(PHOTO) + bytes(5000), channels=3).shape == (60, 80, 3)


def test_stray_bytes_between_segments_do_not_break_a_jpeg() -> None:
    data = encode(PHOTO)
    place = 4 + int.from_bytes(data[4:6], "big")
    stray = data[:place] + b"\x00" + data[place:]
    assert decode_image(stray, channels=3).shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"GIF89a\x01\x00\x01\x00nothing", f"OpenCV {cv2.__version__} cannot decode this gif of 17 bytes"),
        (encode(PHOTO, ".ppm"), "which is no JPEG, PNG"),
        (encode(PHOTO.astype(np.float32), ".tiff"), "pixels are float32; expected 8 or 16 bits; convert"),
        (save(Pillow.fromarray(RAMP.astype(np.int32)), "TIFF"), "pixels are int32"),
        (save(GRAY_ALPHA, "TIFF"), "a gray TIFF with alpha, which OpenCV drops; convert it to PNG"),
        (
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 20_000, 30_000),
            "size is 30,000 x 20,000, 600,000,000 pixels; at most 100,000,000 are decoded; shrink",
        ),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 1, -(1 << 31)), "2,147,483,648 x 1"),
    ],
    ids=["empty", "gif", "ppm", "float", "int", "gray and alpha", "bomb", "upside down bomb"],
)
def test_what_cannot_be_decoded_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data, channels=3)


def test_a_header_that_lies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.zeros((61, 80, 3), np.uint8))
    for suffix in (".jpg", ".png"):
        with pytest.raises(ImageError, match="decodes to 61 x 80, but its header says 60 x 80"):
            decode_image(encode(PHOTO, suffix), channels=3)


GARBAGE = {
    "jpeg": save(RGB, "JPEG"),
    "cmyk": save(CMYK, "JPEG", progressive=True),
    "png": save(RGBA, "PNG"),
    "bilevel": save(BILEVEL, "PNG", transparency=0),
    "webp": save(RGBA, "WEBP"),
    "bmp": save(PALETTE, "BMP"),
    "gif": save(RGB, "GIF", save_all=True, append_images=[TURNED]),
    "tiff": save(RGBA, "TIFF"),
    "lzw": save(RGB, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_gives_an_image_error_or_an_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1_000_000)
    rng = np.random.default_rng(len(name))
    for attempt in range(60):
        data = bytearray(GARBAGE[name])
        limit = len(data) if attempt % 2 else 200  # half of them in the header
        for place in rng.integers(0, limit, rng.integers(1, 6)):
            data[place] = (0, 0xFF, int(rng.integers(256)))[int(rng.integers(3))]
        if attempt % 3 == 0:
            del data[int(rng.integers(1, len(data))) :]
        channels = 1 + 2 * (attempt % 2)
        try:
            image = decode_image(bytes(data), channels=channels, at_least=(20, 20) if attempt % 5 else None)
        except ImageError:
            continue
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels


def test_letterbox_keeps_the_aspect_ratio_and_pads_evenly() -> None:
    out = to_stored(np.full((10, 20, 1), 200, np.uint8), Stored(height=40, width=40, fit="letterbox", fill=7))
    assert out.shape == (40, 40, 1)
    assert (out[10:30] == 200).all() and (out[:10] == 7).all() and (out[30:] == 7).all()


@pytest.mark.parametrize("fit", ["none", "stretch", "letterbox"])
def test_an_image_of_the_stored_size_stays_as_it_is(fit: Any) -> None:
    assert to_stored(PHOTO, Stored(height=60, width=80, fit=fit)) is PHOTO


def test_stretch_fills_the_size_and_none_refuses_another() -> None:
    image = PHOTO[..., :1]
    assert to_stored(image, Stored(height=9, width=31, fit="stretch")).shape == (9, 31, 1)
    with pytest.raises(ImageError, match="size is 60 x 80, expected 9 x 31; set fit: stretch, letterbox or content"):
        to_stored(image, Stored(height=9, width=31))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "stored",
    [
        None,
        Stored(height=176, width=320),
        Stored(height=40, width=70, fit="content"),
        Stored(height=40, width=70, fit="stretch"),
        Stored(height=64, width=50, fit="letterbox", fill=9),
        Stored(height=400, width=410, fit="letterbox"),
    ],
    ids=lambda stored: "as decoded" if stored is None else f"{stored.fit} {stored.height}",
)
def test_read_stored_is_decoding_and_fitting(stored: Stored | None, channels: int, suffix: str) -> None:
    data = encode(BLOCKS, suffix)
    image, size = read_stored(data, channels=channels, stored=stored)
    whole = decode_image(data, channels=channels)
    expected = whole if stored is None else to_stored(whole, stored)
    assert size == (176, 320)
    reduced = suffix == ".jpg" and stored is not None and stored.fit in ("stretch", "letterbox") and stored.height < 90
    assert difference(image, expected) <= (4 if reduced else 0)


@pytest.mark.parametrize(
    ("stored", "reduction"),
    [
        (Stored(height=45, width=80, fit="stretch"), cv2.IMREAD_REDUCED_COLOR_4),
        (Stored(height=46, width=80, fit="stretch"), cv2.IMREAD_REDUCED_COLOR_2),
        (Stored(height=64, width=64, fit="letterbox"), cv2.IMREAD_REDUCED_COLOR_4),  # inside it is 36 x 64
        (Stored(height=36, width=64, fit="content"), cv2.IMREAD_COLOR),
        (Stored(height=180, width=322), cv2.IMREAD_COLOR),
        (None, cv2.IMREAD_COLOR),
    ],
)
def test_only_fits_that_need_less_decode_less(
    stored: Stored | None, reduction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    imdecode = cv2.imdecode

    def spy(data: np.ndarray, flags: int) -> Any:
        seen.append(flags)
        return imdecode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", spy)
    read_stored(encode(WIDE), channels=3, stored=stored)
    rgb = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)
    assert seen == [(reduction & ~cv2.IMREAD_COLOR) | rgb | cv2.IMREAD_IGNORE_ORIENTATION]


def test_read_stored_gives_the_size_after_orientation() -> None:
    image, size = read_stored(oriented(WIDE, 6), channels=3, stored=Stored(height=30, width=30, fit="stretch"))
    assert size == (322, 180)
    assert image.shape == (30, 30, 3)


def paper(height: int = 100, width: int = 160, color: tuple[int, ...] = (230,)) -> Image:
    return np.full((height, width, len(color)), color, np.uint8)


def test_content_is_cropped_with_all_its_strokes_and_dots() -> None:
    image = paper()
    image[40:70, 60:64] = 20
    image[40:70, 80:84] = 20
    image[30:33, 70:73] = 20  # the dot belongs to the glyph: 9 pixels, above 120 / 50
    image[90, 150] = 0  # a speck of one pixel does not
    image[5:7, 5:6] = 0
    cropped = crop_content(image)
    assert cropped.shape == (40 + 2 * 2, 24 + 2 * 2, 1)  # 5 % of 40 all around
    assert (cropped == image[28:72, 58:86]).all()


def test_specks_are_measured_by_the_largest_part() -> None:
    image = paper()
    image[20:60, 40:90] = 20  # 2,000 pixels: parts below 40 are specks
    image[80:83, 100:113] = 20  # 39
    assert crop_content(image).shape[:2] == (40 + 4, 50 + 4)
    image[80:84, 100:110] = 20
    assert crop_content(image).shape[0] > 60


def test_content_at_the_edge_gets_its_padding_in_the_background_color() -> None:
    image = paper(color=(250, 240, 200))
    image[0:40, 0:20] = (10, 20, 120)
    cropped = crop_content(image)
    assert cropped.shape == (44, 24, 3)
    assert (cropped[:2] == (250, 240, 200)).all() and (cropped[:, :2] == (250, 240, 200)).all()
    assert (cropped[2:42, 2:22] == (10, 20, 120)).all()


def test_light_content_on_dark_ground_is_content_too() -> None:
    assert (crop_content(255 - glyph_on_paper()) == 255 - crop_content(glyph_on_paper())).all()


def glyph_on_paper() -> Image:
    image = paper()
    image[30:70, 60:80] = 20
    return image


def test_content_fills_the_stored_size_wherever_it_lies_and_however_large_it_is() -> None:
    stored = Stored(height=64, width=64, fit="content", fill=0)
    out = to_stored(glyph_on_paper(), stored)
    moved = to_stored(np.roll(glyph_on_paper(), (10, -50), axis=(0, 1)), stored)
    doubled = to_stored(glyph_on_paper().repeat(2, axis=0).repeat(2, axis=1), stored)
    assert (out == moved).all()
    assert np.abs(out.astype(int) - doubled).mean() < 5
    rows, columns = np.nonzero(out[..., 0] < 125)
    assert (np.ptp(rows), np.ptp(columns)) == pytest.approx((57, 28), abs=2)
    assert (out[:, :8] == 230).all() and (out[:, -8:] == 230).all()  # the background, not `fill`


@pytest.mark.parametrize("noise", [0, 24])
def test_an_image_without_content_is_letterboxed_whole(noise: int) -> None:
    image = paper(50, 100)
    image[10:40, 20:80] -= np.uint8(noise)
    out = to_stored(image, Stored(height=40, width=40, fit="content"))
    assert out.shape == (40, 40, 1)
    assert (out[:10] == 230).all() and (out[30:] == 230).all()
    assert crop_content(image) is image


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 400)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["stretch", "letterbox", "content"])
def test_images_of_any_shape_are_fitted(size: tuple[int, int], channels: int, fit: Any) -> None:
    image = RNG.integers(0, 256, (*size, channels), dtype=np.uint8)
    out = to_stored(image, Stored(height=5, width=9, fit=fit))
    assert out.shape == (5, 9, channels) and out.dtype == np.uint8


def test_resize_shrinks_by_area() -> None:
    image = np.zeros((4, 4, 1), np.uint8)
    image[::2] = 200
    assert (resize(image, 2, 2) == 100).all()


def test_a_side_that_shrinks_while_the_other_grows_is_not_aliased() -> None:
    image = np.zeros((40, 4, 1), np.uint8)
    image[::4] = 200
    assert (resize(image, 10, 8) == 50).all()
    assert (resize(image.swapaxes(0, 1), 8, 10) == 50).all()
