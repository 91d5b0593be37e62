"""Test images that earlier predictions are sure of train every fold, and are never validated on."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SIZE, Toy, make_wide, write_shard
from pyarrow import parquet
from test_multilabel import NAMES, many

from kaggle_kit.errors import DataError, KitError, PredictionError, SettingError
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import Labels, read_labels, resolve_classes
from kaggle_kit.packing.competition import pack_test, pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.sources import PackedSource, resolve_stored
from kaggle_kit.sources.stacked import StackedStores
from kaggle_kit.task import Stored, Task, task_from_plain, task_to_plain
from kaggle_kit.train.augment import Augment
from kaggle_kit.train.config import LoaderConfig, ModelConfig, PseudoConfig, TrainConfig
from kaggle_kit.train.crossval import prepare, train_run
from kaggle_kit.train.data import TrainStream, make_loader
from kaggle_kit.train.devices import make_fabric
from kaggle_kit.train.everything import train_everything
from kaggle_kit.train.pseudo import add_pseudo_labels, pseudo_key

SMALL = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(24, 32)), loader=LoaderConfig(batch_size=8), epochs=1
)
NUM_TEST = 16


def show_test(toy: Toy) -> Toy:
    """Let the competitor see the whole test, whose first image equals Train_5."""
    for path in toy.data.glob("test_*.parquet"):
        path.unlink()
    shutil.copy(toy.hidden / "sample_submission.csv", toy.data)
    images = np.concatenate([pixels(path) for path in sorted(toy.hidden.glob("test_*.parquet"))])
    images[0] = pixels(toy.data / "train_0.parquet")[5]
    write_shard(toy.data / "test_0.parquet", [f"Test_{i}" for i in range(len(images))], images)
    return toy


def pixels(shard: Path) -> np.ndarray:
    table = parquet.read_table(shard)
    columns = [table[str(i)].to_numpy() for i in range(SIZE[0] * SIZE[1])]
    return np.stack(columns, axis=1).reshape(len(table), *SIZE)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy competition with a test that can be seen; read-only."""
    return show_test(make_wide(tmp_path_factory.mktemp("pseudo"), num_test=NUM_TEST))


@pytest.fixture(scope="module")
def stores(toy: Toy) -> tuple[PackedSource, PackedSource]:
    beside = toy.data.parent
    return pack_train(toy.task, toy.data, beside=beside), pack_test(toy.task, toy.data, beside=beside)


def predicted(sureness: np.ndarray | list[float], *, ids: list[str] | None = None) -> Predictions:
    """Return predictions of root i % 3, so sure, and of vowel i % 2, wholly sure."""
    sure = np.asarray(sureness, np.float32)
    rows = np.arange(len(sure))
    root = np.repeat((1 - sure[:, None]) / 2, 3, axis=1)
    root[rows, rows % 3] = sure
    names = np.array([f"Test_{i}" for i in rows] if ids is None else ids, np.str_)
    return Predictions(ids=names, probs={"root": root, "vowel": np.eye(2, dtype=np.float32)[rows % 2]})


def save(predictions: Predictions, folder: Path, *, floor: float = 0.9) -> PseudoConfig:
    predictions.save(folder / "probs.npz")
    return PseudoConfig(predictions=str(folder / "probs.npz"), floor=floor)


def added(toy: Toy, config: PseudoConfig, source: PackedSource) -> tuple[PackedSource | StackedStores, Labels | None]:
    return add_pseudo_labels(toy.task, config, source, data=toy.data, beside=toy.data.parent)


def train(toy: Toy, out: Path, pseudo: PseudoConfig | None = None, **options) -> Run:
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    config = dataclasses.replace(SMALL, pseudo=pseudo or PseudoConfig())
    return train_run(toy.task, config, data=toy.data, folds=folds, out=out, beside=toy.data.parent, **options)


def shown_by(stream: TrainStream) -> list[str]:
    return [name for step in range(len(stream)) for name in stream.ids_of(step)]


