"""Graphs that compose bands by themselves: the same image inside, the same labels out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import block_model, random_images, saved
from tiny_models import bands_model, bundle_document, file_entry, write_document, write_onnx

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.bands.composite import composite_from_bands
from engines.bands.recipe import BandRecipe
from engines.bundle import bundle_from_folder
from engines.bundle_runtime import Wish, open_bundle
from engines.errors import BundleError, ConfigError, GraphError, InputError
from engines.fused_graphs import RECIPE_KEY
from engines.onnx_predictor import OnnxPredictor
from engines.resize import ResizeRule, network_image_from_image
from engines.segmenter import Segmenter
from engines.trt.bundle_choice import options_from_bundle
from engines.trt.options import BuildOptions
from exporter.fuse_bands import COMPOSITE, fused_with_bands
from exporter.run_onnx import outputs_from_onnx

HW = (24, 31)
GNE = BandRecipe("GNE")


def scenes_of(recipe: BandRecipe, count: int = 1, hw: tuple[int, int] = HW) -> np.ndarray:
    """Reflectances, each scene brighter than the last, with all that a sensor may leave in them."""
    rng = np.random.default_rng(5)
    scenes = rng.random((count, *hw, len(recipe.letters)), np.float32)
    scenes *= np.arange(1, count + 1, dtype=np.float32).reshape(-1, 1, 1, 1)
    scenes[:, 0] = recipe.nodata
    scenes[:, 1, :3] = np.nan
    scenes[:, 1, 3] = 0.0
    scenes[:, 1, 4] = -0.0
    scenes[:, 1, 5:7] = -0.125 if recipe.norm == "chw_minmax" else 0.5
    scenes[:, 1, 7] = np.float32(1e-42)  # smaller than a normal float32
    if recipe.norm == "uint8":
        measured = scenes != np.float32(recipe.nodata)
        scenes = np.where(measured, np.minimum(scenes * 200, 255), scenes)
    return scenes


def by_the_recipe(scene: np.ndarray, letters: str, nodata: float) -> np.ndarray:
    """chw_minmax as the training's script computed it, and what OpenCV made of it, as RGB."""
    planes = []
    for index in range(len(letters)):
        band = scene[:, :, index].copy()
        band[np.isnan(band)] = nodata
        smallest = band[band != np.float32(nodata)].min()
        band[(band < 0) | (band == np.float32(nodata))] = smallest
        band = (band - band.min()) / (band.max() - band.min()) * np.float32(255)
        assert band.dtype == np.float32
        planes.append(np.round(band).astype(np.uint8))
    return np.stack(planes[::-1] if len(planes) == 3 else planes, axis=2)


def composed(model: onnx.ModelProto, scenes: np.ndarray) -> np.ndarray:
    """What the network is shown, (N, H, W, C), as float32."""
    found = outputs_from_onnx(model, scenes, extra=[COMPOSITE])[COMPOSITE]
    assert found.dtype == np.float32
    return found.transpose(0, 2, 3, 1)


# What the network sees


@pytest.mark.parametrize("nodata", [-10000.0, 0.0, 0.75, -3.4028234663852886e38])
@pytest.mark.parametrize("letters", ["GNE", "RGBNE", "N", "EN", "RGBN"])
def test_the_composite_is_the_recipe_s_on_every_pixel(letters: str, nodata: float) -> None:
    recipe = BandRecipe(letters, nodata=nodata)
    scenes = scenes_of(recipe)
    fused = fused_with_bands(bands_model(HW, channels=len(letters)), recipe)
    found = composed(fused, scenes)[0]
    assert np.array_equal(found, by_the_recipe(scenes[0], letters, nodata))
    assert np.array_equal(found, composite_from_bands(scenes[0], recipe))


@pytest.mark.parametrize("opset", [13, 16, 17, 18, 20])
@pytest.mark.parametrize("norm", ["chw_minmax", "uint8"])
def test_every_opset_composes_as_is_done_before_a_graph(norm: str, opset: int) -> None:
    recipe = BandRecipe("GNE", norm)
    plain = bands_model(HW)
    plain.opset_import[0].version = opset
    fused = fused_with_bands(plain, recipe)
    onnx.checker.check_model(fused, full_check=True)
    (scene,) = scenes_of(recipe)
    assert np.array_equal(composed(fused, scene[None])[0], composite_from_bands(scene, recipe))


