"""Checkpoints of quantization-aware training: quantizers apart from weights, their scales kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from calibration.policy import PrecisionPolicy
from calibration.policy_json import policy_to_json
from calibration.recipe import Int8Recipe
from engines.bundle import bundle_from_folder
from engines.errors import CheckpointError, ConfigError
from exporter.architectures import segformer_keys
from exporter.checkpoint import state_dict_from_checkpoint
from exporter.qat.scales_applied import check_training_stays, scales_by_layer
from exporter.qat.trained_scales import TrainedScales, without_quantizers
from tests.qat_models import fake_quantized, photos
from tests.tiny_segformer import (
    MEAN,
    STD,
    error_of,
    export_tiny,
    tiny_net,
    write_checkpoint,
    write_dataset,
)

PATH = Path("trained.pth")
BLOCKS = [f"backbone.layers.{stage}.1.0" for stage in range(4)]
# Layers of the tiny network whose weights no rewrite changes and that the default policy quantizes.
KEPT_WEIGHTS = {
    **{f"backbone.layers.{i}.0.projection": f"backbone.layers.{i}.0.projection" for i in (1, 2, 3)},
    **{f"{BLOCKS[i]}.attn.sr": f"{BLOCKS[i]}.attn.sr" for i in (0, 1, 2)},
    **{f"{block}.ffn.layers.0": f"{block}.ffn.layers.0" for block in BLOCKS},
    **{f"{block}.ffn.layers.4": f"{block}.ffn.layers.4" for block in BLOCKS},
    **{f"{BLOCKS[i]}.attn.attn.out_proj": f"{BLOCKS[i]}.attn.out_proj" for i in (1, 2, 3)},
}


def numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def trained_by_torch() -> dict[str, Tensor]:
    """State dict of the tiny network after torch.ao's eager QAT."""
    planes = torch.from_numpy(photos(2).transpose(0, 3, 1, 2).astype(np.float32))
    planes = (planes - numbers(list(MEAN)).reshape(1, 3, 1, 1)) / numbers(list(STD)).reshape(
        1, 3, 1, 1
    )
    return dict(fake_quantized(tiny_net(), planes).state_dict())


def trained_by_modelopt() -> dict[str, Tensor]:
    """The tiny network under ModelOpt 0.47's names, with ranges that are easy to tell apart."""
    net = tiny_net()
    tensors = dict(net.state_dict())
    for index, (name, module) in enumerate(net.named_modules()):
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            weight = module.weight.detach()
            others = tuple(range(1, weight.dim()))
            tensors[f"{name}.input_quantizer._amax"] = torch.tensor(1.0 + index / 64)
            tensors[f"{name}.weight_quantizer._amax"] = 1.25 * weight.abs().amax(others, True)
        elif isinstance(module, torch.nn.LayerNorm):
            tensors[f"{name}.input_quantizer._amax"] = torch.tensor(77.0)
    return tensors


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch/ and modelopt/, each with tiny.pth and out/, the bundle; and data/."""
    root = tmp_path_factory.mktemp("qat")
    write_dataset(root / "data")
    for name, tensors in (("torch", trained_by_torch()), ("modelopt", trained_by_modelopt())):
        write_checkpoint(root / name / "tiny.pth", tensors=tensors)
        result = export(root, name, "--int8", "--calib", root / "data")
        assert result.exit_code == 0, result.stderr
        (root / name / "said.txt").write_text(result.stderr, encoding="utf-8")
    return root


def export(root: Path, name: str, *arguments: object, out: str = "out") -> Any:
    return export_tiny(root / name, root / name / out, *arguments)


class Written:
    """The pairs of an INT8 graph: the scale that each layer's weight and input has."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path))
        self._constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._writers = {name: node for node in model.graph.node for name in node.output}
        self._nodes = {node.name: node for node in model.graph.node}

    def scale(self, layer: str, index: int) -> np.ndarray[Any, Any]:
        """Of input `index` of the Conv or MatMul at `layer`, a path such as "a.0.b"."""
        name = self._node(layer).input[index]
        while self._writers[name].op_type in ("Transpose", "Reshape"):
            name = self._writers[name].input[0]
        writer = self._writers[name]
        assert writer.op_type == "DequantizeLinear"
        return self._constants[writer.input[1]]

    def _node(self, layer: str) -> onnx.NodeProto:
        for name, node in self._nodes.items():
            if node.op_type in ("Conv", "MatMul") and _dotted(name) == f"net.{layer}":
                return node
        raise AssertionError(f"no layer {layer}")


