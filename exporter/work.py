"""What the stages of one export hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.images import CalibrationImage
from calibration.policy import PrecisionPolicy
from calibration.quantize import QuantizeRecord
from calibration.recipe import Calibrated
from engines.bundle import FileInfo, InputSpec
from engines.dataset import Pair
from engines.images import sha256_of_file
from exporter.load import LoadedModel
from exporter.onnx_graph import GraphSpec
from exporter.parity import ParityRecord
from exporter.targets import Target


@dataclass
class Work:
    """What the stages have made so far.

    policy: None until it is known, which needs measuring with --precision auto.
    fp32_nodes: names of nodes that FP16 would overflow or harm; float_layers: those of them that
    INT8 could take. search, techniques: sections of the report.
    """

    target: Target
    loaded: LoadedModel
    input: InputSpec
    spec: GraphSpec
    pairs: tuple[Pair, ...]
    calib: tuple[CalibrationImage, ...]
    warnings: list[str]
    files: dict[str, FileInfo] = field(default_factory=dict)
    policy: PrecisionPolicy | None = None
    fp32_nodes: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()
    parity: ParityRecord | None = None
    calibrated: Calibrated | None = None
    quantized: QuantizeRecord | None = None
    search: dict[str, Any] | None = None
    techniques: dict[str, Any] | None = None

    def add(self, folder: Path, key: str, name: str) -> None:
        """Record a file of the bundle."""
        path = folder / name
        self.files[key] = FileInfo(name, sha256_of_file(path), path.stat().st_size)
