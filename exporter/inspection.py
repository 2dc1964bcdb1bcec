"""What a file or folder is, in a few facts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from calibration.onnx_file import model_from_onnx_file, opset_of
from engines.bundle import bundle_from_folder
from engines.bundle_bands import bands_text
from engines.bundle_fields import FILE_NAME
from engines.errors import CheckpointError
from engines.images import sha256_of_file
from engines.trt.build import FOLDER as ENGINES
from engines.trt.engine_file import SUFFIX, header_from_engine

Facts = dict[str, object]


def facts_about(target: Path) -> Facts:
    """Raises the error of its kind (BundleError, GraphError, EngineError, CheckpointError)."""
    if not target.exists():
        raise CheckpointError(
            f"{target}, which does not exist",
            expected="a checkpoint, an ONNX file, an engine or a bundle",
            do="check the path",
        )
    if target.is_dir() and (target / FILE_NAME).is_file():
        return _bundle_facts(target)
    if target.suffix == ".onnx":
        return _graph_facts(target)
    if target.suffix == SUFFIX:
        return _engine_facts(target)
    return _checkpoint_facts(target)


def _bundle_facts(folder: Path) -> Facts:
    bundle = bundle_from_folder(folder)
    gate = bundle.gate
    verdict = "no gate (no validation images)"
    if gate is not None:
        verdict = f"{'passed' if gate.passed else 'FAILED'}, {gate.drop:.2f} points lost"
    return {
        "kind": "bundle",
        "name": bundle.name,
        "created": bundle.created,
        "checkpoint": f"{bundle.checkpoint.file} ({bundle.checkpoint.sha256[:12]})",
        "input": f"{bundle.input.hw[0]}x{bundle.input.hw[1]}, {bundle.input.channels} channels, "
        f"{bundle.input.resize}",
        "bands": bands_text(bundle.bands),
        "outputs": list(bundle.outputs),
        "classes": list(bundle.classes),
        "target": None if bundle.build is None else bundle.build.target,
        "opset": bundle.opset,
        "files": [f"{key} {info.file} ({info.bytes / 1e6:.1f} MB)"
                  for key, info in bundle.files.items()],
        "engines": [path.name for path in sorted((folder / ENGINES).glob(f"*{SUFFIX}"))],
        "gate": verdict,
        "warnings": list(bundle.warnings),
    }  # fmt: skip


def _graph_facts(path: Path) -> Facts:
    model = model_from_onnx_file(path)
    counts = Counter(node.op_type for node in model.graph.node)
    return {
        "kind": "ONNX graph",
        "sha256": sha256_of_file(path),
        "opset": opset_of(model),
        "made by": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_value_text(value) for value in model.graph.input],
        "outputs": [_value_text(value) for value in model.graph.output],
        "precision": _precision(model, counts),
        "nodes": len(model.graph.node),
        "operators": [f"{name} {count}" for name, count in counts.most_common()],
    }


def _engine_facts(path: Path) -> Facts:
    """What the header says; whether TensorRT takes the rest, only a GPU can tell."""
    header = header_from_engine(path)
    capability = header.compute_capability
    number = "" if capability is None else f" ({capability[0]}.{capability[1]})"
    options = {
        "version compatible": header.version_compatible,
        "hardware compatible": header.hardware_compatible,
        "without weights": header.stripped,
        f"DLA core {header.dla}": header.dla is not None,
    }
    return {
        "kind": "TensorRT engine",
        "precision": header.precision,
        "built by": f"{header.runtime} {header.runtime_version}",
        "for": f"{header.gpu_name or 'any GPU from Ampere on'}{number}, {header.platform}",
        "CUDA": header.cuda_version,
        "JetPack": header.jetpack,
        "power mode": header.power_mode,
        "created": header.created,
        "from": f"{header.onnx_file} ({header.onnx_sha256[:12]})",
        "options": [name for name, chosen in options.items() if chosen],
        "plan": f"{header.plan_bytes / 1e6:.1f} MB ({header.plan_sha256[:12]})",
        "riceseg": header.riceseg,
        "notes": list(header.notes),
    }


def _value_text(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    sides = [dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim]
    return f"{value.name} {name} ({' x '.join(sides)})"


def _precision(model: onnx.ModelProto, counts: Counter[str]) -> str:
    if counts["QuantizeLinear"]:
        return f"INT8 ({counts['QuantizeLinear']} Q/DQ pairs)"
    halves = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    floats = sum(t.data_type == onnx.TensorProto.FLOAT for t in model.graph.initializer)
    return "FP16" if halves > floats else "FP32"


def _checkpoint_facts(path: Path) -> Facts:
    from exporter.load import load_model, network_size  # torch, here alone

    try:
        loaded = load_model(path)
    except CheckpointError:
        backbone = _backbone_facts(path)
        if backbone is None:
            raise
        return backbone
    found = loaded.description
    (h, w), resize = network_size(loaded, None)
    return {
        "kind": "checkpoint",
        "written by": loaded.checkpoint.source,
        "model": found.name,
        "head": f"{found.head}, width {found.head_channels}",
        "parameters": f"{found.parameters / 1e6:.2f} M",
        "input": f"{found.in_channels} channels, {h}x{w} ({resize}) unless told otherwise",
        "outputs": found.num_outputs,
        "classes": list(loaded.classes[: loaded.named]),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "sha256": loaded.checkpoint.sha256,
        "notes": list(loaded.notes),
        "warnings": list(loaded.warnings),
    }


def _backbone_facts(path: Path) -> Facts | None:
    """Of a file that training starts from; None where it is no such file."""
    from exporter.architectures.vit_keys import is_vit_alone, vit_name  # torch, here alone
    from exporter.checkpoint import state_dict_from_checkpoint

    checkpoint = state_dict_from_checkpoint(path)
    if not is_vit_alone(frozenset(checkpoint.tensors)):
        return None
    return {
        "kind": "backbone without decode head, which cannot be exported",
        "written by": checkpoint.source,
        "model": vit_name(checkpoint.tensors),
        "parameters": f"{sum(t.numel() for t in checkpoint.tensors.values()) / 1e6:.2f} M",
        "sha256": checkpoint.sha256,
        "notes": list(checkpoint.notes),
    }
