"""What a run did, for people in its log and for machines beside the submission."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kaggle_kit
from kaggle_kit.ensemble import Blend
from kaggle_kit.files import replacing
from kaggle_kit.runtime.answers import Predicted
from kaggle_kit.runtime.bundle import MANIFEST, file_sha256
from kaggle_kit.runtime.progress import memory_gb
from kaggle_kit.task import Task

if TYPE_CHECKING:
    from kaggle_kit.runtime.predictor import Predictor

FORMAT = 1


class Stages:
    """Seconds of each stage of a run, and since its start.

    Attributes:
        started: By `time.monotonic`.
        seconds: {stage: seconds}.
    """

    def __init__(self, started: float | None = None) -> None:
        self._before = time.monotonic()
        self.started = self._before if started is None else started
        self.seconds: dict[str, float] = {}

    def finish(self, stage: str) -> float:
        """Return how long a stage took that ends now."""
        now = time.monotonic()
        self.seconds[stage] = now - self._before
        self._before = now
        return self.seconds[stage]

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def describe_broken(predicted: Predicted) -> list[str]:
    """Return one line on images that got the class priors, or none."""
    if not predicted.broken:
        return []
    name, reason = next(iter(predicted.broken.items()))
    first = reason if repr(name) in reason else f"{name}: {reason}"
    return [f"WARNING {len(predicted.broken):,} broken image(s) got the class priors; the first: {first}"]


def describe_drops(blend: Blend, predicted: Predicted, task: Task) -> list[str]:
    """Return what was left out for want of time and what that costs, in lines; none where nothing was."""
    shares = count_runs(blend, predicted)
    if list(shares) in ([], [len(blend.runs)]) and not predicted.num_cut:
        return []
    lines = []
    for number, images in shares.items():
        said = "class priors alone" if not number else f"run(s) {', '.join(blend.runs[:number])}"
        score = blend.prefixes[number - 1].score if number else None
        scored = f", out-of-fold {task.metric} {score.total:.4f}" if score and score.total is not None else ""
        lines.append(f"  {images:,} images: {said}{scored}")
    if predicted.num_cut:
        lines.append(f"  {predicted.num_cut:,} images by the first run without its views, or by some of its networks")
    expected, whole = expected_score(blend, predicted), blend.score and blend.score.total
    lost = "" if expected is None or whole is None else f"; expect about {expected:.4f} in place of {whole:.4f}"
    return [f"WARNING time was short{lost}:", *lines]


def count_runs(blend: Blend, predicted: Predicted) -> dict[int, int]:
    """Return {number of runs that spoke: images}, most runs first; broken images are left out."""
    if predicted.num_runs is None:
        return {len(blend.runs): len(predicted.predictions)}
    sound = ~np.isin(predicted.predictions.ids, list(predicted.broken))
    numbers, images = np.unique(predicted.num_runs[sound], return_counts=True)
    return dict(sorted(zip(numbers.tolist(), images.tolist(), strict=True), reverse=True))


def expected_score(blend: Blend, predicted: Predicted) -> float | None:
    """Return the out-of-fold scores of what spoke for the images, weighed by their number; None where one lacks.

    Images with class priors alone have none, and leave it open.
    """
    shares = count_runs(blend, predicted)
    scores = {number: blend.prefixes[number - 1].score for number in shares if number}
    totals = {number: score.total for number, score in scores.items() if score and score.total is not None}
    if not shares or set(totals) != set(shares):
        return None
    return sum(totals[number] * images for number, images in shares.items()) / sum(shares.values())


def write_report(out: Path, predictor: Predictor, predicted: Predicted, *, stages: Stages, time_limit_s: float) -> None:
    """Write FILE.report.json beside a submission, atomically."""
    bundle, timings, memory = predictor.bundle, predicted.timings, memory_gb()
    report: dict[str, Any] = {
        "format": FORMAT,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": bundle.task.name,
        "submission": out.name,
        "submission_sha256": file_sha256(out),
        "bundle_sha256": file_sha256(bundle.folder / MANIFEST),
        "images": len(predicted.predictions),
        "broken": len(predicted.broken),
        "broken_first": dict(list(predicted.broken.items())[:20]),
        "runs": list(predictor.blend.runs),
        "images_by_runs": {str(number): images for number, images in count_runs(predictor.blend, predicted).items()},
        "images_cut": predicted.num_cut,
        "expected_score": expected_score(predictor.blend, predicted),
        "score_of_all_runs": predictor.blend.score.total if predictor.blend.score else None,
        "time_limit_s": time_limit_s if np.isfinite(time_limit_s) else None,
        "started": stages.started,
        "elapsed_s": round(stages.elapsed_s, 3),
        "seconds": {stage: round(seconds, 3) for stage, seconds in stages.seconds.items()},
        "computed": timings.images,
        "images_per_s": round(timings.images / timings.seconds, 2) if timings.seconds else None,
        "first_batch_s": round(timings.first_s, 3),
        "reading_s": round(timings.reading_s, 3),
        "computing_s": round(timings.computing_s, 3),
        "waiting_for_images_s": round(timings.waiting_s, 3),
        "providers": list(predictor.providers),
        "batch": predictor.batch,
        "peak_memory_gb": round(memory[1], 3) if memory else None,
        "versions": _versions(),
    }
    with replacing(out.with_suffix(".report.json")) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


def write_unfinished_report(out: Path, *, images: int, lacking: int, why: str) -> None:
    """Write FILE.report.json beside a submission that could not be finished; a full disk is no error.

    Args:
        out: The submission.
        images: How many there are.
        lacking: How many of them have the class priors alone.
        why: What happened.
    """
    report = {"format": FORMAT, "written": datetime.now(UTC).isoformat(timespec="seconds"), "submission": out.name}
    report |= {"unfinished": why, "images": images, "images_of_priors": lacking, "versions": _versions()}
    with contextlib.suppress(OSError), replacing(out.with_suffix(".report.json")) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


def read_report(out: Path) -> dict[str, Any]:
    """Return what `write_report` wrote beside a submission; nothing where there is none."""
    try:
        values = json.loads(out.with_suffix(".report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _versions() -> dict[str, str]:
    import cv2
    import onnxruntime as ort

    return {
        "kaggle_kit": kaggle_kit.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "opencv": cv2.__version__,
    }
