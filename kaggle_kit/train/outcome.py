"""What a run says of the images it was validated on: by class, by pair of classes, by image, ready for a page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.labels import Classes
from kaggle_kit.metrics import average_precision, confusion_matrix, have_curves, row_losses
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runs import Run
from kaggle_kit.tables import Text
from kaggle_kit.task import Head, Task
from kaggle_kit.train.plots import MOST_NAMED, row_shares

NONE = "\N{EN DASH}"
_NUM_PAIRS = 15
_NUM_CLASSES = 20  # shown at once; the better ones are folded away

Ints = npt.NDArray[np.int64]
Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run says of the images it was validated on, beside the truth.

    Attributes:
        ids: (N,) image ids.
        truth: {head: (N,) class indices, or (N, C) of 0 and 1}.
        probs: {head: (N, C)}.
        unseen: (N,) True where no train image of the fold shows the combination of labels.
    """

    ids: Text
    truth: Classes
    probs: Probs
    unseen: npt.NDArray[np.bool_]


def head_section(head: Head, run: Run, outcome: Outcome) -> Fields:
    """Return a head's part of the page: its classes, worst first, and what it takes for what."""
    truth, probs = outcome.truth[head.name], outcome.probs[head.name]
    place = list(run.task.heads).index(head.name)
    section: Fields = {
        "id": f"head-{place}",
        "title": head.name,
        "names": list(head.class_names),
        "multilabel": head.kind == "multilabel",
        "turned": max(map(len, head.class_names)) > 3,
        "matrix": [],
        "heat": "",
        "pairs": [],
    }
    right = f"{run.task.metric} {run.score.heads[head.name]:.4f}"
    if head.kind == "multilabel":
        rows = _label_rows(head, truth, probs)
        each = truth.sum() / max(len(truth), 1)
        section["summary"] = f"{right}; {head.num_classes} labels, {each:.2f} an image; decided at 0.5."
    else:
        matrix = confusion_matrix(truth, probs.argmax(axis=1), head.num_classes)
        rows = _class_rows(head, matrix)
        accuracy = np.trace(matrix) / max(matrix.sum(), 1)
        section["summary"] = f"{right}; {head.num_classes} classes, {accuracy:.1%} of the images right."
        if head.num_classes <= MOST_NAMED:
            section["matrix"] = _matrix_rows(head, matrix)
        else:
            section["heat"] = _heat_map(matrix)
            section["pairs"] = _confused_pairs(head, matrix)
    return section | {"classes": rows[:_NUM_CLASSES], "more_classes": rows[_NUM_CLASSES:]}


def _class_rows(head: Head, matrix: Ints) -> list[Fields]:
    """Return a row a class by recall, lowest first; classes of which no image is scored come last."""
    hits, true, said = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    recall, precision = _ratio(hits, true), _ratio(hits, said)
    wrong = matrix - np.diag(hits)
    rows = []
    for label in np.lexsort((-true, recall, true == 0)):
        other = int(wrong[label].argmax())
        count = int(wrong[label, other])
        taken = f"{head.class_names[other]} ({count:,})" if count else NONE
        rows.append(_class_row(head, label, int(true[label]), recall[label], precision[label]) | {"third": taken})
    return rows


def _label_rows(head: Head, truth: Ints, probs: npt.NDArray[np.float32]) -> list[Fields]:
    """Return a row a label of a multi-label head by average precision, lowest first; those without one come last."""
    decided, true = probs >= 0.5, truth > 0
    hits = (decided & true).sum(axis=0)
    recall, precision = _ratio(hits, true.sum(axis=0)), _ratio(hits, decided.sum(axis=0))
    has_curve = have_curves(truth, head.num_classes)
    averages = np.array(
        [
            average_precision(truth[:, [label]], probs[:, [label]]) if has_curve[label] else np.nan
            for label in range(head.num_classes)
        ]
    )
    rows = []
    for label in np.lexsort((recall, np.nan_to_num(averages), np.isnan(averages))):
        row = _class_row(head, label, int(true[:, label].sum()), recall[label], precision[label])
        rows.append(row | {"third": _number(averages[label]), "third_share": _share(averages[label])})
    return rows


