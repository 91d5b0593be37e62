"""How like the answers of an adopted model are to the predictions that came with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.joining import check_heads
from kaggle_kit.decision import HALF
from kaggle_kit.errors import BundleError, ExportError, PredictionError
from kaggle_kit.export.onnx import MAX_ABS_DIFF, run_onnx
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
class Likeness:
    """How an adopted model's answers compare with the out-of-fold predictions that came with it.

    Attributes:
        model: The file it comes from, with the start of its SHA-256; or its class.
        rows: Images compared: of its own fold, or where it was trained on everything, images that it was trained on.
        decisions: Compared: a head's of an image.
        decisions_changed: How many of them differ, near ties aside.
        max_abs_diff: Largest difference of a probability.
        mean_abs_diff: Mean over images and heads of the largest difference of a probability.
        right: Share of the decisions that are right.
        right_before: The same, of the predictions that came with it.
    """

    model: str
    rows: int
    decisions: int
    decisions_changed: float
    max_abs_diff: float
    mean_abs_diff: float
    right: float
    right_before: float

    @property
    def repeats(self) -> bool:
        """Whether the model says what the predictions say."""
        return self.max_abs_diff <= SAME and not self.decisions_changed

    def __str__(self) -> str:
        share = self.decisions_changed / self.decisions
        return (
            f"{self.decisions_changed:,.0f} of {self.decisions:,} decisions differ ({share:.2%}), probabilities by "
            f"{self.mean_abs_diff:.1e} of an image on average and by {self.max_abs_diff:.1e} at most, on {self.rows:,} "
            "images"
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
    changed, diffs = 0.0, []
    first, second = before.decide(), said.decide()
    for head in task.heads:
        differs = (first[head] != second[head]) & ~_is_close(before.probs[head], many=first[head].ndim == 2)
        # of an image's multi-label head, each class is a part of one decision
        changed += float(differs.reshape(len(said), -1).mean(axis=1).sum())
        diffs.append(np.abs(said.probs[head] - before.probs[head]).max(axis=1))
    return Likeness(
        model=model,
        rows=len(said),
        decisions=len(said) * len(task.heads),
        decisions_changed=changed,
        max_abs_diff=float(np.max(diffs)),
        mean_abs_diff=float(np.mean(diffs)),
        right=float(np.mean([np.mean(truth[head] == second[head]) for head in task.heads])),
        right_before=float(np.mean([np.mean(truth[head] == first[head]) for head in task.heads])),
    )


def check_likeness(likeness: Likeness, fold: int, reading: Reading) -> None:
    """Refuse a model that is not the one the predictions came from.

    Args:
        likeness: As measured.
        fold: The model's; -1 where it was trained on everything: what it was trained on it must know as well as the
            models that predicted it without, which it does not repeat.
        reading: How it reads images here.

    Raises:
        ExportError: With the numbers.
    """
    if fold == EVERYTHING:
        passed = likeness.right >= likeness.right_before - CHANGED_SHARE
        why = (
            f"{likeness.right:.2%} of its decisions are right on {likeness.rows:,} images that it was trained on, and "
            f"{likeness.right_before:.2%} of those out of fold"
        )
    else:
        changed = likeness.decisions_changed / likeness.decisions
        passed = changed <= CHANGED_SHARE and likeness.mean_abs_diff <= MEAN_DIFF
        why = f"{likeness} (allowed are {CHANGED_SHARE:.0%} of the decisions, and {MEAN_DIFF} of an image on average)"
    if passed:
        return
    what = "everything" if fold == EVERYTHING else f"fold {fold}"
    raise ExportError(
        f"{what}: {likeness.model} does not repeat the out-of-fold predictions: {why}; most likely it was shown other "
        f"pixels then than here ({reading}): give the mean, std, size, layout and order it was trained with, its "
        "activation and order of classes, and each fold's own model"
    )


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
            f"{model} does not run on {len(images)} image(s): {' '.join(str(error).split())[:200]}; export it again, "
            "with a batch of any size"
        ) from None


def _is_close(probs: npt.NDArray[np.float32], *, many: bool) -> npt.NDArray[np.bool_]:
    """Return where so small a difference as is allowed changes a decision: (N,), of multi-label heads (N, C)."""
    if many:
        return np.asarray(np.abs(probs - HALF) <= SAME)
    best = np.sort(probs, axis=1)[:, -2:]
    return np.asarray(best[:, -1] - best[:, 0] <= 2 * SAME)
