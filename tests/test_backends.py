from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pretended
import pytest
from conftest import SIZE
from handmade import random_weights, save_graph

from kaggle_kit.errors import BundleError
from kaggle_kit.runtime import tensorrt
from kaggle_kit.runtime.backends import OnnxSession, describe_session
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.runtime.engines import Engines, engine_key, query_gpus

SHAPE = (*SIZE, 1)
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NO_CUDA = "this onnxruntime has no CUDA provider; install onnxruntime-gpu for a GPU"
CUDA_FAILED = "CUDA did not start: no GPU, or CUDA libraries of another major version"


@pytest.fixture(autouse=True)
def _ask_anew():
    query_gpus.cache_clear()
    yield
    query_gpus.cache_clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "member.onnx"
    save_graph([random_weights(0)], [1.0], path)
    return path


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended.pretend_gpu(tmp_path / "pretended", monkeypatch)


@pytest.fixture
def make_engines(model: Path, tmp_path: Path) -> Callable[..., Engines]:
    """Make engines of the model for the machine there is, but for what is said to be another's."""

    def make(*, batch: int = 4, members: dict[str, str] | None = None, **key: str) -> Engines:
        folder = tmp_path / "engines"
        folder.mkdir()
        (folder / "cache_sm75.timing").write_text("earlier ")
        return Engines(
            folder=folder,
            key=dataclasses.replace(engine_key(), **key),
            members={model.name: file_sha256(model)} if members is None else members,
            seconds={"other.onnx": 40.0, model.name: 30.0},
            batch=batch,
            shape=SHAPE,
            files={},
        )

    return make


def test_on_the_cpu_it_is_said_why_nothing_faster_runs(model: Path, no_gpu: None) -> None:
    session = OnnxSession(model)
    assert (session.provider, session.passed_over) == (CPU, (NO_CUDA,))
    assert describe_session(session) == f"running on the CPU (onnxruntime {ort.__version__}): {NO_CUDA}"
    wanted = OnnxSession(model, device="cpu")
    assert (wanted.provider, wanted.passed_over) == (CPU, ())
    assert describe_session(wanted) == f"running on the CPU (onnxruntime {ort.__version__})"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, f"member.onnx: {NO_CUDA}"),
        ({"device": "tensorrt"}, "no engines were given; build them with kernels/build_engine on this GPU"),
        ({"device": "tensorrt", "build_s": 60}, "member.onnx: its engine could not be built: .*; attach the wheels of"),
    ],
)
def test_what_was_asked_for_and_is_not_there_is_an_error(
    model: Path, no_gpu: None, options: dict, message: str
) -> None:
    if shutil.which("nvidia-smi", path=os.defpath):
        pytest.skip("shows what a machine without a GPU says")
    with pytest.raises(BundleError, match=message):
        OnnxSession(model, **options)


def test_engines_are_passed_over_aloud_where_there_is_no_gpu(
    gpu: None, model: Path, make_engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = make_engines()
    query_gpus.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    pretended.Session.works = ()
    session = OnnxSession(model, engines=engines, build_s=1e9)
    assert session.provider == CPU
    first, second = session.passed_over
    assert first.startswith("TensorRT was passed over: no NVIDIA GPU (FileNotFoundError: ")
    assert second == CUDA_FAILED
    assert describe_session(session).endswith(f"{first}; {second}")


def test_a_file_that_does_not_load_is_named(tmp_path: Path, no_gpu: None) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"broken.onnx does not load in onnxruntime .*make the bundle again"):
        OnnxSession(tmp_path / "broken.onnx")


# ---- CUDA


def test_cuda_runs_in_full_precision_where_it_works(gpu: None, model: Path) -> None:
    for device in ("auto", "cuda"):
        session = OnnxSession(model, device=device, device_id=1)
        assert session.provider == CUDA
        assert session._session.given == {CUDA: {"use_tf32": "0", "device_id": "1"}}
    assert session.passed_over == ()
    assert describe_session(session) == f"running on {CUDA} (onnxruntime {ort.__version__})"
    (sentence,) = OnnxSession(model).passed_over
    assert sentence == "TensorRT was passed over: no engines were given; kernels/build_engine builds them"


