from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import made_audit, with_model

from kaggle_kit.audit.advice import Advice, Commands, advise, many
from kaggle_kit.audit.duplicates import Duplicates, Group, torn_groups
from kaggle_kit.audit.examine import Audit
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.leaks import Leak
from kaggle_kit.audit.traits import Trait
from kaggle_kit.edits import make_edit
from kaggle_kit.folds import Folds
from kaggle_kit.task import Stored

EDITS = Path("my audit/edits.jsonl")
HEADS = {"kind": {"classes": ["cat", "dog"]}}


def commands(*, folds_file: Path | None = None, edits: Path | None = None) -> Commands:
    return Commands(task="t.yaml", data=Path("d"), folder=Path("a"), folds_file=folds_file, edits=edits)


def folds_of(audit: Audit, fold: np.ndarray, **more: Any) -> Folds:
    number = len(audit.labels)
    return Folds(
        ids=audit.labels.ids,
        fold=fold,
        unseen=np.zeros(number, bool),
        scheme="made",
        seed=0,
        data_hash="",
        **more,
    )


def with_twins(audit: Audit) -> Audit:
    groups = (Group(kind="exact", number=0, rows=(0, 1)), Group(kind="near", number=1, rows=(2, 3, 41)))
    return dataclasses.replace(audit, duplicates=Duplicates(groups=groups, group_of=np.arange(45)))


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """Forty images of train and five of the test, of which nothing is found."""
    return made_audit(tmp_path, HEADS, num_train=40, num_test=5, findings=(), advice=())


def about(steps: tuple[Advice, ...], word: str) -> Advice:
    (step,) = [one for one in steps if word in one.text]
    return step


