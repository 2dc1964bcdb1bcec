"""The audit of an engine's layers on a made-up GPU: what it runs, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_engines import BANDS, RED, Rig, engine_file, flat, header_of, image_of

from engines.errors import ConfigError, EngineError, InputError
from engines.trt.engine_file import header_from_engine
from engines.trt.engine_header import FusionCounts
from engines.trt.layer_audit import UNTIMED_RUNS

BUILT = FusionCounts(1, 1, 1, 1, None)
LAYERS = [
    {
        "Name": "_gemm_mha_v2_myl0_0",
        "LayerType": "kgen",
        "TacticName": "_gemm_mha_v2_0x9f",
        "Metadata": "\x1f".join(
            f"[ONNX Layer: /net/attn/{name}]" for name in ("MatMul", "Softmax", "MatMul_1")
        ),
    },
    {
        "Name": "__myl_MeanSubMulMeanAddSqrtDivMulMulAdd_myl0_1",
        "LayerType": "kgen",
        "Metadata": "[ONNX Layer: /net/norm/LayerNormalization]",
    },
    {"Name": "Reformatting CopyNode for Output Tensor 0 to x", "LayerType": "Reformat"},
]
TIMES = [[LAYERS[0]["Name"], 3.0], [LAYERS[1]["Name"], 0.5], [LAYERS[2]["Name"], 0.5]]


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    assert rig.cuda.leaks() == []


def opened(rig, **plan):
    plan = {"layers": LAYERS, "times": TIMES, "header": {"fusion": BUILT}, **plan}
    return rig.open(**plan)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0"])
@pytest.mark.parametrize("batch", [1, 2, (1, 1, 4)])
@pytest.mark.parametrize("integrated", [False, True])
def test_the_audit_counts_and_times_layers(tmp_path, version, batch, integrated):
    rig = Rig(tmp_path, version, integrated=integrated)
    header = {"fusion": BUILT, "runtime_version": version}
    with opened(rig, batch=batch, header=header) as predictor:
        found = predictor.fusion(image_of(RED)[np.newaxis], runs=4)
        labels = predictor.labels(image_of(RED)[np.newaxis])
    assert found["attention"] == {"found": 1, "fused": 1}
    assert found["layer_norms"] == {"found": 1, "fused": 1}
    # Four runs report 4 x 0.5 ms: 0.5 ms of each run's 4 ms.
    assert found["reformats"] == {"count": 1, "time_ms": 0.5, "percent": 12.5}
    assert [layer["ms"] for layer in found["slowest"]] == [3.0, 0.5, 0.5]
    assert found["notes"] == []
    assert labels.tolist() == [BANDS]
    assert rig.cuda.leaks() == []


def test_the_audit_runs_in_a_context_of_its_own_which_is_freed(rig):
    with opened(rig) as predictor:
        rig.cuda.calls.clear()
        predictor.fusion(flat(1), runs=5)
        names = rig.cuda.names("create_context", "execute", "launch", "free_IExecutionContext")
        expected = ["create_context", *["execute"] * (UNTIMED_RUNS + 5), "free_IExecutionContext"]
        assert names == expected
        rig.cuda.calls.clear()
        predictor.labels(flat(1))
        assert rig.cuda.names("execute", "launch") == ["launch"]


@pytest.mark.parametrize(
    ("refusal", "note"),
    [
        ("second context", "the layers were not timed: an engine which makes no second execution"),
        (
            "profile",
            "the layers were not timed: an engine which does not run with a profiler: exec",
        ),
    ],
)
def test_layers_that_cannot_be_timed_are_counted_all_the_same(rig, refusal, note):
    with opened(rig, refuses=[refusal]) as predictor:
        found = predictor.fusion(flat(1))
        assert predictor.labels(flat(200)).tolist() == [[[3] * 3] * 2]
    assert found["attention"] == {"found": 1, "fused": 1}
    assert found["reformats"] == {"count": 1, "time_ms": None, "percent": None}
    assert found["notes"][0] == "the times of the layers were not told"
    assert found["notes"][1].startswith(note)


def test_without_an_inspector_it_is_what_was_known_when_it_was_built(rig):
    with opened(rig, refuses=["inspect"]) as predictor:
        found = predictor.fusion(flat(1))
    assert found["attention"] == {"found": 1, "fused": 1}
    assert found["layer_norms"] == {"found": 1, "fused": None}
    assert found["notes"] == ["the layers are not told: an engine without an engine inspector"]


def test_whatever_the_bindings_raise_is_a_note(rig, monkeypatch):
    def failing(*_):
        raise TypeError("incompatible function arguments")

    with opened(rig) as predictor:
        engine = rig.tensorrt.module.ICudaEngine
        monkeypatch.setattr(engine, "create_engine_inspector", failing)
        found = predictor.fusion(flat(1))
    assert found["notes"] == ["the layers are not told: TypeError: incompatible function arguments"]


def test_a_profiler_that_is_told_nothing_gives_no_times(rig):
    """As where a runtime reports no layers."""
    with opened(rig, times=[]) as predictor:
        found = predictor.fusion(flat(1))
    assert found["reformats"]["time_ms"] is None
    assert found["notes"] == ["the times of the layers were not told"]


def test_a_wrong_call_is_an_error(rig):
    with opened(rig) as predictor:
        with pytest.raises(InputError, match="uint8"):
            predictor.fusion(flat(1).astype(np.float32))
        with pytest.raises(ConfigError, match="0 runs to time layers in"):
            predictor.fusion(flat(1), runs=0)
    with pytest.raises(InputError, match=r"after close\(\)"):
        predictor.fusion(flat(1))


# --- what the header keeps of the build


def test_the_counts_of_a_build_are_kept_in_the_engine_file(tmp_path):
    path = engine_file(tmp_path, header={"fusion": FusionCounts(8, 8, 6, 30, None)})
    assert header_from_engine(path).fusion == FusionCounts(8, 8, 6, 30, None)


def test_a_header_of_before_has_no_counts(tmp_path):
    path = engine_file(tmp_path)
    data = path.read_bytes()
    length = int.from_bytes(data[:4], "little")
    text = data[4 : 4 + length]
    old = text.replace(b',\n "fusion": null', b"")
    assert len(old) < length
    path.write_bytes(len(old).to_bytes(4, "little") + old + data[4 + length :])
    assert header_from_engine(path) == header_of(data[4 + length :])


@pytest.mark.parametrize("value", ["-1", '"8"', "8.5", "true", "1e9"])
def test_counts_that_are_none_are_refused(tmp_path, value):
    path = engine_file(tmp_path, header={"fusion": FusionCounts(8, None, None, 30, 17)})
    data = path.read_bytes()
    length = int.from_bytes(data[:4], "little")
    text = data[4 : 4 + length].replace(b": 17", f": {value}".encode())
    path.write_bytes(len(text).to_bytes(4, "little") + text + data[4 + length :])
    with pytest.raises(EngineError, match=r"fusion\.layer_norms_fused"):
        header_from_engine(path)
