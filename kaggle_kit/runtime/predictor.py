"""A bundle at work: images in, probabilities out, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kaggle_kit.ensemble import blend_probs, mean_probs
from kaggle_kit.errors import BundleError
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.pixels import Image, read_stored
from kaggle_kit.predictions import Predictions, Probs, concatenate
from kaggle_kit.prior_shift import shift_predictions
from kaggle_kit.runtime.backends import OnnxSession, describe_provider
from kaggle_kit.runtime.bundle import load_golden, open_bundle
from kaggle_kit.runtime.mounts import in_rerun
from kaggle_kit.sources import Source, check_ids, open_source
from kaggle_kit.submission import (
    expected_images,
    expected_rows,
    validate_submission,
    write_submission,
    writes_probs,
)
from kaggle_kit.tables import Text
from kaggle_kit.task import refuse_multilabel

BATCH = 64
LINE_EVERY_S = 15.0
GOLDEN_TOLERANCE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a bundle said of a source.

    Attributes:
        predictions: Probabilities of every image; the class priors for broken ones.
        broken: {id: reason} of images that could not be read.
        seconds: Wall time.
    """

    predictions: Predictions
    broken: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def print_line(text: str) -> None:
    """Print one line at once: a kernel's log is all that is left when it fails."""
    print(text, flush=True)  # noqa: T201


class Predictor:
    """The runs of a bundle, or the first of them, each member in its own session.

    Attributes:
        bundle: The whole bundle.
        blend: What becomes of the runs that are run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_runs: int | None = None,
        prior_shift: bool | None = None,
        say: Callable[[str], object] = print_line,
    ) -> None:
        """Open a bundle and check it against its golden images.

        Args:
            folder: The bundle.
            num_runs: How many runs of the running order are loaded, then mixed and decided by what was fitted for just
                these; None: all.
            prior_shift: Whether `decide` corrects for the class shares it finds; None: as the bundle says.
            say: Where progress lines go.

        Raises:
            BundleError: When a file is missing or changed, or this machine computes something else; the latter is
                only a warning in Kaggle's hidden rerun, where a submission must still come out.
            SettingError: When there are fewer runs, or class shares are to be corrected for and a head is multi-label.
        """
        self.bundle = open_bundle(folder)
        self.blend = self.bundle.blend if num_runs is None else self.bundle.blend.first(num_runs)
        self._say = say
        self._prior_shift = self.blend.prior_shift if prior_shift is None else prior_shift
        if self._prior_shift:
            refuse_multilabel(self.bundle.task, "correcting for class shares", "make the bundle without it")
        files = {name: [m.file for m in self.bundle.members if m.run == name] for name in self.blend.runs}
        self._sessions = {name: [OnnxSession(folder / file) for file in files[name]] for name in files}
        say(describe_provider(self._sessions[self.blend.runs[0]][0].provider))
        say(self._describe_runs())
        say(f"golden images agree to {self._check_golden():.1e}")

    def run(self, images: Image) -> Probs:
        """Return the blend's {head: (B, C) probabilities} of (B, H, W, C) uint8 stored images."""
        runs = list(self.run_each(images).values())
        return blend_probs(self.blend, runs, multilabel=self.bundle.task.multilabel_heads)

    def run_each(self, images: Image) -> dict[str, Probs]:
        """Return {run: {head: (B, C) probabilities}}: of each run the mean of its members."""
        return {
            name: mean_probs([session.run(images) for session in sessions]) for name, sessions in self._sessions.items()
        }

    def predict(self, source: Source) -> Predicted:
        """Predict every image of a source, holding one chunk of images at a time.

        A broken image gets the class priors and is counted.
        """
        started = said = time.monotonic()
        parts = [self._no_predictions()]
        broken: dict[str, str] = {}
        done = 0
        for chunk in source.chunks():
            for start in range(0, len(chunk.ids), BATCH):
                ids = chunk.ids[start : start + BATCH]
                probs = self.run(chunk.images[start : start + BATCH])
                parts.append(self._with_priors(ids, probs, chunk.broken))
                done += len(ids)
                if time.monotonic() - said > LINE_EVERY_S:
                    said = time.monotonic()
                    self._say(_progress_line(done, len(source), said - started))
            broken |= chunk.broken
        seconds = time.monotonic() - started
        self._say(_progress_line(done, len(source), seconds))
        return Predicted(predictions=concatenate(parts), broken=broken, seconds=seconds)

    def decide(self, predicted: Predicted) -> Classes:
        """Return {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}, by the bundle's rules.

        Where the bundle corrects for the class shares of the test, all images must be decided in one call.
        """
        return self._by_rules(self.correct(predicted))

    def correct(self, predicted: Predicted) -> Probs:
        """Return the probabilities, corrected for the class shares of these images where the bundle is to do so."""
        predictions = predicted.predictions
        if not self._prior_shift:
            return predictions.probs
        skip = np.isin(predictions.ids, list(predicted.broken))
        priors = {head: np.array(shares) for head, shares in self.bundle.priors.items()}
        probs, said = shift_predictions(predictions.probs, priors, skip=skip)
        for sentence in said:
            self._say(sentence)
        return probs

    def write(self, out: Path, predicted: Predicted, *, rows: Text) -> None:
        """Write the submission of predicted images, and check it.

        Args:
            out: The CSV file to write; it appears whole or not at all.
            predicted: All images that the rows ask for.
            rows: Submission ids in order, from `expected_rows`.
        """
        task, probs = self.bundle.task, self.correct(predicted)
        ids, decided = predicted.predictions.ids, self._by_rules(probs)
        write_submission(task, out, rows=rows, ids=ids, decided=decided, probs=probs)
        validate_submission(task, out, rows=rows)

    def _by_rules(self, probs: Probs) -> Classes:
        decision = self.blend.decision
        if not decision.is_plain:
            self._say(decision.describe())
        return decision.decide(probs, multilabel=self.bundle.task.multilabel_heads)

    def _no_predictions(self) -> Predictions:
        heads = self.bundle.task.heads.items()
        empty = {name: np.zeros((0, head.num_classes), np.float32) for name, head in heads}
        return Predictions(ids=np.zeros(0, np.str_), probs=empty, multilabel=self.bundle.task.multilabel_heads)

    def _with_priors(self, ids: Text, probs: Probs, broken: dict[str, str]) -> Predictions:
        for row, name in enumerate(ids.tolist()):
            if name in broken:
                for head in probs:
                    probs[head][row] = self.bundle.priors[head]
        return Predictions(ids=ids, probs=probs, multilabel=self.bundle.task.multilabel_heads)

    def _describe_runs(self) -> str:
        """Return one line on what runs, and what it scored at home."""
        runs, total = self.blend.runs, len(self.bundle.blend.runs)
        cut = "" if len(runs) == total else f", the first {len(runs)} of {total}"
        score = self.blend.score.total if self.blend.score else None
        if score is None and not cut:
            score = self.bundle.oof_score
        said = "not measured" if score is None else f"{score:.4f}"
        members = sum(map(len, self._sessions.values()))
        metric = self.bundle.task.metric
        return f"run(s) {', '.join(runs)}{cut}: {members} member(s), out-of-fold {metric} {said}"

    def _check_golden(self) -> float:
        """Return the largest difference from the probabilities computed at home."""
        golden = load_golden(self.bundle.folder)
        task = self.bundle.task
        stored = None if golden.fitted else task.stored
        images = np.stack(
            [read_stored(data, channels=task.images.channels, stored=stored)[0] for data in golden.encoded]
        )
        away = {name: _difference(probs, golden.probs[name]) for name, probs in self.run_each(images).items()}
        worst = max(away, key=lambda name: away[name])
        if away[worst] > GOLDEN_TOLERANCE:
            pixels = int(np.abs(images.astype(np.int16) - golden.images).max())
            message = (
                f"golden images give run {worst!r} probabilities {away[worst]:.4f} away from home (allowed "
                f"{GOLDEN_TOLERANCE}); their pixels differ by up to {pixels} of 255; this machine's OpenCV or "
                "onnxruntime computes something else"
            )
            if not in_rerun():
                raise BundleError(message)
            self._say(f"WARNING {message}")
        return away[worst]


