"""Greedy soups of runs: in every fold the mean of several trainings' weights, as a run like any other.

A soup costs at prediction what one of its ingredients costs. It helps where trainings started from the same weights,
such as pretrained ones, and differ in their settings or seeds: else nothing good lies between their weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.blending.ingredients import check_ingredients
from kaggle_kit.blending.joining import SOUP_FACTS
from kaggle_kit.blending.tasting import Tasting
from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.metrics import gain
from kaggle_kit.predictions import Predictions, concatenate
from kaggle_kit.progress import progress_bar, say
from kaggle_kit.runs import FoldSummary, Run, fold_folder, read_run, write_run
from kaggle_kit.scores import DRAWS, bootstrap_heads, middle_part, score_answers, score_split
from kaggle_kit.settings import build, plain
from kaggle_kit.train.averaging import Choice
from kaggle_kit.train.checkpoint import CheckpointInfo, save_checkpoint
from kaggle_kit.train.crossval import describe_environment, report_on
from kaggle_kit.train.predict import predict_rows
from kaggle_kit.train.record import OOF
from kaggle_kit.train.run_folder import (
    LOCK,
    MARKER,
    check_folder,
    claimed,
    finish_fold,
    finished_folds,
    is_complete,
    known_id,
    unfinish_fold,
)

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A run that was tried.

    Attributes:
        name: The run's.
        score: Out of fold, of the average of those kept before and this one; of the first run: alone.
        kept: Whether it is in the soup.
    """

    name: str
    score: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Soup:
    """A soup, and how it was chosen.

    Attributes:
        run: The soup; where averaging helps nothing, the best ingredient as it was.
        members: The runs whose weights are averaged, best first.
        tried: All runs, in the order in which they were tried.
        alone: Out-of-fold score of the best ingredient.
        gain: By how much the soup is better, on the images that its members were chosen on.
        interval: Of `gain`: it lies between these two on 95 % of resamples of the images; None with one member.
        nested: The score where every fold is scored by the members that the other folds choose; None with one member,
            and where the metric has no value without a fold.
        renewed: The score of the best ingredient with BatchNorm statistics taken as the soup's are: what of the gain is
            not due to averaging; None with one member, and without BatchNorm.
        note: All this in a sentence.
    """

    run: Run
    members: tuple[str, ...]
    tried: tuple[Tried, ...]
    alone: float
    gain: float = 0.0
    interval: tuple[float, float] | None = None
    nested: float | None = None
    renewed: float | None = None
    note: str = ""

    @property
    def is_written(self) -> bool:
        """Whether there is a new run: False where the best ingredient is better alone than with any other."""
        return len(self.members) > 1


def make_soup(runs: Sequence[Run], out: Path, *, overwrite: bool = False) -> Soup:
    """Average the weights of those runs that make the average no worse out of fold, and write a run of it.

    The members are the same in every fold. Runs are tried from the best on: each is in if the average with it, in every
    fold, scores at least as well over all folds' validation images. BatchNorm layers of an average get statistics of
    their own, on train images of the fold.

    Where only the best run stays, nothing is written: no averaging helped, and a copy of that run would be of no use.
    `Soup.is_written` is then False, and `Soup.note` says so.

    Source: Wortsman 2022, https://arxiv.org/abs/2203.05482, algorithm 1. There the images that choose are no others;
    here they are the out-of-fold ones, on which the gain is too high by the choice: `Soup.nested` is not.

    Args:
        runs: Finished runs of one architecture with the same folds, all trained; names all different.
        out: The soup's run folder: new, or of a soup of the same runs, which is returned if it is finished and made
            anew if it is not.
        overwrite: Replace another run that is there; its folder is emptied first.

    Raises:
        SettingError: For fewer than two runs, or runs of other tasks or architectures.
        DataError: For runs of other images or folds, or when `out` holds something else.
        CheckpointError: When a run's checkpoint is missing or damaged.
        PredictionError: When a run's oof.npz lacks images.
    """
    check_ingredients(runs)
    if out.resolve() in {run.folder.resolve() for run in runs}:
        raise SettingError(f"`out` is {out}, a run that is to be averaged; choose another folder")
    check_folder(out)
    metric = runs[0].task.metric
    ranked = sorted(runs, key=lambda run: (-gain(metric, run.score.total, 0), run.name))
    plan = {"soup": sorted(f"{run.name} {run.id} {run.created}" for run in runs)}
    with claimed(out, plan, overwrite=overwrite), _nothing_left(out):
        before = finished_folds(out)
        if before and is_complete(out, before):
            say(f"{out}: this soup is finished; nothing is left to do")
            return read_soup(out)
        tasting = Tasting(ranked)
        with progress_bar((len(runs) - 1) * len(tasting.folds), "soup: averages of folds", unit="fold") as bar:
            choice = tasting.choose(advance=bar.update)
        if len(choice.members) == 1:
            return _nothing_gained(ranked, choice)
        return _written(tasting, choice, out)


