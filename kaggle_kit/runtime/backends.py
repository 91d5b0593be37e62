"""Sessions that run a member: TensorRT where its engines fit, CUDA where it really works, else the CPU; said aloud.

OpenVINO, for CPUs, runs where it is asked for.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kaggle_kit.errors import BundleError, brief
from kaggle_kit.machine import num_cores
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime import openvino, tensorrt
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.runtime.engines import Engines, Shape, engine_key, stale_reason
from kaggle_kit.runtime.openvino import OpenVinoSession
from kaggle_kit.runtime.tensorrt import Say

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]

INPUT = tensorrt.INPUT
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
CPUS = frozenset({CPU, openvino.PROVIDER})


class OnnxSession:
    """One member in ONNX Runtime.

    Attributes:
        outputs: The names of what comes out.
        passed_over: A sentence for each backend that would have been faster, with the reason why it does not run.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        engines: Engines | None = None,
        build_s: float | None = None,
        device_id: int = 0,
        try_cuda: bool = True,
        say: Say | None = None,
    ) -> None:
        """Load a member.

        Args:
            path: The .onnx file.
            device: `auto`: TensorRT where engines were given and fit, then CUDA where it works, else the CPU; any
                other: that one or an error.
            engines: From `read_engines`.
            build_s: Seconds that may be spent on building an engine where none fits; None or 0: none is built. With
                `auto` only engines that were given are built again.
            device_id: Which GPU.
            try_cuda: Whether `auto` tries CUDA: not where it did not start a moment ago, for each try prints pages.
            say: Where lines on a build go.

        Raises:
            BundleError: When the file does not load, or not on the device that was asked for.
        """
        self._batch: int | None = None
        self._place = (path, device_id)
        self._say = say or _say_nothing
        self.passed_over: tuple[str, ...] = ()
        if device == "openvino":
            self._session: Any = OpenVinoSession(path)
            self.outputs: list[str] = [output.name for output in self._session.get_outputs()]
            return
        if device == "tensorrt" or (device == "auto" and engines is not None):
            try:
                self._session, self._batch = _start_tensorrt(
                    path, engines, build_s=build_s, device_id=device_id, say=self._say
                )
            except BundleError as error:
                if device == "tensorrt":
                    raise
                self.passed_over = (f"TensorRT was passed over: {error}",)
        if self._batch is None:
            self._session = _start(path, device if try_cuda or device != "auto" else "cpu", device_id)
            self.passed_over += _passed_over(self._session, device, engines)
            if device == "cuda" and self.passed_over:
                raise BundleError(f"{path}: {self.passed_over[-1]}")
        self.outputs = [output.name for output in self._session.get_outputs()]

    @property
    def provider(self) -> str:
        """What the session really runs on, such as `CPUExecutionProvider`."""
        return str(self._session.get_providers()[0])

    def run(self, images: Image) -> Probs:
        """Return {head: (B, C) float32 probabilities} of (B, H, W, C) uint8 stored images."""
        if self._batch is None:
            return self._run(images)
        starts = range(0, max(len(images), 1), self._batch)
        try:
            parts = [self._run_padded(images[start : start + self._batch], self._batch) for start in starts]
        except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
            self._leave_tensorrt(error)
            return self._run(images)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _leave_tensorrt(self, error: Exception) -> None:
        """Go on without TensorRT: ONNX Runtime's own fallback forgets which GPU it is on, and says nothing."""
        path, device_id = self._place
        reason = f"TensorRT was left in the middle of a run: {brief(error)}"
        self._session, self._batch = _start(path, "auto", device_id), None
        self.passed_over = (*self.passed_over, reason)
        self._say(f"WARNING {path.name}: {reason}; going on with {self.provider}")

    def _run_padded(self, images: Image, batch: int) -> Probs:
        """Return what a batch of another size gives at the engine's own."""
        if len(images) == batch:
            return self._run(images)
        padded = np.zeros((batch, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return {name: values[: len(images)] for name, values in self._run(padded).items()}

    def _run(self, images: Image) -> Probs:
        values = self._session.run(self.outputs, {INPUT: images})
        return {name: np.asarray(value, np.float32) for name, value in zip(self.outputs, values, strict=True)}


def describe_session(session: OnnxSession) -> str:
    """Return one line on what runs, and why nothing faster does."""
    import onnxruntime as ort

    if session.provider == openvino.PROVIDER:
        return f"running on the CPU by OpenVINO {version('openvino')}, in fp32 where the graph has no int8"
    where = "the CPU" if session.provider == CPU else session.provider
    line = f"running on {where} (onnxruntime {ort.__version__})"
    return f"{line}: {'; '.join(session.passed_over)}" if session.passed_over else line


def _start(path: Path, device: Device, device_id: int) -> Any:
    """Return a session on CUDA where that works, else on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: what is passed over is said by `describe_session`
    options.intra_op_num_threads = num_cores()  # its own count knows nothing of a container's share
    providers: list[Any] = [CPU]
    if device != "cpu" and CUDA in ort.get_available_providers():
        ort.preload_dlls()  # finds CUDA and cuDNN in the pip packages that torch brought
        # TF32 rounds to 10 bits, on by default, and is not what was measured at home.
        providers = [(CUDA, {"use_tf32": "0", "device_id": str(device_id)}), CPU]
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
        raise BundleError(
            f"{path} does not load in onnxruntime {ort.__version__} ({brief(error)}); "
            "make the bundle again, or update onnxruntime"
        ) from None


def _start_tensorrt(
    path: Path, engines: Engines | None, *, build_s: float | None, device_id: int, say: Say
) -> tuple[Any, int]:
    """Return a session on TensorRT, and the batch that its engine takes.

    Raises:
        BundleError: Saying why there is none.
    """
    why = "no engines were given"
    if engines is not None:
        key = engine_key(device_id=device_id)
        why = stale_reason(engines, key, {path.name: file_sha256(path)})
        if not why:
            shape, batch = engines.shape, engines.batch
            return tensorrt.start_session(path, engines.folder, shape=shape, batch=batch, device_id=device_id), batch
    if build_s is None:
        raise BundleError(f"{why}; build them with kernels/build_engine on this GPU")
    earlier = engines.seconds.get(path.name, max(engines.seconds.values(), default=0.0)) if engines else 0.0
    if earlier > build_s or not build_s:
        raise BundleError(f"{why}, and a build took {earlier:,.0f} s, more than the {build_s:,.0f} s that may be spent")
    say(f"{path.name}: {why}; building its engine")
    batch = engines.batch if engines else tensorrt.BATCH
    return _build_and_start(path, engines, batch=batch, limit_s=build_s, device_id=device_id, say=say), batch


def _build_and_start(
    path: Path, engines: Engines | None, *, batch: int, limit_s: float, device_id: int, say: Say
) -> Any:
    """Return a session on an engine that is built for it and kept nowhere: the engines' folder may be read-only."""
    shape = _input_shape(path)
    with tempfile.TemporaryDirectory(prefix="engines-") as name:
        folder = Path(name)
        for cache in engines.folder.glob("*.timing") if engines else ():
            shutil.copyfile(cache, folder / cache.name)
        seconds = tensorrt.build_engine(
            path, folder, shape=shape, batch=batch, device_id=device_id, say=say, limit_s=limit_s
        )
        say(f"{path.name}: built in {seconds:,.0f} s")
        return tensorrt.start_session(path, folder, shape=shape, batch=batch, device_id=device_id)


def _input_shape(path: Path) -> Shape:
    """Return (H, W, C) of the images that a graph reads."""
    height, width, channels = _start(path, "cpu", 0).get_inputs()[0].shape[1:]
    return height, width, channels


def _passed_over(session: Any, device: Device, engines: Engines | None) -> tuple[str, ...]:
    """Return why a session that is not on TensorRT is on nothing faster."""
    import onnxruntime as ort

    if device == "cpu":
        return ()
    on_cuda = session.get_providers()[0] == CUDA
    could = device == "auto" and engines is None and tensorrt.PROVIDER in ort.get_available_providers()
    reasons = ("TensorRT was passed over: no engines were given; kernels/build_engine builds them",) if could else ()
    return reasons if on_cuda else (*reasons, _why_no_cuda())


def _why_no_cuda() -> str:
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        return "this onnxruntime has no CUDA provider; install onnxruntime-gpu for a GPU"
    return "CUDA did not start: no GPU, or CUDA libraries of another major version"


def _say_nothing(_line: str) -> None:
    pass
