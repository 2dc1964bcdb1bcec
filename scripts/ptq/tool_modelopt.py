"""NVIDIA ModelOpt's ONNX INT8 in a process of its own venv: tool_modelopt.py JOB.json."""

from __future__ import annotations

from ptq.job_child import Job, run_job


def main() -> None:
    import modelopt.onnx.quantization as modelopt  # type: ignore[import-not-found]
    import numpy as np

    def quantize(job: Job) -> None:
        # "cpu" because the others of its default need a GPU.
        modelopt.quantize(
            job.onnx,
            quantize_mode="int8",
            calibration_data={job.input_name: np.array(job.images)},
            calibration_eps=["cpu"],
            output_path=job.out,
            **job.options,
        )

    run_job(quantize)


if __name__ == "__main__":
    main()
