"""Render a full-size stand-in for bengaliai-cv19: its exact files, from fonts, with the hidden test's unseen graphemes.

    apt-get install fonts-beng-extra fonts-lohit-beng-bengali fonts-noto-core        # Debian
    python benchmarks/render_bengali.py bengali_graphemes.tsv ./bengali --train 20000 --test 8000
    python benchmarks/render_bengali.py bengali_graphemes.tsv ./bengali --montage sheet.png

OUT/data is what the competitor sees, OUT/hidden the hidden test with its solution.csv. Every grapheme is drawn with one
of the fonts, then with another stroke width, bent, turned, put into perspective, blurred and laid on paper with noise.

bengali_graphemes.tsv: a line a grapheme of Bengali.AI, tab-separated: the grapheme, grmRoot, depVow, mod (0: none); the
first line names the last three.

- Two fonts are in the hidden test alone, as other people's handwriting is.
- `--unseen` of the graphemes are in the hidden test alone, but every root, vowel and consonant is in train.
- How often a grapheme occurs is skewed: shares fall with a power of its rank, separately for root, vowel and consonant,
  so that rare parts meet in rarer graphemes; `--skew` is the power. The hidden test draws its seen and its unseen
  graphemes alike.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

HEIGHT, WIDTH = 137, 236
CANVAS = (2 * HEIGHT, 2 * WIDTH)  # drawn at twice the size, so that strokes stay smooth
HEADS = {"grapheme_root": "grmRoot", "vowel_diacritic": "depVow", "consonant_diacritic": "mod"}
ROW_ORDER = ("consonant_diacritic", "grapheme_root", "vowel_diacritic")
SHARDS = 4
BLOCK = 500  # images a process draws at once
DUMMY = 12  # images of the visible test
FONT_ROOTS = (Path("/usr/share/fonts/truetype"), Path("/usr/share/fonts"))
TRAIN_FONTS = (
    *("Ani.ttf", "JamrulNormal.ttf", "Mukti.ttf", "Muktibold.ttf", "Lohit-Bengali.ttf"),
    *("NotoSansBengali-Regular.ttf", "NotoSansBengali-Bold.ttf"),
)
HIDDEN_FONTS = ("LikhanNormal.ttf", "NotoSerifBengali-Regular.ttf")
Gray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Grapheme:
    """What is written, and its class of each head."""

    text: str
    classes: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images to draw: their numbers seed them, so that any of them can be drawn alone."""

    prefix: str
    graphemes: tuple[Grapheme, ...]
    fonts: tuple[Path, ...]
    seed: int


def read_graphemes(path: Path) -> tuple[list[Grapheme], dict[str, list[str]]]:
    """Return the graphemes and {head: components by class}, classes numbered in code point order."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        header = next(reader)
        rows = [dict(zip(["grapheme", *header[1:]], row, strict=True)) for row in reader]
    components = {head: sorted({row[column] for row in rows}) for head, column in HEADS.items()}
    graphemes = [
        Grapheme(
            text=row["grapheme"],
            classes=tuple(components[head].index(row[column]) for head, column in HEADS.items()),  # type: ignore[arg-type]
        )
        for row in rows
    ]
    return graphemes, components


def split_unseen(graphemes: Sequence[Grapheme], share: float, rng: np.random.Generator) -> list[bool]:
    """Return which graphemes are in the hidden test alone: none that is the last of a class."""
    left = [np.bincount([one.classes[head] for one in graphemes]) for head in range(3)]
    unseen = [False] * len(graphemes)
    for place in rng.permutation(len(graphemes)).tolist():
        classes = graphemes[place].classes
        if sum(unseen) < share * len(graphemes) and all(left[head][classes[head]] > 1 for head in range(3)):
            unseen[place] = True
            for head in range(3):
                left[head][classes[head]] -= 1
    return unseen


def draw_shares(graphemes: Sequence[Grapheme], skew: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return (G,) how often each grapheme is written: the product of its parts' own skewed shares."""
    shares = np.ones(len(graphemes))
    for head in range(3):
        classes = np.array([one.classes[head] for one in graphemes])
        ranks = rng.permutation(classes.max() + 1) + 1
        shares *= (1 / ranks[classes]) ** skew
    return shares / shares.sum()


