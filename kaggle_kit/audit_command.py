"""`kaggle-kit audit`: look at a competition's data, and at what a model stumbles over."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import DONE, Result

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit
    from kaggle_kit.cli import Adder

_PURPOSE = (
    "look at all images, train and test: broken, odd, equal and nearly equal ones, class counts, drift; with --oof at "
    "wrong labels too; a report to read, and findings that folds and review take up"
)
_EXAMPLE = (
    "kaggle-kit audit ships ./ships/data --out audit\n"
    "  kaggle-kit audit ships ./ships/data --out audit --folds folds.parquet --oof runs/a runs/b\n"
    "  kaggle-kit review audit"
)
_WORDS = {
    "broken": "cannot be read",
    "missing_image": "named, and no image",
    "missing_label": "images, and not named",
    "exact_duplicate": "equal to another",
    "near_duplicate": "nearly equal to another",
    "gray": "gray among colour",
    "mode": "of an unusual mode",
    "size": "of an unusual size or shape",
    "empty": "nearly empty",
    "dark": "dark",
    "bright": "too bright",
    "blurred": "blurred",
    "rare_class": "rare classes",
    "drift": "test images unlike train",
    "label_issue": "labels that look wrong",
    "top_loss": "top losses",
}


def add_audit_parsers(add: Adder) -> None:
    """Add `audit`."""
    audit = add("audit", audit_data, _PURPOSE, _EXAMPLE)
    audit.add_argument("task", metavar="TASK", help="a preset's name, or the path of a task.yaml")
    audit.add_argument("data", type=Path, metavar="DATA", help="the folder with the competition's files; only read")
    audit.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder, or that of an earlier audit of this data: what is known of the images is kept, and so are "
        "the decisions in its edits.jsonl",
    )
    audit.add_argument("--folds", type=Path, metavar="FILE", help="also count each fold's classes, from folds.parquet")
    audit.add_argument(
        "--oof", type=Path, nargs="+", default=[], metavar="RUN", help="run folders: look at their predictions too"
    )
    audit.add_argument("--edits", type=Path, metavar="FILE", help="apply the decisions of an edits.jsonl to the labels")
    audit.add_argument(
        "--packed", type=Path, metavar="DIR", help="read the train images from this packed store (default: the files)"
    )
    audit.add_argument(
        "--embed",
        type=Path,
        metavar="RUN",
        help="also compare images as this run's network sees them: more near duplicates, and the map; reads all images "
        "once more",
    )
    audit.add_argument(
        "--map",
        choices=("auto", "pca", "umap"),
        default="auto",
        help="auto: UMAP where the extra [map] is installed, else the two main directions (default: %(default)s)",
    )
    audit.add_argument("--fast", action="store_true", help="leave out near duplicates and UMAP")
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: %(default)s)")


def audit_data(options: argparse.Namespace) -> tuple[Result, int]:
    """Audit a competition's data."""
    from kaggle_kit.audit.examine import Options, examine
    from kaggle_kit.audit.folder import REPORT, summary_of
    from kaggle_kit.audit.report import write_report
    from kaggle_kit.folds import Folds
    from kaggle_kit.progress import say
    from kaggle_kit.task import read_task

    asked = Options(
        folds=Folds.load(options.folds) if options.folds else None,
        runs=tuple(options.oof),
        edits=options.edits,
        packed=options.packed,
        embeddings=options.embed,
        fast=options.fast,
        map_method=options.map,
        seed=options.seed,
        called=options.task,
        folds_file=options.folds,
    )
    audit = examine(read_task(options.task), options.data, options.out, asked, say=say)
    report = options.out / REPORT
    write_report(audit, report)
    print("\n".join(format_audit(audit)))
    print(f"{report}: the report; {options.out / 'findings.parquet'}: {len(audit.findings):,} findings")
    return {**summary_of(audit), "out": options.out, "report": report}, DONE


def format_audit(audit: Audit) -> Iterator[str]:
    """Yield what a terminal shows of an audit."""
    images = ", ".join(f"{number:,} of {split}" for split, number in audit.counts.num_images.items())
    yield f"{audit.task.name}: {sum(audit.counts.num_images.values()):,} images, {images}; " + (
        f"{audit.counts.num_labelled:,} with labels"
    )
    for name, head in audit.counts.heads.items():
        few, many = int(head.count.min()), int(head.count.max())
        yield f"  {name}: {len(head.values)} classes of {few:,} to {many:,} images"
    for kind, number in audit.numbers().items():
        doubts = number - audit.after.num_issues if kind == "label_issue" and audit.after is not None else 0
        if number - doubts:
            yield f"  {number - doubts:>7,} {_WORDS[kind]}"
        if doubts:
            yield f"  {doubts:>7,} more of which the model says otherwise"
    if audit.drift is not None:
        yield f"  {audit.drift.text}"
    yield from (f"  note: {note}" for note in audit.notes)
    yield "what to do first:"
    for place, step in enumerate(audit.advice, start=1):
        yield f"  {place}. {step.text}"
        if step.command:
            yield f"     {step.command}"
