"""What fused, from lists of layers as several versions of TensorRT write them, counted by hand."""

from __future__ import annotations

import json

import pytest

from engines.reports.fusion import built_line, fusion_line
from engines.trt.engine_header import FusionCounts
from engines.trt.engine_layers import layers_from_inspector
from engines.trt.fusion import (
    attention_blocks,
    fusion_from_layers,
    fusion_of_build,
    fusion_without_layers,
    layer_norms,
)
from engines.trt.log import INFO, VERBOSE, MessageLog

BLOCK = "/net/backbone/layers.1.1.0"


def metadata(*nodes, separator="\x1f"):
    return separator.join(f"[ONNX Layer: {node}]" for node in nodes)


def kernel(name, *nodes, kind="kgen", tactic="", **fields):
    """A layer as Myelin's kernels are listed with ProfilingVerbosity.DETAILED."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "__mye77137_59_myl0", "Dimensions": [2, 4096, 32]}],
        "TacticName": tactic or name.rpartition("_myl")[0],
        "StreamId": 0,
        "Metadata": metadata(*nodes),
        **fields,
    }


def attention_of(folder):
    return [f"{folder}/attn/{name}" for name in ("MatMul_1", "Softmax", "MatMul")]


def norm_of(folder, number=1):
    return f"{folder}/norm{number}/LayerNormalization"


# Two blocks: of the first attention is one kernel, of the second three. Of four LayerNorms three
# are in one kernel (two of them in the same), one is in two.
SECOND = "/net/backbone/layers.1.1.1"
COMPILED = [
    kernel("entry^bb^signal^4_myl0_0", kind="signal"),
    kernel("__myl_Tran_myl0_1", f"{BLOCK}/Transpose"),
    kernel(
        "__myl_CastMeanSubMulMeanAddSqrtDivMulCastMulAddCastMeanSubMulMeanAddSqrtDivEtc_myl0_2",
        norm_of("/net/backbone/layers.1.0"),
        norm_of(BLOCK),
        f"{norm_of(BLOCK)}_output_0_QuantizeLinear",
    ),
    kernel(
        f"{BLOCK}/attn/q/MatMul_myl0_3",
        f"{BLOCK}/attn/q/MatMul",
        f"{norm_of(BLOCK)}_output_0_DequantizeLinear",
        kind="gemm",
        tactic="__myelin_CASK_STUB",
    ),
    kernel(
        "_gemm_mha_v2_myl0_4",
        f"{BLOCK}/attn/MatMul_1_output_0_QuantizeLinear",
        *attention_of(BLOCK),
        tactic="_gemm_mha_v2_0x971ae05a11bbce2ac681525b2fd78911",
    ),
    kernel("__myl_AddCastMeanSubMulMean_myl0_5", f"{BLOCK}/Add", norm_of(BLOCK, 2)),
    kernel("__myl_AddSqrtDivMulCastMulMoveAddTran_myl0_6", norm_of(BLOCK, 2)),
    kernel("__myl_MeanSubMulMeanAddSqrtDivMulMulAdd_myl0_7", norm_of(SECOND)),
    kernel(f"{SECOND}/attn/MatMul_myl0_8", f"{SECOND}/attn/MatMul", kind="gemm"),
    kernel("__myl_MaxrSubExpSumDivMul_myl0_9", f"{SECOND}/attn/Softmax"),
    kernel(f"{SECOND}/attn/MatMul_1_myl0_10", f"{SECOND}/attn/MatMul_1", kind="gemm"),
    kernel("exit^bb^wait^2_myl0_11", kind="wait"),
]
TIMES = {
    "__myl_Tran_myl0_1": 0.5,
    "_gemm_mha_v2_myl0_4": 2.0,
    f"{SECOND}/attn/MatMul_myl0_8": 1.5,
}


def inspected(layers):
    """As the inspector writes it: what parts the nodes stands bare in its JSON."""
    text = json.dumps({"Layers": layers, "Bindings": ["image", "labels"]})
    return text.replace("\\u001f", "\x1f").replace("\\u001e", "\x1e")


def test_compiled_kernels_tell_which_blocks_and_norms_they_hold():
    found = fusion_from_layers(inspected(COMPILED), TIMES)
    assert found["layers"] == 10  # without the signal and the wait
    assert found["attention"] == {"found": 2, "fused": 1}
    assert found["layer_norms"] == {"found": 4, "fused": 3}
    assert found["reformats"] == {"count": 0, "time_ms": 0, "percent": 0}
    assert found["notes"] == ["1 compiled kernels (0.50 ms) move data and do no more"]
    assert json.loads(json.dumps(found)) == found


def test_the_slowest_layers_come_with_their_place_in_the_model():
    slowest = fusion_from_layers(inspected(COMPILED), TIMES)["slowest"]
    assert slowest == [
        {"name": "_gemm_mha_v2_myl0_4", "layer": "net.backbone.layers.1.1.0.attn", "ms": 2.0},
        {
            "name": f"{SECOND}/attn/MatMul_myl0_8",
            "layer": "net.backbone.layers.1.1.1.attn",
            "ms": 1.5,
        },
        {"name": "__myl_Tran_myl0_1", "layer": "net.backbone.layers.1.1.0", "ms": 0.5},
    ]


def test_ten_layers_are_shown_and_three_places_of_each():
    layers = [kernel(f"__myl_Add_myl0_{i}", f"/net/a{i}/Add") for i in range(12)]
    layers.append(kernel("__myl_Big_myl0_12", *(f"/net/b{i}/Add" for i in range(5))))
    times = {layer["Name"]: float(i) for i, layer in enumerate(layers)}
    slowest = fusion_from_layers(inspected(layers), times)["slowest"]
    assert len(slowest) == 10
    assert slowest[0]["layer"] == "net.b0, net.b1, net.b2 and 2 more"
    assert [layer["ms"] for layer in slowest] == [float(i) for i in range(12, 2, -1)]


# TensorRT 8.6: Myelin's part is one layer, convolutions are their own, reformats lie between.
FOREIGN = "{ForeignNode[/net/backbone/layers.0.1.0/norm1/LayerNormalization.../net/Transpose_9]}"
OF_8_6 = [
    {
        "Name": "Reformatting CopyNode for Input Tensor 0 to /net/backbone/layers.0.0/Conv",
        "LayerType": "Reformat",
        "ParameterType": "Reformat",
        "Origin": "REFORMAT",
        "TacticValue": "0x00000000000003e8",
        "Metadata": "",
    },
    {
        "Name": "/net/backbone/layers.0.0/Conv",
        "LayerType": "CaskConvolution",
        "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc",
        "Metadata": metadata("/net/backbone/layers.0.0/Conv", separator="\x1e"),
    },
    {
        "Name": FOREIGN,
        "LayerType": "Myelin",
        "TacticValue": "0x0000000000000000",
        "Metadata": metadata(*attention_of(BLOCK), norm_of(BLOCK), separator="\x1e"),
    },
    {
        "Name": f"Reformatting CopyNode for Output Tensor 0 to {FOREIGN}",
        "LayerType": "Reformat",
        "Origin": "REFORMAT",
    },
    {"Name": "/net/a/QuantizeLinear", "LayerType": "Reformat", "Origin": "QDQ"},
]
TIMES_8_6 = {
    OF_8_6[0]["Name"]: 0.25,
    OF_8_6[1]["Name"]: 0.5,
    FOREIGN: 3.0,
    OF_8_6[3]["Name"]: 0.15,
    OF_8_6[4]["Name"]: 0.1,
}


def test_a_myelin_block_hides_what_is_in_it():
    found = fusion_from_layers(inspected(OF_8_6), TIMES_8_6)
    assert found["attention"] == {"found": None, "fused": None}
    assert found["layer_norms"] == {"found": None, "fused": None}
    assert found["notes"][:2] == [
        "1 of the layers are blocks (ForeignNode) whose inside is not listed",
        "0 of an unknown number of attention blocks are in layers that tell what they hold",
    ]


def test_reformats_are_those_that_tensorrt_put_in():
    found = fusion_from_layers(inspected(OF_8_6), TIMES_8_6)
    # 0.25 + 0.15 of 4 ms; the fifth layer quantizes.
    assert found["reformats"]["count"] == 2
    assert found["reformats"]["time_ms"] == pytest.approx(0.4)
    assert found["reformats"]["percent"] == pytest.approx(10.0)
    assert "1 more layers of type Reformat quantize, cast or copy for the model" in found["notes"]


def test_what_the_engine_was_built_from_is_the_number_of_blocks():
    built = FusionCounts(8, None, None, 30, None)
    found = fusion_from_layers(inspected(OF_8_6), TIMES_8_6, built=built)
    assert found["attention"] == {"found": 8, "fused": None}
    assert found["layer_norms"] == {"found": 30, "fused": None}
    line = "how many of 8 attention blocks and of 30 LayerNorms fused is not told, "
    assert fusion_line(found) == line + "2 reformat layers (0.40 ms, 10 %)"


def test_where_the_layers_do_not_tell_it_is_what_the_builder_listed():
    built = FusionCounts(3, 3, 2, 4, 3)
    found = fusion_from_layers(inspected(COMPILED), TIMES, built=built)
    assert found["attention"] == {"found": 3, "fused": 2}
    assert found["notes"][0] == (
        "2 of 3 attention blocks are in layers that tell what they hold, 1 of them fused; "
        "the number of fused ones is what the builder listed"
    )
    nothing = fusion_without_layers("the layers are not told: no inspector", built)
    assert nothing["attention"] == {"found": 3, "fused": 2}
    assert (nothing["layers"], nothing["notes"]) == (
        None,
        ["the layers are not told: no inspector"],
    )
    assert fusion_line(nothing) == "2 of 3 attention blocks and 3 of 4 LayerNorms fused"


def test_a_list_of_names_is_read_as_far_as_it_goes():
    """LAYER_NAMES_ONLY, as trtexec of TensorRT 10.0 exports it."""
    names = [
        "Reformatting CopyNode for Input Tensor 0 to /net/stem/Conv + /net/stem/Relu",
        "/net/stem/Conv + /net/stem/Relu",
        f"{BLOCK}/attn/MatMul",
        f"{BLOCK}/attn/Softmax",
        f"{BLOCK}/attn/MatMul_1",
    ]
    found = fusion_from_layers(inspected(names), {names[0]: 1.0, names[1]: 3.0, "gone": 0.0})
    assert found["layers"] == 5
    assert found["attention"] == {"found": 1, "fused": 0}
    assert found["layer_norms"] == {"found": 0, "fused": 0}
    assert found["reformats"] == {"count": 1, "time_ms": 1.0, "percent": 25.0}
    assert found["notes"] == ["1 of 3 times are of layers that are not listed"]
    assert fusion_line(found) == "0 of 1 attention blocks fused, 1 reformat layer (1.00 ms, 25 %)"


@pytest.mark.parametrize(
    "name", ["_gemm_mha_v2_myl0_77", "_gemv_mha_v1_myl1_2", "__mye8037_gemm_mha_v2"]
)
def test_a_kernel_of_attention_is_known_by_its_name(name):
    layers = [kernel(name, f"{BLOCK}/attn/Softmax"), kernel("x", *attention_of(BLOCK)[::2])]
    assert fusion_from_layers(inspected(layers), {})["attention"] == {"found": 1, "fused": 1}


def test_a_models_own_mha_is_no_kernel_of_attention():
    nodes = [node.replace("attn", "mha") for node in attention_of(BLOCK)]
    layers = [
        kernel(f"{node}_myl0_{i}", node, kind="gemm", tactic="sm80_xmma_gemm_f16f16_f16f16_f16_tn")
        for i, node in enumerate(nodes)
    ]
    assert fusion_from_layers(inspected(layers), {})["attention"] == {"found": 1, "fused": 0}


def test_without_times_only_they_are_missing():
    for times in (None, {}, {"another name": 1.0}):
        found = fusion_from_layers(inspected(OF_8_6), times)
        assert found["reformats"] == {"count": 2, "time_ms": None, "percent": None}
        assert "the times of the layers were not told" in found["notes"]


@pytest.mark.parametrize("text", ["", "null", "[]", '{"Layers": 3}', "{"])
def test_another_text_is_no_list_of_layers(text):
    with pytest.raises(ValueError, match=r"no list 'Layers'|Expecting"):
        layers_from_inspector(text)


def test_layers_of_any_content_are_taken():
    odd = [{}, 3, None, {"Name": 5, "Metadata": ["x"], "LayerType": None}]
    assert fusion_from_layers({"Layers": odd}, {})["layers"] == 4


# --- the graph's own blocks and norms


def test_a_softmax_that_is_no_attention_is_not_counted():
    nodes = [*attention_of("/net/a"), "/net/head/Softmax", "/net/head/MatMul", "/net/LogSoftmax"]
    assert attention_blocks(nodes) == ("/net/a/attn/Softmax",)
    assert attention_blocks(["node_softmax_3", "node_MatMul_2"]) == ("node_softmax_3",)


def test_a_layer_norm_that_was_taken_apart_is_one():
    """Opset 16: the mean, the mean of the squares, the root."""
    names = ["ReduceMean", "Sub", "Pow", "ReduceMean_1", "Add", "Sqrt", "Div"]
    parts = [f"/net/norm/{name}" for name in names]
    others = ["/net/pool/ReduceMean", "/net/scale/Sqrt"]
    assert list(layer_norms([*parts, *others])) == ["/net/norm"]
    one = [kernel("__myl_MeanSubMulMeanAddSqrtDiv_myl0_0", *parts)]
    two = [kernel("__myl_MeanSubMulMean_myl0_0", *parts[:4]), kernel("b", *parts[4:])]
    assert fusion_from_layers(inspected(one), {})["layer_norms"] == {"found": 1, "fused": 1}
    assert fusion_from_layers(inspected(two), {})["layer_norms"] == {"found": 1, "fused": 0}


# --- the builder's log


def listed(layers):
    """The end of a verbose log, as TensorRT-RTX 1.7 and TensorRT 10.10 write it."""
    lines = [
        f"Name: {layer['Name']}, LayerType: {layer['LayerType']}, Inputs: [ {{ Name: __mye1, "
        f"Dimensions: [1,2] }}], Outputs: [], TacticName: {layer['TacticName']}, StreamId: 0, "
        f"Metadata: {layer['Metadata']}"
        for layer in layers
    ]
    return "\n".join(["Layers:", *lines, "", "I/O Tensors:", " Name: image, IOMode: Input"])


def graph_nodes():
    return [node for layer in COMPILED for node in layers_from_inspector({"Layers": [layer]})[0][4]]


def test_the_builders_list_tells_what_is_fused_and_its_messages_what_it_recognised():
    log = MessageLog()
    log.message(VERBOSE, f"Found {BLOCK}/attn/Softmax to be part of self-attention pattern.")
    log.message(VERBOSE, f"Found {BLOCK}/attn/MatMul to be part of self-attention pattern.")
    log.message(INFO, f"Found {SECOND}/attn/Softmax to be part of self-attention pattern.")
    log.message(VERBOSE, listed(COMPILED))
    assert fusion_of_build(graph_nodes(), log) == FusionCounts(2, 1, 1, 4, 3)


def test_a_log_without_them_leaves_only_the_graphs_own_numbers():
    log = MessageLog()
    log.message(
        VERBOSE, "Engine Layer Information:\nLayer(Myelin): {ForeignNode[a...b]}, Tactic: 0"
    )
    assert fusion_of_build(graph_nodes(), log) == FusionCounts(2, None, None, 4, None)
    assert fusion_of_build([], MessageLog()) == FusionCounts(0, None, 0, 0, 0)


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (None, None),
        (FusionCounts(0, None, 0, 0, 0), None),
        (
            FusionCounts(8, 8, 6, 30, 18),
            "attention: 6 of 8 blocks fused (8 recognised); LayerNorm: 18 of 30 fused",
        ),
        (
            FusionCounts(8, 8, None, 30, None),
            "attention: 8 of 8 blocks recognised; LayerNorm: 30, not told how many are fused",
        ),
        (FusionCounts(8, None, None, 0, 0), "attention: 8 blocks, not told how many are fused"),
        (FusionCounts(8, None, 0, 0, 0), "attention: 0 of 8 blocks fused"),
    ],
)
def test_the_line_of_a_build(counts, line):
    assert built_line(counts) == line


@pytest.mark.parametrize(
    ("fusion", "line"),
    [
        ({}, None),
        ({"layer norms": 16}, None),
        ({"attention": 3, "layer_norms": {"fused": 16}, "reformats": []}, None),
        (
            {
                "attention": {"found": 8, "fused": 8},
                "layer_norms": {"found": 17, "fused": 17},
                "reformats": {"count": 12, "time_ms": 0.41, "percent": 6.1},
            },
            "8 of 8 attention blocks and 17 of 17 LayerNorms fused, "
            "12 reformat layers (0.41 ms, 6 %)",
        ),
        ({"reformats": {"count": 2, "time_ms": None, "percent": None}}, "2 reformat layers"),
        ({"reformats": {"count": 2, "time_ms": 0.5}}, "2 reformat layers (0.50 ms)"),
    ],
)
def test_the_line_of_a_report_takes_what_fits(fusion, line):
    assert fusion_line(fusion) == line
