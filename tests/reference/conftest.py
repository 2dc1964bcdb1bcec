"""Tests against mmsegmentation and transformers; they need the `reference` extra.

Run in a virtual environment of their own: python -m pytest tests/reference
"""

from __future__ import annotations

import pytest
from random_models import stand_in_for_compiled_ops

stand_in_for_compiled_ops()  # before any test module imports mmseg


from against_mmsegmentation import case, parametrised  # noqa: E402

__all__ = ["case"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrised(metafunc)


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "ignore:torch.meshgrid:UserWarning",  # mmdetection's point generator
        # Imports of mmengine and mmcv 2.1 with current PyTorch.
        "ignore:`torch.jit:DeprecationWarning",
        "ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning",
        # mmsegmentation building its own heads, of two classes too, and K-Net's stages.
        'ignore:"dropout" is deprecated in `FFN.__init__`:DeprecationWarning',
        "ignore:``build_loss`` would be deprecated soon:UserWarning",
        "ignore:Default ``avg_non_ignore`` is False:UserWarning",
        "ignore:For binary segmentation, we suggest:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", line)
