"""Five-band scenes: their files, and how bands become the image that the network was trained on."""

from __future__ import annotations
