from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_wide

from kaggle_kit.blending.ingredients import describe_alone, group_ingredients, name_soups
from kaggle_kit.blending.pool import make_pool
from kaggle_kit.blending.soup import Soup, format_soup, make_soup, read_soup
from kaggle_kit.blending.tasting import Tasting
from kaggle_kit.ensemble import equal_blend
from kaggle_kit.errors import CheckpointError, DataError, SettingError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.predictions import Predictions, concatenate
from kaggle_kit.runs import Run, read_run, write_run
from kaggle_kit.scores import score_split
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import rows_of
from kaggle_kit.train.checkpoint import load_checkpoint, read_weights, save_checkpoint
from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.model import Network
from kaggle_kit.train.predict import predict_rows
from kaggle_kit.train.run_folder import MARKER

Change = Callable[[Network], object]


def copied(run: Run, folder: Path) -> Run:
    """A run of the same weights and settings, under another name."""
    shutil.copytree(run.folder, folder)
    own = dataclasses.replace(run, folder=folder, id="")
    write_run(own)
    return read_run(folder)


def derived(run: Run, folder: Path, change: Change) -> Run:
    """A run whose networks are another's, changed, with their own predictions and scores."""
    new, parts = copied(run, folder), []
    for fold in new.folds:
        network, info = load_checkpoint(new.checkpoint(fold))
        with torch.no_grad():
            change(network)
        save_checkpoint(new.checkpoint(fold), network, info)
        parts.append(predicted(new, fold))
    return rescored(new, concatenate(parts))


def rescored(run: Run, oof: Predictions) -> Run:
    oof.save(run.oof_file)
    labels, folds = run.labels().align(oof.ids), run.fold_table()
    scores = score_split(run.task, labels.classes, oof.probs, folds.unseen[folds.rows(oof.ids)])
    write_run(dataclasses.replace(run, scores=scores, id=""))
    return read_run(run.folder)


def predicted(run: Run, fold: int) -> Predictions:
    network, _ = load_checkpoint(run.checkpoint(fold))
    folds, store = run.fold_table(), PackedSource(run.packed)
    ids = folds.ids[folds.fold == fold]
    return Predictions(ids=ids, probs=predict_rows(network, store, rows_of(ids, store.ids)))


def with_noise(share: float, *, seed: int = 0) -> Change:
    def change(network: Network) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += share * noise * parameter.std(correction=0)

    return change


