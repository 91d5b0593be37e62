from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pretended
import pytest
import timm
import torch
import yaml
from conftest import SIZE, make_wide, wide_task
from handmade import make_bundle
from made_wheels import made_wheel
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.errors import BundleError
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.onnx import export_onnx
from kaggle_kit.export.tensorrt import OPERATORS, unsupported_operators
from kaggle_kit.platform.wheel import build_wheel, kernels_folder
from kaggle_kit.runtime import engines as engines_module
from kaggle_kit.runtime import tensorrt
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import file_sha256, open_bundle
from kaggle_kit.runtime.engines import (
    EngineKey,
    Engines,
    engine_key,
    query_gpus,
    read_engines,
    stale_reason,
    write_engines,
)
from kaggle_kit.runtime.tensorrt import build_engine, build_engines, provider_options, start_session
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import build_network

SHAPE = (*SIZE, 1)
PRESETS = sorted((Path(__file__).parents[1] / "kaggle_kit" / "conf" / "model").glob("*.yaml"))
KEY = EngineKey(gpu="Tesla T4", compute_capability="7.5", driver="580", tensorrt="10.13", onnxruntime="1.26")
needs_gpu = pytest.mark.skipif(
    shutil.which("nvidia-smi") is None or tensorrt.PROVIDER not in ort.get_available_providers(),
    reason="needs an NVIDIA GPU, onnxruntime-gpu and TensorRT 10",
)


