"""Published weights: downloaded once, resumed after an interruption, verified before use."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from engines.cache_folder import cache_folder
from engines.errors import DownloadError, output_error
from engines.images import sha256_of_file
from exporter.zoo import ZooEntry

MAX_BYTES = 4 * 1024**3  # the largest published, Segmenter L, has 1.3 GB of weights
TIMEOUT_S = 30.0  # for the connection and for each read, not for the whole file
MAX_CONNECTIONS = 20  # for one file; a next one is opened only if the last one brought bytes
CHUNK_BYTES = 1 << 18

OnProgress = Callable[[int, "int | None"], None]  # bytes so far, bytes in all where known

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """The file to get; every error names it and the two ways around the network."""

    entry: str
    address: str
    target: Path
    sha256_prefix: str

    def refused(self, got: str) -> DownloadError:
        return DownloadError(
            f"{got} for {self.address}",
            expected=f"{self.target.name}, the weights of {self.entry}",
            do=f"try again later, or put that file at {self.target}, or pass --checkpoint FILE",
        )

    def is_at(self, path: Path) -> bool:
        return path.is_file() and sha256_of_file(path).startswith(self.sha256_prefix)


def file_from_zoo(
    entry: ZooEntry, *, cache: Path | None = None, on_progress: OnProgress | None = None
) -> Path:
    """The verified weights of `entry`, from `cache` or from the network.

    The SHA-256 is checked on every call, so a cached file that was altered is fetched again. An
    interrupted download leaves NAME.part, which the next call resumes. Processes that want the
    same file wait for each other. RICESEG_ZOO_URL replaces everything before the file's name in
    the address.

    Raises DownloadError (no address, no network, HTTP error, wrong content) or OutputError (the
    cache cannot be written to).
    """
    wanted = _wanted(entry, cache or cache_folder())
    if wanted.is_at(wanted.target):
        return wanted.target
    if wanted.target.exists():
        _log.warning("%s has another SHA-256 than published; fetching it again", wanted.target)
    with _writing(wanted):
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
    part = wanted.target.with_name(wanted.target.name + ".part")
    with _locked(part, wanted) as file:
        if wanted.is_at(wanted.target):  # another process was faster
            part.unlink()
        else:
            _fill(file, part, wanted, on_progress or (lambda done, total: None))
            with _writing(wanted):
                os.replace(part, wanted.target)
    return wanted.target


def _wanted(entry: ZooEntry, cache: Path) -> _Wanted:
    title = f"{entry.model} on {entry.weights}"
    if entry.url is None or entry.sha256_prefix is None:
        raise DownloadError(
            f"{title}, of which no public address is known",
            expected="a published file",
            do="ask its authors for the weights and pass --checkpoint FILE",
        )
    name = PurePosixPath(urlsplit(entry.url).path).name
    mirror = os.environ.get("RICESEG_ZOO_URL")
    address = f"{mirror.rstrip('/')}/{name}" if mirror else entry.url
    wanted = _Wanted(title, address, cache / name, entry.sha256_prefix)
    if not address.lower().startswith(("http://", "https://")):
        raise wanted.refused("an address that is neither http nor https")
    return wanted


@contextlib.contextmanager
def _writing(wanted: _Wanted) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(
            str(wanted.target), error, do="set RICESEG_CACHE to another folder"
        ) from error


@contextlib.contextmanager
def _locked(part: Path, wanted: _Wanted) -> Iterator[BinaryIO]:
    """Opens `part` for this process alone, waiting for another one that has it.

    The kernel drops the lock when its holder dies, so none is ever left over. The holder renames
    the locked file into place, hence the look whether the name still means what was locked.
    """
    while True:
        with _writing(wanted):
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        with file:
            with _writing(wanted):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.info("waiting for another process that downloads %s", part.name)
                    fcntl.flock(file, fcntl.LOCK_EX)
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
                yield file
                return


def _fill(file: BinaryIO, part: Path, wanted: _Wanted, on_progress: OnProgress) -> None:
    """Makes `file`, which is `part`, the wanted file; starts over once if the old bytes misled.

    An address names its content by hash, so resuming asks for no ETag: bytes of another version
    show in the SHA-256.
    """
    resumed = file.seek(0, os.SEEK_END) > 0
    _receive(file, wanted, on_progress)
    if resumed and not wanted.is_at(part):
        _log.warning("%s did not fit what the server has; starting over", part.name)
        file.truncate(0)
        _receive(file, wanted, on_progress)
    if not wanted.is_at(part):
        begins = sha256_of_file(part)[: len(wanted.sha256_prefix)]
        part.unlink()
        raise wanted.refused(f"a SHA-256 that begins {begins} instead of {wanted.sha256_prefix}")


def _receive(file: BinaryIO, wanted: _Wanted, on_progress: OnProgress) -> None:
    """Appends to `file` until the server says that it is whole."""
    for _ in range(MAX_CONNECTIONS):
        before = file.seek(0, os.SEEK_END)
        if _receive_once(file, wanted, on_progress):
            return
        if file.seek(0, os.SEEK_END) == before:
            break
    raise wanted.refused(f"a connection that broke off after {file.tell()} bytes")


def _receive_once(file: BinaryIO, wanted: _Wanted, on_progress: OnProgress) -> bool:
    """Adds what one connection brings, from the end of `file` or anew; False if it broke off."""
    response = _response(wanted, file.seek(0, os.SEEK_END))
    if response is None:
        return True
    with response:
        done = _first_byte(response)
        if done not in (0, file.tell()):
            file.truncate(0)
            return False
        file.truncate(done)
        file.seek(done)
        total = None if response.length is None else done + response.length
        if (total or 0) > MAX_BYTES:
            raise wanted.refused(f"{total} bytes, more than the limit of {MAX_BYTES},")
        on_progress(done, total)
        while True:
            try:
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException):
                return False
            if not chunk:
                return total is None or done >= total
            done += len(chunk)
            if done > MAX_BYTES:
                raise wanted.refused(f"more bytes than the limit of {MAX_BYTES}")
            with _writing(wanted):
                file.write(chunk)
                file.flush()  # what has arrived outlives a kill
            on_progress(done, total)


def _first_byte(response: http.client.HTTPResponse) -> int:
    """Where in the file the answer begins; -1 if a partial answer does not say."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _response(wanted: _Wanted, offset: int) -> http.client.HTTPResponse | None:
    """The server's answer to a request from `offset` on; None if nothing lies beyond it."""
    headers = {"User-Agent": "riceseg", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        request = urllib.request.Request(wanted.address, headers=headers)
        response: http.client.HTTPResponse = _opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            return None
        raise wanted.refused(f"HTTP {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise wanted.refused(f"no answer ({reason})") from error
    return response


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows http and https only, and never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        url: str,
    ) -> urllib.request.Request | None:
        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise urllib.error.HTTPError(url, code, f"redirected to {scheme}:", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, url)


def _opener() -> urllib.request.OpenerDirector:
    """Like urllib's own, without its handlers for file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _HttpRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
