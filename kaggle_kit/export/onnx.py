"""A network to one self-contained .onnx file, measured against torch on real images."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from kaggle_kit.decision import HALF, Decision
from kaggle_kit.errors import ExportError, RefusedError, brief, some_of
from kaggle_kit.export.graph import Columns, ExportGraph
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runtime.backends import INPUT, OnnxSession
from kaggle_kit.runtime.bundle import Parity
from kaggle_kit.sources import PackedSource
from kaggle_kit.train.predict import EVAL_BATCH, read_ahead

if TYPE_CHECKING:
    import onnx

    from kaggle_kit.export.wrapping import ReadModule

__all__ = ["Columns", "compare", "export_onnx", "measure_parity", "rerun", "run_onnx", "write_model"]

OPSET = 18
IR_VERSION = 10  # onnx 1.20+ writes 13, which older runtimes refuse
MAX_ABS_DIFF = 1e-4
TIE = 2e-4  # two best probabilities closer than this may change places
ROWS_AT_ONCE = 64
MAX_INSIDE = 2**31 - 2**24  # bytes of one protobuf file, with room for what is not weights
SIDE_SUFFIX = ".data"


def export_onnx(graph: ExportGraph | ReadModule, path: Path, *, shape: tuple[int, int, int]) -> None:
    """Write a network as one .onnx file: dynamic batch, opset 18, IR 10.

    Args:
        graph: On the CPU; left in evaluation mode.
        path: The file to write; it appears whole or not at all.
        shape: (H, W, C) of stored images.

    Raises:
        ExportError: When an operator cannot be exported, onnx or onnxscript is missing, or the file cannot be written.
    """
    try:
        import onnxscript  # noqa: F401  torch needs it, and says so only after long work

        from kaggle_kit.export.rewrites import cast_first, drop_notes, fold_batchnorm
    except ImportError as error:
        raise ExportError(
            f"export needs {error.name}, which is not installed; pip install 'kaggle_kit[train]'"
        ) from None
    model = _trace(graph, shape)
    fold_batchnorm(model)
    cast_first(model)
    drop_notes(model)
    write_model(model, path)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Check a model and write it: one file, or beside 2 GB of weights two, `<name>` and `<name>.data`.

    Args:
        model: Its IR version is lowered to 10; large weights leave it for the second file.
        path: The file to write; it appears whole or not at all.

    Raises:
        ExportError: When the model is none, or the disk is full.
    """
    import onnx

    model.ir_version = min(model.ir_version, IR_VERSION)
    side = path.name + SIDE_SUFFIX
    beside = _num_bytes(model) > MAX_INSIDE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            onnx.save_model(model, temporary, save_as_external_data=beside, location=side)
            onnx.checker.check_model(temporary, full_check=True)
            if beside:
                (Path(folder) / side).replace(path.with_name(side))
            temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ExportError(f"{path} cannot be written ({reason}); free some space, or give another folder") from None
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} would be no valid ONNX model: {brief(error)}; not written") from None


