"""TensorRT and TensorRT-RTX: engines are built from ONNX, kept in files with a header, and run."""

from __future__ import annotations
