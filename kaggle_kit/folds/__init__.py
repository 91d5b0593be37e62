"""Folds: which images a model is validated on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kaggle_kit.edits import Edit, edits_from_text
from kaggle_kit.errors import DataError, SettingError, did_you_mean, some_of
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
        edits: Those that were made to these labels.
    """

    ids: Text
    fold: Ints
    unseen: npt.NDArray[np.bool_]
    scheme: str
    seed: int
    data_hash: str
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        check_unique(self.ids, "the fold file")
        if len(self.fold) and (self.fold.min() < -1 or self.fold.max() >= len(self.fold)):
            raise DataError(
                f"folds are numbered {self.fold.min()} to {self.fold.max()}; expected 0, 1, 2, ..., and -1 for images "
                "that never validate; make them again with `kaggle-kit folds`"
            )
        empty = np.flatnonzero(np.bincount(self.fold[self.fold >= 0]) == 0)
        if len(empty):
            raise DataError(
                f"{len(empty):,} fold(s) validate no image, such as fold {empty[0]}; make the folds again from these "
                "images with `kaggle-kit folds`"
            )
        if len(self.fold) and (self.fold == 0).all():
            raise DataError("all images validate in one fold and none trains; make the folds again")

    @property
    def num_folds(self) -> int:
        """The number of folds that validate; 0 where everything trains."""
        return int(self.fold.max(initial=-1)) + 1

    def rows(self, ids: Text) -> Ints:
        """Return (N,) the row of each of these ids.

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
        return rows

    def align(self, ids: Text) -> Folds:
        """Return the folds of these ids, in this order; every fold must keep an image.

        Raises:
            DataError: When an id has no fold, or a fold no image.
        """
        rows = self.rows(ids)
        return dataclasses.replace(self, ids=ids, fold=self.fold[rows], unseen=self.unseen[rows])

    def save(self, path: Path) -> None:
        """Write a parquet file: id, fold, unseen; scheme, seed, data hash and edits in its metadata."""
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({"id": self.ids.tolist(), "fold": self.fold.astype(np.int32), "unseen": self.unseen})
        meta = {"scheme": self.scheme, "seed": str(self.seed), "data_hash": self.data_hash}
        if self.edits:
            meta["edits"] = "".join(edit.to_line() for edit in self.edits)
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
        if path.suffix == ".csv":
            raise DataError(
                f"{path} is a CSV, which `kaggle-kit folds --check` reads and training does not; "
                "make folds with `kaggle-kit folds`"
            )
        try:
            table = parquet.read_table(path)
        except (pa.ArrowException, OSError):
            raise DataError(f"{path} is not a whole parquet file; make it again with `kaggle-kit folds`") from None
        meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        known = {"id", "fold", "unseen"} <= set(table.column_names) and {"scheme", "seed", "data_hash"} <= set(meta)
        if not known or any(table[name].null_count for name in ("id", "fold", "unseen")):
            raise DataError(
                f"{path} holds {some_of(table.column_names, 9)}; expected id, fold and unseen without gaps, and "
                "scheme, seed and data hash, from `kaggle-kit folds`"
            )
        return cls(
            ids=np.array(table["id"].to_pylist(), np.str_),
            fold=table["fold"].to_numpy().astype(np.int64),
            unseen=table["unseen"].to_numpy(),
            scheme=meta["scheme"],
            seed=int(meta["seed"]),
            data_hash=meta["data_hash"],
            edits=edits_from_text(meta.get("edits", ""), where=path),
        )


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """What `make_folds` is asked for; refuses what can be no plan.

    Attributes:
        scheme: How images are divided.
        num_folds: At least 2.
        seed: At least 0.
        valid_share: Of holdout.
        unseen_share: Of unseen.
        rare: What happens where a class cannot both train and validate.
    """

    scheme: Scheme
    num_folds: int
    seed: int
    valid_share: float
    unseen_share: float
    rare: Rare

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise SettingError(f"{self.scheme!r} is no scheme of folds{did_you_mean(self.scheme, get_args(Scheme))}")
        if self.seed < 0:
            raise SettingError(f"`seed` is {self.seed}; give 0 or above")
        for name in ("valid_share", "unseen_share"):
            if not 0 < getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise SettingError(
                    f"`{name}` ({flag}) is {getattr(self, name)}; give a share above 0 and below 1, such as 0.2"
                )
        if self.divides and self.num_folds < 2:
            raise SettingError(
                f"number of folds is {self.num_folds}; expected 2 or more; one held-out part: --scheme holdout"
            )

    @property
    def divides(self) -> bool:
        """Whether the number of folds matters."""
        return self.scheme not in ("leave-one-group-out", "holdout", "everything")


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
    leave_out: npt.NDArray[np.bool_] | None = None,
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
        unseen_share: unseen: about which share of the images validates as part of an unseen combination. Combinations
            that one image alone shows are unseen wherever they validate, so that many of them raise the share.
        rare: stratified and unseen: what happens where a class cannot both train and validate, as with its only
            image. `error`: refused. `train`: an image of it trains every fold and validates none.
        leave_out: (N,) True for images that take no part, such as broken ones: -1, and never counted as trained.

    Raises:
        SettingError: For a scheme, number of folds, seed or share that is none, or a scheme of groups without groups.
        DataError: When there are more folds than images, groups or combinations, or a class cannot be divided.
    """
    asked = FoldPlan(
        scheme=scheme,
        num_folds=num_folds,
        seed=seed,
        valid_share=valid_share,
        unseen_share=unseen_share,
        rare=rare,
    )
    same = np.arange(len(labels)) if duplicates is None else np.asarray(duplicates)
    rows = np.arange(len(labels)) if leave_out is None else np.flatnonzero(~leave_out)
    part = labels.take(rows)
    fold = np.full(len(labels), -1, np.int64)
    unseen = np.zeros(len(labels), bool)
    fold[rows] = _divide(part, same[rows], asked)
    unseen[rows] = unseen_rows(part, fold[rows])
    return Folds(
        ids=labels.ids,
        fold=fold,
        unseen=unseen,
        scheme=scheme,
        seed=seed,
        data_hash=labels_hash(labels),
        edits=labels.edits,
    )


