"""From a model to an ONNX graph that is the whole job: uint8 image in, uint8 labels out."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from engines.errors import ConfigError
from engines.trt.layer_names import module_path
from exporter.architectures.deformable import has_deformable_attention, with_gather_sampling
from exporter.architectures.layers import resize_bilinear
from exporter.architectures.mask2former import Mask2Former, with_quarter_products

logger = logging.getLogger(__name__)

INPUT_NAME = "image"
OUTPUTS = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}
# 13 is the first with per-channel QuantizeLinear; 20 the last that the tracing exporter writes.
OPSETS = range(13, 21)
# GridSample came with 16; of opset 20's form some TensorRT reads mode "linear" as nearest, silently
# (NVIDIA/TensorRT issue 4646).
GRID_SAMPLE_OPSETS = range(16, 20)
SIDE_MULTIPLE, SIDE_LIMITS = 32, (32, 8192)


@dataclass(frozen=True)
class GraphSpec:
    """What the graph looks like from outside.

    `mean` and `std` are per channel, in the 0..255 scale of the input. `batch` is (min, opt, max);
    all equal means a fixed batch size.
    """

    input_hw: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output: str = "labels"
    batch: tuple[int, int, int] = (1, 1, 1)
    opset: int = 17
    align_corners: bool = False

    def __post_init__(self) -> None:
        low, high = SIDE_LIMITS
        if not all(low <= side <= high for side in self.input_hw):
            raise ConfigError(
                f"--size {self.input_hw[0]}x{self.input_hw[1]}",
                expected=f"height and width from {low} to {high}",
                do="give a size such as 512x512",
            )
        if self.output not in OUTPUTS:
            raise ConfigError(
                f"--output {self.output}", expected=", ".join(OUTPUTS), do="choose one of them"
            )
        if self.opset not in OPSETS:
            raise ConfigError(
                f"--opset {self.opset}",
                expected=f"{OPSETS[0]} to {OPSETS[-1]} (17 is the default)",
                do="choose one in that range",
            )
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise ConfigError(
                f"--dynamic-batch {':'.join(map(str, self.batch))}",
                expected="MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX",
                do="give, for example, 1:4:8",
            )
        if self.dynamic_batch and any(side % SIDE_MULTIPLE for side in self.input_hw):
            raise ConfigError(
                f"--dynamic-batch with --size {self.input_hw[0]}x{self.input_hw[1]}",
                expected=f"height and width that are multiples of {SIDE_MULTIPLE}",
                do="choose such a size, or leave --dynamic-batch out",
            )

    @property
    def dynamic_batch(self) -> bool:
        return self.batch[0] != self.batch[2]

    @property
    def output_names(self) -> tuple[str, ...]:
        return OUTPUTS[self.output]


class ImageToLabels(nn.Module):
    """uint8 (N, H, W, C) -> uint8 labels (N, H, W), float32 logits (N, K, H, W), or both.

    Normalisation is mmcv's, (x - mean) * (1 / std); logits are resized bilinearly to the input.
    """

    def __init__(self, net: nn.Module, spec: GraphSpec) -> None:
        super().__init__()
        self.net, self.spec = net, spec
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(1, -1, 1, 1))
        self.register_buffer("scale", 1.0 / torch.tensor(spec.std).reshape(1, -1, 1, 1))

    def logits(self, image: Tensor) -> Tensor:
        # Cast first: TensorRT lets nothing but a Cast read a UINT8 tensor.
        x = image.to(self.mean.dtype).permute(0, 3, 1, 2)  # type: ignore[arg-type]
        x = (x - self.mean) * self.scale  # type: ignore[operator]
        return resize_bilinear(self.net(x), self.spec.input_hw, self.spec.align_corners)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.logits(image)
        outputs = {"logits": logits}
        if "labels" in self.spec.output_names:
            # Over float32: TensorRT's DataType, up to 10, documents no conversion from INT32.
            outputs["labels"] = logits.argmax(dim=1).to(torch.float32).to(torch.uint8)
        return tuple(outputs[name] for name in self.spec.output_names)


def sampled_for(net: nn.Module, opset: int, wanted: bool | None) -> nn.Module:
    """`net` itself, its deformable attention by GridSample or, in place, without it.

    wanted: what was asked for; None for what `opset` allows. Raises ConfigError for GridSample at
    another opset, and when something is asked of a network without deformable attention.
    """
    if wanted is not None and not has_deformable_attention(net):
        raise ConfigError(
            f"--{'' if wanted else 'no-'}grid-sample",
            expected="a network with deformable attention (Mask2Former)",
            do="leave it out",
        )
    if wanted and opset not in GRID_SAMPLE_OPSETS:
        raise ConfigError(
            f"--grid-sample with opset {opset}",
            expected=f"opset {GRID_SAMPLE_OPSETS[0]} to {GRID_SAMPLE_OPSETS[-1]}",
            do="leave --grid-sample out: another form with the same answer is written",
        )
    by_gather = opset not in GRID_SAMPLE_OPSETS if wanted is None else not wanted
    return with_gather_sampling(net) if by_gather else net


def multiplied_at(net: nn.Module, wanted: str | None) -> nn.Module:
    """`net` itself, or for `wanted` "quarter" another one on its weights: `with_quarter_products`.

    Raises ConfigError when something is asked of a network that is no Mask2Former.
    """
    if wanted is None:
        return net
    if not isinstance(net, Mask2Former):
        raise ConfigError(
            f"--mask-products {wanted}",
            expected="a Mask2Former, which multiplies classes and masks",
            do="leave it out",
        )
    return with_quarter_products(net) if wanted == "quarter" else net


def decomposed_layer_norms(net: nn.Module, model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that LayerNorm fell apart into, which it does below opset 17.

    Squares of activations overflow FP16, so these nodes stay in FP32. Constants compute nothing
    and are not among them.
    """
    norms = {f"net.{path}" for path, m in net.named_modules() if isinstance(m, nn.LayerNorm)}
    # A module that is used several times has numbered names: /net/norm, /net/norm_1, …
    numbered = re.compile(r"_\d+$")
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type not in ("LayerNormalization", "Constant")
        and not norms.isdisjoint({path := module_path(node.name), numbered.sub("", path)})
    )


def onnx_from_model(net: nn.Module, spec: GraphSpec, path: Path, *, num_outputs: int) -> None:
    """Trace `net` (eval mode, normalised NCHW float -> logits) by the graph contract into `path`.

    Raises ConfigError when the channels of `spec` and the outputs do not fit a uint8 label.
    """
    if num_outputs > 255:  # 255 is the ignore label of the metric
        raise ConfigError(
            f"{num_outputs} outputs",
            expected="at most 255, since labels are uint8 and 255 means ignore",
            do="keep fewer outputs with --keep-classes",
        )
    image = torch.zeros(spec.batch[1], *spec.input_hw, len(spec.mean), dtype=torch.uint8)
    axes = None
    if spec.dynamic_batch:
        axes = {name: {0: "batch"} for name in (INPUT_NAME, *spec.output_names)}
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing turns sizes into constants, which is what a static graph wants, and says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ImageToLabels(net, spec).eval(),
            (image,),
            str(path),
            input_names=[INPUT_NAME],
            output_names=list(spec.output_names),
            opset_version=spec.opset,
            dynamic_axes=axes,
            dynamo=False,  # keeps opset 17 and node names that carry the module path
        )
    logger.info("traced to %s, opset %d", path, spec.opset)
