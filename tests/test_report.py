from __future__ import annotations

import base64
import dataclasses
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Toy
from pages import Page
from sklearn import metrics as sklearn_metrics

from kaggle_kit.errors import DataError
from kaggle_kit.folds import Folds
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import EVERYTHING, FoldSummary, Run, fold_folder, write_run
from kaggle_kit.scores import SplitScore, score_answers
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, task_from_plain
from kaggle_kit.train.config import AverageConfig, ModelConfig, TrainConfig
from kaggle_kit.train.logs import History, history_row
from kaggle_kit.train.outcome import Outcome, head_section, image_losses
from kaggle_kit.train.plots import draw_confusion, draw_curves, to_svg
from kaggle_kit.train.report import write_report

EVIL = "<script>alert('x')</script>&\u0995\u09cd\u09b7"
LETTERS = [EVIL, *(chr(0x0985 + number) for number in range(3)), "a very long name of a class, such as bird books have"]


def make_task(heads: dict, metric: str = "macro_recall") -> Task:
    images = {"format": "files", "folder": "images", "test_list": "test.csv"}
    submission = {"form": "row_per_head", "id": "row_id"}
    stored = {"height": 24, "width": 32}
    values = {"name": "made-up", "heads": heads, "metric": metric, "images": images, "submission": submission}
    return task_from_plain({**values, "stored": stored})


def make_labels(task: Task, data: Path, *, num_images: int, seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    columns = []
    for head in task.heads.values():
        if head.kind == "multilabel":
            marks = rng.random((num_images, head.num_classes)) < 0.4
            marks[:, -1] = False
            columns.append([head.separator.join(np.array(head.class_values)[row]) for row in marks])
        else:
            columns.append([head.class_values[label] for label in rng.integers(0, head.num_classes, num_images)])
    ids = [f"id&{number}" for number in range(num_images)]
    write_rows(data / "train.csv", ["image_id", *task.heads], list(zip(ids, *columns, strict=True)))
    return read_labels(task, data)


def make_probs(task: Task, labels: Labels, *, seed: int = 0) -> Predictions:
    """Right more often than not."""
    rng = np.random.default_rng(seed)
    probs = {}
    for name, head in task.heads.items():
        noise = rng.random((len(labels), head.num_classes))
        truth = labels.classes[name]
        if head.kind == "multilabel":
            probs[name] = np.clip(noise * 0.8 + 0.3 * truth - 0.1, 0, 1).astype(np.float32)
        else:
            noise[np.arange(len(labels)), truth] += 0.7 * (truth % 3 > 0)
            probs[name] = (noise**6 / (noise**6).sum(axis=1, keepdims=True)).astype(np.float32)
    multilabel = tuple(name for name, head in task.heads.items() if head.kind == "multilabel")
    return Predictions(ids=labels.ids, probs=probs, multilabel=multilabel)


def write_made_up(
    folder: Path, task: Task, labels: Labels, oof: Predictions, data: Path, *, num_folds: int = 2, **more: object
) -> Run:
    """Write a run as training would leave it, without training."""
    score = score_answers(task, labels.classes, oof.probs, draws=50)
    fold = np.arange(len(labels)) % max(num_folds, 2)
    run = Run(
        folder=folder,
        task=task,
        config=TrainConfig(model=ModelConfig(name="test_resnet"), average=AverageConfig(ema=0.9), epochs=3),
        data=data,
        packed=folder / "nowhere",
        packed_key="key",
        scores=SplitScore(all=score, unseen=dataclasses.replace(score, interval=None, head_intervals={})),
        folds={
            number: FoldSummary(epoch=2, score=score, seconds=90.0, weights="ema" if number else "raw")
            for number in range(num_folds)
        },
        environment={"torch": "2.8.0", "device": "<CPU>"},
        created="2026-01-02T03:04:05+00:00",
    )
    run = dataclasses.replace(run, **more)
    folder.mkdir(parents=True, exist_ok=True)
    write_run(run)
    oof.save(folder / "oof.npz")
    Folds(ids=labels.ids, fold=fold, unseen=fold == 0, scheme="stratified", seed=0, data_hash="abc").save(
        folder / "folds.parquet"
    )
    for number in run.folds:
        history = History(fold_folder(folder, number) / "history.csv")
        for epoch in range(1, 4):
            history.add(
                history_row(
                    epoch=epoch,
                    loss=1 / epoch,
                    rate=1e-3 / epoch,
                    score=None if number == EVERYTHING else score,
                    averages={} if number == EVERYTHING else {"ema": score.total},
                    seconds=30.0 * epoch,
                    images_per_second=321.0,
                    waiting=0.25,
                )
            )
    return run


def make_run(folder: Path, heads: dict, *, num_images: int = 60, metric: str = "macro_recall", **more: object) -> Run:
    task = make_task(heads, metric)
    labels = make_labels(task, folder / "data", num_images=num_images)
    return write_made_up(folder / "run", task, labels, make_probs(task, labels), folder / "data", **more)


def read_page(run: Run) -> Page:
    return Page(write_report(run.folder))


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Page]:
    heads = {"letter": {"classes": LETTERS, "weight": 2}, "many": {"classes": 30}}
    run = make_run(tmp_path_factory.mktemp("two"), heads, num_images=400)
    return run, read_page(run)


