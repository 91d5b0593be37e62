"""A leak check of any fold file, ours or not: what crosses folds, what is missing, what is never trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.edits import edits_from_text, edits_key
from kaggle_kit.errors import DataError, some_of
from kaggle_kit.folds import Folds, Ints, labels_hash, unseen_rows
from kaggle_kit.folds.schemes import untrained_classes
from kaggle_kit.labels import Labels
from kaggle_kit.tables import Text, read_columns, rows_of

Verdict = Literal["ok", "LEAK", "WRONG", "note"]
_WITH_GROUPS = ("grouped", "stratified-grouped", "leave-one-group-out")
_MOST_SIZES = 10


@dataclass(frozen=True, kw_only=True)
class FoldFile:
    """A fold file as it is, right or wrong.

    Attributes:
        ids: (N,) image ids; they may repeat.
        fold: (N,) int64; -1 never validates.
        scheme: How it says it was made; empty where it does not say.
        data_hash: Of the labels it says it was made from; empty where it does not say.
        unseen: (N,) True where it says that no image training the row's fold shows its combination; None where it
            does not say.
        edits_key: Of the edits to these labels; empty: there were none.
    """

    ids: Text
    fold: Ints
    scheme: str = ""
    data_hash: str = ""
    unseen: npt.NDArray[np.bool_] | None = None
    edits_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found: `LEAK` and `WRONG` fail."""

    verdict: Verdict
    text: str


def read_fold_file(path: Path, *, id_column: str = "id") -> FoldFile:
    """Read a fold file: parquet, or CSV with a column of ids and a column `fold`.

    Args:
        path: What `kaggle-kit folds` wrote, or a table from elsewhere.
        id_column: What the id column may be called beside `id`.

    Raises:
        DataError: When there is no such file, a column is missing, or a fold is no whole number.
    """
    if not path.is_file():
        raise DataError(f"there is no fold file {str(path)!r}; check its path")
    columns, meta = (read_columns(path), dict[str, str]()) if path.suffix == ".csv" else _read_parquet(path)
    ids = columns.get("id", columns.get(id_column))
    if ids is None or "fold" not in columns:
        absent = "fold" if ids is not None else id_column
        raise DataError(
            f"{path} has no column {absent!r}, but {some_of(columns, 9)}; name its columns {id_column!r} and 'fold', "
            "with commas between them"
        )
    numbers = columns["fold"].tolist()
    whole = [re.fullmatch(r"-?[0-9]{1,9}(\.0+)?", number) for number in numbers]
    if None in whole:
        row = whole.index(None)
        raise DataError(
            f"{path}: fold of {str(ids[row])!r} is {numbers[row]!r}, {whole.count(None):,} row(s) in all; expected "
            "0, 1, 2, ..., and -1 for an image that never validates"
        )
    return FoldFile(
        ids=ids,
        fold=np.array([int(number.partition(".")[0]) for number in numbers], np.int64),
        scheme=meta.get("scheme", ""),
        data_hash=meta.get("data_hash", ""),
        unseen=columns["unseen"] == "True" if meta and "unseen" in columns else None,
        edits_key=edits_key(edits_from_text(meta.get("edits", ""), where=path)),
    )


