from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SIZE, Toy, wide_task
from matplotlib.figure import Figure

from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.task import Head, Stored, Task
from kaggle_kit.train.augment import Augment
from kaggle_kit.train.config import MixConfig, TrainConfig
from kaggle_kit.train.pictures import (
    draw_augment_sheet,
    draw_mixed_sheet,
    image_title,
    save_augment_sheet,
    show_augment,
)

LONG = "a class with a very long name indeed"


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def check_text_is_free(figure: Figure) -> None:
    """No text leaves the picture, and none lies over another or over an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    panels = [axes.get_window_extent() for axes in figure.axes if axes.images]
    width, height = figure.bbox.width, figure.bbox.height
    for place, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert not any(box.overlaps(other) for other in [*boxes[:place], *panels])


def mixed_task(channels: int = 1) -> Task:
    heads = {
        "root": Head(name="root", classes=168),
        "kind": Head(name="kind", classes=(LONG, "US$ and $", "আম")),
        "a_head_with_a_very_long_name": Head(name="a_head_with_a_very_long_name", classes=7),
        "fourth": Head(name="fourth", classes=5),
    }
    task = wide_task()
    images = dataclasses.replace(task.images, channels=channels)
    return dataclasses.replace(task, heads=heads, images=images)


def mixed_targets(task: Task, count: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    return {
        name: torch.from_numpy(rng.dirichlet(np.full(head.num_classes, 0.2), count)).float()
        for name, head in task.heads.items()
    }


@pytest.mark.parametrize(("shape", "versions"), [((24, 48, 1), 7), ((60, 10, 3), 2), ((33, 33, 3), 0)])
def test_an_augment_sheet_shows_each_original_and_its_versions(shape: tuple[int, int, int], versions: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    augment = Augment("strong", stored=Stored(height=shape[0], width=shape[1]), channels=shape[2])
    figure = draw_augment_sheet(augment, images, ["a", "b", "c" * 300], seed=5, num_versions=versions)
    assert len(figure.axes) == 3 * (versions + 1)
    shown = np.stack([axes.images[0].get_array() for axes in figure.axes]).reshape(3, versions + 1, *shape[:2], -1)
    assert (shown[:, 0] == images).all()
    for version in range(versions):
        assert (shown[:, version + 1] == augment(images, seed=5 + version)).all()
    check_text_is_free(figure)


@pytest.mark.parametrize(("size", "channels", "count"), [((24, 48), 1, 6), ((60, 10), 3, 5), ((33, 33), 3, 1)])
def test_a_mixed_sheet_has_room_for_the_targets_of_many_heads(size: tuple[int, int], channels: int, count: int) -> None:
    task = mixed_task(channels)
    images = np.random.default_rng(0).integers(0, 256, (count, *size, channels), np.uint8)
    mixed = {
        "mixup": (torch.from_numpy(images).float() * 0.5, mixed_targets(task, count)),
        "fmix": (torch.from_numpy(images), mixed_targets(task, count)),
    }
    figure = draw_mixed_sheet(task, images, mixed)
    assert len(texts_of(figure)) == 2 * count
    check_text_is_free(figure)


def test_targets_are_written_as_their_three_likeliest_classes() -> None:
    task = mixed_task()
    targets = {name: torch.zeros(1, head.num_classes) for name, head in task.heads.items()}
    targets["root"][0, [12, 40]] = torch.tensor([0.63, 0.37])
    targets["kind"][0] = torch.tensor([0.5, 0.3, 0.2])
    targets["fourth"][0] = torch.tensor([0.4, 0.1, 0.1, 0.1, 0.3])
    images = np.zeros((1, 20, 20, 1), np.uint8)
    (text,) = texts_of(draw_mixed_sheet(task, images, {"mixup": (torch.from_numpy(images), targets)}))
    assert text.split("\n") == [
        "mixup",
        "root 12: 0.63 / 40: 0.37",
        "kind a class with…: 0.50 / US$ and $: 0.30 / #2: 0.20",
        "a_head_with_a_very_… unknown",
        "fourth 0: 0.40 / 4: 0.30 / 1: 0.10 + 2 more",
    ]


def test_a_title_names_every_label_of_an_image() -> None:
    tags = Head(name="tags", classes=("boat", "sea", "sky"), kind="multilabel")
    task = dataclasses.replace(
        wide_task(),
        heads={"root": Head(name="root", classes=3), "tags": tags},
        metric="macro_f1",
        auxiliary={"grapheme": Head(name="grapheme", classes=("ka", "kha"))},
    )
    labels = Labels(
        ids=np.array(["Train_0", "Train_1"]),
        classes={"root": np.array([2, 1]), "tags": np.array([[1, 0, 1], [0, 0, 0]], np.uint8)},
        auxiliary={"grapheme": np.array([1, -1])},
    )
    assert image_title(task, labels, 0) == "Train_0   root 2, tags boat + sky, grapheme kha"
    assert image_title(task, labels, 1) == "Train_1   root 1, tags none, grapheme unknown"


def test_a_sheet_is_the_same_file_for_the_same_seed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 1), np.uint8)
    augment = Augment("letters", stored=Stored(height=20, width=30), channels=1)
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        save_augment_sheet(tmp_path / name, augment, images, ["a", "b"], seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert first == again != other
    assert cv2.imread(str(tmp_path / "a.png")) is not None


def show(toy: Toy, folder: Path, mix: MixConfig, **options: int) -> list[str]:
    store = pack_train(toy.task, toy.data, folder / "packed")
    labels = read_labels(toy.task, toy.data).align(store.ids)
    task = toy.task.with_stored(Stored(height=SIZE[0], width=SIZE[1]))
    paths = show_augment(task, TrainConfig(mix=mix), store, labels, out=folder / "sheet.png", **options)
    assert all(cv2.imread(str(path)) is not None for path in paths)
    return [path.name for path in paths]


def test_show_augment_adds_a_mixed_sheet_where_batches_are_mixed(wide: Toy, tmp_path: Path) -> None:
    assert show(wide, tmp_path, MixConfig(), num_images=3, num_versions=2) == ["sheet.png"]
    both = ["sheet.png", "sheet_mixed.png"]
    assert show(wide, tmp_path, MixConfig(mixup=0.4, fmix=1.0), num_images=3, num_versions=2) == both
    assert show(wide, tmp_path, MixConfig(cutmix=1.0), num_images=1, num_versions=1) == ["sheet.png"]
    assert show(wide, tmp_path, MixConfig(), num_images=1000, num_versions=0) == ["sheet.png"]
