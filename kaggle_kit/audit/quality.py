"""Images that stand out from their data set: broken, of another kind, size or light, empty, blurred.

What is outlying is told by the data set itself: by its median and the median distance from it, which no outlier moves;
and by a floor, so that in a set where all images are dark, or all paper is white, none is called so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.findings import Finding, Kind, Split
from kaggle_kit.audit.pictures import Bools, Images

Values = npt.NDArray[np.float64]
FEW = 20  # images, below which nothing is usual
SIGMAS = 4.0
MAD_SIGMA = 1.4826  # a normal distribution's standard deviation over its median distance from the median
DARK, BRIGHT, OF_USUAL = 0.2, 0.85, 0.5  # brightness, and how much of the usual light or darkness is left at most
EMPTY_CONTRAST, EMPTY_CONTENT, USUAL_CONTENT = 0.04, 0.001, 0.01
BLUR_OF_USUAL = 0.25
MOSTLY, COMMON = 0.5, 0.05  # shares of images: what is usual, and what is no exception
FOLD_OF_SIZE = 2.0  # times larger, smaller, longer than usual, at least


def quality_findings(images: Images) -> list[Finding]:
    """Return a finding for each image and way in which it stands out, the worst first within a kind."""
    found: list[Finding] = []
    for check in (_broken, _gray, _modes, _sizes, _empty, _light, _blurred):
        found += sorted(check(images), key=lambda finding: -finding.score)
    return found


def robust_z(values: Values, *, least_sigma: float) -> Values:
    """Return how many standard deviations each value lies from the median, both told by medians.

    Args:
        values: (N,).
        least_sigma: A smaller deviation counts as this: where most values are equal, a hair's breadth is none.
    """
    middle = np.median(values)
    sigma = max(MAD_SIGMA * float(np.median(np.abs(values - middle))), least_sigma)
    return np.asarray((values - middle) / sigma)


def _finding(images: Images, row: int, kind: Kind, score: float, detail: str) -> Finding:
    split: Split = "train" if images.split[row] == "train" else "test"
    return Finding(kind=kind, id=str(images.id[row]), split=split, score=round(float(score), 4), detail=detail)


def _broken(images: Images) -> Iterator[Finding]:
    for row in np.flatnonzero(~images.readable & ~images.absent).tolist():
        yield _finding(images, row, "broken", 1, str(images.broken[row]))


def _gray(images: Images) -> Iterator[Finding]:
    """Tell of gray images where most are coloured."""
    rows = np.flatnonzero(images.readable)
    gray = images.gray[rows]
    if len(rows) < FEW or gray.mean() >= MOSTLY:
        return
    for row in rows[gray].tolist():
        yield _finding(images, row, "gray", 1, f"no colour, as {gray.mean():.1%} of the images have none")


def _modes(images: Images) -> Iterator[Finding]:
    """Tell of unusual modes, and of animations."""
    rows = np.flatnonzero((images.mode != "") & ~images.absent)
    if len(rows) < FEW:
        return
    names, inverse, counts = np.unique(images.mode[rows], return_inverse=True, return_counts=True)
    usual, share = str(names[counts.argmax()]), counts[inverse.ravel()] / len(rows)
    animated = images.frames[rows] > 1
    odd_frames = animated & bool(animated.mean() < COMMON)
    for place in np.flatnonzero((share < COMMON) | odd_frames).tolist():
        row, notes = int(rows[place]), []
        if share[place] < COMMON:
            notes.append(f"mode {images.mode[row]}, as {share[place]:.1%} of the images; most are {usual}")
        if odd_frames[place]:
            notes.append(f"{images.frames[row]} frames, of which the first is used")
        rarity = 1 - min(share[place], animated.mean() if odd_frames[place] else 1.0)
        yield _finding(images, row, "mode", rarity, "; ".join(notes))


def _sizes(images: Images) -> Iterator[Finding]:
    """Tell of images much larger, smaller, wider or taller than usual."""
    rows = np.flatnonzero((images.height > 0) & ~images.absent)
    if len(rows) < FEW:
        return
    height, width = images.height[rows].astype(np.float64), images.width[rows].astype(np.float64)
    least = np.log(FOLD_OF_SIZE) / SIGMAS
    worst, notes = np.zeros(len(rows)), [""] * len(rows)
    for values, less, more in (
        (np.log(height * width) / 2, "smaller", "larger"),
        (np.log(width / height), "narrower", "wider"),
    ):
        z, away = robust_z(values, least_sigma=least), values - np.median(values)
        worst = np.maximum(worst, np.abs(z))
        for place in np.flatnonzero(np.abs(z) > SIGMAS).tolist():
            times = f"{np.exp(abs(away[place])):.1f} times {more if away[place] > 0 else less}"
            notes[place] += f", {times}" if notes[place] else times
    for place in np.flatnonzero(worst > SIGMAS).tolist():
        detail = f"{height[place]:.0f} x {width[place]:.0f}: {notes[place]} than usual"
        yield _finding(images, int(rows[place]), "size", worst[place], detail)


def _empty(images: Images) -> Iterator[Finding]:
    """Tell of images that show next to nothing: far less contrast than usual, or none of the usual content."""
    rows = _measured(images)
    if not len(rows):
        return
    contrast, content = images.contrast[rows].astype(np.float64), images.content[rows].astype(np.float64)
    z, empty = _emptiness(images, rows)
    for place in np.flatnonzero(empty).tolist():
        detail = f"contrast {contrast[place]:.3f}, usually {np.median(contrast):.3f}; {content[place]:.1%} stands out"
        yield _finding(images, int(rows[place]), "empty", -z[place], detail)


def _emptiness(images: Images, rows: npt.NDArray[np.int64]) -> tuple[Values, Bools]:
    """Return how far from usual the contrast is, and whether an image is empty; a dark one has little, and is not."""
    contrast, content = images.contrast[rows].astype(np.float64), images.content[rows].astype(np.float64)
    of_light = contrast / (images.brightness[rows] + 0.01)
    z = robust_z(np.log(contrast + 1e-3), least_sigma=0.2)
    faint = (z < -SIGMAS) & (robust_z(np.log(of_light + 1e-3), least_sigma=0.2) < -SIGMAS)
    bare = (contrast < OF_USUAL * np.median(contrast)) & (of_light < OF_USUAL * np.median(of_light))
    bare &= (content < EMPTY_CONTENT) & bool(np.median(content) > USUAL_CONTENT)
    return z, np.asarray((faint & (contrast < EMPTY_CONTRAST)) | bare)


def _light(images: Images) -> Iterator[Finding]:
    rows = _measured(images)
    if not len(rows):
        return
    light = images.brightness[rows].astype(np.float64)
    usual, z = float(np.median(light)), robust_z(_logit(light), least_sigma=0.25)
    _, empty = _emptiness(images, rows)
    dark = (z < -SIGMAS) & (light < DARK) & (light < OF_USUAL * usual)
    bright = (z > SIGMAS) & (light > BRIGHT) & (1 - light < OF_USUAL * (1 - usual)) & ~empty
    kinds: tuple[tuple[Kind, Bools], ...] = (("dark", dark), ("bright", bright))
    for kind, which in kinds:
        for place in np.flatnonzero(which).tolist():
            detail = f"brightness {light[place]:.2f} of 0 to 1, usually {usual:.2f}"
            yield _finding(images, int(rows[place]), kind, abs(z[place]), detail)


def _blurred(images: Images) -> Iterator[Finding]:
    """Tell of images without the usual fine detail; of those that show nothing `empty` tells."""
    rows = _measured(images)
    rows = rows[images.contrast[rows] >= EMPTY_CONTRAST / 2]
    if len(rows) < FEW:
        return
    sharpness = images.sharpness[rows].astype(np.float64)
    usual, z = float(np.median(sharpness)), robust_z(np.log(sharpness + 1e-6), least_sigma=0.35)
    for place in np.flatnonzero((z < -SIGMAS) & (sharpness < BLUR_OF_USUAL * usual)).tolist():
        detail = f"sharpness {sharpness[place]:.4f}, usually {usual:.4f}"
        yield _finding(images, int(rows[place]), "blurred", -z[place], detail)


def _measured(images: Images) -> npt.NDArray[np.int64]:
    """Return the rows that were measured, or none where they are too few to say what is usual."""
    rows = np.flatnonzero(images.readable)
    return rows if len(rows) >= FEW else rows[:0]


def _logit(shares: Values) -> Values:
    inside = np.clip(shares, 0.002, 0.998)
    return np.asarray(np.log(inside / (1 - inside)))
