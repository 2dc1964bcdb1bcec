"""What an engine file says of itself, and whether that fits the machine it is opened on."""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Optional, Tuple

from engines.bundle_fields import FILE_NAME, Field, Source, field_from_json
from engines.errors import EngineError
from engines.trt.api import TENSORRT_RTX, version_from_text

FORMAT = "riceseg-engine"
FORMAT_VERSION = 1

MAX_HEADER_BYTES = 1_000_000
MAX_PLAN_BYTES = 4 * 2**30  # twice the largest ONNX file

BUILD_AGAIN = "build it again with `riceseg build`"

# A version-compatible plan runs on newer minors, and on the next major in these steps only (from
# the support matrix of TensorRT 11.4.1: 8 on 10 and 10 on 11, and no other).
_NEXT_MAJOR = {8: 10, 10: 11}

AMPERE = (8, 0)


@dataclass(frozen=True)
class FusionCounts:
    """Attention blocks and LayerNorms of the graph, and what the builder's log told of them.

    `attention_recognised`: it called them self-attention, which is no promise; `..._fused`: one
    layer of the engine holds all of it. None where the log does not tell.
    """

    attention_blocks: int
    attention_recognised: Optional[int]
    attention_fused: Optional[int]
    layer_norms: int
    layer_norms_fused: Optional[int]


@dataclass(frozen=True)
class EngineHeader:
    """What an engine file says of itself.

    `gpu_name` and `compute_capability` are None for an engine that is not tied to one GPU (built
    ahead of time by TensorRT-RTX). `dla` is the core it runs on. A `stripped` engine needs the
    weights of its ONNX file before it runs. `cuda_version` is the newest that the builder's driver
    supports, `platform` the system and processor, "linux-aarch64". `fusion` is None in files of
    before it was there. An engine that `takes_bands` composes them into images by itself.
    """

    onnx_file: str
    onnx_sha256: str
    precision: str
    runtime: str
    runtime_version: str
    cuda_version: Optional[str]
    gpu_name: Optional[str]
    compute_capability: Optional[Tuple[int, int]]
    platform: str
    jetpack: Optional[str]
    power_mode: Optional[str]
    created: str
    version_compatible: bool
    hardware_compatible: bool
    dla: Optional[int]
    stripped: bool
    plan_sha256: str
    plan_bytes: int
    riceseg: str
    notes: Tuple[str, ...] = ()
    fusion: Optional[FusionCounts] = None
    takes_bands: bool = False


@dataclass(frozen=True)
class Here:
    """The machine an engine is to run on; `platform` as in the header."""

    runtime: str
    version: Tuple[int, int, int]
    gpu_name: str
    compute_capability: Tuple[int, int]
    platform: str = ""


def platform_text() -> str:
    """System and processor of this machine: "linux-aarch64"."""
    return f"{platform.system().lower()}-{platform.machine()}"


def misfits(header: EngineHeader, here: Here) -> Tuple[str, ...]:
    """What keeps the engine from running here, one comparison a line; () when it fits.

    TensorRT's own rules. Without `version_compatible` the version must be the same, with it this
    one may be newer. Without `hardware_compatible` the GPU must be the same: TensorRT itself
    refuses another compute capability, and of another model of the same capability it says "likely
    to affect performance or even cause errors" and some engines then fail (NVIDIA/TensorRT issues
    2900 and 3829), so that is a misfit too. An engine of TensorRT-RTX fits every GPU from Ampere on
    and no other release.
    """
    if header.runtime != here.runtime:
        return (f"built by {header.runtime}, this is {here.runtime}",)
    lines = _version_misfits(header, here)
    if header.runtime == TENSORRT_RTX:
        lines += _below_ampere(header, here)
        return tuple(lines)
    if here.platform and header.platform != here.platform:
        lines.append(f"built on {header.platform}, this is {here.platform}")
    if header.hardware_compatible:
        lines += _below_ampere(header, here)
    elif (header.gpu_name, header.compute_capability) != (here.gpu_name, here.compute_capability):
        built = gpu_text(header.gpu_name, header.compute_capability)
        lines.append(
            f"built for {built}, this is {gpu_text(here.gpu_name, here.compute_capability)}"
        )
    return tuple(lines)


def check_fits(header: EngineHeader, here: Here, path: Path) -> None:
    """EngineError with every misfit and the command that rebuilds, unless `path` fits here."""
    lines = misfits(header, here)
    if lines:
        raise EngineError(
            f"{path.name!r}, {'; '.join(lines)}",
            expected="an engine that was built for this GPU and this version",
            do=rebuild_command(header, path),
        )


