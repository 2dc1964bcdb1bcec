"""The board that figures are measured on: what it is, its settings, its power and temperature.

`root` of these functions is where /sys, /proc, /etc and /dev are looked for.
"""

from __future__ import annotations

from engines.board.compare import comparable
from engines.board.machine import machine_record, package_versions
from engines.board.telemetry import Telemetry

__all__ = ["Telemetry", "comparable", "machine_record", "package_versions"]
