"""One's own albumentations, written as a YAML list.

    - Affine: {rotate: [-20, 20], p: 0.8}
    - HorizontalFlip
    - OneOf:
        p: 0.3
        transforms:
          - GaussianBlur
          - GaussNoise: {std_range: [0.02, 0.1]}

albumentations 2 only warns of an argument it does not know, and goes on without it; here that is an error, as is all
that would give other than uint8 images of the stored size.
"""

from __future__ import annotations

import copy
import inspect
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.pixels import Image

Shape = tuple[int, int, int]
COMPOSITIONS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")
FLOATS = ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")
TRIALS = 8
NEEDLESS = {"strict"}


class OwnList:
    """One's own list of transforms, tried before it is used."""

    def __init__(self, text: str, *, shape: Shape) -> None:
        """Make the transforms and try them on made-up images.

        Args:
            text: A YAML list.
            shape: (H, W, C) of the images.

        Raises:
            SettingError: Naming the item of the list, and what is wrong with it.
        """
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its version check costs a minute offline
        import albumentations as A

        items = [_make(item, f"item {number}") for number, item in enumerate(read_list(text), 1)]
        self._shape = shape
        self._compose = A.Compose(items, is_check_shapes=False)
        self._try_out()

    def __call__(self, images: Image, *, seed: int) -> Image:
        """Return augmented copies of (B, H, W, C) uint8 images; the same for the same seed.

        Raises:
            SettingError: When a rare choice of the list gives another size or type, which its trial did not meet.
        """
        self._seed(seed)
        out = np.empty_like(images)
        for row, image in enumerate(images):
            changed = self._with_channels(self._compose(image=image)["image"])
            if changed.shape != self._shape or changed.dtype != np.uint8:
                raise SettingError(f"`augment` gave an image of {_shown(changed)}; {self._expected()}")
            out[row] = changed
        return out

    def _seed(self, seed: int) -> None:
        # Compose.set_random_seed gives every transform its own generator with the same seed, so that their first
        # draws are equal, and those of the same `p` act together or not at all.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311

    def _try_out(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (TRIALS, *self._shape), np.uint8)
        usual = self._compose
        surely = copy.deepcopy(usual)
        for item in _walk(surely.transforms):
            item.p = 1.0
        for compose in (surely, usual):
            self._compose = compose
            self._seed(0)
            for image in images:
                self._try_items(image)
        if not (self(images, seed=1) == self(images, seed=1)).all():
            raise SettingError("`augment` gives other images for the same seed; leave out what draws its own numbers")

    def _try_items(self, image: Image) -> None:
        changer = ""
        for number, item in enumerate(self._compose.transforms, 1):
            where = f"`augment`, item {number} ({type(item).__name__})"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("error", UserWarning)  # what a transform says when it does nothing to gray
                    image = self._with_channels(item(image=image)["image"])
            except Exception as error:  # noqa: BLE001  (whatever somebody else's transform raises, told by its name)
                text = f"{where} fails on a {_shape_text(self._shape)} uint8 image: {_one_line(error)}"
                raise SettingError(f"{text}; change its arguments or leave it out") from None
            if image.dtype != np.uint8:
                raise SettingError(
                    f"{where} gives {image.dtype}, not uint8; the network normalises itself: leave it out"
                )
            if image.shape != self._shape:
                changer = changer or where
        if image.shape != self._shape:
            raise SettingError(f"{changer} makes images {_shown(image)}; {self._expected()}")

    def _with_channels(self, image: Image) -> Image:
        """Return (H, W) as (H, W, 1), which some transforms drop from gray images."""
        return image[..., None] if image.ndim == 2 and self._shape[2] == 1 else image

    def _expected(self) -> str:
        height, width, _ = self._shape
        return (
            f"expected {_shape_text(self._shape)} uint8, as stored; give it that size, or end the list with Resize: "
            f"{{height: {height}, width: {width}}}"
        )


def read_list(text: str, *, where: str = "its text") -> list[Any]:
    """Return the items of a YAML list of transforms; names and arguments are not looked at yet.

    Raises:
        SettingError: When the text is no YAML, no list, or empty.
    """
    import yaml

    try:
        items = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise SettingError(
            f"`augment`: {where} is not valid YAML near line {line}; check indentation and colons"
        ) from None
    if not isinstance(items, list) or not items:
        found = "an empty list" if items == [] else "nothing" if items is None else f"a {type(items).__name__}"
        raise SettingError(
            f"`augment`: {where} holds {found}; expected a list of albumentations, such as "
            "`- Affine: {rotate: [-10, 10]}`"
        )
    return items


