from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import SIZE, Toy, wide_task
from pyarrow import parquet

from kaggle_kit.blending import fit_blend
from kaggle_kit.ensemble import equal_blend
from kaggle_kit.errors import CheckpointError, DataError, KitError, RefusedError, SettingError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Stored, task_from_plain, task_to_plain
from kaggle_kit.train.augment import Augment
from kaggle_kit.train.checkpoint import load_checkpoint, save_checkpoint
from kaggle_kit.train.config import LoaderConfig, LossConfig, ModelConfig, OptimConfig, SamplingConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.data import TrainStream, make_loader
from kaggle_kit.train.model import Preprocess, build_network, resize_weights
from kaggle_kit.train.predict import predict_rows

TINY = TrainConfig(
    model=ModelConfig(name="test_efficientnet", input_size=(32, 48)), loader=LoaderConfig(batch_size=8), epochs=1
)


def train_tiny(toy: Toy, out: Path, config: TrainConfig = TINY, **options) -> Run:
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    return train_run(toy.task, config, data=toy.data, folds=folds, out=out, **options)


def make_stream(toy: Toy, tmp_path: Path, augment: str = "letters") -> TrainStream:
    store = pack_train(toy.task, toy.data, tmp_path / "packed")
    labels = read_labels(toy.task, toy.data).align(store.ids)
    stored = Stored(height=SIZE[0], width=SIZE[1])
    preset = Augment(augment, stored=stored, channels=1)
    return TrainStream(store, labels, np.arange(40), batch_size=16, epochs=3, seed=1, augment=preset)


def test_resize_by_matrices_equals_opencv_by_area() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (137, 236), dtype=np.uint8), (3, 3), 0)
    expected = cv2.resize(image.astype(np.float32), (100, 64), interpolation=cv2.INTER_AREA)
    found = resize_weights(137, 64) @ torch.from_numpy(image).float() @ resize_weights(236, 100).T
    assert np.abs(found.numpy() - expected).max() < 1e-3 * 255


