"""Pictures for the page: at once as small ones that the audit kept, then at their own size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.pictures import Images
from kaggle_kit.pixels import Image, encode_png, resize

MAX_SIDE = 512  # pixels a picture is sent with at most
KEPT = 400  # pictures in memory


class Pictures:
    """PNGs of images by row, read when asked for: a page's together, for shards cannot be read at random."""

    def __init__(self, opened: Opened, images: Images) -> None:
        """Take over where images are.

        Args:
            opened: The images themselves.
            images: What the audit knows of them.
        """
        self._opened, self._images = opened, images
        self._places = {
            split: (
                images.rows(split),
                {name: place for place, name in enumerate(source.ids.tolist())},
            )
            for split, source in opened.sources.items()
        }
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._reading = threading.Lock()

    def thumbnail(self, row: int) -> bytes:
        """Return a PNG of 48 pixels a side, gray, stretched: at once."""
        return encode_png(np.asarray(self._images.thumbnails[row])[..., None])

    def picture(self, row: int, neighbours: Sequence[int] = ()) -> bytes | None:
        """Return a PNG of an image; None where it cannot be read.

        Args:
            row: The image's row.
            neighbours: Rows that will be asked for next, read in the same pass.
        """
        with self._reading:
            if row not in self._kept:
                wanted = [one for one in (row, *neighbours) if one not in self._kept][: KEPT // 2]
                self._read(wanted)
            found = self._kept.get(row)
            if found is not None:
                self._kept.move_to_end(row)
            return found or None

    def _read(self, rows: Sequence[int]) -> None:
        for split, (_, places) in self._places.items():
            own = {places[name]: row for row in rows if (name := self._id_in(split, row)) in places}
            for place, image in self._opened.read(split, list(own)):
                self._keep(own[place], encode_png(_bounded(image)))
        for row in rows:
            if row not in self._kept:
                self._keep(row, b"")

    def _id_in(self, split: str, row: int) -> str | None:
        return str(self._images.id[row]) if self._images.split[row] == split else None

    def _keep(self, row: int, data: bytes) -> None:
        self._kept[row] = data
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _bounded(image: Image) -> Image:
    """Return the image, made smaller where it is large."""
    height, width = image.shape[:2]
    shrink = MAX_SIDE / max(height, width)
    if shrink >= 1:
        return image
    return resize(image, max(1, round(height * shrink)), max(1, round(width * shrink)))
