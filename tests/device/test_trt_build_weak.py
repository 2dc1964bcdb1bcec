"""Builds on weakly typed TensorRT (8.5 to 10), recorded by a fake builder."""

from __future__ import annotations

import os
import signal

import pytest
from fake_builder import Graph, Layer, Tensor, fake_module, parser_error
from fake_cuda import RecordingCuda

from engines.errors import ConfigError, DeviceError, EngineError, GraphError
from engines.progress import SilentProgress
from engines.trt.api import tensorrt_from_module
from engines.trt.build import BuildOptions, engine_from_onnx
from engines.trt.engine_file import plan_from_engine
from engines.trt.engine_header import FusionCounts

FP16_GRAPH = [
    Layer("/Cast", "CAST"),
    Layer("weight", "CONSTANT"),
    Layer("/net/Conv", outputs=["HALF"]),
    Layer("/net/norm/Pow"),
    Layer("/TopK", "TOPK", outputs=["FLOAT", "INT32"]),
    Layer("/labels", "SHUFFLE", outputs=["INT32"]),
]
QDQ_GRAPH = [Layer("/net/Q", "QUANTIZE", outputs=["INT8"]), Layer("/net/Conv")]


def fresh(layers):
    return [Layer(x.name, x.type.name, [t.dtype.name for t in x._outputs]) for x in layers]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RICESEG_CACHE", str(tmp_path / "cache"))


class Site:
    """One build: the module that recorded it, the GPU, and the folder it went to."""

    def __init__(self, folder):
        self.folder, self.cuda = folder, RecordingCuda(integrated=True)
        self.onnx = folder / "모델.onnx"
        self.onnx.write_bytes(b"\x08\x08" + bytes(100))
        self.out = folder / "out.engine"
        self.module = self.progress = None

    def build(self, options=None, version="10.3.0", progress=None, **fake):
        self.module = fake_module(version, **fake)
        return engine_from_onnx(
            self.onnx,
            self.out,
            options or BuildOptions(),
            cuda=self.cuda,
            progress=progress or SilentProgress(),
            tensorrt=tensorrt_from_module(self.module),
        )

    @property
    def config(self):
        return self.module.configs[-1]

    def left(self):
        return sorted(name for name in os.listdir(str(self.folder)) if name != "cache")


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_the_engine_says_what_it_was_built_from_and_for(site):
    record = site.build(plan=b"ftrt of the fake")
    header, plan = plan_from_engine(site.out)
    assert plan == b"ftrt of the fake"
    assert record.header == header
    assert (header.runtime, header.runtime_version) == ("TensorRT", "10.3.0")
    assert (header.gpu_name, header.compute_capability) == ("Orin", (8, 7))
    assert (header.onnx_file, header.precision, header.cuda_version) == (
        "모델.onnx",
        "fp16",
        "12.6",
    )
    assert record.engine_bytes == site.out.stat().st_size
    assert site.left() == ["out.engine", "out.log", "모델.onnx"]


@pytest.mark.parametrize(
    ("precision", "layers", "flags"),
    [
        ("fp32", [Layer("a")], set()),
        ("fp16", [Layer("a")], {"FP16"}),
        ("int8", QDQ_GRAPH, {"INT8", "FP16"}),
    ],
)
@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.3.0", "10.13.0"])
def test_a_precision_is_a_set_of_flags(site, version, precision, layers, flags):
    site.build(BuildOptions(precision), version, graph=Graph(fresh(layers)))
    assert site.config.flags == flags
    assert site.config.profiling_verbosity == site.module.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.3.0"])
def test_the_header_keeps_what_the_log_told_of_attention_and_norms(site, version):
    nodes = ["/net/attn/MatMul", "/net/attn/Softmax", "/net/attn/MatMul_1"]
    graph = Graph([Layer(node, node=node) for node in (*nodes, "/net/norm/LayerNormalization")])
    record = site.build(BuildOptions("fp32"), version, graph=graph)
    assert record.header.fusion == FusionCounts(1, None, None, 1, None)

    def on_build(config, monitor):
        metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
        site.module.logger.log(4, "Found /net/attn/Softmax to be part of self-attention pattern.")
        site.module.logger.log(
            4, f"Layers:\nName: _gemm_mha_v2_myl0_0, LayerType: kgen, Metadata: {metadata}\n"
        )

    record = site.build(BuildOptions("fp32"), version, graph=graph, on_build=on_build)
    assert record.header.fusion == FusionCounts(1, 1, 1, 1, None)
    assert plan_from_engine(site.out)[0].fusion == record.header.fusion


