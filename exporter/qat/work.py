"""What the stages of an export of a quantized graph hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engines.bundle import FileInfo
from engines.dataset import Pair
from engines.images import sha256_of_file
from engines.progress import printable
from exporter.measure import ScoredModel
from exporter.qat.scales import ScaleRecord
from exporter.qat.source import QuantizedSource
from exporter.targets import Target

MOST_TEXT = 2_000  # characters of one warning


@dataclass
class QuantizedWork:
    """`images` are those to look for FP16 overflows on; `fp32_nodes` those that stay in FP32.

    `warnings` is added to by `warn`, which makes one line of whatever a library or a file says.
    """

    target: Target
    source: QuantizedSource
    model: ScoredModel
    pairs: tuple[Pair, ...]
    images: tuple[Path, ...]
    warnings: list[str] = field(default_factory=list)
    files: dict[str, FileInfo] = field(default_factory=dict)
    fp32_nodes: tuple[str, ...] = ()
    scales: ScaleRecord | None = None

    def warn(self, *texts: str) -> None:
        """A bundle takes neither control characters nor endless text."""
        self.warnings += [printable(text)[:MOST_TEXT] for text in texts]

    def add(self, folder: Path, key: str, name: str) -> None:
        """Record a file of the bundle."""
        path = folder / name
        self.files[key] = FileInfo(name, sha256_of_file(path), path.stat().st_size)
