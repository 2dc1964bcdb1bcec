"""Published weights: one file of tables per family, the place that lists them, and the search."""

from exporter.zoo.entry import ZooEntry
from exporter.zoo.listing import ZOO, alternatives, matching, zoo_entry

__all__ = ["ZOO", "ZooEntry", "alternatives", "matching", "zoo_entry"]
