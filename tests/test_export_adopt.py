from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Toy, make_files, make_wide
from onnx import TensorProto, helper
from test_export_wrapping import asked, linear, logits_of, reshaping, save, shown, softmax
from test_multilabel import many, task_of
from test_runs_command import call
from torch import nn

from kaggle_kit.blending import fit_blend
from kaggle_kit.blending.costs import measure_costs
from kaggle_kit.blending.ingredients import check_ingredients, group_ingredients
from kaggle_kit.entries import entry_of
from kaggle_kit.errors import BundleError, DataError, ExportError, KitError, PredictionError, SettingError
from kaggle_kit.export.adopt import adopt_modules, adopt_onnx
from kaggle_kit.export.adopt_options import find_store
from kaggle_kit.export.adoption import adopted_hash, check_adopted, format_adoption, read_adoption
from kaggle_kit.export.bundle import export_runs
from kaggle_kit.export.likeness import HeadLikeness, Likeness, check_likeness, measure_likeness
from kaggle_kit.export.onnx import run_onnx
from kaggle_kit.export.reading import Reading
from kaggle_kit.export.wrapping import reorder_outputs
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.ledger import read_runs
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import EVERYTHING, Run, read_run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.scores import score_split
from kaggle_kit.sources import PackedSource
from kaggle_kit.standings import format_ledger
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Stored, Task
from kaggle_kit.train.config import ModelConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.everything import train_everything

SIDE = 32
READING = Reading(size=(SIDE, SIDE), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels=3)


class Plain(nn.Module):
    """Somebody's network of 3 channels, which knows nothing of the kit."""

    def __init__(self, seed: int, sizes: tuple[int, ...] = (3, 2)) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        )
        self.heads = nn.ModuleList([nn.Linear(72, size) for size in sizes])
        for head in self.heads:
            head.weight.data *= 8  # so that it says something else of every image

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        features = self.features(x)
        said = tuple(head(features) for head in self.heads)
        return said if len(said) > 1 else said[0]


def said_of(module: nn.Module, images: np.ndarray) -> list[np.ndarray]:
    """The probabilities of each head, by the teammate's own pipeline."""
    with torch.inference_mode():
        said = module.eval()(torch.from_numpy(shown(images, READING)))
    return [softmax(one.numpy()) for one in (said if isinstance(said, tuple) else (said,))]


def oof_of(modules: Mapping[int, nn.Module], task: Task, folds: Any, source: PackedSource) -> Predictions:
    ids = np.concatenate([folds.ids[folds.fold == fold] for fold in modules])
    parts = [
        said_of(module, source.take(rows_of(folds.ids[folds.fold == fold], source.ids)))
        for fold, module in modules.items()
    ]
    probs = {head: np.concatenate([part[place] for part in parts]) for place, head in enumerate(task.heads)}
    return Predictions(ids=ids, probs=probs)


def exported(
    module: nn.Module,
    path: Path,
    *,
    opset: int = 17,
    names: tuple[str, ...] = ("root", "vowel"),
    shape: tuple[int, int, int] = (3, SIDE, SIDE),
) -> Path:
    """A file as the teammate would write it: below opset 18 by the old exporter, with a batch of any size."""
    example = torch.zeros(2, *shape)
    options: dict[str, Any] = {"dynamo": False, "dynamic_axes": {"x": {0: "n"}, **{name: {0: "n"} for name in names}}}
    if opset >= 18:
        options = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("n")},), "external_data": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            input_names=["x"],
            output_names=list(names),
            opset_version=opset,
            verbose=False,
            **options,
        )
    return path


@pytest.fixture(scope="module")
def given(trained: tuple[Toy, list[Run]]) -> dict[str, Any]:
    """What a teammate hands over, but for the models."""
    toy, (run, _) = trained
    source, folds = PackedSource(run.packed), run.fold_table()
    modules = {fold: Plain(fold) for fold in (0, 1)}
    return {
        "name": "teammate",
        "task": toy.task,
        "data": toy.data,
        "packed": source,
        "folds": folds,
        "oof": oof_of(modules, toy.task, folds, source),
        "reading": READING,
    }


@pytest.fixture(scope="module")
def modules() -> dict[int, nn.Module]:
    return {fold: Plain(fold) for fold in (0, 1)}


