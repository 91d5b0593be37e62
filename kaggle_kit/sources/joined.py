"""Several sources as one: the competition's images, and others under a tag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from kaggle_kit.errors import DataError
from kaggle_kit.pixels import Image
from kaggle_kit.sources.protocol import Chunk, Shape, Source, fixed_shape
from kaggle_kit.tables import Text, check_unique


class JoinedSource:
    """Sources one after the other; a tagged source's ids are written `tag/id`.

    Attributes:
        tags: {tag: its rows}; the competition's own images have the tag "".
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)
        shapes = {tag: fixed_shape(source) for tag, source in sources.items()}
        if len(set(shapes.values())) != 1:
            raise DataError(f"images to be joined have shapes {shapes}; give their tasks one stored size and channels")
        (self.shape,) = set[Shape](shapes.values())
        self.stored = next(iter(sources.values())).stored
        if any(source.stored != self.stored for source in sources.values()):
            raise DataError(f"images to be joined are stored in several ways; give their tasks one `stored`: {shapes}")
        self.ids: Text = np.concatenate(
            [np.char.add(f"{tag}/", source.ids) if tag else source.ids for tag, source in sources.items()]
        )
        check_unique(self.ids, self.describe())
        self.tags: dict[str, range] = {}
        start = 0
        for tag, source in sources.items():
            self.tags[tag] = range(start, start + len(source))
            start += len(source)

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> str:
        """Return where the images lie, for messages."""
        return " and ".join(source.describe() for source in self._sources.values())

    def files(self) -> list[Path]:
        """Return the files of all sources."""
        return [path for source in self._sources.values() for path in source.files()]

    def encoded_bytes(self) -> int | None:
        """Return how many bytes the encoded images take, or None where a source holds bare pixels."""
        sizes = [source.encoded_bytes() for source in self._sources.values()]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def parts(self) -> list[range]:
        """Return the sources' parts: none holds rows of two sources."""
        starts = {tag: rows.start for tag, rows in self.tags.items()}
        return [
            range(starts[tag] + part.start, starts[tag] + part.stop)
            for tag, source in self._sources.items()
            for part in source.parts()
        ]

    def read(self, row: int) -> Image:
        """Return image `row`."""
        source, inner = self._find(row)
        return source.read(inner)

    def encoded(self, row: int) -> bytes | memoryview | None:
        """Return the encoded bytes of image `row`, or None where its source holds bare pixels."""
        source, inner = self._find(row)
        return source.encoded(inner)

    def _find(self, row: int) -> tuple[Source, int]:
        for tag, rows in self.tags.items():
            if row in rows:
                return self._sources[tag], row - rows.start
        raise IndexError(row)

    def chunks(self, *, start: int = 0, stop: int | None = None, into: Image | None = None) -> Iterator[Chunk]:
        """Yield images in row order; a chunk never holds images of two sources."""
        last = len(self) if stop is None else stop
        for tag, rows in self.tags.items():
            first, end = max(start, rows.start) - rows.start, min(last, rows.stop) - rows.start
            if first >= end:
                continue
            inside = None if into is None else into[rows.start : rows.stop]
            for chunk in self._sources[tag].chunks(start=first, stop=end, into=inside):
                at = chunk.start + rows.start
                ids = self.ids[at : at + len(chunk.ids)]
                broken = {f"{tag}/{name}" if tag else name: reason for name, reason in chunk.broken.items()}
                yield Chunk(start=at, ids=ids, images=chunk.images, sizes=chunk.sizes, broken=broken)
