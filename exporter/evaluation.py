"""Score a bundle, a checkpoint or an ONNX file on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from calibration.onnx_file import logits_tensor, model_from_onnx_file
from engines.board.machine import package_versions
from engines.bundle import FileInfo, InputSpec, bundle_from_folder, bundle_path
from engines.bundle_fields import FILE_NAME
from engines.dataset import Pair, pairs_from_folder
from engines.errors import CheckpointError, ConfigError, GraphError
from engines.images import sha256_of_file
from engines.onnx_predictor import OnnxPredictor
from engines.progress import Progress
from engines.speed.forms import Form, onnx_forms
from exporter.checkpoint import Checkpoint
from exporter.classes import checked_classes, classes_from_file
from exporter.load import first_image_hw, load_model, network_input, network_size
from exporter.measure import (
    ScoredModel,
    onnx_row,
    open_predictors,
    report_record,
    scored,
    scored_model,
    torch_row,
    with_scores,
)
from exporter.network_images import left_out_lines
from exporter.onnx_graph import GraphSpec, ImageToLabels
from exporter.request import DataOptions, LoadOptions
from exporter.strips import Strip
from exporter.torch_predictor import TorchPredictor

RUNS = 20


@dataclass(frozen=True)
class _Target:
    """What is to be scored. `torch` is set for a checkpoint, `forms` otherwise."""

    model: ScoredModel
    reduce_zero_label: bool
    warnings: tuple[str, ...]
    forms: tuple[Form, ...] = ()
    torch: TorchPredictor | None = None
    checkpoint: Checkpoint | None = None


def evaluate_target(
    target: Path,
    data: DataOptions,
    options: LoadOptions,
    *,
    size: tuple[int, int] | None,
    progress: Progress,
) -> tuple[dict[str, Any], list[Strip]]:
    """The report's content and picture strips; `data.val` must be set.

    `options` and `size` are for a checkpoint (of an ONNX file: the class names only).
    Raises the UserError of whatever cannot be used.
    """
    assert data.val is not None  # the command requires it
    _check_options(target, options, size)
    with progress.stage("load"):
        pairs = pairs_from_folder(data.val, masks=data.val_masks)
        found = _target(target, options, size, pairs, data)
    with progress.stage("time each form"):
        rows = [onnx_row(form, RUNS) for form in found.forms]
        if found.torch is not None and found.checkpoint is not None:
            rows = [torch_row(found.model, found.checkpoint, found.torch.name, RUNS)]
    zero = found.reduce_zero_label if data.reduce_zero_label is None else data.reduce_zero_label
    with progress.stage("evaluate"), open_predictors(found.forms, found.torch) as predictors:
        evaluation, strips = scored(
            found.model,
            predictors,
            pairs,
            data,
            reduce_zero_label=zero,
            on_image=progress.advance,
        )
    for line in (*found.warnings, *left_out_lines("validation", evaluation.skipped)):
        progress.warn(line)
    rows = with_scores(rows, evaluation)
    report = report_record(found.model, rows, data, evaluation, found.warnings)
    return report, strips


def _check_options(target: Path, options: LoadOptions, size: tuple[int, int] | None) -> None:
    """A graph has its size and normalisation inside; to ignore an option would mislead."""
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


def _target(
    target: Path,
    options: LoadOptions,
    size: tuple[int, int] | None,
    pairs: Sequence[Pair],
    data: DataOptions,
) -> _Target:
    if not target.exists():
        raise CheckpointError(
            f"{target}, which does not exist",
            expected="a bundle, a checkpoint or an ONNX file",
            do="check the path",
        )
    if _is_bundle(target):
        return _from_bundle(target)
    if target.suffix == ".onnx":
        return _from_onnx(target, options)
    return _from_checkpoint(target, options, size, pairs, data)


def _from_bundle(folder: Path) -> _Target:
    bundle = bundle_from_folder(folder)
    for info in bundle.files.values():
        bundle_path(folder, info.file)
    return _Target(
        model=ScoredModel(
            name=bundle.name,
            checkpoint=asdict(bundle.checkpoint),
            input=bundle.input,
            classes=bundle.classes,
            palette=bundle.palette,
            num_outputs=bundle.num_outputs,
        ),
        reduce_zero_label=bundle.reduce_zero_label,
        warnings=(),
        forms=tuple(onnx_forms(folder, bundle.files)),
    )


def _from_onnx(path: Path, options: LoadOptions) -> _Target:
    """A graph by itself does not say its classes or how images were resized: stretched."""
    num_outputs = _num_outputs(path)
    given = None if options.classes is None else classes_from_file(options.classes)
    classes, palette, notes = checked_classes(
        given.names if given else None, given.palette if given else None, num_outputs
    )
    with OnnxPredictor(path) as predictor:
        hw, channels = predictor.input_hw, predictor.channels
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    input_spec = InputSpec(
        "image", hw, channels, "RGB", mean=zeros, std=ones, resize="stretch", batch=(1, 1, 1)
    )
    info = FileInfo(path.name, sha256_of_file(path), path.stat().st_size)
    runtime = f"ONNX Runtime {package_versions()['onnxruntime']}"
    return _Target(
        model=ScoredModel(
            name=path.stem,
            checkpoint=None,
            input=input_spec,
            classes=classes[: len(given.names)] if given else classes,
            palette=palette[: len(given.names)] if given else palette,
            num_outputs=num_outputs,
        ),
        reduce_zero_label=False,
        warnings=(*notes, "a graph by itself does not say how to resize: stretched"),
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


def _from_checkpoint(
    path: Path,
    options: LoadOptions,
    size: tuple[int, int] | None,
    pairs: Sequence[Pair],
    data: DataOptions,
) -> _Target:
    loaded = load_model(path, options)
    channels = loaded.description.in_channels
    image_hw = first_image_hw(
        [pair.image for pair in pairs],
        channels=channels,
        convert=data.convert_images,
        skip_bad=data.skip_bad,
    )
    hw, resize = network_size(loaded, image_hw)
    input_spec = network_input(loaded, size or hw, resize)
    spec = GraphSpec(
        input_spec.hw, loaded.mean, loaded.std, align_corners=bool(loaded.settings.align_corners)
    )
    return _Target(
        model=scored_model(loaded, input_spec),
        reduce_zero_label=bool(loaded.settings.reduce_zero_label),
        warnings=loaded.warnings,
        torch=TorchPredictor(ImageToLabels(loaded.net, spec).eval()),
        checkpoint=loaded.checkpoint,
    )
