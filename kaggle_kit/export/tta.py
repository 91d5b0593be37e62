"""Test-time augmentation: what a spec such as `hflip` or `scale=0.9,1.1` makes of the pixels a network sees."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import ttach

from kaggle_kit.errors import SettingError, did_you_mean, some_of
from kaggle_kit.train.model import Network

View = Callable[[torch.Tensor], torch.Tensor]
Step = tuple[int, int]  # pixels down and to the right; below 0 up and to the left

EXAMPLES = {"hflip": "hflip", "vflip": "vflip", "scale": "scale=0.9,1.1", "shift": "shift=4"}
SCALES = (0.5, 2.0)
SHIFTS = (1, 64)


class Scale(ttach.Scale):  # type: ignore[misc]
    """Scale images as ttach does, bilinear, by two matrix products.

    Its own Resize asks for the batch's size in the graph, which no backend needs to ask for here.

    Args:
        scales: Factors of height and width.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__(scales, interpolation="bilinear", align_corners=False)

    def apply_aug_image(self, image: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Return (B, C, scaled h, scaled w) images."""
        rows, columns = (_bilinear(size, int(size * scale)).to(image.device) for size in image.shape[2:])
        return torch.matmul(torch.matmul(rows, image), columns.T)


class Shift(ttach.base.DualTransform):  # type: ignore[misc]
    """Move images; what comes in is the border, repeated.

    Args:
        shifts: Steps, each of pixels down and to the right.
    """

    identity_param = (0, 0)

    def __init__(self, shifts: Sequence[Step]) -> None:
        super().__init__("shift", [self.identity_param, *(step for step in shifts if step != self.identity_param)])

    def apply_aug_image(self, image: torch.Tensor, shift: Step = (0, 0)) -> torch.Tensor:
        """Return (B, C, h, w) images, moved."""
        for dim, pixels in zip((2, 3), shift, strict=True):
            if pixels:  # one Gather in ONNX, which every backend has
                size = image.shape[dim]
                places = (torch.arange(size, device=image.device) - pixels).clamp(0, size - 1)
                image = image.index_select(dim, places)
        return image

    def apply_deaug_mask(self, mask: torch.Tensor, shift: Step = (0, 0)) -> torch.Tensor:
        """Return (B, C, h, w) masks, moved back."""
        return self.apply_aug_image(mask, (-shift[0], -shift[1]))

    def apply_deaug_label(self, label: torch.Tensor, shift: Step = (0, 0)) -> torch.Tensor:
        """Return labels as they are."""
        return label


def make_views(tta: Sequence[str]) -> list[View]:
    """Return what is made of (B, C, h, w) float pixels before each pass through a network; the first leaves them.

    Args:
        tta: Specs: `hflip`, `vflip`, `scale=0.9,1.1` (of height and width), `shift=4` (pixels to each of four sides).
            Views add up; none changes what another has changed.

    Raises:
        SettingError: For a spec that says nothing, says what another has said, or is out of range.
    """
    check_tta(tta)
    return [_unchanged, *(view for spec in tta for view in _views_of(spec))]


def check_tta(tta: Sequence[str], network: Network | None = None) -> None:
    """Refuse changes of the image that do not exist, or that a network cannot follow.

    Args:
        tta: Specs, as of `make_views`.
        network: Whose pixels are changed; None: whatever follows.

    Raises:
        SettingError: Naming the spec.
    """
    said: set[tuple[str, float]] = set()
    for spec in tta:
        for value in _parse(spec):
            if value in said:
                raise SettingError(f"`tta` holds {spec!r}, a change that is there already; leave one out")
            said.add(value)
        if network is not None:
            _check_network(spec, network)


def _unchanged(pixels: torch.Tensor) -> torch.Tensor:
    return pixels


def _views_of(spec: str) -> Iterator[View]:
    name, values = spec.partition("=")[0], [value for _, value in _parse(spec)]
    if name == "scale":
        transform = Scale(values)
    elif name == "shift":
        steps = [int(value) for value in values]
        transform = Shift([step for n in steps for step in ((0, -n), (0, n), (-n, 0), (n, 0))])
    else:
        transform = ttach.HorizontalFlip() if name == "hflip" else ttach.VerticalFlip()
    for value in transform.params:
        if value != transform.identity_param:
            yield functools.partial(transform.apply_aug_image, **{transform.pname: value})


def _bilinear(before: int, after: int) -> torch.Tensor:
    """Return the (after, before) matrix of a one-dimensional resize without antialias."""
    import cv2

    size = (before, after)
    return torch.from_numpy(cv2.resize(np.eye(before, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR))


def _parse(spec: str) -> list[tuple[str, float]]:
    """Return a spec's changes: its name with each of its values, 0 for a flip."""
    name, equals, text = spec.partition("=")
    if name not in EXAMPLES:
        near = "; separate views by spaces" if "," in spec else did_you_mean(name, EXAMPLES)
        raise SettingError(f"`tta` holds {spec!r}, which is no change of an image{near} (there are {_examples()})")
    if name in ("hflip", "vflip"):
        if equals:
            raise SettingError(f"`tta` holds {spec!r}, but a flip takes no value; write {name!r}")
        return [(name, 0.0)]
    low, high = SCALES if name == "scale" else SHIFTS
    what = "factors other than 1" if name == "scale" else "whole pixels"
    values = [_number(part) for part in text.split(",")]
    if not all(low <= value <= high and (value != 1 if name == "scale" else value % 1 == 0) for value in values):
        raise SettingError(
            f"`tta` holds {spec!r}; expected {what} from {low:g} to {high:g}, such as {EXAMPLES[name]!r}"
        )
    return [(name, value) for value in values]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # in no range


def _examples() -> str:
    return some_of(EXAMPLES.values(), len(EXAMPLES))


def _check_network(spec: str, network: Network) -> None:
    name, size = spec.partition("=")[0], network.input_size
    if name == "scale" and network.fixed_size:
        raise SettingError(
            f"`tta` holds {spec!r}, but {network.name!r} takes images of one size alone, {list(size)}; leave it out, "
            "or choose a convolutional model"
        )
    if name == "scale":
        for _, value in _parse(spec):
            if [int(side * value) for side in size] == list(size):
                raise SettingError(
                    f"`tta` holds {spec!r}, and {value:g} times {list(size)} is the same size in whole pixels; give a "
                    "factor further from 1"
                )
    if name == "shift" and max(value for _, value in _parse(spec)) >= min(size):
        raise SettingError(f"`tta` holds {spec!r}, which moves images of {list(size)} out of sight; give fewer pixels")
