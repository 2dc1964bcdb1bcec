"""quantize_static of ONNX Runtime in a process of its own: tool_onnxruntime.py JOB.json."""

from __future__ import annotations

from typing import Any

from ptq.job_child import Job, run_job


def main() -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        """One image of a batch at a time; a part of them for CalibStridedMinMax."""

        def __init__(self, job: Job) -> None:
            self._job, self._left = job, iter(job.images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._left, None)
            return None if image is None else {self._job.input_name: image[None]}

        def __len__(self) -> int:
            return len(self._job.images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(self._job.images[start_index:end_index])

    def quantize(job: Job) -> None:
        options = dict(job.options)
        if "calibrate_method" in options:
            options["calibrate_method"] = CalibrationMethod[options["calibrate_method"]]
        source = job.onnx
        if options.pop("leave_out", False):
            options["nodes_to_exclude"] = nodes_left_out(onnx.load(source))
        else:
            # As its documentation advises. It turns MatMul and Add into Gemm, whose output is
            # quantized too: with leave_out that would bring half of the attention products back.
            source = f"{job.out}.prepared.onnx"
            quant_pre_process(job.onnx, source)
        quantize_static(source, job.out, Reader(job), **options)

    run_job(quantize)


def nodes_left_out(model: Any) -> list[str]:
    """Names of attention products, depthwise convolutions, and the first and last layer.

    What a user of the tool would write down after looking at the graph.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    products = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and shapes.keys().isdisjoint(node.input)
    ]
    depthwise = [
        node
        for node in convolutions
        if shapes[node.input[1]][1] == 1
        and any(item.name == "group" and item.i > 1 for item in node.attribute)
    ]
    left_out = [*products, *depthwise, convolutions[0], convolutions[-1]]
    return list(dict.fromkeys(node.name for node in left_out))


if __name__ == "__main__":
    main()
