"""Activation ranges of what INT8 layers read and write, from real images, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import onnx

from calibration.choose_range import output_errors
from calibration.histogram import (
    SILENT_CLIP,
    MagnitudeHistogram,
    clip_from_entropy,
    clip_from_mse,
    clip_from_percentile,
    outlier_percent,
)
from calibration.implicit import implicit_tensors
from calibration.onnx_file import image_input, model_from_onnx_file
from calibration.placement import (
    DEFAULT_POLICY,
    QuantizedNode,
    QuantizePolicy,
    placement_from_graph,
)
from calibration.watch import Image as Image
from calibration.watch import Watched, watch_images
from engines.errors import ConfigError

Method = Literal["minmax", "percentile", "entropy", "mse", "auto"]
# What "auto" chooses from. The first stands unless another's error is lower by this share: on 8 of
# 32 rice panicle tiles the ratio of two errors was up to a third off that on all of them, and to
# follow smaller gains cost 0.1 dB of the logits (SegFormer-B0, every Conv and Linear in INT8).
CANDIDATES: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax")
WORTHWHILE_SHARE = 0.05
CHOOSING_IMAGES = 8


@dataclass(frozen=True)
class TensorRange:
    """Extremes seen, and the chosen symmetric clip: values beyond +-amax saturate.

    outlier_percent: share of the values beyond 6 standard deviations from 0, the middle of the
    int8 grid; None where no histogram was taken.
    """

    min: float
    max: float
    amax: float
    outlier_percent: float | None = None


@dataclass(frozen=True)
class Ranges:
    """method; how many images; the range of each tensor; percentile, where that was a method.

    tensors: those that Q/DQ quantizes. implicit: further ones for TensorRT's implicit INT8 alone,
    see `calibration.implicit`; their clip is the largest magnitude seen, whatever the method was,
    on the first 32 images.
    chosen: of "auto", the method whose clip each of `tensors` took; else empty.
    method "file", with 0 images: the clips of a file that was quantized before.
    """

    method: Method | Literal["file"]
    images: int
    tensors: Mapping[str, TensorRange]
    percentile: float | None = None
    implicit: Mapping[str, TensorRange] = field(default_factory=dict)
    chosen: Mapping[str, Method] = field(default_factory=dict)


def calibration_steps(method: Method, images: int) -> int:
    """How often `ranges_from_images` calls `on_image` for that many images."""
    return images + (min(images, CHOOSING_IMAGES) if method == "auto" else 0)


def ranges_from_images(
    onnx_path: str | Path,
    images: Iterable[Image],
    *,
    method: Method = "mse",
    policy: QuantizePolicy = DEFAULT_POLICY,
    percentile: float = 99.999,
    on_image: Callable[[int], None] | None = None,
) -> Ranges:
    """Run every image through the FP32 graph on the CPU and record what each tensor reaches.

    images: any iterable of (H, W, C) uint8 at the network's input size, read lazily, one in memory
        at a time; none at all is a DatasetError, for nothing is ever calibrated on noise.
    method: "mse" is the default because it agreed best with FP32. SegFormer-B0 on 84 rice panicle
        tiles, six sets of 24 calibration tiles, mean pixel agreement: mse 99.77 %, percentile
        99.999 99.73 %, minmax 99.66 %, entropy 99.16 %.
        "auto" takes for each tensor the clip of the method that disturbs the outputs of the layers
        that read it least, see `calibration.choose_range`. It measures that on CHOOSING_IMAGES of
        the images, which stay in memory for it and are run once more, each for the time of some 6
        plain inferences.
        It is a guard against tensors that mse clips badly and no gain on average: on three sets
        of 32 tiles with every Conv and Linear in INT8, the logits were at 35.5 to 35.6 dB where
        mse gave 35.1 to 35.7, and 99.730 % of the pixels agreed where mse gave 99.734 %.
    on_image: called with the number of steps done, of `calibration_steps` in all.
    A value that is not finite is a GraphError that names the tensor and the image.
    """
    _check_method(method, percentile)
    model = model_from_onnx_file(onnx_path)
    image_input(model)  # refuses a graph that takes no image
    placed = placement_from_graph(model, policy)
    implicit = implicit_tensors(model, placed)
    read = _in_graph_order(model, {i.source for item in placed for i in item.inputs})
    written = _in_graph_order(model, set(implicit.measured))
    watched = watch_images(
        model,
        images,
        counted=() if method == "minmax" else read,
        reduced=read if method == "minmax" else (),
        sampled=[name for name in written if name not in read],
        keep=CHOOSING_IMAGES if method == "auto" else 0,
        on_image=on_image,
    )
    clips = _clips(watched, CANDIDATES if method == "auto" else (method,), percentile)
    if method == "auto":
        chosen = _chosen(model, placed, clips, watched, on_image)
    else:
        chosen = dict.fromkeys(clips, method)
    seen = {
        name: _tensor_range(h, clips[name][chosen[name]]) for name, h in watched.histograms.items()
    }
    for name, (low, high) in watched.extremes.items():
        seen[name] = TensorRange(low, high, _positive(max(abs(low), abs(high))))
    also = {name: seen[name] for name in written}
    also.update((name, seen[same]) for name, same in implicit.same_as.items())
    return Ranges(
        method,
        watched.images,
        {name: seen[name] for name in read},
        percentile if method in ("percentile", "auto") else None,
        {name: also[name] for name in _in_graph_order(model, set(also))},
        chosen if method == "auto" else {},
    )


def _check_method(method: str, percentile: float) -> None:
    if method not in get_args(Method):
        raise ConfigError(
            f"the method {method!r}",
            expected=f"one of {', '.join(get_args(Method))}",
            do="correct the name",
        )
    if not 50.0 <= percentile <= 100.0:
        raise ConfigError(
            f"a percentile of {percentile}", expected="50 to 100", do="take 99.999, the default"
        )


def _in_graph_order(model: onnx.ModelProto, names: set[str]) -> tuple[str, ...]:
    return tuple(name for node in model.graph.node for name in node.output if name in names)


def _clips(
    watched: Watched, methods: Sequence[Method], percentile: float
) -> dict[str, dict[Method, float]]:
    """Tensor -> method -> its clip, for tensors with a histogram."""
    ways: dict[Method, Callable[[MagnitudeHistogram], float]] = {
        "minmax": lambda histogram: histogram.largest,
        "percentile": lambda histogram: clip_from_percentile(histogram, percentile),
        "entropy": clip_from_entropy,
        "mse": clip_from_mse,
    }
    return {
        name: {method: _positive(ways[method](histogram)) for method in methods}
        for name, histogram in watched.histograms.items()
    }


def _chosen(
    model: onnx.ModelProto,
    placed: tuple[QuantizedNode, ...],
    clips: Mapping[str, Mapping[Method, float]],
    watched: Watched,
    on_image: Callable[[int], None] | None,
) -> dict[str, Method]:
    """Tensor -> the method whose clip disturbs its readers least."""
    different = {name: tuple(dict.fromkeys(of.values())) for name, of in clips.items()}

    def report(done: int) -> None:
        if on_image is not None:
            on_image(watched.images + done)

    errors = output_errors(model, placed, different, watched.kept, on_image=report)
    chosen: dict[str, Method] = {}
    for name, of in clips.items():
        error_of = dict(zip(different[name], errors[name].tolist(), strict=True))
        best = min(CANDIDATES, key=lambda method: error_of[of[method]])
        limit = (1.0 - WORTHWHILE_SHARE) * error_of[of[CANDIDATES[0]]]
        chosen[name] = best if error_of[of[best]] < limit else CANDIDATES[0]
    return chosen


def _tensor_range(histogram: MagnitudeHistogram, clip: float) -> TensorRange:
    return TensorRange(histogram.low, histogram.high, clip, outlier_percent(histogram))


def _positive(clip: float) -> float:
    return float(clip) if clip > 0 else SILENT_CLIP
