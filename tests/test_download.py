"""Downloads against a server on this machine that misbehaves in every way a real one can."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engines.errors import DownloadError, OutputError
from exporter import download
from exporter.download import cache_folder, file_from_zoo
from exporter.zoo import ZOO, ZooEntry, zoo_entry

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = "segformer_mit-b0_512x512_160k_ade20k_20210726_101530-8ffa8fda.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under every address; the attributes say how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.honours_range = True
        self.status = 200
        self.location = ""
        self.claimed_length: int | None = None
        self.cut_after: list[int] = []  # bytes of the body per connection, then whole bodies
        self.pause = threading.Event()  # with `stall_after`: the body stops until this is set
        self.stall_after: int | None = None
        self.ranges: list[str | None] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        server.paths.append(self.path)
        if server.location and self.path != "/moved":
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(asked[len("bytes=") : -1]) if asked and server.honours_range else 0
        if asked and server.honours_range and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if asked and server.honours_range else 200)
        if asked and server.honours_range:
            end = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Content-Length", str(server.claimed_length or len(body)))
        self.end_headers()
        if server.cut_after:
            body = body[: server.cut_after.pop(0)]
        elif server.stall_after is not None:
            self.wfile.write(body[: server.stall_after])
            self.wfile.flush()
            server.pause.wait(30)
            body = body[server.stall_after :]
        try:
            self.wfile.write(body)
        except OSError:  # the client is gone, as some tests want
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("RICESEG_ZOO_URL", running.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield running
        running.pause.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def entry() -> ZooEntry:
    """The published address with the hash of what the server has."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    return dataclasses.replace(zoo_entry("segformer-b0", "ade20k"), sha256_prefix=digest[:8])


