"""The `digits` sample competition: bengaliai-cv19's files, with graphemes composed of handwritten digits.

Three heads, four wide-parquet shards, and a hidden test with combinations of labels that train never shows. Those are
harder, as they are in Bengali: in some graphemes a mark takes a second form, which it shares with another mark, and
only who has seen the grapheme knows which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from kaggle_kit.sample import place_glyph, read_glyphs, split_instances, write_csv

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split = Literal["train", "hidden"]
Mark = tuple[str, int, int]  # its digit and place; no digit: no mark

HEIGHT, WIDTH = 137, 236
NUM_SHARDS = 4
NUM_VISIBLE = 12
UNSEEN_SHARE = 0.275  # of the hidden test's images; bengaliai-cv19 hides about 40 % of the graphemes

HEADS = ("grapheme_root", "vowel_diacritic", "consonant_diacritic")
ROW_ORDER = ("consonant_diacritic", "grapheme_root", "vowel_diacritic")  # within an image, as in bengaliai-cv19
ROOTS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "17", "42", "58", "36")
# A mark is a small digit and its place (x, y) in pixels from the root's middle; class 0 is none.
VOWELS = (("", 0, 0), ("1", 62, 2), ("6", 46, -42), ("4", -64, 0), ("0", 0, -49), ("3", 62, 2))
CONSONANTS = (("", 0, 0), ("2", 0, 49), ("0", 0, 49), ("5", 0, 49))
# Two classes and the second form they share; no root shows both by it beside the same other mark.
VOWELS_ALIKE = ((1, 3, ("7", 46, 42)), (2, 5, ("8", -56, -40)))
CONSONANTS_ALIKE = ((1, 3, ("9", 0, 49)),)
SECOND_FORM_RATE = 0.35  # of these classes' graphemes
SKEW = 0.7  # how often a class occurs: rank^-SKEW
GRID = (len(ROOTS), len(VOWELS), len(CONSONANTS))


class Drawing(NamedTuple):
    """One `digits` image before it is drawn: its label per head, and the digit instances its strokes come from."""

    labels: tuple[int, int, int]
    marks: tuple[Mark, ...]
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


def plan_digits(*, seed: int, num_train: int, num_test: int) -> DigitsPlan:
    """Decide the labels and strokes of every `digits` image.

    Of the 336 label combinations, 56 are kept out of train; they make 27.5 % of the hidden test. All other hidden
    images show combinations that train has. Each class of each head is in train, and in the hidden test among both.
    """
    rng = np.random.default_rng((seed, 0))
    pools = split_instances(rng)
    ranks = [rng.permutation(len(ROOTS)), np.arange(len(VOWELS)), np.arange(len(CONSONANTS))]
    root, vowel, consonant = ((1.0 + rank) ** -SKEW for rank in ranks)
    weights = np.einsum("r,v,c->rvc", root, vowel, consonant).ravel()
    unseen, marks = _unseen_combinations(rng).ravel(), _marks(rng)
    train = _draw_combinations(rng, np.where(unseen, 0, weights), num_train)
    shown = np.bincount(train, minlength=weights.size) > 0
    num_unseen = round(num_test * UNSEEN_SHARE)
    seen_part = _draw_combinations(rng, np.where(shown, weights, 0), num_test - num_unseen)
    unseen_part = _draw_combinations(rng, np.where(unseen, weights, 0), num_unseen)
    hidden = rng.permutation(np.concatenate([seen_part, unseen_part]))
    return DigitsPlan(
        seed=seed,
        train=tuple(_drawing(rng, combination, marks, pools[0]) for combination in train),
        hidden=tuple(_drawing(rng, combination, marks, pools[1]) for combination in hidden),
    )


def draw_digits(plan: DigitsPlan, split: Split, row: int) -> NDArray[np.uint8]:
    """Draw one planned image: (137, 236) uint8, dark strokes on white paper."""
    rng = np.random.default_rng((plan.seed, 1 if split == "train" else 2, row))
    drawing = (plan.train if split == "train" else plan.hidden)[row]
    glyphs, _ = read_glyphs()
    middle = np.array([WIDTH / 2, HEIGHT / 2]) + rng.normal(0, (8, 2.5))
    scale, degrees, slant = rng.uniform(0.82, 1.06), rng.normal(0, 4), rng.normal(0, 0.12)
    ink = np.zeros((HEIGHT, WIDTH), np.float32)
    for instance, (dx, dy, height) in zip(drawing.instances, _places(drawing), strict=True):
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


def _marks(rng: np.random.Generator) -> dict[tuple[int, int, int], tuple[Mark, Mark]]:
    """Return for each combination the forms of its vowel and of its consonant."""
    marks = {(r, v, c): [VOWELS[v], CONSONANTS[c]] for r, v, c in np.ndindex(GRID)}
    num_roots, num_vowels, num_consonants = GRID
    for first, second, form in VOWELS_ALIKE:
        for (root, consonant), chance in np.ndenumerate(rng.random((num_roots, num_consonants))):
            vowel = first if chance < SECOND_FORM_RATE else second
            if min(chance, 1 - chance) < SECOND_FORM_RATE:
                marks[root, vowel, consonant][0] = form
    for first, second, form in CONSONANTS_ALIKE:
        for (root, vowel), chance in np.ndenumerate(rng.random((num_roots, num_vowels))):
            consonant = first if chance < SECOND_FORM_RATE else second
            if min(chance, 1 - chance) < SECOND_FORM_RATE:
                marks[root, vowel, consonant][1] = form
    looks: set[tuple[int, Mark, Mark]] = set()
    for (root, vowel, _), own in marks.items():
        if (root, own[0], own[1]) in looks:  # two second forms at once may look like two others
            own[0] = VOWELS[vowel]
        looks.add((root, own[0], own[1]))
    return {labels: (vowel, consonant) for labels, (vowel, consonant) in marks.items()}


def _drawing(
    rng: np.random.Generator,
    combination: np.int64,
    marks: dict[tuple[int, int, int], tuple[Mark, Mark]],
    pool: dict[int, NDArray[np.int64]],
) -> Drawing:
    root, vowel, consonant = (int(label) for label in np.unravel_index(combination, GRID))
    own = marks[root, vowel, consonant]
    digits = ROOTS[root] + "".join(digit for digit, _, _ in own)
    instances = tuple(int(rng.choice(pool[int(digit)])) for digit in digits)
    return Drawing((root, vowel, consonant), own, instances)


def _places(drawing: Drawing) -> list[tuple[float, float, float]]:
    """Return (x, y, height) from the canvas's middle for each stroke of a drawing, in the order of its instances."""
    root = [(-19, 0, 60), (19, 0, 60)] if len(ROOTS[drawing.labels[0]]) == 2 else [(0, 0, 62)]
    return [*root, *((dx, dy, 33) for digit, dx, dy in drawing.marks if digit)]


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
