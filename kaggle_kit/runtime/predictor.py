"""A bundle at work: images in, probabilities out, in bounded memory."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kaggle_kit.errors import BundleError
from kaggle_kit.labels import Classes
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime import tensorrt
from kaggle_kit.runtime.answers import Answers, Predicted
from kaggle_kit.runtime.backends import CPUS, Device
from kaggle_kit.runtime.budget import Budget
from kaggle_kit.runtime.bundle import Bundle, Golden, open_bundle
from kaggle_kit.runtime.engines import query_gpus
from kaggle_kit.runtime.golden import (
    Distance,
    check_distance,
    decode_golden,
    describe_distance,
    first_images,
    read_golden,
)
from kaggle_kit.runtime.graphs import FusedGraph, Loader, SeparateMembers, choose_graphs, describe_sessions
from kaggle_kit.runtime.levels import Costs, Ladder, home_costs, make_levels
from kaggle_kit.runtime.mounts import in_rerun
from kaggle_kit.runtime.pipeline import GRACE_S, Pipeline
from kaggle_kit.runtime.progress import Progress, print_line
from kaggle_kit.runtime.results import Batch, Results
from kaggle_kit.sources import Source
from kaggle_kit.tables import Text

BATCH = 64
GPU_BATCH = 256  # halved where memory runs out
REBUILD_SHARE = 1 / 20  # of the task's time limit: what building engines again may take where nothing else is said
START_IMAGES = 16  # golden images looked at before predicting: `kaggle-kit bundle --verify` takes all


class Predictor:
    """The runs of a bundle, or the first of them: each member in its own session, or the whole blend as one graph.

    Attributes:
        bundle: The whole bundle.
        blend: What becomes of the runs that are run.
        answers: Makes classes and submissions of their probabilities.
    """

    def __init__(
        self,
        folder: Path | Bundle,
        *,
        num_runs: int | None = None,
        prior_shift: bool | None = None,
        fused: bool | None = None,
        engines: Path | None = None,
        build_s: float | None = None,
        device: Device = "auto",
        batch: int | None = None,
        say: Callable[[str], object] = print_line,
    ) -> None:
        """Open a bundle and check it against its golden images.

        Args:
            folder: The bundle, or one that `open_bundle` has opened.
            num_runs: How many runs of the running order are loaded, then mixed and decided by what was fitted for just
                these; None: all.
            prior_shift: Whether `decide` corrects for the class shares it finds; None: as the bundle says.
            fused: True: nothing but the bundle's fused graph will do; False: separate members; None: the fused graph
                where the bundle has one and all runs are asked for.
            engines: A folder of TensorRT engines, from `kernels/build_engine`; those that do not fit are passed over,
                aloud.
            build_s: Seconds that may be spent on building such engines again, all together; None: a twentieth of the
                task's time limit; 0: none is built.
            device: What runs it; `auto`: the fastest that works.
            batch: Images computed at once; None: 64 on a CPU, on a GPU 256, or as many as fit into its memory.
            say: Where progress lines go.

        Raises:
            BundleError: When a file is missing or changed, or this machine computes something else; the latter is
                only a warning in Kaggle's hidden rerun, where a submission must still come out: there, the fused graph
                and engines give way to separate members without engines if these are nearer to home.
            SettingError: When there are fewer runs, no fused graph for these runs though it was asked for, or class
                shares are to be corrected for and a head is multi-label.
        """
        self.bundle = folder if isinstance(folder, Bundle) else open_bundle(folder)
        self.blend = self.bundle.blend if num_runs is None else self.bundle.blend.first(num_runs)
        self._say = say
        self.answers = Answers(self.bundle, self.blend, prior_shift=prior_shift, say=say)
        if build_s is None and engines is not None:
            build_s = REBUILD_SHARE * 3600 * self.bundle.task.limits.hours
        self._batch = batch
        self._load = Loader(engines, build_s=build_s, say=say, device=device)
        self._use(choose_graphs(self.bundle, self.blend, fused=fused, load=self._load))
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

    @property
    def providers(self) -> tuple[str, ...]:
        """What the sessions really run on, such as `CPUExecutionProvider`."""
        return tuple(dict.fromkeys(session.provider for session in self._graphs.sessions))

    @property
    def batch(self) -> int:
        """How many images are computed at once, where memory allows."""
        if self._batch is not None:
            return self._batch
        return BATCH if set(self.providers) <= CPUS else GPU_BATCH

    def predict(
        self,
        source: Source,
        *,
        end: float = math.inf,
        grace_s: float = GRACE_S,
        results: Results | None = None,
        spare: bool = True,
    ) -> Predicted:
        """Predict every image of a source in bounded memory, or as many as there is time for.

        A broken image gets the class priors and is counted; in the hidden rerun, so does one whose probabilities come
        out as NaN, and those of a part of a file that cannot be read.

        Args:
            source: The images.
            end: When to end, by `time.monotonic`: as many runs speak for each image as fit in the time until then.
            grace_s: How long what runs at the end is waited for.
            results: Where probabilities are kept, and may partly be already; None: in memory.
            spare: Whether the CPU takes over where the last GPU is lost.

        Raises:
            DataError: When a file is damaged, but for the hidden rerun.
            PredictionError: When probabilities come out as NaN anywhere else than there.
            LostDeviceError: When the last device is lost and nothing takes over.
        """
        results = results or self.make_results(source.ids)
        levels = make_levels(self.bundle, self.blend, fused=isinstance(self._graphs, FusedGraph))
        costs = Costs(home_costs(self.bundle))
        piece = min([self.batch, results.batch, *(batch.piece for batch in results.batches[-1:] if batch.piece)])
        ladder = functools.partial(Ladder, self.bundle, self.blend, levels, costs=costs, piece=piece, say=self._say)
        budget = Budget(levels, costs, end=end)
        pipeline = Pipeline(
            source,
            results,
            [ladder(load=load) for load in self._devices(levels[-1].files)],
            budget,
            priors=self.answers.priors(1),
            tolerant=in_rerun(),
            say=self._say,
            spare=(lambda: ladder(load=self._load.elsewhere(device="cpu"))) if spare else None,
            grace_s=grace_s,
        )
        progress = Progress(pipeline, end=end, on_gpu=not set(self.providers) <= CPUS, say=self._say)
        timings = pipeline.run(tick=progress.tick)
        self._say(progress.line())
        return self.answers.collect(results, timings)

    def make_results(
        self, ids: Text, *, folder: Path | None = None, key: str = "", accept: Callable[[Batch], bool] | None = None
    ) -> Results:
        """Return where probabilities of the bundle's heads are kept: see `Results`.

        Args:
            ids: (N,) of all images.
            folder: Where they outlive this process; None: in memory.
            key: Says what they belong to beside the ids.
            accept: Says which finished batches are good enough; None: all.
        """
        classes = {name: head.num_classes for name, head in self.bundle.task.heads.items()}
        return Results(classes, ids, folder=folder, key=key, batch=self.batch, accept=accept, say=self._say)

    def decide(self, predicted: Predicted) -> Classes:
        """Return {head: (N,) class indices, or of multi-label heads (N, C) of 0 and 1}, by the bundle's rules.

        Where the bundle corrects for the class shares of the test, all images must be decided in one call.
        """
        return self.answers.decide(predicted)

    def correct(self, predicted: Predicted) -> Probs:
        """Return the probabilities, corrected for the class shares of these images where the bundle is to do so."""
        return self.answers.correct(predicted)

    def write(self, out: Path, predicted: Predicted, *, rows: Text) -> None:
        """Write the submission of predicted images, and check it: see `Answers.write`."""
        self.answers.write(out, predicted, rows=rows)

    def _devices(self, files: Sequence[str]) -> list[Loader]:
        """Return what opens graphs on each device that can share the work: all GPUs of a kind, or the CPU.

        Args:
            files: The graphs that each of them must be able to run.
        """
        loads = [self._load]
        provider = self.providers[0]
        for device_id in range(1, 1 if provider in CPUS else _num_gpus()):
            load = self._load.elsewhere(device_id=device_id)
            try:
                found = {load(self.bundle.folder / file).provider for file in files}
            except BundleError as error:
                self._say(f"WARNING GPU {device_id} is passed over: {error}")
                continue
            if found <= set(self.providers):
                loads.append(load)
            else:
                others = ", ".join(sorted(found))
                self._say(f"WARNING GPU {device_id} is passed over: it would run on {others}, the first on {provider}")
        return loads

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
        load = Loader(None, build_s=None, say=self._say, device=self._load.device)
        separate = SeparateMembers(self.bundle, self.blend, load=load)
        other = separate.distance(images, golden)
        if other.difference / other.allowed >= distance.difference / distance.allowed:
            self._say(f"separate members are no nearer to home ({other.difference:.4f} away)")
            return distance
        self._load = load
        self._use(separate)
        return other


def _num_gpus() -> int:
    """Return how many GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    try:
        return max(1, len(query_gpus().strip().splitlines()))
    except BundleError:
        return 1
