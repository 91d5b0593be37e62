"""Folds: which images a model is validated on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.files import replacing
from kaggle_kit.labels import Labels, unseen_combinations
from kaggle_kit.tables import Text, check_unique, rows_of

Scheme = Literal["stratified", "grouped"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Folds:
    """A fold for every image.

    Attributes:
        ids: (N,) image ids, no two alike.
        fold: (N,) int64, 0 to num_folds - 1: the fold that validates the image.
        unseen: (N,) True where the image's combination of heads is in no other fold.
        scheme: How they were made.
        seed: What they were made with.
        data_hash: Of the labels they were made from.
    """

    ids: Text
    fold: Ints
    unseen: npt.NDArray[np.bool_]
    scheme: str
    seed: int
    data_hash: str

    def __post_init__(self) -> None:
        check_unique(self.ids, "the fold file")
        sizes = np.bincount(self.fold, minlength=1) if len(self.fold) and self.fold.min() >= 0 else np.zeros(1)
        if len(sizes) < 2 or (sizes == 0).any():
            raise DataError(f"folds have sizes {sizes.tolist()}; expected at least 2, numbered from 0, none empty")

    @property
    def num_folds(self) -> int:
        """The number of folds."""
        return int(self.fold.max()) + 1

    def align(self, ids: Text) -> Folds:
        """Return the folds of these ids, in this order.

        Raises:
            DataError: When an id has no fold.
        """
        rows = rows_of(ids, self.ids)
        if (rows < 0).any():
            missing = ids[rows < 0]
            raise DataError(
                f"{len(missing):,} of {len(ids):,} labelled images are in no fold: {some_of(missing)}; "
                "make the folds again from this label file"
            )
        return Folds(
            ids=ids,
            fold=self.fold[rows],
            unseen=self.unseen[rows],
            scheme=self.scheme,
            seed=self.seed,
            data_hash=self.data_hash,
        )

    def save(self, path: Path) -> None:
        """Write a parquet file: id, fold, unseen; scheme, seed and data hash in its metadata."""
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({"id": self.ids.tolist(), "fold": self.fold.astype(np.int16), "unseen": self.unseen})
        meta = {"scheme": self.scheme, "seed": str(self.seed), "data_hash": self.data_hash}
        with replacing(path) as temporary:
            parquet.write_table(table.replace_schema_metadata(meta), temporary)

    @classmethod
    def load(cls, path: Path) -> Folds:
        """Read what `save` wrote.

        Raises:
            DataError: When there is no such file or it holds no folds.
        """
        import pyarrow as pa
        from pyarrow import parquet

        if not path.is_file():
            raise DataError(f"there is no fold file {str(path)!r}; make one with `kaggle-kit folds`")
        try:
            table = parquet.read_table(path)
        except (pa.ArrowException, OSError):
            raise DataError(f"{path} is not a whole parquet file; make it again with `kaggle-kit folds`") from None
        meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if not {"id", "fold", "unseen"} <= set(table.column_names) or "scheme" not in meta:
            raise DataError(f"{path} holds {table.column_names}; expected id, fold, unseen from `kaggle-kit folds`")
        return cls(
            ids=np.array(table["id"].to_pylist(), np.str_),
            fold=table["fold"].to_numpy().astype(np.int64),
            unseen=table["unseen"].to_numpy(),
            scheme=meta["scheme"],
            seed=int(meta["seed"]),
            data_hash=meta["data_hash"],
        )


def make_folds(
    labels: Labels,
    scheme: Scheme = "stratified",
    *,
    num_folds: int = 5,
    seed: int = 0,
    duplicates: Ints | None = None,
) -> Folds:
    """Divide the labelled images into folds.

    Args:
        labels: What the label file says.
        scheme: `stratified`: every fold has every head's classes in like shares; `grouped`: no group of the task's
            `groups` column (a writer, a patient) is in two folds, and folds are of like size.
        num_folds: At least 2.
        seed: Same seed, same folds.
        duplicates: (N,) numbers, equal for equal images, as `PackedSource.duplicate_groups` gives them: equal images
            are put into one fold. None: all images differ.

    Raises:
        SettingError: For fewer than 2 folds, or `grouped` without a groups column.
        DataError: When there are more folds than images or groups.
    """
    if num_folds < 2:
        raise SettingError(f"number of folds is {num_folds}; expected 2 or more")
    if num_folds > len(labels):
        raise DataError(f"{num_folds} folds of {len(labels)} images leave some empty; ask for fewer folds")
    same = np.arange(len(labels)) if duplicates is None else duplicates
    if scheme == "stratified":
        _, first, inverse = np.unique(same, return_index=True, return_inverse=True)
        order = np.argsort(first)  # rows in their own order: without duplicates nothing changes
        once = _stratified(labels.take(first[order]), num_folds, np.random.default_rng(seed))
        fold = once[np.argsort(order)[inverse]]
    else:
        fold = _grouped(labels, same, num_folds, seed)
    unseen = np.zeros(len(labels), bool)
    for number in range(num_folds):
        inside = fold == number
        unseen[inside] = unseen_combinations(labels.take(np.flatnonzero(inside)), labels.take(np.flatnonzero(~inside)))
    return Folds(ids=labels.ids, fold=fold, unseen=unseen, scheme=scheme, seed=seed, data_hash=labels_hash(labels))


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Equal images among labelled ones: how many there are in all, and a sentence about them."""

    num_images: int
    text: str


