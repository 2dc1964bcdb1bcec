"""PyTorch's labels of the validation images, kept in the bundle for devices without torch.

`engines.evaluation.reference` describes the file and reads it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines.dataset import Pair
from engines.evaluation.evaluate import Prediction, Predictor
from engines.images import sha256_of_file
from engines.resize import ResizeRule

FILE_NAME = "reference.npz"

OnImage = Callable[[int, int], None]


class ReferenceRecorder:
    """A predictor whose labels of each image of `pairs` are also written to an .npz file.

    `evaluate_predictors` must go through the same `pairs` with it as the first predictor and with
    `on_image`, which says that an image is done and calls `then`; one that was left out is not
    written. Each image is one entry of the zip, written and forgotten, and two files of the same
    bytes are one entry.
    """

    def __init__(
        self, predictor: Predictor, pairs: Sequence[Pair], file: zipfile.ZipFile, *, then: OnImage
    ) -> None:
        self.name = predictor.name
        self._predictor, self._pairs, self._file, self._then = predictor, pairs, file, then
        self._labels: np.ndarray[Any, Any] | None = None
        self._written: set[str] = set()

    def predict(
        self, network_image: np.ndarray[Any, Any], image_hw: tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        prediction = self._predictor.predict(network_image, image_hw, rule)
        self._labels = prediction.network
        return prediction

    def on_image(self, done: int, total: int) -> None:
        """The image `done`, counted from 1, has been through `predict` or was left out."""
        labels, self._labels = self._labels, None
        if labels is not None:
            self._write(sha256_of_file(self._pairs[done - 1].image), labels)
        self._then(done, total)

    def _write(self, sha256: str, labels: np.ndarray[Any, Any]) -> None:
        if sha256 in self._written:
            return
        self._written.add(sha256)
        # A fixed date: the same model and images give the same bytes.
        entry = zipfile.ZipInfo(f"{sha256}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        entry.compress_type = zipfile.ZIP_DEFLATED
        with self._file.open(entry, "w") as target:
            np.lib.format.write_array(target, np.ascontiguousarray(labels), version=(1, 0))


@contextmanager
def reference_kept(
    predictor: Predictor, pairs: Sequence[Pair], path: Path, *, then: OnImage
) -> Iterator[ReferenceRecorder]:
    """A recorder of `predictor` that writes `path`, which is complete at the end of the block."""
    with zipfile.ZipFile(path, "w") as file:
        yield ReferenceRecorder(predictor, pairs, file, then=then)
