"""What INT8 adds to a layer's outputs on average, taken off its bias again.

Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
arXiv 1906.04721, section 4.2, with means from images instead of from statistics of the network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.layer_rows import Matrix

Means = NDArray[np.float64]  # (groups, inputs)


def bias_shift(
    matrix: Matrix, written: NDArray[np.float64], mean: Means, mean_read: Means
) -> NDArray[np.float32]:
    """(outputs of all groups,): to be added to the bias.

    matrix, written: the weights in float and as INT8 has them. mean: of the rows of inputs;
    mean_read: of the same rows as INT8 reads them.
    """
    wanted = np.einsum("goi,gi->go", matrix, mean)
    got = np.einsum("goi,gi->go", written, mean_read)
    return np.asarray((wanted - got).reshape(-1), dtype=np.float32)
