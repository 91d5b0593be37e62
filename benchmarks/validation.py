"""Does validation tell the truth? Folds, cross-validated scores and decision rules against a hidden test.

    python benchmarks/validation.py folds DATA_FOLDER
    python benchmarks/validation.py digits --work WORK_FOLDER
    python benchmarks/validation.py bangla DATA_FOLDER --work WORK_FOLDER

`folds`: how far classes are from their shares in our folds, in MultilabelStratifiedKFold's (iterative-stratification,
given one-hot labels; pip install it) and in 200 random tries; and the seconds for 200,840 rows of 1,295 graphemes.
`digits`: five samples; stratified and unseen folds, out-of-fold scores on seen and unseen combinations, the hidden
test's, and the gain of the decision rule in both. `bangla`: real handwriting, leaving out one writer after the other.
Finished trainings in --work are kept, so that a run cut short goes on.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from real_data import PLANS, make_competition

from kaggle_kit.decision import Decision
from kaggle_kit.decision_fitting import FittedDecision, fit_decision
from kaggle_kit.ensemble import mean_probs
from kaggle_kit.folds import Scheme, make_folds
from kaggle_kit.folds.check import label_deviation
from kaggle_kit.labels import Labels, read_labels, unseen_combinations
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runs import Run, read_run
from kaggle_kit.sample import make_sample
from kaggle_kit.sample_digits import HEADS, plan_digits
from kaggle_kit.scores import bootstrap_heads, metric_value, middle_part, score_split
from kaggle_kit.sources import open_source, resolve_stored
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task, read_task
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import LoaderConfig, ModelConfig, OptimConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.predict import EVAL_BATCH, predict_batches

PARTS = ("all", "seen", "unseen")
UNSEEN_SHARE = 0.275  # of the digits sample's hidden test, known beforehand
DIGITS = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(48, 80)),
    optim=OptimConfig(lr=4e-3),
    loader=LoaderConfig(batch_size=32),
    epochs=9,
)
BANGLA = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(64, 96)),
    optim=OptimConfig(lr=4e-3),
    loader=LoaderConfig(batch_size=32),
    epochs=30,
)


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A run and what its fold models say of a hidden test.

    Attributes:
        run: The run.
        truth: Of the hidden test.
        unseen: (N,) True where no train image shows the combination.
        models: {head: (N, C)} of each fold model.
    """

    run: Run
    truth: Labels
    unseen: np.ndarray
    models: list[Probs]

    @property
    def blend(self) -> Probs:
        """Their mean."""
        return mean_probs(self.models)


def train_and_test(
    task: Task, config: TrainConfig, scheme: Scheme, *, data: Path, hidden: Path, work: Path, num_folds: int, seed: int
) -> Tested:
    """Train one network a fold, unless that was done before, and predict the hidden test with each."""
    out = work / scheme
    labels = read_labels(task, data)
    if not (out / "run.json").is_file():
        stored = resolve_stored(task, data)
        store = pack_train(stored, data, work / "packed")
        equal = store.duplicate_groups()[rows_of(labels.ids, store.ids)]
        folds = make_folds(
            labels, scheme, num_folds=num_folds, seed=seed, duplicates=equal, unseen_share=UNSEEN_SHARE, rare="train"
        )
        train_run(stored, config, data=data, folds=folds, out=out, packed=store.folder, overwrite=True)
    run = read_run(out)
    ids, truth = read_submission(task, hidden / "solution.csv")
    solution = Labels(ids=ids, classes=truth)
    models = [_predict(run, fold, hidden).align(ids).probs for fold in run.folds]
    return Tested(run=run, truth=solution, unseen=unseen_combinations(solution, labels), models=models)


