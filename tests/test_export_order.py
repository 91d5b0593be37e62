"""Bundles of runs whose task files list the classes in different orders."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Toy, make_wide, random_blend, random_run
from test_export_heads import relabel
from test_multilabel import TAGS

from kaggle_kit.blending import fit_blend
from kaggle_kit.blending.joining import order_labels
from kaggle_kit.blending.pool import make_pool
from kaggle_kit.ensemble import blend_predictions, equal_blend
from kaggle_kit.errors import BundleError
from kaggle_kit.export.blended import common_task, shared_oofs
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import Folds, labels_hash, make_folds
from kaggle_kit.labels import class_shares, read_labels
from kaggle_kit.mixes import MixKind
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run, read_run
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.sources import PackedSource
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import rows_of
from kaggle_kit.task import task_from_plain, task_to_plain

HEADS: dict[str, Any] = {
    "tags": TAGS,
    "root": {"classes": ["a", "b", "c"], "values": [0, 1, 2]},
    "vowel": {"classes": 2},
}
TURNED: dict[str, Any] = {
    "tags": {"classes": ["right", "bright", "left", "mid"], "kind": "multilabel"},
    "root": {"classes": ["c", "a", "b"], "values": [2, 0, 1]},
    "vowel": {"classes": ["1", "0"]},
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Toy]:
    """A toy, and one with the classes of all heads in another order; read-only."""
    first = relabel(make_wide(tmp_path_factory.mktemp("toy")), heads=HEADS, auxiliary={})
    turned = task_from_plain(task_to_plain(first.task) | {"heads": TURNED})
    return first, dataclasses.replace(first, task=turned)


@pytest.fixture(scope="module")
def runs(toys: tuple[Toy, Toy], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The runs `a` and `b`, one of each toy, that hold out the same images; read-only."""
    folder = tmp_path_factory.mktemp("runs")
    folds = make_folds(read_labels(toys[0].task, toys[0].data), "holdout", valid_share=0.4)
    made = []
    for seed, (toy, name) in enumerate(zip(toys, ("a", "b"), strict=True)):
        own = dataclasses.replace(folds, data_hash=labels_hash(read_labels(toy.task, toy.data)))
        made.append(random_run(toy, folder / name, own, seed=seed))
    return made


def words(toy: Toy, name: str, classes: np.ndarray) -> list[object]:
    """Return what a head says of each image by the names of its classes."""
    names = np.array(toy.task.heads[name].class_names)
    return [set(names[row > 0]) if classes.ndim == 2 else names[row] for row in classes]


@pytest.mark.parametrize("given", [(0, 1), (1, 0)])
def test_a_fitted_blend_becomes_a_bundle_whoever_comes_first(
    runs: list[Run], tmp_path: Path, given: tuple[int, int]
) -> None:
    chosen = [runs[number] for number in given]
    blend = fit_blend(chosen, strategies=("geometric",)).blend
    bundle = write_bundle(runs, blend, tmp_path / "bundle")
    first = chosen[0].task.heads
    assert {name: head.class_names for name, head in bundle.task.heads.items()} == blend.classes
    assert all(head.class_values == first[name].class_values for name, head in bundle.task.heads.items())
    assert blend.score is not None and bundle.oof_score == blend.score.total
    labels = chosen[0].labels()
    for name, head in first.items():
        assert bundle.priors[name] == pytest.approx(class_shares(labels.classes[name], head))


@pytest.mark.parametrize("kind", ["stack", "rank"])
def test_the_kernel_mixes_and_decides_in_the_blend_s_order(
    runs: list[Run], toys: tuple[Toy, Toy], tmp_path: Path, kind: MixKind
) -> None:
    pool = make_pool(runs)
    oofs = {
        name: Predictions(ids=pool.ids, probs=probs, multilabel=("tags",))
        for name, probs in zip(pool.names[::-1], pool.runs[::-1], strict=True)
    }
    classes = {name: head.class_names for name, head in pool.task.heads.items()}
    blend = dataclasses.replace(random_blend(kind, pool.task, oofs), classes=classes)
    assert blend.runs == ("b", "a"), "its first run has not the order of its classes"
    bundle = write_bundle(runs, blend, tmp_path / "bundle")
    assert all(member.parity.max_abs_diff < 1e-5 for member in bundle.members)
    assert blend_predictions(blend, oofs).probs["tags"].std() > 0.05
    source = PackedSource(runs[0].packed)
    found = Predictor(tmp_path / "bundle", say=lambda _: None).run(source.take(rows_of(pool.ids, source.ids)))
    for name, probs in blend_predictions(blend, oofs).probs.items():
        assert np.abs(found[name] - probs).max() < (1e-3 if kind == "rank" else 1e-4)  # quantiles are steep somewhere
    said = predict_submission(tmp_path / "bundle", toys[0].hidden, tmp_path / "s.csv", say=lambda _: None)
    ids, decided = read_submission(toys[1].task, tmp_path / "s.csv")
    expected = blend.decision.decide(said.predictions.align(ids).probs, multilabel=("tags",))
    for name in HEADS:
        assert words(toys[1], name, decided[name]) == words(toys[0], name, expected[name])


