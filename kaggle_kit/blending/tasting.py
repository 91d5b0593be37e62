"""What averages of runs' weights score out of fold, each set of runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kaggle_kit.blending.ingredients import open_store
from kaggle_kit.decision import HALF
from kaggle_kit.decision_fitting import nested_parts
from kaggle_kit.errors import DataError
from kaggle_kit.metrics import CLASS_METRICS, gain
from kaggle_kit.predictions import Probs
from kaggle_kit.runs import Run
from kaggle_kit.scores import Answers, score_answers
from kaggle_kit.train.augment import make_augment
from kaggle_kit.train.averaging import Choice, State, choose_greedily, mean_state, recompute_batch_norm
from kaggle_kit.train.checkpoint import load_weights, read_weights
from kaggle_kit.train.data import TrainStream
from kaggle_kit.train.model import build_network
from kaggle_kit.train.predict import predict_rows
from kaggle_kit.train.rows import fit_together
from kaggle_kit.train.sampling import row_weights

MOST_IMAGES = 4096  # for BatchNorm statistics, which hardly move with more
Members = tuple[int, ...]
Rows = npt.NDArray[np.bool_]
Advance = Callable[[int], object]


def _unwatched(_num: int) -> None:
    """Tell nobody."""


class Tasting:
    """Runs of one architecture on the same folds, and the averages of their weights that were scored.

    Attributes:
        runs: Best first; elsewhere here they are numbers, their places.
        task: Theirs.
        folds: Fold numbers.
        data: Images, labels and folds.
        network: Holds what was mixed last.
        ids: (N,) of all validation images, fold by fold.
        fold: (N,) which fold validates each.
        truth: {head: their classes}.
        unseen: (N,) True where no train image of the fold shows the image's combination of heads.
        groups: (N,) numbers, equal for images of one group; None without groups.
        parts: (N,) what a nested choice holds out, one after the other: the folds, or fifths of a single one.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        """Join images, labels and folds; nothing is predicted yet.

        Args:
            runs: As `check_ingredients` wants them, best first.

        Raises:
            KitError: When images or labels are gone or have changed, or a run's oof.npz lacks images.
        """
        best = runs[0]
        self.runs = tuple(runs)
        self.task = best.task
        self.folds = sorted(best.folds)
        self.data = fit_together(self.task, best.labels(), best.fold_table(), open_store(best))
        self.network = build_network(self.task, best.config.model, load_pretrained=False)
        self._device = _device()
        self.network.to(self._device)
        self.ids = self.data.source.ids[np.concatenate([self.data.valid_rows(fold) for fold in self.folds])]
        labels, rows = self.data.labels.align(self.ids), self.data.folds.rows(self.ids)
        self.truth, self.groups = labels.classes, labels.group_numbers()
        self.fold, self.unseen = self.data.folds.fold[rows], self.data.folds.unseen[rows]
        outcome = np.unique(labels.combinations(), axis=0, return_inverse=True)[1].ravel()
        self.parts = nested_parts(self.fold, outcome, groups=self.groups, seed=0)
        own = [run.oof().align(self.ids).probs for run in runs]
        self._answers: dict[Members, Answers] = {(place,): self._kept(probs) for place, probs in enumerate(own)}

    def choose(self, *, rows: Rows | None = None, advance: Advance = _unwatched) -> Choice:
        """Choose greedily which runs to average.

        Args:
            rows: (N,) which images decide; None: all.
            advance: Called with 1 after each fold that was predicted.

        Returns:
            Members as places in `runs`, and scores in the order in which runs were tried: best first on these images,
            and as `runs` are on all.
        """
        metric, order = self.task.metric, list(range(len(self.runs)))
        if rows is not None:
            alone = [self.score((place,), rows) for place in order]
            order.sort(key=lambda place: -gain(metric, alone[place], 0))
        chosen = choose_greedily(
            len(order),
            score=lambda tried: self.score(tuple(order[index] for index in tried), rows, advance=advance),
            better=lambda new, old: gain(metric, new, old) > 0,
        )
        return chosen._replace(members=tuple(order[index] for index in chosen.members))

    def score(self, members: Members, rows: Rows | None = None, *, advance: Advance = _unwatched) -> float:
        """Return what the average of these runs scores on images; None: on all."""
        answers, truth = self.answers(members, advance=advance), self.truth
        if rows is not None:
            truth = {head: values[rows] for head, values in truth.items()}
            answers = {head: values[rows] for head, values in answers.items()}
        return score_answers(self.task, truth, answers).total

    def nested_score(self, *, advance: Advance = _unwatched) -> float | None:
        """Return the score where each part's images are answered by the members that the other parts choose.

        Sets of runs that were not tried before are predicted; None where the metric has no value without a part.
        """
        parts = np.unique(self.parts)
        try:
            for part in parts:
                self.score((0,), self.parts != part)
        except DataError:
            return None
        joined: dict[str, npt.NDArray[Any]] = {}
        for part in parts:
            held = self.parts == part
            for head, values in self.answers(self.choose(rows=~held).members).items():
                joined.setdefault(head, np.empty_like(values))[held] = values[held]
            advance(1)
        return score_answers(self.task, self.truth, joined).total

    def score_renewed(self, *, advance: Advance = _unwatched) -> float | None:
        """Return what the best run alone scores with BatchNorm statistics taken as an average's are; None without."""
        parts = []
        for fold in self.folds:
            load_weights(self.network, read_weights(self.runs[0].checkpoint(fold))[0], where=self.runs[0].name)
            if not recompute_batch_norm(self.network, self._train_images(fold), device=self._device):
                return None
            parts.append(predict_rows(self.network, self.data.source, self.data.valid_rows(fold)))
            advance(1)
        probs = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
        return score_answers(self.task, self.truth, probs).total

    def answers(self, members: Members, *, advance: Advance = _unwatched) -> Answers:
        """Return what the average of these runs says of all validation images: classes, where the metric is of them."""
        members = tuple(sorted(members))
        if members not in self._answers:
            parts = []
            for fold in self.folds:
                parts.append(self._fold_answers(members, fold))
                advance(1)
            joined = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
            self._answers[members] = joined
        return self._answers[members]

    def _fold_answers(self, members: Members, fold: int) -> Answers:
        if not self.mix(members, fold):
            return {head: values[self.fold == fold] for head, values in self._answers[members[:1]].items()}
        return self._kept(predict_rows(self.network, self.data.source, self.data.valid_rows(fold)))

    def mix(self, members: Members, fold: int) -> bool:
        """Put the average of these runs' weights of a fold into the network.

        Returns:
            Whether it is any other than the first one's: an average of equal weights is these weights, and keeps their
            BatchNorm statistics, too.
        """
        members = tuple(sorted(members))
        paths = [self.runs[place].checkpoint(fold) for place in members]
        first, mean = read_weights(paths[0])[0], mean_state(paths)
        load_weights(self.network, mean, where=f"the average of {[self.runs[place].name for place in members]}")
        if _equal(first, mean):
            return False
        recompute_batch_norm(self.network, self._train_images(fold), device=self._device)
        return True

    def _train_images(self, fold: int) -> Iterator[torch.Tensor]:
        """Yield train images of a fold as the best run's training saw them, but not mixed."""
        config, rows = self.runs[0].config, self.data.train_rows(fold)
        stream = TrainStream(
            self.data.source,
            self.data.by_row,
            rows,
            batch_size=min(config.loader.batch_size, len(rows)),
            epochs=1,
            seed=config.seed * 1000 + fold,
            augment=make_augment(config, self.task),
            row_weights=row_weights(self.task, config.sampling, self.data.by_row, rows),
        )
        for step in range(min(len(stream), max(1, MOST_IMAGES // stream.batch_size))):
            yield from torch.split(stream[step].images, config.loader.micro_batch or stream.batch_size)

    def _kept(self, probs: Probs) -> Answers:
        """Return what scoring needs of (N, C) probabilities: a class is 1 number, and there are many sets of runs."""
        if self.task.metric not in CLASS_METRICS:
            return probs
        many = self.task.multilabel_heads
        return {h: (p >= HALF).astype(np.uint8) if h in many else p.argmax(axis=1) for h, p in probs.items()}


def _equal(one: State, other: State) -> bool:
    # three equal weights' mean may differ from them in the last digit
    return all(torch.allclose(tensor, other[name], rtol=1e-6, atol=0) for name, tensor in one.items())


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
