"""Whether figures of two machines may stand side by side without a word."""

from __future__ import annotations

from typing import Any, List, Mapping, Tuple


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> Tuple[str, ...]:
    """Why speed and power of two machine records cannot be compared as they are; () if they can.

    Each line names what differs and both values, `a`'s first: device, power mode, power limit,
    clocks held or not, and the GPU's highest clock. Between two devices a setting that one of them
    does not have is no difference of its own; on the same device an unknown one is.
    """
    lines: List[str] = []
    same_device = _device(a) == _device(b)
    if not same_device:
        lines.append(f"device: {_device(a)} against {_device(b)}")
    elif _shown(a.get("cpu")) != _shown(b.get("cpu")):
        lines.append(f"processor: {_shown(a.get('cpu'))} against {_shown(b.get('cpu'))}")
    for title, key, unit in (
        ("power mode", "power_mode", ""),
        ("power limit", "power_limit_w", "W"),
    ):
        lines += _difference(title, (a.get(key), b.get(key)), unit, missing_counts=same_device)
    fixed = (_held(_clock(a, "fixed")), _held(_clock(b, "fixed")))
    lines += _difference("clocks", fixed, "", missing_counts=same_device)
    highest = (_clock(a, "gpu_max_mhz"), _clock(b, "gpu_max_mhz"))
    if same_device:
        lines += _difference("highest GPU clock", highest, "MHz", missing_counts=False)
    return tuple(lines)


def _difference(
    title: str, values: Tuple[Any, Any], unit: str, *, missing_counts: bool
) -> List[str]:
    if values[0] == values[1] or (None in values and not missing_counts):
        return []
    first, second = (f"{_shown(v)} {unit}".strip() if v is not None else _shown(v) for v in values)
    return [f"{title}: {first} against {second}"]


def _device(record: Mapping[str, Any]) -> str:
    return _shown(record.get("device") or record.get("cpu"))


def _clock(record: Mapping[str, Any], key: str) -> Any:
    clocks = record.get("clocks")
    return clocks.get(key) if isinstance(clocks, Mapping) else None


def _held(fixed: Any) -> Any:
    return None if fixed is None else "held (jetson_clocks)" if fixed else "free"


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    return f"{value:g}" if isinstance(value, float) else str(value)
