"""The report's section on what a model stumbles over, as plain values for its template."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.after_model import AfterModel, Combination, ConfusedPair, HeadLook, weakness_text
from kaggle_kit.audit.captions import Captions, cut, written_name
from kaggle_kit.audit.findings import Finding, Kind
from kaggle_kit.audit.label_issues import is_pruned
from kaggle_kit.audit.plots import heat_picture, matrix_rows
from kaggle_kit.train.outcome import NONE, Fields
from kaggle_kit.train.plots import MOST_NAMED, row_shares

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

Ints = npt.NDArray[np.int64]

NUM_ISSUES, NUM_LOSSES = 96, 36  # of all heads together
NUM_PAIRS, NUM_EXAMPLES, NUM_WORST, NUM_COMBINATIONS = 10, 5, 15, 30
OFTEN = 2  # images of a pair of classes that are confused: one alone says nothing of the pair


def model_fields(audit: Audit, by_kind: dict[Kind, list[Finding]], captions: Captions) -> Fields:
    """Return what out-of-fold predictions say; nothing where there was no model.

    Args:
        audit: With `after`.
        by_kind: Its findings.
        captions: Asked for pictures, the label issues' first.
    """
    after = audit.after
    if after is None:
        return {}
    issues = [_issue_fields(audit, head, by_kind.get("label_issue", []), captions) for head in after.heads]
    losses = by_kind.get("top_loss", [])
    shown = [item for one in losses[:NUM_LOSSES] if (item := _said_fields(audit, one, captions))]
    heads = [_head_fields(audit, after, head, captions) for head in after.heads]
    number = "run" if len(after.runs) == 1 else f"{len(after.runs)} runs, by their mean,"
    lacking = f" {after.unpredicted:,} labelled images have no prediction." if after.unpredicted else ""
    return {
        "text": f"Out-of-fold predictions of {number} {', '.join(after.runs)} for {len(after.ids):,} images.{lacking}",
        "issues": issues,
        "losses": shown,
        "more_losses": len(losses) - len(shown),
        "heads": heads,
        "combinations": [_combination_fields(one) for one in after.combinations[:NUM_COMBINATIONS]],
        "more_combinations": max(0, len(after.combinations) - NUM_COMBINATIONS),
        "several": len(after.heads) > 1,
    }


def _issue_fields(audit: Audit, head: HeadLook, issues: list[Finding], captions: Captions) -> Fields:
    own = [one for one in issues if one.head == head.head]
    most = max(6, NUM_ISSUES // max(len(audit.task.heads), 1))
    wrong = [one for one in own if is_pruned(one)]
    doubted = [one for one in own if not is_pruned(one)]
    shown, unsure = (
        [item | {"head": ""} for one in some if (item := _said_fields(audit, one, captions))]  # its head stands above
        for some in (wrong[:most], doubted[: most // 4])
    )
    return {
        "title": head.head,
        "number": NONE if head.num_issues is None else f"{head.num_issues:,}",
        "verb": "label looks" if head.num_issues == 1 else "labels look",
        "weakness": weakness_text([head]),
        "note": head.note,
        "items": shown,
        "more": len(wrong) - len(shown),
        "unsure": unsure,
        "num_unsure": f"{len(doubted):,}",
        "more_unsure": len(doubted) - len(unsure),
    }


def _said_fields(audit: Audit, finding: Finding, captions: Captions) -> Fields | None:
    """Return the caption of an image with its label and what the model says instead."""
    item = captions.of_finding(finding)
    if item is None:
        return None
    head = audit.task.heads.get(finding.head)
    if head is None:
        return item
    label, said = (cut(written_name(head, text)) for text in (finding.label, finding.suggested))
    return item | {"head": finding.head if len(audit.task.heads) > 1 else "", "label": label, "said": said}


def _head_fields(audit: Audit, after: AfterModel, look: HeadLook, captions: Captions) -> Fields:
    matrix, names = look.matrix, [cut(name) for name in look.class_names]
    head: Fields = {
        "title": look.head,
        "names": names,
        "turned": max(map(len, names)) > 3,
        "lines": [],
        "heat": "",
        "worst": [],
        "sets": [],
        "pairs": [],
    }
    if matrix.ndim == 3:
        return head | {"facts": _set_facts(matrix), "sets": _set_rows(matrix, names)}
    right = f"{np.trace(matrix) / max(int(matrix.sum()), 1):.1%} of the images right"
    head |= {"facts": f"{len(names):,} classes, {right}."}
    if len(names) <= MOST_NAMED:
        head["lines"] = matrix_rows(matrix, names, names, confusion=True)
    else:
        head |= {"heat": heat_picture(matrix, confusion=True), "worst": _worst_rows(matrix, names)}
    pairs = [one for one in look.pairs if one.images >= OFTEN][:NUM_PAIRS]
    return head | {"pairs": [_pair_fields(audit, after, look, one, captions) for one in pairs]}


def _worst_rows(matrix: Ints, names: list[str]) -> list[Fields]:
    """Return the classes of which most images are taken for others."""
    wrong, total, shares = matrix - np.diag(np.diagonal(matrix)), matrix.sum(axis=1), row_shares(matrix)
    order = np.argsort(-wrong.sum(axis=1), kind="stable")[:NUM_WORST].tolist()
    return [
        {
            "name": names[row],
            "images": f"{int(total[row]):,}",
            "right": f"{shares[row, row]:.1%}",
            "share": f"{shares[row, row]:.3f}",
            "taken": ", ".join(
                f"{names[column]} ({int(wrong[row, column]):,})"
                for column in np.argsort(-wrong[row], kind="stable")[:3].tolist()
                if wrong[row, column]
            ),
        }
        for row in order
        if wrong[row].any()
    ]


def _set_facts(matrix: Ints) -> str:
    wrong = int(matrix[:, 0, 1].sum() + matrix[:, 1, 0].sum())
    return (
        f"{len(matrix):,} labels, decided at 0.5: {wrong / max(int(matrix.sum()), 1):.1%} of the decisions are wrong."
    )


def _set_rows(matrix: Ints, names: list[str]) -> list[Fields]:
    """Return the labels of a multi-label head, those most often wrong first."""
    wrong = matrix[:, 0, 1] + matrix[:, 1, 0]
    rows = []
    for place in np.argsort(-wrong, kind="stable").tolist():
        (_, added), (missed, hits) = matrix[place].tolist()
        rows.append(
            {
                "name": names[place],
                "images": f"{missed + hits:,}",
                "hits": f"{hits:,}",
                "missed": f"{missed:,}",
                "added": f"{added:,}",
                "share": f"{hits / max(missed + hits, 1):.3f}",
            }
        )
    return rows


def _pair_fields(audit: Audit, after: AfterModel, look: HeadLook, pair: ConfusedPair, captions: Captions) -> Fields:
    """Return a confused pair with the images that the model is most sure of."""
    label, said = look.class_names.index(pair.label), look.class_names.index(pair.predicted)
    probs = after.probs[look.head]
    found = np.flatnonzero((after.truth[look.head] == label) & (probs.argmax(axis=1) == said))
    found = found[np.argsort(-probs[found, said], kind="stable")][:NUM_EXAMPLES]
    rows = [(captions.row("train", str(after.ids[place])), float(probs[place, said])) for place in found.tolist()]
    return {
        "label": cut(pair.label),
        "said": cut(pair.predicted),
        "images": f"{pair.images:,}",
        "share": f"{pair.share:.1%}",
        "reverse": f"{pair.reverse:,}",
        "items": [captions.of(row, f"{sure:.0%}") for row, sure in rows if row is not None],
    }


def _combination_fields(one: Combination) -> Fields:
    parts = [
        {"head": cut(head), "label": cut(name), "said": cut(one.most_said[head]), "wrong": one.most_said[head] != name}
        for head, name in one.classes.items()
    ]
    return {"parts": parts, "images": f"{one.images:,}"}
