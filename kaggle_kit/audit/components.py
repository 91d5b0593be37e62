"""The main directions in which images differ, of thumbnails or of a model's embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
BLOCK = 4096
SHRUNK = 24  # pixels a side: finer detail says little of what is alike, and the products grow with its fourth power


def thumbnail_vectors(thumbnails: npt.NDArray[np.uint8], rows: Ints) -> Floats:
    """Return (n, 576) float32 of these rows' thumbnails, shrunk."""
    step = thumbnails.shape[1] // SHRUNK
    out = np.empty((len(rows), SHRUNK * SHRUNK), np.float32)
    for start in range(0, len(rows), BLOCK):
        block = thumbnails[rows[start : start + BLOCK]].reshape(-1, SHRUNK, step, SHRUNK, step)
        out[start : start + BLOCK] = block.mean(axis=(2, 4), dtype=np.float32).reshape(len(block), -1)
    return out


def principal_components(vectors: Floats, num: int) -> Floats:
    """Return (N, num) float32: the vectors along their `num` main directions, fewer where there are no more.

    Each direction's sign is such that its largest entry is positive, so that the same images give the same places.
    """
    centred = vectors - vectors.mean(axis=0)
    spread, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    main = directions[:, np.argsort(-spread, kind="stable")[: min(num, len(spread))]]  # (D, num)
    main *= np.sign(main[np.abs(main).argmax(axis=0), np.arange(main.shape[1])])
    return np.asarray(centred @ main.astype(np.float32), np.float32)
