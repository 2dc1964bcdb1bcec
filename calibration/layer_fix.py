"""What images teach about one INT8 layer beyond its activation range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LayerFix:
    """For one quantized layer with a weight, kept by its output tensor.

    weight: float32 in the weight's own shape, every value a whole multiple (-128..127) of its
        channel's scale, so that QuantizeLinear keeps it exactly; None: the weight stays as it is.
    scales: (channels,) float32, given with `weight` and only then.
    bias_shift: (channels,) float32, added to the layer's bias (Conv's third input, or the constant
        of the Add that alone reads a MatMul); None: the bias stays as it is.
    """

    weight: NDArray[np.float32] | None = None
    scales: NDArray[np.float32] | None = None
    bias_shift: NDArray[np.float32] | None = None
