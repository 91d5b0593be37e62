"""Golden images: whether this machine computes what was computed at home."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.ensemble import Blend, blend_probs
from kaggle_kit.errors import BundleError, ImageError
from kaggle_kit.mixes import FLOOR, Mix, softmax
from kaggle_kit.pixels import Image, read_stored
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.bundle import GOLDEN, Bundle, Golden, load_golden
from kaggle_kit.task import Task

_SMOOTH = ("arithmetic", "geometric", "power")
_DRAWS = 32  # of what runs may say: each shows a vote that may flip in a quarter of the cases
_MISSED = 1.25  # how much further than these draws the furthest may be
_MOST = 4  # tolerances that any other mix than a vote may be away; a vote's flip is as large as a run's weight


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The probability that is furthest from where it should be.

    Attributes:
        what: Whose it is, such as `run 'a'`.
        head: Of which head.
        image: Of which golden image, from 0 on.
        difference: How far away; infinite where it is NaN.
        allowed: How far it may be.
    """

    what: str
    head: str
    image: int
    difference: float
    allowed: float

    @property
    def too_far(self) -> bool:
        """Whether it is further away than allowed."""
        return not self.difference <= self.allowed


def read_golden(bundle: Bundle) -> Golden:
    """Read a bundle's golden images.

    Raises:
        BundleError: When they are not whole: no image, a run or head without probabilities, other shapes.
    """
    path = bundle.folder / GOLDEN
    try:
        golden = load_golden(bundle.folder)
    except (KeyError, ValueError, IndexError) as error:
        raise BundleError(f"{path} does not read ({error}); make the bundle again") from None
    rows, task = len(golden.encoded), bundle.task
    if not rows or len(golden.images) != rows or not 0 < golden.tolerance < 1:
        raise BundleError(
            f"{path} holds {rows} encoded images, {len(golden.images)} decoded ones and a tolerance of "
            f"{golden.tolerance:g}; expected as many of both, and 0 to 1; make the bundle again"
        )
    for run in bundle.blend.runs:
        shapes = {head: values.shape for head, values in golden.probs.get(run, {}).items()}
        expected = {name: (rows, head.num_classes) for name, head in task.heads.items()}
        if shapes != expected:
            raise BundleError(f"{path} holds probabilities {shapes} of run {run!r}; expected {expected}; make it again")
    return golden


def first_images(golden: Golden, number: int) -> Golden:
    """Return the golden images that show the most: the first ones."""
    return Golden(
        encoded=golden.encoded[:number],
        fitted=golden.fitted,
        images=golden.images[:number],
        probs={run: {head: values[:number] for head, values in probs.items()} for run, probs in golden.probs.items()},
        tolerance=golden.tolerance,
    )


def decode_golden(golden: Golden, task: Task) -> Image:
    """Return (n, H, W, C) uint8 stored images as this machine decodes them.

    Raises:
        BundleError: Naming the golden image that does not decode here, or to another size than at home.
    """
    stored = None if golden.fitted else task.stored
    images = np.empty_like(golden.images)
    for number, data in enumerate(golden.encoded):
        try:
            image, _ = read_stored(data, channels=task.images.channels, stored=stored)
        except ImageError as error:
            raise BundleError(f"golden image {number} cannot be read by this machine's OpenCV: {error}") from None
        if image.shape != images.shape[1:]:
            raise BundleError(f"golden image {number} is {image.shape} here, and was {images.shape[1:]} at home")
        images[number] = image
    return images


def furthest_run(found: Mapping[str, Probs], golden: Golden) -> Distance:
    """Return where runs are furthest from home.

    Args:
        found: {run: {head: (n, C) probabilities}} of all golden images.
        golden: Has the same of home, of these runs and maybe others.
    """
    distances = [
        furthest(f"run {run!r}", probs, golden.probs[run], allowed=golden.tolerance) for run, probs in found.items()
    ]
    return max(distances, key=lambda distance: distance.difference)


