"""ONNX Runtime as a predictor: uint8 images or float32 bands in, uint8 labels out, on the CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

from engines.background import Background
from engines.batches import (
    BANDS_NAME,
    INPUT_DTYPES,
    INPUT_NAME,
    LOGITS_NAME,
    OUTPUT_NAME,
    Batch,
    check_batch,
    closed_error,
    padded,
    pieces,
)
from engines.errors import ConfigError, GraphError, MissingPackageError
from engines.evaluation.evaluate import Prediction
from engines.resize import Labels, ResizeRule, labels_at_image_size

if TYPE_CHECKING:
    from types import TracebackType

# Protobuf, which ONNX is written in, ends here.
MAX_ONNX_BYTES = 2**31 - 1

# Weights in another file are named by an entry whose field 1, "key", is the text "location".
# Tag and length are variable-length numbers of up to ten bytes: they may carry padding, and
# protobuf in C++ drops what is above 32 bits (8a 80 80 80 10 is the tag 0a).
_EXTERNAL_DATA = re.compile(
    rb"(?:\x0a|\x8a[\x80-\xff]{0,8}[\x00-\x7f])(?:\x08|\x88[\x80-\xff]{0,8}[\x00-\x7f])location"
)
_LONGEST_MATCH = 28


class OnnxPredictor:
    """One ONNX graph on ONNX Runtime's CPU provider.

    The graph takes `image`, (N, H, W, C) uint8, and gives `labels`, (N, H, W) uint8; H, W and C
    are fixed in it, N is fixed or free. Further outputs are not computed, but for `logits`,
    (N, K, H, W) float32, which the graph may have beside or instead of `labels`.
    A graph of `--fuse-bands` takes `bands` instead, (N, h, w, B) float32, the measured values of
    scenes whose size may be another than that of the labels.
    `labels`, `logits` and `predict` may be called from several threads at once.

    Attributes: `path`, `name` (shown in tables), `runtime` ("ONNX Runtime 1.17.3 on CPU"),
    `input_hw` in pixels, `channels`, `input_dtype` (uint8, or float32 for bands), `output_hw`,
    `fixed_batch`, None when N is free, and `has_logits`.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        threads: Optional[int] = None,
        name: Optional[str] = None,
    ) -> None:
        """Load the graph; `threads` None leaves the number to ONNX Runtime (one a physical core).

        `name` is the file's name unless given. Raises GraphError when the file is no such graph
        or keeps weights in other files, MissingPackageError without onnxruntime.
        """
        if threads is not None and threads < 1:
            raise ConfigError(
                f"{threads} threads", expected="1 or more", do="leave it out for all cores"
            )
        self.path = Path(path)
        self.name = self.path.name if name is None else name
        check_one_file(self.path)
        self._session: Any = _session_from_file(self.path, threads)
        self.runtime = f"ONNX Runtime {_version()} on CPU"
        self._input, self.input_dtype = self._input_name()
        self.fixed_batch, self.input_hw, self.channels = self._input_shape()
        self.has_logits = self._has_logits()
        self._output = self._output_name()
        self.output_hw = self._output_hw()

    def labels(self, batch: Batch) -> Labels:
        """Labels (N, H, W) uint8, newly allocated, of a batch (N, H, W, C) that is only read.

        N may be any number above 0: a graph with a fixed batch is run several times.
        Raises InputError for another dtype or shape and after `close`.
        """
        labels: Labels = self._in_pieces(batch, self._output, self._labels_from)
        return labels

    def logits(self, batch: Batch) -> Any:
        """Logits (N, K, H, W) float32, newly allocated; GraphError for a graph without them."""
        if not self.has_logits:
            raise GraphError(
                f"{self.path.name!r}, which gives labels alone",
                expected=f"an output {LOGITS_NAME!r} of float32 (N, K, H, W)",
                do="export it with --output logits or --output both",
            )
        return self._in_pieces(batch, LOGITS_NAME, lambda logits: logits)

    def predict(
        self, network_image: Batch, image_hw: Tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        """Labels of one network-sized image (H, W, C), there and at the image's own size."""
        network = self.labels(network_image[np.newaxis])[0]
        return Prediction(network=network, image=labels_at_image_size(network, image_hw, rule))

    def stream(self, batches: Iterable[Batch]) -> Iterator[Labels]:
        """`labels` of each batch, in order; a thread of its own makes the batches two ahead.

        What `batches` raises is raised here in its place. Leaving early (`close` of this generator,
        an exception) ends the thread, which finishes the element that it is making.
        """
        self._open_session()
        return self._streamed(batches)

    def _streamed(self, batches: Iterable[Batch]) -> Iterator[Labels]:
        copies = self._checked_copies(batches)
        source = Background(copies, ahead=2, name=f"stream of {self.name}")
        try:
            for batch in source:
                yield self.labels(batch)
        finally:
            source.stop()

    def _checked_copies(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Copies, because a source may fill the same array again for its next element."""
        for batch in batches:
            check_batch(batch, self.input_hw, self.channels, dtype=self.input_dtype)
            yield np.array(batch)

    def close(self) -> None:
        """Release the graph; a call that is running in another thread still ends normally."""
        self._session = None

    def __enter__(self) -> OnnxPredictor:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _open_session(self) -> Any:
        session = self._session
        if session is None:
            raise closed_error(self.name)
        return session

    def _in_pieces(self, batch: Batch, output: str, result_of: Callable[[Any], Any]) -> Any:
        session = self._open_session()
        check_batch(batch, self.input_hw, self.channels, dtype=self.input_dtype)
        size = len(batch) if self.fixed_batch is None else self.fixed_batch
        parts = [
            result_of(self._run(session, images, size, output)) for images in pieces(batch, size)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, session: Any, images: Batch, size: int, output: str) -> Any:
        """At most `size` images; the missing ones are repetitions whose results are dropped."""
        feed = np.ascontiguousarray(padded(images, size))
        try:
            (result,) = session.run([output], {self._input: feed})
        except Exception as error:  # ONNX Runtime's errors share no base class but this one.
            raise GraphError(
                f"{self.path.name!r}, which fails while running: {error}",
                expected="a graph that runs on ONNX Runtime",
                do="export it again, or install the ONNX Runtime it was checked with",
            ) from error
        sides = result.shape[-2:] if output == LOGITS_NAME else result.shape[1:]
        if (len(result), *sides) != (size, *self.output_hw):
            raise self._wrong_graph(
                f"{output} of shape {result.shape}", f"{output} of {(size, *self.output_hw)}"
            )
        return result[: len(images)]

    def _labels_from(self, result: Any) -> Labels:
        labels: Labels = (
            result if self._output == OUTPUT_NAME else result.argmax(1).astype(np.uint8)
        )
        return labels

    def _input_name(self) -> Tuple[str, Any]:
        """The name of the one input and the dtype it must have."""
        inputs = self._session.get_inputs()
        kinds = {INPUT_NAME: "tensor(uint8)", BANDS_NAME: "tensor(float)"}
        if len(inputs) != 1 or kinds.get(inputs[0].name) != inputs[0].type:
            raise self._wrong_inputs()
        return inputs[0].name, INPUT_DTYPES[inputs[0].name]

    def _input_shape(self) -> Tuple[Optional[int], Tuple[int, int], int]:
        shape: List[Any] = self._session.get_inputs()[0].shape
        if len(shape) != 4 or not all(isinstance(side, int) and side > 0 for side in shape[1:]):
            raise self._wrong_inputs()
        batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        return batch, (shape[1], shape[2]), shape[3]

    def _wrong_inputs(self) -> GraphError:
        inputs = self._session.get_inputs()
        found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
        return self._wrong_graph(
            f"the inputs: {found or 'none'}",
            f"one input {INPUT_NAME!r} of uint8 or {BANDS_NAME!r} of float32, (N, H, W, C) with "
            "fixed H, W and C",
        )

    def _output_hw(self) -> Tuple[int, int]:
        """Only a graph of bands gives labels of another size than it takes."""
        if self._input == INPUT_NAME:
            return self.input_hw
        shapes = {item.name: item.shape for item in self._session.get_outputs()}
        sides = shapes[self._output][-2:]
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise self._wrong_graph(
                f"{self._output} of {shapes[self._output]}", "an output with fixed H and W"
            )
        return sides[0], sides[1]

    def _has_logits(self) -> bool:
        return any(
            item.name == LOGITS_NAME and item.type == "tensor(float)" and len(item.shape) == 4
            for item in self._session.get_outputs()
        )

    def _output_name(self) -> str:
        """The labels; of a graph with logits (N, K, H, W) alone the labels are their argmax."""
        outputs = {item.name: item for item in self._session.get_outputs()}
        output = outputs.get(OUTPUT_NAME)
        if output is None and self.has_logits:
            return LOGITS_NAME
        if output is None or output.type != "tensor(uint8)":
            found = ", ".join(f"{item.name} {item.type}" for item in outputs.values())
            raise self._wrong_graph(
                f"the outputs: {found}", f"an output {OUTPUT_NAME!r} of uint8 (N, H, W)"
            )
        return OUTPUT_NAME

    def _wrong_graph(self, got: str, expected: str) -> GraphError:
        return GraphError(
            f"{self.path.name!r} with {got}",
            expected=expected,
            do="export it with `riceseg export`",
        )


def check_one_file(path: Path) -> None:
    """Refuse a graph that keeps weights in other files: a downloaded one could name any file.

    ONNX Runtime 1.17.3 reads `../weights.bin` and links that lead out of the folder, 1.31.1 refuses
    both (tried). Searching the bytes holds on every version and needs no protobuf package; a graph
    whose node reads a tensor named "location" is refused as well.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or not 0 < size <= MAX_ONNX_BYTES:
            raise GraphError(
                f"{str(path)!r} of {size} bytes" if path.is_file() else f"{str(path)!r}, no file",
                expected="an ONNX file of 1 byte to 2 GiB",
                do="give the .onnx file that the export wrote",
            )
        with open(path, "rb") as file:
            tail = b""
            for chunk in iter(lambda: file.read(1 << 20), b""):
                if _EXTERNAL_DATA.search(tail + chunk):
                    raise GraphError(
                        f"{path.name!r}, which keeps weights in another file",
                        expected="an ONNX file that holds all its weights",
                        do="load it with onnx.load and save it with onnx.save_model",
                    )
                tail = chunk[-_LONGEST_MATCH:]
    except OSError as error:
        raise GraphError(
            f"{str(path)!r}: {error.strerror}",
            expected="a readable ONNX file",
            do="check the path and its permissions",
        ) from error


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _session_from_file(path: Path, threads: Optional[int]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "onnxruntime", needed_for="running ONNX files", extra="onnx"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Errors arrive as exceptions; the log repeats them.
    # Without it a file that starts like ONNX Runtime's own format would be read as one.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but this one.
        raise GraphError(
            f"{path.name!r}, which ONNX Runtime {onnxruntime.__version__} refuses: {error}",
            expected="a valid ONNX file with standard operators",
            do="export it again, or install a newer onnxruntime",
        ) from error