def test_halves_are_rounded_to_the_even_grey_level() -> None:
    scene = np.array([[0, 0.5, 1.5, 2.5, 254.5, 255]], np.float32).reshape(1, 6, 1)
    for norm in ("chw_minmax", "uint8"):
        fused = fused_with_bands(bands_model((1, 6), channels=1), BandRecipe("N", norm))
        assert composed(fused, scene[None])[0, 0, :, 0].tolist() == [0, 0, 2, 2, 254, 255]


def test_sixteen_bits_are_stretched_without_losing_any() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (*HW, 3), dtype=np.uint16)
    recipe = BandRecipe("GNE", nodata=65535)
    values[0] = 65535
    fused = fused_with_bands(bands_model(HW), recipe)
    found = composed(fused, values[None].astype(np.float32))[0]
    assert np.array_equal(found, composite_from_bands(values, recipe))


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_the_limits_are_those_of_each_scene(batch: str | int) -> None:
    scenes = scenes_of(GNE, count=3)
    found = composed(fused_with_bands(bands_model(HW, batch=batch), GNE), scenes)
    for image, scene in zip(found, scenes, strict=True):
        assert np.array_equal(image, by_the_recipe(scene, "GNE", -10000))
        assert image.max() == 255


@pytest.mark.parametrize(
    "band",
    [
        np.full(HW, 0.25),
        np.full(HW, -10000.0),
        np.full(HW, np.nan),
        np.full(HW, np.inf),
        np.linspace(-2, -1, HW[0] * HW[1]).reshape(HW),
        np.where(np.eye(*HW) > 0, np.nan, -10000.0),
    ],
    ids=["constant", "nodata", "NaN", "infinite", "negative", "NaN and nodata"],
)
@pytest.mark.parametrize("norm", ["chw_minmax", "uint8"])
def test_a_band_without_a_range_is_black_and_leaves_the_others_as_they_are(
    band: np.ndarray, norm: str
) -> None:
    recipe = BandRecipe("GNE", norm)
    (scene,) = scenes_of(recipe)
    fused = fused_with_bands(bands_model(HW), recipe)
    whole = composed(fused, scene[None])[0]
    scene[:, :, 1] = band
    found = composed(fused, scene[None])[0]
    assert np.array_equal(found[..., [0, 2]], whole[..., [0, 2]])
    assert np.array_equal(found[..., 1], np.zeros(HW))


def test_an_infinite_value_is_nodata_and_a_range_beyond_float32_gives_no_nan() -> None:
    fused = fused_with_bands(bands_model((1, 4), channels=1), BandRecipe("N"))
    infinite = np.array([np.inf, 2, 4, -np.inf], np.float32).reshape(1, 1, 4, 1)
    assert composed(fused, infinite).ravel().tolist() == [0, 0, 255, 0]
    largest = np.finfo(np.float32).max
    wide = np.array([-largest, largest, 1, 0], np.float32).reshape(1, 1, 4, 1)
    assert composed(fused, wide).ravel().tolist() == [0, 255, 255, 255]


# Scenes larger than the network


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize(
    ("scene_hw", "rule"),
    [
        ((48, 62), "stretch"),
        ((37, 95), "stretch"),
        ((50, 90), "letterbox"),
        ((90, 50), "letterbox"),
        ((24, 20), "letterbox"),
    ],
)
def test_a_scene_of_another_size_is_resized_within_one_grey_level(
    scene_hw: tuple[int, int], rule: str, batch: str | int
) -> None:
    pad = (9, 120, 255) if rule == "letterbox" else None
    fused = fused_with_bands(bands_model(HW, batch=batch), GNE, scene_hw=scene_hw, pad_value=pad)
    onnx.checker.check_model(fused, full_check=True)
    scenes = scenes_of(GNE, count=2, hw=scene_hw)
    found = composed(fused, scenes)
    for image, scene in zip(found, scenes, strict=True):
        wanted = network_image_from_image(
            composite_from_bands(scene, GNE), HW, ResizeRule(rule), (9, 120, 255)
        )
        assert np.abs(image - wanted).max() <= 1
        assert np.array_equal(image, image.round())
        fitted = ResizeRule(rule).fitted_hw(scene_hw, HW)
        padding = np.ones(HW, bool)
        padding[: fitted[0], : fitted[1]] = False
        assert np.array_equal(image[padding], wanted[padding])


