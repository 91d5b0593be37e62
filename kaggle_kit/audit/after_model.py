"""What a model stumbles over, from out-of-fold predictions: what it confuses, what it loses most on, wrong labels.

Only out-of-fold predictions will do: a network repeats the wrong labels it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.duplicates import label_of
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.label_issues import find_issues, is_pruned
from kaggle_kit.audit.run_predictions import RunPredictions, gather_predictions
from kaggle_kit.errors import some_of
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.metrics import confusion_matrix, row_losses
from kaggle_kit.predictions import Probs
from kaggle_kit.runs import Run
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task

Ints = npt.NDArray[np.int64]

PAIRS = 15  # most confused ones kept a head
LOSSES = 200  # images of the highest losses kept
COMBINATIONS = 100  # never got right, kept
FEWEST = 3  # images of a combination before "never right" says anything
FIRST = 30  # label issues worth a look where the model is weak
WEAK = 0.15  # share of a head's decisions; a model that errs on more is no judge of labels
UNSAID = 0.01  # share of the images that lie in classes which the model never says: of more, neither


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Two classes of which one is taken for the other.

    Attributes:
        label: The class that the files give, its name.
        predicted: The class that the model says, its name.
        images: How often.
        share: Of the images with that label.
        reverse: How often the other way round.
    """

    label: str
    predicted: str
    images: int
    share: float
    reverse: int


@dataclass(frozen=True, kw_only=True)
class HeadLook:
    """One head after the model.

    Attributes:
        head: Its name.
        class_names: C names.
        matrix: (C, C) images by label and by prediction; of a multi-label head (C, 2, 2), each class's own: absent and
            present by label, then by prediction at 0.5.
        pairs: The most confused ones, most first; none for a multi-label head.
        num_issues: Labels that confident learning finds wrong; None where it could not look, and `note` says why. Of
            a weak model most of them are the model's own errors.
        num_doubts: Findings beside these: the model says otherwise, and may err.
        note: One sentence; empty where all went well.
    """

    head: str
    class_names: tuple[str, ...]
    matrix: Ints
    pairs: tuple[ConfusedPair, ...]
    num_issues: int | None
    num_doubts: int = 0
    note: str = ""

    @property
    def errs(self) -> float:
        """The share of the head's decisions that differ from the labels, 0 to 1."""
        right = np.trace(self.matrix, axis1=-2, axis2=-1).sum()
        return float(1 - right / max(int(self.matrix.sum()), 1))

    @property
    def never_said(self) -> tuple[str, ...]:
        """Names of the classes that several images show and the model never says, most images first."""
        return tuple(self.class_names[place] for place in self._unsaid())

    @property
    def is_weak(self) -> bool:
        """Whether the model is no judge of this head's labels: it errs on many, or never says some classes."""
        return self.errs > WEAK or self._shown[self._unsaid()].sum() > UNSAID * self._shown.sum()

    @property
    def weakness(self) -> str:
        """What speaks against the model as a judge, such as "errs on 38% of kind itself"; empty: nothing."""
        if not self.is_weak:
            return ""
        unsaid = [f"never predicts {some_of(self.never_said)}"] * bool(self.never_said)
        return " and ".join([f"errs on {self.errs:.0%} of {self.head} itself", *unsaid])

    @property
    def _shown(self) -> Ints:
        return np.asarray(self.matrix[:, 1].sum(axis=1) if self.matrix.ndim == 3 else self.matrix.sum(axis=1))

    def _unsaid(self) -> list[int]:
        shown = self._shown
        said = self.matrix[:, :, 1].sum(axis=1) if self.matrix.ndim == 3 else self.matrix.sum(axis=0)
        order = np.argsort(-shown, kind="stable").tolist()
        return [place for place in order if shown[place] >= FEWEST and not said[place]]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Classes of several heads that come together, and that the model never gets right as a whole.

    Attributes:
        classes: {head: class name}.
        images: How many show it.
        most_said: {head: the class name that the model says most often of them}.
    """

    classes: dict[str, str]
    images: int
    most_said: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class AfterModel:
    """What out-of-fold predictions say.

    Attributes:
        runs: Names of the runs; of several the mean of their probabilities.
        ids: (n,) train images that were predicted and have labels.
        unpredicted: Labelled images that no run predicts.
        probs: {head: (n, C)}.
        truth: {head: (n,) class indices, or (n, C) of 0 and 1}.
        heads: Head by head.
        combinations: Never got right, most images first; none where there is one head.
        findings: Of kinds `label_issue` and `top_loss`, worst first within each; of label issues those that confident
            learning prunes come before the others, which `label_issues.is_pruned` tells.
    """

    runs: tuple[str, ...]
    ids: Text
    unpredicted: int
    probs: Probs
    truth: dict[str, npt.NDArray[Any]]
    heads: tuple[HeadLook, ...]
    combinations: tuple[Combination, ...]
    findings: tuple[Finding, ...]

    @property
    def num_issues(self) -> int:
        """Labels that confident learning finds wrong, of all heads."""
        return sum(head.num_issues or 0 for head in self.heads)


def weakness_text(heads: Sequence[HeadLook]) -> str:
    """Return what speaks against the model as a judge of these heads' labels, and what to do; empty: nothing."""
    weak = "; it ".join(head.weakness for head in heads if head.is_weak)
    return f"This model {weak}: train a better one, or look at the first {FIRST} only." if weak else ""


