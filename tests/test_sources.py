from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Toy
from pyarrow import parquet

from kaggle_kit.errors import DataError, ImageError
from kaggle_kit.packing import pack
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.sources import PackedSource, Source, check_ids, open_source, resolve_stored


def all_images(source: Source) -> np.ndarray:
    return np.concatenate([chunk.images for chunk in source.chunks()])


def rewrite(path: Path, change) -> None:
    parquet.write_table(change(parquet.read_table(path)), path)


def test_wide_parquet_reads_what_pandas_reads(wide: Toy) -> None:
    import pandas as pd

    source = open_source(wide.task, "train", wide.data)
    frames = pd.concat([pd.read_parquet(path) for path in sorted(wide.data.glob("train_*.parquet"))])
    expected = frames[[str(i) for i in range(24 * 32)]].to_numpy().reshape(-1, 24, 32, 1)
    assert source.ids.tolist() == frames["image_id"].tolist()
    assert (all_images(source) == expected).all()
    assert all((source.read(row) == expected[row]).all() for row in (0, 15, 16, 47))


def test_wide_parquet_survives_any_column_order_row_groups_and_integer_type(wide: Toy) -> None:
    expected = all_images(open_source(wide.task, "train", wide.data))
    for number, kind in enumerate((pa.int32(), pa.float32(), pa.int16())):
        path = wide.data / f"train_{number}.parquet"
        table = parquet.read_table(path)
        names = table.column_names[::-1]
        pixels = [table[n].cast(kind) if n.isdigit() else table[n] for n in names]
        parquet.write_table(pa.table(dict(zip(names, pixels, strict=True))), path, row_group_size=5)
    assert (all_images(open_source(wide.task, "train", wide.data)) == expected).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["image_id"]), r"train_1.parquet has no column 'image_id'"),
        (lambda t: t.drop_columns(["7", "99"]), r"train_1.parquet lacks pixel column\(s\) '7', '99'"),
        (lambda t: t.append_column("768", t["0"]), r"has 769 pixel columns; 24 x 32 x 1 are 768"),
        (
            lambda t: t.set_column(t.column_names.index("3"), "3", pa.array([300] * len(t), pa.int32())),
            r"train_1.parquet column '3' holds 300; expected integers 0 to 255",
        ),
        (
            lambda t: t.set_column(t.column_names.index("3"), "3", pa.array(["x"] * len(t))),
            r"column '3' is string; expected integers 0 to 255",
        ),
        (
            lambda t: t.set_column(t.column_names.index("3"), "3", pa.array([float("nan")] * len(t))),
            r"column '3' holds nan",
        ),
    ],
)
def test_wide_parquet_names_shard_and_column(wide: Toy, change, message: str) -> None:
    rewrite(wide.data / "train_1.parquet", change)
    with pytest.raises(DataError, match=message):
        all_images(open_source(wide.task, "train", wide.data))


def test_missing_shards_are_named(wide: Toy) -> None:
    (wide.data / "train_1.parquet").unlink()
    with pytest.raises(DataError, match=r"shard train_1.parquet is missing"):
        open_source(wide.task, "train", wide.data)


def test_a_missing_last_shard_is_found_by_its_ids(wide: Toy) -> None:
    (wide.data / "train_2.parquet").unlink()
    with pytest.raises(DataError, match=r"train.csv names 16 of 48 images that .* does not hold: 'Train_32'"):
        pack_train(wide.task, wide.data, wide.data / "packed")


def test_dates_in_shard_names_are_no_shard_numbers(wide: Toy) -> None:
    for number, date in enumerate(("20190101", "20190301", "20190302")):
        (wide.data / f"train_{number}.parquet").rename(wide.data / f"train_{date}.parquet")
    assert len(open_source(wide.task, "train", wide.data)) == 48


def test_no_shards_at_all_are_named(wide: Toy) -> None:
    for path in wide.data.glob("train_*.parquet"):
        path.unlink()
    with pytest.raises(DataError, match=r"no file in .* matches 'train_\*.parquet'; found 'test_0.parquet'"):
        open_source(wide.task, "train", wide.data)


def test_ids_in_two_shards_are_named(wide: Toy) -> None:
    (wide.data / "train_1.parquet").write_bytes((wide.data / "train_0.parquet").read_bytes())
    with pytest.raises(DataError, match=r"holds 16 id\(s\) more than once: 'Train_0'"):
        open_source(wide.task, "train", wide.data)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_a_truncated_shard_is_named(wide: Toy, keep: int) -> None:
    path = wide.data / "train_1.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train_1.parquet is not a whole parquet file"):
        open_source(wide.task, "train", wide.data)


def test_shards_of_no_and_one_row_are_read(wide: Toy) -> None:
    rewrite(wide.data / "train_0.parquet", lambda t: t.slice(0, 0))
    rewrite(wide.data / "train_1.parquet", lambda t: t.slice(0, 1))
    source = open_source(wide.task, "train", wide.data)
    assert len(source) == len(all_images(source)) == 17


def test_files_are_read_in_the_order_of_the_list(files: Toy) -> None:
    source = open_source(files.task, "test", files.data)
    assert source.ids.tolist() == ["20.jpg", "21.jpg", "22.jpg", "23.jpg"]
    images = all_images(source)
    assert images.shape == (4, 24, 32, 3)
    assert (images[2] == source.read(2)).all()


