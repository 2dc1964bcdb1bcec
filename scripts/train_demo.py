"""Train SegFormer-B0 from random weights on a folder of photos and masks (plain PyTorch, CPU).

This is where the weights of the demo come from, and an example of the checkpoint format that
`riceseg export` reads. Data: DATA/images/{train,val}/*.jpg with DATA/masks/{train,val}/*.png
(class index, 255 = ignore), for the demo the Peanut crop/weed photos named in demo/LICENSE.md.

    python scripts/train_demo.py DATA --out best.pth --steps 3000
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from engines.evaluation.scores import Scores, confusion_from_labels, scores_from_confusion
from exporter.architectures.segformer import Segformer, SegformerShape

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIDE, CROP, BATCH = 512, 256, 8
CLASSES = ("background", "crop", "weed")
PALETTE = ((0, 0, 0), (0, 255, 0), (255, 0, 0))
CLASS_WEIGHTS = (0.7, 1.0, 2.0)  # weeds cover about 1 % of the pixels
CONFIG = f"""data_preprocessor = dict(
    type='SegDataPreProcessor', mean={list(MEAN)}, std={list(STD)}, bgr_to_rgb=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='MixVisionTransformer'),
    decode_head=dict(type='SegformerHead', num_classes={len(CLASSES)}, align_corners=False),
    test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=({SIDE}, {SIDE}), keep_ratio=False)]
"""


def b0(num_outputs: int) -> Segformer:
    shape = SegformerShape(
        embed_dims=(32, 64, 160, 256),
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 5, 8),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        in_channels=3,
        num_outputs=num_outputs,
        head_channels=256,
        head_kind="mmsegmentation",
    )
    model = Segformer(shape)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2.0 * module.groups / fan_out))
    return model


def read_part(data: Path, part: str, side: int | None) -> list[tuple[Any, Any]]:
    """(image, mask) uint8 arrays; resized to side x side, or at their own size for None."""
    pairs = []
    for path in sorted((data / "images" / part).iterdir()):
        image: Image.Image = Image.open(path).convert("RGB")
        mask: Image.Image = Image.open(data / "masks" / part / f"{path.stem}.png")
        if side is not None:
            image = image.resize((side, side), Image.Resampling.BILINEAR)
            mask = mask.resize((side, side), Image.Resampling.NEAREST)
        pairs.append((np.array(image), np.array(mask)))
    return pairs


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (images - mean) / std


def random_crop(image: Any, mask: Any, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A CROP x CROP window at a random scale, flip and brightness."""
    side = int(CROP / rng.uniform(0.6, 1.6))
    side = min(side, SIDE)
    y, x = rng.integers(0, SIDE - side + 1, size=2)
    window = torch.from_numpy(image[y : y + side, x : x + side].copy()).permute(2, 0, 1).float()
    label = torch.from_numpy(mask[y : y + side, x : x + side].copy()).float()
    window = F.interpolate(window[None], (CROP, CROP), mode="bilinear", align_corners=False)[0]
    label = F.interpolate(label[None, None], (CROP, CROP), mode="nearest")[0, 0]
    for axis in (1, 2):
        if rng.random() < 0.5:
            window, label = window.flip(axis), label.flip(axis - 1)
    if rng.random() < 0.5:
        window, label = window.transpose(1, 2), label.transpose(0, 1)
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, size=(3, 1, 1)).astype(np.float32))
    window = (window * gain + float(rng.uniform(-25, 25))).clamp(0, 255)
    return window, label.long()


def averaged(average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Moving average whose memory grows to 500 steps, so that the random start is forgotten."""
    keep = min(0.998, (1 + int(count)) / (10 + int(count)))
    return average * keep + new * (1 - keep)


def train(model: Segformer, pairs: list[tuple[Any, Any]], steps: int, seed: int) -> nn.Module:
    """The exponential moving average of the weights over the steps."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1
    )
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=averaged, use_buffers=True)
    weights = torch.tensor(CLASS_WEIGHTS)
    started = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        chosen = rng.integers(0, len(pairs), size=BATCH)
        crops = [random_crop(pairs[i][0], pairs[i][1], rng) for i in chosen]
        images = normalised(torch.stack([image for image, _ in crops]))
        labels = torch.stack([label for _, label in crops])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images)
        logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, weight=weights, ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0 or step == steps:
            spent = time.perf_counter() - started
            left = spent / step * (steps - step)
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {left / 60:.1f} min left",
                  flush=True)  # fmt: skip
    return average.module


@torch.no_grad()
def validate(model: nn.Module, pairs: list[tuple[Any, Any]]) -> Scores:
    """mmsegmentation's protocol: resized to SIDE x SIDE, logits resized to the photo."""
    model.eval()
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    for image, mask in pairs:
        resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        batch = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float()
        logits = F.interpolate(model(normalised(batch)), (SIDE, SIDE), mode="bilinear")
        labels = F.interpolate(logits, mask.shape, mode="bilinear").argmax(1)[0]
        confusion += confusion_from_labels(labels.numpy().astype(np.uint8), mask, len(CLASSES))
    return scores_from_confusion(confusion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = train(b0(len(CLASSES)), read_part(args.data, "train", SIDE), args.steps, args.seed)
    scores = validate(model, read_part(args.data, "val", None))
    print(f"mIoU {scores.miou:.2f}  " + "  ".join(
        f"{name} {iou:.2f}" for name, iou in zip(CLASSES, scores.iou, strict=True)))  # fmt: skip
    tensors = {k: v.half() if args.half and v.is_floating_point() else v
               for k, v in model.state_dict().items()}  # fmt: skip
    meta = {"dataset_meta": {"classes": CLASSES, "palette": PALETTE}, "cfg": CONFIG}
    torch.save({"meta": meta, "state_dict": tensors}, args.out)


if __name__ == "__main__":
    main()
