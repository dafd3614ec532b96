"""The projection to the vocabulary, exact at the speed of 8-bit integers, in standard ONNX operators.

It is :mod:`oskit.encoder.head.integers`, whose bound it uses, as a graph. Of a batch all texts share the
columns that are computed in fp32, but each has its own scale, so its integers do not depend on the texts
beside it. ONNX Runtime 1.16.3 multiplies activations of 8 bits without sign by weights with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from oskit.archive.backends import ATTENTION_MASK, OUTPUT
from oskit.encoder.head.integers import LARGEST_ACTIVATION, IntegerWeights

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


Feeds = dict[str, NDArray[np.int64]]
"""Token ids and attention mask by the names of the model's inputs."""

TILE = 1008
"""Columns multiplied at once, so that their 32-bit logits stay in the cache. An odd number of cache lines, as
the maximum reads column by column: with a power of two all rows share a set of it (twice the time)."""

LARGEST_SHARE = 0.25
"""Of the columns, that may need fp32 on average. The int8 pass costs .4 of fp32's, so above .6 is a loss."""

_ZERO = 128
"""What an activation of 0 is as uint8."""

CANDIDATES = "head/candidates"
"""The tensor with the columns that need fp32, int64 ``[columns]``."""

_FLOAT, _UINT8 = 1, 2  # onnx.TensorProto's


@dataclass(frozen=True)
class _Head:
    """The nodes of a plain head: what goes in, what comes out, and all between."""

    hidden: str
    padding: str
    weight: str
    bias: str | None
    output: str
    nodes: tuple[NodeProto, ...]


def make_head_exact(model: ModelProto, samples: Sequence[Feeds]) -> bool:
    """Replace the head of an exported encoder in place, where there is one that can be and it pays.

    It has to be a product with a constant matrix, perhaps a bias, the mask of padding, the maximum over
    tokens and ReLU, with nothing between them.

    Args:
        model: As :class:`exporters.graph.BakedEncoder` exports it, nothing folded.
        samples: Feeds of the model, by which it is decided how many columns would need fp32.

    Returns:
        Whether the head was replaced; if not, the model is to be thrown away.
    """
    head = _find(model.graph)
    if head is None:
        return False
    _replace(model.graph, head)
    return share_of_candidates(model, samples) <= LARGEST_SHARE


def share_of_candidates(model: ModelProto, samples: Sequence[Feeds]) -> float:
    """The mean share of the vocabulary's columns that a model with an exact head computes in fp32."""
    import onnxruntime
    from onnx import TensorProto, helper

    model.graph.output.append(helper.make_tensor_value_info(CANDIDATES, TensorProto.INT64, None))
    content = model.SerializeToString()
    model.graph.output.pop()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    del content
    found = [session.run([CANDIDATES, OUTPUT], feeds) for feeds in samples]
    return float(np.mean([len(columns) / weights.shape[1] for columns, weights in found]))


def _find(graph: GraphProto) -> _Head | None:
    """The head by its shape: ``Relu(ReduceMax(Where(padding, 0, MatMul(h, W.T) [+ b])))``."""
    makes = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    uses: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)

    def before(name: str, kind: str) -> NodeProto | None:
        """The node that makes ``name``, if it is of this kind and makes it for one other node alone."""
        node = makes.get(name)
        return node if node is not None and node.op_type == kind and len(uses[name]) == 1 else None

    for relu in graph.node:
        if relu.op_type != "Relu" or (maximum := before(relu.input[0], "ReduceMax")) is None:
            continue
        if (masked := before(maximum.input[0], "Where")) is None or _axes(maximum) != [1]:
            continue
        nodes, logits, bias = [relu, maximum, masked], masked.input[2], None
        if (zero := before(masked.input[1], "Constant")) is not None:
            nodes.append(zero)
        if (add := before(logits, "Add")) is not None:
            bias = next((name for name in add.input if name in constants), None)
            if bias is None:
                continue
            nodes.append(add)
            logits = next(name for name in add.input if name != bias)
        if (product := before(logits, "MatMul")) is None:
            continue
        if (turned := before(product.input[1], "Transpose")) is None:
            continue
        weight = constants.get(turned.input[0])
        if weight is None or weight.data_type != _FLOAT or len(weight.dims) != 2:
            continue
        if bias is not None and list(constants[bias].dims) != [weight.dims[0]]:
            continue
        nodes += [product, turned]
        return _Head(product.input[0], masked.input[0], weight.name, bias, relu.output[0], tuple(nodes))
    return None


