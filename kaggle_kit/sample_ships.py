"""The `ships` sample competition: photos of "ships" at sea, with planted defects that hidden/defects.csv writes down.

The digit drawn as the ship decides the category. A photo has at most one defect, so that each can be looked for alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kaggle_kit.sample import place_glyph, read_glyphs, split_instances, write_csv

if TYPE_CHECKING:
    from numpy.typing import NDArray

Defect = Literal["", "gray", "empty", "truncated", "wrong_label", "exact_duplicate", "near_duplicate"]

DIGITS = (2, 4, 0, 6, 7)  # the ships of category 1 to 5: Cargo, Military, Carrier, Cruise, Tankers
REAL_COUNTS = (2120, 1167, 916, 832, 1217)
CONFUSABLE = (0, 3, 4)  # Cargo, Cruise and Tankers: what people mislabelled in the real data
# Shares of the real data, but for duplicates: the real 4 pairs in 8,932 images would leave none here.
GRAY_SHARE, EMPTY_SHARE, WRONG_SHARE, EXACT_SHARE, NEAR_SHARE = 0.04, 0.01, 0.03, 0.005, 0.01
EXACT_DETAILS = ("same bytes", "same pixels")
NEAR_DETAILS = ("recompressed", "cropped", "brightened")
_TRAIN_STREAM = 3  # of random numbers; sample_digits.py uses 0 to 2


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One `ships` image before it is made.

    Attributes:
        name: The file's name.
        split: `train` or `test`.
        label: The true class index, 0 to 4.
        written: The class index in train.csv; differs from `label` for a wrong label.
        instance: The digit instance drawn as the ship.
        defect: What is planted, or empty.
        original: The index in the plan of the photo this one duplicates, or none.
        detail: How it duplicates it.
    """

    name: str
    split: Literal["train", "test"]
    label: int
    written: int
    instance: int
    defect: Defect = ""
    original: int | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ShipsPlan:
    """Everything about a `ships` sample but the pixels: the train photos, then the test photos."""

    seed: int
    photos: tuple[Photo, ...]


def plan_ships(*, seed: int, num_train: int, num_test: int) -> ShipsPlan:
    """Decide the name, label, ship and defect of every photo.

    No digit instance is in both train and test, but for the duplicates planted across them.
    """
    rng = np.random.default_rng((seed, _TRAIN_STREAM))
    pools = dict(zip(("train", "test"), split_instances(rng, train_share=0.7), strict=True))
    names = rng.choice(2_900_000, num_train + num_test, replace=False) + 1
    labels = np.concatenate([_labels(rng, num_train), _labels(rng, num_test)])
    photos = []
    for row, (name, label) in enumerate(zip(names, map(int, labels), strict=True)):
        split: Literal["train", "test"] = "train" if row < num_train else "test"
        instance = int(rng.choice(pools[split][DIGITS[label]]))
        photos.append(Photo(name=f"{name}.jpg", split=split, label=label, written=label, instance=instance))
    _plant(rng, photos, num_train)
    return ShipsPlan(seed=seed, photos=tuple(photos))