def look_after_model(task: Task, labels: Labels, runs: Sequence[Run]) -> AfterModel:
    """Look at what runs said out of fold of the labelled images.

    Args:
        task: The competition.
        labels: As they are now, edits applied.
        runs: Finished runs on these data; each image counts that all of them predicted.

    Raises:
        DataError: When no image has both labels and a prediction of every run, or a run lacks a head or has other
            classes.
    """
    return look_at_predictions(task, labels, gather_predictions(task, labels, runs))


def look_at_predictions(task: Task, labels: Labels, said: RunPredictions) -> AfterModel:
    """Look at out-of-fold predictions that were gathered.

    Args:
        task: The competition.
        labels: Those that the predictions were gathered for.
        said: The predictions.
    """
    taken, probs = labels.take(rows_of(said.ids, labels.ids)), said.probs
    looks, issues = [], list[Finding]()
    for head in task.heads.values():
        look, found = _look_at_head(head, taken, probs[head.name], task)
        looks.append(look)
        issues.extend(found)
    return AfterModel(
        runs=said.runs,
        ids=said.ids,
        unpredicted=said.unpredicted,
        probs=probs,
        truth={head: taken.classes[head] for head in task.heads},
        heads=tuple(looks),
        combinations=tuple(islice(_never_right(task, taken, probs), COMBINATIONS)),
        findings=(*sorted(issues, key=lambda one: -one.score), *_top_losses(task, taken, probs)),
    )


def _look_at_head(
    head: Head, labels: Labels, probs: npt.NDArray[np.float32], task: Task
) -> tuple[HeadLook, list[Finding]]:
    truth = labels.classes[head.name]
    if head.kind == "multilabel":
        said = (probs >= 0.5).astype(np.int64)
        matrix = np.stack([confusion_matrix(truth[:, c], said[:, c], 2) for c in range(head.num_classes)])
        pairs: tuple[ConfusedPair, ...] = ()
    else:
        matrix = confusion_matrix(truth, probs.argmax(axis=1), head.num_classes)
        pairs = tuple(_confused(head, matrix))
    issues, note = find_issues(head, labels, probs, task)
    pruned = sum(map(is_pruned, issues or []))
    return HeadLook(
        head=head.name,
        class_names=tuple(map(str, head.class_names)),
        matrix=np.asarray(matrix, np.int64),
        pairs=pairs,
        num_issues=None if issues is None else pruned,
        num_doubts=len(issues or []) - pruned,
        note=note,
    ), issues or []


def _confused(head: Head, matrix: Ints) -> Iterator[ConfusedPair]:
    wrong = matrix - np.diag(np.diagonal(matrix))
    for place in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS].tolist():
        label, said = divmod(place, head.num_classes)
        if wrong[label, said]:
            yield ConfusedPair(
                label=str(head.class_names[label]),
                predicted=str(head.class_names[said]),
                images=int(wrong[label, said]),
                share=float(wrong[label, said] / matrix[label].sum()),
                reverse=int(wrong[said, label]),
            )


def _top_losses(task: Task, labels: Labels, probs: Probs) -> Iterator[Finding]:
    """Yield the images of the highest loss, each once, of the head that it loses most on."""
    losses = np.stack([row_losses(labels.classes[name], probs[name]) for name in task.heads])
    worst = losses.argmax(axis=0)
    for row in np.argsort(-losses.max(axis=0), kind="stable")[:LOSSES].tolist():
        head = list(task.heads.values())[int(worst[row])]
        truth, own = labels.classes[head.name][row], probs[head.name][row]
        if head.kind == "multilabel":
            right = bool(((own >= 0.5) == (truth > 0)).all())
            suggested = head.separator.join(head.class_values[one] for one in np.flatnonzero(own >= 0.5))
            sure = ""
        else:
            said = int(own.argmax())
            right, suggested = said == int(truth), head.class_values[said]
            sure = f", {float(own[said]):.0%} {head.class_names[said]}, {float(own[truth]):.0%} as labelled"
        if not right:
            yield Finding(
                kind="top_loss",
                id=str(labels.ids[row]),
                split="train",
                head=head.name,
                label=label_of(labels, task, head.name, row),
                suggested=suggested,
                score=float(losses[worst[row], row]),
                detail=f"loss {float(losses[worst[row], row]):.2f}{sure}",
            )


def _never_right(task: Task, labels: Labels, probs: Probs) -> Iterator[Combination]:
    """Yield combinations of which the model got no image right in all heads, most images first."""
    heads = [head for head in task.heads.values() if head.kind != "multilabel"]
    if len(heads) < 2:
        return
    truth = np.stack([labels.classes[head.name] for head in heads], axis=1)
    said = np.stack([probs[head.name].argmax(axis=1) for head in heads], axis=1)
    right = (truth == said).all(axis=1)
    shown, place, counts = np.unique(truth, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    hits = np.bincount(place, weights=right, minlength=len(shown))
    for number in np.argsort(-counts, kind="stable").tolist():
        if hits[number] or counts[number] < FEWEST:
            continue
        mine = said[place == number]
        most = [int(np.bincount(mine[:, at]).argmax()) for at in range(len(heads))]
        yield Combination(
            classes={
                head.name: str(head.class_names[c]) for head, c in zip(heads, shown[number].tolist(), strict=True)
            },
            images=int(counts[number]),
            most_said={head.name: str(head.class_names[c]) for head, c in zip(heads, most, strict=True)},
        )