def test_cuda_that_does_not_start_is_told_or_an_error(gpu: None, model: Path) -> None:
    pretended.Session.works = ()
    session = OnnxSession(model)
    assert (session.provider, session.passed_over[-1]) == (CPU, CUDA_FAILED)
    assert describe_session(session).endswith(CUDA_FAILED)
    with pytest.raises(BundleError, match=f"member.onnx: {CUDA_FAILED}"):
        OnnxSession(model, device="cuda")


# ---- TensorRT


@pytest.mark.parametrize("device", ["auto", "tensorrt"])
@pytest.mark.parametrize(("number", "batches"), [(0, 1), (1, 1), (3, 1), (4, 1), (5, 2), (12, 3)])
def test_every_run_on_tensorrt_has_the_profile_s_batch(
    gpu: None, model: Path, make_engines, device: str, number: int, batches: int
) -> None:
    session = OnnxSession(model, device=device, engines=make_engines(batch=4))
    assert (session.provider, session.passed_over) == (tensorrt.PROVIDER, ())
    images = pretended.random_images(number, SHAPE)
    found, expected = session.run(images), OnnxSession(model, device="cpu").run(images)
    assert pretended.Session.batches == (4,) * batches
    for head, probs in expected.items():
        assert found[head].dtype == np.float32
        np.testing.assert_allclose(found[head], probs, atol=1e-6)


def test_engines_that_fit_are_read_where_they_lie(gpu: None, model: Path, make_engines) -> None:
    engines = make_engines()
    session = OnnxSession(model, engines=engines)
    assert session._session.given[tensorrt.PROVIDER] == tensorrt.provider_options(engines.folder, shape=SHAPE, batch=4)


