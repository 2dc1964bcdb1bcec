"""PyTorch before any rewrite against the exported graph, on images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from calibration.onnx_file import logits_tensor
from engines.errors import GateError
from engines.trt.layer_names import module_path
from exporter.onnx_graph import ImageToLabels
from exporter.run_onnx import outputs_from_onnx

# Limits, in units of the logits' standard deviation (at least 1) and in percent of the pixels.
# A 1e-6 relative jitter of the input alone moves SegFormer's logits by up to 6e-5 of it.
MAX_DIFFERENCE, MIN_AGREEMENT = 1e-3, 99.99
# Deep networks move by more than that when the input moves by JITTER of itself, which is rounding:
# a ResNet-101 with random weights by 3e-3; and the sign of a mask flips, by which Mask2Former's
# attention goes. Then the graph may differ by twice what PyTorch differs from itself.
JITTER, TIMES_JITTER = 1e-6, 2.0
# A module counts as diverged when it is off by this much of its own standard deviation.
DIVERGENCE = 1e-2


@dataclass(frozen=True)
class ParityRecord:
    """Largest and mean absolute logit difference, their limit, and equal labels in percent."""

    images: int
    on: str
    max_difference: float
    mean_difference: float
    limit: float
    agreement: float
    min_agreement: float


def check_parity(
    reference: ImageToLabels, model: onnx.ModelProto, batch: np.ndarray[Any, Any], *, on: str
) -> ParityRecord:
    """Compare logits and labels on `batch`, uint8 (N, H, W, C); `on` says what the images are.

    The limits are MAX_DIFFERENCE and MIN_AGREEMENT, or wider where PyTorch's own answer moves more.

    Raises GateError, naming the first node that diverges, when a limit is exceeded.
    """
    name = logits_tensor(model)
    got = outputs_from_onnx(model, batch, extra=() if _is_output(model, name) else (name,))[name]
    want = _logits(reference, batch)
    limit, min_agreement = MAX_DIFFERENCE * max(1.0, float(want.std())), MIN_AGREEMENT
    worst, mean, agreement = _difference(want, got)
    # A NaN makes both comparisons False, so the limits are stated positively.
    if np.isfinite(got).all() and not (worst <= limit and agreement >= min_agreement):
        with _jittered_input(reference.net):
            by_itself, _, equal = _difference(want, _logits(reference, batch))
        limit = max(limit, TIMES_JITTER * by_itself)
        min_agreement = min(min_agreement, 100.0 - TIMES_JITTER * (100.0 - equal))
    if not (worst <= limit and agreement >= min_agreement):
        raise GateError(
            f"the graph does not reproduce PyTorch: logits differ by up to {worst:.2e} "
            f"(limit {limit:.2e}), {agreement:.3f} % of the labels agree "
            f"(limit {min_agreement:.3f} %); {first_divergence(reference, model, batch[:1])}"
        )
    return ParityRecord(len(batch), on, worst, mean, limit, agreement, min_agreement)


def _logits(reference: ImageToLabels, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """PyTorch's, one image at a time."""
    with torch.no_grad():
        each = [reference.logits(torch.from_numpy(image[None])).numpy() for image in batch]
    return np.concatenate(each)


@contextmanager
def _jittered_input(net: nn.Module) -> Iterator[None]:
    """Each normalised number that `net` reads changes by up to JITTER of itself."""
    generator = torch.Generator().manual_seed(0)

    def jittered(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        noise = 2 * torch.rand(inputs[0].shape, generator=generator) - 1
        return (inputs[0] * (1 + JITTER * noise),)

    handle = net.register_forward_pre_hook(jittered)
    try:
        yield
    finally:
        handle.remove()


def _difference(
    want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]
) -> tuple[float, float, float]:
    """Largest and mean absolute difference of the logits, and equal labels in percent."""
    difference = np.abs(want - got)
    equal = 100.0 * float(np.mean(want.argmax(1) == got.argmax(1)))
    return float(difference.max()), float(difference.mean()), equal


def first_divergence(
    reference: ImageToLabels, model: onnx.ModelProto, image: np.ndarray[Any, Any]
) -> str:
    """A sentence naming the first graph node whose value leaves that of its PyTorch module."""
    wanted = _module_outputs(reference, image)
    nodes = _last_node_of_module(model, wanted)
    produced = [node.output[0] for node in nodes.values()]
    values = outputs_from_onnx(
        model, image, extra=[name for name in produced if not _is_output(model, name)]
    )
    for path, node in nodes.items():  # in the order in which PyTorch finished the modules
        want, got = wanted[path], values[node.output[0]]
        if want.shape != got.shape:
            continue
        error, spread = float(np.abs(want - got).max()), float(want.std())
        if not error <= DIVERGENCE * max(spread, 1e-6):
            return (
                f"first node that diverges: {node.name} ({node.op_type}, module {path}), "
                f"by {error:.2e} at a standard deviation of {spread:.2e}"
            )
    return "no single module diverges by more than 1 % of its standard deviation"


def _module_outputs(
    reference: ImageToLabels, image: np.ndarray[Any, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    outputs: dict[str, np.ndarray[Any, Any]] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor):
                outputs[path] = value.numpy()

        return hook

    handles = [m.register_forward_hook(keep(p)) for p, m in reference.named_modules() if p]
    try:
        with torch.no_grad():
            reference.logits(torch.from_numpy(image))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _last_node_of_module(model: onnx.ModelProto, paths: Iterable[str]) -> dict[str, onnx.NodeProto]:
    """Module path -> the last node traced inside it (graphs are in topological order)."""
    found: dict[str, onnx.NodeProto] = {}
    node_paths = [(module_path(node.name), node) for node in model.graph.node]
    for path in paths:
        inside = [n for p, n in node_paths if p == path or p.startswith(f"{path}.")]
        if inside:
            found[path] = inside[-1]
    return found


def _is_output(model: onnx.ModelProto, name: str) -> bool:
    return any(output.name == name for output in model.graph.output)
