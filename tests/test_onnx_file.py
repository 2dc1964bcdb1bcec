from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from small_graphs import block_model, saved

import calibration.onnx_file
from calibration.onnx_file import model_from_onnx_file, write_checked_onnx
from engines.errors import GraphError, OutputError


def _with_external_weights(folder: Path, location: str) -> Path:
    """A model whose weights lie in `folder`/weights.bin, and which then names `location`."""
    path = folder / "model.onnx"
    onnx.save(
        block_model(),
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    model = model_from_onnx_file(_with_external_weights(tmp_path, "weights.bin"))
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in block_model().graph.initializer}
    for tensor in model.graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), expected[tensor.name])


@pytest.mark.parametrize("location", ["../outside/secret.bin", "{outside}/secret.bin", "link.bin"])
def test_external_data_outside_the_folder_is_refused_before_it_is_read(
    location: str, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.bin").write_bytes(bytes(100_000))
    (inside / "link.bin").symlink_to(outside / "secret.bin")
    path = _with_external_weights(inside, location.format(outside=outside))
    with pytest.raises(GraphError, match=r"a file inside .*inside"):
        model_from_onnx_file(path)


def test_external_data_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"data in 'gone\.bin'"):
        model_from_onnx_file(_with_external_weights(tmp_path, "gone.bin"))


def test_the_size_limit_counts_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _with_external_weights(tmp_path, "weights.bin")
    monkeypatch.setattr(calibration.onnx_file, "MAX_BYTES", path.stat().st_size)
    with pytest.raises(GraphError, match="at most 2 GB"):
        model_from_onnx_file(path)


def test_a_node_with_a_subgraph_is_refused(tmp_path: Path) -> None:
    model = block_model()
    branch = onnx.parser.parse_graph("b () => (float z) { z = Identity (half) }")
    condition = onnx.helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    model.graph.node.append(
        onnx.helper.make_node(
            "If", ["condition"], ["unused"], name="/If", then_branch=branch, else_branch=branch
        )
    )
    with pytest.raises(GraphError, match=r"node /If \(If\) holds a subgraph"):
        model_from_onnx_file(saved(model, tmp_path))


def test_a_graph_that_the_checker_refuses_is_refused(tmp_path: Path) -> None:
    model = block_model()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(GraphError, match="not valid ONNX"):
        model_from_onnx_file(saved(model, tmp_path))


def _divided_by(value: float) -> onnx.ModelProto:
    """The block with its activations divided by `value` before the head."""
    model = block_model()
    for node in model.graph.node:
        if node.name == "/ffn/Mul":
            node.op_type = "Div"
    half = next(t for t in model.graph.initializer if t.name == "half")
    half.CopyFrom(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), "half"))
    return model


def test_a_graph_whose_logits_are_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="not finite in logits"):
        write_checked_onnx(_divided_by(0.0), tmp_path / "out.onnx", like=block_model())
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_output_are_checked_as_well(tmp_path: Path) -> None:
    model, like = _divided_by(0.0), block_model()
    del model.graph.output[1], like.graph.output[1]
    with pytest.raises(GraphError, match="not finite in logits"):
        write_checked_onnx(model, tmp_path / "out.onnx", like=like)


def test_a_graph_with_other_outputs_is_not_written(tmp_path: Path) -> None:
    model = block_model()
    del model.graph.output[1]
    with pytest.raises(GraphError, match=r"expected \['labels', 'logits'\]"):
        write_checked_onnx(model, tmp_path / "out.onnx", like=block_model())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(GraphError, match="not finite"):
        write_checked_onnx(_divided_by(0.0), path, like=block_model())
    assert path.read_bytes() == before


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not writable"):
        write_checked_onnx(block_model(), tmp_path / "no" / "out.onnx", like=block_model())
