"""Train the smallest network of each family for some minutes, by mmsegmentation and its loss.

No trained weights of them may be redistributed, and random ones say little about INT8: their
activations have no outliers and their answer no margin. A few hundred steps give both. Data as for
scripts/train_demo.py; images are halved, crops are SIDE x SIDE. Runs in the environment of the
`reference` extra and writes FOLDER/FAMILY.pth, each a checkpoint as mmengine's runner writes it:

    PYTHONPATH=. python scripts/train_short.py DATA --family knet --out FOLDER --steps 300
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from engines.evaluation.scores import confusion_from_labels, scores_from_confusion

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("background", "crop", "weed")
PALETTE = ((0, 0, 0), (0, 255, 0), (255, 0, 0))
CLASS_WEIGHTS = (0.2, 1.0, 1.0)  # five pixels in six are background
SIDE, SHRINK = 160, 2
# Learning rates of AdamW: convolutional networks from scratch bear more than transformers.
NETWORKS = {
    "segmenter": ("segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py", 5e-4),
    "deeplabv3plus": ("deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py", 1e-3),
    "upernet": ("swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py", 3e-4),
    "knet": ("knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py", 3e-4),
    "mask2former": ("mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py", 3e-4),
}


def read_part(data: Path, part: str) -> list[tuple[Any, Any]]:
    """(RGB image, mask) uint8, both sides divided by SHRINK."""
    pairs = []
    for path in sorted((data / "images" / part).iterdir()):
        image: Image.Image = Image.open(path).convert("RGB")
        mask: Image.Image = Image.open(data / "masks" / part / f"{path.stem}.png")
        wh = (image.width // SHRINK, image.height // SHRINK)
        pairs.append(
            (
                np.array(image.resize(wh, Image.Resampling.BILINEAR)),
                np.array(mask.resize(wh, Image.Resampling.NEAREST)),
            )
        )
    return pairs


def batch_of(pairs: list[tuple[Any, Any]], size: int, rng: np.random.Generator) -> dict[str, Any]:
    """Random crops, turned and mirrored, as mmsegmentation's loader gives them (BGR)."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    inputs, samples = [], []
    for i in rng.integers(0, len(pairs), size=size):
        image, mask = pairs[i]
        y, x = (rng.integers(0, side - SIDE + 1) for side in mask.shape)
        window = np.s_[y : y + SIDE, x : x + SIDE]
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        image, mask = (np.rot90(a[window], turns) for a in (image, mask))
        if mirrored:
            image, mask = image[:, ::-1], mask[:, ::-1]
        bgr = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))
        inputs.append(torch.from_numpy(bgr))
        meta = {"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "pad_shape": (SIDE, SIDE)}
        sample = SegDataSample(metainfo=meta)
        label = torch.from_numpy(np.ascontiguousarray(mask)).long()[None]
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def train(model: Any, pairs: list[tuple[Any, Any]], options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    rate = NETWORKS[options.family][1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=options.steps, pct_start=0.15
    )
    started = time.perf_counter()
    model.train()
    for step in range(1, options.steps + 1):
        data = model.data_preprocessor(batch_of(pairs, options.batch, rng), training=True)
        losses = model.loss(data["inputs"], data["data_samples"])
        loss, _ = model.parse_losses(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == options.steps:
            left = (time.perf_counter() - started) / step * (options.steps - step) / 60
            print(f"step {step}/{options.steps}  loss {loss.item():.3f}  {left:.1f} min left",
                  flush=True)  # fmt: skip


@torch.no_grad()
def miou(model: Any, against: Any, pairs: list[tuple[Any, Any]]) -> float:
    """On whole images of the halved size."""
    model.eval()
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    preprocessor = model.data_preprocessor
    for image, mask in pairs:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        logits = against.their_logits(model, (x - preprocessor.mean) / preprocessor.std)
        labels = logits.argmax(1)[0].numpy().astype(np.uint8)
        confusion += confusion_from_labels(labels, mask, len(CLASSES))
    return float(scores_from_confusion(confusion).miou)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--family", choices=sorted(NETWORKS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "reference"))
    models = importlib.import_module("random_models")
    models.stand_in_for_compiled_ops()
    against = importlib.import_module("against_mmsegmentation")
    torch.manual_seed(0)

    def changed(config: Any) -> None:
        config.model.data_preprocessor.size = (SIDE, SIDE)
        config.model.decode_head.pop("init_cfg", None)
        if "img_size" in config.model.backbone:
            config.model.backbone.img_size = (SIDE, SIDE)
        config.model.test_cfg = {**config.model.test_cfg, "mode": "whole"}
        loss = config.model.decode_head.get("loss_decode")
        if isinstance(loss, dict) and loss["type"] == "CrossEntropyLoss":
            loss["class_weight"] = list(CLASS_WEIGHTS)

    variant = against.Variant(
        NETWORKS[options.family][0], {}, (SIDE, SIDE), (SIDE, SIDE), 1.0, len(CLASSES),
        change=changed,
    )  # fmt: skip
    config = against.configuration(variant)
    model = models.mmsegmentation_model(config)
    model.init_weights()
    train(model, read_part(options.data, "train"), options)
    print(f"mIoU {miou(model, against, read_part(options.data, 'val')):.2f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.family}.pth"
    models.save_as_mmengine_does(
        model, config, path, classes=len(CLASSES), names=CLASSES, palette=PALETTE
    )


if __name__ == "__main__":
    main()
