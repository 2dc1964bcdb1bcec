"""A Ray cluster of two CPUs on this machine, in a process of its own, for as long as a test needs.

Run as a program it starts one in the folder given, prints HOST:PORT and ends with its input.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE_BYTES = 80_000_000  # Ray takes no less than 75 MB
SECONDS = 60
ATTEMPTS = 3  # ray.init gives its processes 30 s, which a busy machine exceeds (Ray 2.60)


@dataclass(frozen=True)
class Cluster:
    """Its address, and the environment in which programs may connect to it."""

    address: str
    environment: dict[str, str]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Closed to others: it asks for a token made here."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment.pop("RAY_ADDRESS", None)
    # Not pytest's folder: the names of Ray's sockets below it have to fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="riceseg-ray-"))
    said = folder / "stderr.txt"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, f"Ray did not start: {said.read_text()[-2000:]}"
        yield Cluster(address, environment)
    finally:
        process.stdin.close()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    import ray

    for left in reversed(range(ATTEMPTS)):
        try:
            _start(ray)
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


def _start(ray: Any) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=sys.argv[1],
    )


if __name__ == "__main__":
    main()