def test_tensorrt_that_fails_in_the_middle_gives_way_to_cuda_on_the_same_gpu(
    gpu: None, model: Path, make_engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    session = OnnxSession(model, engines=make_engines(batch=4), say=said.append)
    images = pretended.random_images(6, SHAPE)
    expected = session.run(images)
    run = pretended.Session.run

    def fail(self: pretended.Session, names, feed):
        if self.runs_on == tensorrt.PROVIDER:
            raise RuntimeError("TensorRT EP execution context enqueue failed")
        return run(self, names, feed)

    monkeypatch.setattr(pretended.Session, "run", fail)
    found = session.run(images)
    assert session.provider == CUDA
    assert session._session.given == {CUDA: {"use_tf32": "0", "device_id": "0"}}
    assert all(np.abs(found[head] - probs).max() < 1e-6 for head, probs in expected.items())
    assert said == [
        "WARNING member.onnx: TensorRT was left in the middle of a run: TensorRT EP execution context enqueue failed; "
        f"going on with {CUDA}"
    ]
    assert "was left in the middle" in describe_session(session)


STALE = [
    ({"gpu": "NVIDIA L4"}, "built for NVIDIA L4, this is Tesla T4"),
    ({"driver": "1"}, "built with driver 1, here is 580.65.06"),
    ({"tensorrt": "10.9"}, "built with TensorRT 10.9, here is 10.13.3.9"),
    ({"members": {"member.onnx": "0"}}, "built from another member.onnx: the bundle changed"),
    ({"members": {}}, "not built for member.onnx: the bundle changed"),
]


@pytest.mark.parametrize(("parts", "reason"), STALE)
def test_stale_engines_are_passed_over_aloud(gpu: None, model: Path, make_engines, parts: dict, reason: str) -> None:
    engines = make_engines(**parts)
    session = OnnxSession(model, engines=engines)
    message = f"{reason}; build them with kernels/build_engine on this GPU"
    assert (session.provider, session.passed_over) == (CUDA, (f"TensorRT was passed over: {message}",))
    with pytest.raises(BundleError, match=message):
        OnnxSession(model, device="tensorrt", engines=engines)


def test_tensorrt_that_does_not_start_gives_way_to_cuda_aloud(gpu: None, model: Path, make_engines) -> None:
    pretended.Session.works = (CUDA,)
    session = OnnxSession(model, engines=make_engines())
    assert session.provider == CUDA
    (sentence,) = session.passed_over
    assert sentence.startswith("TensorRT was passed over: member.onnx does not load on TensorRT (Please install")


@pytest.mark.parametrize("device", ["auto", "tensorrt"])
def test_stale_engines_are_built_again_within_the_budget(
    gpu: None, model: Path, make_engines, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.tempfile, "tempdir", str(tmp_path / "pretended"))
    lines: list[str] = []
    read: list[str] = []
    start = tensorrt.start_session

    def start_and_read(path: Path, folder: Path, **options):
        read.append((folder / "cache_sm75.timing").read_text())
        return start(path, folder, **options)

    monkeypatch.setattr(tensorrt, "start_session", start_and_read)
    engines = make_engines(gpu="NVIDIA L4")
    session = OnnxSession(model, device=device, engines=engines, build_s=30.0, say=lines.append)
    assert (session.provider, session.passed_over) == (tensorrt.PROVIDER, ())
    assert lines[0] == "member.onnx: built for NVIDIA L4, this is Tesla T4; building its engine"
    assert lines[-1].startswith("member.onnx: built in ")
    assert read == ["earlier member.onnx"]  # the builder went on from what had been measured
    assert [path.name for path in engines.folder.iterdir()] == ["cache_sm75.timing"]
    assert not list((tmp_path / "pretended").glob("engines-*"))
    assert set(session.run(pretended.random_images(5, SHAPE))) == {"root", "vowel"}


@pytest.mark.parametrize(
    ("members", "seconds"),
    [(None, "30"), ({}, "30")],
)
def test_a_build_that_took_longer_than_the_budget_is_not_begun(
    gpu: None, model: Path, make_engines, members: dict | None, seconds: str
) -> None:
    engines = make_engines(driver="1", members=members)
    message = f"here is 580.65.06, and a build took {seconds} s, more than the 29 s that may be spent"
    assert message in OnnxSession(model, engines=engines, build_s=29.0).passed_over[0]
    with pytest.raises(BundleError, match=message):
        OnnxSession(model, device="tensorrt", engines=engines, build_s=29.0)


def test_a_graph_that_was_never_built_is_taken_to_be_as_slow_as_the_slowest(
    gpu: None, model: Path, make_engines
) -> None:
    engines = dataclasses.replace(make_engines(members={}), seconds={"other.onnx": 40.0})
    assert "a build took 40 s, more than the 39 s" in OnnxSession(model, engines=engines, build_s=39.0).passed_over[0]


def test_with_nothing_left_of_the_budget_no_build_is_begun(gpu: None, model: Path, make_engines) -> None:
    engines = dataclasses.replace(make_engines(driver="1"), seconds={})
    lines: list[str] = []
    session = OnnxSession(model, engines=engines, build_s=0.0, say=lines.append)
    assert (session.provider, lines) == (CUDA, [])
    assert "a build took 0 s, more than the 0 s that may be spent" in session.passed_over[0]


def test_a_build_that_overruns_the_budget_is_ended(
    gpu: None, model: Path, make_engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_S", "60")
    engines = dataclasses.replace(make_engines(driver="1"), seconds={})
    session = OnnxSession(model, engines=engines, build_s=0.5)
    assert session.provider == CUDA
    assert "member.onnx: building its engine took more than the 0 s left" in session.passed_over[0]


def test_an_engine_that_was_asked_for_is_built_without_any_to_go_by(gpu: None, model: Path) -> None:
    session = OnnxSession(model, device="tensorrt", build_s=60.0)
    images = pretended.random_images(3, SHAPE)
    assert len(session.run(images)["root"]) == 3
    assert pretended.Session.batches == (tensorrt.BATCH,)
    assert session._session.given[tensorrt.PROVIDER]["trt_profile_max_shapes"] == "image:64x24x32x1"
