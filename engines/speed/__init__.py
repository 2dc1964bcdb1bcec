"""Latency, rate, memory and power of graphs and engines."""

from __future__ import annotations
