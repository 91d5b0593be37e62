"""The schemes by which images are divided into folds; -1 is an image that trains every fold and validates none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.folds.stratify import (
    Ints,
    deal,
    deal_groups,
    keep_every_tag_elsewhere,
    one_hot_columns,
    trapped_tags,
)
from kaggle_kit.labels import Labels
from kaggle_kit.tables import Text

GROUPED = ("grouped", "stratified-grouped", "leave-one-group-out")  # schemes that keep groups together
MOST_HELD_OUT = 0.95  # of the images that may be: some must show what their combinations look like
SIZE_WEIGHT = 10.0  # of held-out combinations: the share asked for is what the score is read for


def stratified(labels: Labels, same: Ints, num_folds: int, rng: np.random.Generator) -> Ints:
    """Return (N,) folds in which every class of every head has its share."""
    first, inverse = _distinct(same)
    tags = tags_of(labels)
    fold = deal(tags[first], [1 / num_folds] * num_folds, rng)[inverse]
    return keep_every_tag_elsewhere(tags, inverse, fold, num_valid=num_folds, num_bins=num_folds)


def holdout(labels: Labels, same: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Return (N,) folds: 0 for the held-out share of every class, -1 for the others."""
    first, inverse = _distinct(same)
    tags = tags_of(labels)
    bins = deal(tags[first], [share, 1 - share], rng)[inverse]
    bins[lone_rows(labels, same)] = 1  # the only image of a class must be learned
    bins = keep_every_tag_elsewhere(tags, inverse, bins, num_valid=1, num_bins=2)
    if (bins == 0).all() or not (bins == 0).any():
        raise DataError(
            f"a share of {share} of {len(first)} image(s) leaves none to validate or none to train; change "
            "--valid-share, or gather more images"
        )
    return np.where(bins == 0, 0, -1)


def grouped(labels: Labels, groups: Ints, num_folds: int, rng: np.random.Generator) -> Ints:
    """Return (N,) folds of like size in which no group is divided."""
    return deal_groups(np.zeros((len(labels), 1), np.int64), groups, [1 / num_folds] * num_folds, rng)


def stratified_grouped(labels: Labels, groups: Ints, num_folds: int, rng: np.random.Generator) -> Ints:
    """Return (N,) folds in which no group is divided and every class has about its share."""
    tags = tags_of(labels)
    fold = deal_groups(tags, groups, [1 / num_folds] * num_folds, rng)
    return keep_every_tag_elsewhere(tags, groups, fold, num_valid=num_folds, num_bins=num_folds)


def unseen(labels: Labels, same: Ints, num_folds: int, share: float, rng: np.random.Generator) -> Ints:
    """Return (N,) folds that each hold out whole combinations of heads beside images of combinations others show.

    Combinations that only one image shows are unseen wherever they validate, so they are counted in first. The others
    are packed into one bin a fold, and one of combinations that are not held out, each bin near its share of every
    class; the last bin's images are then dealt so that every combination lies in several folds.
    """
    combinations = np.unique(labels.combinations(), axis=0, return_inverse=True)[1].ravel()
    blocks = merged(combinations, same)  # equal images that are labelled differently tie combinations together
    tags = tags_of(labels)
    single = _num_units(blocks, same)[blocks] == 1
    held_out = max(0.0, share - float(single.mean()))
    fold = np.full(len(labels), -1, np.int64)
    only = _num_units(tags.ravel(), np.repeat(blocks, tags.shape[1]))[tags] == 1  # a class that one combination has
    shared = np.flatnonzero(~single & ~np.isin(blocks, blocks[only.any(axis=1)]))
    if len(shared) and held_out > 0:
        part = min(MOST_HELD_OUT, held_out * len(labels) / len(shared))  # of these images
        own = np.unique(blocks[shared], return_inverse=True)[1]
        shares = [part / num_folds] * num_folds + [1 - part]
        bins = deal_groups(tags[shared], own, shares, rng, size_weight=SIZE_WEIGHT)
        bins = keep_every_tag_elsewhere(tags[shared], own, bins, num_valid=num_folds, num_bins=num_folds + 1)
        fold[shared] = np.where(bins < num_folds, bins, -1)
    rest = np.flatnonzero(fold < 0)
    if len(rest):
        first, inverse = _distinct(same[rest])
        together = np.column_stack([tags, combinations + tags.max() + 1])[rest[first]]
        fold[rest] = deal(together, [1 / num_folds] * num_folds, rng)[inverse]
    return keep_every_tag_elsewhere(tags, _distinct(same)[1], fold, num_valid=num_folds, num_bins=num_folds)


