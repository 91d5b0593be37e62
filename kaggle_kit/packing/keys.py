"""Tell whether a packed store still holds what its source does."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import PIXELS_VERSION
from kaggle_kit.progress import progress_bar
from kaggle_kit.settings import plain
from kaggle_kit.sources import Source
from kaggle_kit.sources.protocol import split_rows

BLOCK_BYTES = 4 << 20
BLOCKS_AT_ONCE = 4096


class SourceKey:
    """What a source's images and their storing are known by.

    Settings and ids must be equal. Files are equal when all their sizes and modification times are, and, where
    only times differ (a copy, a fresh download), when their contents are.
    """

    def __init__(self, source: Source, settings: object) -> None:
        """Look at the source's files.

        Args:
            source: The images.
            settings: All else that decides about the pixels: how they are read and stored.
        """
        states = {path: path.stat() for path in source.files()}
        self._files = {path: state.st_size for path, state in states.items()}
        self.num_bytes = sum(self._files.values())
        found = [(path.name, state.st_size, state.st_mtime_ns) for path, state in states.items()]
        self.stats = _digest(json.dumps(found))
        shown = source.shape if isinstance(source.shape, str) else list(source.shape)
        self.settings = _digest(json.dumps([PIXELS_VERSION, plain(settings), shown, source.ids.tolist()]))

    @cached_property
    def content(self) -> str:
        """16 hexadecimal digits of all files' contents; reads them all."""
        blocks = [(path, at) for path, size in self._files.items() for at in range(0, max(size, 1), BLOCK_BYTES)]
        digests = []
        with ThreadPoolExecutor(num_cores()) as pool, progress_bar(self.num_bytes, "reading", unit="B") as bar:
            for some in split_rows(0, len(blocks), BLOCKS_AT_ONCE):
                for digest, num_bytes in pool.map(_check_block, blocks[some.start : some.stop]):
                    digests.append(digest)
                    bar.update(num_bytes)
        return _digest("".join(digests))

    @property
    def short(self) -> str:
        """Digits for a folder's name."""
        return f"{self.settings[:4]}{self.content[:8]}"

    def matches(self, known: Mapping[str, str]) -> bool:
        """Return whether a store's key, as `as_plain` gave it, stands for the same images."""
        if known.get("settings") != self.settings:
            return False
        return known.get("stats") == self.stats or known.get("content") == self.content

    def as_plain(self) -> dict[str, str]:
        """Return what a store remembers."""
        return {"settings": self.settings, "stats": self.stats, "content": self.content}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_block(block: tuple[Path, int]) -> tuple[str, int]:
    """Return the CRC-32 of a part of a file, so that all cores can go through one large file, and how long it is.

    Nobody forges their own data: a CRC finds what changed, and costs half of a cryptographic hash.
    """
    path, at = block
    with path.open("rb") as file:
        file.seek(at)
        data = file.read(BLOCK_BYTES)
    return f"{zlib.crc32(data):08x}", len(data)
