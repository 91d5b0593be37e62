"""The doctor's look at ONNX Runtime: which is installed, for which CUDA, on which GPU, and what really runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kaggle_kit.platform.attached import Wheel
from kaggle_kit.platform.findings import Finding, Level
from kaggle_kit.platform.probe import Tried
from kaggle_kit.platform.profiles import ImageProfile
from kaggle_kit.platform.surroundings import CUDAS, HANGS, Surroundings
from kaggle_kit.task import Task

GPU_BUILD, CPU_BUILD = "onnxruntime-gpu", "onnxruntime"
FIRST_CUDA_13 = (1, 27)  # of onnxruntime-gpu on PyPI; 1.24 to 1.26 are for CUDA 12. Autumn 2026
DRIVERS = {12: 525, 13: 580}  # NVIDIA's first driver for each CUDA
REQUIREMENTS = {12: "onnxruntime-gpu>=1.24,<1.27", 13: "onnxruntime-gpu>=1.27"}
WHEELHOUSE = "at home: kaggle-kit wheelhouse --out DIR, then kaggle-kit publish DIR; here: attach it with Add Input"
WITH_CUDA = "onnxruntime-gpu[cuda,cudnn]>=1.24,<1.27"  # brings CUDA 12's own libraries
CHOOSE_GPU = (
    'notebook editor, Settings, Accelerator: GPU T4 x2; for a pushed kernel "machine_shape": "NvidiaTeslaT4" in '
    "kernel-metadata.json"
)
ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
WRONG = 1e-3  # of a probability, which TF32 and fp16 stay below
_NO_GPU = ("", "none", "cpu")


def cuda_line(version: str) -> int:
    """Return the CUDA that an onnxruntime-gpu of PyPI is built for: 12 or 13."""
    parts = re.match(r"(\d+)\.(\d+)", version)
    return 13 if parts and (int(parts[1]), int(parts[2])) >= FIRST_CUDA_13 else 12


def installed_cudas(here: Surroundings, image: ImageProfile | None = None) -> dict[int, str]:
    """Return {CUDA's major version: what brings its libraries}.

    Args:
        here: What is here.
        image: The profile of the image that this session runs on.
    """
    found = {int(image.cuda.split(".")[0]): f"CUDA {image.cuda} of Kaggle's image"} if image else {}
    for name in CUDAS:
        if name in here.packages:
            tail = re.search(r"-cu(\d+)$", name)
            found[int(tail[1] if tail else here.packages[name].split(".")[0])] = f"{name} {here.packages[name]}"
    local = re.search(r"\+cu(\d+)\d$", here.packages.get("torch", ""))
    return found | ({int(local[1]): f"torch {here.packages['torch']}"} if local else {})


def runs_on_gpu(tried: Tried) -> bool:
    """Return whether the tiny graph ran on a GPU."""
    step = tried.find("provider") or {}
    return step.get("provider") in ON_GPU


def check_gpu(here: Surroundings, task: Task | None) -> Iterator[Finding]:
    """Yield the GPUs, or how bad it is that there is none."""
    if here.gpus:
        first = here.gpus[0]
        names = sorted({gpu.name for gpu in here.gpus})
        memory = f", {first.memory_gb:.1f} GB each" if first.memory_gb else ""
        found = f"{len(here.gpus)} x {' and '.join(names)}{memory}, compute capability {first.compute_capability}"
        yield Finding(level="green", what="GPU", found=f"{found}, driver {first.driver}")
        return
    found = f"none ({here.no_gpu})" if here.no_gpu else "none"
    if here.no_gpu.endswith(HANGS):
        repair = "restart the session" if here.on_kaggle else "restart the machine, or see `dmesg` for the driver"
        yield Finding(level="red", what="GPU", found=found, repair=repair)
    elif task is not None and task.limits.accelerator.lower() in _NO_GPU:
        yield Finding(level="green", what="GPU", found=f"{found}, and task {task.name!r} asks for none")
    elif not here.on_kaggle:
        yield Finding(
            level="yellow",
            what="GPU",
            found=f"{found}: training is slow here",
            repair="train on Kaggle's, with kernels/train; nothing else needs one",
        )
    else:
        level: Level = "red" if task is not None and here.place != "interactive" else "yellow"
        yield Finding(level=level, what="GPU", found=found, expected="a GPU", repair=CHOOSE_GPU)


def check_onnxruntime(
    here: Surroundings, wheels: Sequence[Wheel], tried: Tried, *, image: ImageProfile | None
) -> Iterator[Finding]:
    """Yield whether one ONNX Runtime is there, for the CUDA that is there.

    Args:
        here: What is here.
        wheels: Those that are attached.
        tried: What `try_runtime` told.
        image: The profile of the image that this session runs on; None at home.
    """
    names = here.runtimes
    shown = " and ".join(f"{name} {here.packages[name]}" for name in names)
    repair = _install_runtime(here, wheels, image)
    if not names:
        yield _missing(here, wheels, image, repair)
    elif len(names) > 1:
        yield Finding(
            level="red",
            what="onnxruntime",
            found=f"{shown} are both installed and overwrite each other's files",
            expected="one of them",
            repair=_instead(here, repair),
        )
    elif names[0] == CPU_BUILD and here.gpus:
        yield Finding(
            level="red" if here.on_kaggle else "yellow",
            what="onnxruntime",
            found=f"{shown} runs on the CPU alone, and here is a GPU",
            expected=GPU_BUILD,
            repair=_instead(here, repair),
        )
    else:
        why = _cuda_problem(here, here.packages[names[0]], image) if names[0] == GPU_BUILD else ""
        if why and not runs_on_gpu(tried):
            yield Finding(level="red", what="onnxruntime", found=f"{shown} {why}", repair=_instead(here, repair))
        else:
            line = f", for CUDA {cuda_line(here.packages[GPU_BUILD])}" if names[0] == GPU_BUILD else ""
            yield Finding(level="green", what="onnxruntime", found=f"{shown}{line}")


def check_provider(here: Surroundings, tried: Tried) -> Iterator[Finding]:
    """Yield what a session really runs on: the tiny graph, in a process of its own."""
    if not here.runtimes:
        return
    what, step = "runs on", tried.find("provider")
    if step is None:
        yield _no_answer(here, tried)
    elif "error" in step:
        broken = next(
            (one["error"] for one in tried.steps if one.get("module") == "onnxruntime" and "error" in one), ""
        )
        yield Finding(
            level="red",
            what=what,
            found=f"nothing: onnxruntime {'does not import' if broken else 'fails'}: {broken or step['error']}",
            repair="mend onnxruntime and packages above; then restart the session and run the doctor again",
        )
    elif not step["wrong"] <= WRONG:  # NaN too
        yield Finding(
            level="red",
            what=what,
            found=f"{step['provider']}, which computes a tiny graph wrong by {step['wrong']:.2g}",
            expected=f"at most {WRONG:g}",
            repair="predict with --device cpu, or install another onnxruntime",
        )
    elif step["provider"] not in ON_GPU and here.gpus and (here.on_kaggle or GPU_BUILD in here.packages):
        yield Finding(
            level="red",
            what=what,
            found=f"{step['provider']}, in silence, beside a GPU: {(step['passed_over'] or ['it says not why'])[-1]}",
            expected=ON_GPU[0],
            repair="mend onnxruntime above; if that is green, restart the session: its CUDA libraries do not load",
        )
    else:
        yield Finding(level="green", what=what, found=_describe_run(step))


def _describe_run(step: dict[str, object]) -> str:
    where = str(step["provider"])
    return f"{where}: a tiny graph gave what it must, in {step['seconds']:.1f} s with loading"


def _no_answer(here: Surroundings, tried: Tried) -> Finding:
    """Say that the process that tried did not come to an end."""
    if tried.ended == "late":
        return Finding(
            level="yellow",
            what="runs on",
            found=f"not known: no answer in {tried.seconds:.0f} s",
            repair="run the doctor again: the first start reads CUDA's libraries from disk; if it stays, "
            + ("restart the session" if here.on_kaggle else "see whether nvidia-smi answers"),
        )
    return Finding(
        level="red",
        what="runs on",
        found=f"nothing: the process that tried it ended ({tried.words})",
        repair="mend onnxruntime and packages above, then restart the session"
        if here.on_kaggle
        else _instead(here, _install_runtime(here, (), None)),
    )


def _missing(here: Surroundings, wheels: Sequence[Wheel], image: ImageProfile | None, repair: str) -> Finding:
    """Say what it means that no ONNX Runtime is installed: on Kaggle it may be about to be."""
    there = [wheel for wheel in wheels if wheel.name in (GPU_BUILD, CPU_BUILD)]
    chosen = _chosen_wheel(here, wheels)
    level: Level = "red"
    if chosen is None and there:
        found = f"not installed, and {there[0].path.name} is for another Python than {here.python_minor}"
    elif chosen is None:
        found = "not installed" + (", and no wheel of it is attached" if here.on_kaggle else "")
    else:
        why = _wheel_problem(here, chosen, image)
        level = "red" if why else "yellow"
        after = f"and the attached {chosen.path.name} {why}" if why else f"but {chosen.path.name} is attached"
        found = f"not installed, {after}"
    return Finding(level=level, what="onnxruntime", found=found, repair=repair)


def _chosen_wheel(here: Surroundings, wheels: Sequence[Wheel]) -> Wheel | None:
    """Return the wheel that `runtime.wheels` would install, or None."""
    for name in (GPU_BUILD, CPU_BUILD) if here.gpus else (CPU_BUILD, GPU_BUILD):
        fitting = [wheel for wheel in wheels if wheel.fits and wheel.name == name]
        if fitting:
            return max(fitting, key=lambda wheel: wheel.order)
    return None


def _wheel_problem(here: Surroundings, wheel: Wheel, image: ImageProfile | None) -> str:
    if wheel.name == GPU_BUILD:
        return _cuda_problem(here, wheel.version, image)
    return "runs on the CPU alone" if here.gpus else ""


def _install_runtime(here: Surroundings, wheels: Sequence[Wheel], image: ImageProfile | None) -> str:
    """Return how to get the ONNX Runtime that fits."""
    if here.on_kaggle:
        wheel = _chosen_wheel(here, wheels)
        if wheel is None or _wheel_problem(here, wheel, image):
            return WHEELHOUSE
        return 'from kaggle_kit.runtime.wheels import install_attached; install_attached(["onnxruntime"])'
    if not here.gpus:
        return here.install(CPU_BUILD)
    if not _drives(here, min(DRIVERS)):
        return f"update NVIDIA's driver to {DRIVERS[min(DRIVERS)]} or later"
    driven = [major for major in sorted(installed_cudas(here)) if _drives(here, major)]
    return here.install(REQUIREMENTS[driven[0]] if driven else WITH_CUDA)


def _instead(here: Surroundings, repair: str) -> str:
    """Return how to get an ONNX Runtime in place of those that are there."""
    if repair == WHEELHOUSE or not _drives(here, min(DRIVERS)):
        return repair
    away = here.uninstall(*here.runtimes)
    return f"{away}; restart the session; {repair}" if here.on_kaggle else f"{away} && {repair}"


def _drives(here: Surroundings, cuda: int) -> bool:
    first = here.gpus[0].driver.split(".")[0] if here.gpus else ""
    return cuda in DRIVERS and (not first.isdigit() or int(first) >= DRIVERS[cuda])


def _cuda_problem(here: Surroundings, version: str, image: ImageProfile | None) -> str:
    """Return why an onnxruntime-gpu of a version falls back to the CPU here; nothing where it does not."""
    line, there = cuda_line(version), installed_cudas(here, image)
    if here.gpus and not _drives(here, line):
        return f"is for CUDA {line}, which needs driver {DRIVERS[line]} or later; here is {here.gpus[0].driver}"
    if (here.gpus or here.on_kaggle) and there and line not in there:
        return f"is for CUDA {line}, and here is {' and '.join(there.values())}: it would run on the CPU, in silence"
    return ""
