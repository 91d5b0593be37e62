"""Whether cleaning pays: training on a sample as it is, and on what is left when its audit's queue was gone through.

    python benchmarks/audit_cleaning.py --work DIR [--seeds 0,1,2] [--accept reviewed|pruned|listed]

Makes the sample `ships` of each seed, trains five folds on it as it is, and audits it with that run. Then somebody goes
through what the audit lists. `reviewed`: a person who is right about every picture shown, and so relabels those label
issues that are planted wrong labels, and them alone; what the audit does not list stays wrong. `pruned`, `listed`:
somebody who believes the audit without a look, and gives the suggested class to every label that confident learning
finds wrong, or to all label issues, those too of which the model merely says otherwise. All keep of duplicates the
first image whose label nobody questions, and drop gray, nearly empty and broken images. The same five-fold training
follows on the edited labels. Both are scored on the sample's hidden test, which is clean.
Some folds take off late, or in 30 epochs not at all, with clean labels too: the worst fold of both runs is shown.
Twenty minutes a seed on one core; what lies in DIR already (`audit_labels.py` makes the first runs too) is taken as it
is.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from audit_labels import NUM_FOLDS, train_config, trained_run
from hidden import predict_hidden, score_hidden

from kaggle_kit.audit.examine import Options, examine
from kaggle_kit.audit.findings import Finding, Kind
from kaggle_kit.audit.label_issues import is_pruned
from kaggle_kit.edits import Edit, make_edit, read_edited_labels, write_edits
from kaggle_kit.errors import DataError
from kaggle_kit.folds import make_folds
from kaggle_kit.runs import Run, read_run
from kaggle_kit.sample import Sample, make_sample
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import rows_of
from kaggle_kit.task import read_task
from kaggle_kit.train.crossval import train_run

DROPPED: tuple[Kind, ...] = ("gray", "empty", "broken")
Accept = Literal["reviewed", "pruned", "listed"]
TWINS: tuple[Kind, ...] = ("exact_duplicate", "near_duplicate")


def planted_labels(sample: Sample) -> dict[str, str]:
    """Return {image: what its label should be} of the sample's planted wrong labels."""
    with (sample.hidden / "defects.csv").open(newline="", encoding="utf-8") as lines:
        return {row["image"]: row["detail"] for row in csv.DictReader(lines) if row["kind"] == "wrong_label"}


def accepted(findings: Iterable[Finding], accept: Accept, planted: Mapping[str, str]) -> list[Edit]:
    """Return the edits of somebody who goes through what an audit lists about train images."""
    own = [one for one in findings if one.split == "train" and one.score >= 0]  # below 0: a trait of its class
    issues = {one.id: one for one in own if one.kind == "label_issue"}
    if accept == "reviewed":
        issues = {name: one for name, one in issues.items() if name in planted}
    elif accept == "pruned":
        issues = {name: one for name, one in issues.items() if is_pruned(one)}
    groups: dict[tuple[Kind, int], list[str]] = defaultdict(list)
    for one in own:
        if one.kind in TWINS:
            groups[one.kind, one.group].append(one.id)
    dropped = {one.id: one.kind for one in own if one.kind in DROPPED}
    for (kind, _), names in groups.items():
        left = [name for name in names if name not in dropped]
        kept = next((name for name in left if name not in issues), left[0] if left else "")
        dropped.update(dict.fromkeys(set(left) - {kept}, kind))
    edits = [make_edit("drop", id=name, why=kind, by="audit") for name, kind in sorted(dropped.items())]
    for name, one in sorted(issues.items()):
        if name not in dropped:
            right = planted[name] if accept == "reviewed" else one.suggested
            edits.append(make_edit("relabel", id=name, head=one.head, value=right, by="audit"))
    return edits


def cleaned_run(sample: Sample, first: Run, work: Path, *, model: str, epochs: int, seed: int, accept: Accept) -> Run:
    """Return a run on the sample's labels after somebody went through the audit of the first run."""
    out = work / f"{model}-{epochs}-{accept}"
    try:
        return read_run(out)
    except DataError:
        pass
    audit = examine(first.task, sample.data, work / f"audit-{accept}", Options(runs=(first.folder,), seed=seed))
    edits = work / f"{accept}.jsonl"
    write_edits(accepted(audit.findings, accept, planted_labels(sample)), edits)
    task = read_task(sample.task)
    labels = read_edited_labels(task, sample.data, edits)
    store = PackedSource(work / "packed")
    duplicates = store.duplicate_groups()[rows_of(labels.ids, store.ids)]
    folds = make_folds(labels, "stratified", num_folds=NUM_FOLDS, seed=seed, duplicates=duplicates)
    config = train_config(model=model, epochs=epochs, seed=seed, edits=str(edits))
    return train_run(task, config, data=sample.data, folds=folds, out=out, packed=store.folder)


def compare(work: Path, *, model: str, epochs: int, seed: int, accept: Accept = "reviewed") -> tuple[Sample, Run, Run]:
    """Return a seed's sample, a run on it as it is, and a run on it cleaned."""
    sample = make_sample("ships", work / "sample", seed=seed)
    first = trained_run(sample, work, model=model, epochs=epochs, seed=seed)
    return sample, first, cleaned_run(sample, first, work, model=model, epochs=epochs, seed=seed, accept=accept)


def main() -> None:
    """Train twice a seed, score both, and print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--accept", choices=get_args(Accept), default="reviewed", help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = (
        "seed",
        "relabelled",
        "dropped",
        "hidden, as it is",
        "hidden, cleaned",
        "gain",
        "worst folds",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    gains = []
    for seed in map(int, options.seeds.split(",")):
        work = options.work / f"seed{seed}"
        sample, first, second = compare(
            work, model=options.model, epochs=options.epochs, seed=seed, accept=options.accept
        )
        said = predict_hidden(first.task, [first, second], sample.hidden)
        scores = [score_hidden(first.task, one, sample.hidden) for one in said]
        edits = second.labels().edits
        drops = sum(edit.action == "drop" for edit in edits)
        gains.append(scores[1].total - scores[0].total)
        cells = [f"{one.total:.4f} ({one.interval[0]:.4f} to {one.interval[1]:.4f})" for one in scores if one.interval]
        worst = ", ".join(f"{min(fold.score.total for fold in one.folds.values()):.2f}" for one in (first, second))
        cells = [str(seed), str(len(edits) - drops), str(drops), *cells, f"{gains[-1]:+.4f}", worst]
        print(f"| {' | '.join(cells)} |", flush=True)
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    print(f"\nmean gain {statistics.mean(gains):+.4f}, standard deviation over seeds {spread:.4f}")


if __name__ == "__main__":
    main()
