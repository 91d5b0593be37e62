"""Images that are there twice: with equal pixels, or nearly so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.findings import Finding, Split, load_findings
from kaggle_kit.audit.hashing import close_pairs, perceptual_hashes, sign_hashes
from kaggle_kit.audit.likeness import Vectors, aligned_unlikeness, unlikeness, usual_unlikeness
from kaggle_kit.audit.pictures import Bools, Images
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
RADIUS = 8  # bits of the perceptual hash
CROPS = (0.025, 0.05)
# Near duplicates are that alike, and ten times more alike than an image is to those of its kind: planted copies (JPEG
# again, brighter, cropped by 7 %, mirrored, smaller) among photos, glyphs and clothes lay within, others outside.
# Of more images more are alike by chance: beyond 5,000 a pair must stand out further.
UNLIKE, UNLIKE_USUAL = 0.05, 0.1
MANY, HARDER = 5_000, 0.25
ALIGNABLE, ALIGNABLE_USUAL = 0.35, 0.8  # beyond, aligning has never made a pair alike
MAX_ALIGNED = 40_000
GLANCE, MAX_COMPARED = 12, 300_000  # pixels a side at first, and how many pairs are then compared whole
LEAST_SPREAD = 3.0  # levels: thumbnails with less show nothing that could be compared
BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that show the same.

    Attributes:
        kind: `exact`: all pixels are equal; `near`: at least one image differs a little.
        number: Unique among all groups; the `group` of the findings.
        rows: Rows of `Images`, ascending: two or more.
        similarity: 1.0 for equal pixels, else the smallest likeness of a pair that was compared: a correlation.
        how: What relates near duplicates, in words: "mirrored", "by embeddings", or empty.
        crosses: Whether images of train and test are in it.
        contradicts: Heads whose labels differ among its train images.
    """

    kind: Literal["exact", "near"]
    number: int
    rows: tuple[int, ...]
    similarity: float = 1.0
    how: str = ""
    crosses: bool = False
    contradicts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """All groups: exact ones first, then near ones. A near group holds the exact twins of its images too.

    Attributes:
        groups: Exact ones, then near ones, each sort with contradicting, then crossing, then large groups first.
        group_of: (N,) a number for each row of `Images`, equal for exact and near duplicates alike: the smallest row of
            its kind. An image without a duplicate has its own row.
        near_searched: Whether near duplicates were looked for.
        not_aligned: How many pairs were too many to be compared with one of them shifted or cropped.
    """

    groups: tuple[Group, ...]
    group_of: Ints
    near_searched: bool = True
    not_aligned: int = 0

    def of_kind(self, kind: Literal["exact", "near"]) -> list[Group]:
        """Return the groups of one kind."""
        return [group for group in self.groups if group.kind == kind]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Near duplicates, pair by pair.

    Attributes:
        rows: (P, 2) rows.
        unlike: (P,) 1 minus their correlation.
        how: (P,) as in `Group.how`.
        num_compared: How many were compared for it.
        not_aligned: How many were left out because there were too many to align.
    """

    rows: Ints
    unlike: Floats
    how: Text
    num_compared: int = 0
    not_aligned: int = 0


def find_duplicates(
    images: Images,
    labels: Labels,
    *,
    embeddings: Floats | None = None,
    leave_out: Bools | None = None,
    near: bool = True,
    seed: int = 0,
) -> Duplicates:
    """Find images with equal pixels and near duplicates, in train and test together.

    Args:
        images: All images.
        labels: Of the train images that have some.
        embeddings: (N, D) of a model, rows of NaN where there is none: what they find alike is a near duplicate too.
        leave_out: (N,) True for images that were dropped already: they equal none.
        near: Whether to look for near duplicates.
        seed: Of what is sampled.
    """
    usable = images.readable if leave_out is None else images.readable & ~leave_out
    twins = _equal_numbers(images, usable)
    found = [_no_pairs()]
    if near:
        firsts = np.flatnonzero((twins == np.arange(len(images))) & usable)
        shown = _comparable(images, firsts)
        found += [_alike_thumbnails(images.thumbnails, shown, mirrored=side, seed=seed) for side in (False, True)]
        if embeddings is not None:
            found.append(_alike_embeddings(embeddings, firsts, seed))
    joined = _joined(found)
    group_of = _connect(twins, joined.rows)
    groups = [*_exact_groups(images, twins), *_near_groups(twins, group_of, joined)]
    marked = [_marked(group, images, labels) for group in groups]
    order = sorted(marked, key=lambda g: (g.kind, -len(g.contradicts), -int(g.crosses), -len(g.rows), g.rows))
    numbered = tuple(dataclasses.replace(group, number=number) for number, group in enumerate(order))
    return Duplicates(
        groups=numbered,
        group_of=group_of,
        near_searched=near,
        not_aligned=joined.not_aligned,
    )


def duplicate_findings(duplicates: Duplicates, images: Images, labels: Labels, task: Task) -> Iterator[Finding]:
    """Yield a finding for each image of each group: what it equals, and what is wrong with that."""
    label_rows = rows_of(images.id, labels.ids)
    for group in duplicates.groups:
        head = group.contradicts[0] if group.contradicts else ""
        for row in group.rows:
            others = [f"{images.id[other]} ({images.split[other]})" for other in group.rows if other != row]
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3:,} more" if len(others) > 3 else "")
            like = "the same pixels as" if group.kind == "exact" else f"nearly the same{_how(group)} as"
            notes = "; across train and test" * group.crosses
            notes += f"; labels contradict each other in {', '.join(group.contradicts)}" * bool(group.contradicts)
            known = label_rows[row] if images.split[row] == "train" else -1
            yield Finding(
                kind="exact_duplicate" if group.kind == "exact" else "near_duplicate",
                id=str(images.id[row]),
                split=_split(images, row),
                group=group.number,
                head=head,
                label=label_of(labels, task, head, int(known)) if head and known >= 0 else "",
                score=group.similarity + group.crosses + 2 * bool(group.contradicts),
                detail=f"{like} {shown}{notes}",
            )


def duplicate_groups(folder: Path, ids: Text) -> Ints:
    """Return (N,) numbers, equal for train images that an audit found to be exact or near duplicates.

    Args:
        folder: Where an audit lies.
        ids: (N,) train image ids; those that the audit does not name have numbers of their own.

    Raises:
        DataError: When there is no audit in the folder.
    """
    kinds = ("exact_duplicate", "near_duplicate")
    found = [one for one in load_findings(folder / "findings.parquet") if one.kind in kinds and one.split == "train"]
    rows = rows_of(np.array([one.id for one in found], np.str_), ids) if found else np.zeros(0, np.int64)
    first: dict[int, int] = {}
    pairs = [(first.setdefault(one.group, row), row) for one, row in zip(found, rows.tolist(), strict=True) if row >= 0]
    return _connect(np.arange(len(ids)), np.array(pairs, np.int64).reshape(-1, 2))


def torn_groups(groups: Iterable[Group], images: Images, folds: Folds) -> int:
    """Return how many groups have train images in several folds, or in one while others train every fold."""
    train = images.rows("train")
    rows = rows_of(images.id[train], folds.ids)
    fold = {int(row): int(folds.fold[place]) for row, place in zip(train, rows, strict=True) if place >= 0}
    return sum(len({fold[row] for row in group.rows if row in fold}) > 1 for group in groups)


def label_of(labels: Labels, task: Task, head: str, row: int) -> str:
    """Return a label as files write it."""
    known = task.heads[head]
    value = labels.classes[head][row]
    if np.ndim(value):
        return known.separator.join(known.class_values[place] for place in np.flatnonzero(value))
    return known.class_values[int(value)]


def _how(group: Group) -> str:
    return f" ({group.similarity:.1%} alike{', ' + group.how if group.how else ''})"


def _split(images: Images, row: int) -> Split:
    return "train" if images.split[row] == "train" else "test"


def _equal_numbers(images: Images, usable: Bools) -> Ints:
    """Return (N,) the first usable row with the same pixels; an image's own row where it is not usable."""
    numbers, rows = np.arange(len(images)), np.flatnonzero(usable)
    _, first, inverse = np.unique(images.pixel_hash[rows], return_index=True, return_inverse=True)
    numbers[rows] = rows[first[inverse.ravel()]]
    return numbers