def merged(groups: Ints | Text, same: Ints) -> Ints:
    """Return (N,) numbers from 0 of groups, where groups that share an equal image are one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    left = np.unique(groups, return_inverse=True)[1]
    right = np.unique(same, return_inverse=True)[1] + left.max() + 1
    size = int(right.max()) + 1
    links = coo_matrix((np.ones(len(left)), (left, right)), shape=(size, size))
    joined = connected_components(links, directed=False)[1][left]
    return np.asarray(np.unique(joined, return_inverse=True)[1], np.int64)


def check_groups(labels: Labels, scheme: str) -> None:
    """Refuse a scheme of groups where no column names them.

    Raises:
        SettingError: When the task names no such column.
    """
    if scheme in GROUPED and labels.groups is None:
        raise SettingError(f"scheme {scheme!r} needs a column that names each image's group; set the task's `groups`")


def needed_groups(labels: Labels, same: Ints, scheme: str, num_folds: int) -> Ints:
    """Return (N,) group numbers, where groups that share an equal image are one.

    Raises:
        SettingError: When the task names no column of groups.
        DataError: When there are fewer groups than folds.
    """
    check_groups(labels, scheme)
    assert labels.groups is not None
    groups = merged(labels.groups, same)
    num_groups = int(groups.max()) + 1
    if num_groups < num_folds:
        repair = f"ask for {num_groups} or fewer" if num_groups > 1 else "they cannot be held apart"
        joined = "" if num_groups == len(np.unique(labels.groups)) else " (those that share equal images count as one)"
        raise DataError(f"{num_folds} folds of {num_groups} groups{joined} leave some empty; {repair}")
    return groups


def tags_of(labels: Labels) -> Ints:
    """Return (N, columns) tags, unique across columns; of a multi-label head whether an image shows a class or not."""
    return one_hot_columns(labels.combinations())


def _trapped(labels: Labels, tags: Ints, fold: Ints) -> list[tuple[int, str]]:
    """Return the tags that one fold validates and no other image trains, with their classes' names, such as `root 3`.

    That every image without some class is in one fold does not matter: there is nothing to learn of it.
    """
    found = []
    columns = [(head, label) for head, classes in labels.classes.items() for label in _columns(classes)]
    for tag in trapped_tags(tags, fold).tolist():
        row, column = np.argwhere(tags == tag)[0].tolist()
        head, label = columns[column]
        if label is None:
            found.append((tag, f"{head} {labels.classes[head][row]}"))
        elif labels.classes[head][row, label]:
            found.append((tag, f"{head} {label}"))
    return found


def _columns(classes: npt.NDArray[np.generic]) -> list[int | None]:
    """Return what the columns are that a head has in `combinations`: classes of a multi-label head, else None."""
    return list(range(classes.shape[1])) if classes.ndim == 2 else [None]


def lone_rows(labels: Labels, same: Ints) -> npt.NDArray[np.bool_]:
    """Return (N,) True for the only image of a class, and for its equals under whatever label."""
    alone = np.zeros(len(labels), bool)
    for head, lone in lone_classes(labels, same).items():
        classes = labels.classes[head]
        alone |= classes[:, lone].any(axis=1) if classes.ndim == 2 else np.isin(classes, lone)
    return np.isin(same, same[alone])


def lone_classes(labels: Labels, same: Ints) -> dict[str, Ints]:
    """Return {head: classes that one image alone shows}; equal images count as one."""
    lone = {}
    for head, classes in labels.classes.items():
        shown = classes if classes.ndim == 1 else np.nonzero(classes)[1]
        images = same if classes.ndim == 1 else same[np.nonzero(classes)[0]]
        pairs = np.unique(np.column_stack([shown, images]), axis=0)
        lone[head] = np.flatnonzero(np.bincount(pairs[:, 0]) == 1)
    return lone


def check_lone(labels: Labels, same: Ints) -> None:
    """Refuse images that are the only one of a class.

    Raises:
        DataError: With their number, and what to do.
    """
    lone = [f"{head} {label}" for head, classes in lone_classes(labels, same).items() for label in classes.tolist()]
    if lone:
        images = labels.ids[lone_rows(labels, same)]
        raise DataError(
            f"{len(lone):,} class(es) have one image only ({some_of(lone)}; images {some_of(images)}), which "
            "cannot both train and validate; give --rare train to let it train in every fold, or merge these classes"
        )


def train_rare(labels: Labels, same: Ints, fold: Ints) -> Ints:
    """Return folds in which a class that one fold alone holds has an image that trains every fold instead."""
    fold = fold.copy()
    tags = tags_of(labels)
    for tag, _ in _trapped(labels, tags, fold):
        fold[same == same[np.argmax((tags == tag).any(axis=1))]] = -1
    return fold


def untrained_classes(labels: Labels, fold: Ints) -> list[str]:
    """Return the names, such as `root 3`, of classes that one fold validates and no other image trains."""
    return [name for _, name in _trapped(labels, tags_of(labels), fold)]


def check_trained(labels: Labels, fold: Ints, scheme: str) -> None:
    """Refuse folds in which a class is not trained where it validates.

    Raises:
        DataError: With the number of classes, and what to do.
    """
    names = untrained_classes(labels, fold)
    if names:
        raise DataError(
            f"{len(names):,} class(es) cannot both train and validate in scheme {scheme!r}, such as {some_of(names)}: "
            "they have too few images, or share them with other rare classes; give --rare train to let an image of "
            "each train every fold, or ask for fewer folds"
        )


def _distinct(same: Ints) -> tuple[Ints, Ints]:
    """Return the first row of each distinct image, in row order, and for each row its place among them."""
    _, first, inverse = np.unique(same, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[inverse]


def _num_units(blocks: Ints, same: Ints) -> Ints:
    """Return how many distinct images each block has."""
    pairs = np.unique(np.column_stack([blocks, same]), axis=0)
    return np.bincount(pairs[:, 0])
