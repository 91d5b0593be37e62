"""How alike two images are, by their thumbnails: straight, mirrored, and with one shifted or cropped a little."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kaggle_kit.machine import num_cores

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Thumbnails = npt.NDArray[np.uint8]
Vectors = Thumbnails | Floats  # (N, S, S) thumbnails, or (N, D) embeddings
BLOCK = 4096
SAMPLE = 1000
ALIKE_SHARE, ALIKE_LEAST = 0.01, 5  # an image's usual likeness: to the hundredth most alike of a sample
MARGIN = 3  # pixels at the border that alignment may have moved in from outside
STEPS, PRECISION = 20, 1e-3  # more took twice the time and found no more pairs
FARTHEST = 0.12  # of scale and shear, and of shift as a share of the side: beyond, it is another picture


def unlikeness(thumbnails: Vectors, pairs: Ints, *, mirrored: bool = False) -> Floats:
    """Return (P,) 1 minus the correlation of the thumbnails of (P, 2) rows; 0 for the same, 1 for unrelated ones."""
    out = np.ones(len(pairs), np.float32)
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        first, second = _standard(thumbnails[block[:, 0]], mirrored=mirrored), _standard(thumbnails[block[:, 1]])
        out[start : start + BLOCK] = 1 - np.einsum("ij,ij->i", first, second)
    return out


def usual_unlikeness(thumbnails: Vectors, rows: Ints, among: Ints, *, seed: int = 0) -> Floats:
    """Return (n,) how unlike each of these rows is to the hundredth most alike of a random sample.

    Pictures of one kind, such as glyphs on paper, are all alike: a duplicate is more alike than these.

    Args:
        thumbnails: (N, S, S), or (N, D) embeddings.
        rows: (n,) rows asked about.
        among: Rows to sample from.
        seed: Of the sample.
    """
    rng = np.random.default_rng(seed)
    sample = rng.choice(among, min(SAMPLE, len(among)), replace=False)
    rank = min(max(ALIKE_LEAST, round(ALIKE_SHARE * len(sample))), len(sample) - 1)
    basis = _standard(thumbnails[np.sort(sample)])
    out = np.ones(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK):
        likeness = _standard(thumbnails[rows[start : start + BLOCK]]) @ basis.T
        out[start : start + BLOCK] = 1 - np.partition(likeness, -1 - rank, axis=1)[:, -1 - rank]
    return out


def aligned_unlikeness(thumbnails: Thumbnails, pairs: Ints, *, mirrored: bool = False) -> Floats:
    """Return (P,) what `unlikeness` does once the second image is moved and scaled to lie best on the first.

    Source: Evangelidis and Psarakis (2008), as OpenCV's findTransformECC; where it moves an image far, or finds
    nothing, the pair counts as unrelated.
    """
    with ThreadPoolExecutor(num_cores()) as pool:

        def compare(pair: npt.NDArray[np.int64]) -> float:
            first = thumbnails[pair[0]]
            return _align(np.ascontiguousarray(first[:, ::-1] if mirrored else first), thumbnails[pair[1]])

        return np.array(list(pool.map(compare, pairs)), np.float32)


def _align(first: Thumbnails, second: Thumbnails) -> float:
    import cv2

    side = len(first)
    warp = np.eye(2, 3, dtype=np.float32)
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, PRECISION)
    try:
        _, warp = cv2.findTransformECC(first, np.ascontiguousarray(second), warp, cv2.MOTION_AFFINE, until, None, 5)
    except cv2.error:  # it does not converge
        return 1.0
    centre = warp @ np.array([side / 2, side / 2, 1], np.float32) - side / 2
    if np.abs(warp[:, :2] - np.eye(2)).max() > FARTHEST or np.abs(centre).max() > FARTHEST * side:
        return 1.0
    moved = cv2.warpAffine(second, warp, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    seen = cv2.warpAffine(np.ones_like(second), warp, (side, side), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    inside = np.asarray(seen, bool)
    inside[:MARGIN] = inside[-MARGIN:] = inside[:, :MARGIN] = inside[:, -MARGIN:] = False
    if inside.sum() < side * side / 2:
        return 1.0
    one, other = _standard(first[inside][None]), _standard(np.asarray(moved)[inside][None])
    return float(1 - (one * other).sum())


def _standard(thumbnails: Vectors, *, mirrored: bool = False) -> Floats:
    """Return (n, pixels) float32 of mean 0 and length 1."""
    turned = thumbnails[:, :, ::-1] if mirrored else thumbnails
    values = turned.reshape(len(turned), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return values
