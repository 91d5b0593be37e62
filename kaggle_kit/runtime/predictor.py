"""A bundle at work: images in, probabilities out, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kaggle_kit.errors import BundleError
from kaggle_kit.labels import Classes
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Predictions, Probs, concatenate
from kaggle_kit.prior_shift import shift_predictions
from kaggle_kit.runtime import tensorrt
from kaggle_kit.runtime.bundle import Golden, open_bundle
from kaggle_kit.runtime.golden import (
    Distance,
    check_distance,
    decode_golden,
    describe_distance,
    first_images,
    read_golden,
)
from kaggle_kit.runtime.graphs import FusedGraph, Loader, SeparateMembers, choose_graphs, describe_sessions
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
REBUILD_SHARE = 1 / 20  # of the task's time limit: what building engines again may take where nothing else is said
START_IMAGES = 16  # golden images looked at before predicting: `kaggle-kit bundle --verify` takes all


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
    """The runs of a bundle, or the first of them: each member in its own session, or the whole blend as one graph.

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
        fused: bool | None = None,
        engines: Path | None = None,
        build_s: float | None = None,
        say: Callable[[str], object] = print_line,
    ) -> None:
        """Open a bundle and check it against its golden images.

        Args:
            folder: The bundle.
            num_runs: How many runs of the running order are loaded, then mixed and decided by what was fitted for just
                these; None: all.
            prior_shift: Whether `decide` corrects for the class shares it finds; None: as the bundle says.
            fused: True: nothing but the bundle's fused graph will do; False: separate members; None: the fused graph
                where the bundle has one and all runs are asked for.
            engines: A folder of TensorRT engines, from `kernels/build_engine`; those that do not fit are passed over,
                aloud.
            build_s: Seconds that may be spent on building such engines again, all together; None: a twentieth of the
                task's time limit; 0: none is built.
            say: Where progress lines go.

        Raises:
            BundleError: When a file is missing or changed, or this machine computes something else; the latter is
                only a warning in Kaggle's hidden rerun, where a submission must still come out: there, the fused graph
                and engines give way to separate members without engines if these are nearer to home.
            SettingError: When there are fewer runs, no fused graph for these runs though it was asked for, or class
                shares are to be corrected for and a head is multi-label.
        """
        self.bundle = open_bundle(folder)
        self.blend = self.bundle.blend if num_runs is None else self.bundle.blend.first(num_runs)
        self._say = say
        self._prior_shift = self.blend.prior_shift if prior_shift is None else prior_shift
        if self._prior_shift:
            refuse_multilabel(self.bundle.task, "correcting for class shares", "make the bundle without it")
        if build_s is None and engines is not None:
            build_s = REBUILD_SHARE * 3600 * self.bundle.task.limits.hours
        load = Loader(engines, build_s=build_s, say=say)
        self._use(choose_graphs(self.bundle, self.blend, fused=fused, load=load))
        self._check_golden()

    def run(self, images: Image) -> Probs:
        """Return the blend's {head: (B, C) probabilities} of (B, H, W, C) uint8 stored images."""
        return self._graphs.run(images)

    def run_each(self, images: Image) -> dict[str, Probs]:
        """Return {run: {head: (B, C) probabilities}}: of each run the mean of its members.

        Raises:
            SettingError: When the fused graph is run, which gives the blend alone.
        """
        return self._graphs.run_each(images)

    def predict(self, source: Source) -> Predicted:
        """Predict every image of a source, holding one chunk of images at a time.

        A broken image gets the class priors and is counted; in the hidden rerun, so does one whose probabilities come
        out as NaN.

        Raises:
            PredictionError: When probabilities come out as NaN anywhere else.
        """
        started = said = time.monotonic()
        parts = [self._no_predictions()]
        broken: dict[str, str] = {}
        done = 0
        for chunk in source.chunks():
            broken |= chunk.broken
            for start in range(0, len(chunk.ids), BATCH):
                ids = chunk.ids[start : start + BATCH]
                probs = self.run(chunk.images[start : start + BATCH])
                if in_rerun():
                    broken |= _not_finite(ids, probs)
                parts.append(self._with_priors(ids, probs, broken))
                done += len(ids)
                if time.monotonic() - said > LINE_EVERY_S:
                    said = time.monotonic()
                    self._say(_progress_line(done, len(source), said - started))
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
        """Return predictions in which broken images have the class priors."""
        for row, name in enumerate(ids.tolist()):
            if name in broken:
                for head in probs:
                    probs[head][row] = self.bundle.priors[head]
        return Predictions(ids=ids, probs=probs, multilabel=self.bundle.task.multilabel_heads)

    def _use(self, graphs: SeparateMembers | FusedGraph) -> None:
        """Run these graphs from here on, and say so."""
        self._graphs = graphs
        for line in describe_sessions(graphs.sessions):
            self._say(line)
        self._say(self._describe_runs())

    def _describe_runs(self) -> str:
        """Return one line on what runs, and what it scored at home."""
        runs, total = self.blend.runs, len(self.bundle.blend.runs)
        cut = "" if len(runs) == total else f", the first {len(runs)} of {total}"
        score = self.blend.score.total if self.blend.score else None
        if score is None and not cut:
            score = self.bundle.oof_score
        said = "not measured" if score is None else f"{score:.4f}"
        members = sum(member.run in runs for member in self.bundle.members)
        how = " in one graph" if isinstance(self._graphs, FusedGraph) else ""
        metric = self.bundle.task.metric
        return f"run(s) {', '.join(runs)}{cut}: {members} member(s){how}, out-of-fold {metric} {said}"

    def _check_golden(self) -> None:
        """Say how far the first golden images are away from home, or refuse to go on."""
        try:
            golden = first_images(read_golden(self.bundle), START_IMAGES)
            images = decode_golden(golden, self.bundle.task)
            distance = self._graphs.distance(images, golden)
            if in_rerun() and distance.too_far and self._is_quickened():
                distance = self._turn_back(distance, images, golden)
            check_distance(distance, golden, images)
            self._say(f"{len(images)} golden images agree to {distance.difference:.1e}")
        except BundleError as error:
            if not in_rerun():
                raise
            self._say(f"WARNING {error}")

    def _is_quickened(self) -> bool:
        """Return whether the fused graph or engines run, which separate members could do without."""
        on_engines = any(session.provider == tensorrt.PROVIDER for session in self._graphs.sessions)
        return on_engines or isinstance(self._graphs, FusedGraph)

    def _turn_back(self, distance: Distance, images: Image, golden: Golden) -> Distance:
        """Go on with separate members without engines if these are nearer to home, and return how far it is then.

        Args:
            distance: How far it is as it is.
            images: (n, H, W, C) the golden images as this machine decodes them.
            golden: Home's.

        Raises:
            BundleError: When a member does not load.
        """
        self._say(f"WARNING {describe_distance(distance, golden, images)}; trying separate members without engines")
        separate = SeparateMembers(self.bundle, self.blend, load=Loader(None, build_s=None, say=self._say))
        other = separate.distance(images, golden)
        if other.difference / other.allowed >= distance.difference / distance.allowed:
            self._say(f"separate members are no nearer to home ({other.difference:.4f} away)")
            return distance
        self._use(separate)
        return other


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
    say: Callable[[str], object] = print_line,
) -> Predicted:
    """Write the submission of a bundle for a competition's test images, and check it.

    Args:
        folder: The bundle.
        data: The competition's data folder.
        out: The CSV file to write; it appears whole or not at all.
        num_runs: How many runs of the running order are used, with what was fitted for just these; None: all.
        prior_shift: Whether probabilities are corrected for the test's class shares; None: as the bundle says.
        fused: Whether the bundle's fused graph is run; None: where it can be.
        engines: A folder of TensorRT engines; in a kernel, what `find_engines` finds.
        build_s: Seconds that may be spent on building such engines again; None: a twentieth of the task's time limit;
            0: those that do not fit are passed over.
        say: Where progress lines go.

    Raises:
        KitError: For anything wrong with bundle or data, before any time is spent where possible.
    """
    predictor = Predictor(
        folder,
        num_runs=num_runs,
        prior_shift=prior_shift,
        fused=fused,
        engines=engines,
        build_s=build_s,
        say=say,
    )
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


def _not_finite(ids: Text, probs: Probs) -> dict[str, str]:
    """Return {id: reason} of images that no probabilities came out for."""
    finite = np.all([np.isfinite(values).all(axis=1) for values in probs.values()], axis=0)
    return dict.fromkeys(ids[~finite].tolist(), "its probabilities are NaN or infinite")


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