def find_fonts(names: Sequence[str]) -> tuple[Path, ...]:
    """Return the fonts' files."""
    found = {path.name: path for root in FONT_ROOTS for path in root.rglob("*.ttf")}
    missing = [name for name in names if name not in found]
    if missing:
        sys.exit(
            f"fonts are missing: {', '.join(missing)}; install Debian's packages named in this script's first lines"
        )
    return tuple(found[name] for name in names)


@cache
def _font(path: Path, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.RAQM)


def draw_glyph(text: str, font: Path, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the ink of one grapheme, 0 to 1, in the middle of the canvas."""
    from PIL import Image, ImageDraw

    size = int(rng.integers(140, 240))
    box = _font(font, size).getbbox(text)
    while (box[2] - box[0] > 0.9 * CANVAS[1] or box[3] - box[1] > 0.86 * CANVAS[0]) and size > 40:
        size = int(size * 0.9)
        box = _font(font, size).getbbox(text)
    image = Image.new("L", (CANVAS[1], CANVAS[0]), 0)
    at = ((CANVAS[1] - box[0] - box[2]) / 2, (CANVAS[0] - box[1] - box[3]) / 2)
    ImageDraw.Draw(image).text(at, text, fill=255, font=_font(font, size))
    return np.asarray(image, np.float32) / 255


def write_by_hand(ink: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the ink as a hand would put it: another pen, bent strokes, turned, leaning, seen from an angle."""
    width = int(rng.integers(-4, 6))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (abs(width) + 1, abs(width) + 1))
    thinner = cv2.erode(ink, kernel)
    keeps = width >= 0 or float(thinner.sum()) > 0.35 * float(ink.sum())
    ink = np.asarray(cv2.dilate(ink, kernel) if width > 0 else thinner if keeps else ink, np.float32)
    height, breadth = ink.shape
    bends = [cv2.GaussianBlur(rng.uniform(-1, 1, ink.shape).astype(np.float32), (0, 0), 18) for _ in range(2)]
    force = rng.uniform(4, 13)
    grid = np.mgrid[0:height, 0:breadth].astype(np.float32)
    bent = [axis + force * bend / (float(np.abs(bend).max()) + 1e-6) for axis, bend in zip(grid, bends, strict=True)]
    ink = cv2.remap(ink, bent[1], bent[0], cv2.INTER_LINEAR)
    corners = np.array([[0, 0], [breadth, 0], [breadth, height], [0, height]], np.float32)
    moved = (corners + rng.normal(0, 0.05, (4, 2)) * (breadth, height)).astype(np.float32)
    turn = cv2.getRotationMatrix2D((breadth / 2, height / 2), rng.normal(0, 7), rng.uniform(0.75, 1.05))
    turn[:, 2] += rng.normal(0, 0.03, 2) * (breadth, height)
    lean = np.array([[1, rng.normal(0, 0.12), 0], [0, 1, 0], [0, 0, 1]])
    lean[0, 2] = -lean[0, 1] * height / 2
    matrix = np.vstack([turn, [0, 0, 1]]) @ lean @ cv2.getPerspectiveTransform(corners, moved)
    return np.asarray(cv2.warpPerspective(ink, matrix, (breadth, height), flags=cv2.INTER_LINEAR), np.float32)


