"""Who writes and reads each tensor, and what counts as a constant."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from calibration.wiring import wiring_of
from engines.errors import GraphError
from tests.tiny_models import model_from_text


def test_every_form_of_a_constant_is_one() -> None:
    model = model_from_text("""
        forms (float[2] x) => (float[2] y) {
          tensor = Constant <value = float[2] {1.5, -2.0}> ()
          one = Constant <value_float = 0.25> ()
          some = Constant <value_floats = [0.5, 4.0]> ()
          whole = Constant <value_int = 7> ()
          wholes = Constant <value_ints = [3, -1, 2]> ()
          text = Constant <value_string = "no number"> ()
          y = Add (x, tensor)
        }""")
    found = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in wiring_of(model.graph).constants.items()
    }
    wanted = {
        "tensor": np.float32([1.5, -2.0]),
        "one": np.float32(0.25),
        "some": np.float32([0.5, 4.0]),
        "whole": np.int64(7),
        "wholes": np.int64([3, -1, 2]),
    }
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert np.array_equal(found[name], values)


def test_a_constant_without_a_value_is_refused_with_its_name() -> None:
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], "/hollow")], "g", [], [])
    with pytest.raises(GraphError, match="the Constant '/hollow', which holds no value"):
        wiring_of(graph)
