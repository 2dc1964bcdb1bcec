"""The composition of bands written into a finished graph: measured bands in, labels out.

`engines.bands.composite` computes the same before a graph, in the same order and in float32, so
that on ONNX Runtime every value that reaches the network is equal.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import data_inputs, fixed_batch, image_input, opset_of
from engines.bands.recipe import BandRecipe
from engines.batches import BANDS_NAME
from engines.bundle_records import MAX_SIDE
from engines.errors import ConfigError, GraphError
from engines.fused_graphs import NODE_PREFIX, RECIPE_KEY, recipe_text
from engines.resize import ResizeRule

Hw: TypeAlias = tuple[int, int]

# (N, C, H, W) float32: what the uint8 image was, whole numbers 0..255, channels first.
COMPOSITE = f"{NODE_PREFIX}composite"

OLDEST_OPSET = 13  # as `exporter.onnx_graph` writes and `exporter.qat` takes
_AXES_ARE_AN_INPUT = 18  # of ReduceMin and ReduceMax
_LARGEST = float(np.finfo(np.float32).max)
_TO_PLANES, _TO_PIXELS = [0, 3, 1, 2], [0, 2, 3, 1]


def fused_with_bands(
    model: onnx.ModelProto,
    recipe: BandRecipe,
    *,
    scene_hw: Hw | None = None,
    pad_value: tuple[int, ...] | None = None,
) -> onnx.ModelProto:
    """A copy of `model` whose input `image` (N, H, W, C) uint8 became `bands` (N, h, w, B) float32.

    `model` is a graph of this project, of any precision, batch and outputs, which stay as they are.
    Bands come in the order of `recipe.letters`; the limits of "chw_minmax" are those of each scene.
    COMPOSITE equals `composite_from_bands` wherever that does not raise. Where it does, nothing can
    be raised: a band that is constant, negative or nodata everywhere becomes 0, infinite values are
    taken as nodata, and with norm "uint8" values beyond 255 become 255. No value becomes NaN.

    scene_hw: size of the bands where it is not the network's. They are composed at their own size,
        then resized bilinearly with half-pixel centres and rounded: up to one grey level from
        `engines.resize`, which computes in integers.
    pad_value: None stretches such a scene; else it is letterboxed, padded with one value a channel.

    Composition is float32 in every graph and made of plain operators whose names begin with
    NODE_PREFIX. The recipe is in the metadata, under RECIPE_KEY. Raises GraphError for another
    graph and ConfigError for a recipe, size or padding that does not fit it.
    """
    image, (height, width, channels) = image_input(model)
    hw = (height, width) if scene_hw is None else scene_hw
    _check(model, recipe, hw, channels, pad_value)
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    nodes = _Nodes(opset_of(model))
    planes = _composed(nodes, recipe)
    if hw != (height, width):
        shape = (_batch_or_none(model), channels, height, width)
        _fitted(nodes, planes, hw, shape, pad_value)
    nodes.name_last(COMPOSITE)
    _join(fused.graph, image, nodes)
    fused.graph.initializer.extend(nodes.constants)
    _replace_input(fused.graph, image, (*hw, channels))
    fused.metadata_props.add(key=RECIPE_KEY, value=recipe_text(recipe))
    return fused


def _check(
    model: onnx.ModelProto,
    recipe: BandRecipe,
    hw: Hw,
    channels: int,
    pad_value: tuple[int, ...] | None,
) -> None:
    if opset_of(model) < OLDEST_OPSET:
        raise GraphError(
            f"a graph of opset {opset_of(model)}",
            expected=f"opset {OLDEST_OPSET} or newer",
            do="export it again",
        )
    names = {name for node in model.graph.node for name in (*node.input, *node.output, node.name)}
    taken = sorted(name for name in names if name == BANDS_NAME or name.startswith(NODE_PREFIX))
    if taken:
        raise GraphError(
            f"a graph with the name {taken[0]!r} in it",
            expected=f"none that is {BANDS_NAME!r} or begins with {NODE_PREFIX!r}",
            do="give the graph as `riceseg export` wrote it, without bands",
        )
    if len(recipe.letters) != channels:
        raise ConfigError(
            f"bands {recipe.letters} for a graph of {channels} channels",
            expected="one band for each channel of the network",
            do="give the bands that the network was trained on",
        )
    if len(hw) != 2 or not all(1 <= side <= MAX_SIDE for side in hw):
        raise ConfigError(
            f"scenes of {'x'.join(map(str, hw))} pixels",
            expected=f"height and width from 1 to {MAX_SIDE}",
            do="choose another size",
        )
    if pad_value is not None and len(pad_value) != channels:
        raise ConfigError(
            f"{len(pad_value)} padding values for {channels} channels",
            expected="one for each channel",
            do="take the bundle's input.pad_value",
        )


def _batch_or_none(model: onnx.ModelProto) -> int | None:
    free = data_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value < 1
    return None if free else fixed_batch(model)


def _composed(nodes: _Nodes, recipe: BandRecipe) -> str:
    """Planes (N, C, h, w) of whole numbers 0..255, channels as `recipe.channels`."""
    add, zero = nodes.add, nodes.number("zero", 0)
    planes = add("Transpose", [BANDS_NAME], "planes", perm=_TO_PLANES)
    # False for NaN too. A compiler might take x == x for true; this it has to compute.
    size = add("Abs", [planes], "size")
    largest = nodes.number("largest", _LARGEST)
    finite = add("LessOrEqual", [size, largest], "finite")
    empty = add("Equal", [planes, nodes.number("nodata", recipe.nodata)], "empty")
    measured = add("And", [finite, add("Not", [empty], "not_empty")], "measured")
    positive = add("GreaterOrEqual", [planes, zero], "positive")
    kept = add("And", [measured, positive], "kept")
    if recipe.norm == "chw_minmax":
        others = add("Where", [measured, planes, largest], "no_smaller")
        low = nodes.reduce("ReduceMin", others, "low")
        values = _stretched(nodes, add("Where", [kept, planes, low], "filled"), low)
    else:
        values = add("Where", [kept, planes, zero], "filled")
    values = add("Round", [values], "rounded")  # halves to the even, as ONNX says
    ends = [nodes.scalar("lowest", 0), nodes.scalar("highest", 255)]
    values = add("Clip", [values, *ends], "clipped")
    if recipe.channels == recipe.letters:
        return values
    order = np.array([recipe.letters.index(letter) for letter in recipe.channels], np.int64)
    return add("Gather", [values, nodes.constant("order", order)], "ordered", axis=1)


def _stretched(nodes: _Nodes, values: str, low: str) -> str:
    """(values - low) / (high - low) * 255; 0 for a band without a range, in place of 0 / 0."""
    add = nodes.add
    high = nodes.reduce("ReduceMax", values, "high")
    span = add("Sub", [high, low], "span")
    wide = add("Greater", [span, nodes.number("zero", 0)], "wide")
    # Of limits at both ends of float32 the difference is infinite.
    held = add("LessOrEqual", [span, nodes.number("largest", _LARGEST)], "held")
    usable = add("And", [wide, held], "usable")
    divisor = add("Where", [usable, span, nodes.number("one", 1)], "divisor")
    values = add("Div", [add("Sub", [values, low], "above_low"), divisor], "share")
    return add("Mul", [values, nodes.number("white", 255)], "grey")


def _fitted(
    nodes: _Nodes,
    planes: str,
    scene_hw: Hw,
    shape: tuple[int | None, int, int, int],
    pad_value: tuple[int, ...] | None,
) -> None:
    """`planes` at the network's size; `shape` is (N, C, H, W), N None where it is free."""
    add, (batch, channels, *sides) = nodes.add, shape
    height, width = sides
    rule = ResizeRule("stretch" if pad_value is None else "letterbox")
    inner = rule.fitted_hw(scene_hw, (height, width))
    if inner != scene_hw:
        attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        sizes = nodes.sizes(planes, (batch, channels, *inner))
        planes = add("Resize", [planes, "", "", sizes], "resized", **attributes)
        planes = add("Round", [planes], "resized_rounded")
    if inner == (height, width):
        return
    assert pad_value is not None  # stretching leaves nothing to pad
    # Pad has one value for all channels: the difference to the channel's own is padded with 0.
    edge = nodes.constant("edge", np.array(pad_value, np.float32).reshape(1, -1, 1, 1))
    ends = np.array([0, 0, 0, 0, 0, 0, height - inner[0], width - inner[1]], np.int64)
    planes = add("Sub", [planes, edge], "above_edge")
    padding = [planes, nodes.constant("ends", ends), nodes.scalar("lowest", 0)]
    add("Add", [add("Pad", padding, "padded"), edge], "letterboxed")


