from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pretended
import pytest
from conftest import make_wide, wide_task
from handmade import make_bundle
from onnx import TensorProto, helper, numpy_helper

import kaggle_kit
from kaggle_kit.doctor_command import add_doctor_parsers
from kaggle_kit.errors import SettingError
from kaggle_kit.platform import checkup_inputs as inputs
from kaggle_kit.platform import checkup_machine as machine
from kaggle_kit.platform import checkup_packages as packages
from kaggle_kit.platform import checkup_runtime as running
from kaggle_kit.platform import doctor, probe, surroundings
from kaggle_kit.platform.attached import Wheel, attached_folders, find_wheels, read_wheel
from kaggle_kit.platform.doctor import examine
from kaggle_kit.platform.findings import Checkup, Finding, format_checkup
from kaggle_kit.platform.probe import TINY_GRAPH, Probe, Tried
from kaggle_kit.platform.profiles import read_profile, read_profiles
from kaggle_kit.platform.surroundings import Gpu, Surroundings, look_around
from kaggle_kit.platform.wheel import build_wheel
from kaggle_kit.runtime.bundle import MANIFEST, load_golden, open_bundle, save_golden, write_manifest
from kaggle_kit.runtime.bundle import file_sha256 as sha256
from kaggle_kit.runtime.mounts import RERUN_VARIABLE, ROOT_VARIABLE, RUN_TYPE_VARIABLE, TIME_LIMIT_VARIABLE
from kaggle_kit.task import Limits, Task

T4 = Gpu(name="Tesla T4", compute_capability="7.5", driver="580.65.06", memory_gb=15.0)
IMAGE = read_profile("python3.12")
GPU_WHEEL = "onnxruntime_gpu-1.24.4-cp312-cp312-manylinux_2_28_x86_64.whl"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ORT, ORT_GPU = "onnxruntime", "onnxruntime-gpu"
INSTALL = 'install_attached(["onnxruntime"])'
Look = Callable[[], Iterable[Finding]]


def kaggle(*, more: dict[str, str] | None = None, **changes: Any) -> Surroundings:
    """A session with two T4 on the image of Python 3.12, with `more` or onnxruntime-gpu installed over it."""
    there = {name: version for name, version in IMAGE.packages.items() if name != "opencv"}
    there |= {"opencv-python": "4.13.0.90"} | ({ORT_GPU: "1.24.4"} if more is None else more)
    values: dict[str, Any] = {
        "place": "batch",
        "root": Path("/kaggle"),
        "working": Path("/kaggle/working"),
        "python": "3.12.1",
        "packages": there,
        "gpus": (T4, T4),
        "num_cores": 4,
        "memory_gb": 29.4,
        "variables": frozenset({"NO_ALBUMENTATIONS_UPDATE"}),
    }
    return Surroundings(**values | changes)


def home(*, more: dict[str, str] | None = None, **changes: Any) -> Surroundings:
    """A machine with no GPU."""
    there = {"numpy": "2.4.6", ORT: "1.32.0"} if more is None else more
    return kaggle(more={}, **{"place": "home", "packages": there, "gpus": (), "working": Path("/home/me")} | changes)


def told(provider: str = CUDA, *, wrong: float = 0.0, passed_over: tuple[str, ...] = (), **others: Any) -> Tried:
    """What the process that tried the runtime tells, on the image of Python 3.12."""
    versions = {"numpy": "2.0.2", "cv2": "4.13.0", "pyarrow": "18.1.0", "yaml": "6.0.2", "onnxruntime": "1.24.4"}
    steps = [{"step": "import", "module": name, "version": version} for name, version in (versions | others).items()]
    ran = {"provider": provider, "wrong": wrong, "passed_over": passed_over, "seconds": 1.25}
    return Tried(steps=(*steps, {"step": "provider", **ran}))


def wheel(name: str, python: str = "3.12") -> Wheel:
    return read_wheel(Path("/kaggle/input/datasets/me/wheels") / name, python)


def runtime(here: Surroundings, tried: Tried | None = None, *names: str, image: bool = True) -> Look:
    wheels = [wheel(name) for name in names]
    return lambda: running.check_onnxruntime(here, wheels, tried or told(CPU), image=IMAGE if image else None)


def provider(here: Surroundings, tried: Tried) -> Look:
    return lambda: running.check_provider(here, tried)


def profile(here: Surroundings, tried: Tried, *, asked: str = "") -> Look:
    known = {asked: read_profile(asked)} if asked else read_profiles()
    return lambda: packages.check_profile(here, known, tried, asked=bool(asked))


def limited(**limits: Any) -> Task:
    return dataclasses.replace(wide_task(), limits=Limits(**limits))


def say(look: Look) -> list[str]:
    """Return each finding as its level, and all it says."""
    return [f"{found.level} {found.what}: {found.found}; {found.expected} -> {found.repair}" for found in list(look())]