def _axes(node: NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), [])


def _replace(graph: GraphProto, head: _Head) -> None:
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in graph.initializer}
    weight = numpy_helper.to_array(initializers[head.weight])
    if head.bias is None:
        bias = "head/bias"
        graph.initializer.append(numpy_helper.from_array(np.zeros(len(weight), np.float32), bias))
    else:
        bias = head.bias
    constants, tiles = _constants(weight)
    kept = [node for node in graph.node if node not in head.nodes]
    needed = {head.hidden, head.padding}
    at = 1 + max(i for i, node in enumerate(kept) if needed & set(node.output))
    made = list(_nodes(head, bias, tiles))
    del graph.node[:]
    graph.node.extend([*kept[:at], *made, *kept[at:]])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def _constants(weight: NDArray[np.float32]) -> tuple[dict[str, Any], int]:
    """The weights in 7 bits, in tiles, and what the bound needs for each column, rounded upwards."""
    integers, scale, norm, error = (part.numpy() for part in IntegerWeights.of(torch.tensor(weight)))
    tiles = np.split(integers, range(TILE, len(weight), TILE))
    constants: dict[str, Any] = {
        "head/scale": scale,
        "head/norm": norm,
        "head/error": error,
        "head/largest": np.float32(LARGEST_ACTIVATION),
        "head/smallest": np.float32(-LARGEST_ACTIVATION),
        "head/zero": np.float32(_ZERO),
        "head/zero_point": np.uint8(_ZERO),
        "head/tiny": np.float32(1e-30),
        "head/none": np.float32(0),
        "head/width": np.array([len(weight)], np.int64),
        "head/first_axis": np.array([0], np.int64),
        "head/second_axis": np.array([1], np.int64),
        "head/third_axis": np.array([2], np.int64),
        "head/flat": np.array([-1], np.int64),
    }
    constants |= {f"head/tile{i}": np.ascontiguousarray(tile.T) for i, tile in enumerate(tiles)}
    return constants, len(tiles)


def _nodes(head: _Head, bias: str, tiles: int) -> Iterator[NodeProto]:
    from onnx import helper

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        """Names are of the head's own unless they have a slash before them."""
        own = [name[1:] if name.startswith("=") else f"head/{name}" for name in inputs.split()]
        target = output[1:] if output.startswith("=") else f"head/{output}"
        return helper.make_node(kind, own, [target], name=f"head/{output.lstrip('=')}", **attributes)

    yield from _without_padding(node, head)
    yield from _quantise(node)
    for i in range(tiles):
        yield node("MatMulInteger", f"integers tile{i} zero_point", f"product{i}")
        yield node("ReduceMax", f"product{i}", f"maximum{i}", axes=[1], keepdims=0)
    yield node("Concat", " ".join(f"maximum{i}" for i in range(tiles)), "maxima", axis=1)
    yield from _bound(node, bias)
    yield from _candidates_in_fp32(node, head, bias)


def _without_padding(node: Any, head: _Head) -> Iterable[NodeProto]:
    """A padding position becomes a copy of the text's first token, which changes no maximum; else 0."""
    yield node("Where", f"={head.padding} none ={head.hidden}", "tokens")
    yield node("Cast", f"={ATTENTION_MASK}", "mask", to=_FLOAT)  # 1.16.3 has no ArgMax of int64
    yield node("ArgMax", "mask", "first", axis=1, keepdims=1)
    yield node("GatherND", "tokens first", "first_row", batch_dims=1)
    yield node("Unsqueeze", "first_row second_axis", "first_hidden")
    yield node("Where", f"={head.padding} first_hidden tokens", "hidden")


