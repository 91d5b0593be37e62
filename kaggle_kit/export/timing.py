"""What graphs take on this machine, measured side by side."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.runtime.backends import OnnxSession

BATCH = 32
_ROUNDS, _ROUND_S = 3, 0.2


def time_graphs(paths: Sequence[Path], images: Image) -> dict[str, float]:
    """Return {file name: seconds an image takes on the CPU}, the fastest batch of several rounds of all graphs.

    Graphs take turns, so that what else the machine does slows a round of all of them rather than one; each is loaded
    for its turn alone.

    Args:
        paths: The .onnx files.
        images: (n, H, W, C) uint8 stored images, at least one.
    """
    batch = images[:BATCH]
    fastest = {path.name: float("inf") for path in paths}
    for _ in range(_ROUNDS):
        for path in paths:
            session = OnnxSession(path, device="cpu")
            session.run(batch)  # takes memory and chooses algorithms
            measured: list[float] = []
            while not measured or sum(measured) < _ROUND_S:
                started = time.perf_counter()
                session.run(batch)
                measured.append(time.perf_counter() - started)
            fastest[path.name] = min(fastest[path.name], *measured)
    return {name: seconds / len(batch) for name, seconds in fastest.items()}


def machine_name() -> str:
    """Return what graphs are timed on."""
    import onnxruntime

    return f"{platform.machine()} CPU, {num_cores()} core(s), onnxruntime {onnxruntime.__version__}"
