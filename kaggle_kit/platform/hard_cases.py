"""Hard cases: what a hidden test, or a machine, does to kernels that only ever saw the visible test."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import RehearsalError, did_you_mean
from kaggle_kit.platform import mounted_edits as edits
from kaggle_kit.platform.listing import asked_images, images_of, listings
from kaggle_kit.runtime.progress import gpu_memory_gb
from kaggle_kit.tables import read_columns
from kaggle_kit.task import Task

SEED = 0
WIDER = 8  # pixels, of an array of another size
# Libraries that ONNX Runtime's CUDA provider and torch load by these names; files that are none stop them.
CUDA_LIBRARIES = (
    "libcuda.so.1",
    *(f"{name}.so.{major}" for name in ("libcudart", "libcublas", "libcublasLt", "libcufft") for major in (11, 12, 13)),
    *("libcudnn.so.8", "libcudnn.so.9"),
)


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What a hard case did.

    Attributes:
        said: In a few words; empty where it does not apply.
        skipped: Why it does not apply to this task.
        touched: Ids of the images whose answers may change by it.
        variables: Environment variables for the kernel.
    """

    said: str = ""
    skipped: str = ""
    touched: frozenset[str] = frozenset()
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HardCase:
    """A hard case: what it is, and what makes it.

    Attributes:
        name: As `--inject` calls it.
        about: One line.
        inject: Gets the task, the mounted competition's folder and an empty folder outside of the inputs.
    """

    name: str
    about: str
    inject: Callable[[Task, Path, Path], Injection]


