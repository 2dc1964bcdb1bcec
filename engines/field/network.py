"""The network that labels a field: a predictor of windows of fixed size and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Optional, Protocol, Tuple

from engines.bands.recipe import BandRecipe
from engines.evaluation.resized_logits import Logits
from engines.resize import Image, Labels

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from engines.bundle_runtime import Opened


class FieldPredictor(Protocol):
    """A predictor of fixed size: ONNX Runtime, TensorRT and PyTorch alike."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def input_hw(self) -> Tuple[int, int]:
        """Height and width of a window in pixels."""

    @property
    def channels(self) -> int:
        """Channels of a window."""

    @property
    def has_logits(self) -> bool:
        """Whether `logits` can be called."""

    @property
    def fixed_batch(self) -> Optional[int]:
        """How many windows it takes at once; None for any number."""

    def labels(self, batch: Image) -> Labels:
        """(N, H, W) uint8 of a batch (N, H, W, C) uint8."""

    def logits(self, batch: Image) -> Logits:
        """(N, K, H, W) float32 of a batch (N, H, W, C) uint8, the caller's to overwrite."""


@dataclass(frozen=True)
class FieldNetwork:
    """`predictor` with K = `outputs` labels; it stays the caller's to close.

    `palette` has an RGB colour for each named label. `recipe` says how bands become its channels;
    None takes 8-bit channels as they are. `batch` windows are run at once unless the predictor has
    a fixed batch. `identity` says in a JSON record which network it is: a run goes on after an
    interruption only with an equal one.
    """

    predictor: FieldPredictor
    outputs: int
    palette: Tuple[Tuple[int, int, int], ...]
    recipe: Optional[BandRecipe] = None
    batch: int = 1
    identity: Dict[str, Any] = field(default_factory=dict)


def network_from_bundle(bundle: Bundle, opened: Opened) -> FieldNetwork:
    """The network of an opened bundle (`open_bundle`), for as long as that stays open.

    `batch` is the number of images that the bundle was made to run at once as a rule.
    """
    file = bundle.files.get(opened.precision)
    bands = getattr(bundle, "bands", None)
    identity = {
        "bundle": bundle.name,
        "sha256": None if file is None else file.sha256,
        "precision": opened.precision,
        "runtime": opened.predictor.runtime,
    }
    return FieldNetwork(
        predictor=opened.predictor,
        outputs=bundle.num_outputs,
        palette=bundle.palette,
        recipe=None if bands is None else BandRecipe(bands.letters, bands.norm, bands.nodata),
        batch=bundle.input.batch[1],
        identity=identity,
    )
