"""What training minimises: a loss for every head on soft targets, summed with the heads' weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.heads import Head
from kaggle_kit.labels import Labels
from kaggle_kit.task import Task
from kaggle_kit.train.config import LossConfig

Targets = dict[str, torch.Tensor]
Ints = npt.NDArray[np.int64]
# Mixing leaves rounding errors, and specks of a partner whose label is not known, which are no reason to drop an image.
KNOWN_SUM = 0.99
# The least float32 above 0 that powers below 1 still have finite slopes at.
TINY = 1e-12


def soft_targets(task: Task, labels: dict[str, torch.Tensor]) -> Targets:
    """Return labels as target probabilities, for each trained head.

    Args:
        task: Names the heads.
        labels: For each trained head (B,) int64 class indices, -1 where unknown; for a multi-label one (B, C) 0 or 1.

    Returns:
        For each trained head (B, C) float32: rows sum to 1, or to 0 where the class is not known; 0 or 1 for each class
        of a multi-label head.
    """
    return {name: _soft(head, labels[name]) for name, head in task.trained_heads.items()}


def known_rows(kind: str, targets: torch.Tensor) -> torch.Tensor:
    """Return (B,) bool: which rows of a head's (B, C) targets have a label.

    No class at all is a label too of a multi-label head. Of others it is unknown, as is a row whose targets sum to less
    than 0.99: one that was mixed with an image whose class is not known.
    """
    if kind == "multilabel":
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    return targets.sum(1) >= KNOWN_SUM


def class_counts(task: Task, labels: Labels, rows: Ints) -> dict[str, Ints]:
    """Return for each trained head the (C,) numbers of train images that have a class.

    Args:
        task: Names the heads.
        labels: Aligned with the source: row i labels image i.
        rows: (n,) rows of the source that are trained on. Classes that are not known (-1) do not count.
    """
    known = {**labels.classes, **labels.auxiliary}
    return {name: _counts(known[name][rows], head.num_classes) for name, head in task.trained_heads.items()}


def class_weights(counts: Ints, config: LossConfig) -> npt.NDArray[np.float64]:
    """Return (C,) weights of classes, whose mean over the train images is 1.

    Args:
        counts: (C,) train images of each class.
        config: `class_weights` says how they follow the counts.

    Returns:
        Weights above 0. A class without train images, which validation may still show, weighs what the rarest of the
        others does: it is at least as rare.

    Source: `effective`: Cui 2019, https://arxiv.org/abs/1901.05555, (1 - beta) / (1 - beta^n). What differs: the mean
    over images is 1 rather than that over classes, so that the loss keeps its scale.
    """
    seen = np.maximum(counts, 1).astype(np.float64)
    if config.class_weights == "none" or not counts.any():
        return np.ones(len(counts))
    if config.class_weights == "effective":
        weights = (1 - config.effective_beta) / (1 - config.effective_beta**seen)
    else:
        weights = seen ** (-1.0 if config.class_weights == "inverse" else -0.5)
    weights[counts == 0] = weights[counts > 0].max()
    scaled: npt.NDArray[np.float64] = weights * (counts.sum() / (counts @ weights))
    return scaled


def loss_weights(task: Task, config: LossConfig) -> dict[str, float]:
    """Return what each trained head's loss is multiplied by: the task's heads sum to 1, auxiliary ones come on top.

    Raises:
        SettingError: For a weight of a head that is none, and when no head is left to learn.
    """
    for name in config.head_weights:
        if name not in task.trained_heads:
            close = did_you_mean(name, task.trained_heads)
            raise SettingError(f"`loss.head_weights.{name}` is for no head of task {task.name!r}{close}")
    weights = {name: config.head_weights.get(name, head.weight) for name, head in task.trained_heads.items()}
    if not any(weights.values()):
        raise SettingError("`loss.head_weights` is 0 for every head; leave one above 0 to learn")
    # The heads may all be 0 beside an auxiliary one that they are derived from.
    total = sum(weights[name] for name in task.heads) or 1.0
    return {name: weight / total if name in task.heads else weight for name, weight in weights.items()}


def make_loss(task: Task, config: LossConfig, labels: Labels, rows: Ints) -> TrainingLoss:
    """Return the loss of a training.

    Args:
        task: Names the heads, their kinds and weights.
        config: The loss.
        labels: Aligned with the source: row i labels image i.
        rows: (n,) rows of the source that are trained on; class weights follow their classes.

    Raises:
        SettingError: For an ordinal head under `bce`, a weight of a head that is none, and when all weights are 0.
    """
    weights = loss_weights(task, config)
    ordinal = [name for name, head in task.trained_heads.items() if head.kind == "ordinal"]
    if config.name == "bce" and ordinal:
        raise SettingError(
            f"`loss.name` is 'bce', and head {ordinal[0]!r} is ordinal: its classes are steps of one scale, not "
            "questions of their own; use loss.name=cross_entropy or loss.name=focal"
        )
    counts = class_counts(task, labels, rows)
    return TrainingLoss(
        {name: HeadLoss(head, config, counts[name]) for name, head in task.trained_heads.items()}, weights
    )


class TrainingLoss(nn.Module):
    """The weighted sum of the heads' losses, each a mean over the images whose label is known.

    Attributes:
        weights: {head: what its loss is multiplied by}.
    """

    def __init__(self, heads: dict[str, HeadLoss], weights: dict[str, float]) -> None:
        """Sum these heads' losses by these weights."""
        super().__init__()
        assert heads.keys() == weights.keys(), f"heads {list(heads)} and weights {list(weights)}"
        self.weights = weights
        self._kinds = {name: head.kind for name, head in heads.items()}
        self._heads = nn.ModuleList(heads.values())  # not by name, which may hold dots

    def forward(self, logits: Targets, targets: Targets, *, batch: Targets | None = None) -> torch.Tensor:
        """Return the loss of a batch, or a micro-batch's part of it.

        Args:
            logits: For each trained head (B, C), of any float type.
            targets: For each trained head (B, C) float32 from 0 to 1.
            batch: The targets of the whole batch, where `targets` are those of a micro-batch. The losses of its
                micro-batches then sum to the loss of the batch, as their gradients do, however it is split and
                whichever labels are unknown. Without it a micro-batch counts as a batch.

        Returns:
            A float32 scalar; 0 for a batch without any known label.
        """
        return self.total(self.per_head(logits, targets, batch=batch))

    def per_head(self, logits: Targets, targets: Targets, *, batch: Targets | None = None) -> dict[str, torch.Tensor]:
        """Return each head's loss before it is weighted, as `forward` takes and sums them."""
        losses = {}
        for name, head in zip(self.weights, self._heads, strict=True):
            rows = head(logits[name], targets[name])
            known = known_rows(self._kinds[name], targets[name] if batch is None else batch[name])
            losses[name] = rows.sum() / known.sum().clamp(min=1)
        return losses

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted sum of what `per_head` gave."""
        return torch.stack([weight * losses[name] for name, weight in self.weights.items()]).sum()


class HeadLoss(nn.Module):
    """The loss of each image for one head, in float32 whatever autocast says.

    `cross_entropy` is -sum of t log p over classes, p a softmax. `focal` multiplies each term by (1 - p)^gamma. `bce`
    takes p as a sigmoid, and each class as a question of its own: -sum of t log p + (1 - t) log(1 - p). It is a sum
    over classes, not timm's mean: so it is the negative log-likelihood of the image's label, as cross entropy is, and
    heads of 7 and of 168 classes keep the weights they were given. Multi-label heads take `bce`, or under `focal` its
    terms times (1 - p)^gamma and p^gamma.

    Label smoothing spreads its share of a target evenly over the classes, and that of each class of a multi-label head
    over yes and no. Class weights multiply an image's loss by the sum of t times weight, t before smoothing, so that an
    image mixed from two weighs as they do; for a multi-label head they multiply a class's term by 1 + t (weight - 1),
    which weighs what is there (`pos_weight`) and leaves what is not.

    Source: focal: Lin 2017, https://arxiv.org/abs/1708.02002. What differs: no alpha, which class weights stand for,
    and each term is multiplied by its target, so that targets may be soft.
    """

    _class_weights: torch.Tensor | None

    def __init__(self, head: Head, config: LossConfig, counts: Ints) -> None:
        """Describe the loss of a head whose classes have so many train images."""
        super().__init__()
        self.kind = head.kind
        self._name: Literal["cross_entropy", "focal", "bce"] = config.name
        self._gamma = config.focal_gamma
        self._smoothing = config.label_smoothing
        weighted = config.class_weights != "none"
        weights = torch.from_numpy(class_weights(counts, config)).float() if weighted else None
        self.register_buffer("_class_weights", weights, persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (B,) losses of (B, C) logits, 0 where the label is not known."""
        with torch.autocast(logits.device.type, enabled=False):
            if self.kind == "multilabel":
                return self._multilabel(logits.float(), targets)
            known = known_rows(self.kind, targets)
            losses = self._exclusive(logits.float(), self._smoothed(targets, 1 / targets.shape[1]))
            if self._class_weights is not None:
                losses = losses * (targets * self._class_weights).sum(1)
            return losses * known

    def _exclusive(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._name == "bce":
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        log_probs = F.log_softmax(logits, 1)
        if self._name == "focal" and self._gamma:
            missing = (-torch.expm1(log_probs)).clamp(min=TINY)  # 1 - p, exact where p is almost 1
            log_probs = log_probs * missing**self._gamma
        return -(targets * log_probs).sum(1)

    def _multilabel(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothed = self._smoothed(targets, 0.5)
        if self._name == "focal":
            yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
            terms = -smoothed * (self._gamma * no).exp() * yes - (1 - smoothed) * (self._gamma * yes).exp() * no
        else:
            terms = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        if self._class_weights is not None:
            terms = terms * (1 + targets * (self._class_weights - 1))
        return terms.sum(1)

    def _smoothed(self, targets: torch.Tensor, even: float) -> torch.Tensor:
        return targets * (1 - self._smoothing) + self._smoothing * even


def _soft(head: Head, labels: torch.Tensor) -> torch.Tensor:
    if head.kind == "multilabel":
        return labels.float()
    return (labels[:, None] == torch.arange(head.num_classes, device=labels.device)).float()


def _counts(classes: Ints, num_classes: int) -> Ints:
    if classes.ndim == 2:
        return np.asarray(classes.sum(axis=0, dtype=np.int64))
    counts: Ints = np.bincount(classes[classes >= 0], minlength=num_classes)
    return counts
