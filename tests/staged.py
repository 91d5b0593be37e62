"""A bundle whose graphs only pretend: they take their time and say what they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.ensemble import equal_blend
from kaggle_kit.runtime.backends import CPU
from kaggle_kit.runtime.bundle import Bundle, Fused, Member, Parity
from kaggle_kit.runtime.levels import Costs, Ladder, Level, home_costs, make_levels
from kaggle_kit.task import read_task

PARITY = Parity(rows=1, max_abs_diff=0.0, decisions_changed=0)
SHAPE = (4, 4, 1)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Session:
    """A graph that takes its time and says what it is given: each image's first pixel, as a share of two classes."""

    def __init__(self, clock: Clock, seconds: float, *, provider: str = CPU, most: int = 10**9) -> None:
        self.clock, self.seconds, self.provider, self.most = clock, seconds, provider, most
        self.batches: list[int] = []

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if len(images) > self.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
        self.batches.append(len(images))
        self.clock.now += self.seconds * len(images)
        share = images[:, 0, 0, 0].astype(np.float32) / 255
        return {"category": np.stack([share, *[(1 - share) / 4] * 4], axis=1)}


def member(run: str, fold: int, **options) -> Member:
    return Member(file=f"{run}{fold}", run=run, fold=fold, score=0.5, config_hash="", parity=PARITY, **options)


def make_bundle(*, tta: bool = False, fused: bool = False, seconds: float = 0.01) -> Bundle:
    first = [member("a", fold, seconds=seconds) for fold in (0, 1)]
    if tta:
        views = {"tta": ("hflip", "scale=0.9,1.1"), "seconds": 4 * seconds}
        first = [dataclasses.replace(one, plain=f"{one.file}_plain", **views) for one in first]
    members = (*first, member("b", 0, seconds=seconds), member("c", 0, seconds=2 * seconds))
    task = read_task("ships")
    return Bundle(
        folder=Path("bundle"),
        task=task,
        members=members,
        blend=equal_blend(["a", "b", "c"]),
        priors={"category": (0.2,) * 5},
        oof_score=0.5,
        files={},
        fused=Fused(file="fused", parity=PARITY, seconds=0.03) if fused else None,
    )


def make_ladder(
    bundle: Bundle, sessions: Mapping[str, Any], clock: Callable[[], float], *, piece: int = 8, fused: bool = False
) -> tuple[Ladder, tuple[Level, ...], Costs, list[str]]:
    levels, costs, said = make_levels(bundle, bundle.blend, fused=fused), Costs(home_costs(bundle)), []
    ladder = Ladder(
        bundle,
        bundle.blend,
        levels,
        load=lambda path: sessions[path.name],
        costs=costs,
        piece=piece,
        say=said.append,
        clock=clock,
    )
    return ladder, levels, costs, said


def images(number: int) -> np.ndarray:
    return np.broadcast_to(np.arange(number, dtype=np.uint8)[:, None, None, None], (number, *SHAPE)).copy()