@pytest.fixture(scope="module")
def files(modules: dict[int, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {fold: exported(module, folder / f"theirs{fold}.onnx") for fold, module in modules.items()}


@pytest.fixture(scope="module")
def adopted(given: dict[str, Any], files: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An adopted run; read-only."""
    return adopt_onnx(files, tmp_path_factory.mktemp("runs") / "theirs", **given)


def test_modules_become_a_run_that_repeats_its_predictions(
    given: dict[str, Any], modules: dict[int, nn.Module], trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    training = {fold: module.training for fold, module in modules.items()}
    run = adopt_modules(modules, tmp_path / "runs" / "theirs", **given)
    assert {fold: module.training for fold, module in modules.items()} == training
    assert read_run(tmp_path / "runs" / "theirs") == run and run.is_adopted and run.config.model.name == "teammate"
    assert sorted(path.name for path in run.folder.iterdir()) == [
        *("adopted.json", "fold0", "fold1", "folds.parquet", "oof.npz", "run.json")
    ]
    oof, folds = run.oof(), run.fold_table()
    assert all(np.array_equal(oof.probs[head], given["oof"].align(oof.ids).probs[head]) for head in given["task"].heads)
    truth, unseen = run.labels().align(oof.ids), folds.unseen[folds.rows(oof.ids)]
    expected = score_split(run.task, truth.classes, oof.probs, unseen, draws=1000, groups=truth.group_numbers())
    assert run.scores == expected and run.score.interval
    for fold, likeness in read_adoption(run).checked.items():
        assert likeness.repeats and likeness.rows == 24 and likeness.model == "Plain"
        assert run.folds[int(fold)].score
        session = OnnxSession(run.onnx(int(fold)), device="cpu")
        ids = folds.ids[folds.fold == int(fold)]
        probs = session.run(given["packed"].take(rows_of(ids, given["packed"].ids)))
        assert all(np.abs(probs[head] - oof.align(ids).probs[head]).max() < 1e-5 for head in probs)
    assert sorted(path.name for path in run.folder.parent.iterdir()) == ["theirs"]


@pytest.mark.parametrize("opset", [13, 20])
def test_a_file_gives_what_its_module_does(
    given: dict[str, Any], modules: dict[int, nn.Module], adopted: Run, tmp_path: Path, opset: int
) -> None:
    files = {fold: exported(module, tmp_path / f"{fold}.onnx", opset=opset) for fold, module in modules.items()}
    run = adopt_onnx(files, tmp_path / "run", **given)
    source = given["packed"]
    for fold in files:
        model = onnx.load(run.onnx(fold))
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)] and model.ir_version == 10
        probs = run_onnx(run.onnx(fold), source, np.arange(len(source)))
        ones = said_of(modules[fold], source.take(np.arange(len(source))))
        before = run_onnx(adopted.onnx(fold), source, np.arange(len(source)))
        for head, expected in zip(given["task"].heads, ones, strict=True):
            assert np.abs(probs[head] - expected).max() < 1e-5 and np.abs(probs[head] - before[head]).max() < 1e-5
    assert run.scores == adopted.scores
    assert "fold 0: 0.onnx (SHA-256 " in "\n".join(format_adoption(read_adoption(run)))


def test_a_broken_image_is_left_out_and_a_model_of_one_head_needs_no_names(tmp_path: Path) -> None:
    toy = make_files(tmp_path / "toy")
    source = pack_train(toy.task, toy.data, beside=tmp_path)
    folds = make_folds(read_labels(toy.task, toy.data), "stratified", num_folds=2)
    modules = {fold: Plain(fold, (2,)) for fold in (0, 1)}
    oof = oof_of(modules, toy.task, folds, source)
    assert "3.jpg" in source.broken and "3.jpg" in oof.ids
    files = {fold: exported(one, tmp_path / f"{fold}.onnx", names=("what",)) for fold, one in modules.items()}
    values = {"task": toy.task, "data": toy.data, "packed": source, "folds": folds, "oof": oof, "reading": READING}
    run = adopt_onnx(files, tmp_path / "run", name="one", **values)
    assert "3.jpg" not in run.oof().ids and len(run.oof()) == 19


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (reshaping(batch="n", shape=[1, 768]), "takes one image at a time, and does not run on 4 image"),
        (
            reshaping(batch="n", shape=[-1, 768], mixing=True),
            r"something else of 4 images together than of each alone \(head '(root|vowel)'",
        ),
    ],
)
def test_a_model_of_one_batch_size_or_that_mixes_a_batch_is_refused(
    given: dict[str, Any], tmp_path: Path, model: onnx.ModelProto, problem: str
) -> None:
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=problem):
        adopt_onnx({0: path, 1: path}, tmp_path / "run", **given | {"reading": Reading()})


@pytest.mark.parametrize(
    ("reading", "problem"),
    [
        (
            dataclasses.replace(READING, mean=(0.0,) * 3, std=(1.0,) * 3),
            r"fold 0: theirs0.onnx .* does not repeat .*; of head '\w+' \d+ of 24 decisions differ .* on 24 images "
            r"\(allowed are 2%"
            r".*mean \[0.0, 0.0, 0.0\]",
        ),
        (dataclasses.replace(READING, activation="none"), "gives no probabilities: .*give another `activation`"),
    ],
)
def test_what_was_shown_otherwise_is_refused_with_numbers(
    given: dict[str, Any], files: dict[int, Path], tmp_path: Path, reading: Reading, problem: str
) -> None:
    with pytest.raises(ExportError, match=problem):
        adopt_onnx(files, tmp_path / "run", **given | {"reading": reading})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("known", "problem"),
    [
        (True, r"output 'root' is \(any, 4\), expected \(batch, 3\)"),
        (False, "head 'root' has probs of 4 classes; expected 3"),
    ],
)
def test_classes_are_counted_before_it_runs_where_that_is_known(
    given: dict[str, Any], tmp_path: Path, known: bool, problem: str
) -> None:
    model = linear((1, 24, 32), {"root": 4, "vowel": 2})
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = "c"
    if not known:
        next(node for node in model.graph.node if node.output[0] == "root").output[0] = "flat_root"
        model.graph.node.append(helper.make_node("Shape", ["flat_root"], ["own"]))
        model.graph.node.append(helper.make_node("Abs", ["own"], ["shape"]))
        model.graph.node.append(helper.make_node("Reshape", ["flat_root", "shape"], ["root"]))
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=problem):
        adopt_onnx({0: path, 1: path}, tmp_path / "run", **given | {"reading": Reading()})


def test_a_model_that_no_runtime_here_has_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    model = linear((1, 24, 32), {"root": 3, "vowel": 2})
    last = next(node for node in model.graph.node if node.output[0] == "root")
    last.output[0] = "logits"
    for node in (
        helper.make_node("Cast", ["logits"], ["whole"], to=TensorProto.DOUBLE),
        helper.make_node("Erf", ["whole"], ["erf"]),  # ONNX allows it of doubles, and ONNX Runtime does not have it
        helper.make_node("Cast", ["erf"], ["root"], to=TensorProto.FLOAT),
    ):
        model.graph.node.append(node)
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="m.onnx .* cannot be run: .*Erf"):
        adopt_onnx({0: path, 1: path}, tmp_path / "run", **given | {"reading": Reading()})


class Sequence3(nn.Module):
    """Plain, but that each head says (batch, 1, classes), as of a sequence of one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {head: said[:, None] for head, said in zip(("root", "vowel"), self.inner(x), strict=True)}


def test_a_module_of_another_shape_is_told_its_shape_alone(
    given: dict[str, Any], modules: dict[int, nn.Module], tmp_path: Path
) -> None:
    message = (
        r"^Sequence3 cannot be exported: the module returns \(any, 1, 3\) for head 'root', expected \(any, 3\): a row "
        r"for each image, a column for each class; return such a tensor of logits or probabilities$"
    )
    with pytest.raises(ExportError, match=message):
        adopt_modules({fold: Sequence3(one) for fold, one in modules.items()}, tmp_path / "run", **given)
    assert not list(tmp_path.iterdir())


def test_labels_that_go_together_are_adopted_too(tmp_path: Path) -> None:
    toy = many(make_wide(tmp_path / "toy"))
    source = pack_train(toy.task, toy.data, beside=tmp_path)
    folds = make_folds(read_labels(toy.task, toy.data), "stratified", num_folds=2)
    model, reading = linear((1, 24, 32), {"tags": 4}), Reading(mean=(0.5,), std=(0.5,))
    logits = logits_of(model, shown(source.take(np.arange(len(source))), reading))["tags"]
    probs = (1 / (1 + np.exp(-logits))).astype(np.float32)
    oof = Predictions(ids=source.ids, probs={"tags": probs}, multilabel=("tags",))
    path = save(model, tmp_path / "m.onnx")
    values = {"task": toy.task, "data": toy.data, "packed": source, "folds": folds, "name": "tags"}
    run = adopt_onnx({0: path, 1: path}, tmp_path / "run", oof=oof, reading=reading, **values)
    assert run.oof().multilabel == ("tags",) and read_adoption(run).checked["1"].repeats
    other = dataclasses.replace(reading, mean=(0.2,))
    with pytest.raises(ExportError, match=r"of 24 decisions differ .*mean \[0.2\]"):
        adopt_onnx({0: path, 1: path}, tmp_path / "other", oof=oof, reading=other, **values)


def test_folds_that_are_swapped_are_refused(given: dict[str, Any], files: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fold 0: theirs1.onnx .* each fold's own model"):
        adopt_onnx({0: files[1], 1: files[0]}, tmp_path / "run", **given)


def test_probabilities_that_go_through_a_softmax_again_are_refused(
    given: dict[str, Any], files: dict[int, Path], tmp_path: Path
) -> None:
    oof = given["oof"]
    flat = Predictions(ids=oof.ids, probs={head: softmax(probs) for head, probs in oof.probs.items()})
    with pytest.raises(ExportError, match="0 of 24 decisions differ .* and 0.05 of an image on average"):
        adopt_onnx(files, tmp_path / "run", **given | {"oof": flat})


def test_predictions_that_are_nearly_repeated_are_taken_and_their_difference_is_said(
    given: dict[str, Any], files: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oof = given["oof"]
    mild = {head: (0.99 * probs + 0.01 / probs.shape[1]).astype(np.float32) for head, probs in oof.probs.items()}
    run = adopt_onnx(files, tmp_path / "run", **given | {"oof": Predictions(ids=oof.ids, probs=mild)})
    likeness = read_adoption(run).checked["0"]
    assert not likeness.repeats and all(1e-3 < one.max_abs_diff < 0.01 for one in likeness.heads.values())
    assert not any(one.decisions_changed for one in likeness.heads.values())
    assert "WARNING fold 0: theirs0.onnx" in capsys.readouterr().err
    assert "about repeats its predictions: 0 of 48 decisions" in "\n".join(format_adoption(read_adoption(run)))


def few(oof: Predictions, number: int) -> Predictions:
    return oof.align(oof.ids[:number])


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"folds_given": (0,)}, SettingError, r"1 model\(s\) are given for 2 folds: fold 1 has none"),
        ({"folds_given": (0, 1, 2)}, SettingError, "there is no fold 2"),
        ({"folds_given": (0, EVERYTHING)}, SettingError, "fold 1 has none and there is no fold -1"),
        ({"rows": 40}, PredictionError, r"lack 8 of the 48 images that validate .*by fold: \[0, 8\]"),
        ({"name": " "}, SettingError, "`name` is empty"),
        ({"classes": 4}, PredictionError, "head 'root' has probs of 4 classes; expected 3"),
        ({"heads": ("root",)}, PredictionError, "'teammate' has no probs of head 'vowel'"),
        ({"stored": (20, 20)}, DataError, r"holds images of \(24, 32, 1\), and the task stores \(20, 20, 1\)"),
        ({"like": True}, SettingError, "`like` goes with one model trained on everything"),
        ({"everything": True}, SettingError, r"the folds validate no image \(scheme 'everything'\)"),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: dict[str, Any],
    files: dict[int, Path],
    adopted: Run,
    tmp_path: Path,
    change: dict[str, Any],
    error: type[KitError],
    problem: str,
) -> None:
    oof, values = given["oof"], dict(given)
    if "rows" in change:
        values["oof"] = few(oof, change["rows"])
    if "classes" in change:
        wide = np.pad(oof.probs["root"], ((0, 0), (0, change["classes"] - 3)))
        values["oof"] = dataclasses.replace(oof, probs={**oof.probs, "root": wide})
    if "heads" in change:
        values["oof"] = dataclasses.replace(oof, probs={head: oof.probs[head] for head in change["heads"]})
    if "stored" in change:
        height, width = change["stored"]
        values["task"] = values["task"].with_stored(Stored(height=height, width=width, fit="stretch"))
    if "everything" in change:
        values["folds"] = make_folds(read_labels(given["task"], given["data"]), "everything")
    values |= {"like": adopted} if "like" in change else {}
    values |= {"name": change["name"]} if "name" in change else {}
    given_files = {fold: files[max(0, min(fold, 1))] for fold in change.get("folds_given", (0, 1))}
    with pytest.raises(error, match=problem):
        adopt_onnx(given_files, tmp_path / "run", **values)
    assert not list(tmp_path.iterdir())


class Knowing(nn.Module):
    """Tells root and vowel by where the block is, and how dark the paper; its logits are of this sign."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gray = x.mean(1)
        block = torch.stack([gray[:, 6:18, left + 3 : left + 7].mean((1, 2)) for left in (2, 12, 22)], dim=1)
        paper = gray[:, :5].mean((1, 2))
        shade = torch.stack([-paper + 0.24, paper - 0.24], dim=1)
        return 20 * self.sign * block, 30 * self.sign * shade


def test_a_model_of_everything_carries_the_scores_of_the_run_it_follows(
    given: dict[str, Any], trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    like = trained[1][0]
    values = given | {"oof": like.oof(), "reading": Reading(mean=(0.0,), std=(1.0,)), "name": "knowing"}
    run = adopt_modules({EVERYTHING: Knowing()}, tmp_path / "all", **values, like=like)
    assert run.folds.keys() == {EVERYTHING} and run.folds[EVERYTHING].score is None
    assert run.scores == like.scores and run.like == str(like.folder)
    assert run.onnx(EVERYTHING) == run.folder / "everything" / "member.onnx" and run.onnx(EVERYTHING).is_file()
    likeness = read_adoption(run).checked["-1"]
    assert likeness.rows == 48 and all(one.right > 0.95 > one.right_before for one in likeness.heads.values())
    assert "% of 'root' (" in (text := format_adoption(read_adoption(run))[1]) and "% of 'vowel' (" in text
    assert entry_of(run).settings["scores_of"] == like.name
    right, wrong = (exported(Knowing(sign), tmp_path / f"{sign}.onnx", shape=(1, 24, 32)) for sign in (1.0, -1.0))
    alone = adopt_onnx({EVERYTHING: right}, tmp_path / "alone", **values)
    assert alone.scores.all.total == pytest.approx(like.score.total) and not alone.like
    with pytest.raises(
        ExportError, match=r"everything: -1.0.onnx .*; of head 'root' \d.*% of its decisions are right on 48"
    ):
        adopt_onnx({EVERYTHING: wrong}, tmp_path / "wrong", **values)
    with pytest.raises(SettingError, match="`oof` are not the out-of-fold predictions of run 'test_resnet'"):
        adopt_modules({EVERYTHING: Knowing()}, tmp_path / "other", **values | {"oof": given["oof"]}, like=like)


def compared(**heads: HeadLikeness) -> Likeness:
    return Likeness(model="m.onnx", rows=100, heads=heads)


def one_head(*, changed: float = 0, mean: float = 0, right: float = 1, before: float = 1) -> HeadLikeness:
    return HeadLikeness(
        decisions_changed=changed, max_abs_diff=mean, mean_abs_diff=mean, right=right, right_before=before
    )


@pytest.mark.parametrize(
    ("fold", "broken", "problem"),
    [
        (EVERYTHING, one_head(right=0.07, before=0.6), r"'vowel'; of head 'vowel' 7.00% .* and 60.00% of those out"),
        (0, one_head(changed=3), r"'vowel'; of head 'vowel' 3 of 100 decisions differ \(3.00%\)"),
        (
            0,
            one_head(mean=0.06),
            "'vowel'; of head 'vowel' 0 of 100 decisions differ .* by 6.0e-02 of an image on average",
        ),
    ],
)
def test_a_good_head_does_not_pay_for_a_broken_one(fold: int, broken: HeadLikeness, problem: str) -> None:
    good = one_head(right=1.0, before=0.45)
    check_likeness(compared(root=good, vowel=good), fold, Reading())
    with pytest.raises(ExportError, match=rf"predictions of 1 of 2 head\(s\): {problem}"):
        check_likeness(compared(root=good, vowel=broken), fold, Reading())
    with pytest.raises(ExportError, match=r"of 2 of 2 head\(s\): 'root', 'vowel'; of head 'root'"):
        check_likeness(compared(root=broken, vowel=broken), fold, Reading())


def test_one_head_of_other_classes_is_refused_of_a_model_of_everything(
    given: dict[str, Any], trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    reading = Reading(mean=(0.0,), std=(1.0,), classes={"vowel": ("1", "0")})
    values = given | {"oof": trained[1][0].oof(), "reading": reading}
    with pytest.raises(ExportError, match=r"of 1 of 2 head\(s\): 'vowel'; of head 'vowel' \d.*another order"):
        adopt_modules({EVERYTHING: Knowing()}, tmp_path / "run", **values)


def test_tags_in_another_order_are_not_right_for_being_mostly_absent() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 50)) < 0.02).astype(np.uint8)
    truth[0] = 0
    task = task_of(tags={"classes": 50, "kind": "multilabel"})
    probs = {"tags": 0.1 + 0.8 * truth.astype(np.float32)}
    right = Predictions(ids=np.arange(200).astype(str), probs=probs, multilabel=("tags",))
    wrong = dataclasses.replace(right, probs={"tags": right.probs["tags"][:, ::-1].copy()})
    measured = measure_likeness(task, {"tags": truth}, wrong, right, model="m")
    assert measured.heads["tags"].right_before == 1 and measured.heads["tags"].right < 0.5
    assert measured.heads["tags"].decisions_changed < 0.05 * 200
    with pytest.raises(ExportError, match="of head 'tags'"):
        check_likeness(measured, EVERYTHING, Reading())
    assert measure_likeness(task, {"tags": truth}, right, right, model="m").repeats


@pytest.fixture
def moved(adopted: Run, tmp_path: Path) -> Run:
    """An adopted run to be changed."""
    return read_run(Path(shutil.copytree(adopted.folder, tmp_path / "theirs")))


def test_what_was_adopted_is_known_by_its_hash(moved: Run, files: dict[int, Path], given: dict[str, Any]) -> None:
    for fold, file in files.items():
        check_adopted(moved, fold)
        assert adopted_hash(moved, fold) == file_sha256(file)
        assert read_adoption(moved).files[str(fold)] == {f"fold{fold}/member.onnx": file_sha256(moved.onnx(fold))}
    modules = adopt_modules({fold: Plain(fold) for fold in files}, moved.folder.parent / "modules", **given)
    check_adopted(modules, 1)
    assert adopted_hash(modules, 1) == file_sha256(modules.onnx(1))


def test_a_model_that_was_replaced_after_adoption_is_refused(moved: Run) -> None:
    was, other = (file_sha256(moved.onnx(fold)) for fold in (1, 0))
    shutil.copy(moved.onnx(0), moved.onnx(1))
    check_adopted(moved, 0)
    with pytest.raises(
        BundleError, match=f"fold1/member.onnx has SHA-256 {other}, expected {was}, .*adopt the model ag"
    ):
        check_adopted(moved, 1)
    moved.onnx(1).unlink()
    with pytest.raises(BundleError, match=f"has SHA-256 of no file, expected {was}"):
        check_adopted(moved, 1)
    shutil.copy(moved.onnx(0), moved.folder / "fold1" / "swapped.onnx")
    renamed = dataclasses.replace(moved, adopted={**moved.adopted, 1: "fold1/swapped.onnx"})
    with pytest.raises(BundleError, match=r"fold1/(member|swapped).onnx has SHA-256"):
        check_adopted(renamed, 1)


def test_a_model_whose_hash_was_not_written_down_is_refused(moved: Run) -> None:
    facts = moved.folder / "adopted.json"
    stored = json.loads(facts.read_text())
    facts.write_text(json.dumps(stored | {"files": {}, "originals": {}}))
    with pytest.raises(BundleError, match="expected of none, .*adopt the model again"):
        check_adopted(moved, 0)
    with pytest.raises(BundleError, match=r"no SHA-256 of what fold 0 was made from .*adopt the models again"):
        adopted_hash(moved, 0)
    facts.write_text(json.dumps({"format": 1, "reading": stored["reading"], "checked": {}}))
    for ask in (check_adopted, adopted_hash):
        with pytest.raises(BundleError, match="adopted.json is not of format 2, .*adopt the models again"):
            ask(moved, 0)


def test_an_adopted_run_is_replaced_by_another_and_nothing_else_is(
    given: dict[str, Any],
    files: dict[int, Path],
    trained: tuple[Toy, list[Run]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    run = adopt_onnx(files, out, **given)
    again = adopt_onnx(files, out, **given | {"name": "renamed"})
    assert again.id == run.id and again.config.model.name == "renamed"

    def killed(*_args: object, **_values: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kaggle_kit.export.adopt.write_run", killed)
        with pytest.raises(KeyboardInterrupt):
            adopt_onnx(files, out, **given)
        with pytest.raises(KeyboardInterrupt):
            adopt_onnx(files, tmp_path / "new", **given)
    assert read_run(out) == again and [path.name for path in tmp_path.iterdir()] == ["run"]
    (out / "fold0" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds a run from elsewhere and other files: 'fold0'"):
        adopt_onnx(files, out, **given)
    with pytest.raises(DataError, match="is not empty and no run from elsewhere; choose another folder"):
        adopt_onnx(files, trained[1][0].folder, **given)
    assert not trained[1][0].is_adopted


def test_an_adopted_run_is_blended_with_a_trained_one(adopted: Run, trained: tuple[Toy, list[Run]]) -> None:
    run = trained[1][0]
    costs = measure_costs([run, adopted], images=8, seconds_a_run=0)
    assert all(0 < seconds < 10 for seconds in costs.seconds.values())
    assert costs.device.endswith("; 'theirs' in ONNX Runtime") and "ONNX" not in measure_costs([run]).device
    found = fit_blend([run, adopted], costs=costs, strategies=["mean"])
    assert set(found.blend.runs) == {run.name, adopted.name} and found.blend.score
    assert found.blend.oof_hashes.keys() == {run.name, adopted.name}


def test_what_needs_weights_refuses_an_adopted_run(
    adopted: Run, trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    toy, runs = trained
    assert [run.name for group in group_ingredients([adopted, *runs]) for run in group] == [run.name for run in runs]
    with pytest.raises(SettingError, match="run 'theirs' comes from elsewhere, as a graph and without weights"):
        check_ingredients([runs[0], adopted])
    with pytest.raises(DataError, match="comes from elsewhere and has no checkpoint of fold 1"):
        adopted.checkpoint(1)
    with pytest.raises(DataError, match=r"no .onnx file of fold 0 \(found: none, for it was trained here\)"):
        runs[0].onnx(0)
    with pytest.raises(DataError, match=r"no .onnx file of fold 7 \(found: folds \[0, 1\]\)"):
        adopted.onnx(7)
    with pytest.raises(SettingError, match="models from elsewhere, whose settings are not known"):
        train_everything(adopted, out=tmp_path / "all")
    config = TrainConfig(model=ModelConfig(name="test_resnet"), epochs=1)
    with pytest.raises(DataError, match="is not empty and no run"):
        train_run(toy.task, config, data=toy.data, folds=adopted.fold_table(), out=adopted.folder)
    with pytest.raises(DataError, match="has no adopted.json, so that it was not adopted"):
        read_adoption(runs[0])


def test_the_ledger_says_that_a_run_was_trained_elsewhere(adopted: Run) -> None:
    entry = entry_of(adopted)
    assert entry.settings == {"model.name": "teammate", "trained": "elsewhere"}
    assert entry.total == adopted.score.total and entry.folds.startswith("stratified 2, seed 0")
    listing = read_runs(adopted.folder.parent)
    assert not listing.problems
    assert "model.name=teammate; trained=elsewhere" in "\n".join(format_ledger(listing.entries))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"0": "fold0/member.onnx"}, r"`adopted` has folds \['0'\], and the run \['0', '1'\]"),
        ({"0": "../x.onnx", "1": "fold1/member.onnx"}, "names '../x.onnx', which is outside"),
        ({"0": "/x.onnx", "1": "fold1/member.onnx"}, "outside of the run's folder"),
        ({"0": 1, "1": 2}, "run.json does not read"),
        (["fold0"], "run.json does not read"),
    ],
)
def test_a_run_whose_files_cannot_be_is_refused(adopted: Run, tmp_path: Path, values: object, problem: str) -> None:
    stored = json.loads((adopted.folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(stored | {"adopted": values}))
    with pytest.raises(DataError, match=problem):
        read_run(tmp_path)


def test_a_run_of_before_adoption_still_reads(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    stored = json.loads((trained[1][0].folder / "run.json").read_text())
    del stored["adopted"]
    (tmp_path / "run.json").write_text(json.dumps(stored))
    assert not read_run(tmp_path).is_adopted


@pytest.mark.parametrize("text", ["{", '{"format": 9}', '{"format": 2, "reading": 3}'])
def test_damaged_facts_are_named(adopted: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "adopted.json").write_text(text)
    with pytest.raises(DataError, match="adopted.json .*adopt the models again"):
        read_adoption(dataclasses.replace(adopted, folder=tmp_path))


def test_outputs_are_put_into_another_order(adopted: Run, given: dict[str, Any]) -> None:
    model, images = onnx.load(adopted.onnx(0)), given["packed"].take(np.arange(5))
    order = np.array([2, 0, 1])
    made = reorder_outputs(model, {"root": order})
    onnx.checker.check_model(made, full_check=True)
    before, after = asked(model, images), asked(made, images)
    assert list(after) == ["root", "vowel"] and np.array_equal(after["root"], before["root"][:, order])
    assert np.array_equal(after["vowel"], before["vowel"])
    assert reorder_outputs(model, {}) == model
    back = asked(reorder_outputs(made, {"root": np.argsort(order)}), images)
    assert np.array_equal(back["root"], before["root"])
    with pytest.raises(ExportError, match="the model has no output 'tail', only 'root', 'vowel'"):
        reorder_outputs(model, {"tail": order})


def test_the_command_adopts_files(
    given: dict[str, Any], files: dict[int, Path], adopted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given["oof"].save(tmp_path / "oof.npz")
    (tmp_path / "task.yaml").write_text(json.dumps(json.loads((adopted.folder / "run.json").read_text())["task"]))
    words = [
        *("--name", "teammate", "--task", tmp_path / "task.yaml", "--data", given["data"]),
        *("--packed", given["packed"].folder, "--folds", adopted.folder / "folds.parquet"),
        *("--oof", tmp_path / "oof.npz", "--size", SIDE, SIDE, "--channels", 3),
        *("--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225, "--outputs", "root=root", "vowel=vowel"),
        *("--classes", "root=0,1,2"),
    ]
    result, _ = call("adopt", tmp_path / "run", *words, "--onnx", *files.values())
    text = capsys.readouterr().out
    assert "fold 1: theirs1.onnx" in text and "repeats its predictions" in text and "95 % interval" in text
    assert "images are read as: size [32, 32], mean [0.485" in text and "kaggle-kit blend" in text
    run = read_run(tmp_path / "run")
    assert result["run"] == run.id and result["score"] == adopted.score
    assert result["reading"] == dataclasses.replace(
        READING, outputs={"root": "root", "vowel": "vowel"}, classes={"root": ("0", "1", "2")}
    )
    for extra, problem in (
        (("--onnx", files[0], "--like", adopted.folder), "--like goes with --everything"),
        (("--onnx", files[0], files[1], "--everything"), "--everything is for one model, and --onnx names 2"),
        (("--onnx", files[0], "--outputs", "root"), "--outputs has 'root'; give HEAD=NAME"),
        (("--onnx", files[0], "--outputs", "root=a", "root=b"), "each head once"),
        (("--onnx", files[0], "--everything", "--like", adopted.folder), "trained on"),
    ):
        with pytest.raises(KitError, match=problem):
            call("adopt", tmp_path / "other", *words, *extra)


def test_the_kit_s_own_exports_are_adopted_as_the_readme_says(
    trained: tuple[Toy, list[Run]], adopted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained[1][0]
    files = [tmp_path / "onnx" / member.file for member in export_runs([run], tmp_path / "onnx", parity_rows=4)]
    (tmp_path / "task.yaml").write_text(json.dumps(json.loads((adopted.folder / "run.json").read_text())["task"]))
    result, _ = call(
        *("adopt", tmp_path / "run", "--name", "own", "--task", tmp_path / "task.yaml", "--data", run.data),
        *("--packed", run.packed.parent, "--folds", run.folder / "folds.parquet", "--oof", run.oof_file),
        *("--dtype", "uint8", "--layout", "nhwc", "--activation", "none", "--onnx", *files),
    )
    assert capsys.readouterr().out.count(" repeats its predictions") == 2
    assert result["score"] == pytest.approx(run.score) and read_run(tmp_path / "run").packed == run.packed.resolve()


def test_a_folder_stands_for_the_one_store_in_it(given: dict[str, Any], tmp_path: Path) -> None:
    store = given["packed"].folder
    assert find_store(store) == store and find_store(store.parent) == store
    assert find_store(tmp_path) == tmp_path, "which is refused as no store"
    for name in ("b", "a", ".b.packing", "c"):
        (tmp_path / name).mkdir()
        if name != "c":
            shutil.copy(store / "pack.json", tmp_path / name)
    message = f"{tmp_path} holds 2 packed stores; give one of '{tmp_path}/a', '{tmp_path}/b'$"
    with pytest.raises(DataError, match=message):
        find_store(tmp_path)