def _dotted(node_name: str) -> str:
    """'/net/a/b/b.0/Conv' -> 'net.a.b.0': torch repeats a list's name before its members."""
    parts = node_name.strip("/").split("/")[:-1]
    kept = [
        p for p, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{p}.")
    ]
    return ".".join(kept)


# --- whole exports --------------------------------------------------------------------------------


def test_torchs_weight_scales_are_kept_bit_for_bit(lab: Path) -> None:
    tensors = torch.load(lab / "torch/tiny.pth", weights_only=True)["state_dict"]
    written = Written(lab / "torch/out/model.int8.onnx")
    for module, layer in KEPT_WEIGHTS.items():
        wanted = tensors[f"{module}.weight_fake_quant.scale"].numpy()
        assert written.scale(layer, 1).tobytes() == wanted.tobytes(), module


def test_torchs_activation_scales_are_kept_where_a_module_writes_what_a_layer_reads(
    lab: Path,
) -> None:
    tensors = torch.load(lab / "torch/tiny.pth", weights_only=True)["state_dict"]
    written = Written(lab / "torch/out/model.int8.onnx")
    for block in BLOCKS:
        for norm, layer in ((f"{block}.norm1", f"{block}.attn.q"),
                            (f"{block}.norm2", f"{block}.ffn.layers.0")):  # fmt: skip
            wanted = tensors[f"{norm}.activation_post_process.scale"].numpy()
            assert written.scale(layer, 0).tobytes() == wanted.tobytes(), norm


def test_modelopts_scales_are_the_ranges_over_127(lab: Path) -> None:
    tensors = torch.load(lab / "modelopt/tiny.pth", weights_only=True)["state_dict"]
    written = Written(lab / "modelopt/out/model.int8.onnx")
    for module, layer in KEPT_WEIGHTS.items():
        shared = module.endswith("projection")  # reads what a convolution of the head reads
        for kind, index in (("input", 0), ("weight", 1))[shared:]:
            amax = tensors[f"{module}.{kind}_quantizer._amax"].numpy().reshape(-1)
            wanted = (amax / np.float32(127)).astype(np.float32)
            assert written.scale(layer, index).tobytes() == wanted.tobytes(), (module, kind)


def test_a_tensor_that_two_modules_read_has_the_larger_of_their_scales(lab: Path) -> None:
    tensors = torch.load(lab / "modelopt/tiny.pth", weights_only=True)["state_dict"]
    written = Written(lab / "modelopt/out/model.int8.onnx")
    early, late = "backbone.layers.1.0.projection", "decode_head.convs.0.conv"
    ranges = [float(tensors[f"{name}.input_quantizer._amax"]) for name in (early, late)]
    assert ranges[0] < ranges[1]
    for layer in (early, "decode_head.convs.0.0"):
        assert float(written.scale(layer, 0)) == np.float32(ranges[1] / 127)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        # 4 norm1, 4 norm2, 3 behind the spatial reduction and 4 of the stages; the rest is GELU,
        # attention and the head's ReLU, which torch's QAT does not observe
        ("torch", "15 of 26 activation scales and 17 of 37 weight scales"),
        # what 3 projections, 3 reductions, 4 fc1, 4 fc2, 3 outputs and 4 head convolutions read;
        # 3 of these 21 tensors are read by two of them
        ("modelopt", "18 of 26 activation scales and 17 of 37 weight scales"),
    ],
)
def test_the_report_says_how_many_scales_are_training_s(name: str, counts: str, lab: Path) -> None:
    warnings = bundle_from_folder(lab / name / "out").warnings
    assert sum(f"training: {counts} are the checkpoint's" in text for text in warnings) == 1
    said = (lab / name / "said.txt").read_text(encoding="utf-8")
    assert "scales of quantization-aware training, which --int8 keeps" in said


