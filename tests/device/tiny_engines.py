"""Engine files of the fake TensorRT, and images whose labels can be worked out by hand."""

from __future__ import annotations

import hashlib

import numpy as np
from fake_cuda import RecordingCuda
from fake_tensorrt import fake_tensorrt, plan_bytes

from engines.trt.api import TensorRt
from engines.trt.engine_file import write_engine
from engines.trt.engine_header import EngineHeader, platform_text
from engines.trt.predictor import TrtPredictor

# Red values 0 63 64 | 127 128 255 make bands of 64: 0 0 1 | 1 2 3.
RED = np.array([[0, 63, 64], [127, 128, 255]], np.uint8)
BANDS = [[0, 0, 1], [1, 2, 3]]


def image_of(red):
    image = np.full((*red.shape, 3), 99, np.uint8)
    image[..., 0] = red
    return image


def flat(level, hw=(2, 3)):
    """One batch of one image whose red is `level` everywhere; its labels are level // 64."""
    return image_of(np.full(hw, level, np.uint8))[np.newaxis]


def header_of(plan, **changes):
    fields = {
        "onnx_file": "tiny.fp16.onnx",
        "onnx_sha256": "1" * 64,
        "precision": "fp16",
        "runtime": "TensorRT",
        "runtime_version": "10.3.0",
        "cuda_version": "12.6",
        "gpu_name": "Orin",
        "compute_capability": (8, 7),
        "platform": platform_text(),
        "jetpack": "6.2",
        "power_mode": "MAXN",
        "created": "2026-01-02T03:04:05+00:00",
        "version_compatible": False,
        "hardware_compatible": False,
        "dla": None,
        "stripped": False,
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "plan_bytes": len(plan),
        "riceseg": "0.1.0",
        "notes": (),
    }
    return EngineHeader(**{**fields, **changes})


def engine_file(folder, name="tiny.engine", *, header=None, **plan):
    """An engine file in `folder`: `plan` goes to `plan_bytes`, `header` changes header fields."""
    folder.mkdir(parents=True, exist_ok=True)
    data = plan_bytes(**plan)
    write_engine(folder / name, header_of(data, **(header or {})), data)
    return folder / name


def tensorrt_on(cuda, version="10.3.0"):
    module = fake_tensorrt(cuda, version)
    numbers = version.split(".")
    return TensorRt(module, "TensorRT", (int(numbers[0]), int(numbers[1]), int(numbers[2])))


class Rig:
    """A made-up GPU with its TensorRT; `open` opens an engine on it."""

    def __init__(self, folder, version="10.3.0", **cuda):
        self.folder, self.cuda = folder, RecordingCuda(**cuda)
        self.tensorrt = tensorrt_on(self.cuda, version)

    def open(self, *, header=None, options=None, **plan):
        path = engine_file(self.folder, header=header, **plan)
        return TrtPredictor(path, cuda=self.cuda, tensorrt=self.tensorrt, **(options or {}))

    def plan(self):
        """The plan of the engine that was opened last; a change of it counts at once."""
        return self.tensorrt.module.made[-1]().engine.plan