def test_a_page_is_whole_loads_nothing_and_runs_nothing(two_heads: tuple[Run, Page]) -> None:
    _, page = two_heads
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(value.startswith(("data:image/", "#")) for value in addresses)
    assert not re.search(r"url\((?!#)|@import", page.source)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in addresses if value.startswith("#")} <= set(ids)


def test_names_from_files_are_text_and_never_markup(two_heads: tuple[Run, Page]) -> None:
    _, page = two_heads
    assert page.has(EVIL) and "<script" not in page.source
    assert page.has("id&") and page.has("<CPU>")


def test_scores_settings_folds_and_environment_are_on_the_page(two_heads: tuple[Run, Page]) -> None:
    run, page = two_heads
    score = run.score
    assert page.has(f"{score.total:.4f}") and page.has("{:.4f} to {:.4f}".format(*score.interval))
    assert all(page.has(f"{value:.4f}") for value in score.heads.values())
    assert page.has("model.name test_resnet resnet18") and page.has("average.ema 0.9 0.0")
    assert not page.has("optim.name adamw adamw")
    assert page.has("fold 1 2 of 3 ema") and page.has("fold 0 2 of 3 raw")
    assert page.has("321") and page.has("25%")
    assert page.has("torch 2.8.0") and page.has("stratified 2, seed 0")
    assert [path.name for path in sorted((run.folder / "plots").iterdir())] == [
        "confusion_letter.png",
        "confusion_many.png",
        "curves.png",
    ]
    assert page.has("Loss") and page.has("Learning rate") and page.has("Score: macro_recall (higher is better)")


def test_the_same_run_gives_the_same_page(two_heads: tuple[Run, Page]) -> None:
    run, page = two_heads
    assert write_report(run.folder).read_text(encoding="utf-8") == page.source


def test_classes_come_worst_first_with_scikit_learns_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"letter": {"classes": 7}})
    truth, probs = run.labels().classes["letter"], run.oof().probs["letter"]
    outcome = Outcome(ids=run.labels().ids, truth={"letter": truth}, probs={"letter": probs}, unseen=truth < 0)
    rows = head_section(run.task.heads["letter"], run, outcome)["classes"]
    recall = sklearn_metrics.recall_score(truth, probs.argmax(axis=1), average=None)
    precision = sklearn_metrics.precision_score(truth, probs.argmax(axis=1), average=None, zero_division=np.nan)
    assert sorted(row["name"] for row in rows) == list("0123456")
    assert [float(row["recall"]) for row in rows] == sorted(round(value, 3) for value in recall)
    for row in rows:
        label = int(row["name"])
        assert row["recall"] == f"{recall[label]:.3f}" and row["precision"] == f"{precision[label]:.3f}"


def test_a_class_no_image_has_comes_last_and_divides_by_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"letter": {"classes": 4}})
    truth = np.array([1, 1, 2])
    probs = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]], np.float32)
    outcome = Outcome(ids=np.array(["a", "b", "c"]), truth={"letter": truth}, probs={"letter": probs}, unseen=truth < 0)
    rows = head_section(run.task.heads["letter"], run, outcome)["classes"]
    assert [row["name"] for row in rows] == ["1", "2", "0", "3"]
    assert rows[0]["third"] == "2 (1)" and rows[2]["recall"] == "\u2013"


