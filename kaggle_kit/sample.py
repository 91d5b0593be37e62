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
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from kaggle_kit.errors import DataError, SettingError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Kind = Literal["digits", "ships"]
Split = Literal["train", "hidden"]

GLYPH_SIZE = 80  # an upscaled digit: 8 x 8 cells of 8 px inside a border of 8 px
DIGIT_HEIGHT = 64
HEIGHT, WIDTH = 137, 236
NUM_SHARDS = 4
NUM_VISIBLE = 12
UNSEEN_SHARE = 0.275  # of the hidden test's images; bengaliai-cv19 hides about 40 % of the graphemes

HEADS = ("grapheme_root", "vowel_diacritic", "consonant_diacritic")
ROW_ORDER = (
    "consonant_diacritic",
    "grapheme_root",
    "vowel_diacritic",
)  # within an image, as in bengaliai-cv19
ROOTS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "17", "42", "58", "36")
# Class 0 is no mark; the others are a small digit and its place (x, y) in pixels from the root's middle.
VOWELS = (("", 0, 0), ("1", 62, 2), ("6", 46, -42), ("4", -64, 0), ("0", 0, -49), ("3", 62, 2))
CONSONANTS = (("", 0, 0), ("2", 0, 49), ("0", 0, 49), ("5", 0, 49))
GRID = (len(ROOTS), len(VOWELS), len(CONSONANTS))

_RECIPE = 1  # raise it when the same seed gives other files, so that an older sample is not taken for this one
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


class Drawing(NamedTuple):
    """One `digits` image before it is drawn: its label per head, and the digit instances its strokes come from."""

    labels: tuple[int, int, int]
    instances: tuple[int, ...]

    @property
    def grapheme(self) -> str:
        """The name of the label combination, such as `r12v3c0`."""
        return "r{}v{}c{}".format(*self.labels)


@dataclass(frozen=True, kw_only=True)
class DigitsPlan:
    """Everything about a `digits` sample but the pixels; rows are in file order."""

    seed: int
    train: tuple[Drawing, ...]
    hidden: tuple[Drawing, ...]


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
    chosen = _checked_sizes(kind, num_train, num_test)
    if seed < 0:
        raise SettingError(f"`seed` is {seed}; give 0 or above")
    folder = Path(folder).absolute()
    card: dict[str, object] = {
        "kind": kind,
        "seed": seed,
        "num_train": chosen[0],
        "num_test": chosen[1],
        "recipe": _RECIPE,
    }
    if not _is_there(folder, card):
        with _part_folder(folder) as part, _progress(kind, sum(chosen)) as tick:
            _write_contents(part, kind=kind, seed=seed, sizes=chosen, tick=tick)
            (part / "sample.json").write_text(json.dumps(card) + "\n", encoding="utf-8")
    return Sample(
        kind=kind,
        data=folder / "data",
        hidden=folder / "hidden",
        task=folder / "task.yaml",
        seed=seed,
        num_train=chosen[0],
        num_test=chosen[1],
    )


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


def plan_digits(*, seed: int, num_train: int, num_test: int) -> DigitsPlan:
    """Decide the labels and strokes of every `digits` image.

    Of the 336 label combinations, 56 are kept out of train; they make 27.5 % of the hidden test. All other hidden
    images show combinations that train has. Each class of each head is in train, and in the hidden test among both.
    """
    rng = np.random.default_rng((seed, 0))
    pools = split_instances(rng)
    ranks = [rng.permutation(len(ROOTS)), np.arange(len(VOWELS)), np.arange(len(CONSONANTS))]
    root, vowel, consonant = (1.0 / (1 + rank) for rank in ranks)  # Zipf
    weights = np.einsum("r,v,c->rvc", root, vowel, consonant).ravel()
    unseen = _unseen_combinations(rng).ravel()
    train = _draw_combinations(rng, np.where(unseen, 0, weights), num_train)
    shown = np.bincount(train, minlength=weights.size) > 0
    num_unseen = round(num_test * UNSEEN_SHARE)
    seen_part = _draw_combinations(rng, np.where(shown, weights, 0), num_test - num_unseen)
    unseen_part = _draw_combinations(rng, np.where(unseen, weights, 0), num_unseen)
    hidden = rng.permutation(np.concatenate([seen_part, unseen_part]))
    return DigitsPlan(
        seed=seed,
        train=tuple(_drawing(rng, combination, pools[0]) for combination in train),
        hidden=tuple(_drawing(rng, combination, pools[1]) for combination in hidden),
    )


