"""Engines that take bands on a made-up GPU: built, chosen and run beside those of images."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from device_bundle import bundle_in, entry_of
from fake_builder import Graph, Layer, fake_module
from fake_cuda import RecordingCuda
from fake_tensorrt import plan_bytes
from tiny_engines import BANDS, RED, Rig, engine_file, header_of, tensorrt_on

from engines.bundle import bundle_from_folder
from engines.bundle_runtime import Wish, open_bundle, tensorrt_precision
from engines.errors import BundleError, ConfigError, EngineError, InputError
from engines.progress import SilentProgress
from engines.resize import ResizeRule
from engines.trt.api import TensorRt, tensorrt_from_module
from engines.trt.build import BuildOptions, engine_from_onnx
from engines.trt.bundle_choice import engine_name, onnx_key, options_from_bundle
from engines.trt.engine_file import header_from_engine, plan_from_engine
from engines.trt.engine_header import header_from_json, json_from_header, rebuild_command

WEAK = TensorRt(None, "TensorRT", (10, 3, 0))
STRONG = TensorRt(None, "TensorRT", (11, 4, 0))
KEYS = ("fp32", "fp16", "int8", "int8_fp16")
RECIPE = {"letters": "GNE", "norm": "chw_minmax", "nodata": -10000.0, "fused_hw": [2, 3]}


def scenes_of(*reds):
    """(N, 2, 3, 3) float32: what the fake bands is the first band; the others are nodata."""
    scenes = np.full((len(reds), 2, 3, 3), -10000, np.float32)
    for scene, red in zip(scenes, reds):
        scene[..., 0] = red
    return scenes


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    assert rig.cuda.leaks() == []


# Running


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0"])
@pytest.mark.parametrize("batch", [1, 2, (1, 1, 8)])
@pytest.mark.parametrize("integrated", [False, True])
def test_bands_arrive_as_float32(tmp_path, version, batch, integrated):
    rig = Rig(tmp_path, version, integrated=integrated)
    header = {"runtime_version": version, "takes_bands": True}
    with rig.open(batch=batch, takes="bands", header=header) as predictor:
        assert predictor.input_dtype == np.float32
        assert predictor.input_hw == predictor.output_hw == (2, 3)
        # 63.5 and 127.75 would be in the band above, were they rounded.
        found = predictor.labels(scenes_of(RED, RED[::-1], np.array([[63.5] * 3, [127.75] * 3])))
        assert found.tolist() == [BANDS, BANDS[::-1], [[0] * 3, [1] * 3]]
        assert found.dtype == np.uint8
        batches = [scenes_of(RED), scenes_of(RED[::-1], RED)]
        streamed = [labels.tolist() for labels in predictor.stream(batches)]
        assert streamed == [[BANDS], [BANDS[::-1], BANDS]]
        labels, timing = predictor.timed(scenes_of(RED))
        assert labels.tolist() == [BANDS]
        assert timing.compute_ms > 0
    assert rig.cuda.leaks() == []


def test_four_bytes_a_value_are_copied_and_allocated(rig):
    with rig.open(batch=(1, 1, 4), takes="bands") as predictor:
        predictor.labels(scenes_of(RED, RED))
        plan = len(plan_bytes(batch=(1, 1, 4), takes="bands"))
        slot = 4 * (2 * 3 * 3 * 4 + 2 * 3)
        assert predictor.device_memory_bytes() == 5_000_000 + plan + slot
    copies = [call.about[0] for call in rig.cuda.calls if call.name.startswith("copy")]
    assert copies == [2 * 2 * 3 * 3 * 4, 2 * 2 * 3]


def test_a_scene_with_strides_is_taken_as_it_looks(rig):
    with rig.open(takes="bands") as predictor:
        mirrored = scenes_of(RED)[:, :, ::-1]
        mirrored.setflags(write=False)
        assert predictor.labels(mirrored).tolist() == [[[1, 0, 0], [3, 2, 1]]]


def test_labels_may_have_another_size_than_the_scene(rig):
    tensors = [["bands", "INPUT", "FLOAT", [1, 4, 6, 3]], ["labels", "OUTPUT", "UINT8", [1, 2, 3]]]
    with rig.open(tensors=tensors) as predictor:
        assert (predictor.input_hw, predictor.output_hw) == ((4, 6), (2, 3))
        scene = np.zeros((4, 6, 3), np.float32)
        scene[:2, :3, 0] = RED
        prediction = predictor.predict(scene, (4, 6), ResizeRule("stretch"))
    assert prediction.network.tolist() == BANDS
    assert prediction.image.tolist() == np.kron(BANDS, np.ones((2, 2), int)).tolist()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 2, 3, 3), np.uint8), "a batch of uint8; expected .*float32"),
        (np.zeros((1, 2, 3, 3)), "a batch of float64"),
        (np.zeros((1, 4, 3, 3), np.float32), r"expected \(N, 2, 3, 3\)"),
    ],
)
def test_other_batches_are_refused_in_calls_and_streams(rig, batch, message):
    with rig.open(takes="bands") as predictor:
        with pytest.raises(InputError, match=message):
            predictor.labels(batch)
        with pytest.raises(InputError, match=message):
            list(predictor.stream([batch]))
    with rig.open() as predictor, pytest.raises(InputError, match="a batch of float32"):
        predictor.labels(scenes_of(RED))


@pytest.mark.parametrize(
    "tensors",
    [
        [["bands", "INPUT", "UINT8", [1, 2, 3, 3]], ["labels", "OUTPUT", "UINT8", [1, 2, 3]]],
        [["bands", "INPUT", "HALF", [1, 2, 3, 3]], ["labels", "OUTPUT", "UINT8", [1, 2, 3]]],
        [["bands", "OUTPUT", "FLOAT", [1, 2, 3, 3]], ["labels", "OUTPUT", "UINT8", [1, 2, 3]]],
        [
            ["bands", "INPUT", "FLOAT", [1, 4, 6, 3]],
            ["labels", "OUTPUT", "UINT8", [1, 2, 3]],
            ["logits", "OUTPUT", "FLOAT", [1, 4, 4, 6]],
        ],
        [
            ["image", "INPUT", "UINT8", [1, 2, 3, 3]],
            ["bands", "INPUT", "FLOAT", [1, 2, 3, 3]],
            ["labels", "OUTPUT", "UINT8", [1, 2, 3]],
        ],
        [["bands", "INPUT", "FLOAT", [1, 2, 3, 3]]],
    ],
)
def test_an_engine_with_another_contract_is_refused(rig, tensors):
    with pytest.raises(EngineError, match=r"or bands float32 \(N, h, w, B\); labels"):
        rig.open(tensors=tensors)


# Building


def composing():
    """The layers of a network that composes, as weakly typed TensorRTs see them."""
    return [
        Layer("/bands/low", node="/bands/low"),
        Layer("/bands/finite", outputs=["BOOL"], inputs=["FLOAT", "FLOAT"], node="/bands/finite"),
        Layer("/bands/kept", outputs=["BOOL"], inputs=["BOOL", None], node="/bands/kept"),
        Layer("/bands/zero", "CONSTANT", node="/bands/zero"),
        Layer("/net/Conv", node="/net/Conv"),
        Layer("/net/Less", outputs=["BOOL"], inputs=["FLOAT"], node="/net/Less"),
    ]


class Site:
    def __init__(self, folder, monkeypatch):
        monkeypatch.setenv("RICESEG_CACHE", str(folder / "cache"))
        self.onnx, self.out = folder / "model.bands.onnx", folder / "out.engine"
        self.onnx.write_bytes(b"\x08\x08" + bytes(100))

    def build(self, options, version="10.3.0", *, takes=("bands", "FLOAT"), **graph):
        self.module = fake_module(version, graph=Graph(composing(), takes=takes, **graph))
        return engine_from_onnx(
            self.onnx,
            self.out,
            options,
            cuda=RecordingCuda(integrated=True),
            progress=SilentProgress(),
            tensorrt=tensorrt_from_module(self.module),
        )

    def held(self):
        found = {layer.name: layer._held_outputs for layer in self.module.graph.layers}
        return {name: held for name, held in found.items() if held}


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch)


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.3.0"])
def test_where_types_are_hints_composing_is_held_in_fp32(site, version):
    record = site.build(BuildOptions("fp16"), version)
    assert site.held() == {"/bands/low": {0, "precision"}, "/bands/finite": {"precision"}}
    assert "OBEY_PRECISION_CONSTRAINTS" in site.module.configs[-1].flags
    assert record.header.takes_bands
    assert record.warnings == ()


def test_in_fp32_and_without_bands_nothing_is_held(site):
    record = site.build(BuildOptions("fp32"))
    assert site.held() == {}
    assert record.header.takes_bands
    record = site.build(BuildOptions("fp16"), takes=("image", "UINT8"))
    assert site.held() == {}
    assert not record.header.takes_bands


def test_nodes_to_hold_of_the_bundle_are_held_beside_them(site):
    site.build(BuildOptions("fp16", fp32_nodes=("/net/Conv",)))
    assert set(site.held()) == {"/bands/low", "/bands/finite", "/net/Conv"}


def test_strongly_typed_tensorrt_takes_the_types_of_the_file(site):
    site.build(BuildOptions("fp32"), "11.4.0")
    assert site.held() == {}


def test_the_profile_of_a_free_batch_is_of_the_bands(site):
    site.build(BuildOptions("fp16", batch=(1, 2, 4)), batch=-1)
    shapes = [value for name, value in site.module.calls if name == "set_shape"]
    assert shapes == [("bands", (1, 2, 3, 3), (2, 2, 3, 3), (4, 2, 3, 3))]


@pytest.mark.parametrize("takes", [("bands", "UINT8"), ("image", "FLOAT"), ("scene", "FLOAT")])
def test_an_input_that_is_neither_is_refused(site, takes):
    with pytest.raises(Exception, match="'image' of uint8 or 'bands' of float32"):
        site.build(BuildOptions("fp32"), takes=takes)


def test_implicit_int8_knows_no_ranges_of_what_composes(site):
    with pytest.raises(ConfigError, match=r"model\.bands\.onnx', which takes bands"):
        site.build(BuildOptions("int8", implicit_int8=True))
    with pytest.raises(ConfigError, match="--implicit-int8 with --fused"):
        BuildOptions("int8", implicit_int8=True, fused=True)


# Choosing


def fused_bundle(folder, keys=KEYS, fused=KEYS):
    """A bundle of stand-ins; each of `fused` has a sibling that takes bands."""
    bundle_in(folder, precisions=keys)
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    for key in fused:
        path = folder / f"tiny.{key}.bands.onnx"
        path.write_bytes(f"no graph of bands, {key}".encode())
        document["files"][f"{key}_bands"] = entry_of(path, folder)
    document["bands"] = RECIPE
    (folder / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("tensorrt", "precision", "fused", "key"),
    [
        (WEAK, "fp32", KEYS, "fp32_bands"),
        (WEAK, "fp16", KEYS, "fp16_bands"),
        (WEAK, "fp16", ("fp32",), "fp32_bands"),
        (WEAK, "int8", KEYS, "int8_bands"),
        (STRONG, "fp16", KEYS, "fp16_bands"),
        (STRONG, "int8", KEYS, "int8_fp16_bands"),
    ],
)
def test_each_kind_of_tensorrt_takes_its_graph(tmp_path, tensorrt, precision, fused, key):
    bundle = bundle_from_folder(fused_bundle(tmp_path / "b", fused=fused))
    assert onnx_key(bundle, tensorrt, BuildOptions(precision, fused=True)) == (key, "")


def test_int8_with_fp32_around_it_is_taken_with_a_warning(tmp_path):
    bundle = bundle_from_folder(fused_bundle(tmp_path / "b", fused=("int8",)))
    key, warning = onnx_key(bundle, STRONG, BuildOptions("int8", fused=True))
    assert key == "int8_bands"
    assert "FP32: export it again" in warning


def test_a_precision_without_its_fused_graph_is_refused(tmp_path):
    bundle = bundle_from_folder(fused_bundle(tmp_path / "b", fused=("fp32",)))
    with pytest.raises(ConfigError, match=r"expected fp16_bands in it.*--fuse-bands"):
        onnx_key(bundle, STRONG, BuildOptions("fp16", fused=True))
    assert tensorrt_precision(bundle, fused=True) == "fp32"
    assert tensorrt_precision(bundle) == "fp16"


def test_the_contract_is_that_of_the_bands(tmp_path):
    folder = fused_bundle(tmp_path / "b")
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    document["bands"]["fused_hw"] = [40, 60]
    (folder / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    bundle = bundle_from_folder(folder)
    contract = options_from_bundle(bundle, folder, BuildOptions("fp16", fused=True)).contract
    assert (contract.name, contract.hw, contract.channels) == ("bands", (40, 60), 3)
    contract = options_from_bundle(bundle, folder, BuildOptions("fp16")).contract
    assert (contract.name, contract.hw, contract.channels) == ("image", (2, 3), 3)


def test_names_and_commands_tell_the_two_kinds_apart(tmp_path):
    gpu = RecordingCuda().info
    name = engine_name(BuildOptions("fp16", fused=True), WEAK, gpu)
    assert name == "fp16-bands-trt10.3.0-sm87.engine"
    folder = fused_bundle(tmp_path / "b")
    header = header_of(b"plan", takes_bands=True)
    command = rebuild_command(header, folder / "engines" / name)
    assert command == f"riceseg build {folder} --precision fp16 --fused"
    # A file says by its input what it takes.
    assert rebuild_command(header, tmp_path / "x.engine").endswith("--precision fp16")


def test_headers_keep_it_and_those_of_before_take_images():
    text = json_from_header(header_of(b"plan", takes_bands=True))
    assert header_from_json(text).takes_bands
    older = json.loads(text.decode("utf-8"))
    del older["takes_bands"]
    assert not header_from_json(json.dumps(older).encode("utf-8")).takes_bands
    older["takes_bands"] = "yes"
    with pytest.raises(EngineError, match="takes_bands"):
        header_from_json(json.dumps(older).encode("utf-8"))


# Opening


class Board:
    """A machine with a made-up GPU; `built` lists (precision, fused) of what was built on it."""

    def __init__(self, monkeypatch, folder, takes=None):
        self.folder, self.built, self.takes = folder, [], takes
        self.cudas = []
        monkeypatch.setenv("RICESEG_CACHE", str(folder.parent / "cache"))
        monkeypatch.setattr("engines.cuda.open_cuda", lambda: self.cudas[-1])
        monkeypatch.setattr("engines.trt.api.load_tensorrt", self.load)
        monkeypatch.setattr("engines.trt.bundle_engine.engine_from_bundle", self.build)

    def load(self):
        self.cudas.append(RecordingCuda(integrated=True))
        return tensorrt_on(self.cudas[-1])

    def build(self, folder, options, *, cuda, tensorrt, into, progress=None):
        self.built.append((options.precision, options.fused))
        bundle = bundle_from_folder(folder)
        key, _ = onnx_key(bundle, tensorrt, options)
        header = {
            "onnx_sha256": bundle.files[key].sha256,
            "precision": options.precision,
            "takes_bands": options.fused,
        }
        takes = self.takes or ("bands" if options.fused else "image")
        name = engine_name(options, tensorrt, cuda.info)
        return SimpleNamespace(path=engine_file(into, name, header=header, takes=takes))

    def open(self, **wish):
        bundle = bundle_from_folder(self.folder)
        return open_bundle(self.folder, bundle, Wish(runtime="tensorrt", **wish))


@pytest.fixture
def board(monkeypatch, tmp_path):
    board = Board(monkeypatch, fused_bundle(tmp_path / "bundle", ("fp32", "fp16"), ("fp16",)))
    yield board
    assert all(cuda.closed and cuda.leaks() == [] for cuda in board.cudas)


def test_engines_of_both_kinds_live_beside_each_other(board, caplog):
    for _ in range(2):
        for fused in (True, False):
            opened = board.open(fused=fused)
            with opened.resources:
                assert opened.precision == "fp16"
                assert opened.predictor.input_dtype == (np.float32 if fused else np.uint8)
                if fused:
                    assert opened.predictor.labels(scenes_of(RED)).tolist() == [BANDS]
    assert board.built == [("fp16", True), ("fp16", False)]
    # Neither is a reason why the other was not taken.
    assert "not this bundle's" not in caplog.text
    headers = [header_from_engine(path) for path in (board.folder / "engines").glob("*.engine")]
    assert sorted(header.takes_bands for header in headers) == [False, True]


def test_without_build_the_command_for_the_fused_one_is_told(board):
    with pytest.raises(EngineError, match=r"riceseg build .* --precision fp16 --fused"):
        board.open(fused=True, build=False)


def test_an_engine_that_takes_the_other_kind_is_refused(monkeypatch, tmp_path):
    folder = fused_bundle(tmp_path / "bundle", ("fp16",), ("fp16",))
    board = Board(monkeypatch, folder, takes="image")
    with pytest.raises(BundleError, match=r"channels of uint8.*expected .* channels of float32"):
        board.open(fused=True)
    _, plan = plan_from_engine(next((folder / "engines").glob("*.engine")))
    assert b"image" in plan
    assert all(cuda.closed for cuda in board.cudas)
