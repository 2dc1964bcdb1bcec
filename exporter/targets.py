"""The devices that a bundle can be made for, and what each one wants of its graphs."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """One value of --target, and ANY for exports without it.

    reason: why these opsets, shown when --opset contradicts. opset: what is written unless --opset
    says otherwise. opsets: what runs there; None leaves it to the exporter. strongly_typed: the
    runtime for which the file's types alone decide, "" if there is none. int8_fp16: INT8 is also
    written with its rest in FP16. rtx: what engines are built with, as in `BuildOptions`.
    """

    name: str
    runtime: str
    reason: str
    opset: int = 17
    opsets: range | None = range(17, 21)
    strongly_typed: str = ""
    int8_fp16: bool = False
    rtx: bool | None = False
    jetson: bool = False
    warning: str = ""  # for every export
    fast_warning: str = ""  # for one with FP16 or INT8


# From 8.6 on LayerNormalization is one operator of opset 17, whose squares stay in FP32; taken
# apart, as below opset 17, they overflow FP16 (a ViT: 18.96 % instead of 85 % top-1).
ONE_LAYER_NORM = "LayerNormalization needs opset 17, and taken apart it overflows FP16"

# A strongly typed TensorRT keeps what is not INT8 in the type that the file gives it. With that in
# FP16, TensorRT-RTX 1.7 found 6 of SegFormer-B0's 8 attention blocks to fuse instead of none, and
# its activations took 18 % less memory.
ANY = Target(
    name="any",
    runtime="TensorRT from 8.6 on, or ONNX Runtime",
    reason=ONE_LAYER_NORM,
    opsets=None,
    int8_fp16=True,
    rtx=None,
)

_TARGETS = (
    Target(
        name="jetpack5",
        runtime="TensorRT 8.5 or 8.6",
        reason="TensorRT 8.5 has no LayerNormalization, which opset 17 brings",
        opset=16,
        opsets=range(13, 17),
        jetson=True,
        warning="--target jetpack5 takes LayerNorm apart, for TensorRT 8.5: `riceseg build` holds "
        "the parts in FP32, and another builder (trtexec) must be told to, or they overflow FP16",
    ),
    Target(
        name="jetpack6",
        runtime="TensorRT 10.3",
        reason=ONE_LAYER_NORM,
        jetson=True,
        fast_warning="check FP16 and INT8 engines on the device (scripts/trt_eval.py): TensorRT "
        "10.3 gave single-class masks for a ViT that was right on 8.6 (NVIDIA/TensorRT issue 4723)",
    ),
    Target(
        name="jetpack7",
        runtime="TensorRT 10.13 to 11.4",
        reason=ONE_LAYER_NORM,
        jetson=True,
        strongly_typed="TensorRT 11",
        int8_fp16=True,
    ),
    Target(
        name="desktop",
        runtime="TensorRT 10 or 11",
        reason=ONE_LAYER_NORM,
        strongly_typed="TensorRT 11",
        int8_fp16=True,
    ),
    Target(
        name="rtx",
        runtime="TensorRT-RTX",
        reason=ONE_LAYER_NORM,
        strongly_typed="TensorRT-RTX",
        int8_fp16=True,
        rtx=True,
    ),
    Target(
        name="cpu",
        runtime="ONNX Runtime",
        reason="it runs every opset that is written here",
        opsets=None,
        # SegFormer-B0 at 512x512 on two cores: FP32 100 ms, FP16 113 ms, INT8 148 ms.
        fast_warning="--target cpu: ONNX Runtime's CPU kernels run INT8 and FP16 slower than FP32, "
        "which is the graph to use there; the others are for a GPU",
    ),
)

TARGETS = {target.name: target for target in _TARGETS}


def target_named(name: str | None) -> Target:
    """The target; ANY for None. ConfigError for an unknown name."""
    if name is None:
        return ANY
    if name not in TARGETS:
        raise ConfigError(
            f"--target {name}", expected=", ".join(TARGETS), do="choose one of them, or none"
        )
    return TARGETS[name]


def opset_for(target: Target, asked: int | None) -> int:
    """The opset to write; ConfigError when the one that was asked for does not run there."""
    if asked is None:
        return target.opset
    if target.opsets is not None and asked not in target.opsets:
        raise ConfigError(
            f"--opset {asked} with --target {target.name}",
            expected=f"{target.opsets[0]} to {target.opsets[-1]}: {target.reason}",
            do="leave --opset out, or choose another target",
        )
    return asked


def target_warnings(target: Target, *, fp16: bool, int8: bool) -> list[str]:
    """What somebody who exports for this target should know."""
    warnings = [target.warning] if target.warning else []
    if (fp16 or int8) and target.fast_warning:
        warnings.append(target.fast_warning)
    if target.strongly_typed and not (fp16 or int8):
        warnings.append(
            f"--target {target.name} without --fp16: {target.strongly_typed} computes an FP32 "
            "graph in FP32, whatever the builder is told"
        )
    return warnings
