"""Every claim of the two write-ups, tested: a training a claim and seed, scored on hidden tests, written as claims.md.

    apt-get install fonts-beng-extra fonts-lohit-beng-bengali fonts-noto-core        # Debian: the stand-in's fonts
    python benchmarks/claims.py DATA_FOLDER --work DIR [--seeds 0,1,2] [--minutes 100] [--write benchmarks/claims.md]

Two grounds. *Handwriting*: 35 roots of Bengali graphemes by 4 writers, one writer held out as the hidden test, another
for every seed. *Stand-in*: 6,000 train and 6,000 hidden images rendered from fonts, with the 168 roots of Bengali.AI;
two fonts and a third of the graphemes are in the hidden test alone. A third, the sample `ships`, is for the cleaning of
labels. Every training is one change to its ground's base; seeds change weights, order, augmentation and folds.
Trainings run in `--processes`, one thread each, begin in the order of the claims as long as `--minutes` last, and are
kept in DIR: a second call goes on. `--minutes 0` only writes what is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_cleaning import Accept, compare
from claim_list import CLAIMS, Claim, Pair, Part
from claim_runs import ARMS, BASE, HIDDEN_IMAGES, TRAIN_IMAGES, make_grounds, measure, read_outcome
from hidden import predict_hidden
from machine import describe_machine

from kaggle_kit.predictions import Predictions
from kaggle_kit.scores import bootstrap_heads, head_weights, middle_part, score_answers
from kaggle_kit.submission import read_submission

DRAWS = 1000
TAKEN_OFF = 0.7  # of a fold's score; one below it has not learned the task, whatever its labels are
UNSTEADY = "no answer: some folds did not take off"
SHIPS_MODEL, SHIPS_EPOCHS = "test_resnet", 30


def clean_ships(accept: Accept, work: Path, seed: int) -> None:
    """Train on the sample ships as it is and cleaned, unless that was done."""
    torch.set_num_threads(1)
    compare(work / "ships" / f"seed{seed}", model=SHIPS_MODEL, epochs=SHIPS_EPOCHS, seed=seed, accept=accept)


def ships_pair(accept: Accept, work: Path, seed: int) -> Pair | None:
    """Return the answers with and without cleaning; None where it was not measured."""
    folder = work / "ships" / f"seed{seed}" / f"{SHIPS_MODEL}-{SHIPS_EPOCHS}-{accept}"
    if not (folder / "run.json").is_file():
        return None
    sample, first, second = compare(folder.parent, model=SHIPS_MODEL, epochs=SHIPS_EPOCHS, seed=seed, accept=accept)
    old, new = predict_hidden(first.task, [first, second], sample.hidden)
    ids, truth = read_submission(first.task, sample.hidden / "solution.csv")
    aligned: list[Predictions] = [new.align(ids), old.align(ids)]
    return Pair(
        task=first.task,
        truth=truth,
        unseen=np.zeros(len(ids), bool),
        new=aligned[0].probs,
        old=aligned[1].probs,
        cost=None,  # wall clock alone is kept of these
        worst_fold=min(fold.score.total for run in (first, second) for fold in run.folds.values() if fold.score),
    )


def gains(pairs: Sequence[Pair], part: Part) -> tuple[list[float], tuple[float, float], tuple[float, float]]:
    """Return each seed's gain, the 95 % interval of their mean, and the mean scores without and with.

    Hidden images are resampled: the same ones for all seeds where they have one hidden test, so that an image that is
    easy for one is so for all; else each seed's own.
    """
    drawn, scores = list[Any](), list[float]()
    shared = len({one.truth[head].tobytes() for one in pairs for head in one.truth}) == len(pairs[0].truth)
    groups: list[Sequence[Pair]] = [pairs] if shared else [[one] for one in pairs]
    for group in groups:
        first = group[0]
        rows = np.flatnonzero((part == "all") | (first.unseen == (part == "unseen")))
        truth = {head: values[rows] for head, values in first.truth.items()}
        answers = [{h: one[h][rows] for h in first.task.heads} for pair in group for one in (pair.old, pair.new)]
        weights = head_weights(first.task)
        values = bootstrap_heads(first.task, truth, answers, draws=DRAWS, seed=len(drawn)) @ weights  # (draws, answers)
        drawn += [values[:, at + 1] - values[:, at] for at in range(0, len(answers), 2)]
        scores += [score_answers(first.task, truth, one).total for one in answers]
    each = [new - old for old, new in zip(scores[::2], scores[1::2], strict=True)]
    (interval,) = middle_part(np.mean(drawn, axis=0)[:, None])
    return each, interval, (float(np.mean(scores[::2])), float(np.mean(scores[1::2])))


def verdict(each: Sequence[float], interval: tuple[float, float]) -> str:
    """Say what seeds and interval come to; both must agree, and one seed proves nothing."""
    if len(each) < 2:
        return f"one seed: {'higher' if each[0] > 0 else 'lower'}"
    if interval[0] > 0 and min(each) > 0:
        return "helps"
    if interval[1] < 0 and max(each) < 0:
        return "hurts"
    return "within noise"


def rows_of_claim(claim: Claim, work: Path, seeds: Sequence[int]) -> Iterable[str]:
    """Yield the table's lines of a claim."""
    pairs, used = [], []
    for seed in seeds:
        if claim.cleaning:
            pair = ships_pair(claim.cleaning, work, seed)
        else:
            found = [one for one in (read_outcome(arm, work, seed) for arm in claim.arms) if one is not None]
            pair = claim.pair(found) if len(found) == len(claim.arms) else None
        if pair is not None:
            pairs.append(pair)
            used.append(seed)
    if not pairs:
        yield f"| {claim.title} | {claim.reported} | {claim.ground} | not measured | | | | | |"
        return
    costs = [one.cost for one in pairs if one.cost]
    cost = " to ".join(f"{value:.1f}" for value in np.mean(costs, axis=0)) if costs else ""
    for part in claim.parts:
        each, (low, high), (old, new) = gains(pairs, part)
        name = claim.title if part == "all" else ""
        texts = [name, claim.reported, claim.ground] if name else ["", "", ""]
        texts.append(part if len(claim.parts) > 1 else "")
        texts += [f"{old:.4f} to {new:.4f}", f"{np.mean(each):+.4f} ({low:+.4f} to {high:+.4f})"]
        texts += [
            ", ".join(f"{seed}: {gain:+.4f}" for seed, gain in zip(used, each, strict=True)),
            cost if name else "",
            verdict(each, (low, high)) if min(one.worst_fold for one in pairs) >= TAKEN_OFF else UNSTEADY,
        ]
        yield "| " + " | ".join(texts) + " |"