# Every form of a network


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in each precision."""
    folder = tmp_path_factory.mktemp("forms")
    files = {key: folder / f"{key}.onnx" for key in ("fp32", "fp16", "int8", "int8_fp16")}
    saved(block_model(), folder, "fp32.onnx")
    ranges = ranges_from_images(files["fp32"], random_images(4), method="minmax")
    int8_onnx_from_ranges(files["fp32"], ranges, files["int8"])
    fp16_onnx_from_onnx(files["fp32"], files["fp16"])
    fp16_onnx_from_onnx(files["int8"], files["int8_fp16"])
    return files


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "int8_fp16"])
def test_labels_and_logits_are_those_of_the_composed_image(
    forms: dict[str, Path], form: str
) -> None:
    plain = onnx.load(forms[form])
    fused = fused_with_bands(plain, GNE)
    onnx.checker.check_model(fused, full_check=True)
    scenes = scenes_of(GNE, count=3, hw=(8, 8))
    images = np.stack([composite_from_bands(scene, GNE) for scene in scenes])
    wanted, found = outputs_from_onnx(plain, images), outputs_from_onnx(fused, scenes)
    assert len(np.unique(wanted["logits"])) > 50
    for name in ("labels", "logits"):
        assert np.array_equal(found[name], wanted[name]), name


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "int8_fp16"])
def test_the_network_stays_and_what_composes_is_float32(forms: dict[str, Path], form: str) -> None:
    plain = onnx.load(forms[form])
    fused = fused_with_bands(plain, GNE)
    whole = {node.name: node for node in plain.graph.node}
    kept = [node for node in fused.graph.node if not node.name.startswith("/bands/")]
    # The Cast of the image and its Transpose are all that went.
    assert set(whole) - {node.name for node in kept} == {"/Cast", "/Transpose"}
    reads_image = {whole["/Transpose"].output[0]}
    for node in kept:
        assert node.op_type == whole[node.name].op_type
        assert node.attribute == whole[node.name].attribute
        if not reads_image & set(whole[node.name].input):
            assert node.input == whole[node.name].input
    assert fused.graph.output == plain.graph.output
    kinds = tensor_kinds(fused)
    mine = [node.output[0] for node in fused.graph.node if node.name.startswith("/bands/")]
    found = {kinds[name] for name in mine if name != "/bands/composite_float16"}
    assert found == {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL}


def tensor_kinds(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}


def test_the_given_graph_is_not_changed(forms: dict[str, Path]) -> None:
    plain = onnx.load(forms["fp32"])
    before = plain.SerializeToString()
    fused_with_bands(plain, GNE)
    assert plain.SerializeToString() == before


@pytest.mark.parametrize("batch", ["N", 2])
def test_the_input_is_bands_of_float32_with_the_batch_of_the_graph(batch: str | int) -> None:
    (value,) = fused_with_bands(bands_model(HW, batch=batch), GNE).graph.input
    dims = value.type.tensor_type.shape.dim
    assert value.name == "bands"
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert (dims[0].dim_param or dims[0].dim_value) == batch
    assert [dim.dim_value for dim in dims[1:]] == [*HW, 3]


def test_an_output_that_is_the_image_itself_keeps_its_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    seen (uint8[N, 24, 31, 3] image) => (float[N, 3, 24, 31] logits)
    { levels = Cast <to = 1> (image) logits = Transpose <perm = [0, 3, 1, 2]> (levels) }"""
    fused = fused_with_bands(onnx.parser.parse_model(text), GNE)
    (scene,) = scenes_of(GNE)
    found = outputs_from_onnx(fused, scene[None])["logits"][0].transpose(1, 2, 0)
    assert np.array_equal(found, by_the_recipe(scene, "GNE", -10000))