def test_what_an_fp16_graph_computes_in_fp32_is_held_there(site):
    graph = Graph(fresh(FP16_GRAPH))
    record = site.build(graph=graph)
    held = {layer.name: layer._held_outputs for layer in graph.layers if layer._held_outputs}
    assert held == {"/net/norm/Pow": {0, "precision"}, "/TopK": {0, "precision"}}
    assert site.config.flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert record.header.notes == ("layers that the graph computes in FP32 are held there",)


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.3.0"])
def test_named_nodes_are_held_in_fp32(site, version):
    graph = Graph(
        [
            Layer("/net/norm/Pow", node="/net/norm/Pow"),
            Layer("/net/norm/Pow_1", node="/net/norm/Pow_1"),
            Layer("(Unnamed Layer* 7)", node="/net/norm/Pow"),
        ]
    )
    site.build(BuildOptions(fp32_nodes=("/net/norm/Pow",)), version, graph=graph)
    held = [layer.name for layer in graph.layers if layer._held_outputs]
    expected = ["/net/norm/Pow"] + (["(Unnamed Layer* 7)"] if version != "8.5.2" else [])
    assert held == expected
    assert site.config.flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}


def test_a_node_to_hold_that_is_not_there_is_a_warning(site):
    record = site.build(BuildOptions(fp32_nodes=("/net/Conv", "/gone/Pow")), "8.5.2")
    assert record.warnings == (
        "1 of 2 nodes to hold in FP32 were not found, the first is '/gone/Pow'",
    )


@pytest.mark.parametrize(
    ("precision", "layers", "message"),
    [
        ("int8", [Layer("a")], r"--precision int8 for '모델\.onnx', which is written in FP32"),
        ("fp32", QDQ_GRAPH, r"--precision fp32 .* written in INT8 \(Q/DQ\).*--precision int8"),
        ("fp32", FP16_GRAPH, r"--precision fp32 .* written in FP16"),
        ("fp16", QDQ_GRAPH, r"--precision fp16 .* written in INT8"),
    ],
)
def test_an_engine_never_has_another_precision_than_asked_for(site, precision, layers, message):
    with pytest.raises(ConfigError, match=message):
        site.build(BuildOptions(precision), graph=Graph(fresh(layers)))
    assert not site.out.exists()


@pytest.mark.parametrize(
    ("options", "version", "message"),
    [
        (BuildOptions(opt_level=2), "8.5.2", r"--opt-level with TensorRT 8\.5\.2; .*8\.6 or newer"),
        (BuildOptions(version_compatible=True), "8.5.2", r"--version-compatible .*8\.6 or newer"),
        (BuildOptions(hardware_compatible=True), "8.5.2", r"--hardware-compatible .*8\.6 or newer"),
        (BuildOptions(strip_weights=True), "8.6.1", r"--strip-weights .*10\.0 or newer"),
        (BuildOptions(dla=0), "10.13.0", r"--dla 0 with TensorRT 10\.13\.0; .*up to 10\.7"),
        (BuildOptions(dla=0), "10.3.0", "--dla 0 where there are 0 DLA cores"),
        (
            BuildOptions("int8", implicit_int8=True),
            "11.4.0",
            r"--implicit-int8 with TensorRT 11\.4\.0; expected TensorRT 10 or older",
        ),
        (BuildOptions(hardware_compatible=True), "10.3.0", r"on Orin \(8\.7\); .*desktop GPU"),
    ],
)
def test_an_option_that_this_version_lacks_is_an_error(site, options, version, message):
    with pytest.raises(ConfigError, match=message):
        site.build(options, version)
    assert not site.out.exists()


def test_every_option_reaches_the_builder(site):
    site.cuda = RecordingCuda(name="NVIDIA RTX A6000")
    options = BuildOptions(
        workspace_mb=64,
        version_compatible=True,
        hardware_compatible=True,
        strip_weights=True,
        opt_level=4,
    )
    header = site.build(options).header
    assert site.config.flags == {"FP16", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"}
    assert site.config.builder_optimization_level == 4
    assert site.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert ("workspace", 64 * 2**20) in site.module.calls
    assert (header.version_compatible, header.hardware_compatible, header.stripped) == (True,) * 3


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (BuildOptions(refit=True), {"FP16", "REFIT"}),
        (BuildOptions(refit=True, strip_weights=True), {"FP16", "REFIT", "STRIP_PLAN"}),
    ],
)
def test_refit_lets_other_weights_in(site, options, flags):
    site.build(options)
    assert site.config.flags == flags


