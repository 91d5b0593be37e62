"""One submission, from a bundle and a competition's folder, within the time there is."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from kaggle_kit.errors import BundleError, DataError, KitError, some_of
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.runtime.answers import Answers, Predicted
from kaggle_kit.runtime.backends import Device
from kaggle_kit.runtime.budget import MARGIN
from kaggle_kit.runtime.bundle import MANIFEST, Bundle, file_sha256, open_bundle
from kaggle_kit.runtime.mounts import in_kernel, in_rerun, kernel_limit_s
from kaggle_kit.runtime.pipeline import GRACE_S, LostDeviceError
from kaggle_kit.runtime.predictor import REBUILD_SHARE, Predictor
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.runtime.report import (
    Stages,
    describe_broken,
    describe_drops,
    write_report,
    write_unfinished_report,
)
from kaggle_kit.runtime.results import DONE, Batch, Results
from kaggle_kit.sources import Source, check_ids, open_source
from kaggle_kit.sources.encoded import EncodedSource
from kaggle_kit.sources.encoded_parquet import ParquetBlobs
from kaggle_kit.sources.wide_parquet import WideParquetSource
from kaggle_kit.submission import expected_images, expected_rows, unfilled_columns, writes_probs
from kaggle_kit.tables import REPEATED, Text, rename_repeats
from kaggle_kit.task import Task

Say = Callable[[str], object]

RESERVE_SHARE = 0.02  # of the time limit, beside what writing was seen to take: disks and clocks are not even
WRITES = 3  # times what the submission of priors took: the real one is decided, written and read again
MOST_RESERVED = 0.09  # of the time limit
FILES_LOOKED_AT = 100
SHARDED = ("wide_parquet", "encoded_parquet")


def predict_submission(
    folder: Path,
    data: Path,
    out: Path,
    *,
    num_runs: int | None = None,
    prior_shift: bool | None = None,
    fused: bool | None = None,
    engines: Path | None = None,
    build_s: float | None = None,
    device: Device = "auto",
    batch: int | None = None,
    time_limit_s: float | None = None,
    started: float | None = None,
    watched: bool = False,
    say: Say = print_line,
) -> Predicted:
    """Write the submission of a bundle for a competition's test images, and check it.

    A process that is killed leaves what it has finished beside `out`; the same call goes on with it.

    Args:
        folder: The bundle.
        data: The competition's data folder.
        out: The CSV file to write; it appears whole or not at all. A report lies beside it afterwards, as .report.json.
        num_runs: How many runs of the running order are used, with what was fitted for just these; None: all.
        prior_shift: Whether probabilities are corrected for the test's class shares; None: as the bundle says.
        fused: Whether the bundle's fused graph is run; None: where it can be.
        engines: A folder of TensorRT engines; in a kernel, what `find_engines` finds.
        build_s: Seconds that may be spent on building such engines again; None: a twentieth of the time there is; 0:
            those that do not fit are passed over.
        device: What runs it; `auto`: the fastest that works.
        batch: Images computed at once; None: see `Predictor`.
        time_limit_s: Seconds after `started` when all is written; where they are short, fewer runs speak for the
            images, and a submission of class priors is there at once. None: in a Kaggle kernel the task's own limit
            less 5 %, else as long as it takes.
        started: When the time began, by `time.monotonic`; None: now.
        watched: Whether `submit` started this process, and starts another one where it dies: a lost GPU may be well
            again there, and whatever device finished batches is as good as the next.
        say: Where progress lines go.

    Raises:
        KitError: For anything wrong with bundle or data, before any time is spent where possible.
        LostDeviceError: When it is watched, and the last device is lost.
    """
    stages = Stages(started)
    bundle = open_bundle(folder)
    task = bundle.task
    if time_limit_s is None:
        time_limit_s = kernel_limit_s(task) * (1 - MARGIN) if in_kernel() else math.inf
    rows, source, absent = _open_test(task, data, say=say)
    stages.finish("open")
    blend = bundle.blend if num_runs is None else bundle.blend.first(num_runs)
    if math.isfinite(time_limit_s) and (in_kernel() or not out.exists()):
        Answers(bundle, blend, prior_shift=prior_shift, say=say).write_priors(out, rows=rows)
        say(f"{out}: a submission of class priors is there, should all else fail")
    reserve_s = _reserve_s(time_limit_s, stages.finish("write priors"))
    if build_s is None and engines is not None:
        build_s = REBUILD_SHARE * min(kernel_limit_s(task), time_limit_s - stages.elapsed_s)
    predictor = Predictor(
        bundle,
        num_runs=num_runs,
        prior_shift=prior_shift,
        fused=fused,
        engines=engines,
        build_s=build_s,
        device=device,
        batch=batch,
        say=say,
    )
    stages.finish("load and check")
    key = results_key(bundle, source, num_runs=num_runs, fused=fused, device="any" if watched else device)
    ids, whole = np.concatenate([source.ids, absent]), len(blend.runs) if math.isinf(time_limit_s) else 0
    results = _make_results(predictor, ids, parts_folder(out), key, least_runs=whole, say=say)
    with results:
        if results.batches:
            say(f"going on: {results.num_rows - sum(map(len, results.missing())):,} images are finished already")
        elif len(absent):
            rows_absent = range(len(source), results.num_rows)
            reasons = dict.fromkeys(absent.tolist(), "the test files do not hold it")
            results.put(Batch(rows=rows_absent, num_runs=0, broken=reasons), predictor.answers.priors(len(absent)))
        end = stages.started + time_limit_s - reserve_s
        predicted = _predict(predictor, source, results, end=end, grace_s=reserve_s / 4, watched=watched)
        stages.finish("predict")
        for line in (*describe_broken(predicted), *describe_drops(predictor.blend, predicted, task)):
            say(line)
        _write(predictor, out, predicted, rows)
        stages.finish("write")
        try:  # before results go: it says that the submission is whole, whatever becomes of this process
            write_report(out, predictor, predicted, stages=stages, time_limit_s=time_limit_s)
        except OSError as error:
            say(f"WARNING there is no report: {error.strerror or error}")
        results.remove()
    say(f"{out}: {len(rows):,} rows, {stages.elapsed_s:,.0f} s in all")
    if stages.elapsed_s > time_limit_s:
        say(f"WARNING the limit of {time_limit_s:,.0f} s was missed by {stages.elapsed_s - time_limit_s:,.1f} s")
    return predicted


def _write(predictor: Predictor, out: Path, predicted: Predicted, rows: Text) -> None:
    try:
        predictor.write(out, predicted, rows=rows)
    except OSError as error:
        raise KitError(
            f"{out} cannot be written: {error.strerror or error}; make room there and run the same command again, "
            "which goes on from what is finished"
        ) from None


def _predict(
    predictor: Predictor, source: Source, results: Results, *, end: float, grace_s: float, watched: bool
) -> Predicted:
    try:
        return predictor.predict(source, end=end, grace_s=max(grace_s, GRACE_S), results=results, spare=not watched)
    except LostDeviceError as error:
        if watched:
            raise
        raise BundleError(str(error)) from None


def finish_submission(folder: Path, data: Path, out: Path, *, why: str, say: Say = print_line) -> None:
    """Write the submission of whatever a process left that cannot go on: class priors for all that is not finished.

    Args:
        folder: The bundle.
        data: The competition's data folder.
        out: The CSV file to write; the report beside it says that it is unfinished.
        why: What happened, for the report.
        say: Where lines go.

    Raises:
        KitError: When bundle or sample submission cannot be read.
    """
    bundle = open_bundle(folder)
    rows = expected_rows(bundle.task, data)
    answers = Answers(bundle, bundle.blend, prior_shift=None, say=say)
    results = Results.left_in(parts_folder(out), key_start=_bundle_key(bundle))
    wanted = expected_images(bundle.task, rows)
    if results is None or not np.isin(wanted, results.ids).all():
        answers.write_priors(out, rows=rows)
        write_unfinished_report(out, images=len(wanted), lacking=len(wanted), why=why)
        say(f"WARNING {out}: {len(rows):,} rows, all of class priors")
        return
    with results:
        predicted = answers.collect(results)
        answers.write(out, predicted, rows=rows)
        lacking = int((results.num_runs() == 0).sum())
        write_unfinished_report(out, images=len(results.ids), lacking=lacking, why=why)
        say(f"WARNING {out}: {len(rows):,} rows; {lacking:,} of {len(results.ids):,} images have the class priors")
        results.remove()


def parts_folder(out: Path) -> Path:
    """Return where finished probabilities are kept until the submission is written."""
    return out.with_name(f".{out.name}.parts")


def results_key(bundle: Bundle, source: Source, *, num_runs: int | None, fused: bool | None, device: str) -> str:
    """Return what results belong to: the bundle's and the test files' versions, and what is asked of them."""
    files = source.files()
    told = [_version_of(path) for path in files[:FILES_LOOKED_AT]]  # of hundreds of thousands on a mount, some must do
    asked = json.dumps([len(files), told, num_runs, fused, device])
    return f"{_bundle_key(bundle)} {hashlib.sha256(asked.encode()).hexdigest()}"


def _bundle_key(bundle: Bundle) -> str:
    return file_sha256(bundle.folder / MANIFEST)


def _version_of(path: Path) -> tuple[str, int, int]:
    try:
        known = path.stat()
    except OSError:  # a broken image
        return str(path), 0, 0
    return str(path), known.st_size, known.st_mtime_ns


def _open_test(task: Task, data: Path, *, say: Say) -> tuple[Text, Source, Text]:
    """Return the rows asked for, the test images, and the ids asked for that these lack: none but in the rerun."""
    rows = expected_rows(task, data)
    if task.metric in PROBABILITY_METRICS and not writes_probs(task):
        say(
            f"WARNING metric {task.metric} scores probabilities, and a submission of form {task.submission.form} holds "
            "decided classes; if the competition takes probabilities, set `submission.form` to column_per_class"
        )
    if extra := unfilled_columns(task, data):
        say(
            f"WARNING {data / task.submission.file} has column(s) {some_of(extra)}, which the task does not name; the "
            "submission will be without"
        )
    if not len(rows):
        say(f"WARNING {data / task.submission.file} asks for no rows at all; the submission will have none")
    wanted = expected_images(task, rows)
    source = _open_shards(task, data, say=say)
    again = int((np.char.find(source.ids, REPEATED) >= 0).sum()) if len(source) else 0
    if again:
        say(f"WARNING {again:,} test image(s) have the id of an earlier one and are passed over")
    absent = wanted[~np.isin(wanted, source.ids)]
    if len(absent) and in_rerun():
        say(f"WARNING the test files lack {len(absent):,} of {len(wanted):,} images: {some_of(absent)}")
    else:
        check_ids(source, wanted, where=str(data / task.submission.file))
    return rows, source, absent


def _open_shards(task: Task, data: Path, *, say: Say) -> Source:
    """Return the test images; in the rerun, of those shards alone that can be opened, and without missing files."""
    try:
        return open_source(task, "test", data, on_broken="blank", lacking_ok=in_rerun(), repeats_ok=in_rerun())
    except DataError as error:
        if not in_rerun() or task.images.format not in SHARDED:
            raise
        shards = [path for path in sorted(data.glob(task.images.test)) if _opens(task, data, path)]
        if not shards:
            raise
        say(f"WARNING {error}; going on with {len(shards)} shard(s) that can be read")
        return _open_some(task, shards)


def _opens(task: Task, data: Path, shard: Path) -> bool:
    one = replace(task, images=replace(task.images, test=str(shard.relative_to(data))))
    try:
        open_source(one, "test", data, on_broken="blank", repeats_ok=True)
    except DataError:
        return False
    return True


def _open_some(task: Task, shards: list[Path]) -> Source:
    if task.images.format == "wide_parquet":
        return WideParquetSource(shards, images=task.images, stored=task.stored, repeats_ok=True)
    blobs = ParquetBlobs(shards, image=task.images.image, id_column=task.images.id)
    ids = rename_repeats(blobs.ids())
    return EncodedSource(blobs, ids=ids, channels=task.images.channels, stored=task.stored, on_broken="blank")


def _reserve_s(time_limit_s: float, write_s: float) -> float:
    """Return how long before the limit the last image must be finished."""
    if not math.isfinite(time_limit_s):
        return 0.0
    return min(RESERVE_SHARE * time_limit_s + WRITES * write_s + 0.5, MOST_RESERVED * time_limit_s)


def _make_results(predictor: Predictor, ids: Text, folder: Path, key: str, *, least_runs: int, say: Say) -> Results:
    """Return results that outlive this process, or where the disk does not take them, in memory.

    Finished batches of fewer runs than `least_runs`, which an earlier call was short of time for, are computed again.
    """

    def accept(batch: Batch) -> bool:
        known = len(batch.broken) == len(batch.rows)
        return known or not least_runs or (batch.num_runs >= least_runs and not batch.cut)

    try:
        return predictor.make_results(ids, folder=folder, key=key, accept=accept)
    except OSError as error:
        if folder.is_dir() and not (folder / DONE).exists():  # else an earlier process's work
            shutil.rmtree(folder, ignore_errors=True)
        say(f"WARNING nothing is kept should this process be killed: {error.strerror or error}: {folder}")
        return predictor.make_results(ids)