def test_weights_that_a_rewrite_changed_are_measured_anew(lab: Path) -> None:
    """q is scaled by 1/sqrt(8): its step is the largest magnitude of that, / 127."""
    tensors = torch.load(lab / "modelopt/tiny.pth", weights_only=True)["state_dict"]
    query = tensors[f"{BLOCKS[1]}.attn.attn.in_proj_weight"].numpy()[:16] * np.float32(8**-0.5)
    found = Written(lab / "modelopt/out/model.int8.onnx").scale(f"{BLOCKS[1]}.attn.q", 1)
    np.testing.assert_allclose(found, np.abs(query).max(1) / 127, rtol=1e-6)


def test_without_int8_the_network_is_the_trained_one(lab: Path) -> None:
    result = export(lab, "torch", out="plain")
    assert result.exit_code == 0, result.stderr
    assert set(bundle_from_folder(lab / "torch/plain").files) == {"fp32"}


@pytest.mark.parametrize(
    "option",
    ["--equalize", "--bias-correction", "--rounding=compensated", "--calibrator=auto",
     "--precision=auto"],
)  # fmt: skip
def test_what_would_change_the_trained_tensors_is_refused(option: str, lab: Path) -> None:
    precision = [] if option == "--precision=auto" else ["--int8"]
    data = ["--calib", lab / "data", "--val", lab / "data"]
    line = error_of(export(lab, "torch", option, *precision, *data, out="refused"))
    assert "with a checkpoint of quantization-aware training" in line


@pytest.mark.parametrize(
    "changes",
    [{"equalize": True}, {"rounding": "compensated"}, {"bias_correction": True},
     {"method": "auto"}],
)  # fmt: skip
def test_a_policy_that_would_change_them_is_refused_too(
    changes: dict[str, Any], lab: Path, tmp_path: Path
) -> None:
    policy = PrecisionPolicy("int8", Int8Recipe(**changes))
    (tmp_path / "policy.json").write_text(policy_to_json(policy), encoding="utf-8")
    given = ["--policy", tmp_path / "policy.json", "--calib", lab / "data"]
    line = error_of(export(lab, "torch", *given, out="refused"))
    assert "with a checkpoint of quantization-aware training" in line
    assert not (lab / "torch/refused").exists()


def test_where_no_scale_can_be_used_nothing_is_refused() -> None:
    def stays(scales: TrainedScales) -> None:
        loaded = SimpleNamespace(checkpoint=SimpleNamespace(trained_scales=scales))
        check_training_stays(None, loaded)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="--precision auto with a checkpoint of quantization"):
        stays(TrainedScales(inputs={"fc": np.float32([0.5])}))
    stays(TrainedScales(unusable=3))


# --- reading --------------------------------------------------------------------------------------


def test_a_plain_checkpoint_has_no_trained_scales(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "plain.pth")
    assert state_dict_from_checkpoint(path).trained_scales is None


def test_quantizers_are_taken_apart_from_the_weights(lab: Path) -> None:
    found = state_dict_from_checkpoint(lab / "torch/tiny.pth")
    assert found.tensors.keys() == tiny_net().state_dict().keys()
    assert found.trained_scales is not None
    assert len(found.trained_scales.weights) == 29
    assert not found.trained_scales.inputs


def test_names_of_pytorch_quantization_are_read_too() -> None:
    left, scales = without_quantizers(
        {
            "conv.weight": torch.ones(2, 1),
            "conv._input_quantizer._amax": torch.tensor(2.54),
            "conv._weight_quantizer._amax": numbers([1.27, 12.7]),
        },
        PATH,
    )
    assert left.keys() == {"conv.weight"}
    assert scales is not None
    np.testing.assert_allclose(scales.inputs["conv"], [0.02], rtol=1e-6)
    np.testing.assert_allclose(scales.weights["conv"], [0.01, 0.1], rtol=1e-6)