def find_cases(names: Iterable[str]) -> list[HardCase]:
    """Return the cases of these names; `all` stands for all.

    Raises:
        RehearsalError: For a name that is none.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name != "all" and name not in CASES:
            raise RehearsalError(f"there is no hard case {name!r}{did_you_mean(name, ['all', *CASES])}")
    return [CASES[name] for name in (CASES if "all" in wanted else wanted)]


def changed_answers(task: Task, submission: Path, plain: Path, touched: frozenset[str]) -> tuple[int, int, int]:
    """Return how many answers of a hard case differ from those of the plain rehearsal, joined by id.

    Returns:
        Lines that differ, those of them about images that the case did not touch, and lines in all.
    """
    table, about = images_of(task, submission)
    column = task.submission.id_column
    before = _lines(read_columns(plain), column)
    images = table[column] if about is None else about
    changed = [
        image
        for image, (row, line) in zip(images.tolist(), _lines(table, column).items(), strict=True)
        if row in before and before[row] != line
    ]
    return len(changed), sum(image not in touched for image in changed), len(images)


def _lines(table: dict[str, Any], column: str) -> dict[str, tuple[str, ...]]:
    others = [values.tolist() for name, values in table.items() if name != column]
    return dict(zip(table[column].tolist(), zip(*others, strict=True), strict=True))


def _truncated_image(task: Task, folder: Path, _: Path) -> Injection:
    if reason := _no_blobs(task, folder):
        return Injection(skipped=reason)
    (name,) = edits.edit_blobs(task, folder, [lambda data: data[: len(data) // 2]])
    return Injection(said=f"{name} is cut in half", touched=frozenset([name]))


def _new_size(task: Task, folder: Path, _: Path) -> Injection:
    if task.images.format == "array" and task.stored is not None and task.stored.fit != "none":
        border = [(0, 0), (0, WIDER), (0, WIDER)]
        edits.edit_array(task, folder, lambda a: np.pad(a, [*border, *[(0, 0)] * (a.ndim - 3)], mode="edge"))
        said = f"images are {WIDER} pixels higher and wider"
        return Injection(said=said, touched=frozenset(asked_images(task, folder).tolist()))
    if reason := _no_blobs(task, folder):
        return Injection(skipped=reason)
    names = edits.edit_blobs(task, folder, [_stretch, _shrink])
    return Injection(said=f"{', '.join(names)}: 3 x the height, and 1 x 1 pixel", touched=frozenset(names))


def _one_row(task: Task, folder: Path, _: Path) -> Injection:
    if not len(asked_images(task, folder)):
        return Injection(skipped="the test has no images")
    name = _keep_first(task, folder, 1)
    return Injection(said=f"{name} is the only image")


def _empty_test(task: Task, folder: Path, _: Path) -> Injection:
    _keep_first(task, folder, 0)
    return Injection(said="no images, no lines to answer")


def _extra_column(task: Task, folder: Path, _: Path) -> Injection:
    paths = [path for path in listings(task, folder) if _may_widen(task, folder, path)]
    for path in paths:
        edits.add_column(path, "Usage", "Private")
    if task.images.format in edits.PARQUET:
        for shard in edits.shards(task, folder):
            edits.edit_shard(shard, _with_source)
            paths.append(shard)
    if not paths:
        return Injection(skipped="each column of its files is a class")
    return Injection(said=f"a further column in {', '.join(path.name for path in paths)}")


def _shuffled_rows(task: Task, folder: Path, _: Path) -> Injection:
    rng = np.random.default_rng(SEED)
    listed = task.images.format == "array"  # whose rows follow the list, where there is one
    paths = [path for path in listings(task, folder) if not (listed and path.name == task.images.test_list)]
    for path in paths:
        edits.take_lines(path, rng.permutation(len(next(iter(read_columns(path).values())))))
    for shard in edits.shards(task, folder) if task.images.format in edits.PARQUET else ():
        edits.edit_shard(shard, lambda table, _: table.take(rng.permutation(len(table))))
        paths.append(shard)
    return Injection(said=f"lines of {', '.join(path.name for path in paths)}, each in an order of its own")


def _missing_shard(task: Task, folder: Path, _: Path) -> Injection:
    if task.images.format in edits.PARQUET:
        shards = edits.shards(task, folder)
        if len(shards) < 2:
            return Injection(skipped="the test has one shard alone")
        shard = shards[len(shards) // 2]
        touched = frozenset(edits.shard_ids(task, shard).tolist())
        shard.unlink()
        return Injection(said=f"{shard.name} is missing", touched=touched)
    files = edits.image_files(task, folder)
    if not files:
        return Injection(skipped="its images are in one file")
    name, path = next(iter(files.items()))
    path.unlink()
    return Injection(said=f"{path.name} is missing", touched=frozenset([name]))


def _duplicate_id(task: Task, folder: Path, _: Path) -> Injection:
    if task.images.format in edits.PARQUET:
        shard = edits.shards(task, folder)[0]
        edits.edit_shard(shard, lambda table, group: table if group else _with_first_again(table))
        names = edits.shard_ids(task, shard)[:1].tolist()
        return Injection(said=f"{shard.name} holds its first row twice", touched=frozenset(names))
    listing = folder / task.images.test_list
    if task.images.format != "files" or listing == folder / task.submission.file:
        return Injection(skipped="its images have no ids of their own")
    number = len(next(iter(read_columns(listing).values())))
    edits.take_lines(listing, np.array([*range(number), *([0] if number else [])], np.int64))
    return Injection(
        said=f"{listing.name} lists its first image twice", touched=frozenset(asked_images(task, folder)[:1])
    )


def _corrupt_shard(task: Task, folder: Path, _: Path) -> Injection:
    if task.images.format not in edits.PARQUET:
        return Injection(skipped="its images are in no parquet")
    from pyarrow import parquet

    shard = next((path for path in edits.shards(task, folder) if parquet.ParquetFile(path).metadata.num_rows), None)
    if shard is None:
        return Injection(skipped="the test has no images")
    names = parquet.ParquetFile(shard).metadata.schema
    paths = [names.column(place).path for place in range(len(names))]
    wide = task.images.format == "wide_parquet"
    wanted = "0" if wide else task.images.image
    column = next(at for at, path in enumerate(paths) if path in (wanted, f"{wanted}.bytes"))
    touched = frozenset(edits.shard_ids(task, shard).tolist())
    edits.break_page(shard, column)
    return Injection(said=f"{shard.name} has a damaged page", touched=touched)


def _no_gpu(_task: Task, _folder: Path, _scratch: Path) -> Injection:
    return Injection(said=_on_gpu("no GPU is visible"), variables={"CUDA_VISIBLE_DEVICES": ""})


def _provider_fallback(_task: Task, _folder: Path, scratch: Path) -> Injection:
    for name in CUDA_LIBRARIES:
        (scratch / name).write_text("no library\n", encoding="ascii")
    path = os.pathsep.join([str(scratch), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return Injection(said=_on_gpu("CUDA's libraries do not load"), variables={"LD_LIBRARY_PATH": path})


CASES = {
    case.name: case
    for case in (
        HardCase(name="truncated-image", about="an image's bytes end early", inject=_truncated_image),
        HardCase(name="one-row", about="the test has one image", inject=_one_row),
        HardCase(name="empty-test", about="the test has no image", inject=_empty_test),
        HardCase(name="new-size", about="images of sizes never seen", inject=_new_size),
        HardCase(name="extra-column", about="a column more in lists and shards", inject=_extra_column),
        HardCase(name="shuffled-rows", about="lists and shards in other orders", inject=_shuffled_rows),
        HardCase(name="missing-shard", about="a shard, or an image file, is not there", inject=_missing_shard),
        HardCase(name="duplicate-id", about="an image occurs twice", inject=_duplicate_id),
        HardCase(name="corrupt-shard", about="a parquet page is damaged", inject=_corrupt_shard),
        HardCase(name="no-gpu", about="the machine has no GPU", inject=_no_gpu),
        HardCase(name="provider-fallback", about="CUDA does not load", inject=_provider_fallback),
    )
}


def _no_blobs(task: Task, folder: Path) -> str:
    """Return why a test has no encoded image that could be edited; nothing where it has."""
    if task.images.format in ("wide_parquet", "array", "packed"):
        return "its images are bare pixels of one size"
    if task.images.format == "files" and not edits.image_files(task, folder):
        return "its images lie in a zip" if len(asked_images(task, folder)) else "the test has no images"
    return ""


def _on_gpu(text: str) -> str:
    return text if gpu_memory_gb() else f"{text}; nor does this machine have one, so it is as every run here"


def _keep_first(task: Task, folder: Path, number: int) -> str:
    """Leave the first image, or none, and return its id, or nothing."""
    name = ""
    if task.images.format in edits.PARQUET:
        for at, shard in enumerate(edits.shards(task, folder)):
            kept = number if at == 0 else 0
            edits.edit_shard(shard, functools.partial(_first_rows, number=kept))
            name = name or next(iter(edits.shard_ids(task, shard).tolist()), "")
    elif task.images.format == "array":
        name = next(iter(asked_images(task, folder).tolist()), "") if number else ""
        edits.edit_array(task, folder, lambda images: images[:number])
    else:
        files = edits.image_files(task, folder)
        name = next(iter(asked_images(task, folder).tolist()), "") if number else ""
        for path in [path for other, path in files.items() if other != name]:
            path.unlink(missing_ok=True)
    edits.keep_listed(task, folder, [name] if name else [])
    return name


def _may_widen(task: Task, folder: Path, path: Path) -> bool:
    """Return whether a listing may have a further column: not where each column of it is a class."""
    return task.submission.form != "column_per_class" or path != folder / task.submission.file


def _first_rows(table: Any, group: int, *, number: int) -> Any:
    return table.slice(0, 0 if group else number)


def _with_source(table: Any, _: int) -> Any:
    import pyarrow as pa

    return table.append_column("source", pa.array(["scanner"] * len(table), pa.string()))


def _with_first_again(table: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables([table, table.slice(0, 1)])


def _stretch(data: bytes) -> bytes:
    import cv2

    image = _decoded(data)
    height, width = image.shape[:2]
    return _encoded(np.asarray(cv2.resize(image, (max(1, width // 2), 3 * height)), np.uint8), data)


def _shrink(data: bytes) -> bytes:
    return _encoded(np.ascontiguousarray(_decoded(data)[:1, :1]), data)


def _decoded(data: bytes) -> npt.NDArray[np.uint8]:
    """Return an encoded image, or gray noise for one that is broken."""
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    return np.asarray(np.full((32, 32, 3), 128, np.uint8) if image is None else image, np.uint8)


def _encoded(image: npt.NDArray[np.uint8], like: bytes) -> bytes:
    import cv2

    return bytes(cv2.imencode(".jpg" if like.startswith(b"\xff\xd8") else ".png", image)[1].tobytes())
