"""mIoU and agreement with PyTorch, on a workstation and on a board."""

from __future__ import annotations