@dataclass(frozen=True)
class Job:
    """One training: of an arm, or of the sample ships cleaned in one way."""

    seed: int
    arm: str = ""
    cleaning: Accept | None = None

    def needs(self) -> Job | None:
        """Return the job that must be done before, if any."""
        if self.cleaning:  # all ways of cleaning begin with one and the same run
            return None if self.cleaning == "reviewed" else Job(self.seed, cleaning="reviewed")
        before = ARMS[self.arm].weights_of or ARMS[self.arm].like
        return Job(self.seed, before) if before else None

    def work_off(self, work: Path) -> None:
        """Train, unless that was done."""
        if self.cleaning:
            clean_ships(self.cleaning, work, self.seed)
        else:
            measure(self.arm, work, self.seed)


def train_all(work: Path, seeds: Sequence[int], *, processes: int, minutes: float) -> None:
    """Train what is missing, claims in their order, until the minutes are over."""
    end = time.monotonic() + 60 * minutes
    wanted = dict.fromkeys(job for claim in CLAIMS for seed in seeds for job in _jobs_of(claim, seed))
    with ProcessPoolExecutor(processes) as pool:
        waiting, running, done = list(wanted), dict[Future[None], Job](), set[Job]()
        while (waiting and time.monotonic() < end) or running:
            free = processes - len(running) if time.monotonic() < end else 0
            for job in [one for one in waiting if one.needs() is None or one.needs() in done][:free]:
                waiting.remove(job)
                running[pool.submit(job.work_off, work)] = job
            time.sleep(0.2)
            for future in [one for one in running if one.done()]:
                future.result()
                done.add(running.pop(future))
    if waiting:
        print(f"{len(waiting)} trainings were not begun within {minutes:g} minutes", file=sys.stderr)


