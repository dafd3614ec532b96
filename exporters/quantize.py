"""8-bit integers for an encoder's linear layers: smoothed, calibrated, and with a constant scale.

Activations have outliers in a few channels, which a scale for a whole tensor has to reach. So each channel is
divided by a factor that the weights of its row are multiplied by (SmoothQuant, Xiao et al. 2023,
https://arxiv.org/abs/2211.10438): the product stays, the outliers move to where each column has its scale.
The strength is chosen for each layer by the error of its output on the calibration texts, as is how much
of the range is cut off. Scales are constants, so that a text's weights do not depend on its batch.

The graph stays one of standard operators (QuantizeLinear, DequantizeLinear), which ONNX Runtime from 1.16 and
OpenVINO turn into integer products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

WEIGHT_MAX = 63
"""7 bits: two products of an unsigned and a signed byte fit in 16, so CPUs without VNNI do not saturate."""

_ACTIVATION_MAX = 255
_STRENGTHS = (0.0, 0.3, 0.5, 0.65, 0.8)
_CLIPS = (1.0, 0.9, 0.75, 0.6)
_ROWS, _COLUMNS = 512, 2048
"""Token vectors of each layer, and columns of its weights, by which it is chosen."""


@dataclass
class Site:
    """Matrix products with constant weights that share their input.

    Attributes:
        input: Name of the tensor ``[batch, length, channels]``.
        nodes: Names of the products.
        weights: Their matrices side by side, ``[channels, outputs]``.
        low: Least value of each channel on the calibration texts.
        high: Largest value of each channel.
        rows: A sample of token vectors ``[rows, channels]``.
    """

    input: str
    nodes: list[str]
    weights: NDArray[np.float32]
    low: NDArray[np.float32] = field(init=False)
    high: NDArray[np.float32] = field(init=False)
    rows: NDArray[np.float32] = field(init=False)


@dataclass(frozen=True)
class Scheme:
    """How a site is quantised.

    Attributes:
        smoothing: ``[channels]``, what the input is divided by; None: nothing.
        scale: Of the input's quanta.
        zero: The quantum that is 0.
        error: Mean squared error of the outputs, relative to their mean square.
    """

    smoothing: NDArray[np.float32] | None
    scale: float
    zero: int
    error: float


def find_sites(model: ModelProto) -> list[Site]:
    """The products that may be quantised, in the order of the graph; its weights must be initializers."""
    from onnx import numpy_helper

    constants = _constants(model.graph)
    sites: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        if len(constants[node.input[1]].dims) == 2:
            sites.setdefault(node.input[0], []).append(node)
    return [
        Site(
            name,
            [node.name for node in nodes],
            np.concatenate([numpy_helper.to_array(constants[node.input[1]]) for node in nodes], axis=1),
        )
        for name, nodes in sites.items()
    ]


def calibrate(model: ModelProto, sites: Sequence[Site], feeds: Sequence[Mapping[str, Any]]) -> None:
    """Run the model and keep what its sites' inputs are like.

    Args:
        model: In fp32.
        sites: Their ``low``, ``high`` and ``rows`` are set.
        feeds: The model's inputs, one text each, so that there is no padding.
    """
    import onnxruntime

    watched = without_unused(model, [site.input for site in sites])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    chosen = np.random.default_rng(0)
    names = [site.input for site in sites]
    kept: list[list[NDArray[np.float32]]] = [[] for _ in sites]
    each = -(-_ROWS // len(feeds))
    for feed in feeds:
        for site, rows, values in zip(sites, kept, session.run(names, dict(feed)), strict=True):
            values = values.reshape(-1, values.shape[-1])
            low, high = values.min(axis=0), values.max(axis=0)
            first = not rows
            site.low = low if first else np.minimum(site.low, low)
            site.high = high if first else np.maximum(site.high, high)
            picked = chosen.choice(len(values), min(each, len(values)), replace=False)
            rows.append(values[picked])
    for site, rows in zip(sites, kept, strict=True):
        site.rows = np.concatenate(rows)


def choose(site: Site) -> Scheme:
    """The scheme with the least error of the site's outputs."""
    columns = slice(None, None, -(-site.weights.shape[1] // _COLUMNS))
    expected = site.rows @ site.weights[:, columns]
    power = float(np.square(expected, dtype=np.float64).mean()) or 1.0
    largest = np.maximum(np.maximum(-site.low, site.high), 1e-6)
    weight_max = np.maximum(np.abs(site.weights).max(axis=1), 1e-6)
    best: Scheme | None = None
    for strength in _STRENGTHS:
        factor = np.ones_like(largest)
        if strength:
            factor = (largest**strength / weight_max ** (1 - strength)).astype(np.float32)
            factor /= np.exp(np.log(factor).mean())
        quantised, scales = quantise_weights(site.weights[:, columns] * factor[:, None])
        weights = quantised * scales
        low, high = float((site.low / factor).min()), float((site.high / factor).max())
        scaled = site.rows / factor
        for clip in _CLIPS:
            scale, zero = _range(low * clip, high * clip)
            quanta = np.clip(np.rint(scaled / np.float32(scale)) + zero, 0, _ACTIVATION_MAX) - zero
            actual = (quanta * np.float32(scale)) @ weights
            error = float(np.square(actual - expected, dtype=np.float64).mean()) / power
            if best is None or error < best.error:
                best = Scheme(factor if strength else None, scale, zero, error)
    assert best is not None
    return best


def _range(low: float, high: float) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / _ACTIVATION_MAX
    return scale, round(-low / scale)


def quantise_weights(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quanta and the scale of each column."""
    scales = np.maximum(np.abs(weights).max(axis=0), 1e-9) / WEIGHT_MAX
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def quantise(model: ModelProto, sites: Sequence[tuple[Site, Scheme]]) -> ModelProto:
    """A copy of the fp32 model with these sites in 8-bit integers."""
    import onnx
    from onnx import helper, numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = _constants(graph)
    schemes = {site.input: scheme for site, scheme in sites}
    site_of = {node: site.input for site, _ in sites for node in site.nodes}
    nodes: list[NodeProto] = []
    inputs: dict[str, str] = {}
    added: list[Any] = []

    def constant(name: str, value: Any) -> str:
        added.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    for node in graph.node:
        name = site_of.get(node.name)
        if node.op_type != "MatMul" or name is None:
            nodes.append(node)
            continue
        scheme = schemes[name]
        if name not in inputs:
            start = name
            if scheme.smoothing is not None:
                factor = constant(f"{name}.unsmooth", np.float32(1) / scheme.smoothing)
                start = f"{name}.smooth"
                nodes.append(helper.make_node("Mul", [name, factor], [start], name=start))
            scale = constant(f"{name}.scale", np.float32(scheme.scale))
            zero = constant(f"{name}.zero", np.uint8(scheme.zero))
            quanta, inputs[name] = f"{name}.quanta", f"{name}.back"
            nodes.append(helper.make_node("QuantizeLinear", [start, scale, zero], [quanta], name=quanta))
            nodes.append(
                helper.make_node("DequantizeLinear", [quanta, scale, zero], [inputs[name]], name=inputs[name])
            )
        own = node.input[1]
        weights = numpy_helper.to_array(constants[own])
        if scheme.smoothing is not None:
            weights = weights * scheme.smoothing[:, None]
        quantised, scales = quantise_weights(weights)
        key = f"{node.name}.weight"
        packed = [
            constant(f"{key}.quanta", quantised),
            constant(f"{key}.scales", scales),
            constant(f"{key}.zeros", np.zeros(len(scales), np.int8)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", packed, [key], name=key, axis=1))
        nodes.append(helper.make_node("MatMul", [inputs[name], key], list(node.output), name=node.name))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*left, *added])
    return result


def _constants(graph: GraphProto) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in graph.initializer}


def without_unused(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """The part of the model that computes ``outputs``, which become its outputs."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:], graph.output[:]
    graph.node.extend(reversed(kept))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    left = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(left)
    return result
