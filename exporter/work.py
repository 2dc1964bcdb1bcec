"""What the stages of one export hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from calibration.images import CalibrationImage
from calibration.quantize import QuantizeRecord
from calibration.ranges import Ranges
from engines.bundle import FileInfo, InputSpec
from engines.dataset import Pair
from engines.images import sha256_of_file
from exporter.load import LoadedModel
from exporter.onnx_graph import GraphSpec
from exporter.parity import ParityRecord
from exporter.targets import Target


@dataclass
class Work:
    """What the stages have made so far."""

    target: Target
    loaded: LoadedModel
    input: InputSpec
    spec: GraphSpec
    pairs: tuple[Pair, ...]
    calib: tuple[CalibrationImage, ...]
    warnings: list[str]
    files: dict[str, FileInfo] = field(default_factory=dict)
    fp32_nodes: tuple[str, ...] = ()  # those that overflow FP16
    parity: ParityRecord | None = None
    ranges: Ranges | None = None
    quantized: QuantizeRecord | None = None

    def add(self, folder: Path, key: str, name: str) -> None:
        """Record a file of the bundle."""
        path = folder / name
        self.files[key] = FileInfo(name, sha256_of_file(path), path.stat().st_size)