OLD_DRIVER = dataclasses.replace(T4, driver="470.57")
EXTRAS = ('torch>=2.8; extra == "train"', 'ttach>=0.0.3; extra == "train"', "numpy>=1.26", 'optuna; extra == "sweep"')

LOOKS: list[tuple[str, Look, str]] = [
    ("a known Python", lambda: packages.check_python(kaggle()), "green Python: 3.12.1; "),
    ("a newer one", lambda: packages.check_python(home(python="3.14.0")), "yellow .* not tried on; 3.11 to 3.13 -> .*"),
    ("an older one", lambda: packages.check_python(home(python="3.10.2")), "red Python: 3.10.2, too old"),
    ("on Kaggle", lambda: packages.check_python(kaggle(python="3.14.0")), "yellow .* -> notebook editor, Settings"),
    ("this kit", lambda: packages.check_kit(home(), []), f"green kaggle_kit: {kaggle_kit.__version__} from "),
    (
        "an older kit is attached too",
        lambda: packages.check_kit(kaggle(), [wheel("kaggle_kit-0.0.9-py3-none-any.whl")]),
        "yellow kaggle_kit: .*, and 0.0.9 is attached too; one version -> in Input, remove the older one",
    ),
    ("the very image", profile(kaggle(), told()), "green image: python3.12 of 2026-11-01: all 11 versions"),
    (
        "the image, changed",
        profile(kaggle(), told(numpy="2.5.0")),
        r"yellow image: nearest to python3.12 of .* but for numpy 2.5.0 \(there 2.0.2\)",
    ),
    (
        "an image nobody knows",
        profile(kaggle(python="3.14.0"), told()),
        r"yellow image: nearest to python3.12 .* Python 3.14 \(there 3.12\)",
    ),
    ("another was asked for", profile(kaggle(), told(), asked="python3.13"), "yellow image: nearest to python3.13"),
    (
        "home is newer",
        profile(home(), told(numpy="2.4.6", cv2="5.0.0"), asked="python3.13"),
        r"yellow image python3.13: others here: numpy 2.4.6 \(there 2.1.3\), onnxruntime 1.32.0 \(there 1.26\); "
        ".* -> .*rehearse.* --packages-from python3.13",
    ),
    (
        "home has the image's versions",
        profile(home(more={ORT: "1.24.1"}), told(), asked="python3.12"),
        "green image python3.12: numpy, opencv, pyarrow, onnxruntime are of the same releases here",
    ),
    ("all import", lambda: packages.check_imports(home(), told()), "green packages: numpy 2.0.2, cv2 4.13.0"),
    (
        "one does not",
        lambda: packages.check_imports(
            home(), Tried(steps=({"step": "import", "module": "cv2", "error": "ImportError: libGL.so.1"},))
        ),
        "red cv2: does not import: ImportError: libGL.so.1; .* -> pip install --force-reinstall opencv-python-headless",
    ),
    ("protobuf as forced", lambda: packages.check_protobuf(kaggle(), "5.29.5"), "green protobuf: 5.29.5"),
    (
        "another protobuf",
        lambda: packages.check_protobuf(kaggle(), "4.25.0"),
        "yellow protobuf: 5.29.5 is installed, 4.25.0 was imported before your code and is the one in use",
    ),
    (
        "libraries call home",
        lambda: packages.check_calls_home(kaggle(variables=frozenset())),
        r"yellow calls home: .*albumentations \(63 s an import\).*environ.update\(NO_ALBUMENTATIONS_UPDATE=\"1\"\)",
    ),
    ("they may not", lambda: packages.check_calls_home(kaggle()), "green calls home"),
    (
        "an extra in part",
        lambda: packages.check_extras(home(more={"torch": "2.10.0"}, requirements=EXTRAS)),
        r"yellow extra \[train\]: installed but for ttach; .* -> pip install 'ttach>=0.0.3'",
    ),
    (
        "extras",
        lambda: packages.check_extras(home(more={"torch": "2.10", "ttach": "0.0.3"}, requirements=EXTRAS)),
        "green extras: train; not installed: sweep",
    ),
    ("no installer", lambda: packages.check_installer(home(installer="")), "yellow .* -> python -m ensurepip"),
    # ---- GPU
    ("two T4", lambda: running.check_gpu(kaggle(), None), "green GPU: 2 x Tesla T4, 15.0 GB each, .* 7.5, driver 580"),
    ("no GPU at home", lambda: running.check_gpu(home(), None), "yellow GPU: none: training is slow here"),
    (
        "no GPU on Kaggle",
        lambda: running.check_gpu(kaggle(gpus=(), no_gpu="there is no nvidia-smi"), wide_task()),
        r"red GPU: none \(there is no nvidia-smi\); a GPU -> .*Accelerator.*machine_shape",
    ),
    (
        "a driver that hangs",
        lambda: running.check_gpu(home(no_gpu=f"nvidia-smi did not answer in 5 s: {surroundings.HANGS}"), None),
        "red GPU: none .nvidia-smi did not answer in 5 s.* -> restart the machine",
    ),
    (
        "none while one edits",
        lambda: running.check_gpu(kaggle(gpus=(), place="interactive"), wide_task()),
        "yellow GPU: none; a GPU",
    ),
    (
        "none is asked for",
        lambda: running.check_gpu(kaggle(gpus=()), limited(accelerator="None")),
        "green GPU: none, and task 'toy-wide' asks for none",
    ),
    # ---- ONNX Runtime
    ("CUDA 12's on the image", runtime(kaggle(), told()), "green onnxruntime: onnxruntime-gpu 1.24.4, for CUDA 12"),
    ("the CPU's at home", runtime(home(), image=False), "green onnxruntime: onnxruntime 1.32.0; "),
    (
        "both",
        runtime(home(more={ORT: "1.26.0", ORT_GPU: "1.26.0"}), image=False),
        "red onnxruntime: onnxruntime-gpu 1.26.0 and onnxruntime 1.26.0 are both installed and overwrite .*; one of "
        "them -> pip uninstall -y onnxruntime-gpu onnxruntime && pip install onnxruntime$",
    ),
    (
        "both, by uv",
        runtime(home(more={ORT: "1.26.0", ORT_GPU: "1.26.0"}, installer="uv pip", gpus=(T4,)), image=False),
        r"-> uv pip uninstall onnxruntime-gpu onnxruntime && uv pip install 'onnxruntime-gpu\[cuda,cudnn\]>=1.24,",
    ),
    (
        "CUDA 13's beside torch for CUDA 12",
        runtime(kaggle(more={ORT_GPU: "1.27.0", "torch": "2.10.0+cu128"}), told(CPU), GPU_WHEEL),
        "red onnxruntime: onnxruntime-gpu 1.27.0 is for CUDA 13, and here is torch 2.10.0.cu128: it would run on the "
        "CPU, in silence; .*uninstall -y onnxruntime-gpu; restart",
    ),
    (
        "the same at home",
        runtime(home(more={ORT_GPU: "1.27.0", "torch": "2.10.0+cu128"}, gpus=(T4,)), image=False),
        "red onnxruntime: .* && pip install 'onnxruntime-gpu>=1.24,<1.27'",
    ),
    (
        "CUDA 12's beside CUDA 13 alone",
        runtime(home(more={ORT_GPU: "1.26.0", "nvidia-cuda-runtime": "13.0.96"}, gpus=(T4,)), image=False),
        "red onnxruntime: .* nvidia-cuda-runtime 13.0.96: .* && pip install 'onnxruntime-gpu>=1.27'",
    ),
    (
        "CUDA 13's that runs all the same",
        runtime(kaggle(more={ORT_GPU: "1.27.0", "torch": "2.10.0+cu128"}), told(CUDA)),
        "green onnxruntime: onnxruntime-gpu 1.27.0, for CUDA 13",
    ),
    (
        "a driver too old for CUDA 13",
        runtime(home(more={ORT_GPU: "1.27.0"}, gpus=(dataclasses.replace(T4, driver="570.1"),)), image=False),
        "red onnxruntime: .* is for CUDA 13, which needs driver 580 or later; here is 570.1",
    ),
    (
        "a driver too old for any",
        runtime(home(more={ORT_GPU: "1.26.0"}, gpus=(OLD_DRIVER,)), image=False),
        "red onnxruntime: .* needs driver 525 or later.* -> update NVIDIA's driver to 525 or later$",
    ),
    (
        "the CPU's beside a GPU",
        runtime(home(gpus=(T4,), more={ORT: "1.26.0", "torch": "2.10.0+cu128"}), image=False),
        "yellow onnxruntime: .* runs on the CPU alone, and here is a GPU; onnxruntime-gpu -> pip uninstall -y onnx",
    ),
    ("the same on Kaggle", runtime(kaggle(more={ORT: "1.26.0"})), "red onnxruntime: .* runs on the CPU alone"),
    ("none at home", runtime(home(more={}), image=False), "red onnxruntime: not installed; .*pip install onnxruntime$"),
    (
        "none on Kaggle",
        runtime(kaggle(more={})),
        "red onnxruntime: not installed, and no wheel of it is attached; .* -> at home: kaggle-kit wheelhouse",
    ),
    (
        "none yet, and its wheel is attached",
        runtime(kaggle(more={}), None, GPU_WHEEL),
        f"yellow onnxruntime: not installed, but {GPU_WHEEL} is attached; .*{re.escape(INSTALL)}",
    ),
    (
        "its wheel is for another Python",
        runtime(kaggle(more={}), None, GPU_WHEEL.replace("312", "313")),
        "red onnxruntime: not installed, and onnxruntime_gpu-1.24.4-cp313.* is for another Python than 3.12",
    ),
    (
        "its newest wheel is for CUDA 13",
        runtime(kaggle(more={}), None, GPU_WHEEL, GPU_WHEEL.replace("1.24.4", "1.27.0")),
        "red onnxruntime: .* the attached onnxruntime_gpu-1.27.0.* is for CUDA 13, and here is torch 2.10",
    ),
    # ---- what runs
    ("CUDA runs", provider(kaggle(), told()), "green runs on: CUDAExecutionProvider: .* in 1.2 s"),
    ("the CPU runs", provider(home(), told(CPU)), "green runs on: CPUExecutionProvider"),
    (
        "the CPU in CUDA's place",
        provider(kaggle(), told(CPU, passed_over=("TensorRT was passed over", "CUDA did not start: no GPU"))),
        "red runs on: CPUExec.*, in silence, beside a GPU: CUDA did not start: no GPU; CUDAExecutionProvider",
    ),
    ("it computes nonsense", provider(home(), told(CPU, wrong=0.25)), "red runs on: .* wrong by 0.25"),
    ("it computes NaN", provider(home(), told(CPU, wrong=float("nan"))), "red runs on: .* wrong by nan"),
    (
        "it does not import",
        provider(
            kaggle(),
            Tried(
                steps=(
                    {"step": "import", "module": "onnxruntime", "error": "ImportError: libcublas"},
                    {"step": "provider", "error": "ImportError: again"},
                )
            ),
        ),
        "red runs on: nothing: onnxruntime does not import: ImportError: libcublas",
    ),
    ("it hangs", provider(kaggle(), Tried(ended="late", seconds=8.0)), "yellow runs on: not known: no answer in 8 s"),
    (
        "it crashes",
        provider(home(), Tried(ended="crashed", words="killed by signal 11")),
        "red runs on: nothing: the process that tried it ended .killed by signal 11.; .* && pip install onnxruntime$",
    ),
    # ---- the machine
    ("disk", lambda: machine.check_disk(home(free_disk_gb={Path("/d"): 50.0}), None), "green disk: 50.0 GB free in /d"),
    (
        "disk, and what a store takes",
        lambda: machine.check_disk(home(free_disk_gb={Path("/home/me"): 50.0}), wide_task()),
        "green disk: .*; a packed store takes 0.1 GB for 100,000 images of 24 x 32",
    ),
    ("little disk", lambda: machine.check_disk(home(free_disk_gb={Path("/d"): 4.0}), None), "yellow .*4.0 GB .*5 GB"),
    ("no disk", lambda: machine.check_disk(home(free_disk_gb={Path("/d"): 0.2}), None), "red disk: 0.2 GB free in /d"),
    (
        "memory as the task says",
        lambda: machine.check_memory(kaggle(free_memory_gb=20.0), wide_task()),
        "green memory: 29.4 GB, 20.0 GB free",
    ),
    ("less", lambda: machine.check_memory(kaggle(memory_gb=13.0), wide_task()), "yellow memory: 13.0 GB; 30 GB, says"),
    ("less at home", lambda: machine.check_memory(home(memory_gb=13.0), wide_task()), "yellow memory: .* has 30 GB"),
    ("unknown memory", lambda: machine.check_memory(home(memory_gb=None), None), "yellow memory: not known"),
    ("cores", lambda: machine.check_cores(home(num_cores=2)), r"green cores: 2 \(Kaggle: 4\)"),
    (
        "no limit known",
        lambda: machine.check_time_limit(None, source="task", overridden=False),
        "yellow time limit: not known: .* -> give --task TASK",
    ),
    (
        "the task's limit",
        lambda: machine.check_time_limit(limited(hours=2), source="task", overridden=False),
        r"green time limit: 2 h \(7,200 s\), from task 'toy-wide'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("look", "words"), [pytest.param(look, words, id=name) for name, look, words in LOOKS])
def test_a_situation_is_told_with_its_level_and_repair(look: Look, words: str) -> None:
    found = say(look)
    assert re.search(words, found[0]), found[0]


def test_whatever_is_not_green_has_a_repair_and_stays_in_its_line() -> None:
    for name, look, _ in LOOKS:
        for finding in look():
            assert finding.level == "green" or finding.repair, name
            assert not re.search(r"\n|\s$", f"{finding.found}{finding.expected}{finding.repair}"), name


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        (GPU_WHEEL, True),
        (GPU_WHEEL.replace("312", "313"), False),
        ("ttach-0.0.3-py3-none-any.whl", True),
        ("six-1.16.0-py2.py3-none-any.whl", True),
        ("safetensors-0.5.0-cp38-abi3-manylinux_2_17_x86_64.whl", True),
        ("safetensors-0.5.0-cp313-abi3-manylinux_2_17_x86_64.whl", False),
        ("with_build-1.0-1-cp312-cp312-linux_x86_64.whl", True),
        ("no-wheel.whl", False),
    ],
)
def test_a_wheel_s_name_says_whether_it_is_for_this_python(name: str, fits: bool) -> None:
    assert read_wheel(Path(name), "3.12").fits is fits