def _read_parquet(path: Path) -> tuple[dict[str, Text], dict[str, str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError):
        raise DataError(f"{path} is not a whole parquet or .csv file; make it again with `kaggle-kit folds`") from None
    columns = {
        name: np.array([str(value) for value in table[name].to_pylist()], np.str_) for name in table.column_names
    }
    return columns, {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def check_folds(labels: Labels, file: FoldFile, *, duplicates: Ints | None = None) -> list[Finding]:
    """Check a fold file against the labels and the images.

    Args:
        labels: What the label file says now.
        file: The fold file.
        duplicates: (N,) numbers in the labels' order, equal for equal images; None when images were not looked at.

    Returns:
        Findings, one a check; the file is proven when none is `LEAK` or `WRONG`.
    """
    findings = [*_check_ids(labels, file), *_check_numbers(file.fold)]
    rows = rows_of(labels.ids, np.unique(file.ids))
    if (rows < 0).all() or any(finding.verdict == "WRONG" for finding in _check_numbers(file.fold)):
        return findings
    kept = np.flatnonzero(rows >= 0)
    first = np.unique(file.ids, return_index=True)[1][rows[kept]]
    part, fold = labels.take(kept), file.fold[first]
    findings += _check_equal_images(part, fold, None if duplicates is None else duplicates[kept])
    findings += _check_groups(part, fold, file.scheme)
    findings += _check_classes(part, fold, file.scheme)
    findings += _check_unseen(part, fold, file.scheme, None if file.unseen is None else file.unseen[first])
    return findings


def check_made(labels: Labels, folds: Folds, *, duplicates: Ints | None = None) -> list[Finding]:
    """Check folds that were just made.

    Args:
        labels: Of the competition's images.
        folds: Of the same images.
        duplicates: As for `check_folds`.

    Returns:
        What `check_folds` finds.
    """
    file = FoldFile(
        ids=folds.ids,
        fold=folds.fold,
        scheme=folds.scheme,
        data_hash=folds.data_hash,
        unseen=folds.unseen,
        edits_key=edits_key(folds.edits),
    )
    return check_folds(labels, file, duplicates=duplicates)


def format_findings(findings: list[Finding]) -> list[str]:
    """Return a line a finding."""
    return [f"{finding.verdict:<6}{finding.text}" for finding in findings]


def label_deviation(classes: Ints, fold: Ints) -> float:
    """Return by how much a class's share in a fold differs from its share in all folds, on average.

    Args:
        classes: (N,) class indices of one head, or (N, C) of 0 and 1.
        fold: (N,) folds; rows of -1 are left out.
    """
    classes, fold = classes[fold >= 0], fold[fold >= 0]
    if classes.ndim == 2:
        shares = np.stack([classes[fold == one].mean(axis=0) for one in range(fold.max() + 1)])  # (folds, C)
        return float(np.abs(shares - classes.mean(axis=0)).mean())
    counts = np.bincount(classes * (fold.max() + 1) + fold, minlength=(classes.max() + 1) * (fold.max() + 1))
    table = counts.reshape(-1, fold.max() + 1)  # (classes, folds)
    return float(np.abs(table / table.sum(axis=0) - table.sum(axis=1, keepdims=True) / table.sum()).mean())


def _check_ids(labels: Labels, file: FoldFile) -> Iterator[Finding]:
    pairs = np.unique(np.stack([file.ids, file.fold.astype(np.str_)]), axis=1)[0]
    crossing = np.unique(pairs[1:][pairs[1:] == pairs[:-1]])
    values, counts = np.unique(file.ids, return_counts=True)
    if len(crossing):
        yield Finding(
            verdict="LEAK",
            text=f"{len(crossing):,} id(s) are in several folds: {some_of(crossing)}; keep one row of each",
        )
    elif (counts > 1).any():
        text = (
            f"{int((counts > 1).sum()):,} id(s) are listed more than once: {some_of(values[counts > 1])}; keep one row"
        )
        yield Finding(verdict="WRONG", text=text)
    absent = labels.ids[rows_of(labels.ids, values) < 0]
    foreign = values[rows_of(values, labels.ids) < 0]
    if len(absent):
        text = (
            f"{len(absent):,} of {len(labels):,} labelled images have no fold: {some_of(absent)}; make the folds again"
        )
        yield Finding(verdict="WRONG", text=text)
    if len(foreign):
        yield Finding(verdict="note", text=f"{len(foreign):,} id(s) have no label and are not used: {some_of(foreign)}")
    if not len(crossing) and not len(absent):
        yield Finding(verdict="ok", text=f"every labelled image has one fold; {_describe_sizes(file.fold)}")
    if file.data_hash and file.data_hash != labels_hash(labels):
        text = f"made from other labels (hash {file.data_hash}, now {labels_hash(labels)}); make the folds again"
        if file.edits_key and file.edits_key != edits_key(labels.edits):
            text += f", or check them with the --edits they were made with (hash {file.edits_key})"
        yield Finding(verdict="WRONG", text=text)


def _check_numbers(fold: Ints) -> Iterator[Finding]:
    if not len(fold):
        yield Finding(verdict="WRONG", text="the file has no rows; make the folds again")
    elif fold.min() < -1 or fold.max() >= len(fold):
        text = f"folds are numbered {fold.min()} to {fold.max()}; expected 0, 1, 2, ..., and -1 for never validating"
        yield Finding(verdict="WRONG", text=f"{text}; number them again")
    elif (np.bincount(fold[fold >= 0]) == 0).any():
        empty = int(np.argmin(np.bincount(fold[fold >= 0])))
        from_one = "; these start at 1: subtract 1" if fold.min() == 1 else ""
        text = f"fold {empty} validates no image; number the folds from 0 without gaps{from_one}"
        yield Finding(verdict="WRONG", text=text)
    elif len(np.unique(fold)) == 1 and fold[0] >= 0:
        yield Finding(verdict="WRONG", text="all images validate in one fold, so that none trains; divide them")


def _describe_sizes(fold: Ints) -> str:
    sizes = np.bincount(fold[fold >= 0])
    always = int((fold < 0).sum())
    parts = [f"{always:,} train every fold and validate none"] if always else []
    if len(sizes) > _MOST_SIZES:
        parts.insert(0, f"{len(sizes):,} folds of {sizes.min():,} to {sizes.max():,} images")
    elif len(sizes):
        parts.insert(0, f"folds of {', '.join(f'{size:,}' for size in sizes.tolist())} images")
    return "; ".join(parts)


def _crossing(numbers: Ints, fold: Ints) -> Ints:
    """Return which numbers lie in several folds."""
    pairs = np.unique(np.column_stack([numbers, fold]), axis=0)[:, 0]
    return np.unique(pairs[1:][pairs[1:] == pairs[:-1]])


def _check_equal_images(labels: Labels, fold: Ints, duplicates: Ints | None) -> Iterator[Finding]:
    if duplicates is None:
        yield Finding(verdict="note", text="images were not looked at: equal ones may lie in several folds")
        return
    crossing = _crossing(duplicates, fold)
    if len(crossing):
        examples = labels.ids[duplicates == crossing[0]]
        text = f"{len(crossing):,} set(s) of equal images lie in several folds, such as {some_of(examples)}"
        yield Finding(verdict="LEAK", text=f"{text}; make the folds again with `kaggle-kit folds`")
    else:
        yield Finding(verdict="ok", text="equal images lie in one fold")


def _check_groups(labels: Labels, fold: Ints, scheme: str) -> Iterator[Finding]:
    if labels.groups is None:
        return
    names, groups = np.unique(labels.groups, return_inverse=True)
    crossing = _crossing(groups.ravel(), fold)
    if not len(crossing):
        yield Finding(verdict="ok", text=f"each of {len(names):,} groups lies in one fold")
        return
    text = f"{len(crossing):,} of {len(names):,} groups lie in several folds, such as {some_of(names[crossing])}"
    if scheme in _WITH_GROUPS:
        yield Finding(verdict="LEAK", text=f"{text}; make the folds again")
    else:
        about = (
            f"scheme {scheme!r} does not keep groups together" if scheme else "if they must not, add --scheme grouped"
        )
        yield Finding(verdict="note", text=f"{text}; {about}")


def _check_classes(labels: Labels, fold: Ints, scheme: str) -> Iterator[Finding]:
    """Look for classes that validate in a fold and are not trained there, and say how alike the folds are."""
    num_folds = int(fold.max(initial=-1)) + 1
    if not num_folds:
        yield Finding(verdict="note", text="no image validates: everything trains")
        return
    untrained = untrained_classes(labels, fold)
    if untrained:
        text = f"{len(untrained):,} class(es) are not trained in the fold that validates them: {some_of(untrained)}"
        promised = scheme not in _WITH_GROUPS
        repair = "; make the folds again with --scheme stratified, or --rare train" if promised else ""
        yield Finding(verdict="WRONG" if promised else "note", text=text + repair)
    else:
        yield Finding(verdict="ok", text="every class of every head that validates is trained in that fold")
    if num_folds > 1:
        shares = [f"{head} {100 * label_deviation(classes, fold):.3f}" for head, classes in labels.classes.items()]
        text = f"a class's share in a fold is off by, in percentage points on average: {', '.join(shares)}"
        yield Finding(verdict="note", text=text)


def _check_unseen(labels: Labels, fold: Ints, scheme: str, said: npt.NDArray[np.bool_] | None) -> Iterator[Finding]:
    validating = fold >= 0
    if labels.combinations().shape[1] < 2 or not validating.any():
        return
    unseen = unseen_rows(labels, fold)
    if said is not None and (unseen & ~said).any():
        text = f"{int((unseen & ~said).sum()):,} image(s) of unseen combinations are marked as seen"
        yield Finding(verdict="WRONG", text=f"{text}; make the folds again")
    elif scheme == "unseen" and not unseen.any():
        yield Finding(verdict="WRONG", text="scheme 'unseen' holds no combination out; make the folds again")
    share = unseen.sum() / validating.sum()
    yield Finding(
        verdict="note",
        text=f"{int(unseen.sum()):,} of {int(validating.sum()):,} validating images ({share:.1%}) show a combination "
        "of heads that their fold does not train",
    )
