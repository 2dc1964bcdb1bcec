"""The trained networks that are compared, their FP32 graphs and their images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.images import CalibrationImage, calibration_list
from engines.bundle import Bundle, bundle_from_folder
from engines.dataset import Pair, calibration_images_from, pairs_from_folder
from engines.errors import DatasetError, GraphError
from exporter.network_images import network_images
from exporter.request import DataOptions
from ptq.jobs import exported
from ptq.rules import Limits


@dataclass(frozen=True)
class Network:
    """A checkpoint and its images below --data; `size` as for `riceseg export --size`.

    free: whether weights and images may be passed on; if not, the run goes on without them.
    """

    name: str
    checkpoint: str
    folder: str
    size: str | None
    free: bool
    limits: Limits


NETWORKS = (
    Network(
        name="crop_weed",
        checkpoint="segformer_b0_crop_weed.pth",
        folder="crop_weed_full",
        size=None,
        free=True,
        limits=Limits(max_drop=0.3, min_agreement=99.5),
    ),
    Network(
        name="rice_panicle",
        checkpoint="segformer_b0_rice_panicle.pth",
        folder="rice_panicle",
        size="256x256",
        free=False,
        limits=Limits(max_drop=0.1, min_agreement=99.6),
    ),
)


@dataclass(frozen=True)
class Task:
    """One network ready to be quantized.

    fp32: the graph, in a folder for what is made of it. images: .npy of the calibration images as
    the network sees them, (N, H, W, C) uint8. tensorrt: folder of TensorRT-RTX, None without it.
    """

    fp32: Path
    bundle: Bundle
    calibration: tuple[CalibrationImage, ...]
    images: Path
    pairs: tuple[Pair, ...]
    tensorrt: Path | None


def networks_there(data: Path, *, only: str | None) -> tuple[list[Network], list[str]]:
    """Those to compare, of all or of `only` one, and the names of those left out.

    Raises DatasetError where one that is free, or `only`, has no weights or images below `data`.
    """
    there, left_out = [], []
    for network in NETWORKS:
        if only not in (None, network.name):
            continue
        missing = [
            name for name in (network.checkpoint, network.folder) if not (data / name).exists()
        ]
        if not missing:
            there.append(network)
        elif network.free or only is not None:
            raise DatasetError(
                f"no {' and no '.join(missing)} in {str(data)!r}",
                expected=f"weights and images of {network.name}",
                do="give the folder that holds them as --data",
            )
        else:
            left_out.append(network.name)
    return there, left_out


def task_from_network(
    network: Network, data: Path, folder: Path, *, images: int, most_pairs: int | None
) -> Task:
    """Export FP32 into `folder` and put `images` calibration images beside it.

    They are spread evenly over the training images; `most_pairs` None scores on all.
    """
    pairs = pairs_from_folder(data / network.folder)
    files = calibration_images_from(data / network.folder)
    chosen = np.linspace(0, len(files) - 1, min(images, len(files))).round().astype(int)
    calibration = calibration_list(
        [files[i] for i in chosen], validation_files=[pair.image for pair in pairs]
    )
    bundle_folder = exported(data / network.checkpoint, network.size, folder)
    bundle = bundle_from_folder(bundle_folder)
    if bundle.input.resize != "stretch" or bundle.reduce_zero_label:
        # `ptq.scoring.plain_miou` knows no more than that.
        raise GraphError(
            f"{network.checkpoint}, resized by {bundle.input.resize}",
            expected="images stretched to the network's size, and labels as they are",
            do="compare with another checkpoint",
        )
    stored = folder / "images.npy"
    paths = [item.path for item in calibration]
    np.save(stored, np.stack([*network_images(paths, bundle.input, DataOptions(), {})]))
    return Task(
        fp32=bundle_folder / bundle.files["fp32"].file,
        bundle=bundle,
        calibration=calibration,
        images=stored,
        pairs=pairs[:most_pairs],
        tensorrt=None,
    )


def list_sha256(calibration: Sequence[CalibrationImage]) -> str:
    """One hash of the images' own hashes, a line each, in their order."""
    lines = "".join(f"{item.sha256}\n" for item in calibration)
    return hashlib.sha256(lines.encode("ascii")).hexdigest()
