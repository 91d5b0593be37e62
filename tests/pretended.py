"""A machine that pretends to have a Tesla T4 with TensorRT: nothing is computed there, everything around it is real."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from kaggle_kit.runtime import tensorrt
from kaggle_kit.runtime.engines import query_gpus

T4 = "Tesla T4, 7.5, 580.65.06"
PROVIDERS = [tensorrt.PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider"]
SHARED_LIBRARY = sys.modules["_ctypes"].__file__ or ""  # any that loads

# What a process that builds an engine imports: it writes what ONNX Runtime would, after PRETEND_S seconds.
ONNXRUNTIME = f"""
import os, time
from pathlib import Path
__version__ = {ort.__version__!r}
class SessionOptions: pass
def preload_dlls(): pass
def get_available_providers(): return {PROVIDERS}
class InferenceSession:
    def __init__(self, path, options, *, providers, enable_fallback):
        if os.environ.get("PRETEND_FAILURE"): raise RuntimeError(os.environ["PRETEND_FAILURE"])
        if os.environ.get("PRETEND_CRASH"): os.abort()
        time.sleep(float(os.environ.get("PRETEND_S", 0)))
        self.path, self.options = Path(path), providers[0][1]
    def get_providers(self): return os.environ.get("PRETEND_ON", {tensorrt.PROVIDER!r}).split()
    def run(self, outputs, feed):
        (image,) = feed.values()
        assert "image:" + "x".join(map(str, image.shape)) == self.options["trt_profile_max_shapes"]
        folder = Path(self.options["trt_engine_cache_path"])
        for suffix in os.environ.get("PRETEND_FILES", "engine profile").split():
            (folder / f"{{self.path.stem}}_sm75.{{suffix}}").write_bytes(os.urandom(9))
        with (folder / "cache_sm75.timing").open("a") as file: file.write(self.path.name)
"""


class Session(ort.InferenceSession):
    """ONNX Runtime on the CPU, under the name of the first of `works`, which takes the profile's own batch alone."""

    works: tuple[str, ...] = (tensorrt.PROVIDER, "CUDAExecutionProvider")
    batches: tuple[int, ...] = ()  # of every run on TensorRT

    def __init__(self, path, options, *, providers, enable_fallback=1):
        super().__init__(path, options, providers=["CPUExecutionProvider"])
        self.given = dict(entry for entry in providers if isinstance(entry, tuple))
        if enable_fallback == 0 and tensorrt.PROVIDER not in self.works:
            raise RuntimeError("Please install TensorRT libraries\nas mentioned")
        self.runs_on = next((name for name in self.given if name in self.works), "CPUExecutionProvider")

    def get_providers(self):
        return [self.runs_on, "CPUExecutionProvider"]

    def run(self, names, feed):
        if self.runs_on == tensorrt.PROVIDER:
            (image,) = feed.values()
            shape = f"image:{'x'.join(map(str, image.shape))}"
            assert shape == self.given[tensorrt.PROVIDER]["trt_profile_max_shapes"], "would be built for again"
            Session.batches += (len(image),)
        return super().run(names, feed)


def pretend_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str = f"echo '{T4}'") -> None:
    """Put an `nvidia-smi` of one's own first on the path."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    query_gpus.cache_clear()


def install_tensorrt(folder: Path, version: str = "10.13.3.9") -> None:
    """Install packages for other processes: onnxruntime as above, and TensorRT's metadata."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text(ONNXRUNTIME)
    info = folder / f"tensorrt_cu12_libs-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt-cu12-libs\nVersion: {version}\n")


def pretend_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend all of it, in this process and in those it starts."""
    folder.mkdir()
    pretend_nvidia_smi(folder / "bin", monkeypatch)
    install_tensorrt(folder / "site")
    monkeypatch.syspath_prepend(folder / "site")
    (folder / "lib").mkdir()
    (folder / "lib" / tensorrt.LIBRARY).symlink_to(SHARED_LIBRARY)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder / "lib"))  # read when a process starts: for those to come
    monkeypatch.setattr(tensorrt, "LIBRARY", str(folder / "lib" / tensorrt.LIBRARY))
    monkeypatch.setattr(ort, "get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(Session, "works", Session.works)  # put back whatever a test makes of them
    monkeypatch.setattr(Session, "batches", ())


def random_images(number: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, *shape), dtype=np.uint8)