def test_a_broken_file_is_an_error_or_a_counted_blank_and_rows_never_shift(files: Toy) -> None:
    with pytest.raises(ImageError, match=r"images/3.jpg: a JPEG cut short"):
        all_images(open_source(files.task, "train", files.data))
    source = open_source(files.task, "train", files.data, on_broken="blank")
    (chunk,) = source.chunks()
    assert list(chunk.broken) == ["3.jpg"]
    assert (chunk.images[3] == 0).all()
    assert (chunk.images[4] == source.read(4)).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.jpg", "../0.jpg", r"id\(s\) '../0.jpg' are no plain file names"),
        ("0.jpg", "99.jpg", r"lacks 1 of 20 images: '99.jpg'"),
        ("1.jpg", "0.jpg", r"more than once: '0.jpg'"),
    ],
)
def test_file_lists_that_are_wrong_are_named(files: Toy, old: str, new: str, message: str) -> None:
    path = files.data / "train.csv"
    path.write_text(path.read_text().replace(f"\n{old}", f"\n{new}", 1))
    with pytest.raises(DataError, match=message):
        open_source(files.task, "train", files.data)


def test_an_absent_folder_is_named(wide: Toy) -> None:
    with pytest.raises(DataError, match="there is no data folder"):
        open_source(wide.task, "train", wide.data / "nothing")


def test_stored_size_is_worked_out_from_the_files(files: Toy) -> None:
    values = {name: getattr(files.task, name) for name in files.task.__dataclass_fields__} | {"stored": None}
    task = resolve_stored(type(files.task)(**values), files.data)
    assert task.stored is not None
    assert (task.stored.height, task.stored.width, task.stored.fit) == (32, 48, "letterbox")


def test_packing_keeps_ids_and_images_and_is_done_once(wide: Toy, tmp_path: Path) -> None:
    source = open_source(wide.task, "train", wide.data)
    store = pack_train(wide.task, wide.data, tmp_path / "packed")
    assert (store.ids == source.ids).all()
    assert (all_images(store) == all_images(source)).all()
    inode = (tmp_path / "packed" / "images.npy").stat().st_ino
    pack_train(wide.task, wide.data, tmp_path / "packed")
    assert (tmp_path / "packed" / "images.npy").stat().st_ino == inode


def test_packing_again_when_the_images_changed(wide: Toy, tmp_path: Path) -> None:
    before = SourceKey(open_source(wide.task, "train", wide.data), None).content
    pack_train(wide.task, wide.data, tmp_path / "packed")
    shard = wide.data / "train_0.parquet"
    rewrite(shard, lambda t: t.set_column(t.column_names.index("3"), "3", pa.array([9] * len(t), pa.uint8())))
    assert SourceKey(open_source(wide.task, "train", wide.data), None).content != before
    with pytest.raises(DataError, match="packed was packed from other files or settings than now"):
        pack_train(wide.task, wide.data, tmp_path / "packed")
    assert pack_train(wide.task, wide.data, tmp_path / "packed", replace=True).read(0)[0, 3, 0] == 9


def test_packing_leaves_nothing_behind_when_it_fails(files: Toy, tmp_path: Path) -> None:
    source = open_source(files.task, "train", files.data)
    with pytest.raises(ImageError):
        pack(source, tmp_path / "packed", key=SourceKey(source, None))
    assert list(tmp_path.glob("*packed")) == list(tmp_path.glob("*.packing")) == []


def test_packing_refuses_a_folder_of_other_things(wide: Toy, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="is not empty and no packed store"):
        pack_train(wide.task, wide.data, tmp_path)


def test_broken_images_are_named_in_the_store(files: Toy, tmp_path: Path) -> None:
    store = pack_train(files.task, files.data, tmp_path / "packed")
    assert list(store.broken) == ["3.jpg"]
    assert [name for chunk in store.chunks() for name in chunk.broken] == ["3.jpg"]


def test_a_damaged_store_is_named(wide: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_train(wide.task, wide.data, folder)
    (folder / "images.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="packed store .* is damaged"):
        PackedSource(folder)


def test_workers_map_the_store_instead_of_copying_it(wide: Toy, tmp_path: Path) -> None:
    store = pack_train(wide.task, wide.data, tmp_path / "packed")
    data = pickle.dumps(store)
    assert len(data) < 500
    assert (pickle.loads(data).read(3) == store.read(3)).all()  # noqa: S301


def test_check_ids_counts_what_is_missing(wide: Toy) -> None:
    source = open_source(wide.task, "test", wide.data)
    with pytest.raises(DataError, match=r"sample.csv names 1 of 2 images .*: 'Test_9'; is a shard or file missing\?"):
        check_ids(source, np.array(["Test_0", "Test_9"]), where="sample.csv")


def test_of_an_id_that_repeats_the_first_row_counts_where_that_is_asked_for(wide: Toy, files: Toy) -> None:
    first = wide.data / "test_0.parquet"
    shutil.copy(first, wide.data / "test_2.parquet")
    with pytest.raises(DataError, match="more than once"):
        open_source(wide.task, "test", wide.data)
    source = open_source(wide.task, "test", wide.data, repeats_ok=True)
    assert source.ids.tolist() == ["Test_0", "Test_1", "Test_0 (again in row 2)"]
    assert (source.read(2) == source.read(0)).all()
    listed = files.data / "test.csv"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([*lines, lines[1]]) + "\n")
    assert len(open_source(files.task, "test", files.data, repeats_ok=True)) == len(lines) - 1
