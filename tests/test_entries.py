from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from test_ledger import make_run

from kaggle_kit.entries import entry_of, settings_of
from kaggle_kit.runs import read_run, write_run
from kaggle_kit.train.config import ModelConfig, TrainConfig


def test_an_entry_holds_all_settings(tmp_path: Path) -> None:
    config = TrainConfig(model=ModelConfig(name="resnet50", input_size=(64, 96)), epochs=3)
    settings = entry_of(make_run(tmp_path / "a", config=config)).settings
    assert settings == settings_of(config) and settings.keys() == settings_of(TrainConfig()).keys()
    assert (settings["model.name"], settings["model.input_size"], settings["epochs"]) == ("resnet50", [64, 96], 3)
    assert settings["optim.lr"] == 2e-3


def test_an_entry_is_known_by_the_run_s_id(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert entry_of(run).run_id == run.id == read_run(tmp_path / "a").id
    write_run(dataclasses.replace(run, created="2027-01-01T00:00:00+00:00"))
    assert read_run(tmp_path / "a").id == run.id
    write_run(dataclasses.replace(run, id=""))  # trained again
    assert read_run(tmp_path / "a").id not in ("", run.id)


def test_a_run_of_before_ids_is_known_when_renamed(tmp_path: Path) -> None:
    ids = []
    for name, total in (("a", 0.9), ("b", 0.91)):
        path = make_run(tmp_path / name, total).folder / "run.json"
        values = json.loads(path.read_text())
        del values["id"]
        path.write_text(json.dumps(values))
        ids.append(entry_of(read_run(tmp_path / name)).run_id)
    (tmp_path / "a").rename(tmp_path / "c")
    assert entry_of(read_run(tmp_path / "c")).run_id == ids[0] != ids[1]


def test_a_run_on_some_folds_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    write_run(dataclasses.replace(run, folds={1: run.folds[1]}))
    assert entry_of(read_run(tmp_path / "a")).folds == "stratified 2, seed 7, labels 3f2a1c, only 1"
    (tmp_path / "a" / "folds.parquet").write_bytes(b"cut")
    assert entry_of(read_run(tmp_path / "a")).folds == ""


def test_folds_of_other_labels_differ(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    folds = entry_of(run).folds
    dataclasses.replace(run.fold_table(), data_hash="000000000000").save(run.folder / "folds.parquet")
    assert entry_of(run).folds == "stratified 2, seed 7, labels 000000" != folds
