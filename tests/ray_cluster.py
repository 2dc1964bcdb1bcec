"""A Ray cluster on this machine, in a process of its own, for as long as a test needs.

Run as a program it starts the nodes given, prints where they are and ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
STORE_BYTES = 80_000_000  # Ray takes no less than 75 MB
SECONDS = 60
ATTEMPTS = 3  # Ray gives its processes 30 s, which a busy machine exceeds (Ray 2.60)
# A node is given up after 1 or 2 s; by default a dead one after 10 s, a silent one after a minute.
SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 20_000,  # a busy machine answers late
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class Cluster:
    """Its address, the environment in which programs may connect to it, and its processes.

    Of each node, the head first, those that were started for it.
    """

    address: str
    environment: dict[str, str]
    nodes: tuple[tuple[int, ...], ...]

    def kill(self, node: int) -> None:
        """All processes of a node at once, as when its machine loses power."""
        processes = [psutil.Process(pid) for pid in self.nodes[node]]
        for process in processes:  # Nothing is started in their place.
            process.suspend()
        for process in [*processes, *(c for p in processes for c in p.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def running_cluster(*nodes: dict[str, int]) -> Iterator[Cluster]:
    """Closed to others: it asks for a token made here. Without `nodes` it has one with two CPUs.

    Its folder is that in which Ray, in its environment, looks for a cluster of this machine.
    """
    # Not pytest's folder: the names of Ray's sockets below it have to fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="riceseg-ray-"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
    }
    environment.pop("RAY_ADDRESS", None)
    said = folder / "stderr.txt"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(nodes or [{"num_cpus": 2}])],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        assert line, f"Ray did not start: {said.read_text()[-2000:]}"
        address, processes = json.loads(line)
        yield Cluster(address, environment, tuple(map(tuple, processes)))
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        for left in started:  # A node without a head leaves some behind.
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(started, SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    from ray.cluster_utils import Cluster as Nodes

    wanted = json.loads(sys.argv[1])
    for left in reversed(range(ATTEMPTS)):
        cluster: Any = Nodes()
        try:
            nodes = [_started(cluster, arguments) for arguments in wanted]
            break
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    print(json.dumps([cluster.address, nodes]), flush=True)
    sys.stdin.read()
    cluster.shutdown()


def _started(cluster: Any, arguments: dict[str, int]) -> list[int]:
    head = {} if cluster.head_node else {"include_dashboard": False, "_system_config": SYSTEM}
    node = cluster.add_node(object_store_memory=STORE_BYTES, **arguments, **head)
    return [item.process.pid for items in node.all_processes.values() for item in items]


if __name__ == "__main__":
    main()
