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
from kaggle_kit.folds import schemes
from kaggle_kit.labels import Labels
from kaggle_kit.tables import Text, check_unique, rows_of

Scheme = Literal[
    "stratified", "grouped", "stratified-grouped", "unseen", "leave-one-group-out", "holdout", "everything"
]
Rare = Literal["error", "train"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Folds:
    """A fold for every image.

    Attributes:
        ids: (N,) image ids, no two alike.
        fold: (N,) int64, 0 to num_folds - 1: the fold that validates the image; -1: it trains every fold.
        unseen: (N,) True where the image validates and its combination of heads is in no image that trains that fold.
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
        sizes = np.bincount(self.fold[self.fold >= 0])
        if self.fold.min(initial=0) < -1 or (sizes == 0).any() or (len(sizes) == 1 and (self.fold == 0).all()):
            raise DataError(
                f"folds have sizes {sizes.tolist()}; expected numbers from 0, none empty, and images that train "
                "(-1 for those that never validate)"
            )

    @property
    def num_folds(self) -> int:
        """The number of folds that validate; 0 where everything trains."""
        return int(self.fold.max(initial=-1)) + 1

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
    valid_share: float = 0.15,
    unseen_share: float = 0.25,
    rare: Rare = "error",
) -> Folds:
    """Divide the labelled images into folds.

    Args:
        labels: What the label file says.
        scheme: `stratified`: every fold has every class of every head in its share (iterative stratification on
            one-hot labels), and every class is trained in every fold. `grouped`: no group of the task's `groups`
            column (a writer, a patient) is in two folds, which are of like size. `stratified-grouped`: no group in two
            folds, classes in about their shares. `unseen`: every fold holds out whole combinations of heads, while
            every class of every head stays in train. `leave-one-group-out`: a fold a group. `holdout`: one stratified
            part validates, the rest trains. `everything`: all images train, none validates.
        num_folds: At least 2; not used by the last three schemes.
        seed: Same seed, same folds.
        duplicates: (N,) numbers, equal for equal images, as `PackedSource.duplicate_groups` gives them: equal images
            are put into one fold. None: all images differ.
        valid_share: holdout: the share of the images that validates.
        unseen_share: unseen: the share of the images that validates as part of an unseen combination.
        rare: stratified and unseen: what happens to the only image of a class. `error`: refused. `train`: it trains
            every fold and validates none.

    Raises:
        SettingError: For fewer than 2 folds, a share that is none, or a scheme of groups without a groups column.
        DataError: When there are more folds than images or groups, or a class has one image.
    """
    same = np.arange(len(labels)) if duplicates is None else np.asarray(duplicates)
    _check_asked(labels, scheme, num_folds=num_folds, valid_share=valid_share, unseen_share=unseen_share)
    if scheme == "everything":
        fold = np.full(len(labels), -1, np.int64)
    elif scheme == "holdout":
        fold = schemes.holdout(labels, same, valid_share, np.random.default_rng(seed))
    elif scheme in ("stratified", "unseen"):
        fold = np.full(len(labels), -1, np.int64)
        alone = schemes.lone_rows(labels, same)
        if rare == "error":
            schemes.check_lone(labels, alone)
        rows = np.flatnonzero(~alone)
        if len(rows) < num_folds:
            raise DataError(f"{num_folds} folds of {len(rows)} images that may validate; ask for fewer folds")
        part, rng = labels.take(rows), np.random.default_rng(seed)
        if scheme == "stratified":
            fold[rows] = schemes.stratified(part, same[rows], num_folds, rng)
        else:
            fold[rows] = schemes.unseen(part, same[rows], num_folds, unseen_share, rng)
    else:
        fold = _by_groups(labels, same, scheme, num_folds, seed)
    return Folds(
        ids=labels.ids,
        fold=fold,
        unseen=unseen_rows(labels, fold),
        scheme=scheme,
        seed=seed,
        data_hash=labels_hash(labels),
    )


def _check_asked(labels: Labels, scheme: Scheme, *, num_folds: int, valid_share: float, unseen_share: float) -> None:
    if not len(labels):
        raise DataError("there are no labelled images to divide; check the label file")
    for name, share in (("valid_share", valid_share), ("unseen_share", unseen_share)):
        if not 0 < share < 1:
            raise SettingError(f"`{name}` is {share}; give a share between 0 and 1, such as 0.2")
    if scheme in ("leave-one-group-out", "holdout", "everything"):
        return
    if num_folds < 2:
        raise SettingError(f"number of folds is {num_folds}; expected 2 or more; one held-out part: scheme 'holdout'")
    if num_folds > len(labels):
        raise DataError(f"{num_folds} folds of {len(labels)} images leave some empty; ask for fewer folds")


def _by_groups(labels: Labels, same: Ints, scheme: Scheme, num_folds: int, seed: int) -> Ints:
    if scheme == "leave-one-group-out":
        return schemes.needed_groups(labels, same, scheme, 2)
    groups = schemes.needed_groups(labels, same, scheme, num_folds)
    if scheme == "grouped":
        return schemes.grouped(labels, groups, num_folds, seed)
    return schemes.stratified_grouped(labels, groups, num_folds, np.random.default_rng(seed))


def unseen_rows(labels: Labels, fold: Ints) -> npt.NDArray[np.bool_]:
    """Return (N,) True where an image validates and no image that trains that fold shows its combination of heads."""
    combinations = np.unique(labels.combinations(), axis=0, return_inverse=True)[1].ravel()
    in_all = np.bincount(combinations)
    unseen = np.zeros(len(labels), bool)
    for number in range(int(fold.max(initial=-1)) + 1):
        inside = fold == number
        unseen |= inside & (np.bincount(combinations[inside], minlength=len(in_all)) == in_all)[combinations]
    return unseen


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
