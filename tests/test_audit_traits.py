from __future__ import annotations

import numpy as np
import pytest
from audited import files_task, images_of, labels_of, scene

from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.pictures import Images
from kaggle_kit.audit.quality import quality_findings
from kaggle_kit.audit.traits import find_traits, is_trait, mark_traits
from kaggle_kit.labels import Labels

NAMES = ["ship", "car", "kite"]
TASK = files_task(heads={"kind": {"classes": NAMES, "values": [7, 8, 9]}})


def gray_cars(*, of_class: int = 12, gray_ships: int = 2, gray_test: int = 2) -> tuple[Images, Labels]:
    """Return images, 20 of them of the test, of which all cars, some ships and some of the test show no colour."""
    classes = np.repeat([0, 1, 2], [30, of_class, 30])
    images = images_of([scene(seed) for seed in range(len(classes) + 20)], num_test=20)
    images.gray[: len(classes)] = classes == 1
    images.gray[:gray_ships] = True
    images.gray[len(images) - gray_test :] = gray_test > 0
    return images, labels_of(images, kind=classes)


def test_what_all_images_of_a_class_are_is_a_trait_of_it() -> None:
    images, labels = gray_cars()
    (trait,) = find_traits(quality_findings(images), images, labels, TASK)
    assert (trait.kind, trait.head, trait.value, trait.name) == ("gray", "kind", "8", "car")
    assert (trait.images, trait.of_class, trait.found, trait.test_share) == (12, 12, 14, 0.1)
    assert trait.text == (
        "12 of the 14 labelled images that are gray are 'car', which is gray in all its images: a trait of the class, "
        "not a defect: keep them. 10% of the test's images are gray too."
    )


def test_images_that_a_trait_explains_come_last_and_say_so() -> None:
    images, labels = gray_cars()
    found = quality_findings(images)
    traits = find_traits(found, images, labels, TASK)
    marked = list(mark_traits(found, traits, labels, TASK))
    assert [one.id for one in marked] == [one.id for one in found]
    cars = {f"i{row}" for row in range(30, 42)}
    assert {one.id for one in marked if is_trait(one)} == cars
    ordered = sorted((one for one in marked if one.kind == "gray"), key=lambda one: -one.score)
    assert {one.id for one in ordered[-12:]} == cars
    assert all(one.detail.endswith("; a trait of car, as 12 of its 12 images") for one in ordered[-12:])


@pytest.mark.parametrize(
    ("of_class", "num_gray"), [(12, 6), (4, 4), (12, 0)], ids=["half of a class", "a handful", "none"]
)
def test_what_few_images_of_a_class_are_is_none(of_class: int, num_gray: int) -> None:
    images, labels = gray_cars(of_class=of_class)
    images.gray[30 + num_gray : 30 + of_class] = False
    found = quality_findings(images)
    assert find_traits(found, images, labels, TASK) == ()
    assert list(mark_traits(found, (), labels, TASK)) == found


@pytest.mark.parametrize(
    ("share", "text"), [(0, "No image of the test is gray"), (None, "keep them.")], ids=["no gray test", "no test"]
)
def test_the_test_s_share_is_said_where_there_is_a_test(share: float | None, text: str) -> None:
    images, labels = gray_cars(gray_test=0)
    if share is None:
        images.split[:] = "train"
    (trait,) = find_traits(quality_findings(images), images, labels, TASK)
    assert trait.test_share == share and text in trait.text


def test_a_tag_has_traits_too_and_what_is_no_oddity_has_none() -> None:
    task = files_task(heads={"tags": {"classes": ["sea", "sky"], "kind": "multilabel"}}, metric="macro_f1")
    images, labels = gray_cars()
    labels = Labels(
        ids=labels.ids, classes={"tags": np.column_stack([labels.classes["kind"] == 1] * 2).astype(np.uint8)}
    )
    assert [trait.name for trait in find_traits(quality_findings(images), images, labels, task)] == ["sea", "sky"]
    assert not is_trait(Finding(kind="top_loss", id="a", split="train", score=-1))