def rerun(graph: ExportGraph, source: PackedSource, rows: npt.NDArray[np.int64]) -> Probs:
    """Return {head: (rows, C) float32} as torch computes it in full precision, on the GPU where there is one.

    Args:
        graph: What was exported; left where it lay, in evaluation mode.
        source: The images.
        rows: Which ones; at least one.
    """
    home = next(graph.parameters()).device
    size = max(1, EVAL_BATCH // len(graph.views))
    with _without_tf32():
        graph.eval().to("cuda" if torch.cuda.is_available() else home)
        try:
            while True:
                try:
                    return _run_torch(graph, read_ahead(source, rows, size=size))
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                size //= 2
                torch.cuda.empty_cache()
        finally:
            graph.to(home)


def run_onnx(model: Path | bytes, source: PackedSource, rows: npt.NDArray[np.int64]) -> Probs:
    """Return {head: (rows, C) float32} as ONNX Runtime computes it on the CPU.

    Args:
        model: The .onnx file, or what would stand in it.
        source: The images.
        rows: Which ones; at least one.

    Raises:
        BundleError: When the file does not load.
    """
    run = _Unwritten(model).run if isinstance(model, bytes) else OnnxSession(model, device="cpu").run
    return _joined(run(images) for images in read_ahead(source, rows, size=ROWS_AT_ONCE))


def compare(expected: Probs, found: Probs, *, multilabel: Collection[str], name: str) -> Parity:
    """Measure how well probabilities repeat others of the same images.

    Args:
        expected: {head: (N, C)}.
        found: The same, computed otherwise.
        multilabel: The heads whose classes have a probability each.
        name: What is compared, for the error.

    Raises:
        ExportError: When heads or classes differ, a probability differs by more than 1e-4, or a decision changes that
            was no near tie.
    """
    shapes = [{head: probs.shape for head, probs in one.items()} for one in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"{name} gives {shapes[1]}, its network {shapes[0]}; not shipped: export it again")
    diff = float(np.max([np.abs(found[head] - expected[head]).max() for head in expected]))  # NaN stays NaN
    many = {head for head in expected if head in multilabel}
    before, after = (Decision().decide(probs, multilabel=many) for probs in (expected, found))
    changed = {head: before[head] != after[head] for head in expected}
    ties = {head: is_near_half(probs) if head in many else is_tie(probs) for head, probs in expected.items()}
    clear = [head for head in expected if (changed[head] & ~ties[head]).any()]
    rows = len(next(iter(expected.values())))
    if not diff <= MAX_ABS_DIFF or clear:
        raise RefusedError(
            f"{name} does not repeat its network on {rows:,} images: probabilities differ by up to {diff:.2e} (allowed "
            f"{MAX_ABS_DIFF:.0e}), decisions of head(s) {some_of(clear) or 'none'} change; not shipped"
        )
    return Parity(rows=rows, max_abs_diff=diff, decisions_changed=sum(int(flags.sum()) for flags in changed.values()))


def measure_parity(
    graph: ExportGraph, path: Path, source: PackedSource, rows: npt.NDArray[np.int64]
) -> tuple[Parity, Probs]:
    """Compare an exported member with its torch network, both in full precision, on real images.

    Args:
        graph: What was exported.
        path: The .onnx file.
        source: The images.
        rows: Which ones; at least one.

    Returns:
        The parity, and the exported member's probabilities of these rows.

    Raises:
        ExportError: When a probability differs by more than 1e-4, or a decision changes that was no near tie.
    """
    found = run_onnx(path, source, rows)
    many = [name for name in graph.names if graph.network.head_kinds[name] == "multilabel"]
    return compare(rerun(graph, source, rows), found, multilabel=many, name=path.name), found


class _Unwritten:
    """A session of a model that is in no file."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, images: Image) -> Probs:
        """Return {output: (B, C) float32} of (B, H, W, C) uint8 stored images."""
        names = [output.name for output in self._session.get_outputs()]
        values = self._session.run(names, {self._session.get_inputs()[0].name: images})
        return dict(zip(names, values, strict=True))


def _trace(graph: ExportGraph | ReadModule, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Return what torch's exporter makes of a network."""
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    graph.eval()
    try:
        with _quiet(), _contiguous_pooling(graph):
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(graph.names),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                external_data=False,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        from kaggle_kit.export.obstacles import explain

        if _is_interrupt(error):
            raise KeyboardInterrupt from None
        own = _own_error(error)
        if own:
            raise ExportError(f"{_name_of(graph)} cannot be exported: {own}") from None
        raise ExportError(f"{_name_of(graph)} cannot be exported: {explain(error, graph)}") from None
    assert program is not None
    model = program.model_proto
    fixed = [
        value.name for value in (*model.graph.input, *model.graph.output) if not _is_dynamic(value.type.tensor_type)
    ]
    if fixed:
        raise ExportError(
            f"{_name_of(graph)} cannot be exported: {some_of(fixed)} comes in batches of {len(example)} alone, the "
            "number of images it was traced with; write it so that any number goes"
        )
    return model


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: torch's tracer turns it into errors of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _own_error(error: BaseException | None) -> ExportError | None:
    """Return the error of ours that is behind one of torch's exporter, if it is."""
    while error is not None and not isinstance(error, ExportError):
        error = error.__cause__ or error.__context__
    return error


def _name_of(graph: ExportGraph | ReadModule) -> str:
    return repr(graph.network.name) if isinstance(graph, ExportGraph) else type(graph.module).__name__


def _is_dynamic(tensor: Any) -> bool:
    return bool(tensor.shape.dim) and tensor.shape.dim[0].HasField("dim_param")


@contextlib.contextmanager
def _contiguous_pooling(graph: torch.nn.Module) -> Iterator[None]:
    """Let no global pooling see channels last, where torch would make a Gather of places in memory out of it."""
    pools = [module for module in graph.modules() if isinstance(module, torch.nn.AdaptiveAvgPool2d)]
    handles = [pool.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)) for pool in pools]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Let GPUs multiply with all 24 bits of fp32 for the block."""
    switches = [_tf32_switch(torch.backends.cuda.matmul, torch.backends.cuda.matmul)]
    switches.append(_tf32_switch(getattr(torch.backends.cudnn, "conv", None), torch.backends.cudnn))
    before = [getattr(place, name) for place, name, _ in switches]
    for place, name, off in switches:
        setattr(place, name, off)
    try:
        yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)


def _tf32_switch(new: Any, legacy: Any) -> tuple[Any, str, str | bool]:
    """Return where TF32 is switched, by which attribute, and what switches it off.

    Since 2.9 torch refuses to say by the legacy switch what was set by the new one; the new one knows both.
    """
    if hasattr(new, "fp32_precision"):
        return new, "fp32_precision", "ieee"
    return legacy, "allow_tf32", False


@torch.inference_mode()
def _run_torch(graph: ExportGraph, batches: Iterator[Image]) -> Probs:
    device = next(graph.parameters()).device
    said = (graph(torch.from_numpy(images).to(device)) for images in batches)
    return _joined({name: one.cpu().numpy() for name, one in zip(graph.names, probs, strict=True)} for probs in said)


def _joined(parts: Iterator[Probs]) -> Probs:
    """Return the rows of all parts, in order."""
    held = list(parts)
    return {name: np.concatenate([part[name] for part in held]) for name in held[0]}


def _num_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def is_near_half(probs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return (N, C) True where a multi-label head all but says a class, or all but does not."""
    return np.asarray(np.abs(probs - HALF) <= TIE / 2)


def is_tie(probs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    best = np.sort(probs, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] <= TIE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's reports, of which an error gives the gist, and its libraries' notices off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    unread = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
