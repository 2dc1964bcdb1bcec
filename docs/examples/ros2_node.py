"""A ROS 2 node: sensor_msgs/Image in on `image`, labels out on `labels` (mono8, class index).

ros2 run needs no package for it: python3 ros2_node.py --ros-args -p bundle:=/path/to/bundle
"""

import rclpy
from cv_bridge import CvBridge
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from engines import Segmenter


class SegmenterNode(Node):
    """Labels each image; while one is being worked on, older ones are dropped, not queued."""

    def __init__(self):
        super().__init__("riceseg")
        self.declare_parameter("bundle", "bundle")
        self.segmenter = Segmenter.open(self.get_parameter("bundle").value)
        self.get_logger().info(f"{self.segmenter.runtime}, classes: {self.segmenter.classes}")
        self.bridge = CvBridge()
        self.publisher = self.create_publisher(Image, "labels", qos_profile_sensor_data)
        self.create_subscription(Image, "image", self.on_image, qos_profile_sensor_data)

    def on_image(self, message):
        rgb = self.bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
        labels = self.bridge.cv2_to_imgmsg(self.segmenter(rgb), encoding="mono8")
        labels.header = message.header  # the time stamp of the image, for whoever fuses them
        self.publisher.publish(labels)

    def destroy_node(self):
        self.segmenter.close()
        super().destroy_node()


def main():
    rclpy.init()
    node = SegmenterNode()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
