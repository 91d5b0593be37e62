"""Labels that look wrong to a model, by confident learning.

Source: Northcutt et al. (2021), https://jair.org/index.php/jair/article/view/12125, as the package cleanlab does it. A
small model is hardly sure of anything, so that confident learning misses some: as many again follow what it prunes, of
images that the model merely takes for something else, and are marked as that.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.duplicates import label_of
from kaggle_kit.audit.findings import Finding
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.task import Task

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Probs = npt.NDArray[np.float32]

BESIDE = 2  # findings at most, in multiples of what confident learning prunes
FEWEST_ISSUES = 20  # images of a head below which confident learning has no base
PRUNED = 0.5  # scores from here on are of labels that confident learning prunes; those below are of others
NAMED = 3  # classes of a multi-label head that a finding names
NOT_SURE = "not sure: the model says otherwise"


def is_pruned(finding: Finding) -> bool:
    """Return whether confident learning finds this label issue wrong; else the model merely says otherwise."""
    return finding.score >= PRUNED


def find_issues(head: Head, labels: Labels, probs: Probs, task: Task) -> tuple[list[Finding] | None, str]:
    """Find labels of a head that look wrong.

    Args:
        head: One of the task's.
        labels: Of n images.
        probs: (n, C) out-of-fold ones: a network repeats the wrong labels it was trained on.
        task: The competition.

    Returns:
        What confident learning prunes, worst first, then others of which the model says otherwise; None where it could
        not look. And a sentence on what it could not look at; empty where all went well.
    """
    truth = labels.classes[head.name]
    if len(truth) < FEWEST_ISSUES:
        return None, f"{len(truth):,} images are too few to tell wrong labels by"
    try:
        if head.kind == "multilabel":
            return _set_issues(head, labels, probs, task)
        return _class_issues(head, labels, probs, task), ""
    except ModuleNotFoundError:
        return None, "wrong labels were not looked for: cleanlab is not installed; pip install 'kaggle_kit[audit]'"


def _class_issues(head: Head, labels: Labels, probs: Probs, task: Task) -> list[Finding]:
    truth = labels.classes[head.name]
    pruned, quality = _prune(truth, probs)
    rows = np.flatnonzero(probs.argmax(axis=1) != truth)
    worst = rows[np.lexsort((quality[rows], ~pruned[rows]))][: BESIDE * int(pruned.sum())]
    found = []
    for row in worst.tolist():
        said = int(probs[row].argmax())
        sure, labelled = float(probs[row, said]), float(probs[row, truth[row]])
        detail = f"{sure:.0%} {head.class_names[said]}, {labelled:.0%} as labelled"
        found.append(
            Finding(
                kind="label_issue",
                id=str(labels.ids[row]),
                split="train",
                head=head.name,
                label=label_of(labels, task, head.name, row),
                suggested=head.class_values[said],
                score=_score(float(quality[row]), pruned=bool(pruned[row])),
                detail=detail if pruned[row] else f"{NOT_SURE}; {detail}",
            )
        )
    return found


def _score(quality: float, *, pruned: bool) -> float:
    """Return a finding's score of a label's quality, 0 to 1: what is pruned stands above all else."""
    bad = 1 - quality
    return PRUNED + (1 - PRUNED) * bad if pruned else min(PRUNED * bad, PRUNED - 1e-6)


def _prune(truth: Ints, probs: Probs) -> tuple[Bools, Floats]:
    """Return (n,) whether confident learning prunes each label, and (n,) each label's quality, 0 to 1."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    shown = np.unique(truth)  # cleanlab wants every class to be there
    if len(shown) < 2:
        return np.zeros(len(truth), bool), np.ones(len(truth))
    own = np.asarray(probs[:, shown], np.float64) + 1e-12
    own /= own.sum(axis=1, keepdims=True)
    dense = np.searchsorted(shown, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes with few images; the report counts them
        pruned = find_label_issues(dense, own, filter_by="both", n_jobs=1)
        quality = get_label_quality_scores(dense, own, method="normalized_margin")
    return np.asarray(pruned, bool), np.asarray(quality, np.float64)


def _set_issues(head: Head, labels: Labels, probs: Probs, task: Task) -> tuple[list[Finding], str]:
    """Return issues of a multi-label head, each class looked at by itself: those that some images have and some not."""
    truth = labels.classes[head.name]
    told = np.flatnonzero((truth > 0).any(axis=0) & (truth == 0).any(axis=0))
    note = ""
    if len(told) < head.num_classes:
        one_sided = head.num_classes - len(told)
        note = f"{one_sided:,} of {head.num_classes:,} classes were not looked at: all images have them, or none has"
    if not len(told):
        return [], note
    rows, quality = _prune_sets(truth[:, told], probs[:, told])
    found = []
    for row in rows.tolist():
        doubted = told[(probs[row, told] >= 0.5) != (truth[row, told] > 0)]
        if len(doubted):
            chosen = np.where(np.isin(np.arange(head.num_classes), told), probs[row] >= 0.5, truth[row] > 0)
            found.append(
                Finding(
                    kind="label_issue",
                    id=str(labels.ids[row]),
                    split="train",
                    head=head.name,
                    label=label_of(labels, task, head.name, row),
                    suggested=head.separator.join(head.class_values[place] for place in np.flatnonzero(chosen)),
                    score=_score(float(quality[row]), pruned=True),
                    detail=_doubts(head, doubted, truth[row], probs[row]),
                )
            )
    return found, note


def _doubts(head: Head, doubted: Ints, truth: npt.NDArray[Any], probs: Probs) -> str:
    """Return what the model says of the classes that it doubts most, such as "red 92%, labelled without"."""
    order = doubted[np.argsort(-np.abs(probs[doubted] - truth[doubted]), kind="stable")]
    parts = [
        f"{head.class_names[place]} {probs[place]:.0%}, labelled {'with' if truth[place] else 'without'}"
        for place in order[:NAMED].tolist()
    ]
    return "; ".join(parts) + (f"; and {len(order) - NAMED:,} more" if len(order) > NAMED else "")


def _prune_sets(truth: npt.NDArray[Any], probs: Probs) -> tuple[Ints, Floats]:
    """Return rows of which confident learning prunes a class, worst first, and (n,) each label's quality, 0 to 1."""
    from cleanlab.multilabel_classification.filter import find_label_issues
    from cleanlab.multilabel_classification.rank import get_label_quality_scores

    if truth.shape[1] == 1:  # cleanlab takes no single column: it asks for the class and its absence
        pruned, quality = _prune(truth[:, 0].astype(np.int64), np.column_stack([1 - probs[:, 0], probs[:, 0]]))
        rows = np.flatnonzero(pruned)
        return rows[np.argsort(quality[rows], kind="stable")], quality
    lists = [np.flatnonzero(row).tolist() for row in truth]
    own = np.asarray(probs, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = find_label_issues(lists, own, return_indices_ranked_by="self_confidence", n_jobs=1)
        quality = get_label_quality_scores(lists, own)
    return np.asarray(rows, np.int64), np.asarray(quality, np.float64)
