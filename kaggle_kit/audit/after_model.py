"""What a model stumbles over, from out-of-fold predictions: what it confuses, what it loses most on, wrong labels.

Label issues are found by confident learning (Northcutt et al. 2021, https://jair.org/index.php/jair/article/view/12125)
as the package cleanlab does it. Only out-of-fold predictions will do: a network repeats the wrong labels it was trained
on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.duplicates import label_of
from kaggle_kit.audit.findings import Finding
from kaggle_kit.ensemble import mean_probs
from kaggle_kit.errors import DataError, some_of
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.metrics import confusion_matrix, row_losses
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import Run
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PAIRS = 15  # most confused ones kept a head
LOSSES = 200  # images of the highest losses kept
COMBINATIONS = 100  # never got right, kept
FEWEST = 3  # images of a combination before "never right" says anything
BESIDE = 2  # issues at most, in multiples of those that confident learning prunes
FEWEST_ISSUES = 20  # images of a head below which confident learning has no base


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
        num_issues: Labels that confident learning finds wrong; None where it could not look, and `note` says why.
        note: One sentence; empty where all went well.
    """

    head: str
    class_names: tuple[str, ...]
    matrix: Ints
    pairs: tuple[ConfusedPair, ...]
    num_issues: int | None
    note: str = ""


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
        findings: Of kinds `label_issue` and `top_loss`, worst first within each.
    """

    runs: tuple[str, ...]
    ids: Text
    unpredicted: int
    probs: Probs
    truth: dict[str, npt.NDArray[Any]]
    heads: tuple[HeadLook, ...]
    combinations: tuple[Combination, ...]
    findings: tuple[Finding, ...]


def look_after_model(
    task: Task, labels: Labels, runs: Sequence[Run], *, say: Callable[[str], object] = lambda _: None
) -> AfterModel:
    """Look at what runs said out of fold of the labelled images.

    Args:
        task: The competition.
        labels: As they are now, edits applied.
        runs: Finished runs on these data; each image counts that all of them predicted.
        say: Told what was left out.

    Raises:
        DataError: When no image has both labels and a prediction of every run, or a run lacks a head.
    """
    given = [run.oof() for run in runs]
    for run, one in zip(runs, given, strict=True):
        lacking = [head for head in task.heads if head not in one.probs]
        if lacking:
            raise DataError(f"{run.folder} does not predict head(s) {some_of(lacking)}; give runs of this task")
    ids = _common(labels.ids, given)
    if not len(ids):
        raise DataError(
            f"no labelled image has a prediction of {some_of([str(run.folder) for run in runs])}; are these runs of "
            "other data?"
        )
    unpredicted = len(labels) - len(ids)
    if unpredicted:
        say(f"{unpredicted:,} of {len(labels):,} labelled images have no out-of-fold prediction of every run")
    aligned = [one.align(ids).probs for one in given]
    probs = mean_probs([{head: one[head] for head in task.heads} for one in aligned])
    taken = labels.take(rows_of(ids, labels.ids))
    looks, issues = [], list[Finding]()
    for head in task.heads.values():
        look, found = _look_at_head(head, taken, probs[head.name], task)
        looks.append(look)
        issues.extend(found)
    return AfterModel(
        runs=tuple(run.name for run in runs),
        ids=ids,
        unpredicted=unpredicted,
        probs=probs,
        truth={head: taken.classes[head] for head in task.heads},
        heads=tuple(looks),
        combinations=tuple(islice(_never_right(task, taken, probs), COMBINATIONS)),
        findings=(*sorted(issues, key=lambda one: -one.score), *_top_losses(task, taken, probs)),
    )


def _common(ids: Text, given: Sequence[Predictions]) -> Text:
    there = np.ones(len(ids), bool)
    for one in given:
        there &= np.isin(ids, one.ids)
    return ids[there]


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
    note = ""
    issues: list[Finding] | None = None
    if len(truth) < FEWEST_ISSUES:
        note = f"{len(truth):,} images are too few to tell wrong labels by"
    else:
        issues, note = _label_issues(head, labels, probs, task)
    return HeadLook(
        head=head.name,
        class_names=tuple(map(str, head.class_names)),
        matrix=np.asarray(matrix, np.int64),
        pairs=pairs,
        num_issues=None if issues is None else len(issues),
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


def _label_issues(
    head: Head, labels: Labels, probs: npt.NDArray[np.float32], task: Task
) -> tuple[list[Finding] | None, str]:
    """Return labels that confident learning finds wrong, worst first, and a note where it cannot look."""
    truth = labels.classes[head.name]
    try:
        rows, quality = _multilabel_issues(truth, probs) if head.kind == "multilabel" else _issues(truth, probs)
    except ModuleNotFoundError:
        return None, "wrong labels were not looked for: cleanlab is not installed; pip install 'kaggle_kit[audit]'"
    found = []
    for row in rows.tolist():
        if head.kind == "multilabel":
            chosen = np.flatnonzero(probs[row] >= 0.5)
            suggested = head.separator.join(head.class_values[one] for one in chosen)
            detail = f"of {head.name!r}, each class by itself"
        else:
            said = int(probs[row].argmax())
            suggested = head.class_values[said]
            sure, labelled = float(probs[row, said]), float(probs[row, truth[row]])
            detail = f"{sure:.0%} {head.class_names[said]}, {labelled:.0%} as labelled"
        found.append(
            Finding(
                kind="label_issue",
                id=str(labels.ids[row]),
                split="train",
                head=head.name,
                label=label_of(labels, task, head.name, row),
                suggested=suggested,
                score=float(1 - quality[row]),
                detail=detail,
            )
        )
    return [one for one in found if one.suggested != one.label], ""


def _issues(truth: Ints, probs: npt.NDArray[np.float32]) -> tuple[Ints, Floats]:
    """Return rows whose label is likely wrong, worst first, and (n,) the quality of each label, 0 to 1.

    What the model says otherwise with a probability that beats the label's own is an issue: the given label's
    probability ranks it. Confident learning's own pruning comes first; it misses some where a small model is hardly
    sure of anything, so that as many again follow.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    shown = np.unique(truth)  # cleanlab wants every class to be there
    dense, own = np.searchsorted(shown, truth), _of_classes(probs, shown)
    if len(shown) < 2:
        return np.zeros(0, np.int64), np.ones(len(truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes with few images; the report counts them
        pruned = find_label_issues(dense, own, filter_by="both", n_jobs=1)
        quality = np.asarray(get_label_quality_scores(dense, own, method="normalized_margin"), np.float64)
    otherwise = probs.argmax(axis=1) != truth
    rows = np.flatnonzero(otherwise)
    worst = rows[np.lexsort((quality[rows], ~pruned[rows]))][: BESIDE * int(pruned.sum())]
    return worst, _ranked(quality, rows, pruned)


def _ranked(quality: Floats, rows: Ints, pruned: npt.NDArray[np.bool_]) -> Floats:
    """Return qualities of which those that were pruned are below all others, in their own order."""
    ranked = quality.copy()
    ranked[rows] = np.where(pruned[rows], quality[rows] / 2, 0.5 + quality[rows] / 2)
    return ranked


def _of_classes(probs: npt.NDArray[np.float32], shown: Ints) -> Floats:
    """Return (n, shown) probabilities of the classes that there are, whose rows sum to 1."""
    own = np.asarray(probs[:, shown], np.float64) + 1e-12
    return np.asarray(own / own.sum(axis=1, keepdims=True), np.float64)


def _multilabel_issues(truth: npt.NDArray[Any], probs: npt.NDArray[np.float32]) -> tuple[Ints, Floats]:
    from cleanlab.multilabel_classification.filter import find_label_issues
    from cleanlab.multilabel_classification.rank import get_label_quality_scores

    lists = [np.flatnonzero(row).tolist() for row in truth]
    own = np.asarray(probs, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = find_label_issues(lists, own, return_indices_ranked_by="self_confidence", n_jobs=1)
        quality = get_label_quality_scores(lists, own)
    return np.asarray(rows, np.int64), np.asarray(quality, np.float64)


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
