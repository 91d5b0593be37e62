"""Every format gives the ids and pixels that Pillow, pandas and numpy read from the same files."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image as Pillow
from pyarrow import parquet

from kaggle_kit.errors import DataError, ImageError, KitError, SettingError
from kaggle_kit.labels import read_labels
from kaggle_kit.packing import pack
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.sources import JoinedSource, PackedSource, Source, open_source, read_images, resolve_stored
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, task_from_plain

HEIGHT, WIDTH = 14, 10
NUM = 11
CLASSES = ("cat", "dog")
FASHION = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion_mnist"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A competition of one format, and what others read from its files.

    Attributes:
        ids: In order.
        images: (N, H, W, C) uint8.
    """

    task: Task
    data: Path
    ids: list[str]
    images: np.ndarray

    def open(self) -> Source:
        return open_source(self.task, "train", self.data)


def task_of(*, labels: dict[str, str] | None = None, stored: Any = (HEIGHT, WIDTH), **images: object) -> Task:
    return task_from_plain(
        {
            "name": "toy",
            "heads": {"kind": {"classes": list(CLASSES)}},
            "metric": "accuracy",
            "images": images,
            "labels": labels if labels is not None else {},
            "stored": stored and {"height": stored[0], "width": stored[1]},
            "submission": {"form": "row_per_image"},
        }
    )


def draw(num: int, channels: int = 3, *, size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, *size, channels), np.uint8)


def encode(image: np.ndarray, form: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(image.squeeze()).save(buffer, form, **options)
    return buffer.getvalue()


def by_pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(data)).convert(mode)).reshape(
        *Pillow.open(io.BytesIO(data)).size[::-1], -1
    )


def stacked(images: Sequence[np.ndarray], channels: int = 3) -> np.ndarray:
    return np.stack(images) if len(images) else np.zeros((0, HEIGHT, WIDTH, channels), np.uint8)


def all_images(source: Source) -> np.ndarray:
    return stacked([image for chunk in source.chunks() for image in chunk.images], source.shape[2])


def some_names(num: int) -> list[str]:
    """Names in an order that is not the alphabet's."""
    return [f"img_{(7 * i + 3) % 1009}" for i in range(num)]


def write_list(data: Path, ids: Sequence[str], name: str = "train.csv") -> None:
    write_rows(data / name, ["image_id", "kind"], [[image_id, CLASSES[i % 2]] for i, image_id in enumerate(ids)])


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(contents.items()):
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)


