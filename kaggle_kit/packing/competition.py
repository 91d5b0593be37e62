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
from kaggle_kit.files import check_local
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.packing import find_packed, pack, plan_packing
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.progress import progress_bar, say
from kaggle_kit.sources import JoinedSource, PackedSource, Source, check_ids, open_source
from kaggle_kit.sources.packed import META, Kind, read_meta
from kaggle_kit.task import Images, Task, task_from_plain, task_to_plain

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


def find_train_store(task: Task, data: Path, folder: Path | None, beside: Sequence[Path]) -> PackedSource | None:
    """Return the packed store of a competition's train images, if there is one, and write nothing.

    Args:
        task: The competition, stored size known.
        data: Its data folder.
        folder: The store's place; None: any store of these images in or below one of `beside`.
        beside: Where to look.
    """
    if task.images.format == "packed":
        return _opened_packed(task, data, folder, None)
    if folder is not None:
        return find_packed(folder, _Wanted(task, data, tagged_of(folder)).key)
    found = (_find_beside(task, data, place, "auto")[2] for place in beside)
    return next((store for store in found if store is not None), None)


def pack_train(
    task: Task,
    data: Path,
    folder: Path | None = None,
    *,
    beside: Path = Path(),
    tagged: Sequence[Tagged] | None = None,
    kind: Kind | Literal["auto"] = "auto",
    num_workers: int | None = None,
    replace: bool = False,
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
        return _checked(_opened_packed(task, data, folder, tagged), task, data)
    if folder is not None:
        check_local(folder)
        wanted = _Wanted(task, data, tagged_of(folder) if tagged is None else tagged)
        store, there = folder, find_packed(folder, wanted.key, kind)
    else:
        wanted, store, there = _find_beside(task, data, beside, kind)
    if there is not None:
        say(f"packed images: {store}, unchanged")
        return _checked(there, task, data)
    if not replace and (store / META).is_file():
        PackedSource(store)  # says so where it is damaged
        raise DataError(
            f"{store} was packed from other files or settings than now (stored size {task.stored_size}); name another "
            "folder, leave it out, or replace it with `kaggle-kit pack`"
        )
    if replace and (store / META).is_file():
        say(f"replacing {store}, which holds other images or holds them otherwise")
    source, key = wanted.source, wanted.key
    wanted.compare_with_labels()
    say(f"{plan_packing(source, kind).arithmetic}; content {key.content}")
    with progress_bar(len(source), "packing", unit="image") as bar:
        notes = {"tagged": [_plain(one) for one in wanted.tagged]}
        return pack(source, store, key=key, kind=kind, num_workers=num_workers, notes=notes, advance=bar.update)


def pack_test(task: Task, data: Path, *, beside: Path) -> PackedSource:
    """Pack the test images that the competitor sees, unless they are packed already.

    Args:
        task: The competition, stored size known.
        data: Its data folder.
        beside: The store goes to `packed_images` in it, with a name made of what it holds.
    """
    source = open_source(task, "test", data, on_broken="blank")
    key = SourceKey(source, [task.stored, _read_as(task.images)])
    size = "x".join(map(str, task.stored_size))
    store = beside / DEFAULT_FOLDER / f"{task.name}-test-{size}-{key.short}"
    with progress_bar(len(source), "packing the test", unit="image") as bar:
        packed = pack(source, store, key=key, advance=bar.update)
    packed.verify()
    return packed


def tagged_of(folder: Path) -> list[Tagged]:
    """Return the further images that the store in this folder was packed with."""
    with contextlib.suppress(DataError):
        found = read_meta(folder)["notes"].get("tagged", [])
        return [Tagged(tag=one["tag"], task=task_from_plain(one["task"]), data=Path(one["data"])) for one in found]
    return []


class _Wanted:
    """The images that a store should hold, opened, and what they are known by."""

    def __init__(self, task: Task, data: Path, tagged: Sequence[Tagged]) -> None:
        self._task = task
        self._data = data
        self.tagged = tagged
        sources = {"": open_source(task, "train", data, on_broken="blank")}
        for one in tagged:
            if one.tag in sources:
                raise SettingError(f"tag {one.tag!r} is given twice; every added source needs its own")
            fitted = dataclasses.replace(one.task, stored=task.stored)
            sources[one.tag] = open_source(fitted, "train", one.data, on_broken="blank")
        self.source: Source = JoinedSource(sources) if tagged else sources[""]
        kinds = {"": task.images, **{one.tag: one.task.images for one in tagged}}
        self.key = SourceKey(self.source, [task.stored, {tag: _read_as(images) for tag, images in kinds.items()}])

    def compare_with_labels(self) -> None:
        """Refuse labels without an image; say how many images have no label."""
        own = read_labels(self._task, self._data).ids
        by_place = self._task.images.format == "array" and not self._task.labels.is_csv
        if by_place and not self.tagged and len(own) != len(self.source):
            raise DataError(
                f"{self._data / self._task.labels.file} holds {len(own):,} labels for {len(self.source):,} images of "
                f"{self.source.describe()}; they are matched by place: one file belongs to another"
            )
        check_ids(self.source, own, where=str(self._data / self._task.labels.file))
        others = [(one.labels().ids, str(one.data / one.task.labels.file)) for one in self.tagged]
        for ids, where in others:
            check_ids(self.source, ids, where=where)
        unlabelled = self.source.ids[~np.isin(self.source.ids, np.concatenate([own, *(ids for ids, _ in others)]))]
        if len(unlabelled):
            say(f"{len(unlabelled):,} images have no label and will not be trained on: {some_of(unlabelled)}")


def _read_as(images: Images) -> list[object]:
    """Return what decides about pixels; where they lie does not."""
    return [images.format, images.channels, images.height, images.width, images.image]


def _find_beside(
    task: Task, data: Path, beside: Path, kind: Kind | Literal["auto"]
) -> tuple[_Wanted, Path, PackedSource | None]:
    """Return a store of these images, whatever was added to it, or the place for a new one.

    What is packed is in a new store's name, so that none replaces another.
    """
    plain = _Wanted(task, data, ())
    stores = [path.parent for pattern in ("*", f"{DEFAULT_FOLDER}/*") for path in beside.glob(f"{pattern}/{META}")]
    for store in sorted(stores):
        tagged = tagged_of(store)
        with contextlib.suppress(DataError):
            wanted = _Wanted(task, data, tagged) if tagged else plain
            there = find_packed(store, wanted.key, kind)
            if there is not None:
                return wanted, store, there
    size = "x".join(map(str, task.stored_size))
    return plain, beside / DEFAULT_FOLDER / f"{task.name}-{size}-{plain.key.short}", None


def _opened_packed(task: Task, data: Path, folder: Path | None, tagged: Sequence[Tagged] | None) -> PackedSource:
    if folder is not None or tagged:
        raise SettingError("images of format 'packed' are packed already; leave the folder and added images out")
    source = open_source(task, "train", data)
    assert isinstance(source, PackedSource)
    return source


def _plain(tagged: Tagged) -> dict[str, Any]:
    return {"tag": tagged.tag, "task": task_to_plain(tagged.task), "data": str(tagged.data.resolve())}


def _checked(store: PackedSource, task: Task, data: Path) -> PackedSource:
    """Return the store, after reading it once: a flipped bit would be trained on for ever."""
    check_ids(store, read_labels(task, data).ids, where=str(data / task.labels.file))
    with progress_bar(len(store), "checking packed images", unit="image") as bar:
        store.verify(advance=bar.update)
    return store