def _quantise(node: Any) -> Iterable[NodeProto]:
    """The tokens in 8 bits by one scale a text, and how far from themselves that is."""
    yield node("Abs", "hidden", "magnitude")
    yield node("ReduceMax", "magnitude", "peak", axes=[1, 2], keepdims=1)
    yield node("Max", "peak tiny", "positive_peak")
    yield node("Div", "positive_peak largest", "step")
    yield node("Div", "hidden step", "steps")
    yield node("Round", "steps", "rounded")
    yield node("Clip", "rounded smallest largest", "whole")
    yield node("Add", "whole zero", "shifted")
    yield node("Cast", "shifted", "integers", to=_UINT8)
    yield node("Mul", "whole step", "restored")
    yield node("Sub", "hidden restored", "difference")
    yield node("ReduceL2", "difference", "differences", axes=[2], keepdims=0)
    yield node("ReduceMax", "differences", "largest_difference", axes=[1], keepdims=1)
    yield node("ReduceL2", "restored", "norms", axes=[2], keepdims=0)
    yield node("ReduceMax", "norms", "largest_norm", axes=[1], keepdims=1)


def _bound(node: Any, bias: str) -> Iterable[NodeProto]:
    """The columns whose upper bound is positive for a text of the batch."""
    yield node("Cast", "maxima", "sums", to=_FLOAT)
    yield node("Squeeze", "step third_axis", "text_step")
    yield node("Mul", "text_step scale", "unit")
    yield node("Mul", "sums unit", "estimate")
    yield node("Add", f"estimate ={bias}", "biased")
    yield node("Mul", "largest_difference norm", "of_tokens")
    yield node("Mul", "largest_norm error", "of_weights")
    yield node("Add", "of_tokens of_weights", "bound")
    yield node("Add", "biased bound", "upper")
    yield node("ReduceMax", "upper", "uppermost", axes=[0], keepdims=0)
    # 0, but not a number where a token has values that are none: then all columns are computed in fp32.
    yield node("Add", "differences norms", "all_norms")
    yield node("ReduceSum", "all_norms", "total", keepdims=0)
    yield node("Mul", "total none", "threshold")
    yield node("LessOrEqual", "uppermost threshold", "impossible")
    yield node("Not", "impossible", "possible")
    yield node("NonZero", "possible", "positions")
    yield node("Reshape", "positions flat", "candidates")


def _candidates_in_fp32(node: Any, head: _Head, bias: str) -> Iterable[NodeProto]:
    """The candidates' columns as the plain head computes them; the others are 0."""
    yield node("Gather", f"={head.weight} candidates", "rows", axis=0)
    yield node("Transpose", "rows", "columns", perm=[1, 0])
    yield node("MatMul", "hidden columns", "logits")
    yield node("ReduceMax", "logits", "maximum", axes=[1], keepdims=0)
    yield node("Gather", f"={bias} candidates", "biases", axis=0)
    yield node("Add", "maximum biases", "with_bias")
    yield node("Relu", "with_bias", "positive")
    yield node("Transpose", "positive", "by_column", perm=[1, 0])
    yield node("Shape", f"={ATTENTION_MASK}", "shape")
    yield node("Slice", "shape first_axis second_axis", "texts")
    yield node("Concat", "width texts", "output_shape", axis=0)
    yield node("ConstantOfShape", "output_shape", "zeros")
    yield node("Unsqueeze", "candidates second_axis", "targets")
    yield node("ScatterND", "zeros targets by_column", "scattered")
    yield node("Transpose", "scattered", f"={head.output}", perm=[1, 0])
