from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Toy, make_wide
from pyarrow import parquet

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.folds import describe_duplicates, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing import RAW_LIMIT_BYTES, pack, plan_packing
from kaggle_kit.packing.competition import Tagged, pack_train
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.sources import Chunk, JoinedSource, PackedSource, Source, open_source, read_images
from kaggle_kit.sources.wide_parquet import WideParquetSource


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def key_of(source: Source) -> SourceKey:
    return SourceKey(source, None)


class TestStores:
    @pytest.mark.parametrize("kind", ["raw", "encoded"])
    def test_both_kinds_give_the_pixels_of_their_source(self, files: Toy, tmp_path: Path, kind) -> None:
        expected = read_images(open_source(files.task, "train", files.data, on_broken="blank"))
        store = pack_train(files.task, files.data, tmp_path / "p", kind=kind)
        assert store.kind == kind
        assert (read_images(store) == expected).all()
        assert (store.take(np.array([7, 3, 3, 0])) == expected[[7, 3, 3, 0]]).all()
        assert all((store.read(row) == expected[row]).all() for row in range(len(store)))

    def test_bare_pixels_can_be_stored_encoded_without_loss(self, wide: Toy, tmp_path: Path) -> None:
        expected = read_images(open_source(wide.task, "train", wide.data))
        assert (read_images(pack_train(wide.task, wide.data, tmp_path / "p", kind="encoded")) == expected).all()

    def test_original_sizes_are_kept(self, files: Toy, tmp_path: Path) -> None:
        store = pack_train(files.task, files.data, tmp_path / "p")
        assert store.sizes[:4].tolist() == [[30, 40], [30, 41], [30, 42], [0, 0]]  # 3.jpg is broken

    @pytest.mark.parametrize("kind", ["raw", "encoded"])
    def test_mean_and_deviation_are_those_of_unbroken_images(self, files: Toy, tmp_path: Path, kind) -> None:
        store = pack_train(files.task, files.data, tmp_path / "p", kind=kind)
        pixels = np.delete(read_images(store), 3, axis=0).reshape(-1, 3) / 255
        assert np.allclose(store.mean, pixels.mean(axis=0), atol=1e-6)
        assert np.allclose(store.std, pixels.std(axis=0), atol=1e-6)

    def test_the_arithmetic_decides_and_is_shown(self, files: Toy) -> None:
        source = open_source(files.task, "train", files.data)
        assert plan_packing(source).kind == "raw"
        assert "20 images x 24 x 32 x 3 = 0.05 MB raw" in plan_packing(source).arithmetic
        many = dataclasses.make_dataclass("Many", ["shape"])((2000, 2000, 3))
        many.__class__.__len__ = lambda self: 1 + RAW_LIMIT_BYTES // 12_000_000  # type: ignore[attr-defined]
        many.__class__.encoded_bytes = lambda self: 1_000_000  # type: ignore[attr-defined]
        assert plan_packing(many).kind == "encoded"  # type: ignore[arg-type]
        many.__class__.encoded_bytes = lambda self: None  # type: ignore[attr-defined]
        assert plan_packing(many).kind == "raw"  # type: ignore[arg-type]


