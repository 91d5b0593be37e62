"""What only trying tells, tried in processes of their own: a driver that hangs or crashes takes nothing else along.

A process writes a line of JSON for each step it has finished, so that one that is stopped has told how far it came.
"""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from kaggle_kit.errors import BundleError, KitError, brief

if TYPE_CHECKING:
    from kaggle_kit.runtime.bundle import Bundle

MODULES = ("numpy", "cv2", "pyarrow", "yaml", "onnxruntime")

# uint8 `image` (batch, 4, 4, 1) -> Cast to float, Transpose to (batch, 1, 4, 4), Conv by two 1x1 kernels of 0.5 and
# -0.5, GlobalAveragePool, Flatten, Softmax -> float `probs` (batch, 2). IR 8, opset 17: every onnxruntime since 1.12
# reads it, and on a GPU it needs CUDA's own kernels and cuDNN. A test makes the same bytes with the package onnx.
TINY_GRAPH = (
    "CAg6sAIKIAoFaW1hZ2USBnBpeGVscyIEQ2FzdCoJCgJ0bxgBoAECCi4KBnBpeGVscxIGcGxhbmVzIglUcmFuc3Bvc2UqEQoEcGVybUAAQANA"
    "AUACoAEHCh0KBnBsYW5lcwoHa2VybmVscxIEbWFwcyIEQ29udgogCgRtYXBzEgVtZWFucyIRR2xvYmFsQXZlcmFnZVBvb2wKGAoFbWVhbnMS"
    "BmxvZ2l0cyIHRmxhdHRlbgoYCgZsb2dpdHMSBXByb2JzIgdTb2Z0bWF4EgR0aW55Kh0IAggBCAEIARABQgdrZXJuZWxzSggAAAA/AAAAv1ok"
    "CgVpbWFnZRIbChkIAhIVCgcSBWJhdGNoCgIIBAoCCAQKAggBYhwKBXByb2JzEhMKEQgBEg0KBxIFYmF0Y2gKAggCQgQKABAR"
)

