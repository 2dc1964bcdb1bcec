"""Images larger than the network and than the memory: orthomosaics as GeoTIFF."""

from __future__ import annotations
