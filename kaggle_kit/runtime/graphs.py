"""What runs images through a bundle: each member in a session of its own, or all of them as one fused graph."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kaggle_kit.ensemble import Blend, blend_probs, mean_probs
from kaggle_kit.errors import BundleError, SettingError
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.backends import CPUS, Device, OnnxSession, describe_session
from kaggle_kit.runtime.bundle import Bundle, Golden
from kaggle_kit.runtime.engines import read_engines
from kaggle_kit.runtime.golden import Distance, furthest_blend, furthest_run

Load = Callable[[Path], OnnxSession]


class Loader:
    """Opens graphs on the fastest that works here, each once, and keeps to the time that builds may take.

    Attributes:
        device: What was asked for.
        device_id: Which GPU.
    """

    def __init__(
        self,
        engines: Path | None,
        *,
        build_s: float | None,
        say: Callable[[str], object],
        device: Device = "auto",
        device_id: int = 0,
    ) -> None:
        """Read the engines that are there; those that cannot be used are passed over, aloud.

        Args:
            engines: A folder of TensorRT engines, from `kernels/build_engine`; None: none.
            build_s: Seconds that may be spent on engines that do not fit, all together; None or 0: none is built.
            say: Where lines on engines go.
            device: As of `OnnxSession`.
            device_id: Which GPU.
        """
        self.device = device
        self.device_id = device_id
        self._say = say
        self._deadline = time.monotonic() + build_s if build_s else None
        self._open: dict[Path, OnnxSession] = {}
        self._try_cuda = True
        try:
            self._engines = None if engines is None else read_engines(engines)
        except BundleError as error:
            self._engines = None
            say(f"WARNING engines are passed over: {error}")

    def __call__(self, path: Path) -> OnnxSession:
        """Open a graph, or return it where it is open."""
        if path not in self._open:
            before = {session.provider for session in self._open.values()}
            left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
            self._open[path] = OnnxSession(
                path,
                device=self.device,
                engines=self._engines,
                build_s=left,
                device_id=self.device_id,
                try_cuda=self._try_cuda,
                say=self._say,
            )
            self._try_cuda = self._try_cuda and self._open[path].provider not in CPUS
            if before and self._open[path].provider not in before:
                self._say(f"WARNING {path.name}: {describe_session(self._open[path])}")
        return self._open[path]

    def elsewhere(self, *, device: Device | None = None, device_id: int = 0) -> Loader:
        """Return one that opens graphs on another device."""
        other = copy.copy(self)
        other.device, other.device_id, other._open = device or self.device, device_id, {}
        other._try_cuda = True
        return other


def describe_sessions(sessions: Iterable[OnnxSession]) -> list[str]:
    """Return a line for each backend that runs some of these, and why nothing faster does."""
    first: dict[str, OnnxSession] = {}
    for session in sessions:
        first.setdefault(session.provider, session)
    return [describe_session(session) for session in first.values()]


class SeparateMembers:
    """The runs of a blend, each member in its own session.

    Attributes:
        sessions: In the blend's order.
    """

    def __init__(self, bundle: Bundle, blend: Blend, *, load: Load) -> None:
        """Load the members of a blend's runs.

        Args:
            bundle: Has the members.
            blend: Of the bundle's first runs, or all.
            load: Opens a file.
        """
        self._blend = blend
        self._multilabel = bundle.task.multilabel_heads
        files = {name: [m.file for m in bundle.members if m.run == name] for name in blend.runs}
        self._by_run = {name: [load(bundle.folder / file) for file in files[name]] for name in files}
        self.sessions = tuple(session for sessions in self._by_run.values() for session in sessions)

    def run(self, images: Image) -> Probs:
        """Return the blend's {head: (B, C) probabilities} of (B, H, W, C) uint8 stored images."""
        return blend_probs(self._blend, list(self.run_each(images).values()), multilabel=self._multilabel)

    def run_each(self, images: Image) -> dict[str, Probs]:
        """Return {run: {head: (B, C) probabilities}}: of each run the mean of its members."""
        return {
            name: mean_probs([session.run(images) for session in sessions]) for name, sessions in self._by_run.items()
        }

    def distance(self, images: Image, golden: Golden) -> Distance:
        """Return where a run is furthest from home.

        Args:
            images: (n, H, W, C) the golden images as this machine decodes them.
            golden: Home's.
        """
        return furthest_run(self.run_each(images), golden)


class FusedGraph:
    """A bundle's members and their blend in one session, which gives the blend and nothing else.

    Attributes:
        sessions: The one.
    """

    def __init__(self, bundle: Bundle, *, load: Load) -> None:
        """Load the fused graph.

        Args:
            bundle: Has one.
            load: Opens a file.
        """
        assert bundle.fused is not None
        self._bundle = bundle
        self.sessions = (load(bundle.folder / bundle.fused.file),)

    def run(self, images: Image) -> Probs:
        """Return the blend's {head: (B, C) probabilities} of (B, H, W, C) uint8 stored images."""
        return self.sessions[0].run(images)

    def run_each(self, images: Image) -> dict[str, Probs]:
        """Refuse: the graph keeps what runs say to itself.

        Raises:
            SettingError: Always.
        """
        raise SettingError(
            f"the fused graph of {self._bundle.folder} gives the blend of {len(images)} images, not each run's "
            "probabilities; load the members with `fused=False`"
        )

    def distance(self, images: Image, golden: Golden) -> Distance:
        """Return where the graph is furthest from the blend of what the runs said at home.

        Args:
            images: (n, H, W, C) the golden images as this machine decodes them.
            golden: Home's.
        """
        blend = self._bundle.blend
        return furthest_blend(
            "the fused graph",
            self.run(images),
            blend,
            [golden.probs[run] for run in blend.runs],
            tolerance=golden.tolerance,
            multilabel=self._bundle.task.multilabel_heads,
        )


def choose_graphs(bundle: Bundle, blend: Blend, *, fused: bool | None, load: Load) -> SeparateMembers | FusedGraph:
    """Load what runs a blend: the fused graph where it may be and there is one.

    Args:
        bundle: The bundle.
        blend: Its own, or that of its first runs.
        fused: True: nothing but the fused graph; False: separate members; None: the fused graph where the bundle has
            one and all its runs are asked for.
        load: Opens a file.

    Raises:
        SettingError: When `fused` is True and there is none for these runs.
    """
    whole = len(blend.runs) == len(bundle.blend.runs)
    if fused and bundle.fused is None:
        raise SettingError(
            f"{bundle.folder} holds no fused graph; make the bundle with one, or leave `fused` out to run its members"
        )
    if fused and not whole:
        raise SettingError(
            f"the fused graph of {bundle.folder} is the blend of all {len(bundle.blend.runs)} runs, and the first "
            f"{len(blend.runs)} were asked for; ask for all, or leave `fused` out"
        )
    if bundle.fused is None or not whole or fused is False:
        return SeparateMembers(bundle, blend, load=load)
    return FusedGraph(bundle, load=load)
