from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Toy, random_run
from test_export_heads import relabel

from kaggle_kit.cli import main
from kaggle_kit.ensemble import equal_blend
from kaggle_kit.errors import ExportError
from kaggle_kit.export.bundle import export_runs, write_bundle
from kaggle_kit.export.stored import check_checkpoint
from kaggle_kit.export.variant import Variant
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.runs import EVERYTHING, Run, read_run
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import read_columns, rows_of, write_rows
from kaggle_kit.train.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from kaggle_kit.train.config import LoaderConfig, LogConfig, TrainConfig

LOOSE = Variant(max_changed=1, max_drop=1)


def copied(run: Run, folder: Path) -> Run:
    return read_run(shutil.copytree(run.folder, folder / run.name))


@pytest.fixture
def everything(wide: Toy, tmp_path: Path) -> Run:
    """A run on everything with an auxiliary head, whose network is right about every image that it was trained on."""
    toy = relabel(wide, heads={"root": {"classes": 3}, "vowel": {"classes": 2}}, metric="macro_recall")
    folds = make_folds(read_labels(toy.task, toy.data), "stratified", num_folds=2)
    like = random_run(toy, tmp_path / "cv", folds)
    run = random_run(toy, tmp_path / "all", folds, seed=2, like=like)
    network, info = load_checkpoint(run.checkpoint(EVERYTHING))
    source, table = PackedSource(run.packed), read_columns(toy.data / "train.csv")
    images = torch.from_numpy(source.take(rows_of(table["image_id"], source.ids)))
    with torch.inference_mode():
        for head, (name, logits) in zip(network.heads, network(images).items(), strict=False):
            head.bias -= logits.mean(0)  # so that it decides by what it sees
            table[name] = (logits - logits.mean(0)).argmax(1).numpy().astype(str)
    save_checkpoint(run.checkpoint(EVERYTHING), network, info)
    table["whole"] = np.char.add(table["root"], table["vowel"])
    write_rows(toy.data / "train.csv", list(table), zip(*[column.tolist() for column in table.values()], strict=True))
    return run


VARIANTS = [Variant(tta=("hflip", "shift=8")), Variant(derive_from="whole")]


@pytest.mark.parametrize("variant", VARIANTS, ids=["tta", "derive"])
def test_variants_of_a_training_on_everything_are_gated_though_it_stored_nothing(
    everything: Run, tmp_path: Path, variant: Variant
) -> None:
    message = (
        r"member_all_everything.onnx, compared with its network without --tta and --derive on images that it has "
        r"learned, is not shipped: \d+ of 96 decisions change .* from 1.0000 to 0.*; leave these out, or allow more"
    )
    with pytest.raises(ExportError, match=message):
        write_bundle([everything], equal_blend(["all"]), tmp_path / "out", variant=variant)
    assert not (tmp_path / "out").exists()
    (member,) = export_runs([everything], tmp_path / "out", variant=dataclasses.replace(variant, max_drop=1))
    assert member.stored and member.stored.score_before == 1 > member.stored.score_after
    assert member.stored.rows == 48 and member.stored.decisions_changed > 0
    (listed,) = json.loads((tmp_path / "out" / "members.json").read_text())["members"]
    assert listed["stored"]["decisions_changed"] == member.stored.decisions_changed


def test_what_views_change_of_a_training_on_everything_is_said(
    everything: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "export",
        str(everything.folder),
        "--out",
        str(tmp_path / "out"),
        "--tta",
        "shift=8",
        "--max-drop",
        "1",
    ]
    assert main(arguments) == 0
    assert "  against its network without these, on images it has learned: " in capsys.readouterr().out
    assert main(["export", str(everything.folder), "--out", str(tmp_path / "out")]) == 0
    assert "  against" not in capsys.readouterr().out


def other_weights(run: Run, fold: int) -> None:
    """Put a network of other weights, with the same description, in a checkpoint's place."""
    network, info = load_checkpoint(run.checkpoint(fold))
    for weights in network.heads.parameters():
        weights.data *= -30
    save_checkpoint(run.checkpoint(fold), network, info)


@pytest.mark.parametrize("variant", [LOOSE, dataclasses.replace(LOOSE, tta=("shift=1",))], ids=["plain", "views"])
def test_another_network_is_found_however_loose_the_limits(
    trained: tuple[Toy, list[Run]], tmp_path: Path, variant: Variant
) -> None:
    run = copied(trained[1][0], tmp_path)
    other_weights(run, 1)
    message = (
        r"fold 1 of run 'test_resnet' is not shipped: probabilities of head 'root' differ from .*oof.npz by .*0.05"
    )
    with pytest.raises(ExportError, match=message):
        export_runs([run], tmp_path / "out", variant=variant)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_fold_is_refused(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    run = copied(trained[1][0], tmp_path)
    shutil.copy(run.checkpoint(1), run.checkpoint(0))
    with pytest.raises(
        ExportError, match=r"fold0.*safetensors is a checkpoint of fold 1, expected fold 0; put the run"
    ):
        export_runs([run], tmp_path / "out", variant=LOOSE)


def described(run: Run, **changes: Any) -> CheckpointInfo:
    config = dataclasses.replace(run.config, **changes)
    return CheckpointInfo(task=run.task, config=config, fold=0, epoch=1, score=None)


def test_a_checkpoint_of_other_settings_is_refused_with_their_names(trained: tuple[Toy, list[Run]]) -> None:
    run = trained[1][0]
    other = described(run, epochs=9, seed=4)
    message = (
        rf"other settings than .*run.json says \(hash {other.config_hash} instead of \w+, by 'epochs', 'seed'\); put"
    )
    with pytest.raises(ExportError, match=message):
        check_checkpoint(run, 0, other)


def test_what_a_training_may_go_on_with_is_no_other_setting(trained: tuple[Toy, list[Run]]) -> None:
    run = trained[1][0]
    loader: LoaderConfig = dataclasses.replace(run.config.loader, num_workers=2)
    later = described(run, max_hours=3.5, log=LogConfig(to=("tensorboard",)), loader=loader)
    assert isinstance(later.config, TrainConfig) and later.config_hash != described(run).config_hash
    check_checkpoint(run, 0, later)


def tie(run: Run, number: int) -> None:
    """Let a run's stored predictions decide some images otherwise than its network, by a little."""
    oof = run.oof()
    root = oof.probs["root"].copy()
    best = np.sort(root, axis=1)
    closest = np.argsort(best[:, -1] - best[:, -2])[:number]
    for row in closest:
        first, second = np.argsort(root[row])[[-1, -2]]
        root[row, first], root[row, second] = root[row, second], root[row, first]
    dataclasses.replace(oof, probs={**oof.probs, "root": root}).save(run.oof_file)


def test_near_ties_of_few_images_are_refused_with_the_repair_that_helps(
    trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    run = copied(trained[1][0], tmp_path)
    tie(run, 2)
    advice = (
        r"if checkpoints and oof.npz of 'test_resnet' belong together, .* allow more with --max-changed and --max-drop"
    )
    with pytest.raises(ExportError, match=advice):
        export_runs([run], tmp_path / "out")
    members = export_runs([run], tmp_path / "out", variant=Variant(max_changed=0.05, max_drop=0.2))
    assert sum(one.stored.decisions_changed for one in members if one.stored) == 2
    bundle = write_bundle(
        [run], equal_blend([run.name]), tmp_path / "b", variant=Variant(max_changed=0.05, max_drop=0.2)
    )
    assert bundle.change and bundle.change.decisions_changed == 2
