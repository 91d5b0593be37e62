"""How like the answers of an adopted model are to the predictions that came with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.joining import check_heads
from kaggle_kit.errors import BundleError, ExportError, PredictionError, brief, some_of
from kaggle_kit.export.onnx import MAX_ABS_DIFF, is_near_half, is_tie, run_onnx
from kaggle_kit.export.reading import Reading
from kaggle_kit.labels import Classes
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import EVERYTHING
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.task import Task

ROWS = 2_000
SAME = 1e-3  # half precision aside, a model's probabilities come out alike to this, whatever runs it
CHANGED_SHARE = 0.02
MEAN_DIFF = 0.05  # a softmax of probabilities changes no decision, but this
_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class HeadLikeness:
    """How a model's answers of one head compare with the out-of-fold predictions.

    Attributes:
        decisions_changed: How many images' decisions differ, near ties aside.
        max_abs_diff: Largest difference of a probability.
        mean_abs_diff: Mean over images of the largest difference of a probability.
        right: Share of the decisions that are right; of a multi-label head, the mean over images of how many of the
            classes that are true or said are both.
        right_before: The same, of the predictions that came with it.
    """

    decisions_changed: float
    max_abs_diff: float
    mean_abs_diff: float
    right: float
    right_before: float


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How an adopted model's answers compare with the out-of-fold predictions that came with it.

    Attributes:
        model: The file it comes from, with the start of its SHA-256; or its class.
        rows: Images compared: of its own fold, or where it was trained on everything, images that it was trained on.
        heads: {head: the comparison}.
    """

    model: str
    rows: int
    heads: dict[str, HeadLikeness]

    @property
    def repeats(self) -> bool:
        """Whether the model says what the predictions say: so small a difference changes no decision but near ties."""
        return all(one.max_abs_diff <= SAME for one in self.heads.values())

    def __str__(self) -> str:
        return f"{self.differences(tuple(self.heads))}, on {self.rows:,} images"

    def differences(self, heads: Sequence[str]) -> str:
        """Return how much the answers of some heads differ, in words."""
        ones = [self.heads[head] for head in heads]
        changed, decisions = sum(one.decisions_changed for one in ones), self.rows * len(ones)
        mean, most = np.mean([one.mean_abs_diff for one in ones]), max(one.max_abs_diff for one in ones)
        return (
            f"{changed:,.0f} of {decisions:,} decisions differ ({changed / decisions:.2%}), probabilities by "
            f"{mean:.1e} of an image on average and by {most:.1e} at most"
        )


def ask_member(path: Path, source: PackedSource, ids: Text, task: Task, *, model: str) -> Predictions:
    """Return what a written member says of stored images, by ONNX Runtime on the CPU.

    Args:
        path: The member's .onnx file.
        source: Holds the images.
        ids: Which ones; at least one.
        task: Its heads.
        model: Where it comes from, for messages.

    Raises:
        ExportError: When it does not run, takes one size of batch alone, mixes the images of a batch, or gives no
            probabilities.
    """
    rows = rows_of(ids, source.ids)
    try:
        session = OnnxSession(path, device="cpu")
    except BundleError as error:
        raise ExportError(f"{model} cannot be run: {error}") from None
    _check_batch(session, source.take(rows[:_BATCH]), model)
    probs = run_onnx(path, source, rows)
    try:
        said = Predictions(ids=ids, probs=probs, multilabel=task.multilabel_heads)
        check_heads(task, model, said)
    except PredictionError as error:
        raise ExportError(f"{model} gives no probabilities: {error}; or give another `activation`") from None
    return said