def rebuild_command(header: EngineHeader, path: Path) -> str:
    """The command that builds the engine at `path` for this machine, with the same options."""
    folder = path.absolute().parent.parent
    source = str(folder) if (folder / FILE_NAME).is_file() else header.onnx_file
    words = ["riceseg build", shlex.quote(source), f"--precision {header.precision}"]
    words += ["--rtx"] if header.runtime == TENSORRT_RTX else []
    words += ["--version-compatible"] if header.version_compatible else []
    words += ["--hardware-compatible"] if header.hardware_compatible else []
    words += [f"--dla {header.dla}"] if header.dla is not None else []
    words += ["--strip-weights"] if header.stripped else []
    words += ["--fused"] if header.takes_bands and source != header.onnx_file else []
    return " ".join(words)


def gpu_text(name: Optional[str], capability: Optional[Tuple[int, int]]) -> str:
    """ "Orin (8.7)"."""
    shown = "any GPU" if name is None else name
    return shown if capability is None else f"{shown} ({capability[0]}.{capability[1]})"


def _version_misfits(header: EngineHeader, here: Here) -> List[str]:
    built = version_from_text(header.runtime_version)
    if built == here.version:
        return []
    shown = ".".join(str(part) for part in here.version)
    line = f"built with {header.runtime} {header.runtime_version}, this is {shown}"
    if not header.version_compatible:
        return [line]
    same_major = built[0] == here.version[0] and built < here.version
    if same_major or _NEXT_MAJOR.get(built[0]) == here.version[0]:
        return []
    return [f"{line}, which is not one of the versions that a version-compatible engine runs on"]


def _below_ampere(header: EngineHeader, here: Here) -> List[str]:
    if here.compute_capability >= AMPERE:
        return []
    return [
        f"built for compute capability 8.0 (Ampere) and newer, this is "
        f"{gpu_text(here.gpu_name, here.compute_capability)}"
    ]


def json_from_header(header: EngineHeader) -> bytes:
    """The header as a file holds it; EngineError when it could not be read back."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(header)}
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise EngineError(
            f"a header that JSON cannot hold ({error})",
            expected="text, numbers and flags",
            do="correct the value",
        ) from error
    header_from_json(text)
    return text


def header_from_json(text: bytes, file_name: str = "") -> EngineHeader:
    """Read and check the header of the file `file_name`; EngineError unless it is valid."""
    of_file = f" of {file_name!r}" if file_name else ""
    source = Source(f"the engine's header{of_file}", EngineError, BUILD_AGAIN, MAX_HEADER_BYTES)
    root = field_from_json(text, source)
    root["format"].one_of(FORMAT)
    if root["format_version"].integer(1, 1_000_000) != FORMAT_VERSION:
        raise EngineError(
            f"an engine{of_file and f' {file_name!r}'} of format version "
            f"{root['format_version'].value}",
            expected=f"format version {FORMAT_VERSION}",
            do=f"install a newer riceseg, or {BUILD_AGAIN}",
        )
    return EngineHeader(
        onnx_file=root["onnx_file"].text(),
        onnx_sha256=root["onnx_sha256"].sha256(),
        precision=root["precision"].one_of("fp32", "fp16", "int8"),
        runtime=root["runtime"].one_of("TensorRT", "TensorRT-RTX"),
        runtime_version=_version_text(root["runtime_version"]),
        cuda_version=root["cuda_version"].or_none(Field.text),
        gpu_name=root["gpu_name"].or_none(Field.text),
        compute_capability=root["compute_capability"].or_none(_pair),
        platform=root["platform"].text(),
        jetpack=root["jetpack"].or_none(Field.text),
        power_mode=root["power_mode"].or_none(Field.text),
        created=root["created"].text(),
        version_compatible=root["version_compatible"].flag(),
        hardware_compatible=root["hardware_compatible"].flag(),
        dla=root["dla"].or_none(lambda field: field.integer(0, 15)),
        stripped=root["stripped"].flag(),
        plan_sha256=root["plan_sha256"].sha256(),
        plan_bytes=root["plan_bytes"].integer(1, MAX_PLAN_BYTES),
        riceseg=root["riceseg"].text(),
        notes=tuple(note.text(2_000) for note in root["notes"].entries(0, 100)),
        fusion=root["fusion"].or_none(_fusion) if "fusion" in root.record() else None,
        takes_bands="takes_bands" in root.record() and root["takes_bands"].flag(),
    )


def _fusion(field: Field) -> FusionCounts:
    def count(key: str) -> int:
        return field[key].integer(0, 1_000_000)

    def told(key: str) -> Optional[int]:
        return field[key].or_none(lambda found: found.integer(0, 1_000_000))

    return FusionCounts(
        attention_blocks=count("attention_blocks"),
        attention_recognised=told("attention_recognised"),
        attention_fused=told("attention_fused"),
        layer_norms=count("layer_norms"),
        layer_norms_fused=told("layer_norms_fused"),
    )


def _version_text(field: Field) -> str:
    text = field.text()
    parts = text.split(".")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) <= 4 for p in parts):
        raise field.refused("three numbers with dots, such as 10.3.0")
    return text


def _pair(field: Field) -> Tuple[int, int]:
    major, minor = (number.integer(0, 99) for number in field.entries(2, 2))
    return major, minor
