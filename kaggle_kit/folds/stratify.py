"""Dealing images, or whole groups of them, into bins so that every bin gets its share of every class of every head.

A *tag* is a class of a head: the column of the one-hot labels that is set; every image has one tag a head. How far
bins are from their shares is the sum over tags and bins of (found - expected)^2 / expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.progress import progress_bar

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_TRIES = 20_000  # images or groups looked at for a swap, in one call
_CANDIDATES = 96  # partners looked at for each
_MOST_MOVES = 200  # of images or groups whose class would else be untrained
_MOST_UNITS = 50  # looked at for one of them
_GREEDY_STEPS = 20_000  # groups placed in all restarts together


def one_hot_columns(columns: Ints) -> Ints:
    """Return (N, columns) tags, unique across columns, of (N, columns) class indices."""
    if not len(columns):
        return columns
    offsets = np.cumsum([0, *(columns.max(axis=0)[:-1] + 1)])
    return np.asarray(columns + offsets, np.int64)


def deal(tags: Ints, shares: Sequence[float], rng: np.random.Generator) -> Ints:
    """Return (N,) bins by iterative stratification, rarest tag first.

    Args:
        tags: (N, heads), unique across heads.
        shares: The bins' shares of the images; they sum to 1.
        rng: Breaks ties.

    Source: Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data (2011). Ties are broken by what
    the bins still want of the image's other tags, and swaps mend what the greedy order left.
    """
    num_tags = int(tags.max()) + 1
    totals = np.bincount(tags.ravel(), minlength=num_tags)
    wanted = (totals[:, None] * np.asarray(shares)).tolist()  # how many more images of a tag a bin should get
    room = (len(tags) * np.asarray(shares)).tolist()
    rarity = (1 / np.maximum(totals, 1)).tolist()
    bins = np.full(len(tags), -1, np.int64)
    remaining = totals.copy()
    rows_by_tag = np.argsort(tags.ravel(), kind="stable") // tags.shape[1]
    ends = np.cumsum(totals)
    with progress_bar(len(tags), "folds", unit="image") as bar:
        for _ in range(num_tags):
            tag = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
            if not remaining[tag]:
                break
            mine = rows_by_tag[ends[tag] - totals[tag] : ends[tag]]
            rows = rng.permutation(mine[bins[mine] < 0])
            order = rng.permutation(len(shares)).tolist()
            for row, own in zip(rows.tolist(), tags[rows].tolist(), strict=True):
                choice = _neediest(tag, own, order, wanted, room, rarity)
                bins[row] = choice
                room[choice] -= 1
                for other in own:
                    wanted[other][choice] -= 1
            remaining -= np.bincount(tags[rows].ravel(), minlength=num_tags)
            bar.update(len(rows))
    return _swap_images(tags, bins, shares, rng)


def _neediest(
    tag: int, own: list[int], order: list[int], wanted: list[list[float]], room: list[float], rarity: list[float]
) -> int:
    """Return the bin that wants most of this tag; among equals, of the image's other tags; then the emptiest."""
    needs = wanted[tag]
    most = max(needs) - 1e-9
    best, best_key = order[0], (-np.inf, -np.inf)
    for place in order:
        if needs[place] < most:
            continue
        key = (sum(wanted[other][place] * rarity[other] for other in own), room[place])
        if key > best_key:
            best, best_key = place, key
    return best


def _swap_images(tags: Ints, bins: Ints, shares: Sequence[float], rng: np.random.Generator) -> Ints:
    """Swap images between bins while that brings the bins nearer to their shares."""
    found = _counts(tags, bins, len(shares))
    expected = np.maximum(found.sum(axis=1, keepdims=True) * np.asarray(shares), 1e-9)
    excess = found - expected
    bins = bins.copy()
    for row in rng.permutation(len(tags))[:_TRIES].tolist():
        here, own = int(bins[row]), tags[row]
        others = rng.integers(len(tags), size=_CANDIDATES)
        there, theirs = bins[others], tags[others]  # (candidates,), (candidates, heads)
        changes = (1 - 2 * excess[own, here]) / expected[own, here] + (1 + 2 * excess[own, there[:, None]]) / expected[
            own, there[:, None]
        ]
        changes += (1 + 2 * excess[theirs, here]) / expected[theirs, here] + (
            1 - 2 * excess[theirs, there[:, None]]
        ) / expected[theirs, there[:, None]]
        delta = np.where(theirs == own, 0, changes).sum(axis=1)
        delta[there == here] = 0
        best = int(np.argmin(delta))
        if delta[best] < -1e-9:
            partner, place = int(others[best]), int(there[best])
            excess[own, here] -= 1
            excess[own, place] += 1
            excess[tags[partner], place] -= 1
            excess[tags[partner], here] += 1
            bins[row], bins[partner] = place, here
    return bins