# ---- where this is, and what it has


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ROOT_VARIABLE, RUN_TYPE_VARIABLE, RERUN_VARIABLE, TIME_LIMIT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, "home"),
        ({RUN_TYPE_VARIABLE: "Interactive"}, "interactive"),
        ({RUN_TYPE_VARIABLE: "Batch"}, "batch"),
        ({RUN_TYPE_VARIABLE: "Batch", RERUN_VARIABLE: "1"}, "rerun"),
    ],
)
def test_the_place_is_known_by_kaggle_s_variables(
    variables: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert surroundings.find_place() == place


@pytest.mark.parametrize(
    ("script", "names", "why"),
    [
        ("echo 'Tesla T4, 7.5, 580.65, 15360'; echo 'Tesla T4, 7.5, 580.65, 15360'", ["Tesla T4"] * 2, ""),
        ("echo 'H200 MIG, 9.0, 580.65, [N/A]'", ["H200 MIG"], ""),
        ("echo 'Failed to initialize NVML'; exit 9", [], "nvidia-smi says: Failed to initialize NVML"),
        ("exit 0", [], "nvidia-smi says: it lists none"),
        ("exec sleep 9", [], "nvidia-smi did not answer in 0.2 s: the driver hangs"),
    ],
)
def test_gpus_are_asked_for_within_bounds(
    script: str, names: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.pretend_nvidia_smi(tmp_path, monkeypatch, script)
    monkeypatch.setattr(surroundings, "SMI_LIMIT_S", 0.2 if "sleep" in script else 5.0)
    gpus, no_gpu = surroundings.ask_gpus()
    assert ([gpu.name for gpu in gpus], no_gpu) == (names, why)
    assert {gpu.memory_gb for gpu in gpus} <= {15.0, None}


def test_this_machine_is_looked_at() -> None:
    here = look_around(["pytest"])
    assert here.place == "home" and here.working == Path.cwd()
    assert here.packages["numpy"] == np.__version__
    assert here.packages["pytest"] == pytest.__version__
    assert here.memory_gb is None or here.memory_gb > 0.1
    assert all(free > 0 for free in here.free_disk_gb.values())


def test_commands_are_given_as_they_work_here(tmp_path: Path) -> None:
    attached = kaggle(kit=Path("/kaggle/input/datasets/me/a/kaggle_kit-0.1.0-py3-none-any.whl"))
    assert attached.kit_command("bundle --verify /b").startswith("PYTHONPATH=/kaggle/input/datasets/me/a/kaggle_kit-0")
    assert home(kit=tmp_path).kit_command("doctor") == "kaggle-kit doctor"
    assert attached.install("/w/a.whl") == "pip install --no-index --no-deps /w/a.whl"


# ---- what is tried


def test_the_tiny_graph_is_what_its_recipe_says() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernels"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"]),
    ]
    kernels = np.array([0.5, -0.5], np.float32).reshape(2, 1, 1, 1)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 1])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(kernels, "kernels")],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(made, full_check=True)
    assert onnx.load_from_string(base64.b64decode(TINY_GRAPH)) == made


