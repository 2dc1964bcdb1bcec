"""What an architecture's detection rule returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class ModelDescription:
    """Found from the tensors alone.

    `name` is what `--model` is compared with, for example "segformer-b0". `source` is the key
    style: "mmsegmentation", "NVlabs" or "Hugging Face". `parameters` counts trained numbers.
    """

    architecture: str
    variant: str
    head: str
    head_channels: int
    in_channels: int
    num_outputs: int
    parameters: int
    source: str

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.variant}"


class Architecture(Protocol):
    """What every file named `<architecture>_keys.py` offers."""

    NAME: str

    def recognises(self, keys: frozenset[str]) -> bool:
        """True when these tensor names are this architecture's, in a style it can read."""

    def model_from_tensors(
        self,
        tensors: Mapping[str, Tensor],
        *,
        align_corners: bool,
        keep_outputs: int | None,
    ) -> tuple[nn.Module, ModelDescription]:
        """The loaded module in eval mode (float32), and what it is.

        Raises CheckpointError when tensors are missing, left over or of the wrong shape.
        """

    def layer_paths(self, module: str, style: str) -> tuple[str, ...]:
        """Paths in node names of the layers that read what a checkpoint's module reads."""

    def layer_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Weight of each layer as the checkpoint has it, by those paths."""

    def writes_the_same(self, module: str, style: str) -> bool:
        """Whether those layers also write what that module wrote."""
