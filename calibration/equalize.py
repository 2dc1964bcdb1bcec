"""Scales of channels moved out of activations into weights, so that INT8 reads them more evenly.

Channels of very different sizes share the one scale of their tensor, and the small ones lose.
Channel c can be written divided by s_c if every layer that reads it has its weights for that
channel multiplied by s_c: the same function. A LayerNormalization does it with its affine part
(Xiao et al. 2023, SmoothQuant, arXiv 2211.10438), a Conv before a depthwise Conv with its own
weights (Nagel et al. 2019, arXiv 1906.04721, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.channels import Source, sources_of
from calibration.graph_edit import FreeNames, drop_unread_initializers
from calibration.image_session import ImageSession
from calibration.onnx_file import logits_tensor, model_from_onnx_file, write_checked_onnx
from calibration.placement import DEFAULT_POLICY, QuantizePolicy, placement_from_graph
from calibration.watch import Image, checked_images, not_finite
from calibration.wiring import wiring_of
from engines.errors import ConfigError, GraphError

Channels = NDArray[np.float64]  # (C,)

# FP32's own rounding moves the logits of SegFormer-B0 by 1e-6 of their largest.
_TOLERANCE = 1e-3
_MOST_DOUBLINGS = 8  # of a channel: one that is all but silent is no reason for huge weights


@dataclass(frozen=True)
class EqualizeRecord:
    """sources: names of the nodes whose channels were scaled; layers: of those that read them.

    images: how many the channels were measured on.
    """

    sources: tuple[str, ...]
    layers: tuple[str, ...]
    images: int


def equalized_onnx(
    onnx_path: str | Path,
    images: Iterable[Image],
    out_path: str | Path,
    *,
    policy: QuantizePolicy = DEFAULT_POLICY,
    strength: float = 0.5,
    on_image: Callable[[int], None] | None = None,
) -> EqualizeRecord:
    """Write the same function, up to FP32's rounding, with channels of more equal size.

    Changed is every LayerNormalization that a layer of `policy` reads, directly or through
    Transposes and Reshapes, if all its readers have constant weights that can take the scales:
    s_c = (largest |activation|)^strength / (largest |weight|)^(1 - strength), 0 <= strength <= 1.
    Also every Conv whose readers are depthwise: their weights have a scale for each channel, so
    all channels are made equal. On these images no activation grows beyond the largest of its
    tensor, so FP16 is no nearer to its limit there.
    Left out, for they lost: pairs of convolutions with a ReLU between, and values through the
    attention product to the output projection (rice panicles: 99.762 % in place of 99.763 by the
    default policy, 99.749 in place of 99.752 with every layer).
    Pixels agreeing with FP32, SegFormer-B0 on 84 rice panicle tiles, 32 for calibration: by the
    default policy 99.763 % without, 99.773 at 0.5, 99.775 at 0.3; with every Conv and Linear in
    INT8 (mean of two sets) 99.734 without, 99.757 at 0.5.
    Raises InputError and DatasetError for images as `ranges_from_images` does, GraphError where
    the logits of the first image are not those of the graph given; leaves no file then.
    """
    if not 0.0 <= strength <= 1.0:
        raise ConfigError(f"a strength of {strength}", expected="0 to 1", do="take 0.5")
    original = model_from_onnx_file(onnx_path)
    quantized = {item.output for item in placement_from_graph(original, policy)}
    sources = sources_of(original, quantized)
    largest, first, count = _largest_by_channel(
        original, sources, checked_images(images, original, on_image)
    )
    model = onnx.ModelProto()
    model.CopyFrom(original)
    edit = _Edit(model)
    for source in sources:
        weights = _weight_by_channel(source, quantized)
        power = 1.0 if source.free else strength
        edit.apply(source, _scales(largest[source.output], weights, power))
    drop_unread_initializers(model.graph)
    write_checked_onnx(
        model, out_path, like=original, check=lambda written: _check_same(written, original, first)
    )
    return EqualizeRecord(
        sources=tuple(source.node for source in sources),
        layers=tuple(reader.node for source in sources for reader in source.readers),
        images=count,
    )


def _largest_by_channel(
    model: onnx.ModelProto, sources: tuple[Source, ...], images: Iterable[Image]
) -> tuple[dict[str, Channels], Image, int]:
    """Largest magnitude of each channel by tensor, the first image, how many images."""
    largest = {source.output: np.zeros(source.channels) for source in sources}
    tensors = tuple(largest) or (logits_tensor(model),)
    session, first, count = ImageSession(model, tensors), None, 0
    for image in images:
        first = image.copy() if first is None else first
        for source, value in zip(sources, session.values(image), strict=False):
            others = tuple(i for i in range(value.ndim) if i != source.axis)
            seen = np.maximum(value.max(axis=others), -value.min(axis=others))
            if not np.isfinite(seen).all():
                raise not_finite(source.output, count)
            np.maximum(largest[source.output], seen, out=largest[source.output])
        count += 1
    assert first is not None  # no images is an error of checked_images
    return largest, first, count


def _weight_by_channel(source: Source, quantized: Collection[str]) -> Channels:
    """Largest magnitude of the INT8 weights that each channel is multiplied with."""
    largest = np.zeros(source.channels)
    for reader in source.readers:
        if reader.output in quantized:
            ids = np.broadcast_to(reader.channels, reader.weight.shape)
            np.maximum.at(largest, ids.reshape(-1), np.abs(reader.weight).reshape(-1))
    return largest


def _scales(activation: Channels, weight: Channels, strength: float) -> Channels:
    """s by channel; 1 for a channel without activation or weights.

    The whole is scaled so that the largest activation stays as large as it was: a common factor
    means nothing to INT8, but FP16 has a limit.
    """
    used = (activation > 0) & (weight > 0)
    if not used.any():
        return np.ones_like(activation)
    scales = np.ones_like(activation)
    scales[used] = activation[used] ** strength / weight[used] ** (1.0 - strength)
    scales[used] *= (activation[used] / scales[used]).max() / activation[used].max()
    return scales.clip(2.0**-_MOST_DOUBLINGS, 2.0**_MOST_DOUBLINGS)


class _Edit:
    """Gives each changed node constants of its own, for others may read the ones it had."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._wiring = wiring_of(model.graph)
        self._constants = dict(self._wiring.constants)
        self._free = FreeNames(model.graph)

    def apply(self, source: Source, scales: Channels) -> None:
        node = self._wiring.producers[source.output]
        for index in source.own:
            made = self._constant(node.input[index])
            self._replace(node, index, made / scales.reshape(-1, *[1] * (made.ndim - 1)))
        for reader in source.readers:
            node = self._wiring.producers[reader.output]
            self._replace(node, 1, self._constant(node.input[1]) * scales[reader.channels])

    def _constant(self, name: str) -> NDArray[np.float32]:
        """Also one that was written here: a layer may read one source and be another."""
        return numpy_helper.to_array(self._constants[name])

    def _replace(self, node: onnx.NodeProto, index: int, values: NDArray[np.float64]) -> None:
        name = self._free(f"{node.input[index]}_equalized")
        stored = numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)
        self._graph.initializer.append(stored)
        self._constants[name] = stored
        node.input[index] = name


def _check_same(written: onnx.ModelProto, original: onnx.ModelProto, image: Image) -> None:
    logits = [
        ImageSession(model, (logits_tensor(model),)).values(image)[0]
        for model in (original, written)
    ]
    error = float(np.abs(logits[1] - logits[0]).max())
    largest = float(np.abs(logits[0]).max())
    if not error <= _TOLERANCE * largest:
        raise GraphError(
            f"an equalized graph whose logits differ by {error:.3g}",
            expected=f"at most {_TOLERANCE * largest:.3g}, a thousandth of the largest",
            do="calibrate without --equalize, and report this as a bug, with the ONNX file",
        )
