"""Graphs on OpenVINO, for competitions without a GPU: int8 graphs run several times as fast there as elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kaggle_kit.errors import BundleError, brief
from kaggle_kit.machine import num_cores

PROVIDER = "OpenVINO"


class _Output(NamedTuple):
    name: str


class OpenVinoSession:
    """A graph in OpenVINO, called as ONNX Runtime's sessions are."""

    def __init__(self, path: Path) -> None:
        """Load a graph for the CPU.

        Raises:
            BundleError: When OpenVINO is not installed, or does not take the graph.
        """
        try:
            import openvino
        except ImportError as error:
            raise BundleError(f"OpenVINO does not load ({error}); pip install 'kaggle_kit[openvino]'") from None
        options = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the CPU has it, which nobody has measured
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, by all cores
            "INFERENCE_NUM_THREADS": num_cores(),
        }
        try:
            model = openvino.Core().compile_model(str(path), "CPU", options)
        except Exception as error:  # noqa: BLE001  OpenVINO's exceptions share no other base
            raise BundleError(
                f"{path} does not load in OpenVINO {openvino.__version__} ({brief(error)}); run it with another device"
            ) from None
        self._request = model.create_infer_request()
        self._outputs = [_Output(output.get_any_name()) for output in model.outputs]

    def get_outputs(self) -> list[_Output]:
        """Return what comes out."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """Return what runs the graph."""
        return [PROVIDER]

    def run(self, names: list[str], feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return outputs by their names, copied: OpenVINO writes the next ones into the same memory."""
        found = self._request.infer(feed, share_inputs=True)
        return [np.array(found[name]) for name in names]
