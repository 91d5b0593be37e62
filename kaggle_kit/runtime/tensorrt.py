"""Graphs on TensorRT, through ONNX Runtime: its options, its sessions, and the building of engines, with progress.

On GPUs from Ampere on TensorRT multiplies fp32 in TF32, and ONNX Runtime has no option against it: the golden images
show whether that matters.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_kit.errors import BundleError
from kaggle_kit.files import replacing_folder
from kaggle_kit.runtime.bundle import file_sha256, open_bundle
from kaggle_kit.runtime.engines import (
    ATTACH,
    Engines,
    Shape,
    engine_files,
    engine_key,
    read_engines,
    write_engines,
)

Say = Callable[[str], object]

INPUT = "image"
PROVIDER = "TensorrtExecutionProvider"
BATCH = 64
LINE_EVERY_S = 15.0
LIBRARY = "libnvinfer.so.10"  # what the provider of ONNX Runtime 1.26 and 1.31 links
_CHILD = (  # finds its modules where this process does, in a wheel too
    f"import sys; sys.path[:] = sys.argv[6:]; from {__name__} import _build_here; _build_here(*sys.argv[1:6])"
)


def provider_options(folder: Path, *, shape: Shape, batch: int, device_id: int = 0) -> dict[str, str]:
    """Return ONNX Runtime's options for TensorRT.

    Types are as the graph has them: with neither `trt_fp16_enable` nor `trt_int8_enable` ONNX Runtime asks TensorRT for
    a strongly typed network.

    Args:
        folder: Holds the engines, or gets them.
        shape: (H, W, C) of stored images.
        batch: The largest batch; another one outside the profile would be built for in the middle of a run.
        device_id: Which GPU.

    Source:
        onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    smallest, largest = (f"{INPUT}:{'x'.join(map(str, (number, *shape)))}" for number in (1, batch))
    return {
        "device_id": str(device_id),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_force_timing_cache": "0",  # what was measured on another GPU is not used for this one
        "trt_profile_min_shapes": smallest,
        "trt_profile_opt_shapes": largest,
        "trt_profile_max_shapes": largest,
        "trt_builder_optimization_level": "3",
        "trt_context_memory_sharing_enable": "1",
    }


def start_session(path: Path, folder: Path, *, shape: Shape, batch: int, device_id: int = 0) -> Any:
    """Return ONNX Runtime's session of a graph on TensorRT; its engine is read from the folder, or built into it.

    Raises:
        BundleError: When the session would run on anything else, saying why.
    """
    import onnxruntime as ort

    if PROVIDER not in ort.get_available_providers():
        raise BundleError(f"this onnxruntime {ort.__version__} has no TensorRT provider; {ATTACH}")
    _load_libraries(ort)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    providers = [
        (PROVIDER, provider_options(folder, shape=shape, batch=batch, device_id=device_id)),
        ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": str(device_id)}),
        "CPUExecutionProvider",
    ]
    try:
        # With its own fallback ONNX Runtime prints the reason and goes on with CUDA or the CPU.
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{path.name} does not load on TensorRT ({words[-240:]}); {ATTACH}") from None
    if session.get_providers()[0] != PROVIDER:
        raise BundleError(f"{path.name} would run on {session.get_providers()[0]}, not on TensorRT; {ATTACH}")
    return session