def _divide(labels: Labels, same: Ints, asked: FoldPlan) -> Ints:
    """Return (N,) folds by the scheme asked for."""
    if not len(labels):
        raise DataError("there are no labelled images to divide; check the label file")
    if asked.divides and asked.num_folds > len(labels):
        raise DataError(f"{asked.num_folds:,} folds of {len(labels):,} images leave some empty; ask for fewer folds")
    rng = np.random.default_rng(asked.seed)
    if asked.scheme == "everything":
        return np.full(len(labels), -1, np.int64)
    if asked.scheme == "holdout":
        return schemes.train_rare(labels, same, schemes.holdout(labels, same, asked.valid_share, rng))
    if asked.scheme in ("stratified", "unseen"):
        return _divide_images(labels, same, asked, rng)
    groups = schemes.needed_groups(labels, same, asked.scheme, asked.num_folds if asked.divides else 2)
    if asked.scheme == "leave-one-group-out":
        return groups
    deal = schemes.grouped if asked.scheme == "grouped" else schemes.stratified_grouped
    return deal(labels, groups, asked.num_folds, rng)


def _divide_images(labels: Labels, same: Ints, asked: FoldPlan, rng: np.random.Generator) -> Ints:
    """Return stratified or unseen folds, after checking that they keep what these schemes promise."""
    if asked.scheme == "unseen" and labels.combinations().shape[1] < 2:
        raise SettingError("scheme 'unseen' holds out combinations of heads, and there is one head; use 'stratified'")
    if asked.rare == "error":
        schemes.check_lone(labels, same)
    fold = np.full(len(labels), -1, np.int64)
    rows = np.flatnonzero(~schemes.lone_rows(labels, same))
    part, own = labels.take(rows), same[rows]
    num_images = len(np.unique(own))
    if num_images < asked.num_folds:
        raise DataError(f"{asked.num_folds} folds of {num_images} different images that may validate; ask for fewer")
    if asked.scheme == "stratified":
        fold[rows] = schemes.stratified(part, own, asked.num_folds, rng)
    else:
        fold[rows] = schemes.unseen(part, own, asked.num_folds, asked.unseen_share, rng)
    if asked.rare == "train":
        fold = schemes.train_rare(labels, same, fold)
    schemes.check_trained(labels, fold, asked.scheme)
    filled = len(np.unique(fold[fold >= 0]))
    if filled < asked.num_folds:
        raise DataError(f"only {filled} of {asked.num_folds} folds get images; ask for {max(filled, 2)} or fewer")
    if asked.scheme == "unseen" and not unseen_rows(labels, fold).any():
        combinations = len(np.unique(labels.combinations(), axis=0))
        raise DataError(
            f"no combination can be held out: {combinations:,} combinations, {asked.num_folds} folds, unseen share "
            f"{asked.unseen_share}; ask for fewer folds or a larger --unseen-share"
        )
    return fold


def unseen_rows(labels: Labels, fold: Ints) -> npt.NDArray[np.bool_]:
    """Return (N,) True where an image validates and no image that trains that fold shows its combination of heads."""
    if not len(labels):
        return np.zeros(0, bool)
    combinations = np.unique(labels.combinations(), axis=0, return_inverse=True)[1].ravel()
    _, inverse, counts = np.unique(
        np.column_stack([combinations, fold]), axis=0, return_inverse=True, return_counts=True
    )
    return np.asarray((fold >= 0) & (counts[inverse.ravel()] == np.bincount(combinations)[combinations]))


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
    text = f"{num_images:,} images in {int((counts > 1).sum()):,} set(s) have an equal one"
    told_apart = np.unique(np.column_stack([inverse, labels.combinations()]), axis=0)[:, 0]
    twice = told_apart[1:][told_apart[1:] == told_apart[:-1]]
    if len(twice):
        examples = some_of(labels.ids[inverse == twice[0]].tolist())
        text += f"; WARNING {len(np.unique(twice)):,} set(s) are labelled in several ways, such as {examples}"
    return Duplicates(num_images=num_images, text=text)


def labels_hash(labels: Labels) -> str:
    """Return 12 hexadecimal digits that change with any id, label or group, not with the order of rows."""
    order = np.argsort(labels.ids)
    digest = hashlib.sha256(json.dumps([*labels.classes, *labels.ids[order].tolist()]).encode())
    for classes in labels.classes.values():
        digest.update(np.ascontiguousarray(classes[order]).tobytes())
    if labels.groups is not None:
        digest.update(json.dumps(labels.groups[order].tolist()).encode())
    return digest.hexdigest()[:12]
