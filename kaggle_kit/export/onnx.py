"""A checkpoint to one self-contained .onnx file, measured against torch on real images."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kaggle_kit.decision import HALF, Decision
from kaggle_kit.errors import ExportError, some_of
from kaggle_kit.files import replacing
from kaggle_kit.predictions import Probs, take_columns
from kaggle_kit.runtime.backends import INPUT, OnnxSession
from kaggle_kit.runtime.bundle import Parity
from kaggle_kit.sources import PackedSource
from kaggle_kit.train.model import Network
from kaggle_kit.train.predict import predict_rows

Columns = Mapping[str, npt.NDArray[np.int64]]

OPSET = 18
IR_VERSION = 10  # onnx 1.20+ writes 13, which older runtimes refuse
MAX_ABS_DIFF = 1e-4
TIE = 2e-4  # two best probabilities closer than this may change places
ROWS_AT_ONCE = 64


class ExportGraph(nn.Module):
    """Stored uint8 images in, one tensor of probabilities per head out.

    Args:
        network: What is exported.
        columns: {head: (C,) the network's class of each class that comes out}; None: as the network has them.
    """

    def __init__(self, network: Network, columns: Columns | None = None) -> None:
        super().__init__()
        self.network = network
        self.columns = {head: torch.from_numpy(places) for head, places in (columns or {}).items()}

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a (B, C) float32 tensor per head from (B, H, W, channels) uint8."""
        return tuple(self._probs(head, logits) for head, logits in self.network(image).items())

    def _probs(self, head: str, logits: torch.Tensor) -> torch.Tensor:
        many = self.network.head_kinds[head] == "multilabel"
        probs = logits.sigmoid() if many else logits.softmax(dim=1)
        return probs.index_select(1, self.columns[head]) if head in self.columns else probs


def export_onnx(network: Network, path: Path, *, shape: tuple[int, int, int], columns: Columns | None = None) -> None:
    """Write a network as one .onnx file: dynamic batch, opset 18, IR 10.

    Args:
        network: In evaluation mode, on the CPU.
        path: The file to write; it appears whole or not at all.
        shape: (H, W, C) of stored images.
        columns: {head: (C,) the network's class of each class that comes out}; None: as the network has them.

    Raises:
        ExportError: When an operator cannot be exported, or onnxscript is missing.
    """
    import onnx

    graph = ExportGraph(network, columns).eval()
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    names = list(network.head_names)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                external_data=False,
            )
    except ImportError as error:
        raise ExportError(f"export needs {error.name}; pip install 'kaggle_kit[train]'") from None
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{type(network.backbone).__name__} cannot be exported: {str(error)[:300]}") from None
    assert program is not None
    model = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def measure_parity(
    network: Network,
    path: Path,
    source: PackedSource,
    rows: npt.NDArray[np.int64],
    *,
    columns: Columns | None = None,
) -> tuple[Parity, Probs]:
    """Compare an exported member with its torch network, in fp32, on real images.

    Args:
        network: What was exported.
        path: The .onnx file.
        source: The images.
        rows: Which ones; at least one.
        columns: As `export_onnx` was given them.

    Returns:
        The parity, and the exported member's probabilities of these rows.

    Raises:
        ExportError: When a probability differs by more than 1e-4, or a decision changes that was no near tie.
    """
    session = OnnxSession(path, device="cpu")
    parts = [
        session.run(source.take(rows[start : start + ROWS_AT_ONCE])) for start in range(0, len(rows), ROWS_AT_ONCE)
    ]
    exported = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
    expected = take_columns(predict_rows(network, source, rows), columns or {})
    diff = max(float(np.abs(exported[head] - expected[head]).max()) for head in expected)
    many = {head for head in expected if network.head_kinds[head] == "multilabel"}
    before, after = (Decision().decide(probs, multilabel=many) for probs in (expected, exported))
    changed = {head: before[head] != after[head] for head in expected}
    ties = {head: _is_near_half(probs) if head in many else _is_tie(probs) for head, probs in expected.items()}
    clear = [head for head in expected if (changed[head] & ~ties[head]).any()]
    if diff > MAX_ABS_DIFF or clear:
        raise ExportError(
            f"{path.name} does not repeat its network on {len(rows):,} images: probabilities differ by up to "
            f"{diff:.2e} (allowed {MAX_ABS_DIFF:.0e}), decisions of head(s) "
            f"{some_of(clear) or 'none'} change; not shipped"
        )
    total = sum(int(flags.sum()) for flags in changed.values())
    return Parity(rows=len(rows), max_abs_diff=diff, decisions_changed=total), exported


def _is_near_half(probs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return (N, C) True where a multi-label head all but says a class, or all but does not."""
    return np.asarray(np.abs(probs - HALF) <= TIE / 2)


def _is_tie(probs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    best = np.sort(probs, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] <= TIE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's step-by-step report and its libraries' deprecation notices off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
