"""What the presets do to images: one fused warp, colour and erasing, in OpenCV.

Every warp of a preset (shift, scale, rotation, shear, perspective-like, grid and elastic) moves the control points of
one mesh, and an image is resampled once. Why not albumentations: `benchmarks/augmentation.py` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.pixels import Image

Floats = npt.NDArray[np.float32]
Matrices = npt.NDArray[np.float64]
THICKNESS_SIDE = 48
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's gray
NO_FOLD = 0.48
ERASE_ASPECT = 0.7  # of log(height / width)
ERASE_SIDE = 0.6


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much of everything; each image draws evenly from 0 up to it, in both directions.

    Attributes:
        rotate: Degrees.
        zoom: (low, high) magnification; above 1 is nearer. Each image's is drawn evenly on a logarithmic scale.
        aspect: Further stretch of one side against the other: 0.1 is up to 1.1 to 1.
        shift: Share of each side, in either direction; with `mirror`, images zoomed in move besides as far as what the
            zoom cuts off.
        shear: Degrees.
        warp: Share of each side by which corners move, as when seen from elsewhere.
        grid: Moves of a coarse mesh's points, as a share of their distance, at most 0.48: so that nothing folds.
        elastic: The same for a fine mesh. An image gets the coarse one, the fine one, or neither, a third each.
        flip: Mirror half of the images, left to right.
        thickness: Share of the images whose strokes get thicker or thinner, by half a pixel on each side.
        brightness: Share of the whole range.
        contrast: Share by which distances from the image's mean gray grow or shrink.
        saturation: Share by which distances from gray grow or shrink.
        erase: Share of the images that lose a box (Zhong 2017).
        erase_area: (low, high) share of the image that the box covers.
        outside: What is beyond the image's edges: `paper`, the median of each image's border, channel by channel; or
            `mirror`, the image again.
    """

    rotate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    aspect: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    warp: float = 0.0
    grid: float = 0.0
    elastic: float = 0.0
    flip: bool = False
    thickness: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.1)
    outside: Literal["paper", "mirror"] = "paper"

    def __post_init__(self) -> None:
        assert max(self.grid, self.elastic) <= NO_FOLD


class Mesh:
    """Control points of a uniform cubic B-spline over an image, which say where each pixel is taken from.

    Control points moved by an affine or bilinear function move every pixel by it.

    Source: Rueckert 1999 (free-form deformation); points that move less than 0.48 of their distance fold nothing (Choi
    and Lee 2000).
    """

    def __init__(self, size: tuple[int, int], *, cells: int) -> None:
        """Lay the mesh.

        Args:
            size: The image's (height, width).
            cells: How many the shorter side has; those along the longer side are about square.
        """
        height, width = size
        rows, y = _basis(height, max(1, round(cells * height / min(size))))
        columns, x = _basis(width, max(1, round(cells * width / min(size))))
        self._rows, self._columns = rows, np.ascontiguousarray(columns.T)
        self.points = np.stack(np.meshgrid(x, y))  # (2, rows, columns): x and y in pixels from the image's middle
        self.spacing = np.array([x[1] - x[0], y[1] - y[0]])

    def maps(self, control: Floats) -> Floats:
        """Return (2, H, W) float32: the x and y each pixel is taken from, given (2, rows, columns) of the points."""
        return np.asarray(np.matmul(np.matmul(self._rows, control), self._columns), np.float32)


def make_meshes(size: tuple[int, int]) -> tuple[Mesh, Mesh, Mesh]:
    """Return the meshes of images whose points keep their lines, make coarse moves, and fine ones."""
    return Mesh(size, cells=1), Mesh(size, cells=3), Mesh(size, cells=7)


def warp_images(images: Image, recipe: Recipe, meshes: tuple[Mesh, ...], rng: np.random.Generator) -> Image:
    """Return warped copies of (B, H, W, C) uint8 images, each resampled once, linearly."""
    import cv2

    count, height, width, _ = images.shape
    kinds = rng.integers(0, len(meshes), count) if max(recipe.grid, recipe.elastic) else np.zeros(count, np.int64)
    matrices, shifts = _draw_affine(recipe, count, rng)
    shifts = shifts * [width, height] + [(width - 1) / 2, (height - 1) / 2]
    corners = rng.uniform(-recipe.warp, recipe.warp, (count, 2, 4)) * np.array([[[width], [height]]])
    paper = border_colors(images) if recipe.outside == "paper" else np.zeros((count, 1))
    mode = cv2.BORDER_CONSTANT if recipe.outside == "paper" else cv2.BORDER_REFLECT_101
    out = np.empty_like(images)
    for kind, (mesh, amount) in enumerate(zip(meshes, (0.0, recipe.grid, recipe.elastic), strict=True)):
        rows = np.flatnonzero(kinds == kind)
        moved = mesh.points + np.einsum("bdk,kij->bdij", corners[rows], _corner_weights(mesh.points, (height, width)))
        moved = np.einsum("bed,bdij->beij", matrices[rows], moved) + shifts[rows, :, None, None]
        moved += rng.uniform(-amount, amount, moved.shape) * mesh.spacing[:, None, None]
        for row, control in zip(rows, moved.astype(np.float32), strict=True):
            x, y = mesh.maps(control)
            warped = cv2.remap(
                images[row], x, y, cv2.INTER_LINEAR, borderMode=mode, borderValue=tuple(paper[row].tolist())
            )
            out[row] = warped.reshape(images.shape[1:])
    return out