def _join(graph: onnx.GraphProto, image: str, nodes: _Nodes) -> None:
    """Let what read the image read COMPOSITE; the Casts and Transposes of the image go.

    TensorRT lets nothing but a Cast read a UINT8 input, so graphs begin with one (see
    `exporter.onnx_graph`), and the network behind it wants planes. GraphError for another begin.
    """
    pixels: dict[str, str] = {}  # the Cast's output -> COMPOSITE as that type
    planes: dict[str, str] = {}  # the Transpose's output -> the same
    kept = []
    for node in graph.node:
        if image in node.input and node.op_type != "Cast":
            raise GraphError(
                f"a graph whose input {image!r} is read by {node.op_type} {node.name!r}",
                expected="a Cast, as in every graph that this project exports",
                do="export the checkpoint with `riceseg export`",
            )
        if image in node.input:
            pixels[node.output[0]] = nodes.composite_as(_attribute(node, "to"))
        elif _is_transpose(node) and node.input[0] in pixels:
            planes[node.output[0]] = pixels[node.input[0]]
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    outputs = {value.name for value in graph.output}
    read = {name for node in kept for name in node.input} | outputs
    renamed = dict(planes)
    for old in read.intersection(pixels):
        renamed[old] = nodes.pixels_of(pixels[old])
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    for old in outputs.intersection(renamed):
        kept.append(helper.make_node("Identity", [renamed[old]], [old], f"{NODE_PREFIX}{old}"))
    del graph.node[:]
    graph.node.extend([*nodes.nodes, *kept])
    gone = {*pixels, *planes}
    infos = [value for value in graph.value_info if value.name not in gone]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in infos]
    del graph.value_info[:]
    graph.value_info.extend(copies)


