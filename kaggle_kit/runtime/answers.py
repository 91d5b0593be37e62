"""From probabilities to a submission: class shares, decision rules of every cut of the runs, the competition's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.ensemble import Blend
from kaggle_kit.labels import Classes
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.prior_shift import shift_predictions
from kaggle_kit.runtime.bundle import Bundle
from kaggle_kit.runtime.pipeline import Timings
from kaggle_kit.runtime.results import Results
from kaggle_kit.submission import expected_images, validate_submission, write_submission
from kaggle_kit.tables import Text
from kaggle_kit.task import refuse_multilabel


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a bundle said of a source.

    Attributes:
        predictions: Probabilities of every image; the class priors for broken ones, and where time ran out.
        broken: {id: reason} of images that could not be read.
        num_runs: (N,) how many runs of the running order spoke for each image; 0: none did, for want of time. None:
            all of them everywhere.
        num_cut: Images for which the first run spoke without its views, or by one network of several.
        timings: Where the time went.
    """

    predictions: Predictions
    broken: dict[str, str] = field(default_factory=dict)
    num_runs: npt.NDArray[np.int16] | None = None
    num_cut: int = 0
    timings: Timings = field(default_factory=Timings)


class Answers:
    """What becomes of a bundle's probabilities; needs no session."""

    def __init__(self, bundle: Bundle, blend: Blend, *, prior_shift: bool | None, say: Callable[[str], object]) -> None:
        """Take over what was fitted.

        Args:
            bundle: The bundle.
            blend: Its own, or of its first runs.
            prior_shift: Whether to correct for the class shares that are found; None: as the blend says.
            say: Where lines go.

        Raises:
            SettingError: When class shares are to be corrected for and a head is multi-label.
        """
        self._bundle, self._blend, self._say = bundle, blend, say
        self._prior_shift = blend.prior_shift if prior_shift is None else prior_shift
        if self._prior_shift:
            refuse_multilabel(bundle.task, "correcting for class shares", "make the bundle without it")

    def priors(self, number: int) -> Probs:
        """Return {head: (number, C) float32 class priors}: for images of which nothing else is known."""
        shares = self._bundle.priors.items()
        return {head: np.tile(np.array(values, np.float32), (number, 1)) for head, values in shares}

    def collect(self, results: Results, timings: Timings | None = None) -> Predicted:
        """Return what results say; images that are not finished have the class priors.

        Args:
            results: Of all images.
            timings: Where the time went.
        """
        probs, num_runs = results.probs(), results.num_runs()
        lacking = np.flatnonzero(num_runs == 0)
        for head, values in self.priors(1).items():
            probs[head][lacking] = values
        heads = {head: np.ascontiguousarray(probs[head]) for head in self._bundle.task.heads}
        return Predicted(
            predictions=Predictions(ids=results.ids, probs=heads, multilabel=self._bundle.task.multilabel_heads),
            broken=results.broken(),
            num_runs=num_runs,
            num_cut=sum(len(batch.rows) for batch in results.batches if batch.cut),
            timings=timings or Timings(),
        )

    def correct(self, predicted: Predicted) -> Probs:
        """Return the probabilities, corrected for the class shares of these images where that is to be done."""
        predictions = predicted.predictions
        if not self._prior_shift:
            return predictions.probs
        skip = np.isin(predictions.ids, list(predicted.broken))
        if predicted.num_runs is not None:
            skip |= predicted.num_runs == 0
        priors = {head: np.array(shares) for head, shares in self._bundle.priors.items()}
        probs, said = shift_predictions(predictions.probs, priors, skip=skip)
        for sentence in said:
            self._say(sentence)
        return probs

    def decide(self, predicted: Predicted) -> Classes:
        """Return {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}."""
        return self._by_rules(self.correct(predicted), predicted.num_runs)

    def write(self, out: Path, predicted: Predicted, *, rows: Text) -> None:
        """Write the submission of predicted images, and check it.

        Args:
            out: The CSV file to write; it appears whole or not at all.
            predicted: All images that the rows ask for.
            rows: Submission ids in order, from `expected_rows`.
        """
        task, probs = self._bundle.task, self.correct(predicted)
        decided = self._by_rules(probs, predicted.num_runs)
        write_submission(task, out, rows=rows, ids=predicted.predictions.ids, decided=decided, probs=probs)
        validate_submission(task, out, rows=rows)

    def write_priors(self, out: Path, *, rows: Text) -> None:
        """Write the submission that knows nothing of the images: a valid one, whatever happens later."""
        task, one = self._bundle.task, self.priors(1)
        ids = expected_images(task, rows)
        decided = self._blend.decision.decide(one, multilabel=task.multilabel_heads)
        everywhere = {head: np.repeat(values, len(ids), axis=0) for head, values in decided.items()}
        probs = {head: np.broadcast_to(values, (len(ids), values.shape[1])) for head, values in one.items()}
        write_submission(task, out, rows=rows, ids=ids, decided=everywhere, probs=probs)

    def _by_rules(self, probs: Probs, num_runs: npt.NDArray[np.int16] | None) -> Classes:
        """Return classes by the rules that were fitted for as many runs as spoke for each image."""
        decision, multilabel = self._blend.decision, self._bundle.task.multilabel_heads
        if not decision.is_plain:
            heads = self._bundle.task.heads
            self._say(decision.describe({name: head.class_names for name, head in heads.items()}))
        decided = decision.decide(probs, multilabel=multilabel)
        whole = len(self._blend.runs)
        for number in np.unique(num_runs).tolist() if num_runs is not None else ():
            if number not in (0, whole):
                rows = np.flatnonzero(num_runs == number)
                part = {head: values[rows] for head, values in probs.items()}
                own = self._blend.first(number).decision.decide(part, multilabel=multilabel)
                for head, values in own.items():
                    decided[head][rows] = values
        return decided