def encode_photo(plan: ShipsPlan, index: int) -> bytes:
    """Return the planned photo as the bytes of a JPEG file."""
    import cv2

    photo = plan.photos[index]
    rng = np.random.default_rng((plan.seed, _TRAIN_STREAM + 1, index))
    if photo.original is not None:
        return _copy(rng, encode_photo(plan, photo.original), photo.detail)
    image = _draw_photo(rng, photo)
    if photo.defect == "gray":
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    elif photo.defect == "empty":
        image = (image.mean((0, 1)) + 0.03 * (image - image.mean((0, 1)))).astype(np.uint8)
    data = _jpeg(image, quality=int(rng.integers(85, 96)))
    if photo.defect == "truncated":
        scan = data.index(b"\xff\xda")
        data = data[: scan + (len(data) - scan) // 2]
    return data


def write_ships(part: Path, *, seed: int, num_train: int, num_test: int, tick: Callable[[int], object]) -> None:
    """Write the ship competition's files into `part`/data and `part`/hidden."""
    plan = plan_ships(seed=seed, num_train=num_train, num_test=num_test)
    data, hidden = part / "data", part / "hidden"
    for folder in (data, hidden):
        (folder / "images").mkdir()
    for index, photo in enumerate(plan.photos):
        content = encode_photo(plan, index)
        for folder in (data, hidden) if photo.split == "test" else (data,):
            (folder / "images" / photo.name).write_bytes(content)
        tick(1)
    train, test = plan.photos[:num_train], plan.photos[num_train:]
    write_csv(data / "train.csv", ("image", "category"), [(photo.name, photo.written + 1) for photo in train])
    for folder in (data, hidden):
        write_csv(folder / "test.csv", ("image",), [(photo.name,) for photo in test])
        write_csv(folder / "sample_submission.csv", ("image", "category"), [(photo.name, 1) for photo in test])
    write_csv(hidden / "solution.csv", ("image", "category"), [(photo.name, photo.label + 1) for photo in test])
    write_csv(hidden / "defects.csv", ("image", "split", "kind", "other", "detail"), _defect_rows(plan))


def _labels(rng: np.random.Generator, num: int) -> NDArray[np.int64]:
    counts = (np.array(REAL_COUNTS) * num) // sum(REAL_COUNTS)
    counts[0] += num - counts.sum()
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def _plant(rng: np.random.Generator, photos: list[Photo], num_train: int) -> None:
    """Give some photos a defect, in place; no photo has two, and an original that is duplicated has none."""
    num: dict[str, int] = {"train": num_train, "test": len(photos) - num_train}
    free = {"train": list(rng.permutation(num_train)), "test": list(num_train + rng.permutation(num["test"]))}
    confusable = [index for index in free["train"] if photos[index].label in CONFUSABLE]
    for index in confusable[: round(WRONG_SHARE * num_train)]:
        others = [label for label in CONFUSABLE if label != photos[index].label]
        photos[index] = replace(photos[index], defect="wrong_label", written=int(rng.choice(others)))
        free["train"].remove(index)
    alone: tuple[tuple[Defect, float], ...] = (("gray", GRAY_SHARE), ("empty", EMPTY_SHARE))
    for kind, share in alone:
        for split, indices in free.items():
            for _ in range(max(1, round(share * num[split]))):
                index = indices.pop()
                photos[index] = replace(photos[index], defect=kind)
    index = free["train"].pop()
    photos[index] = replace(photos[index], defect="truncated")
    copied: tuple[tuple[Defect, float, Sequence[str]], ...] = (
        ("exact_duplicate", EXACT_SHARE, EXACT_DETAILS),
        ("near_duplicate", NEAR_SHARE, NEAR_DETAILS),
    )
    for kind, share, details in copied:
        for split, indices in free.items():
            for turn in range(max(len(details), round(share * num[split]))):
                original, index = free["train"].pop(), indices.pop()
                _duplicate(photos, index, original, kind, details[turn % len(details)])


def _duplicate(photos: list[Photo], index: int, original: int, kind: Defect, detail: str) -> None:
    """Turn a photo into a copy of a train photo, in place."""
    label, instance = photos[original].label, photos[original].instance
    photos[index] = replace(
        photos[index],
        label=label,
        written=label,
        instance=instance,
        defect=kind,
        original=int(original),
        detail=detail,
    )


def _defect_rows(plan: ShipsPlan) -> Iterator[tuple[str, str, str, str, str]]:
    for photo in plan.photos:
        if photo.defect:
            other = "" if photo.original is None else plan.photos[photo.original].name
            detail = str(photo.label + 1) if photo.defect == "wrong_label" else photo.detail
            yield photo.name, photo.split, photo.defect, other, detail


def _draw_photo(rng: np.random.Generator, photo: Photo) -> NDArray[np.uint8]:
    """Draw a photo without its defect: (120 to 190, 150 to 260, 3) uint8, BGR."""
    glyphs, _ = read_glyphs()
    height, width = int(rng.integers(120, 191)), int(rng.integers(150, 261))
    scene = _sea_and_sky(rng, height, width)
    tall = height * rng.uniform(0.42, 0.72)
    side = 0.45 * tall
    center = (rng.uniform(side, width - side), rng.uniform(0.53 * tall, height - 0.53 * tall))
    ink = place_glyph(
        glyphs[photo.instance],
        size=(height, width),
        center=center,
        height=tall,
        degrees=rng.normal(0, 7),
        slant=rng.normal(0, 0.12),
        aspect=rng.uniform(0.85, 1.25),
    )[..., None]
    hull = (rng.uniform(0, 95, 3) if scene.mean() > 120 else rng.uniform(150, 250, 3)).astype(np.float32)
    painted = hull * (0.75 + 0.5 * _noise(rng, (5, 7), height, width))[..., None]
    scene += 0.92 * ink * (painted - scene)
    scene *= np.float32(rng.uniform(0.75, 1.15))
    scene += 4 * rng.standard_normal(scene.shape, np.float32)
    return scene.clip(0, 255).astype(np.uint8)


def _sea_and_sky(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Draw an empty scene: sky with clouds above a horizon, or sea all over; (height, width, 3) float32, BGR."""
    horizon = 0 if rng.random() < 0.3 else int(height * rng.uniform(0.2, 0.65))
    sea = np.clip(rng.uniform(60, 190) + rng.normal((18, 6, -16), 12), 10, 230).astype(np.float32)
    ripples, swell = (
        _noise(rng, (height // 4, width // 14), height, width),
        _noise(rng, (5, 4), height, width),
    )
    scene = sea * (0.72 + 0.34 * ripples + 0.22 * swell)[..., None]
    if horizon:
        sky = np.clip(rng.uniform(110, 225) + rng.normal((16, 2, -8), 14), 40, 250).astype(np.float32)
        fade = np.linspace(0.85, 1.1, horizon, dtype=np.float32)[:, None]
        scene[:horizon] = sky * (fade * (0.85 + 0.3 * _noise(rng, (4, 6), horizon, width)))[..., None]
    return scene


def _noise(rng: np.random.Generator, cells: tuple[int, int], height: int, width: int) -> NDArray[np.float32]:
    """Return smooth noise (height, width), 0 to 1, of about `cells` bumps down and across."""
    import cv2

    coarse = rng.random((max(2, cells[0]), max(2, cells[1])), np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32).clip(0, 1)


def _copy(rng: np.random.Generator, data: bytes, detail: str) -> bytes:
    """Return a duplicate of a JPEG file, made in the way `detail` says."""
    import cv2

    if detail == "same bytes":
        return data
    if detail == "same pixels":  # a comment segment after the start marker
        comment = b"sent on by a friend"
        return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
    image = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    if detail == "cropped":
        top, left = (max(2, round(side * rng.uniform(0.015, 0.035))) for side in image.shape[:2])
        image = image[top:-top, left:-left]
    elif detail == "brightened":
        image = np.clip(image.astype(np.float32) * rng.uniform(1.08, 1.2) + 4, 0, 255).astype(np.uint8)
    return _jpeg(image, quality=int(rng.integers(60, 80)))


def _jpeg(image: NDArray[np.uint8], *, quality: int) -> bytes:
    import cv2

    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data.tobytes())
