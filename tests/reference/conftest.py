"""Tests against mmsegmentation and transformers; they need the `reference` extra.

Run in a virtual environment of their own: python -m pytest tests/reference
"""

from __future__ import annotations

import pytest
from random_models import stand_in_for_compiled_ops

stand_in_for_compiled_ops()  # before any test module imports mmseg


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        # Imports of mmengine and mmcv 2.1 with current PyTorch.
        "ignore:`torch.jit:DeprecationWarning",
        "ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning",
        # mmsegmentation building its own heads, of two classes too.
        "ignore:``build_loss`` would be deprecated soon:UserWarning",
        "ignore:Default ``avg_non_ignore`` is False:UserWarning",
        "ignore:For binary segmentation, we suggest:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", line)
