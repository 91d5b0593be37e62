"""Decisions: the class that probabilities stand for, by the rule that was found to suit the competition's metric.

A metric such as macro recall is not served best by the highest probability: rare classes count as much as common
ones. A rule adds a bias to the logarithm of each class's probability before the highest one decides. A multi-label head
says every class whose probability reaches the class's threshold, 0.5 where none was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.labels import Classes
from kaggle_kit.task import Task

RuleName = Literal["argmax", "prior_power", "class_bias", "thresholds"]
Floats = npt.NDArray[np.float64]

_TINY = 1e-38  # lowest probability whose logarithm is taken; near float32's smallest normal number
_CHUNK = 16_384

HALF = 0.5  # the threshold of a class for which none was fitted


@dataclass(frozen=True, kw_only=True)
class HeadRule:
    """How one head's probabilities become a class: the highest log(probability) + bias decides.

    Attributes:
        rule: `argmax`: no bias; `prior_power`: bias -power x log(the class's count in train), up to a constant;
            `class_bias`: one fitted number a class; `thresholds`: of a multi-label head.
        log_bias: C numbers; empty for argmax and thresholds.
        power: Of prior_power, for people to read; `log_bias` decides.
        thresholds: C numbers of a multi-label head; above 1 for a class that is never said.
    """

    rule: RuleName
    log_bias: tuple[float, ...] = ()
    power: float = 0.0
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, users in (("log_bias", ("prior_power", "class_bias")), ("thresholds", ("thresholds",))):
            values = getattr(self, name)
            if (self.rule in users) != bool(values):
                wanted = "one value a class" if self.rule in users else "no values"
                raise SettingError(f"`{name}` has {len(values)} value(s); rule {self.rule!r} needs {wanted}")
            for index, value in enumerate(values):
                _check_finite(f"{name}[{index}]", value)
        _check_finite("power", self.power)

    @classmethod
    def halves(cls, num_classes: int) -> HeadRule:
        """Return the rule of a multi-label head for which none was fitted."""
        return cls(rule="thresholds", thresholds=(HALF,) * num_classes)

    @property
    def is_plain(self) -> bool:
        """Whether nothing fitted decides: the highest probability does, or 0.5."""
        return self.rule == "argmax" or (self.rule == "thresholds" and set(self.thresholds) == {HALF})

    def decide(self, probs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (N,) class indices, or (N, C) uint8 of 0 and 1 by thresholds; of equal scores the lower class wins.

        Args:
            probs: (N, C) probabilities, or but for thresholds any values above 0 that are right up to one factor a row.

        Raises:
            PredictionError: When there are not as many classes as biases or thresholds.
        """
        if self.rule == "argmax":
            return np.asarray(probs.argmax(axis=1), np.int64)
        values = self.log_bias or self.thresholds
        if probs.ndim != 2 or probs.shape[1] != len(values):
            what = "biases" if self.log_bias else "thresholds"
            raise PredictionError(
                f"probs have shape {probs.shape}, and the rule {self.rule!r} holds {len(values)} {what}; "
                "decide with the rule that was fitted for these classes"
            )
        if self.rule == "thresholds":
            return (probs >= np.array(self.thresholds)).astype(np.uint8)
        bias = np.array(self.log_bias)
        decided = np.empty(len(probs), np.int64)
        for rows in row_chunks(len(probs)):
            decided[rows] = (log_probs(probs[rows]) + bias).argmax(axis=1)
        return decided


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One rule a head.

    Attributes:
        heads: {head: rule}; heads that are not named go by their highest probability, multi-label ones by 0.5.
    """

    heads: dict[str, HeadRule] = field(default_factory=dict)

    @classmethod
    def argmax(cls, heads: Iterable[str] = ()) -> Decision:
        """Return the decision by the highest probability, naming these heads."""
        return cls(heads={head: HeadRule(rule="argmax") for head in heads})

    @classmethod
    def plain(cls, task: Task) -> Decision:
        """Return the decision by the highest probability, by 0.5 of multi-label heads, naming every head."""
        halves = {name: HeadRule.halves(task.heads[name].num_classes) for name in task.multilabel_heads}
        return cls(heads=cls.argmax(task.heads).heads | halves)

    def decide(self, probs: Mapping[str, npt.NDArray[Any]], *, multilabel: Collection[str] = ()) -> Classes:
        """Return {head: (N,) class indices, or of multi-label heads (N, C) uint8 of 0 and 1}.

        Args:
            probs: {head: (N, C) probabilities}.
            multilabel: The multi-label heads, so that one without a rule goes by 0.5.

        Raises:
            PredictionError: When a head with a rule has no probabilities, or another number of classes.
        """
        absent = [head for head in self.heads if head not in probs]
        if absent:
            raise PredictionError(
                f"head {absent[0]!r} has a rule and no probs (found: {', '.join(probs)}); give the probs of every head"
            )
        decided = {}
        for head, values in probs.items():
            plain = HeadRule.halves(values.shape[1]) if head in multilabel else HeadRule(rule="argmax")
            try:
                decided[head] = self.heads.get(head, plain).decide(values)
            except PredictionError as error:
                raise PredictionError(f"head {head!r}: {error}") from None
        return decided

    @property
    def is_plain(self) -> bool:
        """Whether nothing fitted decides: the highest probability does everywhere, of multi-label heads 0.5."""
        return all(rule.is_plain for rule in self.heads.values())

    def describe(self, class_names: Mapping[str, Sequence[str]] | None = None) -> str:
        """Return one line a head for people to read, or one sentence when no head has a rule.

        Args:
            class_names: {head: C names}; None: classes are numbered.
        """
        if all(rule.rule == "argmax" for rule in self.heads.values()):
            return "the highest probability decides"
        names = class_names or {}
        return "\n".join(f"{head}: {_describe_rule(rule, names.get(head))}" for head, rule in self.heads.items())


def log_probs(probs: npt.NDArray[Any]) -> Floats:
    """Return float64 logarithms of probabilities of any shape, those of 0 taken as next to nothing."""
    return np.asarray(np.log(np.maximum(probs, _TINY, dtype=np.float64)))


def row_chunks(num_rows: int) -> Iterator[slice]:
    """Yield slices of rows to look at one after the other, so that float64 copies stay small."""
    return (slice(start, start + _CHUNK) for start in range(0, num_rows, _CHUNK))


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise SettingError(f"`{name}` is {value}; expected a finite number: fit the rule again")


def _describe_rule(rule: HeadRule, names: Sequence[str] | None) -> str:
    def shown(values: Sequence[float], place: int, form: str) -> str:
        return f"{values[place]:{form}} ({f'class {place}' if names is None else names[place]})"

    if rule.rule == "argmax":
        return "the highest probability decides"
    if rule.rule == "thresholds":
        low, high = int(np.argmin(rule.thresholds)), int(np.argmax(rule.thresholds))
        if rule.is_plain:
            return f"every class of probability {HALF} or more is said"
        return (
            "every class is said whose probability reaches its threshold; thresholds from "
            f"{shown(rule.thresholds, low, '.2f')} to {shown(rule.thresholds, high, '.2f')}"
        )
    if rule.rule == "prior_power":
        return f"the highest probability / (images of the class in train)^{rule.power:.2f} decides"
    low, high = int(np.argmin(rule.log_bias)), int(np.argmax(rule.log_bias))
    return (
        f"the highest log(probability) + bias decides; biases from {shown(rule.log_bias, low, '+.2f')} "
        f"to {shown(rule.log_bias, high, '+.2f')}"
    )
