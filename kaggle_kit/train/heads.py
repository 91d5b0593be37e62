"""What turns features into logits: linear, ordinal, and derived from the probabilities of an auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from kaggle_kit.errors import DataError, SettingError, did_you_mean
from kaggle_kit.labels import Labels
from kaggle_kit.task import Head, Task

IntArray = npt.NDArray[np.int64]
Derivation = Mapping[str, IntArray]
FLOOR = -30.0  # the log-probability of a class that nothing yields: finite, so that a loss of it is finite too


class OrdinalHead(nn.Module):
    """Log-probabilities of ordered classes, by continuation ratios: whether y is above k, given that it is at least k.

    Source: Harrell, Regression Modeling Strategies, chapter 13; here each step has weights of its own.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.steps = nn.Linear(features, num_classes - 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, C) float32 log-probabilities from (B, features)."""
        steps = self.steps(features).float()  # (B, C - 1)
        above = functional.logsigmoid(steps).cumsum(dim=1)
        here = functional.logsigmoid(-steps)
        return functional.pad(above, (1, 0)) + functional.pad(here, (0, 1))


class DerivedHead(nn.Module):
    """Log-probabilities of classes, each the sum of the auxiliary classes that belong to it.

    `classes` is part of the state dict; the table made from it is not, and is made anew when a state dict is loaded.
    """

    classes: torch.Tensor
    members: torch.Tensor
    is_member: torch.Tensor

    def __init__(self, num_classes: int, classes: torch.Tensor) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("classes", classes)
        self._tabulate()
        self.register_load_state_dict_post_hook(_tabulate_again)  # type: ignore[no-untyped-call]

    def forward(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Return (B, C) float32 log-probabilities from (B, A) ones of the auxiliary classes."""
        values = log_probs[:, self.members]  # (B, C, K)
        values = values.masked_fill(~self.is_member, -1e4)  # exp gives 0, without the NaN gradients of -inf
        sums = torch.logsumexp(values, dim=2)
        return torch.where(self.is_member.any(dim=1), sums, FLOOR)

    def _tabulate(self) -> None:
        """Make (C, K) tables: the auxiliary classes of each class, and which entries are not just filling."""
        classes = self.classes.cpu()
        rows = [torch.nonzero(classes == index).flatten() for index in range(self.num_classes)]
        longest = max(1, *(len(row) for row in rows))
        members = torch.stack([functional.pad(row, (0, longest - len(row))) for row in rows])
        is_member = torch.arange(longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
        device = self.classes.device
        self.register_buffer("members", members.to(device), persistent=False)
        self.register_buffer("is_member", is_member.to(device), persistent=False)


def _tabulate_again(head: nn.Module, _incompatible: object) -> None:
    """Follow a loaded state dict; a plain function, so that a deep copy of a head does not refer to the original."""
    assert isinstance(head, DerivedHead)
    head._tabulate()


def make_head(head: Head, features: int) -> nn.Module:
    """Return the module that turns (B, features) into a head's (B, C) logits."""
    return OrdinalHead(features, head.num_classes) if head.kind == "ordinal" else nn.Linear(features, head.num_classes)


def check_derivation(task: Task, derive_from: str) -> None:
    """Refuse a head that the task's heads cannot be derived from.

    Args:
        task: Gives heads and auxiliary heads.
        derive_from: The setting; empty: nothing is derived.

    Raises:
        SettingError: When it is no auxiliary head, or a head's classes do not exclude each other.
    """
    if not derive_from:
        return
    if derive_from not in task.auxiliary:
        known = did_you_mean(derive_from, task.auxiliary) or "; the task has none: name one under `auxiliary`"
        raise SettingError(
            f"`model.derive_from` is {derive_from!r}, which is no auxiliary head of {task.name!r}{known}"
        )
    for head in (task.auxiliary[derive_from], *task.heads.values()):
        if head.kind == "multilabel":
            raise SettingError(
                f"`model.derive_from` is {derive_from!r}, but the classes of head {head.name!r} do not exclude each "
                "other (multilabel); set model.derive_from='' for a linear layer a head"
            )


def derivation_of(task: Task, labels: Labels, head: str) -> dict[str, IntArray]:
    """Find to which class of every head each class of an auxiliary head belongs.

    Args:
        task: Gives the heads.
        labels: Of all images there are, not of one fold: a class without images belongs nowhere.
        head: The auxiliary head, of A classes.

    Returns:
        {head: (A,) int64 class indices}; -1 for an auxiliary class that no image has.

    Raises:
        SettingError: When the task has no such auxiliary head.
        DataError: Naming the first auxiliary class that belongs to two classes of a head.
    """
    check_derivation(task, head)
    source = task.auxiliary[head]
    known = labels.auxiliary[head] >= 0
    derivation = {}
    for name, target in task.heads.items():
        pairs = np.unique(np.stack([labels.auxiliary[head][known], labels.classes[name][known]], axis=1), axis=0)
        twice = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
        if len(twice):
            row = int(twice[0])
            both = [target.class_names[index] for index in pairs[row : row + 2, 1]]
            raise DataError(
                f"auxiliary head {head!r}: class {source.class_names[pairs[row, 0]]!r} belongs to classes {both[0]!r} "
                f"and {both[1]!r} of head {name!r}; expected one: mend the labels, or set model.derive_from=''"
            )
        derivation[name] = np.full(source.num_classes, -1, np.int64)
        derivation[name][pairs[:, 0]] = pairs[:, 1]
    return derivation