def _difference(found: Probs, expected: Probs) -> float:
    """Return the largest difference of a probability, infinite where one is NaN."""
    differences = [np.abs(found[head] - expected[head]).max() for head in expected]
    return float(np.nan_to_num(differences, nan=np.inf).max())


def predict_submission(
    folder: Path,
    data: Path,
    out: Path,
    *,
    num_runs: int | None = None,
    prior_shift: bool | None = None,
    say: Callable[[str], object] = print_line,
) -> Predicted:
    """Write the submission of a bundle for a competition's test images, and check it.

    Args:
        folder: The bundle.
        data: The competition's data folder.
        out: The CSV file to write; it appears whole or not at all.
        num_runs: How many runs of the running order are used, with what was fitted for just these; None: all.
        prior_shift: Whether probabilities are corrected for the test's class shares; None: as the bundle says.
        say: Where progress lines go.

    Raises:
        KitError: For anything wrong with bundle or data, before any time is spent where possible.
    """
    predictor = Predictor(folder, num_runs=num_runs, prior_shift=prior_shift, say=say)
    task = predictor.bundle.task
    rows = expected_rows(task, data)
    if task.metric in PROBABILITY_METRICS and not writes_probs(task):
        say(
            f"WARNING metric {task.metric} scores probabilities, and a submission of form {task.submission.form} holds "
            "decided classes; if the competition takes probabilities, set `submission.form` to column_per_class"
        )
    if not len(rows):
        say(f"WARNING {data / task.submission.file} asks for no rows at all; the submission will have none")
    source = open_source(task, "test", data, on_broken="blank")
    check_ids(source, expected_images(task, rows), where=str(data / task.submission.file))
    predicted = predictor.predict(source)
    if predicted.broken:
        name, reason = next(iter(predicted.broken.items()))
        say(f"WARNING {len(predicted.broken):,} broken image(s) got the class priors; the first: {name}: {reason}")
    predictor.write(out, predicted, rows=rows)
    say(f"{out}: {len(rows):,} rows")
    return predicted


def _progress_line(done: int, total: int, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    left = (total - done) / rate if rate else 0.0
    return f"{done:,} of {total:,} images, {rate:,.0f} images/s, {left:,.0f} s left{_peak_memory()}"


def _peak_memory() -> str:
    # Not getrusage: after a fork its maximum starts at the parent's.
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no Linux
        return ""
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return f", peak memory {kilobytes[0] / (1 << 20):.2f} GB" if kilobytes else ""