def _comparable(images: Images, rows: Ints) -> Ints:
    """Return those of these rows whose thumbnails show anything."""
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    spread = [images.thumbnails[block].reshape(len(block), -1).std(axis=1) for block in blocks]
    return rows[np.concatenate(spread) >= LEAST_SPREAD] if spread else rows


def _alike_thumbnails(thumbnails: npt.NDArray[np.uint8], rows: Ints, *, mirrored: bool, seed: int) -> Pairs:
    """Return the pairs of these rows whose thumbnails are alike, as they are or with one moved a little."""
    if len(rows) < 2:
        return _no_pairs()
    shown = thumbnails[rows]
    hashes = perceptual_hashes(shown)
    queries = [perceptual_hashes(shown, mirrored=mirrored)]
    queries += [] if mirrored else [perceptual_hashes(shown, cropped=share) for share in CROPS]
    pairs = _each_once([close_pairs(query, hashes, radius=RADIUS) for query in queries], len(rows))
    if not len(pairs):
        return _no_pairs()
    num_compared, pairs = len(pairs), _alike_at_a_glance(shown, pairs, mirrored=mirrored, seed=seed)
    unlike, usual = unlikeness(shown, pairs, mirrored=mirrored), _usual(shown, pairs, seed)
    alike = _are_alike(unlike, usual, len(rows))
    left = np.flatnonzero(~alike & (unlike < ALIGNABLE) & (unlike < ALIGNABLE_USUAL * usual))
    left = left[np.argsort(unlike[left] / usual[left], kind="stable")]
    tried = left[:MAX_ALIGNED]
    unlike[tried] = np.minimum(unlike[tried], aligned_unlikeness(shown, pairs[tried], mirrored=mirrored))
    alike[tried] = _are_alike(unlike[tried], usual[tried], len(rows))
    return Pairs(
        rows=rows[pairs[alike]],
        unlike=unlike[alike],
        how=np.full(int(alike.sum()), "mirrored" if mirrored else ""),
        num_compared=num_compared,
        not_aligned=len(left) - len(tried),
    )