def test_many_classes_get_a_heat_map_and_the_most_confused_pairs(two_heads: tuple[Run, Page]) -> None:
    run, page = two_heads
    truth, decided = run.labels().classes["many"], run.oof().decide()["many"]
    pairs, counts = np.unique(np.stack([truth, decided])[:, truth != decided], axis=1, return_counts=True)
    true, said = pairs[:, counts.argmax()]
    assert page.has(f"true predicted images of the true class {true} {said} {counts.max()}")
    (heat,) = [attributes["src"] for tag, attributes in page.tags if attributes.get("class") == "heat"]
    image = cv2.imdecode(np.frombuffer(base64.b64decode(heat.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    matrix = sklearn_metrics.confusion_matrix(truth, decided, labels=range(30), normalize="true")
    np.testing.assert_allclose(image[..., 3], 255 * np.sqrt(matrix), atol=0.5)
    assert page.has("10 better classes")


def test_losses_are_those_of_scikit_learn_highest_first(tmp_path: Path) -> None:
    heads = {"root": {"classes": 3, "weight": 3}, "tags": {"classes": ["a", "b", "c"], "kind": "multilabel"}}
    run = make_run(tmp_path, heads, metric="log_loss")
    labels, oof = run.labels(), run.oof()
    outcome = Outcome(ids=labels.ids, truth=labels.classes, probs=oof.probs, unseen=np.zeros(len(labels), bool))
    slow = [
        0.75 * sklearn_metrics.log_loss([labels.classes["root"][row]], oof.probs["root"][[row]], labels=[0, 1, 2])
        + 0.25 * sklearn_metrics.log_loss(labels.classes["tags"][row], oof.probs["tags"][row], labels=[0, 1])
        for row in range(len(labels))
    ]
    np.testing.assert_allclose(image_losses(run.task, outcome), slow, rtol=1e-4)
    worst = f"id&{int(np.argmax(slow))} loss {max(slow):.2f}"
    page = read_page(run)
    assert page.has(worst) and page.has("log_loss out of fold, lower is better")


def test_multilabel_heads_have_average_precision_and_no_confusion_matrix(tmp_path: Path) -> None:
    names = ["a", "b", "never"]
    run = make_run(tmp_path, {"tags": {"classes": names, "kind": "multilabel"}}, metric="macro_f1")
    page = read_page(run)
    truth, probs = run.labels().classes["tags"], run.oof().probs["tags"]
    precision = sklearn_metrics.average_precision_score(truth[:, :2], probs[:, :2], average=None)
    recall = sklearn_metrics.recall_score(truth[:, :2], probs[:, :2] >= 0.5, average=None)
    for name, each, found in zip(names, precision, recall, strict=False):
        assert page.has(f"{name} {int(truth[:, names.index(name)].sum())} {found:.3f}") and page.has(f"{each:.3f}")
    assert page.has("never 0 \u2013") and "confusion matrix of" not in page.source
    assert not list((run.folder / "plots").glob("confusion*"))


def test_highest_losses_show_the_packed_images(wide: Toy, tmp_path: Path) -> None:
    source = pack_train(wide.task, wide.data, None, beside=tmp_path)
    labels = read_labels(wide.task, wide.data)
    oof = make_probs(wide.task, labels)
    run = write_made_up(
        tmp_path / "run", wide.task, labels, oof, wide.data, packed=source.folder, packed_key=source.key
    )
    page = read_page(run)
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 24 and not page.has("Without pictures")
    unseen = np.zeros(len(labels), bool)
    losses = image_losses(run.task, Outcome(ids=labels.ids, truth=labels.classes, probs=oof.probs, unseen=unseen))
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0].split(",")[1]), np.uint8), cv2.IMREAD_GRAYSCALE)
    stored = source.read(int(np.flatnonzero(source.ids == labels.ids[losses.argmax()])[0]))[..., 0]
    assert np.abs(shown.astype(int) - stored).mean() < 12  # JPEG

    write_run(dataclasses.replace(run, packed_key="another"))
    assert read_page(run).has("Without pictures: packed store")
    shutil.rmtree(source.folder)
    assert read_page(run).has("is no packed store")


def test_a_page_without_labels_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"letter": {"classes": 3}})
    (run.data / "train.csv").unlink()
    page = read_page(run)
    assert page.has("is left out:") and page.has("train.csv is missing") and page.has("model.name test_resnet")
    assert page.open == []


def test_a_training_on_everything_shows_whose_scores_these_are(tmp_path: Path) -> None:
    everything = {EVERYTHING: FoldSummary(epoch=3, score=None, seconds=9000.0, stopped="out of time")}
    run = make_run(tmp_path, {"letter": {"classes": 3}}, folds=everything, like="runs/<cv>")
    page = read_page(run)
    assert page.has("those of runs/<cv>, whose settings it took") and page.has("everything 3 of 3 raw (out of time)")
    assert page.has("2.5 h") and not page.has("Score: macro_recall")


def test_a_run_of_one_fold_and_one_epoch_without_history_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"letter": {"classes": 2}}, num_folds=1)
    shutil.rmtree(run.folder / "fold0")
    page = read_page(run)
    assert page.has("No fold left a history.csv") and page.has("1 fold")


def test_histories_of_earlier_versions_are_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"letter": {"classes": 2}}, num_folds=1)
    (run.folder / "fold0" / "history.csv").write_text("epoch,loss,score,letter,seconds\n1,0.7,0.5,0.5,9.1\n")
    page = read_page(run)
    assert page.has("Loss") and page.has("Score: macro_recall") and not page.has("Learning rate")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished run"):
        write_report(tmp_path)


def test_curves_leave_out_what_is_no_number_and_are_none_without_any() -> None:
    nan = float("nan")
    kept = {"fold 0": (1, "swa")}
    assert draw_curves({"fold 0": {}}, metric="accuracy", kept=kept) is None  # type: ignore[arg-type]
    assert draw_curves({"fold 0": {"loss": [nan]}}, metric="accuracy", kept={}) is None
    some = {"epoch": [1.0, 2.0], "loss": [0.5, nan], "score": [nan, nan], "rate": [0.1, 0.1]}
    figure = draw_curves({"fold 0": some, "fold 1": {}}, metric="log_loss", kept={})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Learning rate"]
    assert "#0a0b0c" not in to_svg(figure) and "currentColor" in to_svg(figure)


@pytest.mark.parametrize("name", ["\u0995", "$x^", "plain"])
def test_class_names_a_font_may_lack_are_numbers_in_pictures(name: str, tmp_path: Path) -> None:
    figure = draw_confusion(np.array([[3, 1], [0, 0]]), [name, "b"], title="$head_")
    figure.savefig(tmp_path / "a.png")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == (["0", "1"] if not name.isascii() else [name, "b"])
