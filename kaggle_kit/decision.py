"""Decisions: the class that probabilities stand for, by the rule that was found to suit the competition's metric.

A metric such as macro recall is not served best by the highest probability: rare classes count as much as common
ones. A rule adds a bias to the logarithm of each class's probability before the highest one decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.labels import Classes

RuleName = Literal["argmax", "prior_power", "class_bias"]
Floats = npt.NDArray[np.float64]

_TINY = 1e-38  # lowest probability whose logarithm is taken; near float32's smallest normal number
_CHUNK = 16_384


@dataclass(frozen=True, kw_only=True)
class HeadRule:
    """How one head's probabilities become a class: the highest log(probability) + bias decides.

    Attributes:
        rule: `argmax`: no bias; `prior_power`: bias -power x log(the class's count in train), up to a constant;
            `class_bias`: one fitted number a class.
        log_bias: C numbers; empty for argmax.
        power: Of prior_power, for people to read; `log_bias` decides.
    """

    rule: RuleName
    log_bias: tuple[float, ...] = ()
    power: float = 0.0

    def __post_init__(self) -> None:
        if (self.rule == "argmax") != (not self.log_bias):
            wanted = "no values" if self.rule == "argmax" else "one value a class"
            raise SettingError(f"`log_bias` has {len(self.log_bias)} value(s); rule {self.rule!r} needs {wanted}")
        for name, value in (*((f"log_bias[{i}]", v) for i, v in enumerate(self.log_bias)), ("power", self.power)):
            if not math.isfinite(value):
                raise SettingError(f"`{name}` is {value}; expected a finite number: fit the rule again")

    def decide(self, probs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return (N,) class indices; of equal scores the lower class wins.

        Args:
            probs: (N, C) probabilities, or any values above 0 that are right up to one factor a row.

        Raises:
            PredictionError: When there are not as many classes as biases.
        """
        if not self.log_bias:
            return np.asarray(probs.argmax(axis=1), np.int64)
        if probs.ndim != 2 or probs.shape[1] != len(self.log_bias):
            raise PredictionError(
                f"probs have shape {probs.shape}, and the rule {self.rule!r} holds {len(self.log_bias)} biases; "
                "decide with the rule that was fitted for these classes"
            )
        bias = np.array(self.log_bias)
        decided = np.empty(len(probs), np.int64)
        for rows in row_chunks(len(probs)):
            decided[rows] = (log_probs(probs[rows]) + bias).argmax(axis=1)
        return decided


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One rule a head.

    Attributes:
        heads: {head: rule}; heads that are not named go by their highest probability.
    """

    heads: dict[str, HeadRule] = field(default_factory=dict)

    @classmethod
    def argmax(cls, heads: Iterable[str] = ()) -> Decision:
        """Return the decision by the highest probability, naming these heads."""
        return cls(heads={head: HeadRule(rule="argmax") for head in heads})

    def decide(self, probs: Mapping[str, npt.NDArray[Any]]) -> Classes:
        """Return {head: (N,) class indices}.

        Args:
            probs: {head: (N, C) probabilities}.

        Raises:
            PredictionError: When a head with a rule has no probabilities, or another number of classes.
        """
        absent = [head for head in self.heads if head not in probs]
        if absent:
            raise PredictionError(
                f"head {absent[0]!r} has a rule and no probs (found: {', '.join(probs)}); give the probs of every head"
            )
        plain = HeadRule(rule="argmax")
        decided = {}
        for head, values in probs.items():
            try:
                decided[head] = self.heads.get(head, plain).decide(values)
            except PredictionError as error:
                raise PredictionError(f"head {head!r}: {error}") from None
        return decided

    @property
    def is_plain(self) -> bool:
        """Whether the highest probability decides everywhere."""
        return all(rule.rule == "argmax" for rule in self.heads.values())

    def describe(self) -> str:
        """Return one line a head for people to read, or one sentence when no head has a rule."""
        if self.is_plain:
            return "the highest probability decides"
        return "\n".join(f"{head}: {_describe_rule(rule)}" for head, rule in self.heads.items())


def log_probs(probs: npt.NDArray[Any]) -> Floats:
    """Return float64 logarithms of probabilities of any shape, those of 0 taken as next to nothing."""
    return np.asarray(np.log(np.maximum(probs, _TINY, dtype=np.float64)))


def row_chunks(num_rows: int) -> Iterator[slice]:
    """Yield slices of rows to look at one after the other, so that float64 copies stay small."""
    return (slice(start, start + _CHUNK) for start in range(0, num_rows, _CHUNK))


def _describe_rule(rule: HeadRule) -> str:
    if rule.rule == "argmax":
        return "the highest probability decides"
    if rule.rule == "prior_power":
        return f"the highest probability / (images of the class in train)^{rule.power:.2f} decides"
    low, high = int(np.argmin(rule.log_bias)), int(np.argmax(rule.log_bias))
    return (
        f"the highest log(probability) + bias decides; biases from {rule.log_bias[low]:+.2f} (class {low}) "
        f"to {rule.log_bias[high]:+.2f} (class {high})"
    )