def at_random(network: Network) -> None:
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A trained run, one beside it in weight space, and one of random weights; read-only."""
    folder = tmp_path_factory.mktemp("soup")
    toy = make_wide(folder)
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    config = TrainConfig(
        model=ModelConfig(name="test_resnet", input_size=(32, 48)), loader=LoaderConfig(batch_size=8), epochs=8
    )
    first = train_run(toy.task, config, data=toy.data, folds=folds, out=folder / "first")
    return {
        "first": first,
        "near": derived(first, folder / "near", with_noise(0.02)),
        "random": derived(first, folder / "random", at_random),
    }


@pytest.fixture(scope="module")
def soup(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Soup:
    """The soup of a run and its copy with one further run of random weights; read-only."""
    folder = tmp_path_factory.mktemp("finished")
    return make_soup([runs["random"], copied(runs["first"], folder / "copy"), runs["first"]], folder / "soup")


def test_runs_of_identical_weights_are_both_in_and_predict_the_same(runs: dict[str, Run], soup: Soup) -> None:
    first = runs["first"]
    assert soup.is_written and set(soup.members) == {first.name, "copy"}
    assert soup.gain == pytest.approx(0) and soup.interval == (0, 0) and soup.nested == pytest.approx(soup.alone)
    oof = soup.run.oof().align(first.oof().ids)
    for head, probs in first.oof().probs.items():
        np.testing.assert_allclose(oof.probs[head], probs, atol=1e-5)
    for fold in first.folds:
        expected, _ = read_weights(first.checkpoint(fold))
        found, _ = read_weights(soup.run.checkpoint(fold))
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_run_of_random_weights_is_left_out(soup: Soup) -> None:
    last = soup.tried[-1]
    assert [one.kept for one in soup.tried] == [True, True, False]
    assert last.name == "random" and last.score < soup.alone
    assert any("left out" in line for line in format_soup(soup)) and format_soup(soup)[-1] == soup.note


def test_a_soup_is_a_run(runs: dict[str, Run], soup: Soup) -> None:
    run, first = read_run(soup.run.folder), runs["first"]
    assert run == soup.run and read_soup(run.folder) == soup
    assert (run.task, run.config, run.packed_key, list(run.folds)) == (
        first.task,
        first.config,
        first.packed_key,
        list(first.folds),
    )
    assert run.environment["soup of"] == ", ".join(soup.members) and run.report.is_file()
    assert (run.fold_table().fold == first.fold_table().fold).all()
    assert run.score.interval is not None
    for fold, summary in run.folds.items():
        assert summary.weights == "soup" and read_weights(run.checkpoint(fold))[1].score == summary.score


def test_weights_are_the_mean_and_oof_is_what_the_checkpoints_predict(runs: dict[str, Run], tmp_path: Path) -> None:
    first, near = runs["first"], runs["near"]
    soup = make_soup([near, first, derived(first, tmp_path / "far", with_noise(0.03, seed=2))], tmp_path / "soup")
    assert soup.is_written
    members = [run for run in (first, near, read_run(tmp_path / "far")) if run.name in soup.members]
    for fold in first.folds:
        found, _ = read_weights(soup.run.checkpoint(fold))
        states = [read_weights(run.checkpoint(fold))[0] for run in members]
        name = next(name for name in found if name.endswith("conv1.weight"))
        torch.testing.assert_close(found[name], torch.stack([state[name] for state in states]).mean(dim=0))
        statistics = next(name for name in found if name.endswith("running_mean"))
        assert not torch.equal(found[statistics], torch.stack([state[statistics] for state in states]).mean(dim=0))
        again, oof = predicted(soup.run, fold), soup.run.oof()
        for head, probs in again.probs.items():
            np.testing.assert_allclose(probs, oof.align(again.ids).probs[head], atol=1e-5)
    assert soup.gain == pytest.approx(soup.run.score.total - soup.alone)
    assert soup.interval is not None and soup.interval[0] <= soup.gain <= soup.interval[1]


def test_what_new_batch_norm_statistics_gain_without_averaging_is_told_apart(runs: dict[str, Run], soup: Soup) -> None:
    assert soup.renewed is not None and f"new BatchNorm statistics: {soup.renewed:.4f}" in soup.note
    best = runs["first"]
    statistics = Tasting([best]).score_renewed()
    assert statistics == soup.renewed and statistics != soup.alone


def test_where_averaging_helps_nothing_no_run_is_written(runs: dict[str, Run], tmp_path: Path) -> None:
    soup = make_soup([runs["random"], runs["first"]], tmp_path / "soup")
    assert soup.members == (runs["first"].name,) and soup.run == runs["first"] and not soup.is_written
    assert "averaging helps none of 2 runs" in soup.note and "different starts" in soup.note
    assert not (tmp_path / "soup").exists()


def test_the_order_of_the_runs_given_is_of_no_account(runs: dict[str, Run], tmp_path: Path) -> None:
    given = [runs["first"], runs["near"], runs["random"]]
    one, other = make_soup(given, tmp_path / "one"), make_soup(given[::-1], tmp_path / "other")
    assert one.members == other.members and one.tried == other.tried and one.nested == other.nested
    assert one.run.score == other.run.score
    for fold in one.run.folds:
        assert one.run.checkpoint(fold).read_bytes() == other.run.checkpoint(fold).read_bytes()


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "average_precision", "quadratic_kappa"])
def test_every_kind_of_metric_chooses(runs: dict[str, Run], metric: str, tmp_path: Path) -> None:
    given = []
    for name, run in runs.items():
        new = copied(run, tmp_path / name)
        task = dataclasses.replace(new.task, metric=metric)
        given.append(rescored(dataclasses.replace(new, task=task), new.oof()))
    given.append(copied(given[0], tmp_path / "again"))
    tasting = Tasting(sorted(given, key=lambda run: run.name == "random"))
    choice = tasting.choose()
    assert choice.scores[3] != choice.scores[0] and 3 not in choice.members
    places = [place for place, run in enumerate(tasting.runs) if run.name in ("first", "again")]
    assert tasting.score(tuple(places)) == tasting.score((places[0],))
    assert tasting.nested_score() is not None


def change_run(run: Run, folder: Path, **values: object) -> Run:
    return dataclasses.replace(copied(run, folder), **values)


def other_heads(run: Run, folder: Path) -> Run:
    heads = dict(reversed(run.task.heads.items()))
    return change_run(run, folder, task=dataclasses.replace(run.task, heads=heads))


def other_size(run: Run, folder: Path) -> Run:
    model = dataclasses.replace(run.config.model, input_size=(64, 64))
    return change_run(run, folder, config=dataclasses.replace(run.config, model=model))


def other_model(run: Run, folder: Path) -> Run:
    model = dataclasses.replace(run.config.model, name="test_efficientnet")
    return change_run(run, folder, config=dataclasses.replace(run.config, model=model))


def other_folds(run: Run, folder: Path) -> Run:
    new = copied(run, folder)
    folds = new.fold_table()
    dataclasses.replace(folds, fold=1 - folds.fold).save(folder / "folds.parquet")
    return new


def other_labels(run: Run, folder: Path) -> Run:
    new = copied(run, folder)
    dataclasses.replace(new.fold_table(), data_hash="0" * 12).save(folder / "folds.parquet")
    return new


def other_tensors(run: Run, folder: Path) -> Run:
    new = copied(run, folder)
    network, info = load_checkpoint(new.checkpoint(1))
    network.heads[0].bias = torch.nn.Parameter(torch.zeros(7))
    save_checkpoint(new.checkpoint(1), network, info)
    return new


def damaged(run: Run, folder: Path) -> Run:
    new = copied(run, folder)
    new.checkpoint(0).write_bytes(b"nothing")
    return new


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda run, _: run, SettingError, "two are named"),
        (other_heads, SettingError, "differ in `task.heads`"),
        (other_model, SettingError, "differ in `model.name`: test_resnet and test_efficientnet"),
        (other_size, SettingError, r"differ in `model.input_size`: .*32, 48.* and .*64, 64"),
        (other_folds, DataError, "validate 48 of 48 images in other folds"),
        (other_labels, DataError, "made from other labels"),
        (other_tensors, DataError, "'heads.0.bias' is \\(7,\\) and \\(3,\\)"),
        (damaged, CheckpointError, "is damaged"),
        (lambda run, to: change_run(run, to, packed_key="0-0"), DataError, "other packed images"),
        (lambda run, to: change_run(run, to, folds={0: run.folds[0]}), DataError, "1 of 2 folds, not fold 1"),
        (lambda run, to: change_run(run, to, folds={-1: run.folds[0]}, like="x"), SettingError, "on everything"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(
    runs: dict[str, Run], tmp_path: Path, make: Callable[[Run, Path], Run], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make_soup([runs["first"], make(runs["first"], tmp_path / "other")], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def names(groups: list[list[Run]]) -> list[list[str]]:
    return [[run.name for run in group] for group in groups]


def one_fold(run: Run, folder: Path) -> Run:
    return change_run(run, folder, folds={0: run.folds[0]})


def other_images(run: Run, folder: Path) -> Run:
    return change_run(run, folder, packed_key="0-0")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (other_heads, "runs 'first' and 'other' differ in `task.heads`: "),
        (other_size, "runs 'first' and 'other' differ in `model.input_size`: [32, 48] and [64, 64]"),
        (other_folds, "runs 'first' and 'other' validate 48 of 48 images in other folds"),
        (other_labels, "the folds of runs 'first' and 'other' were made from other labels"),
        (other_images, "runs 'first' and 'other' were trained from other packed images"),
        (one_fold, "run 'other' has trained 1 of 2 folds, not fold 1"),
        (other_model, "run 'other' is the only one of test_efficientnet with folds"),
    ],
)
def test_a_run_that_cannot_be_averaged_is_alone_and_said_to_be(
    runs: dict[str, Run], tmp_path: Path, make: Callable[[Run, Path], Run], reason: str
) -> None:
    first, other = runs["first"], make(runs["first"], tmp_path / "other")
    groups = group_ingredients([other, first, runs["near"]])
    assert names(groups) == [["other"], ["first", "near"]]
    (said,) = describe_alone(groups)
    assert said.startswith(reason) and "average runs of one architecture" not in said
    assert len(describe_alone(group_ingredients([first, other]))) == 1 + (make is other_model)


def test_runs_are_grouped_as_they_are_averaged_and_those_on_everything_in_no_group(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    first, other = runs["first"], other_size(runs["first"], tmp_path / "a")
    again = dataclasses.replace(copied(other, tmp_path / "b"), config=other.config)
    everything = change_run(first, tmp_path / "all", folds={-1: first.folds[0]}, like="first")
    groups = group_ingredients([everything, first, other, runs["near"], again])
    assert names(groups) == [["first", "near"], ["a", "b"]] and describe_alone(groups) == []
    assert group_ingredients([]) == group_ingredients([everything]) == []


def test_soups_of_one_architecture_are_told_apart_by_size_then_by_number(runs: dict[str, Run], tmp_path: Path) -> None:
    first = runs["first"]
    large, moved = other_size(first, tmp_path / "large"), other_folds(first, tmp_path / "moved")
    other = other_model(first, tmp_path / "other")
    assert name_soups([[first], [other]]) == ["soup_test_resnet", "soup_test_efficientnet"]
    assert name_soups([[first], [large], [moved], [other]]) == [
        "soup_test_resnet_32x48",
        "soup_test_resnet_64x64",
        "soup_test_resnet_32x48_2",
        "soup_test_efficientnet",
    ]


def with_facts(soup: Soup, folder: Path, **changed: object) -> Run:
    run = copied(soup.run, folder)
    facts = json.loads((folder / "soup.json").read_text()) | changed
    (folder / "soup.json").write_text(json.dumps(facts))
    return run


def test_a_pool_says_by_how_much_a_soup_is_flattered(runs: dict[str, Run], soup: Soup, tmp_path: Path) -> None:
    (note,) = make_pool([runs["first"], soup.run]).notes
    assert note.startswith("the 2 of 3 runs that make up the soup 'soup' were chosen by the labels of these images")
    assert note.endswith("scored on, so that 0.0000 is due to the choice")
    (note,) = make_pool([with_facts(soup, tmp_path / "some", gain=0.03, alone=0.5, nested=0.51)]).notes
    assert "is 0.0300, and 0.0100 with members" in note and note.endswith("so that 0.0200 is due to the choice")
    (note,) = make_pool([with_facts(soup, tmp_path / "unknown", nested=None)]).notes
    assert note.endswith("is 0.0000; how much of that is due to the choice is not known")
    assert make_pool([runs["first"], runs["near"]]).notes == ()


def test_the_choice_flatters_a_soup_the_same_where_lower_is_better(soup: Soup, tmp_path: Path) -> None:
    run = with_facts(soup, tmp_path / "loss", gain=0.03, alone=0.5, nested=0.49)
    task = dataclasses.replace(run.task, metric="log_loss")
    (note,) = make_pool([dataclasses.replace(run, task=task)]).notes
    assert "is 0.0300, and 0.0100 with members" in note and note.endswith("so that 0.0200 is due to the choice")


@pytest.mark.parametrize(
    "changed", [{"gain": "much"}, {"gain": None}, {"members": []}, {"members": 2}, {"nested": [1]}, {"tried": None}]
)
def test_a_pool_names_a_soup_s_file_that_does_not_read(soup: Soup, tmp_path: Path, changed: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"soup.json does not read .*; make the soup again"):
        make_pool([with_facts(soup, tmp_path / "soup", **changed)])
    (tmp_path / "soup" / "soup.json").write_text("[")
    with pytest.raises(DataError, match=r"soup.json does not read"):
        make_pool([read_run(tmp_path / "soup")])


def test_too_few_runs_and_a_run_s_own_folder_are_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    first = runs["first"]
    with pytest.raises(SettingError, match="at least 2 runs; found 1"):
        make_soup([first], tmp_path / "soup")
    with pytest.raises(SettingError, match="a run that is to be averaged"):
        make_soup([first, copied(first, tmp_path / "copy")], tmp_path / "copy")


def test_a_finished_soup_is_kept_and_another_run_is_not_replaced(runs: dict[str, Run], tmp_path: Path) -> None:
    given = [runs["first"], copied(runs["first"], tmp_path / "copy")]
    made = make_soup(given, tmp_path / "soup")
    before = made.run.checkpoint(0).stat().st_mtime_ns
    assert make_soup(given, tmp_path / "soup") == made
    assert made.run.checkpoint(0).stat().st_mtime_ns == before
    others = [*given, copied(runs["first"], tmp_path / "third")]
    with pytest.raises(DataError, match="holds a run begun otherwise: `soup` was"):
        make_soup(others, tmp_path / "soup")
    assert read_soup(tmp_path / "soup") == made
    assert len(make_soup(others, tmp_path / "soup", overwrite=True).members) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="not empty and no run"):
        make_soup(given, tmp_path / "mine", overwrite=True)


def test_a_run_that_is_no_soup_says_so(runs: dict[str, Run]) -> None:
    with pytest.raises(DataError, match="is a run, and no soup"):
        read_soup(runs["first"].folder)


def test_the_soup_of_a_fold_alone_gets_a_nested_score_by_fifths_and_is_bundled(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    first = runs["first"]
    new = copied(first, tmp_path / "holdout")
    folds: Folds = new.fold_table()
    dataclasses.replace(folds, fold=np.where(folds.fold == 0, 0, -1)).save(new.folder / "folds.parquet")
    held = first.fold_table().ids[first.fold_table().fold == 0]
    new = rescored(dataclasses.replace(new, folds={0: first.folds[0]}), first.oof().align(held))
    soup = make_soup([new, copied(new, tmp_path / "copy")], tmp_path / "soup")
    assert soup.is_written and soup.nested == pytest.approx(soup.alone)
    bundle = write_bundle([soup.run], equal_blend([soup.run.name]), tmp_path / "bundle", parity_rows=8)
    assert bundle.oof_score == pytest.approx(soup.run.score.total)


def test_a_killed_soup_leaves_nothing_that_reads_as_finished(runs: dict[str, Run], tmp_path: Path) -> None:
    other = copied(runs["first"], tmp_path / "copy")
    folders = [str(runs["first"].folder), str(other.folder)]
    code = f"""
import os, signal
from pathlib import Path
from kaggle_kit.blending import soup
from kaggle_kit.runs import read_run
write = soup.finish_fold
def dying(out, fold, summary):
    write(out, fold, summary)
    os.kill(os.getpid(), signal.SIGKILL)
soup.finish_fold = dying
soup.make_soup([read_run(Path(folder)) for folder in {folders!r}], Path({str(tmp_path / "soup")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "soup").iterdir()}
    assert MARKER in left and "fold0" in left and "run.json" not in left
    with pytest.raises(DataError, match="holds no finished run"):
        read_run(tmp_path / "soup")
    assert make_soup([other, runs["first"]], tmp_path / "soup").is_written