def _alike_at_a_glance(shown: npt.NDArray[np.uint8], pairs: Ints, *, mirrored: bool, seed: int) -> Ints:
    """Return the pairs that are alike when seen small, which is quickly told; the most alike where there are many."""
    side = shown.shape[1] // GLANCE
    small = shown.reshape(len(shown), GLANCE, side, GLANCE, side).mean(axis=(2, 4), dtype=np.float32)
    unlike, usual = unlikeness(small, pairs, mirrored=mirrored), _usual(small, pairs, seed)
    left = np.flatnonzero((unlike < ALIGNABLE) & (unlike < ALIGNABLE_USUAL * usual))
    if len(left) > MAX_COMPARED:
        left = left[np.argpartition(unlike[left] / usual[left], MAX_COMPARED)[:MAX_COMPARED]]
    return pairs[np.sort(left)]


def _alike_embeddings(embeddings: Floats, rows: Ints, seed: int) -> Pairs:
    """Return the pairs of these rows that a model finds alike, by the same rule."""
    rows = rows[np.isfinite(embeddings[rows]).all(axis=1)]
    if len(rows) < 2:
        return _no_pairs()
    shown = embeddings[rows] - embeddings[rows].mean(axis=0)
    hashes = sign_hashes(shown, seed=seed)
    pairs = _each_once([close_pairs(hashes, hashes, radius=RADIUS)], len(rows))
    if not len(pairs):
        return _no_pairs()
    unlike = unlikeness(shown, pairs)
    alike = _are_alike(unlike, _usual(shown, pairs, seed), len(rows))
    how = np.full(int(alike.sum()), "by embeddings")
    return Pairs(rows=rows[pairs[alike]], unlike=unlike[alike], how=how, num_compared=len(pairs))


