"""Sessions that run a member: CUDA where it really works, else the CPU, and said aloud which."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from kaggle_kit.errors import BundleError
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs

INPUT = "image"


class OnnxSession:
    """One member in ONNX Runtime.

    Attributes:
        provider: What the session really runs on, such as `CPUExecutionProvider`.
    """

    def __init__(self, path: Path, *, device: Literal["auto", "cpu"] = "auto") -> None:
        """Load a member.

        Args:
            path: The .onnx file.
            device: `auto`: CUDA where it works, else the CPU.

        Raises:
            BundleError: When the file does not load.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: provider fallbacks are said by `describe_provider`
        try:
            self._session = ort.InferenceSession(str(path), options, providers=_wanted_providers(ort, device))
        except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
            raise BundleError(
                f"{path} does not load in onnxruntime {ort.__version__} ({_brief(error)}); "
                "make the bundle again, or update onnxruntime"
            ) from None
        self.provider: str = self._session.get_providers()[0]
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, images: Image) -> Probs:
        """Return {head: (B, C) float32 probabilities} of (B, H, W, C) uint8 stored images."""
        values = self._session.run(self.outputs, {INPUT: images})
        return {name: np.asarray(value, np.float32) for name, value in zip(self.outputs, values, strict=True)}


def _wanted_providers(ort: Any, device: str) -> list[Any]:
    if device == "cpu" or "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in the pip packages that torch brought
    # TF32 rounds to 10 bits, on by default, and is not what was measured at home.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def describe_provider(provider: str) -> str:
    """Return one line on what runs, and why not the GPU where it does not."""
    import onnxruntime as ort

    if provider != "CPUExecutionProvider":
        return f"running on {provider} (onnxruntime {ort.__version__})"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        reason = "this onnxruntime has no CUDA provider; install onnxruntime-gpu for a GPU"
    else:
        reason = "CUDA did not start: no GPU, or CUDA libraries of another major version"
    return f"running on the CPU (onnxruntime {ort.__version__}): {reason}"


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
