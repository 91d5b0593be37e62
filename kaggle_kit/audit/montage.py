"""Small pictures for a page: read once from the sources, encoded, and kept within a size."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.findings import Split
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.pictures import SPLITS, Images
from kaggle_kit.errors import KitError
from kaggle_kit.pixels import Image
from kaggle_kit.sources import Source
from kaggle_kit.sources.wide_parquet import WideParquetSource
from kaggle_kit.tables import rows_of

MAX_ALONE = 900  # pictures of single images
MAX_ALONE_BYTES = 9_000_000  # of these, as they stand in the page
MAX_WHOLE_ROWS = 30_000  # of wide parquet: 137 x 236 pixels take a minute on 2 cores
ALONE_SIDE, TILE_SIDE, DOT_SIDE = 160, 88, 64
ACROSS = 5  # pictures side by side in a montage
_QUALITY = {"alone": 78, "montage": 72, "sprite": 62}
_ASPECTS = (0.5, 2.2)  # of a tile; images of other shapes are padded


@dataclass(kw_only=True)
class Wanted:
    """Rows of `Images` whose pictures a page wants.

    Attributes:
        alone: Single pictures, each use of one; where not all fit, the first stay.
        tiles: Those in montages.
        dots: Those on the map.
    """

    alone: list[int] = field(default_factory=list)
    tiles: set[int] = field(default_factory=set)
    dots: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures that were there.

    Attributes:
        alone: {row: address that holds the picture}.
        tiles: {row: (H, W, 4) uint8, BGRA}.
        dots: {row: (64, 64, 4) uint8, BGRA}, with a see-through edge of a pixel.
        tile_size: Height and width of the tiles.
        left_out: Uses of single pictures that would have made the page too large.
        notes: Why others are not there, a sentence each.
    """

    alone: dict[int, str]
    tiles: dict[int, Image]
    dots: dict[int, Image]
    tile_size: tuple[int, int]
    left_out: int = 0
    notes: tuple[str, ...] = ()


def gather_pictures(opened: Opened, images: Images, wanted: Wanted) -> Pictures:
    """Read and encode the wanted pictures, each image once; broken ones are left out."""
    kept, tile = set(wanted.alone[:MAX_ALONE]), tile_size(images)
    alone: dict[int, str] = {}
    tiles: dict[int, Image] = {}
    dots: dict[int, Image] = {}
    notes: list[str] = []
    for split in SPLITS:
        rows = _rows_by_place(opened, images, split, kept | wanted.tiles | wanted.dots)
        try:
            for row, image in _read(opened, images, split, rows, kept, notes):
                if row in kept:
                    alone[row] = picture_uri(_shrunk(to_bgr(image), (ALONE_SIDE, ALONE_SIDE)), _QUALITY["alone"])
                if row in wanted.tiles:
                    tiles[row] = _padded(to_bgr(image), tile)
                if row in wanted.dots:
                    inside = _padded(to_bgr(image), (DOT_SIDE - 2, DOT_SIDE - 2))
                    dots[row] = np.pad(inside, ((1, 1), (1, 1), (0, 0)))  # so that neighbours do not bleed into it
        except (KitError, OSError) as error:
            notes.append(f"Some pictures of {split} are missing: {error}.")
    fitting = _fitting(alone, wanted.alone)
    left_out = sum(row not in fitting for row in wanted.alone if row in alone or row not in kept)
    return Pictures(
        alone={row: alone[row] for row in fitting},
        tiles=tiles,
        dots=dots,
        tile_size=tile,
        left_out=left_out,
        notes=tuple(notes),
    )


def _read(
    opened: Opened, images: Images, split: Split, rows: dict[int, int], alone: set[int], notes: list[str]
) -> Iterator[tuple[int, Image]]:
    """Yield (row of `Images`, image) of a split; the small version where reading takes too long, which is noted.

    Args:
        opened: The sources.
        images: With small versions.
        split: Whose images.
        rows: {row of the split's source: row of `Images`}.
        alone: Rows that are shown alone: better read than those that are shown small.
        notes: Gets a sentence where small versions are used.
    """
    if not rows:
        return
    sharp = _quickly_read(opened.sources[split], rows, alone)
    for place, image in opened.read(split, sorted(sharp)):
        yield rows[place], image
    rough = [row for place, row in rows.items() if place not in sharp]
    if rough:
        notes.append(
            f"{len(rough):,} pictures of {split} are coarse: these files can only be read whole, which takes long; "
            "audit with --packed for sharp ones."
        )
    for row in rough:
        yield row, _from_thumbnail(images, row)


