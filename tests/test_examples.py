"""The programs in docs/examples run: the camera loop on a video, the ROS 2 node on stand-ins."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.tiny_models import bands_model, bundle_document, file_entry, write_document, write_onnx

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
README = (EXAMPLES.parents[1] / "README.md").read_text(encoding="utf-8")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Its label is a pixel's red value // 64."""
    folder = tmp_path / "bundle"
    path = write_onnx(bands_model((8, 8)), folder / "model.onnx")
    document = bundle_document(hw=(8, 8), files={"fp32": file_entry(path, folder)})
    return write_document(document, folder)


def test_the_camera_loop_labels_every_frame_of_a_video_in_order(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reds = [0, 96, 160, 224]  # the middle of a band each, so that the codec's losses do not matter
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for red in reds:
        video.write(np.full((48, 64, 3), (10, 10, red), np.uint8))  # BGR
    video.release()
    camera = example("camera")
    shown: list[Any] = []
    count = camera.main(
        bundle, str(tmp_path / "v.avi"), show=lambda title, picture: shown.append(picture)
    )
    assert count == 4
    # Half the frame, half the colour of its class; the palette's red of class i is 10 i.
    for i, picture in enumerate(shown):
        assert picture.shape == (48, 64, 3)
        assert abs(float(picture[..., 2].mean()) - (reds[i] + 10 * i) / 2) <= 4


def test_a_source_that_cannot_be_opened_is_said(bundle: Path) -> None:
    with pytest.raises(SystemExit, match=r"'nowhere.avi' cannot be opened"):
        example("camera").main(bundle, "nowhere.avi", show=lambda *_: None)


def test_the_ros_node_publishes_labels_with_the_time_of_their_image(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Any] = []

    class Node:
        def __init__(self, name: str) -> None:
            self.subscriptions: dict[str, Any] = {}

        def declare_parameter(self, name: str, value: str) -> None:
            assert name == "bundle"

        def get_parameter(self, name: str) -> Any:
            return SimpleNamespace(value=str(bundle))

        def get_logger(self) -> Any:
            return SimpleNamespace(info=lambda text: None)

        def create_publisher(self, kind: Any, topic: str, qos: Any) -> Any:
            assert topic == "labels"
            return SimpleNamespace(publish=published.append)

        def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any) -> None:
            assert topic == "image"
            self.callback = callback

        def destroy_node(self) -> None:
            pass

    class CvBridge:
        def imgmsg_to_cv2(self, message: Any, desired_encoding: str) -> Any:
            assert desired_encoding == "rgb8"
            return message.pixels

        def cv2_to_imgmsg(self, pixels: Any, encoding: str) -> Any:
            assert encoding == "mono8"
            return SimpleNamespace(pixels=pixels, header=None)

    stand_ins = {
        "rclpy": {},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"qos_profile_sensor_data": None},
        "cv_bridge": {"CvBridge": CvBridge},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": object},
    }
    for name, members in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    node = example("ros2_node").SegmenterNode()
    pixels = np.full((8, 8, 3), 200, np.uint8)
    node.callback(SimpleNamespace(pixels=pixels, header="12:00:00"))
    node.destroy_node()
    assert published[0].header == "12:00:00"
    assert published[0].pixels.tolist() == [[3] * 8] * 8


def test_the_readme_s_camera_loop_is_python() -> None:
    block = README.partition("```py\n")[2].partition("```")[0]
    compile(block, "README.md", "exec")
    assert "segmenter.stream(" in block