def _replace_input(graph: onnx.GraphProto, image: str, hwc: tuple[int, int, int]) -> None:
    (value,) = (value for value in graph.input if value.name == image)
    value.name = BANDS_NAME
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    for dim, side in zip(value.type.tensor_type.shape.dim[1:], hwc, strict=True):
        dim.dim_value = side


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return None


def _is_transpose(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and _attribute(node, "perm") == _TO_PLANES


class _Nodes:
    """Makes nodes, each named as its one output, and the constants that they read."""

    def __init__(self, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._opset = opset
        self._constants: dict[str, onnx.TensorProto] = {}
        self._made: set[str] = set()

    def name_last(self, output: str) -> None:
        """Give the output of the last node, which no other one reads, this name."""
        self.nodes[-1].output[0] = output

    @property
    def constants(self) -> list[onnx.TensorProto]:
        return list(self._constants.values())

    def add(self, op_type: str, inputs: list[str], label: str, **attributes: Any) -> str:
        """Make a node and return its output; the same label again is that output."""
        name = f"{NODE_PREFIX}{label}"
        if name not in self._made:
            self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
            self._made.add(name)
        return name

    def constant(self, label: str, values: np.ndarray[Any, Any]) -> str:
        name = f"{NODE_PREFIX}{label}"
        self._constants[name] = numpy_helper.from_array(values, name)
        return name

    def number(self, label: str, value: float) -> str:
        """Of rank 4, so that TensorRT's parser adds no layers of its own, unnamed, to broadcast."""
        return self.constant(label, np.full((1, 1, 1, 1), value, np.float32))

    def scalar(self, label: str, value: float) -> str:
        return self.constant(label, np.array(value, np.float32))

    def reduce(self, op_type: str, planes: str, label: str) -> str:
        """(N, B, 1, 1) of (N, B, h, w)."""
        if self._opset < _AXES_ARE_AN_INPUT:
            return self.add(op_type, [planes], label, axes=[2, 3], keepdims=1)
        axes = self.constant("axes", np.array([2, 3], np.int64))
        return self.add(op_type, [planes, axes], label, keepdims=1)

    def sizes(self, planes: str, shape: tuple[int | None, ...]) -> str:
        """`shape` as a tensor, a free batch taken from `planes`."""
        if shape[0] is not None:
            return self.constant("sizes", np.array(shape, np.int64))
        parts = [self.constant(f"from_{i}", np.array([i], np.int64)) for i in (0, 1)]
        whole = self.add("Shape", [planes], "shape")
        batch = self.add("Slice", [whole, *parts], "batch")
        rest = self.constant("other_sizes", np.array(shape[1:], np.int64))
        return self.add("Concat", [batch, rest], "sizes", axis=0)

    def composite_as(self, kind: int) -> str:
        if kind == TensorProto.FLOAT:
            return COMPOSITE
        name = TensorProto.DataType.Name(kind).lower()
        return self.add("Cast", [COMPOSITE], f"composite_{name}", to=kind)

    def pixels_of(self, planes: str) -> str:
        """Channels last, for a graph whose network does not begin with planes."""
        label = planes.removeprefix(NODE_PREFIX)
        return self.add("Transpose", [planes], f"{label}_pixels", perm=_TO_PIXELS)