def furthest_blend(
    what: str, found: Probs, blend: Blend, runs: Sequence[Probs], *, tolerance: float, multilabel: Collection[str]
) -> Distance:
    """Return where a blend is furthest from what these runs' probabilities make.

    It may be away by the tolerance. Votes, ranks, stacks and mixes of sharpened runs may be away as far as they move
    themselves when each run moves by it: a vote flips where two classes are as good as equal, and nowhere else.

    Args:
        what: Whose probabilities these are.
        found: {head: (n, C) probabilities}.
        blend: How runs are mixed.
        runs: {head: (n, C) probabilities} of each run, in the blend's order.
        tolerance: How far a run's probability may be away.
        multilabel: The heads that are multi-label.
    """
    expected = blend_probs(blend, runs, multilabel=multilabel)
    room = {head: np.full(values.shape, tolerance) for head, values in expected.items()}
    jumpy = {head: mix.kind for head, mix in blend.whole.heads.items() if not _is_smooth(mix)}
    rng = np.random.default_rng(0)
    for _ in range(_DRAWS if jumpy else 0):
        moved = [
            {head: _moved(values, tolerance, rng, multilabel=head in multilabel) for head, values in run.items()}
            for run in runs
        ]
        again = blend_probs(blend, moved, multilabel=multilabel)
        for head, kind in jumpy.items():
            away = _MISSED * np.abs(again[head] - expected[head])
            room[head] = np.maximum(room[head], away if kind == "vote" else np.minimum(away, _MOST * tolerance))
    return furthest(what, found, expected, allowed=room)


def _is_smooth(mix: Mix) -> bool:
    """Return whether a mix moves about as far as its runs do."""
    return mix.kind in _SMOOTH and min(mix.temperatures, default=1.0) >= 1


def _moved(
    probs: npt.NDArray[np.float32], by: float, rng: np.random.Generator, *, multilabel: bool
) -> npt.NDArray[np.float32]:
    """Return (N, C) probabilities whose logits moved up or down, as rounding moves them.

    Of multiclass heads rows still sum to 1, and no more than `by` goes from some classes to others; of multi-label ones
    none moves further than `by`: a logistic function that is shifted by 4 x `by` moves by tanh(`by`) at most.
    """
    signs = rng.choice([-1.0, 1.0], probs.shape)
    values = np.clip(probs.astype(np.float64), FLOOR, 1 - FLOOR)
    if not multilabel:
        return softmax(np.log(values) + 2 * by * signs).astype(np.float32)
    odds = values / (1 - values) * np.exp(4 * by * signs)
    return np.asarray(odds / (1 + odds), np.float32)


def furthest(
    what: str,
    found: Probs,
    expected: Probs,
    *,
    allowed: float | Mapping[str, npt.NDArray[np.float64]],
) -> Distance:
    """Return which of {head: (n, C)} probabilities is furthest from what is expected, for how far it may be.

    Args:
        what: Whose they are.
        found: May have more heads than are expected.
        expected: The same rows.
        allowed: How far any of them may be away, or {head: (n, C)} how far each may.
    """
    room = {
        head: allowed[head] if isinstance(allowed, Mapping) else np.full(values.shape, allowed)
        for head, values in expected.items()
    }
    distances = [_furthest_of_head(what, head, found[head] - values, room[head]) for head, values in expected.items()]
    return max(distances, key=lambda distance: distance.difference / distance.allowed)


def _furthest_of_head(what: str, head: str, differences: npt.NDArray[Any], room: npt.NDArray[np.float64]) -> Distance:
    away = np.nan_to_num(np.abs(differences), nan=np.inf)
    row, column = np.unravel_index(int((away / room).argmax()), away.shape)
    return Distance(
        what=what,
        head=head,
        image=int(row),
        difference=float(away[row, column]),
        allowed=float(room[row, column]),
    )


def check_distance(distance: Distance, golden: Golden, images: Image) -> None:
    """Refuse what is further from home than allowed.

    Args:
        distance: The furthest.
        golden: Home's.
        images: (n, H, W, C) the golden images as this machine decodes them.

    Raises:
        BundleError: Naming run or graph, head and image, and how much of it the pixels may explain.
    """
    if distance.too_far:
        raise BundleError(describe_distance(distance, golden, images))


def describe_distance(distance: Distance, golden: Golden, images: Image) -> str:
    """Return a sentence on what is too far from home; arguments as `check_distance` takes them."""
    number = distance.image
    pixels = pixel_difference(images[number : number + 1], golden.images[number : number + 1])
    return (
        f"golden images give {distance.what} probabilities {distance.difference:.4f} away from home (allowed "
        f"{distance.allowed:g}), the furthest for head {distance.head!r} of image {number}, whose pixels differ by "
        f"up to {pixels} of 255; this machine's OpenCV or onnxruntime computes something else"
    )


def pixel_difference(images: Image, others: Image) -> int:
    """Return the largest difference of a pixel between (n, H, W, C) uint8 images."""
    return int(np.abs(images.astype(np.int16) - others).max())