class TestStackedStores:
    def test_the_second_stores_rows_follow_the_firsts(self, stores: tuple[PackedSource, PackedSource]) -> None:
        first, second = stores
        both = StackedStores(first, second, tag="pseudo")
        assert len(both) == len(first) + len(second) == 48 + NUM_TEST
        assert both.ids.tolist() == [*first.ids.tolist(), *(f"pseudo/{name}" for name in second.ids.tolist())]
        assert both.shape == first.shape and both.num_bytes == first.num_bytes + second.num_bytes
        assert (both.folder, both.key, both.broken) == (first.folder, first.key, {})

    @pytest.mark.parametrize("rows", [[50, 0, 63, 47, 48, 1, 50], [3, 2], [60, 49], []])
    def test_images_come_in_the_order_that_is_asked_for(
        self, stores: tuple[PackedSource, PackedSource], rows: list[int]
    ) -> None:
        first, second = stores
        both = StackedStores(first, second, tag="pseudo")
        found = both.take(np.array(rows, np.int64))
        assert found.shape == (len(rows), *SIZE, 1) and found.dtype == np.uint8
        for image, row in zip(found, rows, strict=True):
            assert (image == (first.read(row) if row < 48 else second.read(row - 48))).all()

    def test_equal_images_are_in_one_group_across_stores(self, stores: tuple[PackedSource, PackedSource]) -> None:
        first, second = stores
        groups = StackedStores(first, second, tag="pseudo").duplicate_groups()
        own = first.duplicate_groups()
        assert ((groups[:48, None] == groups[None, :48]) == (own[:, None] == own[None])).all()
        assert np.flatnonzero(groups == groups[48]).tolist() == [5, 48]
        assert groups[0] == groups[1] and len(np.unique(groups)) == 48 + NUM_TEST - 2

    def test_broken_images_are_in_groups_of_their_own(self, files: Toy, tmp_path: Path) -> None:
        path = files.data / "images" / "21.jpg"
        path.write_bytes(path.read_bytes()[:-200])
        first, second = (
            pack_train(files.task, files.data, beside=tmp_path),
            pack_test(files.task, files.data, beside=tmp_path),
        )
        both = StackedStores(first, second, tag="pseudo")
        assert set(both.broken) == {"3.jpg", "pseudo/21.jpg"}
        groups = both.duplicate_groups()
        for name in both.broken:
            assert (groups == groups[both.ids.tolist().index(name)]).sum() == 1

    def test_worker_processes_get_the_same_batches(self, stores: tuple[PackedSource, PackedSource]) -> None:
        both = StackedStores(*stores, tag="pseudo")
        assert len(pickle.dumps(both)) < 20_000  # paths, not images
        labels = Labels(ids=both.ids, classes={"root": np.arange(len(both)) % 3})
        stream = TrainStream(
            both,
            labels,
            np.arange(30, len(both)),
            batch_size=16,
            epochs=2,
            seed=1,
            augment=Augment("letters", stored=Stored(height=SIZE[0], width=SIZE[1]), channels=1),
        )
        cpu = torch.device("cpu")
        alone, other = (list(make_loader(stream, num_workers=number, device=cpu)) for number in (0, 1))
        assert len(alone) == len(other) == 4
        for one, two in zip(alone, other, strict=True):
            assert torch.equal(one.images, two.images) and torch.equal(one.labels["root"], two.labels["root"])