def finished(function: str, *arguments: str) -> Tried:
    return wait(Probe(function, arguments), 60)


def wait(one: Probe, limit_s: float) -> Tried:
    try:
        return one.finish(time.monotonic() + limit_s)
    finally:
        one.stop()


def test_what_runs_is_tried_in_a_process_of_its_own() -> None:
    tried = finished("try_runtime")
    step = tried.find("provider")
    assert tried.ended == "done" and step
    assert step["provider"] in (CPU, CUDA) and step["wrong"] < 1e-5
    assert [one["module"] for one in tried.steps if one["step"] == "import"] == list(probe.MODULES)
    assert not [one for one in tried.steps if "error" in one]


@pytest.mark.parametrize(
    ("code", "limit_s", "ended", "words"),
    [
        ("import time; time.sleep(60)", 0.1, "late", ""),
        ("import os; os.abort()", 60, "crashed", "killed by signal 6"),
        ("raise RuntimeError('no such thing')", 60, "crashed", "RuntimeError: no such thing"),
        ("import sys; sys.exit(3)", 60, "crashed", "exit code 3"),
        ("print('noise')", 60, "done", ""),
    ],
)
def test_a_process_that_hangs_or_crashes_is_a_finding(
    code: str, limit_s: float, ended: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_CHILD", code)
    one = Probe("try_runtime")
    tried = wait(one, limit_s)
    assert (tried.ended, tried.words, tried.steps) == (ended, words, ())
    assert one._child.poll() is not None


def test_steps_before_a_crash_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    first = "from kaggle_kit.platform.probe import _tell; print('no end', end=''); _tell('opened', seconds=1); "
    monkeypatch.setattr(probe, "_CHILD", first + "import os; os.abort()")
    tried = finished("try_bundle")
    assert (tried.ended, tried.find("opened")) == ("crashed", {"step": "opened", "seconds": 1})


# ---- the bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle").folder


def look_at_bundle(folder: Path, tried: Tried | None = None, task: Task | None = None) -> str:
    tried = tried or finished("try_bundle", str(folder), "")
    return "\n".join(say(lambda: inputs.check_bundle(home(), folder, tried, task)))


def test_a_whole_bundle_is_green(bundle: Path) -> None:
    text = look_at_bundle(bundle, task=wide_task())
    assert re.search(r"^green bundle: .*3 member\(s\), .* every SHA-256 as written \(checked in", text)
    assert re.search(r"\ngreen golden images: \d+ decode, pixels differ by up to 0 of 255; 2 of 2 run\(s\)", text)


def test_a_changed_file_is_red(bundle: Path) -> None:
    with (bundle / open_bundle(bundle).members[0].file).open("ab") as file:
        file.write(b"x")
    assert re.search("^red bundle: .* has changed: SHA-256 is .* -> copy or publish", look_at_bundle(bundle))


def test_golden_images_that_come_out_otherwise_are_red(bundle: Path) -> None:
    golden = load_golden(bundle)
    away = {run: {head: 1 - values for head, values in probs.items()} for run, probs in golden.probs.items()}
    save_golden(dataclasses.replace(golden, probs=away), bundle)
    opened = json.loads((bundle / MANIFEST).read_text())["files"] | {"golden.npz": sha256(bundle / "golden.npz")}
    write_manifest(dataclasses.replace(inputs_bundle(bundle), files=opened))
    assert re.search(
        "\nred golden images: golden images give run 'a' probabilities .* away from home", look_at_bundle(bundle)
    )


def inputs_bundle(folder: Path) -> Any:
    """Read a manifest whose files have changed."""
    from kaggle_kit.runtime.bundle import _read_manifest

    return _read_manifest(folder)


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        (Tried(ended="late", seconds=8.0), "yellow bundle: .* not all checked in 8 s.* -> kaggle-kit bundle --verify"),
        (Tried(ended="crashed", words="killed by signal 9"), "red bundle: .* could not be opened: killed by signal 9"),
        (Tried(steps=({"step": "unable", "error": "No module named 'numpy'"},)), "red bundle: .* No module"),
    ],
)  # fmt: skip
def test_a_bundle_that_was_not_opened_in_time(tried: Tried, words: str) -> None:
    assert re.search(words, look_at_bundle(Path("/b"), tried))


