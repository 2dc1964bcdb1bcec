"""`riceseg export`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from engines.errors import ConfigError, GateError
from engines.progress import Progress
from exporter.commands.band_options import band_options, band_recipe_from
from exporter.commands.models import complete_dataset, complete_model
from exporter.commands.options import (
    PATH,
    BatchRange,
    Number,
    Size,
    data_options,
    data_options_from,
    load_options,
    load_options_from,
    val_options,
)
from exporter.commands.show import show_engine, show_report
from exporter.qat.kind import check_precision, is_onnx_checkpoint
from exporter.request import ExportRequest, GraphOptions, Int8Options
from exporter.targets import TARGETS, opset_for, target_named

EXAMPLES = """
\b
Examples:
  riceseg export --checkpoint best.pth --int8 --calib data --val data
  riceseg export --checkpoint best.pth --precision auto --max-drop 0.5 \\
      --calib data --val data
  riceseg export --checkpoint next.pth --policy build/best --calib data
  riceseg export --model segformer-b0 --dataset ade20k --fp16
  riceseg export --checkpoint best.pth --size 384x640 --dynamic-batch 1:4:8
  riceseg export --checkpoint best.pth --target jetpack5 --fp16
  riceseg export --checkpoint best.pth --fp16 --val data --keep-reference
  riceseg export --checkpoint best.pth --fp16 --target rtx --engine
  riceseg export --checkpoint rice.pth --bands GNE --fuse-bands


--precision auto tries these in turn and takes the first that loses at most
--max-drop points of mIoU on --val:
  INT8 on every Conv and Linear
  INT8 with groups of layers back in FP16, the worst first
  FP16, then FP16 with named layers in FP32
  FP32
  What it found is policy.json in the bundle, which --policy repeats.