def build_engine(
    path: Path,
    folder: Path,
    *,
    shape: Shape,
    batch: int,
    say: Say,
    device_id: int = 0,
    limit_s: float = math.inf,
    every_s: float = LINE_EVERY_S,
) -> float:
    """Build a graph's engine into a folder, by one batch in a process of its own.

    ONNX Runtime up to 1.26 stops all Python threads while it builds, so no thread could say how far it is; a process
    can also be stopped at the limit, and may crash alone.

    Args:
        path: The .onnx file.
        folder: Gets the engine.
        shape: (H, W, C) of stored images.
        batch: The largest batch the engine is to take.
        say: Where a line every `every_s` seconds goes.
        device_id: Which GPU.
        limit_s: When to give up.
        every_s: Seconds between lines.

    Returns:
        Seconds it took.

    Raises:
        BundleError: When TensorRT does not run here, does not take the graph, or the limit is reached.
    """
    before = set(folder.glob("*.engine"))
    sizes = "x".join(map(str, shape))
    command = [sys.executable, "-c", _CHILD, *map(str, (path, folder, sizes, batch, device_id)), *sys.path]
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while child.poll() is None:
                elapsed = time.monotonic() - started
                if elapsed >= limit_s:
                    raise BundleError(f"{path.name}: building its engine took more than the {limit_s:,.0f} s left")
                try:
                    child.wait(min(every_s, limit_s - elapsed))
                except subprocess.TimeoutExpired:
                    say(f"{path.name}: building its engine, {time.monotonic() - started:,.0f} s")
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        words = log.read().decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
    if child.returncode != 0:
        raise BundleError(f"{path.name}: its engine could not be built: {words[-1][-400:]}")
    if set(folder.glob("*.engine")) == before:
        raise BundleError(f"{path.name}: TensorRT built nothing, so it would all run on CUDA; is every operator known?")
    return time.monotonic() - started


def build_engines(bundle_folder: Path, out: Path, *, say: Say, batch: int = BATCH, device_id: int = 0) -> Engines:
    """Build an engine for every graph of a bundle, on this machine's GPU.

    Args:
        bundle_folder: The bundle.
        out: Gets the engines, and `engines.json`, all at once at the end; earlier engines are replaced.
        say: Where progress lines go.
        batch: The largest batch they are to take.
        device_id: Which GPU.

    Returns:
        The engines, read again from disk.

    Raises:
        BundleError: When there is no GPU or no TensorRT, a graph is not taken, or `out` holds something else.
    """
    bundle = open_bundle(bundle_folder)
    key = engine_key(device_id=device_id)
    names = bundle.graphs
    shape = (*bundle.task.stored_size, bundle.task.images.channels)
    say(f"{len(names)} graph(s), batches of {batch}, on {key.gpu} (driver {key.driver}) with TensorRT {key.tensorrt}")
    seconds = {}
    with replacing_folder(out, engine_files(out), what="folder of engines", error=BundleError) as folder:
        for number, name in enumerate(names, start=1):
            say(f"{name}: building its engine, {number} of {len(names)}")
            path = bundle.folder / name
            seconds[name] = build_engine(path, folder, shape=shape, batch=batch, say=say, device_id=device_id)
            say(f"{name}: built in {seconds[name]:,.0f} s")
        engines = Engines(
            folder=folder,
            key=key,
            members={name: bundle.files[name] for name in names},
            seconds=seconds,
            batch=batch,
            shape=shape,
            files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        )
        write_engines(engines)
    say(f"{out}: {len(names)} engine(s) in {sum(seconds.values()):,.0f} s")
    return read_engines(out)


def _load_libraries(ort: Any) -> None:
    """Load CUDA and TensorRT from their packages, where the system's loader does not look."""
    ort.preload_dlls()
    with contextlib.suppress(ImportError):  # the system may have it
        importlib.import_module("tensorrt_libs")  # loads all that lies in it
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BundleError(f"TensorRT 10 does not load ({error}); {ATTACH}") from None


def _build_here(path: str, folder: str, sizes: str, batch: str, device_id: str) -> None:
    """Build an engine in this process, which `build_engine` started."""
    height, width, channels = map(int, sizes.split("x"))
    shape = (height, width, channels)
    try:
        session = start_session(Path(path), Path(folder), shape=shape, batch=int(batch), device_id=int(device_id))
    except BundleError as error:
        sys.exit(str(error))
    session.run(None, {INPUT: np.zeros((int(batch), *shape), np.uint8)})