# Graphs and options that do not fit


def without_cast() -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    odd (uint8[N, 24, 31, 3] image) => (uint8[N, 3, 24, 31] labels)
    { labels = Transpose <perm = [0, 3, 1, 2]> (image) }"""
    return onnx.parser.parse_model(text)


def of_opset_12() -> onnx.ModelProto:
    model = bands_model(HW)
    model.opset_import[0].version = 12
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (without_cast(), "input 'image' is read by Transpose"),
        (of_opset_12(), "a graph of opset 12; expected opset 13 or newer"),
        (fused_with_bands(bands_model(HW), GNE), "a graph with the inputs bands"),
    ],
    ids=["no Cast", "old opset", "fused already"],
)
def test_another_graph_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        fused_with_bands(model, GNE)


def test_a_name_that_is_ours_is_refused() -> None:
    model = bands_model(HW)
    model.graph.node[0].name = "/bands/zero"
    with pytest.raises(GraphError, match="the name '/bands/zero' in it"):
        fused_with_bands(model, GNE)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (BandRecipe("GN"), {}, "bands GN for a graph of 3 channels"),
        (GNE, {"scene_hw": (0, 5)}, "scenes of 0x5 pixels; expected height and width from 1"),
        (GNE, {"scene_hw": (5, 99_999)}, "scenes of 5x99999 pixels"),
        (GNE, {"scene_hw": (9, 9), "pad_value": (1, 2)}, "2 padding values for 3 channels"),
    ],
)
def test_a_recipe_a_size_or_a_padding_that_does_not_fit_is_refused(
    recipe: BandRecipe, options: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fused_with_bands(bands_model(HW), recipe, **options)


# Running them

# The stretched red edge 0 63 64 | 127 128 255 makes bands of 64: 0 0 1 | 1 2 3.
SCENE = np.full((2, 3, 3), 0.5, np.float32)
SCENE[..., 2] = np.array([[0, 63, 64], [127, 128, 255]]) / 1000
SCENE[0, 0, :2] = 0.25
BANDS = [[0, 0, 1], [1, 2, 3]]


@pytest.fixture
def fused_file(tmp_path: Path) -> Path:
    return write_onnx(fused_with_bands(bands_model(), GNE), tmp_path / "model.bands.onnx")


def test_a_predictor_takes_bands_and_says_so(fused_file: Path) -> None:
    with OnnxPredictor(fused_file) as predictor:
        assert predictor.input_dtype == np.float32
        assert predictor.input_hw == predictor.output_hw == (2, 3)
        assert predictor.channels == 3
        assert predictor.fixed_batch is None
        assert predictor.labels(SCENE[np.newaxis]).tolist() == [BANDS]
        assert predictor.labels(SCENE[np.newaxis, :, ::-1]).tolist() == [[[1, 0, 0], [3, 2, 1]]]
        prediction = predictor.predict(SCENE, (4, 6), ResizeRule("stretch"))
        assert prediction.image.tolist() == np.kron(BANDS, np.ones((2, 2), int)).tolist()


def test_a_stream_of_bands_gives_the_labels_of_each_batch(fused_file: Path) -> None:
    batch = SCENE[np.newaxis].copy()

    def source():
        for turn in range(4):
            batch[0] = SCENE[::-1] if turn % 2 else SCENE  # the same array again
            yield batch

    with OnnxPredictor(fused_file) as predictor:
        found = [labels.tolist() for labels in predictor.stream(source())]
    assert found == [[BANDS], [BANDS[::-1]]] * 2


def test_a_fixed_batch_takes_any_number_of_scenes(tmp_path: Path) -> None:
    model = fused_with_bands(bands_model(batch=2), GNE)
    scenes = np.stack([SCENE, SCENE[::-1] * 7, SCENE])
    with OnnxPredictor(write_onnx(model, tmp_path / "two.onnx")) as predictor:
        assert predictor.labels(scenes).tolist() == [BANDS, BANDS[::-1], BANDS]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 2, 3, 3), np.uint8), "a batch of uint8; expected .*float32.*fused=True"),
        (np.zeros((1, 2, 3, 3), np.uint16), r"a batch of uint16.*astype\(numpy.float32\)"),
        (np.zeros((1, 2, 3, 3)), "a batch of float64"),
        (SCENE, "add the batch axis"),
        (np.zeros((1, 3, 2, 3), np.float32), "put the channels last"),
        (np.zeros((1, 4, 6, 3), np.float32), "which takes any size"),
        (np.zeros((1, 2, 3, 4), np.float32), r"expected \(N, 2, 3, 3\)"),
    ],
)
def test_other_batches_are_refused(fused_file: Path, batch: np.ndarray, message: str) -> None:
    with OnnxPredictor(fused_file) as predictor, pytest.raises(InputError, match=message):
        predictor.labels(batch)


def test_labels_of_a_scene_of_another_size_have_the_network_s(tmp_path: Path) -> None:
    model = fused_with_bands(bands_model(), GNE, scene_hw=(4, 6))
    with OnnxPredictor(write_onnx(model, tmp_path / "large.onnx")) as predictor:
        assert (predictor.input_hw, predictor.output_hw) == ((4, 6), (2, 3))
        large = SCENE.repeat(2, axis=0).repeat(2, axis=1)
        assert predictor.labels(large[np.newaxis]).tolist() == [BANDS]
        at_scene = predictor.predict(large, (4, 6), ResizeRule("stretch")).image
        assert at_scene.tolist() == np.kron(BANDS, np.ones((2, 2), int)).tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("uint8[N, 2, 3, 3] bands", "inputs: bands tensor.uint8.*'bands' of float32"),
        ("float[N, 2, 3, 3] image", "inputs: image tensor.float.*'image' of uint8"),
        ("float[N, a, 3, 3] bands", "fixed H, W and C"),
    ],
)
def test_a_file_whose_input_is_neither_is_refused(tmp_path: Path, given: str, message: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    odd ({given}) => (uint8[N, 2, 3] labels) <int64 first = {{0}}>
    {{ x = Cast <to = 2> ({given.split()[-1]}) labels = Gather <axis = 3> (x, first) }}"""
    path = write_onnx(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    with pytest.raises(GraphError, match=message):
        OnnxPredictor(path)


# From a bundle


def bundle_with_bands(
    folder: Path,
    *,
    fused: tuple[str, ...] = ("fp32",),
    scene_hw: tuple[int, int] | None = None,
    info: dict | None = None,
) -> Path:
    """fp32 with step 64, fp16 with 128, and the siblings of those named in `fused`."""
    files = {}
    for precision, step in (("fp32", 64), ("fp16", 128)):
        plain = bands_model(step=step)
        path = write_onnx(plain, folder / f"tiny.{precision}.onnx")
        files[precision] = file_entry(path, folder)
        if precision in fused:
            model = fused_with_bands(plain, GNE, scene_hw=scene_hw)
            path = write_onnx(model, folder / f"tiny.{precision}.bands.onnx")
            files[f"{precision}_bands"] = file_entry(path, folder)
    document = bundle_document(files=files)
    document["bands"] = {
        "letters": "GNE",
        "norm": "chw_minmax",
        "nodata": -10000.0,
        "fused_hw": list(scene_hw or (2, 3)) if fused else None,
        **(info or {}),
    }
    return write_document(document, folder)


def test_a_fused_segmenter_gives_the_labels_of_a_scene(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path, fused=("fp32", "fp16"))
    with (
        Segmenter.open(folder, runtime="onnx", fused=True) as seg,
        Segmenter.open(folder, runtime="onnx") as plain,
    ):
        assert seg(SCENE).tolist() == plain(SCENE).tolist() == BANDS
        assert [labels.tolist() for labels in seg.stream([SCENE, SCENE[::-1]], batch=2)] == [
            BANDS,
            BANDS[::-1],
        ]
    with Segmenter.open(folder, runtime="onnx", fused=True, precision="fp16") as seg:
        assert seg.precision == "fp16"
        assert seg(SCENE).tolist() == [[0, 0, 0], [0, 1, 1]]


def test_a_scene_larger_than_the_network_has_labels_at_its_own_size(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path, scene_hw=(4, 6))
    large = SCENE.repeat(2, axis=0).repeat(2, axis=1)
    with Segmenter.open(folder, runtime="onnx", fused=True) as seg:
        assert seg(large).tolist() == np.kron(BANDS, np.ones((2, 2), int)).tolist()


def test_the_hash_of_a_fused_graph_is_checked(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path)
    path = folder / "tiny.fp32.bands.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"tiny\.fp32\.bands\.onnx' with SHA-256"):
        Segmenter.open(folder, runtime="onnx", fused=True)


@pytest.mark.parametrize("runtime", ["onnx", "auto", "tensorrt"])
def test_a_bundle_without_such_graphs_says_how_to_get_them(tmp_path: Path, runtime: str) -> None:
    folder = bundle_with_bands(tmp_path, fused=())
    wish = Wish(runtime=runtime, fused=True)
    with pytest.raises(ConfigError, match=r"whose graphs take composed images.*--fuse-bands"):
        open_bundle(folder, bundle_from_folder(folder), wish)


def test_a_precision_without_a_fused_graph_is_refused_and_the_others_named(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path)
    with pytest.raises(
        ConfigError, match=r"precision 'fp16' of a graph that takes bands; expected .*has: fp32;"
    ):
        Segmenter.open(folder, runtime="onnx", fused=True, precision="fp16")


def test_a_bundle_that_says_another_size_than_the_graph_has_is_refused(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path, info={"fused_hw": [4, 6]})
    with pytest.raises(BundleError, match=r"for input \(2, 3\) .*expected \(4, 6\)"):
        Segmenter.open(folder, runtime="onnx", fused=True)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"letters": "NGE"}, "NGE, chw_minmax, nodata -10000.0"),
        ({"norm": "uint8"}, "GNE, uint8, nodata -10000.0"),
        ({"nodata": 0}, "GNE, chw_minmax, nodata 0.0"),
    ],
)
def test_a_bundle_that_says_another_recipe_than_its_graph_is_refused(
    tmp_path: Path, info: dict, expected: str
) -> None:
    folder = bundle_with_bands(tmp_path, info=info)
    found = r"'tiny\.fp32\.bands\.onnx', which composes GNE, chw_minmax, nodata -10000\.0; "
    message = f"{found}expected {re.escape(expected)}, as bundle.json says"
    for runtime in ("onnx", "auto", "tensorrt"):
        with pytest.raises(BundleError, match=message):
            Segmenter.open(folder, runtime=runtime, fused=True, verify=False)
    # An engine of the graph would compose as wrongly.
    with pytest.raises(BundleError, match=message):
        options_from_bundle(bundle_from_folder(folder), folder, BuildOptions("fp32", fused=True))
    with Segmenter.open(folder, runtime="onnx") as plain:
        assert plain.precision == "fp32"


