"""Sample competitions made offline from scikit-learn's handwritten digits, for trying the whole kit in minutes.

`digits` has the files of bengaliai-cv19: three heads, four wide-parquet shards, a hidden test with combinations that
train never shows. `ships` has the files of the ship competition, with planted defects that are written down. Both
are small, but meant to be honest: skewed classes, and no handwriting is shared between train and hidden test.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kaggle_kit.errors import DataError, SettingError, did_you_mean
from kaggle_kit.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Kind = Literal["digits", "ships"]

GLYPH_SIZE = 80  # an upscaled digit: 8 x 8 cells of 8 px inside a border of 8 px
DIGIT_HEIGHT = 64

_RECIPE = 2  # raise it when the same seed gives other files, so that an older sample is not taken for this one
_SIZES = {"digits": (4200, 2100), "ships": (1200, 500)}
_SMALLEST = {"digits": (100, 100), "ships": (60, 40)}
_TRAIN_SHARE = 0.6  # of the digit instances


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Where a sample competition lies.

    Attributes:
        kind: Which competition it imitates.
        data: What the competitor sees.
        hidden: The hidden test, its sample submission and solution.csv.
        task: The task file.
        seed: What it was made from.
        num_train: Train images.
        num_test: Images of the hidden test.
    """

    kind: Kind
    data: Path
    hidden: Path
    task: Path
    seed: int
    num_train: int
    num_test: int


def make_sample(
    kind: Kind, folder: Path, *, seed: int = 0, num_train: int | None = None, num_test: int | None = None
) -> Sample:
    """Write a sample competition: `folder`/data, `folder`/hidden and `folder`/task.yaml.

    The same arguments give byte-identical files. The folder appears complete or not at all; asked for again with the
    same arguments, it is returned as it is.

    Args:
        kind: `digits` (bengaliai-cv19's files) or `ships` (the ship competition's files, with planted defects).
        folder: A new or empty folder, or the same sample made before.
        seed: At least 0.
        num_train: Train images; 4,200 for digits and 1,200 for ships by default.
        num_test: Images of the hidden test; 2,100 and 500 by default.

    Raises:
        SettingError: When a size is too small to hold every class, or the seed is negative.
        DataError: When `folder` holds anything else.
    """
    sizes = _checked_sizes(kind, num_train, num_test)
    if seed < 0:
        raise SettingError(f"`seed` is {seed}; give 0 or above")
    folder = Path(folder).absolute()
    sample = _sample_in(folder, kind=kind, seed=seed, sizes=sizes)
    card = _card(sample)
    if not _is_there(folder, card):
        with _part_folder(folder) as part:
            _write_contents(part, sample)
            whole = {**card, "bytes": _count_bytes(part)}
            (part / "sample.json").write_text(json.dumps(whole) + "\n", encoding="utf-8")
    return sample


