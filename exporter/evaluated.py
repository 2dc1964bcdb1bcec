"""What `riceseg evaluate` can score: a bundle, a checkpoint or an ONNX file, made ready to run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.onnx_file import logits_tensor, model_from_onnx_file
from engines.board.machine import package_versions
from engines.bundle import FileInfo, InputSpec, bundle_from_folder, bundle_path
from engines.bundle_fields import FILE_NAME
from engines.dataset import Pair
from engines.errors import CheckpointError, ConfigError, GraphError
from engines.images import sha256_of_file
from engines.onnx_predictor import OnnxPredictor
from engines.speed.forms import Form, onnx_forms
from exporter.checkpoint import Checkpoint
from exporter.classes import checked_classes, classes_from_file
from exporter.inference import Inference, Plan, plan_for_checkpoint, plan_for_graph
from exporter.load import (
    TESTED_WITH_WINDOWS,
    LoadedModel,
    first_image_hw,
    load_model,
    network_input,
    network_size,
)
from exporter.measure import ScoredModel, scored_model
from exporter.onnx_graph import GraphSpec, ImageToLabels
from exporter.request import DataOptions, LoadOptions

STRETCHED = "a graph by itself does not say how to resize: stretched"


@dataclass(frozen=True)
class Evaluated:
    """What is to be scored. `torch` is set for a checkpoint, `forms` otherwise."""

    model: ScoredModel
    plan: Plan
    reduce_zero_label: bool
    warnings: tuple[str, ...]
    forms: tuple[Form, ...] = ()
    torch: ImageToLabels | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Asked:
    """What `evaluate_target` was given, and the labelled images found."""

    options: LoadOptions
    size: tuple[int, int] | None
    inference: Inference
    data: DataOptions
    pairs: tuple[Pair, ...]


def check_options(
    target: Path, options: LoadOptions, size: tuple[int, int] | None, inference: Inference
) -> None:
    """A graph has its size and normalisation inside; to ignore an option would mislead."""
    if size is not None and inference.whole_images:
        raise ConfigError(
            f"--size with --mode {inference.mode} --tta {inference.tta}",
            expected="--size where every image fills the network's input",
            do="give the windows' size with --crop, and the images' with --scale",
        )
    is_bundle, is_graph = _is_bundle(target), target.suffix == ".onnx"
    given = {"--size": size, "--keep-classes": options.keep_classes,
             "--mean": options.mean, "--std": options.std}  # fmt: skip
    unused = [name for name, value in given.items() if value is not None]
    if is_bundle and options.classes is not None:
        unused.append("--classes")
    if unused and (is_bundle or is_graph):
        raise ConfigError(
            f"{unused[0]} for {'a bundle' if is_bundle else 'an ONNX file'}",
            expected=f"{unused[0]} with a checkpoint only",
            do="leave it out, or evaluate the checkpoint",
        )


def _is_bundle(target: Path) -> bool:
    return target.is_dir() and (target / FILE_NAME).is_file()


def evaluated_target(target: Path, asked: Asked) -> Evaluated:
    if not target.exists():
        raise CheckpointError(
            f"{target}, which does not exist",
            expected="a bundle, a checkpoint or an ONNX file",
            do="check the path",
        )
    if _is_bundle(target):
        return _from_bundle(target, asked.inference)
    if target.suffix == ".onnx":
        return _from_onnx(target, asked.options, asked.inference)
    return _from_checkpoint(target, asked)


def _from_bundle(folder: Path, inference: Inference) -> Evaluated:
    bundle = bundle_from_folder(folder)
    plan = plan_for_graph(inference, bundle.input, bundle)
    for info in bundle.files.values():
        bundle_path(folder, info.file)
    return Evaluated(
        model=ScoredModel(
            name=bundle.name,
            checkpoint=asdict(bundle.checkpoint),
            input=bundle.input,
            classes=bundle.classes,
            palette=bundle.palette,
            num_outputs=bundle.num_outputs,
            bands=bundle.bands,
            **_how(inference),
        ),
        plan=plan,
        reduce_zero_label=bundle.reduce_zero_label,
        warnings=(),
        forms=tuple(onnx_forms(folder, bundle.files)),
    )


def _how(inference: Inference) -> dict[str, Any]:
    """The fields of a ScoredModel that say how images are run."""
    return {
        "mode": inference.mode,
        "tta": inference.tta,
        "whole_images": inference.whole_images,
    }


def _from_onnx(path: Path, options: LoadOptions, inference: Inference) -> Evaluated:
    """A graph by itself does not say its classes or how images were resized: stretched."""
    num_outputs = _num_outputs(path)
    given = None if options.classes is None else classes_from_file(options.classes)
    classes, palette, notes = checked_classes(
        given.names if given else None, given.palette if given else None, num_outputs
    )
    with OnnxPredictor(path) as predictor:
        hw, channels = predictor.input_hw, predictor.channels
        if predictor.input_dtype != np.uint8:
            raise GraphError(
                f"{path.name}, which composes float bands by itself",
                expected="a graph that takes composites, as labelled images are",
                do="evaluate the bundle, or the graph without .bands in its name",
            )
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    input_spec = InputSpec(
        "image", hw, channels, "RGB", mean=zeros, std=ones, resize="stretch", batch=(1, 1, 1)
    )
    info = FileInfo(path.name, sha256_of_file(path), path.stat().st_size)
    runtime = f"ONNX Runtime {package_versions()['onnxruntime']}"
    return Evaluated(
        model=ScoredModel(
            name=path.stem,
            checkpoint=None,
            input=input_spec,
            classes=classes[: len(given.names)] if given else classes,
            palette=palette[: len(given.names)] if given else palette,
            num_outputs=num_outputs,
            **_how(inference),
        ),
        plan=plan_for_graph(inference, input_spec),
        reduce_zero_label=False,
        warnings=(*notes, *([] if inference.whole_images else [STRETCHED])),
        forms=(Form(path.name, "as stored", runtime, path, info),),
    )


def _num_outputs(path: Path) -> int:
    model = onnx.shape_inference.infer_shapes(model_from_onnx_file(path))
    name = logits_tensor(model)
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name == name and len(value.type.tensor_type.shape.dim) == 4:
            return int(value.type.tensor_type.shape.dim[1].dim_value)
    raise GraphError(
        f"{path.name}, whose logits (N, K, H, W) are not found",
        expected="a graph that ends in ArgMax, or has an output named logits",
        do="evaluate a bundle or a graph that `riceseg export` wrote",
    )


def _from_checkpoint(path: Path, asked: Asked) -> Evaluated:
    loaded, inference = load_model(path, asked.options), asked.inference
    plan = plan_for_checkpoint(inference, loaded)
    input_spec = _checkpoint_input(loaded, plan, asked)
    spec = GraphSpec(
        input_spec.hw, loaded.mean, loaded.std, align_corners=bool(loaded.settings.align_corners)
    )
    warnings = loaded.warnings
    if plan.windows is not None:
        warnings = tuple(w for w in warnings if not w.startswith(TESTED_WITH_WINDOWS))
    return Evaluated(
        model=replace(scored_model(loaded, input_spec), **_how(inference)),
        plan=plan,
        reduce_zero_label=bool(loaded.settings.reduce_zero_label),
        warnings=warnings,
        torch=ImageToLabels(loaded.net, spec).eval(),
        checkpoint=loaded.checkpoint,
    )


def _checkpoint_input(loaded: LoadedModel, plan: Plan, asked: Asked) -> InputSpec:
    """The windows, or what whole images are brought to (and what is timed at several scales)."""
    if plan.windows is not None:
        return network_input(loaded, plan.windows.size, "stretch")
    data = asked.data
    image_hw = first_image_hw(
        [pair.image for pair in asked.pairs],
        channels=loaded.description.in_channels,
        convert=data.convert_images,
        skip_bad=data.skip_bad,
    )
    hw, resize = network_size(loaded, image_hw)
    return network_input(loaded, asked.size or hw, resize)
