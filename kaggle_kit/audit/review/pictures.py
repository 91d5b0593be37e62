"""Pictures for the page: at once as small ones that the audit kept, then at their own size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kaggle_kit.audit.findings import Split
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.pictures import Images
from kaggle_kit.errors import DataError, KitError
from kaggle_kit.files import replacing
from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image, encode_png, resize
from kaggle_kit.sources import Source
from kaggle_kit.sources.wide_parquet import WideParquetSource

MAX_SIDE = 800  # pixels a picture is sent with at most
THUMBNAIL_SIDE = 96
KEPT_BYTES = 200_000_000  # of pictures in memory

Part = tuple[Split, range]


class Pictures:
    """PNGs of images by row.

    Files are decoded when asked for. A row group of wide parquet can only be read whole, which takes seconds: one that
    holds an asked image is read behind the scenes, and all pictures of it that the page will want are put into files.
    """

    def __init__(self, opened: Opened, images: Images, *, cache: Path | None = None) -> None:
        """Take over where images are.

        Args:
            opened: The images themselves.
            images: What the audit knows of them.
            cache: A folder for pictures of sources that cannot be read at random, made when needed; its files are named
                by the hash of their pixels. None: keep them in memory.
        """
        self._images, self._sources, self._cache = images, opened.sources, cache
        self._places: dict[int, tuple[Split, int]] = {}
        self._rows: dict[Split, dict[int, int]] = {}
        for split, source in opened.sources.items():
            places = {name: place for place, name in enumerate(source.ids.tolist())}
            rows = images.rows(split)
            named = [
                (row, places.get(name, -1)) for row, name in zip(rows.tolist(), images.id[rows].tolist(), strict=True)
            ]
            self._places.update({row: (split, place) for row, place in named if place >= 0})
            self._rows[split] = {place: row for row, place in named if place >= 0}
        self._parts: list[Part] = [
            (split, part) for split, source in opened.sources.items() if _is_slow(source) for part in source.parts()
        ]
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.BoundedSemaphore(num_cores())
        self._wanted: set[int] = set()
        self._asked: list[int] = []
        self._failed: dict[int, str] = {}
        self._closed = False
        self._reader: threading.Thread | None = None

    def want(self, rows: Iterable[int]) -> None:
        """Tell which rows may be asked for, so that they are kept when their part of a file is read."""
        self._wanted.update(row for row in rows if self._is_slow(row))

    def thumbnail(self, row: int) -> bytes:
        """Return a small gray PNG of an image in its own proportions: at once."""
        square = np.asarray(self._images.thumbnails[row])[..., None]
        height, width = int(self._images.height[row]), int(self._images.width[row])
        scale = THUMBNAIL_SIDE / max(height, width, 1)
        return encode_png(resize(square, max(1, round(height * scale)), max(1, round(width * scale))))

    def picture(self, row: int) -> bytes | None:
        """Return a PNG of an image; None where it is being read: ask again.

        Raises:
            DataError: When it cannot be read.
        """
        found = self._find(row)
        if found is not None:
            return found
        reason = str(self._images.broken[row]) or self._failed.get(row, "")
        if reason or row not in self._places:
            raise DataError(f"{str(self._images.id[row])!r} cannot be read: {reason or 'it is gone since the audit'}")
        if not self._is_slow(row):
            split, place = self._places[row]
            with self._decoding:  # each may hold a hundred million pixels
                data = encode_png(_bounded(self._sources[split].read(place)))
            self._keep(row, data)
            return data
        with self._lock:
            if not self._closed:
                self._asked.append(row)
            if self._asked and self._reader is None:
                self._reader = threading.Thread(target=self._read_asked, name="pictures", daemon=True)
                self._reader.start()
        return None

    def close(self) -> None:
        """Read no more; a row group that is being read is waited for, as Arrow cannot be stopped."""
        with self._lock:
            self._closed, self._asked, reader = True, [], self._reader
        if reader is not None:
            reader.join()

    def _is_slow(self, row: int) -> bool:
        return row in self._places and _is_slow(self._sources[self._places[row][0]])

    def _file(self, row: int) -> Path | None:
        name = str(self._images.pixel_hash[row])
        return self._cache / f"{name}.png" if self._cache is not None and name else None

    def _find(self, row: int) -> bytes | None:
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row]
        path = self._file(row) if self._is_slow(row) else None
        try:
            return None if path is None else path.read_bytes()
        except OSError:
            return None

    def _keep(self, row: int, data: bytes) -> None:
        with self._lock:
            self._kept[row] = data
            held = sum(map(len, self._kept.values()))
            while held > KEPT_BYTES and len(self._kept) > 1:
                held -= len(self._kept.popitem(last=False)[1])

    def _save(self, row: int, data: bytes) -> None:
        """Put a picture of a slow source into its file, or into memory where that cannot be written."""
        path = self._file(row)
        try:
            if path is not None:
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as temporary:
                    temporary.write_bytes(data)
                return
        except OSError:
            self._cache = None
        self._keep(row, data)

    def _read_asked(self) -> None:
        """Read parts of files, that of the last asked image first, until all that was asked for is there."""
        try:
            while (row := self._next_asked()) is not None:
                if row not in self._failed and self._find(row) is None:
                    self._read_part(self._part_of(row), row)
        finally:
            with self._lock:
                if self._reader is threading.current_thread():  # an error ends it: the next one asked for has another
                    self._reader = None

    def _next_asked(self) -> int | None:
        """Return the row that was asked for last; None where there is none, and the reader with it."""
        with self._lock:
            if self._asked:
                return self._asked.pop()
            self._reader = None
            return None

    def _part_of(self, row: int) -> Part:
        split, place = self._places[row]
        return next((one, part) for one, part in self._parts if one == split and place in part)

    def _read_part(self, part: Part, asked: int) -> None:
        """Keep all wanted pictures of a part and the asked one; those that cannot be read are marked."""
        split, places = part
        named = ((place, self._rows[split].get(place, -1)) for place in places)
        rows = {place: row for place, row in named if row in self._wanted or row == asked}
        reason = "reading its file failed; the terminal says why"
        try:
            for chunk in self._sources[split].chunks(start=places.start, stop=places.stop):
                for place in range(chunk.start, chunk.stop):
                    if self._closed:
                        rows.clear()  # not read, and not failed either
                        return
                    if place in rows and str(chunk.ids[place - chunk.start]) not in chunk.broken:
                        self._save(rows.pop(place), encode_png(_bounded(chunk.images[place - chunk.start])))
            reason = "it is broken"
        except (KitError, OSError) as error:
            reason = str(error)
        finally:
            self._failed.update(dict.fromkeys(rows.values(), reason))


def _is_slow(source: Source) -> bool:
    """Return whether a source cannot be read at random."""
    return isinstance(source, WideParquetSource)


def _bounded(image: Image) -> Image:
    """Return the image, made smaller where it is large."""
    height, width = image.shape[:2]
    shrink = MAX_SIDE / max(height, width)
    if shrink >= 1:
        return image
    return resize(image, max(1, round(height * shrink)), max(1, round(width * shrink)))