@functools.cache
def read_glyphs() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the digits as smooth strokes, and which digit each one is.

    Returns:
        Ink (1797, 80, 80) uint8, 0 where there is none; digit (1797,) int64, 0 to 9. Index i is load_digits's.
    """
    import cv2
    from sklearn.datasets import load_digits

    raw = load_digits()
    glyphs = np.empty((len(raw.images), GLYPH_SIZE, GLYPH_SIZE), np.uint8)
    for row, cells in enumerate(raw.images):
        gray = np.pad(cells.astype(np.float32) / 16, 1)  # (10, 10), 0 to 1
        smooth = cv2.resize(gray, (GLYPH_SIZE, GLYPH_SIZE), interpolation=cv2.INTER_CUBIC)
        glyphs[row] = (np.clip((smooth - 0.3) / 0.35, 0, 1) * 255).astype(np.uint8)
    return glyphs, raw.target.astype(np.int64)


def split_instances(
    rng: np.random.Generator, *, train_share: float = _TRAIN_SHARE
) -> tuple[dict[int, NDArray[np.int64]], dict[int, NDArray[np.int64]]]:
    """Split the digit instances into train's and the hidden test's, digit by digit.

    Returns:
        Two mappings of digit to instance indices; no instance is in both.
    """
    _, digits = read_glyphs()
    train, hidden = {}, {}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(digits == digit))
        cut = round(len(order) * train_share)
        train[digit], hidden[digit] = order[:cut], order[cut:]
    return train, hidden


def place_glyph(
    glyph: NDArray[np.uint8],
    *,
    size: tuple[int, int],
    center: tuple[float, float],
    height: float,
    degrees: float = 0.0,
    slant: float = 0.0,
    aspect: float = 1.0,
) -> NDArray[np.float32]:
    """Draw one glyph on an empty canvas.

    Args:
        glyph: (80, 80) uint8 ink.
        size: The canvas's (height, width).
        center: Where the glyph's middle goes, (x, y).
        height: The digit's height in pixels.
        degrees: Rotation.
        slant: Horizontal shift per pixel of height.
        aspect: Width relative to the digit's own.

    Returns:
        Ink (height, width) float32, 0 to 1.
    """
    import cv2

    scale, angle = height / DIGIT_HEIGHT, np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * turn @ np.array([[aspect, -slant], [0.0, 1.0]])
    middle = np.full(2, (GLYPH_SIZE - 1) / 2)
    matrix = np.column_stack([linear, np.asarray(center) - linear @ middle])
    ink = cv2.warpAffine(glyph, matrix, size[::-1], flags=cv2.INTER_LINEAR)
    return np.asarray(ink, np.float32) / np.float32(255)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file that ends its lines alike on every platform."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _checked_sizes(kind: str, num_train: int | None, num_test: int | None) -> tuple[int, int]:
    if kind not in _SIZES:
        raise SettingError(f"there is no sample {kind!r}{did_you_mean(kind, _SIZES)}")
    sizes = []
    for name, given, usual, least in zip(
        ("num_train", "num_test"), (num_train, num_test), _SIZES[kind], _SMALLEST[kind], strict=True
    ):
        sizes.append(usual if given is None else given)
        if sizes[-1] < least:
            raise SettingError(f"`{name}` is {sizes[-1]}; a {kind} sample needs at least {least} to hold every class")
    return sizes[0], sizes[1]


def _sample_in(folder: Path, *, kind: Kind, seed: int, sizes: tuple[int, int]) -> Sample:
    return Sample(
        kind=kind,
        data=folder / "data",
        hidden=folder / "hidden",
        task=folder / "task.yaml",
        seed=seed,
        num_train=sizes[0],
        num_test=sizes[1],
    )


def _card(sample: Sample) -> dict[str, object]:
    """Return what sample.json says: all that decides the files' bytes."""
    return {
        "kind": sample.kind,
        "seed": sample.seed,
        "num_train": sample.num_train,
        "num_test": sample.num_test,
        "recipe": _RECIPE,
    }


def _is_there(folder: Path, card: dict[str, object]) -> bool:
    """Tell whether `folder` holds this very sample; refuse it when it holds anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder for the sample")
    if not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder} is not empty and holds no sample; give a new folder, or delete it") from None
    num_bytes = found.pop("bytes", None) if isinstance(found, dict) else None
    if found != card:
        differs = [f"{key} {found.get(key)}, not {card[key]}" for key in card if found.get(key) != card[key]]
        raise DataError(f"{folder} holds another sample ({'; '.join(differs)}); give a new folder, or delete it")
    if num_bytes != _count_bytes(folder):
        raise DataError(f"{folder} holds this sample, but its files have changed since; delete it and make it again")
    return True


def _count_bytes(folder: Path) -> int:
    """Return the size of a sample's data and hidden test."""
    return sum(
        path.stat().st_size for name in ("data", "hidden") for path in (folder / name).rglob("*") if path.is_file()
    )


@contextmanager
def _part_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to build in; it becomes `folder` at the end, or is removed on failure."""
    part = folder.parent / f".{folder.name}.part{os.getpid()}"
    try:
        for name in ("data", "hidden"):
            (part / name).mkdir(parents=True)
        yield part
        if folder.exists():  # moved into, not replaced: it may be somebody's working directory
            for item in sorted(part.iterdir(), key=lambda item: item.name == "sample.json"):
                item.rename(folder / item.name)
        else:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_contents(part: Path, sample: Sample) -> None:
    from kaggle_kit.sample_digits import write_digits  # here, because both import this module
    from kaggle_kit.sample_ships import write_ships

    preset = resources.files("kaggle_kit.tasks") / f"{sample.kind}.yaml"
    (part / "task.yaml").write_bytes(preset.read_bytes())
    write = write_digits if sample.kind == "digits" else write_ships
    num_train, num_test = sample.num_train, sample.num_test
    with progress_bar(num_train + num_test, f"sample {sample.kind}", unit="image") as bar:
        write(part, seed=sample.seed, num_train=num_train, num_test=num_test, tick=bar.update)
