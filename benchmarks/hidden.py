"""What runs say of a hidden test, and how it scores: shared by benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kaggle_kit.ensemble import mean_probs
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.scores import Score, score_answers
from kaggle_kit.sources import open_source
from kaggle_kit.submission import read_submission
from kaggle_kit.task import Task
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.predict import EVAL_BATCH, predict_batches


def predict_hidden(task: Task, runs: Sequence[Run], hidden: Path) -> list[Predictions]:
    """Return what each run's networks, averaged over its folds, say of a hidden test's images."""
    source = open_source(task, "test", hidden)
    images = np.concatenate([chunk.images for chunk in source.chunks()])
    batches = np.array_split(images, max(1, len(images) // EVAL_BATCH))
    said = []
    for run in runs:
        networks = [load_checkpoint(run.checkpoint(fold))[0] for fold in run.folds]
        probs = mean_probs([predict_batches(network, batches) for network in networks])
        said.append(Predictions(ids=source.ids, probs={head: probs[head] for head in task.heads}))
    return said


def score_hidden(task: Task, said: Predictions, hidden: Path) -> Score:
    """Return the score of a hidden test with the interval of its images resampled."""
    ids, truth = read_submission(task, hidden / "solution.csv")
    return score_answers(task, truth, said.align(ids).probs, draws=1000)
