"""Where this process is and what it has: looked up once, with no package imported and nothing tried."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Literal

import kaggle_kit
from kaggle_kit.machine import memory_bytes, num_cores
from kaggle_kit.runtime.engines import PACKAGES as TENSORRTS
from kaggle_kit.runtime.mounts import ROOT_VARIABLE, RUN_TYPE_VARIABLE, in_kernel, in_rerun, kaggle_root

Place = Literal["home", "interactive", "batch", "rerun"]

GB = 1 << 30
OPENCVS = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
RUNTIMES = (  # each brings the module `onnxruntime`
    *("onnxruntime-gpu", "onnxruntime", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm"),
)
CUDAS = ("nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime")
CALLING_HOME = {"albumentations": "NO_ALBUMENTATIONS_UPDATE", "huggingface-hub": "HF_HUB_OFFLINE"}
SMI_LIMIT_S = 5.0
HANGS = "the driver hangs"
_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader,nounits")
_PLACES: dict[Place, str] = {
    "home": "at home",
    "interactive": "in an interactive session on Kaggle",
    "batch": "in a batch session on Kaggle",
    "rerun": "in the hidden rerun on Kaggle",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as nvidia-smi tells of it.

    Attributes:
        name: Such as "Tesla T4".
        compute_capability: Such as "7.5".
        driver: NVIDIA's driver.
        memory_gb: None where it does not say.
    """

    name: str
    compute_capability: str
    driver: str
    memory_gb: float | None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where this process is and what it has.

    Attributes:
        place: Home, or which kind of Kaggle's sessions.
        rehearsed: Whether Kaggle is a rehearsal's stand-in.
        root: `/kaggle` or the stand-in.
        working: Where results go.
        python: Its version.
        packages: {distribution, lower case and with dashes: version} of those that matter and are installed.
        requirements: The kit's own, as its metadata has them; none where it has no metadata.
        kit: Where the kit is imported from: a wheel, or the package's folder.
        installer: `pip`, `uv pip`, or nothing where neither is there.
        variables: Which of the environment variables that keep libraries from calling home are set.
        gpus: What nvidia-smi lists.
        no_gpu: Why it lists none.
        num_cores: How many cores this process may keep busy.
        memory_gb: Of the machine or container; None where the system does not say.
        free_memory_gb: What of it is not in use; None where the system does not say.
        free_disk_gb: {folder: free} of the working folder and of that for temporary files.
    """

    place: Place
    rehearsed: bool = False
    root: Path
    working: Path
    python: str
    packages: Mapping[str, str]
    requirements: tuple[str, ...] = ()
    kit: Path = Path(kaggle_kit.__file__).parent
    installer: str = "pip"
    variables: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    no_gpu: str = ""
    num_cores: int
    memory_gb: float | None
    free_memory_gb: float | None = None
    free_disk_gb: Mapping[Path, float] = field(default_factory=dict)

    @property
    def on_kaggle(self) -> bool:
        """Whether this is one of Kaggle's sessions, or a rehearsal of one."""
        return self.place != "home"

    @property
    def python_minor(self) -> str:
        """Major and minor version, such as `3.12`."""
        return ".".join(self.python.split(".")[:2])

    @property
    def opencvs(self) -> tuple[str, ...]:
        """The versions of OpenCV's distributions."""
        return tuple(self.packages[name] for name in OPENCVS if name in self.packages)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The distributions that bring `onnxruntime`."""
        return tuple(name for name in RUNTIMES if name in self.packages)

    @property
    def words(self) -> str:
        """The place, in words."""
        return f"{_PLACES[self.place]}{', rehearsed' if self.rehearsed else ''}"

    def install(self, *what: str | Path) -> str:
        """Return the command that installs packages; on Kaggle, where there is no internet, attached wheels."""
        offline = " --no-index --no-deps" if self.on_kaggle else ""
        return f"{self.installer or 'pip'} install{offline} {' '.join(shlex.quote(str(one)) for one in what)}"

    def uninstall(self, *names: str) -> str:
        """Return the command that uninstalls packages."""
        return f"{self.installer or 'pip'} uninstall {'' if self.installer == 'uv pip' else '-y '}{' '.join(names)}"

    def kit_command(self, rest: str) -> str:
        """Return the line that runs `kaggle-kit REST` here, from the attached wheel too."""
        if self.kit.suffix != ".whl":
            return f"kaggle-kit {rest}"
        return f"PYTHONPATH={shlex.quote(str(self.kit))} python -m kaggle_kit {rest}"


def look_around(packages: Iterable[str] = ()) -> Surroundings:
    """Return where this process is and what it has.

    Args:
        packages: Distributions to look up beside those that always matter.
    """
    place = find_place()
    working = kaggle_root() / "working" if place != "home" else Path.cwd()
    requirements = read_requirements()
    required = [re.match(r"[\w.-]+", line) for line in requirements]
    names = {*packages, *(match[0] for match in required if match), *OPENCVS, *RUNTIMES, *CUDAS, *TENSORRTS}
    gpus, no_gpu = ask_gpus()
    memory = memory_bytes()
    return Surroundings(
        place=place,
        rehearsed=ROOT_VARIABLE in os.environ,
        root=kaggle_root(),
        working=working,
        python=platform.python_version(),
        packages=installed_versions({*names, *CALLING_HOME, "protobuf", "timm", "torch"}),
        requirements=requirements,
        kit=kit_origin(),
        installer=find_installer(),
        variables=frozenset(name for name in CALLING_HOME.values() if os.environ.get(name)),
        gpus=gpus,
        no_gpu=no_gpu,
        num_cores=num_cores(),
        memory_gb=memory / GB if memory else None,
        free_memory_gb=free_memory_gb(),
        free_disk_gb={folder: free_disk_gb(folder) for folder in (working, Path(tempfile.gettempdir()))},
    )


def find_place() -> Place:
    """Return where this process runs, from the two variables that are no credentials."""
    if in_rerun():
        return "rerun"
    if in_kernel():
        return "batch"
    return "interactive" if os.environ.get(RUN_TYPE_VARIABLE) else "home"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return {distribution: version} of those that are installed, from their metadata."""
    found = {}
    for name in sorted({re.sub(r"[._]", "-", name).lower() for name in names}):
        try:
            version: str | None = metadata.version(name)
        except (metadata.PackageNotFoundError, KeyError):
            continue
        if version:  # a half-removed distribution has metadata without one
            found[name] = version
    return found