def lay_on_paper(ink: npt.NDArray[np.float32], rng: np.random.Generator) -> Gray:
    """Return (137, 236) uint8: the ink on scanned paper."""
    small = cv2.resize(
        cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.8, 2.2)), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA
    )
    shade = cv2.resize(rng.uniform(-1, 1, (3, 4)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    paper = rng.uniform(232, 254) + rng.uniform(0, 7) * shade
    pressure = 1 - rng.uniform(0, 0.25) * np.abs(cv2.resize(shade, (WIDTH, HEIGHT))[::-1])
    scan = paper - small * pressure * rng.uniform(130, 235)
    scan += rng.normal(0, rng.uniform(0.5, 5), scan.shape)
    specks = rng.random(scan.shape) < rng.uniform(0, 6e-4)
    scan[specks] -= rng.uniform(20, 120)
    return np.clip(np.rint(scan), 0, 255).astype(np.uint8)


def draw_image(part: Part, row: int) -> Gray:
    """Return image `row` of a part."""
    rng = np.random.default_rng([part.seed, row])
    font = part.fonts[int(rng.integers(len(part.fonts)))]
    return lay_on_paper(write_by_hand(draw_glyph(part.graphemes[row].text, font, rng), rng), rng)


def _draw_block(part: Part, rows: range) -> Gray:
    cv2.setNumThreads(1)
    return np.stack([draw_image(part, row) for row in rows])


def draw_rows(pool: ProcessPoolExecutor, part: Part, rows: range) -> Iterator[Gray]:
    """Yield (n, 137, 236) blocks of these images, drawn by all cores."""
    blocks = [range(start, min(start + BLOCK, rows.stop)) for start in range(rows.start, rows.stop, BLOCK)]
    few = Part(prefix=part.prefix, graphemes=part.graphemes, fonts=part.fonts, seed=part.seed)
    yield from pool.map(_draw_block, [few] * len(blocks), blocks)


def write_shards(pool: ProcessPoolExecutor, folder: Path, kind: str, part: Part) -> None:
    """Write a part as four wide parquet files, a row group a block: bounded memory however many images there are."""
    import pyarrow as pa
    from pyarrow import parquet

    number = len(part.graphemes)
    schema = pa.schema([("image_id", pa.string()), *[(str(i), pa.uint8()) for i in range(HEIGHT * WIDTH)]])
    with tqdm(total=number, desc=f"{folder.name} {kind}", disable=number < BLOCK) as bar:
        for shard, rows in enumerate(np.array_split(np.arange(number), SHARDS)):
            path = folder / f"{kind}_image_data_{shard}.parquet"
            temporary = path.with_suffix(".part")
            start = int(rows[0]) if len(rows) else 0
            with parquet.ParquetWriter(temporary, schema, compression="snappy", version="1.0") as writer:
                for images in draw_rows(pool, part, range(start, start + len(rows))):
                    ids = pa.array([f"{part.prefix}_{start + row}" for row in range(len(images))])
                    pixels = np.ascontiguousarray(images.reshape(len(images), -1).T)
                    writer.write_table(pa.table([ids, *[pa.array(column) for column in pixels]], schema=schema))
                    start += len(images)
                    bar.update(len(images))
            temporary.rename(path)


def _write_csv(path: Path, header: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_test(folder: Path, part: Part, *, solved: bool) -> None:
    """Write the lists of a test, and its solution."""
    ids = [f"{part.prefix}_{row}" for row in range(len(part.graphemes))]
    pairs = [(name, head) for name in ids for head in ROW_ORDER]
    _write_csv(
        folder / "test.csv",
        ["row_id", "image_id", "component"],
        ([f"{name}_{head}", name, head] for name, head in pairs),
    )
    _write_csv(folder / "sample_submission.csv", ["row_id", "target"], ([f"{n}_{h}", 0] for n, h in pairs))
    if solved:
        places = {head: place for place, head in enumerate(HEADS)}
        answers = (
            (name, head, part.graphemes[row].classes[places[head]])
            for row, name in enumerate(ids)
            for head in ROW_ORDER
        )
        _write_csv(folder / "solution.csv", ["row_id", "target"], ([f"{n}_{h}", c] for n, h, c in answers))


def write_labels(folder: Path, part: Part, components: dict[str, list[str]]) -> None:
    """Write train.csv and class_map.csv."""
    rows = ([f"{part.prefix}_{row}", *one.classes, one.text] for row, one in enumerate(part.graphemes))
    _write_csv(folder / "train.csv", ["image_id", *HEADS, "grapheme"], rows)
    classes = ([head, place, name] for head, names in components.items() for place, name in enumerate(names))
    _write_csv(folder / "class_map.csv", ["component_type", "label", "component"], classes)


def plan_parts(options: argparse.Namespace) -> tuple[Part, Part, Part, dict[str, list[str]], dict[str, int]]:
    """Return train, the visible and the hidden test, the components, and how many graphemes are seen and unseen."""
    rng = np.random.default_rng(options.seed)
    graphemes, components = read_graphemes(options.graphemes)
    unseen = np.array(split_unseen(graphemes, options.unseen, rng))
    shares = draw_shares(graphemes, options.skew, rng)
    seen_shares = np.where(unseen, 0, shares) / shares[~unseen].sum()
    fonts, hidden = find_fonts(TRAIN_FONTS), find_fonts((*TRAIN_FONTS, *HIDDEN_FONTS))
    first = [int(np.flatnonzero(~unseen)[place]) for place in range(int((~unseen).sum()))]  # each of them once
    drawn = rng.choice(len(graphemes), max(0, options.train - len(first)), p=seen_shares).tolist()
    order = rng.permutation([*first, *drawn][: options.train]).tolist()

    def part(prefix: str, places: Sequence[int], own_fonts: tuple[Path, ...], number: int) -> Part:
        chosen = tuple(graphemes[place] for place in places)
        return Part(prefix=prefix, graphemes=chosen, fonts=own_fonts, seed=10 * options.seed + number)

    test = rng.choice(len(graphemes), options.test, p=shares).tolist()
    dummy = rng.choice(len(graphemes), DUMMY, p=seen_shares).tolist()
    counts = {"seen graphemes": int((~unseen).sum()), "unseen graphemes": int(unseen.sum())}
    counts["hidden images of unseen graphemes"] = int(unseen[test].sum())
    return (
        part("Train", order, fonts, 1),
        part("Test", dummy, hidden, 2),
        part("Test", test, hidden, 3),
        components,
        counts,
    )


def draw_montage(part: Part, path: Path, *, rows: int = 10, columns: int = 8) -> None:
    """Write a sheet of the part's first images, to be looked at."""
    images = [draw_image(part, row) for row in range(min(rows * columns, len(part.graphemes)))]
    images += [np.full((HEIGHT, WIDTH), 255, np.uint8)] * (-len(images) % columns)
    lines = [np.hstack(images[at : at + columns]) for at in range(0, len(images), columns)]
    cv2.imwrite(str(path), np.vstack(lines))


def main() -> None:
    """Render what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphemes", type=Path, help="bengali_graphemes.tsv: grapheme, root, vowel, modifier")
    parser.add_argument("out", type=Path, help="gets data/ and hidden/")
    parser.add_argument("--train", type=int, default=20_000, help="train images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=8_000, help="hidden test images (default: %(default)s)")
    parser.add_argument(
        "--unseen", type=float, default=0.35, help="share of graphemes train lacks (default: %(default)s)"
    )
    parser.add_argument("--skew", type=float, default=0.7, help="power of the rank (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--montage", type=Path, help="only write a sheet of train images, to look at")
    options = parser.parse_args()
    train, dummy, hidden, components, counts = plan_parts(options)
    if options.montage:
        draw_montage(train, options.montage)
        return
    data, beside = options.out / "data", options.out / "hidden"
    for folder in (data, beside):
        folder.mkdir(parents=True, exist_ok=True)
    write_labels(data, train, components)
    write_test(data, dummy, solved=False)
    write_test(beside, hidden, solved=True)
    with ProcessPoolExecutor() as pool:
        write_shards(pool, data, "train", train)
        write_shards(pool, data, "test", dummy)
        write_shards(pool, beside, "test", hidden)
    shown = {head: np.bincount([one.classes[place] for one in train.graphemes]) for place, head in enumerate(HEADS)}
    counts |= {f"{head}, most and fewest images": [int(n.max()), int(n.min())] for head, n in shown.items()}  # type: ignore[misc]
    print(json.dumps({"train": len(train.graphemes), "hidden": len(hidden.graphemes), **counts}, indent=1))


if __name__ == "__main__":
    main()
