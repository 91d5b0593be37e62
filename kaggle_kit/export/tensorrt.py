"""What TensorRT 10 can import of an exported graph.

Source:
    github.com/onnx/onnx-tensorrt, docs/operators.md: what is marked Y both for TensorRT 9.2 (2023-11) and for 10.15
    (2026-02), and so for every 10.x that ONNX Runtime may have been built for. Left out are those that came between:
    Attention, BlackmanWindow, DeformConv, Gelu, HammingWindow, HannWindow, Mish, RMSNormalization, RotaryEmbedding,
    STFT and TensorScatter.
"""

from __future__ import annotations

import onnx

from kaggle_kit.export.foreign import graphs_within

OLDEST_OPSET, NEWEST_OPSET = 9, 20  # of TensorRT 10.0; 10.15 takes 9 to 24

OPERATORS = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool"),
        *("BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape"),
        *("Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout"),
        *("Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather"),
        *("GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater"),
        *("GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity"),
        *("If", "ImageScaler", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization"),
        *("LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul"),
        *("Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg", "NonMaxSuppression"),
        *("NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "ParametricSoftplus", "Pow", "QuantizeLinear", "RNN"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign"),
        *("Round", "ScaledTanh", "Scan", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink"),
        *("Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth"),
        *("Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose"),
        *("Trilu", "Unsqueeze", "Upsample", "Where", "Xor"),
    }
)
_RESIZE: dict[str, tuple[object, ...]] = {  # the same table's restrictions
    "antialias": (0,),
    "mode": (b"nearest", b"linear"),
    "keep_aspect_ratio_policy": (b"stretch",),
    "coordinate_transformation_mode": (
        *(b"half_pixel", b"pytorch_half_pixel", b"tf_half_pixel_for_nn"),
        *(b"asymmetric", b"align_corners"),
    ),
}


def unsupported_operators(model: onnx.ModelProto) -> dict[str, str]:
    """Return {operator: why TensorRT 10 does not import it}, empty for a graph that it takes.

    Unsigned bytes are tensors of a network's inputs and outputs alone, so all that may read the image is a `Cast`;
    graphs quantised to unsigned bytes, which serve CPUs, are no networks of TensorRT's either.

    Args:
        model: Any ONNX graph; the opset it is written in is reported as an operator `opset`.
    """
    found: dict[str, str] = {}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        found["opset"] = f"is {opset}, TensorRT 10 takes {OLDEST_OPSET} to {NEWEST_OPSET}"
    for graph in graphs_within(model.graph):
        unsigned = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
        unsigned |= {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.UINT8}
        for node in graph.node:
            own = node.domain in ("", "ai.onnx")
            why = _why_not(node, unsigned) if own else f"belongs to {node.domain!r}, not to ONNX"
            if why:
                found[node.op_type if own else f"{node.domain}.{node.op_type}"] = why
    return found


def _why_not(node: onnx.NodeProto, unsigned: set[str]) -> str:
    """Return why a node is not imported, or nothing."""
    if node.op_type not in OPERATORS:
        return "is not on TensorRT's list"
    read = [name for name in node.input if name in unsigned]
    if read and node.op_type != "Cast":
        return f"reads unsigned bytes ({read[0]!r}), which only a Cast may"
    if node.op_type == "Resize":
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if value not in _RESIZE.get(attribute.name, (value,)):
                shown = value.decode() if isinstance(value, bytes) else value
                return f"has {attribute.name} {shown!r}, which TensorRT lacks"
    return ""
