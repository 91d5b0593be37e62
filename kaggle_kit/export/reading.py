"""How a model from elsewhere reads stored images, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import SettingError, did_you_mean, some_of
from kaggle_kit.settings import plain
from kaggle_kit.task import Task

Layout = Literal["nchw", "nhwc"]
Dtype = Literal["float32", "uint8"]
Activation = Literal["softmax", "none"]
Order = Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model reads images, and what it says.

    Attributes:
        size: (height, width) the model sees; None: the stored size. Images are resized to it as the kit's own
            networks resize them: by area when shrinking, else linear.
        layout: `nchw`: (batch, channels, height, width), as in torch; `nhwc`: channels last, as in Keras.
        dtype: What pixels are; `uint8` is from 0 to 255 and not normalised.
        mean: What is subtracted from pixels of 0 to 1, for each channel or one for all; empty: pixels from 0 to 255
            go in as they are. Pixels of 0 to 1 are a mean of 0 and a std of 1.
        std: What they are divided by then.
        channels: That the model sees; None: as the images have. A gray image is repeated for a model of 3.
        order: Of 3 channels; OpenCV reads `bgr`.
        outputs: {head: the name of its output}; of a module that returns a tuple, the heads in its order, whatever they
            are called. Empty: outputs are named as the heads, or there is one of each, or a tuple is in the task's
            order.
        activation: `softmax`: outputs are logits, of multi-label heads for a sigmoid; `none`: probabilities already.
        classes: {head: its classes' names in the model's order}; heads that are not named are in the task's order.
    """

    size: tuple[int, int] | None = None
    layout: Layout = "nchw"
    dtype: Dtype = "float32"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: int | None = None
    order: Order = "rgb"
    outputs: dict[str, str] = field(default_factory=dict)
    activation: Activation = "softmax"
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("layout", Layout), ("dtype", Dtype), ("activation", Activation), ("order", Order)):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise SettingError(f"`{name}` is {value!r}{did_you_mean(str(value), get_args(kind))}")
        if self.size is not None and (len(self.size) != 2 or not all(1 <= side <= 8192 for side in self.size)):
            raise SettingError(f"`size` is {list(self.size)}; give height and width, each 1 to 8192 pixels")
        if self.channels not in (None, 1, 3):
            raise SettingError(f"`channels` is {self.channels}; give 1 or 3")
        self._check_normalisation()

    def _check_normalisation(self) -> None:
        if len(self.mean) != len(self.std):
            raise SettingError(
                f"`mean` has {len(self.mean)} value(s) and `std` {len(self.std)}; give both, one for each channel or "
                "one for all (mean 0 and std 1 for pixels of 0 to 1), or neither for pixels of 0 to 255"
            )
        if any(not np.isfinite(value) for value in (*self.mean, *self.std)) or any(value <= 0 for value in self.std):
            raise SettingError(f"`mean` is {list(self.mean)} and `std` {list(self.std)}; give numbers, std above 0")
        if self.dtype == "uint8" and self.mean:
            raise SettingError("`dtype` is uint8, which is not normalised; leave `mean` and `std` out, or give float32")

    def num_channels(self, task: Task) -> int:
        """Return how many channels the model sees."""
        return self.channels or task.images.channels

    def scale(self, task: Task) -> tuple[list[float], list[float]]:
        """Return mean and std of each channel, of pixels from 0 to 1; what is to stay as it is gets 0 and 1/255."""
        num = self.num_channels(task)
        mean, std = (self.mean, self.std) if self.mean else ((0.0,), (1 / 255,))
        return [list(values) * (num if len(values) == 1 else 1) for values in (mean, std)]  # type: ignore[return-value]

    def columns(self, task: Task) -> dict[str, npt.NDArray[np.int64]]:
        """Return {head: (C,) the model's column of each class}, of heads whose classes it has in another order."""
        columns = {}
        for head, names in self.classes.items():
            wanted = task.heads[head].class_names
            if names != wanted:
                columns[head] = np.array([names.index(name) for name in wanted], np.int64)
        return columns

    def __str__(self) -> str:
        shown = {name: value for name, value in plain(self).items() if value and name not in ("outputs", "classes")}
        shown = {"size": "as stored", "mean": "none"} | shown
        return ", ".join(f"{name} {value}" for name, value in shown.items())


def check_reading(reading: Reading, task: Task) -> None:
    """Refuse what does not fit the task.

    Raises:
        SettingError: Naming the setting, the head or the class.
    """
    images, seen = task.images.channels, reading.num_channels(task)
    if seen < images:
        raise SettingError(
            f"`channels` is {seen}, and images of task {task.name!r} have {images}: there are several ways to make "
            "them gray; put yours into the model, which then reads 3"
        )
    if len(reading.mean) not in (0, 1, seen):
        raise SettingError(
            f"`mean` has {len(reading.mean)} values, and the model sees {seen} channel(s); give one for each, or one"
        )
    for name in ("outputs", "classes"):
        unknown = [head for head in getattr(reading, name) if head not in task.heads]
        if unknown:
            raise SettingError(f"`{name}` names head {unknown[0]!r}{did_you_mean(unknown[0], task.heads)}")
    missing = [head for head in task.heads if reading.outputs and head not in reading.outputs]
    if missing:
        raise SettingError(f"`outputs` does not say what head {missing[0]!r} is called; name every head of the task")
    for head, names in reading.classes.items():
        wanted = task.heads[head].class_names
        if sorted(names) != sorted(wanted):
            odd = sorted(set(names) ^ set(wanted)) or [name for name in names if names.count(name) > 1]
            raise SettingError(
                f"`classes` of head {head!r} are {len(names)}, expected the {len(wanted)} of task {task.name!r} in any "
                f"order; these are in one of the two alone, or twice: {some_of(odd)}"
            )