@pytest.fixture(autouse=True)
def _ask_anew():
    query_gpus.cache_clear()
    yield
    query_gpus.cache_clear()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended.pretend_gpu(tmp_path / "pretended", monkeypatch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three members and a fused graph; read-only."""
    return make_bundle(tmp_path_factory.mktemp("handmade") / "bundle").folder


# ---- what TensorRT imports


TINY = ("test_resnet", "test_byobnet", "test_convnext", "test_efficientnet")
BESIDES = {"GELU": {"Erf"}, "DepthwiseSeparableConv": {"Conv"}, "Conv2dSame": {"Conv", "Pad"}}


def exported(name: str, folder: Path, tta: tuple[str, ...] = ()) -> onnx.ModelProto:
    network = build_network(wide_task(), ModelConfig(name=name, input_size=(64, 64)), load_pretrained=False).eval()
    export_onnx(ExportGraph(network, tta=tta).eval(), folder / "model.onnx", shape=SHAPE)
    return onnx.load(folder / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_tensorrt_imports_the_smallest_of_each_family(name: str, tmp_path: Path) -> None:
    tta = ("hflip", "scale=0.9", "shift=4") if name == "test_resnet" else ()
    model = exported(name, tmp_path, tta)
    assert unsupported_operators(model) == {}
    assert {"Conv", "Softmax"} < {node.op_type for node in model.graph.node}


def test_tensorrt_imports_every_preset_for_they_are_made_of_the_same_modules() -> None:
    # To export all takes minutes. When it was done, resnet18 to resnet152 had the same operators, as had both ConvNeXts
    # but for their GELUs. A preset that is made of anything else fails here: export it, and look.
    def modules_of(name: str) -> set[str]:
        with torch.device("meta"):
            return {type(module).__name__ for module in timm.create_model(name, num_classes=0).modules()}

    assert set().union(*BESIDES.values()) < OPERATORS
    known = set(BESIDES).union(*map(modules_of, TINY))
    for preset in PRESETS:
        assert modules_of(yaml.safe_load(preset.read_text())["name"]) - known == set(), preset.stem


def graph(nodes: list[onnx.NodeProto], *, opset: int = 18, constants=(), own=()) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SHAPE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    body = helper.make_graph(nodes, "g", [image], [out], list(constants))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in own)]
    return helper.make_model(body, opset_imports=opsets)


def cast() -> onnx.NodeProto:
    return helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT)


def resize(**attributes: object) -> onnx.ModelProto:
    return graph([cast(), helper.make_node("Resize", ["x", "", "scales"], ["out"], **attributes)])


def branches(operator: str) -> onnx.ModelProto:
    inside = helper.make_node(operator, ["x"], ["y"])
    body = helper.make_graph([inside], "b", [], [helper.make_tensor_value_info("y", 1, None)])
    return graph([cast(), helper.make_node("If", ["c"], ["out"], then_branch=body, else_branch=body)])


ZERO = numpy_helper.from_array(pretended.np.zeros((), pretended.np.uint8), "zero")
QUANTISE = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["out"])


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (graph([cast(), helper.make_node("Relu", ["x"], ["out"])]), {}),
        (resize(mode="linear", coordinate_transformation_mode="asymmetric"), {}),
        (resize(), {}),
        (branches("Relu"), {}),
        (graph([cast(), helper.make_node("Det", ["x"], ["out"])]), {"Det": "is not on TensorRT's list"}),
        (branches("Det"), {"Det": "is not on TensorRT's list"}),
        (
            graph([cast(), helper.make_node("Gelu", ["x"], ["out"], domain="com.microsoft")], own=["com.microsoft"]),
            {"com.microsoft.Gelu": "belongs to 'com.microsoft', not to ONNX"},
        ),
        (
            graph([helper.make_node("Transpose", ["image"], ["out"])]),
            {"Transpose": "reads unsigned bytes ('image'), which only a Cast may"},
        ),
        (
            graph([cast(), QUANTISE], constants=[ZERO]),
            {"QuantizeLinear": "reads unsigned bytes ('zero'), which only a Cast may"},
        ),
        (resize(mode="linear", antialias=1), {"Resize": "has antialias 1, which TensorRT lacks"}),
        (resize(mode="cubic"), {"Resize": "has mode 'cubic', which TensorRT lacks"}),
        (
            resize(coordinate_transformation_mode="tf_crop_and_resize"),
            {"Resize": "has coordinate_transformation_mode 'tf_crop_and_resize', which TensorRT lacks"},
        ),
        (graph([cast()], opset=21), {"opset": "is 21, TensorRT 10 takes 9 to 20"}),
        (graph([cast()], opset=8), {"opset": "is 8, TensorRT 10 takes 9 to 20"}),
    ],
)
def test_what_tensorrt_does_not_import_is_named(model: onnx.ModelProto, found: dict[str, str]) -> None:
    assert unsupported_operators(model) == found


def test_the_list_holds_onnx_s_operators_and_three_that_it_has_dropped() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert OPERATORS - known == {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
    assert {"LayerNormalization", "Erf"} < OPERATORS and not {"Attention", "Gelu", "DFT"} & OPERATORS


# ---- what engines are bound to


def test_a_key_is_what_nvidia_smi_and_the_packages_say() -> None:
    asked = []

    def version(name: str) -> str:
        asked.append(name)
        if name != "tensorrt":
            raise engines_module.metadata.PackageNotFoundError(name)
        return "10.13.3.9"

    key = engine_key(device_id=1, gpus=lambda: f"{pretended.T4}\nNVIDIA L4, 8.9, 580.65.06\n", version=version)
    assert key == EngineKey(
        gpu="NVIDIA L4",
        compute_capability="8.9",
        driver="580.65.06",
        tensorrt="10.13.3.9",
        onnxruntime=ort.__version__,
    )
    assert asked == list(engines_module.PACKAGES)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (pretended.T4, r"there is no GPU 1; nvidia-smi lists \['Tesla T4, 7.5, 580.65.06'\]"),
        (f"{pretended.T4}\nwhat is this", "there is no GPU 1"),
    ],
)
def test_a_gpu_that_is_not_there_is_named(lines: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        engine_key(device_id=1, gpus=lambda: lines)


def test_a_key_needs_tensorrt() -> None:
    with pytest.raises(BundleError, match=r"TensorRT is not installed \(none of tensorrt-cu12-libs, .*attach the"):
        engine_key(gpus=lambda: pretended.T4)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Failed to initialize NVML'; exit 9", r"no NVIDIA GPU \(nvidia-smi: Failed to initialize NVML\)"),
        ("true", r"no NVIDIA GPU \(nvidia-smi: it lists none\); choose a GPU"),
        (None, r"no NVIDIA GPU \(FileNotFoundError: .*nvidia-smi.*\); choose a GPU for this notebook"),
    ],
)
def test_why_there_is_no_gpu_is_told(
    script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        pretended.pretend_nvidia_smi(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(BundleError, match=message):
        query_gpus()


def test_nvidia_smi_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended.pretend_nvidia_smi(tmp_path / "bin", monkeypatch, f"echo x >> {tmp_path}/asked; echo '{pretended.T4}'")
    assert query_gpus() == query_gpus() == f"{pretended.T4}\n"
    assert (tmp_path / "asked").read_text() == "x\n"


def made(folder: Path = Path()) -> Engines:
    return Engines(
        folder=folder,
        key=KEY,
        members={"a.onnx": "1"},
        seconds={"a.onnx": 2.0},
        batch=64,
        shape=SHAPE,
        files={path.name: file_sha256(path) for path in folder.glob("a.*")},
    )


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, ""),
        ({"gpu": "NVIDIA L4"}, "built for Tesla T4, this is NVIDIA L4"),
        ({"compute_capability": "8.9"}, "built for compute capability 7.5, this GPU has 8.9"),
        ({"driver": "570"}, "built with driver 580, here is 570"),
        ({"tensorrt": "10.9"}, "built with TensorRT 10.13, here is 10.9"),
        ({"onnxruntime": "1.31"}, "built with onnxruntime 1.26, here is 1.31"),
        ({"members": {"a.onnx": "2"}}, "built from another a.onnx: the bundle changed"),
        ({"members": {"a.onnx": "1", "b.onnx": "1"}}, "not built for b.onnx: the bundle changed"),
    ],
)
def test_in_what_engines_do_not_fit_is_told(parts: dict, reason: str) -> None:
    names = {name: value for name, value in parts.items() if name != "members"}
    key = engines_module.EngineKey(**{**vars(KEY), **names})
    assert stale_reason(made(), key, parts.get("members", {"a.onnx": "1"})) == reason


# ---- what ONNX Runtime is told


def test_the_options_hold_one_profile_and_no_precision() -> None:
    options = provider_options(Path("/e"), shape=(137, 236, 1), batch=64, device_id=1)
    assert options["trt_profile_min_shapes"] == "image:1x137x236x1"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "image:64x137x236x1"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == "/e"
    assert options["device_id"] == "1"
    assert not {"trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable"} & set(options)
    assert all(isinstance(value, str) for value in options.values())


def test_without_the_provider_no_session_is_made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BundleError, match=r"has no TensorRT provider; attach the wheels of onnxruntime-gpu"):
        start_session(bundle / "member_a_fold0.onnx", tmp_path, shape=SHAPE, batch=4)


def test_without_the_library_no_session_is_made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: pretended.PROVIDERS)
    monkeypatch.setattr(tensorrt, "LIBRARY", "libnvinfer.so.0")
    with pytest.raises(BundleError, match=r"TensorRT 10 does not load \(libnvinfer.so.0: cannot open .*; attach"):
        start_session(bundle / "member_a_fold0.onnx", tmp_path, shape=SHAPE, batch=4)


def test_a_session_that_runs_elsewhere_is_refused(
    gpu: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle / "member_a_fold0.onnx"
    session = start_session(path, tmp_path, shape=SHAPE, batch=4, device_id=1)
    assert session.given["CUDAExecutionProvider"] == {"use_tf32": "0", "device_id": "1"}
    monkeypatch.setattr(pretended.Session, "get_providers", lambda _: ["CUDAExecutionProvider"])
    with pytest.raises(BundleError, match=r"fold0.onnx would run on CUDAExecutionProvider, not on TensorRT; attach"):
        start_session(path, tmp_path, shape=SHAPE, batch=4)
    pretended.Session.works = ()
    with pytest.raises(BundleError, match=r"does not load on TensorRT \(Please install TensorRT libraries\); attach"):
        start_session(path, tmp_path, shape=SHAPE, batch=4)


# ---- building


def test_engines_of_members_and_the_fused_graph_are_built_told_and_listed(
    gpu: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    built = build_engines(bundle, tmp_path / "engines", say=lines.append, batch=8)
    names = ["member_a_fold0.onnx", "member_a_fold1.onnx", "member_b_fold0.onnx", "fused.onnx"]
    assert lines[0] == "4 graph(s), batches of 8, on Tesla T4 (driver 580.65.06) with TensorRT 10.13.3.9"
    assert [line for line in lines if "of 4" in line] == [
        f"{name}: building its engine, {number} of 4" for number, name in enumerate(names, start=1)
    ]
    assert [re.sub(r"\d+ s", "N s", line) for line in lines[2::2]] == [
        *(f"{name}: built in N s" for name in names),
    ]
    assert built == read_engines(tmp_path / "engines")
    assert built.members == {name: file_sha256(bundle / name) for name in names}
    assert (built.batch, built.shape, list(built.seconds)) == (8, SHAPE, names)
    assert sorted(built.files) == sorted(
        ["cache_sm75.timing", *(f"{name[:-5]}_sm75.{end}" for name in names for end in ("engine", "profile"))]
    )
    assert stale_reason(built, engine_key(), {n: open_bundle(bundle).files[n] for n in names}) == ""
    build_engines(bundle, tmp_path / "engines", say=lines.append, batch=4)  # in the place of the first
    assert read_engines(tmp_path / "engines").batch == 4


def test_a_build_says_how_long_it_takes_and_stops_at_its_limit(
    gpu: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_S", "60")
    lines: list[str] = []
    path, started = bundle / "fused.onnx", time.monotonic()
    with pytest.raises(BundleError, match=r"fused.onnx: building its engine took more than the 1 s left"):
        build_engine(path, tmp_path, shape=SHAPE, batch=4, say=lines.append, limit_s=0.9, every_s=0.4)
    assert time.monotonic() - started < 20
    assert lines[0] == "fused.onnx: building its engine, 0 s" and len(lines) >= 2


@pytest.mark.parametrize(
    ("pretence", "message"),
    [
        ({"PRETEND_FAILURE": "out of memory"}, "fold0.onnx does not load on TensorRT .out of memory.; attach"),
        ({"PRETEND_ON": "CUDAExecutionProvider"}, "would run on CUDAExecutionProvider, not on TensorRT"),
        ({"PRETEND_CRASH": "1"}, "fold0.onnx: its engine could not be built: exit code -6"),
        ({"PRETEND_FILES": "profile"}, "fold0.onnx: TensorRT built nothing, so it would all run on CUDA"),
    ],
)
def test_a_build_that_fails_leaves_nothing(
    gpu: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretence: dict[str, str], message: str
) -> None:
    for name, value in pretence.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match=message):
        build_engines(bundle, tmp_path / "out" / "engines", say=lambda _: None)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="shows what a machine without a GPU says")
def test_without_tensorrt_a_build_says_so_here_and_now(bundle: Path, tmp_path: Path) -> None:
    why = r"(this onnxruntime \S+ has no TensorRT provider|TensorRT 10 does not load \(libnvinfer.so.10: .*\)); attach"
    with pytest.raises(BundleError, match=f"fused.onnx: its engine could not be built: {why}"):
        build_engine(bundle / "fused.onnx", tmp_path, shape=SHAPE, batch=4, say=lambda _: None)


def test_a_folder_of_other_things_is_never_replaced(gpu: None, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(BundleError, match="no folder of engines; choose another folder"):
        build_engines(bundle, tmp_path, say=lambda _: None)


def change_list(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "engines.json").read_text())
        change(values)
        (folder / "engines.json").write_text(json.dumps(values))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "engines.json").unlink(),
            "is no list of engines .*No such file.*; build the",
        ),
        (lambda folder: (folder / "engines.json").write_text("[]"), "is no list of engines"),
        (lambda folder: (folder / "engines.json").write_text("{"), "is no list of engines"),
        (change_list(lambda values: values.update(format=2)), "is no list of engines .is of another format."),
        (change_list(lambda values: values.pop("key")), "is no list of engines .`key` is missing"),
        (change_list(lambda values: values["files"].update({"../x": "1"})), "x is missing, or not as it was built"),
        (lambda folder: (folder / "a.engine").write_bytes(b"other"), "a.engine is missing, or not as it was built; bu"),
        (lambda folder: (folder / "a.timing").unlink(), "a.timing is missing, or not as it was built"),
    ],
)
def test_engines_that_changed_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    for name in ("a.engine", "a.timing"):
        (tmp_path / name).write_text(name)
    write_engines(made(tmp_path))
    assert read_engines(tmp_path) == made(tmp_path)
    damage(tmp_path)
    with pytest.raises(BundleError, match=message):
        read_engines(tmp_path)


@needs_gpu
def test_a_real_engine_gives_what_the_cpu_gives(bundle: Path, tmp_path: Path) -> None:
    engines = build_engines(bundle, tmp_path / "engines", say=lambda _: None, batch=8)
    images = pretended.random_images(19, SHAPE)
    session = OnnxSession(bundle / "fused.onnx", device="tensorrt", engines=engines)
    expected = OnnxSession(bundle / "fused.onnx", device="cpu").run(images)
    for head, probs in session.run(images).items():
        assert abs(probs - expected[head]).max() < 2e-3


# ---- the kernel


@pytest.fixture
def kernel(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the engine kernel on mounts of the kit's wheel and a bundle."""
    root = tmp_path / "kaggle"
    shutil.copytree(bundle, root / "input" / "datasets" / "owner" / "kaggle-kit-bundle")
    wheels = root / "input" / "datasets" / "owner" / "kaggle-kit-wheelhouse"
    wheels.mkdir()
    build_wheel(wheels)
    no_uv = [path for path in os.environ["PATH"].split(os.pathsep) if not (Path(path) / "uv").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(no_uv))  # uv would install into this very environment
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    (root / "working").mkdir()

    def run(name: str = "build_engine") -> subprocess.CompletedProcess[str]:
        script = kernels_folder() / name / f"{name}.py"
        environment = os.environ | {"KAGGLE_KIT_ROOT": str(root)}
        return subprocess.run(
            [sys.executable, "-u", str(script)],
            env=environment,
            cwd=root / "working",
            capture_output=True,
            text=True,
            check=False,
        )

    run.root = root
    return run


def test_without_a_gpu_the_kernel_says_so_and_writes_nothing(
    kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = kernel()
    assert done.returncode == 1
    assert done.stderr.startswith("no engines were built: no NVIDIA GPU (") and "choose a GPU" in done.stderr
    assert "kaggle_kit from" in done.stdout
    assert list((kernel.root / "working").iterdir()) == []


def test_without_tensorrt_s_wheel_the_kernel_says_what_to_attach(
    kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.pretend_nvidia_smi(tmp_path / "bin", monkeypatch)
    done = kernel()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, f"found {pretended.T4}")
    assert done.stderr.startswith("no engines were built: no wheel of tensorrt-cu12-libs 10.x for Python ")
    assert "attach the dataset that `kaggle-kit wheelhouse --tensorrt` builds" in done.stderr
    assert list((kernel.root / "working").iterdir()) == []


def test_the_kernel_installs_tensorrt_and_builds_into_one_flat_folder(
    kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.pretend_gpu(tmp_path / "pretended", monkeypatch)
    shutil.rmtree(next((tmp_path / "pretended" / "site").glob("*.dist-info")))  # it comes with the wheel
    wheels = kernel.root / "input" / "datasets" / "owner" / "kaggle-kit-wheelhouse" / "tensorrt"
    made_wheel(wheels, "tensorrt-cu12-libs", "10.13.3.9", module="tensorrt_libs")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "pretended" / "site"))  # where this Python finds them
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "pretended" / "site"))
    done = kernel()
    assert done.returncode == 0, done.stderr
    built = read_engines(kernel.root / "working" / "engines")
    assert built.key.tensorrt == "10.13.3.9" and len(built.members) == 4
    assert [path.name for path in (kernel.root / "working").iterdir()] == ["engines"]
    assert all(path.is_file() for path in built.folder.iterdir())
    assert "fused.onnx: building its engine, 4 of 4" in done.stdout


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ((), None),
        (("mine",), "WARNING engines may be passed over: {wheel} is no whole wheel (File is not a zip file)"),
        (("mine", "yours"), "WARNING engines may be passed over: engines.json is in several attached folders: "),
    ],
)
def test_engines_that_cannot_be_used_cost_no_submission(
    kernel, tmp_path: Path, outputs: tuple[str, ...], said: str | None
) -> None:
    shutil.copytree(make_wide(tmp_path / "toy").hidden, kernel.root / "input" / "competitions" / "toy-wide")
    (kernel.root / "input" / "datasets" / "owner" / "tensorrt").mkdir()
    wheel = kernel.root / "input" / "datasets" / "owner" / "tensorrt" / "tensorrt_cu12_libs-10.0-py3-none-any.whl"
    wheel.write_bytes(b"cut short")
    for name in outputs:
        (kernel.root / "input" / "notebooks" / name / "build").mkdir(parents=True)
        (kernel.root / "input" / "notebooks" / name / "build" / "engines.json").touch()
    done = kernel("submit")
    assert done.returncode == 0, done.stderr
    assert (kernel.root / "working" / "submission.csv").is_file()
    assert said is None or said.format(wheel=wheel) in done.stdout
    assert ("WARNING" in done.stdout) == bool(outputs)
