"""Label every frame of a camera or a video: python camera.py BUNDLE [SOURCE]

SOURCE: a number (USB camera), a video file, `csi` (Jetson's CSI camera) or a GStreamer pipeline.
Shows the frames with the classes in colour; `q` ends. Needs OpenCV (on a Jetson: JetPack's own,
which knows GStreamer; the opencv-python package does not).
"""

import sys

import cv2
import numpy as np

from engines import Segmenter

CSI = (
    "nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! "
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
    "appsink drop=true max-buffers=2"
)


def frames(source, seen):
    """RGB frames until the source ends; `seen` keeps those whose labels are still to come."""
    if source == "csi":
        source = CSI
    if "!" in source:
        camera = cv2.VideoCapture(source, cv2.CAP_GSTREAMER)
    else:
        camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        sys.exit(f"error: {source!r} cannot be opened by OpenCV")
    try:
        while True:
            there, bgr = camera.read()
            if not there:
                return
            seen.append(bgr)
            yield bgr[..., ::-1]  # OpenCV gives BGR, the network takes RGB
    finally:
        camera.release()


def main(bundle, source="0", show=cv2.imshow):
    count = 0
    with Segmenter.open(bundle) as segmenter:
        print(segmenter.runtime, segmenter.precision)
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(segmenter.palette)] = segmenter.palette
        seen = []
        for labels in segmenter.stream(frames(source, seen)):
            bgr = seen.pop(0)
            show("labels", cv2.addWeighted(bgr, 0.5, colours[labels][..., ::-1], 0.5, 0))
            count += 1
            if show is cv2.imshow and cv2.waitKey(1) == ord("q"):
                break
    return count


if __name__ == "__main__":
    main(*sys.argv[1:3])