_CHILD = f"import sys; sys.path[:] = sys.argv[1].split(chr(10)); from {__name__} import {{0}}; {{0}}(*sys.argv[2:])"
_MARK = "kaggle_kit:"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a process told before it ended.

    Attributes:
        steps: What each step found, in order; each has its name at `step`.
        ended: `done`; `late`: it was stopped at its time; `crashed`: it ended in the middle.
        words: The last thing that a crashed one said, or the signal that ended it.
        seconds: How long it was waited for.
    """

    steps: tuple[dict[str, Any], ...] = ()
    ended: Literal["done", "late", "crashed"] = "done"
    words: str = ""
    seconds: float = 0.0

    def find(self, step: str) -> dict[str, Any] | None:
        """Return what a step found, or None where it was not finished."""
        return next((one for one in self.steps if one["step"] == step), None)


class Probe:
    """A process that tries something meanwhile."""

    def __init__(self, function: str, arguments: Sequence[str] = ()) -> None:
        """Start it.

        Args:
            function: One of this module's.
            arguments: Handed to it.
        """
        self._started = time.monotonic()
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`; a pipe could fill up
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        path = "\n".join(sys.path)  # finds its modules where this process does, in a wheel too
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(function), path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._errors,
        )

    def finish(self, end: float) -> Tried:
        """Return what it told, after waiting until `end` by `time.monotonic` at the latest; `stop` comes after it."""
        ended: Literal["done", "late", "crashed"] = "done"
        try:
            code = self._child.wait(max(end - time.monotonic(), 0.0))
            ended = "done" if code == 0 else "crashed"
        except subprocess.TimeoutExpired:
            ended = "late"
        self._end()
        out, errors = (_read(file) for file in (self._out, self._errors))
        words = ""
        if ended == "crashed":
            code = self._child.returncode
            last = errors[-1][-300:] if errors else f"exit code {code}"
            words = f"killed by signal {-code}" if code < 0 else last
        marked = [line.partition(_MARK)[2] for line in out if line.startswith(_MARK)]
        seconds = time.monotonic() - self._started
        return Tried(steps=tuple(json.loads(line) for line in marked), ended=ended, words=words, seconds=seconds)

    def stop(self) -> None:
        """End it, finished or not, and forget what it told."""
        self._end()
        self._out.close()
        self._errors.close()

    def _end(self) -> None:
        self._child.kill()
        try:
            self._child.wait(1.0)
        except subprocess.TimeoutExpired:  # stuck in the driver, where no signal reaches it: left behind
            return


def try_runtime() -> None:
    """Import what the kernel needs, and run a tiny graph as a submission would; runs in a process of its own."""
    for name in MODULES:
        try:
            version = str(importlib.import_module(name).__version__)
        except Exception as error:  # noqa: BLE001  packages that do not fit each other raise anything
            _tell("import", module=name, error=f"{type(error).__name__}: {brief(error)}")
        else:
            _tell("import", module=name, version=version)
    started = time.monotonic()
    try:
        _run_tiny_graph(started)
    except Exception as error:  # noqa: BLE001  so do ONNX Runtime's own
        _tell("provider", error=f"{type(error).__name__}: {brief(error)}")


def try_bundle(folder: str, engines: str) -> None:
    """Open a bundle, compare golden images with home's and engines with this GPU; runs in a process of its own.

    Args:
        folder: The bundle.
        engines: The folder of TensorRT engines; empty: there is none.
    """
    try:
        _try_bundle(Path(folder), Path(engines) if engines else None)
    except KitError as error:
        _tell("refused", error=str(error))
    except ImportError as error:
        _tell("unable", error=str(error))


def _run_tiny_graph(started: float) -> None:
    import numpy as np

    from kaggle_kit.runtime.backends import OnnxSession

    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        path = Path(folder) / "tiny.onnx"
        path.write_bytes(base64.b64decode(TINY_GRAPH))
        session = OnnxSession(path)
        probs = session.run(np.full((1, 4, 4, 1), 2, np.uint8))["probs"]
    wrong = float(np.abs(probs - np.exp([[1.0, -1.0]]) / np.exp([1.0, -1.0]).sum()).max())
    _tell(
        "provider",
        provider=session.provider,
        passed_over=list(session.passed_over),
        wrong=wrong,
        seconds=time.monotonic() - started,
    )


def _try_bundle(folder: Path, engines: Path | None) -> None:
    from kaggle_kit.runtime.bundle import open_bundle

    started = time.monotonic()
    bundle = open_bundle(folder)
    _tell(
        "opened",
        seconds=time.monotonic() - started,
        size=sum((folder / name).stat().st_size for name in bundle.files),
        members=len(bundle.members),
        runs=len(bundle.blend.runs),
        task=bundle.task.name,
        kit_version=bundle.kit_version,
        created=bundle.created,
    )
    if engines is not None:
        _try_engines(engines, {name: bundle.files[name] for name in bundle.graphs})
    _try_golden(bundle)


def _try_engines(folder: Path, graphs: dict[str, str]) -> None:
    from kaggle_kit.runtime.engines import engine_key, read_engines, stale_reason

    try:
        engines = read_engines(folder)
        why = stale_reason(engines, engine_key(), graphs)
    except BundleError as error:
        why = str(error)
    _tell("engines", why=why)


def _try_golden(bundle: Bundle) -> None:
    """Compare what runs give here with what they gave at home, one run after the other."""
    from kaggle_kit.ensemble import mean_probs
    from kaggle_kit.runtime.backends import OnnxSession
    from kaggle_kit.runtime.golden import (
        decode_golden,
        describe_distance,
        furthest_run,
        pixel_difference,
        read_golden,
    )

    golden = read_golden(bundle)
    images = decode_golden(golden, bundle.task)
    _tell("pixels", images=len(images), differ=pixel_difference(images, golden.images))
    for run in bundle.blend.runs:
        sessions = [OnnxSession(bundle.folder / member.file) for member in bundle.members if member.run == run]
        distance = furthest_run({run: mean_probs([session.run(images) for session in sessions])}, golden)
        _tell(
            "run",
            run=run,
            difference=distance.difference,
            allowed=distance.allowed,
            too_far=describe_distance(distance, golden, images) if distance.too_far else "",
            provider=sessions[0].provider,
        )


def _tell(step: str, **found: Any) -> None:
    sys.stdout.write(f"\n{_MARK}{json.dumps({'step': step, **found})}\n")
    sys.stdout.flush()


def _read(file: IO[bytes]) -> list[str]:
    """Return the lines that a process wrote, blank ones left out."""
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