def test_an_observer_that_saw_nothing_is_no_damage(tmp_path: Path) -> None:
    tensors = dict(tiny_net().state_dict())
    start = "decode_head.conv_seg.activation_post_process"
    tensors[f"{start}.scale"], tensors[f"{start}.zero_point"] = numbers([1.0]), torch.tensor([0])
    tensors[f"{start}.activation_post_process.min_val"] = numbers([torch.inf])[0]
    tensors[f"{start}.activation_post_process.max_val"] = numbers([-torch.inf])[0]
    found = state_dict_from_checkpoint(write_checkpoint(tmp_path / "t.pth", tensors=tensors))
    assert found.trained_scales is not None
    assert (len(found.trained_scales), found.trained_scales.unusable) == (0, 1)


def fake_quantizer(**changes: Tensor) -> dict[str, Tensor]:
    """Buffers of torch's FakeQuantize of the weights of "conv", two channels."""
    observer = "activation_post_process"
    buffers = {
        "fake_quant_enabled": torch.tensor([1], dtype=torch.uint8),
        "scale": numbers([0.01, 0.02]),
        "zero_point": torch.tensor([0, 0]),
        f"{observer}.min_val": numbers([-1.0, -2.0]),
        f"{observer}.max_val": numbers([1.0, 2.5]),
    }
    given = {name.replace("seen_", f"{observer}."): value for name, value in changes.items()}
    return {f"conv.weight_fake_quant.{k}": v for k, v in (buffers | given).items()}


def test_a_fake_quantizer_of_weights_gives_its_scales() -> None:
    _, scales = without_quantizers(fake_quantizer(), PATH)
    assert scales is not None
    assert scales.weights["conv"].tolist() == np.float32([0.01, 0.02]).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"fake_quant_enabled": torch.tensor([0], dtype=torch.uint8)},
        {"scale": numbers([1.0]), "seen_min_val": numbers([torch.inf]),
         "seen_max_val": numbers([-torch.inf])},
        {"scale": numbers([1.0]), "seen_min_val": numbers([]), "seen_max_val": numbers([])},
        {"seen_min_val": numbers([]), "seen_max_val": numbers([1.0, 2.0])},
        {"seen_min_val": numbers([-1.0, 3.0])},
        {"seen_max_val": numbers([1.0, torch.nan])},
        {"scale": numbers([])},
    ],
    ids=["off", "as made", "empty", "half empty", "one channel unseen", "nan", "no scale"],
)  # fmt: skip
def test_what_was_never_calibrated_is_not_taken_for_trained(changes: dict[str, Tensor]) -> None:
    _, scales = without_quantizers(fake_quantizer(**changes), PATH)
    assert scales is not None
    assert (len(scales), scales.unusable) == (0, 1)


@pytest.mark.parametrize(
    ("tensors", "unusable"),
    [
        # torch's FX graphs number their observers, whatever module they belong to
        ({"activation_post_process_0.scale": 0.1, "activation_post_process_1.scale": 0.2}, 2),
        # ModelOpt's SequentialQuantizer: two in a row
        ({"fc.weight_quantizer.0._amax": 1.0, "fc.weight_quantizer.1._amax": 2.0}, 1),
    ],
)
def test_scales_that_no_layer_can_be_given_are_counted(
    tensors: dict[str, float], unusable: int
) -> None:
    left, scales = without_quantizers({k: numbers([v]) for k, v in tensors.items()}, PATH)
    assert scales is not None
    assert (left, len(scales), scales.unusable) == ({}, 0, unusable)


def test_quantizers_without_any_scale_make_a_plain_checkpoint() -> None:
    tensors = {"fc.weight": numbers([2.0]), "fc.input_quantizer._num_bits": torch.tensor(8)}
    left, scales = without_quantizers(tensors, PATH)
    assert (left.keys(), scales) == ({"fc.weight"}, None)


def test_complex_scales_are_refused() -> None:
    with pytest.raises(CheckpointError, match="scale of conv's weight_fake_quant quantizer is com"):
        without_quantizers(fake_quantizer(scale=torch.ones(2, dtype=torch.complex64)), PATH)