def read_soup(folder: Path) -> Soup:
    """Read the run that `make_soup` wrote, and how it was chosen.

    Raises:
        DataError: When the folder holds no finished run, or one that is no soup.
    """
    run, path = read_run(folder), folder / SOUP_FACTS
    if not path.is_file():
        raise DataError(f"{folder} is a run, and no soup of runs (no {SOUP_FACTS}); give one that `make_soup` wrote")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise DataError(f"{path} is no soup of format {FORMAT}, which this version reads; make the soup again")
        return build(Soup, {**values, "run": run})
    except (json.JSONDecodeError, SettingError) as error:
        raise DataError(f"{path} does not read ({error}); make the soup again") from None


def format_soup(soup: Soup) -> list[str]:
    """Return a table of the runs in the order they were tried, and the note."""
    width = max(len("run"), *(len(one.name) for one in soup.tried)) + 2
    rows = [
        f"{one.name:<{width}}{one.score:>8.4f}  {'in' if one.kept else 'left out'}"
        + ("" if place else ", alone the best")
        for place, one in enumerate(soup.tried)
    ]
    return [f"{'run':<{width}}{'with it':>8}", *rows, soup.note]


def _nothing_gained(ranked: Sequence[Run], choice: Choice) -> Soup:
    best, tried = ranked[0], _tried(ranked, choice)
    nearest = max(tried[1:], key=lambda one: gain(best.task.metric, one.score, 0))
    note = (
        f"no soup is written: averaging helps none of {len(ranked)} runs. {best.name!r} scores {tried[0].score:.4f} "
        f"alone, and {nearest.score:.4f} averaged with {nearest.name!r}, the next best that it was tried with; most "
        "likely they were trained from different starts"
    )
    return Soup(run=best, members=(best.name,), tried=tried, alone=tried[0].score, note=note)


def _tried(ranked: Sequence[Run], choice: Choice) -> tuple[Tried, ...]:
    return tuple(
        Tried(name=run.name, score=score, kept=place in choice.members)
        for place, (run, score) in enumerate(zip(ranked, choice.scores, strict=True))
    )


def _written(tasting: Tasting, choice: Choice, out: Path) -> Soup:
    """Write the chosen soup's run; run.json comes last but for its page."""
    best, task = tasting.runs[0], tasting.task
    (out / "run.json").unlink(missing_ok=True)
    with progress_bar(len(tasting.folds), "soup: writing folds", unit="fold") as bar:
        summaries = {}
        for fold in tasting.folds:
            summaries[fold] = _write_fold(tasting, choice.members, fold, out)
            bar.update()
    oof = concatenate([Predictions.load(fold_folder(out, fold) / OOF) for fold in tasting.folds])
    oof.save(out / OOF)
    with replacing(out / "folds.parquet") as temporary:
        shutil.copyfile(best.folder / "folds.parquet", temporary)
    members = tuple(tasting.runs[place].name for place in choice.members)
    run = Run(
        folder=out,
        task=task,
        config=best.config,
        data=best.data,
        packed=best.packed,
        packed_key=best.packed_key,
        scores=score_split(task, tasting.truth, oof.probs, tasting.unseen, draws=DRAWS, groups=tasting.groups),
        folds=summaries,
        environment={**describe_environment(), "soup of": ", ".join(members)},
        id=known_id(out),
    )
    soup = _measured(tasting, choice, Soup(run=run, members=members, tried=_tried(tasting.runs, choice), alone=0), oof)
    facts = {one.name: plain(getattr(soup, one.name)) for one in dataclasses.fields(soup) if one.name != "run"}
    with replacing(out / SOUP_FACTS) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **facts}, indent=1, ensure_ascii=False), encoding="utf-8")
    write_run(run)
    report_on(out)
    return dataclasses.replace(soup, run=read_run(out))


