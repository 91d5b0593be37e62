"""How much of a bundle runs for an image: from one network without views, over the first runs, up to the whole blend.

A kernel that has too little time goes down these levels: first it leaves out the last runs, for whatever is left has a
mix and decision rules of its own; then, of the first run, its views; and last all of that run's networks but one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kaggle_kit.ensemble import Blend, blend_probs, mean_probs
from kaggle_kit.errors import brief
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.backends import CPUS, OnnxSession
from kaggle_kit.runtime.bundle import Bundle, Member

Load = Callable[[Path], OnnxSession]

KEPT = 0.8  # of what was measured before, at each batch: speeds change in the course of hours
MEMORY_WORDS = (
    *("out of memory", "outofmemory", "failed to allocate", "bad allocation", "bad_alloc"),
    *("cuda failure 2:", "alloc_failed", "allocation_failed"),
)


@dataclass(frozen=True, kw_only=True)
class Level:
    """What runs for an image.

    Attributes:
        graphs: For each run that speaks, the files that run; one tuple with the fused graph where that runs.
        num_runs: How many runs speak: their mix and rules apply.
        cut: Whether these do not speak as they did at home: without views, or one network of several.
        fused: Whether the fused graph runs, and gives the blend.
    """

    graphs: tuple[tuple[str, ...], ...]
    num_runs: int
    cut: bool = False
    fused: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """All files that run."""
        return tuple(file for files in self.graphs for file in files)


def make_levels(bundle: Bundle, blend: Blend, *, fused: bool) -> tuple[Level, ...]:
    """Return what may run for an image, the cheapest first.

    Args:
        bundle: Has the members.
        blend: Of the bundle's first runs, or all.
        fused: Whether all of them run as the fused graph.
    """
    members = {name: [member for member in bundle.members if member.run == name] for name in blend.runs}
    graphs = tuple(tuple(member.file for member in members[name]) for name in blend.runs)
    levels = [Level(graphs=graphs[:number], num_runs=number) for number in range(1, len(graphs) + 1)]
    if fused and bundle.fused is not None:
        levels[-1] = Level(graphs=((bundle.fused.file,),), num_runs=len(graphs), fused=True)
    plain = tuple(member.plain or member.file for member in members[blend.runs[0]])
    cheaper = [files for files in (plain[:1], plain) if files != graphs[0]]
    return (*(Level(graphs=(files,), num_runs=1, cut=True) for files in dict.fromkeys(cheaper)), *levels)


class Costs:
    """Seconds an image takes in each graph: as measured here, else in proportion to what it took at home."""

    def __init__(self, home: Mapping[str, float]) -> None:
        """Begin with nothing measured.

        Args:
            home: {file: seconds an image took at home}; 0 where that is not known.
        """
        known = [seconds for seconds in home.values() if seconds > 0]
        usual = float(np.mean(known)) if known else 1.0
        self._home = {file: seconds if seconds > 0 else usual for file, seconds in home.items()}
        self._measured: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def add(self, file: str, images: int, seconds: float) -> None:
        """Count what images took."""
        with self._lock:
            before = self._measured.get(file, (0.0, 0.0))
            self._measured[file] = (KEPT * before[0] + images, KEPT * before[1] + seconds)

    def is_measured(self, level: Level) -> bool:
        """Return whether every graph of a level was measured here."""
        return all(file in self._measured for file in level.files)

    def of(self, level: Level) -> float:
        """Return the seconds that an image takes."""
        with self._lock:
            measured = {file: seconds / images for file, (images, seconds) in self._measured.items()}
        here, home = sum(measured.values()), sum(self._home.get(file, 0.0) for file in measured)
        scale = here / home if home else 1.0
        return sum(measured.get(file, scale * self._home.get(file, 0.0)) for file in level.files)


def home_costs(bundle: Bundle) -> dict[str, float]:
    """Return {file: seconds an image took at home}, 0 where that was not measured."""
    costs = {member.file: member.seconds for member in bundle.members}
    costs |= {member.plain: member.seconds / _num_views(member) for member in bundle.members if member.plain}
    return costs | ({bundle.fused.file: bundle.fused.seconds} if bundle.fused else {})


def _num_views(member: Member) -> int:
    """Return how often a network looks at an image."""
    sides = {"shift": 4}
    changes = [(spec.partition("=")[0], spec.partition("=")[2].split(",")) for spec in member.tta]
    return 1 + sum(sides.get(name, 1) * len(values) for name, values in changes)


class Ladder:
    """The graphs of a bundle on one device, at whatever level.

    Attributes:
        piece: How many images are computed at once; it is halved where memory runs out.
    """

    def __init__(
        self,
        bundle: Bundle,
        blend: Blend,
        levels: Sequence[Level],
        *,
        load: Load,
        costs: Costs,
        piece: int,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over what runs; graphs are loaded when they are first needed.

        Args:
            bundle: The bundle.
            blend: Of the bundle's first runs, or all.
            levels: From `make_levels`.
            load: Opens a file, each once.
            costs: Is told what images took.
            piece: How many images may be computed at once.
            say: Where a line on memory goes.
            clock: Gives seconds.
        """
        self.piece = piece
        self._bundle = bundle
        self._blends = {number: blend.first(number) for number in range(1, len(blend.runs) + 1)}
        self._levels = {level.num_runs: level for level in levels if not level.cut and not level.fused}
        self._load = load
        self._costs = costs
        self._say = say
        self._clock = clock
        self._warm: set[tuple[str, int]] = set()

    @property
    def device_id(self) -> int:
        """Which GPU."""
        return int(getattr(self._load, "device_id", 0))

    def run(self, images: Image, level: Level, *, stop_at: float = float("inf")) -> tuple[Probs, Level]:
        """Return {head: (B, C) probabilities}, and the level that was reached.

        Args:
            images: (B, H, W, C) uint8 stored images.
            level: What is to run.
            stop_at: From then on no further network is begun, so that fewer may speak.
        """
        parts: list[Probs] = []
        for files in level.graphs:
            own: list[Probs] = []
            for file in files:
                if (parts or own) and self._clock() > stop_at:
                    return self._cut_short(parts, own, level)
                own.append(self._run_file(file, images))
            parts.append(mean_probs(own))
        return (parts[0] if level.fused else self._mix(parts)), level

    def _cut_short(self, parts: list[Probs], own: list[Probs], level: Level) -> tuple[Probs, Level]:
        """Return what the runs say that have spoken in full; where none has, what some networks of the first say."""
        if parts:
            return self._mix(parts), self._levels.get(len(parts), level)
        return self._mix([mean_probs(own)]), Level(graphs=(level.graphs[0][: len(own)],), num_runs=1, cut=True)

    def _mix(self, parts: list[Probs]) -> Probs:
        """Return the blend; NaN where a run says NaN, which mixing could hide."""
        with np.errstate(invalid="ignore"):
            mixed = blend_probs(self._blends[len(parts)], parts, multilabel=self._bundle.task.multilabel_heads)
        for head, values in mixed.items():
            for part in parts:
                values[~np.isfinite(part[head]).all(axis=1)] = np.nan
        return mixed

    def _run_file(self, file: str, images: Image) -> Probs:
        """Return what one graph says, computed in pieces that fit into memory."""
        session = self._load(self._bundle.folder / file)
        parts: list[Probs] = []
        at = 0
        while at < len(images) or not parts:
            piece = images[at : at + self.piece]
            try:
                parts.append(self._run_piece(session, file, piece))
            except Exception as error:
                if not _is_out_of_memory(error) or self.piece == 1:
                    raise
                self.piece = max(1, min(self.piece, len(piece)) // 2)
                self._say(f"WARNING memory ran out ({brief(error, 80)}); going on with {self.piece} image(s) at once")
                continue
            at += max(len(piece), 1)
        return parts[0] if len(parts) == 1 else {head: np.concatenate([p[head] for p in parts]) for head in parts[0]}

    def _run_piece(self, session: OnnxSession, file: str, images: Image) -> Probs:
        """Run one piece and count what it took, but for the first of its size, which sets things up."""
        number = len(images)
        if session.provider not in CPUS and number < self.piece:
            # On a GPU convolutions are searched for each new shape.
            images = np.concatenate([images, np.zeros((self.piece - number, *images.shape[1:]), np.uint8)])
        started = self._clock()
        probs = session.run(images)
        key = (file, len(images))
        if key in self._warm and number:
            self._costs.add(file, number, self._clock() - started)
        self._warm.add(key)
        return {head: values[:number] for head, values in probs.items()} if len(images) > number else probs


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in MEMORY_WORDS)