def test_a_fresh_download_arrives_whole_with_its_progress(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    path = file_from_zoo(entry, cache=tmp_path / "a" / "b", on_progress=lambda *s: seen.append(s))
    assert path == tmp_path / "a" / "b" / NAME
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert server.paths == [f"/{NAME}"]
    assert [p.name for p in path.parent.iterdir()] == [NAME]


def test_a_cached_file_is_used_without_asking_the_server(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert file_from_zoo(entry, cache=tmp_path) == tmp_path / NAME
    assert server.paths == []


def test_an_altered_cached_file_is_fetched_again(
    server: Server, entry: ZooEntry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"!")
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert "has another SHA-256 than published" in caplog.text


def test_a_cut_connection_is_resumed_where_it_broke_off(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.cut_after = [300_000, 200_000]
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start_again(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.honours_range = False
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 5000)
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_connection_that_brings_nothing_is_not_tried_for_ever(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.cut_after = [1000, 0]
    with pytest.raises(DownloadError, match=r"broke off after 1000 bytes for http"):
        file_from_zoo(entry, cache=tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]


def test_a_part_that_was_whole_already_is_verified_and_kept(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]  # answered 416


@pytest.mark.parametrize("size", [5000, len(CONTENT), len(CONTENT) + 7])
def test_a_part_of_another_version_is_started_over_once(
    server: Server, entry: ZooEntry, tmp_path: Path, size: int
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * size)
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={size}-", None]


def test_a_partial_answer_from_another_place_is_not_glued_on(
    server: Server, entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:5000])
    monkeypatch.setattr(
        download, "_first_byte", lambda response: 4000 if response.status == 206 else 0
    )
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-", None]


def test_content_with_another_hash_is_refused_and_leaves_nothing(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.content = b"a captive portal's login page"
    begins = hashlib.sha256(server.content).hexdigest()[:8]
    message = rf"begins {begins} instead of {entry.sha256_prefix} .*{NAME}.*--checkpoint FILE"
    with pytest.raises(DownloadError, match=message):
        file_from_zoo(entry, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert server.ranges == [None]


def test_a_missing_file_names_it_and_the_ways_around(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.status = 404
    place = re.escape(str(tmp_path / NAME))
    message = rf"HTTP 404 .*expected {NAME}, .*put that file at {place}, or pass --checkpoint"
    with pytest.raises(DownloadError, match=message):
        file_from_zoo(entry, cache=tmp_path)


def test_without_a_network_the_part_is_kept(
    server: Server, entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("RICESEG_ZOO_URL", f"http://127.0.0.1:{closed.server_address[1]}")
    closed.server_close()
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:10])
    with pytest.raises(DownloadError, match=r"no answer \(.*refused\)"):
        file_from_zoo(entry, cache=tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:10]


def test_a_server_that_goes_silent_is_given_up(
    server: Server, entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    server.stall_after = 0
    with pytest.raises(DownloadError, match="broke off after 0 bytes"):
        file_from_zoo(entry, cache=tmp_path)


def test_a_file_announced_beyond_the_limit_is_refused_before_it_is_read(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.claimed_length = 4 * 1024**3 + 1
    with pytest.raises(DownloadError, match=r"got 4294967297 bytes, more than the limit"):
        file_from_zoo(entry, cache=tmp_path)
    assert (tmp_path / f"{NAME}.part").stat().st_size == 0


@pytest.mark.parametrize("model", ["mask2former-swin-l", "knet-swin-l-upernet", "segmenter-l-mask"])
def test_the_largest_published_files_are_within_the_limit(model: str) -> None:
    entry = zoo_entry(model, "ade20k")
    # In float32, and twice more: files of mmengine may hold a moving average, as large again.
    assert 3 * 4e6 * entry.parameters_m < download.MAX_BYTES
    assert entry.parameters_m > 200


def test_every_address_names_another_file_for_they_share_a_folder() -> None:
    names = [entry.url.rpartition("/")[2] for entry in ZOO if entry.url]
    assert len(set(names)) == len(names)


def test_a_file_of_unannounced_size_is_refused_when_it_passes_the_limit(
    server: Server, entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", len(CONTENT) - 1)
    monkeypatch.setattr(Handler, "send_header", lambda self, key, value: None)
    with pytest.raises(DownloadError, match=r"more bytes than the limit of 1048575"):
        file_from_zoo(entry, cache=tmp_path)
    assert not (tmp_path / NAME).exists()


def test_a_file_of_unannounced_size_is_accepted_by_its_hash(
    server: Server, entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "send_header", lambda self, key, value: None)
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT


def test_a_redirect_to_http_is_followed(server: Server, entry: ZooEntry, tmp_path: Path) -> None:
    server.location = "/moved"
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.paths == [f"/{NAME}", "/moved"]


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_a_redirect_elsewhere_is_refused(
    server: Server, entry: ZooEntry, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    server.location = f"{scheme}://{tmp_path}/secret"
    with pytest.raises(DownloadError, match=r"HTTP 302"):
        file_from_zoo(entry, cache=tmp_path / "cache")


@pytest.mark.parametrize("mirror", ["file:///srv/zoo", "ftp://host/zoo", "/srv/zoo"])
def test_a_mirror_of_another_scheme_is_refused(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("RICESEG_ZOO_URL", mirror)
    with pytest.raises(DownloadError, match="neither http nor https"):
        file_from_zoo(entry, cache=tmp_path)


@pytest.mark.parametrize("mirror", ["http://[::1/zoo", "http://host:port/zoo", "http://a b/zoo"])
def test_a_mirror_that_is_no_address_is_a_download_error(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("RICESEG_ZOO_URL", mirror)
    with pytest.raises(DownloadError, match="no answer"):
        file_from_zoo(entry, cache=tmp_path)


def test_without_a_mirror_the_published_address_is_used(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Offline:
        def open(self, request: object, timeout: float) -> None:
            asked.append(request.full_url)  # type: ignore[attr-defined]
            raise OSError("offline")

    monkeypatch.delenv("RICESEG_ZOO_URL", raising=False)
    monkeypatch.setattr(download, "_opener", Offline)
    with pytest.raises(DownloadError, match=r"no answer \(offline\)"):
        file_from_zoo(entry, cache=tmp_path)
    assert asked == [entry.url]
    assert urlsplit(asked[0]).hostname == "download.openmmlab.com"


def test_weights_without_an_address_are_to_be_given_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"segformer-b4 on rice.*pass --checkpoint FILE"):
        file_from_zoo(zoo_entry("segformer-b4", "rice"), cache=tmp_path)


def test_a_cache_that_cannot_be_written_to_is_an_output_error(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"set RICESEG_CACHE"):
        file_from_zoo(entry, cache=tmp_path / "file" / "below")


def test_an_interrupt_leaves_the_part_for_resuming(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file_from_zoo(entry, cache=tmp_path, on_progress=interrupt)
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert 100_000 < kept < len(CONTENT)
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={kept}-"]


def test_a_killed_process_leaves_a_part_that_the_next_one_resumes(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.stall_after = 400_000
    script = (
        "import dataclasses, sys; from pathlib import Path\n"
        "from exporter.download import file_from_zoo; from exporter.zoo import zoo_entry\n"
        "entry = zoo_entry('segformer-b0', 'ade20k')\n"
        "entry = dataclasses.replace(entry, sha256_prefix=sys.argv[2])\n"
        "file_from_zoo(entry, cache=Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(entry.sha256_prefix)]
    part = tmp_path / f"{NAME}.part"
    with subprocess.Popen(command, cwd=ROOT) as process:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size == 400_000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / NAME).exists()
    server.stall_after = None
    assert file_from_zoo(entry, cache=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-"]


def test_two_at_once_get_one_whole_file_from_one_download(
    server: Server, entry: ZooEntry, tmp_path: Path
) -> None:
    server.stall_after = 400_000
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(file_from_zoo(entry, cache=tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    server.pause.set()
    for thread in threads:
        thread.join(30)
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 3
    assert server.ranges == [None]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("RICESEG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/riceseg")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/someone/.cache/riceseg")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/riceseg")
    monkeypatch.setenv("RICESEG_CACHE", "/weights")
    assert cache_folder() == Path("/weights")