def describe_duplicates(labels: Labels, groups: Ints) -> Duplicates:
    """Count images that have an equal, and equal images that are labelled differently.

    Args:
        labels: Of N images.
        groups: (N,) numbers, equal for equal images.
    """
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    num_images = int(counts[counts > 1].sum())
    if not num_images:
        return Duplicates(num_images=0, text="no two images are equal")
    text = f"{num_images:,} images have an equal one; equal images are in one fold"
    told_apart = np.unique(np.column_stack([inverse, labels.combinations()]), axis=0)[:, 0]
    twice = told_apart[1:][told_apart[1:] == told_apart[:-1]]
    if len(twice):
        examples = some_of(labels.ids[inverse == twice[0]].tolist())
        text += f"; WARNING {len(np.unique(twice)):,} of them are labelled in several ways, such as {examples}"
    return Duplicates(num_images=num_images, text=text)


def labels_hash(labels: Labels) -> str:
    """Return 12 hexadecimal digits that change with any id, label or group, not with the order of rows."""
    order = np.argsort(labels.ids)
    digest = hashlib.sha256("\n".join(labels.ids[order].tolist()).encode())
    for head, classes in labels.classes.items():
        digest.update(head.encode() + np.ascontiguousarray(classes[order]).tobytes())
    if labels.groups is not None:
        digest.update("\n".join(labels.groups[order].tolist()).encode())
    return digest.hexdigest()[:12]


def _stratified(labels: Labels, num_folds: int, rng: np.random.Generator) -> Ints:
    """Iterative stratification (Sechidis et al. 2011) on the one-hot labels of all heads at once."""
    tags = _one_hot_columns(labels)
    num_tags = int(tags.max()) + 1
    totals = np.bincount(tags.ravel(), minlength=num_tags)
    wanted = np.tile(totals / num_folds, (num_folds, 1))
    room = np.full(num_folds, len(labels) / num_folds)
    fold = np.full(len(labels), -1, np.int64)
    remaining = totals.copy()
    shuffled = rng.permutation(len(labels))
    while remaining.any():
        tag = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        rows = shuffled[(fold[shuffled] < 0) & (tags[shuffled] == tag).any(axis=1)]
        for row in rows.tolist():
            most = wanted[:, tag] >= wanted[:, tag].max() - 1e-9
            choice = int(np.argmax(np.where(most, room + rng.random(num_folds) * 1e-6, -np.inf)))
            fold[row] = choice
            wanted[choice, tags[row]] -= 1
            room[choice] -= 1
        remaining -= np.bincount(tags[rows].ravel(), minlength=num_tags)
    return fold


def _one_hot_columns(labels: Labels) -> Ints:
    """Return (N, heads) numbers of the one-hot column that each label sets, unique across heads."""
    columns = labels.combinations()
    offsets = np.cumsum([0, *(columns.max(axis=0)[:-1] + 1)])
    return np.asarray(columns + offsets, np.int64)


def _grouped(labels: Labels, same: Ints, num_folds: int, seed: int) -> Ints:
    from sklearn.model_selection import GroupKFold

    if labels.groups is None:
        raise SettingError("scheme 'grouped' needs a column that names each image's group; set the task's `groups`")
    groups = _merged(labels.groups, same)
    num_groups = len(np.unique(groups))
    if num_groups < num_folds:
        repair = f"ask for {num_groups} or fewer" if num_groups > 1 else "use scheme 'stratified'"
        merged = "" if num_groups == len(np.unique(labels.groups)) else " (those that share equal images count as one)"
        raise DataError(f"{num_folds} folds of {num_groups} groups{merged} leave some empty; {repair}")
    fold = np.empty(len(labels), np.int64)
    splitter = GroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    for number, (_, inside) in enumerate(splitter.split(np.zeros(len(labels)), groups=groups)):
        fold[inside] = number
    return fold


def _merged(groups: Text, same: Ints) -> Ints:
    """Return (N,) group numbers in which groups that share an image are one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    left = np.unique(groups, return_inverse=True)[1]
    right = np.unique(same, return_inverse=True)[1] + left.max() + 1
    size = int(right.max()) + 1
    links = coo_matrix((np.ones(len(left)), (left, right)), shape=(size, size))
    merged = connected_components(links, directed=False)[1]
    return np.asarray(merged[left], np.int64)