def test_preprocess_normalises_and_resizes() -> None:
    preprocess = Preprocess((10, 20), (16, 32), mean=[0.5], std=[0.25])
    out = preprocess(torch.full((2, 10, 20, 1), 255, dtype=torch.uint8))
    assert out.shape == (2, 1, 16, 32)
    assert torch.allclose(out, torch.full_like(out, 2.0), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet18"])
def test_any_timm_backbone_gives_logits_for_every_head(name: str) -> None:
    network = build_network(wide_task(), ModelConfig(name=name, input_size=(64, 64))).eval()
    with torch.inference_mode():
        logits = network(torch.zeros((2, *SIZE, 1), dtype=torch.uint8))
    assert {head: tuple(values.shape) for head, values in logits.items()} == {"root": (2, 3), "vowel": (2, 2)}


def test_unknown_backbones_are_named() -> None:
    with pytest.raises(SettingError, match=r"`model.name` is 'resnet19', which timm .* did you mean 'resnet\d+'"):
        build_network(wide_task(), ModelConfig(name="resnet19"))


def test_every_row_comes_once_an_epoch_and_epochs_differ(wide: Toy, tmp_path: Path) -> None:
    stream = make_stream(wide, tmp_path, "none")
    assert stream.steps_per_epoch == 2 and len(stream) == 6
    first, second = stream[0].images, stream[2].images
    assert first.shape == (16, *SIZE, 1) and first.dtype == torch.uint8
    assert not torch.equal(first, second)
    assert torch.equal(first, stream[0].images)


def test_batches_are_the_same_whatever_the_number_of_workers(wide: Toy, tmp_path: Path) -> None:
    stream = make_stream(wide, tmp_path)
    cpu = torch.device("cpu")
    alone = list(make_loader(stream, num_workers=0, device=cpu))
    many = list(make_loader(stream, num_workers=2, device=cpu))
    assert len(alone) == len(many) == 6
    for one, other in zip(alone, many, strict=True):
        assert torch.equal(one.images, other.images)
        assert all(torch.equal(values, other.labels[head]) for head, values in one.labels.items())


def test_a_run_holds_every_row_out_of_fold_once(trained: tuple[Toy, list[Run]]) -> None:
    toy, runs = trained
    run = read_run(runs[0].folder)
    assert run.config == runs[0].config and run.task == toy.task and run.score == runs[0].score
    assert sorted(run.oof().ids) == sorted(read_labels(toy.task, toy.data).ids)
    for fold in (0, 1):
        names = {path.name for path in (run.folder / f"fold{fold}").iterdir()}
        assert names == {"best.safetensors", "fold.json", "oof.npz", "history.csv"}


def test_a_reloaded_checkpoint_gives_the_saved_predictions(trained: tuple[Toy, list[Run]]) -> None:
    _, runs = trained
    run = runs[0]
    network, info = load_checkpoint(run.checkpoint(1))
    folds = run.fold_table()
    ids = folds.ids[folds.fold == 1]
    store = PackedSource(run.packed)
    probs = predict_rows(network, store, rows_of(ids, store.ids))
    oof = run.oof().align(ids)
    assert max(float(np.abs(probs[head] - oof.probs[head]).max()) for head in probs) < 1e-5
    assert info.score == run.folds[1].score


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(wide: Toy, tmp_path: Path) -> None:
    first = train_tiny(wide, tmp_path / "a", packed=tmp_path / "packed")
    second = train_tiny(wide, tmp_path / "b", packed=tmp_path / "packed")
    for head, probs in first.oof().probs.items():
        assert (probs == second.oof().probs[head]).all()
    assert first.checkpoint(0).read_bytes() == second.checkpoint(0).read_bytes()


@pytest.mark.slow
def test_training_learns_the_toy(wide: Toy, tmp_path: Path) -> None:
    config = TrainConfig(
        model=ModelConfig(name="test_resnet"), optim=OptimConfig(lr=5e-3), loader=LoaderConfig(batch_size=8), epochs=12
    )
    run = train_tiny(wide, tmp_path / "run", config, only=0)
    assert run.score.total > 0.9
    assert run.score.rows == 24


def test_broken_images_are_left_out_of_training_aloud(
    files: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(files, tmp_path / "run", TrainConfig(model=TINY.model, loader=TINY.loader, epochs=1))
    assert "1 broken image(s) left out of training: '3.jpg'" in capsys.readouterr().err
    assert len(run.oof()) == 19


@pytest.mark.parametrize("mine", ["mine.txt", "folds.parquet", "run.json"])
def test_folders_of_other_things_are_never_replaced(wide: Toy, tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).write_text("keep me")
    with pytest.raises(DataError, match="is not empty"):
        train_tiny(wide, tmp_path, overwrite=True)
    assert (tmp_path / mine).read_text() == "keep me"


def test_a_run_with_other_files_in_its_folder_is_never_replaced(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    toy, runs = trained
    # another test may have packed images beside the run's folds
    folder = shutil.copytree(runs[0].folder, tmp_path / "run", ignore=shutil.ignore_patterns("packed_images"))
    (folder / "notes.md").write_text("keep me")
    with pytest.raises(DataError, match=r"holds a run and other files: 'notes.md'; move them"):
        train_tiny(toy, folder, overwrite=True)


@pytest.mark.parametrize("change", [{"data": "nowhere"}, {"model": "resnet19"}, {"folds": "other"}])
def test_a_run_is_replaced_only_after_everything_else_was_checked(
    trained: tuple[Toy, list[Run]], tmp_path: Path, change: dict[str, str]
) -> None:
    toy, runs = trained
    folder = shutil.copytree(runs[0].folder, tmp_path / "run")
    labels = read_labels(toy.task, toy.data)
    if "folds" in change:
        labels.classes["vowel"][0] ^= 1
    config = TrainConfig(model=ModelConfig(name=change.get("model", "test_resnet")), epochs=1)
    data = tmp_path / change["data"] if "data" in change else toy.data
    with pytest.raises(KitError):
        train_run(toy.task, config, data=data, folds=make_folds(labels, num_folds=2), out=folder, overwrite=True)
    assert read_run(folder).score == runs[0].score


def test_a_store_that_was_named_and_holds_other_images_is_never_replaced(wide: Toy, tmp_path: Path) -> None:
    stored = Stored(height=12, width=16, fit="stretch")
    pack_train(wide.task.with_stored(stored), wide.data, tmp_path / "packed")
    with pytest.raises(DataError, match=r"packed was packed from other files or settings than now"):
        train_tiny(wide, tmp_path / "run", packed=tmp_path / "packed")
    assert PackedSource(tmp_path / "packed").shape == (12, 16, 1)


def test_stores_that_nobody_named_never_replace_each_other(wide: Toy, tmp_path: Path) -> None:
    first = train_tiny(wide, tmp_path / "a", only=0)
    shard = wide.data / "train_0.parquet"
    shard.touch()
    assert train_tiny(wide, tmp_path / "touched", only=0).packed == first.packed
    table = parquet.read_table(shard)
    parquet.write_table(table.set_column(1, "0", pa.array([9] * len(table), pa.uint8())), shard)
    second = train_tiny(wide, tmp_path / "b", only=0)
    assert first.packed != second.packed
    assert PackedSource(first.packed).key == first.packed_key


def test_labels_without_image_are_refused_though_the_store_is_packed(wide: Toy, tmp_path: Path) -> None:
    pack_train(wide.task, wide.data, tmp_path / "packed")
    with (wide.data / "train.csv").open("a") as file:
        file.write("Ghost,0,0,w0\n")
    with pytest.raises(DataError, match=r"names 1 of 49 images that .* does not hold: 'Ghost'"):
        train_tiny(wide, tmp_path / "run", packed=tmp_path / "packed")


@pytest.mark.parametrize("name", ["type", "train", "values", "a.b"])
def test_heads_may_have_any_name(name: str) -> None:
    values = task_to_plain(wide_task())
    values["heads"] = {name: {"classes": 3}}
    network = build_network(task_from_plain(values), ModelConfig(name="test_efficientnet", input_size=(32, 32)))
    assert set(network(torch.zeros((2, *SIZE, 1), dtype=torch.uint8))) == {name}


def test_a_fold_that_is_none_is_refused(wide: Toy, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="`fold` is 2; the fold file has folds 0 to 1"):
        train_tiny(wide, tmp_path / "run", only=2)


def test_a_held_out_part_is_one_fold_that_goes_the_whole_way(wide: Toy, tmp_path: Path) -> None:
    folds = make_folds(read_labels(wide.task, wide.data), "holdout", valid_share=0.25)
    run = train_run(wide.task, TINY, data=wide.data, folds=folds, out=tmp_path / "run")
    assert list(run.folds) == [0]
    assert sorted(run.oof().ids) == sorted(folds.ids[folds.fold == 0])
    found = fit_blend([run])
    assert len(write_bundle([run], found.blend, tmp_path / "bundle").members) == 1


def test_folds_that_validate_nothing_are_refused(wide: Toy, tmp_path: Path) -> None:
    folds = make_folds(read_labels(wide.task, wide.data), "everything")
    with pytest.raises(SettingError, match=r"validate no image \(scheme 'everything'\).*`like=` that run"):
        train_run(wide.task, TINY, data=wide.data, folds=folds, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_epoch_of_a_metric_of_which_less_is_better_is_the_lowest(wide: Toy, tmp_path: Path) -> None:
    toy = dataclasses.replace(wide, task=dataclasses.replace(wide.task, metric="log_loss"))
    config = dataclasses.replace(TINY, epochs=3)
    run = train_tiny(toy, tmp_path / "run", config, only=0)
    with (tmp_path / "run" / "fold0" / "history.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(scores) == 3
    assert run.folds[0].epoch == 1 + int(np.argmin(scores))
    assert run.score.total == pytest.approx(min(scores), abs=1e-5)
    found = fit_blend([run])
    assert found.blend.decision.is_plain
    assert write_bundle([run], found.blend, tmp_path / "bundle").oof_score == pytest.approx(run.score.total)
    oof = run.oof()
    turned = {head: probs[:, ::-1].copy() for head, probs in oof.probs.items()}
    Predictions(ids=oof.ids, probs=turned).save(run.oof_file)
    with pytest.raises(RefusedError, match=r"run 'run', compared with its oof.npz, is not shipped: .*train again"):
        write_bundle([run], equal_blend([run.name]), tmp_path / "other")


def test_damaged_and_foreign_checkpoints_are_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    _, runs = trained
    path = tmp_path / "x.safetensors"
    data = runs[0].checkpoint(0).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="x.safetensors is damaged"):
        load_checkpoint(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="has checkpoint format None"):
        load_checkpoint(path)
    network, info = load_checkpoint(runs[0].checkpoint(0))
    network.heads[1] = torch.nn.Linear(96, 5)
    save_checkpoint(path, network, info)
    with pytest.raises(CheckpointError, match=r"2 tensor\(s\) do not fit the network: 'heads.1.weight' has shape"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(dropout=1), "`dropout` is 1; expected 0 to 0.95"),
        (lambda: ModelConfig(input_size=(8, 64)), "each side must be at least 16"),
        (lambda: OptimConfig(lr=0), "`lr` is 0"),
        (lambda: LoaderConfig(batch_size=0), "`batch_size` is 0"),
        (lambda: TrainConfig(epochs=0), "`epochs` is 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize("bad", ["sampling", "bce", "derive"])
def test_refused_settings_claim_no_folder_and_replace_no_run(
    trained: tuple[Toy, list[Run]], tmp_path: Path, bad: str
) -> None:
    toy, runs = trained
    task, config = toy.task, runs[0].config
    if bad == "sampling":
        config = dataclasses.replace(config, sampling=SamplingConfig(name="balanced", head="roott"))
    elif bad == "bce":
        values = task_to_plain(task)
        values["heads"]["root"]["kind"] = "ordinal"
        task, config = task_from_plain(values), dataclasses.replace(config, loss=LossConfig(name="bce"))
    else:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, derive_from="pair"))
    folder = shutil.copytree(runs[0].folder, tmp_path / "run")
    folds = make_folds(read_labels(task, toy.data), "stratified", num_folds=2, seed=0)
    with pytest.raises(KitError):
        train_run(task, config, data=toy.data, folds=folds, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(KitError):
        train_run(task, config, data=toy.data, folds=folds, out=folder, overwrite=True)
    assert read_run(folder).score == runs[0].score
