"""Open what there is of a competition's images, and tell what is named and not there, or there and not named."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kaggle_kit.audit.findings import Finding, Split
from kaggle_kit.errors import DataError, KitError
from kaggle_kit.pixels import Image
from kaggle_kit.sources import PackedSource, Source, image_folder, listed_ids, open_source
from kaggle_kit.sources.encoded import EncodedSource
from kaggle_kit.sources.files import IMAGE_SUFFIXES, ZIP_ERRORS, list_files, open_files
from kaggle_kit.submission import check_columns, expected_images, expected_rows
from kaggle_kit.tables import Text
from kaggle_kit.task import Task

NOTHING: Text = np.zeros(0, np.str_)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The images of a competition that are there.

    Attributes:
        sources: {split: its images}, "train" first; "test" only where there is one.
        absent: {split: ids that the label file, test list or sample submission names and that have no image}.
        unnamed: {split: ids of images that neither label file nor sample submission names}.
        stray: Files in the image folders that nothing names, relative to their folder.
        misnamed: {split: files whose names are no UTF-8}, which no file can hold as ids: they are left out, and written
            here with backslashes.
        notes: What could not be opened, a sentence each.
    """

    sources: dict[Split, Source]
    absent: dict[Split, Text]
    unnamed: dict[Split, Text]
    stray: Text = field(default_factory=lambda: NOTHING)
    misnamed: dict[Split, Text] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def read(self, split: Split, rows: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield (row, image as the source gives it) of rows of a split, ascending; broken ones are left out.

        Bare pixels are read in one pass, chunk by chunk: a shard of wide parquet cannot be read at random.
        """
        source, wanted = self.sources[split], sorted(set(rows))
        if source.encoded_bytes() is None:
            for start, stop in _spans(wanted, source):
                for chunk in source.chunks(start=start, stop=stop):
                    for row in (row for row in wanted if chunk.start <= row < chunk.stop):
                        if str(source.ids[row]) not in chunk.broken:
                            yield row, chunk.images[row - chunk.start]
            return
        for row in wanted:
            try:
                yield row, source.read(row)
            except DataError:
                continue


def _spans(wanted: list[int], source: Source) -> list[tuple[int, int]]:
    """Return (start, stop) of the wanted rows in each part of a source that has any."""
    spans = []
    for part in source.parts():
        inside = [row for row in wanted if part.start <= row < part.stop]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return spans


def open_splits(task: Task, data: Path, label_ids: Text, *, packed: Path | None = None) -> Opened:
    """Open the train images and, where there are any, the test images, at their own size.

    Args:
        task: The competition.
        data: Its data folder.
        label_ids: (N,) ids of the label file, those of misnamed files left out.
        packed: A packed store of the train images to read in place of the competition's files.

    Raises:
        DataError: When the train images cannot be opened.
    """
    bare = task if task.stored is None else _without_stored(task)
    train, lost = _open_present(bare, "train", data) if packed is None else (PackedSource(packed), NOTHING)
    sources: dict[Split, Source] = {"train": train}
    lacking: dict[Split, Text] = {"train": lost, "test": NOTHING}
    notes: list[str] = []
    try:
        sources["test"], lacking["test"] = _open_present(bare, "test", data)
    except DataError as error:
        notes.append(f"The test was left out: {error}.")
    asked, asking_note = _asked_ids(task, data)
    notes += [asking_note] if asking_note and "test" in sources else []
    try:
        check_columns(task, data)
    except DataError as error:
        notes.append(f"No submission would be taken: {error}.")
    there: dict[Split, Text] = {split: source.ids for split, source in sources.items()}
    misnamed = {split: _printable(ids[~writable(ids)]) for split, ids in lacking.items()}
    lacking = {split: ids[writable(ids)] for split, ids in lacking.items()}
    absent: dict[Split, Text] = {"train": _union(lacking["train"], _lacking(label_ids, train.ids))}
    unnamed: dict[Split, Text] = {"train": _lacking(train.ids, label_ids)}
    if "test" in there:
        absent["test"] = _union(lacking["test"], NOTHING if asked is None else _lacking(asked, there["test"]))
        unnamed["test"] = NOTHING if asked is None else _lacking(there["test"], asked)
    stray = _stray_files(bare, data, [*there.values(), label_ids]) if packed is None else NOTHING
    return Opened(sources=sources, absent=absent, unnamed=unnamed, stray=stray, misnamed=misnamed, notes=tuple(notes))


def id_findings(opened: Opened, task: Task) -> list[Finding]:
    """Return a finding for each id that is in one place and not in the other."""
    namer: dict[Split, str] = {
        "train": task.labels.file or task.images.folder,
        "test": task.images.test_list or task.submission.file,
    }
    found = [
        Finding(kind="missing_image", id=name, split=split, score=1, detail=f"named by {namer[split]}, and no image")
        for split, ids in opened.absent.items()
        for name in ids.tolist()
    ]
    found += [
        Finding(kind="broken", id=name, split=split, score=1, detail="its file's name is no UTF-8; rename the file")
        for split, names in opened.misnamed.items()
        for name in names.tolist()
    ]
    reasons: dict[Split, str] = {
        "train": f"an image that {namer['train']} does not name: nothing is trained on it",
        "test": f"an image that {task.submission.file} does not ask for",
    }
    found += [
        Finding(kind="missing_label", id=name, split=split, score=1, detail=reasons[split])
        for split, ids in opened.unnamed.items()
        for name in ids.tolist()
    ]
    stray = "a file in the image folder that neither the label file nor the test list names"
    found += [
        Finding(kind="missing_label", id=name, split="train", score=0.5, detail=stray) for name in opened.stray.tolist()
    ]
    return found


def _without_stored(task: Task) -> Task:
    """Return the task with images at their own size; a packed format's are stored, and stay so."""
    import dataclasses

    return dataclasses.replace(task, stored=None)


def _open_present(task: Task, split: Split, data: Path) -> tuple[Source, Text]:
    """Return the images of a split that are there, and the ids of those that are named and not there, or misnamed."""
    if task.images.format != "files":
        return open_source(task, split, data, on_broken="blank"), NOTHING
    whole = open_source(task, split, data, on_broken="blank", lacking_ok=True)
    assert isinstance(whole, EncodedSource)
    lacking = ~(_there(whole) & writable(whole.ids))
    if not lacking.any():
        return open_source(task, split, data, on_broken="blank"), NOTHING
    ids = listed_ids(task, split, data)
    blobs = open_files(
        image_folder(task, split, data),
        ids[~lacking],
        suffix=task.images.suffix,
        class_folders=task.images.class_folders and split == "train",
    )
    channels = task.images.channels
    present = EncodedSource(blobs, ids=ids[~lacking], channels=channels, stored=None, on_broken="blank")
    return present, ids[lacking]


def _there(source: EncodedSource) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return (N,) whether each image's file, or member of an archive, is there; a link that leads nowhere is not."""
    files = source.files()
    if not len(source):
        return np.zeros(0, bool)
    if len(files) == len(source) and files[0].suffix.lower() != ".zip":
        return np.array([path.is_file() for path in files], bool)
    archive = files[0]
    with zipfile.ZipFile(archive) as opened:
        members = {str(archive / name) for name in opened.namelist()}
    return np.array([source.blobs.name(row) in members for row in range(len(source))], bool)


def _asked_ids(task: Task, data: Path) -> tuple[Text | None, str]:
    """Return the images that the sample submission asks about, or None and why not."""
    try:
        return expected_images(task, expected_rows(task, data)), ""
    except KitError as error:
        return None, f"Test images were not compared with the sample submission: {error}."


def _stray_files(task: Task, data: Path, named: list[Text]) -> Text:
    """Return the image files in a task's folders that none of the lists names."""
    if task.images.format != "files" or task.images.class_folders:
        return NOTHING
    known = {f"{name}{task.images.suffix}" for ids in named for name in ids.tolist()}
    stray: list[str] = []
    splits: tuple[Split, ...] = ("train", "test")
    for folder in dict.fromkeys(image_folder(task, split, data) for split in splits):
        stray += [name for name in _list_folder(folder, known) if name.lower().endswith(IMAGE_SUFFIXES)]
    return np.unique(_printable(np.array(sorted(set(stray) - known), np.str_)))


def _list_folder(folder: Path, known: set[str]) -> list[str]:
    """Return the names of the files below a folder, or below a place in an archive; none where there is no such."""
    archive = next((path for path in (folder, *folder.parents) if path.suffix == ".zip" and path.is_file()), None)
    if archive is None:
        return list_files(folder, nested=any("/" in name for name in known)) if folder.is_dir() else []
    inside = folder.relative_to(archive).as_posix().removeprefix(".")
    prefix = f"{inside}/" if inside else ""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name.removeprefix(prefix) for name in opened.namelist() if name.startswith(prefix)]
    except ZIP_ERRORS:
        return []
    return [name for name in names if not name.startswith("__MACOSX")]


def writable(ids: Text) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return (N,) whether each id can be written to a file: what is named in no UTF-8 cannot."""
    names = ids.tolist()
    is_bad = [not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name) for name in names]
    return ~np.array(is_bad, bool)


def _printable(names: Text) -> Text:
    """Return names with bytes that are no UTF-8 written with backslashes."""
    return np.array(
        [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in names.tolist()],
        np.str_,
    )


def _lacking(wanted: Text, there: Text) -> Text:
    return wanted[~np.isin(wanted, there)]


def _union(*parts: Text) -> Text:
    return np.unique(np.concatenate([part.astype(np.str_) for part in parts]))