def test_where_nothing_was_fitted_the_first_run_of_the_blend_gives_the_order(runs: list[Run]) -> None:
    task, columns = common_task(runs[::-1], equal_blend(["b", "a"]))
    assert task == runs[1].task and columns["b"] == {} and set(columns["a"]) == {"tags", "root", "vowel"}
    assert columns["a"]["root"].tolist() == [2, 0, 1] and columns["a"]["tags"].tolist() == [2, 3, 0, 1]


def test_predictions_and_labels_of_each_order_say_the_same(runs: list[Run]) -> None:
    _, columns = common_task(runs, equal_blend(["a", "b"]))
    turned = order_labels(runs[1].labels(), list(runs[0].task.heads), columns["b"])
    for name, classes in runs[0].labels().classes.items():
        assert (turned.classes[name] == classes).all()
    oof = shared_oofs(runs, equal_blend(["a", "b"]), columns=columns, others=[])["b"]
    assert (oof.probs["root"] == runs[1].oof().probs["root"][:, [1, 2, 0]]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "accuracy"}, "runs 'a' and 'b' have different heads or metrics: .* by accuracy"),
        (
            {"stored": {"height": 24, "width": 40, "fit": "stretch"}},
            r"runs 'a' and 'b' differ in `stored.width` \(\d+ and 40\), `stored.fit` \('none' and 'stretch'\); a",
        ),
        (
            {"heads": HEADS | {"root": {"classes": ["a", "b", "c"], "values": [1, 0, 2]}}},
            r"differ in `heads.root.values` \(\['0', '1', '2'\] and \['1', '0', '2'\]\)",
        ),
        ({"heads": HEADS | {"root": {"classes": ["a", "b", "d"]}}}, "no bundle can hold .*: 'b' lacks 'c' and has"),
        ({"groups": "writer", "name": "other"}, r"differ in `name` \('toy-wide' and 'other'\), `groups`"),
    ],
)
def test_other_differences_are_named(runs: list[Run], changes: dict[str, Any], message: str) -> None:
    other = task_from_plain(task_to_plain(runs[0].task) | changes)
    with pytest.raises(BundleError, match=message):
        common_task([runs[0], dataclasses.replace(runs[1], task=other)], equal_blend(["a", "b"]))


def trained_on_other_labels(run: Run, folder: Path) -> Run:
    """Return a copy of a run that was trained on labels of which one is of another class."""
    data, table = shutil.copytree(run.data, folder / "data"), folder / "data" / "train.csv"
    columns, first, *rest = table.read_text().splitlines()
    cells = dict(zip(columns.split(","), first.split(","), strict=True))
    cells["vowel"] = str(1 - int(cells["vowel"]))
    table.write_text("\n".join([columns, ",".join(cells.values()), *rest]))
    other = dataclasses.replace(read_run(shutil.copytree(run.folder, folder / run.name)), data=data)
    folds = dataclasses.replace(Folds.load(run.folder / "folds.parquet"), data_hash=labels_hash(other.labels()))
    folds.save(other.folder / "folds.parquet")
    return other


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_runs_that_were_trained_on_different_labels_are_in_no_bundle(
    runs: list[Run], tmp_path: Path, names: str
) -> None:
    chosen = {"a": runs[0], "b": trained_on_other_labels(runs[1], tmp_path)}
    message = (
        "no bundle can hold these runs: runs '.' and '.' were trained on different labels: 1 of .* are of other "
        "classes.*; blend runs that were trained on one label file"
    )
    with pytest.raises(BundleError, match=message):
        write_bundle([chosen[name] for name in names], equal_blend(list(names)), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_runs_whose_labels_have_changed_since_are_in_no_bundle(runs: list[Run], tmp_path: Path) -> None:
    changed = dataclasses.replace(runs[1], data=trained_on_other_labels(runs[1], tmp_path).data)
    with pytest.raises(BundleError, match="the labels in .* have changed since run 'b' was trained"):
        common_task([runs[0], changed], equal_blend(["a", "b"]))


def test_a_blend_of_other_classes_is_refused(runs: list[Run]) -> None:
    blend = dataclasses.replace(equal_blend(["a"]), classes={"root": ("a", "b", "d")})
    with pytest.raises(BundleError, match="head 'root' of task .* has classes 'a', 'b', 'c'; expected .* 'd', in"):
        common_task(runs[:1], blend)