class TestKeys:
    def test_a_touched_file_is_not_packed_again_and_a_changed_one_is(self, wide: Toy, tmp_path: Path) -> None:
        first = pack_train(wide.task, wide.data, tmp_path / "p")
        inode = (tmp_path / "p" / "images.npy").stat().st_ino
        for path in wide.data.glob("*.parquet"):
            os.utime(path, (1, 1))
        assert pack_train(wide.task, wide.data, tmp_path / "p").key == first.key
        assert (tmp_path / "p" / "images.npy").stat().st_ino == inode
        rows = parquet.read_table(wide.data / "train_0.parquet")
        parquet.write_table(
            rows.set_column(1, "0", pa.array([9] * len(rows), pa.uint8())), wide.data / "train_0.parquet"
        )
        source = open_source(wide.task, "train", wide.data)
        assert not key_of(source).matches(json.loads((tmp_path / "p" / "pack.json").read_text())["key"])

    def test_a_store_beside_the_folds_is_found_whatever_its_name(self, wide: Toy, tmp_path: Path) -> None:
        pack_train(wide.task, wide.data, tmp_path / "mine")
        assert pack_train(wide.task, wide.data, beside=tmp_path).folder == tmp_path / "mine"

    def test_another_kind_is_packed_again(self, files: Toy, tmp_path: Path) -> None:
        assert pack_train(files.task, files.data, tmp_path / "p").kind == "raw"
        assert pack_train(files.task, files.data, tmp_path / "p", kind="encoded", replace=True).kind == "encoded"
        assert pack_train(files.task, files.data, tmp_path / "p").kind == "encoded"  # auto takes what is there

    def test_images_without_a_label_are_counted(
        self, wide: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = (wide.data / "train.csv").read_text().splitlines()
        (wide.data / "train.csv").write_text("\n".join(lines[:-2]) + "\n")
        assert len(pack_train(wide.task, wide.data, tmp_path / "p")) == 48
        assert "2 images have no label and will not be trained on: 'Train_46', 'Train_47'" in capsys.readouterr().err

    def test_another_stored_size_is_another_store(self, files: Toy, tmp_path: Path) -> None:
        stored = dataclasses.replace(files.task.stored, height=16)  # type: ignore[type-var]
        small = pack_train(files.task.with_stored(stored), files.data, beside=tmp_path)
        assert pack_train(files.task, files.data, beside=tmp_path).folder != small.folder


class TestDamage:
    def test_every_flipped_pixel_is_found(self, wide: Toy, tmp_path: Path) -> None:
        store = pack_train(wide.task, wide.data, tmp_path / "p")
        flip(tmp_path / "p" / "images.npy", 128 + 5 * 24 * 32 + 7)
        with pytest.raises(DataError, match=r"holds 1 image\(s\) that changed since packing: 'Train_5'"):
            store.verify()
        with pytest.raises(DataError, match="changed since packing"):
            pack_train(wide.task, wide.data, tmp_path / "p")

    def test_a_flipped_encoded_image_is_found_when_it_is_read(self, files: Toy, tmp_path: Path) -> None:
        store = pack_train(files.task, files.data, tmp_path / "p", kind="encoded")
        flip(tmp_path / "p" / "images-000000000.bin", 5)
        with pytest.raises(DataError, match=r"image '0.jpg', .*images-000000000.bin: has changed since it was packed"):
            store.read(0)
        with pytest.raises(DataError, match=r"changed since packing: '0.jpg'"):
            store.verify()

    @pytest.mark.parametrize("name", ["ids.npy", "sizes.npy", "hashes.npy", "pack.json"])
    def test_a_changed_index_is_found_when_the_store_is_opened(self, wide: Toy, tmp_path: Path, name: str) -> None:
        pack_train(wide.task, wide.data, tmp_path / "p")
        flip(tmp_path / "p" / name, (tmp_path / "p" / name).stat().st_size - 3)
        with pytest.raises(DataError, match="damaged|has changed"):
            PackedSource(tmp_path / "p")


class _Slow:
    """A source that a packing is killed in."""

    def __init__(self, source: Source, marker: Path) -> None:
        self.__dict__.update(source.__dict__)
        self._source, self._marker = source, marker

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def chunks(self, **options: object) -> Iterator[Chunk]:
        if options["start"] == 32:
            self._marker.touch()
            time.sleep(60)
        yield from self._source.chunks(**options)  # type: ignore[arg-type]


PACK_SLOWLY = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import wide_task
from test_packing import _Slow, key_of
from kaggle_kit.packing import pack
from kaggle_kit.sources import open_source
source = open_source(wide_task(), "train", Path({data!r}))
pack(_Slow(source, Path({marker!r})), Path({out!r}), key=key_of(source))
"""


class TestInterruptions:
    def test_a_killed_packing_leaves_no_store_and_goes_on_where_it_was(
        self, wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        marker, out = tmp_path / "marker", tmp_path / "p"
        code = PACK_SLOWLY.format(
            tests=str(Path(__file__).parent), data=str(wide.data), marker=str(marker), out=str(out)
        )
        child = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not out.exists()

        source = open_source(wide.task, "train", wide.data)
        read: list[int] = []
        original = WideParquetSource.chunks

        def chunks(self: WideParquetSource, **options):
            read.append(options["start"])
            return original(self, **options)

        monkeypatch.setattr(WideParquetSource, "chunks", chunks)
        store = pack(source, out, key=key_of(source))
        assert read == [32]  # two parts of 16 were there
        monkeypatch.undo()
        assert (read_images(store) == read_images(source)).all()
        store.verify()
        assert list(tmp_path.glob(".*.packing")) == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda work: flip(work / "images.npy", 128 + 9),
            lambda work: next(work.glob("part-*.npz")).write_bytes(b""),
            lambda work: next(work.glob("part-*.npz")).write_bytes(b"PK"),
        ],
    )
    def test_a_part_that_never_reached_the_disk_is_written_again(self, wide: Toy, tmp_path: Path, damage) -> None:
        source = open_source(wide.task, "train", wide.data)
        calls = interrupt_at(3)
        with pytest.raises(KeyboardInterrupt):  # in the second part; advance is first called with what was done: none
            pack(source, tmp_path / "p", key=key_of(source), advance=lambda _: next(calls))
        (work,) = tmp_path.glob(".p.packing")
        assert len(list(work.glob("part-*.npz"))) == 1
        damage(work)
        store = pack(source, tmp_path / "p", key=key_of(source))
        store.verify()
        assert (read_images(store) == read_images(source)).all()

    def test_two_processes_pack_once(self, wide: Toy, tmp_path: Path) -> None:
        code = (
            "import time; from pathlib import Path; from conftest import wide_task; import kaggle_kit.packing as p\n"
            "from kaggle_kit.packing.competition import pack_train\n"
            "write = p.write_part\n"
            "def slowly(*a, **k):\n"
            f"    with open({str(tmp_path / 'packed')!r}, 'a') as said: said.write('once\\n')\n"
            "    time.sleep(1); write(*a, **k)\n"
            "p.write_part = slowly\n"
            "p.part_is_done = lambda *a, **k: False\n"
            f"print(pack_train(wide_task(), Path({str(wide.data)!r}), Path({str(tmp_path / 'p')!r})).key)"
        )
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        children = [
            subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [child.communicate() for child in children]
        assert [child.returncode for child in children] == [0, 0]
        assert len({key for key, _ in said}) == 1
        assert (tmp_path / "packed").read_text() == 3 * "once\n"  # a part each
        PackedSource(tmp_path / "p").verify()

    def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
        self, wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(DataError, match=r"needs 0.00 GB; the disk has 0.00 GB free; free some"):
            pack_train(wide.task, wide.data, tmp_path / "p")
        assert list(tmp_path.glob(".p.packing")) == []

    def test_a_place_that_cannot_be_written_is_said_instead_of_waited_for(self, wide: Toy, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"file cannot be written to \(.*\); choose another folder"):
            pack_train(wide.task, wide.data, tmp_path / "file" / "p")
        with pytest.raises(DataError, match="'s3://bucket/packed' is an address, not a folder"):
            pack_train(wide.task, wide.data, Path("s3://bucket/packed"))

    @pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size with Linux's resource limits")
    @pytest.mark.parametrize("kind", ["raw", "encoded"])
    def test_a_disk_that_fills_while_packing_is_one_line_and_no_store(self, wide: Toy, tmp_path: Path, kind) -> None:
        code = (
            "import resource, signal; from pathlib import Path; from conftest import wide_task; "
            "from kaggle_kit.errors import DataError; from kaggle_kit.packing.competition import pack_train\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
            f"try: pack_train(wide_task(), Path({str(wide.data)!r}), Path({str(tmp_path / 'p')!r}), kind={kind!r})\n"
            "except DataError as error: print(error)"
        )
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert "failed: File too large; free some of the disk; nothing was kept" in done.stdout
        assert list(tmp_path.glob("*p")) == list(tmp_path.glob(".p.packing")) == []

    @pytest.mark.parametrize("kind", ["raw", "encoded"])
    def test_several_processes_write_what_one_does(self, wide: Toy, tmp_path: Path, kind) -> None:
        alone = pack_train(wide.task, wide.data, tmp_path / "a", kind=kind)
        many = pack_train(wide.task, wide.data, tmp_path / "b", kind=kind, num_workers=2)  # three parts
        many.verify()
        assert (alone.hashes == many.hashes).all()
        assert (read_images(alone) == read_images(many)).all()


def interrupt_at(call: int) -> Iterator[None]:
    yield from [None] * (call - 1)
    raise KeyboardInterrupt


class TestTags:
    @pytest.fixture
    def older(self, tmp_path: Path) -> Toy:
        """An older competition with the same ids."""
        return make_wide(tmp_path / "older", num_train=30)

    def test_added_images_have_a_tag_before_their_ids(self, wide: Toy, older: Toy, tmp_path: Path) -> None:
        store = pack_train(
            wide.task, wide.data, tmp_path / "p", tagged=[Tagged(tag="old", task=older.task, data=older.data)]
        )
        assert store.tags == {"": range(48), "old": range(48, 78)}
        assert store.ids[48] == "old/Train_0"
        own, added = (open_source(toy.task, "train", toy.data) for toy in (wide, older))
        assert (read_images(store)[:48] == read_images(own)).all()
        assert (read_images(store)[48:] == read_images(added)).all()
        again = pack_train(wide.task, wide.data, tmp_path / "p")  # the store knows what was added
        assert again.key == store.key

    def test_a_tag_given_twice_and_an_odd_one_are_refused(self, wide: Toy, older: Toy, tmp_path: Path) -> None:
        one = Tagged(tag="old", task=older.task, data=older.data)
        with pytest.raises(SettingError, match="tag 'old' is given twice"):
            pack_train(wide.task, wide.data, tmp_path / "p", tagged=[one, one])
        with pytest.raises(SettingError, match="tag '../x' must be made of letters"):
            Tagged(tag="../x", task=older.task, data=older.data)

    def test_added_images_train_every_fold_and_validate_none(
        self, wide: Toy, older: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
        from kaggle_kit.train.crossval import train_run

        tagged = [Tagged(tag="old", task=older.task, data=older.data)]
        pack_train(wide.task, wide.data, tmp_path / "p", tagged=tagged)
        config = TrainConfig(model=ModelConfig(name="test_resnet"), loader=LoaderConfig(batch_size=54), epochs=1)
        folds = make_folds(read_labels(wide.task, wide.data), num_folds=2)
        run = train_run(wide.task, config, data=wide.data, folds=folds, out=tmp_path / "r", packed=tmp_path / "p")
        assert "30 images tagged 'old' train every fold" in capsys.readouterr().err
        assert sorted(run.oof().ids) == sorted(folds.ids)

    def test_a_store_with_added_images_is_found_beside_the_folds(self, wide: Toy, older: Toy, tmp_path: Path) -> None:
        tagged = [Tagged(tag="old", task=older.task, data=older.data)]
        packed = pack_train(wide.task, wide.data, tmp_path / "mine", tagged=tagged)
        assert pack_train(wide.task, wide.data, beside=tmp_path).folder == packed.folder

    def test_bare_and_encoded_images_are_stored_encoded_as_they_are_read(
        self, wide: Toy, files: Toy, tmp_path: Path
    ) -> None:
        images = dataclasses.replace(files.task.images, channels=1)
        gray = open_source(dataclasses.replace(files.task, images=images), "train", files.data, on_broken="blank")
        bare = open_source(wide.task.with_stored(files.task.stored), "train", wide.data)  # type: ignore[arg-type]
        joined = JoinedSource({"": bare, "photos": gray})
        store = pack(joined, tmp_path / "p", key=key_of(joined), kind="encoded")
        assert (read_images(store) == read_images(joined)).all()

    def test_added_images_that_equal_validation_images_are_left_out_of_the_fold(
        self, wide: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
        from kaggle_kit.train.crossval import train_run

        pack_train(wide.task, wide.data, tmp_path / "p", tagged=[Tagged(tag="same", task=wide.task, data=wide.data)])
        config = TrainConfig(model=ModelConfig(name="test_resnet"), loader=LoaderConfig(batch_size=8), epochs=1)
        folds = make_folds(read_labels(wide.task, wide.data), num_folds=2)
        sizes = [int((folds.fold == fold).sum()) for fold in range(2)]
        train_run(wide.task, config, data=wide.data, folds=folds, out=tmp_path / "r", packed=tmp_path / "p", only=0)
        said = capsys.readouterr().err
        assert any(f"{size} added images equal validation images" in said for size in (sizes[0], sizes[0] + 1))

    def test_added_images_of_other_classes_are_refused_by_training(self, wide: Toy, older: Toy, tmp_path: Path) -> None:
        from kaggle_kit.train.config import ModelConfig, TrainConfig
        from kaggle_kit.train.crossval import train_run

        heads = {**older.task.heads, "root": dataclasses.replace(older.task.heads["root"], classes=4)}
        other = Tagged(tag="old", task=dataclasses.replace(older.task, heads=heads), data=older.data)
        pack_train(wide.task, wide.data, tmp_path / "p", tagged=[other])
        folds = make_folds(read_labels(wide.task, wide.data), num_folds=2)
        config = TrainConfig(model=ModelConfig(name="test_resnet"), epochs=1)
        with pytest.raises(DataError, match=r"images tagged 'old' have heads \['root', 'vowel'\] or other classes"):
            train_run(wide.task, config, data=wide.data, folds=folds, out=tmp_path / "r", packed=tmp_path / "p")


class TestDuplicates:
    def test_equal_images_are_one_group_and_broken_ones_are_not(self, files: Toy, tmp_path: Path) -> None:
        images = files.data / "images"
        (images / "5.jpg").write_bytes((images / "2.jpg").read_bytes())
        (images / "7.jpg").write_bytes(b"")
        groups = pack_train(files.task, files.data, tmp_path / "p").duplicate_groups()
        assert groups[5] == groups[2]
        assert groups[3] != groups[7]
        assert len(np.unique(groups)) == 19

    @pytest.mark.parametrize(("scheme", "same"), [("stratified", np.arange(48) // 3), ("grouped", np.arange(48) % 24)])
    def test_equal_images_are_in_one_fold(self, wide: Toy, scheme, same: np.ndarray) -> None:
        folds = make_folds(read_labels(wide.task, wide.data), scheme, num_folds=2, seed=3, duplicates=same)
        assert all(len(set(folds.fold[same == group])) == 1 for group in np.unique(same))

    def test_groups_that_share_an_image_become_one(self, wide: Toy) -> None:
        labels = read_labels(wide.task, wide.data)  # writers w0 to w3
        same = np.arange(48)
        same[[0, 1]] = 0
        folds = make_folds(labels, "grouped", num_folds=3, duplicates=same)
        assert set(folds.fold[0::4]) == set(folds.fold[1::4])

    def test_without_duplicates_folds_are_what_they_were(self, wide: Toy) -> None:
        labels = read_labels(wide.task, wide.data)
        shuffled = np.random.default_rng(0).permutation(48)
        assert (make_folds(labels).fold == make_folds(labels, duplicates=shuffled).fold).all()

    def test_equal_images_with_several_labels_are_named(self, wide: Toy) -> None:
        labels = read_labels(wide.task, wide.data)
        same = np.arange(48)
        same[1] = 0
        found = describe_duplicates(labels, same)
        assert found.num_images == 2
        assert "1 set(s) are labelled in several ways, such as 'Train_0', 'Train_1'" in found.text
