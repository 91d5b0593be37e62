"""Golden images: real ones that show every class, with what each run says of them at home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.ensemble import mean_probs
from kaggle_kit.errors import BundleError, DataError
from kaggle_kit.export.sampling import packed_source, rows_in, spread
from kaggle_kit.labels import Labels
from kaggle_kit.pixels import encode_png
from kaggle_kit.runs import Run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import Golden, Precision, save_golden
from kaggle_kit.runtime.golden import decode_golden
from kaggle_kit.sources import PackedSource, Source, open_source
from kaggle_kit.tables import Text

LEAST_GOLDEN, MOST_GOLDEN = 16, 256
MOST_BYTES = 32 << 20  # of their pixels; where images are large, fewer classes are shown
TOLERANCES: dict[Precision, float] = {"fp32": 2e-3, "fp16": 2e-2, "int8": 5e-2}  # CPUs and GPUs round otherwise
MOST_AWAY = 16  # of 255, by which decoders of other versions may differ
_CANDIDATES = 20  # images of each class that are looked at


def write_golden(
    run: Run, folder: Path, files: Mapping[str, Sequence[str]], labels: Labels, *, precision: Precision
) -> Golden:
    """Pick images that show every class, record what each run says of them through ONNX, and write them.

    Args:
        run: Whose images they are.
        folder: Holds the members; gets the golden images.
        files: {run: its members' files}.
        labels: Of the bundle's task.
        precision: What members compute in, which says how far away another machine may be.

    Raises:
        BundleError: When the competition's images are no longer those that were packed.
    """
    source = packed_source(run)
    ids = golden_ids(labels, source)
    images = np.stack([source.read(row) for row in rows_in(ids, source).tolist()])
    originals = _originals(run)
    encoded = tuple(map(encode_png, images)) if originals is None else tuple(_encoded(originals, ids))
    golden = Golden(encoded=encoded, fitted=originals is None, images=images, probs={})
    away = np.abs(decode_golden(golden, run.task).astype(np.int16) - images).reshape(len(ids), -1).max(axis=1)
    if away.max() > MOST_AWAY:
        raise BundleError(
            f"image {str(ids[away.argmax()])!r} in {run.data} is not the one in {run.packed}: pixels differ by up to "
            f"{away.max()} of 255; the data, or OpenCV, changed since it was packed: pack it again and train again"
        )
    probs = {
        name: mean_probs([OnnxSession(folder / file, device="cpu").run(images) for file in own])
        for name, own in files.items()
    }
    golden = replace(golden, probs=probs, tolerance=TOLERANCES[precision])
    save_golden(golden, folder)
    return golden


def golden_ids(labels: Labels, source: PackedSource) -> Text:
    """Return ids that between them show each class of every head that any image shows; the first show the most.

    Where images are so large that this would take more than 32 MB, the last ones are left out.
    """
    usable = np.isin(labels.ids, source.ids) & ~np.isin(labels.ids, list(source.broken))
    shown = [_marks(classes) & usable[:, None] for classes in labels.classes.values()]
    few = np.unique(np.concatenate([_first_rows(marks) for marks in shown]))
    order = _covering(np.concatenate([marks[few] for marks in shown], axis=1))
    most = int(np.clip(MOST_BYTES // np.prod(source.shape), LEAST_GOLDEN, MOST_GOLDEN))
    chosen = few[order][:most]
    others = np.setdiff1d(few, chosen)
    rows = np.concatenate([chosen, spread(others, max(0, LEAST_GOLDEN - len(chosen)))])
    return np.asarray(labels.ids[rows])


def _marks(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return (N, C) whether an image shows a class."""
    return np.asarray(classes.astype(bool) if classes.ndim == 2 else classes[:, None] == np.arange(classes.max() + 1))


def _first_rows(marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the first rows that show each class, some of each."""
    return np.concatenate([np.flatnonzero(column)[:_CANDIDATES] for column in marks.T])


def _covering(marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return rows in the order in which each adds the most classes that none before shows, until none adds any.

    Source: the greedy set cover of Chvatal, 1979.
    """
    left, order = marks.copy(), []
    while left.any():
        best = int(left.sum(axis=1).argmax())
        order.append(best)
        left &= ~marks[best]
    return np.array(order, np.int64)


def _originals(run: Run) -> Source | None:
    """Return the images as the competition ships them, or None where these are bare pixels or gone by now."""
    if run.task.images.format not in ("files", "encoded_parquet"):
        return None
    try:
        return open_source(run.task, "train", run.data)
    except DataError:
        return None


def _encoded(source: Source, ids: Text) -> Iterator[bytes]:
    """Yield the images' own files."""
    for row in rows_in(ids, source).tolist():
        data = source.encoded(row)
        assert data is not None
        yield bytes(data)