def _class_row(head: Head, label: int, images: int, recall: float, precision: float) -> Fields:
    return {
        "name": head.class_names[label],
        "images": f"{images:,}",
        "recall": _number(recall),
        "recall_share": _share(recall),
        "precision": _number(precision),
        "precision_share": _share(precision),
    }


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0))


def _number(value: float) -> str:
    return NONE if np.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return f"{np.nan_to_num(value):.3f}"


def _confused_pairs(head: Head, matrix: Ints) -> list[Fields]:
    """Return the pairs that most images are confused in, most first."""
    wrong = matrix - np.diag(np.diagonal(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_NUM_PAIRS]
    pairs = [divmod(int(place), head.num_classes) for place in order]
    shares = row_shares(matrix)
    return [
        {
            "true": head.class_names[true],
            "said": head.class_names[said],
            "images": f"{wrong[true, said]:,}",
            "share": f"{shares[true, said]:.1%}",
        }
        for true, said in pairs
        if wrong[true, said]
    ]


def _matrix_rows(head: Head, matrix: Ints) -> list[Fields]:
    shares, names = row_shares(matrix), head.class_names

    def cell(true: int, said: int) -> Fields:
        count, share = int(matrix[true, said]), shares[true, said]
        return {
            "kind": "hit" if true == said else "miss",
            "share": f"{share:.3f}",
            "count": f"{count:,}" if count else "",
            "title": f"{names[true]} as {names[said]}: {count:,} images, {share:.1%}",
        }

    size = range(head.num_classes)
    return [{"name": names[true], "cells": [cell(true, said) for said in size]} for true in size]


def _heat_map(matrix: Ints) -> str:
    """Return a confusion matrix as a picture, a pixel a cell, see-through where nothing is."""
    shares = np.sqrt(row_shares(matrix))
    blue_green_red = np.where(np.eye(len(matrix), dtype=bool)[..., None], (235, 99, 37), (46, 82, 229))
    return data_uri(np.dstack([blue_green_red, 255 * shares]).round().astype(np.uint8), ".png")


def image_losses(task: Task, outcome: Outcome) -> npt.NDArray[np.float64]:
    """Return (N,) cross entropy of each image: the mean over heads, weighted as the task's metric is."""
    total = sum(head.weight for head in task.heads.values())
    losses = [
        head.weight / total * row_losses(outcome.truth[name], outcome.probs[name]) for name, head in task.heads.items()
    ]
    return np.asarray(np.sum(losses, axis=0))


def answer_fields(head: Head, run: Run, outcome: Outcome, row: int) -> Fields:
    """Return what was said of one image, and what is true."""
    truth, probs = outcome.truth[head.name][row], outcome.probs[head.name][row]
    title = head.name if len(run.task.heads) > 1 else ""
    if head.kind == "multilabel":
        true = [name for name, mark in zip(head.class_names, truth, strict=True) if mark]
        said = [name for name, prob in zip(head.class_names, probs, strict=True) if prob >= 0.5]
        texts = {"true": ", ".join(true) or "no label", "predicted": ", ".join(said) or "no label"}
        return {"head": title, "wrong": true != said, "chance": "", "true_chance": "", **texts}
    said_class = int(probs.argmax())
    return {
        "head": title,
        "wrong": said_class != truth,
        "predicted": head.class_names[said_class],
        "chance": f"{probs[said_class]:.1%}",
        "true": head.class_names[int(truth)],
        "true_chance": f"{probs[int(truth)]:.1%}",
    }


def data_uri(image: Image, suffix: str) -> str:
    """Return an image, as OpenCV writes it, as an address that holds it; suffix `.png` or `.jpg`."""
    import cv2

    encoded = cv2.imencode(suffix, image)[1].tobytes()
    kind = {".png": "png", ".jpg": "jpeg"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