def _write_fold(tasting: Tasting, members: tuple[int, ...], fold: int, out: Path) -> FoldSummary:
    best, task, folder = tasting.runs[0], tasting.task, fold_folder(out, fold)
    unfinish_fold(out, fold)
    tasting.mix(members, fold)
    own = tasting.fold == fold
    probs = predict_rows(tasting.network, tasting.data.source, tasting.data.valid_rows(fold))
    score = score_answers(task, {head: values[own] for head, values in tasting.truth.items()}, probs)
    epoch = best.folds[fold].epoch
    info = CheckpointInfo(task=task, config=best.config, fold=fold, epoch=epoch, score=score, weights="soup")
    save_checkpoint(folder / "best.safetensors", tasting.network, info)
    Predictions(ids=tasting.ids[own], probs=probs, multilabel=task.multilabel_heads).save(folder / OOF)
    summary = FoldSummary(
        epoch=epoch,
        score=score,
        seconds=round(sum(tasting.runs[place].folds[fold].seconds for place in members), 1),
        weights="soup",
        scores={"soup": score.total},
    )
    finish_fold(out, fold, summary)
    return summary


def _measured(tasting: Tasting, choice: Choice, soup: Soup, oof: Predictions) -> Soup:
    """Return the soup with what is known of its gain over the best ingredient."""
    task = tasting.task
    with progress_bar(len(set(tasting.parts.tolist())), "soup: chosen without a fold", unit="fold") as bar:
        nested = tasting.nested_score(advance=bar.update)
    with progress_bar(len(tasting.folds), "soup: BatchNorm of the best alone", unit="fold") as bar:
        renewed = tasting.score_renewed(advance=bar.update)
    answers = [tasting.answers((0,)), oof.probs]
    drawn = bootstrap_heads(task, tasting.truth, answers, draws=DRAWS, groups=tasting.groups)  # (draws, 2, heads)
    weights = np.array([head.weight for head in task.heads.values()])
    gains = gain(task.metric, 1, 0) * (drawn[:, 1] - drawn[:, 0]) @ (weights / weights.sum())
    (interval,) = middle_part(gains[:, None])
    alone = choice.scores[0]
    gained = gain(task.metric, soup.run.score.total, alone)
    note = (
        f"the mean of {len(soup.members)} of {len(soup.tried)} runs' weights scores {soup.run.score.total:.4f}; "
        f"{soup.members[0]!r}, the best of them, scores {alone:.4f} alone: better by {gained:.4f} [{interval[0]:.4f}, "
        f"{interval[1]:.4f}] on the images that the members were chosen on"
    )
    note += "" if nested is None else f"; with members chosen without the fold that they are scored on: {nested:.4f}"
    note += "" if renewed is None else f"; {soup.members[0]!r} alone with new BatchNorm statistics: {renewed:.4f}"
    return dataclasses.replace(
        soup, alone=alone, gain=gained, interval=interval, nested=nested, renewed=renewed, note=note
    )


@contextlib.contextmanager
def _nothing_left(out: Path) -> Iterator[None]:
    """Leave no folder behind where nothing was written but the claim to it, which the caller holds."""
    try:
        yield
    finally:
        if {path.name for path in out.iterdir()} <= {MARKER, LOCK}:
            shutil.rmtree(out, ignore_errors=True)