def draw_digits(plan: DigitsPlan, split: Split, row: int) -> NDArray[np.uint8]:
    """Draw one planned image: (137, 236) uint8, dark strokes on white paper."""
    rng = np.random.default_rng((plan.seed, 1 if split == "train" else 2, row))
    drawing = (plan.train if split == "train" else plan.hidden)[row]
    glyphs, _ = read_glyphs()
    middle = np.array([WIDTH / 2, HEIGHT / 2]) + rng.normal(0, (8, 2.5))
    scale, degrees, slant = rng.uniform(0.82, 1.06), rng.normal(0, 4), rng.normal(0, 0.12)
    ink = np.zeros((HEIGHT, WIDTH), np.float32)
    for instance, (dx, dy, height) in zip(drawing.instances, _places(drawing.labels), strict=True):
        stroke = place_glyph(
            glyphs[instance],
            size=(HEIGHT, WIDTH),
            center=tuple(middle + scale * np.array([dx, dy]) + rng.normal(0, 2.5, 2)),
            height=scale * height * rng.uniform(0.85, 1.12),
            degrees=degrees + rng.normal(0, 4),
            slant=slant + rng.normal(0, 0.06),
            aspect=rng.uniform(0.85, 1.15),
        )
        np.maximum(ink, stroke * rng.uniform(0.72, 1.0), out=ink)
    return _on_paper(rng, ink)


def write_digits(part: Path, *, seed: int, num_train: int, num_test: int, tick: Callable[[int], object]) -> None:
    """Write bengaliai-cv19's files into `part`/data and `part`/hidden."""
    plan = plan_digits(seed=seed, num_train=num_train, num_test=num_test)
    data, hidden = part / "data", part / "hidden"
    _write_all_shards(part, plan, tick=tick)
    train_rows = ((f"Train_{row}", *drawing.labels, drawing.grapheme) for row, drawing in enumerate(plan.train))
    write_csv(data / "train.csv", ("image_id", *HEADS, "grapheme"), train_rows)
    write_csv(data / "class_map.csv", ("component_type", "label", "component"), _class_map())
    for folder, num in ((data, NUM_VISIBLE), (hidden, num_test)):
        rows = [(f"Test_{row}_{head}", f"Test_{row}", head) for row in range(num) for head in ROW_ORDER]
        write_csv(folder / "test.csv", ("row_id", "image_id", "component"), rows)
        write_csv(folder / "sample_submission.csv", ("row_id", "target"), [(row[0], 0) for row in rows])
    answers = (
        (f"Test_{row}_{head}", drawing.labels[HEADS.index(head)])
        for row, drawing in enumerate(plan.hidden)
        for head in ROW_ORDER
    )
    write_csv(hidden / "solution.csv", ("row_id", "target"), answers)