def test_a_dla_core_is_the_default_with_the_gpu_as_fallback(site):
    record = site.build(BuildOptions(dla=1), "8.6.1", dla_cores=2)
    assert site.config.flags == {"FP16", "GPU_FALLBACK"}
    assert (site.config.default_device_type.name, site.config.DLA_core) == ("DLA", 1)
    assert record.header.dla == 1
    with pytest.raises(ConfigError, match="--dla 2 where there are 2 DLA cores"):
        site.build(BuildOptions(dla=2), "8.6.1", dla_cores=2)


def test_a_free_batch_ranges_over_what_was_asked_for(site):
    site.build(BuildOptions(batch=(1, 4, 8)), graph=Graph(batch=-1))
    shapes = ("image", (1, 2, 3, 3), (4, 2, 3, 3), (8, 2, 3, 3))
    assert ("set_shape", shapes) in site.module.calls


def test_a_free_batch_needs_a_range(site):
    with pytest.raises(ConfigError, match="whose batch is free, without --batch"):
        site.build(graph=Graph(batch=-1))


def test_a_fixed_batch_takes_no_other(site):
    with pytest.raises(ConfigError, match="a batch of 1:4:8; expected 2, which is fixed"):
        site.build(BuildOptions(batch=(1, 4, 8)), graph=Graph(batch=2))
    site.build(BuildOptions(batch=(2, 2, 2)), graph=Graph(batch=2))
    assert not [call for call in site.module.calls if call[0] == "set_shape"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(outputs=[Tensor("labels", "INT32", (1, 2, 3))]), r"labels DataType\.INT32"),
        (Graph(outputs=[Tensor("mask", "UINT8", (1, 2, 3))]), r"outputs: mask"),
        (Graph(outputs=[Tensor("logits", "HALF", (1, 4, 2, 3))]), r"logits DataType\.HALF"),
        (Graph(hw=(-1, 3)), r"inputs: image .* \(1, -1, 3, 3\); .*fixed H, W and C"),
    ],
)
def test_a_graph_with_another_contract_is_refused(site, graph, message):
    with pytest.raises(GraphError, match=message):
        site.build(graph=graph)
    assert not site.out.exists()


def test_an_operator_that_the_parser_refuses_is_named_with_its_layer(site):
    errors = [
        parser_error("false", name="/net/head/Det", operator="Det", code="UNSUPPORTED_NODE"),
        *(parser_error(f"bad {i}", name=f"/net/b{i}/Add", operator="Add") for i in range(3)),
    ]
    with pytest.raises(GraphError) as caught:
        site.build(graph=Graph(errors=errors))
    text = str(caught.value)
    assert "'모델.onnx', of which TensorRT 10.3.0 does not take /net/head/Det" in text
    assert "(operator Det, layer net.head): there is no such operator in TensorRT" in text
    assert "/net/b1/Add (operator Add, layer net.b1): bad 1; and 1 more in the log" in text
    assert "out.failed.log" in text
    assert site.left() == ["out.failed.log", "모델.onnx"]


def test_a_parser_before_10_tells_the_node_in_its_log(site):
    messages = [
        (1, 'ModelImporter.cpp:771: While parsing node number 7 [Det -> "y"]:'),
        (1, "ModelImporter.cpp:772: --- Begin node ---"),
        (
            1,
            'ModelImporter.cpp:773: input: "x"\noutput: "y"\nname: "/net/head/Det"\nop_type: "Det"',
        ),
        (1, "ModelImporter.cpp:774: --- End node ---"),
    ]
    errors = [parser_error("No importer registered for op: Det.", number=7)]
    with pytest.raises(GraphError, match=r"/net/head/Det \(operator Det, layer net\.head\): there"):
        site.build(version="8.6.1", graph=Graph(errors=errors, messages=messages))


def test_a_build_that_fails_says_why_and_keeps_its_log(site):
    def on_build(config, monitor):
        site.module.logger.log(1, "Could not find any implementation for node /net/a/Conv.")

    with pytest.raises(EngineError, match=r"node /net/a/Conv\. \[layer net\.a\].*out\.failed\.log"):
        site.build(on_build=on_build, plan=None)
    assert site.left() == ["out.failed.log", "모델.onnx"]
    assert "Could not find any" in (site.folder / "out.failed.log").read_text(encoding="utf-8")


