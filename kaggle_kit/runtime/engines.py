"""TensorRT engines in a folder: what they were built on and from, and whether they fit.

    engines.json     format, what they were built on and from, SHA-256 of all files
    *.engine         one for each graph, and *.profile with the batches it takes
    *.timing         what the builder measured, so that the next build is shorter

An engine fits one kind of GPU, one driver, one TensorRT and ONNX Runtime, and one .onnx file. ONNX Runtime names an
engine by the file's name and the graph's structure, not by its weights, and builds for minutes, without a word, what it
does not find: so all of it is compared before a session is made.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kaggle_kit.errors import BundleError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.settings import build, plain

Shape = tuple[int, int, int]

ENGINES = "engines.json"
FORMAT = 1
PACKAGES = ("tensorrt-cu12-libs", "tensorrt-cu13-libs", "tensorrt-libs", "tensorrt-cu12", "tensorrt")
ATTACH = "attach the wheels of onnxruntime-gpu for this CUDA and of tensorrt_cu12_libs 10.x, and choose a GPU"
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_DIFFERENCES = {
    "gpu": "built for {0}, this is {1}",
    "compute_capability": "built for compute capability {0}, this GPU has {1}",
    "driver": "built with driver {0}, here is {1}",
    "tensorrt": "built with TensorRT {0}, here is {1}",
    "onnxruntime": "built with onnxruntime {0}, here is {1}",
}


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What an engine is bound to beside its graph.

    Attributes:
        gpu: The GPU's name, such as "Tesla T4".
        compute_capability: Such as "7.5".
        driver: NVIDIA's driver.
        tensorrt: The library's version.
        onnxruntime: Its version.
    """

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str
    onnxruntime: str


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Engines that lie in a folder.

    Attributes:
        folder: Where.
        key: What they were built on.
        members: {.onnx file: its SHA-256}.
        seconds: {.onnx file: how long its engine took to build}.
        batch: The largest batch they take.
        shape: (H, W, C) of the stored images they take.
        files: {name: SHA-256} of every other file in the folder.
    """

    folder: Path
    key: EngineKey
    members: dict[str, str]
    seconds: dict[str, float]
    batch: int
    shape: Shape
    files: dict[str, str]


def engine_key(
    *,
    device_id: int = 0,
    gpus: Callable[[], str] | None = None,
    version: Callable[[str], str] = metadata.version,
) -> EngineKey:
    """Return what engines that are built here are bound to.

    Args:
        device_id: Which GPU.
        gpus: Gives nvidia-smi's answer, a line for each GPU; None: asks it.
        version: Gives a package's version.

    Raises:
        BundleError: When there is no such GPU, or no TensorRT.
    """
    import onnxruntime as ort

    lines = (gpus or query_gpus)().strip().splitlines()
    fields = [field.strip() for field in lines[device_id].split(",")] if device_id < len(lines) else []
    if len(fields) != len(NVIDIA_SMI[1].split(",")):
        raise BundleError(f"there is no GPU {device_id}; nvidia-smi lists {lines}")
    return EngineKey(
        gpu=fields[0],
        compute_capability=fields[1],
        driver=fields[2],
        tensorrt=_tensorrt_version(version),
        onnxruntime=ort.__version__,
    )


@functools.cache
def query_gpus() -> str:
    """Return name, compute capability and driver of each GPU, a line for each, as nvidia-smi prints them.

    Raises:
        BundleError: When it is missing, or does not find a GPU.
    """
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"no NVIDIA GPU ({type(error).__name__}: {error}); choose a GPU for this notebook") from None
    if done.returncode != 0 or not done.stdout.strip():
        words = (done.stdout + done.stderr).strip() or "it lists none"
        raise BundleError(f"no NVIDIA GPU (nvidia-smi: {words[:160]}); choose a GPU for this notebook")
    return done.stdout


def read_engines(folder: Path) -> Engines:
    """Read what `build_engines` wrote, after checking every file's hash.

    Raises:
        BundleError: Naming the file that is missing or changed, or the format that is not known.
    """
    again = "build the engines again with kernels/build_engine"
    path = folder / ENGINES
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise SettingError("is of another format")
        engines = build(Engines, {**values, "folder": folder})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # SettingError is a ValueError
        raise BundleError(f"{path} is no list of engines ({error}); {again}") from None
    for name, expected in engines.files.items():
        if Path(name).name != name or not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise BundleError(f"{folder / name} is missing, or not as it was built; {again}")
    return engines


def stale_reason(engines: Engines, key: EngineKey, members: Mapping[str, str]) -> str:
    """Return in what engines do not fit, or nothing where they do.

    Args:
        engines: As they were built.
        key: What engines built here would be bound to.
        members: {.onnx file: its SHA-256} of what is to run.
    """
    for part, sentence in _DIFFERENCES.items():
        before, here = getattr(engines.key, part), getattr(key, part)
        if before != here:
            return sentence.format(before, here)
    for name, digest in members.items():
        if engines.members.get(name) != digest:
            what = "built from another" if name in engines.members else "not built for"
            return f"{what} {name}: the bundle changed"
    return ""


def write_engines(engines: Engines) -> None:
    """Write `engines.json` beside the engines, atomically."""
    values = {"format": FORMAT, **plain(engines)}
    del values["folder"]
    with replacing(engines.folder / ENGINES) as temporary:
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")


def engine_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that engines in `folder` are made of; none where there are none."""
    try:
        return (ENGINES, *json.loads((folder / ENGINES).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _tensorrt_version(version: Callable[[str], str]) -> str:
    for name in PACKAGES:
        try:
            return version(name)
        except metadata.PackageNotFoundError:
            continue
    raise BundleError(f"TensorRT is not installed (none of {', '.join(PACKAGES)}); {ATTACH}")