class TestLabels:
    def test_without_predictions_nothing_is_added(self, toy: Toy, stores: tuple[PackedSource, PackedSource]) -> None:
        assert added(toy, PseudoConfig(), stores[0]) == (stores[0], None)
        assert pseudo_key(PseudoConfig()) == ""

    @pytest.mark.parametrize(
        ("floor", "expected"), [(0.9, [1, 3]), (0.75, [1, 3, 4]), (0.5, [0, 1, 3, 4]), (0.0, [0, 1, 2, 3, 4])]
    )
    def test_images_from_the_floor_on_get_their_likeliest_class(
        self,
        toy: Toy,
        stores: tuple[PackedSource, PackedSource],
        tmp_path: Path,
        floor: float,
        expected: list[int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        config = save(predicted([0.5, 0.95, 0.4, 1.0, 0.75]), tmp_path, floor=floor)
        source, labels = added(toy, config, stores[0])
        assert isinstance(source, StackedStores) and labels is not None
        assert labels.ids.tolist() == [f"pseudo/Test_{i}" for i in expected]
        assert labels.classes["root"].tolist() == [i % 3 for i in expected]
        assert labels.classes["vowel"].tolist() == [i % 2 for i in expected]
        assert f"{len(expected)} of 5 test images are predicted with at least {floor:g}" in capsys.readouterr().err

    def test_the_least_sure_head_decides(
        self, toy: Toy, stores: tuple[PackedSource, PackedSource], tmp_path: Path
    ) -> None:
        predictions = predicted([0.99, 0.99])
        predictions.probs["vowel"][1] = [0.4, 0.6]
        _, labels = added(toy, save(predictions, tmp_path), stores[0])
        assert labels is not None and labels.ids.tolist() == ["pseudo/Test_0"]

    def test_a_multilabel_head_must_be_sure_of_every_class(self, wide: Toy, tmp_path: Path) -> None:
        shutil.copytree(wide.hidden, wide.data, dirs_exist_ok=True)
        toy = many(wide)
        shutil.copy(toy.hidden / "sample_submission.csv", toy.data)
        probs = np.array([[0.95, 0.02, 0.5, 0.01], [0.97, 0.03, 0.91, 0.0], [0.0, 0.05, 0.1, 0.02]], np.float32)
        ids = np.array(["Test_0", "Test_1", "Test_2"])
        predictions = Predictions(ids=ids, probs={"tags": probs}, multilabel=("tags",))
        source = pack_train(toy.task, toy.data, beside=tmp_path)
        config = save(predictions, tmp_path)
        _, labels = add_pseudo_labels(toy.task, config, source, data=toy.data, beside=tmp_path)
        assert labels is not None and labels.ids.tolist() == ["pseudo/Test_1", "pseudo/Test_2"]
        assert labels.classes["tags"].dtype == np.uint8 and len(NAMES) == 4
        assert labels.classes["tags"].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]

    def test_one_class_of_many_is_not_taken_for_sets_of_classes(self, wide: Toy, tmp_path: Path) -> None:
        toy = many(wide)
        predictions = Predictions(ids=np.array(["Test_0"]), probs={"tags": np.eye(4, dtype=np.float32)[:1]})
        source = pack_train(toy.task, toy.data, beside=tmp_path)
        with pytest.raises(DataError, match=r"predicts multi-label heads \[\]; 'toy-wide' has \['tags'\]"):
            add_pseudo_labels(toy.task, save(predictions, tmp_path), source, data=toy.data, beside=tmp_path)

    def test_broken_test_images_are_never_taken(self, files: Toy, tmp_path: Path) -> None:
        path = files.data / "images" / "21.jpg"
        path.write_bytes(path.read_bytes()[:-200])
        predictions = Predictions(
            ids=np.array(["20.jpg", "21.jpg"]), probs={"kind": np.array([[1, 0], [1, 0]], np.float32)}
        )
        source = pack_train(files.task, files.data, beside=tmp_path)
        _, labels = add_pseudo_labels(files.task, save(predictions, tmp_path), source, data=files.data, beside=tmp_path)
        assert labels is not None and labels.ids.tolist() == ["pseudo/20.jpg"]

    @pytest.mark.parametrize(
        ("predictions", "message"),
        [
            (
                predicted([1.0, 1.0], ids=["Test_1", "Other_1"]),
                r"probs.npz predicts 1 images that are none of the test's: 'Other_1'; predict those in .*data",
            ),
            (predicted([1.0], ids=["Train_1"]), "none of the test's: 'Train_1'"),
            (predicted([0.89, 0.6]), r"no image reaches `pseudo.floor` 0.9; lower it, or leave pseudo out"),
            (
                Predictions(ids=np.array(["Test_1"]), probs={"root": np.eye(3, dtype=np.float32)[:1]}),
                r"predicts heads with so many classes {'root': 3}; 'toy-wide' has {'root': 3, 'vowel': 2}",
            ),
            (
                Predictions(
                    ids=np.array(["Test_1"]),
                    probs={"root": np.eye(4, dtype=np.float32)[:1], "vowel": np.eye(2, dtype=np.float32)[:1]},
                ),
                r"so many classes {'root': 4, 'vowel': 2}",
            ),
        ],
    )
    def test_predictions_that_do_not_fit_are_refused(
        self,
        toy: Toy,
        stores: tuple[PackedSource, PackedSource],
        tmp_path: Path,
        predictions: Predictions,
        message: str,
    ) -> None:
        with pytest.raises(DataError, match=message):
            added(toy, save(predictions, tmp_path), stores[0])

    @pytest.mark.parametrize(("text", "message"), [(None, "is missing"), (b"no zip", "is damaged")])
    def test_files_that_hold_no_predictions_are_refused(
        self, toy: Toy, tmp_path: Path, text: bytes | None, message: str
    ) -> None:
        path = tmp_path / "probs.npz"
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(PredictionError, match=message):
            train(toy, tmp_path / "run", PseudoConfig(predictions=str(path)))
        assert not (tmp_path / "run").exists()

    def test_a_floor_that_is_no_probability_is_refused(self) -> None:
        with pytest.raises(SettingError, match="`floor` is 90"):
            PseudoConfig(floor=90)


class TestTraining:
    def test_an_image_that_equals_a_validation_image_is_left_out_of_that_fold(self, toy: Toy, tmp_path: Path) -> None:
        config = dataclasses.replace(SMALL, pseudo=save(predicted(np.ones(NUM_TEST)), tmp_path))
        folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
        fabric = make_fabric(config)
        _, ready = prepare(toy.task, config, toy.data, folds, packed=None, beside=toy.data.parent, fabric=fabric)
        (home,) = folds.fold[folds.ids == "Train_5"].tolist()
        for fold in (0, 1):
            names = ready.source.ids[ready.train_rows(fold)].tolist()
            pseudo = {name for name in names if name.startswith("pseudo/")}
            every = {f"pseudo/Test_{i}" for i in range(NUM_TEST)}
            assert pseudo == (every - {"pseudo/Test_0"} if fold == home else every)
            assert ready.leaking(fold).sum() == (fold == home)
            valid = ready.source.ids[ready.valid_rows(fold)].tolist()
            assert not any(name.startswith("pseudo/") for name in valid) and not set(valid) & set(names)
        assert len(ready.train_rows(EVERYTHING)) == 48 + NUM_TEST

    def test_pseudo_labels_train_every_fold_and_validate_none(
        self, toy: Toy, tmp_path: Path, streams: list[TrainStream]
    ) -> None:
        sure = np.where(np.arange(NUM_TEST) > 7, 1.0, 0.6)
        run = train(toy, tmp_path / "run", save(predicted(sure), tmp_path))
        plain = train(toy, tmp_path / "plain")
        assert [stream.steps_per_epoch for stream in streams] == [4, 4, 3, 3]  # 24 + 8 images, and 24
        for stream in streams[:2]:
            found = {name for name in shown_by(stream) if name.startswith("pseudo/")}
            assert found == {f"pseudo/Test_{i}" for i in range(8, NUM_TEST)}
        for one in (run, plain):
            assert sorted(one.oof().ids) == sorted(f"Train_{i}" for i in range(48)) and one.score.rows == 48
        assert run.packed == plain.packed and run.packed_key == plain.packed_key
        assert run.checkpoint(0).read_bytes() != plain.checkpoint(0).read_bytes()

    def test_the_labels_that_are_shown_are_those_predicted(
        self, toy: Toy, tmp_path: Path, streams: list[TrainStream]
    ) -> None:
        train(toy, tmp_path / "run", save(predicted(np.ones(NUM_TEST)), tmp_path), only=0)
        (stream,) = streams
        own = read_labels(toy.task, toy.data)
        truth = dict(zip(own.ids.tolist(), own.classes["root"].tolist(), strict=True))
        truth |= {f"pseudo/Test_{i}": i % 3 for i in range(NUM_TEST)}
        for step in range(len(stream)):
            assert stream[step].labels["root"].tolist() == [truth[name] for name in stream.ids_of(step)]

    def test_auxiliary_classes_of_pseudo_labels_are_unknown(self, wide: Toy, tmp_path: Path) -> None:
        shutil.copytree(wide.hidden, wide.data, dirs_exist_ok=True)
        task = auxiliary_task(wide)
        config = dataclasses.replace(SMALL, pseudo=save(predicted(np.ones(9)), tmp_path))
        folds = make_folds(read_labels(task, wide.data), num_folds=2)
        _, ready = prepare(task, config, wide.data, folds, packed=None, beside=tmp_path, fabric=make_fabric(config))
        assert (ready.by_row.auxiliary["writer"][48:] == -1).all()
        assert (ready.by_row.auxiliary["writer"][:48] >= 0).all()
        run = train_run(task, config, data=wide.data, folds=folds, out=tmp_path / "run", only=0, beside=tmp_path)
        assert len(run.oof()) == 24

    def test_other_predictions_never_go_on_in_a_runs_folder(self, toy: Toy, tmp_path: Path) -> None:
        config = save(predicted(np.ones(NUM_TEST)), tmp_path)
        run = train(toy, tmp_path / "run", config, only=0)
        assert train(toy, tmp_path / "run", config, only=0).id == run.id
        assert save(predicted(np.ones(NUM_TEST - 1)), tmp_path) == config
        with pytest.raises(DataError, match=r"begun otherwise: `pseudo` was '\w{12}', is now '\w{12}'"):
            train(toy, tmp_path / "run", config, only=0)
        with pytest.raises(DataError, match=r"begun otherwise: `pseudo.floor` was 0.9, is now 0.8"):
            train(toy, tmp_path / "run", save(predicted(np.ones(NUM_TEST)), tmp_path, floor=0.8), only=0)

    def test_a_training_on_everything_takes_the_same_predictions(
        self, toy: Toy, tmp_path: Path, streams: list[TrainStream]
    ) -> None:
        like = train(toy, tmp_path / "cv", save(predicted(np.ones(NUM_TEST)), tmp_path), only=0)
        run = train_everything(like, out=tmp_path / "all")
        assert streams[-1].steps_per_epoch == (48 + NUM_TEST) // 8
        assert len([name for name in shown_by(streams[-1]) if name.startswith("pseudo/")]) == NUM_TEST
        assert run.packed_key == like.packed_key
        save(predicted(np.ones(NUM_TEST - 1)), tmp_path)
        with pytest.raises(DataError, match=r"begun otherwise: `pseudo` was"):
            train_everything(like, out=tmp_path / "all")
        Path(like.config.pseudo.predictions or "").unlink()
        with pytest.raises(KitError, match=r"probs.npz is missing"):
            train_everything(like, out=tmp_path / "all")


def auxiliary_task(toy: Toy) -> Task:
    values = task_to_plain(toy.task) | {"auxiliary": {"writer": {"classes": "from_labels"}}, "groups": None}
    return resolve_classes(resolve_stored(task_from_plain(values), toy.data), toy.data)


def test_images_of_the_test_are_packed_once_and_apart_from_the_train_images(toy: Toy) -> None:
    first, again = (pack_test(toy.task, toy.data, beside=toy.data.parent) for _ in range(2))
    assert first.folder == again.folder and first.key == again.key
    assert first.ids.tolist() == [f"Test_{i}" for i in range(NUM_TEST)]
    image = np.zeros(SIZE, np.uint8)
    assert cv2.absdiff(first.read(0)[..., 0], image).any()