def _jobs_of(claim: Claim, seed: int) -> list[Job]:
    return [Job(seed, cleaning=claim.cleaning)] if claim.cleaning else [Job(seed, arm) for arm in claim.arms]


HEADER = """# The write-ups' claims, tested

Written by `{command}`.
{machine}.
No GPU: not measured on one. Scores are macro recall 2:1:1 (ships: weighted F1) on hidden tests that no training, choice
or fit has seen. Seeds {seeds}; "gain" is the mean over seeds, with the 95 % interval over resampled
hidden images; "each seed" shows how far seeds differ, and which of them the time was enough for.
A verdict other than "within noise" needs both: an interval that
leaves 0 out, and one sign for all seeds. Cost: minutes of processor time a training, without and with.

- *handwriting*: {writers}; base: {written}.
- *stand-in*: {train:,} train and {hidden:,} hidden images rendered from fonts by `render_bengali.py`, two fonts and a
  third of the graphemes in the hidden test alone; base: {base}.
  So short a training under-fits: what holds a network back cannot help here.
- *ships*: the sample with planted defects; five folds of test_resnet, 30 epochs; who goes through the audit's queue,
  and how, is said in `audit_cleaning.py`.
  In 30 epochs some folds do not take off, and they decide these rows: cleaned data have 7 % fewer images, and steps.
- *pretrained*: the start is the stand-in's base of the same seed. Twelve epochs made it, and its lower layers are no
  ImageNet's: freezing and low rates hold on to them, which may be why they cost here.

| claim | write-up's number | ground | images | score, without to with | gain | each seed | cost | verdict |
|---|---|---|---|---|---|---|---|---|
"""


def document(work: Path, seeds: Sequence[int], command: str) -> str:
    """Return claims.md."""
    lines = [line for claim in CLAIMS for line in rows_of_claim(claim, work, seeds)]
    header = HEADER.format(
        command=command,
        machine=describe_machine(("torch", "timm", "albumentations")),
        seeds=", ".join(map(str, seeds)),
        writers="35 roots by four writers, of whom one is held out, another for every seed",
        written=_in_words(BASE["handwriting"]),
        base=_in_words(BASE["stand-in"]),
        train=TRAIN_IMAGES,
        hidden=HIDDEN_IMAGES,
    )
    return header + "\n".join(lines) + "\n"


def _in_words(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}.{key} {value}" if key else f"{name} {value}"
        for name, group in settings.items()
        for key, value in (group.items() if isinstance(group, dict) else [("", group)])
    )


def main() -> None:
    """Train what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with bengali_graphemes.tsv and bangla_handwriting.zip")
    parser.add_argument("--work", type=Path, required=True, help="where data, runs and predictions are kept")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, a thread each")
    parser.add_argument("--minutes", type=float, default=100, help="begin no training later")
    parser.add_argument("--write", type=Path, help="write the document here; else it is printed")
    options = parser.parse_args()
    seeds = [int(text) for text in options.seeds.split(",")]
    if options.minutes:
        make_grounds(options.data, options.work, seeds)
        train_all(options.work, seeds, processes=options.processes, minutes=options.minutes)
    text = document(options.work, seeds, "python benchmarks/claims.py DATA_FOLDER --work DIR")
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
