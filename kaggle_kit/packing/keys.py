"""Tell whether a packed store still holds what its source does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from kaggle_kit.machine import num_cores
from kaggle_kit.progress import progress_bar
from kaggle_kit.settings import plain
from kaggle_kit.sources import Source


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
        self._files = source.files()
        found = [(path.name, status.st_size, status.st_mtime_ns) for path in self._files for status in [path.stat()]]
        self.num_bytes = sum(size for _, size, _ in found)
        self.stats = _digest(json.dumps(found))
        shown = source.shape if isinstance(source.shape, str) else list(source.shape)
        self.settings = _digest(json.dumps([plain(settings), shown, source.ids.tolist()]))

    @cached_property
    def content(self) -> str:
        """16 hexadecimal digits of all files' contents; reads them all."""
        digests = []
        with ThreadPoolExecutor(num_cores()) as pool, progress_bar(self.num_bytes, "hashing", unit="B") as bar:
            for path, digest in zip(self._files, pool.map(_hash_file, self._files), strict=True):
                digests.append(digest)
                bar.update(path.stat().st_size)
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


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
