"""A trained-looking SegFormer of 50 000 parameters, photos with masks, and the command line.

Run as a program it is `riceseg` without time measurements.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import unittest.mock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from engines.speed.benchmark import Benchmark
from exporter.architectures.segformer import Segformer, SegformerShape
from exporter.commands.group import riceseg

Picture = NDArray[np.uint8]  # (H, W, 3)

CLASSES = ("배경", "정상", "도열병", "도복", "결주", "부진")
PALETTE = ((0, 0, 0), (8, 39, 245), (0, 229, 245), (225, 0, 26), (250, 0, 204), (245, 123, 0))
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CONFIG = f"""
data_preprocessor = dict(type='SegDataPreProcessor', mean={list(MEAN)}, std={list(STD)},
                         bgr_to_rgb=True, size=(64, 64))
model = dict(type='EncoderDecoder', decode_head=dict(type='SegformerHead', align_corners=False),
             test_cfg=dict(mode='whole'))
"""
SIZES = ((48, 64), (64, 96), (64, 64))  # (H, W) of the photos, in turn


def tiny_net(num_outputs: int = 6, in_channels: int = 3, seed: int = 0) -> Segformer:
    """Random weights whose answer has every class on a picture of noise, in eval mode."""
    torch.manual_seed(seed)
    shape = SegformerShape(
        embed_dims=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 4),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        in_channels=in_channels,
        num_outputs=num_outputs,
        head_channels=16,
        head_kind="mmsegmentation",
    )
    net = Segformer(shape).eval()
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):  # as after training: no two are alike
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    _spread_classes(net, in_channels)
    return net


def _spread_classes(net: Segformer, in_channels: int) -> None:
    """The classifier's rows are scaled and shifted until each class wins somewhere."""
    seg = net.decode_head.conv_seg
    assert isinstance(seg, nn.Conv2d)
    assert seg.bias is not None
    coarse = torch.randn(8, in_channels, 8, 8)
    pictures = nn.functional.interpolate(coarse, (64, 64), mode="bilinear") * 1.5
    with torch.no_grad():
        logits = net(pictures)
        std = logits.std(dim=(0, 2, 3))
        seg.weight.div_(std[:, None, None, None])
        seg.bias.sub_(logits.mean(dim=(0, 2, 3))).div_(std)


def write_checkpoint(
    path: Path,
    *,
    num_outputs: int = 6,
    in_channels: int = 3,
    classes: Sequence[str] | None = CLASSES,
    config: str | None = CONFIG,
    tensors: dict[str, Tensor] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = PALETTE,
) -> Path:
    """A file as mmengine's runner writes it; `tensors` in place of the tiny network's."""
    meta: dict[str, Any] = {"mmseg_version": "1.2.2", "mmengine_version": "0.10.7"}
    if classes is not None:
        meta["dataset_meta"] = {"classes": tuple(classes)}
        if palette is not None:
            meta["dataset_meta"]["palette"] = [list(rgb) for rgb in palette[: len(classes)]]
    if config is not None:
        meta["cfg"] = config
    if tensors is None:
        tensors = dict(tiny_net(num_outputs, in_channels).state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": meta, "state_dict": tensors}, path)
    return path


def photo(hw: tuple[int, int], seed: int) -> Picture:
    """Soft blobs with fine grain, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((hw[1], hw[0]), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-12, 13, (*hw, 3), dtype=np.int16)
    return np.clip(soft + grain, 0, 255).astype(np.uint8)


def mask_of(picture: Picture, num_classes: int = 6) -> Picture:
    """Class by brightness, (H, W) uint8, with a border that has no label (255)."""
    brightness = picture.astype(np.uint16).sum(axis=2)
    mask = (brightness * num_classes // 766).astype(np.uint8)
    mask[:2] = 255
    return mask


def write_pairs(root: Path, part: str, count: int, *, seed: int, num_classes: int = 6) -> None:
    """root/images/PART/*.png and root/masks/PART/*.png, of several sizes."""
    images, masks = root / "images" / part, root / "masks" / part
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture = photo(SIZES[i % len(SIZES)], seed + i)
        name = f"{part[:3]}{i}.png"
        Image.fromarray(picture).save(images / name)
        Image.fromarray(mask_of(picture, num_classes)).save(masks / name)


def write_dataset(root: Path) -> Path:
    """3 photos to calibrate on and 4 with masks to validate on; returns `root`."""
    write_pairs(root, "calibration", 3, seed=100)
    write_pairs(root, "validation", 4, seed=200)
    return root


def write_lab(root: Path) -> Path:
    """root/tiny.pth and root/data/; returns `root`."""
    write_checkpoint(root / "tiny.pth")
    write_dataset(root / "data")
    return root


# --- the command line, run in this process or in one of its own -----------------------------------

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def untimed(*_: object, **__: object) -> Benchmark:
    """Stands in for a measurement, which starts a Python with torch and takes seconds."""
    return Benchmark(1.0, 2.0, 1000.0, 10.0, runs=1, warmup=0, threads=1, batch=1)


TIMED = (
    "exporter.measure.benchmark_checkpoint",
    "exporter.measure.benchmark_onnx",
)


def run_cli(*arguments: object) -> Result:
    """`riceseg ARGUMENTS` in this process; nothing but a wanted exit may come out of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other are slow on a busy machine
    try:
        with contextlib.ExitStack() as stack:
            for name in TIMED:
                stack.enter_context(unittest.mock.patch(name, untimed))
            result = CliRunner().invoke(riceseg, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def export_tiny(lab: Path, out: Path, *arguments: object) -> Result:
    """Export `lab`/tiny.pth at 64x64 (a later --size wins)."""
    start = ("export", "--checkpoint", lab / "tiny.pth", "--size", "64x64", "--out", out)
    return run_cli(*start, *arguments)


def error_of(result: Result | subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line that says what went wrong; of a mistake it has all three parts."""
    status = result.exit_code if isinstance(result, Result) else result.returncode
    assert status == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    if code == 2:
        assert re.fullmatch(r"error: got .+; expected .+; do this: .+", lines[0]), lines[0]
    return lines[0]


def process_arguments(*arguments: object) -> list[str]:
    """A command that runs `riceseg ARGUMENTS` untimed, for subprocess."""
    return [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This one's, so that the packages are found from every folder, with one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"env": environment(), "timeout": 300, **options}
    return subprocess.run(
        process_arguments(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        **options,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for timed in TIMED:
        unittest.mock.patch(timed, untimed).start()
    riceseg(prog_name="riceseg")