\b
--target chooses what the graphs are written for:
  jetpack5  TensorRT 8.5: opset 16, LayerNorm taken apart and held in FP32
  jetpack6  TensorRT 10.3: opset 17
  jetpack7, desktop, rtx   opset 17; INT8 also with its rest in FP16, for
            TensorRT 11 and TensorRT-RTX keep to the types in the file
  cpu       ONNX Runtime
  Without it: opset 17 and both INT8 files, for TensorRT from 8.6 on.
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--checkpoint", type=PATH, help="Weights: .pth, .safetensors, .bin, a folder, or a Q/DQ .onnx."
)
@click.option(
    "--model",
    help="For example segformer-b0. Without --checkpoint: published weights.",
    shell_complete=complete_model,
)
@click.option(
    "--dataset",
    default="ade20k",
    show_default=True,
    help="Which published weights, as `riceseg models` lists them: ade20k, cityscapes, ...;"
    " ade20k/80k where there are several.",
    shell_complete=complete_dataset,
)
@click.option("--out", type=PATH, help="Folder of the bundle.  [default: build/MODEL]")
@click.option("--int8", is_flag=True, help="Write INT8 (Q/DQ); needs --calib.")
@click.option("--fp16", is_flag=True, help="Write FP16.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "auto"]),
    help="Instead of --int8 and --fp16. auto: the fastest whose loss is within --max-drop, by"
    " trying them on --val; see below.",
)
@click.option(
    "--policy",
    type=PATH,
    help="Precision, layers and recipe as this policy.json says, or a bundle that has one.",
)
@click.option("--calib", type=PATH, help="Images to calibrate on: folder, list file or data set.")
@val_options
@click.option(
    "--calibrator",
    type=click.Choice(["minmax", "percentile", "entropy", "mse", "auto"]),
    help="How a range is chosen; auto: per tensor, by the error of what reads it.  [default: mse]",
)
@click.option(
    "--percentile",
    type=Number(50, 100),
    help="Share of the values inside the range, for --calibrator percentile and auto."
    "  [default: 99.999]",
)
@click.option(
    "--equalize/--no-equalize",
    default=None,
    help="Move scale between layers, exact in FP32.  [default: no; with auto, if it pays]",
)
@click.option(
    "--bias-correction/--no-bias-correction",
    default=None,
    help="Take INT8's mean error out of each bias.  [default: no; with auto, if it pays]",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "compensated"]),
    help="How weights are rounded; compensated: later ones make up for earlier ones."
    "  [default: nearest; with auto, what pays]",
)
@click.option("--size", type=Size(), help="Network input.  [default: as the checkpoint was tested]")
@click.option(
    "--resize",
    type=click.Choice(["stretch", "letterbox"]),
    help="How an image comes to that size.  [default: as the checkpoint was tested]",
)
@click.option("--output", type=click.Choice(["labels", "logits", "both"]), help="[default: labels]")
@click.option("--dynamic-batch", type=BatchRange(), help="Free batch size.  [default: fixed, 1]")
@band_options
@click.option(
    "--fuse-bands",
    is_flag=True,
    help="Also write graphs that take float bands, and compose them by themselves.",
)
@click.option(
    "--scene-size",
    type=Size(),
    help="Of the scenes for --fuse-bands.  [default: that of the network's input]",
)
@click.option("--target", type=click.Choice(list(TARGETS)), help="The device; see below.")
@click.option("--opset", type=int, help="ONNX opset.  [default: 17; 16 for jetpack5]")
@click.option(
    "--grid-sample/--no-grid-sample",
    default=None,
    help="Mask2Former's attention by GridSample, or without it for a TensorRT that misreads it."
    "  [default: GridSample at opset 16 to 19]",
)
@click.option(
    "--mask-products",
    type=click.Choice(["input", "quarter"]),
    help="Where Mask2Former multiplies classes and masks; quarter: a sixteenth of the work, and"
    " other labels at some edges, which the report counts.  [default: input]",
)
@click.option(
    "--max-drop",
    type=Number(-100, 100),
    default=1.0,
    show_default=True,
    help="mIoU points that may be lost against PyTorch; beyond it the exit code is 1.",
)
@click.option(
    "--runs", type=click.IntRange(1), default=20, show_default=True, help="Timed runs of each form."
)
@click.option(
    "--keep-reference",
    is_flag=True,
    help="Store PyTorch's labels of the --val images, to compare with on a device without torch.",
)
@click.option(
    "--engine",
    is_flag=True,
    help="Then build TensorRT engines for this machine; with --target rtx, for every RTX GPU.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@load_options
@data_options
def export(**values: Any) -> None:
    """Turn a checkpoint into a verified bundle: ONNX, FP16, INT8, scores and report."""
    from exporter.engines_here import check_engines_here, engines_of_bundle
    from exporter.export import export_bundle
    from exporter.live import progress_for

    progress = progress_for(sys.stderr)
    request = _request(values, values["checkpoint"] or Path())
    _check_options(values, request)
    if values["engine"]:
        check_engines_here(target_named(values["target"]))
    if values["checkpoint"] is None:
        request = _of_published_weights(request, values["dataset"], progress)
    result = export_bundle(request, progress)
    show_report(result.report, result.folder)
    if result.gate is not None and not result.gate.passed:
        raise GateError(
            f"mIoU fell by {result.gate.drop:.2f} points, at most {result.gate.max_drop:.2f} "
            f"allowed; the bundle in {result.folder} is kept and marked as failed"
            + ("; no engine was built" if values["engine"] else "")
        )
    if values["engine"]:
        target = target_named(request.target)
        for record in engines_of_bundle(result.folder, target, result.precisions, progress):
            show_engine(record)


def _check_options(values: dict[str, Any], request: ExportRequest) -> None:
    """What can be told before the checkpoint is fetched or read."""
    from exporter.precision import told_policy

    opset_for(target_named(values["target"]), values["opset"])
    for name in ("int8", "fp16", "policy"):
        if values["precision"] is not None and values[name]:
            raise ConfigError(
                f"--precision {values['precision']} with --{name}",
                expected="one of them, for both say what is written",
                do=f"leave --precision or --{name} out",
            )
    if is_onnx_checkpoint(values["checkpoint"]):
        check_precision(values["precision"])
    else:
        told_policy(request)


def _request(values: dict[str, Any], checkpoint: Path) -> ExportRequest:
    precision = values["precision"]
    return ExportRequest(
        checkpoint=checkpoint,
        out=values["out"] or Path("build") / (values["model"] or checkpoint.resolve().stem),
        load=load_options_from(values, values["model"]),
        graph=GraphOptions(
            size=values["size"],
            resize=values["resize"],
            output=values["output"] or "labels",
            output_told=values["output"] is not None,
            batch=values["dynamic_batch"] or (1, 1, 1),
            opset=values["opset"],
            grid_sample=values["grid_sample"],
            mask_products=values["mask_products"],
        ),
        data=data_options_from(
            values, calib=values["calib"], val=values["val"], val_masks=values["val_masks"]
        ),
        int8=values["int8"] or precision == "int8",
        fp16=values["fp16"] or precision == "fp16",
        auto=precision == "auto",
        policy=values["policy"],
        int8_options=Int8Options(
            method=values["calibrator"],
            percentile=values["percentile"],
            equalize=values["equalize"],
            rounding=values["rounding"],
            bias_correction=values["bias_correction"],
        ),
        target=values["target"],
        keep_reference=values["keep_reference"],
        max_drop=values["max_drop"],
        runs=values["runs"],
        overwrite=values["overwrite"],
        bands=band_recipe_from(values),
        fuse_bands=values["fuse_bands"],
        scene_hw=values["scene_size"],
    )


def _of_published_weights(
    request: ExportRequest, dataset: str, progress: Progress
) -> ExportRequest:
    """`request` with the zoo's weights for its model, from the cache or the network."""
    from exporter.download import file_from_zoo
    from exporter.zoo import alternatives, zoo_entry

    if request.load.model is None:
        raise ConfigError(
            "neither --checkpoint nor --model",
            expected="weights to export",
            do="give --checkpoint FILE, or --model with a name that `riceseg models` lists",
        )
    entry = zoo_entry(request.load.model, dataset)
    others = [other.weights for other in alternatives(entry) if other is not entry]
    with progress.stage(f"fetch {entry.model} ({entry.weights})"):
        if others:
            progress.note(f"--dataset also takes {', '.join(others)}")
        weights = file_from_zoo(entry, on_progress=progress.advance)
    # The name as the zoo has it, with which what the file holds is compared.
    load = dataclasses.replace(request.load, model=entry.model)
    return dataclasses.replace(request, checkpoint=weights, load=load)