def _counts(tags: Ints, bins: Ints, num_bins: int, num_tags: int | None = None) -> Floats:
    """Return (tags, bins): how many images of a tag lie in a bin."""
    num_tags = int(tags.max()) + 1 if num_tags is None else num_tags
    flat = np.bincount((tags * num_bins + bins[:, None]).ravel(), minlength=num_tags * num_bins)
    return flat.reshape(num_tags, num_bins).astype(np.float64)


def deal_groups(
    tags: Ints, groups: Ints, shares: Sequence[float], rng: np.random.Generator, *, size_weight: float = 1.0
) -> Ints:
    """Return (N,) bins in which no group is divided, every bin near its share of every tag and of all images.

    Args:
        tags: (N, heads), unique across heads.
        groups: (N,) numbers from 0 without gaps.
        shares: The bins' shares of the images; they sum to 1.
        rng: Orders equals, and makes the restarts differ.
        size_weight: How much the number of images in a bin matters, against that of one head's tags.

    Groups are placed largest first, each where it fits best, several times over in slightly different orders; then
    groups are moved and swapped while that helps, and the best result is taken.
    """
    packing = _Packing.of(tags, groups, shares, size_weight)
    num_groups = len(packing.weights)
    restarts = max(1, min(24, _GREEDY_STEPS // num_groups))
    best, best_cost = np.zeros(num_groups, np.int64), np.inf
    with progress_bar(restarts, "folds of groups", unit="try") as bar:
        for _ in range(restarts):
            places = packing.place(rng)
            cost = packing.cost(places)
            if cost < best_cost:
                best, best_cost = places, cost
            bar.update()
    return packing.improve(best, rng)[groups]


@dataclass(frozen=True, kw_only=True)
class _Packing:
    """Groups as vectors of tag counts, to be packed into bins.

    Attributes:
        weights: (groups, tags + 1) counts of each tag; the last column counts images.
        expected: (tags + 1, bins) counts wanted.
        factor: (tags + 1,) how much a column's deviation matters.
    """

    weights: Floats
    expected: Floats
    factor: Floats

    @classmethod
    def of(cls, tags: Ints, groups: Ints, shares: Sequence[float], size_weight: float) -> _Packing:
        num_groups, num_tags = int(groups.max()) + 1, int(tags.max()) + 1
        flat = np.bincount((groups[:, None] * num_tags + tags).ravel(), minlength=num_groups * num_tags)
        sizes = np.bincount(groups, minlength=num_groups)
        weights = np.column_stack([flat.reshape(num_groups, num_tags), sizes]).astype(np.float64)
        expected = np.maximum(weights.sum(axis=0)[:, None] * np.asarray(shares), 1e-9)
        factor = np.append(np.ones(num_tags), size_weight * tags.shape[1])
        return cls(weights=weights, expected=expected, factor=factor)

    def excess(self, places: Ints) -> Floats:
        """Return (tags + 1, bins) found - expected."""
        found = np.zeros_like(self.expected.T)
        np.add.at(found, places, self.weights)
        return found.T - self.expected

    def cost(self, places: Ints) -> float:
        """Return the distance from the shares."""
        return float((self.factor[:, None] * self.excess(places) ** 2 / self.expected).sum())

    def place(self, rng: np.random.Generator) -> Ints:
        """Place the groups one after the other, largest first, each where it costs least."""
        sizes = self.weights[:, -1] * rng.uniform(0.8, 1.2, len(self.weights))
        excess = -self.expected.copy()
        scale = self.factor[:, None] / self.expected
        places = np.zeros(len(self.weights), np.int64)
        for group in np.argsort(-sizes).tolist():
            columns = np.flatnonzero(self.weights[group])
            own = self.weights[group, columns, None]
            rises = (scale[columns] * own * (own + 2 * excess[columns])).sum(axis=0)
            places[group] = int(np.argmin(rises))
            excess[columns, places[group]] += own[:, 0]
        return places

    def improve(self, places: Ints, rng: np.random.Generator) -> Ints:
        """Move and swap groups while that lowers the cost."""
        places = places.copy()
        excess = self.excess(places)
        scale = self.factor[:, None] / self.expected
        num_groups = len(places)
        for group in np.tile(rng.permutation(num_groups), 8)[:_TRIES].tolist():
            here = int(places[group])
            others = rng.integers(num_groups, size=min(_CANDIDATES, 4 * num_groups))
            # The last candidates are no partners: the group moves alone, into each bin in turn.
            there = np.concatenate([places[others], np.arange(self.expected.shape[1])])
            brought = np.concatenate([self.weights[others], np.zeros((self.expected.shape[1], len(self.factor)))])
            change = brought - self.weights[group]  # (candidates, tags + 1), of the bin the group leaves
            rises = change * (change + 2 * excess[:, here]) * scale[:, here]
            rises += change * (change - 2 * excess[:, there].T) * scale[:, there].T
            delta = np.where(there == here, 0, rises.sum(axis=1))
            best = int(np.argmin(delta))
            if delta[best] < -1e-9:
                excess[:, here] += change[best]
                excess[:, there[best]] -= change[best]
                if best < len(others):
                    places[others[best]] = here
                places[group] = there[best]
        return places


def keep_every_tag_elsewhere(tags: Ints, units: Ints, bins: Ints, *, num_valid: int, num_bins: int) -> Ints:
    """Return bins in which as few tags as possible lie wholly in one validating bin.

    Args:
        tags: (N, heads), unique across heads.
        units: (N,) numbers of what must stay together.
        bins: (N,) bins, 0 to num_bins - 1; those from `num_valid` on never validate.
        num_valid: How many bins validate.
        num_bins: How many bins there are.
    """
    bins = bins.copy()
    found = _counts(tags, bins, num_bins)
    for _ in range(_MOST_MOVES):
        trapped = np.argwhere(_is_trapped(found, num_valid))
        if not len(trapped):
            break
        moves = [move for tag, place in trapped.tolist() for move in _moves(tags, units, found, tag, place, num_valid)]
        if not moves or min(moves)[0] >= len(trapped):
            break
        _, _, unit, place = min(moves)
        bins[units == unit] = place
        found = _counts(tags, bins, num_bins)
    return bins


def trapped_tags(tags: Ints, bins: Ints) -> Ints:
    """Return the tags that lie wholly in one bin of 0 and above; bins of -1 never validate."""
    num_valid = int(bins.max(initial=-1)) + 1
    if not num_valid:
        return np.zeros(0, np.int64)
    found = _counts(tags, np.where(bins < 0, num_valid, bins), num_valid + 1)
    return np.flatnonzero(_is_trapped(found, num_valid).any(axis=1))


def _is_trapped(found: Floats, num_valid: int) -> npt.NDArray[np.bool_]:
    """Return (tags, num_valid) True where a validating bin holds all of a tag, from (tags, bins) counts."""
    part = found[:, :num_valid]
    return np.asarray((part > 0) & (part == found.sum(axis=1, keepdims=True)))


def _moves(
    tags: Ints, units: Ints, found: Floats, tag: int, place: int, num_valid: int
) -> Iterator[tuple[int, float, int, int]]:
    """Yield (tags trapped then, images then in that bin, unit, other bin) for moves of a tag's units out of a bin."""
    mine = np.unique(units[(tags == tag).any(axis=1)])
    if len(mine) < 2:
        return
    for unit in mine[:_MOST_UNITS].tolist():
        counts = _counts(tags[units == unit], np.zeros(int((units == unit).sum()), np.int64), 1, len(found))[:, 0]
        for other in range(found.shape[1]):
            if other != place:
                then = found.copy()
                then[:, place] -= counts
                then[:, other] += counts
                yield int(_is_trapped(then, num_valid).sum()), float(then[:, other].sum()), unit, other