class Steps(SilentProgress):
    def __init__(self):
        super().__init__()
        self.done, self.notes = [], []

    def advance(self, done, total):
        self.done.append((done, total))

    def note(self, text):
        self.notes.append(text)


def test_progress_is_the_share_of_the_tree_of_phases(site):
    def on_build(config, monitor):
        monitor.phase_start("all", None, 2)
        monitor.phase_start("part", "all", 4)
        assert monitor.step_complete("part", 0)
        assert monitor.step_complete("part", 1)
        monitor.phase_finish("part")
        assert monitor.step_complete("all", 0)
        monitor.phase_start("part", "all", 1)
        assert monitor.step_complete("part", 0)
        monitor.phase_finish("part")
        monitor.phase_finish("all")

    steps = Steps()
    site.build(on_build=on_build, progress=steps)
    # 1/4 and 2/4 of the first of two halves; then its end, the second half, the end.
    assert [done for done, _ in steps.done] == [12, 25, 25, 50, 100, 100, 100]
    assert {total for _, total in steps.done} == {100}


def test_a_display_that_fails_does_not_stop_the_build(site, caplog):
    class Broken(SilentProgress):
        def advance(self, done, total):
            raise RuntimeError("no display")

    def on_build(config, monitor):
        monitor.phase_start("all", None, 2)
        assert monitor.step_complete("all", 0)
        assert monitor.step_complete("all", 1)

    site.build(on_build=on_build, progress=Broken())
    assert [r.getMessage() for r in caplog.records] == [
        "the progress display failed; the build goes on"
    ]


def test_a_version_without_progress_says_so(site):
    steps = Steps()
    site.build(version="8.6.1", progress=steps)
    assert [note for note in steps.notes if "tells no progress" in note]
    assert steps.done == []


def test_ctrl_c_cancels_the_build_and_leaves_no_file(site):
    answers = []

    def on_build(config, monitor):
        monitor.phase_start("all", None, 3)
        answers.append(monitor.step_complete("all", 0))
        os.kill(os.getpid(), signal.SIGINT)
        answers.append(monitor.step_complete("all", 1))

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        site.build(on_build=on_build)
    assert answers == [True, False]
    assert signal.getsignal(signal.SIGINT) is before
    assert site.left() == ["모델.onnx"]


def test_ctrl_c_where_a_build_cannot_be_cancelled_counts_after_it(site, caplog):
    def on_build(config, monitor):
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        site.build(version="8.6.1", on_build=on_build)
    assert "press Ctrl-C again to end the program" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before
    assert site.left() == ["모델.onnx"]


def test_the_gpu_is_current_while_it_builds(site):
    seen = []
    site.build(on_build=lambda config, monitor: seen.append(site.cuda.is_current()))
    assert seen == [True]
    assert not site.cuda.is_current()


def test_an_older_engine_stays_when_a_build_fails(site):
    site.build(plan=b"the older plan")
    with pytest.raises(ConfigError, match="DLA"):
        site.build(BuildOptions(dla=0))
    assert plan_from_engine(site.out)[1] == b"the older plan"


def test_an_onnx_file_with_weights_elsewhere_is_refused(site):
    site.onnx.write_bytes(b"\x0a\x08location\x12\x01x")
    with pytest.raises(GraphError, match="keeps weights in another file"):
        site.build()
    site.onnx.unlink()
    with pytest.raises(GraphError, match="No such file"):
        site.build()


def test_without_a_gpu_tensorrt_does_not_build(site, monkeypatch):
    def no_gpu():
        raise DeviceError("no GPU", expected="one", do="plug it in")

    monkeypatch.setattr("engines.trt.build.open_cuda", no_gpu)
    site.cuda = None
    with pytest.raises(DeviceError, match="no GPU"):
        site.build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "--precision bf16; expected fp32, fp16, int8"),
        ({"opt_level": 6}, "--opt-level 6; expected a whole number from 0 to 5"),
        ({"workspace_mb": 0}, "--workspace 0"),
        ({"batch": (1, 8, 4)}, "--batch 1:8:4; expected MIN:OPT:MAX"),
        ({"implicit_int8": True}, "--implicit-int8 with --precision fp16"),
        ({"precision": "fp32", "dla": 0}, "--dla 0 with --precision fp32"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**options)
