from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from small_graphs import block_model, model_from_text, random_images

from calibration.watch import watch_images


def test_at_most_so_many_different_images_are_kept_the_same_ones_every_time() -> None:
    images = random_images(40)
    kept = [watch_images(block_model(), images, counted=(), reduced=("q",), keep=4).kept] * 2
    places = [
        [i for i, image in enumerate(images) if image is not k and (image == k).all()]
        for k in kept[0]
    ]
    assert [len(found) for found in places] == [1, 1, 1, 1]
    assert len({found[0] for found in places}) == 4
    assert max(found[0] for found in places) >= 20  # not merely the first ones


def test_all_images_are_kept_where_there_are_no_more() -> None:
    images = random_images(3)
    kept = watch_images(block_model(), images, counted=(), reduced=("q",), keep=4).kept
    assert len(kept) == 3
    assert all(map(np.array_equal, kept, images))


def test_what_is_kept_does_not_change_with_the_callers_buffer() -> None:
    def reused() -> Iterator[np.ndarray]:
        buffer = np.empty((8, 8, 3), np.uint8)
        for value in (1, 2, 3):
            buffer[...] = value
            yield buffer

    kept = watch_images(block_model(), reused(), counted=(), reduced=("q",), keep=3).kept
    assert [int(image[0, 0, 0]) for image in kept] == [1, 2, 3]


def test_tensors_are_counted_or_only_reduced() -> None:
    watched = watch_images(block_model(), random_images(2), counted=("q",), reduced=("sum",))
    assert set(watched.histograms) == {"q"}
    assert watched.histograms["q"].counts.sum() == 2 * 16 * 8
    assert set(watched.extremes) == {"sum"}
    low, high = watched.extremes["sum"]
    assert low < high
    assert watched.kept == ()


def test_a_sampled_tensor_is_seen_on_the_first_images_alone() -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1, 1, 1, 1] image) => (float[1, 1, 1, 1] y)
        { x = Cast <to = 1> (image)  twice = Add (x, x)  y = Relu (twice) }"""
    )
    # 40 + i on image i; the largest values come where a sampled tensor is not looked at.
    values = [40 + i for i in range(40)]
    values[33], values[36], values[39] = 250, 251, 255
    images = [np.full((1, 1, 1), value, dtype=np.uint8) for value in values]
    watched = watch_images(model, images, counted=(), reduced=("x",), sampled=("twice",))
    assert watched.extremes == {"x": (40.0, 255.0), "twice": (80.0, 2.0 * (40 + 31))}


# A chain of 150 tensors of 3 MB each. MiB that it takes to see an image, at the most of the time.
CHAIN = """
import re
import numpy as np, onnx
from calibration.watch import watch_images

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

nodes = "".join(f"x{i} = {op} (x{i - 1}) " for i, op in zip(range(1, 151), ("Sin", "Cos") * 75))
model = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (uint8[1, 512, 512, 3] image) => '
    "(float[1, 512, 512, 3] x150) { x0 = Cast <to = 1> (image) " + nodes + "}"
)
tensors = [f"x{i}" for i in range(151)]
before = 0

def images():
    global before
    before = most()
    yield np.full((512, 512, 3), 1, np.uint8)

extremes = watch_images(model, images(), counted=(), reduced=tensors).extremes
print(most() - before, extremes["x1"][0], extremes["x2"][1])
"""


def test_tensors_that_are_reduced_do_not_wait_for_one_another() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHAIN],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes, sine, cosine = map(float, run.stdout.split())
    assert abs(sine - math.sin(1)) < 1e-6
    assert abs(cosine - math.cos(math.sin(1))) < 1e-6
    assert megabytes < 100  # all of them together have 450