def _unseen_combinations(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Pick 4 of the 24 marks of each root, one per consonant, in turn over the vowels: (14, 6, 4) bool."""
    mask = np.zeros(GRID, bool)
    vowels, consonants = rng.permutation(len(VOWELS))[: len(CONSONANTS)], np.arange(len(CONSONANTS))
    for turn, root in enumerate(rng.permutation(len(ROOTS))):
        mask[root, (vowels + turn) % len(VOWELS), consonants] = True
    return mask


def _draw_combinations(rng: np.random.Generator, weights: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Draw `num` flat combination indices by weight: each at least once if they are few, else each class once."""
    options = rng.permutation(np.flatnonzero(weights))
    certain = options if num >= 4 * len(options) else _cover(options)
    drawn = rng.choice(weights.size, size=num - len(certain), p=weights / weights.sum())
    return rng.permutation(np.concatenate([certain, drawn]))


def _cover(options: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the options, at most 22, that each bring a class not met before."""
    met: set[tuple[int, int]] = set()
    kept = []
    for option in options:
        classes = {(head, int(label)) for head, label in enumerate(np.unravel_index(option, GRID))}
        if not classes <= met:
            kept.append(option)
            met |= classes
    return np.array(kept, np.int64)


def _drawing(rng: np.random.Generator, combination: np.int64, pool: dict[int, NDArray[np.int64]]) -> Drawing:
    root, vowel, consonant = (int(label) for label in np.unravel_index(combination, GRID))
    digits = ROOTS[root] + VOWELS[vowel][0] + CONSONANTS[consonant][0]
    instances = tuple(int(rng.choice(pool[int(digit)])) for digit in digits)
    return Drawing((root, vowel, consonant), instances)


def _places(labels: tuple[int, int, int]) -> list[tuple[float, float, float]]:
    """Return (x, y, height) from the canvas's middle for each stroke of a drawing, in the order of its instances."""
    root = [(-19, 0, 60), (19, 0, 60)] if len(ROOTS[labels[0]]) == 2 else [(0, 0, 62)]
    marks = [VOWELS[labels[1]], CONSONANTS[labels[2]]]
    return [*root, *((dx, dy, 33) for digit, dx, dy in marks if digit)]


def _on_paper(rng: np.random.Generator, ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn ink (H, W), 0 to 1, into gray values on slightly uneven, grainy paper."""
    import cv2

    stains = cv2.resize(rng.random((5, 8), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-8, 8, ink.shape, np.int8)
    gray: NDArray[np.float32] = 252 - 10 * stains + grain - 235 * ink
    return gray.clip(0, 255).astype(np.uint8)


def _class_map() -> list[tuple[str, int, str]]:
    names = (
        ROOTS,
        [digit or "none" for digit, _, _ in VOWELS],
        [digit or "none" for digit, _, _ in CONSONANTS],
    )
    return [(head, label, name) for head, part in zip(HEADS, names, strict=True) for label, name in enumerate(part)]


def _write_all_shards(part: Path, plan: DigitsPlan, *, tick: Callable[[int], object]) -> None:
    """Write the parquet files on two threads, which pyarrow keeps busy while the next images are drawn here."""
    num_train, num_test = len(plan.train), len(plan.hidden)
    jobs: tuple[tuple[str, Split, int], ...] = (
        ("data", "train", num_train),
        ("data", "hidden", NUM_VISIBLE),
        ("hidden", "hidden", num_test),
    )
    with ThreadPoolExecutor(max_workers=2) as pool:
        writes = []
        for folder, split, num in jobs:
            stem = "Train" if split == "train" else "Test"
            for shard, rows in enumerate(np.array_split(np.arange(num), NUM_SHARDS)):
                images = np.stack([draw_digits(plan, split, int(row)).ravel() for row in rows])
                path = part / folder / f"{stem.lower()}_image_data_{shard}.parquet"
                writes.append(pool.submit(_write_wide, path, [f"{stem}_{row}" for row in rows], images, rows))
                tick(len(rows) if num != NUM_VISIBLE else 0)
        for write in writes:
            write.result()


def _write_wide(path: Path, ids: list[str], images: NDArray[np.uint8], index: NDArray[np.int64]) -> None:
    """Write one shard as pandas wrote the real ones: one row group, snappy, the index left in as a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_images, num_pixels = images.shape
    pixels = pa.array(images.T.ravel())  # column after column; each one is a slice of it
    columns = [pixels.slice(start, num_images) for start in range(0, len(pixels), num_images)]
    names = ["image_id", *map(str, range(num_pixels)), "__index_level_0__"]
    arrays = [pa.array(ids, pa.string()), *columns, pa.array(index, pa.int64())]
    table = pa.Table.from_arrays(arrays, names=names)
    pq.write_table(table, path, compression="snappy", row_group_size=len(ids))


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
    if found != card:
        differs = [f"{key} {found.get(key)}, not {card[key]}" for key in card if found.get(key) != card[key]]
        raise DataError(f"{folder} holds another sample ({'; '.join(differs)}); give a new folder, or delete it")
    return True


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


@contextmanager
def _progress(kind: str, num: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=num, desc=f"sample {kind}", unit="image", file=sys.stderr) as bar:
        yield bar.update


def _write_contents(
    part: Path, *, kind: Kind, seed: int, sizes: tuple[int, int], tick: Callable[[int], object]
) -> None:
    if kind == "ships":
        from kaggle_kit.sample_ships import write_ships as write
    else:
        write = write_digits
    preset = resources.files("kaggle_kit.tasks") / f"{kind}.yaml"
    (part / "task.yaml").write_bytes(preset.read_bytes())
    write(part, seed=seed, num_train=sizes[0], num_test=sizes[1], tick=tick)
