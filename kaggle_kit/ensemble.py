"""Blends: several runs' probabilities made one, and the rule by which they become classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from kaggle_kit.decision import Decision
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.scores import Score
from kaggle_kit.settings import build, plain

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Blend:
    """How much each run counts.

    Attributes:
        weights: {run name: weight}, above 0, summing to 1. A run's fold models share its weight.
        mean: `arithmetic`: the weighted mean of probabilities.
        decision: The rules by which the mean becomes classes.
        prior_shift: Whether the kernel corrects for the class shares it finds in the test, before it decides.
        score: Out of fold; where rules were fitted, each image decided by rules fitted without its fold. None where
            it was not measured.
        oof_hashes: {run name: SHA-256 of its oof.npz} that rules and score were fitted on; empty where none were.
    """

    weights: dict[str, float]
    mean: Literal["arithmetic"] = "arithmetic"
    decision: Decision = field(default_factory=Decision)
    prior_shift: bool = False
    score: Score | None = None
    oof_hashes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights:
            raise SettingError("`weights` is empty; a blend needs at least one run")
        low, total = min(self.weights.values()), sum(self.weights.values())
        if not low > 0 or abs(total - 1) > 1e-6:
            raise SettingError(f"`weights` sum to {total:.6f}, lowest {low}; expected all above 0 and a sum of 1")


def equal_blend(names: Sequence[str]) -> Blend:
    """Return the blend in which every run counts the same.

    Raises:
        SettingError: When two runs have the same name.
    """
    if len(set(names)) != len(names):
        raise SettingError(f"runs are named {sorted(names)}; a blend tells them apart by name, so rename one folder")
    return Blend(weights={name: 1 / len(names) for name in names})


def mean_probs(parts: Sequence[Probs], weights: Sequence[float]) -> Probs:
    """Return the weighted mean of members' probabilities.

    Args:
        parts: One {head: (N, C)} a member, all with the same heads and shapes.
        weights: One a member; any positive scale.
    """
    share = np.asarray(weights, np.float64) / np.sum(weights)
    mean = {}
    for head in parts[0]:
        total = np.zeros(parts[0][head].shape, np.float64)
        for part, weight in zip(parts, share, strict=True):
            total += weight * part[head]
        mean[head] = total.astype(np.float32)
    return mean


def blend_predictions(blend: Blend, runs: Mapping[str, Predictions]) -> Predictions:
    """Return the blend of runs' predictions, joined by id.

    Args:
        blend: The weights.
        runs: {run name: predictions}; those of the first run give the ids and their order.

    Raises:
        PredictionError: When a run is missing, or runs predict different images or heads.
    """
    absent = [name for name in blend.weights if name not in runs]
    if absent:
        raise PredictionError(f"run {absent[0]!r} of the blend has no predictions; give all of {sorted(blend.weights)}")
    first_name = next(iter(blend.weights))
    first = runs[first_name]
    parts = []
    for name in blend.weights:
        one = runs[name]
        shapes = {head: probs.shape[1] for head, probs in one.probs.items()}
        if shapes != {head: probs.shape[1] for head, probs in first.probs.items()} or len(one) != len(first):
            raise PredictionError(
                f"run {name!r} predicts {len(one):,} images with heads {shapes}; run {first_name!r} predicts "
                f"{len(first):,}; blend runs of one task that cover the same images"
            )
        if set(one.multilabel) != set(first.multilabel):
            raise PredictionError(
                f"runs {first_name!r} and {name!r} have different multi-label heads: {list(first.multilabel)} and "
                f"{list(one.multilabel)}; blend runs of one task"
            )
        parts.append(one.align(first.ids).probs)
    mean = mean_probs(parts, list(blend.weights.values()))
    return Predictions(ids=first.ids, probs=mean, multilabel=first.multilabel)


def save_blend(blend: Blend, path: Path) -> None:
    """Write a blend as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **plain(blend)}, indent=1), encoding="utf-8")


def load_blend(path: Path) -> Blend:
    """Read what `save_blend` wrote.

    Raises:
        SettingError: When there is no such file or it is no blend.
    """
    if not path.is_file():
        raise SettingError(f"there is no blend {str(path)!r}; make one with `kaggle-kit blend`")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{path} is not JSON ({error}); make it again with `kaggle-kit blend`") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise SettingError(f"{path} is no blend of format {FORMAT}; make it again with `kaggle-kit blend`")
    try:
        return build(Blend, values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