@pytest.mark.parametrize("text", [None, "", "[" * 9000, '"GNE"', '{"made by": "a later version"}'])
def test_a_graph_that_does_not_tell_its_recipe_is_opened(tmp_path: Path, text: str | None) -> None:
    folder = bundle_with_bands(tmp_path)
    path = folder / "tiny.fp32.bands.onnx"
    model = onnx.load(path)
    assert [entry.key for entry in model.metadata_props] == [RECIPE_KEY]
    del model.metadata_props[:]
    if text is not None:
        model.metadata_props.add(key=RECIPE_KEY, value=text)
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    document["files"]["fp32_bands"] = file_entry(write_onnx(model, path), folder)
    write_document(document, folder)
    with Segmenter.open(folder, runtime="onnx", fused=True) as seg:
        assert seg(SCENE).tolist() == BANDS


@pytest.mark.parametrize("fused", [False, True])
def test_a_graph_under_the_other_kind_s_name_is_refused(tmp_path: Path, fused: bool) -> None:
    folder = bundle_with_bands(tmp_path)
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    files = document["files"]
    files["fp32"], files["fp32_bands"] = files["fp32_bands"], files["fp32"]
    write_document(document, folder)
    expected = "float32" if fused else "uint8"
    with pytest.raises(BundleError, match=f"expected .* channels of {expected}"):
        Segmenter.open(folder, runtime="onnx", fused=fused)
