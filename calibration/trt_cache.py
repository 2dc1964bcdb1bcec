"""The ranges as a TensorRT calibration cache, for the implicit INT8 of TensorRT 8 to 10.

trtexec (--calib) and DeepStream (int8-calib-file) read it with the FP32 ONNX file. It holds what
the layers that the Q/DQ graph runs in INT8 read and write, and what Transposes and Reshapes make of
that: implicit INT8 falls back to floating point for a layer of which it does not know both. Nothing
else is in it, so that attention products, softmax, residual sums, LayerNorm and GELU stay in
floating point; nor is the image, for TensorRT gives no range to a UINT8 tensor.

It cannot hold weights that the parser turns into layers of their own, which it does for a MatMul:
their names ("(Unnamed Layer* 8) [Constant]_output" in 8.5) are the parser's. `riceseg build
--implicit-int8` adds their lines when it has parsed the graph; with this file alone convolutions
run in INT8 and MatMuls fall back. The Q/DQ graph is the one to build from; TensorRT 11 has no
implicit INT8.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from calibration.ranges import Ranges
from engines.errors import ConfigError, GraphError, OutputError


def calibration_cache_from_ranges(ranges: Ranges, *, tensorrt_version: str = "8601") -> str:
    """One line per tensor: its name and amax / 127 as the hex digits of a big-endian float32.

    tensorrt_version is what the first line bears: 8601 is 8.6.1, 100300 is 10.3.0. A runtime
    may refuse a cache with another version than its own, and the build then fails.
    """
    if not re.fullmatch(r"[0-9]{4,6}", tensorrt_version):
        raise ConfigError(
            f"the TensorRT version {tensorrt_version!r}",
            expected="four to six digits, as 8601 for 8.6.1 or 100300 for 10.3.0",
            do="correct it",
        )
    # EntropyCalibration2 whatever the method was: it is the calibrator that trtexec and DeepStream
    # use, and a cache of another calibrator is ignored.
    lines = [f"TRT-{tensorrt_version}-EntropyCalibration2"]
    for name, tensor in {**ranges.tensors, **ranges.implicit}.items():
        if not name or re.search(r"[\x00-\x1f\x7f]", name):
            raise GraphError(
                f"the tensor name {name!r}", expected="a printable name", do="rename the tensor"
            )
        lines.append(f"{name}: {struct.pack('>f', tensor.amax / 127).hex()}")
    return "\n".join(lines) + "\n"


def write_calibration_cache(
    ranges: Ranges, out_path: str | Path, *, tensorrt_version: str = "8601"
) -> None:
    out_path = Path(out_path)
    text = calibration_cache_from_ranges(ranges, tensorrt_version=tensorrt_version)
    temporary = out_path.with_name(f".{out_path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out_path)
    except OSError as error:
        raise OutputError(
            f"{out_path}, not writable ({error.strerror})",
            expected="a path in an existing, writable folder",
            do="create the folder or choose another one",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
