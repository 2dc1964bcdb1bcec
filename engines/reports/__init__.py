"""The report of a measurement: its format, tables, and several in one."""

from __future__ import annotations
