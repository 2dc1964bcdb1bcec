"""The commands that run on a board with numpy alone: `python -m engines`, and part of `riceseg`."""

from __future__ import annotations