def measure_likeness(task: Task, truth: Classes, said: Predictions, before: Predictions, *, model: str) -> Likeness:
    """Compare what a model says with the predictions that came with it.

    Args:
        task: Gives the heads.
        truth: {head: (N,) class indices, or (N, C) of 0 and 1}.
        said: The model's own, of the same images in the same order.
        before: Those that came with it.
        model: Where it comes from.
    """
    first, second = before.decide(), said.decide()
    heads = {}
    for head in task.heads:
        near = is_near_half if first[head].ndim == 2 else is_tie
        differs = (first[head] != second[head]) & ~near(before.probs[head])
        diff = np.abs(said.probs[head] - before.probs[head]).max(axis=1)
        heads[head] = HeadLikeness(
            # of an image's multi-label head, each class is a part of one decision
            decisions_changed=float(differs.reshape(len(said), -1).mean(axis=1).sum()),
            max_abs_diff=float(diff.max()),
            mean_abs_diff=float(diff.mean()),
            right=_share_right(truth[head], second[head]),
            right_before=_share_right(truth[head], first[head]),
        )
    return Likeness(model=model, rows=len(said), heads=heads)


def check_likeness(likeness: Likeness, fold: int, reading: Reading) -> None:
    """Refuse a model of which a head is not the one that the predictions came from.

    Args:
        likeness: As measured.
        fold: The model's; -1 where it was trained on everything: what it was trained on it must know as well as the
            models that predicted it without, which it does not repeat.
        reading: How it reads images here.

    Raises:
        ExportError: With the heads, and the numbers of the first.
    """
    failing = [head for head, one in likeness.heads.items() if not _passes(one, fold, likeness.rows)]
    if not failing:
        return
    one = likeness.heads[failing[0]]
    if fold == EVERYTHING:
        why = (
            f"{one.right:.2%} of its decisions are right on {likeness.rows:,} images that it was trained on, and "
            f"{one.right_before:.2%} of those out of fold"
        )
    else:
        why = (
            f"{likeness.differences(failing[:1])}, on {likeness.rows:,} images (allowed are {CHANGED_SHARE:.0%} of the "
            f"decisions, and {MEAN_DIFF} of an image on average)"
        )
    what = "everything" if fold == EVERYTHING else f"fold {fold}"
    raise ExportError(
        f"{what}: {likeness.model} does not repeat the out-of-fold predictions of {len(failing)} of "
        f"{len(likeness.heads)} head(s): {some_of(failing)}; of head {failing[0]!r} {why}; most likely it was shown "
        f"other pixels then than here ({reading}), or its classes are in another order: give the mean, std, size, "
        "layout and order it was trained with, its activation and order of classes, and each fold's own model"
    )


def _passes(one: HeadLikeness, fold: int, rows: int) -> bool:
    if fold == EVERYTHING:
        return one.right >= one.right_before - CHANGED_SHARE
    return one.decisions_changed <= CHANGED_SHARE * rows and one.mean_abs_diff <= MEAN_DIFF


def _share_right(truth: npt.NDArray[np.integer[Any]], decided: npt.NDArray[np.integer[Any]]) -> float:
    """Return how much of what is decided is right; of many classes that are mostly absent, absent ones say nothing."""
    if truth.ndim == 1:
        return float(np.mean(truth == decided))
    both, either = ((truth == 1) & (decided == 1)).sum(axis=1), ((truth == 1) | (decided == 1)).sum(axis=1)
    return float(np.mean(np.where(either > 0, both / np.maximum(either, 1), 1.0)))


def _check_batch(session: OnnxSession, images: Image, model: str) -> None:
    """Refuse a model whose answer to an image depends on the others, or that takes one size of batch alone."""
    alone = [_said(session, images[place : place + 1], model) for place in range(len(images))]
    together = _said(session, images, f"{model} takes one image at a time, and")
    for head, probs in together.items():
        one_by_one = np.concatenate([one[head] for one in alone])
        diff = float(np.abs(probs - one_by_one).max()) if probs.shape == one_by_one.shape else np.inf
        if not diff <= MAX_ABS_DIFF:
            raise ExportError(
                f"{model} says something else of {len(images)} images together than of each alone (head {head!r}: "
                f"probabilities differ by {diff:.1e}); export it for inference rather than training, with a batch of "
                "any size"
            )


def _said(session: OnnxSession, images: Image, model: str) -> Probs:
    try:
        return session.run(images)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
        raise ExportError(
            f"{model} does not run on {len(images)} image(s): {brief(error)}; export it again, with a batch of any size"
        ) from None