def _quickly_read(source: Source, rows: dict[int, int], alone: set[int]) -> set[int]:
    """Return the rows of a source that take no long to read: all, but where row groups can only be read whole."""
    if not isinstance(source, WideParquetSource):
        return set(rows)
    parts = [(part, [place for place in part if place in rows]) for part in source.parts()]
    parts.sort(key=lambda one: -sum(rows[place] in alone for place in one[1]))
    spent, quick = 0, set[int]()
    for part, places in parts:
        if places and spent + len(part) <= MAX_WHOLE_ROWS:
            spent += len(part)
            quick.update(places)
    return quick


def _from_thumbnail(images: Images, row: int) -> Image:
    """Return the (48, 48) thumbnail, brought back to the image's shape: (H, W, 1)."""
    import cv2

    height, width = int(images.height[row]), int(images.width[row])
    scale = min(1.0, 120 / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(images.thumbnails[row], size, interpolation=cv2.INTER_CUBIC), np.uint8)[..., None]


def _rows_by_place(opened: Opened, images: Images, split: Split, wanted: set[int]) -> dict[int, int]:
    """Return {row of the split's source: row of `Images`} of the wanted images that can be read."""
    if split not in opened.sources:
        return {}
    asked = np.array(sorted(wanted), np.int64)
    rows = asked[(images.split[asked] == split) & images.readable[asked]]
    places = rows_of(images.id[rows], opened.sources[split].ids)
    return {place: row for place, row in zip(places.tolist(), rows.tolist(), strict=True) if place >= 0}


def _fitting(alone: dict[int, str], uses: Sequence[int]) -> set[int]:
    """Return the rows whose pictures fit on the page, each use counted, the first wanted first."""
    spent, fitting, refused = 0, set[int](), set[int]()
    for row in uses:
        if row not in alone or row in refused:
            continue
        if spent + len(alone[row]) > MAX_ALONE_BYTES:
            if row not in fitting:
                refused.add(row)
            continue
        spent += len(alone[row])
        fitting.add(row)
    return fitting


def tile_size(images: Images) -> tuple[int, int]:
    """Return height and width of a montage's tiles: of the images' usual shape."""
    known = images.readable & (images.height > 0) & (images.width > 0)
    aspect = float(np.median(images.width[known] / images.height[known])) if known.any() else 1.0
    root = math.sqrt(min(max(aspect, _ASPECTS[0]), _ASPECTS[1]))
    return round(TILE_SIDE / root), round(TILE_SIDE * root)


def montage_uri(tiles: Sequence[Image]) -> str:
    """Return tiles side by side, at most five in a line, as an address that holds the picture."""
    return picture_uri(_grid(tiles, min(ACROSS, len(tiles)), gap=2), _QUALITY["montage"])


def sprite_uri(dots: Sequence[Image]) -> tuple[str, int]:
    """Return all dots in one picture, line by line, and how many are in a line."""
    across = max(1, math.ceil(math.sqrt(len(dots))))
    return picture_uri(_grid(dots, across, gap=0), _QUALITY["sprite"]), across


def _grid(tiles: Sequence[Image], across: int, *, gap: int) -> Image:
    height, width = tiles[0].shape[:2]
    down = math.ceil(len(tiles) / across)
    sheet = np.zeros((down * (height + gap) - gap, across * (width + gap) - gap, 4), np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def to_bgr(image: Image) -> Image:
    """Return an (H, W, C) RGB or gray image as OpenCV has it: (H, W, 3) BGR."""
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.shape[2] == 1 else cv2.COLOR_RGB2BGR), np.uint8)


def _shrunk(image: Image, box: tuple[int, int]) -> Image:
    """Return the image, made smaller where it does not fit into a box of height and width."""
    import cv2

    scale = min(1.0, box[0] / image.shape[0], box[1] / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _padded(image: Image, box: tuple[int, int]) -> Image:
    """Return (*box, 4): the image in the middle of a see-through box, filling one of its sides."""
    import cv2

    scale = min(box[0] / image.shape[0], box[1] / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    top, left = (box[0] - height) // 2, (box[1] - width) // 2
    out = np.zeros((*box, 4), np.uint8)
    out[top : top + height, left : left + width, :3] = cv2.resize(image, (width, height), interpolation=way)
    out[top : top + height, left : left + width, 3] = 255
    return out


def picture_uri(image: Image, quality: int) -> str:
    """Return a BGR or BGRA picture as an address that holds it, as WebP."""
    import cv2

    encoded = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode('ascii')}"


def spread_rows(rows: npt.NDArray[np.int64], number: int, rng: np.random.Generator) -> list[int]:
    """Return at most so many of the rows, drawn, ascending."""
    if len(rows) <= number:
        return [int(row) for row in rows]
    return sorted(int(row) for row in rng.choice(rows, number, replace=False))
