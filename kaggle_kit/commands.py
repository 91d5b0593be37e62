"""What each command of `kaggle-kit` does: parsed options in, a result for `--json` and an exit code out.

Every command imports only what it needs, so that `predict` runs where torch is not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from kaggle_kit.folds import Ints
    from kaggle_kit.labels import Labels
    from kaggle_kit.sources import PackedSource
    from kaggle_kit.task import Fit, Stored, Task

Result = dict[str, Any]
DONE, CHECK_FAILED, USER_CAN_MEND = 0, 1, 2
SHARE_TOLERANCE = 0.05  # of unseen images, before a warning


def demo(options: argparse.Namespace) -> tuple[Result, int]:
    """Go the whole way on the sample competition."""
    from kaggle_kit.demo import FAST, format_demo, run_demo

    result = run_demo(options.out, FAST if options.fast else None)
    print(format_demo(result))
    stages = [{"stage": stage, "seconds": round(seconds, 2)} for stage, seconds, _ in result.stages]
    parity = [dataclasses.asdict(member.parity) for member in result.bundle.members]
    return {
        "stages": stages,
        "oof": result.oof,
        "hidden": result.hidden,
        "parity": parity,
        "differing": result.differing,
        "out": result.folder,
    }, DONE


def sample(options: argparse.Namespace) -> tuple[Result, int]:
    """Make a sample competition."""
    from kaggle_kit.sample import make_sample

    made = make_sample(options.kind, options.folder, seed=options.seed)
    print(f"{made.data}: what the competitor sees; {made.hidden}: the hidden test; {made.task}: the task")
    print(f"next: kaggle-kit audit {made.task} {made.data} --out ./audit")
    return {"data": made.data, "hidden": made.hidden, "task": made.task}, DONE


def folds(options: argparse.Namespace) -> tuple[Result, int]:
    """Divide the train images into folds, or check a fold file."""
    from kaggle_kit.edits import read_edited_labels
    from kaggle_kit.errors import SettingError
    from kaggle_kit.task import read_task

    if options.out is None and options.check in (None, True):
        raise SettingError("say where the folds go with --out folds.parquet, or which file to check with --check FILE")
    task = read_task(options.task)
    labels = read_edited_labels(task, options.data, options.edits, say=print)
    if options.check is None:
        _check_submission(task, options.data)
        return _make_folds(options, labels)
    return _check_folds(options, labels, options.out if options.check is True else options.check, task.labels.id)


def _check_folds(options: argparse.Namespace, labels: Labels, path: Path, id_column: str) -> tuple[Result, int]:
    from kaggle_kit.folds.check import check_folds, format_findings, read_fold_file

    file = read_fold_file(path, id_column=id_column)
    if options.scheme and not file.scheme:
        file = dataclasses.replace(file, scheme=options.scheme)
    equal = _with_near_twins(options, labels, _packed_equal_images(options, labels, path.parent))
    findings = check_folds(labels, file, duplicates=equal)
    print("\n".join(format_findings(findings)))
    failed = [finding for finding in findings if finding.verdict in ("LEAK", "WRONG")]
    sound = "sound" if equal is not None else "sound as far as labels tell"
    print(f"{path}: " + (f"{len(failed)} of {len(findings)} findings speak against it" if failed else sound))
    return {"checked": path, "findings": findings}, CHECK_FAILED if failed else DONE


def _check_submission(task: Task, data: Path) -> None:
    """Refuse a task that contradicts the sample submission: better now than when all is trained."""
    from kaggle_kit.errors import some_of
    from kaggle_kit.submission import check_columns, expected_images, expected_rows, unfilled_columns

    sample = data / task.submission.file
    if not sample.is_file():
        print(f"note: there is no {sample}; rehearsal and submission need it")
        return
    check_columns(task, data)
    expected_images(task, expected_rows(task, data))
    if extra := unfilled_columns(task, data):
        print(f"WARNING {sample} has column(s) {some_of(extra)}, which the task does not name")


def _make_folds(options: argparse.Namespace, labels: Labels) -> tuple[Result, int]:
    from kaggle_kit.files import check_output_file
    from kaggle_kit.folds import FoldPlan, describe_duplicates, make_folds
    from kaggle_kit.folds.check import check_made, format_findings
    from kaggle_kit.folds.schemes import check_groups

    check_output_file(options.out, ".parquet", outside=options.data)
    plan = FoldPlan(
        scheme=options.scheme or "stratified",
        num_folds=options.n,
        seed=options.seed,
        valid_share=options.valid_share,
        unseen_share=options.unseen_share,
        rare=options.rare,
    )
    check_groups(labels, plan.scheme)  # before images are packed
    equal, broken = _equal_images(options, labels, options.out.parent)
    together = _with_near_twins(options, labels, equal)
    made = make_folds(labels, **dataclasses.asdict(plan), duplicates=together, leave_out=broken)
    findings = check_made(labels, made, duplicates=together)
    made.save(options.out)
    duplicates = None if equal is None else describe_duplicates(labels, equal)
    print(f"{options.out}: {made.num_folds} {made.scheme} fold(s)")
    print("\n".join(format_findings(findings)))
    if duplicates and duplicates.num_images:
        print(duplicates.text)
    reached = float(made.unseen[made.fold >= 0].mean()) if made.num_folds else 0.0
    if plan.scheme == "unseen" and abs(reached - options.unseen_share) > SHARE_TOLERANCE:
        print(
            f"WARNING {reached:.1%} of the validating images show unseen combinations, not {plan.unseen_share:.1%}: "
            "combinations are held out whole, and those of one image are unseen anyway; try another --n or share"
        )
    if made.num_folds:
        edits = f" edits={options.edits}" if options.edits else ""
        print(
            f"next: kaggle-kit train task={options.task} data={options.data} folds={options.out} out=runs/NAME{edits}"
        )
    return {
        "out": options.out,
        "sizes": [int((made.fold == number).sum()) for number in range(made.num_folds)],
        "unseen": int(made.unseen.sum()),
        "duplicates": duplicates and duplicates.num_images,
        "data_hash": made.data_hash,
        "findings": findings,
    }, DONE


def _packed_equal_images(options: argparse.Namespace, labels: Labels, beside: Path) -> Ints | None:
    """Return (N,) numbers, equal for equal images, from a store that is there; None where there is none to look at."""
    from pathlib import Path

    from kaggle_kit.packing.competition import find_train_store
    from kaggle_kit.sources import resolve_stored
    from kaggle_kit.tables import rows_of
    from kaggle_kit.task import read_task

    if options.labels_only:
        return None
    task = resolve_stored(read_task(options.task), options.data)
    store = find_train_store(task, options.data, options.packed, [beside, Path(), options.data.parent])
    if store is None:
        print("no packed store of these images lies beside the fold file or here; give --packed DIR to look at images")
        return None
    return store.duplicate_groups()[rows_of(labels.ids, store.ids)]


def _equal_images(
    options: argparse.Namespace, labels: Labels, beside: Path
) -> tuple[Ints | None, npt.NDArray[np.bool_] | None]:
    """Return (N,) numbers, equal for equal images, and which are broken; None when only labels are to be read."""
    import numpy as np

    from kaggle_kit.packing.competition import pack_train
    from kaggle_kit.sources import resolve_stored
    from kaggle_kit.tables import rows_of
    from kaggle_kit.task import read_task

    if options.labels_only:
        return None, None
    task = resolve_stored(read_task(options.task), options.data)
    store = pack_train(task, options.data, options.packed, beside=beside)
    broken = np.isin(labels.ids, list(store.broken))
    if broken.any():
        print(f"{int(broken.sum()):,} image(s) are broken; training leaves them out")
    return store.duplicate_groups()[rows_of(labels.ids, store.ids)], broken


def _with_near_twins(options: argparse.Namespace, labels: Labels, equal: Ints | None) -> Ints | None:
    """Return (N,) numbers, equal for images that are equal or that an audit found to be nearly so."""
    import numpy as np

    from kaggle_kit.audit.duplicates import duplicate_groups
    from kaggle_kit.folds.schemes import merged

    if options.audit is None:
        return equal
    twins = duplicate_groups(options.audit, labels.ids)
    counts = np.bincount(twins)
    print(
        f"{options.audit}: {int(counts[counts > 1].sum()):,} images in {int((counts > 1).sum()):,} group(s) of "
        "duplicates and near duplicates; each group in one fold"
    )
    return twins if equal is None else merged(equal, twins)


def pack(options: argparse.Namespace) -> tuple[Result, int]:
    """Convert the train images once."""
    from kaggle_kit.edits import read_edited_labels
    from kaggle_kit.errors import SettingError
    from kaggle_kit.packing.competition import Tagged, pack_train
    from kaggle_kit.settings import plain
    from kaggle_kit.sources import resolve_stored
    from kaggle_kit.task import read_task

    task = read_task(options.task)
    if options.size:
        task = task.with_stored(_resized(task, options.size, options.fit))
    elif options.fit:
        raise SettingError("--fit says how --size is reached; give --size H W too, or set `stored` in the task")
    chosen = task.stored is None
    task = resolve_stored(task, options.data)
    if options.edits:
        read_edited_labels(task, options.data, options.edits, say=print)  # refuses now what training would refuse
    store = pack_train(
        task,
        options.data,
        options.out,
        tagged=[Tagged(tag=tag, task=read_task(name), data=folder) for tag, name, folder in options.add] or None,
        kind=options.kind,
        num_workers=options.workers,
        replace=True,
    )
    _print_store(store)
    if options.size or chosen:
        stored = ", ".join(f"{name}: {value}" for name, value in plain(task.stored).items())
        why = "the images' own size" if chosen else "that size"
        print(f"to keep to {why}, put into the task: stored: {{{stored}}}")
    return {
        "out": options.out,
        "images": len(store),
        "kind": store.kind,
        "shape": store.shape,
        "mean": store.mean.tolist(),
        "std": store.std.tolist(),
        "broken": store.broken,
    }, DONE


def _resized(task: Task, size: tuple[int, int], fit: Fit | None) -> Stored:
    """Return the stored size asked for, reached as asked for, or as the task says, or by letterbox."""
    from kaggle_kit.task import Stored

    known = task.stored if task.stored is not None and task.stored.fit != "none" else None
    return Stored(
        height=size[0],
        width=size[1],
        fit=fit or (known.fit if known else "letterbox"),
        fill=task.stored.fill if task.stored else 0,
    )


def _print_store(store: PackedSource) -> None:
    size = " x ".join(map(str, store.shape))
    print(f"{store.folder}: {len(store):,} images of {size}, {store.kind}, {len(store.broken)} broken")
    print(f"mean {_shares(store.mean)}, standard deviation {_shares(store.std)} of 0 to 1, by channel")
    for tag, rows in store.tags.items():
        if tag:
            print(f"  {len(rows):,} tagged {tag!r}")
    for name, reason in list(store.broken.items())[:10]:
        print(f"  broken: {name}: {reason}")
    if len(store.broken) > 10:
        print(f"  and {len(store.broken) - 10:,} more")


def _shares(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def predict(options: argparse.Namespace) -> tuple[Result, int]:
    """Write a submission with a bundle."""
    from kaggle_kit.files import check_output_file
    from kaggle_kit.runtime.submitting import predict_submission

    check_output_file(options.out, ".csv", outside=options.data)
    if options.probs:
        check_output_file(options.probs, ".npz", outside=options.data)
    predicted = predict_submission(
        options.bundle,
        options.data,
        options.out,
        num_runs=options.runs,
        prior_shift=True if options.prior_shift else None,
        engines=options.engines,
        device=options.device,
        batch=options.batch,
        time_limit_s=options.time_limit,
    )
    if options.probs:
        predicted.predictions.save(options.probs)
        print(f"{options.probs}: probabilities of {len(predicted.predictions):,} images")
    return {
        "out": options.out,
        "probs": options.probs,
        "images": len(predicted.predictions),
        "broken": predicted.broken,
    }, DONE


def bench(options: argparse.Namespace) -> tuple[Result, int]:
    """Measure a bundle on this machine."""
    from kaggle_kit.files import check_output_file
    from kaggle_kit.runtime.bench import bench_bundle, format_bench, save_costs

    if options.costs:
        check_output_file(options.costs, ".json", outside=options.data)
    result = bench_bundle(
        options.bundle,
        options.data,
        device=options.device,
        engines=options.engines,
        num_images=options.images,
        batches=options.batches,
    )
    print("\n".join(format_bench(result)))
    if options.costs:
        save_costs(result, options.costs)
        print(f"{options.costs}: for `kaggle-kit blend --costs`")
    return dataclasses.asdict(result), DONE


def score(options: argparse.Namespace) -> tuple[Result, int]:
    """Score a submission."""
    from kaggle_kit.labels import read_labels
    from kaggle_kit.scores import DRAWS, format_scores
    from kaggle_kit.submission import score_submission
    from kaggle_kit.task import read_task

    task = read_task(options.task)
    train = read_labels(task, options.data) if options.data else None
    score = score_submission(task, options.submission, options.solution, train=train, draws=DRAWS)
    print("\n".join(format_scores({task.metric: score})))
    return {"metric": task.metric, "score": score}, DONE
