"""Progress of a kernel that nobody can watch: a line now and then in its log, and a bar where somebody does watch."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

LINE_EVERY_S = 15.0
LATER_EVERY_S = 60.0
LATER_AFTER_S = 300.0
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")


class Counted(Protocol):
    """Anything that goes through images.

    Attributes:
        total: All images.
        done: Finished ones, those of earlier passes included.
        computed: Finished in this pass.
    """

    total: int

    @property
    def done(self) -> int:
        """Finished images."""
        ...

    @property
    def computed(self) -> int:
        """Finished in this pass."""
        ...


class Progress:
    """Says how far a pass over images is."""

    def __init__(
        self,
        counted: Counted,
        *,
        end: float = math.inf,
        on_gpu: bool = False,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count time.

        Args:
            counted: What goes through images.
            end: When it has to be finished, by the clock.
            on_gpu: Whether lines tell of a GPU's memory.
            say: Where lines go.
            clock: Gives seconds.
        """
        self._counted, self._end, self._on_gpu, self._say, self._clock = counted, end, on_gpu, say, clock
        self._started = self._said = clock()
        self._bar = _notebook_bar(counted.total)

    def tick(self) -> None:
        """Say a line where it is time for one: every 15 seconds, after five minutes every minute."""
        now = self._clock()
        if self._bar is not None:
            self._bar.update(self._counted.done - self._bar.n)
        elif now - self._said >= (LATER_EVERY_S if now - self._started > LATER_AFTER_S else LINE_EVERY_S):
            self._said = now
            self._say(self.line())

    def line(self) -> str:
        """Return one line: images, speed, time left against the limit, memory."""
        done, total, now = self._counted.done, self._counted.total, self._clock()
        if self._bar is not None and done == total:
            self._bar.update(done - self._bar.n)
            self._bar.close()
        rate = self._counted.computed / max(now - self._started, 1e-9)
        parts = [f"{done:,} of {total:,} images", f"{rate:,.0f} images/s"]
        if done < total:
            left = (total - done) / rate if rate else math.inf
            parts.append(f"{left:,.0f} s left" if math.isfinite(left) else "time left unknown")
            if math.isfinite(self._end):
                parts.append(f"limit in {max(self._end - now, 0):,.0f} s")
        parts.append(memory_line(on_gpu=self._on_gpu))
        return ", ".join(part for part in parts if part)


def print_line(text: str) -> None:
    """Print one line at once: a kernel's log is all that is left when it fails."""
    print(text, flush=True)  # noqa: T201


def memory_line(*, on_gpu: bool) -> str:
    """Return what this process holds and held at most, and what GPUs hold; nothing where the system does not say."""
    memory = memory_gb()
    parts = [f"memory {memory[0]:.2f} GB, at most {memory[1]:.2f}"] if memory else []
    if on_gpu:
        parts += [f"GPU {used:.1f} of {total:.1f} GB" for used, total in gpu_memory_gb()]
    return ", ".join(parts)


def memory_gb() -> tuple[float, float] | None:
    """Return resident memory of this process now and at most, in GB, or None where the system does not say."""
    # Not getrusage: after a fork its maximum starts at the parent's.
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no Linux
        return None
    found = {name: int(rest.split()[0]) / (1 << 20) for name, rest in (_split(line) for line in lines) if name in _KEPT}
    return (found["VmRSS"], found["VmHWM"]) if len(found) == len(_KEPT) else None


_KEPT = ("VmRSS", "VmHWM")


def _split(line: str) -> tuple[str, str]:
    name, _, rest = line.partition(":")
    return name, rest.strip() or "0"


def gpu_memory_gb() -> list[tuple[float, float]]:
    """Return used and total memory of each GPU, in GB; none where nvidia-smi does not say."""
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True)
        rows = [line.split(",") for line in done.stdout.strip().splitlines()]
        return [(float(used) / 1024, float(total) / 1024) for used, total in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _notebook_bar(total: int) -> Any:
    """Return a tqdm bar in a notebook that has tqdm, else None."""
    if "ipykernel" not in sys.modules:
        return None
    try:
        return importlib.import_module("tqdm.auto").tqdm(total=total, unit="image")
    except ImportError:
        return None
