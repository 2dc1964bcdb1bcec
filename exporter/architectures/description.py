"""What an architecture's detection rule returns, and what it is told beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class ModelDescription:
    """Found from the tensors alone, but for what `assumed` says.

    `name` is what `--model` is compared with, for example "segformer-b0". `source` is the key
    style: "mmsegmentation", "NVlabs", "Hugging Face", … `parameters` counts trained numbers.
    `trained_hw` is the input's height and width where the shapes tell it (position embeddings).
    `assumed`: sentences, for people, on what no tensor tells and nobody said.
    `other_normalisation`: what else than ImageNet's mean and std such networks are trained with,
    said where these are assumed.
    """

    architecture: str
    variant: str
    head: str
    head_channels: int
    in_channels: int
    num_outputs: int
    parameters: int
    source: str
    trained_hw: tuple[int, int] | None = None
    assumed: tuple[str, ...] = ()
    other_normalisation: str = ""

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.variant}"


@dataclass(frozen=True)
class Hints:
    """What shapes cannot tell: the configuration beside the weights says it, or the user.

    None where it is not said: then the architecture's usual value holds, and is named in
    `ModelDescription.assumed` where others are in use.

    `strides` and `dilations` are ResNet's, one a stage; with `contract_dilation` the first block of
    a stage has half its dilation. `head_dilations` are those of ASPP, `pool_scales` those of
    pyramid pooling, `num_heads` those of the decoder's attention. `size_divisor`: what the network
    itself fills the sides up to multiples of, with zeros, as Mask2Former does. `keep_outputs`: only
    the first ones are wanted.
    """

    align_corners: bool | None = None
    strides: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None
    contract_dilation: bool | None = None
    head_dilations: tuple[int, ...] | None = None
    pool_scales: tuple[int, ...] | None = None
    num_heads: int | None = None
    size_divisor: int | None = None
    keep_outputs: int | None = None


NO_HINTS = Hints()
ALIGN_CORNERS = "Maps are taken to be resized with align_corners=False"


def assumed_as_usual(said: Mapping[str, object]) -> tuple[str, ...]:
    """For `ModelDescription.assumed`: of what was taken (sentence -> hint) all that nobody said."""
    return tuple(
        f"{sentence}, as usual: no configuration says so, and any other has the same weights."
        for sentence, hint in said.items()
        if hint is None
    )


class Architecture(Protocol):
    """What every file named `<architecture>_keys.py` offers."""

    NAME: str

    def recognises(self, keys: frozenset[str]) -> bool:
        """True when these tensor names are this architecture's, in a style it can read."""

    def model_from_tensors(
        self, tensors: Mapping[str, Tensor], hints: Hints
    ) -> tuple[nn.Module, ModelDescription]:
        """The loaded module in eval mode (float32), and what it is.

        The module takes normalised images (N, C, H, W) and gives logits (N, num_outputs, h, w) of
        any size, which are resized to the image's. Raises CheckpointError when tensors are missing,
        left over or of the wrong shape, and ConfigError for hints that do not fit.
        """

    def layer_paths(self, module: str, style: str) -> tuple[str, ...]:
        """Paths in node names of the layers that read what a checkpoint's module reads.

        Empty where no layer does; one that no node has, where a rewrite took the module apart.
        """

    def layer_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Weight of each layer as the checkpoint has it, by those paths."""

    def writes_the_same(self, module: str, style: str) -> bool:
        """Whether those layers also write what that module wrote."""
