"""`build`: a TensorRT engine from a bundle or an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Tuple

from engines.bundle_fields import FILE_NAME
from engines.commands.parsing import Command, batch_range, count
from engines.errors import ConfigError
from engines.progress import Progress, duration_text, printable

PRECISIONS = ("fp32", "fp16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="BUNDLE|ONNX", help="what to build from")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="default of a bundle: int8 if it passed its gate, else fp16, else fp32; of a file: as "
        "its types say (fp32 without FP16 or INT8 in it)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="engine of an ONNX file  [FILE.engine beside it]"
    )
    parser.add_argument(
        "--workspace", type=count(1, 1_000_000), metavar="MB", help="limit of one layer's scratch"
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="instead of the one in the user's cache"
    )
    parser.add_argument(
        "--batch", type=batch_range, metavar="MIN:OPT:MAX", help="of an ONNX file with free batch"
    )
    parser.add_argument(
        "--version-compatible", action="store_true", help="for newer TensorRTs of the same major"
    )
    parser.add_argument(
        "--hardware-compatible", action="store_true", help="for every GPU from Ampere on"
    )
    parser.add_argument("--dla", type=count(0, 15), metavar="N", help="run on this DLA core")
    parser.add_argument(
        "--strip-weights", action="store_true", help="without weights; they are put in when opened"
    )
    parser.add_argument("--refit", action="store_true", help="weights may be exchanged later")
    parser.add_argument(
        "--opt-level", type=count(0, 5), metavar="0-5", help="longer builds, faster engines"
    )
    parser.add_argument(
        "--implicit-int8",
        action="store_true",
        help="TensorRT up to 10: ranges from the calibration cache (or --calib) instead of Q/DQ",
    )
    parser.add_argument(
        "--calib", type=Path, metavar="DIR", help="images for --implicit-int8 without a cache"
    )
    parser.add_argument(
        "--fused", action="store_true", help="the bundle's graph that takes bands (--fuse-bands)"
    )
    parser.add_argument(
        "--rtx", action="store_true", help="TensorRT-RTX: ahead of time, no GPU needed"
    )


def run(options: argparse.Namespace, progress: Progress) -> int:
    from engines.reports.fusion import built_line
    from engines.trt.build import AS_WRITTEN, engine_from_bundle, engine_from_onnx

    target: Path = options.target
    if target.is_dir():
        _refuse(options, "--out", "--batch")
        precision = options.precision or _precision_of(target, fused=options.fused)
        wanted = _build_options(options, precision)
        record = engine_from_bundle(target, wanted, progress=progress)
    else:
        if options.fused:
            raise ConfigError(
                "--fused for an ONNX file",
                expected="--fused with a bundle; a file says by its input what it takes",
                do="leave it out",
            )
        out = options.out or target.with_suffix(".engine")
        wanted = _build_options(options, options.precision or AS_WRITTEN)
        record = engine_from_onnx(target, out, wanted, progress=progress)
    memory = record.peak_host_bytes
    print(
        f"{printable(str(record.path))}: {record.engine_bytes / 1e6:.1f} MB, "
        f"{duration_text(record.seconds)}"
        + ("" if memory is None else f", peak memory {memory / 1e6:.0f} MB")
    )
    fused = built_line(record.header.fusion)
    if fused is not None:
        print(fused)
    print(f"log: {printable(str(record.log_path))}")
    return 0


def _precision_of(folder: Path, *, fused: bool) -> str:
    """What `Segmenter.open` would run on TensorRT."""
    from engines.bundle import bundle_from_folder
    from engines.bundle_runtime import tensorrt_precision

    if not (folder / FILE_NAME).is_file():
        raise ConfigError(
            f"{folder}, a folder without {FILE_NAME}",
            expected="a bundle that `riceseg export` wrote, or an .onnx file",
            do="give one of these",
        )
    return tensorrt_precision(bundle_from_folder(folder), fused=fused)


def _refuse(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name[2:]) is not None:
            raise ConfigError(
                f"{name} for a bundle",
                expected=f"{name} with an .onnx file; a bundle says it itself",
                do="leave it out",
            )


def _build_options(options: argparse.Namespace, precision: str):  # type: ignore[no-untyped-def]
    from engines.trt.options import BuildOptions, Calibration

    calibration = None
    if options.calib is not None:
        if not options.implicit_int8:
            raise ConfigError(
                "--calib without --implicit-int8",
                expected="--implicit-int8; Q/DQ graphs hold their ranges",
                do="leave --calib out, or add --implicit-int8 --precision int8",
            )
        calibration = Calibration(images=_images(options.calib))
    return BuildOptions(
        precision=precision,
        workspace_mb=options.workspace,
        timing_cache=options.timing_cache,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        dla=options.dla,
        strip_weights=options.strip_weights,
        refit=options.refit,
        opt_level=options.opt_level,
        implicit_int8=options.implicit_int8,
        rtx=True if options.rtx else None,
        batch=options.batch,
        calibration=calibration,
        fused=options.fused,
    )


def _images(source: Path) -> Tuple[Path, ...]:
    from engines.dataset import calibration_images_from

    return tuple(calibration_images_from(source))


COMMAND = Command(
    name="build",
    summary="A TensorRT engine for this GPU from a bundle or an ONNX file.",
    examples=(
        "riceseg build build/segformer-b0 --precision int8",
        "riceseg build model.fp16.onnx --precision fp16 --out model.engine --opt-level 5",
        "riceseg build build/segformer-b0 --rtx            (no GPU needed)",
        "riceseg build build/rice --precision fp16 --fused  (exported with --fuse-bands)",
        "riceseg build build/segformer-b0 --precision int8 --implicit-int8   (TensorRT up to 10)",
    ),
    add_arguments=add_arguments,
    run=run,
)
