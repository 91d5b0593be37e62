"""A member in a lower precision: the boldest form that passes the gate, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from kaggle_kit.errors import ExportError, brief
from kaggle_kit.export.candidate import Candidate
from kaggle_kit.export.gate import check_change, refusal
from kaggle_kit.export.half import half_candidates
from kaggle_kit.export.int8 import int8_candidates
from kaggle_kit.export.onnx import run_onnx, write_model
from kaggle_kit.export.sampling import spread
from kaggle_kit.export.variant import Variant
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.bundle import Change, Precision
from kaggle_kit.sources import PackedSource

CALIBRATION_IMAGES = 128  # show a lower precision what to expect; it is not judged on them

Measure = Callable[[Probs, npt.NDArray[np.bool_]], Change]


class Lowered(NamedTuple):
    """A member's lower precision, as it is shipped.

    Attributes:
        change: Against full precision.
        kept: What stays in full precision.
        probs: What it says where it is meant to run, of all rows.
    """

    change: Change
    kept: str
    probs: Probs


def lower_precision(
    path: Path, source: PackedSource, rows: npt.NDArray[np.int64], *, variant: Variant, measure: Measure
) -> Lowered:
    """Replace a member's file by the boldest form of a lower precision that passes the gate.

    Args:
        path: The member, in full precision.
        source: Its images.
        rows: Those that it is judged on, but for some that it is calibrated on where there are no others.
        variant: Says which precision, and what it may change.
        measure: Returns the change of what a form says of all rows, on those of them that are marked.

    Raises:
        ExportError: With the numbers of the most careful form, when none passes; or when there is none that runs.
    """
    precision = variant.precision
    assert precision != "fp32"
    shown = _calibration_rows(source, rows)
    judged = ~np.isin(rows, shown)
    limits, change = variant.limits(precision), None
    for candidate in _candidates(path, source.take(shown), precision):
        said = _ask(candidate.emulated, source, rows, what=f"{path.name} in {precision}")
        change = measure(said, judged)
        if not refusal(change, limits):
            write_model(candidate.model, path)
            return Lowered(change, candidate.kept, said)
    if change is None:
        raise ExportError(
            f"{path.name} has nothing that {precision} computes otherwise: no layer, sum or pool after what prepares "
            "its pixels; ship fp32"
        )
    repair = "ship fp32, or allow more with --max-changed and --max-drop"
    check_change(change, limits, what=f"{path.name} in {precision}", repair=repair)
    raise AssertionError("refused changes do not pass")


def _candidates(path: Path, images: Image, precision: Precision) -> Iterator[Candidate]:
    """Yield forms of a member in a lower precision; what cannot be converted is said with the file's name."""
    make = half_candidates if precision == "fp16" else int8_candidates
    try:
        yield from make(onnx.load(path), images)
    except ExportError as error:
        raise ExportError(f"{path.name} in {precision}: {error}") from None


def _ask(model: onnx.ModelProto, source: PackedSource, rows: npt.NDArray[np.int64], *, what: str) -> Probs:
    try:
        return run_onnx(model.SerializeToString(), source, rows)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
        raise ExportError(
            f"{what} does not run here: {brief(error)}; ship fp32, or export the model in float32 and adopt that"
        ) from None


def _calibration_rows(source: PackedSource, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return sound images that a member is not judged on, or a part of the others where there are none."""
    sound = np.flatnonzero(~np.isin(source.ids, list(source.broken)))
    others = np.setdiff1d(sound, rows)
    if len(others):
        return spread(others, CALIBRATION_IMAGES)
    return spread(np.intersect1d(sound, rows), min(CALIBRATION_IMAGES, max(1, len(rows) // 2)))
