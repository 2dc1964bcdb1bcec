"""Where a cluster is, and whether it is there, found out before Ray is asked: it would wait."""

from __future__ import annotations

import os
import socket
import warnings
from typing import Any

from engines.errors import ClusterError, ConfigError, MissingPackageError

_REACH_SECONDS = 10.0
_START = "start one (ray start --head), and run this on one of its machines"


def check_address(address: str) -> None:
    """ConfigError unless it is "auto" or HOST:PORT; MissingPackageError without ray.

    For "auto" RAY_ADDRESS must be so as well: for "local" Ray would start a cluster of its own.
    """
    for name, value in ((f"--ray {address!r}", address), (f"RAY_ADDRESS {_named()!r}", _named())):
        if value != "auto" and not _is_host_and_port(value):
            raise ConfigError(
                name,
                expected="auto, or HOST:PORT of a cluster's head",
                do="start a cluster (ray start --head) and pass --ray auto on one of its machines",
            )
        if address != "auto":
            break
    ray_package()


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdecimal()


def ray_package() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray.data
    except ImportError as error:
        raise MissingPackageError("ray", needed_for="--ray", extra="ray") from error
    return ray


def found_address(address: str) -> str:
    """HOST:PORT for "auto": RAY_ADDRESS, or where Ray finds a cluster on this machine."""
    if address != "auto" or (address := _named()) != "auto":
        return address
    try:
        from ray._private.services import get_ray_address_from_environment as find

        return str(find("auto", None))
    except ConnectionError as error:
        raise ClusterError(
            "no Ray cluster on this machine",
            expected="one, or RAY_ADDRESS or --ray with HOST:PORT of its head",
            do=_START,
        ) from error
    except (ImportError, TypeError):  # not for others to use: it may change
        return address


def _named() -> str:
    """What "auto" means: RAY_ADDRESS where it is set."""
    return os.environ.get("RAY_ADDRESS") or "auto"


def check_reachable(address: str) -> None:
    """ray.init tries for minutes, and writes about it, where nobody listens."""
    if _is_host_and_port(address):
        error = refusal(address, _REACH_SECONDS)
        if error is not None:
            raise not_connected(address, error) from error


def refusal(address: str, seconds: float) -> Exception | None:
    """None where somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last: no name of a host
        return error
    return None


def not_connected(address: str, error: BaseException) -> ClusterError:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    do = _START
    if any("uthenticat" in f"{type(cause).__name__} {cause}" for cause in causes):
        do = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, as on the cluster's machines"
    reason = (str(causes[-1]) or type(error).__name__).splitlines()[0]
    return ClusterError(
        f"no connection to the Ray cluster {address!r} ({reason})",
        expected="a cluster of the same versions of Python and Ray",
        do=do,
    )