def read_requirements() -> tuple[str, ...]:
    """Return the kit's requirements, such as `torch>=2.8; extra == "train"`."""
    try:
        return tuple(metadata.requires("kaggle_kit") or ())
    except metadata.PackageNotFoundError:
        return ()


def kit_origin() -> Path:
    """Return the wheel that the kit is imported from, or the package's folder."""
    package = Path(kaggle_kit.__file__).parent
    return package.parent if package.parent.suffix == ".whl" else package


def find_installer() -> str:
    """Return how packages are installed here: `pip`, else `uv pip`, else nothing."""
    if util.find_spec("pip"):
        return "pip"
    return "uv pip" if shutil.which("uv") else ""


def ask_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return what nvidia-smi lists, and why it lists none."""
    try:
        code, said = _run_bounded(_SMI, SMI_LIMIT_S)
    except FileNotFoundError:
        return (), "there is no nvidia-smi"
    except OSError as error:
        return (), f"nvidia-smi does not start: {error}"
    if code is None:
        return (), f"nvidia-smi did not answer in {SMI_LIMIT_S:g} s: {HANGS}"
    rows = [[part.strip() for part in line.split(",")] for line in said.strip().splitlines()]
    if code != 0 or any(len(row) < 3 for row in rows) or not rows:
        words = " ".join(said.split()) or "it lists none"
        return (), f"nvidia-smi says: {words[:160]}"
    return tuple(_gpu(row) for row in rows), ""


def _run_bounded(command: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    """Return a command's exit code and all it says; no code where it does not end in time.

    Not `subprocess.run`, which waits for ever for a process that is stuck in the driver, where no signal reaches it.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        code: int | None = None
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
        said.seek(0)
        return code, said.read().decode(errors="replace")


def free_memory_gb() -> float | None:
    """Return the memory that is not in use, or None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) / (1 << 20) if found else None


def free_disk_gb(folder: Path) -> float:
    """Return what is free where a folder is, or would be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free / GB


def _gpu(row: list[str]) -> Gpu:
    memory = row[3] if len(row) > 3 else ""
    gigabytes = float(memory) / 1024 if memory.isdigit() else None
    return Gpu(name=row[0], compute_capability=row[1], driver=row[2], memory_gb=gigabytes)