def _make(item: object, where: str) -> Any:
    """Return the transform an item stands for."""
    name, arguments = _name_and_arguments(item, where)
    where = f"`augment`, {where} ({name})"
    kind = _find(name, where)
    accepted = [key for key in inspect.signature(kind.__init__).parameters if key not in ("self", *NEEDLESS)]
    for key in arguments:
        if key not in accepted:
            raise SettingError(f"{where} has no argument `{key}`; accepted: {', '.join(accepted)}")
    if name in COMPOSITIONS:
        arguments = _nested(arguments, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = kind(**arguments)
    except ZeroDivisionError:
        raise SettingError(f"{where}: all of its transforms have p: 0; give one of them a larger share") from None
    except (ValueError, TypeError, ArithmeticError, AttributeError, Warning) as error:
        raise SettingError(f"{where}: {_one_line(error)}") from None
    needed = set(getattr(made, "targets_as_params", ())) - {"image"}
    if needed:
        raise SettingError(
            f"{where} needs {', '.join(sorted(needed))} beside the image; only images are given, leave it out"
        )
    return made


def _name_and_arguments(item: object, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, arguments),) = item.items()
        if isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping)):
            return name, {str(key): value for key, value in (arguments or {}).items()}
    raise SettingError(
        f"`augment`, {where} is {str(item)[:60]!r}; expected a transform's name, or {{Name: {{argument: value}}}}"
    )


def _find(name: str, where: str) -> Any:
    """Return the transform albumentations exports by this name, where it can be used here."""
    import albumentations as A

    abstract = {A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D}
    known = {
        key: kind
        for key, kind in vars(A).items()
        if isinstance(kind, type) and issubclass(kind, A.BasicTransform) and kind not in abstract
    }
    known |= {key: vars(A)[key] for key in COMPOSITIONS}
    if name in FLOATS:
        raise SettingError(f"{where} gives no uint8 image; the network normalises itself: leave it out")
    if name in ("Compose", "ReplayCompose"):
        raise SettingError(f"{where} is not needed: the list itself is one; use Sequential inside OneOf or SomeOf")
    if name not in known:
        raise SettingError(f"{where} is no transform of albumentations {A.__version__}{_closest(name, known)}")
    if name == "Lambda" or issubclass(known[name], A.Transform3D):
        why = "takes Python functions" if name == "Lambda" else "is for volumes"
        raise SettingError(f"{where} {why}, which a list in YAML cannot give; leave it out")
    return known[name]


def _nested(arguments: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a composition's arguments with its transforms made; albumentations does not check these arguments."""
    inner = arguments.get("transforms")
    if not isinstance(inner, list) or not inner:
        raise SettingError(f"{where} needs `transforms`, a list of at least one")
    share, number, replace = arguments.get("p", 1.0), arguments.get("n", 1), arguments.get("replace", False)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise SettingError(f"{where}: `p` is {share!r}; expected 0 to 1")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SettingError(f"{where}: `n` is {number!r}; expected a whole number from 1")
    if not isinstance(replace, bool):
        raise SettingError(f"{where}: `replace` is {replace!r}; expected true or false")
    outer = where.removeprefix("`augment`, ")
    made = [_make(item, f"{outer}, item {place}") for place, item in enumerate(inner, 1)]
    return {**arguments, "transforms": made}


def _walk(items: list[Any]) -> Iterator[Any]:
    for item in items:
        yield item
        yield from _walk(getattr(item, "transforms", []))


def _closest(name: str, known: Mapping[str, Any]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("; did") else "; see albumentations.ai for their names"


def _one_line(error: BaseException) -> str:
    """Return an error's text in one line; pydantic's errors by argument, reason and value found."""
    from pydantic import ValidationError

    cause = error.__cause__
    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        places = [str(place) for place in first["loc"]]
        reason = first["msg"].removeprefix("Value error, ")
        found = "" if isinstance(first["input"], Mapping) else f", found {first['input']!r}"
        return f"`{places[0]}`: {reason}{found}" if places else f"{reason}{found}"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shape_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _shown(image: Image) -> str:
    return f"{_shape_text(image.shape)} {image.dtype}"
