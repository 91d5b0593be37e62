"""The schemes by which images are divided into folds; -1 is an image that trains every fold and validates none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.folds.stratify import Ints, deal, deal_groups, keep_every_tag_elsewhere, one_hot_columns
from kaggle_kit.labels import Labels
from kaggle_kit.tables import Text

SIZE_WEIGHT = 10.0  # of held-out combinations: the share asked for is what the score is read for


def stratified(labels: Labels, same: Ints, num_folds: int, rng: np.random.Generator) -> Ints:
    """Return (N,) folds in which every class of every head has its share."""
    first, inverse = _distinct(same)
    tags = one_hot_columns(labels.combinations()[first])
    once = deal(tags, [1 / num_folds] * num_folds, rng)
    return keep_every_tag_elsewhere(tags, np.arange(len(first)), once, num_folds)[inverse]


def holdout(labels: Labels, same: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Return (N,) folds: 0 for the held-out share of every class, -1 for the others."""
    first, inverse = _distinct(same)
    tags = one_hot_columns(labels.combinations()[first])
    bins = keep_every_tag_elsewhere(tags, np.arange(len(first)), deal(tags, [share, 1 - share], rng), 1)
    counts = np.bincount(tags.ravel())
    bins[(counts[tags] == 1).any(axis=1)] = 1  # the only image of a class must be learned
    if not (bins == 0).any():
        raise DataError(
            f"a share of {share} of {len(first)} images holds none out; raise --valid-share, or gather more images"
        )
    return np.where(bins == 0, 0, -1)[inverse]


def grouped(labels: Labels, groups: Ints, num_folds: int, seed: int) -> Ints:
    """Return (N,) folds of like size in which no group is divided."""
    from sklearn.model_selection import GroupKFold

    fold = np.empty(len(labels), np.int64)
    splitter = GroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    for number, (_, inside) in enumerate(splitter.split(np.zeros(len(labels)), groups=groups)):
        fold[inside] = number
    return fold


def stratified_grouped(labels: Labels, groups: Ints, num_folds: int, rng: np.random.Generator) -> Ints:
    """Return (N,) folds in which no group is divided and every class has about its share."""
    tags = one_hot_columns(labels.combinations())
    fold = deal_groups(tags, groups, [1 / num_folds] * num_folds, rng)
    return keep_every_tag_elsewhere(tags, groups, fold, num_folds)


def unseen(labels: Labels, same: Ints, num_folds: int, share: float, rng: np.random.Generator) -> Ints:
    """Return (N,) folds that each hold out whole combinations of heads beside images of combinations others show.

    Combinations that only one image shows are unseen wherever they validate, so they are counted in first. The others
    are packed into one bin a fold, and one of combinations that are not held out, each bin near its share of every
    class; the last bin's images are then dealt so that every combination lies in several folds.
    """
    combinations = np.unique(labels.combinations(), axis=0, return_inverse=True)[1].ravel()
    blocks = merged(combinations, same)  # equal images that are labelled differently tie combinations together
    tags = one_hot_columns(labels.combinations())
    single = _num_units(blocks, same)[blocks] == 1
    held_out = max(0.0, share - float(single.mean()))
    fold = np.full(len(labels), -1, np.int64)
    shared = np.flatnonzero(~single)
    if len(shared) and held_out > 0:
        part = held_out * len(labels) / len(shared)  # of these images
        own = np.unique(blocks[shared], return_inverse=True)[1]
        shares = [part / num_folds] * num_folds + [1 - part]
        bins = deal_groups(tags[shared], own, shares, rng, size_weight=SIZE_WEIGHT)
        bins = keep_every_tag_elsewhere(tags[shared], own, bins, num_folds)
        fold[shared] = np.where(bins < num_folds, bins, -1)
    rest = np.flatnonzero(fold < 0)
    if len(rest):
        first, inverse = _distinct(same[rest])
        together = np.column_stack([tags, combinations + tags.max() + 1])[rest[first]]
        fold[rest] = deal(together, [1 / num_folds] * num_folds, rng)[inverse]
    return keep_every_tag_elsewhere(tags, np.unique(same, return_inverse=True)[1], fold, num_folds)


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


def needed_groups(labels: Labels, same: Ints, scheme: str, num_folds: int) -> Ints:
    """Return (N,) group numbers, where groups that share an equal image are one.

    Raises:
        SettingError: When the task names no column of groups.
        DataError: When there are fewer groups than folds.
    """
    if labels.groups is None:
        raise SettingError(f"scheme {scheme!r} needs a column that names each image's group; set the task's `groups`")
    groups = merged(labels.groups, same)
    num_groups = int(groups.max()) + 1
    if num_groups < num_folds:
        repair = f"ask for {num_groups} or fewer" if num_groups > 1 else "use scheme 'stratified'"
        joined = "" if num_groups == len(np.unique(labels.groups)) else " (those that share equal images count as one)"
        raise DataError(f"{num_folds} folds of {num_groups} groups{joined} leave some empty; {repair}")
    return groups


def lone_rows(labels: Labels, same: Ints) -> npt.NDArray[np.bool_]:
    """Return (N,) True for the only image of a class; its equals count as one image."""
    alone = np.zeros(len(labels), bool)
    for classes in labels.classes.values():
        pairs = np.unique(np.column_stack([classes, same]), axis=0)
        alone |= (np.bincount(pairs[:, 0]) == 1)[classes]
    return alone


def check_lone(labels: Labels, alone: npt.NDArray[np.bool_]) -> None:
    """Refuse images that are the only one of a class.

    Raises:
        DataError: With their number, and what to do.
    """
    if not alone.any():
        return
    lone = []
    for head, classes in labels.classes.items():
        counts = np.bincount(classes[~alone], minlength=int(classes.max()) + 1)
        lone += [f"{head} {label}" for label in np.unique(classes[alone]).tolist() if counts[label] == 0]
    raise DataError(
        f"{len(lone):,} class(es) have one image only ({some_of(lone)}; images {some_of(labels.ids[alone])}), which "
        "cannot both train and validate; give --rare train to let it train in every fold, or merge these classes"
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
