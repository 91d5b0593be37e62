"""Blends: several runs' probabilities made one, and the rule that makes classes of it, for every cut of the runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kaggle_kit.decision import Decision
from kaggle_kit.errors import PredictionError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.mixes import Floats, Mix, Table, mix_head
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.scores import Score
from kaggle_kit.settings import build, plain

FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What the first runs of a blend become.

    Attributes:
        heads: {head: how its probabilities are mixed}; heads that are not named are the mean of all runs.
        decision: The rules by which the mixed probabilities become classes.
        score: Out of fold, each image mixed and decided by what was fitted without its fold; None where it was not
            measured.
    """

    heads: dict[str, Mix] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    score: Score | None = None


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Runs in the order in which they are run, and what becomes of them, wherever time runs out.

    Attributes:
        runs: The running order: what gains most for its time first. A run's fold models count the same.
        prefixes: For the first run alone, for the first two, and so on; the last is the whole blend.
        prior_shift: Whether the kernel corrects for the class shares it finds in the test, before it decides.
        seconds: {run: seconds an image takes, all fold models together}; empty where that is not known.
        seconds_on: The machine that `seconds` were measured on.
        ranks: {head: {run: (C, Q) quantiles of its out-of-fold probabilities}} of heads mixed by rank.
        oof_hashes: {run: SHA-256 of its oof.npz} that all this was fitted on; empty where nothing was.
        num_images: How many images all this was fitted on, which runs that were left out predict as well; 0: nothing
            was fitted.
        classes: {head: C class names, in the order of mixes and rules}; of heads that are not named, that of the first
            run.
    """

    runs: tuple[str, ...]
    prefixes: tuple[Prefix, ...]
    prior_shift: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_on: str = ""
    ranks: dict[str, dict[str, Table]] = field(default_factory=dict)
    oof_hashes: dict[str, str] = field(default_factory=dict)
    num_images: int = 0
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.runs:
            raise SettingError("`runs` is empty; a blend needs at least one run")
        if len(set(self.runs)) != len(self.runs):
            raise SettingError(
                f"runs are named {sorted(self.runs)}; a blend tells them apart by name, so rename one folder"
            )
        if len(self.prefixes) != len(self.runs):
            raise SettingError(f"`prefixes` are {len(self.prefixes)}; expected one for each of {len(self.runs)} runs")
        for number, prefix in enumerate(self.prefixes, start=1):
            for head, mix in prefix.heads.items():
                if mix.weights and len(mix.weights) != number:
                    raise SettingError(
                        f"`prefixes[{number - 1}].heads.{head}` has {len(mix.weights)} weights; expected {number}"
                    )
                if len(mix.temperatures) not in (0, number):
                    raise SettingError(
                        f"`prefixes[{number - 1}].heads.{head}` has {len(mix.temperatures)} temperatures; expected "
                        f"{number}, or none"
                    )

    @property
    def whole(self) -> Prefix:
        """What all runs together become."""
        return self.prefixes[-1]

    @property
    def decision(self) -> Decision:
        """The rules of the whole blend."""
        return self.whole.decision

    @property
    def score(self) -> Score | None:
        """Of the whole blend."""
        return self.whole.score

    def first(self, num_runs: int) -> Blend:
        """Return the blend of the first runs alone.

        Raises:
            SettingError: When there are fewer runs, or none is asked for.
        """
        if not 1 <= num_runs <= len(self.runs):
            raise SettingError(f"the first {num_runs} runs were asked for; the blend has 1 to {len(self.runs)}")
        runs = self.runs[:num_runs]
        return dataclasses.replace(
            self,
            runs=runs,
            prefixes=self.prefixes[:num_runs],
            seconds={name: self.seconds[name] for name in runs if name in self.seconds},
            ranks={
                head: {name: tables[name] for name in runs if name in tables} for head, tables in self.ranks.items()
            },
            oof_hashes={name: self.oof_hashes[name] for name in runs if name in self.oof_hashes},
        )

    def shares(self) -> dict[str, float]:
        """Return {run: how much it counts}, the mean over the heads that are named; of a stack all runs alike."""
        mixes = list(self.whole.heads.values()) or [Mix.equal(len(self.runs))]
        rows = [mix.weights or Mix.equal(len(self.runs)).weights for mix in mixes]
        return dict(zip(self.runs, np.mean(rows, axis=0).tolist(), strict=True))


def equal_blend(names: Sequence[str]) -> Blend:
    """Return the blend in which every run counts the same.

    Raises:
        SettingError: When there are no runs, or two have the same name.
    """
    return Blend(runs=tuple(names), prefixes=(Prefix(),) * len(names))


def mean_probs(parts: Sequence[Probs]) -> Probs:
    """Return the mean of probabilities, such as those of a run's fold models.

    Args:
        parts: {head: (N, C)} of each, all with the same heads and shapes.
    """
    mean = {}
    for head in parts[0]:
        total = np.zeros(parts[0][head].shape, np.float64)
        for part in parts:
            total += part[head]
        mean[head] = (total / len(parts)).astype(np.float32)
    return mean


def blend_probs(blend: Blend, runs: Sequence[Probs], *, multilabel: Collection[str] = ()) -> Probs:
    """Return the blend's {head: (N, C) float32 probabilities}.

    Args:
        blend: What to make of the runs.
        runs: {head: (N, C) probabilities} of each run, in the blend's order, rows in the same order.
        multilabel: The heads that are multi-label.

    Raises:
        PredictionError: When runs or classes are not those of the blend.
    """
    mixed = {}
    for head in runs[0]:
        mix = blend.whole.heads.get(head, Mix.equal(len(blend.runs)))
        ranks = _rank_tables(blend, head) if mix.kind == "rank" else ()
        mixed[head] = mix_head(mix, head, runs, multilabel=multilabel, ranks=ranks)
    return mixed


def _rank_tables(blend: Blend, head: str) -> list[Floats]:
    """Return each run's (C, Q) quantiles of a head."""
    tables = blend.ranks.get(head, {})
    absent = [name for name in blend.runs if name not in tables]
    if absent:
        raise PredictionError(
            f"head {head!r} is mixed by rank, and `ranks` has no quantiles of run {absent[0]!r}; make the blend again"
        )
    return [tables[name].values for name in blend.runs]