OPENED = {
    "step": "opened",
    "seconds": 0.5,
    "size": 5e9,
    "members": 3,
    "runs": 2,
    "task": "toy-wide",
    "kit_version": kaggle_kit.__version__,
    "created": "",
}
RUN = {"step": "run", "run": "a", "difference": 1e-6, "allowed": 2e-3, "too_far": "", "provider": CUDA}


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        (Tried(steps=(OPENED, RUN), ended="late", seconds=8.0), "yellow golden .* 1 of 2 run.s. .* left out after 8 s"),
        (Tried(steps=(OPENED,), ended="crashed", words="killed by signal 11"), "red golden images: .*signal 11"),
        (Tried(steps=(OPENED, {"step": "unable", "error": "No onnxruntime"})), "yellow golden images: not tried"),
        (Tried(steps=(OPENED, {"step": "refused", "error": "image 3 cannot be read"})), "red golden images: image 3"),
        (Tried(steps=(OPENED, RUN, RUN)), "green golden images: 2 of 2 run.s. at most 1.0e-06 away .* on CUDAExec"),
        (Tried(steps=(OPENED | {"kit_version": "0.0.9"}, RUN, RUN)), "yellow bundle: .*0.0.9, some day; kaggle_kit"),
        (Tried(steps=(OPENED | {"task": "other"}, RUN, RUN)), "red bundle: .*'other'.*; task 'toy-wide' ->"),
        (Tried(steps=(OPENED, {"step": "engines", "why": "built for L4"}, RUN, RUN)), "yellow engines: .*built"),
        (Tried(steps=(OPENED, {"step": "engines", "why": ""}, RUN, RUN)), "green engines: TensorRT's fit"),
    ],
)  # fmt: skip
def test_an_opened_bundle_is_told_as_far_as_it_was_tried(tried: Tried, words: str) -> None:
    assert re.search(words, look_at_bundle(Path("/b"), tried, wide_task()))