def make_parquet(data: Path, num: int, *, as_struct: bool = False) -> Made:
    names = [f"folder/{name}.png" for name in some_names(num)] if as_struct else list(range(100, 100 + num))
    blobs = [encode(image) for image in draw(num)]
    for shard, rows in enumerate(np.array_split(np.arange(num), 3)):
        if as_struct:
            image = pa.array(
                [{"bytes": blobs[i], "path": names[i]} for i in rows],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
            table = pa.table({"label": pa.array([0] * len(rows), pa.int64()), "image": image})
        else:
            ids = pa.array([names[i] for i in rows], pa.int64())
            table = pa.table({"image_id": ids, "image": pa.array([blobs[i] for i in rows], pa.large_binary())})
        parquet.write_table(table, data / f"train-{shard:05d}-of-00003.parquet", row_group_size=2)
    frame = pd.concat([pd.read_parquet(path) for path in sorted(data.glob("*.parquet"))])
    column = "image.path" if as_struct else "image_id"
    ids = [value["path"] for value in frame["image"]] if as_struct else frame["image_id"].astype(str).tolist()
    contents = [value["bytes"] for value in frame["image"]] if as_struct else frame["image"].tolist()
    task = task_of(format="encoded_parquet", train="train-*.parquet", test="train-*.parquet", id=column)
    return Made(task=task, data=data, ids=ids, images=stacked([by_pillow(content) for content in contents]))


def make_files(data: Path, num: int, *, nested: bool = False, archive: str = "") -> Made:
    names = [f"{name[-1]}/{name}" if nested else name for name in some_names(num)]
    contents = {f"{name}.png": encode(image) for name, image in zip(names, draw(num), strict=True)}
    inside = archive.partition("/")[2]
    if archive:
        write_zip(data / "images.zip", {f"{inside}/{name}".strip("/"): blob for name, blob in contents.items()})
    else:
        (data / "images").mkdir()
        write_files(data / "images", {**contents, "not_listed.png": b"?"})
    write_list(data, names)
    images = [by_pillow(contents[f"{name}.png"]) for name in pd.read_csv(data / "train.csv")["image_id"]]
    task = task_of(format="files", folder=archive or "images", suffix=".png", test_list="train.csv")
    return Made(task=task, data=data, ids=names, images=stacked(images))


def make_class_folders(data: Path, num: int, *, listed: bool, archive: bool = False) -> Made:
    names = [f"{name}.png" for name in some_names(num)]
    contents = {f"{CLASSES[i % 2]}/{name}": encode(draw(num)[i]) for i, name in enumerate(names)}
    junk = {".ipynb_checkpoints/img_3.png": b"", "__MACOSX/img_3.png": b"", "read.me": b"", "cat/.DS_Store": b""}
    if archive:
        write_zip(data / "images.zip", {**contents, **junk})
    else:
        write_files(data / "images", {**contents, **junk})
    write_list(data, names)
    folder = "images.zip" if archive else "images"
    labels = {} if listed else {"file": ""}
    task = task_of(format="files", folder=folder, class_folders=True, test_list="train.csv", labels=labels)
    ids = names if listed else sorted(contents)
    return Made(task=task, data=data, ids=ids, images=stacked([by_pillow(contents[p]) for p in in_folders(ids, names)]))


def in_folders(ids: Sequence[str], names: Sequence[str]) -> list[str]:
    return [name if "/" in name else f"{CLASSES[names.index(name) % 2]}/{name}" for name in ids]


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def make_npy(data: Path, num: int, *, channels: int) -> Made:
    images = draw(num, channels)
    np.save(data / "images.npy", images if channels == 3 else images[..., 0])
    write_list(data, some_names(num))
    task = task_of(format="array", train="images.npy", test="images.npy", channels=channels)
    return Made(task=task, data=data, ids=some_names(num), images=images)


def make_idx(data: Path, num: int, *, suffix: str = "") -> Made:
    name, labels = f"images-idx3-ubyte{suffix}", f"labels-idx1-ubyte{suffix}"
    write_idx(data / name, draw(num, 1)[..., 0])
    write_idx(data / labels, np.arange(num, dtype=np.uint8) % 2)
    task = task_of(format="array", train=name, test=name, channels=1, labels={"file": labels})
    numbered = task_from_plain({**plain_of(task), "heads": {"kind": {"classes": 2}}})
    return Made(task=numbered, data=data, ids=[str(row) for row in range(num)], images=draw(num, 1))


def plain_of(task: Task) -> dict[str, Any]:
    from kaggle_kit.task import task_to_plain

    return task_to_plain(task)


def make_packed(data: Path, num: int, *, kind: Any) -> Made:
    made = make_files(data, num)
    source = made.open()
    pack(source, data / "packed", key=SourceKey(source, None), kind=kind)
    task = task_of(format="packed", train="packed", test="packed")
    return Made(task=task, data=data, ids=made.ids, images=made.images)


MAKERS: dict[str, Callable[[Path, int], Made]] = {
    "parquet of binaries": make_parquet,
    "parquet of structs": lambda data, num: make_parquet(data, num, as_struct=True),
    "files": make_files,
    "files, nested ids": lambda data, num: make_files(data, num, nested=True),
    "files in class folders": lambda data, num: make_class_folders(data, num, listed=True),
    "zip": lambda data, num: make_files(data, num, archive="images.zip"),
    "folder in a zip": lambda data, num: make_files(data, num, archive="images.zip/train/png"),
    "nested ids in a zip": lambda data, num: make_files(data, num, archive="images.zip/train", nested=True),
    "class folders in a zip": lambda data, num: make_class_folders(data, num, listed=True, archive=True),
    "gray npy": lambda data, num: make_npy(data, num, channels=1),
    "RGB npy": lambda data, num: make_npy(data, num, channels=3),
    "idx": make_idx,
    "idx gzipped": lambda data, num: make_idx(data, num, suffix=".gz"),
    "packed raw": lambda data, num: make_packed(data, num, kind="raw"),
    "packed encoded": lambda data, num: make_packed(data, num, kind="encoded"),
}
# Without a list, folders of nothing are no classes.
MAKERS_OF_ONE = {
    **MAKERS,
    "class folders without a list": lambda data, num: make_class_folders(data, num, listed=False),
    "class folders in a zip without a list": lambda data, num: make_class_folders(
        data, num, listed=False, archive=True
    ),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chunks, jobs and parts end within a few images."""
    from kaggle_kit.sources import arrays, encoded, packed

    monkeypatch.setattr(encoded, "MAX_IMAGES_AT_ONCE", 4)
    monkeypatch.setattr(encoded, "IMAGES_A_JOB", 3)
    monkeypatch.setattr(encoded, "ROWS_A_PART", 5)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 3 * HEIGHT * WIDTH)
    monkeypatch.setattr(packed, "CHUNK_BYTES", 9 * HEIGHT * WIDTH)


@pytest.fixture(params=MAKERS_OF_ONE)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return MAKERS_OF_ONE[request.param](tmp_path, NUM)


@pytest.fixture(scope="module")
def other_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_ids_order_pixels_and_sizes_are_those_of_the_files(made: Made) -> None:
    source = made.open()
    assert source.ids.tolist() == made.ids
    assert source.shape == made.images.shape[1:]
    assert (all_images(source) == made.images).all()
    assert all((chunk.sizes == (HEIGHT, WIDTH)).all() and not chunk.broken for chunk in source.chunks())
    assert all(path.is_file() for path in source.files())
    assert str(made.data) in source.describe()


def test_images_read_one_by_one_in_any_order_are_those_of_the_chunks(made: Made) -> None:
    source = made.open()
    for row in (NUM - 1, 0, 5, 4, 5, 7, 1):
        assert (source.read(row) == made.images[row]).all()


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 0), (3, 3), (NUM, None), (0, 1), (2, 5), (4, 9), (5, NUM), (1, NUM + 5)]
)
def test_any_range_of_rows_is_read_in_order_and_put_in_place(made: Made, start: int, stop: int | None) -> None:
    into = np.full(made.images.shape, 77, np.uint8)
    source, expected = made.open(), into.copy()
    expected[start:stop] = made.images[start:stop]
    for chunk in source.chunks(start=start, stop=stop, into=into):
        assert np.shares_memory(chunk.images, into)
    assert (into == expected).all()
    chunks = list(source.chunks(start=start, stop=stop))
    assert [name for chunk in chunks for name in chunk.ids.tolist()] == made.ids[start:stop]
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(NUM)[start:stop])
    assert all((chunk.images == made.images[chunk.start : chunk.stop]).all() for chunk in chunks)


def test_parts_cover_all_rows_once_in_order(made: Made) -> None:
    assert [row for part in made.open().parts() for row in part] == list(range(NUM))


def test_images_without_a_stored_size_are_read_as_they_are(made: Made) -> None:
    task = task_from_plain({**plain_of(made.task), "stored": None})
    source = open_source(task, "train", made.data)
    assert np.concatenate([chunk.images for chunk in source.chunks()]).shape == made.images.shape
    assert all((source.read(row) == image).all() for row, image in enumerate(made.images))
    found = resolve_stored(task, made.data).stored
    assert found is not None
    if source.shape != "varies":
        assert (found.height, found.width, found.fit) == (HEIGHT, WIDTH, "none")


def test_another_process_reads_the_same(made: Made, other_process: ProcessPoolExecutor) -> None:
    source = made.open()
    source.read(0)  # open handles do not travel
    assert (other_process.submit(read_images, source).result() == made.images).all()


def test_labels_belong_to_the_images(made: Made) -> None:
    if made.task.images.format == "encoded_parquet":
        write_list(made.data, made.ids)
    labels = read_labels(made.task, made.data)
    assert labels.ids.tolist() == made.ids
    by_folder = [CLASSES.index(name.split("/")[0]) for name in made.ids if made.task.labels.file == ""]
    assert labels.classes["kind"].tolist() == (by_folder or [row % 2 for row in range(NUM)])


@pytest.mark.parametrize("num", [0, 1])
@pytest.mark.parametrize("name", MAKERS)
def test_no_and_one_image_are_read(name: str, num: int, tmp_path: Path) -> None:
    made = MAKERS[name](tmp_path, num)
    source = made.open()
    assert len(source) == len(source.ids) == num
    assert (read_images(source) == made.images).all()
    assert (all_images(source) == made.images).all()
    assert [row for part in source.parts() for row in part] == list(range(num))


@pytest.mark.parametrize("name", ["files", "gray npy", "packed raw", "parquet of structs"])
def test_rows_beyond_the_last_are_an_index_error(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path, 2).open()
    for one in (source, JoinedSource({"": source})):
        with pytest.raises(IndexError):
            one.read(2)


def test_class_folders_may_have_a_suffix_that_ids_lack(tmp_path: Path) -> None:
    made = make_class_folders(tmp_path, NUM, listed=False)
    write_list(tmp_path, ["img_3"], "test.csv")
    images = {**plain_of(made.task)["images"], "suffix": ".png", "test_folder": "test", "test_list": "test.csv"}
    task = task_from_plain({**plain_of(made.task), "images": images})
    write_files(tmp_path / "test", {"img_3.png": encode(draw(1)[0])})
    source = open_source(task, "train", tmp_path)
    assert (
        source.ids.tolist()
        == [name.removesuffix(".png") for name in made.ids]
        == read_labels(task, tmp_path).ids.tolist()
    )
    assert (all_images(source) == made.images).all()
    assert (all_images(open_source(task, "test", tmp_path)) == draw(1)).all()


@pytest.mark.parametrize("place", ["test", "test.zip", "both.zip/test"])
def test_test_images_may_lie_elsewhere(tmp_path: Path, place: str) -> None:
    made = make_files(tmp_path, 3)
    contents = {f"{name}.png": encode(image) for name, image in zip("ba", draw(2, seed=5), strict=True)}
    if place == "test":
        write_files(tmp_path / "test", contents)
    else:
        inside = place.partition("/")[2]
        write_zip(tmp_path / place.split("/")[0], {f"{inside}/{n}".strip("/"): b for n, b in contents.items()})
    write_list(tmp_path, ["b", "a"], "test.csv")
    images = {**plain_of(made.task)["images"], "test_folder": place, "test_list": "test.csv"}
    source = open_source(task_from_plain({**plain_of(made.task), "images": images}), "test", tmp_path)
    assert source.ids.tolist() == ["b", "a"]
    assert (all_images(source) == draw(2, seed=5)).all()


def test_images_of_several_sizes_come_in_chunks_of_one_size_each(tmp_path: Path) -> None:
    sizes = [(14, 10), (14, 10), (9, 9), (14, 10), (20, 30), (20, 30), (20, 30), (9, 9)]
    drawn = [draw(1, size=size, seed=row)[0] for row, size in enumerate(sizes)]
    write_files(tmp_path / "images", {f"{row}.png": encode(image) for row, image in enumerate(drawn)})
    write_list(tmp_path, [f"{row}.png" for row in range(len(sizes))])
    task = task_of(format="files", folder="images", test_list="train.csv", stored=None)
    source = open_source(task, "train", tmp_path)
    assert source.shape == "varies"
    chunks = list(source.chunks())
    assert [size for chunk in chunks for size in map(tuple, chunk.sizes.tolist())] == sizes
    assert [chunk.start for chunk in chunks] == [0, 2, 3, 4, 7]  # four images are decoded at once
    rows = [image for chunk in chunks for image in chunk.images]
    assert all((row == image).all() for row, image in zip(rows, drawn, strict=True))
    with pytest.raises(ValueError, match="have no stored size"):
        read_images(source)


def test_jpeg_is_what_pillow_makes_of_it(tmp_path: Path) -> None:
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:200:14j, 0:200:10j], 90), axis=2).astype(np.uint8)
    blob = encode(smooth, "jpeg", quality=92)
    write_files(tmp_path / "images", {"a.jpg": blob})
    write_list(tmp_path, ["a.jpg"])
    source = open_source(task_of(format="files", folder="images", test_list="train.csv"), "train", tmp_path)
    assert np.abs(source.read(0).astype(int) - by_pillow(blob)).max() <= 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("drawn", [1, 3])
@pytest.mark.parametrize("form", ["files", "array", "encoded_parquet"])
def test_gray_is_repeated_and_colour_turned_to_gray(tmp_path: Path, form: str, drawn: int, channels: int) -> None:
    images = draw(4, drawn)
    names = [f"{row}.png" for row in range(4)]
    blobs = [encode(image) for image in images]
    write_list(tmp_path, names)
    write_files(tmp_path / "images", dict(zip(names, blobs, strict=True)))
    np.save(tmp_path / "images.npy", images)
    parquet.write_table(pa.table({"image_id": names, "image": blobs}), tmp_path / "images.parquet")
    where = {
        "files": {"folder": "images", "test_list": "train.csv"},
        "array": {"train": "images.npy", "test": "images.npy"},
        "encoded_parquet": {"train": "images.parquet", "test": "images.parquet"},
    }
    source = open_source(task_of(format=form, channels=channels, **where[form]), "train", tmp_path)
    expected = np.stack([by_pillow(blob, "L" if channels == 1 else "RGB") for blob in blobs])
    assert source.shape == (HEIGHT, WIDTH, channels)
    assert np.abs(all_images(source).astype(int) - expected).max() <= (1 if drawn > channels else 0)
    assert (source.read(2) == all_images(source)[2]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_fashion_mnist_is_read_as_it_comes(channels: int) -> None:
    if not FASHION.is_dir():
        pytest.skip("the repository has no ../shared/data/fashion_mnist beside it")
    name, labels = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
    plain = plain_of(task_of(format="array", train=name, test=name, channels=channels, labels={"file": labels}))
    task = task_from_plain({**plain, "heads": {"kind": {"classes": 10}}, "stored": None})
    expected = np.frombuffer(gzip.decompress((FASHION / name).read_bytes()), np.uint8, offset=16)
    source = open_source(task, "train", FASHION)
    assert source.shape == (28, 28, channels)
    assert source.ids.tolist() == [str(row) for row in range(10_000)]
    assert (read_images(source) == expected.reshape(-1, 28, 28, 1)).all()
    found = read_labels(task, FASHION).classes["kind"]
    assert (found == np.frombuffer(gzip.decompress((FASHION / labels).read_bytes()), np.uint8, offset=8)).all()
    assert np.bincount(found).tolist() == [1000] * 10


def test_arrays_take_their_ids_from_a_csv_for_train_and_test(tmp_path: Path) -> None:
    made = make_npy(tmp_path, 3, channels=1)
    np.save(tmp_path / "test.npy", draw(2, 1, seed=9))
    write_list(tmp_path, ["y", "x"], "test.csv")
    images = {**plain_of(made.task)["images"], "test": "test.npy"}
    by_number = task_from_plain({**plain_of(made.task), "images": images})
    by_list = task_from_plain({**plain_of(made.task), "images": {**images, "test_list": "test.csv"}})
    assert open_source(by_number, "test", tmp_path).ids.tolist() == ["0", "1"]
    source = open_source(by_list, "test", tmp_path)
    assert source.ids.tolist() == ["y", "x"]
    assert (read_images(source) == draw(2, 1, seed=9)).all()


def test_joined_sources_read_like_one(tmp_path: Path, other_process: ProcessPoolExecutor) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "old").mkdir()
    own, old = make_files(tmp_path / "own", 5), make_parquet(tmp_path / "old", 6, as_struct=True)
    source = JoinedSource({"": own.open(), "old": old.open()})
    images = np.concatenate([own.images, old.images])
    assert source.ids.tolist() == own.ids + [f"old/{name}" for name in old.ids]
    assert source.tags == {"": range(5), "old": range(5, 11)}
    assert [row for part in source.parts() for row in part] == list(range(11))
    assert (read_images(source) == images).all()
    assert all((source.read(row) == images[row]).all() for row in (10, 4, 5, 0))
    for start, stop in ((3, 7), (5, 6), (0, 5), (4, 4), (8, None)):
        found = [image for chunk in source.chunks(start=start, stop=stop) for image in chunk.images]
        assert (np.array(found).reshape(-1, *images.shape[1:]) == images[start:stop]).all()
    assert (other_process.submit(read_images, source).result() == images).all()
    with pytest.raises(DataError, match=r"more than once: 'a/img_3'"):
        JoinedSource({"a": own.open(), "": renamed(own.open(), "a/img_3")})
    with pytest.raises(DataError, match=r"have shapes .* give their tasks one stored size and channels"):
        gray = task_from_plain({**plain_of(own.task), "images": {**plain_of(own.task)["images"], "channels": 1}})
        JoinedSource({"": own.open(), "gray": open_source(gray, "train", own.data)})


def renamed(source: Any, first: str) -> Source:
    source.ids = np.array([first, *source.ids[1:].tolist()])
    return source


@pytest.mark.parametrize("kind", ["raw", "encoded"])
def test_broken_images_are_blank_and_counted_or_an_error_that_names_them(tmp_path: Path, kind: Any) -> None:
    made = make_files(tmp_path, NUM)
    write_files(tmp_path / "images", {f"{made.ids[2]}.png": b"broken", f"{made.ids[6]}.png": b""})
    with pytest.raises(ImageError, match=rf"^image '{made.ids[2]}', .*images/{made.ids[2]}.png: "):
        list(made.open().chunks())
    expected = made.images.copy()
    expected[[2, 6]] = 0
    blank = open_source(made.task, "train", tmp_path, on_broken="blank")
    store = pack(blank, tmp_path / "packed", key=SourceKey(blank, None), kind=kind)
    store.verify()
    for source in (blank, store, JoinedSource({"": store})):
        chunks = list(source.chunks())
        assert (np.concatenate([chunk.images for chunk in chunks]) == expected).all()
        broken = {name: reason for chunk in chunks for name, reason in chunk.broken.items()}
        assert set(broken) == {made.ids[2], made.ids[6]}
        assert f"images/{made.ids[2]}.png: " in broken[made.ids[2]]
        sizes = np.concatenate([chunk.sizes for chunk in chunks])
        assert np.flatnonzero((sizes == 0).all(axis=1)).tolist() == [2, 6]
    with pytest.raises(ImageError, match=f"image '{made.ids[6]}'"):
        blank.read(6)


def test_a_store_of_broken_images_only_can_be_opened(tmp_path: Path) -> None:
    made = make_files(tmp_path, 3)
    write_files(tmp_path / "images", {f"{name}.png": b"broken" for name in made.ids})
    blank = open_source(made.task, "train", tmp_path, on_broken="blank")
    store = pack(blank, tmp_path / "packed", key=SourceKey(blank, None), kind="encoded")
    assert len(store.broken) == 3
    assert not read_images(PackedSource(tmp_path / "packed")).any()


def spoil_local_header(path: Path, place: int, value: int) -> None:
    """Set a byte of the first member, as it stands before its content."""
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(bytes(data))


def encrypt_first(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))


def without_member(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()[1:]}
    write_zip(path, contents)


def climbing_out(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../x.png", b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-30]),
            r"images.zip is no whole zip file .*download it again",
        ),
        (lambda path: path.write_bytes(b""), r"images.zip is no whole zip file"),
        (climbing_out, r"images.zip holds path\(s\) that leave it, .*: '../x.png'; pack it anew"),
        (encrypt_first, r"image 'img_3', .*images.zip/train/img_3.png: cannot be read .*is encrypted"),
        (
            lambda path: spoil_local_header(path, 60, 99),
            r"image 'img_3', .*images.zip/train/img_3.png: cannot be read from the archive \(Bad CRC-32",
        ),
        (
            without_member,
            r"images.zip/train lacks 1 of 3 images: 'img_3.png'; it holds 'img_10.png', 'img_17.png'; check",
        ),
        (lambda path: path.unlink(), r"there is no image folder '.*images.zip/train'"),
    ],
)
def test_zips_that_are_wrong_are_named(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    made = make_files(tmp_path, 3, archive="images.zip/train")
    spoil(tmp_path / "images.zip")
    with pytest.raises(DataError, match=message) as caught:
        list(made.open().chunks())
    assert "\n" not in str(caught.value)


def test_a_member_of_a_zip_that_is_broken_is_blank_where_asked(tmp_path: Path) -> None:
    made = make_files(tmp_path, 3, archive="images.zip")
    encrypt_first(tmp_path / "images.zip")
    chunks = list(open_source(made.task, "train", tmp_path, on_broken="blank").chunks())
    assert [name for chunk in chunks for name in chunk.broken] == ["img_3"]
    assert (chunks[0].images[1] == made.images[1]).all()


@pytest.mark.parametrize("archive", [False, True])
def test_names_in_two_class_folders_are_named(tmp_path: Path, archive: bool) -> None:
    made = make_class_folders(tmp_path, 3, listed=True, archive=archive)
    if archive:
        with zipfile.ZipFile(tmp_path / "images.zip", "a") as opened:
            opened.writestr("dog/img_3.png", b"x")
    else:
        write_files(tmp_path / "images", {"dog/img_3.png": b"x"})
    with pytest.raises(DataError, match=r"'img_3.png' several times: .*'dog/img_3.png'.*; write ids as class/name"):
        made.open()


@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_folders_without_classes_are_named(tmp_path: Path, suffix: str) -> None:
    made = make_files(tmp_path, 2)
    images = {**plain_of(made.task)["images"], "class_folders": True, "suffix": suffix}
    task = task_from_plain({**plain_of(made.task), "images": images, "labels": {"file": ""}})
    with pytest.raises(DataError, match=r"images holds no class folders with files( that end with '.jpg')?; check"):
        open_source(task, "train", tmp_path)


def idx_header(kind: int, *sizes: int) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, kind, len(sizes), *sizes)


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", npy(np.zeros((3, 14, 10), np.float32)), r"x.npy is float32 \(3, 14, 10\); expected uint8"),
        ("x.npy", npy(np.zeros((3, 14, 10), np.int8)), r"x.npy is int8"),
        ("x.npy", npy(np.zeros(3, np.uint8)), r"x.npy is uint8 \(3,\); expected uint8 \(N, height, width\)"),
        ("x.npy", npy(np.zeros((3, 14, 10, 2), np.uint8)), r"x.npy is uint8 \(3, 14, 10, 2\)"),
        ("x.npy", npy(np.zeros((3, 14, 10, 1, 1), np.uint8)), r"x.npy is uint8 \(3, 14, 10, 1, 1\)"),
        ("x.npy", npy(np.zeros((3, 0, 10), np.uint8)), r"x.npy holds images of 0 x 10 pixels; expected at least 1 x 1"),
        ("x.npy", npy(np.zeros((3, 9, 9), np.uint8)), r"holds images of 9 x 9, the task stores 14 x 10 with fit none"),
        ("x.npy", npy(np.zeros((2, 14, 10), np.uint8)), r"x.npy holds 2 images for 3 listed ids"),
        ("x.npy", npy(np.array([{}, None, 1], object), allow_pickle=True), r"no whole .npy or idx file \(.*[Oo]bject"),
        ("x.npy", b"", r"x.npy is no whole .npy or idx file"),
        ("x.npy", npy(np.zeros((3, 14, 10), np.uint8))[:-1], r"x.npy is no whole .npy or idx file"),
        ("x.npy", npy(np.zeros((3, 14, 10), np.uint8)) + b"x", r"need 548 bytes; it is 549 long"),
        ("x.npy", npy(np.zeros(3, np.uint8)).replace(b"}", b" "), r"no whole .npy or idx file \(damaged header"),
        ("x.npy", b"PK\3\4" + bytes(100), r"x.npy is no whole .npy or idx file"),
        ("x.npy", b"\x93NUMPY\1\0\xff\xff" + b" " * 65535, r"no whole .npy or idx file \(Header info length"),
        ("x-ubyte", b"", r"x-ubyte is no whole .npy or idx file \(it starts with nothing\)"),
        ("x-ubyte", b"PNG?" + bytes(99), r"\(it starts with 50 4e 47 3f\); download it again"),
        ("x-ubyte", idx_header(7, 1, 1, 1) + b"x", r"\(it starts with 00 00 07 03\)"),
        ("x-ubyte", idx_header(8, 3, 14, 10) + bytes(419), r"3 x 14 x 10 need 420 bytes|speaks of 420 bytes"),
        ("x-ubyte", idx_header(8, 3, 14, 10) + bytes(421), r"3 x 14 x 10 need 420 bytes; it holds 420 or more"),
        ("x-ubyte", idx_header(8, 9**6, 9**6, 9**6), r"its header speaks of 150,094,635,296,999,121 bytes"),
        ("x-ubyte", idx_header(8, 0, 0, 0), r"x-ubyte holds images of 0 x 0 pixels"),
        ("x-ubyte", idx_header(13, 3, 1, 1) + bytes(12), r"x-ubyte is float32 \(3, 1, 1\); expected uint8"),
        ("x.gz", gzip.compress(idx_header(8, 3, 14, 10) + bytes(range(210)) * 2)[:-20], r"x.gz is no whole"),
        ("x.gz", gzip.compress(idx_header(8, 9**6, 9**6, 9**6)), r"its header speaks of 150,094,635,296,999,121 bytes"),
        ("x.gz", gzip.compress(idx_header(8, 3, 14, 10) + bytes(420)) + b"junk", r"x.gz is no whole .npy or idx file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_are_wrong_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    write_list(tmp_path, some_names(3))
    with pytest.raises(DataError, match=message) as caught:
        open_source(task_of(format="array", train=name, test=name), "train", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_array_and_label_arrays_that_are_wrong_are_named(tmp_path: Path) -> None:
    made = make_idx(tmp_path, 3)
    for labels, message in (
        (np.zeros((3, 2), np.uint8), r"labels-idx1-ubyte is uint8 \(3, 2\); expected integers \(N, 1\)"),
        (np.full(3, 7, np.uint8), r"head 'kind' of '0' is '7'; expected one of its 2 classes"),
        (np.zeros(0, np.uint8), r"labels-idx1-ubyte has no rows"),
    ):
        write_idx(tmp_path / "labels-idx1-ubyte", labels)
        with pytest.raises(DataError, match=message):
            read_labels(made.task, tmp_path)
    (tmp_path / "images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"images-idx3-ubyte is missing; check the data folder"):
        made.open()


def table_of(**columns: Any) -> pa.Table:
    blobs = [encode(image) for image in draw(3)]
    return pa.table({"image_id": ["a", "b", "c"], "image": blobs} | columns)


BLOBS = [{"bytes": encode(image), "path": "p"} for image in draw(1)]


@pytest.mark.parametrize(
    ("table", "names", "message"),
    [
        (
            table_of(),
            {"image": "picture"},
            r"x.parquet has no column 'picture'; known: image_id, image; set `images.im",
        ),
        (table_of(), {"id": "image_ids"}, r"x.parquet has no column 'image_ids'; did you mean 'image_id'\?"),
        (table_of(), {"id": "image"}, r"column 'image' is binary; expected text or integers; set `images.id`"),
        (table_of(), {"id": "image.path"}, r"column 'image.path' is binary; expected text or integers"),
        (table_of(image=["x"] * 3), {}, r"column 'image' is string; expected encoded images \(binary\)"),
        (table_of(image=[{"data": b""}] * 3), {}, r"column 'image' is struct<data: binary>; expected encoded images"),
        (table_of(image=BLOBS * 3), {"id": "image.name"}, r"column 'image.name' is struct<.*>; expected text or"),
        (table_of(image=BLOBS * 3), {"id": "image"}, r"column 'image' is struct<.*>; expected text or integers"),
        (table_of(image=BLOBS * 3), {"id": "image.path"}, r"holds 1 id\(s\) more than once: 'p' \(3 times\)"),
        (table_of(image=[*BLOBS, None, *BLOBS]), {"id": "image.path"}, r"column 'image.path' lacks 1 of 3 ids"),
        (table_of(image_id=["a", None, "c"]), {}, r"x.parquet column 'image_id' lacks 1 of 3 ids"),
        (table_of(image=[encode(draw(1)[0]), None, b""]), {}, r"image 'b', .*x.parquet column 'image': is null;"),
        (table_of(image=[*BLOBS, None, *BLOBS]), {}, r"image 'b', .*x.parquet column 'image': is null;"),
        (table_of(image=[*BLOBS, {"path": "q"}, *BLOBS]), {}, r"image 'b', .*column 'image': is null;"),
        (table_of(image=[b"no image"] * 3), {}, r"image 'a', .*x.parquet column 'image': "),
    ],
)
def test_parquet_that_is_wrong_is_named(tmp_path: Path, table: pa.Table, names: dict[str, str], message: str) -> None:
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message) as caught:
        list(
            open_source(
                task_of(format="encoded_parquet", train="x.parquet", test="x", **names), "train", tmp_path
            ).chunks()
        )
    assert "\n" not in str(caught.value)


def test_null_images_of_parquet_are_blank_where_asked(tmp_path: Path) -> None:
    parquet.write_table(table_of(image=[*BLOBS, None, *BLOBS]), tmp_path / "x.parquet")
    task = task_of(format="encoded_parquet", train="x.parquet", test="x")
    (chunk,) = open_source(task, "train", tmp_path, on_broken="blank").chunks()
    assert list(chunk.broken) == ["b"]
    assert chunk.images[0].any() and not chunk.images[1].any() and chunk.images[2].any()


@pytest.mark.parametrize("root", ["s3://bucket/data", "https://example.org/data.zip", "gs://x"])
def test_addresses_are_no_data_folders(root: str) -> None:
    with pytest.raises(DataError, match="is an address, not a folder; copy its files here"):
        open_source(task_of(format="array", train="x.npy", test="x.npy"), "train", Path(root))


@pytest.mark.parametrize("value", ["../x", "a/../../x", "a\\b", "C:/x", "c:x", "/etc", "~/x", "s3://b/x", "a\nb"])
@pytest.mark.parametrize("key", ["train", "test", "folder", "test_folder", "test_list", "labels"])
def test_paths_of_a_task_stay_below_the_data_folder(key: str, value: str) -> None:
    images: dict[str, object] = {"format": "files", "folder": "x", "test_list": "x.csv"}
    labels = {"file": value} if key == "labels" else {}
    if key != "labels":
        images[key] = value
    with pytest.raises(SettingError, match=rf"is {re.escape(repr(value))}; give a path below the data folder"):
        task_of(labels=labels, **images)


def test_packed_stores_of_another_size_are_refused(tmp_path: Path) -> None:
    made = make_packed(tmp_path, 2, kind="raw")
    task = task_from_plain({**plain_of(made.task), "stored": {"height": 20, "width": 20}})
    with pytest.raises(KitError, match=r"packed holds images of \(14, 10, 3\), the task stores \(20, 20, 3\)"):
        open_source(task, "train", tmp_path)
    with pytest.raises(DataError, match=r"images is no packed store \(no pack.json\); make one with `kaggle-kit pack`"):
        PackedSource(tmp_path / "images")
