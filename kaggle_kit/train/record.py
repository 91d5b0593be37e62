"""What a fold's training has given so far: its history, its best weights, and contenders for a soup."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_kit.labels import Classes
from kaggle_kit.metrics import gain
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import HISTORY
from kaggle_kit.scores import Score, score_answers
from kaggle_kit.settings import build, plain
from kaggle_kit.tables import Text
from kaggle_kit.task import Task
from kaggle_kit.train.checkpoint import CheckpointInfo, save_checkpoint
from kaggle_kit.train.config import TrainConfig, Weights
from kaggle_kit.train.logs import History
from kaggle_kit.train.model import Network

BEST = "best.safetensors"
OOF = "oof.npz"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Weights that were scored: when, which, and how they did on the validation rows."""

    epoch: int
    weights: Weights
    score: Score


class FoldRecord:
    """The best of a fold on disk, and its history; one rank writes, all know the same.

    Attributes:
        best: The best weights so far; None before there are any.
        best_file: Their checkpoint.
        scores: {weights: the best score that weights of this kind had}.
        history: A row an epoch.
        truth: {head: classes of the validation rows}.
    """

    def __init__(
        self, task: Task, config: TrainConfig, *, fold: int, folder: Path, ids: Text, truth: Classes, writes: bool
    ) -> None:
        """Begin a record.

        Args:
            task: The competition.
            config: The settings.
            fold: The fold's number.
            folder: Where files go.
            ids: (rows,) of the validation images.
            truth: Their classes, in the same order.
            writes: Whether this process writes files.
        """
        self._task = task
        self._config = config
        self._fold = fold
        self._folder = folder
        self.best_file = folder / BEST
        self._ids = ids
        self.truth = truth
        self._writes = writes
        self.best: Standing | None = None
        self.scores: dict[Weights, float] = {}
        self.history = History(folder / HISTORY if writes else None)
        self._contenders: list[Standing] = []

    def offer(self, network: Network, probs: Probs, *, epoch: int, weights: Weights, counts: bool = True) -> Score:
        """Score weights, and keep them if they are the best so far.

        Args:
            network: With these weights.
            probs: What it says of the validation rows.
            epoch: How many epochs it has seen.
            weights: Which weights these are.
            counts: False for weights that may not be kept: they see another size than the finished network will.
        """
        score = score_answers(self._task, self.truth, probs)
        standing = Standing(epoch=epoch, weights=weights, score=score)
        if not counts:
            return score
        earlier = self.scores.get(weights)
        if earlier is None or gain(self._task.metric, score.total, earlier) > 0:
            self.scores[weights] = score.total
        if self._config.average.soup and weights in ("raw", "ema"):
            self._contend(network, standing)
        if self.best is None or not gain(self._task.metric, score.total, self.best.score.total) <= 0:
            self.best = standing
            weights_file, oof_file = self._pending(standing)
            self._save(weights_file, network, standing)
            if self._writes:
                Predictions(ids=self._ids, probs=probs, multilabel=self._task.multilabel_heads).save(oof_file)
        return score

    def settle(self) -> None:
        """Put the best weights' files in their place, now that a saved state names them.

        What is in that place so belongs to what the saved state calls the best, whenever the training is killed.
        """
        if not self._writes:
            return
        if self.best is not None:
            for pending, place in zip(self._pending(self.best), (self.best_file, self._folder / OOF), strict=True):
                if pending.is_file():
                    pending.replace(place)
        for path in self._folder.glob("pending*"):
            path.unlink(missing_ok=True)

    def keep_unscored(self, network: Network, *, epoch: int, weights: Weights) -> None:
        """Keep the weights of a training on everything, which nothing can score."""
        info = CheckpointInfo(
            task=self._task, config=self._config, fold=self._fold, epoch=epoch, score=None, weights=weights
        )
        if self._writes:
            save_checkpoint(self.best_file, network, info)

    def contenders(self) -> list[tuple[Standing, Path]]:
        """Return the best epochs' weights for a soup, best first."""
        return [(one, self._contender_path(one)) for one in self._contenders]

    def drop_contenders(self) -> None:
        """Delete the files of contenders that fell behind, once the saved state no longer names them."""
        kept = {path for _, path in self.contenders()}
        for path in self._folder.glob("contender*.safetensors"):
            if self._writes and path not in kept:
                path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from, as text."""
        values = {
            "best": plain(self.best),
            "scores": self.scores,
            "rows": self.history.rows,
            "contenders": plain(self._contenders),
        }
        return {"record": json.dumps(values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved record."""
        values = json.loads(state["record"])
        self.best = None if values["best"] is None else build(Standing, values["best"])
        self.scores = values["scores"]
        self.history.rows[:] = values["rows"]
        self._contenders = [build(Standing, one) for one in values["contenders"]]

    def _contend(self, network: Network, standing: Standing) -> None:
        """Keep these weights among the best few."""
        ranked = sorted([*self._contenders, standing], key=lambda one: -gain(self._task.metric, one.score.total, 0.0))
        kept = ranked[: self._config.average.soup]
        if standing in kept:
            self._save(self._contender_path(standing), network, standing)
        self._contenders = kept

    def _pending(self, standing: Standing) -> tuple[Path, Path]:
        stem = f"pending{standing.epoch:04d}_{standing.weights}"
        return self._folder / f"{stem}.safetensors", self._folder / f"{stem}.npz"

    def _contender_path(self, standing: Standing) -> Path:
        return self._folder / f"contender{standing.epoch:04d}_{standing.weights}.safetensors"

    def _save(self, path: Path, network: Network, standing: Standing) -> None:
        if self._writes:
            info = CheckpointInfo(
                task=self._task,
                config=self._config,
                fold=self._fold,
                epoch=standing.epoch,
                score=standing.score,
                weights=standing.weights,
            )
            save_checkpoint(path, network, info)
