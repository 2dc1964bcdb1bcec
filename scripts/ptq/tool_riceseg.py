"""One way of ours in a process of its own: tool_riceseg.py JOB.json, see `ptq.jobs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptq.job_child import Job, run_job


def main() -> None:
    from calibration.placement import QuantizePolicy
    from calibration.recipe import Int8Recipe, int8_onnx_from_images

    def quantize(job: Job) -> None:
        options = dict(job.options)
        if "exclude_kinds" in options:
            options["policy"] = QuantizePolicy(
                exclude_kinds=frozenset(options.pop("exclude_kinds"))
            )

        def images() -> Iterator[Any]:
            return iter(job.images)

        int8_onnx_from_images(job.onnx, images, job.out, Int8Recipe(**options))

    run_job(quantize)


if __name__ == "__main__":
    main()