# ---- Kaggle's folders


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Path:
    """A batch session with a bundle, wheels and a competition attached in the new layout; no GPU."""
    root = tmp_path / "kaggle"
    (root / "working").mkdir(parents=True)
    toy = make_wide(tmp_path / "toy")
    shutil.copytree(toy.data, root / "input" / "competitions" / "toy-wide")
    shutil.copytree(bundle, root / "input" / "datasets" / "me" / "bundle")
    wheels = root / "input" / "datasets" / "me" / "wheels"
    (wheels / "tensorrt").mkdir(parents=True)
    for name in (GPU_WHEEL, "tensorrt/tensorrt_cu12_libs-10.13.3-py2.py3-none-manylinux_2_17_x86_64.whl"):
        (wheels / name).touch()
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    monkeypatch.setenv(RUN_TYPE_VARIABLE, "Batch")
    pretended.pretend_nvidia_smi(tmp_path / "bin", monkeypatch, "exit 9")
    return root


@pytest.mark.parametrize("layout", ["new", "old"])
def test_attached_wheels_are_found_in_both_layouts(layout: str, session: Path) -> None:
    if layout == "old":
        for kind in ("competitions/toy-wide", "datasets/me/bundle", "datasets/me/wheels"):
            (session / "input" / kind).rename(session / "input" / Path(kind).name)
        shutil.rmtree(session / "input" / "datasets")
        (session / "input" / "competitions").rmdir()
    assert [wheel.name for wheel in find_wheels(session, "3.12")] == [ORT_GPU, "tensorrt-cu12-libs"]
    assert {path.name for path in attached_folders(session)} == {"toy-wide", "bundle", "wheels"}
    (found,) = inputs.check_competition(kaggle(root=session), wide_task())
    assert found.level == "green" and "toy-wide has sample_submission.csv" in found.found
    assert inputs.attached_bundle(kaggle(root=session))[0].name == "bundle"