def _predict(run: Run, fold: int, hidden: Path) -> Predictions:
    """Return what one fold model says of the hidden test, from a file where it said so before."""
    kept = run.folder / f"fold{fold}" / "hidden.npz"
    if not kept.is_file():
        network, _ = load_checkpoint(run.checkpoint(fold))
        source = open_source(run.task, "test", hidden)
        images = np.concatenate([chunk.images for chunk in source.chunks()])
        probs = predict_batches(network, np.array_split(images, max(1, len(images) // EVAL_BATCH)))
        Predictions(ids=source.ids, probs=probs).save(kept)
    return Predictions.load(kept)


def compare_folds(data: Path) -> None:
    """Print how alike folds are, and how long the largest take."""
    labels = {
        "digits, 4,200 rows": read_labels_of_digits(),
        "Bengali handwriting, 2,209 rows": bangla_labels(data),
        "Bengali.AI's graphemes, 200,840 rows": bengali_sized(data),
    }
    print("| labels | folds | head | kaggle_kit | MultilabelStratifiedKFold, best of 5 | best of 200 random | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, one in labels.items():
        for num_folds in (2, 5):
            ours = make_folds(one, num_folds=num_folds, rare="train")
            kept = one.take(np.flatnonzero(ours.fold >= 0))
            others = [mskf(kept, num_folds, seed) for seed in range(5 if len(one) < 10_000 else 1)]
            random = (np.random.default_rng(seed).permutation(len(kept)) % num_folds for seed in range(200))
            best = np.min([[label_deviation(c, fold) for c in kept.classes.values()] for fold in random], axis=0)
            for column, (head, classes) in enumerate(kept.classes.items()):
                mine = label_deviation(one.classes[head], ours.fold)
                theirs = min(label_deviation(classes, fold) for fold in others)
                ratio = mine / min(theirs, best[column])
                print(
                    f"| {name} | {num_folds} | {head} | {mine:.6f} | {theirs:.6f} | {best[column]:.6f} | {ratio:.2f} |"
                )
    print("\n200,840 rows, 3 heads, 1,295 groups, 5 folds:\n")
    print("| scheme | seconds | unseen images | largest deviation of a head |")
    print("|---|---|---|---|")
    large = labels["Bengali.AI's graphemes, 200,840 rows"]
    for scheme in ("stratified", "grouped", "stratified-grouped", "unseen", "holdout", "leave-one-group-out"):
        started = time.perf_counter()
        folds = make_folds(large, scheme)
        seconds = time.perf_counter() - started
        worst = max(label_deviation(classes, folds.fold) for classes in large.classes.values())
        unseen = folds.unseen[folds.fold >= 0].mean()
        print(f"| {scheme} | {seconds:.1f} | {unseen:.1%} | {'' if folds.num_folds in (1, 1295) else f'{worst:.6f}'} |")


def mskf(labels: Labels, num_folds: int, seed: int) -> np.ndarray:
    """Return (N,) folds by iterative-stratification's MultilabelStratifiedKFold on one-hot labels."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    one_hot = np.concatenate([np.eye(c.max() + 1, dtype=np.int8)[c] for c in labels.classes.values()], axis=1)
    fold = np.empty(len(labels), np.int64)
    splitter = MultilabelStratifiedKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    for number, (_, inside) in enumerate(splitter.split(np.zeros(len(labels)), one_hot)):
        fold[inside] = number
    return fold


def read_labels_of_digits() -> Labels:
    """Return the labels of the default digits sample, without drawing its images."""
    plan = plan_digits(seed=0, num_train=4200, num_test=2100)
    columns = np.array([drawing.labels for drawing in plan.train]).T
    return Labels(ids=np.arange(4200).astype(np.str_), classes=dict(zip(HEADS, columns, strict=True)))


def bangla_labels(data: Path) -> Labels:
    """Return all labels of the handwriting, writers as groups."""
    with zipfile.ZipFile(data / "bangla_handwriting.zip") as files:
        rows = list(csv.DictReader(io.TextIOWrapper(files.open("labels.csv"), "utf-8")))
    classes = {h: np.unique([row[h] for row in rows], return_inverse=True)[1] for h in ("root", "vowel", "consonant")}
    ids = np.array([row["image_id"] for row in rows])
    return Labels(ids=ids, classes=classes, groups=np.array([row["writer"] for row in rows]))


def bengali_sized(data: Path) -> Labels:
    """Return 200,840 rows of 1,295 of Bengali.AI's graphemes, unevenly common, the grapheme as group."""
    with (data / "bengali_graphemes.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[:1295]
    rng = np.random.default_rng(0)
    weights = rng.gamma(8, 1, len(rows))
    drawn = rng.choice(len(rows), 200_840 - len(rows), p=weights / weights.sum())
    picks = rng.permutation(np.concatenate([np.arange(len(rows)), drawn]))
    columns = [np.unique([row[name] for row in rows], return_inverse=True)[1][picks] for name in list(rows[0])[1:4]]
    return Labels(
        ids=np.arange(len(picks)).astype(np.str_),
        classes=dict(zip(HEADS, columns, strict=True)),
        groups=picks.astype(np.str_),
    )


def digits(work: Path, seeds: list[int]) -> None:
    """Train on samples, and print what cross-validation and the hidden test say."""
    found = {}
    for seed in seeds:
        sample = make_sample("digits", work / f"seed{seed}" / "sample", seed=seed)
        for scheme in ("unseen", "stratified"):
            found[seed, scheme] = train_and_test(
                read_task(sample.task),
                DIGITS,
                scheme,
                data=sample.data,
                hidden=sample.hidden,
                work=work / f"seed{seed}",
                num_folds=3,
                seed=seed,
            )
    for scheme in ("unseen", "stratified"):
        print_agreement({f"seed {seed}": found[seed, scheme] for seed in seeds}, scheme)
    told, random = ({f"seed {seed}": found[seed, scheme] for seed in seeds} for scheme in ("unseen", "stratified"))
    print_promises(told, random)
    print_decisions({f"{scheme}, seed {seed}": tested for (seed, scheme), tested in found.items()})


def bangla(data: Path, work: Path, writers: list[str]) -> None:
    """Hold out one writer after the other; validate by the other writers, and at random."""
    found = {}
    for writer in writers:
        folder = work / f"writer{writer}"
        if not (folder / "task.yaml").is_file():
            make_competition("bangla", PLANS["bangla"], data / "bangla_handwriting.zip", folder, writer)
        task = read_task(folder / "task.yaml")
        for scheme in ("leave-one-group-out", "stratified"):
            found[writer, scheme] = train_and_test(
                task, BANGLA, scheme, data=folder / "data", hidden=folder / "hidden", work=folder, num_folds=3, seed=0
            )
    for scheme in ("leave-one-group-out", "stratified"):
        print_agreement({f"writer {writer}": found[writer, scheme] for writer in writers}, scheme)
    print_decisions({f"{scheme}, writer {writer}": tested for (writer, scheme), tested in found.items()})


def print_agreement(tested: dict[str, Tested], scheme: str) -> None:
    """Print out-of-fold scores beside the hidden test's, of the fold models' mean and of one fold model."""
    print(f"\n{scheme} folds: {next(iter(tested.values())).run.task.metric}\n")
    print(
        "| hidden test | combinations | images | CV | hidden, mean of folds | CV - that | one fold model | CV - that |"
    )
    print("|---|---|---|---|---|---|---|---|")
    gaps: dict[str, list[tuple[float, float]]] = {}
    for name, one in tested.items():
        for part in PARTS:
            cv = getattr(one.run.scores, part)
            together, alone = hidden_scores(one, part)
            if cv is None or together is None:
                continue
            gap = (cv.total - together, cv.total - alone)
            gaps.setdefault(part, []).append(gap)
            cells = f"{cv.total:.4f} | {together:.4f} | {gap[0]:+.4f} | {alone:.4f} | {gap[1]:+.4f}"
            print(f"| {name} | {part} | {cv.rows:,} | {cells} |")
    for part, values in gaps.items():
        mean, size = np.mean(values, axis=0), np.mean(np.abs(values), axis=0)
        texts = [f"{m:+.4f}, in size {s:.4f}" for m, s in zip(mean, size, strict=True)]
        print(f"| mean of {len(values)} | {part} | | | | {texts[0]} | | {texts[1]} |")


def hidden_scores(tested: Tested, part: str) -> tuple[float | None, float]:
    """Return the hidden test's total for a part: of the fold models' mean, and the mean of each alone."""
    task, truth, unseen = tested.run.task, tested.truth.classes, tested.unseen
    score = getattr(score_split(task, truth, tested.blend, unseen), part)
    if score is None:
        return None, 0.0
    alone = [getattr(score_split(task, truth, probs, unseen), part).total for probs in tested.models]
    return score.total, float(np.mean(alone))


def print_promises(told: dict[str, Tested], random: dict[str, Tested]) -> None:
    """Print by how much either validation misses the hidden test; random folds promise one number for all of it."""
    print("\n| hidden test | combinations | unseen folds miss by | random folds' one number misses by |")
    print("|---|---|---|---|")
    sums: dict[str, list[tuple[float, float]]] = {}
    for name, one in told.items():
        for part in ("seen", "unseen"):
            own, together = getattr(one.run.scores, part).total, hidden_scores(one, part)[0]
            other = hidden_scores(random[name], part)[0]
            assert together is not None and other is not None
            sums.setdefault(part, []).append((own - together, random[name].run.score.total - other))
            print(f"| {name} | {part} | {sums[part][-1][0]:+.4f} | {sums[part][-1][1]:+.4f} |")
    for part, values in sums.items():
        mean, size = np.mean(values, axis=0), np.mean(np.abs(values), axis=0)
        texts = [f"{m:+.4f}, in size {s:.4f}" for m, s in zip(mean, size, strict=True)]
        print(f"| mean of {len(values)} | {part} | {texts[0]} | {texts[1]} |")


def print_decisions(tested: dict[str, Tested]) -> None:
    """Print what decision rules gain by nested cross-validation and on the hidden test.

    They agree where they differ by less than the noise of both: the root of the sum of their intervals' squared halves.
    """
    print("\n| folds | head | rule | nested gain | 95 % interval | hidden gain | 95 % interval | agree | kept |")
    print("|---|---|---|---|---|---|---|---|---|")
    agree, kept = [], []
    for name, one in tested.items():
        fitted, hidden = fit_rules(one)
        for each in fitted.candidates:
            gain, interval = hidden[each.head, each.rule.rule]
            noise = np.hypot(np.ptp(each.interval) / 2, np.ptp(interval) / 2)
            agree.append(abs(each.nested_gain - gain) <= noise)
            cells = [f"{each.nested_gain:+.4f}", "{:+.4f} to {:+.4f}".format(*each.interval)]
            cells += [f"{gain:+.4f}", "{:+.4f} to {:+.4f}".format(*interval)]
            cells += ["yes" if agree[-1] else "no", "yes" if each.kept else "no"]
            print(f"| {name} | {each.head} | {each.rule.rule} | {' | '.join(cells)} |")
        before, after = (
            score_split(one.run.task, one.truth.classes, answers, None).all.total
            for answers in (one.blend, fitted.decision.decide(one.blend))
        )
        nested = fitted.nested.total - fitted.argmax.total
        if not fitted.decision.is_plain:
            kept.append((nested, after - before))
        print(f"| {name} | all | as kept | {nested:+.4f} | | {after - before:+.4f} | | | |")
    signs = sum((nested > 0) == (gained > 0) for nested, gained in kept)
    print(f"\n{sum(agree)} of {len(agree)} rules agree within noise; of {len(kept)} decisions with a rule kept,")
    print(f"{signs} have gains of one sign")


def fit_rules(tested: Tested) -> tuple[FittedDecision, dict[tuple[str, str], tuple[float, tuple[float, float]]]]:
    """Fit rules on out-of-fold predictions; return {(head, rule): (gain on the hidden test, its 95 % interval)} too."""
    run, task = tested.run, tested.run.task
    oof, folds, labels = run.oof(), run.fold_table(), run.labels()
    counts = {h: np.bincount(labels.classes[h], minlength=head.num_classes) for h, head in task.heads.items()}
    own = labels.align(oof.ids)
    fold, groups = folds.fold[folds.rows(oof.ids)], own.group_numbers()
    fitted = fit_decision(task, own.classes, oof.probs, fold, counts=counts, groups=groups)
    plain = Decision.argmax(task.heads).decide(tested.blend)
    rules = {(each.head, each.rule.rule): each.rule for each in fitted.candidates}
    names = sorted({rule for _, rule in rules})
    ruled = [
        Decision(heads={h: rules[h, name] for h in plain if (h, name) in rules}).decide(tested.blend) for name in names
    ]
    drawn = bootstrap_heads(task, tested.truth.classes, [plain, *ruled])  # (draws, 1 + rules, heads)
    found = {}
    for place, name in enumerate(names):
        for column, (head, kind) in enumerate(task.heads.items()):
            truth = tested.truth.classes[head]
            values = [metric_value(task.metric, truth, one[head], kind.num_classes) for one in (plain, ruled[place])]
            gains = (drawn[:, 1 + place, column] - drawn[:, 0, column])[:, None]
            found[head, name] = (values[1] - values[0], middle_part(gains)[0])
    return fitted, found


def main() -> None:
    """Run one part and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("folds", "digits", "bangla"))
    parser.add_argument("data", type=Path, nargs="?", help="folds, bangla: the folder with the archives")
    parser.add_argument("--work", type=Path, help="digits, bangla: a folder to work in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="digits: of the samples")
    parser.add_argument("--writers", nargs="+", default=["1", "2", "3", "4"], help="bangla: who is held out")
    options = parser.parse_args()
    print(f"{options.part}, {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}\n")
    if options.part == "folds":
        compare_folds(options.data)
    elif options.part == "digits":
        digits(options.work, options.seeds)
    else:
        bangla(options.data, options.work, options.writers)


if __name__ == "__main__":
    main()
