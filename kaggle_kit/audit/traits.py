"""What is odd about images and belongs to their class: all cars were photographed without colour.

Whoever drops such images as defects drops the class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.findings import Finding, Kind
from kaggle_kit.audit.pictures import Bools, Images
from kaggle_kit.labels import Labels
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task

ODD: dict[Kind, str] = {
    "gray": "gray",
    "mode": "of an unusual mode",
    "size": "of an unusual size or shape",
    "empty": "nearly empty",
    "dark": "dark",
    "bright": "too bright",
    "blurred": "blurred",
}
MOSTLY = 0.5  # of a class's images: what more of them have is a trait of the class
FEWEST = 5  # images of a class, below which it has no traits


@dataclass(frozen=True, kw_only=True)
class Trait:
    """A way to be odd that most images of a class share.

    Attributes:
        kind: The findings it explains.
        head: Whose class it is.
        value: The class as files write it.
        name: The class's name.
        images: Those of the class that are so.
        of_class: All images of the class.
        found: Labelled images of any class that are so.
        test_share: The share of the test's images that are so; None where there is no test.
    """

    kind: Kind
    head: str
    value: str
    name: str
    images: int
    of_class: int
    found: int
    test_share: float | None

    @property
    def text(self) -> str:
        """Two sentences: what it is, and what the test has of it."""
        word = ODD[self.kind]
        own = "all its images" if self.images == self.of_class else f"{self.images / self.of_class:.0%} of its images"
        text = (
            f"{self.images:,} of the {self.found:,} labelled images that are {word} are {self.name!r}, which is {word} "
            f"in {own}: a trait of the class, not a defect: keep them."
        )
        if self.test_share is None:
            return text
        if not self.test_share:
            return f"{text} No image of the test is {word}: a network may rely on what is not there."
        return f"{text} {self.test_share:.0%} of the test's images are {word} too."


def find_traits(findings: Iterable[Finding], images: Images, labels: Labels, task: Task) -> tuple[Trait, ...]:
    """Return what most images of a class are, of all that is odd about images; what most images share first.

    Args:
        findings: Of the images' quality, among others.
        images: All images.
        labels: Of the train images that have some.
        task: The competition.
    """
    rows = rows_of(images.id[images.rows("train")], labels.ids)
    there = np.zeros(len(labels), bool)
    there[rows[rows >= 0]] = True
    num_test = int((images.readable & (images.split == "test")).sum())
    odd = {kind: [one for one in findings if one.kind == kind] for kind in ODD}
    found = []
    for kind, some in odd.items():
        is_odd = np.isin(labels.ids, np.array([one.id for one in some if one.split == "train"], np.str_)) & there
        share = sum(one.split == "test" for one in some) / num_test if num_test else None
        if is_odd.any():
            found += [
                trait for head in task.heads for trait in _traits_of(kind, head, labels, task, there, is_odd, share)
            ]
    return tuple(sorted(found, key=lambda one: -one.images))


def _traits_of(
    kind: Kind, name: str, labels: Labels, task: Task, there: Bools, is_odd: Bools, test_share: float | None
) -> Iterator[Trait]:
    head, classes = task.heads[name], labels.classes[name]
    flags = classes > 0 if classes.ndim == 2 else classes[:, None] == np.arange(head.num_classes)
    of_class, images = (np.asarray(flags[which].sum(axis=0)) for which in (there, is_odd))
    for place in np.flatnonzero((images >= FEWEST) & (images > MOSTLY * of_class)).tolist():
        yield Trait(
            kind=kind,
            head=name,
            value=head.class_values[place],
            name=head.class_names[place],
            images=int(images[place]),
            of_class=int(of_class[place]),
            found=int(is_odd.sum()),
            test_share=test_share,
        )


def mark_traits(findings: Iterable[Finding], traits: Sequence[Trait], labels: Labels, task: Task) -> Iterator[Finding]:
    """Yield findings, those that a trait explains with a score below 0, which puts them last, and a word on it."""
    members = [_members(trait, labels, task) for trait in traits]
    for finding in findings:
        why = [
            trait
            for trait, ids in zip(traits, members, strict=True)
            if finding.split == "train" and finding.kind == trait.kind and finding.id in ids
        ]
        if not why:
            yield finding
            continue
        detail = f"{finding.detail}; a trait of {why[0].name}, as {why[0].images:,} of its {why[0].of_class:,} images"
        yield dataclasses.replace(finding, score=-1 / (1 + max(finding.score, 0.0)), detail=detail)


def is_trait(finding: Finding) -> bool:
    """Return whether a class's trait explains a finding."""
    return finding.kind in ODD and finding.score < 0


def _members(trait: Trait, labels: Labels, task: Task) -> frozenset[str]:
    place = task.heads[trait.head].class_values.index(trait.value)
    classes: npt.NDArray[np.integer] = labels.classes[trait.head]
    which = classes[:, place] > 0 if classes.ndim == 2 else classes == place
    return frozenset(labels.ids[which].tolist())
