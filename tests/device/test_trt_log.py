"""TensorRT's log: the file, the kept errors, and the layers that they name."""

from __future__ import annotations

import logging

import pytest
from fake_builder import fake_module

from engines.errors import OutputError
from engines.trt.api import TensorRt
from engines.trt.layer_names import layers_named_in, module_path
from engines.trt.log import (
    ERROR,
    INFO,
    VERBOSE,
    WARNING,
    MessageLog,
    errors_text,
    listening,
    process_logger,
)
from engines.trt.places import build_log


@pytest.fixture
def tensorrt():
    return TensorRt(fake_module("10.3.0"), "TensorRT", (10, 3, 0))


def test_every_message_is_in_the_file_with_time_and_severity(tmp_path):
    path = tmp_path / "기록.log"
    with MessageLog(path) as log:
        log.message(ERROR, "한 오류")
        log.message(VERBOSE, "a detail\nin two lines")
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [line.split(maxsplit=1)[1] for line in lines[:2]] == ["E 한 오류", "V a detail"]
    assert lines[2:] == ["in two lines", ""]


def test_the_last_errors_and_warnings_are_kept():
    log = MessageLog()
    for number in range(30):
        log.message(ERROR, f"error {number}")
        log.message(WARNING, f"warning {number}")
        log.message(INFO, "information")
    assert list(log.errors) == [f"error {number}" for number in range(10, 30)]
    assert list(log.warnings)[-1] == "warning 29"


def test_verbose_messages_end_where_the_file_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("engines.trt.log.MAX_VERBOSE_BYTES", 100)
    with MessageLog(tmp_path / "a.log") as log:
        for _ in range(50):
            log.message(VERBOSE, "v" * 20)
        log.message(WARNING, "still written")
    text = (tmp_path / "a.log").read_text(encoding="utf-8")
    assert text.count("V ") == 4  # of 33 bytes each: the fourth passes 100
    assert text.endswith("W still written\n")


def test_text_that_is_no_unicode_is_written(tmp_path):
    with MessageLog(tmp_path / "a.log") as log:
        log.message(ERROR, "a lone \ud800")
    assert "\\ud800" in (tmp_path / "a.log").read_text(encoding="utf-8")


def test_a_full_disk_is_told_and_raises_nothing():
    log = MessageLog()

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    log._file = Full()
    log.message(ERROR, "text")
    log.close()
    assert "No space left" in log.failure
    assert list(log.errors) == ["text"]


def test_a_log_in_no_folder_is_an_output_error(tmp_path):
    log = build_log(tmp_path / "no" / "a.engine")
    with pytest.raises(OutputError, match="folder that can be written to"), log:
        pass


def test_a_log_takes_no_name_that_is_there(tmp_path):
    (tmp_path / "a.log").write_bytes(b"of a good build")
    with pytest.raises(FileExistsError):
        MessageLog(tmp_path / "a.log")


def test_errors_and_the_layers_in_them_are_shown_in_part():
    text = errors_text(["/net/" + "a" * 9_000 + "/Conv failed"])
    assert len(text) == 1_000 + len(" [layer ]") + 200
    assert "... [layer net." in text


def test_a_process_has_one_logger(tensorrt):
    first = process_logger(tensorrt)
    with listening(tensorrt, MessageLog()) as second:
        assert first is second
    other = TensorRt(fake_module("8.6.1"), "TensorRT", (8, 6, 1))
    assert process_logger(other) is not first


def test_messages_go_to_all_who_listen_and_only_then(tensorrt):
    one, two = MessageLog(), MessageLog()
    with listening(tensorrt, one) as logger:
        logger.log(1, "first")
        with listening(tensorrt, two):
            logger.log(1, "second")
        logger.log(1, "third")
    assert list(one.errors) == ["first", "second", "third"]
    assert list(two.errors) == ["second"]


def test_where_nobody_listens_warnings_go_to_python_s_log(tensorrt, caplog):
    with caplog.at_level(logging.DEBUG):
        process_logger(tensorrt).log(2, "a warning\nin two lines")
        process_logger(tensorrt).log(3, "information")
    assert [record.getMessage() for record in caplog.records] == [
        "TensorRT: a warning in two lines"
    ]


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ("/net/ffn/layers/layers.0/Conv", "net.ffn.layers.0"),
        ("/net/decode_head/conv_seg/Conv", "net.decode_head.conv_seg"),
        ("/Cast", ""),
        ("", ""),
    ],
)
def test_a_node_s_name_is_the_path_of_its_layer(node, path):
    assert module_path(node) == path


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("Could not find any implementation for node /net/a/Conv.", ("net.a",)),
        ("node {ForeignNode[/net/a/MatMul.../net/b/c/Add]}", ("net.a", "net.b.c")),
        ("/net/a/Conv + /net/a/Relu, again /net/a/Conv", ("net.a",)),
        ("[checkMacros.cpp::catchCudaError::250] at /_src/common/checkMacros.cpp:250", ()),
        ("cannot open /data/models/best.onnx", ()),
        ("no name at all, 3/4 of it", ()),
    ],
)
def test_the_layers_that_a_message_names_are_found(text, layers):
    assert layers_named_in(text) == layers


def test_the_last_errors_make_one_line_with_their_layers():
    errors = ["old", "one", "two", "two", "Error (/net/head/Conv: no kernel\n at all)"]
    assert errors_text(errors) == (
        "one; two; Error (/net/head/Conv: no kernel at all) [layer net.head]"
    )
    assert errors_text([]) == "no error in its log"