def test_a_task_whose_submission_the_competition_contradicts_is_red(session: Path) -> None:
    task = wide_task()
    other = dataclasses.replace(task, submission=dataclasses.replace(task.submission, target="label"))
    (odd, inputs_found) = inputs.check_competition(kaggle(root=session), other)
    assert (odd.level, odd.what, inputs_found.level) == ("red", "task", "green")
    assert "a submission of this task 'row_id', 'label'" in odd.found


def test_what_is_not_attached_is_said(session: Path) -> None:
    here = kaggle(root=session)
    shutil.copytree(session / "input/datasets/me/bundle", session / "input/datasets/me/again")
    _, (several,) = inputs.attached_bundle(here)
    assert several.level == "red" and "in several attached folders" in several.found
    shutil.rmtree(session / "input")
    (session / "input").mkdir()
    none = [inputs.attached_bundle(one)[1][0] for one in (here, dataclasses.replace(here, place="rerun"))]
    assert [(one.level, one.found) for one in none] == [("yellow", "none is attached"), ("red", "none is attached")]
    assert [line.split(":")[0] for line in say(lambda: inputs.check_competition(here, wide_task()))] == ["red inputs"]
    assert "nothing; without a task" in say(lambda: inputs.check_competition(here, None))[0]


def test_wheels_for_other_pythons_alone_are_red() -> None:
    foreign = [wheel("tokenizers-1.0-cp313-cp313-manylinux_2_28_x86_64.whl")]
    (line,) = say(lambda: inputs.check_wheels(kaggle(), foreign))
    assert re.search(
        "red wheels: 'tokenizers' for other Pythons than 3.12 alone; cp312 -> .*kaggle-kit wheelhouse", line
    )
    (line,) = say(
        lambda: inputs.check_wheels(kaggle(), [*foreign, wheel(GPU_WHEEL), wheel("tokenizers-1.0-py3-none-any.whl")])
    )
    assert line.startswith("green wheels: 2 for Python 3.12: onnxruntime-gpu 1.24.4, tokenizers 1.0")


ONLINE: dict[str, object] = {"code_file": "k.py"}
OFFLINE = ONLINE | {"enable_internet": False}


@pytest.mark.parametrize(
    ("metadata", "code", "words"),
    [
        (OFFLINE, "run()", "green kernel: .* no internet, and k.py asks for none"),
        (ONLINE, "run()", 'red kernel: .* leaves the internet on .*; "enable_internet": false -> write'),
        (OFFLINE, "timm.create_model(n, pretrained = True)", "yellow kernel: .*downloads weights"),
        (OFFLINE, "!pip install -q ttach", "yellow kernel: .*`pip install` downloads packages"),
        (OFFLINE, "!pip install -q --no-index ttach", "green kernel"),
        ({"code_file": "other.py"}, "", "red kernel: .*does not read: No such file or directory: .*other.py"),
        ({}, "", "red kernel: .*`code_file` is missing; .* -> see kernels/submit for one that does"),
    ],
)
def test_a_kernel_s_folder_is_read(metadata: dict[str, object], code: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "kernel-metadata.json").write_text(json.dumps(metadata))
    (tmp_path / "k.py").write_text(code)
    assert re.search(words, say(lambda: inputs.check_kernel(tmp_path))[0])


# ---- all of it


def levels(checkup: Checkup) -> dict[str, str]:
    return {finding.what: finding.level for finding in checkup.findings}