@pytest.mark.parametrize(
    ("zero_point", "low", "high", "scale"),
    [
        (64, -1.0, 2.0, 3 / 255),  # asymmetric
        (0, 0.0, 2.0, 2 / 255),  # quint8 after a ReLU
        (0, -1.0, 2.0, 0.0),  # never set
        (0, -1.0, 2.0, float("nan")),
    ],
)
def test_scales_that_symmetric_int8_cannot_have_are_counted_and_not_used(
    zero_point: int, low: float, high: float, scale: float
) -> None:
    start = "norm.activation_post_process"
    _, scales = without_quantizers(
        {
            f"{start}.scale": numbers([scale]),
            f"{start}.zero_point": torch.tensor([zero_point]),
            f"{start}.activation_post_process.min_val": torch.tensor(low),
            f"{start}.activation_post_process.max_val": torch.tensor(high),
        },
        PATH,
    )
    assert scales is not None
    assert (len(scales), scales.unusable) == (0, 1)


def test_a_symmetric_scale_of_positive_values_is_used() -> None:
    start = "norm.activation_post_process"
    _, scales = without_quantizers(
        {
            f"{start}.scale": numbers([2 / 127.5]),
            f"{start}.zero_point": torch.tensor([0]),
            f"{start}.activation_post_process.min_val": torch.tensor(0.0),
            f"{start}.activation_post_process.max_val": torch.tensor(2.0),
        },
        PATH,
    )
    assert scales is not None
    assert scales.outputs.keys() == {"norm"}


@pytest.mark.parametrize("name", ["_pre_quant_scale", "0._pre_quant_scale"])
def test_smoothquants_factors_are_refused(name: str) -> None:
    tensors = {
        "fc.input_quantizer._amax": torch.tensor(1.0),
        f"fc.input_quantizer.{name}": torch.ones(4),
    }
    said = f"input quantizer of fc has {name}"
    with pytest.raises(CheckpointError, match=said):
        without_quantizers(tensors, PATH)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "module", "paths"),
    [
        ("NVlabs", "backbone.patch_embed2.proj", ["backbone.layers.1.0.projection"]),
        ("NVlabs", "backbone.block1.0.attn.q", ["backbone.layers.0.1.0.attn.q"]),
        ("NVlabs", "backbone.block1.0.attn.kv",
         ["backbone.layers.0.1.0.attn.k", "backbone.layers.0.1.0.attn.v"]),
        ("NVlabs", "backbone.block1.0.mlp.fc2", ["backbone.layers.0.1.0.ffn.layers.4"]),
        ("NVlabs", "decode_head.linear_c1.proj", ["decode_head.fusion.0"]),
        ("Hugging Face", "segformer.encoder.block.2.1.attention.self.key",
         ["backbone.layers.2.1.1.attn.k"]),
        ("Hugging Face", "segformer.encoder.block.2.1.attention.output.dense",
         ["backbone.layers.2.1.1.attn.out_proj"]),
        ("Hugging Face", "decode_head.classifier", ["decode_head.conv_seg"]),
        ("mmsegmentation", "decode_head.convs.3.conv", ["decode_head.convs.3.0"]),
        ("mmsegmentation", "decode_head.convs.3.activate", ["decode_head.convs.3.1"]),
    ],
)  # fmt: skip
def test_a_module_of_any_style_leads_to_its_layers(
    style: str, module: str, paths: list[str]
) -> None:
    assert list(segformer_keys.layer_paths(module, style)) == paths


def test_a_joined_key_and_value_gives_each_its_half() -> None:
    scales = TrainedScales(
        inputs={"backbone.block1.0.attn.kv": np.float32([0.5])},
        weights={"backbone.block1.0.attn.kv": np.float32([1, 2, 3, 4])},
        outputs={
            "backbone.block1.0.attn.kv": np.float32([0.1]),  # its value is mixed with the output's
            "backbone.block1.0.norm1": np.float32([0.2]),
        },
    )
    found = scales_by_layer(scales, "NVlabs", segformer_keys)
    start = "net.backbone.layers.0.1.0"
    assert found.inputs == {f"{start}.attn.k": [0.5], f"{start}.attn.v": [0.5]}
    assert {k: v.tolist() for k, v in found.weights.items()} == {
        f"{start}.attn.k": [1, 2], f"{start}.attn.v": [3, 4],
    }  # fmt: skip
    assert found.outputs.keys() == {f"{start}.norm1"}