def border_colors(images: Image) -> npt.NDArray[np.float64]:
    """Return (B, C): the median of each image's outermost pixels, channel by channel, as `fit: content` takes it."""
    edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    return np.asarray(np.median(np.concatenate(edges, axis=1), axis=1).round(), np.float64)


def thicken_strokes(images: Image, recipe: Recipe, rng: np.random.Generator) -> None:
    """Make strokes of some of the images thicker or thinner, in place, by half of what a pixel on each side would.

    Not of small images, whose strokes are little more than a pixel wide; half, so that no thin stroke disappears.
    """
    import cv2

    if min(images.shape[1:3]) < THICKNESS_SIDE:
        return
    chosen, grow = rng.random(len(images)) < recipe.thickness, rng.random(len(images)) < 0.5
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for row in np.flatnonzero(chosen):
        changed = cv2.dilate(images[row], cross) if grow[row] else cv2.erode(images[row], cross)
        images[row] = cv2.addWeighted(images[row], 0.5, changed.reshape(images.shape[1:]), 0.5, 0).reshape(
            images.shape[1:]
        )


def change_colors(images: Image, recipe: Recipe, rng: np.random.Generator) -> None:
    """Change brightness, contrast and saturation, in place, by one matrix an image.

    Contrast is about each image's mean gray: about a fixed one, what is darker or lighter as a whole would vanish.
    """
    import cv2

    if not max(recipe.brightness, recipe.contrast, recipe.saturation):
        return
    count, channels = len(images), images.shape[3]
    brightness, contrast, saturation = rng.uniform(-1, 1, (3, count, 1, 1))
    brightness, contrast = brightness * recipe.brightness * 255, 1 + contrast * recipe.contrast
    gray = np.tile(GRAY_WEIGHTS, (3, 1)) if channels == 3 else np.eye(1)
    mixing = contrast * (gray + (1 + saturation * recipe.saturation) * (np.eye(channels) - gray))
    weights = GRAY_WEIGHTS if channels == 3 else (1.0,)
    means = np.array([np.dot(weights, cv2.mean(image)[:channels]) for image in images])[:, None, None]
    offsets = np.broadcast_to(means * (1 - contrast) + brightness, (count, channels, 1))
    matrices = np.concatenate([mixing, offsets], axis=2)
    for row in range(count):
        images[row] = cv2.transform(images[row], matrices[row]).reshape(images.shape[1:])


def erase_boxes(images: Image, recipe: Recipe, rng: np.random.Generator) -> None:
    """Put noise over a box of some of the images, in place: who sees it knows that something is hidden there.

    Source: Zhong 2017, random erasing with random pixels. Differs: a side of the box is at most 0.6 of the image's,
    and the box's aspect ratio is relative to the image's.
    """
    count, height, width, channels = images.shape
    chosen = rng.random(count) < recipe.erase
    area = np.asarray(rng.uniform(recipe.erase_area[0], recipe.erase_area[1], count), np.float64)
    tall = np.asarray(np.exp(rng.uniform(-ERASE_ASPECT, ERASE_ASPECT, count)), np.float64)
    places = rng.random((count, 2))
    for row in np.flatnonzero(chosen):
        h = max(1, round(height * min(ERASE_SIDE, (area[row] * tall[row]) ** 0.5)))
        w = max(1, round(width * min(ERASE_SIDE, (area[row] / tall[row]) ** 0.5)))
        top, left = int(places[row, 0] * (height - h + 1)), int(places[row, 1] * (width - w + 1))
        images[row, top : top + h, left : left + w] = rng.integers(0, 256, (h, w, channels), np.uint8)


def _basis(length: int, cells: int) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Return (length, cells + 3) weights of the control points at each pixel, and their places from the middle."""
    spacing = max(1, length - 1) / cells
    at = np.arange(length) / spacing
    first = np.minimum(at.astype(np.int64), cells - 1)
    t = at - first
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    basis = np.zeros((length, cells + 3), np.float32)
    for offset, weight in enumerate(weights):
        basis[np.arange(length), first + offset] = weight / 6
    return basis, np.asarray((np.arange(cells + 3) - 1) * spacing - (length - 1) / 2, np.float64)


def _corner_weights(points: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return (4, rows, columns): how far each corner's move moves each point, bilinearly."""
    right, down = points[0] / size[1] + 0.5, points[1] / size[0] + 0.5
    return np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down])


def _draw_affine(recipe: Recipe, count: int, rng: np.random.Generator) -> tuple[Matrices, Matrices]:
    """Return (B, 2, 2) matrices from an image's to its source's x and y, and (B, 2) shifts as shares of the sides."""
    angle = np.deg2rad(rng.uniform(-recipe.rotate, recipe.rotate, count))
    low, high = np.log(recipe.zoom)
    scale = np.exp(-rng.uniform(low, high, count))
    stretch = np.exp(rng.uniform(-1, 1, count) * np.log1p(recipe.aspect) / 2)
    shear = np.tan(np.deg2rad(rng.uniform(-recipe.shear, recipe.shear, count)))
    mirror = np.where(rng.random(count) < 0.5, -1, 1) if recipe.flip else np.ones(count)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [[cos * mirror, cos * shear - sin], [sin * mirror, sin * shear + cos]]
    matrices = np.moveaxis(np.array(rows), -1, 0) * np.stack([scale * stretch, scale / stretch], axis=1)[:, :, None]
    # What leaves the picture may be the part of a letter that tells its class; of a photo there is enough left.
    room = recipe.shift + (np.maximum(0, 1 - scale) / 2 if recipe.outside == "mirror" else 0 * scale)
    return matrices, rng.uniform(-1, 1, (count, 2)) * room[:, None]
