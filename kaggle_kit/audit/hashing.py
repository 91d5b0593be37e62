"""Perceptual hashes, and pairs of them that differ in few bits, found without comparing all with all.

The hash is the usual one of low frequencies: 64 signs of the discrete cosine transform of a thumbnail. The ImageHash
package makes the same from Pillow images, one by one, and would decode every file a second time; here it is two matrix
products of thumbnails that are there anyway (`benchmarks/audit.py` times both).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Thumbnails = npt.NDArray[np.uint8]
SIDE = 8  # frequencies a side
BLOCK = 4096
PARTS, PART_BITS = 4, 16
WINDOW = 128  # of hashes with one part in common, at most so many on each side are compared: else it grows with N x N
PAIRS_AT_ONCE = 4_000_000
MOST_PAIRS = 3_000_000


def perceptual_hashes(thumbnails: Thumbnails, *, mirrored: bool = False, cropped: float = 0.0) -> Hashes:
    """Return (N,) uint64 of (N, S, S) gray thumbnails: bit by bit whether a frequency is above their median.

    Args:
        thumbnails: Gray.
        mirrored: Of the thumbnails flipped left to right.
        cropped: The share cut off at each side before.
    """
    side = thumbnails.shape[1]
    places = (np.arange(side) + 0.5) / side
    inside = (places >= cropped) & (places <= 1 - cropped)
    waves = np.cos(np.pi * (places - cropped) / (1 - 2 * cropped) * np.arange(SIDE)[:, None])
    basis = (waves * inside).astype(np.float32)  # (8, S): the transform of the inner part alone
    basis[1:] -= basis[1:].mean(axis=1, keepdims=True) * inside * side / inside.sum()  # no share of the mean in them
    flips = np.where(np.arange(SIDE) % 2, -1, 1).astype(np.float32) if mirrored else np.ones(SIDE, np.float32)
    out = np.zeros(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), BLOCK):
        block = np.asarray(thumbnails[start : start + BLOCK], np.float32)
        found = ((basis @ block @ basis.T) * flips).reshape(len(block), -1)  # (n, 64)
        bits = found > np.median(found[:, 1:], axis=1, keepdims=True)
        out[start : start + BLOCK] = np.packbits(bits, axis=1).view(np.uint64).ravel()
    return out


def sign_hashes(vectors: npt.NDArray[np.float32], *, seed: int = 0) -> Hashes:
    """Return (N,) uint64 of (N, D) centred vectors: on which side of 64 random planes each lies."""
    planes = np.random.default_rng(seed).standard_normal((vectors.shape[1], 64), np.float32)
    return np.packbits(vectors @ planes > 0, axis=1).view(np.uint64).ravel()


def differing_bits(first: Hashes, second: Hashes) -> npt.NDArray[np.uint8]:
    """Return how many bits differ, element by element."""
    differing = first ^ second
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.asarray(np.bitwise_count(differing), np.uint8)
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)
    return np.asarray(ones[differing.view(np.uint8)].reshape(-1, 8).sum(axis=1), np.uint8)


def close_pairs(queries: Hashes, hashes: Hashes, *, radius: int, most: int = MOST_PAIRS) -> Ints:
    """Return (P, 2) pairs (row of a query, row of a hash) of different rows that differ in at most `radius` bits.

    Hashes are looked up by each of four parts of 16 bits, as it is and with one bit changed: all pairs are found that
    differ in up to 7 bits, and most of those that differ in a few more. Where very many share a part, only those of
    nearly the same value are compared, so that time grows with N, not with N x N.

    Args:
        queries: (N,) of the same rows as `hashes`.
        hashes: (N,).
        radius: Bits that may differ.
        most: About so many pairs are kept at once: where there are more, those that differ in fewer bits.
    """
    kept = _Kept(radius, most)
    for part in range(PARTS):
        shift = np.uint64(PART_BITS * part)
        keys = (hashes >> shift).astype(np.uint16)
        order = np.lexsort((hashes, keys))
        starts = np.searchsorted(keys[order], np.arange((1 << PART_BITS) + 1))
        for bit in (None, *range(PART_BITS)):
            changed = queries if bit is None else queries ^ (np.uint64(1 << bit) << shift)
            wanted = (changed >> shift).astype(np.int64) & 0xFFFF
            first, last = _windows(starts[wanted], starts[wanted + 1], order, hashes, queries)
            for rows, places in _expand(first, last):
                others = order[places]
                differing = differing_bits(queries[rows], hashes[others])
                near = (differing <= kept.radius) & (rows != others)
                kept.add(rows[near] * len(hashes) + others[near], differing[near])
    return np.column_stack(np.divmod(kept.all(), max(len(hashes), 1)))


class _Kept:
    """Pairs, each as one number, and the bits they differ in."""

    def __init__(self, radius: int, most: int) -> None:
        self.radius = radius
        self._most = most
        self._number = 0
        self._pairs: list[Ints] = [np.zeros(0, np.int64)]
        self._bits: list[npt.NDArray[np.uint8]] = [np.zeros(0, np.uint8)]

    def add(self, pairs: Ints, bits: npt.NDArray[np.uint8]) -> None:
        self._pairs.append(pairs)
        self._bits.append(bits)
        self._number += len(pairs)
        if self._number > 2 * self._most:
            self._tighten()

    def all(self) -> Ints:
        """Return the pairs, each once, in order."""
        self._tighten()
        return self._pairs[0]

    def _tighten(self) -> None:
        """Keep each pair once, and no more than so many, by lowering the radius."""
        pairs, first = np.unique(np.concatenate(self._pairs), return_index=True)
        bits = np.concatenate(self._bits)[first]
        while len(pairs) > self._most and self.radius > 0:
            self.radius -= 1
            pairs, bits = pairs[bits <= self.radius], bits[bits <= self.radius]
        self._pairs, self._bits, self._number = [pairs], [bits], len(pairs)


def _windows(first: Ints, last: Ints, order: Ints, hashes: Hashes, queries: Hashes) -> tuple[Ints, Ints]:
    """Return ranges of places narrowed to the neighbours in value, where they are long."""
    long = np.flatnonzero(last - first > 2 * WINDOW)
    if not len(long):
        return first, last
    first, last = first.copy(), last.copy()
    for start in np.unique(first[long]).tolist():
        some = long[first[long] == start]
        stop = int(last[some[0]])
        middle = start + np.searchsorted(hashes[order[start:stop]], queries[some])
        # a run of one value is passed by its row, lest all of its members look at the same few
        first[some] = np.clip(middle - WINDOW, start, stop - 2 * WINDOW)
        last[some] = first[some] + 2 * WINDOW
    return first, last


def _expand(first: Ints, last: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield (query rows, places) of all places in each query's range, a few million at a time."""
    counts = last - first
    rows = np.flatnonzero(counts > 0)
    if not len(rows):
        return
    ends = np.cumsum(counts[rows])
    cuts = np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, int(ends[-1]) + PAIRS_AT_ONCE, PAIRS_AT_ONCE))
    at = 0
    for cut in np.unique(np.append(cuts + 1, len(rows))).tolist():
        some = rows[at:cut]
        if len(some):
            lengths = counts[some]
            begins = np.repeat(first[some] - (np.cumsum(lengths) - lengths), lengths)
            yield np.repeat(some, lengths), begins + np.arange(int(lengths.sum()))
        at = cut