def blend_predictions(blend: Blend, runs: Mapping[str, Predictions]) -> Predictions:
    """Return the blend of runs' predictions, joined by id.

    Args:
        blend: What to make of the runs.
        runs: {run name: predictions}; those of the first run give the ids and their order.

    Raises:
        PredictionError: When a run is missing, or runs predict different images or heads.
    """
    absent = [name for name in blend.runs if name not in runs]
    if absent:
        raise PredictionError(f"run {absent[0]!r} of the blend has no predictions; give all of {sorted(blend.runs)}")
    first = runs[blend.runs[0]]
    parts = []
    for name in blend.runs:
        check_like(first, runs[name], names=(blend.runs[0], name))
        try:
            parts.append(runs[name].align(first.ids).probs)
        except PredictionError as error:
            raise PredictionError(f"run {name!r}, joined with run {blend.runs[0]!r}: {error}") from None
    mixed = blend_probs(blend, parts, multilabel=first.multilabel)
    return Predictions(ids=first.ids, probs=mixed, multilabel=first.multilabel)


def check_like(first: Predictions, other: Predictions, *, names: tuple[str, str]) -> None:
    """Refuse predictions of two runs that differ in images, heads or classes.

    Raises:
        PredictionError: Naming the runs and in what they differ.
    """
    shapes = [{head: probs.shape[1] for head, probs in one.probs.items()} for one in (first, other)]
    if shapes[0] != shapes[1] or len(first) != len(other):
        raise PredictionError(
            f"run {names[1]!r} predicts {len(other):,} images with heads {shapes[1]}; run {names[0]!r} predicts "
            f"{len(first):,} with {shapes[0]}; blend runs of one task that cover the same images"
        )
    if set(first.multilabel) != set(other.multilabel):
        raise PredictionError(
            f"runs {names[0]!r} and {names[1]!r} have different multi-label heads: {list(first.multilabel)} and "
            f"{list(other.multilabel)}; blend runs of one task"
        )


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