def test_groups_that_given_folds_keep_are_no_work(audit: Audit) -> None:
    audit = with_twins(audit)
    assert about(advise(audit, commands()), "Equal images").severity == "now"
    kept = dataclasses.replace(audit, folds=folds_of(audit, np.arange(40) // 2 % 2))
    step = about(advise(kept, commands(folds_file=Path("f.parquet"))), "Equal images")
    assert (step.severity, step.command) == ("fine", "")
    assert step.text.endswith("Kept by f.parquet: each group lies in one fold.")
    torn = dataclasses.replace(audit, folds=folds_of(audit, np.arange(40) % 2))
    step = about(advise(torn, commands(folds_file=Path("f.parquet"))), "Equal images")
    assert step.severity == "now" and "2 groups lie in several folds of f.parquet" in step.text
    assert step.command == "kaggle-kit folds t.yaml d --out folds.parquet --audit a"


@pytest.mark.parametrize(
    ("fold", "torn"), [([0, 0, 1, 1], 0), ([0, 1, 1, 1], 1), ([-1, 0, 0, 1], 2), ([-1, -1, 0, 0], 0)]
)
def test_a_group_is_torn_by_several_folds_or_by_one_that_always_trains(
    audit: Audit, fold: list[int], torn: int
) -> None:
    audit = with_twins(audit)
    folds = folds_of(audit, np.array([*fold, *np.arange(36) % 2]))
    assert torn_groups(audit.duplicates.groups, audit.images, folds) == torn


def test_commands_after_edits_give_them_on(audit: Audit) -> None:
    edit = make_edit("relabel", id="i3", head="kind", value="dog", by="me")
    labels = dataclasses.replace(audit.labels, edits=(edit,))
    audit = with_twins(dataclasses.replace(audit, labels=labels))
    steps = advise(audit, commands(edits=EDITS))
    assert shlex.split(about(steps, "Equal images").command)[6:8] == ["--edits", str(EDITS)]
    train = about(steps, "are applied here").command
    assert train == f"kaggle-kit train task=t.yaml data=d folds=folds.parquet 'edits={EDITS}' out=RUN"
    assert about(steps, "Wrong labels show").command == f"kaggle-kit audit t.yaml d --out a --edits '{EDITS}' --oof RUN"
    old, new = folds_of(audit, np.arange(40) // 2 % 2), folds_of(audit, np.arange(40) // 2 % 2, edits=(edit,))
    steps = advise(dataclasses.replace(audit, folds=old), commands(edits=EDITS, folds_file=Path("f.parquet")))
    assert "--edits" in about(steps, "make folds that know of it").command
    assert "folds=folds.parquet" in about(steps, "are applied here").command
    steps = advise(dataclasses.replace(audit, folds=new), commands(edits=EDITS, folds_file=Path("f.parquet")))
    assert not any("make folds" in step.text for step in steps)
    assert "folds=f.parquet" in about(steps, "are applied here").command


def leak(name: str, strength: float) -> Leak:
    return Leak(head="kind", name=name, strength=strength, text=f"The {name} of an image tells its kind: so and so")


@pytest.mark.parametrize(
    ("fit", "text"),
    [
        (None, "With fit: letterbox the bars show a network the aspect ratio"),
        ("letterbox", "With fit: letterbox the bars show a network the aspect ratio"),
        ("content", "With fit: content the padding shows a network the aspect ratio of what is cropped"),
        ("stretch", "A network sees images stretched to one size"),
    ],
)
def test_what_a_network_sees_of_sizes_depends_on_the_fit(audit: Audit, fit: Any, text: str) -> None:
    stored = None if fit is None else Stored(height=32, width=32, fit=fit)
    leaks = (leak("width", 0.83), leak("height", 0.7), leak("file size", 0.2), leak("row order", 0.15))
    steps = advise(
        dataclasses.replace(audit, task=dataclasses.replace(audit.task, stored=stored), leaks=leaks), commands()
    )
    step = about(steps, "width")
    assert step.text.startswith(
        "The width, height and file size of an image tell its kind: classes explain 83%, 70% and"
    )
    assert text in step.text and "row order" not in step.text
    alone = about(advise(dataclasses.replace(audit, leaks=(leak("file size", 0.2),)), commands()), "file size")
    assert "A network does not see it." in alone.text


def test_colour_that_tells_a_class_is_told_once(audit: Audit) -> None:
    audit = dataclasses.replace(audit, leaks=(leak("colour", 0.8),))
    assert "A network sees it" in about(advise(audit, commands()), "colour").text
    trait = Trait(kind="gray", head="kind", value="dog", name="dog", images=9, of_class=9, found=12, test_share=0.1)
    gray = tuple(Finding(kind="gray", id=f"i{row}", split="train", score=-0.5 if row < 9 else 1) for row in range(12))
    steps = advise(dataclasses.replace(audit, traits=(trait,), findings=gray), commands())
    assert not any("colour" in step.text for step in steps)
    assert about(steps, "keep them").text == trait.text
    assert about(steps, "Unlike the rest").text.startswith("Unlike the rest: 3 gray images.")


def test_a_model_that_errs_much_is_said_to_first_and_presses_nothing(tmp_path: Path) -> None:
    audit = made_audit(tmp_path, {"kind": {"classes": 5}}, num_train=400, findings=(), advice=())
    strong, weak = with_model(audit, right=0.95), with_model(audit, right=0.5)
    assert strong.after is not None and weak.after is not None
    step = about(advise(strong, commands()), "wrong to the model")
    assert step.severity == "now" and step.text.startswith(f"{strong.after.num_issues} labels of kind look wrong")
    step = about(advise(weak, commands()), "wrong to it")
    assert step.severity == "soon"
    assert step.text == (
        f"This model {weak.after.heads[0].weakness}: train a better one, or look at the first 30 only. "
        f"{weak.after.num_issues} labels of kind look wrong to it."
    )


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ({"size": 3}, "3 images of an unusual size or shape."),
        ({"mode": 1}, "1 image of an unusual mode."),
        ({"mode": 1, "size": 3}, "1 image of an unusual mode, 3 of an unusual size or shape."),
        ({"dark": 1}, "Unlike the rest: 1 dark image. Look at it, and drop it if it misleads."),
        ({"dark": 1, "gray": 2}, "Unlike the rest: 2 gray and 1 dark images. Look at them, and drop what misleads."),
        ({"broken": 1}, "1 image cannot be read ('0'): replace the file, or drop the image."),
        ({"missing_label": 1}, "1 image is there that no list names ('0'); nothing is done with it."),
    ],
)
def test_nothing_of_which_there_is_none_is_counted(audit: Audit, kinds: dict[Any, int], text: str) -> None:
    found = tuple(
        Finding(kind=kind, id=str(row), split="train", score=1)
        for kind, number in kinds.items()
        for row in range(number)
    )
    assert text in [step.text for step in advise(dataclasses.replace(audit, findings=found), commands())]


def test_numbers_go_with_what_is_counted() -> None:
    assert [many(number, "class", "classes") for number in (0, 1, 2000)] == ["0 classes", "1 class", "2,000 classes"]
    assert many(2, "image") == "2 images"


def test_commands_can_be_copied_even_with_blanks_in_names() -> None:
    named = Commands(task="my task.yaml", data=Path("a b"), folder=Path("c d"))
    assert named.review() == "kaggle-kit review 'c d'"
    assert named.folds() == "kaggle-kit folds 'my task.yaml' 'a b' --out folds.parquet --audit 'c d'"
