"""Pack a competition's train images, with other images added under tags, and find the store again."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.packing import Kind, find_packed, pack, plan_packing
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.progress import progress_bar, say
from kaggle_kit.sources import JoinedSource, PackedSource, Source, check_ids, open_source
from kaggle_kit.sources.packed import META, read_meta
from kaggle_kit.task import Task, task_from_plain, task_to_plain

DEFAULT_FOLDER = "packed_images"


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """Further labelled images: an older competition's, or one's own.

    Attributes:
        tag: Goes before their ids, as in `old/Train_7`.
        task: How they are read and labelled; needs the competition's heads, and gets its stored size.
        data: Their data folder.
    """

    tag: str
    task: Task
    data: Path

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.tag):
            raise SettingError(f"tag {self.tag!r} must be made of letters, digits, '.', '_' and '-'")

    def labels(self) -> Labels:
        """Return their labels, ids with the tag."""
        labels = read_labels(self.task, self.data)
        return dataclasses.replace(labels, ids=np.char.add(f"{self.tag}/", labels.ids))


def pack_train(
    task: Task,
    data: Path,
    folder: Path | None = None,
    *,
    beside: Path = Path(),
    tagged: Sequence[Tagged] | None = None,
    kind: Kind | Literal["auto"] = "auto",
    num_workers: int | None = None,
    replace: bool = True,
) -> PackedSource:
    """Pack a competition's train images, unless they are packed already; then check that none has changed.

    Broken images become zeros, named in the store's `broken`, and rows never shift.

    Args:
        task: The competition, stored size known.
        data: Its data folder.
        folder: The store's place; None: a store of these images in `beside`, or a new one in
            `beside/packed_images`, with a name made of what it holds.
        beside: Where to look, and where stores go that nobody named.
        tagged: Images to add; None: those of the store that is there.
        kind: `raw`, `encoded`, or `auto`.
        num_workers: Processes; None: chosen by the source and the cores.
        replace: Write over a store of other images; else that is an error.

    Raises:
        DataError: When the label file names images that are not there, or the store holds others.
    """
    if task.images.format == "packed":
        return _checked(_opened(task, data), task, data)
    if tagged is None:
        tagged = tagged_of(folder) if folder is not None else ()
    source = _opened(task, data, tagged)
    _compare_with_labels(source, task, data, tagged)
    key = SourceKey(source, [task.images, task.stored, [_plain(one) for one in tagged]])
    store = folder or _default_store(task, key, beside)
    there = find_packed(store, key, kind)
    if there is not None:
        say(f"packed images: {store}, unchanged")
        return _checked(there, task, data)
    if not replace and (store / META).is_file():
        raise DataError(
            f"{store} was packed from other files or settings than now (stored size {task.stored_size}); leave "
            "`packed` out, name another folder, or pack again with `kaggle-kit pack`"
        )
    say(f"{plan_packing(source, kind).arithmetic}; content {key.content}")
    with progress_bar(len(source), "packing", unit="image") as bar:
        extra = {"tagged": [_plain(one) for one in tagged]}
        return pack(
            source,
            store,
            key=key,
            stored=task.stored,
            kind=kind,
            num_workers=num_workers,
            notes=extra,
            advance=bar.update,
        )


def tagged_of(folder: Path) -> list[Tagged]:
    """Return the further images that the store in this folder was packed with."""
    with contextlib.suppress(DataError):
        found = read_meta(folder)["notes"].get("tagged", [])
        return [Tagged(tag=one["tag"], task=task_from_plain(one["task"]), data=Path(one["data"])) for one in found]
    return []


def _opened(task: Task, data: Path, tagged: Sequence[Tagged] = ()) -> Any:
    own = open_source(task, "train", data, on_broken="blank")
    if not tagged:
        return own
    assert task.stored is not None
    others: dict[str, Source] = {}
    for one in tagged:
        if one.tag in others:
            raise SettingError(f"tag {one.tag!r} is given twice; every added source needs its own")
        fitted = one.task.with_stored(task.stored)
        others[one.tag] = open_source(fitted, "train", one.data, on_broken="blank")
    return JoinedSource({"": own, **others})


def _compare_with_labels(source: Source, task: Task, data: Path, tagged: Sequence[Tagged]) -> None:
    """Refuse labels without an image; say how many images have no label."""
    labelled = np.concatenate([read_labels(task, data).ids, *(one.labels().ids for one in tagged)])
    check_ids(source, labelled, where=str(data / task.labels.file))
    unlabelled = source.ids[~np.isin(source.ids, labelled)]
    if len(unlabelled):
        say(f"{len(unlabelled):,} images have no label and will not be trained on: {some_of(unlabelled)}")


def _plain(tagged: Tagged) -> dict[str, Any]:
    return {"tag": tagged.tag, "task": task_to_plain(tagged.task), "data": str(tagged.data.resolve())}


def _checked(store: PackedSource, task: Task, data: Path) -> PackedSource:
    """Return the store, after reading it once: a flipped bit would be trained on for ever."""
    check_ids(store, read_labels(task, data).ids, where=str(data / task.labels.file))
    with progress_bar(len(store), "checking packed images", unit="image") as bar:
        store.verify(advance=bar.update)
    return store


def _default_store(task: Task, key: SourceKey, beside: Path) -> Path:
    """Return a store of just these images, or a new place: what is packed is in its name, so none replaces another.

    Stores whose files have the same sizes and times are looked for first: contents need not be hashed then.
    """
    stores = [path.parent for pattern in ("*", f"{DEFAULT_FOLDER}/*") for path in beside.glob(f"{pattern}/{META}")]
    for there in sorted(stores):
        with contextlib.suppress(DataError):
            known = read_meta(there)["key"]
            if (known["settings"], known["stats"]) == (key.settings, key.stats):
                return there
    size = "x".join(map(str, task.stored_size))
    return beside / DEFAULT_FOLDER / f"{task.name}-{size}-{key.short}"
