"""A GPU, a TensorRT on it, bundles and engines, for the tests in this folder.

They are not part of the default run: `python -m pytest tests/gpu` on a machine with a GPU. What is
missing there is skipped with the reason; with RICESEG_REQUIRE_FIXTURES=1 it fails instead.
Written for Python 3.8, which JetPack 5 has.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from gpu_bundles import DEMO, make_bundles

from engines.bundle import bundle_from_folder
from engines.cuda import open_cuda
from engines.errors import DeviceError, UserError
from engines.images import image_files_from, image_from_file
from engines.resize import network_image_from_image
from engines.trt.api import load_tensorrt
from engines.trt.build import BuildOptions, engine_from_bundle
from engines.trt.predictor import TrtPredictor
from tests.conftest import skip_or_fail


@pytest.fixture(scope="session")
def cuda():
    try:
        opened = open_cuda()
    except DeviceError as error:
        skip_or_fail(f"no GPU: {error}")
    with opened:
        yield opened


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt_rtx"])
def tensorrt(request, cuda):
    """Each TensorRT that is installed; one of them is enough."""
    others = {"tensorrt": "tensorrt_rtx", "tensorrt_rtx": "tensorrt"}
    if importlib.util.find_spec(request.param) is None:
        if importlib.util.find_spec(others[request.param]) is not None:
            pytest.skip(f"{request.param} is not installed; {others[request.param]} is tested")
        skip_or_fail(f"{request.param} is not installed")
    return load_tensorrt(rtx=request.param == "tensorrt_rtx")


@pytest.fixture(scope="session")
def bundles(cuda, tmp_path_factory):
    """A folder with the bundles `fixed` (batch 1) and `free` (1 to 4)."""
    given = os.environ.get("RICESEG_GPU_BUNDLES")
    if given:
        return Path(given)
    if importlib.util.find_spec("torch") is None:
        skip_or_fail("no torch to export with, and RICESEG_GPU_BUNDLES is not set")
    return make_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def engine(cuda, tensorrt, bundles):
    """engine("fp16", "fixed", fused=True): the record of a build, which happens once."""
    built = {}

    def build(precision="fp16", bundle="fixed", *, fused=False):
        key = (precision, bundle, fused)
        if key not in built:
            options = BuildOptions(precision=precision, rtx=tensorrt.is_rtx, fused=fused)
            built[key] = engine_from_bundle(bundles / bundle, options, cuda=cuda, tensorrt=tensorrt)
        return built[key]

    return build


@pytest.fixture
def opened(cuda, tensorrt, engine):
    """opened("fp16", "fixed", cuda_graph=False): a predictor, closed after the test."""
    made = []

    def open_engine(precision="fp16", bundle="fixed", *, fused=False, **options):
        path = engine(precision, bundle, fused=fused).path
        predictor = TrtPredictor(path, **{"cuda": cuda, "tensorrt": tensorrt, **options})
        made.append(predictor)
        return predictor

    yield open_engine
    for predictor in made:
        predictor.close()


@pytest.fixture(scope="session")
def images(bundles):
    """The validation photos of demo/ at the network's size, (N, H, W, 3) uint8."""
    spec = bundle_from_folder(bundles / "fixed").input
    files = image_files_from(DEMO / "images" / "validation")
    try:
        photos = [image_from_file(path) for path in files]
    except UserError as error:
        skip_or_fail(f"no photos: {error}")
    return np.stack(
        [network_image_from_image(photo, spec.hw, spec.rule, spec.pad_value) for photo in photos]
    )


@pytest.fixture(scope="session")
def expected(bundles, images):
    """expected("fp32"): labels of `images` by ONNX Runtime on the CPU from that file."""
    if importlib.util.find_spec("onnxruntime") is None:
        skip_or_fail("no onnxruntime to compare with")
    from engines.onnx_predictor import OnnxPredictor

    answers = {}

    def labels_by(precision):
        if precision not in answers:
            name = bundle_from_folder(bundles / "fixed").files[precision].file
            predictor = OnnxPredictor(bundles / "fixed" / name)
            answers[precision] = predictor.labels(images)
            predictor.close()
        return answers[precision]

    return labels_by