def _each_once(found: list[Ints], num_rows: int) -> Ints:
    """Return each pair once, its smaller row first."""
    pairs = np.concatenate(found)
    return np.column_stack(np.divmod(np.unique(pairs.min(axis=1) * num_rows + pairs.max(axis=1)), num_rows))


def _are_alike(unlike: Floats, usual: Floats, num_images: int) -> Bools:
    share = UNLIKE_USUAL * min(1.0, (MANY / num_images) ** HARDER)
    return np.asarray((unlike < UNLIKE) & (unlike < share * usual))


def _usual(shown: Vectors, pairs: Ints, seed: int) -> Floats:
    """Return (P,) how unlike the images of a pair usually are to those of their kind: the smaller of the two."""
    asked = np.unique(pairs)
    usual = np.ones(len(shown), np.float32)
    usual[asked] = usual_unlikeness(shown, asked, np.arange(len(shown)), seed=seed)
    return np.asarray(np.maximum(usual[pairs].min(axis=1), 1e-6))


def _no_pairs() -> Pairs:
    return Pairs(rows=np.zeros((0, 2), np.int64), unlike=np.zeros(0, np.float32), how=np.zeros(0, np.str_))


def _joined(found: list[Pairs]) -> Pairs:
    return Pairs(
        rows=np.concatenate([part.rows for part in found]),
        unlike=np.concatenate([part.unlike for part in found]),
        how=np.concatenate([part.how for part in found]),
        num_compared=sum(part.num_compared for part in found),
        not_aligned=sum(part.not_aligned for part in found),
    )


def _connect(numbers: Ints, pairs: Ints) -> Ints:
    """Return (N,) the smallest row that each row is connected with, by equal numbers or a chain of pairs."""
    parent = list(range(len(numbers)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first = {number: row for row, number in reversed(list(enumerate(numbers.tolist())))}
    for row, number in enumerate(numbers.tolist()):
        parent[row] = first[number]
    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(row) for row in range(len(numbers))], np.int64)


def _members(numbers: Ints) -> Iterator[Ints]:
    """Yield the rows of each number that several have, ascending."""
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    yield from (rows for rows in np.split(order, cuts) if len(rows) > 1)


def _exact_groups(images: Images, twins: Ints) -> Iterator[Group]:
    for rows in _members(twins):
        yield Group(kind="exact", number=-1, rows=tuple(rows.tolist()))


def _near_groups(twins: Ints, group_of: Ints, pairs: Pairs) -> Iterator[Group]:
    worst: dict[int, float] = {}
    how: dict[int, set[str]] = {}
    for (one, _), unlike, way in zip(pairs.rows.tolist(), pairs.unlike.tolist(), pairs.how.tolist(), strict=True):
        number = int(group_of[one])
        worst[number] = max(worst.get(number, 0.0), unlike)
        how.setdefault(number, set()).add(way)
    for rows in _members(group_of):
        number = int(group_of[rows[0]])
        if len(np.unique(twins[rows])) > 1:
            ways = ", ".join(sorted(how[number] - {""})) if "" not in how[number] else ""
            yield Group(kind="near", number=-1, rows=tuple(rows.tolist()), similarity=1 - worst[number], how=ways)


def _marked(group: Group, images: Images, labels: Labels) -> Group:
    """Return the group with what is wrong about it said."""
    rows = np.array(group.rows)
    train = rows[images.split[rows] == "train"]
    known = rows_of(images.id[train], labels.ids)
    known = known[known >= 0]
    contradicts = [head for head, classes in labels.classes.items() if len(np.unique(classes[known], axis=0)) > 1]
    crosses = 0 < len(train) < len(rows)
    return dataclasses.replace(group, crosses=crosses, contradicts=tuple(contradicts))