def test_a_session_on_kaggle_is_examined(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"KAGGLE_KEY": "topsecret1", "KAGGLE_USER_SECRETS_TOKEN": "topsecret2", "KAGGLE_API_TOKEN": "topsecret3"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(TIME_LIMIT_VARIABLE, "600")
    checkup = examine(deadline_s=60)
    assert checkup.place == "in a batch session on Kaggle, rehearsed"
    assert levels(checkup) | {"bundle": "green", "golden images": "green", "inputs": "green"} == levels(checkup)
    assert levels(checkup)["GPU"] == "red" and checkup.has_red
    text = checkup.text
    assert f"0.1667 h (600 s), from ${TIME_LIMIT_VARIABLE}, in place of 9 h" in text
    assert "topsecret" not in text and not [name for name in secrets if name in text]


def test_home_is_examined(bundle: Path) -> None:
    checkup = examine(bundle=bundle, kernel=Path("submit"), task=wide_task(), deadline_s=60)
    assert checkup.place == "at home"
    assert not checkup.has_red
    assert {"Python", "image python3.12", "runs on", "bundle", "golden images", "kernel", "disk", "extras"} <= {
        *levels(checkup)
    }


def test_a_driver_that_hangs_does_not_hang_the_doctor(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CHILD", "import time; time.sleep(600)")
    checkup = examine(bundle=bundle, deadline_s=0.1)
    assert (levels(checkup)["runs on"], levels(checkup)["bundle"]) == ("yellow", "yellow")
    assert checkup.seconds < 60


def test_a_limit_that_is_no_number_is_a_finding(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIME_LIMIT_VARIABLE, "two hours")
    (line,) = say(lambda: machine.check_time_limit(wide_task(), source="task", overridden=True))
    assert re.search(f"red time limit: .{TIME_LIMIT_VARIABLE} is no number.*'two hours'; .* -> unset", line)


def test_a_look_that_fails_is_a_finding() -> None:
    def fail() -> Iterable[Finding]:
        raise PermissionError(13, "Permission denied", "/kaggle/input")

    (found,) = doctor._look("inputs", fail)
    assert (found.level, found.what) == ("red", "inputs") and "Permission denied" in found.found


def test_without_numpy_there_is_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    checkup = examine()
    assert [(one.level, one.what) for one in checkup.findings] == [("red", "numpy")]
    assert "pip install --force-reinstall numpy" in checkup.text


def test_a_task_or_profile_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="'bengalli' is no task preset; did you mean 'bengali'"):
        examine(task="bengalli")
    with pytest.raises(SettingError, match="'python3.9' is no profile"):
        examine(profile="python3.9")


def test_it_runs_from_the_attached_wheel_where_torch_and_its_like_are_missing(session: Path, tmp_path: Path) -> None:
    path = build_wheel(session / "input/datasets/me/wheels")
    code = f"""
import sys
for name in ("torch", "pandas", "onnx", "timm", "albumentations", "sklearn", "scipy", "hydra"):
    sys.modules[name] = None
sys.path.insert(0, {str(path)!r})
from kaggle_kit.platform.doctor import examine
print(examine(deadline_s=60).text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"kaggle_kit     {kaggle_kit.__version__} from {path}" in done.stdout
    assert re.search(r"ok    golden images  \d+ decode", done.stdout)


# ---- how it is told


def test_colours_are_for_terminals_and_words_for_all() -> None:
    findings = (
        Finding(level="green", what="Python", found="3.12"),
        Finding(level="red", what="disk", found="0.1 GB", expected="5 GB", repair="delete"),
    )
    checkup = Checkup(place="at home", findings=findings, seconds=0.42)
    assert checkup.text.splitlines() == [
        "kaggle_kit doctor, at home",
        "  ok    Python  3.12",
        "  FAIL  disk    0.1 GB; expected 5 GB",
        "                -> delete",
        "1 FAIL, 0 warn, 1 ok, in 0.4 s",
    ]
    coloured = format_checkup(checkup, coloured=True)
    assert "\033[1;31mFAIL\033[0m" in coloured
    assert re.sub("\033\\[[0-9;]*m", "", coloured) == checkup.text


@pytest.fixture
def command() -> Callable[..., tuple[dict[str, Any], int]]:
    """Run `kaggle-kit doctor` as the command line does."""

    def run(*arguments: str) -> tuple[dict[str, Any], int]:
        parser = argparse.ArgumentParser()
        chosen: list[Any] = []

        def add(name: str, function: Any, _purpose: str, _example: str) -> argparse.ArgumentParser:
            assert name == "doctor"
            chosen.append(function)
            return parser

        add_doctor_parsers(add)
        result: tuple[dict[str, Any], int] = chosen[0](parser.parse_args(arguments))
        return result

    return run


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_the_command_colours_only_where_it_is_wanted(
    terminal: bool,
    no_color: str,
    coloured: bool,
    command: Callable[..., tuple[dict[str, Any], int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = (Finding(level="yellow", what="disk", found="little", repair="delete"),)
    monkeypatch.setattr(doctor, "examine", lambda **_: Checkup(place="at home", findings=found, seconds=1.0))
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    result, code = command()
    assert (code, result["yellow"], result["red"]) == (0, 1, 0)
    assert ("\033[" in capsys.readouterr().out) is coloured


def test_the_command_ends_with_1_where_anything_is_red(
    bundle: Path, command: Callable[..., tuple[dict[str, Any], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with (bundle / MANIFEST).open("a") as file:
        file.write("x")
    result, code = command("--bundle", str(bundle), "--profile", "python3.13")
    assert code == 1 and result["red"] == 1
    assert re.search("FAIL  bundle .* is not JSON", capsys.readouterr().out)
